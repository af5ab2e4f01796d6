"""The tags that every AWS resource of a stack carries."""

from __future__ import annotations

from components import facts


def tags(stack: str, name: str) -> dict[str, str]:
    """The tags of the resource called `name` in `stack`.

    Passed explicitly to everything, since a provider's default tags reach neither the instances and disks of
    a launch template nor those of an autoscaling group.
    """
    return {
        "Name": f"{facts.PROJECT}-{stack}-{name}",
        "Project": facts.PROJECT,
        "Stack": stack,
        "ManagedBy": "pulumi",
    }
