"""Whether a run went as it should: from what was seen of it, to a list of what is wrong."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from explorer.schedule import KINDS, PROCESSES, WORKERS, Fault
from explorer.workload import MAX_ATTEMPTS, Job, Workload, expected, label
from tests.transport import fork_server

LENIENT: Final = 3 * MAX_ATTEMPTS  # attempts that may end for a worker's own reasons, see oq_celery.losses
# How long a master's lease lasts (oq_celery/protocol.py). A look at the result queue holds for two seconds, and a task
# that has been looked for begins when its worker has said so, over a new connection where the former one has broken
# (attempt.py).
LEASE_SECONDS: Final = 10.0
# A shorter outage must not let a task be computed twice,
OUTAGE_SECONDS: Final = 2.5
# unless the task began this close to it: the worker's word that it has begun went down with the connection, and a copy
# of the message is with another worker before the first one is back.
UNHEARD_SECONDS: Final = 0.5
# A master that was killed keeps its lease for 10 s, which the workers see by looks every 2 s, and where none of its
# tasks runs, every 5 s (`explorer.world.SHORT_DELAYS`); on a busy machine.
KILLED_SECONDS: Final = 45.0
FILES: Final = (
    "take the shared directory away",
    "cover a worker's shared directory",
    "fill the shared directory",
)
# LostWrite is the explorer's name for a calculation that ends because a write of its datastore was lost.
FILE_ERRORS: Final = ("OSError", "FileNotFoundError", "CorruptError", "LostWrite")
INTERRUPTED: Final = ("KeyboardInterrupt", "MasterKilled")
RESULTS: Final = ("delete a result queue", "lose results")
"""By these, results are lost that wait for the master: of all tasks that it has sent."""
OUT: Final = 2  # tasks of each process that a master sends ahead: the engine's `concurrent_tasks`
KILLS: Final = ("kill a process", "kill a worker")


@dataclass(frozen=True)
class Struck:
    """A fault as it was done: monotonic times, whether there was anything that it could strike, and its own error."""

    fault: Fault
    begin: float
    end: float
    hit: bool
    detail: str = ""


@dataclass
class Seen:
    """What was seen of one job.

    Attributes:
        events: its history, in the order of time.
        status: the exit code of its master, negative for a signal; None when it did not end.
        ended: monotonic time of its end.
    """

    events: list[dict[str, Any]]
    status: int | None
    ended: float

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [found for found in self.events if found["event"] == event]


@dataclass
class Left:
    """What was there after a run, when everything had had its time to go."""

    queues: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    waiting: int = 0  # messages in the task queue
    processes: list[str] = field(default_factory=list)
    worker_trouble: list[str] = field(default_factory=list)


def check_job(job: Job, seen: Seen, struck: Sequence[Struck]) -> list[str]:
    """What is wrong with one job, in words; nothing if it is as it should be.

    The numbers of the engine's own jobs are compared elsewhere.
    """
    wrong = _ending(job, seen, struck)
    if isinstance(job, Workload):
        wrong = _results(job, seen) + wrong + _attempts(job, seen, struck) + _twice(seen, struck)
    return wrong


def check_left(left: Left) -> list[str]:
    """What is wrong with what a run left behind."""
    wrong = [f"left: queue {name}" for name in left.queues]
    wrong += [f"left: file {name}" for name in left.files]
    wrong += [f"left: process {name}" for name in left.processes]
    if left.waiting:
        wrong.append(f"left: {left.waiting} messages in the task queue")
    return wrong + left.worker_trouble


def _results(workload: Workload, seen: Seen) -> list[str]:
    """Whether the results are the expected ones in the expected order, and all of them if the job was done."""
    want = [[number, list(path), *rest] for number, path, *rest in expected(workload)]
    got = [event["item"] for event in seen.of("handed")]
    for place, (one, other) in enumerate(zip(want, got, strict=False)):
        if one != other:
            return [f"results: number {place} is {_of(other)} instead of {_of(one)}{_how(one, other, got)}"]
    if len(got) > len(want):
        return [f"results: {len(got) - len(want)} too many, the first is {_of(got[len(want)])}"]
    if seen.of("done") and len(got) < len(want):
        return [
            f"results: the job is done, but {len(want) - len(got)} are missing, the first is {_of(want[len(got)])}"
        ]
    return []


def _of(item: Sequence[Any]) -> str:
    return f"{label(item[0], item[1])}[{item[2]}]"


def _how(one: Sequence[Any], other: Sequence[Any], got: Sequence[Any]) -> str:
    if one[:3] == other[:3]:
        return " with other arguments" if one[3] != other[3] else " with other data"
    return " a second time" if got.count(other) > 1 else ""


def _ending(workload: Job, seen: Seen, struck: Sequence[Struck]) -> list[str]:
    """Whether the job ended, and as it should."""
    hit = Counter(one.fault.kind for one in struck if one.hit)
    errors = seen.of("error")
    # By the signal itself where the process had no handler for it yet.
    interrupted = hit["interrupt the master"] and seen.status in (fork_server.INTERRUPTED, -signal.SIGINT)
    if seen.status is None:
        return ["ending: none, the job hangs"]
    if seen.status == -signal.SIGKILL:
        return [] if hit["kill the master"] else ["ending: killed, but not by a fault"]
    if seen.of("done"):
        if workload.errors or workload.deadly:
            return [f"ending: success, but this had to fail: {[*workload.errors, *workload.deadly][0]}"]
        return [] if seen.status == 0 or interrupted else [f"ending: done, but with exit code {seen.status}"]
    if not errors and interrupted:
        return []  # before it had begun
    if not errors:  # of a thread or an exit handler, after the end
        return [f"ending: exit code {seen.status} without an error"]
    kind, text = errors[-1]["type"], errors[-1]["text"]
    if unjustified := _unjustified(workload, seen, hit, kind, text):
        return [f"ending: {unjustified}: {kind}: {text.strip()[-300:]}"]
    return []


def _unjustified(workload: Job, seen: Seen, hit: Counter[str], kind: str, text: str) -> str:
    """Why an error is not true; nothing if it is."""
    if any(error in text for error in workload.errors):
        return ""
    if kind in INTERRUPTED:
        return "" if hit["interrupt the master"] else "interrupted without a fault"
    files = sum(hit[name] for name in FILES)
    if match := re.search(r"was lost with a worker (\d+) times. Was it out of memory", text):
        own = max(Counter(event["task"] for event in seen.of("dies")).values(), default=0)
        deaths = own + sum(hit[name] for name in KILLS)
        return "" if deaths >= int(match[1]) else f"{match[1]} deaths are named and {deaths} there were"
    if "was turned down by a worker" in text:
        return "" if files else "no worker was unable by a fault"
    if "Their workers disappeared without notice" in text:
        return "" if sum(hit.values()) >= LENIENT else "so many workers did not leave"
    if files and _is_of_files(kind, text):
        return ""
    if "Please start the DbServer" in text:  # what a job says that begins while there is none
        return "" if any("DbServer" in name for name in hit) else "the DbServer was there"
    return "no fault explains it"


def _is_of_files(kind: str, text: str) -> bool:
    """Whether an error is one of reading or writing a file: by its type, and for one with a traceback by its last line.

    The names in a traceback say nothing: those of the transport's own files are in all of them. Upstream raises h5py's
    errors anew under other types.
    """
    last = (text.strip().splitlines() or [""])[-1]
    return kind in FILE_ERRORS or bool(re.search(r"No space left|No such file|Read-only file system", last))


def _twice(seen: Seen, struck: Sequence[Struck]) -> list[str]:
    """Whether a task was begun again beside an attempt that went on to its end, where nothing made that necessary."""
    if any(one.hit and _hides(one) for one in struck):
        return []
    begun: dict[str, list[tuple[str, float]]] = {}
    ends = {event["attempt"]: event["t"] for event in seen.of("end")}
    for event in seen.of("begin"):
        for attempt, at in begun.setdefault(event["task"], []):
            if event["t"] < ends.get(attempt, at) and not (
                _unheard(at, struck) or _away(at, event["t"], struck) > OUTAGE_SECONDS
            ):
                late = event["t"] - at
                return [
                    f"attempts: {event['task']} was computed again {late:.1f} s after it had begun elsewhere"
                ]
        begun[event["task"]].append((event["attempt"], event["t"]))
    return []


def _hides(struck: Struck) -> bool:
    """Whether a fault keeps the master from knowing what is computed, for longer than the transport waits."""
    kind = KINDS[struck.fault.kind]
    if kind.name in ("copy task messages", "stop a process", "delete a result queue"):
        return True
    return kind.target in ("worker", "master", "broker") and struck.end - struck.begin > OUTAGE_SECONDS


def _away(begin: float, end: float, struck: Sequence[Struck]) -> float:
    """For how many seconds between two times faults kept workers and masters apart, several short ones, too."""
    return sum(
        max(0.0, min(one.end, end) - max(one.begin, begin))
        for one in struck
        if one.hit and KINDS[one.fault.kind].target in ("worker", "master", "broker")
    )


def _unheard(at: float, struck: Sequence[Struck]) -> bool:
    """Whether a fault may have kept the master from hearing that a task began at this time."""
    return any(
        one.hit
        and KINDS[one.fault.kind].target in ("worker", "master", "broker")
        and one.begin - UNHEARD_SECONDS <= at <= one.end + UNHEARD_SECONDS
        for one in struck
    )


def _loses_results(struck: Struck) -> bool:
    """Whether all results that wait for the master may be lost; also when it is away for longer than its lease."""
    kind = KINDS[struck.fault.kind]
    return kind.name in RESULTS or (kind.target == "master" and struck.end - struck.begin >= LEASE_SECONDS)


def _attempts(workload: Workload, seen: Seen, struck: Sequence[Struck]) -> list[str]:
    """Whether tasks were computed more often than faults explain, or after the job's end."""
    wrong = []
    begins = seen.of("begin")
    tasks = sum(1 for _ in workload.tasks())
    deaths = len(seen.of("dies"))
    copies = sum(one.fault.number for one in struck if one.hit and one.fault.kind == "copy task messages")
    lost = sum(
        OUT if _loses_results(one) else 1 for one in struck if one.hit and KINDS[one.fault.kind].disrupts
    )
    allowed = tasks + deaths + copies + lost * WORKERS * PROCESSES
    if len(begins) > allowed:
        wrong.append(f"attempts: {len(begins)} at {tasks} tasks, where faults explain {allowed}")
    if seen.status is not None:
        killed = seen.status < 0 or any(one.fault.kind.endswith("the master") for one in struck)
        grace = KILLED_SECONDS if killed else LEASE_SECONDS
        grace += sum(one.end - one.begin for one in struck)
        late = [event for event in begins if event["t"] > seen.ended + grace]
        if late:
            after = late[-1]["t"] - seen.ended
            wrong.append(f"attempts: {late[-1]['task']} began {after:.0f} s after the end of the job")
    return wrong
