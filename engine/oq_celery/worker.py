"""The Celery application that runs on every worker node.

Its main process imports the engine and then forks the processes that do the tasks, so that all of them share
one copy in memory; it also keeps the connection to the broker alive while they compute.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from typing import Any

os.environ["OQ_DISTRIBUTE"] = "no"  # a task never distributes itself

import openquake.engine.engine  # noqa: F401 - what jobs need, imported once for all processes
from celery import signals
from celery.worker import state
from openquake.baselib import config, zeromq

from oq_celery import app as application
from oq_celery import broker, protocol, settings
from oq_celery.attempt import Attempt
from oq_celery.notify import notify
from oq_celery.protocol import Stored, TaskHeader

WATCH_SECONDS = 2.0

log = logging.getLogger(__name__)
SETTINGS = settings.load(config)

app = application.make(SETTINGS)
_publisher = broker.Publisher(SETTINGS)


@app.task(name=protocol.TASK_NAME)  # type: ignore[untyped-decorator]
def run(header: dict[str, Any], stored: dict[str, Any] | None, body: bytes | None) -> None:
    """Do one task of a channel; see `oq_celery.protocol`."""
    reference = Stored(**stored) if stored else body or b""
    Attempt(SETTINGS, _publisher, TaskHeader.parse(header)).run(reference)


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
    threading.Thread(target=_watch, name="oq_celery watch", daemon=True).start()


def _watch() -> None:
    """Thread of the main process: stop tasks whose results nobody wants any more."""
    connection = None
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            connection = connection or broker.connect(SETTINGS)
            wanted: dict[str, bool] = {}
            for request in list(state.active_requests):
                channel = request.message.headers["oq_channel"]
                if channel not in wanted:
                    wanted[channel] = broker.depth(connection, channel) is not None
                if not wanted[channel] and request.worker_pid:
                    log.warning("Stopping task %s: nobody waits for it", request.id)
                    # Celery starts another process and gives the task back; the next to get it drops it.
                    os.kill(request.worker_pid, signal.SIGKILL)
        except broker.ERRORS as error:
            log.debug("watch: %s", error)
            broker.close(connection)
            connection = None
        except RuntimeError as error:  # the set changed while it was copied
            log.debug("watch: %s", error)
