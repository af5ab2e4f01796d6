"""Abort and delete mean it: what is aborted does not run on, and nothing of it stays.

Upstream's `oq abort` looks for a process by its title, which a calculation that waits for its turn has not got yet, so
it calls failed what begins a minute later; its WebUI sends a signal and calls that success, also where it may not; its
deletion of a calculation leaves the process at work. Here an abort ends the process, or says why not.

A calculation's process is the one whose number the database has. Upstream's title of a process says what it computes:

- `oq-job-N` computes calculation N.
- `oq-job-M`, with M > N, computes a calculation that is nested in N. It got its number later and has no host. A command
  computes its calculations in the order of their numbers, so N is the first of them that has not ended.
- With `--multi` several are computed at once, each in a child of the command's process, with a title of its own.

Whoever reaches the DbServer's port can write any number there. So a signal goes only to processes that have the engine
in them; root's goes only to those of the calculation's user or of the database's (`_may_end`).

Before it computes, a calculation is aborted by its status alone, which `runs.py` looks at when its turn comes.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from oq_celery import identity
from oq_celery.jobs import TITLE, UNFINISHED, older, owner
from oq_celery.protocol import CHANNEL_PREFIX

# Seconds that a calculation has to end by itself: it takes its tasks back, for which a broker that does not answer
# needs 10, and writes down what has become of it. Then it is killed.
GRACE_SECONDS = 20.0
# Seconds in which a calculation that has got its number appears with a process, or one that has been marked begins.
SETTLE_SECONDS = 2.0
POLL_SECONDS = 0.2

_SAME_COMMAND = """SELECT id, host FROM job WHERE pid=?x AND (host=?x OR host IS NULL) AND id<>?x
AND status IN (?X) ORDER BY id"""

Dbcmd = Callable[..., Any]


class Refused(Exception):
    """A calculation cannot be aborted or deleted; the text says why and, where there is one, the remedy."""


def abort(dbcmd: Dbcmd, number: int, remedy: str = "sudo oq abort {}", *, may: bool = False) -> str:
    """End a calculation, whether it computes or waits for its turn; it is aborted when this returns.

    Args:
        dbcmd: of openquake.commonlib.logs.
        number: of the calculation.
        remedy: what somebody who may does instead, with {} for the number.
        may: whether the caller has found that this user may abort it, as far as processes are not concerned.

    Returns:
        What has been done, in a sentence.

    Raises:
        Refused: if it does not run, or runs on.
    """
    marked = 0.0
    while True:
        job = dbcmd("get_job", number)
        if job is None:
            raise Refused(f"There is no calculation {number}")
        if job.status == "aborted" and time.monotonic() < marked + SETTLE_SECONDS:
            time.sleep(POLL_SECONDS)  # it may have been on its way to begin when it was marked
            continue
        if job.status not in UNFINISHED:
            break
        if job.host not in (None, socket.gethostname()):
            raise Refused(f"Calculation {number} runs on {job.host}: abort it there")
        process = _computing(dbcmd, job)
        if process is not None:
            return _end(dbcmd, job, process, remedy)
        if not may and job.user_name != getpass.getuser() and os.geteuid() != 0:
            raise Refused(_not_yours(number, job.user_name, remedy))
        # It has not begun, or its process is gone. An action of `commands.extend_actions`.
        dbcmd("abort_unfinished", number)
        marked = time.monotonic()
    if not marked or job.status != "aborted":
        raise Refused(f"Calculation {number} is {job.status}: there is nothing to abort")
    return f"Calculation {number} is aborted"


def remove_leftovers(spool: Path, number: int) -> None:
    """Remove what a calculation that was killed has left in the spool directory; its queue the workers remove."""
    for directory in spool.glob(f"{CHANNEL_PREFIX}*.{number}.{'[0-9a-f]' * 16}"):
        shutil.rmtree(directory, ignore_errors=True)


def _computing(dbcmd: Dbcmd, job: Any) -> psutil.Process | None:
    """The process that a signal ends: the one that computes this calculation, or that waits for it in the queue."""
    process = owner(job) if job.pid else None
    if process is None:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        if job.status == "submitted" or _number(process) == job.id or _inside(dbcmd, job, process):
            return process if _may_end(job, process) else None
        # One that has its title, and has not said in the database yet that it is the one.
        children = (one for one in process.children() if _number(one) == job.id)
        return next((one for one in children if _may_end(job, one)), None)
    return None


def _may_end(job: Any, process: psutil.Process) -> bool:
    """Whether a process may be the calculation's for which the database has it, so that a signal ends nothing else.

    Raises:
        Refused: if it computes, and root must not end it in the name of this calculation's user.
    """
    users, computes = set(process.uids()), process.name().startswith(TITLE)
    if os.geteuid() != 0:
        # The kernel refuses another user's process, and says so to whoever has no right to abort it.
        return users != {os.geteuid()} or computes or _has_engine(process)
    keeper = identity.keeper()
    if process.pid == 1 or not (computes or _has_engine(process)):
        return False
    # A program with other rights than its user's, as sudo is one, has several.
    allowed = len(users) == 1 and users <= {identity.person(job.user_name).uid, keeper.uid}
    # Of root's processes the engine's Python runs some on a master that are no calculations. Where the database is
    # root's, who can write it is root.
    if allowed and (computes or users != {0} or keeper.uid == 0):
        return True
    if computes:
        raise Refused(
            f"Process {process.pid}, which the database has for calculation {job.id}, is {process.username()}'s and "
            f"neither {job.user_name}'s nor {keeper.name}'s: it runs on. "
            f"If it is the right one: kill -INT {process.pid}"
        )
    return False


def _has_engine(process: psutil.Process) -> bool:
    """Whether a process has the engine in its memory, or its command line is of the engine's environment."""
    places = tuple({f"{sys.prefix}/", f"{Path(sys.prefix).resolve()}/"})
    try:
        if any(word.startswith(places) for word in process.cmdline()):
            return True
        return any(one.path.startswith(places) for one in process.memory_maps())
    except psutil.AccessDenied:
        return False


