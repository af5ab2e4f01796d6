"""Workers that cannot do a task, for a reason of their own: others do it, and the job's log says who could not.

What becomes of a task that none can do: see the damaged files of test_payloads.py, the other version of test_mode.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

STALE = """
from oq_celery import spool
def read(stored, **_):
    raise OSError(116, "Stale file handle", stored.path)
spool.read = spool.load = read
"""
FULL = """
from oq_celery import spool
def append(self, *args):
    raise OSError(28, "No space left on device")
spool.Writer.append = append
"""
# What it says has other fields than the master knows.
OTHER = """
from oq_celery import protocol
protocol.__version__ = "99.0"
headers, running = protocol.Reply.headers, protocol.running_body
protocol.Reply.headers = lambda self: headers(self) | {"colour": "red"}
"""
MASTER = """
import sys
from openquake.baselib import parallel
import tasks
if __name__ == "__main__":
    arguments = [(number, sys.argv[1].encode(), bytes(1_000_000)) for number in range(2)]
    results = parallel.Starmap(tasks.back, arguments).reduce()
    print("all", {number: results[number] for number in range(2)}, flush=True)
"""

LOOK_UP = """
import sys
from openquake.baselib import parallel
import tasks
if __name__ == "__main__":
    directory, file = (word.encode() for word in sys.argv[1:])
    results = parallel.Starmap(tasks.looked_up, [(number, directory, file) for number in range(2)]).reduce()
    print("all", {number: results[number] for number in range(2)}, flush=True)
"""


@pytest.fixture
def cluster(tmp_path: Path, broker: Broker) -> Iterator[Cluster]:
    """A cluster whose jobs fail soon."""
    with harness.cluster(tmp_path / "oqlab-unable", broker, **{"celery.max_attempts": "1"}) as made:
        yield made


@pytest.mark.parametrize(
    ("wrong", "why"), [(STALE, "Stale"), (FULL, "No space left"), (OTHER, "oq_celery 99.0")]
)
def test_a_worker_that_cannot_do_a_task_leaves_it_to_others_and_is_named(
    cluster: Cluster, tmp_path: Path, wrong: str, why: str
) -> None:
    """The good worker is busy when the other one meets its first task."""
    hold = tmp_path / "hold-busy"
    hold.touch()
    cluster.worker("good")
    master = cluster.start("python", "-c", MASTER, tmp_path)
    wait_until(lambda: list(tmp_path.glob("busy.*")), "the good worker to be busy")
    bad = cluster.worker("bad", changed=wrong)
    wait_until(lambda: why in master.output(), "the job's log to tell of the bad worker")
    hold.unlink()
    assert master.wait() == 0, master.output()
    assert "all {0: 1000000, 1: 1000000}" in master.output()
    assert bad.running()
    assert master.output().count("cannot do tasks") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a directory is hidden from a process by a mount, as root")
def test_a_worker_that_has_lost_the_shared_directory_leaves_its_tasks_to_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What such a task meets is a file that is not there: of itself nobody's fault but the job's."""
    hold = tmp_path / "hold-busy"
    hold.touch()
    (cluster.shared / "results").write_bytes(b"12345")
    cluster.worker("good")
    master = cluster.start("python", "-c", LOOK_UP, tmp_path, cluster.shared / "results")
    wait_until(lambda: list(tmp_path.glob("busy.*")), "the good worker to be busy")
    bad = cluster.worker("bad", prefix=harness.hiding(cluster.shared))
    wait_until(lambda: "No such file" in master.output(), "the job's log to tell of the bad worker")
    hold.unlink()
    assert master.wait() == 0, master.output()
    assert "all {0: 5, 1: 5}" in master.output()
    assert bad.running()
    assert master.output().count("cannot do tasks") == 1


def test_a_file_that_nobody_sees_fails_the_job(cluster: Cluster, tmp_path: Path) -> None:
    cluster.worker("good")
    master = cluster.start("python", "-c", LOOK_UP, tmp_path, cluster.shared / "nothing")
    assert master.wait() != 0
    assert "FileNotFoundError" in master.output()
    assert "cannot do tasks" not in master.output()
