"""What outlives the machines: the master's three data volumes and the shared file system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import pulumi
import pulumi_aws as aws

from components import facts
from components.component import Component

# The provider counts the final snapshot to the deletion, for which it has ten minutes; then `pulumi destroy` fails, and
# each further one makes another snapshot. A snapshot copies all that has changed since the one before, the first one
# everything, which "can take several hours".
# https://github.com/hashicorp/terraform-provider-aws/blob/main/internal/service/ec2/ebs_volume.go
# https://docs.aws.amazon.com/ebs/latest/userguide/ebs-creating-snapshot.html
_FINAL_SNAPSHOT: Final = pulumi.CustomTimeouts(delete="12h")


@dataclass(frozen=True)
class StorageArgs:
    """What the storage is made from.

    `volume_gb` gives the size in GiB of the volume for each mount point in facts.VOLUME_MOUNTS, `volume_sources` the
    existing volume (vol-…) that is taken or the snapshot (snap-…) that it is made from, "" for neither; "" as
    `file_system_id` makes one. `key` is the ARN of the customer's key for what is made, "" for AWS's own. `volume_tags`
    are the volumes' further tags; `back_up` is for the file system. `nfs_addresses` and `worker_subnet_ids` are keyed
    by availability zone.
    """

    master_zone: str
    volume_gb: Mapping[str, int]
    volume_sources: Mapping[str, str]
    volume_tags: Mapping[str, pulumi.Input[str]]
    file_system_id: str
    key: str
    back_up: bool
    nfs_addresses: Mapping[str, IPv4Address]
    worker_subnet_ids: Mapping[str, pulumi.Input[str]]
    nfs_group_id: pulumi.Input[str]
    keep: bool


class Storage(Component):
    """Encrypted EBS volumes for the master, and an encrypted EFS with a mount target in every zone.

    With `keep`, `pulumi destroy` leaves volumes and EFS in the account. Pulumi's retain_on_delete also leaves
    the old one behind where a change replaces it (another zone): nothing is lost, and the user removes it by
    hand. Without `keep` the volumes are deleted, each after a final snapshot.

    What exists and is taken over is not managed: it is attached or mounted, and otherwise only gets `volume_tags` and
    backups; neither an update nor `pulumi destroy` deletes it.

    NFS is not encrypted on the wire here: TLS needs EFS's own mount helper, which is not in Debian. The
    traffic stays inside the VPC, where AWS lets nobody listen, and the NFS group lets in only the nodes.
    """

    volume_ids: Mapping[str, pulumi.Output[str]]
    file_system_id: pulumi.Output[str]

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        self.volume_ids = {mount: self._volume_id(mount, args) for mount in facts.VOLUME_MOUNTS}
        self.file_system_id = self._file_system_id(args)
        if args.back_up:
            aws.efs.BackupPolicy(
                self.named("shared"),
                file_system_id=self.file_system_id,
                backup_policy=aws.efs.BackupPolicyBackupPolicyArgs(status="ENABLED"),
                # Deleting it turns the backups off; whoever owns the file system may have wanted them before.
                opts=self.child(retain_on_delete=bool(args.file_system_id)),
            )
        for zone, address in args.nfs_addresses.items():
            aws.efs.MountTarget(
                self.named(f"shared-{zone}"),
                file_system_id=self.file_system_id,
                subnet_id=args.worker_subnet_ids[zone],
                ip_address=str(address),
                security_groups=[args.nfs_group_id],
                # A zone has room for one mount target, and a file system for mount targets in one VPC.
                opts=self.child(delete_before_replace=True),
            )
        self.register_outputs({"volumeIds": dict(self.volume_ids), "fileSystemId": self.file_system_id})

    def _file_system_id(self, args: StorageArgs) -> pulumi.Output[str]:
        if args.file_system_id:
            return pulumi.Output.from_input(args.file_system_id)
        return aws.efs.FileSystem(
            self.named("shared"),
            encrypted=True,
            kms_key_id=args.key or None,
            throughput_mode="elastic",
            # Finished calculations move to cheaper storage, and back when somebody reads them.
            lifecycle_policies=[
                aws.efs.FileSystemLifecyclePolicyArgs(transition_to_ia="AFTER_30_DAYS"),
                aws.efs.FileSystemLifecyclePolicyArgs(transition_to_primary_storage_class="AFTER_1_ACCESS"),
            ],
            tags={**self.tags("shared"), **_kept(args)},
            opts=self.child(retain_on_delete=args.keep),
        ).id

    def _volume_id(self, mount: str, args: StorageArgs) -> pulumi.Output[str]:
        child, source = volume_name(mount), args.volume_sources[mount]
        if source.startswith("vol-"):
            for key, value in args.volume_tags.items():
                aws.ec2.Tag(
                    self.named(f"{child}-{key}"), resource_id=source, key=key, value=value, opts=self.child()
                )
            return pulumi.Output.from_input(source)
        return aws.ebs.Volume(
            self.named(child),
            availability_zone=args.master_zone,
            size=args.volume_gb[mount],
            type="gp3",
            encrypted=True,
            kms_key_id=args.key or None,
            snapshot_id=source or None,
            final_snapshot=True,
            tags={**self.tags(child), **_kept(args), **args.volume_tags},
            opts=self.child(
                retain_on_delete=args.keep,
                custom_timeouts=_FINAL_SNAPSHOT,
                # A volume that was made from a snapshot stays when the setting is removed, and AWS may remove the
                # snapshot.
                ignore_changes=[] if source else ["snapshot_id"],
            ),
        ).id


def _kept(args: StorageArgs) -> dict[str, str]:
    """The tag by which the next update knows what Pulumi would delete."""
    return {facts.KEPT_TAG: "true" if args.keep else "false"}


def take_data_back(
    region: str,
    zones: Sequence[str],
    volume_ids: Mapping[str, pulumi.Input[str]],
    file_system_id: pulumi.Input[str],
) -> pulumi.Output[str]:
    """The commands by which another stack takes over the data of this one, after `pulumi destroy` has left them."""
    return pulumi.Output.all(
        *(f"--path 'zones[{number}]' {zone}" for number, zone in enumerate(zones)),
        *(pulumi.Output.concat(volume_name(mount), "VolumeId ", id_) for mount, id_ in volume_ids.items()),
        pulumi.Output.concat("fileSystemId ", file_system_id),
    ).apply(
        lambda settings: "\n".join(
            f"pulumi config set {setting}" for setting in (f"aws:region {region}", *settings)
        )
    )


def enlarge_volume(volume_id: str) -> str:
    """The command that enlarges a volume that was taken over, which no setting does."""
    return f"aws ec2 modify-volume --volume-id {volume_id} --size GB"


def volume_name(mount: str) -> str:
    """What a volume is called after its mount point: `home`, `var`, `rabbitmq`."""
    return mount.rsplit("/", 1)[-1]
