"""What the master tells CloudWatch, with a made-up cluster and clock.

That oq_celery's status looks like the one made up here is shown by its own tests and by the lab's.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import boto3
import pytest
from botocore.stub import Stubber

from components import facts
from components.alarms import watches
from tests.unit.conftest import Record
from tests.unit.node import node_files

CLUSTER = f"{facts.PROJECT}-test"
DIMENSIONS = {facts.METRICS_DIMENSION: CLUSTER}
SOURCE = Path(__file__).parent.parent.parent / "engine/oq_celery/metrics.py"


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module by itself, for oq_celery wants the engine; 40 % of the memory and of each disk are full."""
    full = SimpleNamespace(percent=40.0)
    psutil = ModuleType("psutil")
    vars(psutil).update(virtual_memory=lambda: full, disk_usage=lambda _path: full)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    spec = importlib.util.spec_from_file_location("metrics", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.os.path, "ismount", lambda path: path != "/gone")
    monkeypatch.setattr(module.os, "statvfs", lambda _: SimpleNamespace(f_flag=0))
    yield module


def queue_data(metrics: Any, now: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = metrics.metric_data(metrics.queue_values(now), DIMENSIONS)
    return found


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
        tasks=[],
    )


@pytest.mark.parametrize(
    ("now", "values"),
    [
        (status(0), [0, 0, 0, 0, 0, 0, 0]),
        (status(7), [7, 7, 0, 0, 7, 7, 0]),
        (status(6, 4, 0, 1), [6, 11, 3, 2, 2, 0, 0]),
        (status(0, 8), [0, 8, 1, 1, 0, 0, 0]),
        (status(0, outstanding=3), [0, 3, 0, 0, 0, 0, 0]),  # no worker has answered
    ],
)
def test_the_metrics_count_tasks_and_workers(metrics: Any, now: Any, values: list[float]) -> None:
    names = ["TasksWaiting", "TasksOutstanding", "WorkersAlive", "WorkersBusy", "BacklogPerWorker"]
    names += ["TasksWithoutWorker", "BrokerBlocked"]
    data = queue_data(metrics, now)
    assert {one["MetricName"]: one["Value"] for one in data} == dict(zip(names, values, strict=True))


def test_what_is_unknown_while_the_broker_takes_no_messages_is_left_out(metrics: Any) -> None:
    """No worker could answer: an alarm that saw no outstanding task would take the workers away."""
    data = queue_data(metrics, status(6, alarm="low on disk", consumers=3))
    assert {one["MetricName"]: one["Value"] for one in data} == {
        "TasksWaiting": 6,
        "WorkersAlive": 3,
        "BacklogPerWorker": 2,
        "TasksWithoutWorker": 0,
        "BrokerBlocked": 1,
    }


def test_how_full_memory_and_disks_are_is_published_but_not_of_a_disk_that_is_away(metrics: Any) -> None:
    found = list(metrics.machine_values(["/home", "/gone"]))
    assert found == [
        ("MemoryUsedPercent", {}, 40, "Percent"),
        ("DiskUsedPercent", {"Disk": "/home"}, 40, "Percent"),
    ]


