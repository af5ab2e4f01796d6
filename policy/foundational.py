"""The controls of AWS Foundational Security Best Practices that apply to the types which the program registers.

Ids as in the Security Hub user guide, as far as what is registered can answer them:
https://docs.aws.amazon.com/securityhub/latest/userguide/fsbp-standard.html
Controls of the account (S3.1, EC2.7, EC2.172) and of what runs or has happened (EC2.4, SSM.2, SSM.3, SecretsManager.2,
SecretsManager.3) are not the program's to answer.
"""

from __future__ import annotations

from typing import Final

from policy import checkov, design
from policy.actions import allowing
from policy.resources import (
    ATTACHMENT,
    BUCKET,
    BUCKET_POLICY,
    DEFAULT_GROUP,
    ENDPOINT,
    FILE_BACKUP,
    FILE_SYSTEM,
    GROUP,
    INGRESS,
    INSTANCE,
    INTERFACE,
    KEY,
    LIFECYCLE,
    MOUNT_TARGET,
    OWNERSHIP,
    PROFILE,
    PUBLIC_BLOCK,
    ROLE,
    ROLE_POLICY,
    ROTATION,
    SECRET,
    SUBNET,
    TEMPLATE,
    TOPIC_POLICY,
    UNKNOWN,
    VPC,
    Resource,
    Stack,
    actions,
    targets,
)
from policy.rules import Check, Rule, all_of, has, refuses, wants

# Ports that EC2.19 calls of high risk:
# https://docs.aws.amazon.com/securityhub/latest/userguide/ec2-controls.html#ec2-19
_RISKY_PORTS: Final = (
    20, 21, 22, 23, 25, 110, 135, 143, 445, 1433, 1434, 3000, 3306, 3389, 4333, 5000, 5432, 5500, 5601, 8080, 8088,
    8888, 9200, 9300,
)  # fmt: skip
# What EC2.18 lets be open to everybody.
_AUTHORISED_PORTS: Final = frozenset({80, 443})
# What an instance needs to be one that Systems Manager manages.
_REGISTERS: Final = "ssm:UpdateInstanceInformation"


def _zones(group: Resource, _stack: Stack) -> str:
    subnets = group.inputs.get("vpcZoneIdentifiers") or []
    return "" if subnets == UNKNOWN or len(subnets) > 1 else "one zone only"


def _types_and_zones(group: Resource, stack: Stack) -> str:
    types = group.values("mixedInstancesPolicy.launchTemplate.overrides.instanceType")
    return "one instance type only" if len(types) < 2 else _zones(group, stack)


def _unauthorised(rule: Resource, _stack: Stack) -> str:
    everybody = {rule.inputs.get("cidrIpv4"), rule.inputs.get("cidrIpv6")} & set(design.EVERYWHERE)
    first, last = rule.inputs.get("fromPort"), rule.inputs.get("toPort")
    return "open to everybody" if everybody and not (first == last and first in _AUTHORISED_PORTS) else ""


def _interface_endpoint(service: str) -> Check:
    """A VPC has an interface endpoint for a service."""

    def check(vpc: Resource, stack: Stack) -> str:
        found = [one.inputs.get("serviceName", "") for one in stack.users(vpc, "vpcId", ENDPOINT)]
        return "" if any(name.endswith(f".{service}") for name in found) else f"no endpoint for {service}"

    return check


def _backed_up(file_system: Resource, stack: Stack) -> str:
    found = stack.users(file_system, "fileSystemId", FILE_BACKUP)
    on = [one for one in found if one.values("backupPolicy.status") == ["ENABLED"]]
    return "" if on else "no automatic backups"


def _targets_private(target: Resource, stack: Stack) -> str:
    subnets = stack.used(target, "subnetId", SUBNET)
    return (
        "its subnet gives public addresses"
        if any(one.inputs.get("mapPublicIpOnLaunch") for one in subnets)
        else ""
    )


def _tls_only(bucket: Resource, stack: Stack) -> str:
    for policy in stack.users(bucket, "bucket", BUCKET_POLICY):
        if policy.inputs.get("policy") == UNKNOWN:
            return ""
        for one in policy.statements("policy"):
            if one["Effect"] == "Deny" and one.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}}:
                return ""
    return "plain HTTP is not refused"


def _own_account(bucket_policy: Resource, _stack: Stack) -> str:
    found = [
        one for one in allowing(bucket_policy.statements("policy")) if "AWS" in (one.get("Principal") or "")
    ]
    return "other accounts are allowed something" if found else ""


def _no_acls(bucket: Resource, stack: Stack) -> str:
    found = stack.users(bucket, "bucket", OWNERSHIP)
    on = [one for one in found if one.values("rule.objectOwnership") == ["BucketOwnerEnforced"]]
    return "" if on else "ACLs count"


def _all_blocked(bucket: Resource, stack: Stack) -> str:
    keys = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    found = stack.users(bucket, "bucket", PUBLIC_BLOCK)
    return (
        ""
        if any(all(one.inputs.get(key) is True for key in keys) for one in found)
        else "public access is not blocked"
    )


def _managed(machine: Resource, stack: Stack) -> str:
    """The machine's role lets it register with Systems Manager."""
    profiles = stack.used(machine, "iamInstanceProfile", PROFILE)
    roles = [role for profile in profiles for role in stack.used(profile, "role", ROLE)]
    policies = [policy for role in roles for policy in stack.users(role, "role", ROLE_POLICY)]
    if any(policy.inputs.get("policy") == UNKNOWN for policy in policies):
        return ""
    allowed = {
        action
        for policy in policies
        for statement in allowing(policy.statements("policy"))
        if targets(statement)
        for action in actions(statement)
    }
    return "" if _REGISTERS in allowed else "its role does not let it register"


