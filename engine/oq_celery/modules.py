"""Which modules workers have: those of the engine's environment, which is the same on all nodes.

A task is sent by the name of its function, and its arguments by the names of their classes. What a user has written (a
program that hands tasks of its own to a Starmap, a ground motion model) a worker cannot import. Other classes of a
user's among the arguments are not looked for: their task fails, and says so.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

_ROOTS = tuple(Path(path).resolve() for path in (sys.prefix, sysconfig.get_path("stdlib")))
_GSIMS = "openquake.hazardlib.gsim.base"


def unseen(function: Callable[..., Any], known: Collection[str]) -> str | None:
    """The file, or the name, of a module that a task needs and that workers do not have; None if there is none.

    Looked at are the task itself and all ground motion models that this process knows, whether the task uses them or
    not: a user's own one is in the registry since a program has defined it.

    Args:
        function: of the task.
        known: names of other packages that workers have.
    """
    if file := file_of(function, known):
        return file
    names: set[str] = set()
    if gsims := sys.modules.get(_GSIMS):
        # Next to the classes there are functions that make one under another name.
        names = {one.__module__ for one in gsims.registry.values() if isinstance(one, type)}
    return next((file for name in sorted(names) if (file := _unseen(name, frozenset(known)))), None)


def file_of(function: Callable[..., Any], known: Collection[str]) -> str | None:
    """The file, or the name, of a function's module if workers do not have it; see `unseen`."""
    return _unseen(function.__module__, frozenset(known))


@cache
def _unseen(name: str, known: frozenset[str]) -> str | None:
    if name.partition(".")[0] in known:
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__":
        return file or name
    if file is None or any(Path(file).resolve().is_relative_to(root) for root in _ROOTS):
        return None
    return str(file)
