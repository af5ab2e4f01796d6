"""Data that exist already: what is taken over, and what is refused before anything is made."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import pulumi
import pytest

from components import facts, userdata
from components.tags import of_stack
from lab.aws import user_data
from lab.aws.answers import (
    Invokes,
    Refused,
    file_system_answer,
    network_answers,
    snapshot_answer,
    volume_answer,
)
from lab.aws.recorder import run_program
from lab.aws.recording import Recording
from lab.aws.resources import REGION
from tests.unit.conftest import Record
from tests.unit.test_program import ATTACHMENT, EFS, INSTANCE, MOUNT_TARGET, TEMPLATE, VOLUME

VOLUME_ID, SNAPSHOT, FILE_SYSTEM = (f"{kind}-0123456789abcdef0" for kind in ("vol", "snap", "fs"))
OURS, THEIRS = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"
GET_VOLUME = "aws:ebs/getVolume:getVolume"
GET_SNAPSHOT = "aws:ebs/getSnapshot:getSnapshot"
GET_FILE_SYSTEM = "aws:efs/getFileSystem:getFileSystem"
GET_INSTANCES = "aws:ec2/getInstances:getInstances"
GET_INTERFACES = "aws:ec2/getNetworkInterfaces:getNetworkInterfaces"
GET_INTERFACE = "aws:ec2/getNetworkInterface:getNetworkInterface"
GET_VPCS = "aws:ec2/getVpcs:getVpcs"


def refused(config: Mapping[str, str], invokes: Mapping[str, Any]) -> list[str]:
    """The lines of the error that says what is wrong, without its first one."""
    with pytest.raises(pulumi.RunError) as error:
        run_program(config, invokes=invokes)
    return str(error.value).splitlines()[1:]


def attached(*machines: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """The answer of which machines have the volume that is asked for; OURS alone has this stack's tags."""

    def answer(args: Mapping[str, Any]) -> Mapping[str, Any]:
        assert args["filters"] == [{"name": "block-device-mapping.volume-id", "values": [VOLUME_ID]}]
        assert "stopped" in args["instanceStateNames"]
        tags = args.get("instanceTags")
        assert tags in ({}, None, of_stack("test"))
        return {"id": REGION, "ids": [one for one in machines if not tags or one == OURS]}

    return answer


def mount_targets(**interfaces: str) -> dict[str, Any]:
    """The answers of which network interfaces mount targets have, with their VPCs; vpc_ours is this stack's."""

    def answer(args: Mapping[str, Any]) -> Mapping[str, Any]:
        asked = {one["name"]: one["values"] for one in args["filters"]}
        # As AWS's documentation and its console have it: "Mount target fsmt-… for file system fs-…", "EFS mount target
        # for fs-… (fsmt-…)".
        assert asked["requester-managed"] == ["true"]
        assert asked["description"] in ([f"*{FILE_SYSTEM}*"], ["*fs-*"])
        return {
            "id": REGION,
            "ids": [eni for eni, vpc in interfaces.items() if vpc in asked.get("vpc-id", [vpc])],
        }

    def vpcs(args: Mapping[str, Any]) -> Mapping[str, Any]:
        assert args["tags"] == of_stack("test")
        return {"id": REGION, "ids": ["vpc_ours"] if "vpc_ours" in interfaces.values() else []}

    def interface(args: Mapping[str, Any]) -> Mapping[str, Any]:
        assert interfaces[args["id"]] == "vpc_ours"
        return {"id": args["id"], "description": f"Mount target fsmt-0abc for file system {FILE_SYSTEM}"}

    return {
        **network_answers("vpc_ours", "10.20.0.0/16", {}),
        GET_INTERFACES: answer,
        GET_INTERFACE: interface,
        GET_VPCS: vpcs,
    }


# --- what is taken over -------------------------------------------------------------------------------------


def test_a_volume_that_exists_is_attached_in_place_of_a_new_one_and_not_managed(record: Record) -> None:
    recording = record(homeVolumeId=VOLUME_ID)
    assert [one.name for one in recording.of_type(VOLUME)] == ["storage-rabbitmq", "storage-var"]
    assert recording.one(ATTACHMENT, "master-home").inputs["volumeId"] == VOLUME_ID
    assert recording.exports["volumeIds"]["/home"] == VOLUME_ID
    boot = user_data.decode(recording.one(INSTANCE).inputs["userDataBase64"])["bootcmd"]
    assert f"/home={userdata.ebs_device(VOLUME_ID)}" in "".join(boot)
    assert not [one.name for one in recording.resources if one.id == VOLUME_ID]


