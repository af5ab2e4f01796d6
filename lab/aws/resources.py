"""What is known of each resource type that the program uses, once for the recorder, the provider and the lab.

The arguments that a change cannot alter in place are those that the provider's documentation marks "Forces new
resource": the schemas of https://github.com/hashicorp/terraform-provider-aws (`ForceNew`, `RequiresReplace`), which
pulumi-aws bridges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

REGION: Final = "eu-central-1"
ACCOUNT: Final = "123456789012"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Resource:
    """A resource that is being made: what it is made from, and names of its own.

    Attributes:
        name: in the program
        hex: 64 hexadecimal digits of this resource alone, from which made-up parts of ids and outputs are
            taken
    """

    type: str
    name: str
    inputs: Values
    hex: str

    @property
    def physical_name(self) -> str:
        """The name that Pulumi gives a resource that asks for none: its own, and seven hexadecimal digits."""
        return f"{self.name}-{self.hex[:7]}"


def resource(type_: str, name: str, inputs: Values, salt: str = "") -> Resource:
    """A resource whose made-up parts depend on its type, its name and `salt` alone."""
    return Resource(type_, name, inputs, hashlib.sha256(f"{type_}::{name}{salt}".encode()).hexdigest())


def _named(resource: Resource) -> str:
    return resource.physical_name


@dataclass(frozen=True)
class ResourceType:
    """A type of resource, with arguments as words in one text.

    Attributes:
        acts_on: the arguments that make a difference in the lab
        ignores: those that make none on one machine
        forces_new: those whose change forces a new resource
        demands: the values that the lab has in any case, so that a program which says otherwise must not pass
        counts_up: the outputs that each change counts up by one
        id_of: what its id is
        outputs: the outputs that are not inputs, from the resource and its id
    """

    acts_on: str = ""
    ignores: str = ""
    forces_new: str = ""
    counts_up: str = ""
    demands: Values = field(default_factory=dict)
    id_of: Callable[[Resource], str] = _named
    outputs: Callable[[Resource, str], dict[str, Any]] = lambda _resource, _id: {}

    @property
    def arguments(self) -> frozenset[str]:
        """All arguments that are known; `tags` are always."""
        return frozenset({*self.acts_on.split(), *self.ignores.split(), "tags"})

    def forces(self, inputs: Values) -> frozenset[str]:
        """The arguments whose change forces a new resource, of one that is to become `inputs`."""
        forced = set(self.forces_new.split())
        if inputs.get("userDataReplaceOnChange"):
            forced |= {"userDataBase64"}
        return frozenset(forced)


def arn(service: str, name: str, *, region: str = REGION) -> str:
    """An ARN of the lab's account."""
    return f"arn:aws:{service}:{region}:{ACCOUNT}:{name}"


def _prefixed(prefix: str) -> Callable[[Resource], str]:
    """Ids such as vpc-0123456789abcdef0."""
    return lambda resource: f"{prefix}-0{resource.hex[:16]}"


def _arn_of(service: str, kind: str) -> Callable[[Resource, str], dict[str, Any]]:
    return lambda _resource, id_: {"arn": arn(service, f"{kind}/{id_}")}


def _network_interface(resource: Resource, id_: str) -> dict[str, Any]:
    address = resource.inputs["privateIps"][0]
    return {
        **_arn_of("ec2", "network-interface")(resource, id_),
        "privateIp": address,
        "privateDnsName": f"ip-{address.replace('.', '-')}.{REGION}.compute.internal",
        "macAddress": "02:" + ":".join(resource.hex[at : at + 2] for at in range(0, 10, 2)),
    }


def _scaling_policy(resource: Resource, id_: str) -> dict[str, Any]:
    group = resource.inputs["autoscalingGroupName"]
    return {
        "name": id_,
        "arn": arn("autoscaling", f"scalingPolicy:{id_}:autoScalingGroupName/{group}:policyName/{id_}"),
    }


def _bucket(_resource: Resource, id_: str) -> dict[str, Any]:
    return {
        "bucket": id_,
        "arn": f"arn:aws:s3:::{id_}",
        "bucketRegionalDomainName": f"{id_}.s3.{REGION}.amazonaws.com",
    }


def _bucket_of(resource: Resource) -> str:
    """Ids of what belongs to a bucket: the bucket's."""
    return str(resource.inputs["bucket"])


_RULE: Final = ResourceType(
    acts_on=("securityGroupId ipProtocol fromPort toPort cidrIpv4 referencedSecurityGroupId prefixListId"),
    ignores="description",
    forces_new="securityGroupId",
    id_of=_prefixed("sgr"),
    outputs=lambda _resource, id_: {
        "securityGroupRuleId": id_,
        "arn": arn("ec2", f"security-group-rule/{id_}"),
    },
)

