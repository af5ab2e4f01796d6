"""What is aborted or deleted does not run on, whoever started it and however far it is, and nothing of it stays."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.processes import Process, free_port, wait_until
from tests.transport.rabbitmq import Broker

WAITS = "Waiting for workers: 0 alive"


class Served(Cluster):
    """A cluster with DbServer and, if wanted, WebUI, as the master of a real one has them, and without workers."""

    url = ""

    def serve(self, port: int, *words: str) -> None:
        """Start one of the engine's servers, and wait until its port answers."""
        server = self.start("oq", *words, LOGNAME="openquake")
        wait_until(lambda: processes.answers(port) or not server.running(), words[0])
        assert server.running(), server.output()

    def serve_webui(self) -> None:
        port = free_port()
        self.serve(port, "webui", "start", f"127.0.0.1:{port}", "--skip-browser")
        self.url = f"http://127.0.0.1:{port}"

    def upload(self, folder: Path) -> int:
        """Start a calculation through the API."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for file in folder.iterdir():
                packed.write(file, file.name)
        files = {"archive": ("job.zip", archive.getvalue())}
        answer = requests.post(f"{self.url}/v1/calc/run", files=files, timeout=processes.DEADLINE)
        return int(answer.json()["job_id"])

    def post(self, number: int, what: str) -> tuple[int, dict[str, Any]]:
        answer = requests.post(f"{self.url}/v1/calc/{number}/{what}", timeout=processes.DEADLINE)
        return answer.status_code, answer.json()

    def query(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the engine's database, without the engine, whose start takes seconds."""
        with contextlib.closing(sqlite3.connect(self.directory / "db.sqlite3", timeout=60)) as database:
            with database:
                return database.execute(query, values).fetchall()

    def statuses(self) -> dict[int, str]:
        return dict(self.query("SELECT id, status FROM job"))

    def said(self, number: int) -> str:
        """The log of a calculation."""
        return "\n".join(line for (line,) in self.query("SELECT message FROM log WHERE job_id=?", number))

    def waits(self, number: int) -> None:
        """Wait until a calculation waits for workers, in the middle of its work."""
        wait_until(lambda: WAITS in self.said(number), f"calculation {number} to wait for workers")


@contextlib.contextmanager
def serving(tmp_path: Path, broker: Broker) -> Iterator[Served]:
    """A cluster with a DbServer, two of whose calculations run at once, and a job in the directory `job`."""
    port = free_port()
    changes = {
        "dbserver.host": "localhost",
        "dbserver.port": str(port),
        "distribution.serialize_jobs": "2",
        "distribution.num_cores": "32",
    }
    made = Served(tmp_path / "oqlab-calm", broker, **changes)
    try:
        made.serve(port, "dbserver", "start")
        harness.qa_job("event_based/case_2", tmp_path)
        yield made
    finally:
        made.end()
        for queue in broker.result_queues():
            broker.delete_queue(queue)


@pytest.fixture
def served(tmp_path: Path, broker: Broker) -> Iterator[Served]:
    with serving(tmp_path, broker) as made:
        yield made


def computing(cluster: Cluster) -> dict[str, int]:
    """The cluster's processes that compute: their numbers by their titles."""
    found = {}
    for number in processes.users(cluster.directory):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            title = Path(f"/proc/{number}/comm").read_text().strip()
            if title.startswith("oq-job-"):
                found[title] = number
    return found


def left(cluster: Cluster, number: int) -> list[str]:
    """Whatever there is of a calculation on the disk."""
    return sorted(path.name for path in cluster.data.glob(f"*calc_{number}*")) + sorted(
        path.name for path in cluster.shared.rglob(f"*.{number}.*")
    )


def oq(cluster: Cluster, *arguments: str, **env: str) -> tuple[int, str]:
    done = cluster.oq(*arguments, **env)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Using the DbServer" not in line]
    return done.returncode, "\n".join(lines)


