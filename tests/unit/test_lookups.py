"""What the program makes of AWS's answers about the region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pytest

from lab.aws.answers import (
    Invokes,
    Refused,
    ami_answer,
    instance_type_answer,
    key_answer,
    network_answers,
    secret_answer,
)
from lab.aws.recorder import run_program
from lab.aws.recording import Recording
from lab.aws.resources import REGION
from tests.unit.conftest import Record

OFFERINGS = "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings"
INSTANCE_TYPE = "aws:ec2/getInstanceType:getInstanceType"
ZONES = "aws:index/getAvailabilityZones:getAvailabilityZones"
AMI = "aws:ec2/getAmi:getAmi"
KEPT = "ami-0fedcba9876543210"  # the image of a cluster that is there


# What the program asks AWS in any case, or where its cluster exists, in the words of the message.
ASKED = {
    "aws:index/getRegion:getRegion": "the region: ",
    "aws:index/getPartition:getPartition": "the region's partition: ",
    ZONES: "the region's zones: ",
    OFFERINGS: "the instance types that it offers: ",
    INSTANCE_TYPE: "the instance type m7i.large: ",
    "aws:ssm/getParameter:getParameter": "Debian's newest image (/aws/service/debian/",
    "aws:ec2/getVpcs:getVpcs": "the stack's VPC: ",
    "aws:ec2/getVpc:getVpc": "the VPC vpc-",
    "aws:ec2/getSubnets:getSubnets": "the subnets of vpc-",
    "aws:ec2/getSubnet:getSubnet": "the subnet subnet-",
    "aws:ebs/getEbsVolumes:getEbsVolumes": "the volume of /home: ",
    "aws:ec2/getInstances:getInstances": "the machines with the volume vol-",
    "aws:ebs/getVolume:getVolume": "the volume vol-",
}


def _offer(**zones_of: list[str]) -> Mapping[str, Any]:
    """An answer that offers each type (with _ for its dot) in these zones only."""
    offers = [
        (kind.replace("_", "."), f"{REGION}{zone}") for kind, zones in zones_of.items() for zone in zones
    ]
    return {
        "id": REGION,
        "instanceTypes": [kind for kind, _ in offers],
        "locations": [zone for _, zone in offers],
        "locationTypes": ["availability-zone"] * len(offers),
    }


def test_an_image_of_another_architecture_is_refused() -> None:
    image = ami_answer("ami-0123456789abcdef0", "arm64")
    with pytest.raises(pulumi.RunError, match=r"amiId = ami-0123456789abcdef0: .*x86_64.*arm64"):
        run_program({"amiId": "ami-0123456789abcdef0"}, invokes={AMI: image})


def test_an_image_that_does_not_exist_is_refused_with_awss_reason() -> None:
    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("Your query returned no results")

    with pytest.raises(
        pulumi.RunError, match=r"amiId = ami-0123456789abcdef0: .*Your query returned no results"
    ):
        run_program({"amiId": "ami-0123456789abcdef0"}, invokes={AMI: refuse})


def test_a_type_that_is_not_what_its_name_tells_is_refused() -> None:
    answers = {INSTANCE_TYPE: lambda args: instance_type_answer(args["instanceType"], 2, 8192, "arm64")}
    with pytest.raises(pulumi.RunError, match=r"m7i\.large: AWS says it is not x86_64"):
        run_program({}, invokes=answers)


def test_the_masters_type_must_be_offered_in_the_masters_zone_and_a_workers_type_in_one_zone() -> None:
    config = {"workerInstanceTypes": '["c7i.large", "c6i.large"]'}
    with pytest.raises(pulumi.RunError) as error:
        run_program(config, invokes={OFFERINGS: _offer(m7i_large=["b"], c7i_large=["b"])})
    assert "masterInstanceType = m7i.large" in str(error.value)
    assert "workerInstanceTypes = c6i.large" in str(error.value)
    assert "c7i.large" not in str(error.value)
    run_program(config, invokes={OFFERINGS: _offer(m7i_large=["a"], c7i_large=["b"], c6i_large=["a"])})


def _zones(recording: Recording) -> list[str]:
    """The zones of the master and of the workers' subnets, in this order."""
    master = recording.by_id(
        recording.one("aws:ec2/networkInterface:NetworkInterface").inputs["subnetId"]
    ).inputs["availabilityZone"]
    workers = recording.one("aws:autoscaling/group:Group").inputs["vpcZoneIdentifiers"]
    return [master, *(recording.by_id(subnet).inputs["availabilityZone"] for subnet in workers)]


