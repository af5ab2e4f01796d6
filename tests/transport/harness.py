"""A RabbitMQ server, workers and jobs on this machine's loopback, as subprocesses that end with the tests.

The tests run under the project's environment; the engine has its own, which they drive by its commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.transport import forks

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / ".venv-engine"
# The engine's own test calculations, wherever its Python keeps them; no path where there is no engine.
QA_TESTS = next(ENGINE.glob("lib/python3*/site-packages/openquake/qa_tests_data"), Path("no engine"))
# Debian's own start script changes to the user rabbitmq when root calls it; this one runs as who calls.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
NODES_CONFIGURATION = ROOT / "cloud-init/etc/rabbitmq.conf"
COMMANDS = "openquake.commands"  # all of which `oq` imports, whichever it is told
# Variables of the environment that nothing of them reads when it is imported, or `nursery.py` sets right.
FORKS_MAY_CHANGE = {"LOGNAME", "PYTHONUNBUFFERED"}
WORKER_MODULES = "tasks engine_tasks engine_inputs"  # of this directory
USER, PASSWORD, VHOST = "oqlab", "oqlab-secret", "oqlab"
DEADLINE = 600.0  # seconds, against hanging only: numba compiles for minutes the first time, on a busy machine longer

sys.path.insert(0, str(ROOT / "engine"))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def users(directory: Path) -> Iterator[int]:
    """The processes that have a file below a directory open; their environment their titles may have overwritten."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(directory in file.readlink().parents for file in (entry / "fd").iterdir()):
                yield int(entry.name)


def wait_until(condition: Any, what: str, deadline: float = DEADLINE) -> None:
    """Poll a condition; a failure says what was waited for."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s for {what}")
        time.sleep(0.1)


def run(
    command: Sequence[str | Path], env: dict[str, str], *, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without the terminal of the tests, which a calculation would outlive."""
    return subprocess.run(
        command,
        env=env,
        check=check,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        start_new_session=True,
    )


