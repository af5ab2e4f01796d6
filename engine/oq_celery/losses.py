"""When a task that does not come to its end is given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# What may be the fault of the workers and not of the task counts so many times less than a death.
LENIENT: Final = 3


@dataclass
class Losses:
    """What has become of the attempts at one task, by the name of the attempt: a message may come twice.

    Attributes:
        limit: so many worker processes may die of the task.
    """

    limit: int
    _started: dict[str, str] = field(default_factory=dict)  # the worker that began it
    _died: dict[str, str] = field(default_factory=dict)  # the process that died, and how
    _unable: dict[str, str] = field(default_factory=dict)  # the worker that could not do it, and why

    def started(self, attempt: str, worker: str) -> None:
        """Note that a worker has begun."""
        self._started[attempt] = worker

    def died(self, attempt: str, worker: str, how: str) -> None:
        """Note that a worker's process has died."""
        self._died[attempt] = f"{worker} ({how})"

    def unable(self, attempt: str, worker: str, why: str) -> None:
        """Note that a worker could not do it, for a reason of its own."""
        self._unable[attempt] = f"{worker} ({why})"

    def broker_was_away(self) -> None:
        """Forget who began: the broker has given the task to others, which says nothing of the task."""
        self._started.clear()

    def verdict(self) -> str | None:
        """Why the task is given up; None as long as it is not.

        Most attempts that end without a word are no fault of the task: its worker had to go, or was cut off. If one
        is, the task takes whole machines along. The last one that began may go on still.
        """
        if len(self._died) >= self.limit:
            return _text("was lost with a worker", self._died.values(), "Was it out of memory?")
        if len(self._unable) >= LENIENT * self.limit:
            hint = "See to their shared directory, disks and versions."
            return _text("met a worker that could not do it", self._unable.values(), hint)
        silent = [worker for attempt, worker in self._started.items() if attempt not in self._unable][:-1]
        if len(silent) >= LENIENT * self.limit:
            return _text("was lost with a worker", silent, "Their workers left without a word.")
        return None


def _text(what: str, attempts: Iterable[str], hint: str) -> str:
    listed = list(attempts)
    return f"{what} {len(listed)} times. {hint}\n" + "\n".join(listed)
