"""Calculations whose process is gone do not run for ever, and those that run are left alone."""

from __future__ import annotations

import ast
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker

STATUS = """
from openquake.commonlib.dbapi import db
print({job.id: (job.status, bool(job.is_running), job.stop_time is None) for job in db("SELECT * FROM job")})
"""
# As after a classical calculation of more than 100 MB of rates.
NOTE_RATES = """
import h5py
with h5py.File("{}", "r+") as file:
    tasks = file["task_info"]
    row = tasks[-1]
    row["taskname"] = b"save_rates"
    tasks.resize((len(tasks) + 1,))
    tasks[-1] = row
"""
HAS_A_PARENT = """
from openquake.baselib import hdf5
with hdf5.File("{}", "r+") as file:
    oqparam = file["oqparam"]
    oqparam.hazard_calculation_id = 1
    del file["oqparam"]
    file["oqparam"] = oqparam
"""
RUNS, FAILED = ("executing", True, True), ("failed", False, False)
COMPLETE = ("complete", False, False)


@pytest.fixture(autouse=True)
def _no_queue_stays(broker: Broker) -> Iterator[None]:
    """Without workers, result queues of masters that were killed stay for an hour; other tests look at the list."""
    yield
    for queue in broker.result_queues():
        broker.delete_queue(queue)


def status(cluster: Cluster) -> dict[int, tuple[str, bool, bool]]:
    """Of each calculation: its status, whether it is said to run, and whether it is said to be without an end."""
    found: dict[int, tuple[str, bool, bool]] = ast.literal_eval(cluster.python(STATUS))
    return found


def test_a_calculation_that_was_killed_is_failed_and_frees_its_place_and_others_run_on(
    tmp_path: Path, broker: Broker
) -> None:
    """There is no worker, so all of them wait for one, in the middle of their work."""
    with harness.cluster(tmp_path / "oqlab-jobs", broker, **{"distribution.serialize_jobs": "2"}) as cluster:
        harness.qa_job("event_based/case_2", tmp_path)
        jobs: list[Process] = []
        for number in range(3):
            folder = shutil.copytree(tmp_path / "job", tmp_path / f"job{number}")
            jobs.append(cluster.start("oq", "engine", "--run", folder / "job.ini", PYTHONUNBUFFERED="1"))
            said = "Waiting for jobs 1" if number == 2 else "Waiting for workers: 0 alive"
            wait_until(lambda number=number, said=said: said in jobs[number].output(), said)
        jobs[0].signal(signal.SIGKILL)
        jobs[0].wait()
        reaped = processes.run([processes.ENGINE / "bin/oq-celery", "reap"], cluster.env, check=True).stdout
        assert reaped == f"The process {jobs[0].pid} of calculation 1 is gone: it has failed\n"
        wait_until(lambda: "Waiting for workers: 0 alive" in jobs[2].output(), "the third to begin")
        assert status(cluster) == {1: FAILED, 2: RUNS, 3: RUNS}
        assert "is gone: it has failed" in cluster.python(
            "from openquake.commonlib import logs\nprint(*logs.dbcmd('get_log', 1))"
        )
        assert (
            processes.run([processes.ENGINE / "bin/oq-celery", "reap"], cluster.env, check=True).stdout == ""
        )


def test_a_webui_that_starts_leaves_running_calculations_alone(tmp_path: Path, broker: Broker) -> None:
    """Upstream's declares them failed; here by what the WebUI calls, without the WebUI."""
    with harness.cluster(tmp_path / "oqlab-webui", broker) as cluster:
        job = cluster.start("oq", "engine", "--run", harness.qa_job("event_based/case_2", tmp_path))
        wait_until(lambda: "0 alive, 2 tasks queued" in job.output(), "the job to wait for workers")
        start = "from openquake.server import dbserver\ndbserver.actions.reset_is_running(dbserver.db)"
        cluster.python(start)
        assert status(cluster) == {1: RUNS}
        job.signal(signal.SIGKILL)
        job.wait()
        cluster.python(start)
        assert status(cluster) == {1: FAILED}


