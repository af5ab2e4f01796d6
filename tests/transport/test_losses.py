"""When a task is given up, by what has become of its attempts; no broker."""

from __future__ import annotations

from itertools import count

from tests.transport import harness  # noqa: F401 - puts the engine's package on the path

from oq_celery.losses import LENIENT, Losses  # isort: skip

LIMIT = 2


def losses() -> Losses:
    return Losses(LIMIT)


def test_so_many_deaths_end_it_and_are_named() -> None:
    task = losses()
    task.died("a", "host/1", "signal 9")
    task.died("a", "host/1", "signal 9")  # the same message again
    assert task.verdict() is None
    task.died("b", "host/2", "signal 9")
    assert task.verdict() == (
        "was lost with a worker 2 times. Was it out of memory?\nhost/1 (signal 9)\nhost/2 (signal 9)"
    )


def test_workers_that_are_unable_count_less_than_deaths() -> None:
    """One of them, the only one that is free, may get the task many times."""
    task = losses()
    for number in range(LENIENT * LIMIT - 1):
        task.unable(str(number), "bad/1", "OSError: stale")
    assert task.verdict() is None
    task.unable("last", "bad/1", "OSError: stale")
    verdict = task.verdict()
    assert verdict is not None
    assert verdict.startswith("met a worker that could not do it 6 times.")
    assert verdict.count("bad/1 (OSError: stale)") == 6


def test_workers_that_leave_without_a_word_count_less_too_and_the_last_one_may_go_on_still() -> None:
    task = losses()
    for number in range(LENIENT * LIMIT):
        task.started(str(number), f"host/{number}")
    assert task.verdict() is None
    task.started("one more", "host/9")
    verdict = task.verdict()
    assert verdict is not None
    assert "left without a word" in verdict
    assert "host/9" not in verdict


def test_an_attempt_that_was_explained_is_not_silent() -> None:
    task, names = losses(), count()
    for _ in range(LENIENT * LIMIT - 1):
        name = str(next(names))
        task.started(name, "bad/1")
        task.unable(name, "bad/1", "OSError: stale")
    for _ in range(2):
        task.started(str(next(names)), "host/1")
    assert task.verdict() is None


def test_what_began_before_the_broker_was_away_says_nothing_of_the_task() -> None:
    task = losses()
    for number in range(LENIENT * LIMIT):
        task.started(str(number), "host/1")
    task.broker_was_away()
    task.started("again", "host/1")
    assert task.verdict() is None
