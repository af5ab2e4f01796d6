"""Seconds from a worker's power-on to its first finished task, by phase."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import nodes
from benchmarks.report import Chart, Part, Table
from components import facts
from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab
from tests.transport.processes import wait_until

TITLE = "Power-on to first task"
STORAGE = ("nfs", "diskless")
KERNEL, FIRST_TASK = "kernel, systemd, cloud-init", "first task"
STEPS = {
    "system user": "system user",
    "shared file system": "NFS",
    "engine": "engine mount",
    "configuration": "configuration",
    "Celery": "Celery ready",
}
"""The steps of a worker's bootstrap by the names in its journal."""
BEGIN = re.compile(r"oq-node(?:\[\d+\])?: (.+) …$")
NOTE = f"""\
A worker of the lab joins a master with two tasks in the queue and no worker. Seconds of each phase, medians of
the rounds, by the times in the worker's journal. `{KERNEL}`: until cloud-init hands over to our bootstrap
(goal: everything in less than 8 s, and in less than 4 s after that phase). `{FIRST_TASK}`: until the master has
its result."""


def measure(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure both storage modes."""
    del directory
    rounds = 1 if quick else 3
    measured: dict[str, list[dict[str, float]]] = {storage: [] for storage in STORAGE}
    try:
        for storage in STORAGE:
            with nodes.booted(say, workerStorage=storage, workerDesired=0) as lab:
                for number in range(rounds):
                    boot = _boot(lab)
                    measured[storage].append(boot)
                    text = ", ".join(f"{name} {seconds:.2f}" for name, seconds in boot.items())
                    say(f"{storage}, round {number + 1} of {rounds}: {sum(boot.values()):.2f} s: {text}")
    finally:
        _report(part, {storage: boots for storage, boots in measured.items() if boots})


def _report(part: Part, measured: dict[str, list[dict[str, float]]]) -> None:
    phases = [KERNEL, *STEPS.values(), FIRST_TASK]
    medians = {
        storage: [median(boot[phase] for boot in boots) for phase in phases]
        for storage, boots in measured.items()
    }
    rows = [[phase, *(f"{values[i]:.2f}" for values in medians.values())] for i, phase in enumerate(phases)]
    rows.append(["all", *(f"{sum(values):.2f}" for values in medians.values())])
    rows.append(["all but the first", *(f"{sum(values[1:]):.2f}" for values in medians.values())])
    chart = Chart(
        "Power-on of a worker to its first finished task",
        "seconds",
        list(medians),
        {phase: [values[i] for values in medians.values()] for i, phase in enumerate(phases)},
        stacked=True,
    )
    part.add(Table("Phases", NOTE, ["phase", *medians], rows), chart)


def _boot(lab: Lab) -> dict[str, float]:
    """Power a worker on while tasks wait; seconds of each phase."""
    fleet.scale(lab, 0)
    with nodes.tasks(lab, ["true", "true"]) as ends:
        _wait_for_queue(lab)
        fleet.scale(lab, 1)
        (node,) = lab.workers()
        finished = float(ends.readline())
    cluster.wait_until_ready(lab, lambda _: None)
    begun: dict[str, float] = {}
    ended = 0.0
    for moment, message in nodes.journal(lab, node):
        if match := BEGIN.search(message):
            begun[match[1]] = moment
        elif "oq-node" in message and ": Celery: " in message:
            ended = moment
    moments = [node.powered_on, *(begun[step] for step in STEPS), ended, max(ended, finished)]
    names = [KERNEL, *STEPS.values(), FIRST_TASK]
    return {name: end - start for name, start, end in zip(names, moments, moments[1:], strict=False)}


def _wait_for_queue(lab: Lab) -> None:
    """Wait until the two tasks are in the queue, so that the worker finds them."""
    words = ["rabbitmqctl", "--quiet", "list_queues", "--vhost", facts.AMQP_VHOST, "messages"]
    machine = lab.machine(lab.master().name)

    def queued() -> bool:
        return "2" in machine.execute(words).stdout.split()

    wait_until(queued, "the tasks to be queued")