def _zones_answer(**ids: str) -> Mapping[str, Any]:
    """AWS's answer with these letters of zones and their ids, in this order."""
    return {"id": REGION, "names": [f"{REGION}{letter}" for letter in ids], "zoneIds": list(ids.values())}


def test_the_zones_are_the_first_two_by_name_whatever_order_aws_lists_them_in() -> None:
    answer = _zones_answer(c="euc1-az1", a="euc1-az2", b="euc1-az3")
    assert _zones(run_program({}, invokes={ZONES: answer})) == _zones(run_program({}))
    assert _zones(run_program({})) == [f"{REGION}a", f"{REGION}a", f"{REGION}b"]


@pytest.mark.parametrize("id_", ["use1-az3", "usw1-az2", "cac1-az3", "apne1-az3"])
def test_a_zone_that_lacks_what_the_cluster_needs_is_not_chosen(id_: str) -> None:
    answer = _zones_answer(a=id_, b="euc1-az3", c="euc1-az1")
    assert _zones(run_program({}, invokes={ZONES: answer})) == [f"{REGION}b", f"{REGION}b", f"{REGION}c"]
    with pytest.raises(pulumi.RunError, match="region with 2 zones"):
        run_program({}, invokes={ZONES: _zones_answer(a=id_, b="euc1-az3")})


def test_the_zones_that_the_settings_name_are_taken_the_first_for_the_master() -> None:
    answer = _zones_answer(a="use1-az3", b="use1-az1", c="use1-az2")
    for zones in ("cb", "ba"):  # one that would not be chosen, too
        named = [f"{REGION}{letter}" for letter in zones]
        recording = run_program({"zones": json.dumps(named)}, invokes={ZONES: answer})
        assert _zones(recording) == [named[0], *named]


def test_a_zone_that_the_region_has_not_is_refused_with_the_types_that_are_offered_nowhere() -> None:
    with pytest.raises(pulumi.RunError) as error:
        run_program({"zones": f'["{REGION}x", "{REGION}b"]'}, invokes={OFFERINGS: _offer(c7i_2xlarge=["b"])})
    lines = str(error.value).splitlines()
    assert f"  zones = {REGION}x: choose from {REGION}a, {REGION}b, {REGION}c" in lines
    assert any(line.startswith("  masterInstanceType = m7i.large: ") for line in lines)


def test_the_zones_do_not_depend_on_which_ones_are_well_at_the_moment() -> None:
    (args,) = [args for token, args in run_program({}).invokes if token == ZONES]
    assert "state" not in args
    assert {"name": "opt-in-status", "values": ["opt-in-not-required"]} in args["filters"]


def test_a_region_with_one_zone_is_refused() -> None:
    with pytest.raises(pulumi.RunError, match="region with 2 zones"):
        run_program({}, invokes={ZONES: _zones_answer(a="euc1-az2")})


def test_the_root_disk_of_a_worker_has_the_device_name_of_its_image() -> None:
    image = ami_answer("ami-0123456789abcdef0", root_device="/dev/sda1")
    template = run_program({}, invokes={AMI: image}).one("aws:ec2/launchTemplate:LaunchTemplate")
    assert [one["deviceName"] for one in template.inputs["blockDeviceMappings"]] == ["/dev/sda1"]


SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:webui-AbC123"
GET_SECRET = "aws:secretsmanager/getSecret:getSecret"
GET_KEY = "aws:kms/getKey:getKey"


def test_a_secret_that_is_not_there_is_refused_before_anything_is_made() -> None:
    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("Secrets Manager can't find the specified secret")

    with pytest.raises(pulumi.RunError, match=rf"webuiCertificate = {SECRET}: name .*can't find"):
        run_program({"webuiCertificate": SECRET}, invokes={GET_SECRET: refuse})


def test_a_secret_under_a_key_that_the_master_may_not_use_is_refused() -> None:
    own = {GET_SECRET: secret_answer(SECRET, kmsKeyId="alias/seismology")}
    with pytest.raises(pulumi.RunError, match=r"encrypted with alias/seismology.* --kms-key-id"):
        run_program({"webuiCertificate": SECRET}, invokes=own)
    run_program({"webuiCertificate": SECRET}, invokes={GET_SECRET: secret_answer(SECRET)})


