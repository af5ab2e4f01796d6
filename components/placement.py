"""What of the cluster that exists no setting can change: its network, the zones of its disks, and their key."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

import pulumi_aws as aws

from components import facts, tags
from components.settings import Problem

_REMEDY = "a cluster that exists stays as it is: set it back, or make another stack, which can adopt the data"


def problems(vpc_cidr: IPv4Network, zones: Sequence[str], key: str | None, stack: str) -> list[Problem]:
    """The settings that would move the cluster of `stack`, or encrypt it anew; none where there is no cluster yet.

    `key` is an ARN, "" for AWS's keys, None where that is not known. Without this, an update would begin to replace
    network and volumes, and fail half-way, or end with blank volumes.
    """
    found = []
    for vpc_id in aws.ec2.get_vpcs(tags=tags.of_stack(stack)).ids:
        vpc = aws.ec2.get_vpc(id=vpc_id)
        present = vpc.cidr_block
        if present != str(vpc_cidr):
            found.append(Problem("vpcCidr", str(vpc_cidr), f"it is {present}; {_REMEDY}"))
        its_key = vpc.tags.get(facts.KEY_TAG, "")
        if key is not None and its_key != key:
            shown = its_key or "empty, for AWS's keys"
            found.append(Problem("kmsKeyId", key, f"it is {shown}; {_REMEDY}"))
        # Others may have subnets of theirs in it, in any zone: a transit gateway's, for one.
        inside = aws.ec2.get_subnets(
            filters=[aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[vpc_id])], tags=tags.of_stack(stack)
        )
        subnets = [aws.ec2.get_subnet(id=subnet_id) for subnet_id in inside.ids]
        # The master and its disks are in the zone of their subnet, the first one of the setting.
        masters = {one.availability_zone for one in subnets if one.tags.get("Name") == master_subnet(stack)}
        others = {one.availability_zone for one in subnets} - masters
        if masters - {zones[0]} or others - set(zones):
            present = ", ".join([*sorted(masters), *sorted(others)])
            found.append(Problem("zones", list(zones), f"it is {present}; {_REMEDY}"))
    return found


def master_subnet(stack: str) -> str:
    """What the subnet of the master is called."""
    return tags.tags(stack, "network-master")["Name"]
