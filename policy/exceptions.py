"""The controls that fail, each with the reason: docs/security.md has the table.

tests/unit/test_policy.py lets no control fail without a row here, and no row stand here whose control holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from policy.resources import NAT_GATEWAY, Resource, Stack, matches
from policy.rules import Allows


@dataclass(frozen=True)
class Excepted:
    """Controls that fail for resources, whose labels are a pattern (Volume:*), and why they may.

    Where it names actions, it excuses a policy that allows `only` those, and nothing else that is wrong with it; where
    it names a type, it holds `beside` a resource of it in the stack alone.
    """

    controls: tuple[str, ...]
    resources: str
    reason: str
    only: frozenset[str] = frozenset()
    beside: str = ""

    def covers(self, control: str, resource: Resource, problem: str, stack: Stack) -> bool:
        """Whether it excuses a failure."""
        if control not in self.controls or not matches(resource.label, self.resources):
            return False
        if self.beside and not any(stack.of(self.beside)):
            return False
        return not self.only or (isinstance(problem, Allows) and problem.actions <= self.only)


EXCEPTIONS: Final = (
    Excepted(
        ("CKV_AWS_189",),
        "Volume:storage-*",
        "Fails without `kmsKeyId` only. They are encrypted with AWS's key for EBS then; a key of the customer's adds "
        "who may use it, and a way to lose all data with it.",
    ),
    Excepted(
        ("CKV_AWS_184",),
        "FileSystem:storage-shared",
        "Fails without `kmsKeyId` only; it is encrypted with AWS's key for EFS then.",
    ),
    Excepted(
        ("CKV_AWS_149",),
        "Secret:secrets-*",
        "Fails without `kmsKeyId` only; they are encrypted with AWS's key for Secrets Manager then.",
    ),
    Excepted(
        ("CKV2_AWS_57", "SecretsManager.1", "SecretsManager.4"),
        "Secret:secrets-*",
        "They rotate by a command, `oq-cluster rotate`, whenever you or a schedule of yours calls it. Secrets Manager "
        "rotates by a Lambda function that changes a value and is done. Here a calculation of days goes on with the "
        "password that it began with, and who still needs that the master alone can see, so a function would have to "
        "ask it all the same, with a way into the VPC and rights of its own.",
    ),
    Excepted(
        ("CKV_AWS_145",),
        "Bucket:engine-bucket",
        "Fails without `kmsKeyId` only; it is encrypted with S3's keys (AES-256) then. It holds published sources and "
        "a lock file, no secret.",
    ),
    Excepted(
        ("CKV_AWS_144",),
        "Bucket:engine-bucket",
        "The next `pulumi up` writes its one object anew, from the user's clone.",
    ),
    Excepted(
        ("CKV_AWS_18", "S3.9", "CKV2_AWS_62"),
        "Bucket:engine-bucket",
        "One role reads one object of it, at the master's first boot. A log of accesses needs a second bucket, events "
        "need somebody who listens.",
    ),
    Excepted(
        ("CKV2_AWS_9",),
        "Volume:storage-*",
        "Data Lifecycle Manager makes their daily snapshots (`backupDays`): a vault of AWS Backup would hold `pulumi "
        "destroy` up as long as there is a backup in it.",
    ),
    Excepted(
        ("CKV2_AWS_18",),
        "FileSystem:storage-shared",
        "Its own switch puts it into AWS Backup's plan for EFS, which Checkov does not see; EFS.2 and EFS.7 do.",
    ),
    Excepted(
        ("EFS.2", "EFS.7"),
        "FileSystem:storage-shared",
        "Fails with `backupDays: 0` only, which asks for no backups.",
    ),
    Excepted(
        ("AutoScaling.6",),
        "Group:workers-group",
        "Fails only where `workerInstanceTypes` names a single type; the defaults are four.",
    ),
    Excepted(
        ("CKV2_AWS_11", "EC2.6"),
        "Vpc:network-vpc",
        "Flow logs cost by the GB and are kept and read by whoever answers for the account, who turns them on for all "
        "of its networks. In this one, all that may flow is in the security groups.",
    ),
    Excepted(
        ("EC2.10",),
        "Vpc:network-vpc",
        "No node calls EC2's API: what a machine has to know of itself is in its metadata.",
    ),
    Excepted(
        ("EC2.55", "EC2.56", "EC2.58", "EC2.60"),
        "Vpc:network-vpc",
        "No node uses these services.",
    ),
    Excepted(
        ("EC2.57",),
        "Vpc:network-vpc",
        "There with `egress: endpoints` only. With a NAT gateway the master's agent goes through that, and workers "
        "have none.",
        beside=NAT_GATEWAY,
    ),
    Excepted(
        ("narrow-endpoints",),
        "VpcEndpoint:network-s3",
        "With a NAT gateway only: the master reaches the buckets of other regions through that anyway, so a narrower "
        "policy would stand in the way of its users' own data in this one. Workers have no route to it.",
        beside=NAT_GATEWAY,
    ),
    Excepted(
        ("SSM.1",),
        "LaunchTemplate:workers-template",
        "Nobody logs in to a worker, and nothing is installed on one: it is replaced. Its role may not register.",
    ),
    Excepted(
        ("CKV_AWS_290", "CKV_AWS_355", "least-rights"),
        "RolePolicy:master-rights",
        "Session Manager's agent reports its machine and asks what is to be done on it. These two actions know "
        "resources, but a role is made before its machine has an id.",
        only=frozenset({"ssm:ListInstanceAssociations", "ssm:UpdateInstanceInformation"}),
    ),
)
