"""What a worker does in its main process and beside its tasks, piece by piece; no broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.transport.processes import python

CONFIGURATION = """
[celery]
use_celery = true
[amqp]
host = 127.0.0.1
user = user
password = secret
[directory]
shared_dir = {shared}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "openquake.cfg"
    path.write_text(CONFIGURATION.format(shared=tmp_path))
    return path


def test_a_process_that_goes_on_with_another_task_is_not_stopped_for_the_former_one(config: Path) -> None:
    """Between the look at what runs and the signal it may have taken a task of a job that lives.

    What other processes do is no matter, whatever their numbers are.
    """
    code = """
        import subprocess
        from oq_celery import worker
        from oq_celery.watch import Work
        former, present = "0" * 15 + "1" + "0" * 16, "0" * 15 + "2" + "0" * 16
        process = subprocess.Popen(["sleep", "60"])
        for place, (pid, number) in enumerate(((process.pid, present), (process.pid + worker.DONE_TASKS, former))):
            worker._pids[place], worker._doing[place] = pid, worker._number(number)
        for message in (former, present):
            worker._stop(Work("oq.user.1.x", 0, message, process.pid))
            try:
                print(process.wait(1 if message == former else 60))
            except subprocess.TimeoutExpired:
                print("lives")
        """
    assert python(code, config=config) == ["lives", "-9"]


def test_the_task_of_a_process_that_died_goes_back_though_no_thread_can_be_started(config: Path) -> None:
    """Memory that is too short for a thread is what processes die of."""
    code = """
        from types import SimpleNamespace
        from celery.exceptions import WorkerLostError
        from oq_celery import worker

        class Thread:
            def __init__(self, **_):
                raise RuntimeError("can't start new thread")

        worker.threading.Thread = Thread
        worker.valve = SimpleNamespace(note_death=lambda **_: None)
        worker.Request.on_failure = lambda *_, **__: print("given back")
        request = worker.TaskRequest.__new__(worker.TaskRequest)
        request.id = "x"
        try:
            request.on_failure(SimpleNamespace(exception=WorkerLostError("signal 9")))
        except RuntimeError as error:
            print(error)
        """
    assert python(code, config=config) == ["given back", "can't start new thread"]


def test_however_often_a_process_could_not_do_a_task_it_gives_it_back(config: Path) -> None:
    """What else is raised is the end of the task for Celery, which then acknowledges its message."""
    code = """
        from celery.exceptions import Reject
        from oq_celery import protocol, worker
        worker._unable, pauses = 2000, []
        worker.time.sleep = pauses.append
        worker._publisher.publish = lambda *_: True
        worker.run.push_request(id="1" * 32, hostname="openquake@one")
        header = {"channel": "oq.ann.1.x", "task_no": 0, "versions": {"oq_celery": "0"}}
        try:
            worker.run.run(header, None, None)
        except Reject as rejected:
            print(rejected.requeue, pauses, worker.longer(5.0, 2, 300.0))
        """
    assert python(code, config=config) == ["True [60.0] 20.0"]


@pytest.mark.parametrize(
    ("jobs", "kept"),
    [
        ([(1, "a"), (2, "b"), (1, "a"), (2, "b")], True),
        ([(1, "a"), (2, "b"), (1, "c")], False),
        ([(1, "a"), (2, "b"), (3, "c"), (4, "d")], False),
    ],
    ids=["two in turns", "another calculation of the same number", "more than a process remembers"],
)
def test_a_process_keeps_what_it_has_read_while_jobs_take_turns(
    jobs: list[tuple[int, str]], kept: bool, config: Path
) -> None:
    code = f"""
        from openquake.hazardlib.source import multi_fault
        from oq_celery import worker
        for number, (job, master) in enumerate({jobs}):
            worker._memory.turn_to(job, master)
            if number == 1:
                multi_fault.SECTIONS["calc_1.hdf5"] = "sections"
        print(*multi_fault.SECTIONS)
        """
    assert python(code, config=config) == (["calc_1.hdf5"] if kept else [""])


MASTER = """
import sys, h5py
file = h5py.File(sys.argv[1], "w", libver="latest")
file["numbers"] = [1, 2]
file.swmr_mode = True
print("written", flush=True)
input()
file.close()
h5py.File(sys.argv[1], "a", libver="latest").close()
"""


def test_a_worker_that_still_reads_a_calculations_file_is_in_nobodys_way(
    tmp_path: Path, config: Path
) -> None:
    """As upstream's DataStore.swmr_on opens it anew before the next tasks; a second attempt may still read then."""
    code = f"""
        import subprocess, sys
        process = subprocess.Popen(
            [sys.executable, "-c", {MASTER!r}, sys.argv[1]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        process.stdout.readline()
        from oq_celery import cli, inputs  # in the order of `oq-celery worker`: h5py looks when it is imported
        cli._settings()
        from oq_celery import worker
        from openquake.baselib import hdf5
        with hdf5.File(sys.argv[1], "r") as file:
            numbers = file["numbers"][:].tolist()
            process.communicate("go on")
        print(numbers, process.returncode)
        """
    assert python(code, tmp_path / "calc_1.hdf5", config=config, fresh=True)[-1] == "[1, 2] 0"