@pytest.mark.parametrize("served", [False, True], ids=["without DbServer", "with DbServer"])
def test_a_restored_database_gives_no_number_of_results_that_are_there(
    tmp_path: Path, broker: Broker, served: bool
) -> None:
    """Of a snapshot that is older than the results, or of no calculation at all; whoever's they are.

    Not where a user's directory may not be read: root reads all.
    """
    port = processes.free_port()
    changes = {"dbserver.host": "localhost", "dbserver.port": str(port)} if served else {}
    with harness.cluster(tmp_path / "oqlab-restored", broker, **changes) as cluster:
        if served:
            cluster.start("oq", "dbserver", "start", LOGNAME="openquake")
            wait_until(lambda: processes.answers(port), "the DbServer")
        anns, openquakes = cluster.shared / "ann/oqdata", cluster.shared / "oqdata"
        there = [
            cluster.data / "calc_1.hdf5",
            anns / "calc_2.hdf5",
            openquakes / "calc_3.hdf5",
            anns / "calc_7",
        ]
        for path in there:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("results")
        ini = harness.qa_job("classical/case_01", tmp_path)
        for number in (8, 9):
            job = cluster.run(ini, OQ_DISTRIBUTE="no")
            assert (job.status, [path.name for path in job.datastores]) == (0, [f"calc_{number}.hdf5"]), (
                job.output
            )
        assert {path.read_text() for path in there} == {"results"}
        assert sorted(status(cluster)) == [8, 9]


def test_a_calculation_lives_as_long_as_its_process_and_no_longer(tmp_path: Path, broker: Broker) -> None:
    """After a reboot numbers are given out anew. What is a zombie has ended, what another machine runs is unknown, but
    for one that was this cluster's master before.

    A calculation that waits behind another one of the same command has no number yet, however long it waits.
    """
    with harness.cluster(tmp_path / "oqlab-numbers", broker) as cluster:
        found = cluster.python(
            """
            import os, socket, subprocess, sys, time
            from datetime import UTC, datetime, timedelta
            from openquake.baselib import config
            from openquake.baselib.general import mp
            from openquake.commonlib.dbapi import db
            from openquake.server.db import actions
            from oq_celery.jobs import reap

            def other(*command):
                return subprocess.Popen(command, stdin=subprocess.PIPE)

            actions.upgrade_db(db)
            here, now, hours = socket.gethostname(), datetime.now(UTC), timedelta(hours=2)
            zombie = os.fork()
            if not zombie:
                os._exit(0)
            titled = "import setproctitle, sys; setproctitle.setproctitle(sys.argv[1]); sys.stdin.read()"
            cat, of_webui = other("cat"), mp.Process(target=time.sleep, args=(60,), daemon=True)
            of_webui.start()  # as the WebUI starts a calculation
            of_another, of_nine = (other(sys.executable, "-c", titled, f"oq-job-{n}") for n in (1000, 9))
            time.sleep(3)
            for status, host, pid, start in (
                ("executing", here, os.getpid(), datetime.now(UTC)),
                ("executing", here, cat.pid, now - hours),
                ("executing", here, zombie, datetime.now(UTC)),
                ("executing", "elsewhere", zombie, now),
                ("created", here, 0, now - hours),
                ("submitted", here, of_webui.pid, now - hours),
                ("submitted", here, cat.pid, now - hours),
                ("executing", here, of_another.pid, now - hours),
                ("executing", here, zombie, now),
                ("complete", here, zombie, now),
                ("executing", here, 0, now - hours),
                ("executing", None, zombie, now),  # one inside another
                ("executing", "before", os.getpid(), now - timedelta(days=1000)),
            ):
                job = actions.create_job(db, "/tmp", host=host)
                db("UPDATE job SET ?D WHERE id=?x", {"pid": pid, "start_time": start, "status": status}, job)
            db("UPDATE job SET is_running=0 WHERE id=3")  # as `oq abort` leaves one that waits, which then begins
            said = reap(db)
            print([job.id for job in db("SELECT * FROM job WHERE status='failed'")], len(said))
            # A program of a user's own that waits for its turn: it is older than its record, and has any command line.
            program = other("cat")
            time.sleep(3)
            job = actions.create_job(db, "/tmp", host=here)
            db("UPDATE job SET ?D WHERE id=?x", {"pid": program.pid, "status": "submitted"}, job)
            print(reap(db))
            config.dbserver.host = "192.0.2.1"  # another machine's: there they may go on
            db("UPDATE job SET status='executing' WHERE id=13")
            print(reap(db))
            for process in (cat, of_another, of_nine, program):
                process.communicate()
            """
        )
        assert found == "[2, 3, 7, 12, 13] 5\n[]\n[]\n"


