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
POLL_SECONDS: Final = 1.0
WAITING_FIRST: Final = 3.0  # seconds without a worker until the log says so,
WAITING_AGAIN: Final = 60.0  # and between repetitions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lost:
    """The result queue had gone when the master came back to it: the workers have dropped its tasks."""


class ResultQueue(threading.Thread):
    """A thread that makes a result queue, consumes from it, and comes back to it after every loss of the
    connection.

    What arrives waits in an inbox: messages of limited size, for each outstanding task at most one with
    results.
    """

    def __init__(self, settings: Settings, name: str, every_second: Callable[[], None]) -> None:
        super().__init__(name=f"oq_celery {name}", daemon=True)
        self._settings = settings
        self._queue = name
        self._every_second = every_second
        self._inbox: queue.SimpleQueue[Reply | Lost | TransportError] = queue.SimpleQueue()
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
            with contextlib.suppress(queue.Empty):
                match self._inbox.get_nowait():
                    case TransportError() as error:
                        raise error

    def make_again(self) -> None:
        """Make the task queue anew, which has gone with the broker's data, when the connection is back."""
        self._ready.clear()
        self.wait_ready()

    def receive(self) -> Reply | Lost:
        """Wait for the next message, and say so in the log while there is no worker.

        Raises:
            TransportError: if the broker refuses the connection.
        """
        while True:
            try:
                item = self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._log_waiting()
                continue
            if isinstance(item, TransportError):
                raise item
            return item

    def end(self, publisher: broker.Publisher) -> None:
        """Delete the queue, which wakes the thread, and wait for its end."""
        self._ended = True
        publisher.delete(self._queue)
        self.join(timeout=broker.CONNECT_TIMEOUT)

    def run(self) -> None:
        """Hold the queue."""
        held = False
        while not self._ended:
            connection: amqp.Connection | None = None
            try:
                connection = broker.connect(self._settings, broker.HEARTBEAT)
                lost = held and broker.depth(connection, self._queue) is None
                channel = connection.channel()
                broker.declare_tasks(channel, self._settings.queue)
                broker.declare_results(channel, self._queue)
                channel.basic_qos(0, PREFETCH, False)
                channel.basic_consume(self._queue, callback=self._take)
                if lost:
                    self._inbox.put(Lost())
                held = True
                self._drain(connection)
            except broker.ERRORS as error:
                if self._ended:
                    return
                if not held and isinstance(error, broker.REFUSALS):
                    text = f"RabbitMQ at {self._settings.host} refuses oq_celery: {error}"
                    self._inbox.put(TransportError(text))
                    return
                broker.log_retry(self._settings, error)
                time.sleep(broker.RETRY_SECONDS)
            finally:
                broker.close(connection)

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
            if time.monotonic() >= second:
                second = time.monotonic() + POLL_SECONDS
                self._task_queue = broker.depth(connection, self._settings.queue)
                self._every_second()

    def _take(self, message: amqp.Message) -> None:
        self._inbox.put(Reply.parse(message.headers, message.body))
        message.channel.basic_ack(message.delivery_tag)

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
