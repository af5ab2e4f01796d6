"""The worker's side: one `Attempt` at one task, whose results go to the master in one message at its end."""

from __future__ import annotations

import logging
import pickle
import time
import traceback
import uuid
from typing import ClassVar

from openquake.baselib import parallel
from openquake.baselib.parallel import Pickled, Result

from oq_celery import inputs, spool
from oq_celery.broker import Publisher
from oq_celery.protocol import LEASE_SECONDS, Kind, Reply, Stored, TaskHeader, worker_name
from oq_celery.settings import Settings
from oq_celery.spool import StoredPickle

LOOK_SECONDS = 0.5  # between two looks for a master that is not there

log = logging.getLogger(__name__)


class UnableError(RuntimeError):
    """This worker cannot do a task, but another one may; the master knows."""


class Attempt:
    """Runs a task and collects its results; stands in for the engine's PUSH socket.

    Results stay in memory up to the size of a message and go to the attempt's own file beyond it.
    """

    _current: ClassVar[Attempt | None] = None

    def __init__(self, settings: Settings, publisher: Publisher, header: TaskHeader) -> None:
        self.header = header
        self.name = f"result-{header.task_no}-{uuid.uuid4().hex[:16]}"
        self._publisher = publisher
        self._limit = settings.max_message_kb * 1024
        self._path = settings.spool / header.channel / self.name
        self._writer: spool.Writer | None = None
        self._results: list[Result] = []
        self._in_memory = 0
        self._error: OSError | None = None

    @classmethod
    def current(cls, url: str) -> Attempt:
        """The attempt that this process makes, whose results are wanted at `url`."""
        if cls._current is None:
            raise RuntimeError(f"No task of {url} runs in this process")
        return cls._current

    def run(self, body: bytes | Stored) -> None:
        """Do the task and send its results, or nothing at all if nobody wants them any more.

        Raises:
            UnableError: if this worker cannot read the arguments or write the results; another one may.
        """
        if not self._master_is_there() or not self._reply("started", persistent=False):
            log.info("Dropped %s: nobody waits for it", self.header)
            return
        Attempt._current = self
        delivered = False
        try:
            delivered = self._do(body)
        finally:
            Attempt._current = None
            if not delivered:
                self._discard()

    def send(self, result: Result) -> None:
        """Collect one result.

        Raises:
            OSError: if it cannot be written. Upstream takes that for an error of the task's, `run` does not.
        """
        try:
            if result.func is not None:  # a subtask: a list of arguments
                result.pik = [self._keep(arg) for arg in result.pik]
            elif isinstance(result.pik, Pickled):
                result.pik = self._keep(result.pik)
        except OSError as error:
            self._error = error
            raise
        self._results.append(result)

    def _master_is_there(self) -> bool:
        """Whether somebody consumes from the result queue, or does so again within the lease.

        A broker that has just started has its queues before its masters come back, and the tasks of a master that was
        killed have a queue, too; that is deleted here, so that all others know.
        """
        channel = self.header.channel
        alone_since: float | None = None
        while (state := self._publisher.depth(channel)) is not None:
            _, consumers = state
            if consumers:
                return True
            now = time.monotonic()
            alone_since = now if alone_since is None else alone_since
            if now - alone_since >= LEASE_SECONDS:
                return not self._publisher.delete_unused(channel)
            time.sleep(LOOK_SECONDS)
        return False

    def _do(self, body: bytes | Stored) -> bool:
        """Call the task and send its results; False if they are of no use to anybody."""
        try:
            func, args, monitor = pickle.loads(spool.read(body) if isinstance(body, Stored) else body)  # noqa: S301
            with inputs.seen(self.header.inputs):
                parallel.safely_call(func, args, self.header.task_no, monitor)
            wanted = self._finish()
        except (OSError, spool.CorruptError) as error:
            self._reply("unable", f"{type(error).__name__}: {error}".encode())
            raise UnableError(f"{self.header}: {error}") from error
        except Exception:
            # What the engine does not catch itself.
            text = f"Task {self.header} failed on worker {worker_name()}:\n{traceback.format_exc()}"
            self._reply("failed", text.encode())
            return False
        if not wanted:
            log.info("Dropped the results of %s: nobody waits for them", self.header)
        return wanted

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
        if self._error is not None:
            raise self._error
        results = pickle.dumps(self._results, pickle.HIGHEST_PROTOCOL)
        body = self._write(results) if len(results) > self._limit else results
        if self._writer is not None:
            self._writer.close()
        return self._reply("ended", body)

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _reply(self, kind: Kind, body: bytes | Stored = b"", *, persistent: bool = True) -> bool:
        """Send a message to the channel; False if it is gone."""
        reply = Reply(
            kind=kind,
            task_no=self.header.task_no,
            attempt=self.name,
            worker=worker_name(),
            has_file=self._writer is not None,
            stored=body if isinstance(body, Stored) else None,
            body=b"" if isinstance(body, Stored) else body,
        )
        return self._publisher.publish(
            self.header.channel, reply.body, reply.headers(), persistent=persistent
        )
