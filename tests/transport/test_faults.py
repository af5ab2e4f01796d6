"""Workers, masters and the broker die at the worst moments; no task is lost and none counts twice."""

from __future__ import annotations

import ast
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Cluster
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker

TASKS = 4
BEFORE, BETWEEN, AFTER = "before the first result", "between two results", "after the last result"
MASTER = f"""
import sys
from openquake.baselib import parallel
import tasks
directory = sys.argv[1].encode()
if __name__ == "__main__":
    # Each travels by a file of its own, which is removed when its task is done.
    arguments = [(number, directory, bytes([number]) * 1_000_000) for number in range({TASKS})]
    smap = parallel.Starmap(tasks.stream, arguments)
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


@contextmanager
def stopped(broker: Broker) -> Iterator[None]:
    """A broker that is away within the block, and back for the other tests whatever happens."""
    broker.stop()
    try:
        yield
    finally:
        broker.start()


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


def test_a_task_whose_worker_is_killed_between_its_results_and_the_acknowledgement_is_not_done_again(
    faulty: Cluster, moments: Path
) -> None:
    """Nor could it be: its arguments have been removed."""
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
    wait_until(lambda: "succeeded in" in new.output(), "the copy to be dropped")
    assert "Dropped a copy of stream #0" in new.output()
    end.unlink()
    assert result(master) == EXPECTED
    assert len(reached(moments, AFTER)) == 1


def test_of_two_attempts_that_are_both_alive_one_counts(
    faulty: Cluster, moments: Path, broker: Broker
) -> None:
    """The connection of a worker breaks while it computes: the broker gives its task to another one.

    And perhaps to a third one, since it is not the only connection that breaks.
    """
    hold, end = moments / f"hold-{BETWEEN}", moments / "hold-the end of the job"
    hold.touch()
    end.touch()
    workers = faulty.workers(4)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    (pid,) = reached(moments, BETWEEN)
    wait_until(lambda: reached(moments, "the end of the job"), "the task that keeps the job from its end")
    (last,) = reached(moments, "the end of the job")
    # Their main processes would be back at once, and might get a task that then waits behind the one they do.
    busy = [workers[parent(pid)], workers[parent(last)]]
    for worker in busy:
        worker.signal(signal.SIGSTOP)
    broker.close_connections()
    wait_until(lambda: len(reached(moments, BETWEEN)) >= 2, "two attempts")
    for worker in busy:
        worker.signal(signal.SIGCONT)
    hold.unlink()
    wait_until(
        lambda: len(reached(moments, AFTER)) == len(reached(moments, BETWEEN)),
        "all attempts to come to their ends",
    )
    time.sleep(2)  # and their results to the master
    end.unlink()
    assert result(master) == EXPECTED


def test_a_restart_of_the_broker_loses_nothing(faulty: Cluster, moments: Path, broker: Broker) -> None:
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    with stopped(broker):
        hold.unlink()
    assert result(master) == EXPECTED


def test_a_task_that_always_kills_its_worker_fails_the_job_and_is_named(
    faulty: Cluster, moments: Path
) -> None:
    faulty.workers(2)
    master = faulty.start(
        "python",
        "-c",
        "import sys; from openquake.baselib import parallel; import tasks\n"
        "parallel.Starmap(tasks.die, [(number, sys.argv[1].encode()) for number in range(2)]).reduce()",
        moments,
    )
    assert master.wait() == 1
    assert len(reached(moments, "died")) >= 4  # more may start before the job's end is known
    assert "Task die #0 of job 0" in master.output()
    assert "was lost with a worker 4 times" in master.output()
    named = [pid for pid in reached(moments, "died") if re.search(rf"/{pid}\b", master.output())]
    assert len(named) == 4


SHORT_DELAYS = "from oq_celery import watch; watch.SWEEP_SECONDS, watch.FILES_SECONDS = 2.0, 4.0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_master_that_dies_frees_its_workers_leaves_nothing_and_touches_no_other_job(
    number: signal.Signals, tmp_path: Path, broker: Broker
) -> None:
    """Both jobs on one worker, which has two processes, and must tell them apart."""
    moments, others = tmp_path / "moments", tmp_path / "others"
    with harness.cluster(tmp_path / "oqlab-two", broker) as cluster:
        for directory in (moments, others):
            directory.mkdir()
            (directory / f"hold-{BETWEEN}").touch()
        worker = cluster.worker("two", 2, changed=SHORT_DELAYS)
        master = cluster.start("python", "-c", MASTER, moments)
        wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
        other = cluster.start("python", "-c", MASTER, others)
        wait_until(lambda: reached(others, BETWEEN), "the other job's task in the other process")
        (pid,) = reached(moments, BETWEEN)
        master.signal(number)
        master.wait()
        # One that is interrupted ends its channel itself; of one that is killed the lease has to run out first.
        if number != signal.SIGKILL:
            assert len(broker.result_queues()) == 1
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the task to be stopped")
        (others / f"hold-{BETWEEN}").unlink()
        assert result(other) == EXPECTED
        assert len(reached(others, BETWEEN)) == 1  # not even stopped and done again
        wait_until(lambda: broker.depth(cluster.queue) == 0, "the queue to be empty")
        assert "Dropped stream #" in worker.output()
        assert reached(moments, BETWEEN) == [pid]  # nothing was computed after the master's end
        wait_until(lambda: not list((cluster.shared / "oq_celery").glob("*")), "the files to go", 120)
        wait_until(lambda: not broker.result_queues(), "the result queues to go")


def test_tasks_of_a_master_that_was_killed_without_workers_are_dropped_by_those_that_come(
    tmp_path: Path, broker: Broker
) -> None:
    with harness.cluster(tmp_path / "oqlab-none", broker) as cluster:
        master = cluster.start("python", "-c", MASTER, tmp_path)
        wait_until(broker.result_queues, "the result queue")
        wait_until(lambda: broker.depth(cluster.queue) == TASKS, "the tasks to be queued")
        master.kill()
        worker = cluster.worker("late", 2)
        wait_until(lambda: broker.depth(cluster.queue) == 0, "the queue to be empty")
        # Each is dropped; a process that the worker stops meanwhile gives its task back, to be dropped once more.
        assert len(set(re.findall(r"Dropped stream #\d+", worker.output()))) == TASKS
        assert not reached(tmp_path, BEFORE)


def test_a_master_that_was_cut_off_for_longer_than_its_lease_sends_its_tasks_again(
    faulty: Cluster, moments: Path, broker: Broker
) -> None:
    """Their arguments are in files, which the workers must have left alone."""
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    faulty.workers(2)
    master = faulty.start("python", "-c", MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    (pid,) = reached(moments, BETWEEN)
    master.signal(signal.SIGSTOP)
    broker.close_connections()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the task to be stopped")
    wait_until(lambda: not broker.result_queues(), "the result queue to be deleted")
    hold.unlink()
    master.signal(signal.SIGCONT)
    assert result(master) == EXPECTED
    assert "The result queue was gone: sending" in master.output()


def test_a_worker_that_lost_its_connection_does_not_do_again_what_it_has_done(
    moments: Path, tmp_path: Path, broker: Broker
) -> None:
    """It cannot acknowledge the task any more, and gets it once more; hours would be computed twice."""
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    with harness.cluster(tmp_path / "oqlab-twice", broker) as cluster:
        worker = cluster.worker("alone")
        master = cluster.start("python", "-c", MASTER, moments)
        wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
        broker.close_connections()
        # All of them, the one that the worker computes too.
        wait_until(lambda: broker.has_all(cluster.queue, TASKS), "the tasks to be the broker's again")
        hold.unlink()
        assert result(master) == EXPECTED
        assert len(reached(moments, BETWEEN)) == 1
        # At least once: the acknowledgement of a copy may be lost with a connection, too.
        assert "was done here already" in worker.output()


BREAKS_AGAIN = """
import amqp
from oq_celery import broker
declare, number = broker.declare_results, 0
def break_once(channel, queue):
    global number
    declare(channel, queue)
    number += 1
    if number == 2:
        raise amqp.RecoverableConnectionError("when the queue was just made anew")
