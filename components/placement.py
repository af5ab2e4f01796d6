"""What of the cluster that exists no setting can change: its network, the zones of its disks, their key, and that they
do not shrink.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pulumi
import pulumi_aws as aws

from components import adoption, facts, tags
from components.asking import asked
from components.settings import Problem, Settings
from components.storage import volume_name

_REMEDY = (
    "it cannot change once the cluster exists: restore the old value, or create another stack, which can adopt "
    "the data"
)

_NAMESAKE = (
    "another cluster in this account and region has this stack name, by which metrics, scaling, alarms and cost tags "
    "are told apart. If nothing of this one is made yet: pulumi stack rename NAME. Else destroy one of the two with "
    "its own state and create it again under another name; it can adopt the data. (If it is this one, and its state "
    "is lost: docs/trouble.md.)"
)


def problems(settings: Settings, zones: Sequence[str], key: str | None, stack: str) -> list[Problem]:
    """The settings that would move the cluster of `stack`, shrink its volumes, or encrypt it anew; none where there is
    no cluster yet.

    `key` is an ARN, "" for AWS's keys, None where that is not known. Without this, an update would begin to replace
    network and volumes, and fail half-way, or end with blank volumes. Nor is there a second cluster of that name,
    whose settings would be taken for this one's.
    """
    clusters = {vpc_id: ids for vpc_id in adoption.networks(stack) if (ids := _subnets(vpc_id, stack))}
    if other := _of_another_state(sorted(clusters)):
        return [Problem("stack", stack, f"{_NAMESAKE} {other}")]
    found = []
    for vpc_id, subnet_ids in clusters.items():
        vpc = asked(f"the VPC {vpc_id}", aws.ec2.get_vpc, id=vpc_id)
        present, wanted = vpc.cidr_block, str(settings.vpc_cidr)
        if present != wanted:
            found.append(Problem("vpcCidr", wanted, f"it is {present}; {_REMEDY}"))
        its_key = vpc.tags.get(facts.KEY_TAG, "")
        if key is not None and its_key != key:
            shown = its_key or "empty, for AWS's keys"
            found.append(Problem("kmsKeyId", key, f"it is {shown}; {_REMEDY}"))
        subnets = [asked(f"the subnet {one}", aws.ec2.get_subnet, id=one) for one in subnet_ids]
        # The master and its disks are in the zone of their subnet, the first one of the setting.
        masters = {one.availability_zone for one in subnets if one.tags.get("Name") == master_subnet(stack)}
        others = {one.availability_zone for one in subnets} - masters
        if masters - {zones[0]} or others - set(zones):
            present = ", ".join([*sorted(masters), *sorted(others)])
            found.append(Problem("zones", list(zones), f"it is {present}; {_REMEDY}"))
    if clusters:
        found += _shrunk(settings, stack)
    return found


def _subnets(vpc_id: str, stack: str) -> Sequence[str]:
    """The stack's subnets in a network: none if it is left of an interrupted `up` or `destroy`, and no cluster is in
    it. Others may have subnets of theirs there, in any zone: a transit gateway's, for one.
    """
    answer = asked(
        f"the subnets of {vpc_id}",
        aws.ec2.get_subnets,
        filters=[aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[vpc_id])],
        tags=tags.of_stack(stack),
    )
    return answer.ids


def _of_another_state(vpc_ids: Sequence[str]) -> str:
    """Which of the networks of the stack's name are not in the stack's own state, for people; "" if there is none."""
    if not vpc_ids:
        return ""
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    try:
        # What this very stack had before this update; also after an `up` that was killed, unlike its outputs.
        answer = pulumi.runtime.invoke("pulumi:pulumi:readStackResourceOutputs", {"stackName": name}).value
    except Exception:  # a kind of state that cannot tell: then two networks tell, of which one is not ours
        return "" if len(vpc_ids) == 1 else f"One of these networks is its: {', '.join(vpc_ids)}"
    own = {
        one["outputs"]["arn"].rpartition("/")[2]
        for one in answer["outputs"].values()
        if one["type"] == "aws:ec2/vpc:Vpc"
    }
    others = [one for one in vpc_ids if one not in own]
    return f"Its network: {', '.join(others)}" if others else ""


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
