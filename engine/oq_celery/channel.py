"""The master's side: one `Channel` for each `Starmap` that sends tasks to the workers."""

from __future__ import annotations

import contextlib
import getpass
import logging
import pickle
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Final

from openquake.baselib.general import humansize
from openquake.baselib.parallel import Monitor, Pickled, Result, Starmap

from oq_celery import broker, cost, overdue, protocol, spool
from oq_celery.ledger import Ledger
from oq_celery.order import Order, Path
from oq_celery.protocol import Reply, Stored, TaskHeader, TransportError
from oq_celery.results import Back, ResultQueue
from oq_celery.settings import Settings
from oq_celery.spool import StoredPickle

SCHEME: Final = "celery://"
# Bytes of results that wait for those of earlier tasks: in memory, and with those in the shared directory, where most
# of them lie anyway. A fleet that pauses is paid for: in a simulation of 1,600 processes on spot capacity, of which one
# in twenty is lost in an hour, with 100 GB of results, 8 GiB let thousands of their hours pass idle.
MEMORY_LIMIT: Final = 256 * 2**20
HELD_LIMIT = 64 * 2**30
HELD_SHARE: Final = 0.25  # but no more of what is free there
# Bytes of the tasks that are not done, in memory; above them those that are not small go to the shared directory. A
# calculation may submit tens of thousands at once, each of up to `max_message_kb`.
BODIES_LIMIT = 256 * 2**20
SMALL_BODY: Final = 16 * 2**10
# Bytes of an argument that is remembered, to be compared with the next task's.
COMPARED_LIMIT: Final = 64 * 2**20
REPORT_SECONDS: Final = 5.0
AUDIT_SECONDS: Final = 2.0
MASTER: Final = uuid.uuid4().hex  # this process, for caches that must not outlive it

log = logging.getLogger(__name__)


@dataclass
class _Task:
    """A task whose results have not come yet."""

    path: Path
    header: TaskHeader
    body: bytes | Stored
    files: list[str]
    sent: bool = False  # or still here, because enough tasks are with the broker


@dataclass
class _Done:
    """The results of a complete attempt, which may have to wait for those of earlier tasks."""

    results: list[Result]
    files: list[str]
    held: int = 0  # bytes that wait,
    in_memory: int = 0  # and of them those that wait in memory


