"""A running master that follows the size of its fleet, with metadata and systemd made up; the lab has the real ones."""

from __future__ import annotations

import configparser
import contextlib
import subprocess
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

GROUP = ("--region", "eu-central-1", "--tag", "Project=openquake-cluster", "--tag", "Stack=test")


@dataclass
class Master:
    """A master whose num_cores has been 16; `tag`, `price` and `idle_tag` are what its instance's tags say."""

    module: Any
    cfg: Path
    environment: Path
    tag: str = "16"
    price: str = ""
    idle_tag: str = "0"
    said: list[str] = field(default_factory=list)

    def metadata(self, path: str) -> str:
        tags = {facts.NUM_CORES_TAG: self.tag, facts.STOP_WHEN_IDLE_TAG: self.idle_tag}
        if self.price:
            tags[facts.PROCESS_HOUR_TAG] = self.price
        try:
            return tags[path.removeprefix("tags/instance/")]
        except KeyError:
            raise urllib.error.HTTPError(path, 404, "Not Found", Message(), None) from None

    def num_cores(self) -> str:
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.cfg)
        assert config["amqp"]["password"] == "a%b"  # whatever else there is stays
        return config["distribution"]["num_cores"]


@pytest.fixture
def master(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    cfg = tmp_path / "openquake.cfg"
    cfg.write_text("[amqp]\npassword = a%b\n[distribution]\nnum_cores = 16\nserialize_jobs = 4\n")
    environment = tmp_path / "default"
    environment.write_text("AWS_DEFAULT_REGION=r\n")
    own = {"openquake_cfg": str(cfg), "environment_file": str(environment)}
    with node_module("master", node_facts(record(), "master") | own) as module:
        master = Master(module, cfg, environment)
        monkeypatch.setattr(module, "metadata", master.metadata)
        for name in ("oq_node.master.say", "oq_node.common.say"):
            monkeypatch.setattr(name, master.said.append)
        monkeypatch.setattr("oq_node.common.shutil.chown", lambda *_arguments: None)
        monkeypatch.setattr("oq_node.growth.grow", lambda: None)
        yield master


def test_num_cores_follows_the_tag(master: Master) -> None:
    master.tag = "400"
    master.module.refresh()
    assert master.num_cores() == "400"
    assert master.cfg.stat().st_mode & 0o777 == 0o640  # the password is in it


def test_only_a_master_that_may_stop_itself_looks_whether_it_is_idle(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str, env: dict[str, str]) -> str:
        commands.append(command)
        assert env["AWS_CA_BUNDLE"]  # for what asks AWS; the timer's unit has none
        return ""

    monkeypatch.setattr(master.module, "run", run)
    master.module.refresh()
    assert commands == []
    master.idle_tag = "30"
    master.module.refresh()
    assert commands == [(f"{facts.ENGINE_DIR}/bin/oq-idle", "30", *GROUP)]
    assert master.said == []  # of what says nothing there is no line


def test_the_price_of_a_process_follows_its_tag_and_goes_with_it(master: Master) -> None:
    environments = []
    for master.price in ("", "0.050925", "0.0209", ""):
        master.module.refresh()
        environments.append(master.environment.read_text())
    region = "AWS_DEFAULT_REGION=r\n"  # whatever else there is stays
    priced = region + "OQ_CELERY_PROCESS_HOUR_USD="
    assert environments == [region, priced + "0.050925\n", priced + "0.0209\n", region]


def test_without_a_change_nothing_is_written(master: Master) -> None:
    def written() -> list[tuple[int, int]]:
        """The files' identities: each writing is a new file in the old one's place."""
        stats = [path.stat() for path in (master.cfg, master.environment)]
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]

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
        master.module.main("master", lambda: None, list, master.module.OTHER_COMMANDS)
    assert facts.NUM_CORES_TAG in "".join(master.said)
    assert master.num_cores() == "16"


