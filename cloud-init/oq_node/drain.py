"""Lets a worker that has to go, go in order: no new tasks, then the running ones to their end or back to the queue.

Three things announce the end, all in the instance's metadata: the Auto Scaling group wants the instance terminated (a
scale-in, an instance refresh, a rebalance), a spot interruption (two minutes), or the recommendation that may come
before one. Celery's warm shutdown does the rest: it takes no more tasks and ends with the last one that runs. What is
not done at the deadline is killed, and the broker gives it to another worker at once.

A recommendation is no certainty, and has no deadline. The group then starts another instance and ends this one when
that is healthy; where it finds none, this one goes on living, and takes tasks again after a while.
"""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oq_node.common import FACTS, metadata, say

POLL_SECONDS: int = FACTS["drain_poll_seconds"]
HAND_OVER_SECONDS: int = FACTS["hand_over_seconds"]
# How long a worker that did nothing but follow a recommendation stays without tasks: the boot of its replacement, with
# room.
RETURN_SECONDS = 600
# While it is there systemd does not start Celery, which the bootstrap of a worker that has to go already would do.
DRAINING = Path(FACTS["draining_flag"])


@dataclass(frozen=True)
class Notice:
    """Why this worker goes, and how many seconds its running tasks have left; math.inf if nothing ends them."""

    reason: str
    seconds: float
    terminating: bool = False  # the Auto Scaling group waits for our word
    certain: bool = True


def notice(read: Callable[[str], str | None], now: datetime.datetime, drain_seconds: float) -> Notice | None:
    """What the metadata announce; of several things the one that leaves the least time.

    `read` gives a metadata value, None where there is none. Nothing certain gives the tasks more than `drain_seconds`.
    """
    terminating = read("autoscaling/target-lifecycle-state") == "Terminated"
    if action := read("spot/instance-action"):
        end = datetime.datetime.fromisoformat(json.loads(action)["time"])
        seconds = max(0.0, (end - now).total_seconds() - HAND_OVER_SECONDS)
        return Notice(f"spot interruption at {end:%H:%M:%S} UTC", min(seconds, drain_seconds), terminating)
    if terminating:
        return Notice("the Auto Scaling group ends this instance", drain_seconds, terminating)
    if read("events/recommendations/rebalance"):
        return Notice("AWS's rebalance recommendation for this spot instance", math.inf, certain=False)
    return None


def read(path: str) -> str | None:
    """A metadata value; None on 404. Raises OSError if the metadata service does not answer."""
    try:
        return metadata(path)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def look() -> Notice | None:
    """What is announced now; None also when the metadata do not answer as they should."""
    try:
        return notice(read, datetime.datetime.now(datetime.UTC), FACTS["drain_seconds"])
    except (OSError, ValueError, KeyError) as error:
        say(f"drain watch: {error}")
        return None


def drain(found: Notice) -> None:
    """Stop consuming at once; wait for the running tasks, but not beyond the deadline.

    A notice that comes meanwhile can set a deadline or bring it nearer: a spot interruption waits for nobody.
    """
    unit = FACTS["celery_unit"]
    left = f"have {found.seconds:.0f} s" if math.isfinite(found.seconds) else "go on to their end"
    say(f"draining: {found.reason}; running tasks {left}")
    DRAINING.parent.mkdir(parents=True, exist_ok=True)  # gone with a reboot
    DRAINING.touch()
    subprocess.run(["systemctl", "stop", "--no-block", unit], check=True)
    deadline = time.monotonic() + found.seconds
    while _runs(unit):
        if time.monotonic() > deadline:
            say("drained: unfinished tasks go back to the queue")
            subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=False)
            return
        time.sleep(1)
        if newer := look():
            deadline = min(deadline, time.monotonic() + newer.seconds)
    say("drained: all running tasks were finished")


def _runs(unit: str) -> bool:
    state = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True).stdout.strip()
    return state in ("active", "activating", "deactivating")


def take_tasks_again() -> None:
    """Start Celery again."""
    say("AWS did not reclaim this instance: it takes tasks again")
    DRAINING.unlink(missing_ok=True)
    subprocess.run(["systemctl", "start", "--no-block", FACTS["celery_unit"]], check=True)


def complete() -> None:
    """Tell the Auto Scaling group that it need not wait any longer."""
    import boto3  # takes a second, which a worker that starts has better use for

    client = boto3.client("autoscaling", region_name=FACTS["region"])
    client.complete_lifecycle_action(
        AutoScalingGroupName=metadata("tags/instance/aws:autoscaling:groupName"),
        LifecycleHookName=FACTS["drain_hook"],
        InstanceId=metadata("instance-id"),
        LifecycleActionResult="CONTINUE",
    )
    say("told the Auto Scaling group that this instance can go")


def main() -> None:
    """Watch until the instance is gone."""
    drained: float | None = None  # monotonic time of the end of the drain
    patience = True  # a recommendation is followed once
    while True:
        time.sleep(POLL_SECONDS)
        try:
            found = look()
            if found is None or not (found.certain or patience):
                continue
            if drained is None:
                drain(found)
                drained = time.monotonic()
            if found.terminating:
                complete()
                return
            if not found.certain and time.monotonic() - drained > RETURN_SECONDS:
                take_tasks_again()
                drained, patience = None, False
        except Exception as error:  # the watch goes on, whatever AWS answers
            say(f"drain watch: {error}")


if __name__ == "__main__":
    main()
