"""What a master knows of its tasks: copies, attempts that live, and tasks that nobody has any more; no broker.

Times are made up. That workers report and ask as is assumed here is shown by test_faults.py.
"""

from __future__ import annotations

import pytest

from tests.transport import harness  # noqa: F401 - puts the engine's package on the path

from oq_celery.ledger import DEAD_SECONDS, LOST_SECONDS, SILENT_SECONDS, Ledger  # isort: skip
from oq_celery.protocol import Reply, Running, running_body  # isort: skip

ONE, OTHER = "one/1", "other/1"  # processes of two workers
LATER = 1000.0  # long after the connection was made
TASK = 7


def reply(kind: str, worker: str, message: str = "m", task_no: int = TASK) -> Reply:
    return Reply(kind, worker.split("/")[0], worker, message, task_no)  # type: ignore[arg-type]


def alive(worker: str, message: str = "m") -> Reply:
    return Reply("alive", "node", "node/0", "", body=running_body([Running(TASK, worker, message)]))


@pytest.fixture
def ledger() -> Ledger:
    """With one task, sent just now by a master that has heard its workers for long."""
    made = Ledger(4)
    made.connected(0.0)
    made.add(TASK)
    made.sent(TASK, 5, LATER)
    return made


def test_a_copy_of_a_task_that_is_done_is_dropped(ledger: Ledger) -> None:
    ledger.remove(TASK)
    assert ledger.answer(reply("asks", OTHER), LATER + 1) == "drop"
    ledger.remove(TASK)  # as by the result of another attempt


def test_a_copy_of_a_task_whose_result_waits_to_be_read_is_dropped(ledger: Ledger) -> None:
    """The master may be busy with another result for minutes."""
    ledger.heard(reply("started", ONE), LATER)
    ledger.heard(reply("ended", ONE), LATER + 1)
    assert ledger.answer(reply("asks", OTHER), LATER + 100) == "drop"
    assert ledger.audit(LATER + 100) == []


def test_a_task_whose_result_was_not_readable_is_done_again(ledger: Ledger) -> None:
    ledger.heard(reply("started", ONE), LATER)
    ledger.heard(reply("ended", ONE), LATER + 1)
    ledger.sent(TASK, 5, LATER + 2)
    assert ledger.answer(reply("asks", OTHER), LATER + 3) == "do"


def test_a_copy_of_a_task_that_nobody_has_begun_is_done(ledger: Ledger) -> None:
    assert ledger.answer(reply("asks", OTHER), LATER + 1) == "do"


def test_a_copy_of_a_task_that_runs_is_dropped_when_its_worker_is_heard(ledger: Ledger) -> None:
    ledger.heard(reply("started", ONE), LATER + 9)
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 10) == "wait"
    ledger.heard(alive(ONE), LATER + 11)
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 11.5) == "drop"


def test_what_was_heard_before_the_copy_came_says_nothing(ledger: Ledger) -> None:
    """The worker may have died since: that is why there is a copy."""
    ledger.heard(alive(ONE), LATER + 9.9)
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 10) == "wait"
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 11) == "wait"
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 10 + DEAD_SECONDS) == "do"


def test_a_copy_of_a_task_whose_process_died_is_done_at_once(ledger: Ledger) -> None:
    ledger.heard(reply("started", ONE), LATER)
    ledger.heard(reply("lost", ONE), LATER + 9)
    assert ledger.answer(reply("asks", ONE.replace("1", "2")), LATER + 9.1) == "do"


def test_after_the_masters_own_absence_workers_have_time_to_be_heard(ledger: Ledger) -> None:
    ledger.heard(reply("started", ONE), LATER)
    ledger.connected(LATER + 60)
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 61) == "wait"
    ledger.heard(alive(ONE), LATER + 62)
    assert ledger.answer(reply("asks", OTHER, "copy"), LATER + 62.5) == "drop"


def test_of_two_copies_that_ask_one_is_done(ledger: Ledger) -> None:
    assert ledger.answer(reply("asks", ONE, "first"), LATER) == "do"
    assert ledger.answer(reply("asks", OTHER, "second"), LATER + 0.1) == "wait"
    ledger.heard(alive(ONE, "first"), LATER + 1)
    assert ledger.answer(reply("asks", OTHER, "second"), LATER + 1.1) == "drop"


def test_a_task_of_which_a_copy_was_dropped_is_sent_again_when_its_worker_dies(ledger: Ledger) -> None:
    """The broker has no message of it any more."""
    ledger.heard(reply("started", ONE), LATER + 9)
    ledger.answer(reply("asks", OTHER, "copy"), LATER + 10)
    ledger.heard(alive(ONE), LATER + 11)
    ledger.answer(reply("asks", OTHER, "copy"), LATER + 12)
    assert ledger.audit(LATER + 13) == []
    ledger.heard(reply("lost", ONE), LATER + 14)
    assert ledger.audit(LATER + 15) == [TASK]
    ledger.sent(TASK, 5, LATER + 15)
    assert ledger.audit(LATER + 16) == []


