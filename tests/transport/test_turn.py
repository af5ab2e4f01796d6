"""Calculations that wait for their turn: those of the WebUI without the engine in memory, those of commands while there
is room.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker
from tests.transport.test_abort import Served, serving

NEEDY = """
import sys
import psutil
real, other = psutil.virtual_memory, psutil.Process({pid})
psutil.virtual_memory = lambda: real()._replace(total={times} * other.memory_info().rss)
from openquake.commands import engine, run
if sys.argv[2] == "engine":
    engine.main(run=[sys.argv[1]])
else:
    run.main(sys.argv[1])
"""
# Of a calculation that is submitted: what has become of its process, and what its record says.
SUBMIT = """
    from types import SimpleNamespace
    from openquake.commonlib import logs
    from oq_celery import turn

    number = logs.dbcmd("create_job", logs.get_datadir(), "classical", "a job", "ann", None, None)
    waiting = turn.Waiting(logs.dbcmd, ([SimpleNamespace(calc_id=number)], 1), None)
    {code}
    [process] = turn._started
    print(process.wait(60) != 0, logs.dbcmd("get_job", number).status)
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
    assert Path(f"/proc/{waiting[0]}/comm").read_text().startswith("oq-job-")  # by which the unit ends it
    assert served.post(4, "abort") == (200, {"success": "Calculation 4 is aborted"})
    status, said = served.post(1, "abort")  # which may have to kill it, on a busy machine
    assert status == 200
    assert said["success"].startswith("Calculation 1 is aborted")
    served.waits(3)
    assert served.statuses() == {1: "aborted", 2: "executing", 3: "executing", 4: "aborted"}
    assert process(served, 3) == waiting[0]


def test_what_is_aborted_while_its_files_are_read_stays_aborted(served: Served) -> None:
    code = 'logs.dbcmd("abort_unfinished", number); waiting.start()'
    assert served.python(SUBMIT.format(code=code)) == "True aborted\n"


def test_nothing_is_left_of_what_could_not_be_submitted(served: Served) -> None:
    code = """
    def away(*_):
        raise TimeoutError("no DbServer")
    waiting._dbcmd = away
    try:
        waiting.start()
    except TimeoutError:
        pass
    """
    assert served.python(SUBMIT.format(code=code)) == "True created\n"


@pytest.mark.parametrize("program", ["engine", "run"])
@pytest.mark.parametrize(("times", "refused"), [(3, True), (5, False)])
def test_a_command_is_refused_where_those_that_wait_have_a_quarter_of_the_memory(
    tmp_path: Path, served: Served, times: int, refused: bool, program: str
) -> None:
    script = tmp_path / "run.py"
    script.write_text(NEEDY.format(pid=os.getpid(), times=times))
    for number, status in enumerate(("executing", "submitted"), 1):
        served.query(
            "INSERT INTO job (id, user_name, status, ds_calc_dir, calculation_mode, description, is_running, pid, "
            "host) VALUES (?, 'ann', ?, '', 'classical', '', 1, ?, ?)",
            number, status, os.getpid(), socket.gethostname(),
        )  # fmt: skip
    command = served.start("python", script, tmp_path / "job/job.ini", program)
    if not refused:
        wait_until(lambda: "Waiting for jobs 1" in command.output(), "the command to wait")
        return
    assert command.wait() == 1
    assert "The commands that wait for their turn (1) hold " in command.output()
    others = [status for number, status in served.statuses().items() if number > 2]
    assert others == (["aborted"] if program == "run" else [])  # `oq run` has its number by then
