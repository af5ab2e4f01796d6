"""Jobs whose files only the master sees: what a worker opens, what stays on the master, what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster, Job
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker
from tests.transport.test_results import differences

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can start a worker that does not see a directory"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the workers do not see, with the one where archives are unpacked."""
    directory = tmp_path_factory.mktemp("home")
    (directory / "tmp").mkdir()
    return directory


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory, broker: Broker, home: Path) -> Iterator[Cluster]:
    """A cluster whose two workers do not see the home."""
    changes = {"directory.custom_tmp": str(home / "tmp")}
    with harness.cluster(tmp_path_factory.mktemp("blind") / "oqlab-blind", broker, **changes) as made:
        for name in ("one", "two"):
            made.worker(name, prefix=harness.hiding(home))
        yield made


class Alone:
    """One process that does all tasks one after the other: the order, and so the numbers, of a pool of one process."""

    def __init__(self, directory: Path, broker: Broker, home: Path) -> None:
        # The checksum of an archive's inputs has to do with where it is unpacked.
        changes = {"directory.custom_tmp": str(home / "tmp")}
        self._cluster = Cluster(directory / "oqlab-alone", broker, **changes)

    def run(self, *inis: Path, options: Sequence[str | Path] = ()) -> Job:
        job = self._cluster.run(*inis, options=options, OQ_DISTRIBUTE="no")
        assert job.status == 0, job.output
        return job


@pytest.fixture(scope="module")
def alone(broker: Broker, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"), broker, home)


def logic_tree_job(folder: Path) -> Path:
    """A job with two source models."""
    shutil.copytree(processes.ENGINE / "demos/hazard/LogicTreeCase1ClassicalPSHA", folder)
    return folder / "job.ini"


def archive(ini: Path) -> Path:
    """The job's folder as a zip file, which the engine unpacks below custom_tmp."""
    return Path(shutil.make_archive(str(ini.parent), "zip", ini.parent))


def qa_folder(case: str, folder: Path) -> Path:
    return shutil.copytree(harness.QA_TESTS / case, folder)


def nothing_stays(cluster: Cluster) -> bool:
    return list((cluster.shared / "oq_celery_inputs").iterdir()) == []


@dataclass(frozen=True)
class Runs:
    """The same calculations, on workers that see none of their files and in one process."""

    on_cluster: Job
    alone: Job
    inis: dict[str, Path]


@pytest.fixture(scope="module")
def runs(blind: Cluster, home: Path, alone: Alone) -> Runs:
    private = logic_tree_job(home / "two models")
    private.parent.chmod(0o700)
    for file in private.parent.iterdir():
        file.chmod(0o600)
    sections = qa_folder("classical/case_65", home / "Łódź, эксперимент №1")
    inis = {
        "several source models, in a folder for its owner only": private,
        "an archive, unpacked into custom_tmp": archive(logic_tree_job(home / "archived")),
        "sections of faults with a table beside them, in a folder outside ASCII": sections / "job.ini",
        "a spectrum, in postprocessing": qa_folder("conditional_spectrum/case_1", home / "spectrum")
        / "job.ini",
        "a risk job that starts its hazard job": qa_folder("event_based_risk/case_master", home / "risk")
        / "job_risk.ini",
    }
    on_cluster = blind.run(*inis.values())
    assert on_cluster.status == 0, on_cluster.output
    assert list((home / "tmp").iterdir()) == []
    return Runs(on_cluster, alone.run(*inis.values()), inis)


def test_what_an_archive_exports_lies_beside_it_and_stays(tmp_path: Path, broker: Broker) -> None:
    """Upstream exports into the directory into which it has unpacked the archive, which goes at the end."""
    (temporary := tmp_path / "tmp").mkdir()
    ini = qa_folder("classical/case_01", tmp_path / "exporting") / "job.ini"
    ini.write_text(re.sub("(?m)^export_dir.*", "", ini.read_text()))
    zipped = archive(ini)
    changes = {"directory.custom_tmp": str(temporary)}
    with harness.cluster(tmp_path / "oqlab-exports", broker, **changes) as cluster:
        job = cluster.run(zipped, options=["--exports", "csv"], OQ_DISTRIBUTE="no")
    assert job.status == 0, job.output
    assert list(zipped.parent.glob("hazard_curve-mean-*.csv"))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    [
        "several source models, in a folder for its owner only",
        "an archive, unpacked into custom_tmp",
        "sections of faults with a table beside them, in a folder outside ASCII",
        "a spectrum, in postprocessing",
        "a risk job that starts its hazard job",
    ],
)
def test_the_numbers_are_those_of_one_machine(kind: str, runs: Runs, blind: Cluster) -> None:
    """To the bit; so is the checksum of the inputs, by which the engine knows a calculation again."""
    number = list(runs.inis).index(kind)
    ours, theirs = runs.on_cluster.datastores[number], runs.alone.datastores[number]
    assert differences(ours, theirs, blind) == {}
    assert checksum(blind, ours) == checksum(blind, theirs)


