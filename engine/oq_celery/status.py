"""What the cluster does now: the workers, the task queue, and each job's tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from oq_celery import app, broker
from oq_celery.protocol import TaskHeader
from oq_celery.settings import Settings

REPLY_SECONDS = (
    1.0  # how long workers may take to answer; one that is busy answers too, its main process does
)


@dataclass(frozen=True)
class Worker:
    """A worker that answers."""

    name: str
    processes: int
    busy: int


@dataclass
class Job:
    """A job that has tasks somewhere."""

    job: int
    user: str
    running: dict[str, int] = field(default_factory=dict)  # number of tasks by the name of their function


@dataclass(frozen=True)
class Status:
    """The state of the cluster at one moment."""

    host: str
    waiting: int  # tasks in the queue
    workers: list[Worker]
    jobs: list[Job]

    def json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """For people."""
        processes, busy = sum(w.processes for w in self.workers), sum(w.busy for w in self.workers)
        lines = [
            f"RabbitMQ at {self.host}: {self.waiting} tasks waiting, {len(self.workers)} workers, "
            f"{busy} of {processes} processes busy"
        ]
        if self.workers:
            workers = [(w.name, str(w.processes), str(w.busy)) for w in self.workers]
            lines += ["", *_table(("worker", "processes", "busy"), workers)]
        if self.jobs:
            jobs = [
                (str(job.job), job.user, name, str(count))
                for job in self.jobs
                for name, count in sorted(job.running.items())
            ]
            lines += ["", *_table(("job", "user", "task", "running"), jobs)]
        return "\n".join(lines)


def read(settings: Settings) -> Status:
    """Ask the broker and the workers.

    Raises:
        one of broker.ERRORS: if the broker does not answer.
    """
    connection = broker.connect(settings)
    try:
        queue = broker.depth(connection, settings.queue)
    finally:
        broker.close(connection)
    inspect = app.make(settings).control.inspect(timeout=REPLY_SECONDS)
    active = inspect.active(safe=True) or {}
    pools = inspect.stats() or {}
    workers = [
        Worker(name, pools[name]["pool"]["max-concurrency"], len(active.get(name, [])))
        for name in sorted(pools)
    ]
    headers = (TaskHeader.parse(json.loads(task["args"])) for tasks in active.values() for task in tasks)
    return Status(settings.host, queue[0] if queue else 0, workers, _jobs(headers))


def _jobs(headers: Iterable[TaskHeader]) -> list[Job]:
    jobs: dict[tuple[int, str], Job] = {}
    for header in headers:
        job = jobs.setdefault((header.job, header.user), Job(header.job, header.user))
        job.running[header.name] = job.running.get(header.name, 0) + 1
    return [jobs[key] for key in sorted(jobs)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
