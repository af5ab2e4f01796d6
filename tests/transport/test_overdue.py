"""Tasks that run much longer than the others: when the log names them, without a broker, and a process that is stopped.

Times are made up, but for those of the last tests.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker
from tests.transport.test_copies import MASTER, TASKS, begun, hold, release
from tests.transport.test_copies import moments as moments  # a fixture
from tests.transport.test_status import answered, text

from oq_celery.clock import words  # isort: skip
from oq_celery.ledger import SILENT_SECONDS, Ledger, Run  # isort: skip
from oq_celery.overdue import (  # isort: skip
    AGAIN_SECONDS,
    NAMED,
    OVERDUE_SECONDS,
    OVERDUE_TIMES,
    STEADY_SECONDS,
    Overdue,
)
from oq_celery.protocol import Reply, Running, TaskHeader, Versions, running_body  # isort: skip

LATER = 1000.0  # long after the connection was made
TASK = 7
ONE, OTHER = "one/1", "other/1"  # processes of two workers
HOUR = 3600.0


def header(task_no: int = TASK, name: str = "classical") -> TaskHeader:
    return TaskHeader("oq.ann.5.x", "m", task_no, name, 5, "ann", 0, Versions("3", "0", "3"))


def run(seconds: float, task_no: int = TASK, state: str = "R", steady: float = HOUR) -> Run:
    return Run(task_no, "ip-10-0-1-5/1234", seconds, state, steady)


@pytest.fixture
def overdue() -> Overdue:
    """Of the tasks of a function one has ended, after a minute."""
    made = Overdue()
    made.ended(header(0), 60.0)
    return made


def test_a_task_that_runs_much_longer_than_the_others_is_named_with_its_worker(overdue: Overdue) -> None:
    (line,) = overdue.look([(header(), run(2 * HOUR))], LATER)
    assert line == (
        "Task classical #7 of job 5 of ann has run for 2 h 0 min on ip-10-0-1-5/1234, those that have ended took "
        "1 min at most. If it hangs, end that worker, or its process by kill -9: another one does the task"
    )


@pytest.mark.parametrize(
    ("longest", "seconds", "named"),
    [
        (1.0, OVERDUE_SECONDS - 1, False),
        (1.0, OVERDUE_SECONDS, True),
        (600.0, OVERDUE_TIMES * 600.0 - 1, False),
        (600.0, OVERDUE_TIMES * 600.0, True),
    ],
)
def test_neither_a_task_of_minutes_nor_one_among_long_ones_is_named(
    longest: float, seconds: float, named: bool
) -> None:
    overdue = Overdue()
    overdue.ended(header(0), 0.5)
    overdue.ended(header(1), longest)
    overdue.ended(header(2), 0.5)
    assert bool(overdue.look([(header(), run(seconds))], LATER)) == named


def test_nothing_is_said_before_a_task_of_the_same_function_has_ended(overdue: Overdue) -> None:
    assert overdue.look([(header(name="event_based"), run(24 * HOUR))], LATER) == []


def test_a_task_is_named_again_after_an_hour_and_another_one_at_once(overdue: Overdue) -> None:
    first, second = (header(), run(HOUR)), (header(8), run(HOUR, 8))
    assert len(overdue.look([first], LATER)) == 1
    assert overdue.look([first], LATER + AGAIN_SECONDS - 1) == []
    (line,) = overdue.look([first, second], LATER + AGAIN_SECONDS - 1)
    assert "#8" in line
    (line,) = overdue.look([first, second], LATER + AGAIN_SECONDS)
    assert "#7" in line


def test_of_many_at_once_the_longest_are_named_and_the_others_counted(overdue: Overdue) -> None:
    many = [(header(number), run(HOUR + number, number)) for number in range(1, NAMED + 4)]
    *named, rest = overdue.look(many, LATER)
    assert [int(re.findall(r"#(\d+)", line)[0]) for line in named] == list(range(NAMED + 3, 3, -1))
    assert rest == "3 more tasks have run that much longer than those that have ended"
    assert overdue.look(many, LATER + AGAIN_SECONDS - 1) == []


@pytest.mark.parametrize(
    ("state", "steady", "reason"),
    [
        ("D", STEADY_SECONDS, " (its process waits for its disk or file server)"),
        ("T", STEADY_SECONDS, " (its process is stopped)"),
        ("D", STEADY_SECONDS - 1, ""),
        ("R", HOUR, ""),
        ("", HOUR, ""),
    ],
)
def test_the_kernels_word_of_its_process_is_given_as_a_reason_when_it_lasts(
    overdue: Overdue, state: str, steady: float, reason: str
) -> None:
    (line,) = overdue.look([(header(), run(HOUR, state=state, steady=steady))], LATER)
    assert f"on ip-10-0-1-5/1234{reason}, those" in line


def reply(kind: str, worker: str, message: str = "m") -> Reply:
    return Reply(kind, worker.split("/")[0], worker, message, TASK)  # type: ignore[arg-type]


def alive(worker: str, state: str, message: str = "m") -> Reply:
    return Reply("alive", "node", "node/0", "", body=running_body([Running(TASK, worker, message, state)]))


@pytest.fixture
def ledger() -> Ledger:
    """With one task, which a worker began just now, of a master that has heard its workers for long."""
    made = Ledger(4)
    made.connected(0.0)
    made.add(TASK)
    made.sent(TASK, 5, LATER)
    made.heard(reply("started", ONE), LATER)
    return made


def test_an_attempt_goes_on_from_its_beginning_and_its_state_since_it_was_first_reported(
    ledger: Ledger,
) -> None:
    for second, state in ((2, "R"), (4, "D"), (6, "D")):
        ledger.heard(alive(ONE, state), LATER + second)
    assert ledger.runs(LATER + 7) == [Run(TASK, ONE, 7.0, "D", 3.0)]
    ledger.heard(alive(ONE, "S"), LATER + 8)
    assert ledger.runs(LATER + 8) == [Run(TASK, ONE, 8.0, "S", 0.0)]


def test_of_two_attempts_the_one_that_began_last_counts(ledger: Ledger) -> None:
    """It may do what the other one does not."""
    ledger.heard(alive(OTHER, "R", "copy"), LATER + 5)
    ledger.heard(alive(ONE, "D"), LATER + 6)
    (found,) = ledger.runs(LATER + 7)
    assert (found.worker, found.seconds) == (OTHER, 2.0)


def test_no_attempt_goes_on_whose_end_is_known_or_may_have_found_no_way_to_the_master(ledger: Ledger) -> None:
    ledger.connected(LATER)
    assert ledger.runs(LATER + SILENT_SECONDS - 1) == []
    assert len(ledger.runs(LATER + SILENT_SECONDS)) == 1
    ledger.heard(alive(OTHER, "R", "copy"), LATER + 30)
    ledger.heard(reply("ended", ONE), LATER + 31)
    assert ledger.runs(LATER + 31) == []


def test_workers_that_do_not_say_the_state_are_heard_and_so_are_those_that_say_more(ledger: Ledger) -> None:
    for body in (f'[[{TASK}, "{ONE}", "m"]]', f'[[{TASK}, "{ONE}", "m", "", "something new"]]'):
        ledger.heard(Reply("alive", "node", "node/0", "", body=body.encode()), LATER + 2)
        assert ledger.runs(LATER + 3) == [Run(TASK, ONE, 3.0, "", 3.0)]


def test_lengths_of_time_are_said_in_the_unit_that_fits() -> None:
    assert [words(seconds) for seconds in (0.2, 59, 60, 3500, 3600, 7260)] == [
        "1 s", "59 s", "1 min", "58 min", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip


def test_the_state_of_a_process_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    code = """
        import os, shutil, signal, subprocess, sys
        from oq_celery.watch import process_state
        sleep = shutil.copy(shutil.which("sleep"), sys.argv[1] + "/a) R (b")
        process = subprocess.Popen([sleep, "60"])
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        found = process_state(process.pid)
        process.kill()
        process.wait()
        print(found, repr(process_state(process.pid)))
        """
    assert processes.python(code, tmp_path) == ["T ''"]


SHORT_LIMITS = """
from oq_celery import overdue
overdue.OVERDUE_SECONDS = overdue.STEADY_SECONDS = 2.0
overdue.OVERDUE_TIMES = overdue.AGAIN_SECONDS = overdue.LOOK_SECONDS = 1.0
"""


@pytest.fixture
def cluster(tmp_path: Path, broker: Broker) -> Iterator[Cluster]:
    with harness.cluster(tmp_path / "oqlab-overdue", broker, **{"distribution.num_cores": "6"}) as made:
        yield made


def test_the_log_names_the_task_of_a_process_that_is_stopped_and_the_job_goes_on_when_that_is_killed(
    cluster: Cluster, moments: Path
) -> None:
    hold(moments, 0)
    cluster.worker(
        "overdue", 2
    )  # all workers of the broker answer, also those of other tests, by their names
    master = cluster.start("python", "-c", SHORT_LIMITS + MASTER, moments)
    wait_until(lambda: 0 in begun(moments), "the task to run")
    (stopped,) = (int(path.suffix[1:]) for path in moments.glob("task 0.*"))
    os.kill(stopped, signal.SIGSTOP)
    where = (
        rf"on {re.escape(socket.gethostname())}/{stopped} \(its process is stopped\), those that have ended"
    )
    line = re.compile(rf"Task held #\d+ of job 0 of \S+ has run for \d+ s {where}")
    wait_until(lambda: line.search(master.output()), "the log to name the task")
    shown = answered(lambda: text(cluster))["text"]
    assert re.search(r"openquake@overdue +2 +1 +held #\d+ of job 0 of \S+ +\d+ (s|min)\b", shown), shown
    os.kill(stopped, signal.SIGKILL)
    release(moments)
    assert master.wait() == 0, master.output()
    assert f"done: {list(range(TASKS))}" in master.output()