def checksum(cluster: Cluster, datastore: Path) -> str:
    return cluster.python(f"import h5py; print(h5py.File({str(datastore)!r}).attrs['checksum32'])")


def test_a_calculation_from_a_file_in_a_home(blind: Cluster, home: Path, alone: Alone) -> None:
    """`--hc FILE.hdf5`: ruptures that somebody has got from elsewhere, read by every task."""
    folder = qa_folder("event_based_risk/case_master", home / "from a file")
    (ruptures,) = alone.run(folder / "job_ses.ini").datastores
    options = ["--hc", shutil.copy(ruptures, folder / "calc_9.hdf5")]
    on_cluster = blind.run(folder / "job_risk.ini", options=options)
    assert on_cluster.status == 0, on_cluster.output
    assert "run on the master" not in on_cluster.output
    reference = alone.run(folder / "job_risk.ini", options=options)
    assert differences(on_cluster.datastores[0], reference.datastores[0], blind) == {}
    assert nothing_stays(blind)


def test_each_calculation_says_what_was_copied(runs: Runs) -> None:
    copied = re.findall(r"Copied (\d+) input files, [\d.]+ MB, in [\d.]+ s", runs.on_cluster.output)
    assert len(copied) == len(runs.inis) + 1  # the hazard job of the risk job
    assert "run on the master" not in runs.on_cluster.output


def test_nothing_of_them_stays(runs: Runs, blind: Cluster) -> None:
    assert runs.on_cluster.status == 0
    assert nothing_stays(blind)


@pytest.fixture
def waiting(tmp_path: Path, broker: Broker) -> Iterator[tuple[Cluster, Process]]:
    """A calculation that waits for workers, of which there are none, to read its source models."""
    with harness.cluster(tmp_path / "oqlab-waiting", broker) as idle:
        job = idle.start("oq", "engine", "--run", logic_tree_job(tmp_path / "job"))
        said = "Waiting for workers: 0 alive"
        wait_until(lambda: said in job.output() or not job.running(), "the job to wait for workers")
        assert job.running(), job.output()
        yield idle, job
    for queue in broker.result_queues():
        broker.delete_queue(queue)


