"""Existing volumes, snapshots and file systems that the settings name, checked before anything is made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pulumi_aws as aws

from components import facts, tags
from components.asking import Unanswered, asked
from components.settings import KEYS, LEAST_VOLUME_GB, Problem, Settings
from components.storage import enlarge_volume, volume_name

# Of a machine that still has its disks.
_STATES: Final = ("pending", "running", "shutting-down", "stopping", "stopped")


def problems(settings: Settings, zone: str, stack: str) -> list[Problem]:
    """What is wrong with the existing data that the settings name, for a master in `zone`."""
    found = []
    for mount, source in settings.volume_sources.items():
        if source.startswith("vol-"):
            remedies = _of_volume(source, mount, zone, stack, settings.keep_data_on_destroy)
            found += [Problem(f"{volume_name(mount)}VolumeId", source, remedy) for remedy in remedies]
        elif source:
            found += _of_snapshot(mount, source, settings.volume_gb[mount])
    if settings.file_system_id:
        remedies = _of_file_system(settings.file_system_id, stack, settings.keep_data_on_destroy)
        found += [Problem("fileSystemId", settings.file_system_id, remedy) for remedy in remedies]
    if settings.keep_data_on_destroy:
        found += _not_kept_yet(settings, stack)
    return found


def unmet(settings: Settings) -> Iterator[str]:
    """The sizes that are asked for and that volumes which are taken over have not, since nothing here grows those.

    A default asks for nothing.
    """
    for mount, source in settings.volume_sources.items():
        key = f"{volume_name(mount)}VolumeGb"
        size = settings.volume_gb[mount]
        if (
            source.startswith("vol-")
            and size != KEYS[key].default
            and size > (has := describe_volume(source).size)
        ):
            yield (
                f"{key} = {size} does nothing: {source}, which has {has} GiB, is taken over and not managed. To "
                f"enlarge it: {enlarge_volume(source)}; the file system follows in two minutes"
            )


def _not_kept_yet(settings: Settings, stack: str) -> Iterator[Problem]:
    """The settings that would replace data of the stack which are to be kept, and which Pulumi would delete.

    What it does with what the program has no more was decided by the update before, and so is not what
    keepDataOnDestroy says now. Data of a version that gave them no such tag are not seen here.
    """
    not_kept = {facts.KEPT_TAG: "false"}
    for mount, source in settings.volume_sources.items():
        if not source:
            continue
        name = volume_name(mount)
        present = asked(
            f"the volume of {mount}",
            aws.ebs.get_ebs_volumes,
            tags={**tags.tags(stack, f"storage-{name}"), **not_kept},
        ).ids
        for volume_id in present:
            if not machines_with(volume_id, tags.of_stack(stack)):
                continue  # left of an earlier stack of this name
            # The setting by which it was made is there yet: it stays.
            if describe_volume(volume_id).snapshot_id != source:
                yield Problem(f"{name}VolumeId", source, _keep_first(volume_id))
    if not settings.file_system_id:
        return
    for file_system_id in _mounted(networks(stack)):
        found = asked("the file system", aws.efs.get_file_system, file_system_id=file_system_id).tags
        if {**tags.of_stack(stack), **not_kept}.items() <= found.items():
            yield Problem("fileSystemId", settings.file_system_id, _keep_first(file_system_id))


def _keep_first(id_: str) -> str:
    """The remedy where the present data would be deleted, against keepDataOnDestroy."""
    return (
        f"{id_} would be deleted, since Pulumi goes by the keepDataOnDestroy of the update before: pulumi up once "
        "without this setting, which keeps it, then with it. (If it is not this stack's, but taken over: give it the "
        f"tag {facts.KEPT_TAG} = true)"
    )


def _mounted(vpcs: Sequence[str]) -> Sequence[str]:
    """The file systems that have mount targets in these networks."""
    if not vpcs:
        return []
    interfaces = [
        asked("a mount target", aws.ec2.get_network_interface, id=one)
        for one in sorted(_mount_targets("fs-", {"vpc-id": vpcs}))
    ]
    return sorted({id_ for one in interfaces for id_ in re.findall(r"\bfs-[0-9a-f]+", one.description)})


def _of_volume(volume_id: str, mount: str, zone: str, stack: str, keep: bool) -> list[str]:
    """What has to be done before the volume can be the master's at a mount point."""
    least_gb = LEAST_VOLUME_GB[mount]
    try:
        volume = describe_volume(volume_id)
    except Unanswered as error:
        return [f"name a volume that exists in this region: {error.why}"]
    remedies = _of_another_mount(volume.tags, mount)
    if volume.availability_zone != zone:
        remedies.append(
            f"it is in {volume.availability_zone} and the master in {zone}: choose other zones, or make a snapshot of "
            "it and name that"
        )
    if not volume.encrypted:
        remedies.append(
            "it is not encrypted: make a snapshot of it and name that; the new volume is encrypted"
        )
    if volume.size < least_gb:
        remedies.append(f"it has {volume.size} GiB and has to have {least_gb}: enlarge it")
    ours = machines_with(volume_id, tags.of_stack(stack))
    if machines_with(volume_id, {}) - ours:
        remedies.append("it is attached to another machine: detach it there")
    if ours and not keep and _is_of_stack(volume.tags, stack):
        remedies.append(_own("volume"))
    return remedies