@pytest.mark.parametrize(
    "key",
    [
        None,
        "alias/aws/secretsmanager",
        f"arn:aws:kms:{REGION}:123456789012:alias/aws/secretsmanager",
        f"arn:aws:kms:{REGION}:123456789012:key/01234567-89ab-cdef-0123-456789abcdef",
    ],
)
def test_a_secret_under_awss_key_is_taken_however_aws_names_the_key(key: str | None) -> None:
    def of_aws(args: Mapping[str, Any]) -> Mapping[str, Any]:
        return key_answer(args, keyManager="AWS")

    invokes: Invokes = {GET_SECRET: secret_answer(SECRET, kmsKeyId=key), GET_KEY: of_aws}
    assert run_program({"webuiCertificate": SECRET}, invokes=invokes).resources


def test_a_secret_whose_key_nobody_may_look_at_is_refused() -> None:
    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("AccessDeniedException")

    invokes: Invokes = {GET_SECRET: secret_answer(SECRET, kmsKeyId="alias/seismology"), GET_KEY: refuse}
    with pytest.raises(pulumi.RunError, match=r"encrypted with alias/seismology.* --kms-key-id"):
        run_program({"webuiCertificate": SECRET}, invokes=invokes)


CLUSTERS_KEY = f"arn:aws:kms:{REGION}:123456789012:key/01234567-89ab-cdef-0123-456789abcdef"
OTHER_KEY = f"arn:aws:kms:{REGION}:123456789012:key/89abcdef-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize("key", [CLUSTERS_KEY, "alias/openquake"])
def test_a_secret_under_the_clusters_own_key_is_taken_however_it_is_named(key: str) -> None:
    """The master may decrypt secrets with that key, and with no other one."""
    config = {"webuiCertificate": SECRET, "kmsKeyId": CLUSTERS_KEY}
    assert run_program(config, invokes={GET_SECRET: secret_answer(SECRET, kmsKeyId=key)}).resources
    with pytest.raises(
        pulumi.RunError, match=rf"with kmsKeyId or alias/aws/sec.* --kms-key-id {CLUSTERS_KEY}"
    ):
        run_program(config, invokes={GET_SECRET: secret_answer(SECRET, kmsKeyId=OTHER_KEY)})


def test_a_cluster_without_a_users_certificate_asks_for_no_secret() -> None:
    for setting in ("", "self"):
        assert GET_SECRET not in [token for token, _ in run_program({"webuiCertificate": setting}).invokes]


@pytest.mark.parametrize(("image_gb", "disk_gb"), [(8, 20), (64, 64)])
def test_a_root_disk_has_room_for_its_image(image_gb: int, disk_gb: int) -> None:
    """AWS refuses a smaller one, and for a master it would do so when the old one is gone."""
    recording = run_program({}, invokes={AMI: ami_answer("ami-0123456789abcdef0", root_gb=image_gb)})
    assert recording.one("aws:ec2/instance:Instance").inputs["rootBlockDevice"]["volumeSize"] == disk_gb
    (mapping,) = recording.one("aws:ec2/launchTemplate:LaunchTemplate").inputs["blockDeviceMappings"]
    assert mapping["ebs"]["volumeSize"] == disk_gb


def test_the_root_disks_are_those_of_the_image_that_is_kept_not_of_debians_newest() -> None:
    def images(args: Mapping[str, Any]) -> Mapping[str, Any]:
        (asked,) = args["filters"][0]["values"]
        kept = {"root_device": "/dev/sda1", "root_gb": 40} if asked == KEPT else {"root_gb": 64}
        return ami_answer(asked, **kept)

    recording = run_program({}, invokes={AMI: images}, stashed={"image-debian": KEPT})
    assert recording.one("aws:ec2/instance:Instance").inputs["rootBlockDevice"]["volumeSize"] == 40
    (mapping,) = recording.one("aws:ec2/launchTemplate:LaunchTemplate").inputs["blockDeviceMappings"]
    assert (mapping["deviceName"], mapping["ebs"]["volumeSize"]) == ("/dev/sda1", 40)


