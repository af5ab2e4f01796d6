"""The policy pack on what the program registers, and on programs that are broken in one place."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from components import facts
from lab.aws import recorder
from lab.aws.recording import Recording
from policy import design, pack
from policy.actions import READING, WITHOUT_RESOURCE
from policy.exceptions import EXCEPTIONS, Excepted
from policy.resources import (
    ALARM,
    ATTACHMENT,
    BACKUP_SELECTION,
    BUCKET,
    BUCKET_ENCRYPTION,
    BUCKET_LOGGING,
    BUCKET_NOTIFICATION,
    BUCKET_POLICY,
    BUCKET_REPLICATION,
    DEFAULT_GROUP,
    EGRESS,
    ENDPOINT,
    FILE_BACKUP,
    FILE_SYSTEM,
    FLOW_LOG,
    GROUP,
    INGRESS,
    INSTANCE,
    INTERFACE,
    KEY,
    LIFECYCLE,
    NAT_GATEWAY,
    OWNERSHIP,
    PROFILE,
    PUBLIC_BLOCK,
    ROLE,
    ROLE_POLICY,
    ROTATION,
    ROUTE,
    SECRET,
    SECURITY_GROUP,
    SNAPSHOTS,
    SUBNET,
    TEMPLATE,
    TOPIC,
    TOPIC_POLICY,
    UNKNOWN,
    VERSIONING,
    VOLUME,
    VPC,
    Resource,
    Stack,
    actions,
    matches,
    targets,
)
from tests.unit.conftest import ENDPOINTS, MODES, NAT, SMALL, Record

MAILS = "mails"
# Every kind of cluster, and settings by which somebody does without what a control asks for.
STACKS = {
    **MODES,
    MAILS: {"alarmEmail": "seismology@example.org", "monthlyBudget": "500"},
    "no backups": {"backupDays": "0"},
    "one type": {"workerInstanceTypes": '["c7i.xlarge"]'},
    "a key of the customer's": {"kmsKeyId": "alias/openquake"},
}
CUSTOMER_KEY = "arn:aws:kms:eu-central-1:123456789012:key/0"

Breaker = Callable[[Stack], Stack]


def registered(recording: Recording, keeps_data: bool = True) -> Stack:
    """What the rules see of a recording."""
    return Stack(
        [
            Resource(one.type, one.name, one.inputs, one.urn, one.property_dependencies, one.retain_on_delete)
            for one in recording.resources
            if one.custom
        ],
        keeps_data,
    )


def stack_of(record: Record, mode: str, preview: bool = False) -> Stack:
    settings = STACKS[mode]
    return registered(record(preview, **settings), settings.get("keepDataOnDestroy") != "false")


def broken(stack: Stack) -> set[tuple[str, str]]:
    """The rules that are broken, with the labels of the resources that break them."""
    return {(found.rule, found.resource.label) for found in pack.findings(stack)}


def unexcused(stack: Stack) -> list[pack.Finding]:
    """All that is broken without a reason."""
    return [found for found in pack.findings(stack) if not pack.excepted(found, stack)]


def breaking(id_: str, stack: Stack) -> set[str]:
    """The labels of the resources that break one rule."""
    (rule,) = [rule for rule in pack.RULES if rule.id == id_]
    return {resource.label for resource, _ in rule.problems(stack)}


# --- the program ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", STACKS)
def test_no_rule_is_broken_without_a_reason(record: Record, mode: str) -> None:
    assert unexcused(stack_of(record, mode)) == []


@pytest.mark.parametrize("mode", [NAT, SMALL])
def test_what_a_preview_does_not_know_yet_breaks_no_rule(record: Record, mode: str) -> None:
    assert broken(stack_of(record, mode, preview=True)) <= broken(stack_of(record, mode))


def stale(rows: Sequence[Excepted], found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The controls of rows that fail for none of the row's resources."""
    return [
        (control, row.resources)
        for row in rows
        for control in row.controls
        if not any(rule == control and matches(label, row.resources) for rule, label in found)
    ]


def test_no_reason_is_given_for_what_holds(record: Record) -> None:
    found = {one for mode in STACKS for one in broken(stack_of(record, mode))}
    assert stale(EXCEPTIONS, found) == []
    assert stale([Excepted(("CKV_AWS_3",), "Volume:*", "")], found) == [("CKV_AWS_3", "Volume:*")]
    assert all(row.reason for row in EXCEPTIONS)


