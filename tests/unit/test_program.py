"""What the program registers: the whole of it, as a real engine would be told, but with no AWS behind it.

That AWS accepts the arguments is not shown here; that the SDK knows them is.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws
import pytest

from components import facts
from components.capacity import steps_out
from components.prices import HOURS, estimate
from components.settings import Settings
from components.tags import shown_in_metadata
from lab.aws import user_data
from lab.aws.recorder import UNKNOWN, run_program
from lab.aws.recording import Recorded, Recording
from lab.aws.resources import ACCOUNT, REGION
from tests.unit.conftest import (
    AMI,
    ENDPOINTS,
    ENDPOINTS_DISKLESS,
    MODES,
    NAT,
    NAT_DISKLESS,
    SMALL,
    Record,
)

INSTANCE = "aws:ec2/instance:Instance"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
GROUP = "aws:autoscaling/group:Group"
VOLUME = "aws:ebs/volume:Volume"
ATTACHMENT = "aws:ec2/volumeAttachment:VolumeAttachment"
EFS = "aws:efs/fileSystem:FileSystem"
MOUNT_TARGET = "aws:efs/mountTarget:MountTarget"
SUBNET = "aws:ec2/subnet:Subnet"
ROUTE = "aws:ec2/route:Route"
ROUTE_TABLE = "aws:ec2/routeTable:RouteTable"
ASSOCIATION = "aws:ec2/routeTableAssociation:RouteTableAssociation"
ENDPOINT = "aws:ec2/vpcEndpoint:VpcEndpoint"
INTERFACE = "aws:ec2/networkInterface:NetworkInterface"
NAT_GATEWAY = "aws:ec2/natGateway:NatGateway"
EIP = "aws:ec2/eip:Eip"
ROLE_POLICY = "aws:iam/rolePolicy:RolePolicy"
SECRET = "aws:secretsmanager/secret:Secret"
COMMAND = "command:local:Command"
STASH = "pulumi:index:Stash"
HOOK = "aws:autoscaling/lifecycleHook:LifecycleHook"
SCALING_POLICY = "aws:autoscaling/policy:Policy"
ALARM = "aws:cloudwatch/metricAlarm:MetricAlarm"


def walk(value: Any) -> Iterator[Any]:
    """A value and everything inside it."""
    yield value
    if isinstance(value, dict):
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


SIZES = {
    "homeVolumeGb": "11",
    "varVolumeGb": "12",
    "rabbitmqVolumeGb": "13",
    "workerMin": "0",
    "workerDesired": "3",
    "workerMax": "5",
    "workerInstanceTypes": '["c7i.large", "c7i.2xlarge"]',
}


def worker_subnet_ids(recording: Recording) -> set[str]:
    return set(recording.one(GROUP).inputs["vpcZoneIdentifiers"])


def statements(policy: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return listed


# --- every resource -----------------------------------------------------------------------------------------


def test_every_component_has_our_type_names_its_children_after_itself_and_registers_its_outputs(
    each_mode: Recording,
) -> None:
    components = {one.urn: one for one in each_mode.resources if not one.custom}
    assert {one.type.split(":")[-1] for one in components.values()} >= {
        "Network", "Security", "Endpoints", "Storage", "Secrets", "BundleStore", "Master", "Workers",
    }  # fmt: skip
    for one in components.values():
        assert re.fullmatch(rf"{facts.PROJECT}:component:[A-Z]\w+", one.type)
        assert one.urn in each_mode.component_outputs
    for one in each_mode.resources:
        if one.custom:
            assert one.name.startswith(components[one.parent].name + "-")


def test_every_resource_that_can_carry_tags_says_its_name_project_and_stack(each_mode: Recording) -> None:
    tagged = 0
    for one in each_mode.resources:
        if one.custom and one.type.startswith("aws:") and _takes_tags(one.type):
            tags = one.inputs["tags"]
            if one.type == GROUP:
                assert all(tag["propagateAtLaunch"] for tag in tags)
                tags = {tag["key"]: tag["value"] for tag in tags}
            assert tags["Project"] == facts.PROJECT
            assert tags["Stack"] == "test"
            assert tags["Name"].startswith(f"{facts.PROJECT}-test-")
            tagged += 1
    assert tagged > 30


def _takes_tags(type_: str) -> bool:
    return "tags" in inspect.signature(_sdk_class(type_)._internal_init).parameters


def _sdk_class(type_: str) -> Any:
    _, module, name = type_.split(":")
    return getattr(getattr(pulumi_aws, module.split("/")[0]), name)


def test_the_launch_template_tags_machines_disks_and_network_interfaces(record: Record) -> None:
    specifications = record().one(TEMPLATE).inputs["tagSpecifications"]
    assert {one["resourceType"] for one in specifications} == {"instance", "volume", "network-interface"}
    assert all(one["tags"]["Project"] == facts.PROJECT for one in specifications)


def test_the_same_configuration_registers_the_same_resources_and_user_data_again(record: Record) -> None:
    # Were a password made up in the program, or a time stamp written, the second run would differ.
    assert run_program({}).resources == record().resources


@pytest.mark.parametrize("mode", [NAT, ENDPOINTS_DISKLESS])
def test_a_preview_registers_the_same_resources_with_what_is_not_known_yet_as_unknown(
    record: Record, mode: str
) -> None:
    preview, update = record(preview=True, **MODES[mode]), record(**MODES[mode])
    assert [one.urn for one in preview.resources] == [one.urn for one in update.resources]
    assert preview.one(INSTANCE).inputs["userDataBase64"] == UNKNOWN
    assert preview.one(TEMPLATE).inputs["userData"] == UNKNOWN
    assert preview.exports.keys() == update.exports.keys()
    assert preview.exports["shellCommand"] == UNKNOWN
    assert preview.exports["masterAddress"] == update.exports["masterAddress"]
    for one in preview.resources:  # an unknown in the middle of a text would be taken for a known text
        assert not [
            text for text in walk(one.inputs) if isinstance(text, str) and UNKNOWN in text and text != UNKNOWN
        ]


def test_the_program_uses_nothing_that_is_deprecated(each_mode: Recording) -> None:
    assert each_mode.warnings == []  # the SDK warns of resources, and of arguments inside arguments
    for one in each_mode.resources:
        if one.custom and one.type.startswith("aws:"):
            assert not _deprecated(_sdk_class(one.type)) & one.inputs.keys()


def test_the_check_for_deprecated_arguments_knows_one() -> None:
    assert "networkInterfaces" in _deprecated(pulumi_aws.ec2.Instance)


def _deprecated(resource: type) -> set[str]:
    """The deprecated properties of an SDK class, as a real engine would get them."""
    return {
        re.sub(r"_(\w)", lambda match: match[1].upper(), name)
        for name, member in vars(resource).items()
        if isinstance(member, property) and hasattr(member.fget, "_pulumi_deprecated_callable")
    }


# --- network ------------------------------------------------------------------------------------------------


def test_no_node_has_a_public_address(each_mode: Recording) -> None:
    assert not [one.name for one in each_mode.of_type(SUBNET) if one.inputs["mapPublicIpOnLaunch"]]
    (interface,) = each_mode.one(TEMPLATE).inputs["networkInterfaces"]
    assert interface["associatePublicIpAddress"] == "false"
    instance = each_mode.one(INSTANCE).inputs
    assert instance["primaryNetworkInterface"] == {"networkInterfaceId": each_mode.one(INTERFACE).id}
    assert "associatePublicIpAddress" not in instance
    # The only public address is the NAT gateway's, and nothing but the gateway stands in the public subnet.
    assert [one.id for one in each_mode.of_type(EIP)] == [
        one.inputs["allocationId"] for one in each_mode.of_type(NAT_GATEWAY)
    ]
    public = {one.inputs["subnetId"] for one in each_mode.of_type(NAT_GATEWAY)}
    assert each_mode.one(INTERFACE).inputs["subnetId"] not in public
    assert not worker_subnet_ids(each_mode) & public


def _routes(recording: Recording, subnet_id: str) -> list[Recorded]:
    (table,) = [
        one.inputs["routeTableId"]
        for one in recording.of_type(ASSOCIATION)
        if one.inputs["subnetId"] == subnet_id
    ]
    gateways = [one for one in recording.of_type(ENDPOINT) if table in one.inputs.get("routeTableIds", [])]
    return [one for one in recording.of_type(ROUTE) if one.inputs["routeTableId"] == table] + gateways


def test_the_workers_subnets_have_no_route_out_of_the_vpc(each_mode: Recording) -> None:
    for subnet_id in worker_subnet_ids(each_mode):
        assert _routes(each_mode, subnet_id) == []
    assert not [one.name for one in each_mode.of_type(ROUTE_TABLE) if "routes" in one.inputs]


def test_the_workers_stand_in_two_zones_and_the_master_with_its_disks_in_the_first(
    each_mode: Recording,
) -> None:
    zones = {
        one.inputs["availabilityZone"]
        for one in each_mode.of_type(SUBNET)
        if one.id in worker_subnet_ids(each_mode)
    }
    assert zones == {f"{REGION}a", f"{REGION}b"}
    master_subnet = each_mode.by_id(each_mode.one(INTERFACE).inputs["subnetId"])
    assert master_subnet.inputs["availabilityZone"] == f"{REGION}a"
    assert {one.inputs["availabilityZone"] for one in each_mode.of_type(VOLUME)} == {f"{REGION}a"}


def test_with_nat_the_master_gets_out_through_the_nat_gateway(record: Record) -> None:
    recording = record()
    route, s3 = _routes(recording, recording.one(INTERFACE).inputs["subnetId"])
    assert route.inputs["destinationCidrBlock"] == "0.0.0.0/0"
    assert route.inputs["natGatewayId"] == recording.one(NAT_GATEWAY).id
    assert s3.inputs["serviceName"] == f"com.amazonaws.{REGION}.s3"


def test_with_endpoints_there_is_no_way_out_at_all(record: Record) -> None:
    recording = record(**MODES[ENDPOINTS])
    (s3,) = _routes(recording, recording.one(INTERFACE).inputs["subnetId"])
    assert s3.inputs["vpcEndpointType"] == "Gateway"
    for type_ in (ROUTE, NAT_GATEWAY, EIP, "aws:ec2/internetGateway:InternetGateway"):
        assert recording.of_type(type_) == []


@pytest.mark.parametrize(
    ("mode", "services"),
    [
        (NAT, {"secretsmanager", "autoscaling"}),
        (ENDPOINTS, {"secretsmanager", "ssm", "ssmmessages", "monitoring", "autoscaling"}),
    ],
)
def test_the_interface_endpoints_answer_to_the_services_own_names(
    record: Record, mode: str, services: set[str]
) -> None:
    recording = record(**MODES[mode])
    endpoints = [
        one.inputs for one in recording.of_type(ENDPOINT) if one.inputs["vpcEndpointType"] == "Interface"
    ]
    assert {one["serviceName"] for one in endpoints} == {
        f"com.amazonaws.{REGION}.{service}" for service in services
    }
    assert all(one["privateDnsEnabled"] for one in endpoints)
    vpc = recording.one("aws:ec2/vpc:Vpc").inputs
    assert vpc["enableDnsSupport"]
    assert vpc["enableDnsHostnames"]


def test_the_interface_endpoints_let_only_this_account_through(each_mode: Recording) -> None:
    endpoints = [one for one in each_mode.of_type(ENDPOINT) if one.inputs["vpcEndpointType"] == "Interface"]
    assert endpoints
    for one in endpoints:
        (statement,) = statements(one.inputs["policy"])
        assert statement["Condition"] == {"StringEquals": {"aws:PrincipalAccount": ACCOUNT}}


def test_an_endpoint_has_the_same_address_whatever_others_there_are(record: Record) -> None:
    addresses = [
        {
            one.inputs["serviceName"]: one.inputs["subnetConfigurations"][0]["ipv4"]
            for one in record(**MODES[mode]).of_type(ENDPOINT)
            if one.inputs["vpcEndpointType"] == "Interface"
        }
        for mode in (NAT, ENDPOINTS)
    ]
    assert addresses[0].items() < addresses[1].items()


def test_no_endpoint_takes_the_masters_address(each_mode: Recording) -> None:
    addresses = [
        configuration["ipv4"]
        for one in each_mode.of_type(ENDPOINT)
        for configuration in one.inputs.get("subnetConfigurations", [])
    ]
    taken = [*addresses, *each_mode.one(INTERFACE).inputs["privateIps"]]
    assert (
        len(set(taken)) == len(taken) == len(each_mode.of_type(ENDPOINT))
    )  # S3's has none, the master has one


def _s3_statement(recording: Recording) -> dict[str, Any]:
    """The one statement of the policy of the gateway endpoint."""
    (s3,) = [one for one in recording.of_type(ENDPOINT) if one.inputs["vpcEndpointType"] == "Gateway"]
    (statement,) = statements(s3.inputs["policy"])
    assert (statement["Effect"], statement["Principal"]) == ("Allow", "*")
    return statement


@pytest.mark.parametrize("mode", [ENDPOINTS, ENDPOINTS_DISKLESS])
def test_without_a_way_out_only_the_engine_bundle_and_the_ssm_agent_can_be_read_from_s3(
    record: Record, mode: str
) -> None:
    recording = record(**MODES[mode])
    statement = _s3_statement(recording)
    assert statement["Action"] == "s3:GetObject"
    bucket = recording.one("aws:s3/bucket:Bucket")
    assert statement["Resource"] == [
        f"arn:aws:s3:::{bucket.id}/*",
        f"arn:aws:s3:::amazon-ssm-{REGION}/*",
    ]


@pytest.mark.parametrize("mode", [NAT, NAT_DISKLESS, SMALL])
def test_with_nat_the_endpoint_of_s3_stands_in_the_way_of_nobodys_data(record: Record, mode: str) -> None:
    # AWS sends all of the region's S3 traffic through it. Without a policy an existing cluster would keep its old one.
    statement = _s3_statement(record(**MODES[mode]))
    assert (statement["Action"], statement["Resource"]) == ("*", "*")


def test_the_largest_number_of_client_networks_fits_into_a_security_group(record: Record) -> None:
    cidrs = json.dumps([f"10.1.{number}.0/24" for number in range(58)])
    assert len(_rules(record(clientCidrs=cidrs), "Ingress")["master"]) == 60  # AWS's default quota


# --- security groups ----------------------------------------------------------------------------------------

Rule = tuple[str, int, int, str]  # protocol, first and last port, who is at the other end


def _rules(recording: Recording, direction: str) -> dict[str, list[Rule]]:
    """The rules of every group, by the group's name without its component's."""
    groups = {
        one.id: one.name.removeprefix("security-")
        for one in recording.of_type("aws:ec2/securityGroup:SecurityGroup")
    }
    rules: dict[str, list[Rule]] = {name: [] for name in groups.values()}
    for one in recording.of_type(f"aws:vpc/securityGroup{direction}Rule:SecurityGroup{direction}Rule"):
        said = one.inputs
        others = {
            *(groups[said[key]] for key in ["referencedSecurityGroupId"] if key in said),
            *(said[key] for key in ("cidrIpv4", "cidrIpv6", "prefixListId") if key in said),
        }
        (other,) = others
        rules[groups[said["securityGroupId"]]].append(
            (said["ipProtocol"], said["fromPort"], said["toPort"], other)
        )
    return {name: sorted(listed) for name, listed in rules.items()}


def _tcp(port: int, other: str) -> Rule:
    return ("tcp", port, port, other)


@pytest.mark.parametrize(
    ("mode", "clients"),
    [
        (NAT, ["10.20.0.0/16"]),
        (ENDPOINTS, ["10.20.0.0/16"]),
        (NAT_DISKLESS, []),
        (ENDPOINTS_DISKLESS, []),
        (SMALL, ["10.1.0.0/16", "100.64.8.0/24"]),
    ],
)
def test_what_comes_in_is_exactly_this(record: Record, mode: str, clients: list[str]) -> None:
    assert _rules(record(**MODES[mode]), "Ingress") == {
        "master": sorted(
            [_tcp(5672, "workers"), _tcp(1999, "workers"), *(_tcp(8800, client) for client in clients)]
        ),
        "workers": [],
        "nfs": [_tcp(2049, "master"), _tcp(2049, "workers")],
        "endpoints": [_tcp(443, "master"), _tcp(443, "workers")],
    }


@pytest.mark.parametrize(
    ("mode", "way_out"),
    [
        (NAT, [_tcp(80, "0.0.0.0/0"), _tcp(443, "0.0.0.0/0")]),
        (NAT_DISKLESS, [_tcp(80, "0.0.0.0/0"), _tcp(443, "0.0.0.0/0")]),
        (ENDPOINTS, [_tcp(443, "pl-6ea54007")]),
        (ENDPOINTS_DISKLESS, [_tcp(443, "pl-6ea54007")]),
    ],
)
def test_what_goes_out_is_exactly_this(record: Record, mode: str, way_out: list[Rule]) -> None:
    assert _rules(record(**MODES[mode]), "Egress") == {
        "master": sorted([_tcp(443, "endpoints"), _tcp(2049, "nfs"), *way_out]),
        "workers": sorted(
            [_tcp(1999, "master"), _tcp(5672, "master"), _tcp(2049, "nfs"), _tcp(443, "endpoints")]
        ),
        "nfs": [],
        "endpoints": [],
    }


def test_no_group_has_rules_of_another_kind_and_the_default_group_has_none(each_mode: Recording) -> None:
    default = each_mode.one("aws:ec2/defaultSecurityGroup:DefaultSecurityGroup").inputs
    assert (default["ingress"], default["egress"]) == ([], [])
    for one in each_mode.of_type("aws:ec2/securityGroup:SecurityGroup"):
        assert not {"ingress", "egress"} & one.inputs.keys()
    assert not each_mode.of_type("aws:ec2/securityGroupRule:SecurityGroupRule")


def test_descriptions_have_only_the_characters_that_ec2_allows_in_them(each_mode: Recording) -> None:
    # https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSecurityGroup.html: no apostrophe, for example
    described = [one.inputs["description"] for one in each_mode.resources if "/securityGroup" in one.type]
    assert len(described) > 15
    for text in described:
        assert re.fullmatch(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}", text)


def test_each_kind_of_node_is_in_its_own_group(each_mode: Recording) -> None:
    (interface,) = each_mode.one(TEMPLATE).inputs["networkInterfaces"]
    users = {
        "security-master": [each_mode.one(INTERFACE).inputs["securityGroups"]],
        "security-workers": [interface["securityGroups"]],
        "security-nfs": [one.inputs["securityGroups"] for one in each_mode.of_type(MOUNT_TARGET)],
        "security-endpoints": [
            one.inputs["securityGroupIds"]
            for one in each_mode.of_type(ENDPOINT)
            if one.inputs["vpcEndpointType"] == "Interface"
        ],
    }
    for name, memberships in users.items():
        group = each_mode.one("aws:ec2/securityGroup:SecurityGroup", name)
        assert memberships
        assert all(membership == [group.id] for membership in memberships)


# --- storage ------------------------------------------------------------------------------------------------


def test_every_disk_is_encrypted(each_mode: Recording) -> None:
    assert len(each_mode.of_type(VOLUME)) == 3
    assert all(one.inputs["encrypted"] is True for one in each_mode.of_type(VOLUME))
    assert each_mode.one(EFS).inputs["encrypted"] is True
    assert each_mode.one(INSTANCE).inputs["rootBlockDevice"]["encrypted"] is True
    (mapping,) = each_mode.one(TEMPLATE).inputs["blockDeviceMappings"]
    assert mapping["ebs"]["encrypted"] == "true"
    (rule,) = each_mode.one(
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
    ).inputs["rules"]
    assert rule == {
        "applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"},
        "blockedEncryptionTypes": ["SSE-C"],
    }
    for one in each_mode.resources:  # and there is no other disk
        assert not {"ebsBlockDevices", "ephemeralBlockDevices"} & one.inputs.keys()


def test_the_masters_volumes_have_their_sizes_and_leave_a_snapshot(record: Record) -> None:
    recording = record(**SIZES)
    assert {one.name: one.inputs["size"] for one in recording.of_type(VOLUME)} == {
        "storage-home": 11,
        "storage-var": 12,
        "storage-rabbitmq": 13,
    }
    assert all(
        one.inputs["finalSnapshot"] and one.inputs["type"] == "gp3" for one in recording.of_type(VOLUME)
    )


@pytest.mark.parametrize(("mode", "keep"), [(NAT, True), (SMALL, False)])
def test_data_is_kept_on_destroy_only_when_asked_for_and_nothing_stands_in_its_way(
    record: Record, mode: str, keep: bool
) -> None:
    recording = record(**MODES[mode])
    data = [*recording.of_type(VOLUME), recording.one(EFS)]
    assert [one.retain_on_delete for one in data] == [keep] * 4
    assert [one.inputs["tags"][facts.KEPT_TAG] for one in data] == ["true" if keep else "false"] * 4
    assert not [one.name for one in recording.resources if one.protect]
    assert not [one.name for one in recording.resources if one.retain_on_delete and one not in data]


def test_a_deletion_is_given_the_time_that_a_final_snapshot_takes(each_mode: Recording) -> None:
    assert [one.timeouts for one in each_mode.of_type(VOLUME)] == [{"delete": "12h"}] * 3


def test_each_volume_is_attached_once_and_the_machine_stops_before_it_is_detached(
    each_mode: Recording,
) -> None:
    attachments = each_mode.of_type(ATTACHMENT)
    assert {one.inputs["volumeId"] for one in attachments} == {one.id for one in each_mode.of_type(VOLUME)}
    assert len({one.inputs["deviceName"] for one in attachments}) == len(attachments) == 3
    for one in attachments:
        assert one.inputs["stopInstanceBeforeDetaching"] is True
        assert one.inputs["instanceId"] == each_mode.one(INSTANCE).id


def test_the_file_system_has_a_mount_target_in_every_zone_of_the_workers(each_mode: Recording) -> None:
    targets = each_mode.of_type(MOUNT_TARGET)
    assert {one.inputs["subnetId"] for one in targets} == worker_subnet_ids(each_mode)
    assert len(targets) == 2
    assert each_mode.one(EFS).inputs["throughputMode"] == "elastic"


# --- secret and rights --------------------------------------------------------------------------------------


def test_no_secret_has_a_value(each_mode: Recording) -> None:
    assert each_mode.of_type(SECRET)
    assert not [one.name for one in each_mode.resources if "secretVersion" in one.type]


def test_the_roles_may_do_this_and_nothing_else(each_mode: Recording) -> None:
    secret = each_mode.one(SECRET, "secrets-cluster").outputs["arn"]
    of_webui = [one.outputs["arn"] for one in each_mode.of_type(SECRET) if one.name == "secrets-webui"]
    assert bool(of_webui) == ("webUiUrl" in each_mode.exports)
    bundle = each_mode.one("aws:s3/bucketObjectv2:BucketObjectv2").inputs
    assert statements(each_mode.one(ROLE_POLICY, "workers-rights").inputs["policy"]) == [
        {"Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"], "Resource": secret}
    ]
    *_, agent = rights = statements(each_mode.one(ROLE_POLICY, "master-rights").inputs["policy"])
    assert rights == [
        *(
            {
                "Effect": "Allow",
                "Action": ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"],
                "Resource": arn,
            }
            for arn in (secret, *of_webui)  # which no worker reads
        ),
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject"],
            "Resource": f"arn:aws:s3:::{bundle['bucket']}/{bundle['key']}",
        },
        {
            "Effect": "Allow",
            "Action": ["cloudwatch:PutMetricData"],
            "Resource": "*",
            "Condition": {"StringEquals": {"cloudwatch:namespace": "OpenQuake"}},
        },
        {
            "Effect": "Allow",
            "Action": ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"],
            "Resource": "*",
        },
        {"Effect": "Allow", "Action": agent["Action"], "Resource": "*"},
    ]
    # Nothing by which the agent, or anybody on the machine, could read parameters, documents or other machines.
    assert {action.partition(":")[0] for action in agent["Action"]} == {"ssm", "ssmmessages", "ec2messages"}
    assert [action for action in agent["Action"] if action.startswith("ssm:")] == [
        "ssm:UpdateInstanceInformation",
        "ssm:ListInstanceAssociations",
    ]
    assert statements(each_mode.one(ROLE_POLICY, "workers-drain").inputs["policy"]) == [
        {
            "Effect": "Allow",
            "Action": ["autoscaling:CompleteLifecycleAction"],
            "Resource": each_mode.one(GROUP).outputs["arn"],
        }
    ]
    snapshots = f"arn:aws:ec2:{REGION}::snapshot/*"
    snapshots_role = each_mode.one("aws:iam/role:Role", "snapshots-role")
    (trusted,) = statements(snapshots_role.inputs["assumeRolePolicy"])
    assert trusted["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    assert statements(each_mode.one(ROLE_POLICY, "snapshots-rights").inputs["policy"]) == [
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
            "Resource": [f"arn:aws:ec2:{REGION}:{ACCOUNT}:volume/*", snapshots],
        },
        {"Effect": "Allow", "Action": ["ec2:CreateTags"], "Resource": snapshots},
        {
            "Effect": "Allow",
            "Action": ["ec2:DeleteSnapshot"],
            "Resource": snapshots,
            # The tag of the volumes, which the snapshots have from them.
            "Condition": {"StringEquals": {"ec2:ResourceTag/SnapshotsBy": snapshots_role.outputs["name"]}},
        },
    ]
    principals = {"master": "ec2", "workers": "ec2", "snapshots": "dlm"}
    for name, service in principals.items():
        policy = each_mode.one("aws:iam/role:Role", f"{name}-role").inputs["assumeRolePolicy"]
        assert [one["Principal"] for one in statements(policy)] == [{"Service": f"{service}.amazonaws.com"}]
    roles = {name: each_mode.one("aws:iam/role:Role", f"{name}-role").id for name in principals}
    assert {one.name: one.inputs["role"] for one in each_mode.of_type(ROLE_POLICY)} == {
        "master-rights": roles["master"],
        "workers-rights": roles["workers"],
        "workers-drain": roles["workers"],
        "snapshots-rights": roles["snapshots"],
    }
    assert {one.type for one in each_mode.resources if one.type.startswith("aws:iam/")} == {
        "aws:iam/role:Role",
        ROLE_POLICY,
        "aws:iam/instanceProfile:InstanceProfile",
    }


def test_each_kind_of_node_runs_with_its_own_role(each_mode: Recording) -> None:
    master = each_mode.one("aws:iam/instanceProfile:InstanceProfile", "master-profile")
    workers = each_mode.one("aws:iam/instanceProfile:InstanceProfile", "workers-profile")
    assert each_mode.one(INSTANCE).inputs["iamInstanceProfile"] == master.outputs["name"]
    assert each_mode.one(TEMPLATE).inputs["iamInstanceProfile"] == {"arn": workers.outputs["arn"]}
    for one in (master, workers):
        assert (
            each_mode.one("aws:iam/role:Role", one.name.replace("profile", "role")).id == one.inputs["role"]
        )


def test_the_bucket_is_private_and_refuses_plain_http(each_mode: Recording) -> None:
    block = each_mode.one("aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock").inputs
    assert block == {
        "bucket": each_mode.one("aws:s3/bucket:Bucket").id,
        **dict.fromkeys(
            ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"), True
        ),
    }
    (statement,) = statements(each_mode.one("aws:s3/bucketPolicy:BucketPolicy").inputs["policy"])
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert each_mode.one("aws:s3/bucket:Bucket").inputs["forceDestroy"] is True


def test_the_bucket_is_changed_by_one_thing_at_a_time(each_mode: Recording) -> None:
    chain = [
        each_mode.one(f"aws:s3/bucket{name}:Bucket{name}")
        for name in (
            "PublicAccessBlock",
            "OwnershipControls",
            "ServerSideEncryptionConfiguration",
            "Policy",
            "Versioning",
            "LifecycleConfiguration",
        )
    ]
    chain.append(each_mode.one("aws:s3/bucketObjectv2:BucketObjectv2"))
    for first, second in itertools.pairwise(chain):
        assert first.urn in second.dependencies


# --- machines -----------------------------------------------------------------------------------------------


def test_imdsv2_is_required_one_hop_away_and_nobody_has_a_key(each_mode: Recording) -> None:
    required = {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1}
    # A worker learns its group's name from its tags, the master the fleet's size.
    shown = {"instanceMetadataTags": "enabled"}
    for type_ in (INSTANCE, TEMPLATE):
        inputs = each_mode.one(type_).inputs
        assert inputs["metadataOptions"] == required | shown
        assert "keyName" not in inputs


def test_the_machines_tags_have_only_keys_that_the_metadata_can_show(each_mode: Recording) -> None:
    template, group = each_mode.one(TEMPLATE).inputs, each_mode.one(GROUP).inputs
    keys = {key for one in template["tagSpecifications"] for key in one["tags"]}
    keys |= {tag["key"] for tag in group["tags"]} | each_mode.one(INSTANCE).inputs["tags"].keys()
    assert keys
    assert all(shown_in_metadata(key) for key in keys)
    assert not any(map(shown_in_metadata, (".", "..", "_index", "a key", "a/b", "")))


def test_the_engine_keeps_tasks_in_flight_for_the_full_fleet(record: Record) -> None:
    # 5 machines of the larger type, which has 8 virtual CPUs and 2 GiB for each
    assert record(**SIZES).one(INSTANCE).inputs["tags"][facts.NUM_CORES_TAG] == "40"


def test_the_master_is_told_the_price_of_a_process_by_a_tag_and_nothing_where_it_is_not_known(
    record: Record,
) -> None:
    def price(**settings: str) -> str | None:
        tags: dict[str, str] = record(**settings).one(INSTANCE).inputs["tags"]
        return tags.get(facts.PROCESS_HOUR_TAG)

    assert price() == "0.050925"  # of a c7i.2xlarge with 8 processes, 0.4074 an hour
    assert price(workerStorage="diskless") == "0.058200"  # which has 7
    assert price(workerHourPrice="0.16") == "0.020000"
    assert price(workerInstanceTypes='["c8i.2xlarge"]') is None
    machines = {record(workerHourPrice=usd).one(INSTANCE).inputs["userDataBase64"] for usd in ("0", "0.16")}
    assert len(machines) == 1  # a change of the price replaces no master


def test_the_master_is_replaced_when_its_user_data_changes(each_mode: Recording) -> None:
    assert each_mode.one(INSTANCE).inputs["userDataReplaceOnChange"] is True


def test_what_can_exist_only_once_is_deleted_before_it_is_replaced(each_mode: Recording) -> None:
    interface_endpoints = [
        one for one in each_mode.of_type(ENDPOINT) if one.inputs["vpcEndpointType"] == "Interface"
    ]
    once = [
        each_mode.one(INSTANCE),  # its volumes and its network interface
        each_mode.one(INTERFACE),  # its address
        *each_mode.of_type(ATTACHMENT),  # its volume
        *each_mode.of_type(MOUNT_TARGET),  # its zone
        *interface_endpoints,  # its address and its service's name
    ]
    assert [one.name for one in once if not one.delete_before_replace] == []


def test_the_masters_address_is_fixed_and_belongs_to_an_interface_of_its_own(each_mode: Recording) -> None:
    interface = each_mode.one(INTERFACE)
    assert interface.inputs["privateIps"] == [each_mode.exports["masterAddress"]]
    # The interface does not depend on the machine, so it stays when the machine is replaced.
    assert each_mode.one(INSTANCE).urn not in interface.dependencies


def _images(recording: Recording) -> tuple[str, str]:
    """The images of the master and of the workers."""
    return recording.one(INSTANCE).inputs["ami"], recording.one(TEMPLATE).inputs["imageId"]


def test_a_new_cluster_gets_debians_newest_image_and_keeps_its_id_in_the_state(record: Record) -> None:
    recording = record()
    newest = recording.one(STASH).inputs["input"]
    assert newest == "ami-0d3b1a4a7e0c5f6b8"
    assert _images(recording) == (newest, newest)
    assert record(preview=True).one(INSTANCE).inputs["ami"] == newest  # a preview shows it


def test_all_nodes_keep_the_image_that_the_state_holds_whatever_debian_publishes(record: Record) -> None:
    recording = run_program({}, stashed={"image-debian": AMI})
    assert _images(recording) == (AMI, AMI)
    stash = recording.one(STASH)
    assert stash.inputs == record().one(STASH).inputs  # the newest one
    assert (stash.ignore_changes, stash.replace_on_changes) == (("input",), ())
    # Pulumi takes the inputs of a replacement from the program, whatever ignore_changes says.
    for type_ in (INSTANCE, TEMPLATE):
        assert recording.one(type_).ignore_changes == ()


def test_an_image_that_is_asked_for_is_that_of_all_nodes_and_nothing_else_is_kept(record: Record) -> None:
    recording = record(**MODES[ENDPOINTS])
    assert _images(recording) == (AMI, AMI)
    assert recording.of_type(STASH) == []


def test_the_group_starts_with_the_settings_numbers_and_leaves_the_desired_one_to_the_scaler(
    record: Record,
) -> None:
    group = record(**SIZES).one(GROUP)
    assert [group.inputs[key] for key in ("minSize", "desiredCapacity", "maxSize")] == [0, 3, 5]
    assert group.ignore_changes == ("desiredCapacity",)
    assert group.inputs["waitForCapacityTimeout"] == "0"


@pytest.mark.parametrize(
    ("mode", "spot", "types"),
    [
        (NAT, False, ["c7i.2xlarge", "c6i.2xlarge", "c7a.2xlarge", "c6a.2xlarge"]),
        (SMALL, True, ["c7i.large", "m7i.large"]),
    ],
)
def test_the_fleet_is_all_spot_or_all_on_demand_from_all_the_instance_types(
    record: Record, mode: str, spot: bool, types: list[str]
) -> None:
    group = record(**MODES[mode]).one(GROUP).inputs
    policy = group["mixedInstancesPolicy"]
    assert policy["instancesDistribution"]["onDemandBaseCapacity"] == 0
    assert policy["instancesDistribution"]["onDemandPercentageAboveBaseCapacity"] == (0 if spot else 100)
    assert [one["instanceType"] for one in policy["launchTemplate"]["overrides"]] == types
    assert group["capacityRebalance"] is spot
    assert group["suspendedProcesses"] == ["AZRebalance"]


def test_a_spot_fleet_may_have_a_base_on_demand_and_takes_the_rest_where_it_is_cheap_and_stays(
    record: Record,
) -> None:
    policy = record(workerSpot="true", workerOnDemandBase="2").one(GROUP).inputs["mixedInstancesPolicy"]
    assert policy["instancesDistribution"] == {
        "onDemandBaseCapacity": 2,
        "onDemandPercentageAboveBaseCapacity": 0,
        "onDemandAllocationStrategy": "prioritized",
        "spotAllocationStrategy": "price-capacity-optimized",
    }


def test_a_change_of_the_template_refreshes_the_machines(record: Record) -> None:
    recording = record()
    group, template = recording.one(GROUP), recording.one(TEMPLATE)
    specification = group.inputs["mixedInstancesPolicy"]["launchTemplate"]["launchTemplateSpecification"]
    # A version by number: with "$Latest" the group would never see a change.
    assert specification == {
        "launchTemplateId": template.id,
        "version": str(template.outputs["latestVersion"]),
    }
    assert group.inputs["instanceRefresh"]["strategy"] == "Rolling"


def test_a_worker_that_has_to_go_is_waited_for(record: Record) -> None:
    recording = record(drainMinutes="7")
    hook = recording.one(HOOK)
    assert hook.inputs == {
        "name": facts.DRAIN_HOOK,
        "autoscalingGroupName": recording.one(GROUP).outputs["name"],
        "lifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
        "heartbeatTimeout": 7 * 60 + facts.DRAIN_POLL_SECONDS + facts.HAND_OVER_SECONDS,
        "defaultResult": "CONTINUE",
    }
    # A hook among the group's initial ones would never follow the settings again.
    assert "initialLifecycleHooks" not in recording.one(GROUP).inputs


def test_a_group_is_given_the_time_that_the_shutdown_of_a_busy_worker_takes(each_mode: Recording) -> None:
    # systemd ends it by force after 30 minutes, a quarter of an hour before this
    assert each_mode.one(GROUP).timeouts == {"delete": "45m"}


def test_every_cluster_has_the_hook(each_mode: Recording) -> None:
    assert each_mode.one(HOOK).inputs["autoscalingGroupName"] == each_mode.one(GROUP).outputs["name"]


def test_a_refresh_takes_half_of_the_workers_at_most(record: Record) -> None:
    preferences = record().one(GROUP).inputs["instanceRefresh"]["preferences"]
    assert preferences == {"minHealthyPercentage": 50, "instanceWarmup": "120"}


# --- scaling ------------------------------------------------------------------------------------------------


def _alarm_and_policy(recording: Recording, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The alarm and the policy of this name, which belong together."""
    alarm, policy = recording.one(ALARM, name), recording.one(SCALING_POLICY, name)
    assert alarm.inputs["alarmActions"] == [policy.outputs["arn"]]
    assert policy.inputs["autoscalingGroupName"] == recording.one(GROUP).outputs["name"]
    return alarm.inputs, policy.inputs


