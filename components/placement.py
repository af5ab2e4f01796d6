"""Where the cluster that exists is, which no setting can change: AWS releases neither a network nor a disk's zone."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

import pulumi_aws as aws

from components import tags
from components.settings import Problem

_REMEDY = (
    "a cluster that exists stays where it is: set it back, or make another stack, which can adopt the data"
)


def problems(vpc_cidr: IPv4Network, zones: Sequence[str], stack: str) -> list[Problem]:
    """The settings that would move the cluster of `stack`; none where there is no cluster yet.

    Without this, an update would begin to replace network and volumes, and fail half-way.
    """
    found = []
    for vpc_id in aws.ec2.get_vpcs(tags=tags.of_stack(stack)).ids:
        present = aws.ec2.get_vpc(id=vpc_id).cidr_block
        if present != str(vpc_cidr):
            found.append(Problem("vpcCidr", str(vpc_cidr), f"it is {present}; {_REMEDY}"))
        inside = aws.ec2.get_subnets(filters=[aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[vpc_id])])
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
