"""A running master that follows the size of its fleet, with metadata and systemd made up; the lab has the real ones."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module


@dataclass
class Master:
    """A master whose num_cores has been 16; `tag` is what its instance's tag says."""

    module: Any
    cfg: Path
    tag: str = "16"
    said: list[str] = field(default_factory=list)

    def num_cores(self) -> str:
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.cfg)
        assert config["amqp"]["password"] == "a%b"  # whatever else there is stays
        return config["distribution"]["num_cores"]


@pytest.fixture
def master(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    cfg = tmp_path / "openquake.cfg"
    cfg.write_text("[amqp]\npassword = a%b\n[distribution]\nnum_cores = 16\nserialize_jobs = 4\n")
    with node_module("master", node_facts(record(), "master") | {"openquake_cfg": str(cfg)}) as module:
        master = Master(module, cfg)
        path = f"tags/instance/{facts.NUM_CORES_TAG}"
        monkeypatch.setattr(module, "metadata", lambda asked: {path: master.tag}[asked])
        for name in ("oq_node.master.say", "oq_node.common.say"):
            monkeypatch.setattr(name, master.said.append)
        monkeypatch.setattr("oq_node.common.shutil.chown", lambda *_arguments: None)
        yield master


def test_num_cores_follows_the_tag(master: Master) -> None:
    master.tag = "400"
    master.module.refresh()
    assert master.num_cores() == "400"
    assert master.cfg.stat().st_mode & 0o777 == 0o640  # the password is in it


def test_without_a_change_nothing_is_written(master: Master) -> None:
    def written() -> tuple[int, int]:
        """The file's identity: each writing is a new file in the old one's place."""
        stat = master.cfg.stat()
        return stat.st_ino, stat.st_mtime_ns

    before = written()
    master.module.refresh()
    assert written() == before
    master.tag = "17"
    master.module.refresh()
    assert written() != before


@pytest.mark.parametrize("tag", ["", "0", "many"])
def test_a_tag_that_is_no_number_changes_nothing_and_says_so(
    master: Master, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    master.tag = tag
    monkeypatch.setattr("sys.argv", ["oq-node", "refresh"])
    with pytest.raises(SystemExit, match="1"):
        master.module.main("master", lambda: None, list, refresh=master.module.refresh)
    assert facts.NUM_CORES_TAG in "".join(master.said)
    assert master.num_cores() == "16"


def test_the_usage_names_every_command(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["oq-node", "--help"])
    with pytest.raises(SystemExit, match=r"bootstrap \| status \| refresh(?s:.*)  refresh    let num_cores"):
        master.module.main("master", lambda: None, list, refresh=master.module.refresh)