def test_waiting_tasks_add_workers_within_one_period(each_mode: Recording) -> None:
    alarm, policy = _alarm_and_policy(each_mode, "scaling-out")
    assert (alarm["metricName"], alarm["statistic"]) == ("TasksWaiting", "Maximum")
    assert (alarm["comparisonOperator"], alarm["threshold"]) == ("GreaterThanOrEqualToThreshold", 1)
    assert (alarm["period"], alarm["evaluationPeriods"]) == (facts.METRICS_SECONDS, 1)
    assert (policy["policyType"], policy["adjustmentType"]) == ("StepScaling", "ChangeInCapacity")
    assert policy["estimatedInstanceWarmup"] == 120


def test_the_steps_are_those_of_the_smallest_type_and_of_the_room_between_min_and_max(record: Record) -> None:
    sizes = {**SIZES, "workerMin": "1", "workerDesired": "1", "workerMax": "7"}  # 2 processes and 8
    _, policy = _alarm_and_policy(record(**sizes), "scaling-out")
    absent = "without end"
    bounds = [
        (
            int(one["metricIntervalLowerBound"]) + 1,  # AWS counts them from the alarm's threshold
            one.get("metricIntervalUpperBound", absent),
            one["scalingAdjustment"],
        )
        for one in policy["stepAdjustments"]
    ]
    assert bounds == [
        (step.at_least, absent if step.below is None else str(step.below - 1), step.workers)
        for step in steps_out(2, 6)
    ]


