"""Seconds from a worker's death to its tasks running elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import nodes
from benchmarks.modes import OURS, Mode, running_broker
from benchmarks.report import Chart, Part, Table
from lab.cluster.cluster import Lab
from lab.linux import network
from tests.transport.processes import wait_until

KILL, PARTITION = "A worker is killed", "A worker is cut off"
DEADLINE = 300.0
TASKS = 2
HEAD = ["goal, s", "median, s", "range", "runs"]
KILL_NOTE = """\
kill -9 of a worker's whole process group on this machine, whose kernel then closes its connections. Until all tasks
of the dead worker have started on another one, which was free."""
PARTITION_NOTE = """\
In the lab: the network drops the worker's packets and nobody is told. Until its task has started on another worker,
which was free."""


def measure_kill(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure kill -9 of a worker."""
    seconds: list[float] = []
    try:
        _kills(seconds, directory, say, rounds=1 if quick else 5)
    finally:
        _report(part, KILL_NOTE, "< 10", seconds)


def measure_partition(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure a silent partition."""
    del directory, quick
    _report(part, PARTITION_NOTE, "< 40", [_partition(say)])


def _report(part: Part, note: str, goal: str, seconds: list[float]) -> None:
    if seconds:
        row = [goal, f"{median(seconds):.1f}", f"{min(seconds):.1f}-{max(seconds):.1f}", str(len(seconds))]
        part.add(
            Table("Death to rerun", note, HEAD, [row]),
            Chart(
                f"{part.title}: its tasks run elsewhere after", "seconds", [""], {"median": [median(seconds)]}
            ),
        )


def _kills(seconds: list[float], directory: Path, say: Callable[[str], None], rounds: int) -> None:
    with running_broker(directory) as broker:
        for number in range(rounds):
            mode = Mode(OURS, directory / f"kill-{number}", broker, TASKS)
            try:
                seconds.append(_kill(mode))
            finally:
                mode.end()
            say(f"{KILL}, round {number + 1} of {rounds}: {seconds[-1]:.2f} s")


def _kill(mode: Mode) -> float:
    """Kill the worker that has all tasks; seconds until the other one, idle so far, has started them."""
    cluster = mode.cluster
    marks = cluster.directory / "marks"
    marks.mkdir()
    victim = cluster.worker("victim", TASKS)
    code = (
        "import starmaps; from openquake.baselib.parallel import Starmap; "
        f"list(Starmap(starmaps.mark, [({os.fsencode(marks)!r}, 600.0)] * {TASKS}))"
    )
    cluster.start("python", "-c", code)
    wait_until(lambda: len(list(marks.iterdir())) == TASKS, "the tasks to start")
    cluster.worker("heir", TASKS)
    begin = time.time()
    victim.kill()
    wait_until(lambda: len(list(marks.iterdir())) == 2 * TASKS, "the tasks to start again", DEADLINE)
    return max(mark.stat().st_mtime for mark in marks.iterdir()) - begin


def _partition(say: Callable[[str], None]) -> float:
    with nodes.booted(say, workerStorage="nfs", workerDesired=2) as lab:
        seconds = _cut_off(lab)
    say(f"{PARTITION}: {seconds:.1f} s")
    return seconds


def _cut_off(lab: Lab) -> float:
    """Silence the worker that has the long task; seconds until the other one, which is free, has started it."""
    with nodes.tasks(lab, ["logger oqbench-long; exec sleep 600", "logger oqbench-short"]):
        wait_until(lambda: _said(lab, "long") and _said(lab, "short"), "both tasks to start", DEADLINE)
        ((victim, _),) = _said(lab, "long").items()
        begin = time.time()
        with network.silent(lab.paths, victim):
            wait_until(lambda: len(_said(lab, "long")) == 2, "the task to start again", DEADLINE)
        (again,) = [moment for name, moment in _said(lab, "long").items() if name != victim]
    return again - begin


def _said(lab: Lab, task: str) -> dict[str, float]:
    """When each worker started the task, by its name."""
    return {
        node.name: moment
        for node in lab.workers()
        for moment, message in nodes.journal(lab, node)
        if message.endswith(f"oqbench-{task}")
    }
