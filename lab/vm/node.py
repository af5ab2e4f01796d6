"""The program's master as a virtual machine in the lab's VPC."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from lab.aws.cloud import Instance, Plan
from lab.cluster import build, cache, cluster
from lab.cluster.cluster import Lab, Node, Say
from lab.linux import images, network
from lab.linux.host import Paths
from lab.services import nfs
from lab.vm.machine import QEMU, VirtualMachine, connect_tap


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


def boot_master(paths: Paths, plan: Plan, say: Say) -> Master:
    """Build the plan's network, volumes and shared file system, and power its master on, without its volumes.

    An engine that an earlier lab has built is on the shared file system.
    """
    build.refuse_second(paths)
    image = images.machine_image(paths, cache.baked_packages(plan), say)
    build.prepare(paths)
    lab = build.open_vpc(paths, plan, worker_cores=1)
    lab.nfs = True
    build.converge(lab, replace(plan, instances=(), groups=()), say)
    cache.take_engines(paths, plan, lab.file_system() / cache.ENGINES)
    nfs.serve(paths, lab.file_system())
    (instance,) = plan.instances
    subnet = plan.subnets[instance.subnet]
    node = Node(instance.name, instance.id, None, subnet.id, instance.address, instance.template, cpus=())
    cluster.connect(lab, node)
    connect_tap(paths, node.name, node.address, subnet.cidr, network.resolver_address(plan.vpc))
    machine = VirtualMachine(paths, node.name)
    machine.create(image, lab.authority)
    machine.power_on(node.address, node.id)
    return Master(lab, instance, machine)
