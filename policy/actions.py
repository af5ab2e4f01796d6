"""What AWS says of the IAM actions that the program allows its roles.

From the Service Authorization Reference:
https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from policy.resources import actions, targets

# Those that know no resource, so that a statement can only say "*".
WITHOUT_RESOURCE: Final = frozenset(
    {
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "cloudwatch:PutMetricData",
        "ec2:DescribeAvailabilityZones",
        "ec2:DescribeInstances",
        "ec2:DescribeSnapshots",
        "ec2:DescribeVolumes",
        "ec2messages:AcknowledgeMessage",
        "ec2messages:DeleteMessage",
        "ec2messages:FailMessage",
        "ec2messages:GetEndpoint",
        "ec2messages:GetMessages",
        "ec2messages:SendReply",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    }
)
# Those that only read, of all that know resources. What is not in one of the two tables counts as writing.
READING: Final = frozenset({"s3:GetObject", "secretsmanager:GetSecretValue", "ssm:ListInstanceAssociations"})


def allowing(statements: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The statements that allow something."""
    return (statement for statement in statements if statement["Effect"] == "Allow")


def everywhere(statement: Mapping[str, Any]) -> bool:
    """Whether a statement is about all resources, or all but some."""
    return "*" in targets(statement) or "NotResource" in statement


def unrestricted(statements: list[Mapping[str, Any]]) -> list[str]:
    """The actions that are allowed on all resources, though they could be restricted.

    A condition restricts nothing here: whether it does depends on its key and operator, and no statement of the program
    with an action that knows resources has one in place of them.
    """
    return [
        action
        for statement in allowing(statements)
        if everywhere(statement)
        for action in actions(statement)
        if action not in WITHOUT_RESOURCE
    ]


def wildcards(statements: list[Mapping[str, Any]]) -> list[str]:
    """The allowed actions that have a wildcard in them, and statements that allow all actions but some."""
    return [
        action
        for statement in allowing(statements)
        for action in (["NotAction"] if "NotAction" in statement else actions(statement))
        if "*" in action or action == "NotAction"
    ]