def test_rules_have_ids_of_their_own_and_the_reasons_are_of_rules() -> None:
    ids = [rule.id for rule in pack.RULES]
    assert len(set(ids)) == len(ids) > 100
    assert {control for row in EXCEPTIONS for control in row.controls} <= set(ids)


def test_rules_look_at_every_type_that_the_program_registers(record: Record) -> None:
    looked_at = {type_ for rule in pack.RULES for type_ in rule.types}
    helping = {BUCKET_ENCRYPTION, FILE_BACKUP, LIFECYCLE, NAT_GATEWAY, ENDPOINT, PROFILE, VERSIONING}
    types = {one.type for mode in STACKS for one in stack_of(record, mode).of(*_types(record, mode))}
    amazon = {type_ for type_ in types if type_.startswith("aws:")}
    assert amazon - looked_at - helping - pack.NO_CONTROLS == set()
    assert not looked_at & pack.NO_CONTROLS


def _types(record: Record, mode: str) -> list[str]:
    return [one.type for one in stack_of(record, mode).resources]


def test_every_action_on_all_resources_is_one_of_which_aws_says_that_it_knows_none(record: Record) -> None:
    policies = list(stack_of(record, NAT).of(ROLE_POLICY))
    everywhere = {
        action
        for policy in policies
        for statement in policy.statements("policy")
        if targets(statement) == ["*"]
        for action in actions(statement)
    }
    assert everywhere - WITHOUT_RESOURCE == {"ssm:UpdateInstanceInformation", "ssm:ListInstanceAssociations"}
    assert everywhere >= WITHOUT_RESOURCE
    assert not WITHOUT_RESOURCE & READING


def test_what_a_preview_does_not_know_has_the_same_value_as_in_pulumi() -> None:
    assert UNKNOWN == recorder.UNKNOWN


# --- programs that are broken in one place ----------------------------------------------------------------------


def change(type_: str, path: str, value: Any, name: str = "") -> Breaker:
    """The resources of a type, or the one with a name, have another value at a path; None removes it."""

    def apply(resource: Resource) -> Resource:
        if resource.type != type_ or name not in ("", resource.name):
            return resource
        inputs = copy.deepcopy(dict(resource.inputs))
        *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        place: Any = inputs
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return replace(resource, inputs=inputs)

    return lambda stack: replace(stack, resources=[apply(one) for one in stack.resources])


def without(type_: str) -> Breaker:
    """There is no resource of a type."""
    return lambda stack: replace(stack, resources=[one for one in stack.resources if one.type != type_])


def beside(type_: str, argument: str, of: str, **inputs: Any) -> Breaker:
    """Every resource of the type `of` has one of another type beside it, which refers to it by an argument."""

    def apply(stack: Stack) -> Stack:
        more = [
            Resource(type_, f"beside-{one.name}", inputs, refers={argument: frozenset({one.urn})})
            for one in stack.of(of)
        ]
        return replace(stack, resources=[*stack.resources, *more])

    return apply


def unlinked(type_: str, argument: str) -> Breaker:
    """An argument of the resources of a type refers to nothing that is registered."""

    def apply(one: Resource) -> Resource:
        refers = {key: urns for key, urns in one.refers.items() if key != argument}
        return replace(one, refers=refers) if one.type == type_ else one

    return lambda stack: replace(stack, resources=[apply(one) for one in stack.resources])


def kept(type_: str, value: bool) -> Breaker:
    return lambda stack: replace(
        stack, resources=[replace(one, kept=value) if one.type == type_ else one for one in stack.resources]
    )


def policy(action: str | list[str], resource: str = "*", **more: Any) -> str:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def rights(action: str | list[str], resource: str = "*") -> Breaker:
    return instead(policy(action, resource))


def instead(text: str) -> Breaker:
    """The workers' role has another policy."""
    return change(ROLE_POLICY, "policy", text, "workers-rights")


def trust(principal: Any) -> Breaker:
    return change(ROLE, "assumeRolePolicy", policy("sts:AssumeRole", Principal=principal))


def user_data(text: str) -> list[Breaker]:
    encoded = base64.b64encode(text.encode()).decode()
    plain = in_turn(change(INSTANCE, "userDataBase64", None), change(INSTANCE, "userData", text))
    return [change(INSTANCE, "userDataBase64", encoded), change(TEMPLATE, "userData", encoded), plain]


