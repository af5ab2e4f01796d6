"""The command `oq-idle`: power the master off when it is of no use to anybody.

A timer of the master runs `oq-idle MINUTES …` once a minute (`oq-node refresh`), as root; `oq-idle now …` is what
people run (`oq-node sleep`, `oq-cluster sleep`). EC2 stops an instance that powers itself off: volumes and address stay
with it, and `aws ec2 start-instances` brings it back.
"""

from __future__ import annotations

import argparse
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from oq_idle.gate import Gate

ACCOUNT = "openquake"  # of the engine's services (facts.OPENQUAKE_USER), to which its database belongs
PEOPLE = range(1000, 60000)  # FIRST_UID to LAST_UID of Debian's adduser.conf
CALCULATION = "oq-job-"  # upstream's name of a process that computes
ENGINE = "oq"  # upstream's command, which may be about to
# Session Manager's process of a shell or of a port forward; the kernel keeps 15 characters of a name.
SESSION = "ssm-session-wor"
# Its time is that of the last look that found somebody; gone with a reboot.
BUSY = Path("/run/openquake/busy")
WEBUI = Path("/run/openquake-webui")  # its unit's RuntimeDirectory
REQUEST = "the WebUI is answering a request, such as an upload"
GOING_SECONDS = 2  # from the decision to the power-off: who has asked for it hears of it
# One that is created has a process within seconds, or never: the engine has refused it.
_UNFINISHED = """SELECT id FROM job WHERE status IN ('submitted', 'executing') AND pid > 0
OR status = 'created' AND start_time > datetime('now', '-5 minutes')"""

Look = Callable[[], Iterator[str]]


class NotKnownError(Exception):
    """What keeps from knowing whether the master is needed: the broker, the database or AWS does not answer."""


def of_processes(processes: Iterable[tuple[str, int]], people: bool) -> Iterator[str]:
    """For what processes the master is needed, in words.

    Args:
        processes: their names and the ids of their users.
        people: whether somebody who is logged in and computes nothing needs it, too.
    """
    for name, uid in processes:
        if name.startswith(CALCULATION):
            number = name.removeprefix(CALCULATION)
            if number.isdecimal():  # of one that waits for its turn the database knows
                yield f"calculation {number} runs"
        elif name.startswith(SESSION):
            if people:
                yield "somebody has a session or a port forward of Session Manager"
        elif uid in PEOPLE and (people or name == ENGINE):
            yield f"a user's program runs: {name}"


def of_calculations(numbers: Iterable[int]) -> Iterator[str]:
    """The calculations that have not ended, in words."""
    return (f"calculation {number} has not ended" for number in numbers)


def of_cluster(status: Any) -> Iterator[str]:
    """What there is of workers and tasks, in words. `status` is an oq_celery.status.Status."""
    if status.outstanding:
        yield f"{status.outstanding} tasks wait or run"
    if status.consumers:
        yield f"{status.consumers} workers are there"
    if status.alarm is not None:
        yield f"RabbitMQ takes no messages ({status.alarm})"


def of_group(fleet: Any) -> Iterator[str]:
    """The instances that AWS has or starts for the group of workers, in words. `fleet` is an oq_fleet.watch.Fleet.

    They keep the master: without it no alarm would take them away any more. Those that boot, or that AWS has no
    capacity for yet, are not among the workers that RabbitMQ knows.
    """
    if number := max(fleet.wanted, fleet.present):
        yield f"the group of workers has or starts {number} instances, which leave some minutes after the last task"


def idle_seconds(now: float, gate: Gate, seen: Path) -> float:
    """For how long nobody has needed the master; from the first look after a boot on.

    Args:
        now: seconds since 1970.
        gate: knows the time of the last request to the WebUI.
        seen: the file that remembers the last time that somebody needed it.
    """
    if not seen.exists():
        needed(now, seen)
    return max(0.0, now - max(seen.stat().st_mtime, gate.asked()))


