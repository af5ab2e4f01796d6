"""The settings that would move a cluster that exists, or shrink its disks, are refused before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pytest

from lab.aws.answers import INVOKES, READ_STATE, Invokes, Refused, asked, network_answers, state_answer
from lab.aws.recorder import run_program
from lab.aws.recording import Recording
from lab.aws.resources import REGION
from tests.unit.conftest import Record
from tests.unit.test_keys import KEY

VPC = "aws:ec2/vpc:Vpc"
SUBNET = "aws:ec2/subnet:Subnet"
VOLUME = "aws:ebs/volume:Volume"
GET_INSTANCES = "aws:ec2/getInstances:getInstances"
GET_SUBNETS = "aws:ec2/getSubnets:getSubnets"
GET_VPCS = "aws:ec2/getVpcs:getVpcs"


def existing(recording: Recording) -> Invokes:
    """AWS's answers where what the recording holds exists."""
    vpc = recording.one(VPC)
    subnets = {one.id: one.inputs for one in recording.of_type(SUBNET)}
    return network_answers(vpc.id, vpc.inputs["cidrBlock"], subnets, vpc.inputs["tags"])


@pytest.fixture
def answers(record: Record) -> Invokes:
    return existing(record(zones=f'["{REGION}a", "{REGION}b"]'))


def refused(config: Mapping[str, str], answers: Invokes) -> list[str]:
    """The lines of the error that says what is wrong, without its first one."""
    with pytest.raises(pulumi.RunError) as error:
        run_program(config, invokes=answers)
    return str(error.value).splitlines()[1:]


def test_a_cluster_that_exists_where_the_settings_say_is_updated(answers: Invokes) -> None:
    assert run_program({}, invokes=answers).of_type(VPC)
    assert run_program({"zones": f'["{REGION}a", "{REGION}b"]'}, invokes=answers).of_type(VPC)


def test_another_network_and_other_zones_are_refused_in_one_error_with_the_present_ones(
    answers: Invokes,
) -> None:
    lines = refused({"vpcCidr": "10.21.0.0/16", "zones": f'["{REGION}b", "{REGION}c"]'}, answers)
    assert len(lines) == 2
    assert lines[0].startswith("  vpcCidr = 10.21.0.0/16: it is 10.20.0.0/16; it cannot change")
    assert lines[1].startswith(
        f'  zones = ["{REGION}b", "{REGION}c"]: it is {REGION}a, {REGION}b; it cannot change once'
    )


@pytest.mark.parametrize("zones", ["ba", "ac", "cb"])
def test_the_masters_zone_is_the_first_and_no_zone_may_go(zones: str, answers: Invokes) -> None:
    (line,) = refused({"zones": f'["{REGION}{zones[0]}", "{REGION}{zones[1]}"]'}, answers)
    assert line.startswith("  zones = ")


@pytest.mark.parametrize("tags", [{}, {"Name": "transit-gateway", "Stack": "somebody else's"}])
def test_subnets_that_others_have_made_in_its_network_are_none_of_its_zones(
    record: Record, tags: Mapping[str, str]
) -> None:
    recording = record(zones=f'["{REGION}a", "{REGION}b"]')
    vpc = recording.one(VPC)
    subnets = {one.id: one.inputs for one in recording.of_type(SUBNET)}
    subnets["subnet-0123456789abcdef0"] = {"availabilityZone": f"{REGION}c", "tags": tags}
    answers = network_answers(vpc.id, vpc.inputs["cidrBlock"], subnets, vpc.inputs["tags"])
    assert run_program({}, invokes=answers).of_type(VPC)
    (line,) = refused({"zones": f'["{REGION}b", "{REGION}c"]'}, answers)
    assert f": it is {REGION}a, {REGION}b; " in line