def test_where_memory_runs_out_the_kernel_ends_a_calculation_first(tmp_path: Path, broker: Broker) -> None:
    """RabbitMQ and the DbServer, which everybody's calculations need, have the usual score of 0."""
    ini = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-memory", broker) as cluster:
        found = cluster.python(
            f"""
            from pathlib import Path
            from openquake.commonlib import logs
            logs.dbcmd("upgrade_db")
            score = Path("/proc/self/oom_score_adj")
            score.write_text("0")
            with logs.init({str(ini)!r}, log_level="error"):
                print(score.read_text().strip())
            """
        )
        assert found.splitlines()[-1] == "500"


def test_a_calculation_of_a_session_has_its_process_and_holds_up_nobody(
    tmp_path: Path, broker: Broker
) -> None:
    """`oq shell` enters one and never leaves it; what it then runs would wait for it."""
    ini = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-session", broker) as cluster:
        found = cluster.python(
            f"""
            import os, socket
            from pathlib import Path
            from openquake.commonlib import logs
            from openquake.engine.engine import GET_JOBS

            logs.dbcmd("upgrade_db")
            name = Path("/proc/self/comm")
            former, context = name.read_text(), logs.init({str(ini)!r})
            with context:
                job = context.get_job()
                inside = job.status, job.pid == os.getpid(), name.read_text().strip()
                waited_for = list(logs.dbcmd(GET_JOBS, socket.gethostname()))
            print(*inside, waited_for, name.read_text() == former)
            """
        )
        assert found.endswith("executing True oq-job-1 [] True\n")


def test_a_session_hears_the_next_interruption_and_what_begins_again_runs_again(
    tmp_path: Path, broker: Broker
) -> None:
    """A workflow of `oq run` enters its context twice, and computes in the second block."""
    ini = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-again", broker) as cluster:
        found = cluster.python(
            f"""
            import contextlib, signal
            from openquake.commonlib import logs

            logs.dbcmd("upgrade_db")
            numbers = signal.SIGINT, signal.SIGTERM
            former, context = [signal.getsignal(number) for number in numbers], logs.init({str(ini)!r})
            for error in None, KeyboardInterrupt:
                with contextlib.suppress(KeyboardInterrupt), context:
                    print(context.get_job().status)
                    if error is not None:
                        raise error
                print(context.get_job().status)
            print([signal.getsignal(number) for number in numbers] == former)
            """
        )
        assert found.split() == ["executing", "complete", "executing", "aborted", "True"]