def test_and_when_its_worker_falls_silent(ledger: Ledger) -> None:
    ledger.heard(reply("started", ONE), LATER + 9)
    ledger.answer(reply("asks", OTHER, "copy"), LATER + 10)
    ledger.heard(alive(ONE), LATER + 11)
    ledger.answer(reply("asks", OTHER, "copy"), LATER + 12)
    assert ledger.audit(LATER + 10 + SILENT_SECONDS) == []
    assert ledger.audit(LATER + 11 + SILENT_SECONDS) == [TASK]


def test_a_task_that_lies_nowhere_is_sent_again(ledger: Ledger) -> None:
    ledger.looked(0, LATER)
    assert ledger.audit(LATER + LOST_SECONDS - 1) == []
    assert ledger.audit(LATER + LOST_SECONDS) == [TASK]


def test_a_task_that_waits_in_the_queue_is_not(ledger: Ledger) -> None:
    ledger.looked(3, LATER)
    assert ledger.audit(LATER + 10 * LOST_SECONDS) == []
    ledger.looked(0, LATER + 10 * LOST_SECONDS)  # it may be on its way to a worker
    assert ledger.audit(LATER + 10 * LOST_SECONDS + 1) == []


def test_a_task_that_runs_for_hours_is_not(ledger: Ledger) -> None:
    ledger.looked(0, LATER)
    for second in range(0, 3600, 2):
        ledger.heard(alive(ONE), LATER + second)
        assert ledger.audit(LATER + second + 1) == []


def test_a_task_whose_results_were_lost_on_their_way_is_sent_again(ledger: Ledger) -> None:
    """Its worker has done it and reports it no more; nothing else tells of it."""
    ledger.looked(0, LATER)
    ledger.heard(reply("started", ONE), LATER)
    ledger.heard(alive(ONE), LATER + 2)
    lost = LATER + 2 + SILENT_SECONDS + LOST_SECONDS
    seconds = range(int(LATER) + 3, int(lost))
    assert not [second for second in seconds if ledger.audit(second)]
    assert ledger.audit(lost + 1) == [TASK]


@pytest.mark.parametrize(("priority", "lost"), [(5, [TASK]), (6, []), (4, [TASK])])
def test_a_task_that_a_later_one_has_overtaken_is_sent_again_though_the_queue_is_never_empty(
    ledger: Ledger, priority: int, lost: list[int]
) -> None:
    """One of a higher priority overtakes it by right."""
    later = LATER + LOST_SECONDS
    ledger.looked(100, LATER)
    ledger.add(TASK + 1)
    ledger.sent(TASK + 1, priority, later)
    assert ledger.audit(later + 1) == []
    ledger.heard(reply("started", ONE, "m2", TASK + 1), later + 1)
    assert ledger.audit(later + 2) == lost


def test_a_silent_worker_counts_against_the_task(ledger: Ledger) -> None:
    for number in range(11):
        now = LATER + 100 * number
        assert ledger.answer(reply("asks", ONE, str(number)), now) == "do"
        assert ledger.answer(reply("asks", OTHER, f"copy {number}"), now + DEAD_SECONDS) == "do"
    ((task_no, verdict),) = ledger.verdicts(1)
    assert task_no == TASK
    first, *workers = verdict.splitlines()
    assert first == "was lost with a worker 21 times. Their workers disappeared without notice."
    assert workers == [ONE, OTHER] * 10 + [ONE]  # the last copy may live


def test_one_that_is_heard_again_does_not(ledger: Ledger) -> None:
    for number in range(11):
        now = LATER + 100 * number
        ledger.answer(reply("asks", ONE, str(number)), now)
        ledger.heard(alive(ONE, str(number)), now + DEAD_SECONDS - 1)
        ledger.answer(reply("asks", OTHER, f"copy {number}"), now + DEAD_SECONDS)
        ledger.heard(alive(ONE, str(number)), now + DEAD_SECONDS + 1)
        assert ledger.answer(reply("asks", OTHER, f"copy {number}"), now + DEAD_SECONDS + 2) == "drop"
        ledger.heard(reply("unable", ONE, str(number)), now + 20)  # its end, by which the next one begins
    assert list(ledger.verdicts(1)) == []


def test_a_reply_without_a_body_is_read() -> None:
    """Py-amqp gives an empty body as text."""
    sent = reply("started", ONE)
    assert Reply.parse(sent.headers(), "") == sent
