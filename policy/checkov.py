"""The controls of Checkov that apply to the types which the program registers.

Ids and what they look at are those of Checkov 3.3.30 (checkov/terraform/checks in the package of that name). They are
written anew here, since Checkov reads Terraform and not what a Pulumi program registers.
"""

from __future__ import annotations

from typing import Any, Final

from policy import design
from policy.actions import READING, allowing, unrestricted
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
    EIP,
    ENDPOINT,
    FILE_SYSTEM,
    FLOW_LOG,
    GROUP,
    INGRESS,
    INSTANCE,
    INTERFACE,
    KEY,
    LIFECYCLE,
    MOUNT_TARGET,
    NAT_GATEWAY,
    OWNERSHIP,
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
    targets,
)
from policy.rules import ON_ALL, Allows, Check, Rule, all_of, has, needs, refuses, wants

_SECRET_DATA: Final = frozenset(
    {
        "s3:GetObject",
        "secretsmanager:GetSecretValue",
        "ssm:GetParameter",
        "ssm:GetParameters",
        "ssm:GetParametersByPath",
    }
)
# Services whose actions give rights or credentials; Checkov's lists of single actions are parts of them. No role here
# has an action of one.
_GIVES_RIGHTS: Final = (
    "cloudformation",
    "codeartifact",
    "cognito-identity",
    "datapipeline",
    "ecr",
    "glue",
    "iam",
    "lambda",
    "organizations",
    "redshift",
    "sso",
    "sts",
)
_RETURNS_CREDENTIALS: Final = frozenset({"ec2:GetPasswordData", "rds-db:connect"})
# Actions of the services that the roles use which change who may do what with a resource.
_EXPOSES: Final = frozenset(
    {
        "ec2:ModifySnapshotAttribute",
        "ec2:ResetSnapshotAttribute",
        "kms:CreateGrant",
        "kms:PutKeyPolicy",
        "kms:RetireGrant",
        "kms:RevokeGrant",
        "s3:DeleteBucketPolicy",
        "s3:PutBucketAcl",
        "s3:PutBucketPolicy",
        "s3:PutObjectAcl",
        "secretsmanager:DeleteResourcePolicy",
        "secretsmanager:PutResourcePolicy",
        "ssm:ModifyDocumentPermission",
    }
)


def open_to(port: int | None) -> Check:
    """Everybody reaches a port, or everything (None), by an ingress rule."""

    def check(rule: Resource, _stack: Stack) -> str:
        everybody = {rule.inputs.get("cidrIpv4"), rule.inputs.get("cidrIpv6")} & set(design.EVERYWHERE)
        if not everybody:
            return ""
        if rule.inputs.get("ipProtocol") == "-1":
            return "open to everybody, all of it"
        if port is None:
            return ""
        first, last = rule.inputs.get("fromPort", port), rule.inputs.get("toPort", port)
        if UNKNOWN in (first, last):
            return ""
        return f"open to everybody at port {port}" if first <= port <= last else ""

    return check


def _egress_everywhere(rule: Resource, _stack: Stack) -> str:
    everybody = {rule.inputs.get("cidrIpv4"), rule.inputs.get("cidrIpv6")} & set(design.EVERYWHERE)
    return "lets everything out to everybody" if everybody and rule.inputs.get("ipProtocol") == "-1" else ""


def _group_is_used(group: Resource, stack: Stack) -> str:
    users = [
        *stack.users(group, "securityGroups", INTERFACE, MOUNT_TARGET),
        *stack.users(group, "networkInterfaces", TEMPLATE),
        *stack.users(group, "securityGroupIds", ENDPOINT),
        *stack.users(group, "vpcSecurityGroupIds", INSTANCE, TEMPLATE),
    ]
    return "" if users else "nothing is in it"


def by_load_balancer(group: Resource, _stack: Stack) -> str:
    """A group behind a load balancer takes its word for the machines' health."""
    balanced = group.inputs.get("loadBalancers") or group.inputs.get("targetGroupArns")
    return (
        "health is not the load balancer's"
        if balanced and group.inputs.get("healthCheckType") != "ELB"
        else ""
    )


def has_template(group: Resource, _stack: Stack) -> str:
    """A group has a launch template, of its own or in a policy of mixed instances."""
    found = group.inputs.get("launchTemplate") or group.values("mixedInstancesPolicy.launchTemplate")[0]
    return "" if found else "no launch template"