def test_what_was_aborted_has_failed_for_a_workflow_and_for_who_collects(
    tmp_path: Path, broker: Broker
) -> None:
    """Upstream knows no other end than complete and failed: the one would go on, the other wait for ever."""
    ini = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-aborted", broker) as cluster:
        found = cluster.python(
            """
            import os
            from openquake.commands import collect_jobs
            from openquake.commonlib import logs

            logs.dbcmd("upgrade_db")
            contexts = [logs.init(os.environ["INI"]) for _ in range(2)]
            for status, workflow in ("aborted", None), ("aborted", 1):
                logs.dbcmd("UPDATE job SET status=?x, workflow_id=?x", status, workflow)
                print(contexts[0].get_job().status)
            logs.dbcmd("UPDATE job SET status='complete' WHERE id=1")
            for second in "aborted", "deleted", "failed", "shared":
                logs.dbcmd("UPDATE job SET status=?x WHERE id=2", second)
                try:
                    collect_jobs.main([1, 2])
                except SystemExit as error:
                    print(error)
            try:
                collect_jobs.main([1, 3])
            except SystemExit as error:
                print(error)
            """,
            INI=str(ini),
        )
        assert found.splitlines() == [
            "aborted",
            "failed",
            "Calculation 2 was aborted",
            "Calculation 2 was deleted",
            "Job 2 failed",
            "All jobs completed correctly",
            "Calculation 3 was deleted",
        ]


def test_the_last_calculation_is_ones_own(tmp_path: Path, broker: Broker) -> None:
    """As of `oq show` or `oq export` without a number; upstream takes everybody's last one."""
    with harness.cluster(tmp_path / "oqlab-last", broker) as cluster:
        found = cluster.python(
            """
            import getpass
            from openquake.commonlib import datastore, logs
            from openquake.commands.engine import get_job_id
            logs.dbcmd("upgrade_db")
            mine = getpass.getuser()
            for user in (mine, mine, "bob"):
                logs.dbcmd("create_job", "/nowhere", "classical", "one", user, None, None)
            print(*(datastore.dbcmd("get_job", *given).id for given in ((-1,), (-2,), (-1, "bob"), (3,))))
            print(get_job_id(-2, mine))
            """
        )
        assert found.splitlines() == ["2 1 3 3", "1"]


def test_a_calculation_is_its_users_where_the_engine_names_none(tmp_path: Path, broker: Broker) -> None:
    """As of `oq reaggregate`, and of the hazard of a risk job: the DbServer would write down its own account."""
    with harness.cluster(tmp_path / "oqlab-owner", broker) as cluster:
        found = cluster.python(
            """
            import getpass, socket
            from openquake.commonlib import logs
            from openquake.commonlib.dbapi import db
            from openquake.server.db import actions
            actions.upgrade_db(db)
            actions.getpass = type("", (), {"getuser": lambda: "openquake"})
            job = {"calculation_mode": "custom"}
            with logs.init(job, user_name="ann"):  # as in a process of the WebUI
                logs.init(job)
            logs.init(job)
            logs.init(job, user_name=socket.gethostname())  # as `oq run --slowest` does
            print(*(name for name, in db("SELECT user_name FROM job ORDER BY id")), getpass.getuser())
            print(logs.dbcmd("get_job", -1).id)
            """
        )
        names, last = found.splitlines()
        me = names.split()[-1]
        assert names.split() == ["ann", "ann", me, me, me]
        assert last == "4"


def test_how_a_calculation_computes_is_not_for_those_after_it(tmp_path: Path, broker: Broker) -> None:
    """`reaggregate_by` chooses a processpool, in the middle of a calculation."""
    with harness.cluster(tmp_path / "oqlab-after", broker) as cluster:
        found = cluster.python(
            """
            import os
            from openquake.baselib import parallel
            from openquake.commonlib import logs
            logs.dbcmd("upgrade_db")
            with logs.init({"calculation_mode": "custom"}):
                os.environ["OQ_DISTRIBUTE"] = "processpool"
                with logs.init({"calculation_mode": "reaggregate"}):
                    print(parallel.oq_distribute())
            print(parallel.oq_distribute())
            """
        )
        assert found.split() == ["processpool", "celery"]