broker.declare_results = break_once
"""


@pytest.mark.parametrize("again", ["", BREAKS_AGAIN])
def test_a_broker_that_has_lost_a_result_queue_gets_the_tasks_again(
    faulty: Cluster, moments: Path, broker: Broker, again: str
) -> None:
    """Also when the connection breaks once more before the master knows."""
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    faulty.workers(2)
    master = faulty.start("python", "-c", again + MASTER, moments)
    wait_until(lambda: reached(moments, BETWEEN), BETWEEN)
    (queue,) = broker.result_queues()
    broker.delete_queue(queue)
    wait_until(lambda: "The result queue was gone: sending" in master.output(), "the master to notice")
    hold.unlink()
    assert result(master) == EXPECTED


def test_tasks_whose_queue_was_deleted_are_sent_again(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-deleted", broker) as cluster:
        master = cluster.start("python", "-c", MASTER, tmp_path)
        wait_until(broker.result_queues, "the result queue")
        wait_until(lambda: broker.depth(cluster.queue) == TASKS, "the tasks to be queued")
        broker.delete_queue(cluster.queue)
        wait_until(lambda: "The task queue was gone: sending 4" in master.output(), "the master to notice")
        cluster.worker("late", 2)
        assert result(master) == EXPECTED


def test_a_worker_whose_queue_was_deleted_while_it_paused_takes_tasks_again(
    tmp_path: Path, broker: Broker
) -> None:
    """Who does not consume gets no word of the deletion; found by the explorer, seed 503898302."""
    pause = "from oq_celery import valve; valve.PAUSE_SECONDS = 12"
    job = "from openquake.baselib import parallel; import tasks; parallel.Starmap(tasks.{0}, [({1},), ({1},)]).reduce()"
    with harness.cluster(tmp_path / "oqlab-paused", broker) as cluster:
        worker = cluster.worker("alone", changed=pause)
        lost = cluster.start("python", "-c", job.format("leave", 1))
        wait_until(lambda: "no new task for 12 s" in worker.output(), "the pause")
        lost.kill()  # or it would make the queue again
        left = broker.result_queues()  # which other tests would find
        # First those without which the worker, whose pause may end meanwhile, computes nothing.
        for queue in (*left, cluster.queue):
            broker.delete_queue(queue)
        time.sleep(13)  # the pause is over
        assert cluster.start("python", "-c", job.format("square", [1])).wait() == 0


def test_a_result_queue_is_deleted_though_the_connection_broke_since_the_last_task(
    faulty: Cluster, moments: Path, broker: Broker
) -> None:
    """Without subtasks: the master has sent all that it sends, so nothing has opened its connection again."""
    hold = moments / "hold-busy"
    hold.touch()
    faulty.workers(2)
    code = (
        "import sys; from openquake.baselib import parallel; import tasks\n"
        "arguments = [(number, sys.argv[1].encode(), b'') for number in range(2)]\n"
        "print(len(parallel.Starmap(tasks.back, arguments).reduce()))"
    )
    master = faulty.start("python", "-c", code, moments)
    wait_until(lambda: reached(moments, "busy"), "the task to be busy")
    broker.close_connections()
    hold.unlink()
    assert master.wait() == 0, master.output()
    assert broker.result_queues() == []


def test_a_task_that_ends_its_process_itself_fails_the_job_and_is_named(
    tmp_path: Path, broker: Broker
) -> None:
    with harness.cluster(tmp_path / "oqlab-leave", broker) as cluster:
        cluster.worker("alone", changed="from oq_celery import valve; valve.PAUSE_SECONDS = 0.1")
        found = cluster.python(
            """
            from openquake.baselib import parallel
            import tasks
            try:
                parallel.Starmap(tasks.leave, [(1,), (2,)]).reduce()
            except RuntimeError as error:
                print(error)
            """
        )
    assert "was lost with a worker 4 times" in found
    assert found.count("no use for") == 4


def test_a_task_may_lose_more_workers_than_it_may_kill(faulty: Cluster, moments: Path) -> None:
    """Spot instances that are taken back, one after the other, are no fault of the task."""
    hold = moments / f"hold-{BETWEEN}"
    hold.touch()
    master = faulty.start("python", "-c", MASTER, moments)
    for number in range(5):
        workers = faulty.workers(1)
        wait_until(lambda number=number: len(reached(moments, BETWEEN)) == number + 1, "the next attempt")
        for worker in workers.values():
            worker.kill()
    hold.unlink()
    faulty.workers(2)
    assert result(master) == EXPECTED


def test_what_a_master_cannot_read_ends_its_job_instead_of_hanging(faulty: Cluster) -> None:
    faulty.workers(1)
    found = faulty.python(
        """
        from oq_celery.protocol import Reply
        Reply.parse = lambda *_: 1 / 0
        from openquake.baselib import parallel
        import tasks
        try:
            parallel.Starmap(tasks.square, [([1],), ([2],)]).reduce()
        except RuntimeError as error:
            print(error)
        """
    )
    assert "has failed: ZeroDivisionError" in found


def test_oq_abort_ends_a_job_and_its_waiting_tasks_are_dropped(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-abort", broker) as cluster:
        job = cluster.start("oq", "engine", "--run", harness.qa_job("event_based/case_2", tmp_path))
        wait_until(lambda: "0 alive, 2 tasks queued" in job.output(), "the job to wait for workers")
        said = cluster.oq("abort", "1")
        assert said.stdout.endswith("Calculation 1 is aborted\n")
        assert job.wait() != 0
        assert not list((cluster.shared / "oq_celery").glob("*"))
        worker = cluster.worker("late")
        wait_until(lambda: broker.depth(cluster.queue) == 0, "the queue to be empty")
        assert len(re.findall("Dropped .*nobody waits for it", worker.output())) == 2


ENDS_LATE = """
import pathlib, sys, time
from openquake.baselib import parallel
from oq_celery.channel import Channel
import tasks
close, moments = Channel.close, pathlib.Path(sys.argv[1])
def close_late(self, **options):
    (moments / "ends").touch()
    while not (moments / "go").exists():
        time.sleep(0.02)
    close(self, **options)
