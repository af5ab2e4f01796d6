"""Each setting changed alone: what Pulumi's engine does is what docs/operations.md says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import pytest

from components import facts
from components.changes import Change
from components.settings import KEYS
from lab.aws.answers import INVOKES
from lab.region.stack import CommandError, Stack, Step
from tests.engine.conftest import AMI, SETTINGS, Region, network_of

# For each setting, another value than the one that it has.
OTHER: dict[str, object] = {
    "vpcCidr": "10.21.0.0/16",
    "zones": ["eu-central-1b", "eu-central-1c"],
    "clientCidrs": ["10.1.0.0/16"],
    "egress": "endpoints",
    "masterInstanceType": "m7i.xlarge",
    "amiId": "ami-0fedcba9876543210",
    "workerInstanceTypes": ["c6i.xlarge"],
    "workerMin": 1,
    "workerDesired": 3,
    "workerMax": 4,
    "workerSpot": False,
    "workerOnDemandBase": 2,
    "workerHourPrice": "0.15",
    "workerStorage": "diskless",
    "drainMinutes": 20,
    "homeVolumeGb": 101,
    "varVolumeGb": 51,
    "rabbitmqVolumeGb": 21,
    "homeVolumeId": "snap-0123456789abcdef0",
    "varVolumeId": "vol-0123456789abcdef1",
    "rabbitmqVolumeId": "vol-0123456789abcdef2",
    "fileSystemId": "fs-0123456789abcdef0",
    "keepDataOnDestroy": False,
    "kmsKeyId": "arn:aws:kms:eu-central-1:123456789012:key/01234567-89ab-cdef-0123-456789abcdef",
    "backupDays": 7,
    "webui": False,
    "webuiLogin": False,
    "webuiCertificate": "self",
    "stopWhenIdleMinutes": 60,
    "alarmEmail": "geophysics@example.org",
    "monthlyBudget": 500,
    "waitForReady": False,
    "readyTimeoutMinutes": 31,
}

INSTANCE = "aws:ec2/instance:Instance"
GROUP = "aws:autoscaling/group:Group"
RULES = {f"aws:vpc/securityGroup{way}Rule:SecurityGroup{way}Rule" for way in ("Ingress", "Egress")}
DATA = {"aws:ebs/volume:Volume", "aws:efs/fileSystem:FileSystem"}


def _is(type_: str, op: str, *changed: str) -> Callable[[Step], bool]:
    return lambda step: (
        step.type == type_ and step.op == op and (not changed or bool(step.changed & {*changed}))
    )


def _other_tag(key: str) -> Callable[[Step], bool]:
    updated = _is(INSTANCE, "update", "tags")
    return lambda step: updated(step) and step.old["tags"].get(key) != step.new["tags"].get(key)


# By which step of the engine each change is known, and REFUSED by there being none.
KNOWN_BY: dict[Change, Callable[[Step], bool]] = {
    Change.MASTER_REPLACED: _is(INSTANCE, "replace"),
    Change.MASTER_RESIZED: _is(INSTANCE, "update", "instanceType"),
    Change.NUM_CORES: _other_tag(facts.NUM_CORES_TAG),
    Change.IDLE_STOP: _other_tag(facts.STOP_WHEN_IDLE_TAG),
    Change.PRICE: _other_tag(facts.PROCESS_HOUR_TAG),
    Change.WORKERS_ROLLED: _is(GROUP, "update", "mixedInstancesPolicy"),
    Change.FLEET_SIZE: _is(GROUP, "update", "minSize", "maxSize"),
    Change.HOOK: _is("aws:autoscaling/lifecycleHook:LifecycleHook", "update"),
    Change.RULES: lambda step: step.type in RULES and step.op in ("create", "delete"),
    Change.VOLUME_GROWN: _is("aws:ebs/volume:Volume", "update", "size"),
    Change.DATA_EXCHANGED: lambda step: step.type in DATA and step.op in ("replace", "delete"),
    Change.BACKUPS: _is("aws:dlm/lifecyclePolicy:LifecyclePolicy", "update"),
    Change.MAILS: lambda step: step.type == "aws:sns/topicSubscription:TopicSubscription",
    Change.BUDGET: lambda step: step.type == "aws:budgets/budget:Budget",
    Change.KEPT_IN_STATE: lambda step: (
        step.type in DATA
        and step.op == "update"
        and step.old["tags"].get(facts.KEPT_TAG) != step.new["tags"][facts.KEPT_TAG]
    ),
    Change.WAIT: lambda step: step.type == "command:local:Command" and step.op in ("update", "delete"),
    Change.WAY_OUT: _is("aws:ec2/natGateway:NatGateway", "delete"),
}


def changes(steps: Sequence[Step]) -> set[Change]:
    """What the steps of the engine amount to."""
    return {change for change, known in KNOWN_BY.items() if any(map(known, steps))}


def test_each_setting_has_another_value_and_each_change_a_step_by_which_it_is_known() -> None:
    assert OTHER.keys() == KEYS.keys()
    assert KNOWN_BY.keys() | {Change.REFUSED} == set(Change)
    assert all(value != SETTINGS.get(key, KEYS[key].default) for key, value in OTHER.items())


@pytest.mark.parametrize("key", KEYS)
def test_a_change_of_one_setting_does_what_its_rule_says_in_preview_and_up(
    key: str, stack: Stack, region: Region
) -> None:
    stack.configure(**{**SETTINGS, key: OTHER[key]})
    region.asked.clear()
    if KEYS[key].changes == {Change.REFUSED}:
        for command in (stack.preview, stack.up):
            with pytest.raises(
                CommandError, match=rf"{key} = .*: it is .* cannot change once the cluster exists"
            ):
                command()
        assert region.asked == []
        return
    before = stack.resources()
    steps = stack.preview()
    found = changes(steps)
    stack.up()
    after = stack.resources()
    assert _asked_by(steps, _kept(before)) == set(region.asked)
    assert stack.preview() == []
    # The program learns by the tag alone what Pulumi keeps.
    data = {label: one for label, one in after.items() if one["type"] in DATA}
    kept = {label for label, one in data.items() if one["inputs"]["tags"][facts.KEPT_TAG] == "true"}
    assert kept == _kept(data)
    assert found == KEYS[key].changes, [(step.op, step.label, set(step.changed)) for step in steps]


def test_a_volume_that_would_shrink_is_refused_before_anything_is_touched(
    stack: Stack, region: Region
) -> None:
    stack.configure(**SETTINGS, homeVolumeGb=99)
    region.asked.clear()
    for command in (stack.preview, stack.up):
        with pytest.raises(CommandError, match=r"homeVolumeGb = 99: the volume has 100 GiB"):
            command()
    assert region.asked == []


@pytest.mark.parametrize("key", ["homeVolumeId", "varVolumeId", "fileSystemId"])
def test_data_that_pulumi_would_delete_are_replaced_only_after_an_update_that_keeps_them(
    key: str, stack: Stack, region: Region
) -> None:
    """Pulumi goes by the state: an update which says for the first time that they are kept would delete them."""
    stack.configure(**SETTINGS, keepDataOnDestroy=False)
    stack.up()
    before = stack.resources()
    region.invokes = {**INVOKES, **network_of(before)}
    asked_for = {"keepDataOnDestroy": True, key: OTHER[key]}
    stack.configure(**SETTINGS, **asked_for)
    region.asked.clear()
    for command in (stack.preview, stack.up):
        with pytest.raises(CommandError, match=rf"{key} = {OTHER[key]}: .* would be deleted, since Pulumi"):
            command()
    assert region.asked == []
    stack.configure(**SETTINGS)
    stack.up()
    region.invokes = {**INVOKES, **network_of(stack.resources())}
    stack.configure(**SETTINGS, **asked_for)
    region.asked.clear()
    stack.up()
    data = {label for label, one in before.items() if one["type"] in DATA}
    assert {label for verb, label in region.asked if verb == "remove"} & data == set()
    after = stack.resources()
    assert [one for one in data if one not in after or after[one]["id"] != before[one]["id"]]


def test_a_volume_is_made_from_the_same_snapshot_once_more_only_while_the_setting_names_it(
    stack: Stack, region: Region
) -> None:
    """A replacement that is asked for by hand is made by the program's arguments, whatever it ignores of them."""
    home = "Volume:storage-home"
    snapshot = {"homeVolumeId": OTHER["homeVolumeId"]}
    stack.configure(**SETTINGS, **snapshot)
    stack.up()
    stack.configure(**SETTINGS)
    assert stack.preview() == []
    first = stack.resources()[home]
    stack.configure(**SETTINGS, **snapshot)
    assert stack.preview() == []
    region.asked.clear()
    stack.up("--replace", first["urn"])
    second = stack.resources()[home]
    assert (second["id"] != first["id"], second["inputs"]["snapshotId"]) == (True, OTHER["homeVolumeId"])
    assert ("remove", home) not in region.asked  # the former one is kept
    stack.configure(**SETTINGS)
    assert stack.preview() == []
    stack.up("--replace", first["urn"])
    assert "snapshotId" not in stack.resources()[home]["inputs"]  # blank, which the documentation warns of


