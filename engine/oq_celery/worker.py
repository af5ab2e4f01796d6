"""The Celery application that runs on every worker node.

Its main process imports the engine and then forks the processes that do the tasks, so that all of them share
one copy in memory; it also keeps the connection to the broker alive while they compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from typing import Any

os.environ["OQ_DISTRIBUTE"] = "no"  # a task never distributes itself
# Workers read calculations' files and never write them. Without this each reader has a lock, beside which the master
# cannot open its file anew: a second attempt that still reads, or a machine that is gone, would fail the calculation.
# h5py looks at it once, when it is imported.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"

import numpy
import openquake.engine.engine  # noqa: F401 - what jobs need, imported once for all processes
import psutil
from billiard.einfo import ExceptionWithTraceback
from billiard.process import current_process
from celery import signals
from celery.exceptions import Reject, WorkerLostError
from celery.worker import state
from celery.worker.request import Request
from openquake.baselib import config, zeromq

from oq_celery import app as application
from oq_celery import protocol, settings
from oq_celery.attempt import Attempt, UnableError
from oq_celery.broker import Publisher
from oq_celery.clock import longer
from oq_celery.memory import Memory
from oq_celery.notify import notify
from oq_celery.protocol import AGAIN, Reply, Stored, TaskHeader
from oq_celery.valve import ValveStep, valve
from oq_celery.watch import Sweep, Watch, Work

SETTINGS = settings.load(config)

app = application.make(SETTINGS)
app.steps["consumer"].add(ValveStep)
_publisher = Publisher(SETTINGS)
_memory = Memory()
DONE_TASKS = 4096  # that a worker remembers
# Their numbers, 64 bits of their ids, each at a place that follows from it: memory that all processes share without a
# lock, which a process that is killed would keep.
_done = multiprocessing.RawArray(ctypes.c_uint64, DONE_TASKS)
PROCESSES = 4096  # that a worker has at most
# The same number of the task that a process does now, and the process's own, at its place in the pool.
_doing = multiprocessing.RawArray(ctypes.c_uint64, PROCESSES)
_pids = multiprocessing.RawArray(ctypes.c_uint32, PROCESSES)
_place = 0  # of this process
# The pause of a process that cannot do a task, so that another worker takes it; twice as long with every further one.
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
_unable = 0  # tasks in a row that this process could not do
_stopped: set[str] = set()  # ids of the tasks whose processes this worker has killed

log = logging.getLogger(__name__)


class TaskRequest(Request):  # type: ignore[misc]
    """A task in a worker's main process, which sees when the process that does it dies."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Tell the master of a process that died; Celery gives its task back to the broker."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        try:
            # SystemExit: the task has ended its process itself.
            if isinstance(error, WorkerLostError | SystemExit) and self.id not in _stopped:
                valve.note_death(out_of_memory=f"signal {int(signal.SIGKILL)}" in str(error))
                # In a thread, for the broker may be away, and this process has its heartbeats to send.
                threading.Thread(target=_report_death, args=(self, str(error)), daemon=True).start()
            _stopped.discard(self.id)
        finally:
            super().on_failure(exc_info, *args, **options)


def _report_death(request: TaskRequest, reason: str) -> None:
    headers = request.message.headers
    memory = psutil.virtual_memory().total / 2**30
    reply = Reply(
        "lost",
        request.hostname,
        protocol.worker_name(request.worker_pid),
        request.id,
        headers["oq_task_no"],
        body=f"{reason}; the worker has {memory:.1f} GB for {valve.processes} processes".encode(),
    )
    publisher = Publisher(SETTINGS)
    publisher.publish(headers["oq_channel"], reply.body, reply.headers())
    publisher.close()


@app.task(  # type: ignore[untyped-decorator]
    name=protocol.TASK_NAME, Request=TaskRequest, Strategy="oq_celery.valve:strategy", bind=True
)
def run(self: Any, header: dict[str, Any], stored: dict[str, Any] | None, body: bytes | None) -> None:
    """Do one task of a channel; see `oq_celery.protocol`.

    Raises:
        Reject: when the task should go to another worker. Anything else would be the end of it, and its master would
            wait for ever.
    """
    global _unable
    number = _number(self.request.id)
    if _done[number % DONE_TASKS] == number:
        # Done, dropped or failed: its acknowledgement was lost with a connection.
        log.info("Task %s was done here already", self.request.id)
        return
    try:
        if theirs := protocol.foreign(header):
            _refuse(self.request, header, theirs)
            return
        parsed = TaskHeader.parse(header)
        _memory.turn_to(parsed.job, parsed.master)
        _doing[_place] = number
        may_be_copy = self.request.delivery_info["redelivered"] or self.request.get(AGAIN)
        Attempt(SETTINGS, _publisher, parsed, self.request.hostname, self.request.id).run(
            Stored(**stored) if stored else body or b"", may_be_copy=bool(may_be_copy)
        )
        _done[number % DONE_TASKS] = number
        _unable = 0
    except Exception as error:
        level = logging.WARNING if isinstance(error, UnableError) else logging.ERROR
        log.log(level, "%s", error, exc_info=True)
        time.sleep(longer(PAUSE_SECONDS, _unable, LONGEST_PAUSE_SECONDS))
        _unable += 1
        raise Reject(str(error), requeue=True) from error
    finally:
        _doing[_place] = 0


def _number(task_id: str) -> int:
    return int(task_id[:16], 16)


def _refuse(request: Any, header: dict[str, Any], theirs: str) -> None:
    """Leave a task to a worker of the master's versions; without a master it is dropped."""
    text = f"it has {protocol.versions()}, but the master has {theirs}"
    name = protocol.worker_name()
    attempt = uuid.uuid4().hex
    reply = Reply(
        "unable", request.hostname, name, request.id, header["task_no"], attempt, body=text.encode()
    )
    if _publisher.publish(header["channel"], reply.body, reply.headers()):
        raise UnableError(text)
    log.info("Dropped a task of %s: nobody waits for it", header["channel"])


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _before_the_fork(**_: Any) -> None:
    _memory.find()
    gc.collect()
    gc.freeze()  # what is here now stays shared: the collector would write into every page of it
    gc.enable()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _after_the_fork(**_: Any) -> None:
    global _place
    _place = getattr(current_process(), "index", 0)  # the only one, where there is no pool
    _pids[_place] = os.getpid()
    # ZeroMQ's context has threads, which a fork leaves behind; the engine talks to the DbServer through it.
    zeromq.context = zeromq.zmq.Context()
    # Forks have numpy's generator in one state. Some of hazardlib draws from it, for events that are independent.
    numpy.random.seed()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _consuming(sender: Any, **_: Any) -> None:
    notify("READY=1")
    Watch(SETTINGS, sender.hostname, _running, _stop).start()
    Sweep(SETTINGS).start()


def _running() -> list[Work]:
    """The tasks under way, as Celery's main process knows them."""
    try:
        requests = list(state.active_requests)
    except RuntimeError:  # it changed while it was copied, for this is called from another thread: next time
        return []
    return [
        Work(
            request.message.headers["oq_channel"],
            request.message.headers["oq_task_no"],
            request.id,
            request.worker_pid,
        )
        for request in requests
        if request.worker_pid
    ]


def _stop(work: Work) -> None:
    """Kill the process that does a task; Celery starts another one, and gives the task back to the broker."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(work.pid)  # before it is asked what it does: the number may become another's
        try:
            if (work.pid, _number(work.message)) in zip(_pids, _doing, strict=True):
                _stopped.add(work.message)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
