"""Calculations whose process is gone.

The engine's database says that a calculation runs until its process says otherwise; one that was killed, that ran out
of memory or that went down with its machine never does. Such calculations would be shown as running for ever, and
would take the places of `[distribution] serialize_jobs`: a few of them, and every new calculation waits.

Upstream clears them when the WebUI starts, and with them all that run: `reap` takes the place of that, too (`hook.py`).
"""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from typing import Any

import psutil

# What may lie between the start of a calculation's process and the time that its record has as its start, which clocks
# that are set and a slow start of a process make larger; a process that is younger than the record by more than that
# has only got the number of an earlier one.
START_SECONDS = 60
# A calculation's process writes down its number when it starts. This long after its record was made, there is none.
UNKNOWN_SECONDS = 3600

_RUNNING = """SELECT id, pid, strftime('%s', start_time) AS started FROM job
WHERE is_running=1 AND status IN ('created', 'submitted', 'executing') AND host=?x ORDER BY id"""
_FAIL = "UPDATE job SET ?D WHERE id=?x AND is_running=1"
_LOG = "INSERT INTO log (job_id, timestamp, level, process, message) VALUES (?X)"


def reap(db: Any) -> list[str]:
    """Mark the calculations of this machine whose process is gone as failed, with a line in the log of each.

    Args:
        db: an openquake.commonlib.dbapi.Db of the engine's database.

    Returns:
        Those lines.
    """
    said = []
    for job in db(_RUNNING, socket.gethostname()):
        if _lives(job.pid, float(job.started)):
            continue
        now = datetime.now(UTC)
        failed = {"is_running": 0, "status": "failed", "stop_time": now}
        if db(_FAIL, failed, job.id).rowcount:
            line = (
                f"The process of calculation {job.id} ({job.pid or 'never started'}) is gone: it has failed"
            )
            db(_LOG, (job.id, now, "CRITICAL", "oq-celery reap", line))
            said.append(line)
    return said


def _lives(pid: int, started: float) -> bool:
    """Whether the process of a calculation that was recorded at that time (seconds since the epoch) is there."""
    if not pid:
        return time.time() < started + UNKNOWN_SECONDS
    try:
        process = psutil.Process(pid)
        ended, begun = process.status() == psutil.STATUS_ZOMBIE, process.create_time()
    except psutil.NoSuchProcess:
        return False
    return not ended and bool(begun < started + START_SECONDS)
