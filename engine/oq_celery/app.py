"""The Celery application: how workers take tasks, and how one talks to the workers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.control import Control
from kombu import Connection, Queue
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


class OwnMailbox(Mailbox):  # type: ignore[misc]
    """Receives Celery's commands in a queue that no connection before had.

    The queue is exclusive, and RabbitMQ gives a connection that was cut off up only after two or three heartbeats; a
    worker is back before, and under the same name it would be refused (RESOURCE_LOCKED), which ends Celery.
    """

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
        accept_content=["pickle", "json"],  # tasks, and Celery's own commands to workers
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