def _of_another_mount(found: Mapping[str, str] | None, mount: str) -> list[str]:
    """What has to be done about tags of this project's volume of another mount point, which snapshots have, too."""
    name = (found or {}).get("Name", "")
    return [
        f"it is the volume of {other}, {name}: name that of {mount}"
        for other in LEAST_VOLUME_GB
        if other != mount and name.endswith(f"-storage-{volume_name(other)}")
    ]


def describe_volume(volume_id: str) -> aws.ebs.GetVolumeResult:
    """What AWS says of a volume; Unanswered if there is none."""
    return asked(
        f"the volume {volume_id}",
        aws.ebs.get_volume,
        filters=[aws.ebs.GetVolumeFilterArgs(name="volume-id", values=[volume_id])],
    )


def machines_with(volume_id: str, instance_tags: Mapping[str, str]) -> set[str]:
    """The machines with these tags to which a volume is attached."""
    answer = asked(
        f"the machines with the volume {volume_id}",
        aws.ec2.get_instances,
        filters=[aws.ec2.GetInstancesFilterArgs(name="block-device-mapping.volume-id", values=[volume_id])],
        instance_state_names=list(_STATES),
        instance_tags=dict(instance_tags),
    )
    return set(answer.ids)


def _of_snapshot(mount: str, snapshot_id: str, volume_gb: int) -> list[Problem]:
    """What has to be done before a volume of the size that is asked for can be made from the snapshot."""
    key = f"{volume_name(mount)}VolumeId"
    try:
        snapshot = asked("the snapshot", aws.ebs.get_snapshot, snapshot_ids=[snapshot_id])
    except Unanswered as error:
        remedy = f"name a snapshot that exists in this region, or remove it if the volume has been made: {error.why}"
        return [Problem(key, snapshot_id, remedy)]
    found = [Problem(key, snapshot_id, remedy) for remedy in _of_another_mount(snapshot.tags, mount)]
    if snapshot.state != "completed":
        found.append(Problem(key, snapshot_id, f"wait until it is completed; it is {snapshot.state}"))
    if snapshot.storage_tier == "archive":
        found.append(Problem(key, snapshot_id, "restore it from the archive first"))
    if snapshot.volume_size > volume_gb:
        remedy = f"ask for {snapshot.volume_size} or more, which {snapshot_id} has"
        found.append(Problem(f"{volume_name(mount)}VolumeGb", volume_gb, remedy))
    return found


def _of_file_system(file_system_id: str, stack: str, keep: bool) -> list[str]:
    """What has to be done before the file system can be the cluster's."""
    try:
        file_system = asked("the file system", aws.efs.get_file_system, file_system_id=file_system_id)
    except Unanswered as error:
        return [f"name a file system that exists in this region: {error.why}"]
    remedies = []
    if not file_system.encrypted:
        remedies.append("it is not encrypted, which cannot change: copy its files to one that is")
    if file_system.availability_zone_name:
        remedies.append(
            f"it is in {file_system.availability_zone_name} only: copy its files to a regional one"
        )
    if file_system.throughput_mode == "bursting":
        remedies.append(
            "its throughput is bursting, so that it crawls when its credits are used up: aws efs update-file-system "
            f"--file-system-id {file_system_id} --throughput-mode elastic"
        )
    vpcs = networks(stack)
    ours = _mount_targets(file_system_id, {"vpc-id": vpcs}) if vpcs else set()
    if _mount_targets(file_system_id, {}) - ours:
        remedies.append("it has mount targets in another VPC, and can have them in one only: delete those")
    if ours and not keep and _is_of_stack(file_system.tags, stack):
        remedies.append(_own("file system"))
    return remedies


def networks(stack: str) -> Sequence[str]:
    """The ids of the stack's VPCs: one, or none where there is no cluster yet."""
    return asked("the stack's VPC", aws.ec2.get_vpcs, tags=tags.of_stack(stack)).ids


def _mount_targets(file_system_id: str, filters: Mapping[str, Sequence[str]]) -> set[str]:
    """The network interfaces of the file system's mount targets that are so; of all file systems' with "fs-".

    The provider lists no mount targets; but EFS makes their interfaces, and names the file system in the description.
    """
    wanted = {"requester-managed": ["true"], "description": [f"*{file_system_id}*"], **filters}
    answer = asked(
        f"the mount targets of {file_system_id}",
        aws.ec2.get_network_interfaces,
        filters=[
            aws.ec2.GetNetworkInterfacesFilterArgs(name=name, values=list(values))
            for name, values in wanted.items()
        ],
    )
    return set(answer.ids)


def _is_of_stack(found: Mapping[str, str], stack: str) -> bool:
    return tags.of_stack(stack).items() <= found.items()


def _own(what: str) -> str:
    """The remedy where the stack might still manage what is to be adopted: it would be deleted for that."""
    return (
        f"it may be the {what} that this stack manages, which would be deleted: set keepDataOnDestroy to true and "
        "pulumi up, before you name it"
    )
