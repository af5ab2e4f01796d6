"""Says in the log of a calculation why the workers that its tasks wait for do not start: `python -m oq_fleet.watch`, on
the master.

The scaling policies ask for workers, and the Auto Scaling group starts them; where AWS has none, the group keeps the
reason in its activities, which nobody reads who waits for a calculation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from oq_fleet.reasons import Reason, reason, suspension

LOOK_SECONDS = 20.0
LAUNCH = "Launch"  # the process of a group that starts instances
RECENT = timedelta(hours=1)
"""How old a failure may be: a group that cannot start an instance tries again, in longer and longer intervals."""
ACTIVITIES = 20
"""How many of the newest activities are looked at: one for each instance of an attempt."""
PROCESS = "oq-fleet"  # in the log's column for it
_LEAVES = ("Terminating", "Terminated", "Detaching", "Detached")


@dataclass(frozen=True)
class Fleet:
    """The group of workers at one moment.

    Attributes:
        wanted: how many instances it is to have.
        present: how many of them serve or start.
        failure: why the last launch failed that has failed lately; None if none has.
    """

    wanted: int
    present: int
    failure: Reason | None

    @property
    def lacks(self) -> bool:
        """Whether the group starts no instance though it is to have more."""
        return self.present < self.wanted and self.failure is not None


Line = tuple[int, str, str]
"""A calculation's number, the level of a line of its log, and the line."""


class Told:
    """What the logs of calculations have been told while the group lacks instances."""

    def __init__(self) -> None:
        self._kinds: dict[int, set[str]] = {}
        self._lacked = False

    def lines(self, waiting: Mapping[int, int], fleet: Fleet) -> Iterator[Line]:
        """What is to be said now; a line counts as said when the next one is asked for.

        Between the call for more instances and their start the group lacks them, too: nothing is said of what is seen
        for the first time.

        Args:
            waiting: how many tasks of which calculation wait.
            fleet: the group that should start workers for them.
        """
        lacked, self._lacked = self._lacked, fleet.lacks
        if not fleet.lacks or fleet.failure is None:
            if fleet.present >= fleet.wanted:
                for job in sorted(self._kinds.keys() & waiting.keys()):
                    yield job, "INFO", f"Workers start again: all {fleet.wanted} are there or on their way"
                self._kinds.clear()
            return
        if not lacked:
            return
        no = "No worker starts" if not fleet.present else "No further worker starts"
        for job, tasks in sorted(waiting.items()):
            kinds = self._kinds.setdefault(job, set())
            if fleet.failure.kind not in kinds:
                wait = "1 waiting task" if tasks == 1 else f"{tasks} waiting tasks"
                there = f"{fleet.present} of {fleet.wanted} are there"
                yield job, "WARNING", f"{no} for {wait}, {there}: {fleet.failure.text}"
                kinds.add(fleet.failure.kind)

    def forget(self) -> None:
        """No task waits any more."""
        self._kinds.clear()
        self._lacked = False


def read(client: Any, tags: Mapping[str, str], now: datetime) -> Fleet:
    """Ask AWS for the group that has these tags.

    Args:
        client: boto3's, of EC2 Auto Scaling.
        tags: of the group.
        now: the time.

    Raises:
        LookupError: there is no such group, or more than one: of another cluster of the same name.
    """
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]
    pages = client.get_paginator("describe_auto_scaling_groups").paginate(Filters=filters)
    groups = [group for page in pages for group in page["AutoScalingGroups"]]
    if len(groups) != 1:
        raise LookupError(f"there are {len(groups)} Auto Scaling groups with the tags {dict(tags)}, not one")
    group = groups[0]
    states = [instance["LifecycleState"] for instance in group["Instances"]]
    present = sum(not state.startswith(_LEAVES) for state in states)
    wanted, failure = group["DesiredCapacity"], None
    suspended = {one["ProcessName"] for one in group.get("SuspendedProcesses", ())}
    if present < wanted and LAUNCH in suspended:
        failure = suspension(group["AutoScalingGroupName"], LAUNCH)
    elif present < wanted:
        activities = client.describe_scaling_activities(
            AutoScalingGroupName=group["AutoScalingGroupName"], MaxRecords=ACTIVITIES
        )["Activities"]
        failure = _failure(activities, now)
    return Fleet(wanted, present, failure)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How a command line names the group of workers."""
    parser.add_argument("--region", required=True, help="of AWS")
    parser.add_argument("--tag", action="append", required=True, help="KEY=VALUE, of the group of workers")


def asked(arguments: argparse.Namespace) -> Callable[[], Fleet]:
    """What asks AWS for the group that those options name.

    Raises:
        ConnectionError: there are no credentials now.
    """
    from oq_celery import credentials

    client = credentials.client("autoscaling", arguments.region)
    tags = dict(tag.split("=", 1) for tag in arguments.tag)
    return lambda: read(client, tags, datetime.now(UTC))


def _failure(activities: list[dict[str, Any]], now: datetime) -> Reason | None:
    """The reason of the newest failed launch; AWS lists the newest activities first."""
    for activity in activities:
        failed = activity["StatusCode"] in ("Failed", "Cancelled")
        launch = not activity["Description"].startswith("Terminating")
        if failed and launch and now - activity["StartTime"] < RECENT:
            return reason(activity.get("StatusMessage") or activity["Description"])
    return None


def waiting_tasks(status: Any) -> dict[int, int]:
    """How many tasks of which calculation wait. `status` is an oq_celery.status.Status."""
    found: Counter[int] = Counter()
    for tasks in status.tasks:
        found[tasks.job] += tasks.waiting
    return {job: number for job, number in found.items() if number}


def watch(
    look: Callable[[], Any], fleet: Callable[[], Fleet], write: Callable[[int, str, str], None]
) -> None:
    """Look for ever; a broker, a database or an AWS that does not answer is reported and asked again.

    Args:
        look: gives the cluster's oq_celery.status.Status.
        fleet: gives the group of workers.
        write: writes a level and a line into the log of a calculation.
    """
    told, trouble = Told(), ""
    while True:
        found = ""
        try:
            if waiting := waiting_tasks(look()):
                for job, level, line in told.lines(waiting, fleet()):
                    write(job, level, line)
            else:
                told.forget()
        except Exception as error:  # neither the broker's errors nor boto3's have a common base
            found = str(error) or type(error).__name__
        if found and found != trouble:
            print(f"fleet: {found}", flush=True)
        trouble = found
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """The command line, which the master's unit has."""
    parser = argparse.ArgumentParser(prog="python -m oq_fleet.watch")
    add_options(parser)
    arguments = parser.parse_args()

    from openquake.baselib import config, zeromq
    from oq_celery import database, settings, status

    def write(job: int, level: str, line: str) -> None:
        # As upstream's `dbcmd` asks the DbServer, whose module would import half of the engine into this process.
        address = f"tcp://{config.dbserver.host}:{config.dbserver.port}"
        with database.Connection(address, zeromq.zmq.REQ, "connect", timeout=60) as socket:
            answer = socket.send(("log", job, datetime.now(UTC), level, PROCESS, line))
            if answer is not None:  # of a request that the DbServer had done before its answer was lost
                answer.get()

    celery = settings.load(config)
    try:
        fleet = asked(arguments)
    except ConnectionError as error:
        sys.exit(f"fleet: {error}")  # and systemd starts it again
    watch(lambda: status.read(celery), fleet, write)


if __name__ == "__main__":
    main()
