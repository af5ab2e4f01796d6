"""The worker's side: one `Attempt` at one task, whose results go to the master in one message at its end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import re
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from typing import ClassVar, Final

from openquake.baselib import config, parallel
from openquake.baselib.parallel import Pickled, Result

from oq_celery import inputs, spool
from oq_celery.broker import Publisher
from oq_celery.clock import Clock
from oq_celery.protocol import LEASE_SECONDS, Kind, Reply, Stored, TaskHeader, worker_name
from oq_celery.settings import Settings
from oq_celery.spool import StoredPickle

LOOK_SECONDS: Final = 0.5  # between two looks for a master that is not there
SEEN_SECONDS: Final = 2.0  # for which a master that was there is taken to be there still, as the watch does
ASK_SECONDS: Final = 1.0  # between two questions what to do with a copy
ANSWER_SECONDS: Final = 10.0  # in which an answer comes, or the question is asked again
_ERRNO: Final = re.compile(r"(?:\[Errno |errno = )(\d+)")  # as h5py writes it
# What a machine, not a task, is to blame for: stale or unreachable NFS, bad disks, full ones, no memory, no file more.
MACHINE_ERRORS: Final = frozenset(
    {
        errno.ESTALE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ETIMEDOUT, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    }
)  # fmt: skip

log = logging.getLogger(__name__)


class UnableError(RuntimeError):
    """This worker cannot do a task, but another one may; the master knows."""


class MachineError(RuntimeError):
    """What the task has met is an error of this machine: its disk, its memory, its way to the shared directory."""


class Attempt:
    """Runs a task and collects its results; stands in for the engine's PUSH socket.

    Results stay in memory up to the size of a message and go to the attempt's own file beyond it.
    """

    _current: ClassVar[Attempt | None] = None
    _seen: ClassVar[tuple[str, float]] = ("", 0.0)  # the channel whose master was there last, and when

    def __init__(
        self, settings: Settings, publisher: Publisher, header: TaskHeader, node: str, message: str
    ) -> None:
        """Begin nothing yet.

        Args:
            settings: of the Celery mode.
            publisher: of this process.
            header: of the task.
            node: the name of the worker.
            message: the Celery id of the task's message.
        """
        self.header = header
        self._node = node
        self._message = message
        self._announced = False  # the attempt's file may be known to the master
        self.name = f"result-{header.task_no}-{uuid.uuid4().hex[:16]}"
        self._publisher = publisher
        self._limit = settings.max_message_kb * 1024
        self._path = settings.spool / header.channel / self.name
        self._root = settings.spool
        self._writer: spool.Writer | None = None
        self._results: list[Result] = []
        self._in_memory = 0
        self._error: Exception | None = None
        self._begun: float | None = None  # monotonic time at which it became this process's to do

    @classmethod
    def current(cls, url: str) -> Attempt:
        """The attempt that this process makes, whose results are wanted at `url`."""
        if cls._current is None:
            raise RuntimeError(f"No task of {url} runs in this process")
        return cls._current

    def run(self, body: bytes | Stored, *, may_be_copy: bool) -> None:
        """Do the task and send its results, or nothing at all if nobody wants them any more.

        Args:
            body: of the task, or where it is.
            may_be_copy: whether the master has to be asked first.

        Raises:
            UnableError: if this worker cannot read the arguments or write the results; another one may.
        """
        if not self._master_is_there(anew=may_be_copy):
            log.info("Dropped %s: nobody waits for it", self.header)
            return
        if not may_be_copy:
            self._publisher.tell(self.header.channel, self._reply("started").headers())
        elif not self._is_wanted():
            log.info("Dropped a copy of %s", self.header)
            return
        Attempt._current = self
        self._begun = time.monotonic()
        try:
            self._do(body)
        finally:
            Attempt._current = None
            if self._writer is not None and not self._announced:
                self._writer.discard()

    def send(self, result: Result) -> None:
        """Collect one result.

        Raises:
            OSError: if it cannot be written. Upstream takes that for an error of the task's, `run` does not.
        """
        if self._error is not None:  # what upstream makes of the exception that was raised here
            return
        if result.tb_str and self._is_of_the_machine(error := result.pik.unpickle()):
            self._error = MachineError(f"{type(error).__name__}: {error}\n{result.tb_str}")
            return
        try:
            if result.func is not None:  # a subtask: a list of arguments
                result.pik = [self._keep(arg) for arg in result.pik]
            elif isinstance(result.pik, Pickled):
                result.pik = self._keep(result.pik)
        except OSError as error:
            self._error = error
            raise
        self._results.append(result)

    def _master_is_there(self, *, anew: bool) -> bool:
        """Whether somebody consumes from the result queue, or does so again within the lease.

        A broker that has just started has its queues before its masters come back, and the tasks of a master that was
        killed have a queue, too; that is deleted here, so that all others know.

        Args:
            anew: whether to look even if the master was there a moment ago.
        """
        channel = self.header.channel
        seen, when = Attempt._seen
        if not anew and seen == channel and time.monotonic() - when < SEEN_SECONDS:
            return True
        # The time that a look has waited for the broker is none in which the master could have come back.
        alone = Clock(LEASE_SECONDS / 2)
        while (state := self._publisher.depth(channel)) is not None:
            _, consumers = state
            if consumers:
                Attempt._seen = channel, time.monotonic()
                return True
            if alone.seconds(channel, True) >= LEASE_SECONDS:
                return not self._publisher.delete_unused(channel)
            time.sleep(LOOK_SECONDS)
        return False

    def _is_wanted(self) -> bool:
        """Ask the master whether a message that may be a copy is to be done."""
        question = self._reply("asks").headers()
        while True:
            match self._publisher.ask(self.header.channel, question, ANSWER_SECONDS):
                case "do":
                    return True
                case "drop":
                    return False
                case "wait":
                    time.sleep(ASK_SECONDS)
                case _:
                    if not self._master_is_there(anew=True):
                        return False

    def _do(self, body: bytes | Stored) -> None:
        """Call the task and send its results."""
        try:
            func, args, monitor = pickle.loads(spool.read(body) if isinstance(body, Stored) else body)  # noqa: S301
            with (
                inputs.seen(self.header.inputs),
                _values(os.environ, self.header.environment),
                _values(config.memory, self.header.memory),
            ):
                parallel.safely_call(func, args, self.header.task_no, monitor)
            if not self._finish():
                log.info("Dropped the results of %s: nobody waits for them", self.header)
        except (OSError, spool.CorruptError, MachineError, MemoryError) as error:
            # The arguments of a task that is done are removed: this may be a copy that did not know it.
            if isinstance(error, FileNotFoundError) and not self._is_wanted():
                log.info("Dropped a copy of %s, which is done", self.header)
                return
            self._publish("unable", f"{type(error).__name__}: {error}".encode())
            raise UnableError(f"{self.header}: {error}") from error
        except Exception:
            # What the engine does not catch itself.
            text = f"Task {self.header} failed on worker {worker_name()}:\n{traceback.format_exc()}"
            self._publish("failed", text.encode())

    def _is_of_the_machine(self, error: BaseException) -> bool:
        """Whether another machine need not meet an error that a task has met."""
        if not isinstance(error, OSError):
            return isinstance(error, MemoryError)
        number = error.errno
        if number is None and (said := _ERRNO.search(str(error))):
            # Upstream's DataStore.open raises h5py's error anew, with its text alone.
            number = int(said[1])
        # Of a shared directory that is not there at all no error says more than that a file is missing.
        return number in MACHINE_ERRORS or not self._root.is_dir()

    def _keep(self, pickled: Pickled) -> Pickled:
        if isinstance(pickled, StoredPickle):
            return pickled
        if self._in_memory + len(pickled) <= self._limit // 2:
            self._in_memory += len(pickled)
            return pickled
        return StoredPickle(pickled, self._write(pickled.pik))

    def _write(self, data: bytes) -> Stored:
        if self._writer is None:
            self._writer = spool.Writer(self._path)
        return self._writer.append(data)

    def _finish(self) -> bool:
        """Send the results; False if nobody waits for them."""
        if self._error is not None:
            raise self._error
        results = pickle.dumps(self._results, pickle.HIGHEST_PROTOCOL)
        body = self._write(results) if len(results) > self._limit else results
        if self._writer is not None:
            self._writer.close()
        # From here on the message may be with the master though nothing says so.
        self._announced = True
        return self._publish("ended", body)

    def _publish(self, kind: Kind, body: bytes | Stored) -> bool:
        """Send a message to the channel; False if it is gone."""
        reply = self._reply(kind, body)
        return self._publisher.publish(self.header.channel, reply.body, reply.headers())

    def _reply(self, kind: Kind, body: bytes | Stored = b"") -> Reply:
        return Reply(
            kind=kind,
            node=self._node,
            worker=worker_name(),
            message=self._message,
            task_no=self.header.task_no,
            attempt=self.name,
            has_file=self._writer is not None,
            stored=body if isinstance(body, Stored) else None,
            seconds=0.0 if self._begun is None else time.monotonic() - self._begun,
            body=b"" if isinstance(body, Stored) else body,
        )


@contextlib.contextmanager
def _values(settings: MutableMapping[str, str], given: Mapping[str, str]) -> Iterator[None]:
    """These values are among the settings meanwhile, which may be the environment."""
    before = {name: settings.get(name) for name in given}
    settings.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                settings.pop(name, None)
            else:
                settings[name] = value