def test_a_volume_is_made_from_a_snapshot_that_exists(record: Record) -> None:
    recording = record(varVolumeId=SNAPSHOT)
    volume = recording.one(VOLUME, "storage-var")
    assert (volume.inputs["snapshotId"], volume.inputs["size"]) == (SNAPSHOT, 50)
    assert volume.inputs["encrypted"] is True  # whatever the snapshot is
    assert volume.ignore_changes == ()


def test_a_volume_that_was_made_from_a_snapshot_stays_when_the_setting_is_removed(record: Record) -> None:
    """The snapshot may be gone by then; a volume without one would be another, blank one."""
    for volume in record().of_type(VOLUME):
        assert "snapshotId" not in volume.inputs
        assert volume.ignore_changes == ("snapshotId",)


def test_a_file_system_that_exists_is_mounted_in_place_of_a_new_one_and_not_managed(record: Record) -> None:
    recording = record(fileSystemId=FILE_SYSTEM)
    assert recording.of_type(EFS) == []
    targets = recording.of_type(MOUNT_TARGET)
    assert [one.inputs["fileSystemId"] for one in targets] == [FILE_SYSTEM] * 2
    assert recording.exports["efsId"] == FILE_SYSTEM


def test_another_file_system_makes_other_nodes(record: Record) -> None:
    """They would go on with what they have mounted, and a new file system has no engine."""

    def sent(recording: Recording) -> list[bytes]:
        inputs = (
            recording.one(INSTANCE).inputs["userDataBase64"],
            recording.one(TEMPLATE).inputs["userData"],
        )
        return [base64.b64decode(one) for one in inputs]

    before, after = sent(record()), sent(record(fileSystemId=FILE_SYSTEM))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_without_such_settings_nobody_is_asked(record: Record) -> None:
    asked = {token for token, _ in record().invokes}
    assert not asked & {GET_VOLUME, GET_SNAPSHOT, GET_FILE_SYSTEM, GET_INSTANCES, GET_INTERFACES}


def test_the_output_says_the_settings_by_which_another_stack_takes_the_data_over(record: Record) -> None:
    recording = record(varVolumeId=VOLUME_ID)
    home, rabbitmq = (recording.one(VOLUME, f"storage-{name}").id for name in ("home", "rabbitmq"))
    assert recording.exports["takeDataBack"].splitlines() == [
        f"pulumi config set aws:region {REGION}",
        f"pulumi config set --path 'zones[0]' {REGION}a",
        f"pulumi config set --path 'zones[1]' {REGION}b",
        f"pulumi config set homeVolumeId {home}",
        f"pulumi config set varVolumeId {VOLUME_ID}",
        f"pulumi config set rabbitmqVolumeId {rabbitmq}",
        f"pulumi config set fileSystemId {recording.one(EFS).id}",
    ]


def test_there_is_no_such_output_where_nothing_stays(record: Record) -> None:
    assert "takeDataBack" not in record(keepDataOnDestroy="false").exports


def test_the_settings_of_the_output_are_accepted(record: Record) -> None:
    words = [line.split() for line in record().exports["takeDataBack"].splitlines()]
    config = {one[-2]: one[-1] for one in words if "--path" not in one and ":" not in one[-2]}
    assert config.keys() == {"homeVolumeId", "varVolumeId", "rabbitmqVolumeId", "fileSystemId"}
    again = record(**config)
    assert again.of_type(VOLUME) == again.of_type(EFS) == []
    assert again.exports["takeDataBack"] == record().exports["takeDataBack"]