@pytest.mark.parametrize("minimum", ["0", "2"])
def test_a_fleet_with_nothing_to_do_for_minutes_goes_back_to_its_minimum(
    record: Record, minimum: str
) -> None:
    alarm, policy = _alarm_and_policy(record(workerMin=minimum), "scaling-in")
    assert (alarm["metricName"], alarm["statistic"]) == ("TasksOutstanding", "Maximum")
    assert (alarm["comparisonOperator"], alarm["threshold"]) == ("LessThanOrEqualToThreshold", 0)
    # Each of the minutes has to be idle: one task in any of them, and the workers stay.
    assert alarm["evaluationPeriods"] == alarm["datapointsToAlarm"] == 5
    assert alarm["period"] >= facts.METRICS_IDLE_SECONDS  # an idle master publishes no oftener
    assert (policy["policyType"], policy["adjustmentType"]) == ("StepScaling", "ExactCapacity")
    assert policy["stepAdjustments"] == [{"metricIntervalUpperBound": "0", "scalingAdjustment": int(minimum)}]


def test_a_master_that_publishes_nothing_neither_adds_nor_removes_workers(each_mode: Recording) -> None:
    alarms = each_mode.of_type(ALARM)
    assert len(alarms) == 2
    for one in alarms:
        assert one.inputs["treatMissingData"] == "notBreaching"
        assert not {"okActions", "insufficientDataActions"} & one.inputs.keys()


