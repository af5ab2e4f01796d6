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
from oq_celery.protocol import Reply, TransportError
from oq_celery.settings import Settings

PREFETCH: Final = 64  # results that the broker sends ahead; each is a message of limited size
# Bytes of messages that wait for the engine, which may be busy with an earlier one; beyond it the broker keeps them.
INBOX_LIMIT: Final = 64 * 2**20
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


class ResultQueue(threading.Thread):
    """A thread that makes a result queue, consumes from it, and comes back to it after every loss of the
    connection.

    What arrives waits in an inbox. The thread does nothing that may take long, such as looking at the shared
    directory: it keeps the lease.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        super().__init__(name=f"oq_celery {name}", daemon=True)
        self._settings = settings
        self._queue = name
        self._inbox: queue.SimpleQueue[Reply | Back] = queue.SimpleQueue()
        self._received = self._taken = 0  # bytes that came into the inbox, and that left it
        self._unacknowledged: list[amqp.Message] = []
        self._error: TransportError | None = None  # for which the thread has ended
        self._ready = threading.Event()
        self._ended = False
        self._task_queue: tuple[int, int] | None = None  # tasks waiting, and workers
        self._say_waiting: float | None = None  # monotonic time of the next message that there is no worker

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

    def receive(self) -> Reply | Back:
        """Wait for the next message, and say so in the log while there is no worker.

        Raises:
            TransportError: if the broker refuses the connection.
        """
        while True:
            try:
                item = self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._check()
                self._log_waiting()
                continue
            if isinstance(item, Reply):
                self._taken += len(item.body)
            return item

    def end(self, delete: Callable[[str], None]) -> None:
        """Delete the queue, which wakes the thread, and wait for its end."""
        self._ended = True
        delete(self._queue)
        self.join(timeout=broker.CONNECT_TIMEOUT)

    def run(self) -> None:
        """Hold the queue; whatever ends this is an error of the job, which would wait for ever without it."""
        try:
            self._hold()
        except Exception as error:
            log.debug("The thread of %s has ended", self._queue, exc_info=True)
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
                channel.basic_qos(0, PREFETCH, False)
                self._unacknowledged.clear()  # the broker sends them again
                channel.basic_consume(self._queue, callback=self._take)  # an error if it has gone since
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
                    broker.log_retry(self._settings, error)
                    warned = True
                time.sleep(broker.RETRY_SECONDS)
            finally:
                broker.close(connection)

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
                channel = connection.channel()
                broker.declare_tasks(channel, self._settings.queue)
                channel.close()
                self._ready.set()
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=POLL_SECONDS)
            connection.heartbeat_tick()
            self._acknowledge()
            if time.monotonic() >= second:
                second = time.monotonic() + POLL_SECONDS
                self._task_queue = broker.depth(connection, self._settings.queue)
                if self._task_queue is None:  # somebody has deleted it, and the tasks that waited in it
                    self._ready.clear()
                    self._inbox.put(Back("task queue"))

    def _take(self, message: amqp.Message) -> None:
        self._received += len(message.body)
        self._inbox.put(Reply.parse(message.headers, message.body))
        self._unacknowledged.append(message)
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Let the broker send more, unless too much waits for the engine."""
        if self._unacknowledged and self._received - self._taken < INBOX_LIMIT:
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
