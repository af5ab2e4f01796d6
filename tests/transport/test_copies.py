"""Copies of tasks, and tasks that are lost while every connection lives: each is done, and done once.

All arguments are too large for a message and no two are equal, so a task that is done cannot be done again.
"""

from __future__ import annotations

import ast
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness, rabbitmq
from tests.transport.harness import Cluster
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker

TASKS = 12
SENT_AGAIN = "no worker and no queue has them"  # says the log of tasks that were lost, and are sent again
# Each task says that it runs and, but for the first ones, that is all.
MASTER = f"""
import sys
from openquake.baselib import parallel
import tasks
if __name__ == "__main__":
    arguments = [(number, sys.argv[1].encode(), bytes([number]) * 1_000_000) for number in range({TASKS})]
    smap = parallel.Starmap(tasks.held, arguments)
    print("done:", sorted(smap.reduce()), flush=True)
"""
# On a busy machine nothing may be heard for six seconds of a worker that lives.
PATIENT = "from oq_celery import ledger; ledger.DEAD_SECONDS = 60.0\n"
# The audit waits for half a minute; the order of its times is kept.
SHORT_DELAYS = """
from oq_celery import ledger
ledger.LOST_SECONDS, ledger.SILENT_SECONDS = 8.0, 7.0
"""


@pytest.fixture
def cluster(tmp_path: Path, broker: Broker) -> Iterator[Cluster]:
    """A cluster whose masters send more tasks at once than they do by default: all of them."""
    with harness.cluster(tmp_path / "oqlab-copies", broker, **{"distribution.num_cores": "6"}) as made:
        yield made


@pytest.fixture
def moments(tmp_path: Path) -> Path:
    """Where the tasks say that they run, and where each is held as long as its file is there."""
    directory = tmp_path / "moments"
    directory.mkdir()
    return directory


def hold(moments: Path, *numbers: int) -> None:
    for number in numbers:
        (moments / f"hold-task {number}").touch()


def release(moments: Path) -> None:
    for path in moments.glob("hold-*"):
        path.unlink()


def begun(moments: Path) -> list[int]:
    """The number of the task for every attempt."""
    return sorted(int(path.name.split()[1].split(".")[0]) for path in moments.glob("task *"))


def assert_each_done_once(master: Process, moments: Path) -> None:
    assert master.wait() == 0, master.output()
    assert ast.literal_eval(master.output().split("done: ", 1)[1].splitlines()[0]) == list(range(TASKS))
    assert begun(moments) == list(range(TASKS))


def test_running_tasks_are_not_computed_again_after_a_broken_connection_and_waiting_ones_go_to_a_free_worker(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    hold(moments, 0, 1)
    for name in ("one", "two"):
        cluster.worker(name)
    master = cluster.start("python", "-c", PATIENT + MASTER, moments)
    wait_until(lambda: begun(moments) == [0, 1], "both workers to be busy")
    broker.close_connections()
    cluster.worker("three")
    wait_until(lambda: begun(moments) == list(range(TASKS)), "the free worker to do all others")
    time.sleep(3)  # it might do a copy now
    release(moments)
    assert_each_done_once(master, moments)


def test_a_busy_worker_of_several_processes_keeps_nothing_from_a_free_one(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """RabbitMQ 4 offers it as many messages as it has processes."""
    hold(moments, 0, 1, 2, 3)
    cluster.worker("large", 4)
    master = cluster.start("python", "-c", PATIENT + MASTER, moments)
    wait_until(lambda: begun(moments) == [0, 1, 2, 3], "the large worker to be busy")
    broker.close_connections()
    wait_until(lambda: broker.has_all(cluster.queue, TASKS), "all tasks to be the broker's again")
    cluster.worker("small")
    wait_until(lambda: begun(moments) == list(range(TASKS)), "the small worker to do all others")
    release(moments)
    assert_each_done_once(master, moments)


def test_copies_of_done_tasks_are_dropped_after_the_loss_of_a_result_queue(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """All tasks are sent again: more copies than processes, each at the head of the queue again when given back."""
    hold(moments, 0, 1)
    workers = [cluster.worker(name) for name in ("one", "two")]
    master = cluster.start("python", "-c", MASTER, moments)
    wait_until(lambda: begun(moments) == [0, 1], "both workers to be busy")
    (queue,) = broker.result_queues()
    broker.delete_queue(queue)
    wait_until(lambda: "The result queue was gone: sending" in master.output(), "the master to notice")
    release(moments)
    assert master.wait() == 0, master.output()
    assert "done: [0, 1, 2" in master.output()
    wait_until(lambda: broker.depth(cluster.queue) == 0, "the queue to be empty")
    assert not any("UnableError" in worker.output() for worker in workers)


def test_tasks_whose_queue_was_deleted_under_working_workers_are_sent_again(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """Celery's worker makes the queue anew at once, so that the master may not see that it was gone."""
    hold(moments, 0)
    cluster.worker("one")
    master = cluster.start("python", "-c", SHORT_DELAYS + MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the worker to be busy")
    broker.delete_queue(cluster.queue)
    release(moments)
    assert master.wait() == 0, master.output()
    assert_each_done_once(master, moments)


def test_tasks_that_were_purged_are_sent_again(cluster: Cluster, moments: Path, broker: Broker) -> None:
    hold(moments, 0)
    cluster.worker("one")
    master = cluster.start("python", "-c", SHORT_DELAYS + MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the worker to be busy")
    broker.control("purge_queue", "-p", rabbitmq.VHOST, cluster.queue)
    wait_until(lambda: SENT_AGAIN in master.output(), "the master to notice")
    release(moments)
    assert_each_done_once(master, moments)


def test_a_task_whose_copy_was_dropped_is_sent_again_when_its_worker_dies(
    cluster: Cluster, moments: Path, broker: Broker
) -> None:
    """After the loss of the connection only the master knows of it."""
    hold(moments, 0)
    worker = cluster.worker("one")
    master = cluster.start("python", "-c", SHORT_DELAYS + MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the worker to be busy")
    broker.close_connections()
    cluster.worker("two")
    wait_until(lambda: begun(moments) == list(range(TASKS)), "the other worker to do all others")
    wait_until(lambda: broker.depth(cluster.queue) == 0, "the copy to be dropped")
    worker.signal(signal.SIGKILL)
    wait_until(lambda: begun(moments).count(0) == 2, "the other worker to do it again")
    release(moments)
    assert master.wait() == 0, master.output()


def test_a_worker_whose_processes_die_leaves_the_task_to_another_one(cluster: Cluster, moments: Path) -> None:
    """The other one is busy, so without a pause the first would get it again and again, until the job fails."""
    hold(moments, 0)
    cluster.worker("busy")
    master = cluster.start("python", "-c", MASTER, moments)
    wait_until(lambda: begun(moments) == [0], "the good worker to be busy")
    deadly = "import os, tasks; tasks.pause = lambda *_: os.kill(os.getpid(), 9)"
    small = cluster.worker("small", changed=deadly)
    wait_until(lambda: small.output().count("no new task for") >= 2, "two deaths on the small worker")
    release(moments)
    assert_each_done_once(master, moments)
    assert "A process of worker openquake@small died of task held #" in master.output()
    assert "GB for 1 processes" in master.output()