def _kept(resources: Mapping[str, Any]) -> set[str]:
    """Those of a stack's resources that AWS keeps when Pulumi removes them from the state."""
    return {name for name, one in resources.items() if one.get("retainOnDelete")}


def _asked_by(steps: Sequence[Step], kept: Set[str]) -> set[tuple[str, str]]:
    """What a provider is asked to do by steps of a preview, of which some would remove what AWS is to keep."""
    verbs = {"create": ["make"], "update": ["change"], "delete": ["remove"], "replace": ["make", "remove"]}
    asked = {(verb, step.label) for step in steps for verb in verbs[step.op]}
    return asked - {("remove", label) for label in kept}


def test_a_cluster_that_is_up_is_left_alone(stack: Stack, region: Region) -> None:
    assert stack.preview() == []
    stack.up("--expect-no-changes")
    assert region.asked == []


def images(stack: Stack) -> set[str]:
    """The images of master and workers."""
    resources = stack.resources()
    return {
        resources["Instance:master-instance"]["inputs"]["ami"],
        resources["LaunchTemplate:workers-template"]["inputs"]["imageId"],
    }


def test_a_change_of_the_image_reaches_master_and_workers(stack: Stack) -> None:
    assert images(stack) == {AMI}
    stack.configure(**{**SETTINGS, "amiId": OTHER["amiId"]})
    stack.up()
    assert images(stack) == {OTHER["amiId"]}


def test_without_an_image_of_their_own_all_nodes_keep_that_of_the_first_day(
    empty: Stack, region: Region
) -> None:
    empty.configure()
    empty.up()
    first = images(empty)
    assert len(first) == 1
    newer = "ami-0123456789abcdef9"
    token = "aws:ssm/getParameter:getParameter"
    region.invokes = {**INVOKES, token: {"id": "debian", "value": newer, "insecureValue": newer}}
    assert empty.preview() == []
    empty.configure(webui=False)  # which replaces the master
    empty.up()
    assert ("make", "Instance:master-instance") in region.asked
    assert images(empty) == first
