"""Seconds from a worker's death to its tasks running elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import nodes
from benchmarks.modes import OURS, Mode, Skipped, running_broker
from benchmarks.report import Chart, Part, Table
from tests.transport.harness import wait_until

TITLE = "A worker dies"
DEADLINE = 300.0
TASKS = 2
KILL, PARTITION = "kill -9 of the worker", "silent partition"
NOTE = """\
Until all tasks of the dead worker have started on another one, which was free. `kill -9`: the worker's whole
process group on this machine, whose kernel closes its connections. Silent partition: in the lab, where the
network drops the worker's packets and nobody is told (`python -m lab partition`; its own start counts, too)."""


def measure(directory: Path, say: Callable[[str], None], quick: bool) -> Part:
    """Measure both ways to die."""
    killed = _kills(directory, say, rounds=1 if quick else 5)
    part = Part(TITLE)
    rows = [[KILL, "< 10", f"{median(killed):.1f}", f"{min(killed):.1f}-{max(killed):.1f}", str(len(killed))]]
    series = {KILL: [median(killed)]}
    try:
        silent = [_partition(directory, say)]
        rows.append([PARTITION, "< 40", f"{silent[0]:.1f}", "", "1"])
        series[PARTITION] = silent
    except Skipped as reason:
        part.skipped = f"{PARTITION}: {reason}"
        say(part.skipped)
    part.tables.append(Table("Death to rerun", NOTE, ["", "goal, s", "median, s", "range", "runs"], rows))
    part.charts.append(Chart("Death of a worker to rerun of its tasks", "seconds", [""], series))
    return part


def _kills(directory: Path, say: Callable[[str], None], rounds: int) -> list[float]:
    seconds = []
    with running_broker(directory) as broker:
        for number in range(rounds):
            mode = Mode(OURS, directory / f"kill-{number}", broker, TASKS)
            try:
                seconds.append(_kill(mode))
            finally:
                mode.end()
            say(f"{KILL}, round {number + 1} of {rounds}: {seconds[-1]:.2f} s")
    return seconds


def _kill(mode: Mode) -> float:
    """Kill the worker that has all tasks; seconds until the other one, idle so far, has started them."""
    cluster = mode.cluster
    marks = cluster.directory / "marks"
    marks.mkdir()
    victim = cluster.worker("victim", TASKS)
    code = (
        "import starmaps; from openquake.baselib.parallel import Starmap; "
        f"list(Starmap(starmaps.mark, [({str(marks)!r}, 600.0)] * {TASKS}))"
    )
    cluster.start("python", "-c", code)
    wait_until(lambda: len(list(marks.iterdir())) == TASKS, "the tasks to start")
    cluster.worker("heir", TASKS)
    begin = time.time()
    victim.kill()
    wait_until(lambda: len(list(marks.iterdir())) == 2 * TASKS, "the tasks to start again", DEADLINE)
    return max(mark.stat().st_mtime for mark in marks.iterdir()) - begin


def _partition(directory: Path, say: Callable[[str], None]) -> float:
    """Cut the lab's worker off that has the long task; seconds until the other one has started it."""
    del directory
    nodes.require_command("partition")
    with nodes.booted(say, workerStorage="nfs", workerDesired=2) as lab:
        with nodes.tasks(lab, ["echo oqbench-long; exec sleep 600", "echo oqbench-short"]):
            journals: dict[str, list[tuple[float, str]]] = {}

            def started() -> list[str]:
                journals.update({node.name: nodes.journal(lab, node) for node in lab.workers()})
                return [
                    name
                    for name, lines in journals.items()
                    if any("oqbench-long" in line for _, line in lines)
                ]

            wait_until(started, "the long task to start", DEADLINE)
            wait_until(
                lambda: (
                    started()
                    and sum("oqbench-short" in line for lines in journals.values() for _, line in lines)
                ),
                "the short task to end",
                DEADLINE,
            )
            (victim,) = started()
            say(f"{PARTITION} of {victim}")
            begin = time.time()
            with nodes.lab_command("partition", victim, "--seconds", "240"):
                (heir,) = [node for node in lab.workers() if node.name != victim]
                wait_until(
                    lambda: any("oqbench-long" in line for _, line in nodes.journal(lab, heir)),
                    "the task to start again",
                    DEADLINE,
                )
            moment = next(moment for moment, line in nodes.journal(lab, heir) if "oqbench-long" in line)
    say(f"{PARTITION}: {moment - begin:.1f} s")
    return moment - begin
