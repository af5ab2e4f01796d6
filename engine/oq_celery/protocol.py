"""What travels between a master and its workers: names, headers and the layout of messages.

A *channel* is one `Starmap` of one master process: a set of tasks whose results are wanted. Its result queue
is also its lease: the queue exists as long as somebody wants the results, so a worker that finds it gone
drops the task.

    task queue   --task-->    worker      header: who wants what; body: function, arguments, monitor
    result queue <-started--  worker      an attempt of a task begins
    result queue <-alive----  worker      what the worker runs of the channel, every two seconds
    result queue <-asks-----  worker      the message may be a copy: shall it be done?  --Answer--> worker
    result queue <-ended----  worker      the attempt is complete; body: all of its results
    result queue <-lost-----  worker      the process of the attempt has died; the broker delivers the task again
    result queue <-unable---  worker      the worker cannot do it, another one may; the broker delivers it again
    result queue <-failed---  worker      the worker cannot do it, nor would another one, and says why

An exception in the task itself is a result as others are, with its traceback.

The results of an attempt travel in one message, so an attempt is either there whole or not there. The broker
may deliver a task more than once and several attempts of it may end; the master takes the first and drops the
rest. A message that the broker delivers again, or that the master has sent again, says so: its worker asks the
master, who drops copies of what is done or runs elsewhere (`ledger.py`).
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import platform
import socket
import uuid
from configparser import ConfigParser
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, Literal

from oq_celery import __version__

TASK_NAME = "oq_celery.run"
Kind = Literal["started", "alive", "asks", "ended", "lost", "unable", "failed"]
# What a master says of a message that may be a copy: do it, drop it, or ask again in a moment.
Answer = Literal["do", "drop", "wait"]
# AMQP header of a task's message that repeats another one: its worker asks before it computes.
AGAIN = "oq_again"

# Seconds that a result queue may be without its master before the workers take it for dead and delete the queue: long
# enough for a master to come back after a restart of the broker, short enough that its workers are free again soon.
LEASE_SECONDS = 10.0

# RabbitMQ deletes a result queue that nobody has looked at for so long. It is for a cluster without workers, and for
# queues of which no task or file tells the workers: the clock runs while the broker starts, too, and what lives must
# survive that.
EXPIRY_MS = 3_600_000

# RabbitMQ's priorities of a classic queue: 0 to this. A few are enough and every one costs the broker a
# queue.
MAX_PRIORITY = 9


CHANNEL_PREFIX = "oq."
# A file in a channel's directory that says how far the channel is.
PROGRESS_FILE = "progress.json"


# Settings of `[memory]` that are about the memory of the machine where a process runs.
OF_THE_MACHINE = ("limit", "soft_mem_limit", "hard_mem_limit")


class TransportError(RuntimeError):
    """A job cannot go on because of what happened between the master and the workers."""


# The beginnings of names of the engine's and our environment variables that workers have values of their own for.
OF_THE_PROCESS = (
    "OQ_APPLICATION_MODE",
    "OQ_CELERY_",
    "OQ_CONFIG_FILE",
    "OQ_DATA",
    "OQ_DISTRIBUTE",
    "OQ_IMPORT_PATH",
    "OQ_NUM_CORES",
    "OQ_WEBUI_",
)


@dataclass(frozen=True)
class Versions:
    """What must be equal on both sides: both sides exchange pickled objects of the engine."""

    engine: str
    oq_celery: str
    python: str

    def __str__(self) -> str:
        return f"engine {self.engine}, oq_celery {self.oq_celery}, Python {self.python}"


@functools.cache
def versions() -> Versions:
    """The versions of this process; of Python's the part that decides what pickles mean."""
    # Here, so that what needs no engine, such as the ledger, is tested without one.
    from openquake.baselib import __version__ as engine_version

    return Versions(engine_version, __version__, ".".join(platform.python_version_tuple()[:2]))


@dataclass(frozen=True)
class Stored:
    """A piece of a file below the spool directory."""

    path: str
    offset: int
    size: int
    digest: str


@dataclass(frozen=True)
class TaskHeader:
    """Says whose task it is, in plain values that any version can read."""

    channel: str
    master: str  # a name of the master's process, unlike any other's
    task_no: int
    name: str  # of the task's function
    job: int  # of the calculation, 0 if there is none
    user: str
    size: int  # of the arguments, in bytes
    versions: Versions
    # the directory of the calculation's input files, if workers need one; see `oq_celery.inputs`
    inputs: str = ""
    environment: dict[str, str] = field(default_factory=dict)  # of the engine's variables, see `environment`
    memory: dict[str, str] = field(default_factory=dict)  # of the engine's configuration, see `memory`

    def __str__(self) -> str:
        return f"{self.name} #{self.task_no} of job {self.job} of {self.user}"

    def plain(self) -> dict[str, Any]:
        """The header as a dictionary of plain values."""
        return asdict(self)

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> TaskHeader:
        """The inverse of `plain`; of the same version only, see `foreign`."""
        return cls(**{**plain, "versions": Versions(**plain["versions"])})