def test_the_alarms_watch_what_this_clusters_master_publishes(each_mode: Recording) -> None:
    master = user_data.decode(each_mode.one(INSTANCE).inputs["userDataBase64"])
    (unit,) = [one["content"] for one in master["write_files"] if one["path"].endswith(facts.METRICS_UNIT)]
    for one in each_mode.of_type(ALARM):
        ((dimension, cluster),) = one.inputs["dimensions"].items()
        for option in (
            f"--namespace {one.inputs['namespace']}",
            f"--dimension {dimension}",
            f"--cluster {cluster}",
        ):
            assert f" {option} " in unit


def test_a_fleet_of_one_size_is_not_scaled(record: Record) -> None:
    recording = record(workerMin="2", workerMax="2")
    assert not [*recording.of_type(SCALING_POLICY), *recording.of_type(ALARM)]
    assert recording.one(HOOK)


def test_no_machine_starts_before_its_network_storage_and_rights_are_there(each_mode: Recording) -> None:
    for node, rights in ((INSTANCE, "master-rights"), (GROUP, "workers-rights")):
        before = each_mode.one(node).dependencies
        needed = [
            each_mode.one(ROLE_POLICY, rights),
            each_mode.one("aws:s3/bucketObjectv2:BucketObjectv2"),
            *each_mode.of_type(MOUNT_TARGET),
            *each_mode.of_type(ENDPOINT),
            *each_mode.of_type(ROUTE),
            *each_mode.of_type(ASSOCIATION),
            *each_mode.of_type("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"),
            *each_mode.of_type("aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"),
        ]
        assert [one.name for one in needed if one.urn not in before] == []


