"""Seconds from a worker's power-on to its first finished task, by phase."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import nodes
from benchmarks.report import Chart, Part, Table
from components import facts
from lab import cluster
from lab.cluster import Lab
from tests.transport.harness import wait_until

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


def measure(directory: Path, say: Callable[[str], None], quick: bool) -> Part:
    """Measure both storage modes."""
    del directory
    rounds = 1 if quick else 3
    phases = [KERNEL, *STEPS.values(), FIRST_TASK]
    medians: dict[str, list[float]] = {}
    for storage in STORAGE:
        measured = []
        with nodes.booted(say, workerStorage=storage, workerDesired=0) as lab:
            for number in range(rounds):
                measured.append(_boot(lab))
                text = ", ".join(f"{name} {seconds:.2f}" for name, seconds in measured[-1].items())
                say(f"{storage}, round {number + 1} of {rounds}: {sum(measured[-1].values()):.2f} s: {text}")
        medians[storage] = [median(one[phase] for one in measured) for phase in phases]
    rows = [[phase, *(f"{medians[storage][i]:.2f}" for storage in STORAGE)] for i, phase in enumerate(phases)]
    rows.append(["all", *(f"{sum(medians[storage]):.2f}" for storage in STORAGE)])
    rows.append(["all but the first", *(f"{sum(medians[storage][1:]):.2f}" for storage in STORAGE)])
    chart = Chart(
        "Power-on of a worker to its first finished task",
        "seconds",
        list(STORAGE),
        {phase: [medians[storage][i] for storage in STORAGE] for i, phase in enumerate(phases)},
        stacked=True,
    )
    return Part(TITLE, [Table("Phases", NOTE, ["phase", *STORAGE], rows)], [chart])


def _boot(lab: Lab) -> dict[str, float]:
    """Power a worker on while tasks wait; seconds of each phase."""
    cluster.scale(lab, 0)
    with nodes.tasks(lab, ["true", "true"]) as ends:
        _wait_for_queue(lab)
        cluster.scale(lab, 1)
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
