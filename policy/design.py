"""The rules of this design: docs/security.md says them in words."""

from __future__ import annotations

import base64
import gzip
import re
from ipaddress import IPv4Network, ip_network
from typing import Final

from components import facts
from policy.actions import allowing, everywhere, unrestricted, wildcards
from policy.resources import (
    BUCKET,
    BUCKET_ENCRYPTION,
    DEFAULT_GROUP,
    ENDPOINT,
    FILE_SYSTEM,
    INGRESS,
    INSTANCE,
    INTERFACE,
    MOUNT_TARGET,
    ROLE_POLICY,
    SECRET,
    SECURITY_GROUP,
    SUBNET,
    TEMPLATE,
    TOPIC,
    TOPIC_POLICY,
    UNKNOWN,
    VOLUME,
    VPC,
    Resource,
    Stack,
)
from policy.rules import ON_ALL, Allows, Rule, all_of, has, refuses, wants

EVERYWHERE: Final = ("0.0.0.0/0", "::/0")
# 100.64.0.0/10 is no private network to ipaddress; it is what carriers and VPNs use inside: RFC 6598.
_SHARED: Final = IPv4Network("100.64.0.0/10")

# What a party's security group takes: a port, and from whom.
_TAKES: Final = {
    "master": {
        (facts.AMQP_PORT, "workers"),
        (facts.DBSERVER_PORT, "workers"),
        (facts.WEBUI_PORT, "clients"),
    },
    "workers": set[tuple[int, str]](),
    "nfs": {(facts.NFS_PORT, "master"), (facts.NFS_PORT, "workers")},
    "endpoints": {(facts.HTTPS_PORT, "master"), (facts.HTTPS_PORT, "workers")},
}
# Who is in a group, by the argument of the resource that names it.
_MEMBERS: Final = {
    "master": (INTERFACE, "securityGroups"),
    "workers": (TEMPLATE, "networkInterfaces"),
    "nfs": (MOUNT_TARGET, "securityGroups"),
    "endpoints": (ENDPOINT, "securityGroupIds"),
}

# The argument that names the key, by the type of what is encrypted.
_KEY_OF: Final = {
    VOLUME: "kmsKeyId",
    FILE_SYSTEM: "kmsKeyId",
    SECRET: "kmsKeyId",
    INSTANCE: "rootBlockDevice.kmsKeyId",
    TEMPLATE: "blockDeviceMappings.ebs.kmsKeyId",
    BUCKET_ENCRYPTION: "rules.applyServerSideEncryptionByDefault.kmsMasterKeyId",
}

_SECRETS: Final = {
    "an access key of AWS": re.compile(r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"://[^/\s:@'\"]+:[^/\s:@'\"${}<>]+@"),
    "a value of a secret": re.compile(
        r"(?i)(password|passwd|authkey|secret_?key|api_?key|token)[\"']?\s*[:=]\s*[\"']?[a-z0-9+/_-]{16,}"
    ),
}


def _party(group: Resource, stack: Stack) -> str:
    return next(
        (party for party, (type_, argument) in _MEMBERS.items() if stack.users(group, argument, type_)), ""
    )


def _three_ports(rule: Resource, stack: Stack) -> str:
    """An ingress rule is one of _TAKES."""
    groups = stack.used(rule, "securityGroupId", SECURITY_GROUP)
    sources = stack.used(rule, "referencedSecurityGroupId", SECURITY_GROUP)
    into = _party(groups[0], stack) if groups else ""
    source = _party(sources[0], stack) if sources else "clients"
    first, last = rule.inputs.get("fromPort"), rule.inputs.get("toPort")
    if rule.inputs.get("ipProtocol") == "tcp" and first == last and (first, source) in _TAKES.get(into, ()):
        return ""
    ports = f"{rule.inputs.get('ipProtocol')} {first} to {last}"
    return f"{into or 'a group that nothing is in'} takes {ports} from {source}"


def _is_private(cidr: str) -> bool:
    network = ip_network(cidr)
    return network.is_private or (isinstance(network, IPv4Network) and network.subnet_of(_SHARED))


def _from_inside(rule: Resource, _stack: Stack) -> str:
    """An ingress rule names a group or a private network."""
    for key in ("cidrIpv4", "cidrIpv6"):
        cidr = rule.inputs.get(key)
        if cidr in (None, UNKNOWN):
            continue
        if cidr in EVERYWHERE or not _is_private(cidr):
            return f"takes {cidr} in, which is not a private network"
    return "takes a prefix list in" if rule.inputs.get("prefixListId") else ""


def no_rules_inside(group: Resource, _stack: Stack) -> str:
    """A group has no rules beside those that are resources of their own."""
    return "has rules of its own" if group.inputs.get("ingress") or group.inputs.get("egress") else ""


def secretless(machine: Resource, _stack: Stack) -> str:
    """User data hold nothing that looks like a secret."""
    encoded = machine.inputs.get("userDataBase64") or machine.inputs.get("userData") or ""
    if encoded == UNKNOWN:
        return ""
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:  # an instance takes plain text, too
        data = encoded.encode()
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode(errors="replace")
    found = [what for what, pattern in _SECRETS.items() if pattern.search(text)]
    return f"user data hold {found[0]}" if found else ""


