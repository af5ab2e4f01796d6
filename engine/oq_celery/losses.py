"""When a task that does not come to its end is given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# What may be the fault of the workers and not of the task counts so many times less than a death.
LENIENT: Final = 3


@dataclass
class Losses:
    """What has become of the attempts at one task, each under a name of its own: a message may come twice.

    Attributes:
        limit: so many worker processes may die of the task.
    """

    limit: int
    _died: dict[str, str] = field(default_factory=dict)  # the process that died, and how
    _nodes: set[str] = field(default_factory=set)  # the workers of these processes
    _unable: dict[str, str] = field(default_factory=dict)  # the worker that could not do it, and why
    _silent: dict[tuple[str, str], str] = field(default_factory=dict)  # the worker that was heard no more

    def died(self, attempt: str, node: str, worker: str, how: str) -> None:
        """Note that a process of the worker `node` has died."""
        self._died[attempt] = f"{worker} ({how})"
        self._nodes.add(node)

    def unable(self, attempt: str, worker: str, why: str) -> None:
        """Note that a worker could not do it, for a reason of its own."""
        self._unable[attempt] = f"{worker} ({why})"

    def silent(self, worker: str, message: str) -> None:
        """Note that a worker that had begun it was heard no more."""
        self._silent[worker, message] = worker

    def verdict(self, workers: int) -> str | None:
        """Why the task is given up; None as long as it is not.

        Most attempts that end without a word are no fault of the task: its worker had to go, or was cut off. And a
        worker whose processes die one after the other may be too small for the task.

        Args:
            workers: how many there are. A task is not given up before it has died on each of them, or on `limit` ones.
        """
        if len(self._died) >= self.limit and len(self._nodes) >= min(self.limit, workers):
            return _text("was lost with a worker", self._died.values(), "Was it out of memory?")
        if len(self._unable) >= LENIENT * self.limit:
            hint = "Check their shared directory, disks and versions."
            return _text("was turned down by a worker", self._unable.values(), hint)
        if len(self._silent) >= LENIENT * self.limit:
            return _text(
                "was lost with a worker", self._silent.values(), "Their workers disappeared without notice."
            )
        return None


def _text(what: str, attempts: Iterable[str], hint: str) -> str:
    listed = list(attempts)
    return f"{what} {len(listed)} times. {hint}\n" + "\n".join(listed)
