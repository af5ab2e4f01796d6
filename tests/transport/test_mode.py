"""When the engine uses Celery, and what it does then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import oq_celery
import pytest
from oq_celery import cli, hook

from components import facts, instance_types
from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.jobs import held, release, running
from tests.transport.processes import Process, wait_until
from tests.transport.rabbitmq import Broker

HOW = "from openquake.baselib import parallel; print(parallel.oq_distribute())"


@pytest.fixture
def idle(tmp_path: Path, broker: Broker) -> harness.Cluster:
    """A configuration for which there are no workers."""
    return Cluster(tmp_path / "oqlab-idle", broker)


def test_use_celery_is_the_switch(idle: Cluster) -> None:
    assert idle.python(HOW).strip() == "celery"


def test_without_use_celery_the_engine_is_upstreams(tmp_path: Path, broker: Broker) -> None:
    cluster = Cluster(tmp_path / "oqlab-off", broker, **{"celery.use_celery": "false"})
    found = cluster.python(
        """
        import json, sys
        from openquake.baselib import parallel
        replaced = [
            parallel.oq_distribute, parallel.get_return_ip, parallel.Starmap.__init__, parallel.Starmap.submit,
            parallel.Starmap.share, parallel.Starmap.init.__func__, parallel.Starmap.shutdown.__func__,
        ]
        print(json.dumps({
            "modules": sorted({function.__module__ for function in [*replaced, parallel.Socket]}),
            "distributions": sorted(parallel.submit),
            "chosen": parallel.oq_distribute(),
            "loaded": sorted({name.split(".")[0] for name in sys.modules} & {"amqp", "celery"}),
        }))
        """,
        fresh=True,
    )
    assert json.loads(found) == {
        "modules": ["openquake.baselib.parallel", "openquake.baselib.zeromq"],
        "distributions": ["no", "processpool", "slurm", "threadpool", "zmq"],
        "chosen": "processpool",
        "loaded": [],
    }


@pytest.mark.parametrize("chosen", ["no", "processpool"])
def test_a_distribution_in_the_environment_of_a_command_wins(chosen: str, idle: Cluster) -> None:
    assert idle.python(HOW, OQ_DISTRIBUTE=chosen).strip() == chosen


@pytest.mark.parametrize("chosen", ["zmq", "slurm"])
def test_the_workers_of_another_kind_of_cluster_are_those_of_this_one(idle: Cluster, chosen: str) -> None:
    """`run_jobs` sets zmq around several jobs at once, and scripts from other clusters slurm."""
    assert idle.python(HOW, OQ_DISTRIBUTE=chosen).strip() == "celery"


def test_oq_workers_shows_those_of_the_cluster_and_says_who_starts_them(cluster: Cluster) -> None:
    shown = cluster.oq("workers", "status")
    assert shown.returncode == 0, shown.stderr
    assert "RabbitMQ at 127.0.0.1: " in shown.stdout
    refused = cluster.oq("workers", "start")
    assert refused.returncode == 1
    assert "`oq-celery status` shows them" in refused.stderr


def test_a_worker_may_open_files_for_more_processes_than_its_start_allows(
    tmp_path: Path, broker: Broker
) -> None:
    few = ["sh", "-c", 'ulimit -S -n 64 && exec "$@"', "sh"]
    with harness.cluster(tmp_path / "oqlab-many", broker) as cluster:
        assert cluster.worker("many", 12, prefix=few).running()  # after it has said that it is ready


def test_spawned_processes_use_celery_too(idle: Cluster) -> None:
    """As the WebUI's jobs do, whose parent may have imported no more than the engine's base."""
    code = f"""
        import subprocess, sys
        import openquake.baselib
        subprocess.run([sys.executable, "-c", {HOW!r}], check=True)
        """
    assert idle.python(code).strip() == "celery"


def test_other_pythons_of_the_environment_load_next_to_nothing(idle: Cluster) -> None:
    loaded = idle.python("import sys; print(*sys.modules)", fresh=True).split()
    assert {name for name in loaded if name.startswith("oq_celery")} == {"oq_celery", "oq_celery.hook"}
    assert not {"openquake", "typing", "configparser", "amqp", "celery"} & set(loaded)


def test_wrong_settings_are_all_reported_at_once_and_without_a_traceback(
    tmp_path: Path, broker: Broker
) -> None:
    changes = {
        "amqp.host": "",
        "amqp.port": "0",
        "directory.shared_dir": "shared",
        "celery.memory_per_process_mb": "0",
    }
    cluster = Cluster(tmp_path / "oqlab-wrong", broker, **changes)
    for command in (["oq", "engine", "--lhc"], ["oq-celery", "status"], ["oq-celery", "worker"]):
        program, *rest = command
        result = processes.run([processes.ENGINE / "bin" / program, *rest], cluster.env)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        for problem in (
            "[amqp] host is missing",
            "[amqp] port = 0",
            "[directory] shared_dir = shared",
            "[celery] memory_per_process_mb = 0",
        ):
            assert problem in result.stderr
        assert (
            f"(read: {harness.QA_TESTS.parent}/engine/openquake.cfg, {cluster.directory}/openquake.cfg;"
            in result.stderr
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"num_cores = 4\n", "line: 1"),
        (b"[distribution]\nnum_cores 4\n", "[line 2]"),
        (b"[distribution]\nnum_cores = 4\nnum_cores = 8\n", "[line 3]"),
        (b"[distribution]\nserialize_jobs = many\n", "serialize_jobs"),
        (b"[distribution]\n# Universit\xe9\n", "byte 0xe9"),
    ],
    ids=["no section", "no equals sign", "twice", "no number", "another encoding"],
)
def test_a_file_of_the_users_that_cannot_be_read_is_one_line_that_names_it(
    text: bytes, words: str, tmp_path: Path
) -> None:
    """Of the one that is not UTF-8 without the number of the line."""
    own = tmp_path / "openquake.cfg"
    own.write_bytes(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OQ_")}
    result = processes.run(
        [processes.ENGINE / "bin/oq-celery", "status"], environment | {"HOME": str(tmp_path)}
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert str(own) in line
    assert words in line
    assert "Correct it" in line


class Node:
    """A master whose openquake.cfg is where nodes have it: in the engine's environment, with a user's own after it."""

    def __init__(self, cluster: Cluster, home: str = "") -> None:
        """Make an environment that is the engine's but for its openquake.cfg.

        Args:
            cluster: whose configuration it has.
            home: what the user's file says.
        """
        environment, self.home = cluster.directory / "environment", cluster.directory / "home"
        self.site = cluster.directory / "openquake.cfg"
        (environment / "bin").mkdir(parents=True)
        self.home.mkdir()
        self._python = environment / "bin/python"
        self._python.symlink_to((processes.ENGINE / "bin/python").resolve())
        shutil.copy(processes.ENGINE / "pyvenv.cfg", environment)
        (environment / "lib").symlink_to(processes.ENGINE / "lib")
        (environment / "openquake.cfg").symlink_to(self.site)
        (self.home / "openquake.cfg").write_text(home)
        self._env = {name: value for name, value in cluster.env.items() if name != "OQ_CONFIG_FILE"}

    def run(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return processes.run([self._python, *words], self._env | {"HOME": str(self.home)} | env)

    def refusal(self, *words: str | Path, **env: str) -> list[str]:
        """What a command of the engine's environment says that does not run, in lines."""
        program, *rest = words
        done = self.run(processes.ENGINE / "bin" / program, *rest, **env)
        assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
        return done.stderr.splitlines()