def _copies_encrypted(path: str, argument: str) -> Check:
    """Copies to other regions, at a path of a policy of snapshots, are encrypted, or have a key of the customer's."""

    def check(policy: Resource, _stack: Stack) -> str:
        copies = [Resource(policy.type, policy.name, copy) for copy in policy.values(path) if copy]
        return "" if all(copy.values(argument)[0] for copy in copies) else f"copies without {argument}"

    return check


_EVENT_COPIES: Final = "policyDetails.action.crossRegionCopies"
_SCHEDULE_COPIES: Final = "policyDetails.schedules.crossRegionCopyRules"


def attached_encrypted(attachment: Resource, stack: Stack) -> str:
    """What is attached is encrypted."""
    bad = [
        volume.name
        for volume in stack.used(attachment, "volumeId", VOLUME)
        if not volume.inputs.get("encrypted")
    ]
    return f"attaches {bad[0]}, which is not encrypted" if bad else ""


def _address_is_used(address: Resource, stack: Stack) -> str:
    users = [*stack.users(address, "allocationId", NAT_GATEWAY), *stack.users(address, "instance", INSTANCE)]
    return "" if users or address.inputs.get("instance") else "nothing has it"


def _default_group_is_empty(vpc: Resource, stack: Stack) -> str:
    groups = stack.users(vpc, "vpcId", DEFAULT_GROUP)
    if not groups:
        return "its default group is AWS's, which lets everything out"
    return (
        ""
        if not any(design.no_rules_inside(group, stack) for group in groups)
        else "its default group has rules"
    )


def _no_instance_as_gateway(route: Resource, _stack: Stack) -> str:
    out = route.inputs.get("destinationCidrBlock") == "0.0.0.0/0"
    return "a machine is the way out" if out and route.inputs.get("instanceId") else ""


def _no_open_peering(route: Resource, _stack: Stack) -> str:
    out = route.inputs.get("destinationCidrBlock") == "0.0.0.0/0"
    return "all traffic goes to another VPC" if out and route.inputs.get("vpcPeeringConnectionId") else ""


def nothing_for_everybody(policy: Resource, _stack: Stack) -> str:
    """A resource's policy allows nothing to everybody."""
    open_ = [one for one in allowing(policy.statements("policy")) if _anybody(one) and "Condition" not in one]
    return "allows everybody something" if open_ else ""


def _no_lockout(bucket_policy: Resource, _stack: Stack) -> str:
    fatal = {"*", "s3:*", "s3:Put*", "s3:*BucketPolicy", "s3:PutBucketPolicy"}
    locks = [
        one
        for one in bucket_policy.statements("policy")
        if one["Effect"] == "Deny" and "Condition" not in one and _anybody(one) and fatal & set(actions(one))
    ]
    return "nobody could change the policy any more" if locks else ""


def _anybody(statement: Any) -> bool:
    principal = statement.get("Principal")
    found = principal.get("AWS") if isinstance(principal, dict) else principal
    return found == "*" or (isinstance(found, list) and "*" in found)


def _public_acl(*bad: str) -> Check:
    return refuses("acl", *bad)


def _trusts_services_only(role: Resource, _stack: Stack) -> str:
    trusts = role.statements("assumeRolePolicy")
    return "anybody may take it on" if any(_anybody(one) for one in allowing(trusts)) else ""


def _trusts_no_account(role: Resource, _stack: Stack) -> str:
    for one in allowing(role.statements("assumeRolePolicy")):
        principal = one.get("Principal")
        accounts = principal.get("AWS", []) if isinstance(principal, dict) else []
        if any(":root" in account for account in ([accounts] if isinstance(accounts, str) else accounts)):
            return "everybody of an account may take it on"
    return ""


def _trusts_no_github(role: Resource, _stack: Stack) -> str:
    text = str(role.inputs.get("assumeRolePolicy"))
    return "trusts GitHub's tokens, whose claims nobody checks here" if "token.actions.github" in text else ""


def _no_managed(name: str) -> Check:
    def check(role: Resource, _stack: Stack) -> str:
        arns = role.inputs.get("managedPolicyArns") or []
        return f"has {name}" if any(arn.endswith(f"/{name}") for arn in arns) else ""

    return check


def _full_admin(policy: Resource, _stack: Stack) -> str:
    full = [
        one
        for one in allowing(policy.statements("policy"))
        if {"*", "*:*"} & set(actions(one)) and "*" in targets(one)
    ]
    return "allows everything on everything" if full else ""


def _star_action(policy: Resource, _stack: Stack) -> str:
    return (
        "allows all actions"
        if any("*" in actions(one) for one in allowing(policy.statements("policy")))
        else ""
    )


