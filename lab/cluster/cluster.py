"""A lab that is up: its nodes and what can be done with one. Remembered in the lab's own directory."""

from __future__ import annotations

import json
import pickle
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from components import facts
from lab.aws.cloud import Group, Interface, Plan, Template
from lab.base import LabError
from lab.cluster import cache
from lab.linux import network, teardown, volumes
from lab.linux.host import Paths
from lab.linux.machine import Machine
from lab.services import imds

Say = Callable[[str], None]
READY_SECONDS = 1200
"""A first boot builds the engine: minutes, on a slow network many."""
EFS = "/run/oqlab/efs"
APT = "/run/oqlab/apt"


@dataclass
class Node:
    """A node as the lab remembers it.

    Attributes:
        group: the Auto Scaling group that it belongs to, None for an instance of the program's own
        release: of its group, by which it was made
        powered_on: when, in seconds since the epoch
        ready_after: seconds from then until it was ready, None before
        leaves_by: when the group ends it at the latest, in seconds since the epoch; None while it stays
    """

    name: str
    id: str
    group: str | None
    subnet: str
    address: IPv4Address
    template: Template
    cpus: tuple[int, ...]
    release: str = ""
    powered_on: float = 0.0
    ready_after: float | None = None
    leaves_by: float | None = None


@dataclass
class Lab:
    """A lab that is up: what it is built from and its nodes. Saved after every change.

    Attributes:
        plan: what exists in it
        authority: PEM certificate by which its AWS API is signed
        worker_cores: of this machine's cores, those that a worker has
        capacity: how many instances each group is to have, by the name that AWS knows it by
        numbers: how many instances each group has had, by its name
        nfs: whether an NFS server answers at the mount targets, for nodes with a kernel that has a client
        cold: whether its nodes start without the engine that the cache keeps
        layers: the directories that make up the nodes' image, the uppermost first; none before the first node
    """

    paths: Paths
    plan: Plan
    authority: str
    worker_cores: int
    cold: bool = False
    nfs: bool = False
    layers: list[Path] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def save(self) -> None:
        """Write it to the lab's directory, atomically."""
        file = record_of(self.paths)
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_bytes(pickle.dumps(self))
        new.replace(file)

    def machine(self, name: str) -> Machine:
        """The machine of a node; LabError that lists the nodes when there is none of this name."""
        if name not in self.nodes:
            raise LabError(f"no node {name}; there are {', '.join(self.nodes)}")
        node = self.nodes[name]
        binds = {self.file_system(): EFS, self.paths.state / "apt": APT}
        return Machine(self.paths, name, node.address, node.cpus, binds)

    def file_system(self) -> Path:
        """The directory that is the shared file system; another one when other mount targets are there."""
        return self.paths.state / "efs" / self.plan.file_system

    def group(self) -> Group:
        """The group of workers."""
        (group,) = self.plan.groups
        return group

    def master(self) -> Node:
        """The one node that belongs to no group."""
        (node,) = [node for node in list(self.nodes.values()) if node.group is None]
        return node

    def workers(self) -> list[Node]:
        """The nodes of groups, those too that are leaving."""
        return [node for node in list(self.nodes.values()) if node.group is not None]

    def staying(self) -> list[Node]:
        """The nodes that a group counts: those that are not leaving."""
        return [node for node in self.workers() if node.leaves_by is None]


def region_record(paths: Paths) -> Path:
    """The file in which a region of Pulumi's remembers what exists in it; there is none in a lab of `lab up`."""
    return paths.state / "region.pickle"


def record_of(paths: Paths) -> Path:
    """The file in which a lab that is up is remembered."""
    return paths.state / "lab.pickle"


def load(paths: Paths) -> Lab:
    """The lab that is up; LabError when there is none."""
    file = record_of(paths)
    if not file.exists():
        hint = "python -m lab up"
        if teardown.exists(paths):
            hint = "volumes or a part of one are left: python -m lab down, or python -m lab pulumi up"
        raise LabError(f"no lab is up ({hint})")
    lab = pickle.loads(file.read_bytes())  # noqa: S301  written by save() into root's own directory
    assert isinstance(lab, Lab)
    return lab


def imds_directory(paths: Paths) -> Path:
    """Where the metadata of each instance is."""
    return paths.state / "imds"


def events_directory(paths: Paths) -> Path:
    """Where the AWS API writes down what nodes tell it."""
    return paths.state / "events"


def free_addresses(lab: Lab, subnet_id: str) -> Iterator[IPv4Address]:
    """The addresses of a subnet that AWS may give to a new instance."""
    plan = lab.plan
    used = {node.address for node in lab.nodes.values()}
    used |= {instance.address for instance in plan.instances}
    used |= {target.address for target in plan.mount_targets}
    used |= {interface.address for endpoint in plan.endpoints for interface in endpoint.interfaces}
    cidr = plan.subnets[subnet_id].cidr
    for number in range(4, cidr.num_addresses - 1):  # AWS keeps the first four and the last
        if cidr[number] not in used:
            yield cidr[number]


def gateway(lab: Lab, subnet_id: str) -> IPv4Address:
    """The router of a subnet."""
    return network.router_address(lab.plan.subnets[subnet_id].cidr)


def attach_volumes(lab: Lab) -> None:
    """Attach the master's volumes to it."""
    (instance,) = [one for one in lab.plan.instances if one.name == lab.master().name]
    for volume in instance.volumes:
        volumes.attach(lab.paths, volume.id, lab.machine(instance.name).by_id)


