"""The master's program, with systemd and RabbitMQ made up; the lab has the real ones."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from components import facts
from components.bundle import engine_bundle
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

ENGINE = Path(__file__).parent.parent.parent / "engine"
GROUP = ("--region", "eu-central-1", "--tag", "Project=openquake-cluster", "--tag", "Stack=test")


@dataclass
class Master:
    """A master's program, and what it has said."""

    module: Any
    said: list[str] = field(default_factory=list)


@pytest.fixture
def master(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    with node_module("master", node_facts(record(), "master")) as module:
        master = Master(module)
        for name in ("oq_node.master.say", "oq_node.common.say"):
            monkeypatch.setattr(name, master.said.append)
        yield master


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


def test_a_price_that_cannot_be_read_is_not_taken_for_none(
    master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Calculations that begin then would have no cost."""
    file = tmp_path / "environment"
    monkeypatch.setitem(master.module.FACTS, "environment_file", str(file))
    before = f"A=1\n{master.module.FACTS['process_hour_variable']}=0.05\n"

    def answers(code: int) -> None:
        error = urllib.error.HTTPError("http://metadata", code, "", Message(), None)
        monkeypatch.setattr(master.module, "metadata", Mock(side_effect=error))

    file.write_text(before)
    answers(503)
    with pytest.raises(urllib.error.HTTPError):
        master.module.tell_price()
    assert file.read_text() == before
    answers(404)
    master.module.tell_price()
    assert file.read_text() == "A=1\n"


def test_packages_come_from_lists_of_which_none_is_old(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt-get calls it success when it could read no list, or all but those of security."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(master.module, "installed", lambda _name: False)
    monkeypatch.setattr(master.module, "run", lambda *words, **_: ran.append(words))
    monkeypatch.setattr(master.module, "until", lambda _what, _seconds, attempt, **_: attempt())
    master.module.install_packages()
    (update,) = [words for words in ran if "update" in words]
    assert "APT::Update::Error-Mode=any" in update


def test_a_renewal_of_the_certificate_that_has_failed_is_a_problem(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mount_problems", "unit_problems", "broker_alarms"):
        monkeypatch.setattr(master.module, name, lambda *_: [])
    monkeypatch.setattr(master.module, "answers", lambda *_: True)
    monkeypatch.setattr(master.module, "run", lambda *_: "")
    monkeypatch.setattr(master.module, "failed_units", lambda *units: list(units))
    for renewal in ([], [facts.CERTIFICATE_RENEWAL_SERVICE]):
        monkeypatch.setitem(master.module.FACTS, "certificate_renewal", "".join(renewal))
        assert master.module.problems() == [facts.REFRESH_SERVICE, facts.REAP_SERVICE, *renewal]


@pytest.fixture
def said_by_broker(master: Master, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The problems of a master whose services all answer, by what rabbitmq-diagnostics does."""
    for name in ("mount_problems", "unit_problems", "failed_units"):
        monkeypatch.setattr(master.module, name, lambda *_: [])
    monkeypatch.setattr(master.module, "answers", lambda *_: True)
    monkeypatch.setattr(master.module, "run", lambda *_: "")

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
        (True, "the WebUI answers 502", ["the WebUI answers 502"]),
        (False, "", ["/opt/openquake is not mounted"]),  # and with it the program that looks
    ],
)
@pytest.mark.parametrize("certificate", ["self", ""])
def test_a_master_whose_webui_gives_no_page_or_has_a_bad_certificate_is_not_ready(
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    certificate: str,
    mounted: bool,
    printed: str,
    problems: list[str],
) -> None:
    """Its port is nginx's, which answers for a server that is dead."""
    with node_module("master", node_facts(record(webuiCertificate=certificate), "master")) as module:
        engine = [] if mounted else ["/opt/openquake is not mounted"]
        monkeypatch.setattr(
            module, "mount_problems", lambda *paths: engine if facts.ENGINE_DIR in paths else []
        )
        for name in ("unit_problems", "failed_units"):
            monkeypatch.setattr(module, name, lambda *_: [])
        monkeypatch.setattr(module, "answers", lambda *_: True)
        monkeypatch.setattr(module, "broker_alarms", list)
        asked: list[tuple[str, ...]] = []

        def run(*command: str) -> str:
            asked.append(command)
            return printed

        monkeypatch.setattr(module, "run", run)
        assert module.problems() == problems
    check = [f"{facts.ENGINE_DIR}/bin/oq-webui", "check", "10.20.0.10", str(facts.WEBUI_PORT)]
    check += ["--certificate", facts.WEBUI_TLS_DIR] if certificate else []
    assert asked == ([(*check,)] if mounted else [])


