"""What the program asks before it makes anything: the stack's settings, and AWS about the region it goes
to.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws
from pulumi.runtime.config import CONFIG, get_config_env

from components import adoption, placement, subnets, tags
from components.asking import Unanswered, asked
from components.instance_types import Architecture, InstanceType
from components.settings import DEBIAN_IMAGE, KEYS, Problem, Settings, SettingsError

# Settings of the provider, for its credentials and its way to AWS, that boto3 does not read.
_NOT_READ_BY_BOTO3: Final = frozenset(
    f"aws:{name}"
    for name in (
        *("accessKey", "secretKey", "token", "assumeRoles", "assumeRoleWithWebIdentity"),
        *("sharedConfigFiles", "sharedCredentialsFiles"),
        *("customCaBundle", "endpoints", "httpProxy", "httpsProxy", "insecure", "noProxy"),
    )
)

# Zones that lack, for some accounts or all, subnets, NAT gateways, mount targets of EFS or current instance types, so
# that no cluster of ours comes up there. By their ids, which are the same in all accounts, where names are not.
# https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html (no Kubernetes there either), and for apne1-az3
# https://github.com/sysdiglabs/terraform-aws-secure-for-cloud/pull/52
_LIMITED_ZONE_IDS: Final = frozenset({"use1-az3", "usw1-az2", "cac1-az3", "apne1-az3"})

# The alias of the key for secrets that AWS manages in each account.
_AWS_MANAGED_KEY: Final = "alias/aws/secretsmanager"


@dataclass(frozen=True)
class Image:
    """A machine image: its id, the device name under which it expects its root disk, and that disk's least size in
    GiB.
    """

    id: str
    root_device: str
    root_gb: int


@dataclass(frozen=True)
class Region:
    """The AWS region of the stack, as far as the program has to know it.

    The master and its disks live in the first of `zones`, workers in all of them. `image` is the one that the
    settings name, or else Debian's newest. `worker_types` are the settings' worker instance types with their
    sizes. `key` is the ARN of the customer's key, "" for AWS's own.
    """

    name: str
    zones: tuple[str, ...]
    image: Image
    worker_types: tuple[InstanceType, ...]
    key: str


def read_settings() -> Settings:
    """The stack's settings. Raises pulumi.RunError, which Pulumi shows without a traceback, if they are
    wrong.
    """
    config = pulumi.Config()
    # Pulumi documents no list of the keys that are set, and a misspelt one would be ignored in silence.
    keys = {*get_config_env(), *CONFIG.get()}
    named = {key.removeprefix(f"{config.name}:") for key in keys if key.startswith(f"{config.name}:")}
    problems = [*_hidden_default_tags(), *_misled_wait(config.get("waitForReady"), keys)]
    try:
        settings = Settings.parse({key: config.get(key) for key in sorted(named | set(KEYS))})
    except SettingsError as error:
        raise pulumi.RunError(str(SettingsError([*error.problems, *problems]))) from None
    if problems:
        raise pulumi.RunError(str(SettingsError(problems)))
    return settings


def _misled_wait(wait: str | None, keys: Set[str]) -> list[Problem]:
    """What the wait for the master would not learn of among the stack's keys; `wait` is its setting as written."""
    unread = sorted(_NOT_READ_BY_BOTO3 & keys)
    if wait not in (None, "true") or not unread:
        return []
    remedy = (
        f"set it to false, or give {', '.join(unread)} by the environment or a profile (aws:profile): the wait "
        "asks AWS by boto3, which does not learn of them and would look in another account or find no way"
    )
    return [Problem("waitForReady", True, remedy)]


def _hidden_default_tags() -> list[Problem]:
    """The provider's default tags that would stop the master, whose metadata show its tags.

    The provider gives them to the instance; EC2 refuses the launch, after network and storage were made.
    """
    default = pulumi.Config("aws").get_object("defaultTags") or {}
    remedy = (
        "rename it: the master reads its own tags in the instance metadata, where keys have no other characters "
        f"than letters, digits and {' '.join(tags.OTHERS_IN_METADATA)}"
    )
    return [
        Problem("aws:defaultTags", key, remedy)
        for key in sorted(default.get("tags") or {})
        if not tags.shown_in_metadata(key)
    ]


