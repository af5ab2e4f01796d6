"""A cluster on this machine's loopback that is started once and broken many times: RabbitMQ, workers, masters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from explorer.proxy import Loop, Proxy
from explorer.schedule import PROCESSES, WORKERS
from explorer.workload import MESSAGE_KB
from tests.transport import forks, processes, rabbitmq
from tests.transport.forks import Child
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

MASTERS: Final = 2
Config = Mapping[str, str | int]
"""Values of openquake.cfg by "section.key", as the engine has them when it has read them."""
# What openquake.cfg says in all worlds; the rest is of one world or of one process (`World._config`).
COMMON: Final[Config] = {
    "celery.use_celery": "true",
    "celery.worker_modules": "explorer",
    "celery.max_message_kb": str(MESSAGE_KB),
    "amqp.host": "127.0.0.1",
    "amqp.port": "1",
    "amqp.user": rabbitmq.USER,
    "amqp.password": rabbitmq.PASSWORD,
    "amqp.vhost": rabbitmq.VHOST,
    "distribution.num_cores": str(WORKERS * PROCESSES),
    "distribution.serialize_jobs": "1000",  # a job does not wait for one whose master was killed, as `reap` sees to
    "directory.shared_dir": "/nonexistent",
    "dbserver.host": "127.0.0.1",
}
SHARED_MB: Final = 512  # of the shared directory, where it is a file system of its own
# Longer than any fault cuts a master off; a worker has to see a directory without a queue for so long.
FILES_SECONDS: Final = 90.0
# By this name the engine takes the DbServer for one that is elsewhere, and does not open the database itself.
DATABASE: Final = {"OQ_DATABASE": "localhost"}
# Delays of the transport that are longer than the explorer's patience, by module and name: of workers, and of masters.
SHORT_DELAYS: Final = {
    "worker": {
        "watch.SWEEP_SECONDS": 5.0,
        "watch.FILES_SECONDS": FILES_SECONDS,
        "worker.LONGEST_PAUSE_SECONDS": 8.0,
        "valve.LONGEST_PAUSE_SECONDS": 8.0,
        "valve.RECOVER_SECONDS": 15.0,
    },
    "master": {"ledger.LOST_SECONDS": 8.0},
}
SWEEP_SECONDS: Final = 60.0  # for a look at directories that is due, on a busy machine
READY_SECONDS: Final = 120.0  # for a worker to start and to consume, on a busy machine
DRAIN_SECONDS: Final = 75.0  # for messages of jobs that have ended to be dropped, on a busy machine


def environment(config: Path, values: Config, temporary: Path) -> dict[str, str]:
    """Write an openquake.cfg, and return the environment of processes that use it.

    Args:
        config: the file.
        values: over the common ones, by "section.key".
        temporary: for temporary files.
    """
    sections: dict[str, list[str]] = {}
    for name, value in {**COMMON, **values}.items():
        section, key = name.split(".")
        sections.setdefault(section, []).append(f"{key} = {value}")
    config.write_text("\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections.items()))
    return {name: value for name, value in os.environ.items() if not name.startswith("OQ_")} | {
        "OQ_CONFIG_FILE": str(config),
        "C_FORCE_ROOT": "1",  # Celery refuses pickles as root
        "PYTHONPATH": str(processes.ROOT),
        "TMPDIR": str(temporary),
        "CI": "1",  # the engine does not ask its makers for news
    }


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class ForkServer(forks.ForkServer):
    """The driver's end of `explorer.fork_server`."""

    def __init__(self, kind: str, directory: Path) -> None:
        super().__init__(
            [processes.ENGINE / "bin/python", "-m", "explorer.fork_server", kind],
            environment(directory / f"{kind}.cfg", {}, directory),
            directory / f"fork-server-{kind}.log",
        )

    def begin(
        self,
        kind: str,
        log: Path,
        config: Config,
        env: dict[str, str] | None = None,
        *,
        own_mounts: bool = False,
        **request: Any,
    ) -> Child:
        """Start a process.

        Args:
            kind: "worker", "master" or "engine".
            log: for its output.
            config: values of openquake.cfg by "section.key".
            env: variables of its environment.
            own_mounts: whether it has a mount namespace of its own.
            request: what the kind needs.
        """
        delays = SHORT_DELAYS["worker" if kind == "worker" else "master"]
        own = {"kind": kind, "delays": delays, "config": dict(config), "own_mounts": own_mounts}
        return self.fork(log, log, env or {}, **own, **request)