def test_a_kept_image_that_is_gone_is_said_before_a_machine_is_touched() -> None:
    """A master is taken down before its replacement starts; without an image there would be none."""

    def images(args: Mapping[str, Any]) -> Mapping[str, Any]:
        (asked,) = args["filters"][0]["values"]
        if asked == KEPT:
            raise Refused("Your query returned no results")
        return ami_answer(asked)

    with pytest.raises(pulumi.RunError, match=rf'amiId = "": name an image .*{KEPT}: .*no results'):
        run_program({}, invokes={AMI: images}, stashed={"image-debian": KEPT})


def test_another_partition_than_aws_is_refused() -> None:
    china = {"id": "aws-cn", "partition": "aws-cn", "dnsSuffix": "amazonaws.com.cn"}
    with pytest.raises(pulumi.RunError, match="partition aws-cn: only regions of the partition aws"):
        run_program({}, invokes={"aws:index/getPartition:getPartition": china})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aws:assumeRoles", '[{"roleArn": "arn:aws:iam::123456789012:role/deployer"}]'),
        ("aws:sharedConfigFiles", '["/etc/aws/config"]'),
        ("aws:sharedCredentialsFiles", '["/etc/aws/credentials"]'),
        ("aws:customCaBundle", "/etc/ssl/proxy.pem"),
        ("aws:httpsProxy", "http://proxy:3128"),
    ],
)
def test_the_wait_is_refused_where_it_would_not_find_the_providers_way_to_aws(key: str, value: str) -> None:
    """boto3 learns nothing of these: it would fail, or wait for half an hour in another account, and mislead."""
    with pytest.raises(pulumi.RunError, match=rf"waitForReady = true: .*{key}"):
        run_program({key: value})
    run_program({key: value, "waitForReady": "false"})


def test_the_wait_that_would_not_find_aws_is_told_with_all_else_that_is_wrong() -> None:
    strange = {"aws:httpsProxy": "http://proxy:3128", "workerMax": "0"}
    with pytest.raises(
        pulumi.RunError, match=r"\A2 problems(.|\n)*workerMax = 0: (.|\n)*waitForReady = true: "
    ):
        run_program(strange)
    with pytest.raises(pulumi.RunError, match=r"\A1 problem "):
        run_program({**strange, "waitForReady": "false"})


@pytest.mark.parametrize("token", sorted(ASKED))
def test_what_aws_does_not_answer_is_said_in_one_line_with_what_to_look_at(
    record: Record, token: str
) -> None:
    """And not by a traceback: credentials expire, and rights are missing."""

    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("ExpiredToken")

    recording = record()
    vpc, subnets, volumes = (
        {one.id: one.inputs for one in recording.of_type(type_)}
        for type_ in ("aws:ec2/vpc:Vpc", "aws:ec2/subnet:Subnet", "aws:ebs/volume:Volume")
    )
    ((vpc_id, inputs),) = vpc.items()
    exists = network_answers(vpc_id, inputs["cidrBlock"], subnets, inputs["tags"], volumes)
    with pytest.raises(pulumi.RunError) as error:
        run_program({}, invokes={**exists, token: refuse})
    text = str(error.value)
    assert text.startswith(f"AWS could not be asked for {ASKED[token]}")
    assert "ExpiredToken" in text
    assert text.endswith(". Check the credentials and their permissions (aws sts get-caller-identity)")


def test_default_tags_that_the_metadata_cannot_show_are_refused_with_all_that_is_wrong() -> None:
    """EC2 refuses to launch a machine whose metadata should show them, when network and storage are made."""
    tags = '{"tags": {"Cost Center": "7", "Team": "hazard", "a/b": "c", "Owner:e-mail@home": "x"}}'
    with pytest.raises(pulumi.RunError) as error:
        run_program({"aws:defaultTags": tags, "workerMax": "0"})
    assert str(error.value).startswith("3 problems with the settings:\n  workerMax = 0: ")
    for key in ("Cost Center", "a/b"):
        assert f"\n  aws:defaultTags = {key}: rename it" in str(error.value)
    with pytest.raises(pulumi.RunError, match="2 problems with the settings:"):
        run_program({"aws:defaultTags": tags})
    run_program({"aws:defaultTags": '{"tags": {"Team": "hazard"}}'})