RULES: Final = (
    Rule(
        "AutoScaling.1",
        "Groups behind a load balancer use its health checks",
        (GROUP,),
        checkov.by_load_balancer,
    ),
    Rule("AutoScaling.2", "Autoscaling groups cover several zones", (GROUP,), _zones),
    Rule(
        "AutoScaling.6", "Autoscaling groups use several types in several zones", (GROUP,), _types_and_zones
    ),
    Rule("AutoScaling.9", "Autoscaling groups use launch templates", (GROUP,), checkov.has_template),
    Rule("EC2.2", "Default security groups have no rules", (DEFAULT_GROUP,), design.no_rules_inside),
    Rule("EC2.3", "Attached volumes are encrypted", (ATTACHMENT,), checkov.attached_encrypted, whole=True),
    Rule("EC2.6", "VPCs have flow logs", (VPC,), checkov.FLOW_LOGS, whole=True),
    Rule("EC2.8", "Instances want IMDSv2", (INSTANCE,), wants("metadataOptions.httpTokens", "required")),
    Rule("EC2.9", "Instances have no public address", (INSTANCE,), refuses("associatePublicIpAddress", True)),
    Rule("EC2.10", "VPCs have an endpoint for EC2", (VPC,), _interface_endpoint("ec2"), whole=True),
    Rule("EC2.15", "Subnets give no public addresses", (SUBNET,), refuses("mapPublicIpOnLaunch", True)),
    Rule("EC2.17", "Instances have one network interface", (INSTANCE,), wants("networkInterfaces", None, [])),
    Rule("EC2.18", "Only authorised ports are open to everybody", (INGRESS,), _unauthorised),
    Rule(
        "EC2.19",
        "Ports of high risk are not open to everybody",
        (INGRESS,),
        all_of(*(checkov.open_to(port) for port in _RISKY_PORTS)),
    ),
    Rule(
        "EC2.25",
        "Launch templates give no public address",
        (TEMPLATE,),
        refuses("networkInterfaces.associatePublicIpAddress", True),
    ),
    Rule(
        "EC2.55",
        "VPCs have an endpoint for the API of ECR",
        (VPC,),
        _interface_endpoint("ecr.api"),
        whole=True,
    ),
    Rule(
        "EC2.56",
        "VPCs have an endpoint for the Docker registry",
        (VPC,),
        _interface_endpoint("ecr.dkr"),
        whole=True,
    ),
    Rule(
        "EC2.57", "VPCs have an endpoint for Systems Manager", (VPC,), _interface_endpoint("ssm"), whole=True
    ),
    Rule(
        "EC2.58",
        "VPCs have an endpoint for the contacts of Incident Manager",
        (VPC,),
        _interface_endpoint("ssm-contacts"),
        whole=True,
    ),
    Rule(
        "EC2.60",
        "VPCs have an endpoint for Incident Manager",
        (VPC,),
        _interface_endpoint("ssm-incidents"),
        whole=True,
    ),
    Rule(
        "EC2.170",
        "Launch templates want IMDSv2",
        (TEMPLATE,),
        wants("metadataOptions.httpTokens", "required"),
    ),
    Rule(
        "EC2.180",
        "Network interfaces check source and destination",
        (INTERFACE,),
        refuses("sourceDestCheck", False),
    ),
    Rule(
        "EC2.181",
        "Launch templates encrypt their volumes",
        (TEMPLATE,),
        wants("blockDeviceMappings.ebs.encrypted", True),
    ),
    Rule("EFS.1", "EFS is encrypted at rest with KMS", (FILE_SYSTEM,), wants("encrypted", True)),
    Rule("EFS.2", "EFS is in a backup plan", (FILE_SYSTEM,), _backed_up, whole=True),
    Rule(
        "EFS.6",
        "Mount targets are in subnets without public addresses",
        (MOUNT_TARGET,),
        _targets_private,
        whole=True,
    ),
    Rule("EFS.7", "EFS has automatic backups", (FILE_SYSTEM,), _backed_up, whole=True),
    Rule("EFS.8", "EFS is encrypted at rest", (FILE_SYSTEM,), wants("encrypted", True)),
    Rule("KMS.5", "KMS keys are not open to everybody", (KEY,), checkov.nothing_for_everybody),
    Rule("S3.2", "S3 buckets block public reading", (BUCKET,), _all_blocked, whole=True),
    Rule("S3.3", "S3 buckets block public writing", (BUCKET,), _all_blocked, whole=True),
    Rule("S3.5", "S3 buckets want TLS", (BUCKET,), _tls_only, whole=True),
    Rule("S3.6", "Bucket policies allow nothing to other accounts", (BUCKET_POLICY,), _own_account),
    Rule("S3.8", "S3 buckets block public access", (BUCKET,), _all_blocked, whole=True),
    Rule("S3.9", "S3 buckets log accesses", (BUCKET,), checkov.ACCESS_LOG, whole=True),
    Rule("S3.12", "S3 buckets have no ACLs", (BUCKET,), _no_acls, whole=True),
    Rule("S3.13", "S3 buckets have a lifecycle", (BUCKET,), has("bucket", LIFECYCLE), whole=True),
    Rule(
        "SecretsManager.1", "Secrets rotate by themselves", (SECRET,), has("secretId", ROTATION), whole=True
    ),
    Rule(
        "SecretsManager.4", "Secrets rotate within 90 days", (SECRET,), has("secretId", ROTATION), whole=True
    ),
    Rule("SNS.4", "SNS topics are not open to everybody", (TOPIC_POLICY,), checkov.nothing_for_everybody),
    Rule("SSM.1", "Machines are managed by Systems Manager", (INSTANCE, TEMPLATE), _managed, whole=True),
)
