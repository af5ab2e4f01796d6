"""Connections to RabbitMQ that come back: queues, and publishing that knows whether anybody wanted the message.

py-amqp is Celery's own AMQP library. Celery itself is not imported here: a master needs only its message
format.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import amqp
from amqp import spec

from oq_celery.protocol import AGAIN, EXPIRY_MS, MAX_PRIORITY, Envelope
from oq_celery.settings import Settings

ERRORS = (amqp.ConnectionError, amqp.ChannelError, amqp.exceptions.MessageNacked, OSError)
REFUSALS = (
    amqp.AccessRefused,
    amqp.NotAllowed,
    amqp.PreconditionFailed,
)  # wrong password, vhost, kind of queue
REPLY_TO = "amq.rabbitmq.reply-to"  # RabbitMQ's own name

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
PROBE_SECONDS = 10.0  # between two looks whether the broker takes messages, while tasks are with it
ANSWER_TIMEOUT = 1  # of sending a few bytes, in a thread that has other things to do
RETRY_SECONDS = 1.0
REFUSED_SECONDS = 60.0  # after which it is no broker any more that comes up
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

    It says so to those only who publish, and listens no more to them: drop such a connection. The first message it
    still takes, and its word of the alarm may come behind the confirm: the second one it takes only without an alarm.

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
    for _ in range(2):
        channel.basic_publish(amqp.Message(""))  # to no queue
    while not reasons and 2 not in confirmed:
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


def delete(settings: Settings, queue: str) -> bool:
    """Delete a queue on a connection of its own, if the broker answers in CONNECT_TIMEOUT seconds; True if it did."""
    connection: amqp.Connection | None = None
    try:
        connection = connect(settings, read_timeout=CONNECT_TIMEOUT, write_timeout=CONNECT_TIMEOUT)
        connection.channel().queue_delete(queue)
    except ERRORS as error:
        log.debug("queue %s is left to the workers: %s", queue, error)
        return False
    finally:
        close(connection)
    return True


def retry_text(settings: Settings, error: Exception) -> str:
    """That the broker cannot be reached and will be tried again, for people."""
    return f"RabbitMQ at {settings.host}: {str(error) or type(error).__name__}; trying again"


def blocked_text(settings: Settings, reason: str) -> str:
    """That the broker is there and takes no messages, for people."""
    return (
        f"RabbitMQ at {settings.host} takes no messages ({reason}): tasks and results wait until there is room there, "
        "and all goes on by itself then"
    )


class _Line:
    """A connection for publishing, with confirms and returns; broken for good by the first error."""

    def __init__(self, settings: Settings, say: Callable[[str], None], timeout: float | None = None) -> None:
        self._settings = settings
        self._say = say
        self.blocked = False  # by an alarm of the broker
        self.unconfirmed: set[int] = set()  # delivery tags
        self.returned = False  # the last message that was returned has no queue
        self.next_tag = 1
        self.connection = connect(
            settings,
            on_blocked=self._block,
            on_unblocked=self._unblock,
            read_timeout=timeout,
            write_timeout=timeout,
        )
        self.channel = self.connection.channel()
        self.channel.confirm_select()
        self.channel.events["basic_ack"].add(self._confirm)
        self.channel.events["basic_nack"].add(self._refuse)
        self.channel.events["basic_return"].add(self._return)

    def publish(
        self, queue: str, envelope: Envelope, *, persistent: bool = True, mandatory: bool = True
    ) -> int:
        """Send a message without waiting; its delivery tag is in `unconfirmed` until the broker has it."""
        message = amqp.Message(
            envelope.body,
            application_headers=envelope.headers,
            delivery_mode=2 if persistent else 1,
            **envelope.properties,
        )
        tag = self.next_tag
        self.next_tag += 1
        self.unconfirmed.add(tag)
        self.channel.basic_publish(message, routing_key=queue, mandatory=mandatory)
        return tag

    def poll(self, timeout: float | None = 0) -> None:
        """Take what the broker says; None waits for it, 0 only looks."""
        try:
            self.connection.drain_events(timeout=timeout)
            while timeout == 0:
                self.connection.drain_events(timeout=0)
        except TimeoutError:
            return

    def _confirm(self, tag: int, multiple: bool) -> None:
        self.unconfirmed -= {other for other in self.unconfirmed if other <= tag} if multiple else {tag}

    def _refuse(self, tag: int, multiple: bool) -> None:
        raise amqp.exceptions.MessageNacked(f"delivery tag {tag}, multiple={multiple}")

    def _return(self, *_: Any) -> None:
        self.returned = True

    def _block(self, reason: str) -> None:
        self.blocked = True
        self._say(blocked_text(self._settings, reason))

    def _unblock(self) -> None:
        self.blocked = False
        self._say(f"RabbitMQ at {self._settings.host} takes messages again")


class Publisher:
    """Publishes on a connection that is opened when needed and replaced when broken, however long that takes.

    For the processes of a worker. Not thread-safe.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line: _Line | None = None
        # Of masters, by the question, when this connection may get some: one may come too late for its question.
        self._answers: dict[str, bytes | str] | None = None
        self._warned = False  # that the broker is away
        self._refused_since: float | None = None  # by the broker, which knows this user no more

    def publish(
        self, queue: str, body: bytes, headers: dict[str, Any], *, persistent: bool = True, **properties: Any
    ) -> bool:
        """Put a message into a queue.

        Returns:
            True when the broker has confirmed the message. False if there is no such queue; when the connection has
            broken meanwhile, the message may have been there before.
        """
        envelope = Envelope(body, headers, properties)
        while True:
            try:
                line = self._open()
                line.returned = False
                tag = line.publish(queue, envelope, persistent=persistent)
                while tag in line.unconfirmed:
                    line.poll(None)
                self._warned = False
                return not line.returned
            except ERRORS as error:
                self._pause(error)

    def tell(self, queue: str, headers: dict[str, Any]) -> None:
        """Publish a message that may be lost, without waiting for anything but a connection."""
        while True:
            try:
                self._open().publish(queue, Envelope(b"", headers, {}), persistent=False, mandatory=False)
            except ERRORS as error:
                self._pause(error)
            else:
                return

    def ask(self, queue: str, headers: dict[str, Any], timeout: float) -> str | None:
        """Publish a question and wait for the answer.

        RabbitMQ's direct reply-to carries it: https://www.rabbitmq.com/docs/direct-reply-to

        Returns:
            None if no answer came in `timeout` seconds, or the queue is not there.
        """
        try:
            line = self._open()
            if self._answers is None:
                self._answers = answers = {}
                line.channel.basic_consume(
                    REPLY_TO,
                    no_ack=True,
                    callback=lambda message: answers.update({message.correlation_id: message.body}),
                )
            self._answers.clear()
            question = uuid.uuid4().hex
            properties = {"reply_to": REPLY_TO, "correlation_id": question}
            line.publish(queue, Envelope(b"", headers, properties), persistent=False, mandatory=False)
            end = time.monotonic() + timeout
            while question not in self._answers and (left := end - time.monotonic()) > 0:
                line.poll(left)
            answer = self._answers.get(question)
        except ERRORS as error:
            self._pause(error)
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    def depth(self, queue: str) -> tuple[int, int] | None:
        """As the function `depth`, however long the broker is away, and in one exchange with it."""
        while True:
            try:
                _, messages, consumers = self._open().channel.queue_declare(queue, passive=True)
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
                return delete_unused(self._open().connection, queue)
            except ERRORS as error:
                self._pause(error)

    def close(self) -> None:
        """Close the connection; the next message opens another one."""
        if self._line is not None:
            close(self._line.connection)
        self._line = self._answers = None

    def _pause(self, error: Exception) -> None:
        """Before the next try, after an error.

        Whom the broker has refused for long ends: after a rotation of the secret Celery's main process, which waits for
        this one, has to come back with the new one. The task goes to another worker, unacknowledged as it is.
        """
        self.close()
        now = time.monotonic()
        self._refused_since = (self._refused_since or now) if isinstance(error, amqp.AccessRefused) else None
        if self._refused_since is not None and now - self._refused_since >= REFUSED_SECONDS:
            log.error("%s", retry_text(self._settings, error))
            os._exit(1)  # whatever calls this would catch an exception and try again
        if not self._warned:
            log.warning("%s", retry_text(self._settings, error))
            self._warned = True
        time.sleep(RETRY_SECONDS)

    def _open(self) -> _Line:
        if self._line is None:
            self._line = _Line(self._settings, log.warning)
            self._refused_since = None
        return self._line


