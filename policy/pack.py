"""All rules together, and what they find in a stack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from policy import checkov, design, foundational
from policy.exceptions import EXCEPTIONS
from policy.resources import Resource, Stack
from policy.rules import Rule

NO_CONTROLS: Final = frozenset(
    {
        "aws:autoscaling/lifecycleHook:LifecycleHook",
        "aws:autoscaling/policy:Policy",
        "aws:budgets/budget:Budget",
        "aws:cloudwatch/dashboard:Dashboard",
        "aws:ec2/internetGateway:InternetGateway",
        "aws:ec2/routeTable:RouteTable",
        "aws:ec2/routeTableAssociation:RouteTableAssociation",
        "aws:ec2/tag:Tag",
        "aws:s3/bucketObjectv2:BucketObjectv2",
        "aws:sns/topicSubscription:TopicSubscription",
    }
)
"""The types of which neither standard says anything. One that is new to the program belongs here or to a rule."""

RULES: Final[tuple[Rule, ...]] = (*design.RULES, *checkov.RULES, *foundational.RULES)


@dataclass(frozen=True)
class Finding:
    """A resource that breaks a rule."""

    rule: str
    resource: Resource
    problem: str


def findings(stack: Stack) -> Iterator[Finding]:
    """All that is broken, excepted or not."""
    for rule in RULES:
        for resource, problem in rule.problems(stack):
            yield Finding(rule.id, resource, problem)


def excepted(found: Finding, stack: Stack) -> bool:
    """Whether a finding in a stack may be, for a reason that is written down."""
    return any(row.covers(found.rule, found.resource, found.problem, stack) for row in EXCEPTIONS)
