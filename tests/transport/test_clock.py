"""Clocks that are set while a calculation runs, on the master back, on a worker forwards: what counts there is how much
time passes, not what time it is. A master that waited for a time of day would wait an hour too long.

The clock is Python's time.time, which these processes ask through a file; RabbitMQ's is not set, nor the kernel's.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

from tests.transport import rabbitmq
from tests.transport.harness import Cluster
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker
from tests.transport.test_copies import (  # noqa: F401 - fixtures
    MASTER,
    PATIENT,
    SENT_AGAIN,
    TASKS,
    assert_each_done_once,
    begun,
    cluster,
    hold,
    moments,
    release,
)

HOUR = 3600


class Clock:
    """The clock of processes that run `code` before anything else; right until it is set."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        """Put it so many seconds before or behind what is right."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)

    @property
    def code(self) -> str:
        """Python for the processes."""
        return (
            "import time\nright = time.time\n"
            f"time.time = lambda: right() + int(open({str(self._file)!r}).read())\n"
        )


def last_logged(worker: Process) -> datetime:
    """The time of the last line of a worker's log, by its clock."""
    stamps = re.findall(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),", worker.output(), re.MULTILINE)
    return datetime.fromisoformat(stamps[-1])


def test_with_clocks_that_are_set_a_running_task_stays_and_lost_ones_are_noticed(
    cluster: Cluster,  # noqa: F811
    moments: Path,  # noqa: F811
    tmp_path: Path,
    broker: Broker,
) -> None:
    masters, workers = Clock(tmp_path / "master.clock"), Clock(tmp_path / "worker.clock")
    hold(moments, 0)
    worker = cluster.worker("one", changed=workers.code)
    master = cluster.start("python", "-c", masters.code + PATIENT + MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the worker to be busy")
    masters.set(-HOUR)
    workers.set(HOUR)
    broker.control("purge_queue", "-p", rabbitmq.VHOST, cluster.queue)
    wait_until(lambda: SENT_AGAIN in master.output(), "the master to notice")
    cluster.worker("two")
    wait_until(lambda: set(begun(moments)) == set(range(TASKS)), "the other worker to do all others")
    release(moments)
    assert master.wait() == 0, master.output()
    assert_each_done_once(master, moments)
    wait_until(lambda: "succeeded in" in worker.output(), "the log's last line")
    assert last_logged(worker) - datetime.now() > timedelta(seconds=HOUR / 2)