def test_what_is_dumped_has_its_rates_the_newest_records_and_what_is_shared(
    tmp_path: Path, broker: Broker
) -> None:
    with harness.cluster(tmp_path / "oqlab-dump", broker) as cluster:
        job = cluster.run(harness.qa_job("classical/case_01", tmp_path), OQ_DISTRIBUTE="no")
        (datastore,) = job.datastores
        rates = datastore.with_suffix("") / "12.hdf5"
        rates.parent.mkdir(exist_ok=True)
        rates.write_bytes(b"rates")
        other = cluster.shared / "bob/oqdata/calc_7.hdf5"
        other.parent.mkdir(parents=True)
        shutil.copyfile(datastore, other)
        archive, restored = tmp_path / "dump.zip", tmp_path / "restored"
        found = cluster.python(
            """
            import os, sqlite3
            from openquake.baselib import config
            from openquake.commands import dump, restore
            from pathlib import Path
            held = sqlite3.connect(config.dbserver.file)
            held.execute("PRAGMA journal_mode = WAL")
            held.execute("UPDATE job SET description='the newest'")
            held.executemany(
                "INSERT INTO job (id, user_name, status, ds_calc_dir, calculation_mode, description) "
                "VALUES (?, 'bob', ?, ?, 'classical', 'of another')",
                # The second by `cache = true`.
                [(7, "shared", os.environ["OTHER"]), (8, "complete", os.environ["OTHER"])],
            )
            held.execute("INSERT INTO job (user_name, status, ds_calc_dir, calculation_mode, description) "
                         "VALUES ('ann', 'failed', '', 'classical', 'not complete')")
            held.commit()
            dump.main(os.environ["ARCHIVE"])
            restore.main(os.environ["ARCHIVE"], os.environ["RESTORED"])
            made = sqlite3.connect(Path(os.environ["RESTORED"], "db.sqlite3"))
            print(made.execute("SELECT description, status FROM job").fetchall())
            alone = os.environ["RESTORED"] + "-alone"
            dump.main(os.environ["ALONE"], 7)
            restore.main(os.environ["ALONE"], alone)
            print(sqlite3.connect(Path(alone, "db.sqlite3")).execute("SELECT id FROM job").fetchall())
            """,
            ARCHIVE=str(archive),
            ALONE=str(tmp_path / "alone.zip"),
            RESTORED=str(restored),
            OTHER=str(other.with_suffix("")),
        )
        records = [("the newest", "complete"), ("of another", "shared"), ("of another", "complete")]
        assert {str(records), "[(7,)]"} <= set(found.splitlines())
        assert f"Extracted 2 calculations into {restored}" in found
        assert f"Extracted 1 calculations into {restored}-alone" in found
        assert {path.name for path in restored.glob("*.hdf5")} == {datastore.name, other.name}
        assert (restored / datastore.stem / rates.name).read_bytes() == b"rates"


def test_reap_without_a_database_says_so_and_makes_none(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-nothing", broker) as cluster:
        done = processes.run([processes.ENGINE / "bin/oq-celery", "reap"], cluster.env)
        file = cluster.directory / "db.sqlite3"
        assert (done.returncode, done.stderr) == (1, f"oq-celery: there is no database {file} yet\n")
        assert not file.exists()


@pytest.mark.parametrize(
    ("first", "ended", "said"),
    [
        ('OSError("no room\\nleft")', "failed", "The first error was OSError: no room left"),
        ('KeyboardInterrupt("by hand")', "aborted", "Aborted: by hand"),
    ],
)
def test_an_error_that_hides_another_one_does_not_hide_what_ended_a_calculation(
    tmp_path: Path, broker: Broker, first: str, ended: str, said: str
) -> None:
    """As when a file is closed that could not be written; the engine's log has the last one only."""
    job = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-errors", broker) as cluster:
        found = cluster.python(
            f"""
            from openquake.commonlib import logs
            logs.dbcmd("upgrade_db")
            try:
                with logs.init({str(job)!r}) as context:
                    try:
                        raise {first}
                    finally:
                        {{}}["then"]
            except KeyError:
                print(logs.dbcmd("get_job", context.calc_id).status, *logs.dbcmd("get_log", context.calc_id), sep="; ")
            """
        )
        assert f"{ended}; " in found
        assert said in found


def test_the_death_of_a_process_of_a_pool_is_a_failure_and_no_abort(tmp_path: Path, broker: Broker) -> None:
    """As when the kernel needs its memory; upstream's exception is a KeyboardInterrupt."""
    job = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "oqlab-killed", broker) as cluster:
        found = cluster.python(
            f"""
            import os, signal, time
            from openquake.baselib import parallel
            from openquake.commonlib import logs
            logs.dbcmd("upgrade_db")
            parallel.enable_sigchld()
            try:
                with logs.init({str(job)!r}) as context:
                    if not os.fork():
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(60)
            except parallel.MasterKilled:
                print(logs.dbcmd("get_job", context.calc_id).status)
            """
        )
        assert found == "failed\n"


