"""Jobs that follow from a seed: trees of tasks, and the sequence of results that each must give.

Pure Python, so that the explorer, the masters and the workers agree on it without a word between them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Path = tuple[int, ...]
Death = Literal["", "kill", "exit", "exit with words"]

# [celery] max_message_kb of the explorer's clusters: a quarter of the default, so that payloads around each of the
# transport's thresholds cost less time than the faults do.
MESSAGE_KB: Final = 256
# Bytes above which an argument and a result travel by a file, and above which a whole message does (channel.py,
# attempt.py).
THRESHOLDS: Final = (MESSAGE_KB * 256, MESSAGE_KB * 512, MESSAGE_KB * 1024)
HUGE: Final = 33 * 2**20  # bytes of a result far beyond them
MAX_ATTEMPTS: Final = 4  # the default of [celery] max_attempts
# Of a task that nobody can do. With just MAX_ATTEMPTS the next one may succeed: a job waits until each worker has
# tried.
ALWAYS: Final = 1000


@dataclass(frozen=True)
class Task:
    """One task of a job.

    Attributes:
        path: (2,) is the third task of its set; (2, 0) the first subtask that it asks for.
        steps: what it does one after the other: a number is the size of a result in bytes, a task is a subtask.
        seconds: how long it takes, in equal pauses before its steps.
        own: bytes of an argument of its own.
        shared: the number of an argument that other tasks have, too; None without one.
        plain: whether it is a function that returns a dictionary; otherwise it yields results and subtasks.
        raises: whether it ends with an error, after its steps.
        deaths: so many of its attempts end their process.
        death: how they do.
    """

    path: Path
    steps: tuple[int | Task, ...]
    seconds: float = 0.0
    own: int = 0
    shared: int | None = None
    plain: bool = False
    raises: bool = False
    deaths: int = 0
    death: Death = ""

    @property
    def subtasks(self) -> Iterator[Task]:
        """The tasks that it asks for."""
        return (step for step in self.steps if isinstance(step, Task))

    @property
    def sizes(self) -> list[int]:
        """Bytes of its results."""
        return [step for step in self.steps if isinstance(step, int)]

    def family(self) -> Iterator[Task]:
        """The task itself and all that descend from it."""
        yield self
        for subtask in self.subtasks:
            yield from subtask.family()


@dataclass(frozen=True)
class Workload:
    """A job: sets of tasks (Starmaps) that one master runs one after the other.

    Attributes:
        seed: from which all bytes follow.
        profile: the kind of job, for people.
        shared: sizes of the arguments that tasks share.
        sets: the tasks that each set begins with.
        lazy: whether the tasks are given by a generator: the engine then submits all at once.
    """

    seed: int
    profile: str
    shared: tuple[int, ...]
    sets: tuple[tuple[Task, ...], ...]
    lazy: bool = False

    def tasks(self) -> Iterator[tuple[int, Task]]:
        """All tasks with the number of their set."""
        for number, roots in enumerate(self.sets):
            for root in roots:
                for task in root.family():
                    yield number, task

    @property
    def errors(self) -> list[str]:
        """The errors of which one must end the job; empty when it must succeed."""
        return [fails(number, task) for number, task in self.tasks() if task.raises]

    @property
    def deadly(self) -> list[str]:
        """The tasks that kill more processes than any task may."""
        return [label(number, task.path) for number, task in self.tasks() if task.deaths == ALWAYS]

    def seconds(self) -> float:
        """The time that its longest task takes."""
        return max(task.seconds for _, task in self.tasks())


@dataclass(frozen=True)
class EngineJob:
    """One of the engine's own calculations, whose results are those of an undisturbed run.

    Attributes:
        seed: of no effect.
        profile: its name in ENGINE_JOBS.
    """

    seed: int
    profile: str
    errors: tuple[str, ...] = ()
    deadly: tuple[str, ...] = ()

    def tasks(self) -> Iterator[tuple[int, Task]]:
        """None that are known in advance."""
        return iter(())

    def seconds(self) -> float:
        """The time that its longest task takes, generously."""
        return 10.0


Job = Workload | EngineJob
ENGINE_JOBS: Final = {
    "classical": "demos/hazard/AreaSourceClassicalPSHA/job.ini",
    "event based": "event_based/case_1/job.ini",
    "disaggregation": "disagg/case_1/job.ini",
    "event based risk, ebrisk": "event_based_risk/case_01/job.ini",
    "event based risk": "event_based_risk/case_master/job.ini",
}
"""The job files of the engine's calculations: demos in its environment, and its own tests in its package."""

Handed = tuple[int, Path, int, str, str]
"""A result as its master gets it: set, path, index, digest of the arguments, digest of the data."""


def label(number: int, path: Path) -> str:
    """A task for people and for records."""
    return f"{number}:" + ".".join(map(str, path))


def fails(number: int, task: Task) -> str:
    """The text of a task's error."""
    return f"task {label(number, task.path)} fails as its seed says"


def digest(*data: bytes) -> str:
    """A short checksum of some bytes."""
    state = hashlib.blake2b(digest_size=8)
    for piece in data:
        state.update(piece)
    return state.hexdigest()


def payload(seed: int, what: str, size: int) -> bytes:
    """Bytes that follow from a seed and a name."""
    return random.Random(f"{seed}/{what}").randbytes(size)  # noqa: S311 - the seed has to decide