def look_up(settings: Settings) -> Region:
    """Ask AWS about the region of the default provider and compare its answers with the settings.

    Raises pulumi.RunError with everything in the settings that cannot work in this region.
    """
    name = asked("the region", aws.get_region).region
    partition = asked("the region's partition", aws.get_partition).partition
    if partition != "aws":  # service names, host names and Debian's images are others there
        raise pulumi.RunError(
            f"{name} is in the partition {partition}: only regions of the partition aws are supported"
        )
    zones, problems = _zones(settings)
    problems += _not_offered(settings, zones)
    key, of_key = _key(settings.kms_key_id, name)
    problems += of_key
    known_key = None if of_key else key
    problems += _unreadable(settings.certificate_secret, known_key)
    problems += placement.problems(settings, zones, known_key, pulumi.get_stack())
    problems += adoption.problems(settings, zones[0], pulumi.get_stack())
    if problems:  # AWS would refuse to describe a type that does not exist
        raise pulumi.RunError(str(SettingsError(problems)))
    types = {
        instance_type: asked(
            f"the instance type {instance_type}", aws.ec2.get_instance_type, instance_type=instance_type
        )
        for instance_type in (settings.master_instance_type, *settings.worker_instance_types)
    }
    problems = [
        Problem(
            "masterInstanceType, workerInstanceTypes",
            instance_type,
            f"AWS says it is not {settings.architecture}",
        )
        for instance_type, answer in types.items()
        if settings.architecture not in answer.supported_architectures
    ]
    try:
        image = describe_image(settings.ami_id or _newest_image(), settings.architecture)
    except ValueError as error:
        problems.append(Problem("amiId", settings.ami_id, str(error)))
    if problems:
        raise pulumi.RunError(str(SettingsError(problems)))
    for warning in adoption.unmet(settings):
        pulumi.log.warn(warning)
    return Region(
        name=name,
        zones=zones,
        image=image,
        worker_types=tuple(
            InstanceType(worker, types[worker].default_vcpus, types[worker].memory_size)
            for worker in settings.worker_instance_types
        ),
        key=key,
    )


def _newest_image() -> str:
    """The id of Debian's newest image."""
    parameter = DEBIAN_IMAGE["x86_64"]
    return asked(f"Debian's newest image ({parameter})", aws.ssm.get_parameter, name=parameter).insecure_value


def _key(key_id: str, region: str) -> tuple[str, list[Problem]]:
    """The ARN of the key that the settings name, "" for none; and what is wrong with it."""
    if not key_id:
        return "", []
    if key_id.startswith("arn:") and (its := key_id.split(":")[3]) != region:
        remedy = f"name a key of {region}, where the cluster is, and not of {its}"
        return "", [Problem("kmsKeyId", key_id, remedy)]
    try:
        key = asked("the key", aws.kms.get_key, key_id=key_id)
    except Unanswered as error:
        remedy = (
            f"name a key that exists in this region and that you may describe (kms:DescribeKey): {error.why}"
        )
        return "", [Problem("kmsKeyId", key_id, remedy)]
    remedies = []
    if key.key_state != "Enabled":
        remedies.append(f"enable it, or name another one; it is {key.key_state}")
    if key.key_spec != "SYMMETRIC_DEFAULT" or key.key_usage != "ENCRYPT_DECRYPT":
        remedies.append(
            f"disks and secrets take symmetric keys for encryption only; it is {key.key_spec} for {key.key_usage}"
        )
    return key.arn, [Problem("kmsKeyId", key_id, remedy) for remedy in remedies]


def _zones(settings: Settings) -> tuple[tuple[str, ...], list[Problem]]:
    """The zones that the settings name, or else the first ones of the region by name; and what is wrong with them.

    Neither a zone's momentary state nor what it offers chooses the zones: a zone that drops out of the list
    for an hour, or another worker type, would move the master and replace its disks.
    """
    answer = asked(
        "the region's zones",
        aws.get_availability_zones,
        all_availability_zones=True,
        filters=[
            aws.GetAvailabilityZonesFilterArgs(name="opt-in-status", values=["opt-in-not-required"]),
            aws.GetAvailabilityZonesFilterArgs(name="zone-type", values=["availability-zone"]),
        ],
    )
    if settings.zones:
        remedy = f"choose from {', '.join(sorted(answer.names))}"
        strangers = [zone for zone in settings.zones if zone not in answer.names]
        return settings.zones, [Problem("zones", zone, remedy) for zone in strangers]
    fit = [
        name for name, id_ in zip(answer.names, answer.zone_ids, strict=True) if id_ not in _LIMITED_ZONE_IDS
    ]
    zones = tuple(sorted(fit)[: subnets.ZONES])
    if len(zones) < subnets.ZONES:
        raise pulumi.RunError(
            f"the cluster needs a region with {subnets.ZONES} zones; this one has {list(zones)}"
        )
    return zones, []