TYPES: Final[Mapping[str, ResourceType]] = {
    "aws:ec2/vpc:Vpc": ResourceType(
        acts_on="cidrBlock",
        ignores="enableDnsSupport enableDnsHostnames",
        demands={"enableDnsSupport": True, "enableDnsHostnames": True},
        forces_new="cidrBlock",
        id_of=_prefixed("vpc"),
        outputs=_arn_of("ec2", "vpc"),
    ),
    "aws:ec2/subnet:Subnet": ResourceType(
        acts_on="cidrBlock availabilityZone",
        ignores="vpcId mapPublicIpOnLaunch",
        demands={"mapPublicIpOnLaunch": False},
        forces_new="vpcId cidrBlock availabilityZone",
        id_of=_prefixed("subnet"),
        outputs=_arn_of("ec2", "subnet"),
    ),
    "aws:ec2/routeTable:RouteTable": ResourceType(
        ignores="vpcId", forces_new="vpcId", id_of=_prefixed("rtb")
    ),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": ResourceType(
        acts_on="subnetId routeTableId", forces_new="subnetId", id_of=_prefixed("rtbassoc")
    ),
    "aws:ec2/route:Route": ResourceType(
        acts_on="routeTableId natGatewayId",
        ignores="destinationCidrBlock gatewayId",
        demands={"destinationCidrBlock": "0.0.0.0/0"},
        forces_new="routeTableId destinationCidrBlock",
    ),
    "aws:ec2/internetGateway:InternetGateway": ResourceType(ignores="vpcId", id_of=_prefixed("igw")),
    "aws:ec2/eip:Eip": ResourceType(
        ignores="domain",
        forces_new="domain",
        id_of=_prefixed("eipalloc"),
        outputs=lambda _resource, id_: {"allocationId": id_, "publicIp": "198.51.100.7"},
    ),
    "aws:ec2/natGateway:NatGateway": ResourceType(
        ignores="subnetId allocationId", forces_new="subnetId allocationId", id_of=_prefixed("nat")
    ),
    "aws:ec2/vpcEndpoint:VpcEndpoint": ResourceType(
        acts_on=(
            "serviceName vpcEndpointType privateDnsEnabled subnetIds subnetConfigurations securityGroupIds "
            "routeTableIds policy"
        ),
        ignores="vpcId",
        forces_new="vpcId serviceName vpcEndpointType",
        id_of=_prefixed("vpce"),
        outputs=lambda resource, _id: (
            {"prefixListId": "pl-6ea54007"} if resource.inputs["vpcEndpointType"] == "Gateway" else {}
        ),
    ),
    "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": ResourceType(
        ignores="vpcId ingress egress",
        demands={"ingress": [], "egress": []},
        forces_new="vpcId",
        id_of=_prefixed("sg"),
    ),
    "aws:ec2/securityGroup:SecurityGroup": ResourceType(
        ignores="vpcId description",
        forces_new="vpcId description",
        id_of=_prefixed("sg"),
        outputs=lambda resource, id_: {
            **_arn_of("ec2", "security-group")(resource, id_),
            "name": resource.physical_name,
        },
    ),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _RULE,
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": _RULE,
    "aws:ec2/networkInterface:NetworkInterface": ResourceType(
        acts_on="subnetId privateIps securityGroups",
        ignores="description",
        forces_new="subnetId",
        id_of=_prefixed("eni"),
        outputs=_network_interface,
    ),
    "aws:ec2/instance:Instance": ResourceType(
        acts_on="ami instanceType primaryNetworkInterface iamInstanceProfile userDataBase64 metadataOptions",
        ignores="rootBlockDevice userDataReplaceOnChange monitoring ebsOptimized",
        # A change of the type stops and starts the machine. Of rootBlockDevice only the device name and the encryption
        # force a new one, and the program changes neither alone; what it is encrypted with stays, by `placement.py`.
        forces_new="ami primaryNetworkInterface ebsOptimized",
        id_of=_prefixed("i"),
        outputs=_arn_of("ec2", "instance"),
    ),
    "aws:ec2/launchTemplate:LaunchTemplate": ResourceType(
        acts_on="imageId networkInterfaces iamInstanceProfile userData metadataOptions tagSpecifications",
        ignores="blockDeviceMappings updateDefaultVersion",
        counts_up="latestVersion defaultVersion",
        id_of=_prefixed("lt"),
        outputs=lambda resource, id_: {
            **_arn_of("ec2", "launch-template")(resource, id_),
            "name": resource.physical_name,
            "latestVersion": 1,
            "defaultVersion": 1,
        },
    ),
    "aws:autoscaling/group:Group": ResourceType(
        acts_on="vpcZoneIdentifiers desiredCapacity minSize maxSize mixedInstancesPolicy instanceRefresh",
        ignores=(
            "capacityRebalance suspendedProcesses healthCheckType waitForCapacityTimeout enabledMetrics "
            "metricsGranularity"
        ),
        outputs=lambda _resource, id_: {
            "name": id_,
            "arn": arn("autoscaling", f"autoScalingGroup:{id_}:autoScalingGroupName/{id_}"),
        },
    ),
    "aws:autoscaling/lifecycleHook:LifecycleHook": ResourceType(
        acts_on="name autoscalingGroupName heartbeatTimeout",
        ignores="lifecycleTransition defaultResult",
        demands={"lifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING"},
        forces_new="name",
    ),
    "aws:autoscaling/policy:Policy": ResourceType(
        acts_on="autoscalingGroupName adjustmentType stepAdjustments estimatedInstanceWarmup",
        ignores="policyType metricAggregationType",
        demands={"policyType": "StepScaling", "metricAggregationType": "Maximum"},
        forces_new="autoscalingGroupName policyType",
        outputs=_scaling_policy,
    ),
    "aws:cloudwatch/metricAlarm:MetricAlarm": ResourceType(
        acts_on=(
            "namespace metricName dimensions comparisonOperator threshold period evaluationPeriods "
            "datapointsToAlarm alarmActions treatMissingData alarmDescription metricQueries statistic"
        ),
        outputs=lambda _resource, id_: {"name": id_, "arn": arn("cloudwatch", f"alarm:{id_}")},
    ),
    "aws:cloudwatch/dashboard:Dashboard": ResourceType(
        ignores="dashboardName dashboardBody",
        forces_new="dashboardName",
        id_of=lambda resource: str(resource.inputs["dashboardName"]),
    ),
    # The lab writes mails down and encrypts none. A change of what a subscription is makes another one.
    "aws:sns/topic:Topic": ResourceType(
        ignores="displayName kmsMasterKeyId",
        id_of=lambda resource: arn("sns", resource.physical_name),
        outputs=lambda _resource, id_: {"arn": id_},
    ),
    "aws:sns/topicPolicy:TopicPolicy": ResourceType(
        ignores="arn policy", forces_new="arn", id_of=lambda resource: str(resource.inputs["arn"])
    ),
    "aws:sns/topicSubscription:TopicSubscription": ResourceType(
        acts_on="topic endpoint",
        ignores="protocol",
        demands={"protocol": "email"},
        forces_new="topic endpoint protocol",
        id_of=lambda resource: f"{resource.inputs['topic']}:{resource.hex[:8]}",
        outputs=lambda _resource, id_: {"arn": id_},
    ),
    "aws:kms/key:Key": ResourceType(
        ignores="description enableKeyRotation deletionWindowInDays policy",
        id_of=lambda resource: resource.hex[:32],
        outputs=_arn_of("kms", "key"),
    ),
    "aws:ebs/volume:Volume": ResourceType(
        acts_on="size availabilityZone finalSnapshot snapshotId",
        ignores="type encrypted kmsKeyId",
        forces_new="availabilityZone encrypted kmsKeyId snapshotId",
        id_of=_prefixed("vol"),
        outputs=_arn_of("ec2", "volume"),
    ),
    # The lab makes no backups; it ends with all of its data.
    "aws:ec2/tag:Tag": ResourceType(
        ignores="resourceId key value",
        forces_new="resourceId key",
        id_of=lambda resource: f"{resource.inputs['resourceId']},{resource.inputs['key']}",
    ),
    # AWS tells people of it by itself.
    "aws:budgets/budget:Budget": ResourceType(
        ignores="budgetType limitAmount limitUnit timeUnit costFilters costTypes notifications",
        outputs=lambda _resource, id_: {"name": id_},
    ),
    "aws:dlm/lifecyclePolicy:LifecyclePolicy": ResourceType(
        ignores="description executionRoleArn state policyDetails", id_of=_prefixed("policy")
    ),
    "aws:efs/backupPolicy:BackupPolicy": ResourceType(
        ignores="fileSystemId backupPolicy",
        forces_new="fileSystemId",
        id_of=lambda resource: str(resource.inputs["fileSystemId"]),
    ),
    "aws:ec2/volumeAttachment:VolumeAttachment": ResourceType(
        acts_on="instanceId volumeId",
        ignores="deviceName stopInstanceBeforeDetaching",
        forces_new="deviceName instanceId volumeId",
        # The same attachment has the same id, so that one that was made without Pulumi's knowing is found again.
        # https://github.com/hashicorp/terraform-provider-aws/blob/main/internal/service/ec2/ebs_volume_attachment.go
        id_of=lambda resource: "-".join(
            ["vai", *(str(resource.inputs[key]) for key in ("deviceName", "volumeId", "instanceId"))]
        ),
    ),
    "aws:efs/fileSystem:FileSystem": ResourceType(
        ignores="encrypted kmsKeyId throughputMode lifecyclePolicies",
        forces_new="encrypted kmsKeyId",
        id_of=_prefixed("fs"),
        outputs=lambda _resource, id_: {
            "arn": arn("elasticfilesystem", f"file-system/{id_}"),
            "dnsName": f"{id_}.efs.{REGION}.amazonaws.com",
        },
    ),
    "aws:efs/mountTarget:MountTarget": ResourceType(
        acts_on="ipAddress securityGroups",
        ignores="fileSystemId subnetId",
        forces_new="fileSystemId subnetId ipAddress",
        id_of=_prefixed("fsmt"),
    ),
    "aws:secretsmanager/secret:Secret": ResourceType(
        ignores="description recoveryWindowInDays kmsKeyId",
        # AWS puts six more characters behind a secret's name.
        id_of=lambda resource: arn("secretsmanager", f"secret:{resource.physical_name}-{resource.hex[7:13]}"),
        outputs=lambda resource, id_: {"arn": id_, "name": resource.physical_name},
    ),
    "aws:s3/bucket:Bucket": ResourceType(ignores="forceDestroy", outputs=_bucket),
    "aws:s3/bucketObjectv2:BucketObjectv2": ResourceType(
        acts_on="bucket key contentBase64", ignores="contentType", forces_new="bucket key", id_of=_bucket_of
    ),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": ResourceType(
        ignores="bucket blockPublicAcls blockPublicPolicy ignorePublicAcls restrictPublicBuckets",
        forces_new="bucket",
        id_of=_bucket_of,
    ),
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": ResourceType(
        ignores="bucket rule", forces_new="bucket", id_of=_bucket_of
    ),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": ResourceType(
        ignores="bucket rules", forces_new="bucket", id_of=_bucket_of
    ),
    "aws:s3/bucketPolicy:BucketPolicy": ResourceType(
        acts_on="bucket policy", forces_new="bucket", id_of=_bucket_of
    ),
    "aws:s3/bucketVersioning:BucketVersioning": ResourceType(
        ignores="bucket versioningConfiguration", forces_new="bucket", id_of=_bucket_of
    ),
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": ResourceType(
        ignores="bucket rules", forces_new="bucket", id_of=_bucket_of
    ),
    "aws:iam/role:Role": ResourceType(
        ignores="assumeRolePolicy",
        outputs=lambda _resource, id_: {"name": id_, "arn": arn("iam", f"role/{id_}", region="")},
    ),
    "aws:iam/rolePolicy:RolePolicy": ResourceType(acts_on="role policy", forces_new="role"),
    "aws:iam/instanceProfile:InstanceProfile": ResourceType(
        acts_on="role",
        outputs=lambda _resource, id_: {"name": id_, "arn": arn("iam", f"instance-profile/{id_}", region="")},
    ),
    # Pulumi's own: it keeps the image's id from one update to the next, and a lab is made once.
    "pulumi:index:Stash": ResourceType(
        ignores="input",
        id_of=lambda resource: resource.hex[:32],
        outputs=lambda resource, _id: {"output": resource.inputs["input"]},
    ),
    # It waits for the master through SSM; the lab waits for all nodes itself, as many minutes.
    "command:local:Command": ResourceType(
        acts_on="interpreter",
        ignores="create dir environment triggers",
        forces_new="triggers",
        outputs=lambda _resource, _id: {"stdout": "ready", "stderr": ""},
    ),
}


def unknown(type_: str, name: str, inputs: Values) -> Iterator[str]:
    """What of a resource is not known: its type, or arguments; a line for each."""
    if type_ not in TYPES:
        yield f"{type_} {name}"
        return
    for argument in sorted(set(inputs) - TYPES[type_].arguments):
        yield f"{type_} {name}: {argument}"


def not_buildable(type_: str, name: str, inputs: Values) -> Iterator[str]:
    """What of a resource the lab cannot build, whether it is known or not; a line for each."""
    yield from unknown(type_, name, inputs)
    known = TYPES.get(type_, ResourceType())
    for argument, value in known.demands.items():
        if inputs.get(argument) != value:
            yield f"{type_} {name}: {argument} must be {value}, not {inputs.get(argument)}"
