"""A worker's bootstrap, with its steps made up; that the steps themselves work is shown by the lab's boots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module


@pytest.fixture
def worker(record: Record) -> Iterator[Any]:
    with node_module("worker", node_facts(record(), "worker")) as module:
        yield module


@pytest.fixture
def commands(worker: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the bootstrap runs, in order."""
    done: list[str] = []
    monkeypatch.setattr(worker, "run", lambda *words: done.append(" ".join(words)))
    monkeypatch.setattr(worker, "say", lambda _line: None)
    return done


def test_a_worker_whose_bootstrap_fails_powers_off_and_still_reports_the_failure(
    worker: Any, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoscaling group replaces a machine that is off, and keeps one that runs, of whatever use it is."""

    def fail() -> None:
        raise SystemExit(1)

    monkeypatch.setattr(worker, "make_worker", fail)
    with pytest.raises(SystemExit):
        worker.bootstrap()
    assert commands == [f"systemd-run --on-active={worker.POWER_OFF_SECONDS} systemctl poweroff"]
