"""What a seed does to a cluster: faults, each with the event that sets it off."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from explorer import workload
from explorer.workload import ENGINE_JOBS, EngineJob, Job

WORKERS: Final = 3
PROCESSES: Final = 2
"""Of each worker."""

Event = Literal["started", "channel", "begin", "end", "handed"]
Target = Literal["worker", "master", "broker", "files", "queue", "database"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: in words.
        share: how often it comes, relative to the others.
        target: what it strikes.
        seconds: ranges of its length, the usual one and a rare one that outlasts a time-out of the transport.
        root: whether only root can do it.
        disrupts: whether tasks may be computed again because of it.
    """

    name: str
    share: int
    target: Target
    seconds: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    root: bool = False
    disrupts: bool = True


# The rare lengths: 10 s of lease, 20 s of TCP_USER_TIMEOUT, 30 s of two heartbeats (protocol.py, broker.py, app.py).
KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("kill a process", 10, "worker"),
        Kind("kill a worker", 8, "worker", ((0.0, 3.0),)),
        Kind("end a worker", 4, "worker", ((0.0, 2.0),)),
        Kind("stop a worker", 5, "worker", ((0.5, 4.0), (31.0, 36.0))),
        Kind("stop a process", 3, "worker", ((0.5, 4.0),), disrupts=False),
        Kind("kill the master", 3, "master"),
        Kind("interrupt the master", 3, "master"),
        Kind("stop the master", 4, "master", ((0.5, 4.0), (12.0, 16.0))),
        Kind("restart RabbitMQ", 3, "broker", ((0.0, 1.0),)),
        Kind("kill RabbitMQ", 3, "broker", ((0.0, 1.0), (10.0, 14.0))),
        Kind("close all connections", 5, "broker"),
        Kind("stop RabbitMQ's intake", 3, "broker", ((0.5, 4.0), (15.0, 20.0)), disrupts=False),
        Kind("cut a worker off", 8, "worker", ((0.0, 2.0),)),
        Kind("cut a worker's message", 8, "worker"),
        Kind("cut the master off", 6, "master", ((0.0, 2.0), (11.0, 14.0))),
        Kind("cut the master's message", 6, "master"),
        Kind("partition a worker", 6, "worker", ((0.5, 6.0), (22.0, 40.0))),
        Kind("partition the master", 5, "master", ((0.5, 6.0), (22.0, 30.0))),
        Kind("slow a worker's network", 3, "worker", ((1.0, 5.0),), disrupts=False),
        Kind("slow the master's network", 3, "master", ((1.0, 5.0),), disrupts=False),
        Kind("take the shared directory away", 3, "files", ((0.2, 3.0),)),
        Kind("cover a worker's shared directory", 3, "worker", ((0.2, 3.0),), root=True),
        Kind("fill the shared directory", 3, "files", ((0.2, 3.0),), root=True),
        Kind("delete the task queue", 3, "queue"),
        Kind("purge the task queue", 3, "queue"),
        Kind("lose task messages", 4, "queue"),
        Kind("copy task messages", 4, "queue"),
        Kind("delete a result queue", 3, "master"),
        Kind("lose results", 4, "master", ((0.2, 1.5),)),
        Kind("restart the DbServer", 4, "database", ((0.0, 2.0),), disrupts=False),
        Kind("kill the DbServer", 4, "database", ((0.0, 2.0),), disrupts=False),
    )
}
ENGINE_SHARE: Final = 0.12
"""The share of runs with one of the engine's own jobs, which take longer than the others."""
RARE: Final = 0.08
"""The share of rare lengths."""


_WORDS: Final = {
    "started": "start",
    "channel": "set of tasks",
    "begin": "task begun",
    "end": "task done",
    "handed": "result",
}


@dataclass(frozen=True)
class Trigger:
    """When a fault strikes: so many seconds after the event of this kind with this number, of all jobs of the run."""

    event: Event
    number: int
    after: float

    def __str__(self) -> str:
        number = "" if self.event == "started" else f" {self.number}"
        return f"{_WORDS[self.event]}{number} + {self.after:.2f} s"


@dataclass(frozen=True)
class Fault:
    """One fault of a run.

    Attributes:
        kind: its name in KINDS.
        trigger: when it strikes.
        target: which worker or job, by number; those that do not fit are taken modulo.
        seconds: how long it lasts, or how long what was killed stays away.
        number: of messages or bytes, where the kind has these.
    """

    kind: str
    trigger: Trigger
    target: int
    seconds: float
    number: int

    def __str__(self) -> str:
        target = f" {self.target}" if KINDS[self.kind].target in ("worker", "master") else ""
        length = f", {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind}{target} ({self.trigger}{length})"


@dataclass(frozen=True)
class Plan:
    """All that a seed decides."""

    seed: int
    jobs: tuple[Job, ...]
    faults: tuple[Fault, ...]


def draw(seed: int, kinds: Sequence[str] = (), root: bool = True) -> Plan:
    """The run of a seed.

    Args:
        seed: decides everything.
        kinds: only these kinds of faults.
        root: whether faults that need root may be drawn.
    """
    chance = random.Random(f"schedule {seed}")  # noqa: S311 - the seed has to decide
    jobs: tuple[Job, ...]
    jobs = tuple(workload.draw(2 * seed + number) for number in range(chance.choice((1, 1, 2))))
    engine = chance.random() < ENGINE_SHARE
    if engine:
        jobs = (EngineJob(seed, chance.choice(list(ENGINE_JOBS))), *jobs[1:])
    allowed = [
        kind
        for name, kind in KINDS.items()
        if (name in kinds or not kinds) and (root or not kind.root) and (engine or kind.target != "database")
    ]
    tasks = sum(1 for job in jobs for _ in job.tasks())
    results = sum(1 for job in jobs for _, task in job.tasks() for _ in task.sizes)
    faults: list[Fault] = []
    for _ in range(chance.choices((1, 2, 3, 4), (5, 4, 2, 1))[0]):
        kind = chance.choices(allowed, [kind.share for kind in allowed])[0]
        trigger = _trigger(chance, tasks, results, engine=engine)
        if faults and chance.random() < 0.3:  # several at once
            trigger = faults[-1].trigger
        lengths = kind.seconds[-1] if chance.random() < RARE else kind.seconds[0]
        number = chance.choice((1, 1, 2, 8)) if kind.target == "queue" else int(10 ** chance.uniform(1, 5.5))
        faults.append(Fault(kind.name, trigger, chance.randrange(6), chance.uniform(*lengths), number))
    return Plan(seed, jobs, tuple(faults))


def _trigger(chance: random.Random, tasks: int, results: int, *, engine: bool) -> Trigger:
    """A moment of a run with so many tasks and results that are known, and perhaps one of the engine's jobs."""
    if engine and (not tasks or chance.random() < 0.5):
        return Trigger("channel", chance.randint(1, 4), chance.uniform(0, 1.5))
    event: Event = chance.choices(("begin", "end", "handed", "started"), (6, 4, 2, 1))[0]
    number = 1 + int(chance.random() * 0.9 * (results if event == "handed" else tasks))
    return Trigger(event, number, chance.choice((0.0, 0.0, chance.uniform(0, 0.5))))


T = TypeVar("T")


def shrink(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """The shortest part of a list that still fails that can be found by leaving pieces out (Zeller's ddmin)."""
    kept, pieces = list(items), 2
    while len(kept) > 1:
        size = max(1, len(kept) // pieces)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            if fewer and fails(fewer):
                kept, pieces = fewer, max(2, pieces - 1)
                break
        else:
            if size == 1:
                break
            pieces = min(len(kept), 2 * pieces)
    return kept