# --- waiting ------------------------------------------------------------------------------------------------


def test_the_wait_asks_for_the_master_again_when_the_machine_or_its_user_data_changes(record: Record) -> None:
    recording, other = record(), record(**MODES[SMALL])
    wait, instance = recording.one(COMMAND), recording.one(INSTANCE)
    assert wait.inputs["create"] == instance.id
    assert wait.inputs["interpreter"] == [
        sys.executable, "-m", "components.wait_until_ready", "--region", REGION, "--minutes", "30",
    ]  # fmt: skip
    assert other.one(INSTANCE).id == instance.id
    assert other.one(INSTANCE).inputs["userDataBase64"] != instance.inputs["userDataBase64"]
    assert other.one(COMMAND).inputs["triggers"] != wait.inputs["triggers"]
    assert {one.urn for one in recording.of_type(ATTACHMENT)} <= wait.dependencies


def test_the_wait_asks_again_when_the_master_has_another_type(record: Record) -> None:
    """It was stopped and started for that, as the same machine."""
    recording, other = record(), record(masterInstanceType="m7i.xlarge")
    assert other.one(INSTANCE).id == recording.one(INSTANCE).id
    before, after = (one.one(COMMAND).inputs["triggers"] for one in (recording, other))
    assert (before[:2], before[2], after[2]) == (after[:2], "m7i.large", "m7i.xlarge")


