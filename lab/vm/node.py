"""The program's nodes as virtual machines in the lab's VPC: the master, or a worker beside a master in a container."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from lab.aws.cloud import Instance, Plan
from lab.cluster import build, cache, cluster
from lab.cluster.cluster import Lab, Node, Say
from lab.linux import images, network
from lab.linux.host import Paths
from lab.services import nfs
from lab.vm.machine import QEMU, VirtualMachine, connect_tap

WORKER_MB = 2048
"""Memory of a worker: the engine recommends as much for a process, and it has one core."""


def missing() -> list[str]:
    """What this machine lacks, besides what the lab needs; empty when nothing."""
    return [*([] if shutil.which(QEMU) else [f"{QEMU} (qemu-system-x86)"]), *nfs.missing()]


@dataclass(frozen=True)
class Master:
    """A master that boots: its lab, what the program says of it, and the machine."""

    lab: Lab
    instance: Instance
    machine: VirtualMachine

    def plug(self) -> None:
        """Attach its volumes."""
        for slot, volume in enumerate(self.instance.volumes):
            self.machine.plug(volume, slot)


@dataclass(frozen=True)
class Worker:
    """A worker that boots: its lab, whose master is a container, its place there, and the machine."""

    lab: Lab
    node: Node
    machine: VirtualMachine


def boot_master(paths: Paths, plan: Plan, say: Say) -> Master:
    """Build the plan's network, volumes and shared file system, and power its master on, without its volumes.

    An engine that an earlier lab has built is on the shared file system.
    """
    image = _image(paths, plan, say)
    lab = _open(paths, plan, say)
    cache.take_engines(paths, plan, lab.file_system() / cache.ENGINES, say)
    (instance,) = plan.instances
    node = Node(
        instance.name, instance.id, None, instance.subnet, instance.address, instance.template, cpus=()
    )
    machine = VirtualMachine(paths, node.name)
    _power_on(lab, node, machine, image)
    return Master(lab, instance, machine)


def boot_worker(paths: Paths, plan: Plan, say: Say) -> Worker:
    """Build all of a plan but its workers, and power one on whose kernel mounts the shared file system over NFS.

    Both machines are booting when this returns. The master, a container, has the server's directory itself.
    """
    image = _image(paths, plan, say)
    lab = _open(paths, plan, say)
    build.converge(lab, replace(plan, groups=()), say)
    (group,) = plan.groups
    subnet = group.subnets[0]
    address = next(cluster.free_addresses(lab, subnet))
    node = Node(f"{group.name}-1", f"i-{1:017x}", group.name, subnet, address, group.template, cpus=())
    machine = VirtualMachine(paths, node.name, WORKER_MB)
    _power_on(lab, node, machine, image)
    return Worker(lab, node, machine)


def _image(paths: Paths, plan: Plan, say: Say) -> Path:
    """The image of both kinds of node, with the packages that a master would unpack: minutes in the emulation."""
    return images.machine_image(paths, cache.baked_packages(plan), say)


def _open(paths: Paths, plan: Plan, say: Say) -> Lab:
    """A lab with all of the plan but machines, and an NFS server at its mount targets."""
    build.refuse_second(paths)
    build.prepare(paths)
    lab = build.open_vpc(paths, plan, worker_cores=1)
    lab.nfs = True
    build.converge(lab, replace(plan, instances=(), groups=()), say)
    nfs.serve(paths, lab.file_system())
    return lab


def _power_on(lab: Lab, node: Node, machine: VirtualMachine, image: Path) -> None:
    """Give a node its place in the lab and its disk, and power it on."""
    cluster.connect(lab, node)
    subnet = lab.plan.subnets[node.subnet].cidr
    connect_tap(lab.paths, node.name, node.address, subnet, network.resolver_address(lab.plan.vpc))
    machine.create(image, lab.authority)
    machine.power_on(node.address, node.id, node.template.instance_type)