class BrokerClient:
    """The driver's end of `explorer.broker_client`."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._lock = threading.Lock()
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                [processes.ENGINE / "bin/python", "-m", "explorer.broker_client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env,
                text=True,
                start_new_session=True,
            )

    def do(self, action: str, queue: str, number: int = 0) -> Any:
        """Do one thing, see `explorer.broker_client`; None also when the broker is away."""
        with self._lock:
            assert self._popen.stdin is not None
            assert self._popen.stdout is not None
            self._popen.stdin.write(json.dumps({"action": action, "queue": queue, "number": number}) + "\n")
            self._popen.stdin.flush()
            return json.loads(self._popen.stdout.readline()).get("answer")

    def close(self) -> None:
        """End them."""
        self._popen.kill()
        self._popen.wait()


class World:
    """RabbitMQ, the workers, and the places where masters run, each behind a proxy of its own."""

    _open: ClassVar[set[World]] = set()

    @classmethod
    def remove_all(cls) -> None:
        """Remove all that are there, also those that are being made."""
        for world in list(cls._open):
            world.remove()

    def __init__(self, directory: Path, fork_servers: dict[str, ForkServer]) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self._fork_servers = fork_servers
        self._loop = Loop()
        self.worker_proxies: list[Proxy] = []
        self.master_proxies: list[Proxy] = []
        self.workers: list[Child] = []
        self._others: list[Child] = []  # masters and DbServers
        self.broker_client: BrokerClient | None = None
        self.broker = Broker(directory / "broker")
        World._open.add(self)
        self.root = os.geteuid() == 0
        self.mount = directory / "mount"
        self.mount.mkdir()
        if self.root:
            size = f"size={SHARED_MB}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "oqlab-explorer", self.mount], check=True)
        self.shared = self.mount / "shared"
        self.shared.mkdir()
        self.spool = self.shared / "oq_celery"
        self.queue = "oqlab-explorer"
        self.broker_lock = threading.Lock()
        self.files_lock = threading.Lock()
        self.database_lock = threading.Lock()
        self._database: Child | None = None
        self._database_port = processes.free_port()
        # The engine's data, where the workers see them.
        self.data = self.shared / "data"
        self.data.mkdir()
        # Workers that a fault has ended, which is no trouble of theirs.
        self.ended: set[int] = set()
        # Directories of lost masters, which the workers have to remove when they have been left alone for a while.
        self.later: list[Path] = []
        self._starts = 0
        try:
            self._start()
        except BaseException:
            self.remove()
            raise

    def _start(self) -> None:
        self.broker.start()
        self.worker_proxies = [Proxy(self._loop, self.broker.port) for _ in range(WORKERS)]
        self.master_proxies = [Proxy(self._loop, self.broker.port) for _ in range(MASTERS)]
        direct = environment(self.directory / "direct.cfg", self._config(self.broker.port), self.directory)
        self.broker_client = BrokerClient(direct, self.directory / "broker-client.log")
        self.workers = [self._launch(number) for number in range(WORKERS)]
        assert (trouble := self.settle()) == [], trouble

    def _config(self, port: int) -> Config:
        """What openquake.cfg says to those that reach the broker by that port."""
        return {
            "amqp.port": str(port),
            "amqp.celery_queue": self.queue,
            "directory.shared_dir": str(self.shared),
            "dbserver.file": str(self.directory / "db.sqlite3"),
            "dbserver.port": self._database_port,
        }

    def start_database(self) -> None:
        """Start the DbServer, unless it runs."""
        if self._database is None or not self._database.running():
            config = self._config(self.broker.port)
            log = self.directory / "database.log"
            self._database = self._fork_servers["master"].begin("database", log, config, DATABASE)
            self._others.append(self._database)
        port, server = self._database_port, self._database
        wait_until(lambda: _listens(port) or not server.running(), "the DbServer to listen", READY_SECONDS)
        assert server.running(), f"the DbServer has ended: {server.output()[-400:]}"

    def end_database(self, number: int) -> bool:
        """Send a signal to the DbServer and wait for its end; whether there was one."""
        if self._database is None or not self._database.running():
            return False
        self._database.signal(number)
        assert self._database.over.wait(READY_SECONDS), "the DbServer does not end"
        return True

    def _launch(self, number: int) -> Child:
        self._starts += 1
        return self._fork_servers["worker"].begin(
            "worker",
            self.directory / f"worker-{number}-{self._starts}.log",
            self._config(self.worker_proxies[number].port),
            DATABASE | {"OQ_DATADIR": str(self.data)},
            own_mounts=self.root,
            arguments=[f"--concurrency={PROCESSES}", f"--name=explorer-{number}"],
        )

    def restart_worker(self, number: int) -> None:
        """Start a worker in the place of one that a fault has ended."""
        self.workers[number] = self._launch(number)
        self.ended.discard(number)

    def start_master(self, number: int, kind: str, log: Path, **request: Any) -> Child:
        """Start a master: of the explorer's own jobs or of the engine's ("master", "engine")."""
        config = self._config(self.master_proxies[number].port)
        env = DATABASE | {"OQ_DATADIR": str(self.data)}
        master = self._fork_servers["master"].begin(kind, log, config, env, **request)
        self._others.append(master)
        return master

    def end_broker(self, number: int) -> None:
        """Send a signal to RabbitMQ and wait for its end."""
        server = Path(f"/proc/{self.broker.pid}")
        os.kill(self.broker.pid, number)
        wait_until(lambda: not server.exists(), "RabbitMQ to end", READY_SECONDS)

    def worker_of(self, pid: int) -> int | None:
        """Which worker a process belongs to."""
        return next((n for n, worker in enumerate(self.workers) if pid in worker.children()), None)

    def in_namespace(self, number: int, *command: str | Path) -> bool:
        """Run a command with the mounts of a worker; whether it succeeded."""
        target = ["nsenter", f"--target={self.workers[number].pid}", "--mount"]
        return subprocess.run([*target, *command], check=False, capture_output=True).returncode == 0

    def forget_queue(self, name: str) -> None:
        """Delete a queue that a run has left."""
        assert self.broker_client is not None
        self.broker_client.do("delete", name)

    def settle(self) -> list[str]:
        """Bring back what is down and wait until all is as before; what is wrong, in words."""
        trouble = []
        for number, worker in enumerate(self.workers):
            if not worker.running():
                if number not in self.ended:
                    last = worker.output().strip()[-400:]
                    trouble.append(f"worker: {number} ended by itself with exit code {worker.status}: {last}")
                self.restart_worker(number)
        if not _soon(lambda: self._consumers() == WORKERS, READY_SECONDS):
            answer = self.broker.answer.strip()
            trouble.append(f"worker: {self._consumers()} of {WORKERS} consume; RabbitMQ answered {answer!r}")
        return trouble

    def _consumers(self) -> int:
        tasks = self.broker.queues().get(self.queue)
        return tasks.consumers if tasks else 0

    def undone(self) -> int | None:
        """The number of tasks in the queue, with a worker or not; None if there is no queue."""
        tasks = self.broker.queues().get(self.queue)
        return tasks.ready + tasks.unacknowledged if tasks else None

    def drained(self) -> bool:
        """Wait until no task is in the queue or with a worker; whether it came to that."""
        return _soon(lambda: self.undone() == 0, DRAIN_SECONDS)

    def last_look(self) -> list[str]:
        """Wait until the workers have removed what lost masters have left; what is still there in the end."""
        left = self.later
        _soon(lambda: not any(path.exists() for path in left), FILES_SECONDS + SWEEP_SECONDS)
        return [path.name for path in left if path.exists()]

    def close(self) -> None:
        """End and remove everything but the logs."""
        for child in self.workers + self._others:
            child.signal_all(signal.SIGKILL)
        if self.broker_client is not None:
            self.broker_client.close()
        self.broker.remove()
        self._loop.close()
        if self.root:
            subprocess.run(["umount", "--lazy", self.mount], check=False)

    def remove(self) -> None:
        """End it and remove all of its files."""
        self.close()
        World._open.discard(self)
        shutil.rmtree(self.directory, ignore_errors=True)


def _soon(condition: Any, seconds: float) -> bool:
    """Whether something becomes so within some time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