def _data_kept(data: Resource, stack: Stack) -> str:
    """What holds data stays on destroy when the setting says so, and only then."""
    if data.kept is None or stack.keeps_data is None or data.kept == stack.keeps_data:
        return ""
    return f"keepDataOnDestroy is {stack.keeps_data}, but retain_on_delete is {data.kept}"


def _least_rights(policy: Resource, _stack: Stack) -> str:
    """No wildcard in actions, and all resources only where an action knows none."""
    statements = policy.statements("policy")
    return Allows(wildcards(statements)) or Allows(unrestricted(statements), ON_ALL)


def _published_by_alarms(policy: Resource, _stack: Stack) -> str:
    """A topic takes messages of this account's alarms only."""
    for one in allowing(policy.statements("policy")):
        account = one.get("Condition", {}).get("StringEquals", {}).get("aws:SourceAccount")
        if one.get("Principal") != {"Service": "cloudwatch.amazonaws.com"} or not account:
            return "others than this account's alarms may publish"
    return ""


def _narrow_endpoint(endpoint: Resource, _stack: Stack) -> str:
    """An endpoint's policy lets through this account's identities, or names what may be reached."""
    if endpoint.inputs.get("policy") == UNKNOWN:
        return ""
    statements = endpoint.statements("policy")
    if not statements:
        return "AWS's default policy lets everybody through to everything"
    wide = [
        one
        for one in allowing(statements)
        if everywhere(one) and "aws:PrincipalAccount" not in one.get("Condition", {}).get("StringEquals", {})
    ]
    return "its policy lets everybody through to everything" if wide else ""


def _customers_key(resource: Resource, stack: Stack) -> str:
    """What is encrypted at rest has the customer's key, if the cluster has been made with one."""
    keys = {vpc.inputs.get("tags", {}).get(facts.KEY_TAG) for vpc in stack.of(VPC)} - {None, UNKNOWN}
    return "".join(wants(_KEY_OF[resource.type], key)(resource, stack) for key in keys)


RULES: Final = (
    Rule(
        "three-ports",
        f"The master takes {facts.AMQP_PORT} and {facts.DBSERVER_PORT} from workers and {facts.WEBUI_PORT} from "
        f"`clientCidrs`, workers take nothing, NFS and endpoints only the nodes",
        (INGRESS,),
        _three_ports,
        whole=True,
    ),
    Rule("from-inside", "Nothing is open to a network that is not private", (INGRESS,), _from_inside),
    Rule(
        "no-other-rules",
        "Security groups have no rules but those that three-ports sees",
        (SECURITY_GROUP, DEFAULT_GROUP),
        no_rules_inside,
    ),
    Rule(
        "no-public-address",
        "No machine has a public address, and no subnet gives one",
        (INSTANCE, TEMPLATE, SUBNET),
        all_of(
            wants("associatePublicIpAddress", None, False),
            lambda resource, stack: (
                wants("networkInterfaces.associatePublicIpAddress", False)(resource, stack)
                if resource.type == TEMPLATE
                else ""
            ),
            wants("mapPublicIpOnLaunch", None, False),
        ),
    ),
    Rule(
        "encrypted-volumes",
        "EBS and EFS are encrypted at rest",
        (VOLUME, FILE_SYSTEM),
        wants("encrypted", True),
    ),
    Rule(
        "encrypted-root",
        "The master's root disk is encrypted",
        (INSTANCE,),
        wants("rootBlockDevice.encrypted", True),
    ),
    Rule(
        "encrypted-worker-root",
        "Workers' root disks are encrypted",
        (TEMPLATE,),
        wants("blockDeviceMappings.ebs.encrypted", True),
    ),
    Rule(
        "encrypted-bucket",
        "The bucket says how it encrypts",
        (BUCKET,),
        has("bucket", BUCKET_ENCRYPTION),
        whole=True,
    ),
    Rule(
        "customers-key",
        f"What is encrypted has the key that the VPC's tag `{facts.KEY_TAG}` names, where there is one",
        tuple(_KEY_OF),
        _customers_key,
        whole=True,
    ),
    Rule(
        "imdsv2",
        "Instance metadata requires a token, with a hop limit of 1",
        (INSTANCE, TEMPLATE),
        all_of(
            wants("metadataOptions.httpTokens", "required"),
            wants("metadataOptions.httpPutResponseHopLimit", 1),
        ),
    ),
    Rule("no-secret-in-user-data", "User data holds no secret", (INSTANCE, TEMPLATE), secretless),
    Rule(
        "data-kept",
        "Volumes and shared file system stay on destroy with `keepDataOnDestroy`, and only then",
        (VOLUME, FILE_SYSTEM),
        _data_kept,
        whole=True,
    ),
    Rule(
        "narrow-endpoints",
        "Endpoints let through identities of this account only, or name what may be reached",
        (ENDPOINT,),
        _narrow_endpoint,
        whole=True,  # whether it is excused depends on the rest
    ),
    Rule(
        "mails-of-alarms",
        "The topic accepts messages of this account's alarms only, and is encrypted with a key that they may use",
        (TOPIC, TOPIC_POLICY),
        all_of(
            _published_by_alarms,
            lambda resource, stack: (
                refuses("kmsMasterKeyId", "alias/aws/sns")(resource, stack) if resource.type == TOPIC else ""
            ),
        ),
    ),
    Rule(
        "least-rights",
        "Roles have no wildcard actions, and `*` as resource only for actions without resource-level permissions",
        (ROLE_POLICY,),
        _least_rights,
    ),
)
