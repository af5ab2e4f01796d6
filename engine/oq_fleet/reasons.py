"""Why the group of workers starts no instance: AWS's words, and what to do about them.

The texts are those of the group's scaling activities and of EC2's errors:
https://docs.aws.amazon.com/autoscaling/ec2/userguide/ts-as-instancelaunchfailure.html
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

SHOWN_CHARACTERS = 400
"""Of AWS's words: a refusal for want of a right ends in an encoded text of thousands."""

_RAISE = "Ask for more in the Service Quotas console (EC2, {}), or lower workerMax"
# The first whose pattern is found counts.
_KNOWN = (
    (
        r"not eligible for Free Tier",
        "the account is on AWS's free plan, which has no such instance types",
        "Upgrade the plan in the Billing console, then run pulumi up",
    ),
    (
        r"MaxSpotInstanceCountExceeded|Max spot instance count",
        "the account's quota of spot capacity is used up",
        _RAISE.format('"All Standard Spot Instance Requests"'),
    ),
    (
        r"VcpuLimitExceeded|InstanceLimitExceeded|vCPU (capacity|limit)|instance limit",
        "the account's quota of vCPUs is used up",
        _RAISE.format('"Running On-Demand Standard instances"'),
    ),
    (
        r"Client\.InternalError",
        "AWS could not use the key of the workers' root disks",
        'Run the output workerKeyGrantCommand (eval "$(pulumi stack output workerKeyGrantCommand)"), or where the '
        "image or the account has a key of its own, give AWSServiceRoleForAutoScaling a grant on that one",
    ),
    (
        r"(?i:spot)|UnfulfillableCapacity",
        "AWS has no spot capacity of these instance types now; the Auto Scaling group keeps retrying by itself",
        "Allow more types (workerInstanceTypes) or workers on demand (workerOnDemandBase, or workerSpot false), "
        "and run pulumi up",
    ),
    (
        r"InsufficientInstanceCapacity|sufficient .*capacity",
        "AWS has no capacity of these instance types now; the Auto Scaling group keeps retrying by itself",
        "Allow more types (workerInstanceTypes), and run pulumi up",
    ),
    (
        r"InsufficientFreeAddresses",
        "the workers' subnets have no free address",
        "Lower workerMax: the size of the network (vpcCidr) is fixed",
    ),
)
# What differs between two failures for the same reason: ids, zones, numbers.
_DETAILS = re.compile(r"\b[a-z]+-[0-9a-f]{8,}\b|\b[a-z]{2}(-[a-z]+)+-\d[a-z]?\b|\d+")


@dataclass(frozen=True)
class Reason:
    """Why an instance was not launched.

    Attributes:
        kind: equal for failures that have the same reason.
        text: the reason, what to do about it, and AWS's own words.
    """

    kind: str
    text: str


def suspension(group: str, process: str) -> Reason:
    """That a group does nothing of a kind any more, suspended by somebody, or by AWS after a day of failures.

    https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-suspend-resume-processes.html
    """
    what = f"the Auto Scaling group's process {process} is suspended"
    return Reason(
        what,
        f"{what}, as AWS does after a day in which all launches have failed. Fix the cause that the earlier lines or "
        f"`aws autoscaling describe-scaling-activities --auto-scaling-group-name {group}` name, then: aws autoscaling "
        f"resume-processes --auto-scaling-group-name {group} --scaling-processes {process}",
    )


def reason(message: str) -> Reason:
    """The reason in a failed activity's StatusMessage."""
    words = textwrap.shorten(message, SHOWN_CHARACTERS, placeholder=" …")
    for pattern, what, remedy in _KNOWN:
        if re.search(pattern, message):
            return Reason(what, f"{what}. {remedy}. AWS says: {words}")
    return Reason(_DETAILS.sub("", words), f"AWS says: {words}")
