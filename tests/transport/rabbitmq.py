"""A RabbitMQ server on this machine's loopback, which ends with the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.transport.processes import ROOT, Process, answers, free_port, run, wait_until

# Debian's own start script changes to the user rabbitmq when root calls it; this one runs as who calls.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
NODES_CONFIGURATION = ROOT / "cloud-init/etc/rabbitmq.conf"
USER, PASSWORD, VHOST = "oqlab", "oqlab-secret", "oqlab"

ANSWER_SECONDS = 60.0  # for the server to evaluate an expression, on a busy machine
_QUEUES = (
    'lists:flatten([io_lib:format("~s ~p ~p ~p;", [element(4, proplists:get_value(name, Q)) | '
    "[proplists:get_value(K, Q) || K <- [messages_ready, messages_unacknowledged, consumers]]]) || "
    f'Q <- rabbit_amqqueue:info_all(<<"{VHOST}">>, [name, messages_ready, messages_unacknowledged, consumers])])'
)


class Queue(NamedTuple):
    """What is in a queue."""

    ready: int  # messages that nobody has
    unacknowledged: int  # messages that a consumer has
    consumers: int


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
        # The last answer to `erlang`, for the words of a failure.
        self.answer = ""

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

    def erlang(self, expression: str) -> str:
        """Evaluate an expression in the server, in milliseconds (`control`: seconds); its value, or nothing.

        Nothing when the server is away, and when it answers with an error, which it does while it starts or loses a
        queue; `answer` has what it answered.
        """
        cookie = (self._outside / ".erlang.cookie").read_text()
        command = ["erl_call", "-n", self._env["RABBITMQ_NODENAME"], "-c", cookie, "-e"]
        try:
            done = subprocess.run(
                command,
                input=f"{expression}.\n",
                env=self._env,
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_SECONDS,
            )
        except subprocess.TimeoutExpired as error:  # of a node that it reaches before it has booted: for ever
            self.answer = str(error)
            return ""
        self.answer = done.stdout or done.stderr
        return value_of(done.stdout)

    def queues(self) -> dict[str, Queue]:
        """The queues that there are, of all clusters, by their names.

        Without an answer, as while a queue goes or the server starts, it asks again: no answer is not no queues, and an
        AssertionError in the end.
        """
        end = time.monotonic() + ANSWER_SECONDS
        while not (found := self.erlang(_QUEUES)):
            assert time.monotonic() < end, (
                f"RabbitMQ does not say which queues it has: {self.answer.strip()!r}"
            )
            time.sleep(0.1)
        return queues_of(found)

    def result_queues(self) -> list[str]:
        """The result queues that there are, of all clusters."""
        return [name for name in self.queues() if name.startswith("oq.")]

    def delete_queue(self, name: str) -> None:
        self.control("delete_queue", "--vhost", VHOST, name)

    def depth(self, queue: str) -> int:
        """The number of tasks in a queue, waiting or with a worker."""
        ready, unacknowledged, _ = self.queues()[queue]
        return ready + unacknowledged

    def waiting(self, queue: str) -> int:
        """The number of tasks in a queue that no worker has."""
        return self.queues()[queue].ready

    def has_all(self, queue: str, tasks: int) -> bool:
        """Whether so many tasks wait in a queue and no worker has one of them, nor a copy.

        There may be more messages than tasks: after a broken connection a master sends those again of which it does
        not know that the broker has them.
        """
        found = self.queues()[queue]
        return found.ready >= tasks and found.unacknowledged == 0

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


def value_of(answer: str) -> str:
    """The value in an answer of erl_call's, `{ok, value}`; nothing of `{error, ...}` and all else."""
    found = re.fullmatch(r"\{ok, (.*)\}\s*", answer, re.DOTALL)
    return found[1] if found else ""


def queues_of(value: str) -> dict[str, Queue]:
    """The queues in the value `"name ready unacknowledged consumers;..."`; one that is down has no numbers."""
    listed = re.findall(r"([^\s;\"]+) (\d+) (\d+) (\d+);", value)
    return {name: Queue(*map(int, numbers)) for name, *numbers in listed}
