"""The three ways to distribute a calculation that are compared, each with a configuration of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.transport import rabbitmq
from tests.transport.harness import Cluster
from tests.transport.processes import ENGINE, Process, free_port, wait_until
from tests.transport.rabbitmq import Broker

OURS = "oq_celery"
MODES = ("processpool", "zmq", OURS)
CORES = len(os.sched_getaffinity(0))
HOUR = 3600.0


class Skipped(Exception):
    """A part cannot be measured here; the message is the reason."""


def require_engine() -> None:
    """Skipped when RabbitMQ or the engine's environment is missing."""
    if not rabbitmq.RABBITMQ.exists():
        raise Skipped("no RabbitMQ: apt-get install rabbitmq-server")
    if not (ENGINE / "bin/oq-celery").exists():
        raise Skipped("no engine: make .venv-engine/.done")


@contextmanager
def running_broker(directory: Path) -> Iterator[Broker]:
    """A RabbitMQ server that ends with the block."""
    require_engine()
    broker = Broker(directory / "broker")
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


class Mode:
    """A configuration of the engine for one of MODES, and the workers of it."""

    def __init__(self, name: str, directory: Path, broker: Broker, processes: int = CORES) -> None:
        self.name = name
        self.processes = processes
        self._ctrl_port = free_port()
        # The tasks of starmaps.py are the workers' business, or the master would do them.
        changes = {"distribution.num_cores": str(processes), "celery.worker_modules": "starmaps"}
        if name != OURS:
            first = free_port()
            changes |= {
                "celery.use_celery": "false",
                "distribution.oq_distribute": name,
                "zworkers.host_cores": f"127.0.0.1 {processes}",
                "zworkers.ctrl_port": str(self._ctrl_port),
                "dbserver.receiver_host": "127.0.0.1",
                "dbserver.receiver_ports": f"{first}-{first + 100}",
            }
        self._directory = directory / f"oqlab-{name}-{processes}"
        self.cluster = Cluster(self._directory, broker, **changes)
        self.cluster.forks = False  # the starts are measured, too
        temporary = self._directory / "tmp"
        temporary.mkdir()
        self.cluster.env |= {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(temporary)}
        self._workers: Process | None = None

    def start_workers(self) -> None:
        """Start the worker processes; a processpool belongs to its master and has none."""
        if self.name == OURS:
            self._workers = self.cluster.worker("workers", self.processes)
        elif self.name == "zmq":
            # The command that `oq workers start` runs, here with its output in a file.
            command = ["-m", "openquake.baselib.workerpool", str(self.processes)]
            workers = self._workers = self.cluster.start("python", *command)
            wait_until(lambda: _listens(self._ctrl_port) or not workers.running(), "the ZeroMQ workers")
            if not workers.running():
                raise RuntimeError(workers.output())

    def stop_workers(self) -> None:
        """End them."""
        if self._workers is not None:
            self._workers.kill()
            self._workers.log.unlink()
            self._workers = None

    def starmap(self, **what: Any) -> dict[str, float]:
        """Run tasks of `starmaps.py`; see its `run` for the arguments and what comes back."""
        code = "import starmaps; starmaps.main()"
        printed = self.execute(
            ENGINE / "bin/python", "-c", code, json.dumps(what | {"processes": self.processes})
        )
        measured: dict[str, float] = json.loads(printed.splitlines()[-1])
        return measured

    def execute(self, *command: str | Path) -> str:
        """Run a command to its end with this configuration; what it printed, RuntimeError when it fails."""
        process = subprocess.Popen(
            command,
            env=self.cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=HOUR)
        finally:
            _kill_session(process)
        if process.returncode:
            raise RuntimeError(f"{self.name}: exit {process.returncode}: {(output + errors)[-3000:]}")
        return output

    def end(self) -> None:
        """End every process of it."""
        self.cluster.end()


def _kill_session(process: subprocess.Popen[str]) -> None:
    """Kill a process and its session, which may outlive it (ZeroMQ workers do when their master fails)."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@contextmanager
def ready(name: str, directory: Path, broker: Broker, processes: int = CORES) -> Iterator[Mode]:
    """A mode with its workers running; all of it ends with the block."""
    mode = Mode(name, directory, broker, processes)
    try:
        mode.start_workers()
        yield mode
    finally:
        mode.end()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