def test_a_size_that_a_volume_taken_over_has_not_and_does_not_get_is_said() -> None:
    small: Invokes = {GET_VOLUME: volume_answer(VOLUME_ID, size=90)}
    for config in (
        {"homeVolumeId": VOLUME_ID},  # the default asks for nothing
        {"homeVolumeId": VOLUME_ID, "homeVolumeGb": "90"},
        {"homeVolumeGb": "200"},
        {"homeVolumeId": SNAPSHOT, "homeVolumeGb": "200"},
    ):
        assert run_program(config, invokes=small).warnings == []
    (line,) = run_program({"homeVolumeId": VOLUME_ID, "homeVolumeGb": "200"}, invokes=small).warnings
    assert line.startswith(f"homeVolumeGb = 200 does nothing: {VOLUME_ID}, which has 90 GiB, is taken over")
    assert f"aws ec2 modify-volume --volume-id {VOLUME_ID} --size GB" in line


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differently", "remedy"),
    [
        ({"availabilityZone": f"{REGION}b"}, f"it is in {REGION}b and the master in {REGION}a"),
        ({"encrypted": False}, "it is not encrypted"),
        ({"size": 3}, "it has 3 GiB and has to have 4: enlarge it"),
    ],
)
def test_a_volume_that_cannot_be_the_masters_is_refused(differently: dict[str, Any], remedy: str) -> None:
    (line,) = refused({"varVolumeId": VOLUME_ID}, {GET_VOLUME: volume_answer(VOLUME_ID, **differently)})
    assert line.startswith(f"  varVolumeId = {VOLUME_ID}: {remedy}")


def test_a_volume_in_the_masters_zone_is_taken_wherever_that_is() -> None:
    answer = volume_answer(VOLUME_ID, availabilityZone=f"{REGION}c", size=4)
    zones = f'["{REGION}c", "{REGION}a"]'
    run_program({"varVolumeId": VOLUME_ID, "zones": zones}, invokes={GET_VOLUME: answer})


def test_a_volume_at_another_machine_is_refused_and_at_the_own_master_accepted() -> None:
    config = {"homeVolumeId": VOLUME_ID}
    for machines in ([THEIRS], [OURS, THEIRS]):
        (line,) = refused(config, {GET_INSTANCES: attached(*machines)})
        assert line == f"  homeVolumeId = {VOLUME_ID}: it is attached to another machine: detach it there"
    run_program(config, invokes={GET_INSTANCES: attached(OURS)})  # the second `pulumi up`
    run_program(config, invokes={GET_INSTANCES: attached()})


def test_a_volume_or_a_snapshot_of_another_mount_point_is_refused(record: Record) -> None:
    names = {source.inputs["tags"]["Name"] for source in record().of_type(VOLUME)}
    (var,) = (name for name in names if name.endswith("-var"))
    volume = {GET_VOLUME: volume_answer(VOLUME_ID, tags={"Name": var})}
    (line,) = refused({"homeVolumeId": VOLUME_ID}, volume)
    assert line == f"  homeVolumeId = {VOLUME_ID}: it is the volume of /var, {var}: name that of /home"
    run_program({"varVolumeId": VOLUME_ID}, invokes=volume)
    snapshot = {GET_SNAPSHOT: snapshot_answer(SNAPSHOT, tags={"Name": var})}
    (line,) = refused({"homeVolumeId": SNAPSHOT}, snapshot)
    assert line == f"  homeVolumeId = {SNAPSHOT}: it is the volume of /var, {var}: name that of /home"
    run_program({"varVolumeId": SNAPSHOT}, invokes=snapshot)


def test_data_that_the_stack_would_delete_are_not_adopted_by_it() -> None:
    """Pulumi deletes what the program has no more, but for what it was told to keep."""
    own = of_stack("test")
    volume: Invokes = {GET_VOLUME: volume_answer(VOLUME_ID, tags=own), GET_INSTANCES: attached(OURS)}
    (line,) = refused({"homeVolumeId": VOLUME_ID, "keepDataOnDestroy": "false"}, volume)
    assert "set keepDataOnDestroy to true and pulumi up, before you name it" in line
    run_program({"homeVolumeId": VOLUME_ID}, invokes=volume)
    file_system: Invokes = {
        GET_FILE_SYSTEM: file_system_answer(FILE_SYSTEM, tags=own),
        **mount_targets(eni_1="vpc_ours"),
    }
    (line,) = refused({"fileSystemId": FILE_SYSTEM, "keepDataOnDestroy": "false"}, file_system)
    assert "set keepDataOnDestroy to true and pulumi up, before you name it" in line
    run_program({"fileSystemId": FILE_SYSTEM}, invokes=file_system)