def in_turn(*breakers: Breaker) -> Breaker:
    def apply(stack: Stack) -> Stack:
        for breaker in breakers:
            stack = breaker(stack)
        return stack

    return apply


def open_at(port: int, protocol: str = "tcp", everybody: str = "0.0.0.0/0") -> Breaker:
    rule = "security-workers-master-amqp-in"
    key = "cidrIpv6" if ":" in everybody else "cidrIpv4"
    values = {key: everybody, "fromPort": port, "toPort": port, "ipProtocol": protocol}
    return in_turn(*(change(INGRESS, path, value, rule) for path, value in values.items()))


AMQP_IN = "security-workers-master-amqp-in"
IMDS_V1 = "metadataOptions.httpTokens"
PUBLIC = "networkInterfaces.0.associatePublicIpAddress"
NO_ROOT_ENCRYPTION = change(TEMPLATE, "blockDeviceMappings.0.ebs.encrypted", "false")
BLOCKED = {
    "CKV_AWS_53": "blockPublicAcls",
    "CKV_AWS_54": "blockPublicPolicy",
    "CKV_AWS_55": "ignorePublicAcls",
    "CKV_AWS_56": "restrictPublicBuckets",
}
UNBLOCKED = [*(change(PUBLIC_BLOCK, key, False) for key in BLOCKED.values()), without(PUBLIC_BLOCK)]
SECRETS = [
    "key: AKIAABCDEFGHIJKLMNOP",
    "-----BEGIN RSA PRIVATE KEY-----",
    "broker: amqp://openquake:hunter2@10.0.0.1",
    "amqp_password: 0123456789abcdef0123",
    "# für RabbitMQ\namqp_password: 0123456789abcdef0123",
]
COPY_RULE = "policyDetails.schedules.0.crossRegionCopyRules"
EVENT = "policyDetails.action"