def test_the_wait_lasts_as_long_and_has_the_aws_profile_as_the_stack_says(record: Record) -> None:
    assert "--profile" not in record().one(COMMAND).inputs["interpreter"]
    wait = run_program({"aws:profile": "seismo", "readyTimeoutMinutes": "7"}).one(COMMAND)
    assert wait.inputs["interpreter"][-4:] == ["--minutes", "7", "--profile", "seismo"]


def test_the_wait_can_be_turned_off(record: Record) -> None:
    assert record(**MODES[NAT_DISKLESS]).of_type(COMMAND) == []


def test_the_master_may_read_the_secret_with_the_users_certificate_and_not_write_it(record: Record) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:webui-AbC123"

    def rights(certificate: str, role: str) -> list[dict[str, Any]]:
        recording = record(webuiCertificate=certificate)
        return [
            statement
            for statement in statements(recording.one(ROLE_POLICY, role).inputs["policy"])
            if statement["Resource"] == arn
        ]

    reading = {"Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"], "Resource": arn}
    assert rights(arn, "master-rights") == [reading]
    assert rights(arn, "workers-rights") == rights("self", "master-rights") == []


# --- outputs ------------------------------------------------------------------------------------------------


def test_the_outputs_are_what_a_user_pastes(record: Record) -> None:
    recording = record()
    instance = recording.one(INSTANCE).id
    session = f"aws ssm start-session --region {REGION} --target {instance}"
    assert recording.exports == {
        "region": REGION,
        "vpcId": recording.one("aws:ec2/vpc:Vpc").id,
        "masterRouteTableId": recording.one("aws:ec2/routeTable:RouteTable", "network-master").id,
        "masterAddress": "10.20.0.10",
        "masterInstanceId": instance,
        "shellCommand": session,
        "webUiUrl": "http://10.20.0.10:8800",
        "webUiPortForward": session
        + " --document-name AWS-StartPortForwardingSession"
        + " --parameters portNumber=8800,localPortNumber=8800",
        "webUiPasswordCommand": f"aws secretsmanager get-secret-value --region {REGION} --secret-id "
        + recording.one(SECRET, "secrets-webui").outputs["name"]
        + " --query SecretString --output text"
        + " | python3 -c \"import json, sys; print(json.load(sys.stdin)['admin_password'])\"",
        "dashboardUrl": f"https://{REGION}.console.aws.amazon.com/cloudwatch/home?region={REGION}"
        "#dashboards/dashboard/openquake-cluster-test",
        "costPerMonthIdle": recording.exports["costPerMonthIdle"],  # test_prices.py has their words
        "costPerHourFull": recording.exports["costPerHourFull"],
        "volumeIds": {
            mount: recording.one(VOLUME, f"storage-{name}").id
            for mount, name in (("/home", "home"), ("/var", "var"), ("/var/lib/rabbitmq", "rabbitmq"))
        },
        "efsId": recording.one(EFS).id,
        "takeDataBack": recording.exports["takeDataBack"],  # test_adoption.py has its lines
        "workerGroupName": recording.one(GROUP).outputs["name"],
        "secretName": recording.one(SECRET, "secrets-cluster").outputs["name"],
    }
    of_webui = {"webUiUrl", "webUiPortForward", "webUiPasswordCommand"}
    assert not of_webui & record(**MODES[NAT_DISKLESS]).exports.keys()
    assert record(webuiCertificate="self").exports["webUiUrl"] == "https://10.20.0.10:8800"
    assert of_webui - record(webuiLogin="false").exports.keys() == {"webUiPasswordCommand"}