def test_data_that_the_update_before_did_not_keep_are_not_replaced_by_one_that_is_to_keep_them(
    record: Record,
) -> None:
    """Whoever sets keepDataOnDestroy to false wants them deleted, and is not in the way."""
    recording = record(keepDataOnDestroy="false", varVolumeId=SNAPSHOT)
    volumes = {one.id: one.inputs for one in recording.of_type(VOLUME)}
    shared = recording.one(EFS)
    vpc = recording.one("aws:ec2/vpc:Vpc")
    disks: Invokes = network_answers(
        vpc.id, "10.20.0.0/16", {}, {}, volumes, {shared.id: {"tags": shared.inputs["tags"]}}
    )
    home, var = (recording.one(VOLUME, f"storage-{name}").id for name in ("home", "var"))
    other = {"homeVolumeId": SNAPSHOT, "varVolumeId": VOLUME_ID, "fileSystemId": FILE_SYSTEM}
    lines = refused(other, disks)
    for line, (key, value), present in zip(lines, other.items(), (home, var, shared.id), strict=True):
        assert line.startswith(
            f"  {key} = {value}: {present} would be deleted, since Pulumi goes by the keep"
        )
        assert "pulumi up once without this setting" in line
    run_program({**other, "keepDataOnDestroy": "false"}, invokes=disks)
    # What is there already, by the same setting, stays.
    run_program({"varVolumeId": SNAPSHOT}, invokes=disks)
    # The stack's own one, named in the update that is to keep it first.
    (line,) = refused({"homeVolumeId": home}, disks)
    assert line.startswith(f"  homeVolumeId = {home}: {home} would be deleted")
    # At no machine of the stack: left of another one.
    run_program({"homeVolumeId": SNAPSHOT}, invokes={**disks, GET_INSTANCES: {"id": REGION, "ids": []}})
    kept = network_answers(
        vpc.id, "10.20.0.0/16", {}, {},
        {one.id: one.inputs for one in record().of_type(VOLUME)},
        {shared.id: {"tags": record().one(EFS).inputs["tags"]}},
    )  # fmt: skip
    run_program(other, invokes=kept)


def test_a_snapshot_larger_than_the_volume_is_refused_with_the_size_that_it_needs() -> None:
    answer = {GET_SNAPSHOT: snapshot_answer(SNAPSHOT, volumeSize=51)}
    (line,) = refused({"varVolumeId": SNAPSHOT}, answer)
    assert line == f"  varVolumeGb = 50: ask for 51 or more, which {SNAPSHOT} has"
    run_program({"varVolumeId": SNAPSHOT, "varVolumeGb": "51"}, invokes=answer)


@pytest.mark.parametrize(
    ("differently", "remedy"),
    [
        ({"state": "pending"}, "wait until it is completed; it is pending"),
        ({"storageTier": "archive"}, "restore it from the archive first"),
    ],
)
def test_a_snapshot_that_no_volume_can_be_made_from_yet_is_refused(
    differently: dict[str, Any], remedy: str
) -> None:
    (line,) = refused({"homeVolumeId": SNAPSHOT}, {GET_SNAPSHOT: snapshot_answer(SNAPSHOT, **differently)})
    assert line == f"  homeVolumeId = {SNAPSHOT}: {remedy}"


@pytest.mark.parametrize(
    ("differently", "remedy"),
    [
        ({"encrypted": False}, "it is not encrypted"),
        (
            {"availabilityZoneName": f"{REGION}a"},
            f"it is in {REGION}a only: copy its files to a regional one",
        ),
        ({"throughputMode": "bursting"}, "its throughput is bursting"),
    ],
)
def test_a_file_system_that_cannot_be_the_clusters_is_refused(
    differently: dict[str, Any], remedy: str
) -> None:
    answer = {GET_FILE_SYSTEM: file_system_answer(FILE_SYSTEM, **differently)}
    (line,) = refused({"fileSystemId": FILE_SYSTEM}, answer)
    assert line.startswith(f"  fileSystemId = {FILE_SYSTEM}: {remedy}")


def test_mount_targets_in_another_vpc_are_refused_and_those_in_the_own_accepted() -> None:
    config = {"fileSystemId": FILE_SYSTEM}
    for interfaces in ({"eni_1": "vpc_theirs"}, {"eni_1": "vpc_ours", "eni_2": "vpc_theirs"}):
        (line,) = refused(config, mount_targets(**interfaces))
        assert line.startswith(f"  fileSystemId = {FILE_SYSTEM}: it has mount targets in another VPC")
    run_program(config, invokes=mount_targets(eni_1="vpc_ours", eni_2="vpc_ours"))


