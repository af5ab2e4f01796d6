"""Workers and jobs on this machine's loopback, as subprocesses that end with the tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.transport import forks
from tests.transport.processes import (
    DEADLINE,
    ENGINE,
    FORKS_MAY_CHANGE,
    PYTHONS,
    ROOT,
    Forked,
    Process,
    captured,
    run,
    wait_until,
)
from tests.transport.rabbitmq import PASSWORD, USER, VHOST, Broker

# The engine's own test calculations, wherever its Python keeps them; no path where there is no engine.
QA_TESTS = next(ENGINE.glob("lib/python3*/site-packages/openquake/qa_tests_data"), Path("no engine"))
WORKER_MODULES = "tasks engine_tasks engine_inputs"  # of this directory

sys.path.insert(0, str(ROOT / "engine"))


@dataclass
class Job:
    """A finished run of `oq engine --run`."""

    output: str
    status: int
    datastores: list[Path] = field(default_factory=list)


class Cluster:
    """One openquake.cfg with its own queue and directories; starts workers and jobs that use it."""

    def __init__(self, directory: Path, broker: Broker, **changes: str) -> None:
        """Write the configuration.

        Args:
            directory: does not exist yet.
            broker: of the tests.
            changes: values of openquake.cfg by "section.key".
        """
        self.directory = directory
        self.shared = directory / "shared"
        self.data = self.shared / "data"
        self.data.mkdir(parents=True)
        self.queue = directory.name
        self.processes: list[Process] = []
        # Whether its programs may begin as forks, which is sooner than users have it.
        self.forks = True
        self._fork_server: forks.ForkServer | None = None
        values = {
            "celery.use_celery": "true",
            "celery.worker_modules": WORKER_MODULES,
            "amqp.host": "127.0.0.1",
            "amqp.port": str(broker.port),
            "amqp.user": USER,
            "amqp.password": PASSWORD,
            "amqp.vhost": VHOST,
            "amqp.celery_queue": self.queue,
            "distribution.num_cores": "2",
            "directory.shared_dir": str(self.shared),
            "dbserver.host": "127.0.0.1",  # no DbServer: the engine opens the database itself
            "dbserver.file": str(directory / "db.sqlite3"),
        } | changes
        sections: dict[str, list[str]] = {}
        for name, value in values.items():
            section, key = name.split(".")
            sections.setdefault(section, []).append(f"{key} = {value}")
        text = "\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items())
        config = directory / "openquake.cfg"
        config.write_text(text)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("OQ_")} | {
            "OQ_CONFIG_FILE": str(config),
            "OQ_DATADIR": str(self.data),
            "C_FORCE_ROOT": "1",  # Celery refuses pickles as root, which the tests may be
            "PYTHONPATH": str(Path(__file__).parent),  # tasks.py
            "CI": "1",  # the engine does not ask its makers for news
        }

    def worker(
        self, name: str, processes: int = 1, *, changed: str = "", prefix: Sequence[str] = ()
    ) -> Process:
        """Start a worker and wait until it takes tasks.

        Args:
            name: of the worker.
            processes: how many tasks it does at once.
            changed: Python that runs in it first, to shorten its delays or to break it.
            prefix: a command that starts it.
        """
        worker = self._launch(name, processes, changed, prefix)
        self._wait_ready(worker)
        return worker

    def _launch(
        self, name: str, processes: int = 1, changed: str = "", prefix: Sequence[str] = ()
    ) -> Process:
        command: list[str | Path] = [ENGINE / "bin/oq-celery"]
        if changed:
            command = [
                ENGINE / "bin/python",
                "-c",
                f"from openquake.baselib import parallel\n{changed}\nfrom oq_celery.cli import main\nmain()",
            ]
        command += ["worker", f"--concurrency={processes}", f"--name={name}"]
        log = self.directory / f"{name}.log"
        if self.forks and PYTHONS.may_fork([*prefix, *command], self.env):
            worker: Process = Forked(PYTHONS.fork(command, self.env, log, log, locks=False))
        else:
            worker = Process([*prefix, *command], log, self.env)
        self.processes.append(worker)
        return worker

    @staticmethod
    def _wait_ready(worker: Process) -> None:
        wait_until(
            lambda: "ready." in worker.output() or not worker.running(), f"{worker.log.stem} to be ready"
        )
        assert worker.running(), worker.output()

    def workers(self, number: int) -> dict[int, Process]:
        """So many running workers of one process each, by process id; new ones take the place of dead ones."""
        running = [
            process for process in self.processes if "worker-" in process.log.name and process.running()
        ]
        new = [self._launch(f"worker-{len(self.processes)}") for _ in range(number - len(running))]
        for worker in new:  # which start at the same time
            self._wait_ready(worker)
        return {worker.pid: worker for worker in running + new}

    def start(self, *arguments: str | Path, **env: str) -> Process:
        """Start a command of the engine's environment."""
        log = self.directory / f"command-{len(self.processes)}.log"
        program, *rest = arguments
        command: list[str | Path] = [ENGINE / "bin" / program, *rest]
        if self.forks and program == "oq" and env.keys() <= FORKS_MAY_CHANGE:
            process: Process = Forked(self.fork(command, log, log, env))
        elif self.forks and PYTHONS.may_fork(command, self.env | env):
            process = Forked(PYTHONS.fork(command, self.env | env, log, log))
        else:
            process = Process(command, log, self.env | env)
        self.processes.append(process)
        return process

    def oq(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command `oq` to its end."""
        command = [ENGINE / "bin/oq", *arguments]
        if not env.keys() <= FORKS_MAY_CHANGE:
            return run(command, self.env | env)
        with captured() as (out, err):
            status = Forked(self.fork(command, out, err, env)).wait()
            return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())

    def fork(
        self, command: Sequence[str | Path], out: Path, err: Path, env: Mapping[str, str]
    ) -> forks.Child:
        """Run a Python script in a fork of a process that has imported the commands of `oq` with this configuration."""
        if self._fork_server is None:
            command_line: list[str | Path] = [
                ENGINE / "bin/python",
                Path(__file__).with_name("fork_server.py"),
                "commands",
            ]
            log = self.directory.with_name(f"{self.directory.name}-fork-server.log")
            self._fork_server = forks.ForkServer(command_line, self.env, log)
            self._fork_server.wait_ready(DEADLINE)
        return self._fork_server.fork(out, err, env, command=[str(word) for word in command])

    def run(
        self, *inis: Path, prefix: Sequence[str] = (), options: Sequence[str | Path] = (), **env: str
    ) -> Job:
        """Run calculations one after another in one `oq engine` process."""
        words = ["engine", "--multi", "--run", *inis, *options]
        command = [*prefix, ENGINE / "bin/oq", *words]
        result = run(command, self.env | env) if prefix else self.oq(*words, **env)
        output = result.stdout + result.stderr
        return Job(
            output, result.returncode, [Path(p) for p in re.findall(r"Stored .* on (\S+\.hdf5)", output)]
        )

    def python(self, code: str, prefix: Sequence[str] = (), *, fresh: bool = False, **env: str) -> str:
        """Run Python code in the engine's environment and return what it prints; fresh: not in a fork."""
        command: list[str | Path] = [*prefix, ENGINE / "bin/python", "-c", textwrap.dedent(code)]
        result = run(command, self.env | env, fresh=fresh)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def status(self) -> dict[str, Any] | None:
        """What `oq-celery status` finds; None if the broker did not answer it in time, for a busy machine's polls."""
        done = run([ENGINE / "bin/oq-celery", "status", "--json"], self.env)
        found: dict[str, Any] | None = None if done.returncode else json.loads(done.stdout)
        return found

    def with_zeromq_ports(self) -> Path:
        """The same configuration, but with upstream's ports for results of a processpool."""
        changed = self.directory / "with_zeromq_ports.cfg"
        config = (self.directory / "openquake.cfg").read_text()
        changed.write_text(config.replace("receiver_ports = 9-9", "receiver_ports = 1912-1930"))
        return changed

    def end(self) -> None:
        """End every process that was started here."""
        for process in self.processes:
            process.kill()
        if self._fork_server is not None:
            self._fork_server.close()
            self._fork_server = None


@contextmanager
def cluster(directory: Path, broker: Broker, **changes: str) -> Iterator[Cluster]:
    """A cluster whose processes end with the block."""
    made = Cluster(directory, broker, **changes)
    try:
        yield made
    finally:
        made.end()


def qa_job(case: str, directory: Path) -> Path:
    """Copy one of the engine's own test calculations, where the engine may write beside it; its job file."""
    source = QA_TESTS / case
    return shutil.copytree(source, directory / "job") / "job.ini"


def hiding(directory: Path) -> list[str]:
    """The start of a command that cannot see a directory, as workers cannot see the master's homes; for root only."""
    hide = 'mount -t tmpfs none "$0" && exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", hide, str(directory)]


def differences(one: Path, other: Path, env: dict[str, str]) -> dict[str, Any]:
    """Compare every number of two datastores, bit for bit.

    Returns:
        What differs by the name of the dataset; the names of what they have in common under "equal".
    """
    script = Path(__file__).with_name("compare.py")
    result = run([ENGINE / "bin/python", script, one, other], env, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found
