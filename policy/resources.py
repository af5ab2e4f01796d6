"""What the rules look at: registered resources as plain values, whoever hands them over."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

UNKNOWN: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""Stands in a preview for what AWS has not made yet: Pulumi's own value for it."""

VPC: Final = "aws:ec2/vpc:Vpc"
SUBNET: Final = "aws:ec2/subnet:Subnet"
ROUTE: Final = "aws:ec2/route:Route"
EIP: Final = "aws:ec2/eip:Eip"
NAT_GATEWAY: Final = "aws:ec2/natGateway:NatGateway"
ENDPOINT: Final = "aws:ec2/vpcEndpoint:VpcEndpoint"
DEFAULT_GROUP: Final = "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup"
SECURITY_GROUP: Final = "aws:ec2/securityGroup:SecurityGroup"
INGRESS: Final = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
EGRESS: Final = "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"
INTERFACE: Final = "aws:ec2/networkInterface:NetworkInterface"
INSTANCE: Final = "aws:ec2/instance:Instance"
TEMPLATE: Final = "aws:ec2/launchTemplate:LaunchTemplate"
GROUP: Final = "aws:autoscaling/group:Group"
TOPIC: Final = "aws:sns/topic:Topic"
TOPIC_POLICY: Final = "aws:sns/topicPolicy:TopicPolicy"
KEY: Final = "aws:kms/key:Key"
ALARM: Final = "aws:cloudwatch/metricAlarm:MetricAlarm"
VOLUME: Final = "aws:ebs/volume:Volume"
ATTACHMENT: Final = "aws:ec2/volumeAttachment:VolumeAttachment"
SNAPSHOTS: Final = "aws:dlm/lifecyclePolicy:LifecyclePolicy"
FILE_SYSTEM: Final = "aws:efs/fileSystem:FileSystem"
FILE_BACKUP: Final = "aws:efs/backupPolicy:BackupPolicy"
MOUNT_TARGET: Final = "aws:efs/mountTarget:MountTarget"
SECRET: Final = "aws:secretsmanager/secret:Secret"  # noqa: S105
BUCKET: Final = "aws:s3/bucket:Bucket"
PUBLIC_BLOCK: Final = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
OWNERSHIP: Final = "aws:s3/bucketOwnershipControls:BucketOwnershipControls"
BUCKET_ENCRYPTION: Final = (
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
)
BUCKET_POLICY: Final = "aws:s3/bucketPolicy:BucketPolicy"
VERSIONING: Final = "aws:s3/bucketVersioning:BucketVersioning"
LIFECYCLE: Final = "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration"
ROLE: Final = "aws:iam/role:Role"
ROLE_POLICY: Final = "aws:iam/rolePolicy:RolePolicy"
PROFILE: Final = "aws:iam/instanceProfile:InstanceProfile"

# Not registered by the program; controls ask for them.
FLOW_LOG: Final = "aws:ec2/flowLog:FlowLog"
BUCKET_LOGGING: Final = "aws:s3/bucketLogging:BucketLogging"
BUCKET_REPLICATION: Final = "aws:s3/bucketReplicationConfig:BucketReplicationConfig"
BUCKET_NOTIFICATION: Final = "aws:s3/bucketNotification:BucketNotification"
ROTATION: Final = "aws:secretsmanager/secretRotation:SecretRotation"
BACKUP_SELECTION: Final = "aws:backup/selection:Selection"


@dataclass(frozen=True)
class Resource:
    """One registered resource.

    `refers` maps an argument to the URNs of the resources that its value comes from, which are known in a preview, too.
    `kept` is Pulumi's option retain_on_delete, None where nobody says (the engine does not tell a policy pack).
    """

    type: str
    name: str
    inputs: Mapping[str, Any]
    urn: str = ""
    refers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept: bool | None = None

    @property
    def label(self) -> str:
        """Its class and its name in the program: Volume:storage-home."""
        return f"{self.type.rpartition(':')[2]}:{self.name}"

    def values(self, path: str) -> list[Any]:
        """What stands at a path such as metadataOptions.httpTokens: one value, or one for each item of the lists
        on the way, in an empty list none. None stands for what is missing; "true" and "false" are truth values,
        as the provider takes them.
        """
        found: list[Any] = [self.inputs]
        for key in path.split("."):
            found = [
                item
                for value in found
                for item in _listed(
                    value.get(key) if isinstance(value, Mapping) else UNKNOWN if value == UNKNOWN else None
                )
            ]
        return [
            {"true": True, "false": False}.get(value, value) if _text(value) else value for value in found
        ]

    def statements(self, argument: str) -> list[Mapping[str, Any]]:
        """The statements of an IAM policy in an argument; none where there is no policy, or not yet."""
        policy = self.inputs.get(argument)
        if policy in (None, UNKNOWN):
            return []
        found = json.loads(policy)["Statement"]
        return found if isinstance(found, list) else [found]


@dataclass(frozen=True)
class Stack:
    """All resources of a stack, and whether its setting keepDataOnDestroy is on, None where nobody says."""

    resources: Sequence[Resource]
    keeps_data: bool | None = None

    def of(self, *types: str) -> Iterator[Resource]:
        """The resources of some types."""
        return (resource for resource in self.resources if resource.type in types)

    def users(self, resource: Resource, argument: str, *types: str) -> list[Resource]:
        """The resources of some types whose argument takes its value from a resource."""
        return [user for user in self.of(*types) if resource.urn in user.refers.get(argument, ())]

    def used(self, resource: Resource, argument: str, type_: str) -> list[Resource]:
        """The resources of a type from which a resource's argument takes its value."""
        urns = resource.refers.get(argument, frozenset())
        return [used for used in self.of(type_) if used.urn in urns]


def actions(statement: Mapping[str, Any]) -> list[str]:
    """The actions of an IAM statement."""
    return _texts(statement.get("Action", []))


def targets(statement: Mapping[str, Any]) -> list[str]:
    """The resources of an IAM statement."""
    return _texts(statement.get("Resource", []))


def matches(label: str, pattern: str) -> bool:
    """Whether a resource's label is one of a pattern's, such as Volume:*."""
    return fnmatch.fnmatchcase(label, pattern)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
