"""A running master that follows its tags, with metadata and programs made up; the lab has the real ones."""

from __future__ import annotations

import configparser
import importlib
import subprocess
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import pytest

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

GROUP = ("--region", "eu-central-1", "--tag", "Project=openquake-cluster", "--tag", "Stack=test")


@dataclass
class Master:
    """A master whose num_cores has been 16; `tag`, `price` and `idle_tag` are what its instance's tags say.

    `programs` are those that it has run, `answer` is what they print; `kept` is how often accounts were written down,
    and `grown` how often the volumes were looked at.
    """

    cfg: Path
    environment: Path
    rotation: Path
    tag: str = "16"
    price: str = ""
    idle_tag: str = "0"
    answer: str = ""
    programs: list[tuple[str, ...]] = field(default_factory=list)
    kept: int = 0
    grown: int = 0

    def metadata(self, path: str) -> str:
        tags = {facts.NUM_CORES_TAG: self.tag, facts.STOP_WHEN_IDLE_TAG: self.idle_tag}
        if self.price:
            tags[facts.PROCESS_HOUR_TAG] = self.price
        try:
            return tags[path.removeprefix("tags/instance/")]
        except KeyError:
            raise urllib.error.HTTPError(path, 404, "Not Found", Message(), None) from None

    def run(self, *command: str, timeout: float) -> str:
        assert timeout > 60
        self.programs.append(command)
        return self.answer

    def keep(self) -> None:
        self.kept += 1

    def grow(self) -> str:
        self.grown += 1
        return ""

    def num_cores(self) -> str:
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.cfg)
        assert config["amqp"]["password"] == "a%b"  # whatever else there is stays
        return config["distribution"]["num_cores"]

    def refresh(self) -> None:
        importlib.import_module("oq_refresh.cli").main()


@pytest.fixture
def master(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    cfg, environment, rotation = (tmp_path / name for name in ("openquake.cfg", "default", "rotation.json"))
    cfg.write_text("[amqp]\npassword = a%b\n[distribution]\nnum_cores = 16\nserialize_jobs = 4\n")
    environment.write_text("AWS_DEFAULT_REGION=r\n")
    own = {"openquake_cfg": str(cfg), "environment_file": str(environment), "rotation": str(rotation)}
    with node_module("master", node_facts(record(), "master") | own) as node:
        parts = importlib.import_module("oq_refresh.parts")
        master = Master(cfg, environment, rotation)
        monkeypatch.setattr(node, "metadata", master.metadata)
        for name, made_up in (("metadata", master.metadata), ("run", master.run)):
            monkeypatch.setattr(parts.common, name, made_up)
        monkeypatch.setattr(parts.common.shutil, "chown", lambda *_arguments: None)
        monkeypatch.setattr(parts.accounts, "keep", master.keep)
        monkeypatch.setitem(parts.PARTS, "the size of the data volumes", master.grow)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setenv("OQ_DISTRIBUTE", "no")
        yield master


def test_num_cores_follows_the_tag(master: Master, capsys: pytest.CaptureFixture[str]) -> None:
    master.tag = "400"
    master.refresh()
    assert master.num_cores() == "400"
    assert master.cfg.stat().st_mode & 0o777 == 0o640  # the password is in it
    assert "num_cores changed from 16 to 400" in capsys.readouterr().out


def test_only_a_master_that_may_stop_itself_looks_whether_it_is_idle(
    master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    master.refresh()
    assert master.programs == []
    master.idle_tag = "30"
    master.refresh()
    assert master.programs == [(f"{facts.ENGINE_DIR}/bin/oq-idle", "30", *GROUP)]
    assert capsys.readouterr().out == ""  # of what says nothing there is no line


def test_the_price_of_a_process_follows_its_tag_and_goes_with_it(master: Master) -> None:
    environments = []
    for master.price in ("", "0.050925", "0.0209", ""):
        master.refresh()
        environments.append(master.environment.read_text())
    region = "AWS_DEFAULT_REGION=r\n"  # whatever else there is stays
    priced = region + "OQ_CELERY_PROCESS_HOUR_USD="
    assert environments == [region, priced + "0.050925\n", priced + "0.0209\n", region]


def test_accounts_and_volumes_are_looked_at_each_time(master: Master) -> None:
    for _ in range(2):
        master.refresh()
    assert (master.kept, master.grown) == (2, 2)


def test_without_a_change_nothing_is_written(master: Master) -> None:
    def written() -> list[tuple[int, int]]:
        """The files' identities: each writing is a new file in the old one's place."""
        stats = [path.stat() for path in (master.cfg, master.environment)]
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]

    before = written()
    master.refresh()
    assert written() == before
    master.tag = "17"
    master.refresh()
    assert written() != before


@pytest.mark.parametrize("tag", ["", "0", "many"])
def test_a_tag_that_is_no_number_changes_nothing_and_says_so(master: Master, tag: str) -> None:
    master.tag = tag
    with pytest.raises(SystemExit, match=facts.NUM_CORES_TAG):
        master.refresh()
    assert master.num_cores() == "16"


def test_what_fails_is_said_and_holds_nothing_else_up(
    master: Master, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def keep() -> None:
        raise KeyError("gid")

    def run(*command: str, timeout: float) -> str:
        raise subprocess.TimeoutExpired(command, timeout)

    parts = importlib.import_module("oq_refresh.parts")
    monkeypatch.setattr(parts.accounts, "keep", keep)
    monkeypatch.setattr(parts.common, "run", run)
    master.tag, master.price, master.idle_tag = "17", "0.05", "30"
    with pytest.raises(SystemExit) as end:
        master.refresh()
    assert str(end.value).splitlines()[0] == "people's accounts: KeyError('gid')"
    assert str(end.value).splitlines()[1].startswith("power-off when idle: Command ")
    assert master.num_cores() == "17"
    assert "0.05" in master.environment.read_text()
    assert master.grown == 1
    assert "num_cores changed" in capsys.readouterr().out


def test_while_a_rotation_is_not_over_the_timer_goes_on_with_it(
    master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    master.refresh()
    assert master.programs == []
    master.rotation.write_text("{}")
    master.answer = "the rotation is over\n"
    master.refresh()
    assert master.programs == [(f"{facts.ENGINE_DIR}/bin/oq-keys", "settle")]
    assert capsys.readouterr().out == "the rotation is over\n"


def test_only_root_refreshes(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="sudo oq-node refresh"):
        master.refresh()