def run(cluster: Cluster, *inis: Path, multi: bool = False) -> Process:
    options = ["--multi"] if multi else []
    return cluster.start("oq", "engine", *options, "--run", *inis, PYTHONUNBUFFERED="1")


def test_a_calculation_that_waits_for_its_turn_is_aborted(tmp_path: Path, served: Served) -> None:
    """In the queue behind others, and behind an earlier one of the same command."""
    ini = tmp_path / "job/job.ini"
    row = run(served, ini, ini)
    served.waits(1)
    queued = run(served, ini)
    wait_until(lambda: "Waiting for jobs 1" in queued.output(), "the third to wait")
    assert oq(served, "abort", "3") == (0, "Calculation 3 is aborted")
    assert not queued.running()
    assert oq(served, "abort", "2") == (0, "Calculation 2 is aborted")
    assert served.statuses() == {1: "executing", 2: "aborted", 3: "aborted"}
    later = run(served, ini, ini)
    wait_until(lambda: "Waiting for jobs 1" in later.output(), "the fourth to wait")
    assert oq(served, "abort", "5") == (0, "Calculation 5 is aborted")
    served.worker("one")
    assert row.wait() == 0, row.output()
    assert "Calculation 2 was aborted before its turn" in row.output()
    assert later.wait() == 0, later.output()
    assert served.statuses() == {1: "complete", 2: "aborted", 3: "aborted", 4: "complete", 5: "aborted"}
    assert oq(served, "abort", "1") == (1, "Calculation 1 is complete: there is nothing to abort")


def test_what_came_through_the_webui_is_aborted_and_removed(
    tmp_path: Path, broker: Broker, served: Served
) -> None:
    served.serve_webui()
    for when, path in (("waits", "abort"), ("waits", "remove"), ("begins", "remove"), ("at once", "abort")):
        number = served.upload(tmp_path / "job")
        if when == "waits":
            served.waits(number)
        elif when == "begins":
            wait_until(lambda number=number: served.statuses()[number] != "created", "it to begin")
        code, answer = served.post(number, path)
        assert (code, answer.keys() >= {"success"}) == (200, True), answer
        assert computing(served) == {}
        assert not list((served.shared / "oq_celery").glob("*"))
        assert broker.result_queues() == []
        assert served.statuses().get(number) == (None if path == "remove" else "aborted")
        assert path == "abort" or left(served, number) == []
    assert set(served.statuses().values()) == {"aborted"}


def test_delete_ends_a_calculation_that_runs_and_no_other(tmp_path: Path, served: Served) -> None:
    ini = tmp_path / "job/job.ini"
    jobs = []
    for number in (1, 2):
        jobs.append(run(served, ini))
        served.waits(number)
    assert oq(served, "engine", "--dc", "1", "-y") == (0, "Removed 1")
    assert not jobs[0].running()
    assert left(served, 1) == []
    assert served.statuses() == {2: "executing"}
    served.worker("one")
    assert jobs[1].wait() == 0
    assert served.statuses() == {2: "complete"}


def test_one_of_several_at_once_that_dies_is_failed_and_the_others_complete(
    tmp_path: Path, broker: Broker, served: Served
) -> None:
    inis = [shutil.copytree(tmp_path / "job", tmp_path / f"job{n}") / "job.ini" for n in range(3)]
    several = run(served, *inis, multi=True)
    for number in (1, 2):
        served.waits(number)
    assert sorted(computing(served)) == ["oq-job-1", "oq-job-2"]  # as many as the queue lets run
    os.kill(computing(served)["oq-job-2"], signal.SIGKILL)
    # The later of the two: the database knows before the log says it.
    wait_until(lambda: "was killed by SIGKILL" in several.output(), "the second's end to be said")
    assert served.statuses()[2] == "failed"
    served.waits(3)  # in its place
    assert oq(served, "abort", "3") == (0, "Calculation 3 is aborted")
    served.worker("one")
    assert several.wait() == 0, several.output()
    assert served.statuses() == {1: "complete", 2: "failed", 3: "aborted"}
    wait_until(lambda: broker.result_queues() == [], "the result queue of the dead to go")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_several_at_once_survives_the_end_of_their_command(
    number: signal.Signals, tmp_path: Path, served: Served
) -> None:
    inis = [shutil.copytree(tmp_path / "job", tmp_path / f"job{n}") / "job.ini" for n in range(2)]
    several = run(served, *inis, multi=True)
    for calculation in (1, 2):
        served.waits(calculation)
    several.signal(number)
    several.wait()
    wait_until(lambda: computing(served) == {}, "the processes to end")
    wait_until(lambda: set(served.statuses().values()) == {"aborted"}, "both to be aborted")