class Channel:
    """Sends tasks, receives each one's results once, and iterates over them; stands in for the engine's PULL
    socket.

    The tasks of a `Starmap` may also run in this process (when there is only one); then no broker is needed.
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
        self._files = spool.References(self._directory)
        self._stored: dict[str, Stored] = {}  # large arguments by their checksum,
        self._last: dict[int, tuple[bytes, Stored]] = {}  # and the last one at each place, with its content
        self._sender = broker.Sender(settings, self._note)
        self._meter = cost.meter(self.job)
        self._ledger = Ledger(settings.max_attempts, self._meter)
        self._next_audit = 0.0
        self._overdue = overdue.Overdue()
        self._next_look = 0.0  # for tasks that are overdue
        self._local: deque[Result] = deque()
        self._tasks: dict[int, _Task] = {}
        # So many tasks are with the broker at once, also of a calculation that submits all of its tasks: otherwise
        # the tasks of another one would come after all of these, see `protocol.priority`.
        self._window = Starmap.CT
        self._backlog: deque[int] = deque()
        self._submitted = 0
        self._bodies = 0  # bytes of those in memory
        self._order: Order[_Done] = Order()
        self._ended: list[Result] = []  # messages of the end of a task that the engine has not got yet
        self._held = self._in_memory = 0  # bytes of results that wait for earlier tasks
        self._held_limit = HELD_LIMIT  # until the shared directory is looked at
        self._pause_said = False
        self._queue: ResultQueue | None = None  # made when the first task goes to the workers
        self._warned: set[str] = set()  # of workers that could not do a task
        self._closing = threading.Lock()
        self._closed = False
        Channel._open.add(self)
        _Reports.start_once()

    def __exit__(
        self, etype: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, as the engine does when it has all results."""
        self.close(in_order=etype is None)

    @classmethod
    def find(cls, url: str) -> Channel | None:
        """The open channel of this process with the given URL, if there is one."""
        return next((channel for channel in cls._open if channel.url == url), None)

    @classmethod
    def close_all(cls) -> None:
        """Close what an error or an abort left open."""
        for channel in list(cls._open):
            channel.close(in_order=False)

    @classmethod
    def report_all(cls) -> None:
        """Leave the number of tasks of each where `oq-celery status` finds it."""
        for channel in list(cls._open):
            channel.report()

    def send(self, result: Result) -> None:
        """Take a result of a task that ran in this process, as the tasks of a `Starmap` of one task do."""
        self._local.append(result)

    def submit(
        self,
        func: Callable[..., Any],
        args: Sequence[Pickled],
        task_no: int,
        monitor: Monitor,
        inputs: str = "",
    ) -> None:
        """Send one task to the workers."""
        self._open_queue()
        small = []
        for place, arg in enumerate(args):
            small.append(new := self._store(place, arg))
            # The files of a subtask's arguments have been retained since the subtask came.
            if new is not arg and isinstance(new, StoredPickle):
                self._files.retain([new.stored.path])
        files = [arg.stored.path for arg in small if isinstance(arg, StoredPickle)]
        call = pickle.dumps((func, small, monitor), pickle.HIGHEST_PROTOCOL)
        body: bytes | Stored = call
        too_many = self._bodies + len(call) > BODIES_LIMIT and len(call) > SMALL_BODY
        if too_many or len(call) > self._limit:
            body = spool.write(self._directory / f"task-{task_no}", call)
            self._files.retain([body.path])
            files.append(body.path)
        header = TaskHeader(
            channel=self.name,
            master=MASTER,
            task_no=task_no,
            name=func.__name__,
            job=self.job,
            user=self.user,
            size=sum(map(len, args)),
            versions=protocol.versions(),
            inputs=inputs,
            environment=protocol.environment(),
            memory=protocol.memory(),
        )
        self._submitted += 1
        self._bodies += len(body) if isinstance(body, bytes) else 0
        self._tasks[task_no] = _Task(self._order.submit(args), header, body, files)
        self._ledger.add(task_no)
        self._backlog.append(task_no)
        self._send_backlog()

    def __iter__(self) -> Iterator[Result]:
        """Yield the results of one complete attempt of each task, in the order of the tasks.

        Raises:
            TransportError: if a task cannot be done.
        """
        while True:
            while self._local:
                yield self._local.popleft()
            received = self._open_queue().receive()
            match received:
                case Reply(kind="ended") as reply:
                    yield from self._results(reply)
                case Reply(kind="failed") as reply if reply.task_no in self._tasks:
                    raise TransportError(reply.body.decode())
                case Reply(kind="lost" | "unable") as reply if reply.task_no in self._tasks:
                    self._lose(reply)
                case Back() as back:
                    self._back(back)
            self._look_after()

    def close(self, *, in_order: bool) -> None:
        """Give everything up: workers drop the waiting tasks and stop the running ones; files are removed.

        Args:
            in_order: False when something was interrupted, maybe in the middle of a message to the broker.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        Channel._open.discard(self)
        deleted = self._queue is None
        try:
            if not in_order:
                self._sender.close(None)
            if self._queue is not None:
                deleted = self._queue.end(self._sender.close if in_order else self._delete)
        finally:  # also when it is interrupted, for nobody closes a channel twice
            spool.remove_directory(self._directory)
            if not deleted:
                # By an empty directory the workers know of the queue, and delete it when the broker is back (`Sweep`).
                with contextlib.suppress(OSError):
                    spool.make_directory(self._directory)

    def report(self) -> None:
        """Leave the number of tasks where `oq-celery status` finds it."""
        tasks = self._tasks.copy()
        if not tasks or self._closed:
            return
        name = next(iter(tasks.values())).header.name
        progress = protocol.Progress(self.job, self.user, name, self._submitted, len(tasks))
        spool.replace(self._directory / protocol.PROGRESS_FILE, progress.json())
        if self._closed:  # meanwhile, so this made the directory anew
            spool.remove_directory(self._directory)

    def _results(self, reply: Reply) -> Iterator[Result]:
        """What can be handed on now that an attempt is complete; nothing if its task was done before."""
        files = [str(self._directory / reply.attempt)] if reply.has_file else []
        self._files.retain(files)
        if reply.task_no not in self._tasks:
            log.debug("Dropped attempt %s of task %d: done before", reply.attempt, reply.task_no)
            self._meter.unused(reply)
            self._files.release(files)
            return
        try:
            *results, ended = self._read(reply)
        except (OSError, spool.CorruptError) as error:
            # Before anything is given up for it: another attempt can be had.
            self._meter.unused(reply)
            self._files.release(files)
            self._lose(replace(reply, kind="unable", body=f"its results cannot be read: {error}".encode()))
            self._send(reply.task_no, again=True)
            return
        task = self._tasks.pop(reply.task_no)
        self._bodies -= len(task.body) if isinstance(task.body, bytes) else 0
        self._ledger.remove(reply.task_no)
        self._overdue.ended(task.header, reply.seconds)
        self._files.release(task.files)
        self._send_backlog()
        for subtask in (result for result in results if result.func is not None):
            self._files.retain(arg.stored.path for arg in subtask.pik if isinstance(arg, StoredPickle))
            self._order.announce(task.path, subtask.pik)
            yield subtask
        # An error ends the job, so it must not wait for earlier tasks.
        yield from (result for result in results if result.tb_str)
        done = _Done([result for result in results if result.func is None], files)
        if task.path != self._order.first:
            self._hold_back(done, f"held-{task.header.task_no}")
        self._ended.append(ended)
        ready = self._order.complete(task.path, done)
        for item in ready:
            yield from item.results
            self._held -= item.held
            self._in_memory -= item.in_memory
            self._files.release(item.files)
        if ready or not self._must_pause():
            ended_now, self._ended = self._ended, []
            yield from ended_now
        self._send_backlog()

    def _hold_back(self, done: _Done, file_name: str) -> None:
        """Account for results that have to wait; above a limit they wait in a file."""
        for result in done.results:
            if isinstance(result.pik, StoredPickle):
                result.pik.checked = False  # much may happen to a file until then
        in_memory = [result for result in done.results if not isinstance(result.pik, StoredPickle)]
        done.held = sum(len(result.pik) for result in done.results)
        done.in_memory = sum(len(result.pik) for result in in_memory)
        if self._in_memory + done.in_memory > MEMORY_LIMIT:
            path = self._directory / file_name
            writer = spool.Writer(path)
            for result in in_memory:
                result.pik = StoredPickle(result.pik, writer.append(result.pik.pik))
            writer.close()
            self._files.retain([str(path)])
            done.files.append(str(path))
            done.in_memory = 0
        self._held += done.held
        self._in_memory += done.in_memory

    def _must_pause(self) -> bool:
        """Whether no more tasks must be sent now, nor the engine hear of ended ones, because it would send more.

        Usually it hears at once and sends the next one, whatever earlier task is still computed; not when too
        many results wait for that one already.
        """
        if self._held <= self._held_limit:
            return False
        first = next((task for task in self._tasks.values() if task.path == self._order.first), None)
        if first is None or not first.sent:
            return False
        if not self._pause_said:
            self._pause_said = True
            log.warning(
                "%s of results wait for task %s: new tasks have to wait, too",
                humansize(self._held),
                first.header,
            )
        return True

    @staticmethod
    def _read(reply: Reply) -> list[Result]:
        """The results of an attempt, all of them readable."""
        results: list[Result] = pickle.loads(spool.read(reply.stored) if reply.stored else reply.body)  # noqa: S301
        for result in results:
            if result.func is None and isinstance(result.pik, StoredPickle):
                result.pik.check()
        return results

    def _lose(self, reply: Reply) -> None:
        """Note what has become of an attempt, and give the task up after too many of them."""
        header, why = self._tasks[reply.task_no].header, reply.body.decode()
        losses = self._ledger.losses(reply.task_no)
        if losses is None:
            return
        if reply.kind == "lost":
            losses.died(reply.message + reply.worker, reply.node, reply.worker, why)
            log.warning(
                "A process of worker %s died of task %s, which goes to others: %s", reply.node, header, why
            )
        else:
            losses.unable(reply.attempt, reply.worker, why)
            if reply.worker not in self._warned:
                self._warned.add(reply.worker)
                log.warning("Worker %s cannot do tasks, which go to others: %s", reply.worker, why)
        self._give_up()

    def _give_up(self) -> None:
        """End the job if a task cannot be done."""
        for task_no, verdict in self._ledger.verdicts(self._open_queue().workers):
            if task := self._tasks.get(task_no):
                size = humansize(task.header.size)
                raise TransportError(f"Task {task.header} with {size} of arguments {verdict}")

    def _look_after(self) -> None:
        """See to the tasks that are with the broker."""
        if not self._sender.poll():
            self._open_queue().make_again()
        now = time.monotonic()
        if now < self._next_audit:
            return
        self._next_audit = now + AUDIT_SECONDS
        self._give_up()
        if self._sender.blocked:  # so is what the workers say; their silence counts from the alarm's end on
            self._ledger.connected(now)
            return
        lost = [task_no for task_no in self._ledger.audit(now) if task_no not in self._sender]
        if lost:
            log.warning("%d tasks were lost (no worker and no queue has them): sending them again", len(lost))
        for task_no in lost:
            self._send(task_no, again=True)
        if now >= self._next_look:
            self._next_look = now + overdue.LOOK_SECONDS
            runs = [(self._tasks[run.task_no].header, run) for run in self._ledger.runs(now)]
            for line in self._overdue.look(runs, now):
                log.warning("%s", line)

    def _back(self, back: Back) -> None:
        """Go on after a loss of the connection, or of a queue."""
        if back.lost:
            sent = [task_no for task_no, task in self._tasks.items() if task.sent]
            log.warning("The %s was gone: sending %d tasks again", back.lost, len(sent))
            for task_no in sent:
                self._send(task_no, again=True)

    def _store(self, place: int, arg: Pickled) -> Pickled:
        """Replace a large argument by a reference to a file, which tasks with the same argument share.

        The engine pickles a shared argument anew for each task. Comparing it with that of the task before, at the same
        place, takes a tenth of a checksum.
        """
        if isinstance(arg, StoredPickle) or len(arg) <= self._limit // 4:
            return arg
        content, stored = self._last.get(place, (b"", None))
        if stored is None or content != arg.pik:
            digest = spool.digest(arg.pik)
            stored = self._stored.get(digest)
        else:
            digest = stored.digest
        if stored is None or stored.path not in self._files:
            # A name of its own each time: an NFS client may remember that there was no file of the old name.
            stored = spool.write(self._directory / f"arg-{self._submitted}-{digest}", arg.pik, digest)
            self._stored[digest] = stored
        if len(arg) <= COMPARED_LIMIT:
            self._last[place] = arg.pik, stored
        return StoredPickle(arg, stored)

    def _send_backlog(self) -> None:
        """Send waiting tasks up to the window."""
        while (
            self._backlog and len(self._tasks) - len(self._backlog) < self._window and not self._must_pause()
        ):
            self._send(self._backlog.popleft(), again=False)

    def _send(self, task_no: int, *, again: bool) -> None:
        """Hand a task to the broker."""
        task = self._tasks[task_no]
        task.sent = True
        priority = protocol.priority(len(self._tasks) - len(self._backlog) - 1)
        self._ledger.sent(task_no, priority, time.monotonic())
        self._sender.put(
            task_no, protocol.celery_task(task.header, task.body, again=again, priority=priority)
        )

    def _note(self, text: str) -> None:
        self._open_queue().note(text)

    def _delete(self, queue: str) -> bool:
        return broker.delete(self._settings, queue)

    def _open_queue(self) -> ResultQueue:
        if self._queue is None:
            with contextlib.suppress(OSError):  # who has to write there says why it cannot
                spool.make(self._settings.spool)  # by which a worker knows that it sees what is shared
                free = shutil.disk_usage(self._settings.spool).free
                self._held_limit = min(HELD_LIMIT, int(HELD_SHARE * free))
            self._queue = ResultQueue(self._settings, self.name, self._ledger)
            self._queue.start()
            self._queue.wait_ready()
        return self._queue


class _Reports(threading.Thread):
    """Writes the progress of all channels now and then: a slow shared directory holds up nothing else."""

    _started: ClassVar[bool] = False

    @classmethod
    def start_once(cls) -> None:
        """Start it with the first channel of this process."""
        if not cls._started:
            cls._started = True
            cls(name="oq_celery reports", daemon=True).start()

    def run(self) -> None:
        """Short sets of tasks leave nothing."""
        while True:
            time.sleep(REPORT_SECONDS)
            try:
                Channel.report_all()
            except OSError as error:
                log.debug("No progress for oq-celery status: %s", error)
