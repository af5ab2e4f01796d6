"""What of the cluster that exists no setting can change: its network, the zones of its disks, their key, and that they
do not shrink.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pulumi_aws as aws

from components import adoption, facts, tags
from components.asking import asked
from components.settings import Problem, Settings
from components.storage import volume_name

_REMEDY = (
    "it cannot change once the cluster exists: restore the old value, or create another stack, which can adopt "
    "the data"
)

_NAMESAKES = (
    "another cluster in this account and region has this stack name, by which metrics, scaling, alarms and cost tags "
    "are told apart. Destroy one of the two with its own state and create it again under another name; it can adopt "
    "the data. Their networks"
)


def problems(settings: Settings, zones: Sequence[str], key: str | None, stack: str) -> list[Problem]:
    """The settings that would move the cluster of `stack`, shrink its volumes, or encrypt it anew; none where there is
    no cluster yet.

    `key` is an ARN, "" for AWS's keys, None where that is not known. Without this, an update would begin to replace
    network and volumes, and fail half-way, or end with blank volumes. Nor is there a second cluster of that name: the
    first `up` of one cannot know, since what it finds may be its own, but each further one of either says so.
    """
    found = []
    clusters = []
    for vpc_id in adoption.networks(stack):
        # Others may have subnets of theirs in it, in any zone: a transit gateway's, for one.
        inside = asked(
            f"the subnets of {vpc_id}",
            aws.ec2.get_subnets,
            filters=[aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[vpc_id])],
            tags=tags.of_stack(stack),
        )
        if not inside.ids:  # left of an interrupted `up` or `destroy`: there is no cluster in it
            continue
        clusters.append(vpc_id)
        vpc = asked(f"the VPC {vpc_id}", aws.ec2.get_vpc, id=vpc_id)
        present, wanted = vpc.cidr_block, str(settings.vpc_cidr)
        if present != wanted:
            found.append(Problem("vpcCidr", wanted, f"it is {present}; {_REMEDY}"))
        its_key = vpc.tags.get(facts.KEY_TAG, "")
        if key is not None and its_key != key:
            shown = its_key or "empty, for AWS's keys"
            found.append(Problem("kmsKeyId", key, f"it is {shown}; {_REMEDY}"))
        subnets = [asked(f"the subnet {one}", aws.ec2.get_subnet, id=one) for one in inside.ids]
        # The master and its disks are in the zone of their subnet, the first one of the setting.
        masters = {one.availability_zone for one in subnets if one.tags.get("Name") == master_subnet(stack)}
        others = {one.availability_zone for one in subnets} - masters
        if masters - {zones[0]} or others - set(zones):
            present = ", ".join([*sorted(masters), *sorted(others)])
            found.append(Problem("zones", list(zones), f"it is {present}; {_REMEDY}"))
    if clusters:
        found += _shrunk(settings, stack)
    if len(clusters) > 1:
        found.append(Problem("stack", stack, f"{_NAMESAKES}: {', '.join(sorted(clusters))}"))
    return found


def _shrunk(settings: Settings, stack: str) -> Iterator[Problem]:
    """The volumes that exist and are larger than the settings ask for.

    Those that a machine of the stack has: former ones of a stack of this name may stay in the account, with the same
    tags. Where a setting names a volume or a snapshot, the size is not this one's, or it may be another volume's.
    """
    for mount, size in settings.volume_gb.items():
        if settings.volume_sources[mount]:
            continue
        name = volume_name(mount)
        present = asked(
            f"the volume of {mount}", aws.ebs.get_ebs_volumes, tags=tags.tags(stack, f"storage-{name}")
        ).ids
        for volume_id in present:
            if not adoption.machines_with(volume_id, tags.of_stack(stack)):
                continue
            has = adoption.describe_volume(volume_id).size
            if has > size:
                remedy = f"the volume has {has} GiB and EBS cannot shrink it: write {has} or more"
                yield Problem(f"{name}VolumeGb", size, remedy)


def master_subnet(stack: str) -> str:
    """What the subnet of the master is called."""
    return tags.tags(stack, "network-master")["Name"]
