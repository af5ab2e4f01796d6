"""The Celery application that runs on every worker node.

Its main process imports the engine and then forks the processes that do the tasks, so that all of them share
one copy in memory; it also keeps the connection to the broker alive while they compute.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
import uuid
from typing import Any

os.environ["OQ_DISTRIBUTE"] = "no"  # a task never distributes itself

import openquake.engine.engine  # noqa: F401 - what jobs need, imported once for all processes
from billiard.einfo import ExceptionWithTraceback
from celery import signals
from celery.exceptions import Reject, WorkerLostError
from celery.worker import state
from celery.worker.request import Request
from openquake.baselib import config, zeromq
from openquake.hazardlib.source import multi_fault

from oq_celery import app as application
from oq_celery import protocol, settings
from oq_celery.attempt import Attempt, UnableError
from oq_celery.broker import Publisher
from oq_celery.notify import notify
from oq_celery.protocol import Reply, Stored, TaskHeader
from oq_celery.watch import Running, Watch

SETTINGS = settings.load(config)

app = application.make(SETTINGS)
_publisher = Publisher(SETTINGS)
_job: tuple[str, int] | None = None  # the master and the calculation whose task this process did last
DONE_TASKS = 4096  # that a worker remembers
# Their numbers, 64 bits of their ids, each at a place that follows from it: memory that all processes share without a
# lock, which a process that is killed would keep.
_done = multiprocessing.RawArray(ctypes.c_uint64, DONE_TASKS)
# The pause of a process that cannot do a task, so that another worker takes it; twice as long with every further one.
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
_unable = 0  # tasks in a row that this process could not do

log = logging.getLogger(__name__)


class TaskRequest(Request):  # type: ignore[misc]
    """A task in a worker's main process, which sees when the process that does it dies."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Tell the master of a process that died; Celery gives its task back to the broker."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        if isinstance(
            error, WorkerLostError | SystemExit
        ):  # the latter: the task has ended its process itself
            # In a thread, for the broker may be away, and this process has its heartbeats to send.
            headers = self.message.headers
            arguments = (headers["oq_channel"], headers["oq_task_no"], self.worker_pid, str(error))
            threading.Thread(target=_report_death, args=arguments, daemon=True).start()
        super().on_failure(exc_info, *args, **options)


def _report_death(channel: str, task_no: int, pid: int, reason: str) -> None:
    reply = Reply("lost", task_no, uuid.uuid4().hex, protocol.worker_name(pid), body=reason.encode())
    publisher = Publisher(SETTINGS)
    publisher.publish(channel, reply.body, reply.headers())
    publisher.close()


@app.task(name=protocol.TASK_NAME, Request=TaskRequest, bind=True)  # type: ignore[untyped-decorator]
def run(self: Any, header: dict[str, Any], stored: dict[str, Any] | None, body: bytes | None) -> None:
    """Do one task of a channel; see `oq_celery.protocol`.

    Raises:
        Reject: when the task should go to another worker. Anything else would be the end of it, and its master would
            wait for ever.
    """
    global _unable
    number = int(self.request.id[:16], 16)
    if _done[number % DONE_TASKS] == number:
        # Done, dropped or failed: its acknowledgement was lost with a connection.
        log.info("Task %s was done here already", self.request.id)
        return
    try:
        if theirs := protocol.foreign(header):
            _refuse(header, theirs)
            return
        parsed = TaskHeader.parse(header)
        _forget_other_jobs(parsed)
        Attempt(SETTINGS, _publisher, parsed).run(Stored(**stored) if stored else body or b"")
        _done[number % DONE_TASKS] = number
        _unable = 0
    except Exception as error:
        level = logging.WARNING if isinstance(error, UnableError) else logging.ERROR
        log.log(level, "%s", error, exc_info=True)
        time.sleep(min(PAUSE_SECONDS * 2**_unable, LONGEST_PAUSE_SECONDS))
        _unable += 1
        raise Reject(str(error), requeue=True) from error


def _refuse(header: dict[str, Any], theirs: str) -> None:
    """Leave a task to a worker of the master's versions; without a master it is dropped."""
    text = f"it has {protocol.versions()}, but the master has {theirs}"
    name = protocol.worker_name()
    reply = Reply("unable", header["task_no"], uuid.uuid4().hex, name, body=text.encode())
    if _publisher.publish(header["channel"], reply.body, reply.headers()):
        raise UnableError(text)
    log.info("Dropped a task of %s: nobody waits for it", header["channel"])


def _forget_other_jobs(header: TaskHeader) -> None:
    """Empty those of the engine's caches that know calculations by their files, when the process turns to another job.

    Upstream's processes live for one job. These do not, and what they remember by the path of a calculation's
    file would be wrong for another calculation under the same number, as there is one after a new database.
    """
    global _job
    job = (header.master, header.job)
    if job != _job:
        _job = job
        multi_fault.SECTIONS.clear()
        for name, module in list(sys.modules.items()):
            if name.startswith("openquake."):
                for value in list(vars(module).values()):
                    if isinstance(value, functools._lru_cache_wrapper):
                        value.cache_clear()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _before_the_fork(**_: Any) -> None:
    gc.collect()
    gc.freeze()  # what is here now stays shared: the collector would write into every page of it
    gc.enable()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _after_the_fork(**_: Any) -> None:
    # ZeroMQ's context has threads, which a fork leaves behind; the engine talks to the DbServer through it.
    zeromq.context = zeromq.zmq.Context()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _consuming(**_: Any) -> None:
    notify("READY=1")
    Watch(SETTINGS, _running).start()


def _running() -> list[Running]:
    """The tasks under way, as Celery's main process knows them."""
    try:
        requests = list(state.active_requests)
    except RuntimeError:  # it changed while it was copied, for this is called from another thread: next time
        return []
    return [
        Running(request.message.headers["oq_channel"], request.id, request.worker_pid)
        for request in requests
        if request.worker_pid
    ]
