"""Calculations whose process is gone.

The engine's database says that a calculation runs until its process says otherwise; one that was killed, that ran out
of memory or that went down with its machine never does. It would be shown as running for ever, and every calculation
whose number is higher by `[distribution] serialize_jobs` or more would wait for it.

When the WebUI starts, upstream declares all calculations failed that are executing, also those whose process lives;
`hook.py` puts `reap` in the place of that. `reap` judges the calculations of its own machine, to which those without a
host belong (`runs.py`). On the machine of the DbServer it also judges those of former hosts: a cluster has one master,
and the next one may have another name and the former one's database. It leaves alone what has not begun: that holds up
nobody.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psutil

# A calculation's process writes down its own number and, when the calculation begins, the time. So it is older than
# that time; one that is younger has got the number of an earlier process. The database's seconds are whole ones.
START_SECONDS = 2
TITLE = "oq-job-"  # upstream's name of a process that computes, with the calculation's number behind it
UNFINISHED = ("created", "submitted", "executing")
GOOD = ("complete", "shared")
FOLLOW_SECONDS = 1.0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tabs and ends of lines

_RUNNING = """SELECT id, pid, status, start_time, host FROM job
WHERE status IN ('submitted', 'executing') AND pid > 0 ORDER BY id"""
_FAIL = "UPDATE job SET ?D WHERE id=?x AND status=?x"
_NEXT = "SELECT id, timestamp, level, message FROM log WHERE job_id=?x AND id>?x ORDER BY id LIMIT 1000"
_LOG = "INSERT INTO log (job_id, timestamp, level, process, message) VALUES (?X)"


def reap(db: Any) -> list[str]:
    """Mark calculations whose process is gone as failed, with a line in the log of each.

    Args:
        db: an openquake.commonlib.dbapi.Db of the engine's database.

    Returns:
        Those lines.
    """
    here, booted = socket.gethostname(), _booted()
    gone = [
        job
        for job in db(_RUNNING)
        if (not lives(job) if job.host in (None, here) else booted is not None and _began(job) < booted)
    ]
    said = []
    if gone:
        with db:
            db("BEGIN IMMEDIATE")
            for job in gone:
                now = datetime.now(UTC)
                failed = {"is_running": 0, "status": "failed", "stop_time": now}
                if db(_FAIL, failed, job.id, job.status).rowcount:
                    line = (
                        f"The process {job.pid} of calculation {job.id} is gone: it has failed"
                        if job.host in (None, here)
                        else f"Calculation {job.id} ran on {job.host}, the former master: it has failed"
                    )
                    db(_LOG, (job.id, now, "ERROR", "oq-celery reap", line))
                    said.append(line)
    return said


def _booted() -> float | None:
    """The time since when this machine runs, if the DbServer's address is one of its own."""
    from openquake.baselib import config

    try:
        served = socket.gethostbyname(config.dbserver.host)
    except OSError:
        return None
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return psutil.Process(1).create_time() if served in own else None


def follow(dbcmd: Callable[..., Any], number: int) -> Iterator[str]:
    """The lines of a calculation's log, those to come, too, until it ends.

    Args:
        dbcmd: of openquake.commonlib.logs.
        number: of a calculation.
    """
    last = 0
    while True:
        # Looked at before the log is: what an ended calculation has said is all there.
        job = dbcmd("get_job", number)
        while records := dbcmd(_NEXT, number, last):
            for record in records:
                yield printable(f"[{str(record.timestamp)[:19]} #{number} {record.level}] {record.message}")
                last = record.id
        if job is None or job.status not in UNFINISHED:
            return
        time.sleep(FOLLOW_SECONDS)


def printable(text: str) -> str:
    """A text of somebody else for one's terminal, which would obey the control characters in it."""
    return _CONTROL.sub("?", text)


def lives(job: Any) -> bool:
    """Whether a calculation's process is there; in doubt it is."""
    # Of several calculations that run side by side each has a process, and all of them one number.
    if any(process.info["name"] == f"{TITLE}{job.id}" for process in psutil.process_iter(["name"])):
        return True
    return owner(job) is not None


def owner(job: Any) -> psutil.Process | None:
    """The process whose number a calculation has, unless that number is another process's by now."""
    try:
        process = psutil.Process(job.pid)
    except psutil.NoSuchProcess:
        return None
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if process.name().startswith(TITLE):
            return process
        # The time of one that is submitted is that of its record, which the WebUI makes before the process.
        of_engine = older(process, job) or (
            job.status == "submitted" and any(word.startswith(sys.prefix) for word in process.cmdline())
        )
    except psutil.Error:  # it ended just now, or we may not look at it
        of_engine = psutil.pid_exists(job.pid)
    return process if of_engine else None


def older(process: psutil.Process, job: Any) -> bool:
    """Whether a process is older than the beginning of a calculation, as the one that computes it is."""
    return bool(process.create_time() < _began(job) + START_SECONDS)


def _began(job: Any) -> float:
    """When a calculation began, in seconds since 1970; infinitely late where that is not known."""
    if job.start_time is None:
        return float("inf")
    began: float = job.start_time.replace(tzinfo=UTC).timestamp()
    return began
