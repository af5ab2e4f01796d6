"""From a recording of the Pulumi program to what the lab builds.

Nothing of the cluster is known here but AWS's own terms. What the program registers and the lab does not
know, a resource type or an argument, is refused by name: a lab that ignores something proves nothing about
it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from lab.aws import iam, resources
from lab.aws.cloud import (
    S3,
    Alarm,
    Endpoint,
    Group,
    Hook,
    Instance,
    Interface,
    Plan,
    Policy,
    Rule,
    S3Object,
    Secret,
    Statement,
    Step,
    Subnet,
    Template,
    Volume,
)
from lab.aws.recording import Recorded, Recording
from lab.base import LabError

GROUP_TAG = "aws:autoscaling:groupName"
"""The tag that AWS itself gives to the instances of a group."""


def make_plan(recording: Recording, snapshots: Collection[str] = ()) -> Plan:
    """What the lab builds of a recording; LabError that lists everything in it that the lab does not know.

    Args:
        snapshots: the ids of those that exist
    """
    problems = _unknown(recording, snapshots)
    if problems:
        raise LabError("the lab does not know what the program registers:\n  " + "\n  ".join(problems))
    return _Reader(recording).plan()


def _unknown(recording: Recording, snapshots: Collection[str]) -> list[str]:
    """What of the recording the lab does not know or cannot build."""
    problems = [
        line
        for one in recording.resources
        if one.custom
        for line in resources.not_buildable(one.type, one.name, one.inputs)
    ]
    if (number := len(recording.of_type("aws:ec2/vpc:Vpc"))) != 1:
        problems.append(f"{number} resources of type aws:ec2/vpc:Vpc: the lab builds one")
    mounted = {one.inputs["fileSystemId"] for one in recording.of_type("aws:efs/mountTarget:MountTarget")}
    if len(mounted) > 1:
        problems.append(f"mount targets of {len(mounted)} file systems: the lab has those of one")
    made = {one.id for one in recording.resources}
    for type_, argument in (
        ("aws:ec2/volumeAttachment:VolumeAttachment", "volumeId"),
        ("aws:efs/mountTarget:MountTarget", "fileSystemId"),
    ):
        problems += [
            f"{type_} {one.name}: {argument} {one.inputs[argument]} exists already, and the lab has only what it makes"
            for one in recording.of_type(type_)
            if one.inputs[argument] not in made
        ]
    problems += [
        f"aws:ebs/volume:Volume {one.name}: there is no snapshot {one.inputs['snapshotId']}"
        for one in recording.of_type("aws:ebs/volume:Volume")
        if one.inputs.get("snapshotId", "") not in {"", *snapshots}
    ]
    return [*problems, *_public(recording)]


def _public(recording: Recording) -> Iterator[str]:
    """What would give a node a public address: the lab's nodes have none, whatever their security groups say.

    An elastic address alone is nobody's; what else than a NAT gateway could have it, the lab does not know.
    """
    for one in recording.of_type("aws:ec2/launchTemplate:LaunchTemplate"):
        for interface in one.inputs.get("networkInterfaces", []):
            # Without a word of the template's the subnet decides, whose `mapPublicIpOnLaunch` has to be False.
            if str(interface.get("associatePublicIpAddress", False)).lower() != "false":
                yield f"{one.type} {one.name}: associatePublicIpAddress: the lab gives no node a public address"


class _Reader:
    """Looks things up in one recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.vpc = IPv4Network(recording.one("aws:ec2/vpc:Vpc").inputs["cidrBlock"])
        self.subnets = self._subnets()

    def plan(self) -> Plan:
        gateways = self._endpoints("Gateway")
        return Plan(
            region=resources.REGION,
            account=resources.ACCOUNT,
            vpc=self.vpc,
            subnets=self.subnets,
            rules=self._rules(),
            prefix_lists={one.outputs["prefixListId"]: str(S3) for one in gateways},
            endpoints=[self._endpoint(one) for one in self._endpoints("Interface")],
            mount_targets=[
                Interface(IPv4Address(one.inputs["ipAddress"]), tuple(one.inputs["securityGroups"]))
                for one in self._of("aws:efs/mountTarget:MountTarget")
            ],
            file_system=next(
                (one.inputs["fileSystemId"] for one in self._of("aws:efs/mountTarget:MountTarget")), ""
            ),
            volumes={one.id: _volume(one) for one in self._of("aws:ebs/volume:Volume")},
            roles=self._roles(),
            secrets=[
                Secret(one.outputs["name"], one.outputs["arn"])
                for one in self._of("aws:secretsmanager/secret:Secret")
            ],
            objects=[
                S3Object(
                    one.inputs["bucket"], one.inputs["key"], base64.b64decode(one.inputs["contentBase64"])
                )
                for one in self._of("aws:s3/bucketObjectv2:BucketObjectv2")
            ],
            s3_policy=[statement for one in gateways for statement in _statements(one.inputs.get("policy"))],
            bucket_policies={
                one.inputs["bucket"]: _statements(one.inputs["policy"])
                for one in self._of("aws:s3/bucketPolicy:BucketPolicy")
            },
            instances=[self._instance(one) for one in self._of("aws:ec2/instance:Instance")],
            groups=[self._group(one) for one in self._of("aws:autoscaling/group:Group")],
            alarms=[alarm for alarm in self._alarms() if not self._scales(alarm)],
            subscribers=self._subscribers(),
            ready_seconds=sum(map(_ready_seconds, self._of("command:local:Command"))),
            exports=self.recording.exports,
        )

    def _of(self, type_: str) -> list[Recorded]:
        return self.recording.of_type(type_)

    def _endpoints(self, kind: str) -> list[Recorded]:
        found = [
            one
            for one in self._of("aws:ec2/vpcEndpoint:VpcEndpoint")
            if one.inputs["vpcEndpointType"] == kind
        ]
        for one in found:
            if kind == "Gateway" and not one.inputs["serviceName"].endswith(".s3"):
                raise LabError(f"{one.name}: the lab has no gateway endpoint to {one.inputs['serviceName']}")
        return found

    def _subnets(self) -> dict[str, Subnet]:
        table_of = {
            one.inputs["subnetId"]: one.inputs["routeTableId"]
            for one in self._of("aws:ec2/routeTableAssociation:RouteTableAssociation")
        }
        nat = {
            one.inputs["routeTableId"]
            for one in self._of("aws:ec2/route:Route")
            if "natGatewayId" in one.inputs
        }
        s3 = {table for one in self._endpoints("Gateway") for table in one.inputs["routeTableIds"]}
        return {
            one.id: Subnet(
                id=one.id,
                cidr=IPv4Network(one.inputs["cidrBlock"]),
                zone=one.inputs["availabilityZone"],
                nat=table_of.get(one.id) in nat,
                s3=table_of.get(one.id) in s3,
            )
            for one in self._of("aws:ec2/subnet:Subnet")
        }

    def _rules(self) -> list[Rule]:
        rules = []
        for direction in ("ingress", "egress"):
            capital = direction.capitalize()
            for one in self._of(f"aws:vpc/securityGroup{capital}Rule:SecurityGroup{capital}Rule"):
                peers = [
                    one.inputs[key]
                    for key in ("cidrIpv4", "referencedSecurityGroupId", "prefixListId")
                    if key in one.inputs
                ]
                first = one.inputs.get("fromPort")
                ports = None if first in (None, -1) else (first, one.inputs["toPort"])
                rules.append(
                    Rule(one.inputs["securityGroupId"], direction, one.inputs["ipProtocol"], ports, peers[0])
                )
        return rules

    def _endpoint(self, one: Recorded) -> Endpoint:
        if not one.inputs.get("privateDnsEnabled"):
            raise LabError(f"{one.name}: the lab knows interface endpoints with private DNS only")
        groups = tuple(one.inputs["securityGroupIds"])
        fixed = {entry["subnetId"]: entry["ipv4"] for entry in one.inputs.get("subnetConfigurations", [])}
        missing = [subnet for subnet in one.inputs["subnetIds"] if subnet not in fixed]
        if missing:
            raise LabError(
                f"{one.name}: the lab needs a fixed address of the endpoint in {', '.join(missing)}"
            )
        prefix, region, service = one.inputs["serviceName"].rsplit(".", 2)
        if (prefix, region) != ("com.amazonaws", resources.REGION):
            raise LabError(f"{one.name}: {one.inputs['serviceName']} is no service of {resources.REGION}")
        interfaces = tuple(
            Interface(IPv4Address(fixed[subnet]), groups) for subnet in one.inputs["subnetIds"]
        )
        policy = _statements(one.inputs.get("policy"))
        return Endpoint(f"{service}.{region}.amazonaws.com", interfaces, policy)

    def _roles(self) -> dict[str, list[Statement]]:
        roles: dict[str, list[Statement]] = {one.outputs["name"]: [] for one in self._of("aws:iam/role:Role")}
        for one in self._of("aws:iam/rolePolicy:RolePolicy"):
            roles[one.inputs["role"]] += _statements(one.inputs["policy"])
        return roles

    def _role_of(self, profile: str) -> str:
        """The role in an instance profile that is given by its name or its ARN."""
        for one in self._of("aws:iam/instanceProfile:InstanceProfile"):
            if profile in (one.outputs["name"], one.outputs["arn"]):
                return str(one.inputs["role"])
        raise LabError(f"no instance profile {profile} is registered")

    def _instance(self, one: Recorded) -> Instance:
        _require_imds_v2(one)
        interface = self.recording.by_id(one.inputs["primaryNetworkInterface"]["networkInterfaceId"])
        volumes = []
        for attachment in self._of("aws:ec2/volumeAttachment:VolumeAttachment"):
            if attachment.inputs["instanceId"] == one.id:
                volume = self.recording.by_id(attachment.inputs["volumeId"])
                zone = self.subnets[interface.inputs["subnetId"]].zone
                if volume.inputs["availabilityZone"] != zone:
                    raise LabError(f"{volume.name} is in another zone than {one.name}: AWS cannot attach it")
                volumes.append(_volume(volume))
        template = Template(
            image_id=one.inputs["ami"],
            instance_type=one.inputs["instanceType"],
            groups=tuple(interface.inputs["securityGroups"]),
            role=self._role_of(one.inputs["iamInstanceProfile"]),
            user_data=base64.b64decode(one.inputs["userDataBase64"]),
            metadata_tags=one.inputs["tags"] if _shows_tags(one) else {},
        )
        return Instance(
            name=one.name.rpartition("-")[0] or one.name,
            id=one.id,
            subnet=interface.inputs["subnetId"],
            address=IPv4Address(interface.inputs["privateIps"][0]),
            template=template,
            volumes=tuple(volumes),
        )

    def _group(self, one: Recorded) -> Group:
        policy = one.inputs["mixedInstancesPolicy"]["launchTemplate"]
        template = self.recording.by_id(policy["launchTemplateSpecification"]["launchTemplateId"])
        _require_imds_v2(template)
        (interface,) = template.inputs["networkInterfaces"]
        refresh = one.inputs["instanceRefresh"]["preferences"]
        distribution = one.inputs["mixedInstancesPolicy"]["instancesDistribution"]
        return Group(
            name=(one.name.rpartition("-")[0] or one.name).removesuffix("s"),
            template=Template(
                image_id=template.inputs["imageId"],
                instance_type=policy["overrides"][0]["instanceType"],
                groups=tuple(interface["securityGroups"]),
                role=self._role_of(template.inputs["iamInstanceProfile"]["arn"]),
                user_data=base64.b64decode(template.inputs["userData"]),
                metadata_tags=_metadata_tags(one, template),
            ),
            subnets=tuple(one.inputs["vpcZoneIdentifiers"]),
            desired=one.inputs["desiredCapacity"],
            maximum=one.inputs["maxSize"],
            minimum=one.inputs["minSize"],
            arn=one.outputs["arn"],
            # the argument whose change starts an instance refresh, with the template's version in it
            release=json.dumps(one.inputs["mixedInstancesPolicy"], sort_keys=True),
            healthy=refresh["minHealthyPercentage"],
            warmup=float(refresh["instanceWarmup"]),
            spot=distribution["onDemandPercentageAboveBaseCapacity"] < 100,
            tags={tag["key"]: tag["value"] for tag in one.inputs["tags"]},
            hook=self._hook(one),
            policies=tuple(self._policies(one)),
            alarms=tuple(filter(self._scales, self._alarms())),
        )

    def _hook(self, group: Recorded) -> Hook | None:
        hooks = [
            hook
            for hook in self._of("aws:autoscaling/lifecycleHook:LifecycleHook")
            if hook.inputs["autoscalingGroupName"] == group.outputs["name"]
        ]
        if len(hooks) > 1:
            raise LabError(f"{group.name}: the lab knows one lifecycle hook, not {len(hooks)}")
        return Hook(hooks[0].inputs["name"], hooks[0].inputs["heartbeatTimeout"]) if hooks else None

    def _policies(self, group: Recorded) -> Iterator[Policy]:
        for one in self._of("aws:autoscaling/policy:Policy"):
            if one.inputs["autoscalingGroupName"] != group.outputs["name"]:
                raise LabError(f"{one.name}: it scales no group that the lab knows")
            if one.inputs["adjustmentType"] not in ("ChangeInCapacity", "ExactCapacity"):
                raise LabError(f"{one.name}: the lab does not know {one.inputs['adjustmentType']}")
            yield Policy(
                arn=one.outputs["arn"],
                kind=one.inputs["adjustmentType"],
                steps=tuple(
                    Step(
                        _number(step.get("metricIntervalLowerBound")),
                        _number(step.get("metricIntervalUpperBound")),
                        step["scalingAdjustment"],
                    )
                    for step in one.inputs["stepAdjustments"]
                ),
                warmup=one.inputs.get("estimatedInstanceWarmup", 0),
            )

    def _scales(self, alarm: Alarm) -> bool:
        """Whether an alarm calls scaling policies."""
        policies = {one.outputs["arn"] for one in self._of("aws:autoscaling/policy:Policy")}
        return bool(policies & set(alarm.actions))

    def _subscribers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {one.outputs["arn"]: [] for one in self._of("aws:sns/topic:Topic")}
        for one in self._of("aws:sns/topicSubscription:TopicSubscription"):
            found[one.inputs["topic"]].append(one.inputs["endpoint"])
        return found

    def _alarms(self) -> Iterator[Alarm]:
        comparisons = {"GreaterThanOrEqualToThreshold": True, "LessThanOrEqualToThreshold": False}
        for one in self._of("aws:cloudwatch/metricAlarm:MetricAlarm"):
            given = one.inputs
            if "metricQueries" in given:
                _require_amazons(one)
                continue
            if given["statistic"] != "Maximum":
                raise LabError(f"{one.name}: the lab knows the largest value, not {given['statistic']}")
            if given["comparisonOperator"] not in comparisons:
                raise LabError(f"{one.name}: the lab does not know {given['comparisonOperator']}")
            if given["datapointsToAlarm"] != given["evaluationPeriods"]:
                raise LabError(f"{one.name}: the lab knows alarms that need all their periods to breach")
            if given["treatMissingData"] not in ("breaching", "notBreaching", "ignore"):
                raise LabError(f"{one.name}: the lab does not know {given['treatMissingData']} data")
            yield Alarm(
                name=one.outputs["name"],
                namespace=given["namespace"],
                metric=given["metricName"],
                dimensions=given["dimensions"],
                at_least=comparisons[given["comparisonOperator"]],
                threshold=given["threshold"],
                period=given["period"],
                periods=given["evaluationPeriods"],
                actions=tuple(given["alarmActions"]),
                missing=given["treatMissingData"],
                text=given["alarmDescription"],
            )