def test_a_process_takes_no_table_or_coefficient_of_another_calculation_for_its_own(config: Path) -> None:
    """Two tables of one file name in two directories; rows between which others were interpolated."""
    code = """
        import numpy
        from openquake.hazardlib.gsim.boore_atkinson_2008 import BooreAtkinson2008
        from openquake.hazardlib.gsim.gmpe_table import interp_table
        from openquake.hazardlib.imt import PGA, SA
        from oq_celery import worker

        class Table:
            m_w = numpy.array([5.0, 6.0])
            def __init__(self, value):
                self.imtls = {"PGA": numpy.full((1, 1, 2), value)}
            def __hash__(self):  # as that of GMPETable: the name of the file
                return 1
            def __eq__(self, other):
                return True

        tables = [value for value in vars(BooreAtkinson2008).values() if hasattr(value, "sa_coeffs")]
        worker._memory.find()
        fresh = None
        for job, value, between in ((1, 0.1, 0.6), (2, 0.7, 0.55), (3, 0.2, 0.6)):
            worker._memory.turn_to(job, "m")
            motions = [float(interp_table(Table(value), 5.5, PGA(), "IMLs")[0]) for _ in range(2)]
            rows = [table[SA(between)].tolist() for table in tables]
            rows += [table[SA(0.6)].tolist() for table in tables]
            print(numpy.allclose(motions, value), end=" ")
            if between == 0.6:
                print(fresh is None or fresh == rows, end=" ")
                fresh = rows
        print(len(tables) > 0)
        """
    assert python(code, config=config) == ["True True True True True True"]


def test_a_process_takes_no_matrix_of_another_calculation_for_its_own(config: Path) -> None:
    """Upstream keeps it by the periods, and PGA and PGV have the same one."""
    code = """
        from oq_celery import worker
        from openquake.hazardlib.cross_correlation import Bradley2012, GodaAtkinson2009
        from openquake.hazardlib.imt import PGA, PGV, SA
        worker._memory.find()
        found = []
        for job, first in enumerate((PGA(), PGV())):
            worker._memory.turn_to(job, "m")
            found.append(float(Bradley2012()._get_correlation_matrix([first, SA(0.3)])[0, 1]))
        kept = [one.cache for one in (Bradley2012, GodaAtkinson2009)]
        print(found, all(any(one is other for other in worker._memory._kept) for one in kept))
        """
    (line,) = python(code, config=config)
    assert re.fullmatch(r"\[0\.0, 0\.68\d*\] True", line), line


def test_processes_that_are_forked_from_one_draw_different_numbers(config: Path) -> None:
    code = """
        import os
        from oq_celery import worker
        import numpy
        for _ in range(2):
            if not os.fork():
                worker._after_the_fork()
                print(numpy.random.random(), flush=True)
                os._exit(0)
            os.wait()
        """
    one, other = python(code, config=config)
    assert one != other


WATCH = """
    import sys, threading, time
    from pathlib import Path
    from types import SimpleNamespace
    from oq_celery import broker, watch
    from oq_celery.settings import Settings
    watch.WATCH_SECONDS = watch.SWEEP_SECONDS = 0.05
    broker.connect = lambda *_, **__: SimpleNamespace(collect=lambda: None)
    broker.depth = lambda *_: None
    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path(sys.argv[1]), 2048, 16, 4)
"""


def test_an_aborted_job_of_more_processes_than_may_start_in_a_second_is_stopped_by_and_by(
    tmp_path: Path,
) -> None:
    """Celery's pool gives up when it has to start a hundred in one."""
    code = (
        WATCH
        + """
    stopped = []
    works = [watch.Work("oq.user.1.x", number, str(number), number) for number in range(128)]
    watched = watch.Watch(settings, "node", lambda: works[len(stopped):], stopped.append)
    while len(stopped) < len(works):
        before = len(stopped)
        watched.look(None)
        print(len(stopped) - before)
    """
    )
    assert python(code, tmp_path) == ["50", "50", "28"]


def test_a_shared_directory_that_hangs_does_not_keep_a_worker_from_stopping_tasks(tmp_path: Path) -> None:
    code = (
        WATCH
        + """
    hung, stopped = threading.Event(), threading.Event()

    def hang(self, pattern):
        hung.set()
        threading.Event().wait()

    Path.glob = hang
    work = watch.Work("oq.user.1.x", 0, "message", 1)
    watch.Sweep(settings).start()
    print(hung.wait(60))
    watch.Watch(settings, "node", lambda: [work], lambda work: stopped.set()).start()
    print(stopped.wait(60))
    """
    )
    assert python(code, tmp_path) == ["True", "True"]