@pytest.fixture
def steps(master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """What a bootstrap says whose work is made up."""
    for name in (
        "install_ssm_agent", "volumes_mounted", "ensure_user", "install_packages", "ensure_secret", "fleet_cores",
        "write_configuration", "passwords", "configure_broker", "mount_shared", "share_directories", "build_engine",
        "mount_engine", "start", "tell_price", "write",
    ):  # fmt: skip
        monkeypatch.setattr(master.module, name, lambda *_arguments, **_sizes: {"amqp_password": ""})
    for name in ("adopt", "keep"):
        monkeypatch.setattr(master.module.accounts, name, lambda: None)
    monkeypatch.setattr("oq_node.common.STATE", tmp_path / "state.json")
    monkeypatch.setattr("oq_node.common.time.sleep", lambda _seconds: None)

    def run() -> list[str]:
        with contextlib.suppress(SystemExit):
            master.module.bootstrap()
        return master.said

    return run


def test_the_way_in_comes_before_everything_that_may_fail(
    master: Master, steps: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> bool:
        raise master.module.NodeError("/home is not mounted")

    monkeypatch.setattr(master.module, "volumes_mounted", missing)
    monkeypatch.setattr(master.module, "VOLUMES_DEADLINE_SECONDS", 0)
    said = steps()
    assert said[:2] == ["Session Manager agent …", "Session Manager agent: 0.0 s"]
    assert said[-1].startswith("FAILED at data volumes: ")
    assert "/home is not mounted" in said[-1]


def test_a_master_without_its_agent_serves_and_tries_again_to_get_it(
    master: Master, steps: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise master.module.NodeError("the bucket does not answer")

    monkeypatch.setattr(master.module, "install_ssm_agent", away)
    said = steps()
    assert "services: 0.0 s" in said
    assert said[-1].startswith("FAILED at Session Manager agent")


@pytest.fixture
def said_by_broker(master: Master, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The problems of a master whose services all answer, by what rabbitmq-diagnostics does."""
    for name in ("mount_problems", "unit_problems"):
        monkeypatch.setattr(master.module, name, lambda *_: [])
    monkeypatch.setattr(master.module, "answers", lambda *_: True)

    def problems(*script: str) -> list[str]:
        run = subprocess.run

        def diagnostics(command: list[str], **options: Any) -> Any:
            assert command[0] == "rabbitmq-diagnostics"
            assert "alarms" in command
            return run(["sh", "-c", *script], **options)

        monkeypatch.setattr(master.module.subprocess, "run", diagnostics)
        found: list[str] = master.module.problems()
        monkeypatch.undo()
        return found

    return problems


@pytest.mark.parametrize(
    ("mounted", "printed", "problems"),
    [
        (True, "", []),
        (True, "the WebUI's certificate: expired", ["the WebUI's certificate: expired"]),
        (False, "", ["/opt/openquake is not mounted"]),  # and with it the program that looks
    ],
)
def test_a_master_with_a_bad_certificate_is_not_ready(
    record: Record, monkeypatch: pytest.MonkeyPatch, mounted: bool, printed: str, problems: list[str]
) -> None:
    with node_module("master", node_facts(record(webuiCertificate="self"), "master")) as module:
        engine = [] if mounted else ["/opt/openquake is not mounted"]
        monkeypatch.setattr(
            module, "mount_problems", lambda *paths: engine if facts.ENGINE_DIR in paths else []
        )
        monkeypatch.setattr(module, "unit_problems", lambda *_: [])
        monkeypatch.setattr(module, "answers", lambda *_: True)
        monkeypatch.setattr(module, "broker_alarms", list)
        asked: list[tuple[str, ...]] = []

        def run(*command: str) -> str:
            asked.append(command)
            return printed

        monkeypatch.setattr(module, "run", run)
        assert module.problems() == problems
    check = (f"{facts.ENGINE_DIR}/bin/oq-webui", "check-certificate", "--directory", facts.WEBUI_TLS_DIR)
    assert asked == ([(*check, "10.20.0.10", str(facts.WEBUI_PORT))] if mounted else [])


@pytest.mark.parametrize("certificate", ["self", ""])
def test_the_timer_of_the_certificate_is_enabled_where_there_is_one(record: Record, certificate: str) -> None:
    with node_module("master", node_facts(record(webuiCertificate=certificate), "master")) as module:
        assert (facts.CERTIFICATE_RENEWAL_TIMER in module.background()) == bool(certificate)


# As `rabbitmq-diagnostics --formatter json alarms` of RabbitMQ 4.0.5 prints it.
NO_ALARM = '{"alarms":[],"node":"rabbit@localhost","result":"ok"}'
ALARM = '{"global":[],"local":["Free disk space alarm on node rabbit@localhost"],"message":"…","result":"ok"}'


def test_a_master_whose_broker_takes_no_messages_is_not_ready(
    said_by_broker: Callable[..., list[str]],
) -> None:
    (problem,) = said_by_broker(f"echo '{ALARM}'")
    assert "takes no messages: Free disk space alarm" in problem
    assert "/var/lib/rabbitmq" in problem


@pytest.mark.parametrize(
    ("script", "problems"),
    [
        (f"echo '{NO_ALARM}'", []),
        (
            "echo unable >&2; exit 69",
            ["rabbitmq-server.service does not say whether it takes messages: unable"],
        ),
    ],
)
def test_a_master_whose_broker_has_no_alarm_is_ready_and_one_that_does_not_say_is_not(
    said_by_broker: Callable[..., list[str]], script: str, problems: list[str]
) -> None:
    assert said_by_broker(script) == problems


def test_the_usage_names_every_command(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["oq-node", "--help"])
    with pytest.raises(
        SystemExit, match=r"bootstrap \| status \| refresh(?s:.*)  refresh    write accounts down"
    ):
        master.module.main("master", lambda: None, list, master.module.OTHER_COMMANDS)


def test_sleep_becomes_the_program_that_looks_whether_anything_computes(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []

    def become(_program: str, words: list[str], env: dict[str, str]) -> None:
        became.append(words)
        assert env["AWS_CA_BUNDLE"]

    monkeypatch.setattr(master.module.os, "execve", become)
    monkeypatch.setattr("sys.argv", ["oq-node", "sleep"])
    master.module.main("master", lambda: None, list, master.module.OTHER_COMMANDS)
    assert became == [[f"{facts.ENGINE_DIR}/bin/oq-idle", "now", *GROUP]]


def test_while_a_rotation_is_not_over_the_timer_goes_on_with_it(
    master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        commands.append(command)
        return "the rotation is over"

    monkeypatch.setattr(master.module, "run", run)
    state = tmp_path / "rotation.json"
    monkeypatch.setitem(master.module.FACTS, "rotation", str(state))
    done = tmp_path / "bootstrap-done"
    monkeypatch.setitem(master.module.FACTS, "bootstrap_done", str(done))
    state.write_text("{}")
    master.module.refresh()
    state.unlink()
    done.touch()
    master.module.refresh()
    assert commands == []
    state.write_text("{}")
    master.module.refresh()
    assert commands == [(f"{facts.ENGINE_DIR}/bin/oq-keys", "settle")]
    assert master.said == ["the rotation is over"]


def test_rotate_becomes_the_engines_program(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(master.module.os, "execv", lambda _program, words: became.append(words))
    monkeypatch.setattr("sys.argv", ["oq-node", "rotate"])
    master.module.main("master", lambda: None, list, master.module.OTHER_COMMANDS)
    assert became == [[f"{facts.ENGINE_DIR}/bin/oq-keys", "rotate"]]