def with_hazard(ini: Path) -> Path:
    """A job beside another one, which it computes first, as its hazard."""
    risk = ini.with_name("job_risk.ini")
    risk.write_text(f"{ini.read_text()}\n[hazard]\nhazard_calculation_id = {ini.name}\n")
    return risk


def test_a_calculation_and_the_hazard_that_it_computes_first_end_together(
    tmp_path: Path, broker: Broker, served: Served
) -> None:
    """A risk job may name the job file of its hazard; this one is aborted while it computes that."""
    both = run(served, with_hazard(tmp_path / "job/job.ini"))
    served.waits(2)
    assert served.statuses() == {1: "executing", 2: "executing"}
    assert oq(served, "abort", "2") == (0, "Calculation 2 is aborted; with it, of the same command, 1")
    assert not both.running()
    assert served.statuses() == {1: "aborted", 2: "aborted"}
    assert list((served.shared / "oq_celery").glob("*")) == []
    assert broker.result_queues() == []


def test_one_that_waits_for_the_hazard_of_an_earlier_one_is_aborted_alone(
    tmp_path: Path, served: Served
) -> None:
    """One process computes both, one after the other; its title has a higher number than either's."""
    ini = tmp_path / "job/job.ini"
    row = run(served, with_hazard(ini), ini)
    served.waits(3)
    assert oq(served, "abort", "2") == (0, "Calculation 2 is aborted")
    assert row.running()
    assert served.statuses() == {1: "executing", 2: "aborted", 3: "executing"}
    assert oq(served, "abort", "1") == (0, "Calculation 1 is aborted; with it, of the same command, 3")


def test_of_several_at_once_the_one_that_computes_its_hazard_is_aborted_alone(
    tmp_path: Path, served: Served
) -> None:
    inis = [shutil.copytree(tmp_path / "job", tmp_path / f"job{n}") / "job.ini" for n in range(2)]
    several = run(served, with_hazard(inis[0]), inis[1], multi=True)
    for number in (2, 3):
        served.waits(number)
    assert oq(served, "abort", "1") == (0, "Calculation 1 is aborted; with it, of the same command, 3")
    served.worker("one")
    assert several.wait() == 0, several.output()
    assert served.statuses() == {1: "aborted", 2: "complete", 3: "aborted"}


def test_what_oq_run_profiles_is_aborted(tmp_path: Path, broker: Broker, served: Served) -> None:
    """Upstream gives its process no title."""
    profiled = served.start("oq", "run", "--slowest", "9", tmp_path / "job/job.ini", PYTHONUNBUFFERED="1")
    served.waits(1)
    assert oq(served, "abort", "1") == (0, "Calculation 1 is aborted")
    assert not profiled.running()
    assert served.statuses() == {1: "aborted"}
    assert broker.result_queues() == []