ALL_BUT_ONE = json.dumps(
    {"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "NotResource": "arn:aws:s3:::bucket/*"}}
)
# What breaks a rule as the policy of a role.
RIGHTS: dict[str, list[str]] = {
    "least-rights": [
        policy("*"),
        policy("s3:*", "arn:aws:s3:::bucket/*"),
        policy("secretsmanager:GetSecretValue"),
        policy("secretsmanager:GetSecretValue", Condition={"Bool": {"aws:SecureTransport": "true"}}),
        json.dumps({"Statement": {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}}),
        ALL_BUT_ONE,
    ],
    "CKV_AWS_62": [policy("*")],
    "CKV_AWS_63": [policy("*", "arn:aws:s3:::bucket")],
    "CKV_AWS_286": [policy("iam:PassRole", "arn:aws:iam::123456789012:role/r"), policy("*")],
    "CKV_AWS_287": [policy("sts:AssumeRole"), policy("ec2:GetPasswordData")],
    "CKV_AWS_288": [policy("s3:GetObject")],
    "CKV_AWS_289": [policy("s3:PutBucketPolicy"), policy("kms:CreateGrant")],
    "CKV_AWS_290": [policy("secretsmanager:PutSecretValue")],
    "CKV_AWS_355": [policy("secretsmanager:GetSecretValue")],
    "CKV2_AWS_40": [policy("iam:*")],
}
# What breaks a rule. Each breaker alone must be seen by the rule.
BREAKERS: dict[str, list[Breaker]] = {
    **{id_: [instead(text) for text in texts] for id_, texts in RIGHTS.items()},
    "three-ports": [
        change(INGRESS, "fromPort", 22, AMQP_IN),
        change(INGRESS, "ipProtocol", "-1", AMQP_IN),
        unlinked(INGRESS, "referencedSecurityGroupId"),
        unlinked(INTERFACE, "securityGroups"),
    ],
    "from-inside": [
        *(open_at(8800, everybody=cidr) for cidr in ("0.0.0.0/0", "::/0", "8.8.8.0/24", "0.0.0.0/1")),
        change(INGRESS, "prefixListId", "pl-0", AMQP_IN),
    ],
    "no-other-rules": [
        change(DEFAULT_GROUP, "ingress", [{"self": True}]),
        change(SECURITY_GROUP, "egress", [{"protocol": "-1"}]),
    ],
    "no-public-address": [
        change(SUBNET, "mapPublicIpOnLaunch", True),
        change(TEMPLATE, PUBLIC, "true"),
        change(TEMPLATE, PUBLIC, None),
        change(INSTANCE, "associatePublicIpAddress", True),
    ],
    "encrypted-volumes": [change(VOLUME, "encrypted", False), change(FILE_SYSTEM, "encrypted", None)],
    "encrypted-root": [
        change(INSTANCE, "rootBlockDevice.encrypted", False),
        change(INSTANCE, "rootBlockDevice", None),
    ],
    "encrypted-worker-root": [NO_ROOT_ENCRYPTION, change(TEMPLATE, "blockDeviceMappings", None)],
    "encrypted-bucket": [without(BUCKET_ENCRYPTION)],
    "customers-key": [change(VPC, f"tags.{facts.KEY_TAG}", CUSTOMER_KEY)],
    "imdsv2": [
        change(INSTANCE, IMDS_V1, "optional"),
        change(TEMPLATE, IMDS_V1, None),
        change(TEMPLATE, "metadataOptions.httpPutResponseHopLimit", 2),
    ],
    "no-secret-in-user-data": [breaker for text in SECRETS for breaker in user_data(text)],
    "data-kept": [kept(VOLUME, False), kept(FILE_SYSTEM, False)],
    "narrow-endpoints": [
        change(ENDPOINT, "policy", None, "endpoints-secretsmanager"),
        change(ENDPOINT, "policy", policy("*", Principal="*"), "endpoints-secretsmanager"),
        change(ENDPOINT, "policy", ALL_BUT_ONE, "endpoints-secretsmanager"),
    ],
    "mails-of-alarms": [
        change(TOPIC, "kmsMasterKeyId", "alias/aws/sns"),
        change(
            TOPIC_POLICY, "policy", policy("sns:Publish", Principal={"Service": "cloudwatch.amazonaws.com"})
        ),
        change(TOPIC_POLICY, "policy", policy("sns:Publish", Principal="*")),
    ],
    "CKV_AWS_3": [change(VOLUME, "encrypted", False)],
    "CKV_AWS_8": [change(INSTANCE, "rootBlockDevice.encrypted", False)],
    "CKV_AWS_19": [without(BUCKET_ENCRYPTION)],
    "CKV_AWS_20": [change(BUCKET, "acl", "public-read")],
    "CKV_AWS_21": [without(VERSIONING), change(VERSIONING, "versioningConfiguration.status", "Suspended")],
    "CKV_AWS_23": [change(INGRESS, "description", None), change(SECURITY_GROUP, "description", "")],
    "CKV_AWS_24": [open_at(22), open_at(22, everybody="::/0")],
    "CKV_AWS_25": [open_at(3389)],
    "CKV_AWS_42": [change(FILE_SYSTEM, "encrypted", False)],
    "CKV_AWS_46": [breaker for text in SECRETS for breaker in user_data(text)],
    **{id_: [change(PUBLIC_BLOCK, key, False)] for id_, key in BLOCKED.items()},
    "CKV_AWS_57": [change(BUCKET, "acl", "public-read-write")],
    "CKV_AWS_60": [trust("*"), trust({"AWS": "*"}), trust({"AWS": ["*"]})],
    "CKV_AWS_61": [trust({"AWS": "arn:aws:iam::123456789012:root"})],
    "CKV_AWS_70": [change(BUCKET_POLICY, "policy", policy("s3:GetObject", Principal="*"))],
    "CKV_AWS_79": [change(INSTANCE, IMDS_V1, "optional"), change(TEMPLATE, IMDS_V1, "optional")],
    "CKV_AWS_88": [change(INSTANCE, "associatePublicIpAddress", True), change(TEMPLATE, PUBLIC, "true")],
    "CKV_AWS_93": [change(BUCKET_POLICY, "policy", policy("s3:*", Principal="*").replace("Allow", "Deny"))],
    "CKV_AWS_126": [change(INSTANCE, "monitoring", None)],
    "CKV_AWS_130": [change(SUBNET, "mapPublicIpOnLaunch", True)],
    "CKV_AWS_135": [change(INSTANCE, "ebsOptimized", False)],
    "CKV_AWS_153": [change(GROUP, "tags", None)],
    "CKV_AWS_253": [change(SNAPSHOTS, EVENT, {"crossRegionCopies": [{"encryptionConfiguration": {}}]})],
    "CKV_AWS_254": [
        change(SNAPSHOTS, EVENT, {"crossRegionCopies": [{"encryptionConfiguration": {"encrypted": True}}]})
    ],
    "CKV_AWS_255": [change(SNAPSHOTS, COPY_RULE, [{"encrypted": False}])],
    "CKV_AWS_256": [change(SNAPSHOTS, COPY_RULE, [{"encrypted": True}])],
    "CKV_AWS_260": [open_at(80)],
    "CKV_AWS_274": [change(ROLE, "managedPolicyArns", ["arn:aws:iam::aws:policy/AdministratorAccess"])],
    "CKV_AWS_277": [open_at(0, "-1")],
    "CKV_AWS_315": [change(GROUP, "mixedInstancesPolicy", None)],
    "CKV_AWS_7": [change(KEY, "enableKeyRotation", False), change(KEY, "enableKeyRotation", None)],
    "CKV_AWS_26": [change(TOPIC, "kmsMasterKeyId", None)],
    "CKV_AWS_33": [change(KEY, "policy", policy("kms:*", Principal="*"))],
    "CKV_AWS_169": [change(TOPIC_POLICY, "policy", policy("sns:Publish", Principal={"AWS": "*"}))],
    "CKV_AWS_227": [change(KEY, "isEnabled", False)],
    "CKV2_AWS_64": [change(KEY, "policy", None)],
    "KMS.5": [change(KEY, "policy", policy("kms:*", Principal="*"))],
    "SNS.4": [change(TOPIC_POLICY, "policy", policy("sns:Publish", Principal="*"))],
    "CKV_AWS_319": [change(ALARM, "actionsEnabled", False)],
    "CKV_AWS_341": [change(TEMPLATE, "metadataOptions.httpPutResponseHopLimit", 2)],
    "CKV_AWS_382": [
        in_turn(change(EGRESS, "cidrIpv4", "0.0.0.0/0"), change(EGRESS, "ipProtocol", "-1")),
    ],
    "CKV_AWS_393": [trust({"Federated": "arn:aws:iam::1:oidc-provider/token.actions.githubusercontent.com"})],
    "CKV2_AWS_2": [change(VOLUME, "encrypted", False)],
    "CKV2_AWS_5": [unlinked(INTERFACE, "securityGroups")],
    "CKV2_AWS_6": [without(PUBLIC_BLOCK)],
    "CKV2_AWS_12": [without(DEFAULT_GROUP), change(DEFAULT_GROUP, "egress", [{"protocol": "-1"}])],
    "CKV2_AWS_15": [change(GROUP, "targetGroupArns", ["arn:aws:elasticloadbalancing:…"])],
    "CKV2_AWS_19": [without(NAT_GATEWAY)],
    "CKV2_AWS_35": [change(ROUTE, "instanceId", "i-0")],
    "CKV2_AWS_41": [change(INSTANCE, "iamInstanceProfile", None)],
    "CKV2_AWS_44": [change(ROUTE, "vpcPeeringConnectionId", "pcx-0")],
    "CKV2_AWS_56": [change(ROLE, "managedPolicyArns", ["arn:aws:iam::aws:policy/IAMFullAccess"])],
    "CKV2_AWS_61": [without(LIFECYCLE)],
    "CKV2_AWS_65": [change(OWNERSHIP, "rule.objectOwnership", "ObjectWriter")],
    "AutoScaling.1": [change(GROUP, "loadBalancers", ["one"])],
    "AutoScaling.2": [change(GROUP, "vpcZoneIdentifiers", ["subnet-0"])],
    "AutoScaling.6": [
        change(GROUP, "vpcZoneIdentifiers", ["subnet-0"]),
        change(GROUP, "mixedInstancesPolicy.launchTemplate.overrides", [{"instanceType": "c7i.large"}]),
    ],
    "AutoScaling.9": [change(GROUP, "mixedInstancesPolicy", None)],
    "EC2.2": [change(DEFAULT_GROUP, "ingress", [{"self": True}])],
    "EC2.3": [change(VOLUME, "encrypted", False)],
    "EC2.8": [change(INSTANCE, IMDS_V1, "optional")],
    "EC2.9": [change(INSTANCE, "associatePublicIpAddress", True)],
    "EC2.15": [change(SUBNET, "mapPublicIpOnLaunch", True)],
    "EC2.17": [change(INSTANCE, "networkInterfaces", [{"networkInterfaceId": "eni-0"}])],
    "EC2.18": [
        open_at(8800),
        in_turn(open_at(80), change(INGRESS, "toPort", 443, AMQP_IN)),
    ],
    "EC2.19": [open_at(22), open_at(9300)],
    "EC2.25": [change(TEMPLATE, PUBLIC, True)],
    "EC2.170": [change(TEMPLATE, IMDS_V1, "optional")],
    "EC2.180": [change(INTERFACE, "sourceDestCheck", False)],
    "EC2.181": [NO_ROOT_ENCRYPTION],
    "EFS.1": [change(FILE_SYSTEM, "encrypted", False)],
    "EFS.2": [without(FILE_BACKUP), change(FILE_BACKUP, "backupPolicy.status", "DISABLED")],
    "EFS.6": [change(SUBNET, "mapPublicIpOnLaunch", True)],
    "EFS.7": [without(FILE_BACKUP)],
    "EFS.8": [change(FILE_SYSTEM, "encrypted", False)],
    "S3.2": UNBLOCKED,
    "S3.3": UNBLOCKED,
    "S3.5": [without(BUCKET_POLICY), change(BUCKET_POLICY, "policy", policy("s3:GetObject", Principal="*"))],
    "S3.6": [change(BUCKET_POLICY, "policy", policy("s3:GetObject", Principal={"AWS": "999999999999"}))],
    "S3.8": UNBLOCKED,
    "S3.12": [without(OWNERSHIP), change(OWNERSHIP, "rule.objectOwnership", "BucketOwnerPreferred")],
    "S3.13": [without(LIFECYCLE)],
    "SSM.1": [without(ROLE_POLICY)],
}
# What would make hold what fails by the design, for every resource that a row of exceptions covers.
REMEDIES: dict[str, Breaker] = {
    "CKV_AWS_18": beside(BUCKET_LOGGING, "bucket", BUCKET),
    "CKV_AWS_144": beside(BUCKET_REPLICATION, "bucket", BUCKET),
    "CKV_AWS_145": change(
        BUCKET_ENCRYPTION, "rules.0.applyServerSideEncryptionByDefault.sseAlgorithm", "aws:kms"
    ),
    "CKV_AWS_149": change(SECRET, "kmsKeyId", CUSTOMER_KEY),
    "CKV_AWS_184": change(FILE_SYSTEM, "kmsKeyId", CUSTOMER_KEY),
    "CKV_AWS_189": change(VOLUME, "kmsKeyId", CUSTOMER_KEY),
    "CKV2_AWS_9": beside(BACKUP_SELECTION, "resources", VOLUME),
    "CKV2_AWS_11": beside(FLOW_LOG, "vpcId", VPC),
    "CKV2_AWS_18": beside(BACKUP_SELECTION, "resources", FILE_SYSTEM),
    "CKV2_AWS_57": beside(ROTATION, "secretId", SECRET),
    "CKV2_AWS_62": beside(BUCKET_NOTIFICATION, "bucket", BUCKET),
    "EC2.6": beside(FLOW_LOG, "vpcId", VPC),
    **{
        id_: beside(ENDPOINT, "vpcId", VPC, serviceName=f"com.amazonaws.eu-central-1.{service}")
        for id_, service in {
            "EC2.10": "ec2",
            "EC2.55": "ecr.api",
            "EC2.56": "ecr.dkr",
            "EC2.57": "ssm",
            "EC2.58": "ssm-contacts",
            "EC2.60": "ssm-incidents",
        }.items()
    },
    "S3.9": beside(BUCKET_LOGGING, "bucket", BUCKET),
    "SecretsManager.1": beside(ROTATION, "secretId", SECRET),
    "SecretsManager.4": beside(ROTATION, "secretId", SECRET),
}


def test_each_rule_is_seen_to_be_broken_or_excepted_and_seen_to_be_remedied() -> None:
    ids = {rule.id for rule in pack.RULES}
    assert BREAKERS.keys() | REMEDIES.keys() == ids
    assert not BREAKERS.keys() & REMEDIES.keys()


@pytest.mark.parametrize(
    ("id_", "breaker"),
    [pytest.param(id_, one, id=f"{id_}-{n}") for id_, all_ in BREAKERS.items() for n, one in enumerate(all_)],
)
def test_a_rule_sees_what_breaks_it(record: Record, id_: str, breaker: Breaker) -> None:
    whole = stack_of(record, MAILS)
    assert breaking(id_, breaker(whole)) - breaking(id_, whole)


@pytest.mark.parametrize("id_", REMEDIES)
def test_a_control_that_fails_would_hold_with_what_it_asks_for(record: Record, id_: str) -> None:
    whole = stack_of(record, NAT)
    assert breaking(id_, whole)
    assert not breaking(id_, REMEDIES[id_](whole))


def test_what_is_broken_elsewhere_is_not_excused_by_the_exceptions(record: Record) -> None:
    found = unexcused(rights("secretsmanager:PutSecretValue")(stack_of(record, NAT)))
    assert {(one.rule, one.resource.name) for one in found} >= {
        ("CKV_AWS_290", "workers-rights"),
        ("CKV_AWS_355", "workers-rights"),
        ("least-rights", "workers-rights"),
    }


def also(text: str) -> Breaker:
    """The master's role is allowed what a policy says, too."""

    def apply(stack: Stack) -> Stack:
        (master,) = [one for one in stack.of(ROLE_POLICY) if one.name == "master-rights"]
        statements = [
            *master.statements("policy"),
            *replace(master, inputs={"policy": text}).statements("policy"),
        ]
        return change(ROLE_POLICY, "policy", json.dumps({"Statement": statements}), master.name)(stack)

    return apply


@pytest.mark.parametrize(
    ("id_", "text"),
    [pytest.param(id_, one, id=f"{id_}-{n}") for id_, all_ in RIGHTS.items() for n, one in enumerate(all_)],
)
def test_the_reason_for_two_actions_of_the_masters_role_excuses_no_other_one(
    record: Record, id_: str, text: str
) -> None:
    found = unexcused(also(text)(stack_of(record, NAT)))
    assert (id_, "master-rights") in {(one.rule, one.resource.name) for one in found}


def test_what_excuses_the_endpoint_beside_a_nat_gateway_does_not_excuse_it_alone(record: Record) -> None:
    """Without that gateway, it would be the one way to others' buckets."""
    wide = change(ENDPOINT, "policy", policy("*", Principal="*"), "network-s3")
    assert unexcused(wide(stack_of(record, NAT))) == []
    found = unexcused(wide(stack_of(record, ENDPOINTS)))
    assert [(one.rule, one.resource.name) for one in found] == [("narrow-endpoints", "network-s3")]


def test_without_a_nat_gateway_nothing_excuses_that_there_is_no_endpoint_for_systems_manager(
    record: Record,
) -> None:
    alone = stack_of(record, ENDPOINTS)
    others = [one for one in alone.resources if not str(one.inputs.get("serviceName")).endswith(".ssm")]
    assert "EC2.57" in {one.rule for one in unexcused(replace(alone, resources=others))}


def test_everything_that_is_encrypted_has_to_have_the_customers_key(record: Record) -> None:
    (breaker,) = BREAKERS["customers-key"]
    found = {label.partition(":")[0] for label in breaking("customers-key", breaker(stack_of(record, NAT)))}
    types = (VOLUME, FILE_SYSTEM, SECRET, INSTANCE, TEMPLATE, BUCKET_ENCRYPTION)
    assert found == {type_.rpartition(":")[2] for type_ in types}


def test_data_that_are_not_to_be_kept_must_not_stay_either(record: Record) -> None:
    whole = stack_of(record, SMALL)
    assert not {one for one in broken(whole) if one[0] == "data-kept"}
    assert {label for rule, label in broken(kept(VOLUME, True)(whole)) if rule == "data-kept"} == {
        "Volume:storage-home",
        "Volume:storage-var",
        "Volume:storage-rabbitmq",
    }


def test_the_engine_does_not_say_what_is_kept_so_nothing_is_found_then(record: Record) -> None:
    whole = stack_of(record, NAT)
    untold = replace(whole, resources=[replace(one, kept=None) for one in whole.resources])
    assert not {one for one in broken(untold) if one[0] == "data-kept"}


def test_the_rules_of_the_design_name_the_ports_of_facts() -> None:
    (rule,) = [rule for rule in design.RULES if rule.id == "three-ports"]
    assert all(port in rule.title for port in ("5672", "1999", "8800"))


def test_a_disk_that_is_attached_is_looked_at_from_both_ends(record: Record) -> None:
    whole = change(VOLUME, "encrypted", False, "storage-home")(stack_of(record, NAT))
    assert {label for rule, label in broken(whole) if rule in ("EC2.3", "CKV2_AWS_2")} == {
        f"{ATTACHMENT.rpartition(':')[2]}:master-home"
    }