def python(code: str, *arguments: str | Path, config: Path | None = None) -> list[str]:
    """Run code in the engine's environment, without a broker; the lines that it printed.

    Args:
        code: of Python.
        arguments: in sys.argv.
        config: openquake.cfg, for what reads it.
    """
    if not ENGINE.exists():
        pytest.skip("the engine's environment is missing (make .venv-engine/.done)")
    env = {name: value for name, value in os.environ.items() if not name.startswith("OQ_")}
    env |= {"OQ_DISTRIBUTE": "no"} | ({"OQ_CONFIG_FILE": str(config)} if config else {})
    done = run([ENGINE / "bin/python", "-c", textwrap.dedent(code), *arguments], env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


class Process:
    """A subprocess in a session of its own, with its output in a file."""

    def __init__(self, arguments: Sequence[str | Path], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                arguments,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float = DEADLINE) -> int:
        return self._popen.wait(timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End the process and everything that it started, now."""
        if self.running():
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Forked(Process):
    """A command of the engine, forked by a process that has imported it."""

    def __init__(self, child: forks.Child) -> None:
        self._child, self.log = child, child.log

    @property
    def pid(self) -> int:
        return self._child.pid

    def running(self) -> bool:
        return self._child.running()

    def wait(self, timeout: float = DEADLINE) -> int:
        if not self._child.over.wait(timeout):
            raise AssertionError(f"process {self.pid} runs after {timeout:.0f} s: {self.output()[-2000:]}")
        assert self._child.status is not None
        return self._child.status

    def signal(self, number: int) -> None:
        self._child.signal(number)

    def kill(self) -> None:
        self._child.signal_all(signal.SIGKILL)
        self.wait()


class Broker:
    """A RabbitMQ server of its own: data, node name and ports; its limits are those of the nodes' broker."""

    # Where the server sees its directory when it runs in an image.
    _MOUNTED = Path("/mnt")

    def __init__(self, directory: Path, image: Path | None = None) -> None:
        """Prepare a server, which `start` starts.

        Args:
            directory: for its data and logs; does not exist yet.
            image: the root file system that has the server; None: this machine's own. An image needs root.
        """
        self.port, self._dist_port, self._epmd_port = free_port(), free_port(), free_port()
        self._outside, self.image = directory, image
        directory.mkdir()
        (directory / "rabbitmq.conf").write_text(
            f"default_user = {USER}\ndefault_pass = {PASSWORD}\ndefault_vhost = {VHOST}\n" + _nodes_limits()
        )
        (directory / "plugins").write_text("[].")
        directory = self._MOUNTED if image else directory
        self._env = os.environ | {
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"oqlab{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            # The schedulers of an idle Erlang otherwise keep a core busy, looking for work.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        }
        # Started here and not by RabbitMQ, whose epmd would outlive it.
        epmd = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = Process(self._command(epmd), self._outside / "epmd.log", self._env)
        self._server: Process | None = None

    def _command(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command as this broker's system runs it."""
        if self.image is None:
            return list(command)
        # In a mount namespace of its own, so that nothing has to be unmounted and the image stays as it is.
        mounts = (
            'mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --bind "$2" "$1$3" &&'
            ' mount -t tmpfs tmpfs "$1/tmp" && root=$1 && shift 3 && exec chroot "$root" "$@"'
        )
        inside = ["sh", "-ec", mounts, "sh", self.image, self._outside, self._MOUNTED, *command]
        return ["unshare", "--mount", "--", *inside]

    def start(self) -> None:
        self._server = Process(self._command([RABBITMQ]), self._outside / "server.log", self._env)
        server = self._server
        wait_until(lambda: self._answers() or not server.running(), "RabbitMQ to listen")
        assert server.running(), server.output()

    @property
    def pid(self) -> int:
        """The process of the Erlang machine, a child of the start script."""
        assert self._server is not None
        return int(Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()[0])

    def stop(self) -> None:
        """Stop the server in good order; its data stay."""
        if self._server is not None:
            self._server.signal(signal.SIGTERM)
            self._server.wait()

    def remove(self) -> None:
        if self._server is not None:
            self._server.kill()
        self._epmd.kill()

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        command = self._command([RABBITMQ.with_name("rabbitmqctl"), "--quiet", *arguments])
        return run(command, self._env, check=True).stdout

    def version(self) -> str:
        return self.control("version").strip()

    def result_queues(self) -> list[str]:
        """The result queues that there are, of all clusters."""
        names = self.control("list_queues", "-p", VHOST, "name").split()
        return [name for name in names if name.startswith("oq.")]

    def delete_queue(self, name: str) -> None:
        self.control("delete_queue", "--vhost", VHOST, name)

    def depth(self, queue: str) -> int:
        """The number of tasks in a queue, waiting or with a worker."""
        return self._count("messages", queue)

    def waiting(self, queue: str) -> int:
        """The number of tasks in a queue that no worker has."""
        return self._count("messages_ready", queue)

    def has_all(self, queue: str, tasks: int) -> bool:
        """Whether so many tasks wait in a queue and no worker has one of them, nor a copy.

        There may be more messages than tasks: after a broken connection a master sends those again of which it does
        not know that the broker has them.
        """
        return self.waiting(queue) >= tasks and self._count("messages_unacknowledged", queue) == 0

    def _count(self, what: str, queue: str) -> int:
        lines = self.control("list_queues", "-p", VHOST, "name", what).splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == queue)

    def close_connections(self) -> None:
        """Break the connection of everybody."""
        self.control("close_all_connections", "-p", VHOST, "test")

    def _answers(self) -> bool:
        return answers(self.port)


def _nodes_limits() -> str:
    """The nodes' configuration without what is about a machine: addresses, users, logs, the size of its disk."""
    local = ("listeners.", "load_definitions", "log.", "disk_free_limit.")
    lines = NODES_CONFIGURATION.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith(local)) + "\n"


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
        self._nursery: forks.Nursery | None = None
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
        worker = Process([*prefix, *command], self.directory / f"{name}.log", self.env)
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
        if program == "oq" and env.keys() <= FORKS_MAY_CHANGE:
            process: Process = Forked(self.fork(command, log, log, env))
        else:
            process = Process(command, log, self.env | env)
        self.processes.append(process)
        return process

    def oq(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command `oq` to its end."""
        command = [ENGINE / "bin/oq", *arguments]
        if not env.keys() <= FORKS_MAY_CHANGE:
            return run(command, self.env | env)
        # Elsewhere: who has a file of the cluster open is one of its processes.
        with tempfile.TemporaryDirectory() as temporary:
            out, err = Path(temporary, "out"), Path(temporary, "err")
            status = Forked(self.fork(command, out, err, env)).wait()
            return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())

    def fork(
        self, command: Sequence[str | Path], out: Path, err: Path, env: Mapping[str, str]
    ) -> forks.Child:
        """Run a Python script in a fork of a process that has imported the commands of `oq` with this configuration."""
        if self._nursery is None:
            nursery: list[str | Path] = [
                ENGINE / "bin/python",
                Path(__file__).with_name("nursery.py"),
                COMMANDS,
            ]
            log = self.directory.with_name(f"{self.directory.name}-nursery.log")
            self._nursery = forks.Nursery(nursery, self.env, log)
            self._nursery.wait_ready(DEADLINE)
        return self._nursery.fork(out, err, env, command=[str(word) for word in command])

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

    def python(self, code: str, prefix: Sequence[str] = (), **env: str) -> str:
        """Run Python code in the engine's environment and return what it prints."""
        result = run([*prefix, ENGINE / "bin/python", "-c", textwrap.dedent(code)], self.env | env)
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
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None


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
    """Compare every number of two datastores, to the bit.

    Returns:
        What differs by the name of the dataset; the names of what they have in common under "equal".
    """
    script = Path(__file__).with_name("compare.py")
    result = run([ENGINE / "bin/python", script, one, other], env, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found