@contextlib.contextmanager
def other(*command: str | Path, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has to do with nothing here, and waits for its input."""
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is what it should be
        yield process
    finally:
        process.kill()
        process.communicate()


TITLED = ("sh", "-c", "printf oq-job-9 > /proc/$$/comm; echo; read x")
SOMEBODY = 54321  # no user of this machine
NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root acts in the name of others")


def made_up(served: Served, number: int, user: str, process: int) -> None:
    """Write into the database, as everybody can who reaches its port, whose process a calculation is."""
    served.query(
        "INSERT INTO job (id, user_name, status, ds_calc_dir, calculation_mode, description, is_running, pid) "
        "VALUES (?, ?, 'submitted', '', 'classical', '', 1, ?)",
        *(number, user, process),
    )


@as_root
def test_an_abort_ends_no_process_but_that_of_a_calculation(served: Served) -> None:
    """Whatever number the database has: of root's `oq abort` the kernel refuses nothing."""
    with other("sh", "-c", "echo; read x") as unrelated:
        made_up(served, 1, "root", unrelated.pid)
        assert oq(served, "abort", "1") == (0, "Calculation 1 is aborted")
        assert unrelated.poll() is None
    made_up(served, 2, "root", 1)
    assert oq(served, "abort", "2") == (0, "Calculation 2 is aborted")


@as_root
def test_somebodys_own_abort_ends_nothing_of_theirs_but_calculations(reached: Served) -> None:
    as_nobody: list[str | Path] = [
        "setpriv",
        f"--reuid={NOBODY.pw_uid}",
        "--clear-groups",
        processes.ENGINE / "bin/oq",
    ]
    with other("sh", "-c", "echo; read x", user=NOBODY.pw_uid) as unrelated:
        made_up(reached, 1, "nobody", unrelated.pid)
        home = reached.directory / "home"
        home.mkdir()
        os.chown(home, NOBODY.pw_uid, -1)
        env = reached.env | {"LOGNAME": "nobody", "HOME": str(home), "NUMBA_CACHE_DIR": str(home)}
        done = processes.run([*as_nobody, "abort", "1"], env)
        assert (done.returncode, unrelated.poll()) == (0, None), done.stderr
        assert "Calculation 1 is aborted" in done.stdout


@as_root
def test_root_ends_a_users_calculation_in_no_name_but_theirs(served: Served) -> None:
    with other(*TITLED, user=NOBODY.pw_uid) as process:
        made_up(served, 1, "ann", process.pid)
        status, said = oq(served, "abort", "1")
        assert (status, "is nobody's and neither ann's nor root's: it runs on" in said) == (1, True), said
        assert process.poll() is None
        served.query("UPDATE job SET user_name='nobody'")
        assert oq(served, "abort", "1") == (0, "Calculation 1 is aborted")
        assert process.wait(processes.DEADLINE) == -signal.SIGINT


@as_root
def test_of_roots_processes_on_a_cluster_an_abort_ends_those_that_compute_and_no_other(
    reached: Served,
) -> None:
    """The engine's Python runs services of root's on a master."""
    waits = (processes.ENGINE / "bin/python", "-c", "print(flush=True); input()")
    with other(*waits) as service, other(*TITLED) as computes:
        os.chown(reached.directory, SOMEBODY, -1)
        for number, process in enumerate((service, computes), 1):
            made_up(reached, number, "root", process.pid)
            assert oq(reached, "abort", str(number)) == (0, f"Calculation {number} is aborted")
        assert service.poll() is None
        assert computes.wait(processes.DEADLINE) == -signal.SIGINT
        os.chown(reached.directory, 0, -1)
        made_up(reached, 3, "root", service.pid)
        assert oq(reached, "abort", "3") == (0, "Calculation 3 is aborted")
        assert service.wait(processes.DEADLINE) != 0


@pytest.fixture
def reached(broker: Broker) -> Iterator[Served]:
    """A cluster whose directory other users reach, as they reach a master's."""
    directory = Path(tempfile.mkdtemp(prefix="oqlab-"))
    directory.chmod(0o755)
    with serving(directory, broker) as made:
        yield made
    shutil.rmtree(directory)


@as_root
def test_what_root_deletes_is_where_results_are_and_its_users(reached: Served) -> None:
    """A directory of somebody's home is not, whatever the database says."""
    users = Users(reached, reached.directory.parent)
    private, closed = users.directory / "private", reached.data / "closed"
    for path, user, mode in ((private, NOBODY.pw_uid, 0o700), (closed, 0, 0o700), (reached.data, 0, 0o777)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        os.chown(path, user, -1)
    (reached.data / "link").symlink_to(private)
    places = [
        private,
        reached.data / "link",
        reached.data / "closed/../../../../private",
        closed,
        reached.data,
    ]
    for number, place in enumerate(places, 1):
        users.add(number, "nobody", "failed", place / f"calc_{number}")
        (place / f"calc_{number}.hdf5").touch()
        (place / f"calc_{number}").mkdir()
        (place / f"calc_{number}/rates.hdf5").touch()
        os.chown(place / f"calc_{number}", NOBODY.pw_uid, -1)
    reached.query("UPDATE job SET start_time=datetime('now', '-1 hour')")
    os.chown(reached.directory, SOMEBODY, -1)
    status, said = oq(reached, "purge", "failed", "--force")
    assert (status, "Removed 1 calculations" in said) == (0, True), said
    assert set(reached.statuses()) == {1, 2, 3, 4}
    left = {path.name for place in (private, closed, reached.data) for path in place.glob("calc_*")}
    assert left == {f"calc_{number}{ending}" for number in (1, 2, 3, 4) for ending in ("", ".hdf5")}
    assert len(list(private.glob("*/rates.hdf5"))) == 3


@as_root
def test_root_follows_no_link_to_orphans(served: Served, users: Users) -> None:
    """Members of the group can make one where root's results would be."""
    private = users.directory / "private/oqdata"
    private.mkdir(parents=True)
    (private / "calc_1.hdf5").touch()
    (served.shared / "root").symlink_to(private.parent)
    status, said = oq(served, "purge", "orphan", "--force", OQ_DATADIR="")
    assert (status, "Not a directory" in said) == (1, True), said
    assert (private / "calc_1.hdf5").exists()


@as_root
def test_root_looks_at_the_database_as_whose_it_is(reached: Served) -> None:
    """SQLite makes files beside it, which nobody else could write."""
    made_up(reached, 1, "ann", 999_999)
    reached.query("UPDATE job SET status='executing'")
    for path in (reached.directory, *reached.directory.glob("db.sqlite3*"), reached.shared):
        os.chown(path, NOBODY.pw_uid, -1)
    done = processes.run([processes.ENGINE / "bin/oq-celery", "reap"], reached.env)
    assert "The process 999999 of calculation 1 is gone" in done.stdout, done.stderr
    inputs = reached.shared / "oq_celery_inputs"
    assert inputs.stat().st_uid == NOBODY.pw_uid


PURGE = """
import os, sys
os.geteuid = lambda: {uid}
from openquake.commands.{command} import main
main({arguments})
"""


@dataclass(frozen=True)
class Users:
    """Two users of one directory, in which the files of both can be written by both; calculations are made up."""

    served: Served
    directory: Path

    def add(self, number: int, user: str, status: str, base: Path | str) -> None:
        """Let the database know of a calculation whose files are `base` with an ending."""
        self.served.query(
            "INSERT INTO job (id, user_name, status, ds_calc_dir, calculation_mode, description, is_running, pid) "
            "VALUES (?, ?, ?, ?, 'classical', '', 0, 0)",
            *(number, user, status, str(base)),
        )

    def run(self, user: str, command: str, arguments: str, uid: int = 1000) -> tuple[int, str, str]:
        """What becomes of a command of `oq`: its status, what it prints, and its errors."""
        script, out, err = (self.directory / f"command.{kind}" for kind in ("py", "out", "err"))
        script.write_text(PURGE.format(uid=uid, command=command, arguments=arguments))
        for file in (out, err):
            file.unlink(missing_ok=True)
        status = processes.Forked(self.served.fork([script], out, err, {"LOGNAME": user})).wait()
        return status, out.read_text(), err.read_text()

    def files(self) -> set[str]:
        """What there is of calculations, in short."""
        return {path.stem.removeprefix("calc_") for path in self.served.data.glob("calc_*.hdf5")}


@pytest.fixture
def users(tmp_path: Path, served: Served) -> Users:
    return Users(served, tmp_path)


def test_purge_and_reset_leave_the_calculations_of_others_alone(served: Served, users: Users) -> None:
    for number, (user, kind) in enumerate(
        itertools.product(("ann", "bob"), ("complete", "failed", "executing")), 1
    ):
        users.add(number, user, kind, served.data / f"calc_{number}")
        (served.data / f"calc_{number}.hdf5").touch()
    users.add(7, "ann", "complete", served.data / "calc_4")  # which `cache = true` has made of bob's
    status, _, errors = users.run("bob", "purge", "'4'")
    assert status == 1, errors
    assert "Cannot delete calculation 4: its results are also those of calculation 7 (ann)" in errors
    assert users.files() == set("123456")
    assert {4, 7} <= served.statuses().keys()
    assert users.run("ann", "purge", "'7'") == (0, "Removed 7\n", "")
    assert users.files() == set("123456")
    assert 7 not in served.statuses()
    # As `oq engine --delete-uncompleted-calculations` leaves one.
    users.add(8, "ann", "deleted", served.data / "calc_8")
    (served.data / "calc_8.hdf5").touch()
    served.query("UPDATE job SET start_time='2020-01-01 00:00:00' WHERE id=8")
    status, found, errors = users.run("ann", "purge", "'old', True, days=30")
    assert (status, errors, "Removed 1 calculations" in found) == (0, "", True)
    assert users.files() == set("123456")
    # Which began in this second, of which `datetime('now')` is the beginning.
    served.query("UPDATE job SET start_time=strftime('%Y-%m-%d %H:%M:%f', 'now')")
    status, found, errors = users.run("ann", "purge", "'failed'")
    assert (status, errors) == (0, "")
    assert "Found 1 calculations" in found
    status, found, errors = users.run("ann", "purge", "'old', days=0")
    assert (status, errors) == (0, "")
    assert "Found 2 calculations" in found
    assert "bob" not in found
    assert users.files() == set("123456")
    status, found, errors = users.run("ann", "purge", "'failed', True")
    assert (status, errors) == (0, "")
    assert "Removed 1 calculations" in found
    assert users.run("ann", "purge", "'5'") == (
        1,
        "",
        "Cannot delete calculation 5: it belongs to bob and you are ann\n",
    )
    assert users.files() == set("13456")
    status, found, errors = users.run("root", "reset", "True", uid=0)
    assert (status, found) == (1, "")
    assert "root has none" in errors
    assert users.files() == set("13456")
    assert users.run("ann", "reset", "True") == (0, "Removed 3\nRemoved 1\n", "")
    assert users.files() == set("456")
    assert served.statuses() == {4: "complete", 5: "failed", 6: "executing"}
    status, found, errors = users.run("root", "purge", "'old', True, days=0", uid=0)
    assert (status, errors) == (0, "")
    assert "Removed 2 calculations" in found
    assert served.statuses() == {6: "executing"}


def test_purge_counts_the_size_of_what_it_has_removed_alone(served: Served, users: Users) -> None:
    for number, size in ((1, 2**20), (2, 2048)):
        users.add(number, "ann", "failed", served.data / f"calc_{number}")
        (served.data / f"calc_{number}.hdf5").write_bytes(bytes(size))
    users.add(3, "bob", "complete", served.data / "calc_1")  # whose results those of 1 are, too
    served.query("UPDATE job SET start_time='2020-01-01 00:00:00'")
    status, found, errors = users.run("ann", "purge", "'failed'")
    assert (status, errors, "Found 2 calculations, 1 MB" in found) == (0, "", True), found
    status, found, errors = users.run("ann", "purge", "'failed', True")
    assert (status, found) == (0, "Removed 1 calculations, 2 KB\n")
    assert "Cannot delete calculation 1: its results are also those of calculation 3 (bob)" in errors
    assert users.files() == {"1"}


def test_with_a_calculation_go_those_that_start_from_it_if_they_are_ones_own_and_no_others(
    served: Served, users: Users
) -> None:
    """The database would delete all of them, whatever they do, and leave their files."""
    starts_from = {2: 1, 3: 2, 5: 4, 6: 5, 8: 7}
    owners = {1: "ann", 2: "ann", 3: "bob", 4: "ann", 5: "ann", 6: "ann", 7: "ann", 8: "ann"}
    for number, user in owners.items():
        users.add(number, user, "complete", served.data / f"calc_{number}")
        (served.data / f"calc_{number}.hdf5").touch()
    for number, hazard in starts_from.items():
        served.query("UPDATE job SET hazard_calculation_id=? WHERE id=?", hazard, number)
    refused = (
        "Cannot delete calculation 1: calculation 3 (bob, complete), calculation 2 (ann, complete) started"
    )
    for user, uid in (("ann", 1000), ("root", 0)):
        status, _, errors = users.run(user, "purge", "'1', True", uid)
        assert status == 1
        assert errors.startswith(refused)
        assert users.files() == set("12345678")
    assert users.run("ann", "purge", "'4', True") == (0, "Removed 4\n", "")
    assert users.files() == set("12378")
    assert served.statuses().keys() == {1, 2, 3, 7, 8}
    served.query("UPDATE job SET status='executing', pid=? WHERE id=8", os.getpid())
    served.query(
        "UPDATE job SET start_time=datetime('now', '+1 hour') WHERE id=8"
    )  # as of a process that has begun
    status, _, errors = users.run("ann", "purge", "'7', True")
    assert status == 1
    assert errors.startswith("Cannot delete calculation 7: calculation 8 (ann, executing) started from it")
    served.query("UPDATE job SET status='failed' WHERE id=8")
    status, removed, errors = users.run("ann", "reset", "True")
    assert (status, removed) == (1, "Removed 8\nRemoved 7\n")
    assert "Cannot delete calculation 2: calculation 3 (bob, complete) started from it" in errors
    assert served.statuses().keys() == {1, 2, 3}
    assert users.files() == set("123")


def test_who_follows_a_calculation_that_is_deleted_is_told(served: Served, users: Users) -> None:
    users.add(1, "ann", "executing", served.data / "calc_1")
    served.query("INSERT INTO log VALUES (1, 1, datetime('now'), 'INFO', 'oq', 'it has begun')")
    follower = served.start("oq-celery", "follow", "1")
    wait_until(lambda: "it has begun" in follower.output(), "the log")
    served.query("DELETE FROM job")
    assert follower.wait() == 1
    assert follower.output().splitlines()[-1] == "oq-celery: calculation 1 was deleted"


def test_a_negative_number_beyond_ones_first_calculation_is_none(served: Served, users: Users) -> None:
    for number, user in enumerate(("bob", "ann", "ann", "ann"), 1):
        users.add(number, user, "deleted" if number == 2 else "complete", served.data / f"calc_{number}")
    none = (1, "There is no calculation -3 of yours")
    assert oq(served, "engine", "--delete-calculation", "-3", "--yes", LOGNAME="ann") == none
    assert oq(served, "abort", "-3", LOGNAME="ann") == none
    assert oq(served, "run", "job.ini", "--hc", "-3", LOGNAME="ann")[0] != 0
    assert served.statuses().keys() == {1, 2, 3, 4}
    status, printed = oq(served, "engine", "--list-outputs", "-3", LOGNAME="ann")
    assert (status, printed) == (1, "Job -3 not found")
    assert oq(served, "engine", "--delete-calculation", "-2", "--yes", LOGNAME="ann") == (0, "Removed 3")
    code = """
        from openquake.commonlib import logs
        for hazard in (-1, -2):
            print(logs.init({"calculation_mode": "classical_risk", "inputs": {}}, hc_id=hazard).params)
        """
    assert "'hazard_calculation_id': 4" in served.python(code, LOGNAME="ann")
    with pytest.raises(AssertionError, match="There is no calculation -2 of yours"):
        served.python(code.replace("(-1, -2)", "(-2,)"), LOGNAME="bob")


def test_job_files_before_one_that_cannot_be_read_do_not_stay_created(tmp_path: Path, served: Served) -> None:
    status, _ = oq(
        served, "engine", "--run", str(tmp_path / "job/job.ini"), str(tmp_path / "job/missing.ini")
    )
    assert status == 1
    assert served.statuses() == {1: "aborted"}
    assert "missing.ini" in served.said(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_purge_orphan_removes_only_what_no_calculation_has(served: Served, users: Users) -> None:
    """Whoever's it is, whatever its status is; and what lies there besides is nobody's business."""
    for number, kind in enumerate(("complete", "failed", "executing", "created", "shared"), 1):
        users.add(number, "bob" if number == 2 else "ann", kind, served.data / f"calc_{number}")
        for ending in (".hdf5", "_tmp.hdf5"):
            (served.data / f"calc_{number}{ending}").touch()
    # Of one whose data directory was a link, and of one that `cache = true` has taken from another.
    (served.directory / "link").symlink_to(served.data)
    users.add(6, "ann", "complete", served.directory / "link/calc_6")
    users.add(7, "ann", "complete", served.data / "calc_70")
    for number in (6, 70):
        (served.data / f"calc_{number}.hdf5").write_text("results")
    kept = users.files() | {"77"}
    for number in (77, 8, 9):
        (served.data / f"calc_{number}.hdf5").write_text("results")
    os.chown(served.data / "calc_77.hdf5", 4321, -1)  # another user's
    (served.data / "calc_9").mkdir()
    (served.data / "exposure.csv").touch()
    uid = 1000
    for number in (6, 70, 8, 9):
        os.chown(served.data / f"calc_{number}.hdf5", uid, -1)
    before = set(served.data.iterdir())
    orphans = [served.data / f"calc_{number}.hdf5" for number in (8, 9)]
    status, found, errors = users.run("ann", "purge", "'orphan'", uid)
    assert (status, errors) == (0, "")
    assert found.splitlines()[:2] == list(map(str, orphans))
    assert "Found 2 orphan files" in found
    assert set(served.data.iterdir()) == before
    status, found, errors = users.run("ann", "purge", "'orphan', True", uid)
    assert (status, errors) == (0, "")
    assert "Removed 2 orphan files" in found
    assert before - set(served.data.iterdir()) == set(orphans)
    assert users.files() == kept
    # Root's are everybody's.
    assert "Removed 1 orphan files" in users.run("root", "purge", "'orphan', True", uid=0)[1]
    assert users.files() == kept - {"77"}


def test_deleting_what_is_not_complete_spares_what_runs_and_what_is_others(
    served: Served, users: Users
) -> None:
    kinds = ("complete", "failed", "aborted", "executing", "submitted", "created")
    for number, (user, status) in enumerate(itertools.product(("ann", "bob"), kinds), 1):
        users.add(number, user, status, served.data / f"calc_{number}")
    before = served.statuses()
    assert len(before) == 12
    done = served.oq("engine", "--delete-uncompleted-calculations", "--yes", LOGNAME="ann")
    assert done.returncode == 0, done.stderr
    assert served.statuses() == before | {2: "deleted", 3: "deleted"}
