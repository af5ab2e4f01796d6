"""When a task is given up, by what has become of its attempts; no broker."""

from __future__ import annotations

from tests.transport import harness  # noqa: F401 - puts the engine's package on the path

from oq_celery.losses import LENIENT, Losses  # isort: skip

LIMIT = 2
MANY = 10  # workers


def test_so_many_deaths_end_it_and_are_named() -> None:
    task = Losses(LIMIT)
    task.died("a", "host", "host/1", "signal 9")
    task.died("a", "host", "host/1", "signal 9")  # the same message again
    assert task.verdict(1) is None
    task.died("b", "host", "host/2", "signal 9")
    assert task.verdict(1) == (
        "was lost with a worker 2 times. Was it out of memory?\nhost/1 (signal 9)\nhost/2 (signal 9)"
    )


def test_deaths_on_one_worker_do_not_end_it_while_another_one_may_do_it() -> None:
    task = Losses(LIMIT)
    for number in range(5 * LIMIT):
        task.died(str(number), "small", f"small/{number}", "signal 9")
    assert task.verdict(2) is None
    assert task.verdict(1) is not None  # the others have left
    task.died("x", "large", "large/1", "signal 9")
    assert task.verdict(MANY) is not None  # died on LIMIT workers: it is the task's fault


def test_workers_that_are_unable_count_less_than_deaths() -> None:
    """One of them, the only one that is free, may get the task many times."""
    task = Losses(LIMIT)
    for number in range(LENIENT * LIMIT - 1):
        task.unable(str(number), "bad/1", "OSError: stale")
    assert task.verdict(MANY) is None
    task.unable("last", "bad/1", "OSError: stale")
    verdict = task.verdict(MANY)
    assert verdict is not None
    assert verdict.startswith("was turned down by a worker 6 times.")
    assert verdict.count("bad/1 (OSError: stale)") == 6


def test_workers_that_leave_without_a_word_count_less_too() -> None:
    task = Losses(LIMIT)
    for number in range(LENIENT * LIMIT - 1):
        task.silent(f"host/{number}", "message")
        task.silent(f"host/{number}", "message")  # the same attempt
    assert task.verdict(MANY) is None
    task.silent("host/9", "message")
    assert "disappeared without notice" in (task.verdict(MANY) or "")