# --- the dashboard ---


def test_the_dashboard_shows_this_clusters_metrics_and_alarms(record: Record) -> None:
    recording = record(alarmEmail="seismology@example.org")
    board = recording.one("aws:cloudwatch/dashboard:Dashboard").inputs
    assert board["dashboardName"] == "openquake-cluster-test"
    *graphs, alarms = json.loads(board["dashboardBody"])["widgets"]
    shown = [line for graph in graphs for line in graph["properties"]["metrics"]]
    lines = [line for line in shown if isinstance(line[0], str)]  # the others are sums of these
    own = {(line[1], *line[2:-1]) for line in lines if line[0] == facts.METRICS_NAMESPACE}
    cluster = (facts.METRICS_DIMENSION, "openquake-cluster-test")
    not_shown = {"TasksWithoutWorker", "BacklogPerWorker"}
    assert own == {
        *((name, *cluster) for name in facts.METRICS if name not in not_shown),
        *((facts.DISK_METRIC, *cluster, facts.DISK_DIMENSION, mount) for mount in facts.VOLUME_MOUNTS),
    }
    assert {tuple(line[-3:-1]) for line in lines if line[0] != facts.METRICS_NAMESPACE} == {
        ("InstanceId", recording.one(INSTANCE).id),
        ("AutoScalingGroupName", recording.one(GROUP).outputs["name"]),
        ("FileSystemId", recording.one(EFS).id),
    }
    assert {graph["properties"]["region"] for graph in graphs} == {REGION}
    assert set(alarms["properties"]["alarms"]) == {one.outputs["arn"] for one in recording.of_type(ALARM)}


