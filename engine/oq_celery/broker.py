"""Connections to RabbitMQ that come back: queues, and publishing that knows whether anybody wanted the
message.

py-amqp is Celery's own AMQP library. Celery itself is not imported here: a master needs only its message
format.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import amqp

from oq_celery.protocol import LEASE_MS, MAX_PRIORITY
from oq_celery.settings import Settings

ERRORS = (amqp.ConnectionError, amqp.ChannelError, OSError)
REFUSALS = (
    amqp.AccessRefused,
    amqp.NotAllowed,
    amqp.PreconditionFailed,
)  # wrong password, vhost, kind of queue
NO_ROUTE = 312

# A peer that vanished without a word is noticed after these: idle, then COUNT probes INTERVAL seconds apart;
# or unanswered data.
SOCKET_OPTIONS = {
    socket.TCP_NODELAY: 1,
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,  # milliseconds
}
# AMQP's own heartbeat needs the interpreter of the process to be free now and then, so it is generous: TCP is
# quicker.
HEARTBEAT = 60
CONNECT_TIMEOUT = 10
RETRY_SECONDS = 1.0
TASK_QUEUE_ARGUMENTS = {"x-max-priority": MAX_PRIORITY}

log = logging.getLogger(__name__)


def connect(settings: Settings, heartbeat: int = 0) -> amqp.Connection:
    """Open a connection.

    Args:
        settings: where the broker is.
        heartbeat: seconds, for a connection that is read all the time; 0 for one that only publishes, which
        TCP watches.

    Raises:
        one of ERRORS.
    """
    connection = amqp.Connection(
        host=f"{settings.host}:{settings.port}",
        userid=settings.user,
        password=settings.password,
        virtual_host=settings.vhost,
        heartbeat=heartbeat,
        connect_timeout=CONNECT_TIMEOUT,
        socket_settings=SOCKET_OPTIONS,
    )
    connection.connect()
    return connection


def close(connection: amqp.Connection | None) -> None:
    """Close a connection, which may be broken already."""
    if connection is not None:
        try:
            connection.close()
        except ERRORS:
            connection.collect()


def depth(connection: amqp.Connection, queue: str) -> tuple[int, int] | None:
    """Look at a queue without making it.

    Returns:
        The number of waiting messages and of consumers, or None if there is no such queue.
    """
    channel = connection.channel()
    try:
        _, messages, consumers = channel.queue_declare(queue, passive=True)
    except amqp.NotFound:  # which closes the channel
        return None
    channel.close()
    return messages, consumers


def declare_tasks(channel: amqp.Channel, queue: str) -> None:
    """Make the task queue, as the workers do too."""
    channel.queue_declare(queue, durable=True, auto_delete=False, arguments=TASK_QUEUE_ARGUMENTS)


def declare_results(channel: amqp.Channel, queue: str) -> None:
    """Make a channel's result queue, which goes away LEASE_MS after its last consumer."""
    channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-expires": LEASE_MS})


def delete_unused(connection: amqp.Connection, queue: str) -> bool:
    """Delete a queue unless somebody consumes from it; True if it is gone."""
    channel = connection.channel()
    try:
        channel.queue_delete(queue, if_unused=True)
    except amqp.PreconditionFailed:  # which closes the channel
        return False
    channel.close()
    return True


def log_retry(settings: Settings, error: Exception) -> None:
    """Say that the broker cannot be reached and will be tried again."""
    log.warning("RabbitMQ at %s: %s; trying again", settings.host, error or type(error).__name__)


class Publisher:
    """Publishes with confirms on a connection, opened when needed, replaced when broken. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None

    def publish(
        self, queue: str, body: bytes, headers: dict[str, Any], *, persistent: bool = True, **properties: Any
    ) -> bool:
        """Put a message into a queue, however long the broker is away.

        Returns:
            True when the broker has confirmed the message, False if there is no such queue.
        """
        message = amqp.Message(
            body, application_headers=headers, delivery_mode=2 if persistent else 1, **properties
        )
        warned = False
        while True:
            try:
                channel = self._open()
                channel.basic_publish_confirm(message, routing_key=queue, mandatory=True)
                return True
            except amqp.ChannelError as error:
                self.close()
                if error.reply_code == NO_ROUTE:
                    return False
                raise
            except ERRORS as error:
                self.close()
                if not warned:
                    log_retry(self._settings, error)
                    warned = True
                time.sleep(RETRY_SECONDS)

    def delete(self, queue: str) -> None:
        """Delete a queue, if the broker can be reached; a missing queue is no error."""
        try:
            self._open().queue_delete(queue)
        except ERRORS as error:
            log.debug("queue %s is left to expire: %s", queue, error)
            self.close()

    def close(self) -> None:
        """Close the connection; the next message opens another one."""
        close(self._connection)
        self._connection = self._channel = None

    def _open(self) -> amqp.Channel:
        if self._channel is None:
            self._connection = connect(self._settings)
            self._channel = self._connection.channel()
        return self._channel
