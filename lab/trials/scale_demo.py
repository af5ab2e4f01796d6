"""`make demo SCALE=1`: a fleet of no workers, a job, and a fleet of no workers again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from lab.aws.plan import make_plan
from lab.cluster import build, cluster, scaler
from lab.cluster.cluster import Lab
from lab.cluster.program import read_config, record
from lab.linux.host import Paths
from lab.trials.demo import Say, nodes_table, phase
from lab.trials.job import CLASSICAL, DemoJob, fetch_job, run_job, work_done

SPEEDUP = 5
"""By how much the alarms look at fewer periods than recorded: an idle fleet goes after one minute, not five."""
JOB = DemoJob("finer", CLASSICAL.folder, {"area_source_discretization": "1.5"})
"""Longer than the alarm's period and a worker's boot, so that the workers who come for its tasks find some."""
JOB_SECONDS = 600
"""The longest wait for a job, boots of its workers included."""
GONE_SECONDS = 600
"""The longest wait for the workers' end: an idle minute that has to be a whole one, published once a minute."""


def run_scale_demo(
    paths: Paths, stack: str, settings: Sequence[str], out: Path, say: Say, *, cold: bool, keep: bool
) -> None:
    """Boot a master alone, compute on the workers that its queue brings, and wait until they are gone.

    It is taken down after an error too, but not with `keep`.
    """
    build.refuse_second(paths)
    plan = make_plan(record(read_config(stack, [*settings, "workerMin=0", "workerDesired=0"])))
    try:
        with phase("power-on to ready", say):
            lab = build.up(paths, plan, say, cold=cold)
            cluster.wait_until_ready(lab, say)
        history = follow_job(lab, out, say)
    finally:
        if not keep:
            with phase("down", say):
                build.down(paths)
    print(f"\nworkers: {history}")
    first = history.numbers[0][0]
    for moment, number in history.numbers:
        print(f"{moment - first:7.1f} s  {number}")


def follow_job(lab: Lab, out: Path, say: Say) -> scaler.History:
    """Compute on a master without workers while the alarms scale the fleet, until it is empty again."""
    job_ini = fetch_job(lab, JOB)
    say(f"from here on the recorded alarms scale the fleet; they look at 1/{SPEEDUP} of their periods")
    stop = Event()
    with ThreadPoolExecutor() as pool:
        followed = pool.submit(scaler.follow, lab, stop, say, SPEEDUP)
        try:
            with phase("the job, which waits for workers", say):
                run = run_job(lab, job_ini, out, show=False, limit=JOB_SECONDS)
            print(f"\n{nodes_table(lab, work_done(lab, run))}\n")
            with phase("until no worker is left", say):
                scaler.wait_for_size(lab, 0, GONE_SECONDS)
        finally:
            stop.set()
        return followed.result()
