"""The master's side: one `Channel` for each `Starmap` that sends tasks to the workers."""

from __future__ import annotations

import contextlib
import getpass
import logging
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import amqp
from openquake.baselib.general import humansize
from openquake.baselib.parallel import Monitor, Pickled, Result

from oq_celery import broker, protocol, spool
from oq_celery.protocol import Reply, Stored, TaskHeader
from oq_celery.settings import Settings
from oq_celery.spool import StoredPickle

SCHEME: Final = "celery://"
PREFETCH: Final = 64  # results that the broker sends ahead; each is a message of limited size
POLL_SECONDS: Final = 1.0
WAITING_FIRST, WAITING_AGAIN = (
    3.0,
    60.0,
)  # seconds without a worker until the log says so, and between repetitions

log = logging.getLogger(__name__)


class TransportError(RuntimeError):
    """A job cannot go on because of what happened between the master and the workers."""


@dataclass
class _Task:
    """A task whose results have not come yet."""

    header: TaskHeader
    message: tuple[bytes, dict[str, Any], dict[str, Any]]
    files: list[str]
    starts: list[str] = field(default_factory=list)  # the workers that began an attempt


@dataclass(frozen=True)
class _Lost:
    """The result queue had gone when the master came back to it: the workers have dropped its tasks."""


