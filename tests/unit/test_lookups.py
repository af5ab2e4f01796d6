"""What the program makes of AWS's answers about the region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pytest

from lab.aws.answers import Refused, ami_answer, instance_type_answer
from lab.aws.resources import REGION
from lab.recorder import run_program

OFFERINGS = "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings"
INSTANCE_TYPE = "aws:ec2/getInstanceType:getInstanceType"
ZONES = "aws:index/getAvailabilityZones:getAvailabilityZones"
AMI = "aws:ec2/getAmi:getAmi"


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


def test_the_zones_are_the_first_two_by_name_whatever_order_aws_lists_them_in() -> None:
    zones = {"id": REGION, "names": [f"{REGION}{letter}" for letter in "cab"]}
    group = run_program({}, invokes={ZONES: zones}).one("aws:autoscaling/group:Group")
    assert (
        group.inputs["vpcZoneIdentifiers"]
        == run_program({}).one("aws:autoscaling/group:Group").inputs["vpcZoneIdentifiers"]
    )


def test_the_zones_do_not_depend_on_which_ones_are_well_at_the_moment() -> None:
    (args,) = [args for token, args in run_program({}).invokes if token == ZONES]
    assert "state" not in args
    assert {"name": "opt-in-status", "values": ["opt-in-not-required"]} in args["filters"]


def test_a_region_with_one_zone_is_refused() -> None:
    with pytest.raises(pulumi.RunError, match="region with 2 zones"):
        run_program({}, invokes={ZONES: {"id": REGION, "names": [f"{REGION}a"]}})


def test_the_root_disk_of_a_worker_has_the_device_name_of_its_image() -> None:
    image = ami_answer("ami-0123456789abcdef0", root_device="/dev/sda1")
    template = run_program({}, invokes={AMI: image}).one("aws:ec2/launchTemplate:LaunchTemplate")
    assert [one["deviceName"] for one in template.inputs["blockDeviceMappings"]] == ["/dev/sda1"]


@pytest.mark.parametrize(("image_gb", "disk_gb"), [(8, 20), (64, 64)])
def test_a_root_disk_has_room_for_its_image(image_gb: int, disk_gb: int) -> None:
    """AWS refuses a smaller one, and for a master it would do so when the old one is gone."""
    recording = run_program({}, invokes={AMI: ami_answer("ami-0123456789abcdef0", root_gb=image_gb)})
    assert recording.one("aws:ec2/instance:Instance").inputs["rootBlockDevice"]["volumeSize"] == disk_gb
    (mapping,) = recording.one("aws:ec2/launchTemplate:LaunchTemplate").inputs["blockDeviceMappings"]
    assert mapping["ebs"]["volumeSize"] == disk_gb


def test_another_partition_than_aws_is_refused() -> None:
    china = {"id": "aws-cn", "partition": "aws-cn", "dnsSuffix": "amazonaws.com.cn"}
    with pytest.raises(pulumi.RunError, match="partition aws-cn: only regions of the partition aws"):
        run_program({}, invokes={"aws:index/getPartition:getPartition": china})


def test_the_wait_is_refused_where_it_would_look_in_another_account() -> None:
    """boto3 learns nothing of how the provider becomes somebody else: it would wait for half an hour, and mislead."""
    roles = '[{"roleArn": "arn:aws:iam::123456789012:role/deployer"}]'
    with pytest.raises(pulumi.RunError, match=r"waitForReady = true: .*aws:assumeRoles"):
        run_program({"aws:assumeRoles": roles})
    run_program({"aws:assumeRoles": roles, "waitForReady": "false"})