def test_a_disk_whose_file_system_has_had_an_error_is_full(
    metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/lab/test_cluster.py lets the kernel find one."""
    monkeypatch.setattr(metrics, "disk_trouble", lambda disk: "it has had 1 errors" if disk == "/var" else "")
    found = [value for _, _, value, _ in metrics.machine_values(["/home", "/var"])]
    assert found == [40, 40, 100]


def test_a_database_that_cannot_be_read_keeps_nothing_else_from_being_published(
    metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its disk is in trouble, which the values then say."""

    def fail(*_: Any) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    failures = SimpleNamespace(count=fail, told=lambda: None)
    monkeypatch.setitem(sys.modules, "oq_celery.status", cast(ModuleType, SimpleNamespace(read=fail)))
    published: list[str] = []

    def put(**given: Any) -> None:
        published.extend(one["MetricName"] for one in given["MetricData"])
        raise KeyboardInterrupt

    arguments = Namespace(
        dimension="Cluster", cluster="test", namespace="OpenQuake", busy=0, idle=0, disk=["/home"]
    )
    with pytest.raises(KeyboardInterrupt):
        metrics.publish(SimpleNamespace(put_metric_data=put), arguments, None, failures)
    assert "DiskUsedPercent" in published
    assert "CalculationsFailed" not in published


def test_what_is_published_is_what_the_alarms_watch_and_the_estimate_counts(metrics: Any) -> None:
    counts: list[Any] = [(name, {}, 0, "Count") for name in ("CalculationsFailed", "TasksDone")]
    values = [*metrics.queue_values(status(1)), *counts]
    data = metrics.metric_data([*values, *metrics.machine_values(facts.VOLUME_MOUNTS)], DIMENSIONS)
    published = {
        (one["MetricName"], *((pair["Name"], pair["Value"]) for pair in one["Dimensions"])) for one in data
    }
    plain = {(name, *DIMENSIONS.items()) for name in facts.METRICS}
    disks = {(facts.DISK_METRIC, *DIMENSIONS.items(), ("Disk", mount)) for mount in facts.VOLUME_MOUNTS}
    assert published == plain | disks
    watched = {(watch.metric, *watch.dimensions.items()) for watch in watches(CLUSTER, may_be_off=False)}
    assert disks <= watched <= published
    assert all(one["StorageResolution"] == 1 for one in data)  # or an alarm of 10 seconds would see nothing


def test_the_masters_unit_says_all_that_the_program_asks_for(record: Record) -> None:
    unit = node_files(record(), "master")[f"/etc/systemd/system/{facts.METRICS_UNIT}"]
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *words = shlex.split(line.partition(" -m ")[2])
    given = list(zip(words[::2], words[1::2], strict=True))
    assert program == "oq_celery.metrics"
    assert [value for name, value in given if name == "--disk"] == list(facts.VOLUME_MOUNTS)
    assert dict(given[:-3]) == {
        "--region": "eu-central-1",
        "--cluster": CLUSTER,
        "--namespace": facts.METRICS_NAMESPACE,
        "--dimension": facts.METRICS_DIMENSION,
        "--busy": "10",
        "--idle": "60",
    }


def test_cloudwatch_can_read_them(metrics: Any) -> None:
    """By botocore's model of the API: names of the fields, types, limits."""
    client = boto3.client("cloudwatch", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    request = {"Namespace": facts.METRICS_NAMESPACE, "MetricData": queue_data(metrics, status(3, 1))}
    with Stubber(client) as stub:
        stub.add_response("put_metric_data", {}, request)
        client.put_metric_data(**request)


@pytest.fixture
def database(tmp_path: Path) -> Callable[[str], None]:
    """Runs a statement on a database with as much of the engine's table as is asked for, in tmp_path/db."""

    def run(statement: str) -> None:
        with sqlite3.connect(tmp_path / "db") as connection:
            connection.execute(statement)
        connection.close()

    run("CREATE TABLE job (id INTEGER, status TEXT)")
    run("INSERT INTO job VALUES (1, 'failed'), (2, 'executing'), (3, 'complete')")
    return run


def test_a_calculation_that_fails_counts_once(
    metrics: Any, database: Callable[[str], None], tmp_path: Path
) -> None:
    failures = metrics.Failures(str(tmp_path / "db"))
    assert failures.count() == 0  # that of before
    database("UPDATE job SET status = 'failed' WHERE id = 2")
    assert (failures.count(), failures.count()) == (1, 1)  # until somebody has been told
    failures.told()
    assert failures.count() == 0
    database("DELETE FROM job WHERE id = 1")
    database("INSERT INTO job VALUES (4, 'failed')")
    assert failures.count() == 1


def test_tasks_that_have_ended_count_once_whatever_jobs_come_and_go(metrics: Any) -> None:
    done = metrics.Done()

    def look(**jobs: int) -> int:
        rows = [
            SimpleNamespace(job=1, user=user, name="classical", done=number) for user, number in jobs.items()
        ]
        done.add(SimpleNamespace(tasks=rows))
        count: int = done.count()
        return count

    assert [look(ann=0), look(ann=3), look(ann=3, bea=2), look(bea=4)] == [0, 3, 5, 7]
    done.told()
    assert [look(bea=4), look(bea=5)] == [0, 1]
    assert look(bea=1) == 1  # the same job, begun anew: no tasks are taken back


def test_a_database_that_is_not_there_yet_has_no_failures_and_is_not_made(
    metrics: Any, tmp_path: Path
) -> None:
    assert metrics.Failures(str(tmp_path / "none")).count() == 0
    assert not (tmp_path / "none").exists()


Publish = Callable[..., list[float]]


@pytest.fixture
def said() -> list[set[str]]:
    """The names of the metrics of each publication."""
    return []


@pytest.fixture
def publish(metrics: Any, said: list[set[str]], monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Runs the publisher on what it finds at each look, a status, an error or "a failure" of a calculation; gives the
    seconds at which it published.
    """
    clock = SimpleNamespace(now=1000.0)
    published: list[float] = []
    left: list[Any] = []
    failed: list[int] = []

    def read(_settings: object) -> Any:
        if not left:
            raise KeyboardInterrupt
        found = left.pop(0)
        if found == "a failure":
            failed.append(1)
            found = status(0)
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(seconds: float) -> None:
        clock.now += seconds

    def put(**request: Any) -> None:
        assert request["Namespace"] == facts.METRICS_NAMESPACE
        for metric in request["MetricData"]:
            assert metric["Dimensions"][0] == {"Name": facts.METRICS_DIMENSION, "Value": CLUSTER}
        said.append({metric["MetricName"] for metric in request["MetricData"]})
        published.append(clock.now - 1000)

    module = ModuleType("oq_celery")
    vars(module).update(status=SimpleNamespace(read=read))
    monkeypatch.setitem(sys.modules, "oq_celery", module)
    client = SimpleNamespace(put_metric_data=put)
    failures = SimpleNamespace(count=lambda: len(failed), told=failed.clear)
    arguments = Namespace(
        namespace=facts.METRICS_NAMESPACE,
        dimension=facts.METRICS_DIMENSION,
        cluster=CLUSTER,
        busy=facts.METRICS_SECONDS,
        idle=facts.METRICS_IDLE_SECONDS,
        disk=["/home"],
    )
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))

    def run(*looks: Any) -> list[float]:
        left[:] = looks
        with pytest.raises(KeyboardInterrupt):
            metrics.publish(client, arguments, None, failures)
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


def test_a_calculation_that_fails_is_published_at_once(publish: Publish) -> None:
    assert publish(status(0), status(0), "a failure", status(0)) == [0, 20]


def test_what_could_not_be_counted_this_time_is_not_told_by_a_publication_without_it(
    metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CloudWatch is away when a calculation fails and tasks end; it is back when broker and database are away."""
    away = [ConnectionError("CloudWatch"), None, None]
    tasks = [SimpleNamespace(job=1, user="ann", name="classical", done=5)]
    working = SimpleNamespace(**vars(status(0, 1)) | {"tasks": tasks})
    reads = [working, ConnectionError("broker"), working]
    counts = [1, sqlite3.OperationalError("database is locked"), 1]
    told: list[str] = []
    published: list[dict[str, float]] = []

    def next_of(given: list[Any]) -> Any:
        if not given:
            raise KeyboardInterrupt
        found = given.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def put(**request: Any) -> None:
        next_of(away)
        published.append({metric["MetricName"]: metric["Value"] for metric in request["MetricData"]})

    module = ModuleType("oq_celery")
    vars(module).update(status=SimpleNamespace(read=lambda _: next_of(reads)))
    monkeypatch.setitem(sys.modules, "oq_celery", module)
    failures = SimpleNamespace(count=lambda: next_of(counts), told=lambda: told.append("failures"))
    arguments = Namespace(dimension="Cluster", cluster="test", namespace="OpenQuake", busy=0, idle=0, disk=[])
    with pytest.raises(KeyboardInterrupt):
        metrics.publish(SimpleNamespace(put_metric_data=put), arguments, None, failures)
    assert [one.get("TasksDone") for one in published] == [None, 5]
    assert [one.get("CalculationsFailed") for one in published] == [None, 1]
    assert told == ["failures"]


def test_a_broker_that_is_away_is_reported_once_and_the_machine_goes_on_being_published(
    publish: Publish, said: list[set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    away = ConnectionRefusedError("refused")
    assert publish(away, away, status(1), away, *[away] * 6) == [0, 20, 30, 90]
    assert capsys.readouterr().out == "metrics: refused\n" * 2
    machine = {"MemoryUsedPercent", "DiskUsedPercent", "CalculationsFailed"}
    assert [names - machine == set() for names in said] == [True, False, True, True]
    assert all(names >= machine for names in said)


def test_a_broker_that_takes_no_messages_is_reported_and_the_metrics_go_on(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    full = status(0, alarm="low on disk", consumers=2)
    assert publish(full, full, status(0), status(0), full) == [0, 10, 20, 40]
    assert capsys.readouterr().out == "metrics: RabbitMQ takes no messages: low on disk\n" * 2
