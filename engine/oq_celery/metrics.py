"""Publishes what the queue, the fleet and the master do to CloudWatch, where scaling policies, alarms and people read
it: `python -m oq_celery.metrics`, on the master.

Every few seconds while there is work and once more at its end, so that no alarm acts on what was; once a minute
otherwise: a metric costs by the request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_FAILED = "SELECT id FROM job WHERE status='failed'"

Value = tuple[str, dict[str, str], float, str]
"""A metric's name, its dimensions besides the cluster, its value and its unit."""


def queue_values(status: Any) -> Iterator[Value]:
    """What the broker and the workers say. `status` is an oq_celery.status.Status.

    While the broker takes no messages, workers cannot say what they do. What is unknown then is left out: no alarm
    takes workers away for data that are missing.
    """
    alive = len(status.workers) if status.alarm is None else status.consumers
    values = {
        "TasksWaiting": status.waiting,
        "WorkersAlive": alive,
        "BacklogPerWorker": status.waiting / max(1, alive),
        "TasksWithoutWorker": 0 if alive else status.waiting,
        "BrokerBlocked": 0 if status.alarm is None else 1,
    }
    if status.alarm is None:
        values["TasksOutstanding"] = status.outstanding
        values["WorkersBusy"] = sum(1 for worker in status.workers if worker.busy)
    for name, value in values.items():
        yield name, {}, value, "Count"


def machine_values(disks: Sequence[str]) -> Iterator[Value]:
    """How full the memory and the file systems at these mount points are; of one that is not mounted nothing.

    One that has had an error is full: ext4 writes nothing to it any more.
    """
    import psutil

    yield "MemoryUsedPercent", {}, psutil.virtual_memory().percent, "Percent"
    for disk in disks:
        if os.path.ismount(disk):
            used = 100.0 if disk_trouble(disk) else psutil.disk_usage(disk).percent
            yield "DiskUsedPercent", {"Disk": disk}, used, "Percent"


def disk_trouble(disk: str) -> str:
    """What is wrong with the file system that is mounted somewhere, in words; empty for nothing.

    After an error the volumes are read-only (`errors=remount-ro`), since Linux 6.12 without a flag that says so.
    https://docs.kernel.org/admin-guide/ext4.html#sys-entries
    """
    number = Path(disk).stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    count = Path("/sys/fs/ext4", device, "errors_count")
    errors = int(count.read_text()) if count.exists() else 0
    if errors or os.statvfs(disk).f_flag & os.ST_RDONLY:
        what = f"has had {errors} errors" if errors else "is read-only"
        return f"the file system of {disk} {what} and takes no more data (sudo journalctl -k)"
    return ""


def metric_data(
    values: Iterator[Value] | Sequence[Value], dimensions: dict[str, str]
) -> list[dict[str, Any]]:
    """Values as PutMetricData takes them, with these dimensions and their own."""
    return [
        {
            "MetricName": name,
            "Dimensions": [{"Name": key, "Value": text} for key, text in (dimensions | more).items()],
            "Value": value,
            "Unit": unit,
            "StorageResolution": 1,  # seconds: alarms of less than a minute need it
        }
        for name, more, value, unit in values
    ]


class Done:
    """The tasks that have ended since somebody was told, of the calculations that run."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, str], int] = {}
        self._new = 0

    def add(self, status: Any) -> None:
        """Count what has ended since the last time; the tasks of a job that ends meanwhile are not seen."""
        now = {(row.job, row.user, row.name): row.done for row in status.tasks}
        self._new += sum(max(0, done - self._known.get(key, 0)) for key, done in now.items())
        self._known = now

    def count(self) -> int:
        """How many."""
        return self._new

    def told(self) -> None:
        """Begin anew."""
        self._new = 0


class Failures:
    """The calculations that have failed since somebody was told."""

    def __init__(self, database: str) -> None:
        """Of the engine's database at a path, which need not be there yet."""
        self._database = database
        self._known = self._failed()
        self._new: set[int] = set()

    def count(self) -> int:
        """How many; those of before the beginning do not count."""
        failed = self._failed()
        self._new |= failed - self._known
        self._known = failed
        return len(self._new)

    def told(self) -> None:
        """Begin anew."""
        self._new.clear()

    def _failed(self) -> set[int]:
        if not Path(self._database).exists():
            return set()
        # Opened for each look: the DbServer may replace the file.
        with contextlib.closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            return {number for (number,) in connection.execute(_FAILED)}


def publish(client: Any, arguments: argparse.Namespace, celery: Any, failures: Failures) -> None:
    """Publish for ever; a broker, a database or CloudWatch that does not answer is reported and asked again."""
    from oq_celery import status

    dimensions = {arguments.dimension: arguments.cluster}
    done = Done()
    published, worked, trouble = -float(arguments.idle), False, ""
    while True:
        started = time.monotonic()
        busy, found, values = False, "", list[Value]()
        counted: list[Done | Failures] = []  # what is among the values
        try:
            now = status.read(celery)
            busy = bool(now.outstanding) or now.alarm is not None
            values += queue_values(now)
            done.add(now)
            values.append(("TasksDone", {}, done.count(), "Count"))
            counted.append(done)
            found = "" if now.alarm is None else f"RabbitMQ takes no messages: {now.alarm}"
        except Exception as error:  # the broker's errors have no common base
            found = str(error) or type(error).__name__
        failed = 0
        try:
            failed = failures.count()
            values.append(("CalculationsFailed", {}, failed, "Count"))
            counted.append(failures)
        except (OSError, sqlite3.Error) as error:  # such as of a disk that is in the values
            found = str(error)
        try:
            if busy or worked or failed or started - published >= arguments.idle:
                values += machine_values(arguments.disk)
                client.put_metric_data(
                    Namespace=arguments.namespace, MetricData=metric_data(values, dimensions)
                )
                published, worked = started, busy
                for one in counted:
                    one.told()
        except Exception as error:  # nor have boto3's
            found = str(error) or type(error).__name__
        if found and found != trouble:
            print(f"metrics: {found}", flush=True)
        trouble = found
        time.sleep(max(0.0, arguments.busy - (time.monotonic() - started)))


def main() -> None:
    """The command line, which the master's unit has."""
    parser = argparse.ArgumentParser(prog="python -m oq_celery.metrics")
    for name in ("region", "namespace", "dimension", "cluster"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--busy", type=float, required=True, help="seconds between two looks")
    parser.add_argument(
        "--idle", type=float, required=True, help="seconds between two publications without work"
    )
    parser.add_argument("--disk", action="append", default=[], help="the mount point of a disk")
    arguments = parser.parse_args()

    from openquake.baselib import config
    from openquake.commonlib.dbapi import db

    from oq_celery import credentials, settings

    try:
        client = credentials.client("cloudwatch", arguments.region)
    except ConnectionError as error:
        sys.exit(f"metrics: {error}")  # and systemd starts it again
    publish(client, arguments, settings.load(config), Failures(db.path))


if __name__ == "__main__":
    main()
