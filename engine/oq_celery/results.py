"""The master's hold on a result queue, which is its lease on the workers' time."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import amqp

from oq_celery import broker
from oq_celery.ledger import Ledger
from oq_celery.protocol import Reply, TransportError
from oq_celery.settings import Settings

# Bytes of messages that wait for the engine, which may be busy with an earlier one; beyond it the broker keeps them.
INBOX_LIMIT: Final = 64 * 2**20
# Results that the broker sends ahead at most; fewer where messages may be large.
PREFETCH: Final = 64
ENDS = 4096  # of attempts that are remembered: many more than the broker may deliver again
POLL_SECONDS: Final = 1.0
WAITING_FIRST: Final = 3.0  # seconds without a worker until the log says so,
WAITING_AGAIN: Final = 60.0  # and between repetitions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Back:
    """The master is back after a loss of the connection, over which the broker has delivered tasks again.

    Attributes:
        lost: the queue that had gone, in words: the tasks have been dropped. Empty when none had.
    """

    lost: str


@dataclass(frozen=True)
class Note:
    """Something for the log, which the thread does not write itself: a handler of the engine's asks the DbServer."""

    text: str


class ResultQueue(threading.Thread):
    """A thread that makes a result queue, consumes from it, and comes back to it after every loss of the
    connection.

    What arrives waits in an inbox; what is for the ledger alone goes there, and whoever asks gets its answer. The
    thread does nothing that may take long, such as looking at the shared directory or writing a log: it keeps the
    lease.
    """

    def __init__(self, settings: Settings, name: str, ledger: Ledger) -> None:
        super().__init__(name=f"oq_celery {name}", daemon=True)
        self._settings = settings
        self._queue = name
        self._ledger = ledger
        self._inbox: queue.SimpleQueue[Reply | Back | Note] = queue.SimpleQueue()
        # Not the connection of the lease: an alarm blocks those that publish.
        self._answers: amqp.Connection | None = None
        self._received = self._taken = 0  # bytes that came into the inbox, and that left it
        self._unacknowledged: list[amqp.Message] = []
        self._ends: dict[str, None] = {}  # the latest attempts whose end is known, by name
        self._full = False  # so much waits in the inbox that the broker sends no more
        self._error: TransportError | None = None  # for which the thread has ended
        self._ready = threading.Event()
        self._ended = False
        self._task_queue: tuple[int, int] | None = None  # tasks waiting, and workers
        self._most_workers: tuple[float, int] = (0.0, 0)  # of the last minute: when they were seen, how many
        self._say_waiting: float | None = None  # monotonic time of the next message that there is no worker

    @property
    def workers(self) -> int:
        """How many workers there are, also those that take nothing at the moment: the most of the last minute."""
        return self._most_workers[1]

    def wait_ready(self) -> None:
        """Wait until this queue and the task queue exist.

        Raises:
            TransportError: if the broker refuses the connection.
        """
        while not self._ready.wait(POLL_SECONDS):
            self._check()

    def make_again(self) -> None:
        """Make the task queue anew, which has gone with the broker's data, when the connection is back."""
        self._ready.clear()
        self.wait_ready()

    def note(self, text: str) -> None:
        """Have something written to the log by whoever receives."""
        self._inbox.put(Note(text))

    def receive(self) -> Reply | Back | None:
        """Wait for the next message, and write to the log what is to be said.

        Returns:
            None when nothing came for a second.

        Raises:
            TransportError: if the broker refuses the connection.
        """
        try:
            item = self._inbox.get(timeout=POLL_SECONDS)
        except queue.Empty:
            self._check()
            self._log_waiting()
            return None
        if isinstance(item, Note):
            log.warning("%s", item.text)
            return None
        if isinstance(item, Reply):
            self._taken += len(item.body)
        return item

    def end(self, delete: Callable[[str], bool]) -> bool:
        """Delete the queue, which wakes the thread, and wait for its end; False if it could not be deleted."""
        self._ended = True
        deleted = delete(self._queue)
        self.join(timeout=broker.CONNECT_TIMEOUT)
        return deleted

    def run(self) -> None:
        """Hold the queue; whatever ends this is an error of the job, which would wait for ever without it."""
        try:
            self._hold()
        except Exception as error:
            text = f"The connection to RabbitMQ at {self._settings.host} has failed: {error!r}"
            self._error = error if isinstance(error, TransportError) else TransportError(text)

    def _hold(self) -> None:
        held = warned = False
        lost = ""  # until the master knows, however often the connection breaks again
        while not self._ended:
            connection: amqp.Connection | None = None
            try:
                connection = broker.connect(self._settings, broker.HEARTBEAT)
                if held:
                    lost = self._missing(connection) or lost
                channel = connection.channel()
                broker.declare_tasks(channel, self._settings.queue)
                if lost or not held:
                    broker.declare_results(channel, self._queue)
                    if self._ended:  # meanwhile, so this made it after its deletion
                        broker.delete(self._settings, self._queue)
                        return
                largest = self._settings.max_message_kb * 1024
                channel.basic_qos(0, max(1, min(PREFETCH, INBOX_LIMIT // largest)), False)
                self._unacknowledged.clear()  # the broker sends them again
                channel.basic_consume(self._queue, callback=self._take)  # an error if it has gone since
                self._ledger.connected(time.monotonic())
                if held:
                    self._inbox.put(Back(lost))
                held, warned, lost = True, False, ""
                self._drain(connection)
            except broker.ERRORS as error:
                if self._ended:
                    return
                if not held and isinstance(error, broker.REFUSALS):
                    text = f"RabbitMQ at {self._settings.host} refuses oq_celery: {error}"
                    raise TransportError(text) from error
                if not warned:
                    self.note(broker.retry_text(self._settings, error))
                    warned = True
                time.sleep(broker.RETRY_SECONDS)
            finally:
                broker.close(connection)
                broker.close(self._answers)
                self._answers = None

    def _missing(self, connection: amqp.Connection) -> str:
        """Which queue has gone, in words."""
        if broker.depth(connection, self._queue) is None:
            return "result queue"
        return "task queue" if broker.depth(connection, self._settings.queue) is None else ""

    def _check(self) -> None:
        """Raise what has ended the thread."""
        if self._error is not None:
            raise self._error

    def _drain(self, connection: amqp.Connection) -> None:
        """Receive until the end."""
        second = 0.0
        while not self._ended:
            if not self._ready.is_set():
                missing = broker.depth(connection, self._settings.queue) is None
                channel = connection.channel()
                broker.declare_tasks(channel, self._settings.queue)
                channel.close()
                if missing:  # with the tasks that waited in it
                    self._inbox.put(Back("task queue"))
                self._ready.set()
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=POLL_SECONDS)
            connection.heartbeat_tick()
            self._acknowledge()
            if time.monotonic() >= second:
                second = time.monotonic() + POLL_SECONDS
                self._task_queue = broker.depth(connection, self._settings.queue)
                if self._task_queue is None:  # somebody has deleted it
                    self._ready.clear()
                else:
                    self._count(*self._task_queue)

    def _count(self, waiting: int, workers: int) -> None:
        now = time.monotonic()
        self._ledger.looked(waiting, now)
        when, most = self._most_workers
        if workers >= most or now - when > 60:
            self._most_workers = now, workers

    def _take(self, message: amqp.Message) -> None:
        reply = Reply.parse(message.headers, message.body)
        now = time.monotonic()
        says_how_it_is = reply.kind in ("asks", "started", "alive")
        if says_how_it_is or not self._came_before(reply):
            self._ledger.heard(reply, now)
            if reply.kind == "asks":
                self._answer(self._ledger.answer(reply, now), message)
            elif not says_how_it_is:
                self._received += len(reply.body)
                self._inbox.put(reply)
        self._unacknowledged.append(message)
        self._acknowledge()

    def _came_before(self, reply: Reply) -> bool:
        """Whether this is delivered again: its acknowledgement, or a worker's confirm, was lost with a connection.

        Else its seconds would be paid twice, and results that are used would count as computed for nothing.
        """
        if not reply.attempt:  # of a process that has died, which is known by its message
            return False
        before = reply.attempt in self._ends
        self._ends[reply.attempt] = None
        if len(self._ends) > ENDS:
            del self._ends[next(iter(self._ends))]
        return before

    def _answer(self, answer: str, question: amqp.Message) -> None:
        """Tell a worker what to do; it asks again when no answer comes."""
        try:
            if self._answers is None:
                seconds = broker.ANSWER_TIMEOUT
                self._answers = broker.connect(self._settings, read_timeout=seconds, write_timeout=seconds)
            message = amqp.Message(answer, correlation_id=question.correlation_id)
            self._answers.channel(1).basic_publish(message, routing_key=question.reply_to)
        except broker.ERRORS:
            broker.close(self._answers)
            self._answers = None

    def _acknowledge(self) -> None:
        """Let the broker send more, unless too much waits for the engine."""
        if self._received - self._taken >= INBOX_LIMIT:
            self._full = True
            return
        if self._full:  # so what the workers said meanwhile was not heard
            self._full = False
            self._ledger.connected(time.monotonic())
        if self._unacknowledged:
            last = self._unacknowledged[-1]
            last.channel.basic_ack(last.delivery_tag, multiple=True)
            self._unacknowledged.clear()

    def _log_waiting(self) -> None:
        waiting, workers = self._task_queue or (0, 1)
        now = time.monotonic()
        if workers:
            self._say_waiting = None
        elif self._say_waiting is None:
            self._say_waiting = now + WAITING_FIRST
        elif now >= self._say_waiting:
            self._say_waiting = now + WAITING_AGAIN
            log.warning("Waiting for workers: 0 alive, %d tasks queued", waiting)