def _volume(one: Recorded) -> Volume:
    return Volume(one.id, one.inputs["size"], one.inputs.get("snapshotId", ""))


def _ready_seconds(one: Recorded) -> float:
    """How long the program's one command waits for the master."""
    command = one.inputs["interpreter"]
    if "components.wait_until_ready" not in command:
        raise LabError(f"{one.name}: the lab does not know the command {' '.join(command)}")
    return 60 * float(command[command.index("--minutes") + 1])


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _metadata_tags(group: Recorded, template: Recorded) -> dict[str, str]:
    """The tags that a group's instances find in their metadata, where the launch template says so."""
    if not _shows_tags(template):
        return {}
    tags: dict[str, str] = {}
    for specification in template.inputs.get("tagSpecifications", []):
        if specification["resourceType"] == "instance":
            tags.update(specification["tags"])
    tags.update({tag["key"]: tag["value"] for tag in group.inputs["tags"] if tag["propagateAtLaunch"]})
    return {**tags, GROUP_TAG: group.outputs["name"]}


def _shows_tags(one: Recorded) -> bool:
    return bool(one.inputs["metadataOptions"].get("instanceMetadataTags") == "enabled")


def _statements(policy: str | None) -> list[Statement]:
    """The statements of a policy document; without one, AWS's default for endpoints: everything."""
    if policy is None:
        return [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
    found: list[Statement] = json.loads(policy)["Statement"]
    if unknown := list(iam.unknown(found)):
        raise LabError(f"the lab does not know {', '.join(unknown)} in a policy")
    return found


def _require_amazons(one: Recorded) -> None:
    """Metric math is left out where it needs what AWS itself publishes, which nobody does here."""
    metrics = [query["metric"]["namespace"] for query in one.inputs["metricQueries"] if "metric" in query]
    if not any(namespace.startswith("AWS/") for namespace in metrics):
        raise LabError(f"{one.name}: the lab does not know metric math")


def _require_imds_v2(one: Recorded) -> None:
    if one.inputs.get("metadataOptions", {}).get("httpTokens") != "required":
        raise LabError(f"{one.name}: metadataOptions.httpTokens must be required: the lab has IMDSv2 only")
