"""The tags that every AWS resource of a stack carries."""

from __future__ import annotations

from components import facts


def cluster_name(stack: str) -> str:
    """The cluster's name: in front of its resources' names, and its dimension in CloudWatch."""
    return f"{facts.PROJECT}-{stack}"


def tags(stack: str, name: str) -> dict[str, str]:
    """The tags of the resource called `name` in `stack`.

    Passed explicitly to everything, since a provider's default tags reach neither the instances and disks of
    a launch template nor those of an autoscaling group.
    """
    return {
        "Name": f"{cluster_name(stack)}-{name}",
        "Project": facts.PROJECT,
        "Stack": stack,
        "ManagedBy": "pulumi",
    }
