"""The policies of IAM, and the role of a kind of node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from components.component import Component


@dataclass(frozen=True)
class NodeRoleArgs:
    """The IAM statements that the role allows."""

    statements: Sequence[dict[str, Any]]


def document(*statements: Mapping[str, Any]) -> pulumi.Output[str]:
    """A policy of IAM with these statements, in which Outputs may stand."""
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_version.html
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def trust(service: str, account: pulumi.Input[str] | None = None) -> pulumi.Output[str]:
    """The policy by which a service of AWS (`ec2.amazonaws.com`) may take on a role; on behalf of `account` alone where
    the service says on whose it does.
    """
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    condition = {"Condition": {"StringEquals": {"aws:SourceAccount": account}}}
    return document({**statement, **(condition if account is not None else {})})


class NodeRole(Component):
    """A role that EC2 instances take on through an instance profile."""

    name: pulumi.Output[str]
    profile_name: pulumi.Output[str]
    profile_arn: pulumi.Output[str]
    policies: list[pulumi.Resource]

    def __init__(self, name: str, args: NodeRoleArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        role = aws.iam.Role(
            self.named("role"),
            assume_role_policy=trust("ec2.amazonaws.com"),
            tags=self.tags("role"),
            opts=self.child(),
        )
        rights = aws.iam.RolePolicy(
            self.named("rights"),
            role=role.name,
            policy=document(*args.statements),
            opts=self.child(),
        )
        profile = aws.iam.InstanceProfile(
            self.named("profile"), role=role.name, tags=self.tags("profile"), opts=self.child()
        )
        self.name = role.name
        self.profile_name, self.profile_arn = profile.name, profile.arn
        # A node calls AWS as soon as it boots: it must not start before its rights exist.
        self.policies = [rights]
        self.register_outputs({"roleName": role.name})