@pytest.mark.parametrize("command", ["oq engine --lhc", "oq-celery status"])
def test_upstreams_template_as_a_users_own_file_is_refused_by_its_name(
    command: str, tmp_path: Path, broker: Broker
) -> None:
    """It has no shared directory, which was missed in the cluster's file, and a database of its own."""
    template = (harness.QA_TESTS.parent / "engine/openquake.cfg").read_text()
    site = Cluster(tmp_path / "oqlab-template", broker, **{"dbserver.authkey": "of-the-cluster"})
    node = Node(site, template)
    said, *lines = node.refusal(*command.split())
    assert said.startswith(
        f"{node.home}/openquake.cfg changes what all calculations of this cluster have in common"
    )
    assert (
        f"  - [directory] shared_dir = nothing, where the cluster has {site.shared} in {node.site}" in lines
    )
    assert f"  - [dbserver] authkey = (not shown), where the cluster has another one in {node.site}" in lines
    assert len(lines) == 3  # and the database's file


def test_a_users_own_file_without_a_shared_directory_does_not_compute_beside_the_cluster(
    tmp_path: Path, broker: Broker
) -> None:
    site = Cluster(tmp_path / "oqlab-beside", broker, **{"dbserver.host": "10.0.0.5"})
    node = Node(site, "[dbserver]\nhost = 127.0.0.1\nfile = ~/oqdata/db.sqlite3\n")
    _, *lines = node.refusal("oq", "engine", "--lhc")
    assert f"  - [dbserver] host = 127.0.0.1, where the cluster has 10.0.0.5 in {node.site}" in lines
    assert not (node.home / "oqdata").exists()


