"""What a worker's process remembers of the calculations whose tasks it has done, and when it forgets that.

Upstream's processes live for one calculation. These do not, and some of what the engine keeps for the life of a process
is wrong for another calculation:

- caches of functions whose keys do not tell two calculations apart, such as the tables of ground motions, which
  `interp_table` knows by the name of their file without its directory;
- what classes of hazardlib keep in a dictionary of their own, such as the matrices of cross-correlations by the
  periods, of which PGA and PGV have the same one;
- rows that a table of coefficients has interpolated and keeps, between which it interpolates the next ones: their last
  bits depend on what was asked before;
- the sections of multi-fault sources, by the path of a calculation's file, which another calculation has after a new
  database.
"""

from __future__ import annotations

import functools
import gc
from typing import Any, Final

from openquake.hazardlib.gsim.coeffs_table import CoeffsTable
from openquake.hazardlib.source import multi_fault

JOBS: Final = 3
"""Calculations whose sections a process keeps while they take turns: reading them takes long."""


class Memory:
    """The memory of one process; of its main process, from which all are forked, it is empty."""

    def __init__(self) -> None:
        self._caches: list[Any] = []
        self._kept: list[Any] = []  # of classes
        self._tables: list[tuple[dict[Any, Any], int]] = []  # their rows, and how many are their own
        self._now: tuple[int, str] | None = None
        self._masters: dict[int, str] = {}  # by the number of a calculation

    def find(self) -> None:
        """Find what can remember something, once the engine is imported and before it has computed anything.

        It looks at all objects, since caches are also in classes, and tables in lists. After `gc.freeze` nothing finds
        them.
        """
        tables = {CoeffsTable, *CoeffsTable.__subclasses__()}
        for one in gc.get_objects():
            kind = type(one)
            if kind is functools._lru_cache_wrapper:
                if one.__module__.startswith("openquake."):
                    self._caches.append(one)
            elif issubclass(kind, type) and str(one.__module__).startswith("openquake.hazardlib."):
                # What is filled before anything is computed is no memory.
                self._kept += [
                    kept for kept in vars(one).values() if type(kept) in (dict, list, set) and not kept
                ]
            elif kind in tables:
                self._tables.append((one._coeffs, len(one._coeffs)))

    def turn_to(self, job: int, master: str) -> None:
        """Forget what may be wrong for the task that is next.

        Args:
            job: the number of its calculation.
            master: which tells calculations with the same number apart.
        """
        if self._now not in (None, (job, master)):
            for cache in self._caches:
                cache.cache_clear()
            for kept in self._kept:
                kept.clear()
            for rows, own in self._tables:
                for imt in list(rows)[own:]:
                    del rows[imt]
        self._now = job, master
        if self._masters.get(job) != master:
            if job in self._masters or len(self._masters) >= JOBS:
                self._masters.clear()
                multi_fault.SECTIONS.clear()
            self._masters[job] = master
