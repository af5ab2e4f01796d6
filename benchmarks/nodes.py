"""Clusters of the lab, as the benchmarks use them: a name of their own, tasks of shell, journals with times."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

from benchmarks.modes import Skipped
from components import facts
from lab.aws.plan import make_plan
from lab.cluster import build, cluster
from lab.cluster.cluster import Lab, Node
from lab.cluster.program import record, small_config
from lab.linux import host, teardown
from lab.linux.host import Paths

NAME = "oqlabbench"


def configuration(**settings: object) -> dict[str, str]:
    """The stack's configuration with small volumes, two workers at most, and these settings."""
    return small_config("dev", {"workerMin": 0, "workerMax": 2, **settings})


@contextmanager
def booted(say: Callable[[str], None], **settings: object) -> Iterator[Lab]:
    """A lab with these settings over the stack's, ready; it is taken down after the block, also after an error."""
    paths = _paths()
    teardown.remove(paths)  # what a run that was killed has left
    try:
        lab = build.up(paths, make_plan(record(configuration(**settings))), say)
        cluster.wait_until_ready(lab, say)
        yield lab
    finally:
        build.down(paths)


@contextmanager
def tasks(lab: Lab, commands: Sequence[str]) -> Iterator[IO[str]]:
    """A master on the lab's master node whose tasks are these lines of shell; it ends with the block.

    Gives what the master prints: the time at each end of a task. `subprocess.getoutput` is a task that every worker
    knows. RuntimeError with the master's log when it fails.
    """
    arguments = [(command,) for command in commands]
    code = (
        "import subprocess, time\n"
        "from openquake.baselib.parallel import Starmap\n"
        f"for _ in Starmap(subprocess.getoutput, {arguments!r}):\n"
        "    print(time.time(), flush=True)\n"
    )
    words = ["runuser", "-u", facts.OPENQUAKE_USER, "--", "sh", "-c"]
    words += [
        'set -a; . /etc/default/openquake; umask 0007; exec "$0" -c "$1"',
        f"{facts.ENGINE_DIR}/bin/python",
        code,
    ]
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(
            lab.machine(lab.master().name).command(words),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            failed = process.poll()
            if failed is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if failed:
                log.seek(0)
                raise RuntimeError(f"the master of the tasks has failed: {log.read()[-3000:]}")


def journal(lab: Lab, node: Node) -> list[tuple[float, str]]:
    """What a node has logged since it was powered on: seconds since the epoch and the message."""
    words = ["journalctl", "--no-pager", "--quiet", "--output=short-unix"]
    lines = []
    for line in lab.machine(node.name).execute(words).stdout.splitlines():
        moment, _, message = line.partition(" ")
        if moment.replace(".", "", 1).isdigit():
            lines.append((float(moment), message))
    return lines


def _paths() -> Paths:
    """Where the benchmarks' lab is; Skipped when none can run here."""
    paths = Paths(NAME, host.lab_paths().cache)
    if lacks := host.missing(paths):
        raise Skipped(f"this machine cannot run the lab; missing: {', '.join(lacks)}")
    return paths
