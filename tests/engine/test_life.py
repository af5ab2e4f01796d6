"""The life of a stack under Pulumi's engine: made, interrupted, repaired, changed and destroyed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab.aws.answers import INVOKES, Invokes
from lab.base import REPOSITORY
from lab.linux.host import wait_until
from lab.region import provider
from lab.region.stack import CommandError, Stack
from tests.engine.conftest import SETTINGS, Region, labels

INSTANCE = "aws:ec2/instance:Instance"
ATTACHMENT = "aws:ec2/volumeAttachment:VolumeAttachment"
VOLUME = "aws:ebs/volume:Volume"
EFS = "aws:efs/fileSystem:FileSystem"
MASTER = "Instance:master-instance"
WORKERS = "Group:workers-group"
WAIT = "Command:readiness-wait"


def shape(stack: Stack) -> dict[str, list[str]]:
    """What a stack holds: of each resource the arguments that it was given."""
    return {label: sorted(one["inputs"]) for label, one in stack.resources().items()}


def pending(stack: Stack) -> set[tuple[str, str]]:
    """What the state says that AWS was doing when the last update was cut short: labels, and the engine's words."""
    operations = json.loads(stack.run("stack", "export"))["deployment"].get("pending_operations", [])
    return {(provider.label(one["resource"]["urn"]), one["type"]) for one in operations}


def test_an_up_that_fails_at_every_resource_once_is_healed_by_the_next_ones(
    empty: Stack, cluster: Stack, region: Region
) -> None:
    failed: set[str] = set()

    def fail_once(_verb: str, label: str) -> str | None:
        first = label not in failed
        failed.add(label)
        return f"InsufficientInstanceCapacity: no {label} today" if first else None

    region.refuses = fail_once
    for _ in range(len(cluster.resources()) + 1):  # each one gets as far as to what has not failed yet
        try:
            empty.up()
            break
        except CommandError as error:
            assert "InsufficientInstanceCapacity" in str(error)
            assert "Traceback" not in str(error)
    region.refuses = lambda _verb, _label: None
    assert failed == set(cluster.resources())
    assert shape(empty) == shape(cluster)
    assert empty.preview() == []


