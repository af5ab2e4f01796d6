"""The Auto Scaling group of the lab: its size, its lifecycle hook, and how new instances come in the place of old."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.aws import autoscaling
from lab.base import LabError
from lab.cluster import cluster
from lab.cluster.cluster import Lab, Node, Say
from lab.linux.host import cores
from lab.services import aws_api, imds

LEAVING_POLL_SECONDS = 0.5
"""Between two looks at whether a node that leaves is done."""


def scale(lab: Lab, number: int) -> None:
    """Make the group this large, and wait for those that leave; see `set_capacity`."""
    set_capacity(lab, number)
    _await_leaving(lab)


def converge(lab: Lab, say: Say) -> None:
    """Give the plan's group as many instances as it asks for when it is new, and later as it allows.

    Without a group the workers are shut down at once: whoever deletes a group has deleted its hook before.
    """
    if not lab.plan.groups:
        for node in lab.workers():
            cluster.terminate(lab, node)
        _of_api(lab).unlink(missing_ok=True)
        return
    group = lab.group()
    present = lab.capacity.get(group.aws_name)
    wanted = group.desired if present is None else min(max(present, group.minimum), group.maximum)
    if wanted != present:
        set_capacity(lab, wanted, say)
    else:
        _tell_api(lab)


def described(lab: Lab) -> dict[str, Any]:
    """The group as JSON values: its limits, its instances, and its failed attempts to start some, the newest first."""
    group = lab.group()
    return {
        "minimum": group.minimum,
        "desired": lab.capacity[group.aws_name],
        "maximum": group.maximum,
        "instances": [
            {"id": node.name, "state": "InService" if node.leaves_by is None else "Terminating:Wait"}
            for node in lab.workers()
        ],
        "activities": _failures(lab)[::-1],
    }


def limit(lab: Lab, number: int | None) -> None:
    """Let AWS have room for so many workers at most, or for all if None; those that run stay."""
    file = _room(lab)
    file.unlink(missing_ok=True)
    if number is not None:
        file.write_text(str(number))


def _room(lab: Lab) -> Path:
    # Not in the lab's record, which somebody else may hold and write: whoever scales the group.
    return lab.paths.state / "room"


def _failures(lab: Lab) -> list[dict[str, Any]]:
    """The group's failed attempts to start an instance, the newest last."""
    file = _activities(lab)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _activities(lab: Lab) -> Path:
    return lab.paths.state / "activities.jsonl"


def _note_failure(lab: Lab) -> None:
    """Note that AWS has no room for an instance, if it is time for another attempt."""
    now, before = datetime.now(UTC), _failures(lab)[-1:]
    for failure in before:
        if (now - datetime.fromisoformat(failure["time"])).total_seconds() < autoscaling.RETRY_SECONDS:
            return
    failure = {
        "time": now.isoformat(timespec="seconds"),
        "status": "Failed",
        "text": autoscaling.no_capacity(lab.group()),
    }
    with _activities(lab).open("a") as file:
        file.write(json.dumps(failure) + "\n")


def _tell_api(lab: Lab) -> None:
    """Let AWS's API describe the group as it is now."""
    group, file = lab.group(), _of_api(lab)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"name": group.aws_name, "tags": dict(group.tags), **described(lab)}))
    new.replace(file)


def _of_api(lab: Lab) -> Path:
    return cluster.events_directory(lab.paths) / aws_api.GROUP


def outdated(lab: Lab) -> list[Node]:
    """The workers that stay and were made from something else than the group's new ones."""
    return [node for node in lab.staying() if node.release != lab.group().release]


def refresh(lab: Lab, say: Say) -> None:
    """Replace the outdated workers, through the hook, as many at a time as the group may lack: an instance refresh.

    A new one counts as serving when it is ready, or after the group's warm-up, whatever it does. Goes on where one that
    was interrupted has ended.
    """
    group = lab.group()
    capacity = lab.capacity[group.aws_name]
    at_once = max(1, capacity * (100 - group.healthy) // 100)
    while True:
        _await_leaving(lab)
        if missing := capacity - len(lab.staying()):
            set_capacity(lab, capacity, say)
            try:
                cluster.wait_until_ready(lab, say, group.warmup, lab.staying()[-missing:])
            except LabError as error:
                say(f"instance refresh goes on, as AWS's would: {error}")
        leaving = outdated(lab)[:at_once]
        if not leaving:
            return
        say(f"instance refresh: {', '.join(node.name for node in leaving)} to be replaced")
        for node in leaving:
            _leave(lab, node)


def _await_leaving(lab: Lab) -> None:
    while lab.workers() != lab.staying():
        if not end_drained(lab):
            time.sleep(LEAVING_POLL_SECONDS)


def set_capacity(lab: Lab, number: int, say: Say = print) -> None:
    """Make the group this large: replace the dead, start what lacks, let the newest of too many leave.

    What AWS has no room for is not started, and noted as an activity that has failed.
    Those that leave are told by their metadata, and end in `end_drained`: the group's lifecycle hook.
    """
    group = lab.group()
    if not 0 <= number <= group.maximum:
        raise LabError(f"the group {group.name} has at most {group.maximum} instances")
    for node in lab.workers():
        if lab.machine(node.name).init() is None:
            cluster.terminate(lab, node)
    lab.capacity[group.aws_name] = number
    for node in lab.staying()[number:]:
        _leave(lab, node)
    room = int(_room(lab).read_text()) if _room(lab).exists() else number
    for _ in range(min(number, room) - len(lab.staying())):
        _launch_worker(lab, say)
    if len(lab.staying()) < number:
        _note_failure(lab)
    lab.save()
    _tell_api(lab)


def _leave(lab: Lab, node: Node) -> None:
    """Tell a node that it is to end, and give it the hook's time."""
    hook = lab.group().hook
    node.leaves_by = time.time() + (hook.seconds if hook else 0)
    imds.announce(cluster.imds_directory(lab.paths), node.address, imds.LIFECYCLE_STATE, "Terminated")
    lab.save()


def _launch_worker(lab: Lab, say: Say) -> None:
    group = lab.group()
    number = lab.numbers[group.name] = lab.numbers.get(group.name, 0) + 1
    placed = [node.subnet for node in lab.workers()]
    subnet = min(group.subnets, key=placed.count)  # AWS keeps the zones of a group in balance
    # The cores that the fewest workers have: as many as getInstanceType told the program.
    load = {core: sum(core in node.cpus for node in lab.workers()) for core in cores()}
    cpus = sorted(sorted(load, key=lambda core: (load[core], core))[: lab.worker_cores])
    node = Node(
        name=f"{group.name}-{number}",
        id=f"i-{number:017x}",
        group=group.name,
        subnet=subnet,
        address=next(cluster.free_addresses(lab, subnet)),
        template=group.template,
        cpus=tuple(cpus),
        release=group.release,
    )
    cluster.launch(lab, node, say)


def end_drained(lab: Lab) -> list[str]:
    """End the leaving nodes that have said that they can go, that are off, or whose time is over; their names."""
    ended = []
    for node in lab.workers():
        if node.leaves_by is None:
            continue
        completed = cluster.events_directory(lab.paths) / aws_api.COMPLETED / node.id
        if completed.exists() or time.time() > node.leaves_by or lab.machine(node.name).init() is None:
            cluster.terminate(lab, node)
            ended.append(node.name)
    if ended:
        _tell_api(lab)
    return ended
