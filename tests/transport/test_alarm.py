"""A broker that takes no messages, as when its disk or memory is nearly full: said, survived, no obstacle to an end.

The alarm is RabbitMQ's own, by a limit of memory that is always exceeded.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Cluster
from tests.transport.limits import EXCEEDED, alarm
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker
from tests.transport.test_copies import (
    MASTER,
    SENT_AGAIN,
    SHORT_DELAYS,
    assert_each_done_once,
    begun,
    hold,
    release,
)

ALARM_SECONDS = 25.0  # more than `SHORT_DELAYS` lets pass until a task that nobody has is sent again
SAID = "takes no messages (low on memory)"


@pytest.fixture
def cluster(tmp_path: Path, broker: Broker) -> Iterator[Cluster]:
    with harness.cluster(tmp_path / "oqlab-alarm", broker, **{"distribution.num_cores": "6"}) as made:
        yield made


@pytest.fixture
def moments(tmp_path: Path) -> Path:
    directory = tmp_path / "moments"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("kind", EXCEEDED)
def test_an_alarm_of_the_tests_leaves_the_brokers_limits_as_they_were(broker: Broker, kind: str) -> None:
    """All other tests have the same broker."""

    def limits() -> list[str]:
        return [
            broker.control("eval", f"{module}:get_{limit}().").strip()
            for module, limit in (
                ("vm_memory_monitor", "vm_memory_high_watermark"),
                ("rabbit_disk_monitor", "disk_free_limit"),
            )
        ]

    before = limits()
    with alarm(broker, kind):
        assert limits() != before
    assert limits() == before


def test_a_job_that_begins_meanwhile_says_so_waits_and_completes(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    cluster.worker("one")
    with alarm(broker):
        master = cluster.start("python", "-c", MASTER, moments)
        wait_until(lambda: SAID in master.output(), "the job's log to say so")
        assert begun(moments) == []
    assert_each_done_once(master, moments)
    assert "takes messages again" in master.output()


def test_a_job_that_runs_says_so_and_computes_nothing_twice(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """Results wait in the workers, and the master has nothing to send."""
    hold(moments, 0, 1)
    cluster.worker("one", 2)
    master = cluster.start("python", "-c", MASTER, moments)
    wait_until(lambda: begun(moments) == [0, 1], "the worker to be busy")
    with alarm(broker):
        release(moments)
        wait_until(lambda: SAID in master.output(), "the job's log to say so")
    assert_each_done_once(master, moments)


def test_what_runs_is_not_taken_for_lost_however_long_it_lasts(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """The broker takes nothing of what workers say then, but for the messages without a body."""
    quick = "from oq_celery import broker; broker.PROBE_SECONDS = 1.0\n"
    hold(moments, 0, 1)
    cluster.worker("one", 2)
    master = cluster.start("python", "-c", quick + SHORT_DELAYS + MASTER, moments)
    wait_until(lambda: begun(moments) == [0, 1], "the worker to be busy")
    with alarm(broker):
        wait_until(lambda: SAID in master.output(), "the job's log to say so")
        time.sleep(ALARM_SECONDS)
    release(moments)
    assert_each_done_once(master, moments)
    assert SENT_AGAIN not in master.output()


def test_ctrl_c_ends_a_job_meanwhile(cluster: Cluster, moments: Path, broker: Broker) -> None:
    hold(moments, 0)
    cluster.worker("one")
    master = cluster.start("python", "-c", MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the worker to be busy")
    with alarm(broker):
        release(moments)
        wait_until(lambda: SAID in master.output(), "the job's log to say so")
        master.signal(signal.SIGINT)
        assert master.wait() != 0
        assert broker.result_queues() == []
        assert list((cluster.shared / "oq_celery").glob("*")) == []
