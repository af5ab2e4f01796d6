"""The Celery application: how workers take tasks, and how one talks to the workers."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.control import Control
from kombu import Connection, Queue
from kombu.exceptions import ContentDisallowed
from kombu.pidbox import Mailbox

from oq_celery import broker
from oq_celery.settings import Settings


class SteadyConnection(Connection):  # type: ignore[misc]
    """Tries again every second: Kombu's pauses grow to half a minute, in which a worker computes nothing."""

    def ensure_connection(
        self, errback: Callable[..., Any] | None = None, max_retries: int | None = None, **options: Any
    ) -> Any:
        """Connect, however long it takes."""
        steady = {
            "interval_start": broker.RETRY_SECONDS,
            "interval_step": 0,
            "interval_max": broker.RETRY_SECONDS,
        }
        return super().ensure_connection(errback, max_retries, **(options | steady))


class SteadyAMQP(AMQP):  # type: ignore[misc]
    """Celery's AMQP with such connections."""

    Connection = SteadyConnection


class _Answers:
    """A connection on which an answer that is not in the mailbox's language is none.

    Those of workers with an older version of this package are pickles, and so may be one that means harm.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def drain_events(self, **options: Any) -> None:
        """Take what the broker has."""
        with contextlib.suppress(ContentDisallowed):
            self._connection.drain_events(**options)


class OwnMailbox(Mailbox):  # type: ignore[misc]
    """Speaks JSON alone, and receives Celery's commands in a queue that no connection before had.

    Celery gives commands and answers the language of tasks, pickle, in which whoever may send one makes the reader run
    anything; those who ask the workers are root on the master, too.

    The queue is exclusive, and RabbitMQ gives a connection that was cut off up only after two or three heartbeats; a
    worker is back before, and under the same name it would be refused (RESOURCE_LOCKED), which ends Celery.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As Celery's, but for the languages that it asks for."""
        super().__init__(*args, **(options | {"accept": ["json"], "serializer": "json"}))

    def __call__(self, connection: Connection) -> OwnMailbox:
        """This mailbox with a connection."""
        bound: OwnMailbox = super().__call__(_Answers(connection))
        return bound

    def get_queue(self, hostname: str) -> Queue:
        """Of the worker with this name; called once per connection."""
        queue = super().get_queue(hostname)
        queue.name = f"{queue.name}.{uuid.uuid4().hex}"
        return queue


class SteadyControl(Control):  # type: ignore[misc]
    """Celery's commands with such mailboxes."""

    Mailbox = OwnMailbox


def asking(settings: Settings, seconds: float) -> Celery:
    """The application for a command that asks the workers, and waits so long for each answer of the broker.

    It waits for no confirm of a question: RabbitMQ that has an alarm gives none, and Kombu would ask again for ever.
    """
    app = make(settings)
    app.conf.broker_transport_options |= {
        "confirm_publish": False,
        "read_timeout": seconds,
        "write_timeout": seconds,
    }
    return app


def make(settings: Settings) -> Celery:
    """The application for the given broker, without its task: light enough for a command line."""
    app = Celery("oq_celery", broker=settings.url, amqp=SteadyAMQP, control=SteadyControl)
    app.conf.update(
        task_serializer="pickle",
        accept_content=["pickle"],  # of tasks; commands have a language of their own (OwnMailbox)
        task_ignore_result=True,
        task_queues=[Queue(settings.queue, durable=True, queue_arguments=broker.TASK_QUEUE_ARGUMENTS)],
        task_default_queue=settings.queue,
        # A task is the broker's until its results are with the master: whatever happens to the worker, it is
        # delivered again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # Every process has one task, and no second one waits for it behind a long one.
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,  # after a reconnection: see `valve.py`
        # The broker gives a worker up that was silent for two of them, and delivers its tasks to others.
        broker_heartbeat=15,
        broker_transport_options={"confirm_publish": True, "socket_settings": broker.SOCKET_OPTIONS},
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever
        # A process that has grown beyond its share gives its memory back by ending after its task.
        worker_max_memory_per_child=settings.memory_per_process_mb * 1024,  # kilobytes
        worker_lost_wait=1.0,  # seconds that a dead process's last words are waited for
    )
    return app