class Sender:
    """A master's way of sending tasks, which waits for nothing: neither for confirms nor for a broker that is away.

    A task is held here until the broker has confirmed it, and published again after every loss of the connection; its
    message then says that it may be a copy. Not thread-safe.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        """Open nothing yet.

        Args:
            settings: where the broker is.
            say: told what people should know, for the log.
        """
        self._settings = settings
        self._say = say
        self._line: _Line | None = None
        self._waiting: dict[int, Envelope] = {}  # by the number of the task, in order
        self._sent: dict[int, tuple[int, Envelope]] = {}  # the same of unconfirmed ones, by delivery tag
        self._next_try = self._next_probe = 0.0
        self._warned = False

    def __contains__(self, task_no: int) -> bool:
        """Whether a task has not got to the broker, as far as is known."""
        return task_no in self._waiting or any(number == task_no for number, _ in self._sent.values())

    @property
    def blocked(self) -> bool:
        """Whether an alarm of the broker keeps it from taking messages, as far as is known."""
        return self._line is not None and self._line.blocked

    def put(self, task_no: int, envelope: Envelope) -> None:
        """Send a task as soon as the broker takes it."""
        self._waiting[task_no] = envelope
        self.poll()

    def poll(self) -> bool:
        """Go on with what waits, and learn what has become of what was sent; for a call every second at least.

        Returns:
            False when the broker has no task queue, so that a task came back, which waits here again.
        """
        try:
            line = self._open()
            if line is None:
                return True
            line.poll()
            if line.returned:
                self._give_up()
                return False
            for tag in self._sent.keys() - line.unconfirmed:
                del self._sent[tag]
            while self._waiting and not line.blocked:
                task_no = next(iter(self._waiting))
                envelope = self._waiting.pop(task_no)
                # Noted first: a message may be out though its publication raises.
                self._sent[line.next_tag] = task_no, envelope
                line.publish(self._settings.queue, envelope)
            if time.monotonic() >= self._next_probe and not line.blocked:
                # The broker speaks of an alarm to those only who publish: this goes to no queue.
                line.publish("", Envelope(b"", {}, {}), persistent=False, mandatory=False)
                self._next_probe = time.monotonic() + PROBE_SECONDS
            self._warned = False
        except ERRORS as error:
            self._give_up()
            if not self._warned:
                self._say(retry_text(self._settings, error))
                self._warned = True
            self._next_try = time.monotonic() + RETRY_SECONDS
        return True

    def close(self, queue: str | None) -> bool:
        """Close the connection, and delete a queue.

        Args:
            queue: None if something was interrupted, maybe in the middle of a message.

        Returns:
            False if the queue could not be deleted.
        """
        line, self._line = self._line, None
        if line is None or queue is None or line.blocked or self._sent:
            if line is not None:
                line.connection.collect()
            return queue is None or delete(self._settings, queue)
        deleted = True
        try:
            line.channel.queue_delete(queue)
        except ERRORS:  # of a connection that has broken since it was last used
            deleted = delete(self._settings, queue)
        close(line.connection)
        return deleted

    def _open(self) -> _Line | None:
        if self._line is None and time.monotonic() >= self._next_try and (self._waiting or self._sent):
            self._line = _Line(self._settings, self._say, timeout=CONNECT_TIMEOUT)
        return self._line

    def _give_up(self) -> None:
        """Drop the connection, and keep what it may not have delivered."""
        if self._line is not None:
            self._line.connection.collect()
            self._line = None
        again = {
            task_no: Envelope(envelope.body, envelope.headers | {AGAIN: True}, envelope.properties)
            for task_no, envelope in self._sent.values()
        }
        self._waiting = again | self._waiting
        self._sent.clear()
