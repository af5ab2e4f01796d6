"""What a calculation's tasks cost: the seconds that processes of workers were busy with them, and the price of these.

A meter counts for one channel. An attempt says itself how long it took when it ends; of one that does not, because its
process died, its worker fell silent or nobody wanted it any more, the master knows when it has heard of it.

It is not what the cluster cost meanwhile: workers that wait, the master and the disks are not in it.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from oq_celery.clock import words
from oq_celery.protocol import Reply

PRICE: Final = "OQ_CELERY_PROCESS_HOUR_USD"
"""The environment variable that says what an hour of a worker's process costs, in USD."""
BEGINNING: Final = "Tasks took "  # of the line in a calculation's log
_LINE: Final = re.compile(
    BEGINNING + r"([\d.]+) s of worker processes(?: \(.+?\))?(?:, ([\d.]+) s of it again, after losses)?"
    r"(?:: about [\d.]+ USD at ([\d.e-]+) USD an hour)?"
)
_LAST: Final = "SELECT id, user_name, status FROM job WHERE user_name=?x OR ?x=0 ORDER BY id DESC LIMIT ?x"
_LINES: Final = "SELECT job_id, message FROM log WHERE job_id IN (?X) AND message LIKE ?x ORDER BY id"
_meters: Final[dict[int, list[Meter]]] = {}  # of this process, by calculation


@dataclass(frozen=True)
class Cost:
    """What a calculation's tasks cost.

    Attributes:
        seconds: of worker processes.
        again: of these, those of attempts that were lost or done twice.
        price: of an hour of a process, in USD; None where nobody has said it.
    """

    seconds: float
    again: float
    price: float | None

    @property
    def usd(self) -> float | None:
        """The price of it all."""
        return None if self.price is None else self.seconds / 3600 * self.price

    def __str__(self) -> str:
        """The line of the log, from which `parse` reads it again."""
        text = f"{BEGINNING}{self.seconds:.1f} s of worker processes"
        if self.seconds >= 60:
            text += f" ({words(self.seconds)})"
        if self.again >= 0.05:
            text += f", {self.again:.1f} s of it again, after losses"
        if self.usd is not None:
            text += f": about {self.usd:.{2 if self.usd >= 0.1 else 4}f} USD at {self.price:.6g} USD an hour"
        return text


def parse(line: str) -> Cost | None:
    """The inverse of `str`; None of another line."""
    if not (found := _LINE.fullmatch(line)):
        return None
    seconds, again, price = found.groups()
    return Cost(float(seconds), float(again or 0), float(price) if price else None)


@dataclass
class _Running:
    begun: float
    heard: float


@dataclass
class Meter:
    """Counts the seconds of one channel's attempts; times are those of `time.monotonic`.

    An attempt is known by its process and its message. The thread that receives and the one that computes use a meter.
    """

    _seconds: float = 0.0
    _again: float = 0.0
    _running: dict[tuple[str, str], _Running] = field(default_factory=dict)
    _silent: dict[tuple[str, str], float] = field(default_factory=dict)  # taken for lost, with its seconds
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def runs(self, worker: str, message: str, now: float) -> None:
        """An attempt has begun, or goes on."""
        with self._lock:
            self._running.setdefault((worker, message), _Running(now, now)).heard = now

    def ended(self, reply: Reply, now: float) -> None:
        """An attempt has come to an end, of whatever kind."""
        key = reply.worker, reply.message
        with self._lock:
            running = self._running.pop(key, None)
            before = self._silent.pop(key, 0.0)  # so it was not lost
            self._seconds -= before
            self._again -= before
            known = now - running.begun if running else before
            seconds = reply.seconds or known  # a process that has died says nothing
            self._seconds += seconds
            if reply.kind in ("lost", "unable"):
                self._again += seconds

    def silent(self, worker: str, message: str) -> None:
        """An attempt has not been heard of for so long that it counts as lost."""
        with self._lock:
            if running := self._running.pop((worker, message), None):
                seconds = running.heard - running.begun
                self._silent[worker, message] = seconds
                self._seconds += seconds
                self._again += seconds

    def unused(self, reply: Reply) -> None:
        """The results of an attempt that has ended are not used: they came twice, or cannot be read."""
        with self._lock:
            self._again += reply.seconds

    def cost(self) -> tuple[float, float]:
        """The seconds of all attempts, those that run included, and of those that were lost or done twice."""
        with self._lock:
            running = sum(attempt.heard - attempt.begun for attempt in self._running.values())
            return self._seconds + running, self._again


@dataclass(frozen=True)
class Calculation:
    """A calculation of the engine's database.

    Attributes:
        id: its number.
        user: whose it is.
        status: in the engine's words.
        cost: None while it has not ended, and where no worker has had a task of it.
    """

    id: int
    user: str
    status: str
    cost: Cost | None

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        known = {} if self.cost is None else {**asdict(self.cost), "usd": self.cost.usd}
        nothing = {"seconds": None, "again": None, "price": None, "usd": None}
        return {"id": self.id, "user": self.user, "status": self.status} | nothing | known

    def __str__(self) -> str:
        return f"#{self.id} of {self.user}, {self.status}: {self.cost or 'no cost of tasks is written down'}"


def of_number(dbcmd: Callable[..., Any], number: int) -> Calculation | None:
    """A calculation of the engine's database; None if there is none of that number.

    Args:
        dbcmd: of openquake.commonlib.logs.
        number: of the calculation.
    """
    job = dbcmd("get_job", number)
    return None if job is None else _with_costs(dbcmd, [job])[0]


def last(dbcmd: Callable[..., Any], user: str, uid: int, number: int) -> list[Calculation]:
    """A user's last calculations, for root everybody's; the last one comes last."""
    return _with_costs(dbcmd, list(dbcmd(_LAST, user, uid, number))[::-1])


def _with_costs(dbcmd: Callable[..., Any], jobs: list[Any]) -> list[Calculation]:
    costs = {}
    for line in dbcmd(_LINES, [job.id for job in jobs], f"{BEGINNING}%") if jobs else ():
        if cost := parse(line.message):
            costs[line.job_id] = cost
    return [Calculation(job.id, job.user_name, job.status, costs.get(job.id)) for job in jobs]


def meter(job: int) -> Meter:
    """A new meter for a channel of a calculation."""
    made = Meter()
    _meters.setdefault(job, []).append(made)
    return made


def of_calculation(job: int) -> Cost | None:
    """What a calculation of this process has cost until now; None if no worker had a task of it."""
    costs = [made.cost() for made in _meters.get(job, ())]
    seconds = sum(seconds for seconds, _ in costs)
    return Cost(seconds, sum(again for _, again in costs), price(os.environ)) if seconds else None


def price(environment: Mapping[str, str]) -> float | None:
    """The price of an hour of a process in USD; None where there is none, or none that is a price."""
    try:
        value = float(environment[PRICE])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
