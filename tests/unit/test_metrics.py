"""What the master tells CloudWatch, with a made-up cluster and clock.

That oq_celery's status looks like the one made up here is shown by its own tests and by the lab's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

CLUSTER = f"{facts.PROJECT}-test"


@pytest.fixture
def metrics(record: Record) -> Iterator[Any]:
    with node_module("metrics", node_facts(record(), "master")) as module:
        yield module


def status(
    waiting: int, *busy: int, outstanding: int | None = None, alarm: str | None = None, consumers: int = 0
) -> SimpleNamespace:
    """A cluster with so many waiting tasks, and a worker for each number of busy processes."""
    return SimpleNamespace(
        waiting=waiting,
        consumers=consumers or len(busy),
        alarm=alarm,
        workers=[SimpleNamespace(busy=number) for number in busy],
        outstanding=waiting + sum(busy) if outstanding is None else outstanding,
    )


@pytest.mark.parametrize(
    ("now", "values"),
    [
        (status(0), [0, 0, 0, 0, 0]),
        (status(7), [7, 7, 0, 0, 7]),
        (status(6, 4, 0, 1), [6, 11, 3, 2, 2]),
        (status(0, 8), [0, 8, 1, 1, 0]),
        (status(0, outstanding=3), [0, 3, 0, 0, 0]),  # no worker has answered
    ],
)
def test_the_metrics_count_tasks_and_workers(metrics: Any, now: Any, values: list[float]) -> None:
    names = ["TasksWaiting", "TasksOutstanding", "WorkersAlive", "WorkersBusy", "BacklogPerWorker"]
    data = metrics.metric_data(now, CLUSTER)
    assert {one["MetricName"]: one["Value"] for one in data} == dict(zip(names, values, strict=True))


def test_what_is_unknown_while_the_broker_takes_no_messages_is_left_out(metrics: Any) -> None:
    """No worker could answer: an alarm that saw no outstanding task would take the workers away."""
    data = metrics.metric_data(status(6, alarm="low on disk", consumers=3), CLUSTER)
    found = {one["MetricName"]: one["Value"] for one in data}
    assert found == {"TasksWaiting": 6, "WorkersAlive": 3, "BacklogPerWorker": 2}


def test_the_alarms_find_their_metrics_among_those_with_seconds_of_resolution(
    metrics: Any, record: Record
) -> None:
    published = {one["MetricName"]: one for one in metrics.metric_data(status(1), CLUSTER)}
    alarms = record().of_type("aws:cloudwatch/metricAlarm:MetricAlarm")
    assert len(alarms) == 2
    for alarm in alarms:
        metric = published[alarm.inputs["metricName"]]
        assert metric["Dimensions"] == [
            {"Name": name, "Value": value} for name, value in alarm.inputs["dimensions"].items()
        ]
        assert metric["StorageResolution"] == 1


def test_cloudwatch_can_read_them(metrics: Any) -> None:
    """By botocore's model of the API: names of the fields, types, limits."""
    client = boto3.client("cloudwatch", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    request = {"Namespace": facts.METRICS_NAMESPACE, "MetricData": metrics.metric_data(status(3, 1), CLUSTER)}
    with Stubber(client) as stub:
        stub.add_response("put_metric_data", {}, request)
        client.put_metric_data(**request)


Publish = Callable[..., list[float]]


@pytest.fixture
def publish(metrics: Any, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Runs the publisher on what it finds at each look, a status or an error; gives the seconds at which it
    published.
    """
    clock = SimpleNamespace(now=1000.0)
    published: list[float] = []
    left: list[Any] = []

    def read(_settings: object) -> Any:
        if not left:
            raise KeyboardInterrupt
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(seconds: float) -> None:
        clock.now += seconds

    def put(**request: Any) -> None:
        assert request["Namespace"] == facts.METRICS_NAMESPACE
        assert {one["Value"] for metric in request["MetricData"] for one in metric["Dimensions"]} == {CLUSTER}
        published.append(clock.now - 1000)

    modules: dict[str, dict[str, Any]] = {
        "openquake": {},
        "openquake.baselib": {"config": None},
        "oq_celery": {
            "settings": SimpleNamespace(load=lambda _config: None),
            "status": SimpleNamespace(read=read),
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    client = SimpleNamespace(put_metric_data=put)
    monkeypatch.setattr(boto3, "client", lambda _service, **_options: client)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))

    def run(*looks: Any) -> list[float]:
        left[:] = looks
        with pytest.raises(KeyboardInterrupt):
            metrics.main()
        return published

    return run


def test_a_busy_cluster_is_published_at_each_look_and_an_idle_one_at_once_and_then_once_a_minute(
    publish: Publish,
) -> None:
    busy, idle = status(0, 1), status(0, 0)
    looks = [busy] * 3 + [idle] * 14 + [busy]
    assert publish(*looks) == [0, 10, 20, 30, 90, 150, 170]


@pytest.mark.parametrize("work", [status(5), status(0, outstanding=1)])
def test_work_for_an_idle_cluster_is_published_at_the_next_look(publish: Publish, work: Any) -> None:
    assert publish(status(0), status(0), work) == [0, 20]


def test_a_broker_that_is_away_is_reported_once_and_asked_again(
    publish: Publish, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(metrics, "say", said.append)
    away = ConnectionRefusedError("refused")
    assert publish(away, away, status(1), away) == [20]
    assert said == ["metrics: refused"] * 2


def test_a_broker_that_takes_no_messages_is_reported_and_the_metrics_go_on(
    publish: Publish, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(metrics, "say", said.append)
    full = status(0, alarm="low on disk", consumers=2)
    assert publish(full, full, status(0), status(0), full) == [0, 10, 20, 40]
    assert said == ["metrics: RabbitMQ takes no messages: low on disk"] * 2
