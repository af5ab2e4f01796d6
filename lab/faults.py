"""What goes wrong in a cluster: a spot instance is taken back, a link drops what it carries, a service restarts."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

from components import facts
from lab import imds, network
from lab.cluster import Lab, imds_directory
from lab.host import LabError

SPOT_SECONDS = 120
"""The notice that a spot instance gets."""
SERVICES = {"rabbitmq": facts.RABBITMQ_UNIT, "dbserver": facts.DBSERVER_UNIT}
"""The master's services that can be restarted, and their units."""


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
