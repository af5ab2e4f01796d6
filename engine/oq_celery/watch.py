"""Every worker looks after what masters leave behind: tasks that nobody waits for, queues and files."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import amqp

from oq_celery import broker, spool
from oq_celery.clock import Clock
from oq_celery.protocol import CHANNEL_PREFIX, LEASE_SECONDS, Reply, Running, running_body, worker_name
from oq_celery.settings import Settings

WATCH_SECONDS: Final = 2.0
# Processes that one look stops at most: a pool that has to start 100 in a second gives up (billiard's `restart_state`).
STOPS_AT_ONCE: Final = 50
SWEEP_SECONDS: Final = 30.0
# How long a channel's files stay when its queue has gone: a master that comes back to the broker late, or to a broker
# that has lost its data, sends its tasks again and needs them.
FILES_SECONDS: Final = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A task that a process of this worker is doing."""

    channel: str
    task_no: int
    message: str  # the Celery id of the task's message
    pid: int


class Repeated(threading.Thread):
    """Does something again and again on a connection of its own, whatever goes wrong."""

    def __init__(self, name: str, settings: Settings, seconds: float, longest_gap: float) -> None:
        """Begin with `start`.

        Args:
            name: of the thread.
            settings: of the Celery mode.
            seconds: between two looks.
            longest_gap: in seconds, between two looks at a result queue over which it counts as watched.
        """
        super().__init__(name=f"oq_celery {name}", daemon=True)
        self._settings = settings
        self._seconds = seconds
        self._longest_gap = longest_gap
        self._alone = Clock(longest_gap)  # result queues from which nobody consumes

    def look(self, connection: amqp.Connection) -> None:
        """Do it once."""
        raise NotImplementedError

    def run(self) -> None:
        """Go on for ever."""
        connection: amqp.Connection | None = None
        pause, has_served = self._seconds, False
        while True:
            time.sleep(pause)
            pause = self._seconds
            try:
                connection = connection or broker.connect(
                    self._settings, read_timeout=broker.CONNECT_TIMEOUT, write_timeout=broker.CONNECT_TIMEOUT
                )
                self.look(connection)
                has_served = True
            except broker.ERRORS as error:
                log.debug("%s: %s", self.name, error)
                if connection is not None:
                    connection.collect()  # an alarm may keep the broker from listening
                if has_served:  # so the broker may be there: masters need word of what runs here
                    pause = 0.0
                connection, has_served = None, False
                # Masters have lost the broker, too, and need a moment to come back to it.
                self._alone = Clock(self._longest_gap)
            except Exception:  # nobody else would look
                log.exception("%s", self.name)


class Watch(Repeated):
    """Tells the masters what runs here, and stops the tasks of those that are lost."""

    def __init__(
        self,
        settings: Settings,
        node: str,
        running: Callable[[], list[Work]],
        stop: Callable[[Work], None],
    ) -> None:
        """Begin with `start`.

        Args:
            settings: of the Celery mode.
            node: the name of this worker.
            running: says what the processes do now.
            stop: kills the process that does a task, if it does it still.
        """
        super().__init__("watch", settings, WATCH_SECONDS, 3 * WATCH_SECONDS)
        self._node = node
        self._running = running
        self._stop_work = stop  # not _stop, which is Thread's own and which a fork calls

    def look(self, connection: amqp.Connection) -> None:
        """Look at the channels of which something runs here."""
        channels: dict[str, list[Work]] = defaultdict(list)
        for work in self._running():
            channels[work.channel].append(work)
        unwanted: list[Work] = []
        for channel, works in channels.items():
            if has_ended(connection, channel, self._alone):
                unwanted += works
            else:
                self._report(connection, channel, works)
        for work in unwanted[:STOPS_AT_ONCE]:
            log.warning("Stopping task %s: nobody waits for it", work.message)
            self._stop_work(work)

    def _report(self, connection: amqp.Connection, channel: str, works: list[Work]) -> None:
        rows = [
            Running(work.task_no, worker_name(work.pid), work.message, process_state(work.pid))
            for work in works
        ]
        reply = Reply("alive", self._node, worker_name(), "", body=running_body(rows))
        message = amqp.Message(reply.body, application_headers=reply.headers(), delivery_mode=1)
        connection.channel(1).basic_publish(message, routing_key=channel)


class Sweep(Repeated):
    """Removes the queues and files of lost masters, also those of which no task runs.

    Apart from the watch, since a shared directory that does not answer holds it up.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("sweep", settings, SWEEP_SECONDS, 4 * SWEEP_SECONDS)
        # The sweep of a slow directory takes its time, which brings no queue back.
        self._gone = Clock(20 * SWEEP_SECONDS)  # directories without a queue

    def look(self, connection: amqp.Connection) -> None:
        """Look at every channel that has a directory."""
        for path in list(self._settings.spool.glob(f"{CHANNEL_PREFIX}*")):
            ended = has_ended(connection, path.name, self._alone)
            if self._gone.seconds(path.name, ended) >= FILES_SECONDS:
                log.warning("Removing what a lost master left in %s", path)
                spool.remove_directory(path)


def process_state(pid: int) -> str:
    """The state of a process in the letter of proc(5): R when it runs, D when it waits for a disk; "" if it is gone."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return content.rpartition(b") ")[2][:1].decode(
        "ascii", "replace"
    )  # the name before it may have any bytes


def has_ended(connection: amqp.Connection, channel: str, alone: Clock) -> bool:
    """Whether a channel has lost its master: its queue is gone, or nobody has consumed from it for the lease.

    In that case the queue is deleted, so that whoever gets another task of the channel drops it.
    """
    state = broker.depth(connection, channel)
    is_alone = state is not None and state[1] == 0
    seconds = alone.seconds(channel, is_alone)
    if not is_alone:
        return state is None
    return seconds >= LEASE_SECONDS and broker.delete_unused(connection, channel)