def _allowed(policy: Resource) -> list[str]:
    return [action for one in allowing(policy.statements("policy")) for action in actions(one)]


def _gives_rights(policy: Resource, _stack: Stack) -> str:
    found = [action for action in _allowed(policy) if action.partition(":")[0] in (*_GIVES_RIGHTS, "*")]
    return f"allows {found[0]}" if found else ""


def _returns_credentials(policy: Resource, stack: Stack) -> str:
    found = sorted(_RETURNS_CREDENTIALS & set(_allowed(policy)))
    return f"allows {found[0]}" if found else _gives_rights(policy, stack)


def _exfiltrates(policy: Resource, _stack: Stack) -> str:
    return Allows(sorted(_SECRET_DATA & set(unrestricted(policy.statements("policy")))), ON_ALL)


def _exposes(policy: Resource, _stack: Stack) -> str:
    return Allows(sorted(_EXPOSES & set(unrestricted(policy.statements("policy")))), ON_ALL)


def _writes(policy: Resource, _stack: Stack) -> str:
    found = [action for action in unrestricted(policy.statements("policy")) if action not in READING]
    return Allows(found, ON_ALL)


def _unrestricted(policy: Resource, _stack: Stack) -> str:
    return Allows(unrestricted(policy.statements("policy")), ON_ALL)


def _full_iam(policy: Resource, _stack: Stack) -> str:
    return "allows all of IAM" if {"iam:*", "*"} & set(_allowed(policy)) else ""


def _bucket_kms(bucket: Resource, stack: Stack) -> str:
    path = "rules.applyServerSideEncryptionByDefault.sseAlgorithm"
    found = [
        value for user in stack.users(bucket, "bucket", BUCKET_ENCRYPTION) for value in user.values(path)
    ]
    return "" if found and set(found) <= {"aws:kms", "aws:kms:dsse"} else "its keys are S3's"


def _versioned(bucket: Resource, stack: Stack) -> str:
    found = stack.users(bucket, "bucket", VERSIONING)
    on = [user for user in found if user.values("versioningConfiguration.status") == ["Enabled"]]
    return "" if on else "no versions are kept"


_PUBLIC_READ: Final = ("public-read", "public-read-write", "website", "authenticated-read")
_CUSTOMER_KEY: Final = needs("kmsKeyId")
FLOW_LOGS: Final = has("vpcId", FLOW_LOG)
ACCESS_LOG: Final = has("bucket", BUCKET_LOGGING)