def test_a_users_own_number_of_cores_is_in_the_log_of_a_calculation(tmp_path: Path, broker: Broker) -> None:
    """Where tasks go to the cluster, and no other number is chosen for the command."""
    site = Cluster(tmp_path / "oqlab-cores", broker, **{"distribution.num_cores": "64"})
    node = Node(site, "[distribution]\nnum_cores = 1\n")
    code = """
import os
from openquake.commonlib import logs
from openquake.engine import engine
logs.dbcmd("upgrade_db")
for how, cores in (("celery", ""), ("processpool", ""), ("celery", "2")):
    os.environ["OQ_DISTRIBUTE"], os.environ["OQ_NUM_CORES"] = how, cores
    (job,) = engine.create_jobs([{"calculation_mode": "classical", "description": "one"}])
    with job:
        pass
    print([line for line in logs.dbcmd("get_log", job.calc_id) if "num_cores" in line])
"""
    done = node.run("-c", code)
    assert done.returncode == 0, done.stderr
    said, *others = done.stdout.splitlines()[-3:]
    assert (
        f"{node.home}/openquake.cfg says [distribution] num_cores = 1, where the cluster has 64 in {node.site}: "
        "at most 2 tasks are with the workers at once"
    ) in said
    assert others == ["[]", "[]"]


@pytest.mark.parametrize("command", ["oq engine --lhc", "oq-celery worker"])
def test_the_switch_of_later_clusters_of_old_is_answered_with_the_one_of_today(
    command: str, tmp_path: Path, broker: Broker
) -> None:
    changes = {"celery.use_celery": "", "distribution.oq_distribute": "celery"}
    site = Cluster(tmp_path / "oqlab-old", broker, **changes)
    text = (site.directory / "openquake.cfg").read_text()
    (site.directory / "openquake.cfg").write_text(text.replace("use_celery = \n", ""))
    program, *rest = command.split()
    done = processes.run([processes.ENGINE / "bin" / program, *rest], site.env)
    assert (done.returncode, done.stdout) == (1, "")
    _, problem = done.stderr.splitlines()
    assert problem.startswith(
        "  - [distribution] oq_distribute = celery: say processpool, and use_celery = true"
    )


