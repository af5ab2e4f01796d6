"""Every worker looks after what masters leave behind: tasks that nobody waits for, queues and files."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import amqp

from oq_celery import broker, spool
from oq_celery.protocol import LEASE_MS
from oq_celery.settings import Settings

WATCH_SECONDS = 2.0
SWEEP_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A task that a process of this worker is doing."""

    channel: str
    task_id: str
    pid: int


class Watch(threading.Thread):
    """Stops the tasks of channels that have lost their master, and removes the channels' queues and files."""

    def __init__(self, settings: Settings, running: Callable[[], list[Running]]) -> None:
        super().__init__(name="oq_celery watch", daemon=True)
        self._settings = settings
        self._running = running
        self._alone_since: dict[
            str, float
        ] = {}  # monotonic time since when nobody consumes from a channel's queue
        self._orphans: set[str] = set()  # directories without a queue at the last sweep

    def run(self) -> None:
        """Look again and again, on a connection of its own."""
        connection: amqp.Connection | None = None
        swept = time.monotonic()
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                connection = connection or broker.connect(self._settings)
                self.stop_unwanted(connection)
                if time.monotonic() - swept > SWEEP_SECONDS:
                    self.sweep(connection)
                    swept = time.monotonic()
            except broker.ERRORS as error:
                log.debug("watch: %s", error)
                broker.close(connection)
                connection = None

    def stop_unwanted(self, connection: amqp.Connection) -> None:
        """Kill the processes whose tasks nobody waits for."""
        running = self._running()
        ended = self.ended(connection, {task.channel for task in running})
        for task in running:
            if task.channel in ended:
                log.warning("Stopping task %s: nobody waits for it", task.task_id)
                # Celery starts another process and gives the task back; the next to get it drops it.
                os.kill(task.pid, signal.SIGKILL)
        for channel in ended:
            spool.remove_directory(self._settings.spool / channel)

    def sweep(self, connection: amqp.Connection) -> None:
        """Remove the files of channels without a queue.

        Not at first sight: a broker that lost its data has no queues until the masters are back.
        """
        spool_directory = self._settings.spool
        names = [path.name for path in spool_directory.iterdir()] if spool_directory.exists() else []
        ended = self.ended(connection, names)
        for channel in ended & self._orphans:
            log.warning("Removing what a lost master left in %s", spool_directory / channel)
            spool.remove_directory(spool_directory / channel)
        self._orphans = ended

    def ended(self, connection: amqp.Connection, channels: Iterable[str]) -> set[str]:
        """Those of `channels` that have lost their master: the queue is gone, or nobody consumes from it for
        LEASE_MS.

        Looking at a queue puts its expiry off, hence the clock here; and the queue is deleted here, so that
        whoever gets another task of the channel drops it.
        """
        now, gone = time.monotonic(), set()
        for channel in channels:
            state = broker.depth(connection, channel)
            if state is None:
                gone.add(channel)
            elif state[1] > 0:
                self._alone_since.pop(channel, None)
            elif now - self._alone_since.setdefault(channel, now) >= LEASE_MS / 1000:
                if broker.delete_unused(connection, channel):
                    gone.add(channel)
                del self._alone_since[channel]
        return gone