def test_a_file_is_imported_from_another_file_system_and_takes_no_place_of_another(
    tmp_path: Path, broker: Broker
) -> None:
    """Here in memory. Upstream's `oq importcalc` moves it to where results are before it gives it a number."""
    with (
        harness.cluster(tmp_path / "oqlab-import", broker) as cluster,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="oqlab") as elsewhere,
    ):
        job = cluster.run(harness.qa_job("classical/case_01", tmp_path), OQ_DISTRIBUTE="no")
        (datastore,) = job.datastores
        brought = Path(elsewhere, "calc_9.hdf5")
        shutil.copyfile(datastore, brought)
        taken = brought.with_name(datastore.name)
        taken.write_text("another one")
        before = datastore.read_bytes()
        done = cluster.oq("importcalc", taken)
        assert done.returncode == 1
        assert f"{datastore} is there already" in done.stdout + done.stderr
        assert (datastore.read_bytes(), taken.read_text()) == (before, "another one")
        missing = cluster.oq("importcalc", Path(elsewhere, "calc_3.hdf5"))
        assert (missing.returncode, "No such file" in missing.stderr) == (1, True)
        next_one = datastore.with_name("calc_2.hdf5")  # as after a restore of the database
        next_one.write_text("of another")
        done = cluster.oq("importcalc", brought)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not brought.exists()
        assert next_one.read_text() == "of another"
        assert datastore.with_name("calc_3.hdf5").read_bytes()
        # One that lies where results are; another name of the same file is no other file.
        shutil.copyfile(datastore, datastore.with_name("calc_9.hdf5"))
        done = cluster.oq("importcalc", datastore.parent / ".." / datastore.parent.name / "calc_9.hdf5")
        assert done.returncode == 0, done.stdout + done.stderr
        # One whose rates are beside it.
        large, rates = Path(elsewhere, "calc_7.hdf5"), Path(elsewhere, "calc_7/12.hdf5")
        shutil.copyfile(datastore, large)
        cluster.python(NOTE_RATES.format(large))
        done = cluster.oq("importcalc", large)
        assert (done.returncode, "its rates are not in calc_7.hdf5" in done.stderr) == (1, True), done.stderr
        rates.parent.mkdir()
        rates.write_bytes(b"rates")
        done = cluster.oq("importcalc", large)
        assert done.returncode == 0, done.stdout + done.stderr
        assert datastore.with_name("calc_5").joinpath("12.hdf5").read_bytes() == b"rates"
        # One that reads another one, whose number is somebody else's here.
        child = Path(elsewhere, "calc_70.hdf5")
        shutil.copyfile(datastore, child)
        cluster.python(HAS_A_PARENT.format(child))
        done = cluster.oq("importcalc", child)
        assert (done.returncode, "started from calculation 1 of where" in done.stderr) == (1, True), (
            done.stderr
        )
        assert child.exists()
        broken = datastore.with_name("calc_8.hdf5")
        broken.write_text("no HDF5")
        assert cluster.oq("importcalc", broken).returncode != 0
        cluster.python(f"import h5py\nh5py.File({str(broken)!r}, 'w').close()")
        assert cluster.oq("importcalc", broken).returncode != 0
        assert status(cluster) == {1: COMPLETE, 3: COMPLETE, 4: COMPLETE, 5: COMPLETE, 6: FAILED}
