"""What the cluster does now: the workers, the task queue, and each job's tasks."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import amqp
from kombu.exceptions import OperationalError

from oq_celery import app, broker
from oq_celery.clock import words
from oq_celery.jobs import printable
from oq_celery.protocol import CHANNEL_PREFIX, PROGRESS_FILE, Progress, TaskHeader
from oq_celery.settings import Settings

# How long workers may take to answer; one that is busy answers too, its main process does.
REPLY_SECONDS = 1.0
PROGRESS_BYTES = 4096  # of a master's file with its progress at most
EXCHANGE_SECONDS = 5.0  # how long the broker may take to answer
REMEDIES = {
    "low on disk": "the disk with its data is nearly full: make room there",
    "low on memory": "it has used up its memory: fewer waiting tasks, or more memory for it",
}


@dataclass(frozen=True)
class Worker:
    """A worker that answers.

    Attributes:
        name: of it.
        processes: how many it has.
        busy: how many of them have a task.
        longest: which of its tasks has run longest; "" if none runs, or only some of another version's masters.
        seconds: for how long, as far as its clock and the one here agree.
    """

    name: str
    processes: int
    busy: int
    longest: str = ""
    seconds: float = 0.0


@dataclass
class Tasks:
    """The tasks of one kind of one job."""

    job: int
    user: str
    name: str
    done: int = 0
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Status:
    """The state of the cluster at one moment."""

    host: str
    waiting: int  # tasks in the queue
    consumers: int  # workers, as the broker counts them
    workers: list[Worker]  # unknown while there is an alarm
    tasks: list[Tasks]  # those of very short jobs only while they run
    alarm: str | None = None  # why the broker takes no messages, in its words

    @property
    def outstanding(self) -> int:
        """Tasks that wait or run, as far as the queue, the workers or the masters know of them.

        A worker that does not answer in time is missing from what the workers say, but not from what the masters do.
        """
        known_by_masters = sum(tasks.running + tasks.waiting for tasks in self.tasks)
        return max(self.waiting + sum(worker.busy for worker in self.workers), known_by_masters)

    def json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """For people."""
        if self.alarm is not None:
            return "\n".join([self._alarm_text(), *self._tasks_text()])
        processes, busy = sum(w.processes for w in self.workers), sum(w.busy for w in self.workers)
        lines = [
            f"RabbitMQ at {self.host}: {self.waiting} tasks waiting, {len(self.workers)} workers, "
            f"{busy} of {processes} processes busy"
        ]
        if self.workers:
            workers = [
                (w.name, str(w.processes), str(w.busy), w.longest, w.longest and words(w.seconds))
                for w in self.workers
            ]
            lines += ["", *_table(("worker", "processes", "busy", "longest task", "for"), workers)]
        return "\n".join([*lines, *self._tasks_text()])

    def _alarm_text(self) -> str:
        reasons = [words for reason, words in REMEDIES.items() if reason in (self.alarm or "")]
        return (
            f"RabbitMQ at {self.host} takes no messages ({self.alarm}): {'; '.join(reasons) or 'see its log'}. "
            "Then all goes on by itself.\n"
            f"{self.waiting} tasks waiting, {self.consumers} workers, which cannot say what they do."
        )

    def _tasks_text(self) -> list[str]:
        if not self.tasks:
            return []
        head = ("job", "user", "task", "done", "running", "waiting")
        return ["", *_table(head, [list(map(str, astuple(tasks))) for tasks in self.tasks])]


def read(settings: Settings) -> Status:
    """Ask the broker and the workers.

    Raises:
        one of broker.ERRORS: if the broker does not answer.
    """
    connection = broker.connect(settings, read_timeout=EXCHANGE_SECONDS, write_timeout=EXCHANGE_SECONDS)
    try:
        waiting, consumers = broker.depth(connection, settings.queue) or (0, 0)
        progress = _progress(settings.spool, connection)
        alarm = broker.alarm(connection)
    except broker.ERRORS:
        connection.collect()
        raise
    if alarm is not None:
        connection.collect()
        return Status(settings.host, waiting, consumers, [], _tasks([], progress), alarm)
    broker.close(connection)
    inspect = app.asking(settings, EXCHANGE_SECONDS).control.inspect(timeout=REPLY_SECONDS)
    try:
        active = inspect.active(safe=True) or {}
        pools = inspect.stats() or {}
    except OperationalError as error:
        raise ConnectionError(str(error)) from error
    known = {name: _known(tasks) for name, tasks in active.items()}
    workers = [
        Worker(
            name,
            pools[name]["pool"]["max-concurrency"],
            len(active.get(name, [])),
            *_longest(known.get(name, []), time.time()),
        )
        for name in sorted(pools)
    ]
    headers = [header for tasks in known.values() for header, _ in tasks]
    return Status(settings.host, waiting, consumers, workers, _tasks(headers, progress))


def _known(tasks: list[dict[str, Any]]) -> list[tuple[TaskHeader, float | None]]:
    """What Celery says of a worker's running tasks: whose each is, and when it began, once a process has it."""
    found = []
    for task in tasks:
        with contextlib.suppress(
            ValueError, TypeError, KeyError
        ):  # a master of another version, soon refused
            found.append((TaskHeader.parse(json.loads(task["args"])), task["time_start"]))
    return found


def _longest(tasks: list[tuple[TaskHeader, float | None]], now: float) -> tuple[str, float]:
    """Which of these has run longest, and for how many seconds."""
    begun = [(start, str(header)) for header, start in tasks if start is not None]
    if not begun:
        return "", 0.0
    start, longest = min(begun)
    return longest, max(0.0, now - start)


def _tasks(running: list[TaskHeader], progress: list[Progress]) -> list[Tasks]:
    """Put together what the workers say of running tasks and the masters of all."""
    found: dict[tuple[int, str, str], Tasks] = {}

    def tasks(of: TaskHeader | Progress) -> Tasks:
        return found.setdefault((of.job, of.user, of.name), Tasks(of.job, of.user, of.name))

    for header in running:
        tasks(header).running += 1
    for channel in progress:
        row = tasks(channel)
        row.done += channel.submitted - channel.outstanding
        row.waiting += channel.outstanding
    for row in found.values():
        row.waiting = max(0, row.waiting - row.running)
    return [found[key] for key in sorted(found)]


def _progress(directory: Path, connection: amqp.Connection) -> list[Progress]:
    """What the masters say that live: those whose result queue is there."""
    found = []
    for path in directory.glob(f"{CHANNEL_PREFIX}*/{PROGRESS_FILE}"):
        try:
            if broker.depth(connection, path.parent.name) is None:
                continue
        except amqp.ChannelError:  # a queue of somebody's own, of that name
            continue
        with contextlib.suppress(OSError, ValueError, TypeError):  # just removed, or of another version
            found.append(Progress.parse(_read(path)))
    return found


def _read(path: Path) -> bytes:
    """A small file in a directory where whoever computes may put anything; OSError for anything but a file.

    Root asks, too, each minute: it neither follows a link, nor waits for a writer, nor reads without an end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no file")
        return file.read(PROGRESS_BYTES)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of what workers and masters have said, which whoever knows the broker's password can be: a line each."""
    lines = [head, *([printable(cell).replace("\n", "?") for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