Channel.close = close_late
print(parallel.Starmap(tasks.square, [([1],), ([2],)]).reduce())
"""


INTERRUPTED_AT_THE_END = """
from openquake.baselib import parallel
from oq_celery.results import ResultQueue
import tasks
def interrupt(self, delete):
    raise KeyboardInterrupt
ResultQueue.end = interrupt
parallel.Starmap(tasks.square, [([1],), ([2],)]).reduce()
"""


def test_a_queue_whose_deletion_is_interrupted_is_left_to_the_workers(tmp_path: Path, broker: Broker) -> None:
    """Without a word to them it would stay for an hour."""
    with harness.cluster(tmp_path / "oqlab-interrupted", broker) as cluster:
        cluster.worker("one", changed=SHORT_DELAYS)
        master = cluster.start("python", "-c", INTERRUPTED_AT_THE_END)
        assert master.wait() != 0
        assert "KeyboardInterrupt" in master.output()
        wait_until(lambda: not broker.result_queues(), "the queue to be deleted", 120)
        wait_until(lambda: not list((cluster.shared / "oq_celery").glob("oq.*")), "the directory to go", 120)


def test_the_queue_of_a_job_that_ends_while_the_broker_is_away_is_deleted_when_it_is_back(
    tmp_path: Path, broker: Broker
) -> None:
    """The explorer of faults found it, by seed 5023: the queue stayed for an hour."""
    with harness.cluster(tmp_path / "oqlab-away", broker) as cluster:
        cluster.worker("one", changed=SHORT_DELAYS)
        master = cluster.start("python", "-c", ENDS_LATE, tmp_path)
        wait_until((tmp_path / "ends").exists, "the last result")
        with stopped(broker):
            (tmp_path / "go").touch()
            assert master.wait() == 0, master.output()
        wait_until(lambda: not broker.result_queues(), "the queue to be deleted")
        wait_until(lambda: not list((cluster.shared / "oq_celery").glob("oq.*")), "the directory to go", 120)
