"""How long something has been so, how long to wait, and lengths of time in words."""

from __future__ import annotations

import math
import time


def longer(first: float, times: int, longest: float) -> float:
    """The next pause in seconds, after so many of which each was twice as long as the one before."""
    return min(first * 2.0 ** min(times, 30), longest)  # the power of a day's pauses is no float


def words(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


class Clock:
    """Since when something is so, as far as every look has found it so.

    A look that comes late says nothing of the time before it.
    """

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self._seen: dict[str, tuple[float, float]] = {}  # monotonic times of the first and the last look

    def seconds(self, name: str, is_so: bool) -> float:
        """Note what a look has found, and say for how long it has been so: 0 when it is not."""
        now = time.monotonic()
        first, last = self._seen.pop(name, (now, now))
        if not is_so:
            return 0.0
        first = first if now - last <= self._longest_gap else now
        self._seen[name] = first, now
        return now - first
