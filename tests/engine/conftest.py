"""Pulumi's real engine on the program, with the lab's provider: what has been made is in the engine's state alone.

That AWS does what the provider says is not shown here.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.aws.answers import INVOKES, Invokes, network_answers
from lab.region.provider import Failure, Provider, Values, label_of
from lab.region.stack import Stack, find_pulumi, served

# A custom image, which some settings ask for.
AMI = "ami-0123456789abcdef0"
SUBNET = "aws:ec2/subnet:Subnet"
VOLUME = "aws:ebs/volume:Volume"
EFS = "aws:efs/fileSystem:FileSystem"
# The settings from which each is changed alone. With an image, an address and spot capacity, all others can be.
SETTINGS: dict[str, object] = {"amiId": AMI, "alarmEmail": "seismology@example.org", "workerSpot": True}


class Region(Provider):
    """A provider whose resources can be refused, held up and lost.

    Attributes:
        refuses: says of a verb and a resource's label whether AWS refuses it, and why
        holds: the name of a resource whose making never comes to an end; `held` is set when it has begun
        gone: the ids of resources that somebody has removed by hand
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """As new: what a test has set does not concern the next one."""
        self.refuses: Callable[[str, str], str | None] = lambda _verb, _label: None
        self.holds: str | None = None
        self.held = threading.Event()
        self.let_go = threading.Event()
        self.gone: set[str] = set()
        self.invokes: Invokes = INVOKES
        self.asked.clear()

    def make(self, type_: str, name: str, _id: str, _outputs: Values) -> None:
        if name == self.holds:
            self.held.set()
            self.let_go.wait()
        self._refuse("make", type_, name)

    def change(self, type_: str, name: str, _id: str, _old: Values, _new: Values) -> None:
        self._refuse("change", type_, name)

    def remove(self, type_: str, name: str, _id: str, _outputs: Values) -> None:
        self._refuse("remove", type_, name)

    def look(self, _type: str, _name: str, id_: str, outputs: Values) -> Values | None:
        return None if id_ in self.gone else outputs

    def _refuse(self, verb: str, type_: str, name: str) -> None:
        if reason := self.refuses(verb, label_of(type_, name)):
            raise Failure(reason)


@pytest.fixture(scope="session")
def pulumi() -> Path:
    found = find_pulumi()
    if found is None and shutil.which("go"):
        pytest.fail("Pulumi's command line is not built: make pulumi-cli")
    if found is None:
        pytest.skip("needs Pulumi's command line: on PATH, or Go, with which `make` builds it")
    return found


@pytest.fixture(scope="session")
def served_region() -> Iterator[tuple[Region, dict[str, str]]]:
    region = Region()
    with served(region) as environment:
        yield region, environment
        region.let_go.set()


@pytest.fixture
def region(served_region: tuple[Region, dict[str, str]]) -> Iterator[Region]:
    region, _ = served_region
    region.forget()
    yield region
    region.let_go.set()


@pytest.fixture(scope="session")
def cluster(
    pulumi: Path, served_region: tuple[Region, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Stack:
    """A stack that is up with SETTINGS. Tests take a copy."""
    stack = Stack(pulumi, tmp_path_factory.mktemp("cluster") / "stack", served_region[1]).init()
    stack.configure(**SETTINGS)
    stack.up()
    return stack


@pytest.fixture(scope="session")
def shown(cluster: Stack) -> Invokes:
    """What AWS shows of its network, volumes and file system."""
    return network_of(cluster.resources())


@pytest.fixture
def stack(cluster: Stack, shown: Invokes, region: Region, tmp_path: Path) -> Stack:
    """A stack that is up with SETTINGS, in a region where AWS shows its network and volumes."""
    region.invokes = {**INVOKES, **shown}
    return cluster.copy(tmp_path / "stack")


def network_of(resources: Mapping[str, Any]) -> Invokes:
    """AWS's answers about the network, the volumes and the file system of a cluster that exists."""
    vpc = resources["Vpc:network-vpc"]
    shared = {one["id"]: {"tags": one["inputs"]["tags"]} for one in resources.values() if one["type"] == EFS}
    subnets, volumes = (
        {one["id"]: one["inputs"] for one in resources.values() if one["type"] == type_}
        for type_ in (SUBNET, VOLUME)
    )
    return network_answers(
        vpc["id"], vpc["inputs"]["cidrBlock"], subnets, vpc["inputs"]["tags"], volumes, shared
    )


@pytest.fixture
def empty(pulumi: Path, served_region: tuple[Region, dict[str, str]], tmp_path: Path) -> Stack:
    """A stack without resources, with SETTINGS."""
    stack = Stack(pulumi, tmp_path / "stack", served_region[1]).init()
    stack.configure(**SETTINGS)
    return stack


def labels(resources: dict[str, Any], type_: str) -> set[str]:
    """The labels of the resources of a type."""
    return {label for label, one in resources.items() if one["type"] == type_}
