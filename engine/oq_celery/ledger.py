"""What a master knows of its tasks: who runs them, what is a copy, and what has been lost.

RabbitMQ delivers a task again when a worker's connection breaks, though the worker may go on computing it; and a task
may vanish from its queue while every connection lives: a purge, a queue that was deleted, a policy, a fault of the
broker. So neither the broker's word is enough. Workers say every two seconds what they run (`alive`), and of a message
that may be a copy they ask what to do; the ledger answers, and its audit finds the tasks that nobody has any more.

Times are those of `time.monotonic`, in seconds. The thread that receives and the one that computes both use a ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from oq_celery.cost import Meter
from oq_celery.losses import Losses
from oq_celery.protocol import MAX_PRIORITY, Answer, Reply

# Silence after which an attempt counts as dead when somebody else holds a copy of its task: three reports of its worker
# and more than a worker needs to come back to the broker.
DEAD_SECONDS: Final = 6.0
# The same when nobody does, and the task is sent again.
SILENT_SECONDS: Final = 20.0
# How long a task may lie nowhere, as far as the queue's length tells, before it is sent again: much longer than a
# message takes from the queue to a process.
LOST_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Run:
    """An attempt that goes on.

    Attributes:
        task_no: of the task.
        worker: the process that makes it.
        seconds: for how long.
        state: of the process, in the kernel's letter for it; "" if it is not known.
        steady: for how many seconds it has been in that state.
    """

    task_no: int
    worker: str
    seconds: float
    state: str
    steady: float


@dataclass
class _Attempt:
    """When an attempt was heard of, and what state its process is in, since when."""

    begun: float
    heard: float
    state: str
    since: float


@dataclass
class _Entry:
    """A task without a result.

    Attributes:
        priority: of its message.
        sent: when it was handed to the broker; None before.
        idle_since: since when nobody runs it.
        adopted: copies of its message have been dropped, so the broker may have none: it is this master's to see to.
        ended: a result is here, which is to be read.
        attempts: each that goes on, by the worker's process and the message.
        asked: since when a process waits to hear what to do with a message, in the same way.
    """

    losses: Losses
    priority: int = 0
    sent: float | None = None
    idle_since: float = 0.0
    adopted: bool = False
    ended: bool = False
    attempts: dict[tuple[str, str], _Attempt] = field(default_factory=dict)
    asked: dict[tuple[str, str], float] = field(default_factory=dict)


class Ledger:
    """The tasks of one channel that have no result yet, and the attempts at them."""

    def __init__(self, limit: int, meter: Meter | None = None) -> None:
        """Begin with no task.

        Args:
            limit: so many worker processes may die of a task.
            meter: counts the seconds of the attempts.
        """
        self._limit = limit
        self._meter = meter or Meter()
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._connected = 0.0  # since when workers can be heard
        self._empty_since: float | None = None  # since when every look has found the task queue empty

    def add(self, task_no: int) -> None:
        """A task wants a result."""
        with self._lock:
            self._entries[task_no] = _Entry(Losses(self._limit))

    def sent(self, task_no: int, priority: int, now: float) -> None:
        """A task is being handed to the broker, for the first time or again."""
        with self._lock:
            if entry := self._entries.get(task_no):
                entry.sent = entry.idle_since = now
                entry.priority = priority
                entry.adopted = entry.ended = False

    def remove(self, task_no: int) -> None:
        """A task has its result; it may have had one already."""
        with self._lock:
            self._entries.pop(task_no, None)

    def losses(self, task_no: int) -> Losses | None:
        """What has become of the attempts at a task; None if it has its result."""
        entry = self._entries.get(task_no)
        return entry.losses if entry else None

    def connected(self, now: float) -> None:
        """The master hears the workers (again): their silence is counted from now on."""
        with self._lock:
            self._connected = now
            self._empty_since = None

    def looked(self, waiting: int, now: float) -> None:
        """Note how many messages wait in the task queue."""
        with self._lock:
            if waiting:
                self._empty_since = None
            elif self._empty_since is None:
                self._empty_since = now

    def heard(self, reply: Reply, now: float) -> None:
        """Note what a worker says of an attempt."""
        with self._lock:
            if reply.kind == "alive":
                for row in reply.running():
                    self._meter.runs(row.worker, row.message, now)
                    if entry := self._entries.get(row.task_no):
                        _hear(entry, (row.worker, row.message), now, row.state)
                return
            if reply.kind == "started":
                self._meter.runs(reply.worker, reply.message, now)
            elif reply.kind != "asks":
                self._meter.ended(reply, now)
            if entry := self._entries.get(reply.task_no):
                if reply.kind == "started":
                    _hear(entry, (reply.worker, reply.message), now)
                else:
                    _end(entry, (reply.worker, reply.message), now)
                    entry.ended = entry.ended or reply.kind in ("ended", "failed")

    def answer(self, reply: Reply, now: float) -> Answer:
        """What the worker that `asks` is to do with a message that may be a copy."""
        with self._lock:
            entry = self._entries.get(reply.task_no)
            if entry is None or entry.ended:
                return "drop"
            asker = (reply.worker, reply.message)
            since = entry.asked.setdefault(asker, now)
            others = {key: attempt.heard for key, attempt in entry.attempts.items() if key != asker}
            if any(heard > since for heard in others.values()):
                # It lives, and has said so after this copy was there.
                entry.adopted = True
                del entry.asked[asker]
                return "drop"
            dead_before = now - DEAD_SECONDS
            if others and (
                self._connected > dead_before or any(heard > dead_before for heard in others.values())
            ):
                return "wait"
            for key in others:
                self._silence(entry, key, now)
            entry.asked.clear()
            self._meter.runs(*asker, now)
            _hear(entry, asker, now)
            return "do"

    def audit(self, now: float) -> list[int]:
        """The tasks that have to be sent again, because nobody has them any more; for a look every few seconds."""
        with self._lock:
            if now - self._connected < SILENT_SECONDS:
                return []
            lost = []
            overtaken = self._overtaken(now)
            for task_no, entry in self._entries.items():
                if entry.sent is None or entry.ended:
                    continue
                for key, attempt in list(entry.attempts.items()):
                    if now - attempt.heard >= SILENT_SECONDS:
                        self._silence(entry, key, now)
                if entry.attempts:
                    continue
                idle = now - entry.idle_since >= LOST_SECONDS
                if entry.adopted or (idle and (self._nothing_waits(now) or task_no in overtaken)):
                    lost.append(task_no)
            return lost

    def runs(self, now: float) -> list[Run]:
        """The attempts that go on, of each task the one that began last: a copy may do what the first one does not."""
        with self._lock:
            if now - self._connected < SILENT_SECONDS:  # workers may have had no way to send what is done
                return []
            found = []
            for task_no, entry in self._entries.items():
                if entry.attempts and not entry.ended:
                    (worker, _), last = max(entry.attempts.items(), key=lambda item: item[1].begun)
                    found.append(Run(task_no, worker, now - last.begun, last.state, now - last.since))
            return found

    def _nothing_waits(self, now: float) -> bool:
        """Whether the task queue has been empty for long enough."""
        return self._empty_since is not None and now - self._empty_since >= LOST_SECONDS

    def _overtaken(self, now: float) -> set[int]:
        """Tasks that one sent much later, and no more urgent, has overtaken: a queue keeps the order of a priority."""
        # When the last one that runs was sent, of this priority or a lower one.
        latest = [0.0] * (MAX_PRIORITY + 1)
        for entry in self._entries.values():
            if entry.sent is not None and entry.attempts and entry.sent <= now:
                for priority in range(entry.priority, MAX_PRIORITY + 1):
                    latest[priority] = max(latest[priority], entry.sent)
        return {
            task_no
            for task_no, entry in self._entries.items()
            if entry.sent is not None
            and not entry.attempts
            and latest[entry.priority] - entry.sent >= LOST_SECONDS
        }

    def _silence(self, entry: _Entry, key: tuple[str, str], now: float) -> None:
        entry.losses.silent(*key)
        self._meter.silent(*key)
        _end(entry, key, now)

    def verdicts(self, workers: int) -> Iterable[tuple[int, str]]:
        """The tasks that are given up, and why.

        Args:
            workers: how many there are, as far as the broker knows.
        """
        with self._lock:
            entries = list(self._entries.items())
        for task_no, entry in entries:
            if verdict := entry.losses.verdict(workers):
                yield task_no, verdict


def _hear(entry: _Entry, key: tuple[str, str], now: float, state: str = "") -> None:
    attempt = entry.attempts.setdefault(key, _Attempt(now, now, state, now))
    attempt.heard = now
    if state != attempt.state:
        attempt.state, attempt.since = state, now


def _end(entry: _Entry, key: tuple[str, str], now: float) -> None:
    entry.attempts.pop(key, None)
    if not entry.attempts:
        entry.idle_since = now
