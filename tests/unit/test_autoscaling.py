"""The model of AWS's scaling rules, over the policies that the program registers: no root needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components import facts
from components.workers import WARMUP_SECONDS
from lab.aws.autoscaling import Fleet, Sample, Scaler, breach, no_capacity
from lab.aws.cloud import Alarm, Group
from lab.aws.plan import make_plan
from lab.cluster.program import read_config, record

NOW = 1_800_000_000.0  # the beginning of a minute


@pytest.fixture(scope="module")
def group() -> Group:
    """Up to eight workers of one process each."""
    return make_plan(record(read_config("dev", ["workerMax=8"]))).groups[0]


def published(group: Group, name: str, value: float, age: float) -> Sample:
    return Sample(NOW - age, facts.METRICS_NAMESPACE, name, group.alarms[0].dimensions, value)


def waiting(group: Group, tasks: float) -> list[Sample]:
    return [
        published(group, "TasksWaiting", tasks, age=3),
        published(group, "TasksOutstanding", tasks, age=3),
    ]


def idle(group: Group, minutes: int) -> list[Sample]:
    return [published(group, "TasksOutstanding", 0, age=60 * minute - 30) for minute in range(1, minutes + 1)]


def wanted(group: Group, samples: list[Sample], number: int, warming: int = 0) -> int:
    return Scaler(group).wanted(samples, Fleet(number, warming), NOW)[0]


def alarm_over(group: Group, metric: str) -> Alarm:
    (found,) = [alarm for alarm in group.alarms if alarm.metric == metric]
    return found


def test_a_waiting_task_brings_a_worker_to_an_empty_fleet(group: Group) -> None:
    assert wanted(group, waiting(group, 1), 0) == 1


def test_many_waiting_tasks_bring_all_workers_and_no_more_than_the_maximum(group: Group) -> None:
    assert wanted(group, waiting(group, 1000), 0) == 8
    assert wanted(group, waiting(group, 1000), 5) == 8


def test_workers_that_warm_up_are_not_asked_for_again(group: Group) -> None:
    assert wanted(group, waiting(group, 2), 2, warming=2) == 2
    assert wanted(group, waiting(group, 2), 2, warming=0) == 4


def test_an_empty_queue_of_five_minutes_ends_all_workers(group: Group) -> None:
    assert wanted(group, idle(group, 5), 3) == 0


def test_four_idle_minutes_end_none(group: Group) -> None:
    assert wanted(group, idle(group, 4), 3) == 3


def test_a_task_in_any_of_the_minutes_keeps_the_fleet(group: Group) -> None:
    assert wanted(group, [*idle(group, 5), published(group, "TasksOutstanding", 1, age=100)], 3) == 3


def test_nothing_is_scaled_in_while_a_worker_warms_up(group: Group) -> None:
    assert wanted(group, idle(group, 5), 3, warming=1) == 3


def test_the_fleet_never_falls_below_the_minimum(group: Group) -> None:
    assert wanted(replace(group, minimum=2), idle(group, 5), 3) == 2


def test_without_data_nothing_changes(group: Group) -> None:
    assert wanted(group, [], 3) == 3


def test_another_clusters_metrics_say_nothing_about_this_one(group: Group) -> None:
    other = [replace(sample, dimensions={"Cluster": "another"}) for sample in waiting(group, 5)]
    assert breach(alarm_over(group, "TasksWaiting"), other, NOW) is None
    assert breach(alarm_over(group, "TasksWaiting"), waiting(group, 5), NOW) == 5


def test_an_alarm_that_stays_on_calls_once_a_minute(group: Group) -> None:
    scaler = Scaler(group)
    numbers = []
    for age in range(0, 130, 10):
        now = NOW + age
        samples = [replace(sample, time=now - 3) for sample in waiting(group, 1)]
        numbers.append(scaler.wanted(samples, Fleet(0, 0), now)[0])
    assert numbers == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_without_room_amazon_says_that_it_lacks_spot_capacity_where_the_group_wants_that(
    group: Group,
) -> None:
    assert "Spot" in no_capacity(group)
    on_demand = make_plan(record(read_config("dev", ["workerSpot=false"]))).groups[0]
    assert "sufficient c6i.large capacity" in no_capacity(on_demand)


def test_the_warmup_is_the_recorded_one(group: Group) -> None:
    assert Scaler(group).warmup() == WARMUP_SECONDS
