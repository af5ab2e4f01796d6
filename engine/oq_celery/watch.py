"""Every worker looks after what masters leave behind: tasks that nobody waits for, queues and files."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import amqp

from oq_celery import broker, spool
from oq_celery.protocol import CHANNEL_PREFIX, LEASE_SECONDS
from oq_celery.settings import Settings

WATCH_SECONDS = 2.0
SWEEP_SECONDS = 30.0
# How long a channel's files stay when its queue has gone: a master that comes back to the broker late, or to a broker
# that has lost its data, sends its tasks again and needs them.
FILES_SECONDS = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A task that a process of this worker is doing."""

    channel: str
    task_id: str
    pid: int


class Clock:
    """Since when something is so, as far as every look has found it so.

    A look that comes late says nothing of the time before it.
    """

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self._seen: dict[str, tuple[float, float]] = {}  # monotonic times of the first and the last look

    def seconds(self, name: str, is_so: bool) -> float:
        """Note what a look has found, and say for how long it has been so: 0 when it is not."""
        now = time.monotonic()
        first, last = self._seen.pop(name, (now, now))
        if not is_so:
            return 0.0
        first = first if now - last <= self._longest_gap else now
        self._seen[name] = first, now
        return now - first


class Watch(threading.Thread):
    """Stops the tasks of channels that have lost their master, and removes the channels' queues and files."""

    def __init__(self, settings: Settings, running: Callable[[], list[Running]]) -> None:
        super().__init__(name="oq_celery watch", daemon=True)
        self._settings = settings
        self._running = running
        self._alone = Clock(3 * WATCH_SECONDS)  # result queues from which nobody consumes
        self._idle_alone = Clock(2 * SWEEP_SECONDS)  # the same of channels of which nothing runs here
        self._gone = Clock(2 * SWEEP_SECONDS)  # directories without a queue

    def run(self) -> None:
        """Look again and again, on a connection of its own."""
        connection: amqp.Connection | None = None
        swept = time.monotonic()
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                connection = connection or broker.connect(
                    self._settings, read_timeout=broker.CONNECT_TIMEOUT, write_timeout=broker.CONNECT_TIMEOUT
                )
                self.stop_unwanted(connection)
                if time.monotonic() - swept > SWEEP_SECONDS:
                    self.sweep(connection)
                    swept = time.monotonic()
            except broker.ERRORS as error:
                log.debug("watch: %s", error)
                broker.close(connection)
                connection = None
            except Exception:  # nobody else would look
                log.exception("watch")

    def stop_unwanted(self, connection: amqp.Connection) -> None:
        """Kill the processes whose tasks nobody waits for."""
        channels = {task.channel for task in self._running()}
        ended = {name for name in channels if self._has_ended(connection, name, self._alone)}
        # Asked again, for a process may have gone on to another task.
        for task in self._running() if ended else []:
            if task.channel in ended:
                log.warning("Stopping task %s: nobody waits for it", task.task_id)
                # Celery starts another process and gives the task back; the next to get it drops it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(task.pid, signal.SIGKILL)

    def sweep(self, connection: amqp.Connection) -> None:
        """Remove the queues and files of lost masters, also those of which no task runs."""
        directory = self._settings.spool
        for path in list(directory.glob(f"{CHANNEL_PREFIX}*")):
            ended = self._has_ended(connection, path.name, self._idle_alone)
            if self._gone.seconds(path.name, ended) >= FILES_SECONDS:
                log.warning("Removing what a lost master left in %s", path)
                spool.remove_directory(path)

    @staticmethod
    def _has_ended(connection: amqp.Connection, channel: str, alone: Clock) -> bool:
        """Whether a channel has lost its master: its queue is gone, or nobody has consumed from it for the lease.

        In that case the queue is deleted, so that whoever gets another task of the channel drops it.
        """
        state = broker.depth(connection, channel)
        is_alone = state is not None and state[1] == 0
        seconds = alone.seconds(channel, is_alone)
        if not is_alone:
            return state is None
        return seconds >= LEASE_SECONDS and broker.delete_unused(connection, channel)
