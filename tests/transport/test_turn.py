"""Calculations that wait for their turn: those of the WebUI without the engine in memory, those of commands while there
is room.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.harness import Broker, wait_until
from tests.transport.test_abort import Served, serving

FULL = """
import sys
import psutil
real = psutil.virtual_memory
psutil.virtual_memory = lambda: real()._replace(percent={percent})
from openquake.commands.engine import main
main(run=[sys.argv[1]])
"""


@pytest.fixture
def served(tmp_path: Path, broker: Broker) -> Iterator[Served]:
    with serving(tmp_path, broker) as made:
        yield made


def process(served: Served, number: int) -> int:
    """The process of a calculation that waits for its turn, or computes."""
    found = "SELECT pid FROM job WHERE id=? AND status IN ('submitted', 'executing') AND pid>0"
    wait_until(lambda: served.query(found, number), f"calculation {number} to have a process")
    [(pid,)] = served.query(found, number)
    return int(pid)


def memory(process: int) -> int:
    """What a process has in memory, in kB."""
    [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1])


def test_what_comes_through_the_webui_waits_without_the_engine_and_begins_in_its_turn(
    tmp_path: Path, served: Served
) -> None:
    served.serve_webui()
    for number in (1, 2, 3, 4):
        assert served.upload(tmp_path / "job") == number
    for number in (1, 2):  # so many run at once
        served.waits(number)
    waiting = [process(served, number) for number in (3, 4)]
    assert all(memory(one) < memory(process(served, 1)) / 5 for one in waiting)
    assert served.post(4, "abort") == (200, {"success": "Calculation 4 is aborted"})
    assert served.post(1, "abort") == (200, {"success": "Calculation 1 is aborted"})
    served.waits(3)
    assert served.statuses() == {1: "aborted", 2: "executing", 3: "executing", 4: "aborted"}
    assert process(served, 3) == waiting[0]


@pytest.mark.parametrize("percent", [79.9, 80.0])
def test_a_command_that_would_wait_in_a_full_memory_is_refused(
    tmp_path: Path, served: Served, percent: float
) -> None:
    """Waiting for nobody it is not: then upstream waits for memory, which those that compute give back."""
    script = tmp_path / "run.py"
    script.write_text(FULL.format(percent=percent))
    for number in (1, 2):
        served.query(
            "INSERT INTO job (id, user_name, status, ds_calc_dir, calculation_mode, description, is_running, pid, "
            "host) VALUES (?, 'ann', 'executing', '', 'classical', '', 1, ?, ?)",
            number, os.getpid(), socket.gethostname(),
        )  # fmt: skip
    command = served.start("python", script, tmp_path / "job/job.ini")
    if percent < 80:
        wait_until(lambda: "Waiting for jobs 1" in command.output(), "the command to wait")
        return
    assert command.wait() == 1
    assert "Calculation 3 does not begin: 1 calculations come before it, and 80 %" in command.output()
    assert served.statuses()[3] == "failed"
    assert "does not begin" in served.said(3)