def own_argument(seed: int, number: int, task: Task) -> bytes:
    """The bytes of a task's own argument."""
    return payload(seed, f"{label(number, task.path)} own", task.own)


def shared_argument(workload: Workload, task: Task) -> bytes:
    """The bytes of the argument that it shares with others."""
    if task.shared is None:
        return b""
    return payload(workload.seed, f"shared {task.shared}", workload.shared[task.shared])


def result(seed: int, number: int, task: Task, index: int, size: int) -> bytes:
    """The bytes of one of a task's results."""
    return payload(seed, f"{label(number, task.path)} result {index}", size)


def expected(workload: Workload) -> list[Handed]:
    """The sequence of results that the master must get, or the beginning of it if the job fails.

    The order is that of `oq_celery.order`: by generation, then by path.
    """
    sequence: list[Handed] = []
    for number, roots in enumerate(workload.sets):
        tasks = sorted(
            (task for root in roots for task in root.family()), key=lambda task: (len(task.path), task.path)
        )
        for task in tasks:
            own, shared = own_argument(workload.seed, number, task), shared_argument(workload, task)
            arguments = digest(own, shared)
            for index, size in enumerate(task.sizes):
                data = result(workload.seed, number, task, index, size)
                sequence.append((number, task.path, index, arguments, digest(data)))
    return sequence


PROFILES: Final = {
    "mixed": 10,
    "tiny": 2,
    "large": 3,
    "tree": 3,
    "long": 1,
    "deadly": 2,
    "failing": 1,
}
"""The kinds of jobs and how often they come, in shares."""


def draw(seed: int, profile: str = "") -> Workload:
    """The job of a seed.

    Args:
        seed: decides everything.
        profile: one of PROFILES; the seed chooses one if there is none.
    """
    chance = random.Random(f"workload {seed}")  # noqa: S311
    chosen = chance.choices(list(PROFILES), list(PROFILES.values()))[0]
    profile = profile or chosen
    shared = tuple(_size(chance) for _ in range(2))
    sets = []
    for number in range(chance.choice((1, 1, 1, 2))):
        roots = {"tiny": (25, 60), "large": (2, 5), "tree": (2, 4), "long": (2, 5)}.get(profile, (3, 12))
        count = chance.randint(*roots)
        tasks = [_task(chance, profile, (index,)) for index in range(count)]
        if number == 0 and profile in ("deadly", "failing"):
            victim = chance.randrange(count)
            tasks[victim] = _doomed(chance, profile, tasks[victim])
        sets.append(tuple(tasks))
    return Workload(seed, profile, shared, tuple(sets), lazy=chance.random() < 0.2)


def _size(chance: random.Random) -> int:
    """A size that is small, or near one of the thresholds."""
    kind = chance.random()
    if kind < 0.5:
        return chance.randrange(2000)
    return chance.choice(THRESHOLDS) + chance.randint(-300, 300)


def _task(chance: random.Random, profile: str, path: Path) -> Task:
    if profile == "tiny":
        return Task(path, (chance.randrange(100),), own=chance.randrange(100), plain=True)
    if profile == "large":
        huge = chance.random() < 0.04
        sizes = tuple(chance.randint(1, 4) * 2**20 for _ in range(chance.randint(1, 2)))
        seconds = chance.choice((0.0, 0.2, 1.0))
        return Task(path, (HUGE,) if huge else sizes, seconds, own=_size(chance), shared=0)
    if profile == "long":
        seconds = chance.uniform(5, 9)
        return Task(path, (_size(chance), _size(chance)), seconds, own=_size(chance))
    seconds = chance.choices((0.0, 0.05, 0.3, 1.0, 3.0), (4, 4, 4, 2, 1))[0]
    shared = chance.choice((None, None, 0, 1))
    if chance.random() < 0.25:
        return Task(path, (_size(chance),), seconds, _size(chance), shared, plain=True)
    steps: list[int | Task] = [_size(chance) for _ in range(chance.randint(0, 5))]
    deepest = 3 if profile == "tree" else 2
    children = 0
    if len(path) <= deepest:
        children = chance.choice((1, 2, 3)) if profile == "tree" else chance.choice((0, 0, 0, 1, 2))
        if len(path) > 1:
            children = min(children, chance.choice((0, 1, 1)))
    for child in range(children):
        steps.append(_task(chance, profile, (*path, child)))
    # Subtasks keep their order, which is that of their paths; results come anywhere between them.
    order = sorted(chance.sample(range(len(steps)), children)) if children else []
    results = iter([step for step in steps if isinstance(step, int)])
    subtasks = iter([step for step in steps if isinstance(step, Task)])
    mixed = tuple(next(subtasks) if place in order else next(results) for place in range(len(steps)))
    return Task(path, mixed, seconds, _size(chance), shared)


def _doomed(chance: random.Random, profile: str, task: Task) -> Task:
    """The task with an error, or with processes that die of it."""
    raises, deaths, death = True, 0, ""
    if profile == "deadly":
        raises, deaths = False, chance.choice((1, 1, 2, ALWAYS))
        death = chance.choice(("kill", "kill", "exit", "exit with words"))
    return Task(
        task.path,
        task.steps,
        min(task.seconds, 0.3),
        task.own,
        task.shared,
        task.plain and not raises,
        raises,
        deaths,
        death,  # type: ignore[arg-type]
    )
