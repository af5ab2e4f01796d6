"""What waits in the master: results for those of an earlier task, tasks for the broker; and the limits of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.transport import harness, processes
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

# Three tasks are with the broker at once, and one result that waits is too much.
MASTER = """
import sys
from openquake.baselib import parallel
from oq_celery import channel
import tasks
if __name__ == "__main__":
    channel.HELD_LIMIT = 1
    parallel.Starmap.CT = 3
    arguments = [(number, sys.argv[1].encode(), b"x") for number in range(8)]
    print("all", parallel.Starmap(tasks.held, arguments).reduce(), flush=True)
"""


def test_no_tasks_are_sent_while_too_many_results_wait_for_an_earlier_one_and_the_log_says_so(
    tmp_path: Path, broker: Broker
) -> None:
    def begun() -> set[str]:
        return {path.stem for path in tmp_path.glob("task *")}

    hold = tmp_path / "hold-task 0"
    hold.touch()
    with harness.cluster(tmp_path / "oqlab-held", broker) as cluster:
        cluster.worker("one")
        cluster.worker("two")
        master = cluster.start("python", "-c", MASTER, tmp_path)
        wait_until(lambda: "of results wait for task" in master.output(), "the limit")
        wait_until(lambda: begun() == {"task 0", "task 1", "task 2"}, "what was sent before")
        time.sleep(3)  # in which another one would begin at once
        assert len(begun()) == 3
        hold.unlink()
        assert master.wait() == 0, master.output()
        assert f"all {dict.fromkeys(range(8), 1)}" in master.output()
        assert master.output().count("of results wait for task") == 1


# Of each task 20 kB, of all of them 50 kB in memory.
MANY = """
import sys
from openquake.baselib import parallel
from oq_celery import channel
import tasks
if __name__ == "__main__":
    channel.BODIES_LIMIT = 50_000
    parallel.Starmap.CT = 8
    arguments = [(number, sys.argv[1].encode(), bytes(20_000)) for number in range(8)]
    arguments += [(number, sys.argv[1].encode(), b"small") for number in range(8, 10)]
    print("all", parallel.Starmap(tasks.held, arguments).reduce(), flush=True)
"""


def test_of_many_tasks_that_are_submitted_at_once_the_larger_ones_wait_in_the_shared_directory(
    tmp_path: Path, broker: Broker
) -> None:
    hold = tmp_path / "hold-task 0"
    hold.touch()
    with harness.cluster(tmp_path / "oqlab-many", broker) as cluster:
        cluster.worker("one")
        master = cluster.start("python", "-c", MANY, tmp_path)
        wait_until(lambda: list(tmp_path.glob("task 0*")), "the first task")
        wait_until(lambda: len(list(cluster.shared.rglob("task-*"))) == 6, "those above the limit")
        hold.unlink()
        assert master.wait() == 0, master.output()
        assert f"all {dict.fromkeys(range(8), 20_000) | {8: 5, 9: 5}}" in master.output()
        assert list(cluster.shared.rglob("task-*")) == []


# Whatever waits for an earlier task waits in a file; each task has several results, and one of its subtask.
SPILL = """
import sys
from pathlib import Path
from openquake.baselib import parallel
from oq_celery import channel
import tasks
if __name__ == "__main__":
    channel.MEMORY_LIMIT = 1
    directory = sys.argv[1].encode()
    arguments = [(number, directory, b"") for number in range(6)]
    print("all", sorted(parallel.Starmap(tasks.stream, arguments).reduce().items(), key=str))
"""
HOLD = "hold-before the first result"  # while it is there, a task waits at that moment
MOMENTS = ["before the first result", "between two results"]


@contextmanager
def spilled(directory: Path, broker: Broker) -> Iterator[tuple[harness.Cluster, processes.Process]]:
    """A job of six tasks whose results, and those of their subtasks, wait in files for the first one; it goes on when
    the block removes `hold` from the directory.
    """
    (directory / HOLD).touch()
    with harness.cluster(directory / "oqlab-spill", broker) as cluster:
        for name in ("one", "two"):
            cluster.worker(name)
        master = cluster.start("python", "-c", SPILL, directory)
        wait_until(lambda: len(list(cluster.shared.rglob("held-*"))) == 10, "the results that wait, in files")
        yield cluster, master


def test_results_above_the_limit_of_memory_wait_in_files_and_are_all_read_back(
    tmp_path: Path, broker: Broker
) -> None:
    """Those of six tasks and of their subtasks, while the first task goes on."""
    with spilled(tmp_path, broker) as (cluster, master):
        (tmp_path / HOLD).unlink()
        assert master.wait() == 0, master.output()
        expected = {(number, moment): 1 for number in range(6) for moment in MOMENTS}
        squares = {number: number**2 for number in range(6)}
        assert f"all {sorted((expected | squares).items(), key=str)}" in master.output()
        assert list((cluster.shared / "oq_celery").iterdir()) == []


def test_a_damaged_file_of_results_that_waited_is_an_error_and_never_a_wrong_number(
    tmp_path: Path, broker: Broker
) -> None:
    with spilled(tmp_path, broker) as (cluster, master):
        for path in cluster.shared.rglob("held-*"):
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
        (tmp_path / HOLD).unlink()
        assert master.wait() != 0
        assert "all [" not in master.output()
        assert "bytes that were written" in master.output()
        assert list((cluster.shared / "oq_celery").iterdir()) == []