def _inside(dbcmd: Dbcmd, job: Any, process: psutil.Process) -> bool:
    """Whether a process computes something inside of a calculation."""
    if _number(process) < job.id or not older(process, job):
        return False
    if job.host is None:
        return True
    return all(one.id > job.id or one.host is None for one in _same_command(dbcmd, job))


def _same_command(dbcmd: Dbcmd, job: Any) -> list[Any]:
    """The other calculations of a process that have not ended."""
    return list(dbcmd(_SAME_COMMAND, job.pid, socket.gethostname(), job.id, list(UNFINISHED)))


def _number(process: psutil.Process) -> int:
    """The number of the calculation that a process has in its title; 0 for none."""
    number = process.name().removeprefix(TITLE)
    return int(number) if number.isdecimal() else 0


def _end(dbcmd: Dbcmd, job: Any, process: psutil.Process, remedy: str) -> str:
    """Interrupt a process, wait for its end, and write down what it could not."""
    others = []
    if process.pid == job.pid:
        others = [one.id for one in _same_command(dbcmd, job)]
    try:
        name, users = process.username(), process.uids()
        children = [one for one in process.children(recursive=True) if one.uids() == users]
        process.send_signal(signal.SIGINT)
    except psutil.AccessDenied:
        raise Refused(_not_yours(job.id, name, remedy)) from None
    except psutil.NoSuchProcess:
        children = []
    said = ""
    if not _ended(process, GRACE_SECONDS) and not _left(dbcmd, job, process):
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        _ended(process, GRACE_SECONDS)
        said = f", and was killed, since it did not end in {GRACE_SECONDS:.0f} s"
    ended = {}
    for number in (job.id, *others):
        dbcmd("abort_unfinished", number)
        now = dbcmd("get_job", number)
        ended[number] = now.status if now is not None else "aborted"
    if ended.pop(job.id) == "complete":
        raise Refused(f"Calculation {job.id} was complete before it could be aborted")
    if with_it := [str(number) for number, status in ended.items() if status == "aborted"]:
        said += f"; with it, of the same command, {', '.join(with_it)}"
    return f"Calculation {job.id} is aborted{said}"


def _left(dbcmd: Dbcmd, job: Any, process: psutil.Process) -> bool:
    """Whether a process has ended a calculation and goes on with something else: an `oq shell`, a program of a user."""
    now = dbcmd("get_job", job.id)
    with contextlib.suppress(psutil.NoSuchProcess):
        return now is not None and now.status not in UNFINISHED and not _number(process)
    return True


def _ended(process: psutil.Process, seconds: float) -> bool:
    """Whether a process ends in time; a zombie has ended, which its parent has not noticed yet."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
    return True


def _not_yours(number: int, name: str, remedy: str) -> str:
    return (
        f"Calculation {number} is {name}'s and you are {getpass.getuser()}: it runs on. "
        f"On the master: {remedy.format(number)}"
    )
