"""Drives the lab's group by the alarms and policies that the program registered, as AWS does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event

from lab.aws import alarms
from lab.aws.alarms import Mail
from lab.aws.autoscaling import Fleet, Sample, Scaler
from lab.base import LabError
from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab, Node
from lab.services import aws_api

POLL_SECONDS = 1.0
Say = Callable[[str], None]


@dataclass
class History:
    """What became of the fleet: at which time it had how many workers, the leaving ones not counted."""

    numbers: list[tuple[float, int]] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Note the number of workers now, if it is another one."""
        if not self.numbers or self.numbers[-1][1] != number:
            self.numbers.append((time.time(), number))

    def __str__(self) -> str:
        return " -> ".join(str(number) for _, number in self.numbers)


def samples(lab: Lab, since: float) -> list[Sample]:
    """What the nodes have published since a time, in seconds since the epoch."""
    file = cluster.events_directory(lab.paths) / aws_api.METRICS
    if not file.exists():
        return []
    parsed = [
        Sample.parse(json.loads(line))
        for line in file.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [sample for sample in parsed if sample.time >= since]


def mails(lab: Lab, speedup: int = 1) -> list[Mail]:
    """The mails that the program's alarms would have sent since the nodes first published anything.

    Args:
        speedup: alarms look at this many times fewer periods, at one at least
    """
    published = samples(lab, 0)
    if not published:
        return []
    return alarms.mails(
        [alarms.sped_up(alarm, speedup) for alarm in lab.plan.alarms],
        lab.plan.subscribers,
        published,
        published[0].time,
        time.time(),
    )


def follow(lab: Lab, stop: Event, say: Say, speedup: int = 1) -> History:
    """Scale the group by its alarms until `stop` is set; the history of its size.

    Args:
        speedup: alarms look at this many times fewer periods, at one at least: a demonstration's idle minutes
    """
    group = lab.group()
    if speedup > 1:
        group = replace(group, alarms=tuple(alarms.sped_up(alarm, speedup) for alarm in group.alarms))
    scaler = Scaler(group)
    longest = max((alarm.period * (alarm.periods + 1) for alarm in group.alarms), default=0)
    history = History()
    while not stop.is_set():
        now = time.time()
        _note_ready(lab, say)
        for name in fleet.end_drained(lab):
            say(f"{name} has ended")
        staying = lab.staying()
        history.add(len(staying))
        warming = sum(now - node.powered_on < scaler.warmup() for node in staying)
        wanted = lab.capacity[group.aws_name]  # more than there are, where AWS has no room for them
        number, lines = scaler.wanted(samples(lab, now - longest), Fleet(wanted, warming), now)
        for line in lines:
            say(line)
        if number != len(staying):
            fleet.set_capacity(lab, number)
        stop.wait(POLL_SECONDS)
    return history


def _note_ready(lab: Lab, say: Say) -> None:
    """Ask the workers that boot whether they are ready."""

    def asked(node: Node) -> bool:
        return node.ready_after is None and node.leaves_by is None and cluster.state(lab, node).ready

    for node in filter(asked, lab.workers()):
        node.ready_after = time.time() - node.powered_on
        lab.save()
        say(f"{node.name} is ready {node.ready_after:.1f} s after power-on")


def wait_for_size(lab: Lab, number: int, timeout: float) -> None:
    """Wait until the fleet that somebody else scales has this many workers, those included that leave."""
    deadline = time.monotonic() + timeout
    while len(lab.workers()) != number:
        if time.monotonic() > deadline:
            raise LabError(f"the fleet has {len(lab.workers())} workers after {timeout:.0f} s, not {number}")
        time.sleep(POLL_SECONDS)
