"""How many workers a queue asks for, and how long a worker that has to go may take: plain arithmetic."""

from __future__ import annotations

from typing import Final, NamedTuple

from components import facts

# AWS's longest: https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_PutLifecycleHook.html
_HOOK_SECONDS: Final = 7200
# A worker notices after a poll that it has to go, and hands over what is unfinished after its drain time.
_HOOK_MARGIN_SECONDS: Final = facts.DRAIN_POLL_SECONDS + facts.HAND_OVER_SECONDS
LONGEST_DRAIN_MINUTES: Final = (_HOOK_SECONDS - _HOOK_MARGIN_SECONDS) // 60


class Step(NamedTuple):
    """With `at_least` tasks waiting, but fewer than `below` (None: without end), `workers` are added."""

    at_least: int
    below: int | None
    workers: int


def steps_out(processes: int, room: int) -> list[Step]:
    """The steps by which a fleet grows, when each worker runs `processes` tasks and `room` workers may be added.

    A step's workers run all tasks that the step covers. Each step doubles the one before, so that no fleet
    needs more than AWS's 20 steps; the last one takes all the room. Raises ValueError below one process or
    one worker.
    """
    if processes < 1 or room < 1:
        raise ValueError(f"nothing to scale: {processes} processes, room for {room} workers")
    sizes = [1]
    while sizes[-1] < room:
        sizes.append(min(2 * sizes[-1], room))
    starts = [1, *(size * processes + 1 for size in sizes[:-1])]
    return [Step(*step) for step in zip(starts, [*starts[1:], None], sizes, strict=True)]


def hook_seconds(drain_minutes: int) -> int:
    """How long the Auto Scaling group waits for a worker whose tasks may run for so many minutes more.

    Raises ValueError where AWS cannot wait so long.
    """
    if not 1 <= drain_minutes <= LONGEST_DRAIN_MINUTES:
        raise ValueError(f"{drain_minutes} minutes: not between 1 and {LONGEST_DRAIN_MINUTES}")
    return drain_minutes * 60 + _HOOK_MARGIN_SECONDS
