"""What outlives the machines: the master's three data volumes and the shared file system."""

from __future__ import annotations

from collections.abc import Mapping
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

    `volume_gb` gives the size in GiB of the volume for each mount point in facts.VOLUME_MOUNTS;
    `nfs_addresses` and `worker_subnet_ids` are keyed by availability zone.
    """

    master_zone: str
    volume_gb: Mapping[str, int]
    nfs_addresses: Mapping[str, IPv4Address]
    worker_subnet_ids: Mapping[str, pulumi.Input[str]]
    nfs_group_id: pulumi.Input[str]
    keep: bool


class Storage(Component):
    """Encrypted EBS volumes for the master, and an encrypted EFS with a mount target in every zone.

    With `keep`, `pulumi destroy` leaves volumes and EFS in the account. Pulumi's retain_on_delete also leaves
    the old one behind where a change replaces it (another zone): nothing is lost, and the user removes it by
    hand. Without `keep` the volumes are deleted, each after a final snapshot.

    NFS is not encrypted on the wire here: TLS needs EFS's own mount helper, which is not in Debian. The
    traffic stays inside the VPC, where AWS lets nobody listen, and the NFS group lets in only the nodes.
    """

    volume_ids: Mapping[str, pulumi.Output[str]]
    file_system_id: pulumi.Output[str]
    mount_targets: list[aws.efs.MountTarget]

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        self.volume_ids = {mount: self._volume(mount, args).id for mount in facts.VOLUME_MOUNTS}
        file_system = aws.efs.FileSystem(
            self.named("shared"),
            encrypted=True,
            throughput_mode="elastic",
            # Finished calculations move to cheaper storage, and back when somebody reads them.
            lifecycle_policies=[
                aws.efs.FileSystemLifecyclePolicyArgs(transition_to_ia="AFTER_30_DAYS"),
                aws.efs.FileSystemLifecyclePolicyArgs(transition_to_primary_storage_class="AFTER_1_ACCESS"),
            ],
            tags=self.tags("shared"),
            opts=self.child(retain_on_delete=args.keep),
        )
        self.file_system_id = file_system.id
        self.mount_targets = [
            aws.efs.MountTarget(
                self.named(f"shared-{zone}"),
                file_system_id=file_system.id,
                subnet_id=args.worker_subnet_ids[zone],
                ip_address=str(address),
                security_groups=[args.nfs_group_id],
                # A zone has room for one mount target, and a file system for mount targets in one VPC.
                opts=self.child(delete_before_replace=True),
            )
            for zone, address in args.nfs_addresses.items()
        ]
        self.register_outputs({"volumeIds": dict(self.volume_ids), "fileSystemId": self.file_system_id})

    def _volume(self, mount: str, args: StorageArgs) -> aws.ebs.Volume:
        child = volume_name(mount)
        return aws.ebs.Volume(
            self.named(child),
            availability_zone=args.master_zone,
            size=args.volume_gb[mount],
            type="gp3",
            encrypted=True,
            final_snapshot=True,
            tags=self.tags(child),
            opts=self.child(retain_on_delete=args.keep, custom_timeouts=_FINAL_SNAPSHOT),
        )


def volume_name(mount: str) -> str:
    """What a volume is called after its mount point: `home`, `var`, `rabbitmq`."""
    return mount.rsplit("/", 1)[-1]