def test_the_cluster_is_found_by_the_tags_of_its_stack() -> None:
    asked: list[Any] = []

    def vpcs(args: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(args)
        return {"id": REGION, "ids": []}

    run_program({"vpcCidr": "10.21.0.0/16"}, invokes={**INVOKES, GET_VPCS: vpcs}, stack="mine")
    assert asked == [{"tags": {"Project": "openquake-cluster", "Stack": "mine"}}]


def with_vpcs(answers: Invokes, *vpcs: str) -> Invokes:
    """These answers where there are these VPCs; the state has vpc-1."""
    return {**answers, GET_VPCS: {"id": REGION, "ids": vpcs}, READ_STATE: state_answer("vpc-1")}


def test_two_clusters_of_one_name_are_refused_with_the_network_of_the_other(answers: Invokes) -> None:
    """They would start workers by each other's queue."""
    (line,) = refused({}, with_vpcs(answers, "vpc-2", "vpc-1"))
    assert line.startswith("  stack = test: another cluster in this account and region has this stack name")
    assert line.endswith(" Its network: vpc-2")


def test_the_first_up_of_a_second_cluster_of_a_name_is_refused(answers: Invokes) -> None:
    """The settings of the other one are not said to be this one's. Whether Pulumi's engine answers so, tests/engine
    shows.
    """
    (line,) = refused({"vpcCidr": "10.21.0.0/16"}, with_vpcs(answers, "vpc-2"))
    assert line.startswith("  stack = test: another cluster in this account and region has this stack name")
    assert "pulumi stack rename NAME" in line
    assert line.endswith(" Its network: vpc-2")


def test_where_pulumi_does_not_say_what_the_state_has_one_network_is_the_clusters(answers: Invokes) -> None:
    def refuse(_: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("a stack reference's name should be of another form")

    assert run_program({}, invokes={**with_vpcs(answers, "vpc-1"), READ_STATE: refuse}).of_type(VPC)
    (line,) = refused({}, {**with_vpcs(answers, "vpc-2", "vpc-1"), READ_STATE: refuse})
    assert line.endswith(" One of these networks is its: vpc-1, vpc-2")


def test_a_network_that_an_interrupted_up_has_left_is_no_second_cluster(answers: Invokes) -> None:
    """Pulumi does not know it, so nothing is in it."""

    both = with_remains(answers, "vpc-1", "vpc-left")
    assert run_program({}, invokes=both).of_type(VPC)


def with_remains(answers: Invokes, *vpcs: str) -> Invokes:
    """These answers where there are these VPCs, and no subnet in vpc-left."""
    its = answers[GET_SUBNETS]
    assert callable(its)

    def subnets(args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"id": REGION, "ids": []} if asked(args, "vpc-id") == "vpc-left" else its(args)

    return {**with_vpcs(answers, *vpcs), GET_SUBNETS: subnets}


def test_a_network_that_is_left_alone_fixes_no_setting(answers: Invokes) -> None:
    config = {"vpcCidr": "10.21.0.0/16", "kmsKeyId": KEY}  # the present ones: 10.20.0.0/16, and no key
    assert run_program(config, invokes=with_remains(answers, "vpc-left")).of_type(VPC)
    assert len(refused(config, with_remains(answers, "vpc-1", "vpc-left"))) == 2


# --- volumes ------------------------------------------------------------------------------------------------


@pytest.fixture
def with_disks(record: Record) -> Invokes:
    """AWS's answers where a cluster of the default settings exists, with its volumes."""
    recording = record()
    vpc = recording.one(VPC)
    subnets, volumes = (
        {one.id: one.inputs for one in recording.of_type(type_)} for type_ in (SUBNET, VOLUME)
    )
    return network_answers(vpc.id, vpc.inputs["cidrBlock"], subnets, vpc.inputs["tags"], volumes)


def test_a_volume_that_would_shrink_is_refused_and_one_that_stays_or_grows_is_not(
    with_disks: Invokes,
) -> None:
    lines = refused({"homeVolumeGb": "99", "varVolumeGb": "49", "rabbitmqVolumeGb": "21"}, with_disks)
    assert lines == [
        "  homeVolumeGb = 99: the volume has 100 GiB and EBS cannot shrink it: write 100 or more",
        "  varVolumeGb = 49: the volume has 50 GiB and EBS cannot shrink it: write 50 or more",
    ]
    assert run_program({"homeVolumeGb": "101"}, invokes=with_disks).of_type(VOLUME)


def test_a_volume_that_no_machine_of_the_stack_has_says_nothing_of_a_size(with_disks: Invokes) -> None:
    """Such a one may be left of a former cluster of the same name."""
    answers = {**with_disks, GET_INSTANCES: {"id": REGION, "ids": []}}
    assert run_program({"homeVolumeGb": "99"}, invokes=answers).of_type(VOLUME)


def test_where_a_snapshot_is_named_its_own_size_is_looked_at(with_disks: Invokes) -> None:
    config = {"homeVolumeGb": "99", "homeVolumeId": "snap-0123456789abcdef0"}
    assert run_program(config, invokes=with_disks).of_type(VOLUME)
