"""A worker that cannot become one; that the steps of its bootstrap work is shown by the lab's boots."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest

from components import facts
from lab.aws.recording import Recording
from tests.unit.conftest import MODES, NAT, NAT_DISKLESS, Record
from tests.unit.node import node_facts, node_files, node_module

LOOK_SECONDS = 600  # for somebody to look at a worker that is of no use


def unit(recording: Recording, role: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(node_files(recording, role)[f"/etc/systemd/system/{facts.BOOTSTRAP_UNIT}"])
    return parser


def test_what_fails_is_tried_again_on_a_master_for_ever(each_mode: Recording) -> None:
    master = unit(each_mode, "master")
    assert master["Service"]["Restart"] == "on-failure"
    assert master["Unit"]["StartLimitIntervalSec"] == "0"
    assert "StartLimitAction" not in master["Unit"]


def test_a_worker_that_does_not_become_one_in_ten_minutes_powers_off(each_mode: Recording) -> None:
    """An Auto Scaling group replaces a machine that is off, and keeps one that runs, of whatever use it is."""
    worker = unit(each_mode, "worker")
    assert worker["Service"]["Restart"] == "on-failure"
    assert worker["Unit"]["StartLimitAction"] == "poweroff"
    assert worker["Unit"]["StartLimitIntervalSec"] == "infinity"
    attempts = int(worker["Unit"]["StartLimitBurst"]), float(worker["Service"]["RestartSec"])
    assert attempts[0] * attempts[1] >= LOOK_SECONDS


def test_a_machine_that_has_become_a_node_is_not_made_one_again(each_mode: Recording) -> None:
    for role in ("master", "worker"):
        assert unit(each_mode, role)["Unit"]["ConditionPathExists"] == f"!{facts.BOOTSTRAP_DONE}"


def test_a_worker_reserves_the_memory_that_the_program_counts_with(record: Record) -> None:
    """That it starts the same number of processes then, is a test of oq_celery's."""
    for mode, storage in ((NAT, "nfs"), (NAT_DISKLESS, "diskless")):
        celery = node_files(record(**MODES[mode]), "worker")[f"/etc/systemd/system/{facts.CELERY_UNIT}"]
        assert f"oq-celery worker --reserved-mb {facts.RESERVED_MB[storage]}\n" in celery


def test_whenever_celery_has_ended_the_secret_is_read_again(record: Record) -> None:
    """After a rotation it begins anew with the new one; a worker that boots has read it just before."""
    celery = node_files(record(), "worker")[f"/etc/systemd/system/{facts.CELERY_UNIT}"]
    assert f"ExecStopPost=-+{facts.NODE_PROGRAM} refresh\n" in celery  # as root, and no failure of Celery's
    assert "Restart=always\n" in celery


def test_openquake_cfg_follows_the_secret_unless_the_worker_goes(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, draining = tmp_path / "openquake.cfg", tmp_path / "draining"
    cfg.write_text("[amqp]\nhost = h\nuser = openquake\npassword = old\n[dbserver]\nauthkey = old\n")
    own = {"openquake_cfg": str(cfg), "draining_flag": str(draining)}
    with node_module("worker", node_facts(record(), "worker") | own) as worker:
        monkeypatch.setattr("oq_node.common.shutil.chown", lambda *_: None)

        def after(secret: dict[str, str]) -> dict[str, Any]:
            monkeypatch.setattr(worker, "secret", lambda: secret)
            worker.refresh()
            config = configparser.ConfigParser(interpolation=None)
            config.read(cfg)
            return dict(config["amqp"])

        first = {"amqp_password": "first", "dbserver_authkey": "k"}
        assert after(first) == {"host": "h", "user": facts.AMQP_USER, "password": "first"}
        second = first | {"amqp_user": "openquake-2", "amqp_password": "second"}
        assert after(second) == {"host": "h", "user": "openquake-2", "password": "second"}
        draining.touch()
        assert after(first)["password"] == "second"
