"""The tags that every AWS resource of a stack carries."""

from __future__ import annotations

import re
from typing import Final

from components import facts

OTHERS_IN_METADATA: Final = "+-=.,_:@"
COST_TAG: Final = "Stack"
"""By which AWS's bill tells what the resources of a stack cost, once it is activated as a cost allocation tag."""
ACTIVATE_COST_TAG: Final = (
    f"aws ce update-cost-allocation-tags-status --cost-allocation-tags-status TagKey={COST_TAG},Status=Active"
)
"""The command that does so, a day after AWS has first seen the tag."""


def cluster_name(stack: str) -> str:
    """The cluster's name: in front of its resources' names, and its dimension in CloudWatch."""
    return f"{facts.PROJECT}-{stack}"


def dashboard_name(stack: str) -> str:
    """Of the cluster's dashboard; CloudWatch takes no dots, of which a stack's name may have some."""
    return cluster_name(stack).replace(".", "-")


def tags(stack: str, name: str) -> dict[str, str]:
    """The tags of the resource called `name` in `stack`.

    Passed explicitly to everything, since a provider's default tags reach neither the instances and disks of
    a launch template nor those of an Auto Scaling group.
    """
    return {"Name": f"{cluster_name(stack)}-{name}", **of_stack(stack), "ManagedBy": "pulumi"}


def of_stack(stack: str) -> dict[str, str]:
    """The tags by which the resources of `stack` are found."""
    return {"Project": facts.PROJECT, COST_TAG: stack}


def shown_in_metadata(key: str) -> bool:
    """Whether a tag of an instance whose metadata show its tags may have this key; EC2 launches no other.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html
    """
    allowed = re.fullmatch(rf"[a-zA-Z0-9{re.escape(OTHERS_IN_METADATA)}]{{1,255}}", key)
    return bool(allowed) and key not in (".", "..", "_index")
