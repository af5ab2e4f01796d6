"""The order in which results are handed on, whatever order they come in: no broker, no engine."""

from __future__ import annotations

import itertools

from oq_celery.order import Order

from tests.transport import harness  # noqa: F401 - finds oq_celery


def test_results_come_in_the_order_of_the_tasks_whatever_order_they_end_in() -> None:
    for ends in itertools.permutations(range(4)):
        order: Order[int] = Order()
        paths = [order.submit([number]) for number in range(4)]
        handed_on = [item for number in ends for item in order.complete(paths[number], number)]
        assert handed_on == [0, 1, 2, 3]


def test_subtasks_come_after_all_tasks_in_the_order_of_their_parents() -> None:
    """Also when a later parent has asked for its own first."""
    order: Order[str] = Order()
    one, two = order.submit(["one"]), order.submit(["two"])
    of_two, of_one = ["of two"], ["of one"]
    order.announce(two, of_two)
    assert order.complete(two, "two") == []
    order.announce(one, of_one)
    assert order.complete(one, "one") == ["one", "two"]
    last, first = order.submit(of_two), order.submit(of_one)
    assert order.complete(last, "of two") == []
    assert order.first == first
    assert order.complete(first, "of one") == ["of one", "of two"]
    assert order.first is None


def test_equal_arguments_are_not_taken_for_those_of_a_subtask() -> None:
    order: Order[str] = Order()
    parent = order.submit(["same"])
    order.announce(parent, ["same"])
    assert order.submit(["same"]) == (1,)
