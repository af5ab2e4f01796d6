"""What goes wrong in a cluster: a node or a service dies or stops, a link drops what it carries, a disk is full, AWS
answers nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from components import facts
from lab.base import LabError
from lab.cluster.cluster import Lab, events_directory, imds_directory
from lab.linux import network
from lab.linux.host import run
from lab.services import aws_api, imds

SPOT_SECONDS = 120
"""The notice that a spot instance gets."""
SERVICES = {"rabbitmq": facts.RABBITMQ_UNIT, "dbserver": facts.DBSERVER_UNIT}
"""The master's services that can be restarted, and their units."""
ROOM_LEFT = 10 * 2**20
"""Bytes that a full disk has left: less than RabbitMQ's limit, enough for it to live."""


def interrupt(lab: Lab, name: str, seconds: float = SPOT_SECONDS) -> None:
    """Give a node the notice of a spot interruption and switch it off when its time is over; LabError without it.

    The group puts another one in its place when it is scaled next.
    """
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    notice = json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"})
    machine = lab.machine(name)
    imds.announce(imds_directory(lab.paths), lab.nodes[name].address, imds.SPOT_ACTION, notice)
    time.sleep(seconds)
    machine.power_off()


def partition(lab: Lab, name: str, seconds: float) -> None:
    """Let a node's link drop every packet, both ways and without a word, for some time.

    The shared file system is not behind the link here, as it is on AWS: a node that is cut off keeps it.
    """
    lab.machine(name)
    with network.silent(lab.paths, name):
        time.sleep(seconds)


def restart(lab: Lab, service: str) -> None:
    """Restart a service of the master, and return when it answers again; LabError when it does not."""
    master = lab.machine(lab.master().name)
    done = master.execute(["systemctl", "restart", SERVICES[service]], timeout=300)
    if done.returncode:
        raise LabError(f"restarting {service}: {done.stderr.strip()}")


def crash(lab: Lab, service: str, seconds: float) -> None:
    """kill -9 a service of the master and start it some seconds later; returns when it answers again."""
    master = lab.machine(lab.master().name)
    master.execute(["systemctl", "kill", "--kill-who=all", "--signal=KILL", SERVICES[service]])
    time.sleep(seconds)
    restart(lab, service)


def freeze(lab: Lab, name: str, seconds: float) -> None:
    """Stop all processes of a node but its first for some time, as a host does that has no time for it."""
    machine = lab.machine(name)
    init = machine.init()
    inside = run(["ip", "netns", "pids", lab.paths.netns(name)], check=False).split()
    pids = [int(pid) for pid in inside if int(pid) != init]
    _signal(pids, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        _signal(pids, signal.SIGCONT)


def cover_shared(lab: Lab, name: str, seconds: float) -> None:
    """Put an empty directory over a node's shared directory for some time, as after a mount that has failed."""
    machine = lab.machine(name)
    covered = machine.execute(["mount", "-t", "tmpfs", "-o", "ro", "covered", facts.SHARED_DIR])
    if covered.returncode:
        raise LabError(f"covering {facts.SHARED_DIR} on {name}: {covered.stderr.strip()}")
    try:
        time.sleep(seconds)
    finally:
        machine.execute(["umount", "--lazy", facts.SHARED_DIR])


def fill_rabbitmq(lab: Lab, name: str, seconds: float) -> None:
    """Fill RabbitMQ's volume for some time: it takes no messages then.

    The room is reserved and not written, so the lab's own disk does not fill.
    """
    del name
    master = lab.machine(lab.master().name)
    ballast = f"{facts.RABBITMQ_DIR}/ballast"
    room = master.execute(["df", "--output=avail", "--block-size=1", facts.RABBITMQ_DIR]).stdout.split()[-1]
    filled = master.execute(["fallocate", f"--length={int(room) - ROOM_LEFT}", ballast])
    if filled.returncode:
        raise LabError(f"filling {facts.RABBITMQ_DIR}: {filled.stderr.strip()}")
    try:
        time.sleep(seconds)
    finally:
        master.execute(["rm", "--force", ballast])


@contextlib.contextmanager
def throttled(lab: Lab) -> Iterator[None]:
    """While the block lasts, AWS refuses all that nodes ask, as it does those who ask too often."""
    file = events_directory(lab.paths) / aws_api.THROTTLED
    file.touch()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def throttle(lab: Lab, name: str, seconds: float) -> None:
    """Have AWS refuse all that nodes ask for some time."""
    del name
    with throttled(lab):
        time.sleep(seconds)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
