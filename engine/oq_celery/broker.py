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
from amqp import spec

from oq_celery.protocol import EXPIRY_MS, MAX_PRIORITY
from oq_celery.settings import Settings

ERRORS = (amqp.ConnectionError, amqp.ChannelError, amqp.exceptions.MessageNacked, OSError)
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
# quicker. The smaller one of this and the server's counts (60 in RabbitMQ, too).
HEARTBEAT = 60
CONNECT_TIMEOUT = 10
RETRY_SECONDS = 1.0
TASK_QUEUE_ARGUMENTS = {"x-max-priority": MAX_PRIORITY}

log = logging.getLogger(__name__)


class _Connection(amqp.Connection):  # type: ignore[misc]
    """Hands on why RabbitMQ blocks it, which py-amqp leaves unread."""

    _METHODS = amqp.Connection._METHODS | {
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),
    }

    def _on_blocked(self, reason: str) -> None:
        if self.on_blocked is not None:
            self.on_blocked(reason)


def connect(settings: Settings, heartbeat: int = 0, **options: Any) -> amqp.Connection:
    """Open a connection.

    Args:
        settings: where the broker is.
        heartbeat: seconds, for a connection that is read all the time; 0 for one that only publishes, which
        TCP watches.
        options: more of amqp.Connection's.

    Raises:
        one of ERRORS.
    """
    connection = _Connection(
        host=f"{settings.host}:{settings.port}",
        userid=settings.user,
        password=settings.password,
        virtual_host=settings.vhost,
        heartbeat=heartbeat,
        connect_timeout=CONNECT_TIMEOUT,
        socket_settings=SOCKET_OPTIONS,
        **options,
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
    except amqp.NotFound:
        return None
    finally:
        channel.close()  # RabbitMQ has closed it after an error, but py-amqp has opened it again
    return messages, consumers


def alarm(connection: amqp.Connection) -> str | None:
    """Why the broker takes no messages, in its own words ("low on disk"); None when it takes them.

    It says so to those only who publish, and listens no more to them: drop such a connection.

    Args:
        connection: of its own, with timeouts.

    Raises:
        one of ERRORS: if the broker does not answer in CONNECT_TIMEOUT seconds.
    """
    reasons: list[str] = []
    confirmed: list[int] = []
    connection.on_blocked = reasons.append
    channel = connection.channel()
    channel.confirm_select()
    channel.events["basic_ack"].add(lambda tag, _: confirmed.append(tag))
    channel.basic_publish(amqp.Message(""))  # to no queue
    while not reasons and not confirmed:
        connection.drain_events(timeout=CONNECT_TIMEOUT)
    return reasons[0] if reasons else None


def declare_tasks(channel: amqp.Channel, queue: str) -> None:
    """Make the task queue, as the workers do too."""
    channel.queue_declare(queue, durable=True, auto_delete=False, arguments=TASK_QUEUE_ARGUMENTS)


def declare_results(channel: amqp.Channel, queue: str) -> None:
    """Make a channel's result queue."""
    channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-expires": EXPIRY_MS})


def delete_unused(connection: amqp.Connection, queue: str) -> bool:
    """Delete a queue unless somebody consumes from it; True if it is gone."""
    channel = connection.channel()
    try:
        channel.queue_delete(queue, if_unused=True)
    except amqp.PreconditionFailed:
        return False
    finally:
        channel.close()
    return True


def delete(settings: Settings, queue: str) -> None:
    """Delete a queue on a connection of its own, if the broker answers in CONNECT_TIMEOUT seconds."""
    connection: amqp.Connection | None = None
    try:
        connection = connect(settings, read_timeout=CONNECT_TIMEOUT, write_timeout=CONNECT_TIMEOUT)
        connection.channel().queue_delete(queue)
    except ERRORS as error:
        log.debug("queue %s is left to the workers: %s", queue, error)
    finally:
        close(connection)


def log_retry(settings: Settings, error: Exception) -> None:
    """Say that the broker cannot be reached and will be tried again."""
    log.warning("RabbitMQ at %s: %s; trying again", settings.host, str(error) or type(error).__name__)


class Publisher:
    """Publishes with confirms on a connection, opened when needed, replaced when broken. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None
        self._warned = False  # that the broker is away

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
        while True:
            try:
                channel = self._open()
                channel.basic_publish_confirm(message, routing_key=queue, mandatory=True)
                self._warned = False
                return True
            except amqp.ChannelError as error:
                self.close()
                if error.reply_code == NO_ROUTE:
                    return False
                raise
            except ERRORS as error:
                self._pause(error)

    def delete(self, queue: str) -> None:
        """Delete a queue, if the broker can be reached; a missing queue is no error."""
        try:
            self._open().queue_delete(queue)
        except ERRORS:  # of a connection that has broken since it was last used
            self.close()
            delete(self._settings, queue)

    def depth(self, queue: str) -> tuple[int, int] | None:
        """As the function `depth`, however long the broker is away, and in one exchange with it."""
        while True:
            try:
                _, messages, consumers = self._open().queue_declare(queue, passive=True)
            except amqp.NotFound:  # which ends the channel
                self.close()
                return None
            except ERRORS as error:
                self._pause(error)
            else:
                return messages, consumers

    def delete_unused(self, queue: str) -> bool:
        """As the function `delete_unused`, however long the broker is away."""
        while True:
            try:
                self._open()
                return delete_unused(self._connection, queue)
            except ERRORS as error:
                self._pause(error)

    def _pause(self, error: Exception) -> None:
        """Before the next try, after an error."""
        self.close()
        if not self._warned:
            log_retry(self._settings, error)
            self._warned = True
        time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Close the connection; the next message opens another one."""
        close(self._connection)
        self._connection = self._channel = None

    def abandon(self) -> None:
        """Drop the connection without a word: what it was doing may be half done, or the broker may not listen."""
        if self._connection is not None:
            self._connection.collect()
        self._connection = self._channel = None

    def _open(self) -> amqp.Channel:
        if self._channel is None:
            self._connection = connect(self._settings)
            self._channel = self._connection.channel()
        return self._channel