class Channel:
    """Sends tasks, receives each one's results once, and iterates over them; stands in for the engine's PULL
    socket.

    A thread holds the result queue, which is the channel's lease on the workers' time, through every loss of
    the connection. Results wait in its inbox as messages of limited size, at most one for each outstanding
    task.
    """

    _open: Final[set[Channel]] = set()  # of this process

    def __init__(self, settings: Settings, job: int | None) -> None:
        self.user = getpass.getuser()
        self.job = job or 0
        self.name = protocol.channel_name(self.user, self.job)
        self.url = SCHEME + self.name
        self._settings = settings
        self._limit = settings.max_message_kb * 1024
        self._directory = settings.spool / self.name
        self._files = spool.References()
        self._publisher = broker.Publisher(settings)
        self._local: deque[Result] = deque()
        self._tasks: dict[int, _Task] = {}
        self._inbox: queue.SimpleQueue[Reply | _Lost | BaseException] = queue.SimpleQueue()
        self._ready = threading.Event()  # the queues exist
        self._closed = False
        self._thread: threading.Thread | None = None
        self._queue_state: tuple[int, int] | None = None  # tasks waiting and consumers of the task queue
        self._alone_since: float | None = None
        Channel._open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, etype: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def find(cls, url: str) -> Channel | None:
        """The open channel of this process with the given URL, if there is one."""
        return next((channel for channel in cls._open if channel.url == url), None)

    @classmethod
    def close_all(cls) -> None:
        """Close what an error or an abort left open."""
        for channel in list(cls._open):
            channel.close()

    def send(self, result: Result) -> None:
        """Take a result of a task that ran in this process, as the tasks of a `Starmap` of one task do."""
        self._local.append(result)

    def submit(
        self, func: Callable[..., Any], args: Sequence[Pickled], task_no: int, monitor: Monitor
    ) -> None:
        """Send one task to the workers."""
        self._start()
        small = [self._store(arg) for arg in args]
        # The files of a subtask's arguments have been retained since the subtask came.
        files = [arg.stored.path for arg in small if isinstance(arg, StoredPickle)]
        self._files.retain(new.stored.path for new, arg in zip(small, args, strict=True) if new is not arg)
        call = pickle.dumps((func, small, monitor), pickle.HIGHEST_PROTOCOL)
        body: bytes | Stored = call
        if len(call) > self._limit:
            body = spool.write(self._directory / f"task-{task_no}", call)
            self._files.retain([body.path])
            files.append(body.path)
        header = TaskHeader(
            channel=self.name,
            task_no=task_no,
            name=func.__name__,
            job=self.job,
            user=self.user,
            size=sum(map(len, args)),
            versions=protocol.versions(),
        )
        task = self._tasks[task_no] = _Task(header, protocol.celery_task(header, body), files)
        self._publish(task)

    def __iter__(self) -> Iterator[Result]:
        """Yield the results of one complete attempt of each task, in the order in which the attempts end.

        Raises:
            TransportError: if a task cannot be done.
        """
        while True:
            while self._local:
                yield self._local.popleft()
            match self._receive():
                case Reply(kind="ended") as reply:
                    yield from self._results(reply)
                case Reply(kind="failed") as reply if reply.task_no in self._tasks:
                    raise TransportError(reply.body.decode())
                case Reply(kind="started") as reply:
                    self._started(reply)
                case _Lost():
                    log.warning("The result queue was gone: sending %d tasks again", len(self._tasks))
                    for task in self._tasks.values():
                        self._publish(task)
                case BaseException() as error:
                    raise error

    def close(self) -> None:
        """Give everything up: workers drop the waiting tasks and stop the running ones; files are removed."""
        if self._closed:
            return
        self._closed = True
        Channel._open.discard(self)
        if self._thread is not None:
            self._publisher.delete(self.name)  # which ends the thread, too
            self._thread.join(timeout=broker.CONNECT_TIMEOUT)
        self._publisher.close()
        spool.remove_directory(self._directory)

    def _results(self, reply: Reply) -> Iterator[Result]:
        """The results of a complete attempt, or nothing if the task has been done before."""
        files = [str(self._directory / reply.attempt)] if reply.has_file else []
        self._files.retain(files)
        task = self._tasks.pop(reply.task_no, None)
        if task is not None:
            self._files.release(task.files)
            results: list[Result] = pickle.loads(spool.read(reply.stored) if reply.stored else reply.body)  # noqa: S301
            for result in results:
                if result.func is not None:  # a subtask, which will be sent with these arguments
                    self._files.retain(arg.stored.path for arg in result.pik if isinstance(arg, StoredPickle))
                yield result
        else:
            log.debug("Dropped attempt %s of task %d: done before", reply.attempt, reply.task_no)
        self._files.release(files)

    def _started(self, reply: Reply) -> None:
        task = self._tasks.get(reply.task_no)
        if task is None:
            return
        task.starts.append(reply.worker)
        if len(task.starts) > self._settings.max_attempts:
            raise TransportError(
                f"Task {task.header} with {humansize(task.header.size)} of arguments was lost with a worker "
                f"{len(task.starts) - 1} times: {', '.join(task.starts[:-1])}. "
                "Look there for why they died (out of memory?)."
            )

    def _store(self, arg: Pickled) -> Pickled:
        """Replace a large argument by a reference to a file, which tasks with the same argument share."""
        if isinstance(arg, StoredPickle) or len(arg) <= self._limit // 4:
            return arg
        path = self._directory / f"arg-{spool.digest(arg.pik)}"
        if str(path) in self._files:
            stored = Stored(str(path), 0, len(arg), path.name.removeprefix("arg-"))
        else:
            stored = spool.write(path, arg.pik)
        return StoredPickle(arg, stored)

    def _publish(self, task: _Task) -> None:
        body, headers, properties = task.message
        priority = protocol.priority(len(self._tasks) - 1)
        while not self._publisher.publish(
            self._settings.queue, body, headers, priority=priority, **properties
        ):  # the task queue has gone, with the broker's data
            self._ready.clear()
            self._wait_ready()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hold, name=f"oq_celery {self.name}", daemon=True)
            self._thread.start()
        self._wait_ready()

    def _wait_ready(self) -> None:
        while not self._ready.wait(POLL_SECONDS):
            with contextlib.suppress(queue.Empty):
                match self._inbox.get_nowait():
                    case BaseException() as error:  # the broker has refused us
                        raise error

    def _receive(self) -> Reply | _Lost | BaseException:
        while True:
            try:
                return self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._log_waiting()

    def _log_waiting(self) -> None:
        """Say it when tasks wait and no worker is there."""
        state, now = self._queue_state, time.monotonic()
        if state is None or state[1] > 0:
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = now + WAITING_FIRST
        if now >= self._alone_since:
            self._alone_since = now + WAITING_AGAIN
            log.warning("Waiting for workers: 0 alive, %d tasks queued", state[0])

    def _hold(self) -> None:
        """Thread: hold the result queue and fill the inbox from it, through every loss of the connection."""
        held = False
        while not self._closed:
            connection: amqp.Connection | None = None
            try:
                connection = broker.connect(self._settings, broker.HEARTBEAT)
                lost = held and broker.depth(connection, self.name) is None
                channel = connection.channel()
                broker.declare_tasks(channel, self._settings.queue)
                broker.declare_results(channel, self.name)
                channel.basic_qos(0, PREFETCH, False)
                channel.basic_consume(self.name, callback=self._take)
                if lost:
                    self._inbox.put(_Lost())
                held = True
                self._ready.set()
                self._drain(connection)
            except broker.ERRORS as error:
                if not self._closed and not held and isinstance(error, broker.REFUSALS):
                    self._inbox.put(
                        TransportError(f"RabbitMQ at {self._settings.host} refuses oq_celery: {error}")
                    )
                    return
                if not self._closed:
                    log.warning(
                        "RabbitMQ at %s: %s; trying again", self._settings.host, error or type(error).__name__
                    )
                    time.sleep(broker.RETRY_SECONDS)
            finally:
                broker.close(connection)

    def _drain(self, connection: amqp.Connection) -> None:
        """Receive until the channel is closed."""
        look = 0.0
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=POLL_SECONDS)
            connection.heartbeat_tick()
            if time.monotonic() >= look:
                self._queue_state = broker.depth(connection, self._settings.queue)
                look = time.monotonic() + POLL_SECONDS

    def _take(self, message: amqp.Message) -> None:
        self._inbox.put(Reply.parse(message.headers, message.body))
        message.channel.basic_ack(message.delivery_tag)
