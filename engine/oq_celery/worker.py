"""The Celery application that runs on every worker node.

Its main process imports the engine and then forks the processes that do the tasks, so that all of them share
one copy in memory; it also keeps the connection to the broker alive while they compute.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from typing import Any

os.environ["OQ_DISTRIBUTE"] = "no"  # a task never distributes itself

import openquake.engine.engine  # noqa: F401 - what jobs need, imported once for all processes
from celery import signals
from celery.worker import state
from openquake.baselib import config, zeromq
from openquake.hazardlib.source import multi_fault

from oq_celery import app as application
from oq_celery import protocol, settings
from oq_celery.attempt import Attempt
from oq_celery.broker import Publisher
from oq_celery.notify import notify
from oq_celery.protocol import Stored, TaskHeader
from oq_celery.watch import Running, Watch

SETTINGS = settings.load(config)

app = application.make(SETTINGS)
_publisher = Publisher(SETTINGS)
_job: tuple[str, int, str] | None = None  # whose task this process did last


@app.task(name=protocol.TASK_NAME)  # type: ignore[untyped-decorator]
def run(header: dict[str, Any], stored: dict[str, Any] | None, body: bytes | None) -> None:
    """Do one task of a channel; see `oq_celery.protocol`."""
    parsed = TaskHeader.parse(header)
    _forget_other_jobs(parsed)
    Attempt(SETTINGS, _publisher, parsed).run(Stored(**stored) if stored else body or b"")


def _forget_other_jobs(header: TaskHeader) -> None:
    """Empty the engine's caches when the process turns to another job.

    Upstream's processes live for one job. These do not, and what they remember by the path of a calculation's
    file would be wrong for another calculation under the same number, as there is one after a new database.
    """
    global _job
    job = (header.user, header.job, header.channel if header.job == 0 else "")
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
