"""The command `oq-idle`: power the master off when it has been of no use to anybody for a while.

A timer of the master runs it once a minute (`oq-node refresh`), as root. EC2 stops an instance that powers itself off:
volumes and address stay with it, and `aws ec2 start-instances` brings it back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PEOPLE = range(1000, 60000)  # FIRST_UID to LAST_UID of Debian's adduser.conf
CALCULATION = "oq-job-"  # upstream's name of a process that computes
# Session Manager's process of a shell or of a port forward; the kernel keeps 15 characters of a name.
SESSION = "ssm-session-wor"
# Its time is that of the last look that found somebody; gone with a reboot.
BUSY = Path("/run/openquake/busy")
ASKED = Path("/run/openquake-webui/asked")  # oq_webui.activity
_WAITING = "SELECT id FROM job WHERE status IN ('submitted', 'executing') AND pid > 0"


def of_processes(processes: Iterable[tuple[str, int]]) -> Iterator[str]:
    """For what processes the master is needed, in words.

    Args:
        processes: their names and the ids of their users.
    """
    for name, uid in processes:
        if name.startswith(CALCULATION):
            yield f"calculation {name.removeprefix(CALCULATION)} runs"
        elif name.startswith(SESSION):
            yield "somebody has a session or a port forward of Session Manager"
        elif uid in PEOPLE:
            yield f"a user's program runs: {name}"


def of_calculations(numbers: Iterable[int]) -> Iterator[str]:
    """The calculations that have not ended, in words."""
    return (f"calculation {number} has not ended" for number in numbers)


def of_cluster(status: Any) -> Iterator[str]:
    """What there is of workers and tasks, in words. `status` is an oq_celery.status.Status.

    A worker keeps the master: without it nothing would take the worker away any more.
    """
    if status.consumers:
        yield f"{status.consumers} workers are there"
    if status.outstanding:
        yield f"{status.outstanding} tasks wait or run"
    if status.alarm is not None:
        yield f"RabbitMQ takes no messages ({status.alarm})"


def idle_seconds(busy: str, now: float, seen: Path = BUSY, asked: Path = ASKED) -> float:
    """For how long nobody has needed the master; from the first look after a boot on.

    Args:
        busy: who needs it now; empty for nobody.
        now: seconds since 1970.
        seen: the file that remembers the last time.
        asked: the file whose time is that of the last request to the WebUI.
    """
    if busy or not seen.exists():
        seen.touch()
        os.utime(seen, (now, now))
    last = max(path.stat().st_mtime for path in (seen, asked) if path.exists())
    return max(0.0, now - last)


def main() -> None:
    """Look once; `oq-idle MINUTES` powers off after so many minutes without anybody."""
    minutes = int(sys.argv[1])
    os.environ["OQ_DISTRIBUTE"] = "no"  # this command distributes nothing
    busy = next(_reasons(), "")
    if idle_seconds(busy, time.time()) >= 60 * minutes:
        print(f"nobody has needed this master for {minutes} minutes: it stops")
        subprocess.run(["systemctl", "poweroff"], check=True)


def _reasons() -> Iterator[str]:
    looks: tuple[Callable[[], Iterator[str]], ...] = (_processes, _calculations, _cluster)
    for look in looks:
        try:
            yield from look()
        except Exception as error:  # neither the broker's errors nor the database's have a common base
            yield f"unknown: {error}"  # so it goes on


def _processes() -> Iterator[str]:
    import psutil

    found = psutil.process_iter(["name", "uids"])
    return of_processes((one.info["name"], one.info["uids"].real) for one in found if one.info["uids"])


def _calculations() -> Iterator[str]:
    from openquake.commonlib.dbapi import db

    owner = Path(db.path).stat()
    # SQLite may make files beside the database, which have to be its owner's.
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        return of_calculations([job.id for job in db(_WAITING)])
    finally:
        os.seteuid(0)
        os.setegid(0)


def _cluster() -> Iterator[str]:
    from openquake.baselib import config
    from oq_celery import settings, status

    return of_cluster(status.read(settings.load(config)))
