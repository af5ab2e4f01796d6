"""Daily snapshots of the data volumes, by Amazon Data Lifecycle Manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from components import facts, keys
from components.component import Component
from components.roles import document, trust

_TIME: Final = "03:00"  # UTC; AWS begins within the hour after it


@dataclass(frozen=True)
class SnapshotsArgs:
    """For how many days a snapshot is kept; `key` is the ARN of the volumes' key, "" for AWS's own, `account` and
    `region` are those of the volumes.
    """

    days: int
    key: str
    account: pulumi.Input[str]
    region: str


class Snapshots(Component):
    """A policy that makes a snapshot a day of every volume that carries `volume_tags`, and removes it after some days.

    The tag's value is the name of the policy's role, which no other stack has: neither one of the same name before
    nor its volumes that stayed in the account. AWS removes no snapshot any more when the policy is gone.
    """

    volume_tags: Mapping[str, pulumi.Output[str]]

    def __init__(self, name: str, args: SnapshotsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        role = aws.iam.Role(
            self.named("role"),
            assume_role_policy=trust("dlm.amazonaws.com", args.account),
            tags=self.tags("role"),
            opts=self.child(),
        )
        # The part of AWS's AWSDataLifecycleManagerServiceRole that snapshots of volumes in one region need, each action
        # on the types of resource that it knows:
        # https://docs.aws.amazon.com/ebs/latest/userguide/managed-policies.html
        # https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
        made = f"arn:aws:ec2:{args.region}::snapshot/*"
        rights = aws.iam.RolePolicy(
            self.named("rights"),
            role=role.name,
            policy=document(
                {
                    "Effect": "Allow",
                    "Action": [
                        "ec2:DescribeAvailabilityZones",
                        "ec2:DescribeInstances",
                        "ec2:DescribeSnapshots",
                        "ec2:DescribeVolumes",
                    ],
                    "Resource": "*",
                },
                {
                    "Effect": "Allow",
                    "Action": ["ec2:CreateSnapshot"],
                    "Resource": [
                        pulumi.Output.concat(f"arn:aws:ec2:{args.region}:", args.account, ":volume/*"),
                        made,
                    ],
                },
                {"Effect": "Allow", "Action": ["ec2:CreateTags"], "Resource": made},
                {
                    "Effect": "Allow",
                    "Action": ["ec2:DeleteSnapshot"],
                    "Resource": made,
                    # The tag is copied from the volume.
                    "Condition": {"StringEquals": {f"ec2:ResourceTag/{facts.SNAPSHOTS_TAG}": role.name}},
                },
                *keys.snapshot_rights(args.key),
            ),
            opts=self.child(),
        )
        self.volume_tags = {facts.SNAPSHOTS_TAG: role.name}
        aws.dlm.LifecyclePolicy(
            self.named("daily"),
            description="Daily snapshots of the OpenQuake master volumes",
            execution_role_arn=role.arn,
            state="ENABLED",
            policy_details=aws.dlm.LifecyclePolicyPolicyDetailsArgs(
                resource_types=["VOLUME"],
                target_tags=self.volume_tags,
                schedules=[
                    aws.dlm.LifecyclePolicyPolicyDetailsScheduleArgs(
                        name="daily",
                        create_rule=aws.dlm.LifecyclePolicyPolicyDetailsScheduleCreateRuleArgs(
                            interval=24, interval_unit="HOURS", times=_TIME
                        ),
                        retain_rule=aws.dlm.LifecyclePolicyPolicyDetailsScheduleRetainRuleArgs(
                            interval=args.days, interval_unit="DAYS"
                        ),
                        copy_tags=True,  # the snapshot's Name tells whose it is
                    )
                ],
            ),
            tags=self.tags("daily"),
            opts=self.child(depends_on=[rights]),
        )
        self.register_outputs({"days": args.days})