def test_a_killed_up_is_repaired_by_the_commands_that_the_documentation_gives(
    empty: Stack, cluster: Stack, region: Region
) -> None:
    region.holds = "master-instance"
    killed = subprocess.Popen(
        empty.command("up", "--yes", "--skip-preview"),
        cwd=empty.directory,
        env=empty.surroundings(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert region.held.wait(600)
        wait_until("the state to be written", empty.is_written, 600)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    region.holds = None
    region.let_go.set()
    with pytest.raises(CommandError, match="the stack is currently locked"):
        empty.up()
    assert (MASTER, "creating") in pending(empty)
    text = (REPOSITORY / "docs/trouble.md").read_text()
    _, _, after = text.partition("`pulumi up` was killed")
    lines = [line.split("#")[0].split() for line in after.splitlines() if line.startswith("    pulumi ")]
    cancel, export, *repair = commands = lines[:4]
    assert [command[1] for command in commands] == ["cancel", "stack", "refresh", "up"]
    empty.run(*cancel[1:], "--yes")
    assert export[2:4] == ["export", ">"]
    assert (MASTER, "creating") in pending(empty)  # so the export still has what the refresh forgets
    for command in repair:
        empty.run(*command[1:], "--yes", "--skip-preview")
    assert pending(empty) == set()
    assert shape(empty) == shape(cluster)
    assert empty.preview() == []


@pytest.mark.parametrize(
    ("emptied", "words"),
    [("test.json.attrs", "checkpoint: EOF"), ("test.json", "unexpected end of JSON input")],
    ids=["killed", "no power"],
)
def test_a_state_in_a_file_that_was_being_written_is_read_again_after_the_command_that_the_documentation_gives(
    emptied: str, words: str, stack: Stack
) -> None:
    """Pulumi's library makes the one file empty and then writes it, and does not wait until a disk has the other.

    https://github.com/google/go-cloud/blob/master/blob/fileblob/attrs.go (setAttrs) and fileblob.go (writer.Close)
    """
    before = stack.resources()
    (state,) = (stack.directory / ".pulumi/stacks").rglob("test.json")
    state.with_name(emptied).write_bytes(b"")
    with pytest.raises(CommandError, match=words):
        stack.refresh()
    _, _, after = (REPOSITORY / "docs/trouble.md").read_text().partition(words)
    command = next(line.strip() for line in after.splitlines() if line.startswith("    "))
    subprocess.run(
        ["sh", "-c", command.replace("STACK", stack.name)],
        env={"HOME": str(stack.directory), "PATH": os.environ["PATH"]},
        check=True,
    )
    assert stack.resources().keys() == before.keys()
    assert stack.preview() == []


def test_a_master_that_somebody_terminated_comes_back_with_its_data_after_a_refresh(
    stack: Stack, region: Region
) -> None:
    before = stack.resources()
    lost = labels(before, INSTANCE) | labels(before, ATTACHMENT)
    region.gone = {before[label]["id"] for label in lost}
    stack.refresh()
    assert stack.resources().keys() == before.keys() - lost
    region.asked.clear()
    stack.up()
    after = stack.resources()
    assert after.keys() == before.keys()
    assert [one for one in region.asked if one[0] == "remove" and one[1] != WAIT] == []
    for label in labels(before, VOLUME) | labels(before, EFS):
        assert after[label]["id"] == before[label]["id"]
    attached = {after[label]["inputs"]["volumeId"] for label in labels(after, ATTACHMENT)}
    assert attached == {before[label]["id"] for label in labels(before, VOLUME)}


def test_a_replaced_master_lets_go_of_its_volumes_first_and_gets_them_back(
    stack: Stack, region: Region
) -> None:
    before = stack.resources()
    stack.configure(**{**SETTINGS, "webui": False})
    region.asked.clear()
    stack.up()
    attachments = labels(before, ATTACHMENT)
    order = [one for one in region.asked if one[1] in attachments | {MASTER}]
    detached, gone, new, attached = order[:3], order[3], order[4], order[5:]
    assert set(detached) == {("remove", label) for label in attachments}
    assert (gone, new) == (("remove", MASTER), ("make", MASTER))
    assert set(attached) == {("make", label) for label in attachments}
    after = stack.resources()
    for label in labels(before, VOLUME) | labels(before, EFS) | {WORKERS}:
        assert after[label]["id"] == before[label]["id"]
    assert after[MASTER]["id"] != before[MASTER]["id"]
    interface = "primaryNetworkInterface"
    assert after[MASTER]["inputs"][interface] == before[MASTER]["inputs"][interface]


@pytest.mark.parametrize("keep", [True, False], ids=["data kept", "nothing kept"])
def test_destroy_removes_everything_but_the_data_that_are_to_be_kept(
    keep: bool, stack: Stack, region: Region
) -> None:
    stack.configure(**{**SETTINGS, "keepDataOnDestroy": keep})
    stack.up()
    before = stack.resources()
    region.asked.clear()
    stack.destroy()
    assert stack.resources() == {}
    data = labels(before, VOLUME) | labels(before, EFS)
    assert len(data) == 4
    assert {name for _, name in region.asked} == before.keys() - (data if keep else set())
    assert {verb for verb, _ in region.asked} == {"remove"}
    removed = [name for _, name in region.asked]
    for label in labels(before, ATTACHMENT):
        assert removed.index(label) < removed.index(MASTER)
    assert removed.index(WORKERS) < removed.index("LaunchTemplate:workers-template")


def test_no_secret_is_in_the_state(cluster: Stack) -> None:
    state = cluster.run("stack", "export")
    # Values would be in versions of the secret, or in what makes them up; the nodes do both.
    types = {one["type"] for one in json.loads(state)["deployment"]["resources"]}
    assert "aws:secretsmanager/secret:Secret" in types
    assert not [one for one in types if "secretVersion" in one or one.startswith(("random:", "tls:"))]
    assert "secretString" not in state


@pytest.mark.parametrize("command", ["preview", "up"])
def test_wrong_settings_are_one_error_and_nothing_is_made(command: str, empty: Stack, region: Region) -> None:
    empty.configure(egress="fly", workerMin=9, workerMax=3, homeVolumeGb=0)
    options = ["--yes", "--skip-preview"] if command == "up" else []
    with pytest.raises(CommandError) as error:
        empty.run(command, *options)
    text = str(error.value).partition("Diagnostics:")[2]  # Pulumi has shown its progress before
    assert text.count("error:") == text.count("error: 3 problems with the settings:") == 1, str(error.value)
    for line in (
        "egress = fly: choose one of nat, endpoints",
        "homeVolumeGb = 0: write a whole number from 1 to 65536",
        "workerMin = 9: must not be above workerMax = 3",
    ):
        assert line in text
    assert "Traceback" not in text
    assert region.asked == []


@pytest.mark.parametrize("command", ["preview", "up"])
def test_a_second_cluster_of_a_name_is_refused_before_anything_is_made(
    command: str, empty: Stack, cluster: Stack, shown: Invokes, region: Region
) -> None:
    """With a state of its own, in a file. How Pulumi Cloud tells what a state has is not shown here."""
    region.invokes = {**INVOKES, **shown}
    with pytest.raises(CommandError) as refused:
        empty.run(command, *(["--yes", "--skip-preview"] if command == "up" else []))
    (line,) = [line for line in str(refused.value).splitlines() if "stack = test: another cluster" in line]
    assert cluster.resources()["Vpc:network-vpc"]["id"] in line
    assert "Traceback" not in str(refused.value)
    assert empty.resources() == {}


@pytest.mark.parametrize(
    ("resource", "refused"),
    [
        ('sqs.Queue("tasks")', "aws:sqs/queue:Queue tasks"),
        ('ebs.Volume("home", availability_zone="a", size=8, iops=3000)', "aws:ebs/volume:Volume home: iops"),
    ],
    ids=["type", "argument"],
)
def test_what_the_lab_does_not_know_is_refused_by_name(
    resource: str, refused: str, empty: Stack, region: Region, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.mkdir()
    linked = empty.directory / "program"
    linked.unlink()
    linked.symlink_to(program)
    (program / "__main__.py").write_text(f"import pulumi_aws as aws\naws.{resource}\n")
    with pytest.raises(CommandError, match=f"not known here: {refused}"):
        empty.up()
    assert region.asked == []