RULES: Final = (
    Rule("CKV_AWS_3", "EBS volumes are encrypted", (VOLUME,), wants("encrypted", True)),
    Rule(
        "CKV_AWS_8",
        "Root disks of instances are encrypted",
        (INSTANCE,),
        wants("rootBlockDevice.encrypted", True),
    ),
    Rule("CKV_AWS_18", "S3 buckets log accesses", (BUCKET,), ACCESS_LOG, whole=True),
    Rule(
        "CKV_AWS_19",
        "S3 buckets are encrypted at rest",
        (BUCKET,),
        has("bucket", BUCKET_ENCRYPTION),
        whole=True,
    ),
    Rule("CKV_AWS_20", "S3 buckets have no ACL for public reading", (BUCKET,), _public_acl(*_PUBLIC_READ)),
    Rule("CKV_AWS_21", "S3 buckets keep versions", (BUCKET,), _versioned, whole=True),
    Rule(
        "CKV_AWS_23",
        "Security groups and rules have descriptions",
        (SECURITY_GROUP, INGRESS, EGRESS),
        needs("description"),
    ),
    Rule("CKV_AWS_24", "Port 22 is not open to everybody", (INGRESS,), open_to(22)),
    Rule("CKV_AWS_25", "Port 3389 is not open to everybody", (INGRESS,), open_to(3389)),
    Rule("CKV_AWS_42", "EFS is encrypted", (FILE_SYSTEM,), wants("encrypted", True)),
    Rule("CKV_AWS_46", "User data hold no secret", (INSTANCE, TEMPLATE), design.secretless),
    Rule("CKV_AWS_53", "S3 blocks public ACLs", (PUBLIC_BLOCK,), wants("blockPublicAcls", True)),
    Rule("CKV_AWS_54", "S3 blocks public policies", (PUBLIC_BLOCK,), wants("blockPublicPolicy", True)),
    Rule("CKV_AWS_55", "S3 ignores public ACLs", (PUBLIC_BLOCK,), wants("ignorePublicAcls", True)),
    Rule("CKV_AWS_56", "S3 restricts public buckets", (PUBLIC_BLOCK,), wants("restrictPublicBuckets", True)),
    Rule(
        "CKV_AWS_57", "S3 buckets have no ACL for public writing", (BUCKET,), _public_acl("public-read-write")
    ),
    Rule("CKV_AWS_60", "Roles trust named services or principals", (ROLE,), _trusts_services_only),
    Rule("CKV_AWS_61", "Roles trust no whole account", (ROLE,), _trusts_no_account),
    Rule("CKV_AWS_62", "Policies allow no full administration", (ROLE_POLICY,), _full_admin),
    Rule("CKV_AWS_63", "Policies do not allow all actions", (ROLE_POLICY,), _star_action),
    Rule("CKV_AWS_70", "Bucket policies allow nothing to everybody", (BUCKET_POLICY,), nothing_for_everybody),
    Rule(
        "CKV_AWS_79",
        "Instance metadata want a token (IMDSv2)",
        (INSTANCE, TEMPLATE),
        wants("metadataOptions.httpTokens", "required"),
    ),
    Rule(
        "CKV_AWS_88",
        "Machines have no public address",
        (INSTANCE, TEMPLATE),
        all_of(
            refuses("associatePublicIpAddress", True),
            refuses("networkInterfaces.associatePublicIpAddress", True),
        ),
    ),
    Rule("CKV_AWS_93", "Bucket policies lock nobody out", (BUCKET_POLICY,), _no_lockout),
    Rule("CKV_AWS_126", "Instances have detailed monitoring", (INSTANCE,), wants("monitoring", True)),
    Rule("CKV_AWS_130", "Subnets give no public addresses", (SUBNET,), refuses("mapPublicIpOnLaunch", True)),
    Rule("CKV_AWS_135", "Instances are EBS-optimised", (INSTANCE,), wants("ebsOptimized", True)),
    Rule(
        "CKV_AWS_144",
        "S3 buckets are replicated to another region",
        (BUCKET,),
        has("bucket", BUCKET_REPLICATION),
        whole=True,
    ),
    Rule("CKV_AWS_145", "S3 buckets are encrypted with KMS", (BUCKET,), _bucket_kms, whole=True),
    Rule("CKV_AWS_149", "Secrets have a customer's key", (SECRET,), _CUSTOMER_KEY),
    Rule("CKV_AWS_153", "Autoscaling groups tag their machines", (GROUP,), needs("tags")),
    Rule("CKV_AWS_184", "EFS has a customer's key", (FILE_SYSTEM,), _CUSTOMER_KEY),
    Rule("CKV_AWS_189", "EBS volumes have a customer's key", (VOLUME,), _CUSTOMER_KEY),
    Rule(
        "CKV_AWS_253",
        "Snapshots that an event copies to other regions are encrypted",
        (SNAPSHOTS,),
        _copies_encrypted(_EVENT_COPIES, "encryptionConfiguration.encrypted"),
    ),
    Rule(
        "CKV_AWS_254",
        "Snapshots that an event copies to other regions have a customer's key",
        (SNAPSHOTS,),
        _copies_encrypted(_EVENT_COPIES, "encryptionConfiguration.cmkArn"),
    ),
    Rule(
        "CKV_AWS_255",
        "Snapshots that a schedule copies to other regions are encrypted",
        (SNAPSHOTS,),
        _copies_encrypted(_SCHEDULE_COPIES, "encrypted"),
    ),
    Rule(
        "CKV_AWS_256",
        "Snapshots that a schedule copies to other regions have a customer's key",
        (SNAPSHOTS,),
        _copies_encrypted(_SCHEDULE_COPIES, "cmkArn"),
    ),
    Rule("CKV_AWS_260", "Port 80 is not open to everybody", (INGRESS,), open_to(80)),
    Rule("CKV_AWS_274", "Roles have no AdministratorAccess", (ROLE,), _no_managed("AdministratorAccess")),
    Rule("CKV_AWS_277", "Not all ports are open to everybody", (INGRESS,), open_to(None)),
    Rule("CKV_AWS_286", "Policies allow no privilege escalation", (ROLE_POLICY,), _gives_rights),
    Rule(
        "CKV_AWS_287", "Policies allow nothing that returns credentials", (ROLE_POLICY,), _returns_credentials
    ),
    Rule("CKV_AWS_288", "Policies do not allow to read all data", (ROLE_POLICY,), _exfiltrates),
    Rule("CKV_AWS_289", "Policies do not allow to change all permissions", (ROLE_POLICY,), _exposes),
    Rule("CKV_AWS_290", "Policies do not allow to write to all resources", (ROLE_POLICY,), _writes),
    Rule("CKV_AWS_315", "Autoscaling groups use launch templates", (GROUP,), has_template),
    Rule("CKV_AWS_7", "KMS keys rotate", (KEY,), wants("enableKeyRotation", True)),
    Rule("CKV_AWS_26", "SNS topics are encrypted", (TOPIC,), needs("kmsMasterKeyId")),
    Rule("CKV_AWS_33", "Policies of KMS keys allow nothing to everybody", (KEY,), nothing_for_everybody),
    Rule(
        "CKV_AWS_169",
        "Policies of SNS topics allow nothing to everybody",
        (TOPIC_POLICY,),
        nothing_for_everybody,
    ),
    Rule("CKV_AWS_227", "KMS keys are enabled", (KEY,), refuses("isEnabled", False)),
    Rule("CKV2_AWS_64", "KMS keys have a policy", (KEY,), needs("policy")),
    Rule("CKV_AWS_319", "Alarms' actions are enabled", (ALARM,), refuses("actionsEnabled", False)),
    Rule(
        "CKV_AWS_341",
        "Instance metadata of launch templates are one hop away",
        (TEMPLATE,),
        wants("metadataOptions.httpPutResponseHopLimit", None, 1),
    ),
    Rule("CKV_AWS_355", "Policies name resources where an action knows any", (ROLE_POLICY,), _unrestricted),
    Rule("CKV_AWS_382", "Not everything may leave to everybody", (EGRESS,), _egress_everywhere),
    Rule("CKV_AWS_393", "Roles that trust GitHub check its claims", (ROLE,), _trusts_no_github),
    Rule("CKV2_AWS_2", "Attached volumes are encrypted", (ATTACHMENT,), attached_encrypted, whole=True),
    Rule("CKV2_AWS_5", "Something is in every security group", (SECURITY_GROUP,), _group_is_used, whole=True),
    Rule("CKV2_AWS_6", "S3 buckets block public access", (BUCKET,), has("bucket", PUBLIC_BLOCK), whole=True),
    Rule(
        "CKV2_AWS_9",
        "EBS volumes are in a plan of AWS Backup",
        (VOLUME,),
        has("resources", BACKUP_SELECTION),
        whole=True,
    ),
    Rule("CKV2_AWS_11", "VPCs have flow logs", (VPC,), FLOW_LOGS, whole=True),
    Rule(
        "CKV2_AWS_12",
        "VPCs' default security groups have no rules",
        (VPC,),
        _default_group_is_empty,
        whole=True,
    ),
    Rule("CKV2_AWS_15", "Groups behind a load balancer use its health checks", (GROUP,), by_load_balancer),
    Rule(
        "CKV2_AWS_18",
        "EFS is in a plan of AWS Backup",
        (FILE_SYSTEM,),
        has("resources", BACKUP_SELECTION),
        whole=True,
    ),
    Rule("CKV2_AWS_19", "Something has every elastic address", (EIP,), _address_is_used, whole=True),
    Rule(
        "CKV2_AWS_35", "The default route is a NAT gateway, not a machine", (ROUTE,), _no_instance_as_gateway
    ),
    Rule("CKV2_AWS_40", "Policies do not allow all of IAM", (ROLE_POLICY,), _full_iam),
    Rule("CKV2_AWS_41", "Instances have a role", (INSTANCE,), needs("iamInstanceProfile")),
    Rule("CKV2_AWS_44", "No default route leads to another VPC", (ROUTE,), _no_open_peering),
    Rule("CKV2_AWS_56", "Roles have no IAMFullAccess", (ROLE,), _no_managed("IAMFullAccess")),
    Rule("CKV2_AWS_57", "Secrets rotate by themselves", (SECRET,), has("secretId", ROTATION), whole=True),
    Rule("CKV2_AWS_61", "S3 buckets have a lifecycle", (BUCKET,), has("bucket", LIFECYCLE), whole=True),
    Rule(
        "CKV2_AWS_62",
        "S3 buckets notify of events",
        (BUCKET,),
        has("bucket", BUCKET_NOTIFICATION),
        whole=True,
    ),
    Rule(
        "CKV2_AWS_65",
        "S3 buckets have no ACLs",
        (OWNERSHIP,),
        wants("rule.objectOwnership", "BucketOwnerEnforced"),
    ),
)
