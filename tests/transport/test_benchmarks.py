"""The benchmarks' tasks, which nothing else here runs; how long they take is for `make bench` to say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.modes import OURS, Mode
from tests.transport.rabbitmq import Broker


def test_workers_do_the_tasks_that_are_measured(tmp_path: Path, broker: Broker) -> None:
    """On the master they would fail: its processes are none of those that have to meet first."""
    mode = Mode(OURS, tmp_path, broker)
    try:
        mode.start_workers()
        assert mode.starmap(task="nap", count=8, in_flight=4, seconds=0.0)["seconds"] > 0
    finally:
        mode.end()
