"""Workers, masters and the broker die at the worst moments; no task is lost and none counts twice."""

from __future__ import annotations

import ast
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Broker, Cluster, Process, wait_until

TASKS = 4
BEFORE, BETWEEN, AFTER = "before the first result", "between two results", "after the last result"
MASTER = f"""
import sys
from openquake.baselib import parallel
import tasks
directory = sys.argv[1]
if __name__ == "__main__":
    ballast = bytes(1_000_000)  # travels by a file
    smap = parallel.Starmap(tasks.stream, [(number, directory, ballast) for number in range({TASKS})])
    acc = {{}}
    for result in smap:
        for key, value in result.items():
            acc[key] = acc.get(key, 0) + value
        print("result", sorted(result), flush=True)
    print("all", acc, flush=True)
"""
# What the tasks of `stream` give when each counts exactly once.
EXPECTED = {(number, moment): 1 for number in range(TASKS) for moment in (BEFORE, BETWEEN)} | {
    number: number**2 for number in range(TASKS)
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Cluster]:
    """A cluster to break."""
    with harness.cluster(tmp_path_factory.mktemp("faults") / "oqlab-faults", broker) as made:
        yield made


@pytest.fixture
def moments(tmp_path: Path) -> Path:
    """Where tasks say which moment they have come to, and are held there."""
    return tmp_path


def reached(moments: Path, moment: str) -> list[int]:
    """The processes that have come to the moment."""
    return [int(path.suffix[1:]) for path in moments.glob(f"{moment}.*")]


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def result(master: Process) -> object:
    assert master.wait() == 0, master.output()
    return ast.literal_eval(master.output().split("all ", 1)[1])


@pytest.mark.parametrize("moment", [BEFORE, BETWEEN, AFTER])
def test_a_task_whose_worker_is_killed_counts_once(moment: str, faulty: Cluster, moments: Path) -> None:
    hold = moments / f"hold-{moment}"
    hold.touch()
    workers = faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, moment), moment)
    (pid,) = reached(moments, moment)
    workers[parent(pid)].kill()
    hold.unlink()
    assert result(master) == EXPECTED
    assert len(reached(moments, moment)) == 2


def test_a_task_whose_worker_is_killed_between_its_results_and_the_acknowledgement_counts_once(
    faulty: Cluster, moments: Path
) -> None:
    hold, end = moments / f"hold-{AFTER}", moments / "hold-the end of the job"
    hold.touch()
    end.touch()
    workers = faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, AFTER), AFTER)
    (pid,) = reached(moments, AFTER)
    worker = workers[parent(pid)]
    # The main process acknowledges; stopped, it cannot.
    worker.signal(signal.SIGSTOP)
    hold.unlink()
    wait_until(lambda: str([(0, BETWEEN)]) in master.output(), "the results")
    worker.kill()
    (new,) = (process for pid, process in faulty.workers(2).items() if pid not in workers)
    wait_until(lambda: "succeeded in" in new.output(), "the second attempt")
    end.unlink()
    assert result(master) == EXPECTED
    assert len(reached(moments, AFTER)) == 2


def test_of_two_attempts_that_are_both_alive_one_counts(
    faulty: Cluster, moments: Path, broker: Broker
) -> None:
    """The connection of a worker breaks while it computes: the broker gives its task to another one."""
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    workers = faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    (pid,) = reached(moments, BETWEEN)
    worker = workers[parent(pid)]
    # Its main process would be back at once, and might get its own task again.
    worker.signal(signal.SIGSTOP)
    broker.close_connections()
    wait_until(lambda: len(reached(moments, BETWEEN)) == 2, "two attempts")
    worker.signal(signal.SIGCONT)
    hold.unlink()
    assert result(master) == EXPECTED


def test_a_restart_of_the_broker_loses_nothing(faulty: Cluster, moments: Path, broker: Broker) -> None:
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    broker.stop()
    hold.unlink()
    broker.start()
    assert result(master) == EXPECTED


def test_a_task_that_always_kills_its_worker_fails_the_job_and_is_named(
    faulty: Cluster, moments: Path
) -> None:
    faulty.workers(2)
    master = faulty.start(
        "python",
        "-c",
        "import sys; from openquake.baselib import parallel; import tasks\n"
        "parallel.Starmap(tasks.die, [(number, sys.argv[1]) for number in range(2)]).reduce()",
        moments,
    )
    assert master.wait() == 1
    assert len(reached(moments, "died")) in (4, 5)  # one more may start before the job's end is known
    assert "Task die #0 of job 0" in master.output()
    assert "was lost with a worker 4 times" in master.output()
    assert sum(f"/{pid}" in master.output() for pid in reached(moments, "died")) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_master_that_dies_frees_the_workers_leaves_nothing_and_touches_no_other_job(
    number: signal.Signals,
    faulty: Cluster,
    moments: Path,
    tmp_path_factory: pytest.TempPathFactory,
    broker: Broker,
) -> None:
    others = tmp_path_factory.mktemp("others")
    for directory in (moments, others):
        (directory / f"hold-{BETWEEN}").touch()
    workers = faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    other = faulty.start("python", "-c", MASTER, others)
    wait_until(lambda: reached(others, BETWEEN), "the other job's task on the other worker")
    (pid,) = reached(moments, BETWEEN)
    master.signal(number)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the task to be stopped", 30)
    (others / f"hold-{BETWEEN}").unlink()
    assert result(other) == EXPECTED
    assert len(reached(others, BETWEEN)) == 1  # not even stopped and done again
    wait_until(lambda: broker.depth(faulty.queue) == 0, "the queue to be empty", 30)
    assert any("Dropped stream #" in worker.output() for worker in workers.values())
    assert reached(moments, BETWEEN) == [pid]  # nothing was computed after the master's end
    wait_until(lambda: not list((faulty.shared / "oq_celery").glob("*")), "the files to go", 30)


def test_oq_abort_ends_a_job_and_its_waiting_tasks_are_dropped(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-abort", broker) as cluster:
        job = cluster.start("oq", "engine", "--run", harness.qa_job("event_based/case_2", tmp_path))
        wait_until(lambda: "0 alive, 2 tasks queued" in job.output(), "the job to wait for workers")
        said = harness.run([harness.ENGINE / "bin/oq", "abort", "1"], cluster.env)
        assert "Job 1 aborted" in said.stdout
        assert job.wait(60) != 0
        assert not list((cluster.shared / "oq_celery").glob("*"))
        worker = cluster.worker("late")
        wait_until(lambda: broker.depth(cluster.queue) == 0, "the queue to be empty", 30)
        assert worker.output().count("nobody waits for it") == 2