def test_everything_that_is_wrong_is_said_at_once_with_awss_reasons() -> None:
    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("no such thing")

    lines = refused(
        {
            "homeVolumeId": VOLUME_ID,
            "varVolumeId": SNAPSHOT,
            "fileSystemId": FILE_SYSTEM,
            "zones": f'["{REGION}x", "{REGION}b"]',
        },
        dict.fromkeys((GET_VOLUME, GET_SNAPSHOT, GET_FILE_SYSTEM), refuse),
    )
    for key, id_ in (
        ("homeVolumeId", VOLUME_ID),
        ("varVolumeId", SNAPSHOT),
        ("fileSystemId", FILE_SYSTEM),
    ):
        (line,) = [one for one in lines if one.startswith(f"  {key} = {id_}: name a ")]
        assert "no such thing" in line
    assert [one for one in lines if one.startswith(f"  zones = {REGION}x: ")]


# --- backups ------------------------------------------------------------------------------------------------

POLICY = "aws:dlm/lifecyclePolicy:LifecyclePolicy"
BACKUP = "aws:efs/backupPolicy:BackupPolicy"
TAG = "aws:ec2/tag:Tag"


def test_every_data_volume_and_no_other_disk_has_a_daily_snapshot(each_mode: Recording) -> None:
    policy = each_mode.one(POLICY).inputs
    assert policy["state"] == "ENABLED"
    assert policy["executionRoleArn"] == each_mode.one("aws:iam/role:Role", "snapshots-role").outputs["arn"]
    details = policy["policyDetails"]
    assert details["resourceTypes"] == ["VOLUME"]
    (schedule,) = details["schedules"]
    assert schedule == {
        "name": "daily",
        "createRule": {"interval": 24, "intervalUnit": "HOURS", "times": "03:00"},
        "retainRule": {"interval": 14, "intervalUnit": "DAYS"},
        "copyTags": True,
    }
    ((key, value),) = details["targetTags"].items()
    for one in each_mode.resources:
        tags = one.inputs.get("tags") or {}
        assert not isinstance(tags, dict) or (tags.get(key) == value) == (one.type == VOLUME), one.name
    assert key not in str(each_mode.one(TEMPLATE).inputs["tagSpecifications"])
    # Volumes that stayed of an earlier stack of this name have another value.
    assert value == each_mode.one("aws:iam/role:Role", "snapshots-role").outputs["name"]


def test_the_shared_file_system_is_backed_up(each_mode: Recording) -> None:
    backup = each_mode.one(BACKUP)
    assert backup.inputs == {
        "fileSystemId": each_mode.one(EFS).id,
        "backupPolicy": {"status": "ENABLED"},
    }
    assert not backup.retain_on_delete


def test_snapshots_are_kept_as_long_as_is_asked_for_and_none_without_days(record: Record) -> None:
    (schedule,) = record(backupDays="3").one(POLICY).inputs["policyDetails"]["schedules"]
    assert schedule["retainRule"] == {"interval": 3, "intervalUnit": "DAYS"}
    none = record(backupDays="0")
    assert [one.name for type_ in (POLICY, BACKUP) for one in none.of_type(type_)] == []
    assert [one.name for one in none.resources if one.name.startswith("snapshots")] == []
    assert {*none.one(VOLUME, "storage-home").inputs["tags"]} == {
        "Name", "Project", "Stack", "ManagedBy", facts.KEPT_TAG,
    }  # fmt: skip


def test_what_was_taken_over_is_backed_up_too_and_its_own_backups_outlive_the_stack(record: Record) -> None:
    recording = record(homeVolumeId=VOLUME_ID, fileSystemId=FILE_SYSTEM)
    ((key, value),) = recording.one(POLICY).inputs["policyDetails"]["targetTags"].items()
    assert recording.one(TAG).inputs == {"resourceId": VOLUME_ID, "key": key, "value": value}
    backup = recording.one(BACKUP)
    assert backup.inputs["fileSystemId"] == FILE_SYSTEM
    assert backup.retain_on_delete  # deleting it would turn them off
    assert record(homeVolumeId=VOLUME_ID, backupDays="0").of_type(TAG) == []