def test_what_a_killed_calculation_leaves_is_removed_and_meanwhile_hidden_from_other_users(
    waiting: tuple[Cluster, Process], tmp_path: Path
) -> None:
    idle, job = waiting
    copies = idle.shared / "oq_celery_inputs"
    reap: list[str | Path] = [processes.ENGINE / "bin/oq-celery", "reap"]
    processes.run(reap, idle.env, check=True)
    (directory,) = copies.iterdir()
    # Other users may go through the first one if they know what is below it, and do not get to know it.
    assert stat.S_IMODE(copies.stat().st_mode) == 0o3730
    assert len(directory.name.rsplit(".", 1)[1]) == 32
    original = tmp_path / "job/source_model_1.xml"
    copy = Path(f"{directory}/files{original}")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    assert copy.read_bytes() == original.read_bytes()
    job.signal(signal.SIGKILL)
    job.wait()
    assert not nothing_stays(idle)
    processes.run(reap, idle.env, check=True)
    assert nothing_stays(idle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_of_an_aborted_calculation(
    number: signal.Signals, waiting: tuple[Cluster, Process]
) -> None:
    idle, job = waiting
    assert not nothing_stays(idle)
    job.signal(number)
    assert job.wait() != 0
    assert nothing_stays(idle)


def test_a_data_directory_that_workers_cannot_see_is_refused(blind: Cluster, home: Path) -> None:
    elsewhere = home / "results"
    ini = logic_tree_job(home / "refused")
    command: list[str | Path] = [processes.ENGINE / "bin/oq", "engine", "--run", ini]
    refused = processes.run(command, blind.env | {"OQ_DATADIR": str(elsewhere)})
    assert refused.returncode == 1
    line = refused.stderr.splitlines()[-1]  # after a word about the database, if this is its first command
    assert f"OQ_DATADIR={elsewhere}" in line
    assert str(blind.shared) in line
    relative = subprocess.run(
        command,
        env=blind.env | {"OQ_DATADIR": "results"},
        cwd=blind.shared,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (relative.returncode, "OQ_DATADIR=results: this is not an absolute path" in relative.stderr) == (
        1,
        True,
    )
    private = blind.shared / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 4321, 4321)  # another account than the workers'
    unreadable = processes.run(command, blind.env | {"OQ_DATADIR": str(private / "data")})
    said = f"OQ_DATADIR={private / 'data'}: workers may not read {private}, which `chmod g+rx` allows them; unset it"
    assert (unreadable.returncode, unreadable.stderr.startswith(said)) == (1, True), unreadable.stderr
    listed = processes.run([*command[:2], "--lhc"], blind.env | {"OQ_DATADIR": str(elsewhere)})
    assert listed.returncode == 0, listed.stderr
    alone = {"OQ_DATADIR": str(elsewhere), "OQ_DISTRIBUTE": "no"}
    assert processes.run(command, blind.env | alone).returncode == 0
    assert list(elsewhere.glob("calc_*.hdf5"))


def test_tasks_with_other_files_stay_on_the_master(blind: Cluster, home: Path) -> None:
    """Those of commands that are no calculations; here one of upstream's, which changes the files in place."""
    folder = logic_tree_job(home / "renumbered").parent
    before = (folder / "source_model_1.xml").read_bytes()
    done = processes.run(
        [processes.ENGINE / "bin/oq", "renumber_sm", folder / "source_model_logic_tree.xml"], blind.env
    )
    assert done.returncode == 0, done.stderr
    assert f"read_sm tasks run on the master: workers cannot see {folder}" in done.stderr
    assert (folder / "source_model_1.xml").read_bytes() != before


def test_what_counts_as_a_file_of_a_task(blind: Cluster, home: Path) -> None:
    """Also in lists, as a directory, as a link out of the shared directory, and as a calculation kept elsewhere."""
    (home / "folder").mkdir()
    (home / "folder/file").touch()
    (home / "folder/1").touch()
    (home / "folder/inner/one").mkdir(parents=True)
    (blind.shared / "link").symlink_to(home / "folder/file")
    (blind.shared / "file").touch()
    found = blind.python(
        f"""
        import os
        from dataclasses import make_dataclass
        from pathlib import Path
        from types import SimpleNamespace
        from openquake.baselib import config
        from openquake.baselib.general import WeightedSequence
        from openquake.baselib.hdf5 import CSVFile
        from openquake.commonlib.datastore import DataStore
        from oq_celery import inputs, settings
        Later = make_dataclass("Later", ["number", "file"])
        home, shared = Path({str(home)!r}), Path({str(blind.shared)!r})
        os.chdir(home / "folder")
        dstore = DataStore(str(home / "calc_5.hdf5"), mode="w")
        dstore.close()
        def unseen(*tasks, calculation=None):
            monitor = SimpleNamespace(filename=calculation)
            starmap = SimpleNamespace(task_args=tasks, num_tasks=len(tasks), calc_id=calculation and 5, monitor=monitor)
            return inputs.unseen(starmap, tasks[0], settings.load(config)) is not None
        print([
            unseen((1,), (str(home / "folder/file"),)),
            unseen((home / "folder",)),
            unseen(("file",)),
            unseen(([["file"]],)),
            unseen((WeightedSequence([("file", 1)]),)),
            unseen(({{"a": ["no file", "file"]}},)),
            unseen((str(shared / "link"),)),
            unseen((dstore,)),
            unseen(("inner/one",)),
            unseen(([CSVFile(str(home / "folder/file"), [], [], 0, 0, False)],)),
            unseen((Later(1, str(home / "folder/file")),)),
            unseen((1,), calculation=str(home / "calc_5.hdf5")),
        ])
        print([
            unseen(("folder", "no file", "/no/file", "a\\0b", b"file", [], {{}}, None, 0.5, [1, "file"]),),
            unseen((["1"],)),
            unseen((str(shared / "file"),)),
            unseen(("/no file/" + "x" * 5000,), ("x" * 5000,)),
            unseen((1,), calculation=str(shared / "calc_5.hdf5")),
        ])
        """
    )
    assert found.splitlines() == [str([True] * 12), str([False] * 5)]


def test_files_below_the_shared_directory_are_copied_if_workers_must_not_read_them(blind: Cluster) -> None:
    found = blind.python(
        f"""
        import os
        from pathlib import Path
        from types import SimpleNamespace
        from openquake.baselib import config
        from oq_celery import inputs, settings
        folder = Path({str(blind.shared)!r}, "of a user")
        folder.mkdir()
        (folder / "ssm.xml").touch()
        def copied(user, group, folder_mode, file_mode):
            for path, mode in ((folder, folder_mode), (folder / "ssm.xml", file_mode)):
                os.chown(path, user, group)
                path.chmod(mode)
            job = SimpleNamespace(inputs={{}}, _input_files=[str(folder / "ssm.xml")], hazard_calculation_id=None)
            return len(inputs.Staged(settings.load(config), job).files())
        root = inputs.make_root(settings.load(config)).stat()
        owner, group, x = root.st_uid, root.st_gid, 54321
        print(copied(x, group, 0o2770, 0o660), copied(owner, x, 0o700, 0o600), copied(x, x, 0o755, 0o644))
        print(copied(x, group, 0o700, 0o660), copied(x, group, 0o770, 0o600), copied(x, x, 0o770, 0o660))
        """
    )
    assert found.splitlines() == ["0 0 0", "1 1 1"]


def alone_with(directory: Path, code: str) -> list[str]:
    """What code prints that has no broker, with `settings` and `root`, the directory of all copies."""
    config = directory / "openquake.cfg"
    config.write_text(
        "[celery]\nuse_celery = true\n[amqp]\nhost = 127.0.0.1\nuser = oq\npassword = none\n"
        f"[directory]\nshared_dir = {directory}/shared\n"
    )
    (directory / "shared").mkdir()
    begin = "from openquake.baselib import config\nfrom oq_celery import inputs\nfrom oq_celery.settings import load\n"
    begin += "settings = load(config)\nroot = inputs.make_root(settings)\n"
    return processes.python(begin + textwrap.dedent(code), config=config)


def test_a_copy_that_has_not_all_bytes_of_the_original_is_refused_however_it_is_opened(
    tmp_path: Path,
) -> None:
    """As a worker may see one on a network file system; a calculation with half of a model would be a wrong one."""
    (tmp_path / "model.csv").write_text("lon,lat\n1,2\n3,4\n")
    (tmp_path / "whole.csv").write_text("whole")
    found = alone_with(
        tmp_path,
        f"""
        import io, os, h5py
        from pathlib import Path
        from types import SimpleNamespace
        home = {str(tmp_path)!r}
        path, whole = home + "/model.csv", home + "/whole.csv"
        job = SimpleNamespace(inputs={{}}, _input_files=[path, whole], hazard_calculation_id=None)
        directory = inputs.Staged(settings, job).directory()
        ways = {{
            "open": lambda: open(path).read(),
            "io.open": lambda: io.open(file=path).read(),
            "Path": lambda: Path(path).read_text(),
            "os.open": lambda: os.read(os.open(path, os.O_RDONLY), 99),
            "os.stat": lambda: os.stat(path),
            "h5py": lambda: h5py.File(path),
            "is_hdf5": lambda: h5py.is_hdf5(path),
        }}
        copy = inputs.copied(Path(directory), path)
        original = Path(path).read_bytes()
        os.remove(path)  # a worker sees the copy only
        with inputs.seen(directory):
            print(ways["Path"]() == original.decode(), ways["os.stat"]().st_size == len(original))
        for content in (original[:-4], b"", original + b"5,6"):
            copy.write_bytes(content)
            with inputs.seen(directory):
                for name, way in ways.items():
                    try:
                        print(name, way())
                    except OSError as error:
                        print(error)
                print(open(whole).read())
        """,
    )
    copies = "/".join([f"{tmp_path}/shared/oq_celery_inputs", "[^/]+", f"files{tmp_path}/model.csv"])
    refused = (
        rf"The copy of {tmp_path}/model.csv for the workers, {copies}, has not the 16 bytes of the original"
    )
    assert found[0] == "True True"
    assert len(found) == 1 + 3 * 8
    for number in range(3):
        *ways, whole = found[1 + 8 * number : 9 + 8 * number]
        assert whole == "whole"
        for line in ways:
            assert re.fullmatch(refused, line), line


def test_a_sweep_takes_the_copies_of_the_dead_of_this_machine_and_of_nobody_else(tmp_path: Path) -> None:
    """Another machine's calculation may run; after a month it does not."""
    found = alone_with(
        tmp_path,
        """
        import os, socket, subprocess, sys, time
        host, boot, pid = socket.gethostname(), inputs._boot(), os.getpid()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        of_child = f"{host}.{boot}.{child.pid}.{inputs._started(child.pid)}."
        directories = {
            inputs._name(): "alive",
            of_child + "living child": "alive",
            f"{host}.{boot}.{pid}.1.0": "one before it of the same number",
            f"{host}.00000000.{pid}.{inputs._started(pid)}.0": "before a reboot",
            f"{host}.{boot}.no number.1.0": "malformed",
            f"other.host.{boot}.{pid}.1.0": "another machine's",
            f"old.host.{boot}.{pid}.1.0": "another machine's of long ago",
        }
        for name, what in directories.items():
            (root / name / "files").mkdir(parents=True)
            if "long ago" in what:
                long_ago = time.time() - inputs.FOREIGN_SECONDS - 60
                os.utime(root / name, (long_ago, long_ago))
        def left():
            return sorted(directories[path.name] for path in root.iterdir())
        inputs.sweep(settings)
        print(left())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, that is
        inputs.sweep(settings)
        print(left())
        child.wait()
        """,
    )
    assert found == [
        str(["alive", "alive", "another machine's"]),
        str(["alive", "another machine's"]),
    ]
