"""What a worker takes from the queue: nothing that would wait for a process, and little while its processes die.

Celery takes as many messages as it has processes. That is too many in two cases, both of which hold up tasks that
other workers could do. After the connection to the broker broke, the processes go on with tasks that count no more,
so what comes waits in the main process, for hours maybe. And a process that has died is back at once, so the worker
whose memory is too small for a task gets the same task again before anybody else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from amqp.exceptions import ConsumerCancelled
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer.tasks import Tasks
from celery.worker.strategy import default as upstream_strategy

from oq_celery.clock import longer

LOOK_SECONDS: Final = 0.2
# Seconds without new tasks after the death of a process, so that they go to others, and twice as long with every
# further one, up to a limit.
PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0
# Without a further death for so long, the worker doubles what it does at once, and its next pause is short again.
RECOVER_SECONDS: Final = 600.0

log = logging.getLogger(__name__)


class Valve:
    """Decides whether this worker takes another task; in its main process."""

    def __init__(self) -> None:
        self.processes = 1
        self._at_once = 1  # tasks
        self._deaths = 0  # since the worker was last well
        self._last_death = 0.0
        self._paused_until = 0.0
        self._consumer: Any = None  # Celery's, of the present connection
        self._closed = False

    def open(self, consumer: Any, processes: int) -> None:
        """Begin with a new connection, on which the worker takes as many tasks as it has processes."""
        if processes != self.processes:
            self.processes = self._at_once = processes
        self._consumer = consumer
        self._closed = False
        consumer.timer.call_repeatedly(LOOK_SECONDS, self._look)

    def is_full(self) -> bool:
        """Whether a message that comes now has to go to another worker."""
        busy = len(set(state.active_requests) | set(state.reserved_requests))
        return busy >= self._at_once or time.monotonic() < self._paused_until

    def close(self) -> None:
        """Take no more messages for the moment."""
        if not self._closed:
            self._closed = True
            self._consumer.call_soon(self._consumer.task_consumer.cancel)

    def note_death(self, *, out_of_memory: bool) -> None:
        """A process has died of its task: pause, and do less at once if the reason may be the memory."""
        now = time.monotonic()
        pause = longer(PAUSE_SECONDS, self._deaths, LONGEST_PAUSE_SECONDS)
        self._deaths += 1
        self._last_death, self._paused_until = now, now + pause
        if out_of_memory:
            self._at_once = max(1, min(self._at_once, len(state.active_requests)) // 2)
        log.warning(
            "A process has died of its task: no new task for %.0f s, then %d at once", pause, self._at_once
        )
        self.close()

    def _look(self) -> None:
        now = time.monotonic()
        if self._deaths and now - self._last_death >= RECOVER_SECONDS:
            self._at_once = min(self.processes, 2 * self._at_once)
            self._deaths, self._last_death = (0, now) if self._at_once == self.processes else (1, now)
        if self._closed and not self.is_full():
            self._closed = False
            try:
                self._consumer.task_consumer.consume()
            except self._consumer.channel_errors as error:
                # The queue was deleted. Whoever consumes is told so, connects anew and makes it again; so does this.
                raise ConsumerCancelled(f"{error}") from error


valve = Valve()


class ValveStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has the valve follow the consumer over its reconnections."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """Celery has just begun to consume."""
        valve.open(consumer, consumer.pool.num_processes)


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's way of taking a message of a task, behind the valve."""
    handle = upstream_strategy(task, app, consumer, **options)

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
        if valve.is_full():
            valve.close()
            reject(log, consumer.connection_errors, requeue=True)
            return None
        return handle(message, body, ack, reject, callbacks, **more)

    return take
