"""`make demo`: the cluster boots on this machine, computes a hazard curve, and is taken down again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import build, cache, cluster
from lab.cluster.cluster import Lab
from lab.cluster.program import read_config, record
from lab.linux.host import Paths
from lab.trials import report
from lab.trials.job import CLASSICAL, compare, fetch_job, run_job, work_done

Say = Callable[[str], None]


def run_demo(
    paths: Paths, stack: str, settings: Sequence[str], out: Path, say: Say, *, cold: bool, keep: bool
) -> None:
    """Boot, compute on the cluster and on one node, compare, show, take down.

    It is taken down after an error too, but not with `keep`.
    """
    begin = time.monotonic()
    build.refuse_second(paths)  # which the end of the demo would take down
    with phase("the Pulumi program, recorded", say):
        plan = make_plan(record(read_config(stack, settings)))
    with phase("the Debian image", say):
        cache.nodes_image(paths, plan, say)
    try:
        with phase("power-on to ready", say):
            lab = build.up(paths, plan, say, cold=cold)
            cluster.wait_until_ready(lab, say)
        job_ini = fetch_job(lab, CLASSICAL)
        with phase("the job on the cluster", say):
            distributed = run_job(lab, job_ini, out, show=False)
        work = work_done(lab, distributed)
        with phase("the same job by processpool on the master", say):
            alone = run_job(lab, job_ini, None, processpool=True, show=False)
        with phase("comparison and picture", say):
            difference = compare(lab, alone, distributed)
            picture = out / "hazard-curves.png"
            report.plot_hazard_curves(out, picture, job_ini.parent.name)
    finally:
        if not keep:
            with phase("down", say):
                build.down(paths)
    print()
    print(nodes_table(lab, work))
    print()
    print(f"on the cluster               {distributed.seconds:8.1f} s")
    print(f"by processpool on the master {alone.seconds:8.1f} s")
    print(
        f"largest difference           {difference.absolute:8.1e} absolute, "
        f"{difference.relative:.1e} relative, in {difference.datasets} datasets"
    )
    print(f"everything                   {time.monotonic() - begin:8.1f} s")
    print(f"\n{len(list(out.glob('*.csv')))} CSV files and {picture.name} are in {out}/")
    if not all(tasks for tasks, _ in work.values()):
        raise LabError("a worker has computed nothing")


@contextmanager
def phase(name: str, say: Say) -> Iterator[None]:
    """Say that a phase begins, and how long it took when it ends."""
    say(f"{name} …")
    begin = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - begin:.1f} s")


def nodes_table(lab: Lab, work: dict[str, tuple[int, float]]) -> str:
    """The nodes: seconds from power-on to ready, tasks done and seconds spent in them."""
    rows = []
    for node in lab.nodes.values():
        ready = f"{node.ready_after:.1f}" if node.ready_after is not None else "-"
        tasks, seconds = work.get(node.name, (None, None))
        rows.append(
            [
                node.name,
                str(node.address),
                str(len(node.cpus)),
                ready,
                "-" if tasks is None else str(tasks),
                "-" if seconds is None else f"{seconds:.1f}",
            ]
        )
    return report.table(["node", "address", "vCPUs", "ready after s", "tasks", "seconds in tasks"], rows)
