"""Tasks that run much longer than others of their kind, of which the log of the job says where they run.

Such a task may hang: workers report it as long as its process is there (`watch.py`), whatever that does. A file server
that does not answer, a process that was stopped and a loop without an end look like a long task, and only people can
tell which it is. So nothing is ended here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from oq_celery.clock import words
from oq_celery.ledger import Run
from oq_celery.protocol import TaskHeader

# What a task has to exceed to be named. Most that take longer than others do so for a good reason: the engine cuts a
# calculation into tasks whose lengths it estimates, and one may be some times longer than estimated, but an order of
# magnitude is rare; nobody goes to see after a worker for a task of minutes.
OVERDUE_SECONDS: Final = 1800.0
OVERDUE_TIMES: Final = 10.0  # the time of the longest task of the same function that has ended
AGAIN_SECONDS: Final = 3600.0  # until it is named again
LOOK_SECONDS: Final = 60.0  # between two looks
# So many are named by a look, the others counted: when the file server of the whole fleet hangs, all its tasks do.
NAMED: Final = 5
# How long a process has to be in a state for it to be the reason: what reads a file waits for it now and then.
STEADY_SECONDS: Final = 20.0
# By what proc(5) calls the state of a process, what that means for its task.
REASONS: Final = {"D": "its process waits for its disk or file server", "T": "its process is stopped"}


class Overdue:
    """Knows the longest tasks of one channel that have ended, and which are overdue."""

    def __init__(self) -> None:
        self._longest: dict[str, float] = {}  # seconds, by function
        self._named: dict[int, float] = {}  # when a task was named last, by its number

    def ended(self, header: TaskHeader, seconds: float) -> None:
        """A task has its result, of an attempt that took so long."""
        self._longest[header.name] = max(seconds, self._longest.get(header.name, 0.0))
        self._named.pop(header.task_no, None)

    def look(self, runs: Iterable[tuple[TaskHeader, Run]], now: float) -> list[str]:
        """What is to be said now of the tasks that run, in lines for the log.

        Args:
            runs: the tasks, with their attempts.
            now: a time of `time.monotonic`.
        """
        found = [(header, run) for header, run in runs if self._is_overdue(header, run, now)]
        found.sort(key=lambda one: -one[1].seconds)
        self._named |= {header.task_no: now for header, _ in found}
        lines = [self._text(header, run) for header, run in found[:NAMED]]
        if (more := len(found) - NAMED) > 0:
            lines.append(f"{more} more tasks have run that much longer than those that have ended")
        return lines

    def _is_overdue(self, header: TaskHeader, run: Run, now: float) -> bool:
        longest = self._longest.get(header.name)
        if longest is None or run.seconds < max(OVERDUE_SECONDS, OVERDUE_TIMES * longest):
            return False
        named = self._named.get(header.task_no)
        return named is None or now - named >= AGAIN_SECONDS

    def _text(self, header: TaskHeader, run: Run) -> str:
        reason = REASONS.get(run.state) if run.steady >= STEADY_SECONDS else None
        return (
            f"Task {header} has run for {words(run.seconds)} on {run.worker}{f' ({reason})' if reason else ''}, "
            f"those that have ended took {words(self._longest[header.name])} at most. If it hangs, end that worker, "
            "or its process by kill -9: another one does the task"
        )