def launch(lab: Lab, node: Node, say: Say) -> None:
    """Make a node's network, metadata and disk, and power it on."""
    if not lab.plan.file_system:
        raise LabError(
            f"{node.name}: the lab starts no machine before the shared file system has mount targets"
        )
    if not lab.layers:
        lab.layers = _image_layers(lab, say)
    connect(lab, node)
    machine = lab.machine(node.name)
    machine.create(lab.layers, network.resolver_address(lab.plan.vpc), lab.authority)
    power_on(lab, node)


def connect(lab: Lab, node: Node) -> None:
    """Give a new node its place: in the lab's list, in the network with its security groups, in the metadata."""
    subnet = lab.plan.subnets[node.subnet]
    lab.nodes[node.name] = node
    if node.group is None:  # people look for the master first
        lab.nodes = {node.name: lab.nodes.pop(node.name), **lab.nodes}
    lab.save()
    network.connect(lab.paths, node.name, [node.address], gateway(lab, node.subnet))
    apply_rules(lab)
    place = (subnet.id, str(subnet.cidr))
    imds.publish(
        imds_directory(lab.paths),
        node.address,
        imds.metadata(node.template, node.address, place, node.id, subnet.zone),
    )
    if node.group is not None:
        imds.announce(imds_directory(lab.paths), node.address, imds.LIFECYCLE_STATE, "InService")


def _image_layers(lab: Lab, say: Say) -> list[Path]:
    """The nodes' image, and the engine of an earlier lab where a node looks for it."""
    paths, plan, baked = lab.paths, lab.plan, lab.paths.state / "baked"
    layers = [cache.nodes_image(paths, plan, say)]
    if not lab.cold:
        # Where nobody gets out, the image of the nodes carries it; else it is on a file system that was kept.
        own = baked / facts.BAKED_ENGINE_DIR.lstrip("/")
        place = lab.file_system() / cache.ENGINES if plan.official_image else own
        cache.take_engines(paths, plan, place, say)
    return [baked, *layers] if baked.exists() else layers


def power_on(lab: Lab, node: Node) -> None:
    """Power a node on."""
    node.powered_on, node.ready_after = time.time(), None
    lab.machine(node.name).power_on()
    lab.save()


def apply_rules(lab: Lab) -> None:
    """Load the plan's security groups for the nodes that there are."""
    interfaces = {node.name: Interface(node.address, node.template.groups) for node in lab.nodes.values()}
    network.apply_rules(lab.paths, lab.plan, interfaces)


def terminate(lab: Lab, node: Node) -> None:
    """Shut a node down and take its disk and its address away; its volumes stay."""
    machine = lab.machine(node.name)
    machine.power_off()
    network.disconnect(lab.paths, node.name)
    machine.remove()
    (imds_directory(lab.paths) / f"{node.address}.json").unlink(missing_ok=True)
    del lab.nodes[node.name]
    apply_rules(lab)
    lab.save()


@dataclass(frozen=True)
class State:
    """What a node says of itself; being off or still booting are problems too."""

    ready: bool
    problems: tuple[str, ...]


OFF = "off"
STATUS_SECONDS = 120  # for a node's answer: it gives RabbitMQ alone a minute


def state(lab: Lab, node: Node) -> State:
    """Ask a node."""
    machine = lab.machine(node.name)
    if not machine.pids():
        return State(False, (OFF,))
    try:
        answer = json.loads(machine.execute([facts.NODE_PROGRAM, "status"], STATUS_SECONDS).stdout)
    # It has no process 1 yet, no program that could answer, or too much to do.
    except (LabError, ValueError, subprocess.TimeoutExpired):
        return State(False, ("booting",))
    return State(answer["ready"], tuple(answer["problems"]))


def power(lab: Lab, node: Node) -> str:
    """What EC2 calls a machine in this state."""
    machine = lab.machine(node.name)
    if machine.init() is not None:
        return "running"
    return "stopping" if machine.monitors() else "stopped"


def wait_until_ready(
    lab: Lab, say: Say, timeout: float | None = None, nodes: Sequence[Node] | None = None
) -> None:
    """Wait until every node says that it is ready; LabError with its problems for one that is off, or not in time.

    Args:
        say: told when a node is ready, and why its bootstrap fails: it is tried again
        timeout: in seconds; as the program waits for the master, if None
        nodes: only these
    """
    begin = time.monotonic()
    limit = (lab.plan.ready_seconds or READY_SECONDS) if timeout is None else timeout
    failed: set[str] = set()
    asked = lab.nodes.values() if nodes is None else nodes
    waiting = [node for node in asked if node.ready_after is None]
    while waiting:
        for node in list(waiting):
            answer = state(lab, node)
            problems = "; ".join(answer.problems)
            if answer.ready:
                node.ready_after = time.time() - node.powered_on
                lab.save()
                waiting.remove(node)
                say(f"{node.name} is ready {node.ready_after:.1f} s after power-on")
            elif OFF in answer.problems or time.monotonic() > begin + limit:
                seconds = time.time() - node.powered_on
                raise LabError(
                    f"{node.name} is not ready {seconds:.0f} s after power-on: {problems}\n"
                    f"{console_tail(lab, node)}"
                )
            for problem in answer.problems:
                if " has failed at " in problem and (line := f"{node.name}: {problem}") not in failed:
                    failed.add(line)
                    say(line)
        # Asking costs a node a fraction of a second of its core, which a long first boot has better use for.
        time.sleep(0.5 + (time.monotonic() - begin) / 40)


def console_tail(lab: Lab, node: Node, lines: int = 15) -> str:
    """The end of what a node wrote to its console."""
    console = lab.machine(node.name).console
    return "\n".join(console.read_text(errors="replace").splitlines()[-lines:]) if console.exists() else ""


def kill(lab: Lab, name: str) -> None:
    """kill -9 of a whole node; its disk and volumes stay."""
    lab.machine(name).kill()