def test_a_master_without_a_webui_asks_for_no_page(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_module("master", node_facts(record(webui="false"), "master")) as module:
        for name in ("mount_problems", "unit_problems", "failed_units", "broker_alarms"):
            monkeypatch.setattr(module, name, lambda *_: [])
        monkeypatch.setattr(module, "answers", lambda *_: True)
        monkeypatch.setattr(module, "run", None)
        assert module.problems() == []


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
    others = master.module.OTHER_COMMANDS
    assert {"refresh", "sleep", "rotate", "logs"} <= set(others)
    with pytest.raises(SystemExit) as usage:
        master.module.main("master", lambda: None, list, others)
    first, *lines = str(usage.value).splitlines()
    assert first == f"usage: oq-node {' | '.join(['bootstrap', 'status', *others])}"
    said = dict(line.split(maxsplit=1) for line in lines if line)
    assert said.keys() == {"bootstrap", "status", *others}
    for name, (what, _) in others.items():
        assert said[name] == what


def test_a_secret_that_cannot_be_read_or_made_is_an_error(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the program has said; its output is the secret, and goes nowhere."""

    def program(command: list[str], **_options: Any) -> Any:
        assert command[1:3] == ["/usr/local/lib/oq_node/secret.py", "ensure"]
        return subprocess.CompletedProcess(
            command, 1, '{"amqp_password": "hunter2"}', "AccessDeniedException"
        )

    monkeypatch.setattr(master.module.subprocess, "run", program)
    with pytest.raises(master.module.NodeError, match="AccessDeniedException") as error:
        master.module.cluster_secret()
    assert "hunter2" not in str(error.value)


def bucket(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let boto3 be one whose S3 has this for whoever asks."""
    client = SimpleNamespace(download_file=lambda _bucket, _key, path: Path(path).write_bytes(content))
    boto3 = SimpleNamespace(client=lambda _service, **_region: client)
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    monkeypatch.setenv("AWS_CA_BUNDLE", "")  # which the program sets


def test_a_bundle_is_unpacked_when_all_of_its_bytes_are_those_that_were_uploaded(
    master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = engine_bundle(ENGINE).data
    bucket(monkeypatch, data)
    unpacked = master.module.fetch_bundle(tmp_path)
    assert {"build-image", "requirements.txt", "oq_celery"} <= {path.name for path in unpacked.iterdir()}


@pytest.mark.parametrize("number", [0, 1000, -1])
def test_a_bundle_of_which_one_byte_is_another_is_refused_and_not_unpacked(
    master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    data = bytearray(engine_bundle(ENGINE).data)
    data[number] ^= 1
    bucket(monkeypatch, bytes(data))
    with pytest.raises(master.module.NodeError, match=r"has sha256 \w+ and not"):
        master.module.fetch_bundle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]


def test_a_bundle_that_broke_off_is_refused_too(
    master: Master, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = engine_bundle(ENGINE).data
    bucket(monkeypatch, data[: len(data) // 2])
    with pytest.raises(master.module.NodeError, match="has sha256"):
        master.module.fetch_bundle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["refresh"], ["oq-refresh"]),
        (["sleep"], ["oq-idle", "now", *GROUP]),
        (["rotate"], ["oq-keys", "rotate"]),
        (["logs", "one", "--help"], ["oq-logs", facts.LOGS_DIR, "eu-central-1", "one", "--help"]),
    ],
)
def test_other_commands_become_programs_of_the_engine(
    master: Master, monkeypatch: pytest.MonkeyPatch, words: list[str], program: list[str]
) -> None:
    became: list[list[str]] = []

    def become(path: str, words: list[str], env: dict[str, str]) -> None:
        became.append(words)
        assert path == words[0]
        assert env["AWS_CA_BUNDLE"]  # for what asks AWS; the timer's unit has none

    monkeypatch.setattr(master.module.os, "execve", become)
    monkeypatch.setattr("sys.argv", ["oq-node", *words])
    master.module.main("master", lambda: None, list, master.module.OTHER_COMMANDS)
    assert became == [[f"{facts.ENGINE_DIR}/bin/{program[0]}", *program[1:]]]


def test_a_master_whose_looks_after_itself_fail_is_not_ready(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []

    def run(command: list[str], **_options: Any) -> Any:
        assert command[:3] == ["systemctl", "is-failed", "--quiet"]
        return subprocess.CompletedProcess(command, 0 if command[3] in failed else 1)

    for name in ("mount_problems", "unit_problems", "broker_alarms"):
        monkeypatch.setattr(master.module, name, lambda *_: [])
    monkeypatch.setattr(master.module, "answers", lambda *_: True)
    monkeypatch.setattr(master.module, "run", lambda *_: "")
    monkeypatch.setattr(master.module.subprocess, "run", run)
    assert master.module.problems() == []
    for unit in (facts.REFRESH_SERVICE, facts.REAP_SERVICE):
        failed[:] = [unit]
        assert master.module.problems() == [f"{unit} has failed (sudo journalctl -u {unit})"]