def _not_offered(settings: Settings, zones: tuple[str, ...]) -> list[Problem]:
    """The settings whose instance types AWS does not offer where they are to run."""
    answer = asked(
        "the instance types that it offers",
        aws.ec2.get_instance_type_offerings,
        location_type="availability-zone",
        filters=[
            aws.ec2.GetInstanceTypeOfferingsFilterArgs(
                name="instance-type",
                values=sorted({settings.master_instance_type, *settings.worker_instance_types}),
            ),
            aws.ec2.GetInstanceTypeOfferingsFilterArgs(name="location", values=list(zones)),
        ],
    )
    offers = set(zip(answer.instance_types, answer.locations, strict=True))
    problems = []
    if (settings.master_instance_type, zones[0]) not in offers:
        remedy = f"choose a type that AWS offers in {zones[0]}, where the master and its disks live, or other zones"
        problems.append(Problem("masterInstanceType", settings.master_instance_type, remedy))
    for worker in settings.worker_instance_types:
        if not any((worker, zone) in offers for zone in zones):
            remedy = f"choose types that AWS offers in {' or '.join(zones)}, or other zones"
            problems.append(Problem("workerInstanceTypes", worker, remedy))
    return problems


def _unreadable(arn: str, key: str | None) -> list[Problem]:
    """Why the master could not read the secret with the user's certificate, "" for none.

    `key` is the ARN of the cluster's key, with which the master may read secrets; "" for AWS's, None where that is not
    known.
    """
    if not arn:
        return []
    try:
        secret = asked("the secret", aws.secretsmanager.get_secret, arn=arn)
    except Unanswered as error:
        return [Problem("webuiCertificate", arn, f"name a secret of this account and region: {error.why}")]
    if _reads_with(secret.kms_key_id, key):
        return []
    remedy = (
        f"it is encrypted with {secret.kms_key_id}, which the master may not use: encrypt it with kmsKeyId or "
        f"{_AWS_MANAGED_KEY}: aws secretsmanager update-secret --secret-id {arn} --kms-key-id {key or _AWS_MANAGED_KEY}"
    )
    return [Problem("webuiCertificate", arn, remedy)]


def _reads_with(secrets_key: str, key: str | None) -> bool:
    """Whether the master may use a secret's key: AWS's own for secrets, by its alias or by what KMS says of it, or the
    cluster's.
    """
    if not secrets_key or secrets_key.rpartition(":")[2] == _AWS_MANAGED_KEY or secrets_key == key:
        return True
    try:
        described = asked("the secret's key", aws.kms.get_key, key_id=secrets_key)
    except Unanswered:
        return False
    return described.key_manager == "AWS" or described.arn == key


def describe_image(image_id: str, architecture: Architecture) -> Image:
    """What AWS says of an image; ValueError with the remedy if there is none, or one of another architecture."""
    try:
        answer = asked(
            "the image",
            aws.ec2.get_ami,
            filters=[aws.ec2.GetAmiFilterArgs(name="image-id", values=[image_id])],
            include_deprecated=True,  # an old image that was asked for is still the one that was asked for
        )
    except Unanswered as error:
        raise ValueError(f"name an image that exists in this region; {image_id}: {error.why}") from None
    if answer.architecture != architecture:
        raise ValueError(
            f"choose an image for {architecture}, like the instance types; {image_id} is for {answer.architecture}"
        )
    sizes = [
        int(mapping.ebs["volume_size"])
        for mapping in answer.block_device_mappings
        if mapping.device_name == answer.root_device_name
    ]
    return Image(answer.id, answer.root_device_name, max(sizes, default=0))
