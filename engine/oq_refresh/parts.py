"""What of the master follows its instance's tags, its volumes and its people, part by part.

A part says in a line what it has changed, and nothing where there was nothing to change. It raises whatever goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from oq_celery import metrics
from oq_node import accounts, common, master

from oq_refresh import growth

FACTS: Final = common.FACTS
LIMIT_SECONDS: Final = 600  # for a program, which has limits of its own for whatever it asks


def _accounts() -> str:
    """Write people's accounts down."""
    accounts.keep()
    return ""


def _cores() -> str:
    """Let the engine's `num_cores` follow the size of the full fleet."""
    new, old = master.fleet_cores(), common.read_configuration()["distribution"]["num_cores"]
    if new == old:
        return ""
    common.write_configuration({"distribution": {"num_cores": new}})
    return f"num_cores changed from {old} to {new}: calculations started from now on use the new fleet size"


def _price() -> str:
    """Let what a calculation costs follow the price of a worker."""
    master.tell_price()
    return ""


def _file_systems() -> str:
    """See whether the data volumes can be written."""
    if found := [trouble for mount in FACTS["volumes"] if (trouble := metrics.disk_trouble(mount))]:
        raise common.NodeError("; ".join(found))
    return ""


def _secrets() -> str:
    """Bring everybody the last rotation of the secrets, until it is over."""
    if not Path(FACTS["rotation"]).exists():
        return ""
    return common.run(f"{FACTS['engine_dir']}/bin/oq-keys", "settle", timeout=LIMIT_SECONDS).rstrip()


def _idle() -> str:
    """Power off when nobody has needed the master for so long."""
    minutes = common.metadata(f"tags/instance/{FACTS['stop_when_idle_tag']}")
    if minutes == "0":
        return ""
    return common.run(*master.idle(minutes), timeout=LIMIT_SECONDS).rstrip()


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "people's accounts": _accounts,
    "the fleet's size": _cores,
    "the price of a worker": _price,
    "the data volumes": _file_systems,
    "the size of the data volumes": growth.grow,
    "the rotation of the secrets": _secrets,
    "power-off when idle": _idle,
}
"""By what it is about, what to do."""