def environment() -> dict[str, str]:
    """The engine's variables by which this process computes something else, such as OQ_RUPTURE: its tasks read them.

    Not those that say where and how a process runs.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("OQ_") and not name.startswith(OF_THE_PROCESS)
    }


@functools.cache
def memory() -> dict[str, str]:
    """What this process's `[memory]` has instead of the engine's defaults: some of it tasks read (`max_assets_chunk`).

    A user sets it in `~/openquake.cfg`, which is the master's. The engine reads `max_multi_fault_ruptures` when it is
    imported, so a worker keeps its own.
    """
    from openquake.baselib import config

    defaults = ConfigParser(interpolation=None)
    defaults.read(config.paths[0], encoding="utf-8")
    return {
        name: value
        for name, value in config.memory.items()
        if name not in OF_THE_MACHINE and value != defaults["memory"].get(name)
    }


def foreign(plain: dict[str, Any]) -> str | None:
    """The versions in a header that is not of this version, for people; None if it is."""
    theirs = plain["versions"]
    return (
        None if theirs == asdict(versions()) else ", ".join(f"{key} {value}" for key, value in theirs.items())
    )


def worker_name(pid: int | None = None) -> str:
    """A process of a worker, for people: this one, or another one of this machine."""
    return f"{socket.gethostname()}/{pid or os.getpid()}"


def channel_name(user: str, job: int) -> str:
    """A new, unique name: of the channel, of its result queue, and of its directory in the spool."""
    return f"{CHANNEL_PREFIX}{user}.{job}.{uuid.uuid4().hex[:16]}"


def priority(outstanding: int) -> int:
    """The priority of a job's next task when `outstanding` tasks of the job wait or run already.

    The fewer tasks a job has outstanding, the sooner its next one starts: a job of a few tasks does not wait
    for the whole queue of a job of thousands, and two long jobs, which have equally many outstanding, take
    turns.
    """
    return max(0, MAX_PRIORITY - outstanding.bit_length())


@dataclass(frozen=True)
class Envelope:
    """A task as an AMQP message that a Celery worker understands."""

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]


def celery_task(header: TaskHeader, body: bytes | Stored, *, again: bool, priority: int) -> Envelope:
    """Lay out a task as Celery's message protocol 2 wants it.

    https://docs.celeryq.dev/en/stable/internals/protocol.html

    Args:
        header: of the task.
        body: of the task, or where it is.
        again: whether the task has been sent before.
        priority: from 0 to MAX_PRIORITY.
    """
    task_id = uuid.uuid4().hex
    stored = asdict(body) if isinstance(body, Stored) else None
    args = (header.plain(), stored, None if isinstance(body, Stored) else body)
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers = {
        "lang": "py",
        "task": TASK_NAME,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": json.dumps(header.plain()),  # what Celery shows of a task, for `oq-celery status`
        "kwargsrepr": "{}",
        "ignore_result": True,
        "oq_channel": header.channel,
        "oq_task_no": header.task_no,
        AGAIN: again,
    }
    properties = {
        "priority": priority,
        "correlation_id": task_id,
        "content_type": "application/x-python-serialize",
        "content_encoding": "binary",
    }
    return Envelope(pickle.dumps((args, {}, embed), pickle.HIGHEST_PROTOCOL), headers, properties)


@dataclass(frozen=True)
class Reply:
    """A worker's message to a channel: what happened to which attempt of which task.

    Attributes:
        kind: of the message.
        node: the worker, one name for all of its processes.
        worker: the process that does the attempt, as `worker_name` has it.
        message: the Celery id of the task's message, which tells the attempts of one process apart.
        task_no: of the task; -1 in "alive", which is about several.
        attempt: the name of the attempt, and of its file; "" where there is none.
        has_file: the attempt has a file of its own, named after it, in the channel's directory.
        stored: where the body is, if it is not in the message.
        body: of the message; of "alive" the running attempts, see `running`.
        seconds: that the attempt has taken, if it has come to an end.
    """

    kind: Kind
    node: str
    worker: str
    message: str
    task_no: int = -1
    attempt: str = ""
    has_file: bool = False
    stored: Stored | None = None
    body: bytes = b""
    seconds: float = 0.0

    def headers(self) -> dict[str, Any]:
        """All but the body, as AMQP headers."""
        headers = {
            "kind": self.kind,
            "node": self.node,
            "worker": self.worker,
            "message": self.message,
            "task_no": self.task_no,
            "attempt": self.attempt,
            "has_file": self.has_file,
            "seconds": self.seconds,
        }
        return headers | ({"stored": asdict(self.stored)} if self.stored else {})

    @classmethod
    def parse(cls, headers: dict[str, Any], body: bytes | str) -> Reply:
        """The inverse of `headers`; py-amqp gives an empty body as text.

        What a worker of a later version says besides is left out: it has to get through that it is one.
        """
        known = {name: headers[name] for name in _REPLY_HEADERS & headers.keys()}
        stored = headers.get("stored")
        return cls(**known, stored=Stored(**stored) if stored else None, body=body or b"")  # type: ignore[arg-type]

    def running(self) -> list[Running]:
        """What an "alive" message lists."""
        return [Running(*row[: len(fields(Running))]) for row in json.loads(self.body)]


_REPLY_HEADERS = {one.name for one in fields(Reply)} - {"stored", "body"}


@dataclass(frozen=True)
class Running:
    """An attempt that a process of a worker is making: a row of an "alive" message."""

    task_no: int
    worker: str
    message: str
    state: str = ""  # of the process, in the letter of proc(5); workers before 0.6.10 do not say it


def running_body(running: list[Running]) -> bytes:
    """The body of an "alive" message."""
    return json.dumps([astuple(row) for row in running]).encode()


@dataclass(frozen=True)
class Progress:
    """How far a channel is."""

    job: int
    user: str
    name: str  # of the tasks' function
    submitted: int
    outstanding: int  # of these, those without results: waiting or running

    def json(self) -> bytes:
        """As the content of PROGRESS_FILE."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, content: bytes) -> Progress:
        """The inverse of `json`."""
        return cls(**json.loads(content))
