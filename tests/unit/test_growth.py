"""File systems that follow their volumes, with the programs of a node made up; the lab has the real ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

GIB = 1024**3
# As `dumpe2fs -h` of e2fsprogs 1.47 prints it, shortened.
DESCRIBED = """\
dumpe2fs 1.47.2 (1-Jan-2025)
Filesystem volume name:   <none>
Block count:              {blocks}
Reserved block count:     26214
First block:              0
Block size:               4096
Fragment size:            4096
Blocks per group:         32768
"""


@dataclass
class Disks:
    """The GiB of each volume and of the file system on it, by the volume's id; `grown` are those that were enlarged."""

    volumes: dict[str, int]
    file_systems: dict[str, int]
    grown: list[str] = field(default_factory=list)

    def run(self, *command: str, timeout: float) -> str:
        assert timeout >= 60
        device = command[-1]
        prefix, serial = device.rsplit("_vol", 1)
        assert prefix == "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store"
        volume = f"vol-{serial}"
        match command[:-1]:
            case ("dumpe2fs", "-h"):
                return DESCRIBED.format(blocks=self.file_systems[volume] * GIB // 4096)
            case ("blockdev", "--getsize64"):
                return f"{self.volumes[volume] * GIB}\n"
            case ("resize2fs",):
                self.grown.append(volume)
                return ""
        raise AssertionError(f"an unknown command: {command}")


@pytest.fixture
def grow(record: Record, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], list[str]]:
    """Let file systems of 10 GiB grow on volumes of these sizes by mount point; the mount points of those that did."""

    def grown(sizes: dict[str, int]) -> list[str]:
        facts = node_facts(record(), "master")
        ids = facts["volumes"]
        assert ids.keys() == sizes.keys()
        disks = Disks({ids[mount]: size for mount, size in sizes.items()}, dict.fromkeys(ids.values(), 10))
        with node_module("common", facts) as common:
            growth = importlib.import_module("oq_refresh.growth")
            monkeypatch.setattr(common, "run", disks.run)
            said = growth.grow().splitlines()
        mounts = [mount for mount, id_ in ids.items() if id_ in disks.grown]
        assert said == [f"{mount} has grown with its volume" for mount in mounts]
        return mounts

    return grown


def test_a_file_system_grows_when_its_volume_has_grown(grow: Callable[[dict[str, int]], list[str]]) -> None:
    assert grow({"/home": 20, "/var": 10, "/var/lib/rabbitmq": 11}) == ["/home", "/var/lib/rabbitmq"]


def test_a_file_system_as_large_as_its_volume_is_left_alone(
    grow: Callable[[dict[str, int]], list[str]],
) -> None:
    assert grow(dict.fromkeys(("/home", "/var", "/var/lib/rabbitmq"), 10)) == []
