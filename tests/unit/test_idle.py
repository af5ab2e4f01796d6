"""When nobody needs the master; that it then stops, and comes back as it was, is shown by the lab's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from oq_idle import cli
from oq_webui.activity import FILE, Activity

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_files

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("name", "uid", "why"),
    [
        ("oq-job-17", 600, "calculation 17 runs"),
        ("ssm-session-worker", 0, "a session or a port forward"),
        ("ssm-session-wor", 0, "a session or a port forward"),
        ("bash", 1000, "a user's program runs: bash"),
        ("tmux: server", 59999, "a user's program runs"),
    ],
)
def test_calculations_sessions_and_programs_of_people_need_the_master(name: str, uid: int, why: str) -> None:
    (said,) = cli.of_processes([("systemd", 0), (name, uid)])
    assert why in said


def test_what_a_master_runs_by_itself_does_not_need_it() -> None:
    own = [
        ("systemd", 0),
        ("gunicorn: worke", 600),
        ("beam.smp", 601),
        ("amazon-ssm-agen", 0),
        ("nobody", 65534),
    ]
    assert list(cli.of_processes(own)) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"consumers": 2}, "2 workers are there"),
        ({"outstanding": 5}, "5 tasks wait or run"),
        ({"alarm": "low on disk"}, "low on disk"),
    ],
)
def test_workers_tasks_and_a_broker_that_cannot_tell_need_the_master(
    changed: dict[str, object], why: str
) -> None:
    idle = {"consumers": 0, "outstanding": 0, "alarm": None}
    assert list(cli.of_cluster(SimpleNamespace(**idle))) == []
    (said,) = cli.of_cluster(SimpleNamespace(**idle | changed))
    assert why in said


def test_the_time_counts_from_the_first_look_and_from_the_last_that_found_somebody(tmp_path: Path) -> None:
    files = {"seen": tmp_path / "busy", "asked": tmp_path / "asked"}
    assert cli.idle_seconds("", NOW, **files) == 0
    assert cli.idle_seconds("", NOW + 60, **files) == 60
    assert cli.idle_seconds("somebody", NOW + 120, **files) == 0
    assert cli.idle_seconds("", NOW + 180, **files) == 60


def test_a_request_to_the_webui_counts_too(tmp_path: Path) -> None:
    files = {"seen": tmp_path / "busy", "asked": tmp_path / "asked"}
    cli.idle_seconds("", NOW, **files)
    files["asked"].touch()
    os.utime(files["asked"], (NOW + 50, NOW + 50))
    assert cli.idle_seconds("", NOW + 60, **files) == 10


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Looks with the command, and returns what it has run."""

    def looked(minutes: int, idle: float, **reasons: Callable[[], object]) -> list[list[str]]:
        run: list[list[str]] = []
        for name in ("_processes", "_calculations", "_cluster"):
            monkeypatch.setattr(cli, name, reasons.get(name, lambda: iter(())))
        monkeypatch.setattr("sys.argv", ["oq-idle", str(minutes)])
        monkeypatch.setattr("oq_idle.cli.subprocess.run", lambda command, **_options: run.append(command))
        monkeypatch.setattr(cli, "idle_seconds", lambda busy, _now: 0.0 if busy else idle)
        monkeypatch.setenv("OQ_DISTRIBUTE", "no")
        cli.main()
        return run

    return looked


def test_it_powers_off_after_its_minutes_and_not_before(look: Callable[..., list[list[str]]]) -> None:
    assert look(30, 30 * 60 - 1) == []
    assert look(30, 30 * 60) == [["systemctl", "poweroff"]]
    assert look(30, 30 * 60, _calculations=lambda: cli.of_calculations([4])) == []


def test_a_look_that_fails_leaves_the_master_on(look: Callable[..., list[list[str]]]) -> None:
    def broken() -> object:
        raise ConnectionRefusedError("the broker is away")

    assert look(30, 10**6, _cluster=broken) == []


def test_the_webui_leaves_the_time_of_requests_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    unit = node_files(record(), "master")[f"/etc/systemd/system/{facts.WEBUI_UNIT}"]
    assert f"RuntimeDirectory={cli.ASKED.parent.name}\n" in unit
    assert cli.ASKED.name == FILE
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    activity = Activity(lambda request: f"answer to {request}")
    assert not (tmp_path / FILE).exists()
    assert activity("one") == "answer to one"
    first = (tmp_path / FILE).stat().st_mtime_ns
    assert activity("two") == "answer to two"
    assert (tmp_path / FILE).stat().st_mtime_ns == first  # not for each of many
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert Activity(lambda _request: "answer")("three") == "answer"


def test_what_says_how_long_is_a_tag_of_the_instance_and_no_part_of_its_user_data(record: Record) -> None:
    never, hour = record(), record(stopWhenIdleMinutes="60")
    instance = "aws:ec2/instance:Instance"
    assert never.one(instance).inputs["tags"][facts.STOP_WHEN_IDLE_TAG] == "0"
    assert hour.one(instance).inputs["tags"][facts.STOP_WHEN_IDLE_TAG] == "60"
    assert never.one(instance).inputs["userDataBase64"] == hour.one(instance).inputs["userDataBase64"]