def test_no_widget_of_the_dashboard_lies_on_another_or_beside_the_grid(record: Record) -> None:
    body = record().one("aws:cloudwatch/dashboard:Dashboard").inputs["dashboardBody"]
    widgets = json.loads(body)["widgets"]
    cells = [
        (widget["x"] + right, widget["y"] + down)
        for widget in widgets
        for right in range(widget["width"])
        for down in range(widget["height"])
    ]
    assert len(set(cells)) == len(cells) > 0
    assert max(right for right, _ in cells) < 24


def test_a_fleet_of_one_size_whose_alarms_tell_nobody_has_a_dashboard_without_alarms(record: Record) -> None:
    body = (
        record(workerMin="2", workerMax="2").one("aws:cloudwatch/dashboard:Dashboard").inputs["dashboardBody"]
    )
    assert {widget["type"] for widget in json.loads(body)["widgets"]} == {"metric"}


def cost_graphs(recording: Recording) -> list[dict[str, Any]]:
    """The dashboard's graphs of costs."""
    body = json.loads(recording.one("aws:cloudwatch/dashboard:Dashboard").inputs["dashboardBody"])
    graphs = [widget["properties"] for widget in body["widgets"]]
    return [graph for graph in graphs if graph["title"].startswith("Cost")]


def costs_shown(graph: Mapping[str, Any], sizes: Sequence[int], minutes_on: int | None) -> float:
    """What a graph shows when AWS has published these sizes of the group, one a minute, and a check of the master
    in so many minutes; none at all of one that was off.
    """
    metrics = [line for line in graph["metrics"] if isinstance(line[0], str)]
    assert not any(line[-1]["visible"] for line in metrics)
    values = {}
    for namespace, name, *_, options in metrics:
        checks = (namespace, name) == ("AWS/EC2", "StatusCheckFailed")
        assert checks or (namespace, name) == ("AWS/AutoScaling", "GroupInServiceInstances")
        statistics = {"Sum": sum(sizes), "SampleCount": minutes_on if checks else len(sizes)}
        values[options["id"]] = statistics[options["stat"]]
    functions = {"FILL": lambda value, other: other if value is None else value}
    expressions = [line[0]["expression"] for line in graph["metrics"] if not isinstance(line[0], str)]
    return float(sum(eval(text, functions, values) for text in expressions))  # noqa: S307 - the program's own


def test_the_dashboard_shows_what_the_estimate_says_of_an_idle_hour_and_of_a_full_one(record: Record) -> None:
    for settings in ({}, {"workerMin": "1"}, {"egress": "endpoints", "amiId": AMI}):
        costs = estimate(Settings.parse(settings), REGION)
        assert costs.month_idle is not None
        assert costs.worker is not None
        least = int(settings.get("workerMin", "0"))
        graphs = cost_graphs(record(**settings))
        assert len(graphs) == 2
        for graph in graphs:
            idle = costs_shown(graph, [least] * 60, 60)
            assert idle == pytest.approx(costs.month_idle / HOURS, rel=1e-4)
            one_more = costs_shown(graph, [least + 1] * 30 + [least] * 30, 60)
            assert one_more - idle == pytest.approx(costs.worker / 2, rel=1e-4)


def test_a_day_on_the_dashboard_in_which_the_master_slept_for_half_of_it_costs_half_a_master(
    record: Record,
) -> None:
    costs = estimate(Settings.parse({}), REGION)
    assert costs.master is not None
    _, day = cost_graphs(record())
    assert (day["start"], day["view"], day["setPeriodToTimeRange"]) == ("-PT24H", "singleValue", True)
    whole, half, none = (costs_shown(day, [0] * 1440, minutes) for minutes in (1440, 720, None))
    assert whole - half == pytest.approx(12 * costs.master, rel=1e-4)
    assert whole - none == pytest.approx(24 * costs.master, rel=1e-4)


def test_where_a_price_is_not_known_the_dashboard_shows_no_costs(record: Record) -> None:
    assert cost_graphs(record(workerInstanceTypes='["c7i-flex.large"]')) == []


# --- money ---


def test_the_estimate_is_an_output_that_a_preview_knows(record: Record) -> None:
    for preview in (True, False):
        exports = record(preview=preview).exports
        assert re.match(
            r"about \d+ USD \(estimate, list prices on demand of 20\d\d-", exports["costPerMonthIdle"]
        )
        assert re.match(r"about \d+\.\d\d USD: 8 workers at 0.407 ", exports["costPerHourFull"])


def test_a_budget_counts_the_stacks_tag_and_tells_the_address_before_it_is_spent(record: Record) -> None:
    recording = record(monthlyBudget="500", alarmEmail="seismology@example.org")
    budget = recording.one("aws:budgets/budget:Budget").inputs
    assert (budget["limitAmount"], budget["limitUnit"], budget["timeUnit"]) == ("500", "USD", "MONTHLY")
    assert budget["costFilters"] == [{"name": "TagKeyValue", "values": ["user:Stack$test"]}]
    assert recording.one(INSTANCE).inputs["tags"]["Stack"] == "test"
    told = [(one["notificationType"], one["threshold"]) for one in budget["notifications"]]
    # AWS forecasts nothing in the first weeks of an account, in which what is spent has to be said all the same.
    assert told == [("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100)]
    for one in budget["notifications"]:
        assert one["subscriberEmailAddresses"] == ["seismology@example.org"]
        assert (one["comparisonOperator"], one["thresholdType"]) == ("GREATER_THAN", "PERCENTAGE")
    assert recording.exports["activateCostTagCommand"].endswith("TagKey=Stack,Status=Active")


def test_a_budget_counts_what_credits_pay_for_now(record: Record) -> None:
    budget = record(monthlyBudget="500", alarmEmail="seismology@example.org").one("aws:budgets/budget:Budget")
    assert budget.inputs["costTypes"] == {"includeCredit": False, "includeRefund": False}


def test_without_a_budget_there_is_none(record: Record) -> None:
    recording = record(alarmEmail="seismology@example.org")
    assert recording.of_type("aws:budgets/budget:Budget") == []
    assert "activateCostTagCommand" not in recording.exports


# --- what is wrong is said at once --------------------------------------------------------------------------


def test_wrong_settings_end_the_program_with_one_error_that_says_all() -> None:
    config = {"workerMin": "5", "workerMax": "3", "egres": "nat", "clientCidrs": '["0.0.0.0/0"]'}
    with pytest.raises(pulumi.RunError) as error:  # which Pulumi shows without a traceback
        run_program(config)
    for key in config.keys() - {"workerMax"}:
        assert f"\n  {key} = " in str(error.value)