def needed(now: float, seen: Path) -> None:
    """Remember that somebody needs the master now."""
    seen.touch()
    os.utime(seen, (now, now))


def main() -> None:
    """Look once: with minutes, power off after so many without anybody; with `now`, if nothing computes.

    With `now`, say in a line on standard error what computes, with the status 1 then. What keeps it from knowing it
    says with minutes, too.
    """
    from oq_fleet import watch

    parser = argparse.ArgumentParser(prog="oq-idle")
    parser.add_argument("when", help="minutes, or now")
    watch.add_options(parser)
    given = parser.parse_args()
    now = given.when == "now"
    minutes = 0 if now else int(given.when)

    def group() -> Iterator[str]:
        return of_group(watch.asked(given)())

    os.environ["OQ_DISTRIBUTE"] = "no"  # this command distributes nothing
    try:
        busy = _stop_unless_busy(group, now, minutes)
    except NotKnownError as error:  # for ever, perhaps: whoever pays for the master has to hear of it
        if not now:
            needed(time.time(), BUSY)
        sys.exit(f"cannot tell whether anything is running: {error}")
    if busy and now:
        sys.exit(busy)


def _stop_unless_busy(group: Look, now: bool, minutes: int) -> str:
    """Power off if nobody needs the master (`now`) or has needed it for `minutes`; otherwise say who does.

    Raises:
        NotKnownError: so it goes on.
    """
    gate = Gate(WEBUI)
    busy = _looked(group, people=not now)
    if not now:
        if busy:
            needed(time.time(), BUSY)
        if idle_seconds(time.time(), gate, BUSY) < 60 * minutes:
            return busy
    if not busy:
        # Who has come since then is inside by now, or waits and is refused.
        with gate.closed() as empty:
            busy = _looked(group, people=not now) if empty else REQUEST
            if not busy and (now or idle_seconds(time.time(), gate, BUSY) >= 60 * minutes):
                _power_off()
                gate.bar()
                print("it stops" if now else f"nobody has needed this master for {minutes} minutes: it stops")
    return busy


def _power_off() -> None:
    """Power off in a moment, by systemd, so that this command ends before."""
    line = f"sleep {GOING_SECONDS}; systemctl poweroff"
    subprocess.run(["systemd-run", "--quiet", "--collect", "sh", "-c", line], check=True)


def _looked(group: Look, people: bool) -> str:
    """Who needs the master, in words; empty for nobody. NotKnownError if one of those that know does not answer."""
    looks: tuple[Look, ...] = (lambda: _processes(people), _calculations, _cluster, group)
    for look in looks:
        try:
            for found in look():
                return found
        except Exception as error:  # those of the broker, the database and AWS have no common base
            raise NotKnownError(str(error)) from error
    return ""


def _processes(people: bool) -> Iterator[str]:
    return of_processes(living(), people)


def living() -> Iterator[tuple[str, int]]:
    """The names of the processes that have not ended, and the ids of their users.

    The WebUI asks with its next request only what has become of a calculation's process, which is a zombie until then.
    """
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            # A process may give itself any bytes for a name.
            text = path.read_bytes().decode(errors="replace")
        except OSError:  # it has gone just now
            continue
        fields = dict(line.split(":", 1) for line in text.rstrip("\n").split("\n"))
        if fields["State"].split()[0] != "Z":
            yield fields["Name"].strip(), int(fields["Uid"].split()[0])


def _calculations() -> Iterator[str]:
    from openquake.commonlib.dbapi import db

    # SQLite may make files beside the database, which have to be its owner's. Whoever is in its group may put a link in
    # its place, so it is not the file that says whose it is.
    account = pwd.getpwnam(ACCOUNT)
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        return of_calculations([job.id for job in db(_UNFINISHED)])
    finally:
        os.seteuid(0)
        os.setegid(0)


def _cluster() -> Iterator[str]:
    from openquake.baselib import config
    from oq_celery import settings, status

    return of_cluster(status.read(settings.load(config)))
