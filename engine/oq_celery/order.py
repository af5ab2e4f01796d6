"""One order of results for every run of a job.

The engine adds results up in the order in which they come, and floating-point sums depend on the order.
Workers end in any order, so two runs of one job would differ in the last bits. `Order` hands results on in
the order of the tasks: first those that the `Starmap` began with, then the subtasks that they asked for, then
the subtasks of these. That is also the order in which a pool of a single process does them.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")
Path = tuple[int, ...]  # (2,) is the third task of the Starmap; (2, 0) the first subtask that it asked for


class Order(Generic[T]):
    """Holds what is complete back until everything before it has been handed on."""

    def __init__(self) -> None:
        self._initial = 0
        self._subtasks: dict[Path, int] = {}  # how many a task has asked for
        # By the identity of the arguments, which is kept alive.
        self._announced: dict[int, tuple[object, Path]] = {}
        self._waiting: list[tuple[int, Path]] = []  # heap of what has not been handed on: generation, path
        self._complete: dict[Path, T] = {}

    def announce(self, parent: Path, args: object) -> None:
        """Give a subtask its place when its parent asks for it; it may be submitted much later."""
        index = self._subtasks.get(parent, 0)
        self._subtasks[parent] = index + 1
        path = (*parent, index)
        self._announced[id(args)] = args, path
        heapq.heappush(self._waiting, (len(path), path))

    def submit(self, args: object) -> Path:
        """The place of a task that is submitted now: a new one, unless it is an announced subtask."""
        _, path = self._announced.pop(id(args), (None, None))
        if path is None:
            path = (self._initial,)
            self._initial += 1
            heapq.heappush(self._waiting, (len(path), path))
        return path

    @property
    def first(self) -> Path | None:
        """The task whose results come next, if there is one."""
        return self._waiting[0][1] if self._waiting else None

    def complete(self, path: Path, item: T) -> list[T]:
        """Take what a task has produced and return all that can be handed on now, in order."""
        self._complete[path] = item
        ready = []
        while self._waiting and self._waiting[0][1] in self._complete:
            _, first = heapq.heappop(self._waiting)
            ready.append(self._complete.pop(first))
        return ready