@pytest.mark.parametrize("chosen", ["dask", ""])
def test_a_distribution_that_there_is_not_is_answered_with_those_that_there_are(
    chosen: str, idle: Cluster
) -> None:
    done = processes.run(
        [processes.ENGINE / "bin/oq", "engine", "--lhc"], idle.env | {"OQ_DISTRIBUTE": chosen}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"OQ_DISTRIBUTE={chosen}: say no, processpool or celery; without it, it is celery\n"


def test_every_distribution_of_the_engine_is_known(idle: Cluster) -> None:
    found = idle.python("from openquake.baselib import parallel; print(*sorted(parallel.submit))")
    assert tuple(found.split()) == hook.DISTRIBUTIONS


@pytest.mark.parametrize(
    ("cores", "nominal_mb", "visible_mb"),
    [(8, 16384, 15700), (2, 4096, 3780), (4, 8192, 7985), (2, 8192, 7700), (64, 131072, 126000)],
)
def test_a_worker_runs_as_many_processes_as_the_program_counts_with(
    cores: int, nominal_mb: int, visible_mb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program knows what AWS sells, and a machine sees a little less memory than that."""
    sizes = {"SC_PHYS_PAGES": visible_mb * 256, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(cores))
    for reserved_mb in facts.RESERVED_MB.values():
        counted = instance_types.processes(
            instance_types.InstanceType("sold", cores, nominal_mb), reserved_mb
        )
        assert cli.default_concurrency(facts.MEMORY_PER_PROCESS_MB, reserved_mb) == counted


def test_a_task_sees_the_variables_by_which_its_command_computes_something_else(cluster: Cluster) -> None:
    """As in a process of a processpool. Where and how its process runs is the worker's."""
    code = """
        from openquake.baselib.parallel import Starmap
        import tasks
        if __name__ == "__main__":
            names = "OQ_RUPTURE", "OQ_CONFIG_FILE", "OQ_DISTRIBUTE", "OQ_NUM_CORES"
            found = Starmap(tasks.environment, [(name,) for name in names]).reduce()
            configured = found["OQ_CONFIG_FILE"] is not None
            print(found["OQ_RUPTURE"], configured, found["OQ_DISTRIBUTE"], found["OQ_NUM_CORES"])
        """
    for _ in range(2):  # workers' processes, of which each has done several
        assert cluster.python(code, OQ_RUPTURE="7", OQ_NUM_CORES="3").split() == ["7", "True", "no", "None"]
        assert cluster.python(code).split() == ["None", "True", "no", "None"]


def test_a_task_sees_the_settings_by_which_its_user_makes_it_smaller(cluster: Cluster) -> None:
    """Those of the memory of a machine are the worker's."""
    code = """
        from openquake.baselib import config
        from openquake.baselib.parallel import Starmap
        import tasks
        if __name__ == "__main__":
            config.memory |= {changes}
            names = "max_assets_chunk", "max_ruptures_chunk", "hard_mem_limit"
            found = Starmap(tasks.configured, [(name,) for name in names]).reduce()
            print(*(found[name] for name in names))
        """
    mine = {"max_assets_chunk": "77", "hard_mem_limit": 98}
    for _ in range(2):
        assert cluster.python(code.format(changes=mine)).split() == ["77", "5000", "99"]
        assert cluster.python(code.format(changes={})).split() == ["10_000", "5000", "99"]


def test_tasks_with_modules_of_their_users_stay_on_the_master(cluster: Cluster) -> None:
    """Workers have the engine's package and no other."""
    code = """
        import logging, sys
        from openquake.baselib import parallel
        import tasks
        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            smap = parallel.Starmap(tasks.square, [([1],), ([2],)])
            print(sorted(smap.reduce().items()))
            parallel.Starmap.shutdown()
        """
    found = cluster.python(code, OQ_IMPORT_PATH="gmms", OQ_CONFIG_FILE=str(cluster.with_zeromq_ports()))
    warning, *_, last = found.splitlines()
    assert (warning, last) == (
        "square tasks run on the master: workers cannot see gmms",
        "[(1, 1), (2, 4)]",
    )


def test_tasks_and_models_of_a_users_program_stay_on_the_master(tmp_path: Path, cluster: Cluster) -> None:
    """A worker could import neither; the second program's tasks are the engine's, but it has a model of its own."""
    task, model = tmp_path / "task.py", tmp_path / "model.py"
    begin = """
import logging, sys
from openquake.baselib import parallel
import tasks
logging.basicConfig(stream=sys.stdout, format="%(message)s")
"""
    end = """
if __name__ == "__main__":
    print(sorted(parallel.Starmap({}, [([1],), ([2],)]).reduce().items()))
    parallel.Starmap.shutdown()
"""
    task.write_text(
        begin + "def twice(numbers, monitor):\n    return {n: 2 * n for n in numbers}\n" + end.format("twice")
    )
    base = "openquake.hazardlib.gsim.boore_atkinson_2008"
    own = f"from {base} import BooreAtkinson2008\nclass Own(BooreAtkinson2008):\n    pass\n"
    model.write_text(begin + own + end.format("tasks.square"))
    for script, name, results in ((task, "twice", [(1, 2), (2, 4)]), (model, "square", [(1, 1), (2, 4)])):
        program = cluster.start("python", script, OQ_CONFIG_FILE=str(cluster.with_zeromq_ports()))
        assert program.wait() == 0, program.output()
        lines = program.output().splitlines()
        assert f"{name} tasks run on the master: workers cannot see {script}" in lines
        assert str(results) in lines


def test_a_processpool_on_the_master_has_the_cores_of_the_master(tmp_path: Path, broker: Broker) -> None:
    """`num_cores` is the fleet's: 64 processes on a master of one core would only stand in each other's way."""
    cluster = Cluster(tmp_path / "oqlab-pool", broker, **{"distribution.num_cores": "64"})
    code = """
        from openquake.baselib.parallel import Starmap, num_cores
        if __name__ == "__main__":
            Starmap.init("processpool")
            print(len(Starmap.pids), Starmap.CT, num_cores)
            Starmap.shutdown()
        """
    assert cluster.python(code, prefix=["taskset", "--cpu-list", "0"]).split() == ["1", "128", "64"]


def test_a_processpool_on_the_master_wants_memory_for_its_own_processes(
    tmp_path: Path, broker: Broker
) -> None:
    """Upstream wants a quarter of a GB for each of `num_cores`, and computes in one process else."""
    cluster = Cluster(tmp_path / "oqlab-pool", broker, **{"distribution.num_cores": "4000"})
    job = cluster.run(harness.qa_job("event_based/case_2", tmp_path), OQ_DISTRIBUTE="processpool")
    assert (job.status, "SLOW MODE" in job.output) == (0, False), job.output


def test_no_more_calculations_of_a_command_run_at_once_than_the_queue_lets_run(
    tmp_path: Path, broker: Broker
) -> None:
    """Upstream's number is of a machine with the fleet's cores; it stays where it is less, or there is no queue."""
    cluster = Cluster(tmp_path / "oqlab-several", broker)
    code = """
        import os
        from unittest import mock
        from openquake.commonlib import logs
        from openquake.engine import engine
        logs.dbcmd("upgrade_db")
        found = []
        with mock.patch.object(engine, "_run", lambda *given: found.append(given[4])):
            for cores, queue, options, how in (
                (800, 2, {}, "celery"), (800, 2, {"concurrent_jobs": 3}, "celery"), (16, 4, {}, "celery"),
                (4, 4, {}, "celery"), (800, 0, {}, "celery"), (800, 2, {}, "processpool"),
            ):
                os.environ["OQ_DISTRIBUTE"] = how
                engine.parallel.num_cores, engine.config.distribution["serialize_jobs"] = cores, queue
                number = 3
                jobs = engine.create_jobs([{"calculation_mode": "classical", "description": "one"}] * number)
                engine.run_jobs(jobs, **options)
                for job in jobs:
                    logs.dbcmd("finish", job.calc_id, "complete")
        print(found)
        """
    assert cluster.python(code).splitlines()[-1] == "[2, 3, 2, 1, 100, 1]"


def test_a_job_waits_for_workers_and_says_so(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-late", broker) as cluster:
        job = cluster.start("oq", "engine", "--run", harness.qa_job("event_based/case_2", tmp_path))
        wait_until(lambda: "Waiting for workers: 0 alive, 2 tasks queued" in job.output(), "the log line")
        assert job.running()
        cluster.worker("late")
        assert job.wait() == 0, job.output()


def test_arrays_in_shared_memory_stay_on_the_master(cluster: Cluster) -> None:
    """Conditioned ground motion fields are computed with `Starmap.share`, and shared memory ends at the machine."""
    found = cluster.python(
        """
        import logging, numpy, sys
        from openquake.baselib import parallel
        import tasks
        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            smap = parallel.Starmap(tasks.shared_sum)
            smap.share(numbers=numpy.arange(10))
            for power in (1, 2):
                smap.submit((power,))
            print(smap.distribute, sorted(smap.reduce().items()))
            parallel.Starmap.shutdown()
        """,
        OQ_CONFIG_FILE=str(cluster.with_zeromq_ports()),
    )
    warning, *_, last = found.splitlines()
    assert last == "processpool [(1, 45), (2, 285)]"
    assert re.fullmatch(
        r"shared_sum tasks run on the \d+ cores of the master: they share its memory", warning
    )


def test_an_exception_in_a_task_reaches_the_job_with_its_traceback(cluster: Cluster) -> None:
    found = cluster.python(
        """
        from openquake.baselib import parallel
        from openquake.commonlib import logs
        from openquake.commonlib.datastore import create_job_dstore
        import tasks
        logs.dbcmd("upgrade_db")
        log, dstore = create_job_dstore()
        try:
            with log:
                parallel.Starmap(tasks.fail, [([1],), ([2],)], h5=dstore.hdf5).reduce()
        except ValueError as error:
            print("raised", error)
        print(*logs.dbcmd("get_log", log.calc_id), sep="\\n")
        """
    )
    raised, logged = found.split("raised", 1)[1], found
    assert "cannot square [" in raised
    assert "tests/transport/tasks.py" in logged
    assert "raise ValueError" in logged


def test_a_worker_of_another_version_is_refused_with_both_versions_in_the_error(
    tmp_path: Path, broker: Broker
) -> None:
    with harness.cluster(tmp_path / "oqlab-versions", broker, **{"celery.max_attempts": "1"}) as cluster:
        cluster.worker("old")
        found = cluster.python(
            """
            import oq_celery
            oq_celery.__version__ = "99.0"
            from openquake.baselib import parallel
            import tasks
            try:
                parallel.Starmap(tasks.square, [([1],), ([2],)]).reduce()
            except RuntimeError as error:
                print(error)
            """
        )
    assert f"oq_celery {oq_celery.__version__}" in found
    assert "oq_celery 99.0" in found


def test_status_shows_workers_and_queue(cluster: Cluster) -> None:
    names = ["openquake@one", "openquake@two"]
    found: list[dict[str, Any]] = []

    def both_answer() -> bool:
        """Who does not answer in a second, as on a busy machine, is not listed."""
        found[:] = [status] if (status := cluster.status()) else []
        return bool(found) and [worker["name"] for worker in found[0]["workers"]] == names

    wait_until(both_answer, "both workers to answer", 60)
    assert {worker["processes"] for worker in found[0]["workers"]} == {1}
    assert found[0]["waiting"] == 0


def started(directory: Path) -> set[str]:
    """The jobs that are held there, with the engine imported, which takes a while."""
    return {path.stem for path in directory.glob("?.*")}


def test_a_short_job_does_not_wait_for_the_whole_queue_of_a_long_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    code = """
        from openquake.baselib import parallel
        import tasks
        job, number, directory = {job!r}, {number}, {directory!r}
        tasks.pause(directory, job)
        print(parallel.Starmap(tasks.turn, [(job, directory, n) for n in range(number)]).reduce())
        """

    def start(job: str, number: int, in_flight: int) -> contextlib.AbstractContextManager[list[Process]]:
        """Begin a job, up to where it has imported the engine: that takes longest on a busy machine."""
        text = code.format(job=job, number=number, directory=bytes(tmp_path))
        return running(cluster, text, OQ_NUM_CORES=str(in_flight // 2))

    turns = tmp_path / "turns"
    with held(tmp_path, "S", "L"), start("S", 6, 6) as (short,), start("L", 400, 200) as (long,):
        wait_until(lambda: started(tmp_path) == {"S", "L"}, "both to have imported the engine")
        release(tmp_path, "L")
        wait_until(lambda: turns.exists() and len(turns.read_text()) > 20, "the long job to compute")
        release(tmp_path, "S")
        assert short.wait() == 0, short.output()
        assert long.running()
        during = turns.read_text().split("S", 1)[1].rsplit("S", 1)[0]
        assert during.count("S") == 4
        assert during.count("L") < 20
        assert long.wait() == 0


def test_a_calculation_that_submits_all_tasks_at_once_and_one_that_does_not_take_turns(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Upstream's event based calculators do the first, its classical ones the second."""
    code = """
        from openquake.baselib import parallel
        import tasks
        tasks.pause({directory!r}, {job!r})
        smap = parallel.Starmap(tasks.turn, {listed})
        for number in {submitted}:
            smap.submit(({job!r}, {directory!r}, number))
        print(smap.reduce())
        """
    directory = bytes(tmp_path)
    submitting = code.format(job="S", listed=[], submitted="range(100)", directory=directory)
    listing = code.format(
        job="L", listed=[("L", directory, number) for number in range(100)], submitted=[], directory=directory
    )
    with held(tmp_path, "S", "L"), running(cluster, submitting, listing) as jobs:
        wait_until(lambda: started(tmp_path) == {"S", "L"}, "both to have imported the engine")
        release(tmp_path, "S", "L")
        assert [job.wait() for job in jobs] == [0, 0], [job.output() for job in jobs]
    turns = (tmp_path / "turns").read_text()
    together = turns[max(turns.index("S"), turns.index("L")) :][:60]
    assert min(together.count("S"), together.count("L")) >= 20, turns


def test_what_a_process_remembers_of_a_calculation_ends_with_its_master(cluster: Cluster) -> None:
    """Or the next calculation of the same number, after a new database, would be computed with another's sources."""
    code = """
        from openquake.baselib import parallel
        import tasks
        print(sum(parallel.Starmap(tasks.remembered, [(number,) for number in range(8)]), []))
        """
    for _ in range(2):
        found = cluster.python(code)
        assert "calc_1.hdf5" in found  # the same master's tasks do share it,
        assert found.count("calc_1.hdf5") <= 7  # but the first one of a process finds nothing


def test_a_process_interpolates_for_a_calculation_as_if_there_had_been_none_before(cluster: Cluster) -> None:
    """The rest of what a process forgets is in test_worker.py; this shows that a worker's processes do."""
    code = """
        from openquake.baselib import parallel
        import tasks
        print(min(sum(parallel.Starmap(tasks.interpolated, [(number,) for number in range(8)]), [])))
        """
    first, second = (cluster.python(code).split()[-1] for _ in range(2))
    assert first == second


def test_a_wrong_password_is_said_at_once(tmp_path: Path, broker: Broker) -> None:
    cluster = Cluster(tmp_path / "oqlab-password", broker, **{"amqp.password": "wrong"})
    found = cluster.python(
        """
        from openquake.baselib import parallel
        import tasks
        try:
            parallel.Starmap(tasks.square, [([1],), ([2],)]).reduce()
        except RuntimeError as error:
            print(error)
        """
    )
    assert "refuses oq_celery" in found
    assert "ACCESS_REFUSED" in found


def test_status_shows_the_tasks_of_each_job(cluster: Cluster, tmp_path: Path) -> None:
    code = f"""
        from openquake.baselib import parallel
        import tasks
        print(len(parallel.Starmap(tasks.held, [(n, {bytes(tmp_path)!r}, b"") for n in range(300)]).reduce()))
        """
    each_worker = "task 0", "task 1"  # has one, and all others wait
    seen: list[dict[str, Any]] = []

    def tasks_wait() -> bool:
        status = cluster.status()
        seen[:] = [row for row in status["tasks"] if row["waiting"]] if status else []
        return bool(seen) and seen[0]["running"] == 2

    with held(tmp_path, *each_worker), running(cluster, code, OQ_NUM_CORES="150") as (job,):
        wait_until(tasks_wait, "the job's waiting tasks", 120)
        assert [(row["job"], row["name"], row["done"], row["waiting"]) for row in seen] == [
            (0, "held", 0, 298)
        ]
        release(tmp_path, *each_worker)
        assert job.wait() == 0
    assert job.output().split()[-1] == "300"


def test_nothing_of_a_finished_job_stays_behind(cluster: Cluster, broker: Broker) -> None:
    cluster.python(
        """
        from openquake.baselib import parallel
        import tasks
        big = [b"x" * 400_000 + bytes([i]) for i in range(4)]
        print(parallel.Starmap(tasks.size, [(item,) for item in big]).reduce())
        """
    )
    assert list((cluster.shared / "oq_celery").iterdir()) == []
    assert broker.result_queues() == []
