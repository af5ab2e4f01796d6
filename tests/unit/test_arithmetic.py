"""Subnets, instance types, fleet sizes, scaling steps and tags: pure functions."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import facts
from components.capacity import Step, steps_out
from components.instance_types import (
    InstanceType,
    architecture,
    check,
    fleet_processes,
    least_processes,
    processes,
)
from components.subnets import RESERVED, Subnets, endpoint_services, share_out, worker_capacity
from components.tags import tags

VPCS = st.builds(
    lambda network, length: IPv4Network((network, length), strict=False),
    st.integers(10 << 24, (11 << 24) - 1),
    st.integers(16, 24),
)
ZONES = st.integers(2, 4).map(lambda count: [f"zone-{letter}" for letter in "abcd"[:count]])


@given(VPCS, ZONES)
def test_the_subnets_lie_in_the_vpc_and_do_not_overlap(vpc: IPv4Network, zones: list[str]) -> None:
    shared = share_out(vpc, zones)
    assert list(shared.workers) == zones
    subnets = [shared.master, shared.public, *shared.workers.values()]
    assert all(subnet.subnet_of(vpc) for subnet in subnets)
    for number, subnet in enumerate(subnets):
        assert not any(subnet.overlaps(other) for other in subnets[number + 1 :])


@given(VPCS, ZONES)
def test_the_fixed_addresses_are_different_and_none_is_one_that_aws_keeps(
    vpc: IPv4Network, zones: list[str]
) -> None:
    shared = share_out(vpc, zones)
    endpoints = [shared.endpoint_address(place) for place in endpoint_services("endpoints").values()]
    in_master = [shared.master_address, *endpoints]
    assert len(set(in_master)) == len(in_master)
    assert all(_usable(address, shared.master) for address in in_master)
    assert all(_usable(address, shared.workers[zone]) for zone, address in shared.nfs_addresses.items())


def _usable(address: IPv4Address, subnet: IPv4Network) -> bool:
    return 4 <= int(address) - int(subnet.network_address) < subnet.num_addresses - 1


@given(VPCS)
def test_the_workers_have_room_for_the_machines_that_are_promised(vpc: IPv4Network) -> None:
    shared: Subnets = share_out(vpc, ["a", "b"])
    free = sum(subnet.num_addresses - RESERVED for subnet in shared.workers.values())
    assert worker_capacity(vpc) == free - 2  # a mount target in each
    assert worker_capacity(vpc) >= 100


@pytest.mark.parametrize("cidr", ["10.0.0.0/15", "10.0.0.0/25"])
def test_a_network_of_another_size_is_refused(cidr: str) -> None:
    with pytest.raises(ValueError, match="between /16 and /24"):
        share_out(IPv4Network(cidr), ["a", "b"])


@pytest.mark.parametrize("zones", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_zones_are_refused(zones: list[str]) -> None:
    with pytest.raises(ValueError, match="different zones"):
        share_out(IPv4Network("10.0.0.0/16"), zones)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("c7i.2xlarge", "x86_64"),
        ("c7a.large", "x86_64"),
        ("t3.micro", "x86_64"),
        ("t3a.nano", "x86_64"),
        ("m7i-flex.large", "x86_64"),
        ("g4dn.xlarge", "x86_64"),
        ("g6e.48xlarge", "x86_64"),
        ("hpc7a.96xlarge", "x86_64"),
        ("u-6tb1.56xlarge", "x86_64"),
        ("u7i-12tb.224xlarge", "x86_64"),
        ("i3.metal", "x86_64"),
        ("c6i.metal", "x86_64"),
        ("m7i.metal-24xl", "x86_64"),
        ("c7g.medium", "arm64"),
        ("c7gn.16xlarge", "arm64"),
        ("m6gd.large", "arm64"),
        ("t4g.small", "arm64"),
        ("r8g.xlarge", "arm64"),
        ("hpc7g.4xlarge", "arm64"),
        ("x2gd.large", "arm64"),
        ("is4gen.medium", "arm64"),
        ("g5g.xlarge", "arm64"),
        ("a1.large", "arm64"),
    ],
)
def test_the_architecture_follows_from_the_types_name(name: str, expected: str) -> None:
    check(name)
    assert architecture(name) == expected


@pytest.mark.parametrize(
    ("name", "word"), [("mac2.metal", "Linux"), ("m4.large", "Nitro"), ("large", "EC2 instance type")]
)
def test_a_type_that_cannot_be_a_node_is_refused_with_the_reason(name: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check(name)


@pytest.mark.parametrize(
    ("vcpus", "memory_mb", "expected"),
    [
        (8, 16384, 8),
        (8, 65536, 8),
        (8, 15000, 7),
        (2, 4096, 2),
        (2, 2047, 1),
        (1, 512, 1),
        (96, 768 * 1024, 96),
    ],
)
def test_a_machine_runs_a_process_for_each_cpu_that_has_its_memory(
    vcpus: int, memory_mb: int, expected: int
) -> None:
    assert processes(InstanceType("any", vcpus, memory_mb)) == expected


def test_a_full_fleet_is_counted_with_its_largest_type_and_a_single_worker_with_its_smallest() -> None:
    types = [InstanceType("small", 2, 4096), InstanceType("large", 8, 32768), InstanceType("lean", 16, 8192)]
    assert fleet_processes(5, types) == 40
    assert least_processes(types) == 2
    assert least_processes(types, reserved_mb=2048) == 1


PROCESSES = st.integers(1, 192)
ROOM = st.integers(1, 1000)


def _step_of(steps: list[Step], waiting: int) -> Step:
    (step,) = [one for one in steps if one.at_least <= waiting and (one.below is None or waiting < one.below)]
    return step


@given(PROCESSES, ROOM)
def test_the_steps_start_with_one_task_have_no_gap_and_do_not_end(processes: int, room: int) -> None:
    steps = steps_out(processes, room)
    assert steps[0].at_least == 1
    assert [one.below for one in steps[:-1]] == [one.at_least for one in steps[1:]]
    assert all(one.below is None or one.at_least < one.below for one in steps)
    assert steps[-1].below is None
    assert len(steps) <= 20  # AWS's limit for one policy


@given(PROCESSES, ROOM, st.integers(1, 10**6))
def test_however_many_tasks_wait_their_workers_are_added_but_no_more_than_there_is_room_for(
    processes: int, room: int, waiting: int
) -> None:
    added = _step_of(steps_out(processes, room), waiting).workers
    needed = -(-waiting // processes)
    assert 1 <= added <= room
    assert added >= min(needed, room)
    assert added < 2 * needed


def test_a_fleet_of_up_to_six_workers_of_four_processes_grows_like_this() -> None:
    assert steps_out(4, 6) == [Step(1, 5, 1), Step(5, 9, 2), Step(9, 17, 4), Step(17, None, 6)]
    assert steps_out(4, 1) == [Step(1, None, 1)]


@pytest.mark.parametrize(("processes", "room"), [(0, 1), (1, 0)])
def test_a_fleet_that_cannot_grow_has_no_steps(processes: int, room: int) -> None:
    with pytest.raises(ValueError, match="nothing to scale"):
        steps_out(processes, room)


def test_a_resource_is_tagged_with_project_stack_and_name() -> None:
    assert tags("dev", "network-vpc") == {
        "Name": f"{facts.PROJECT}-dev-network-vpc",
        "Project": facts.PROJECT,
        "Stack": "dev",
        "ManagedBy": "pulumi",
    }
