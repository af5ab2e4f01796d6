"""The IAM role of a kind of node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from components.component import Component


@dataclass(frozen=True)
class NodeRoleArgs:
    """The IAM statements that the role allows."""

    statements: Sequence[dict[str, Any]]


def trust(service: str) -> str:
    """The policy by which a service of AWS (`ec2.amazonaws.com`) may take on a role."""
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


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
            policy=pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(args.statements)}),
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
