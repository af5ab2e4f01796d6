"""Makes a lab, lets it follow a plan from whatever it was, and removes it."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from lab.aws.cloud import Instance, Plan
from lab.base import LabError
from lab.cluster import cache, cluster, fleet
from lab.cluster.cluster import Lab, Node, Say
from lab.linux import network, teardown, volumes
from lab.linux.host import Paths, cores, in_netns, namespaces, start
from lab.services import aws_api, imds, tls


def refuse_second(paths: Paths) -> None:
    """LabError when a lab of this name, or a part of one, is there."""
    if teardown.exists(paths):
        raise LabError(f"a lab named {paths.name} is there already; first: python -m lab down")


def up(paths: Paths, plan: Plan, say: Say, cold: bool = False) -> Lab:
    """Build what the plan says and power the nodes on; they are booting when this returns.

    Args:
        cold: start with an empty shared file system, without the engine that the cache keeps
    """
    refuse_second(paths)
    prepare(paths)
    desired = sum(group.desired for group in plan.groups)
    lab = open_vpc(paths, plan, worker_share(desired), cold)
    converge(lab, plan, say)
    return lab


def worker_share(workers: int) -> int:
    """How many of this machine's cores a worker has, with so many of them."""
    return max(1, len(cores()) // max(1, workers))


def prepare(paths: Paths) -> None:
    """Make the lab's own directory: a region of AWS in which nothing is yet."""
    paths.state.mkdir(parents=True, mode=0o700)
    cache.take_packages(paths)


def open_vpc(paths: Paths, plan: Plan, worker_cores: int, cold: bool = False) -> Lab:
    """Make the plan's VPC, in which nothing is yet, and what the nodes in it ask.

    Args:
        cold: the nodes start without the engine that the cache keeps
    """
    logs, certificates = paths.state / "logs", paths.state / "tls"
    empty = Plan(plan.region, plan.account, plan.vpc)
    authority = tls.make_certificates(certificates, aws_api.host_names(plan.region))
    lab = Lab(paths, empty, authority, worker_cores, cold)
    lab.save()
    network.create(paths, plan.vpc, logs)
    network.update(paths, empty, empty, logs)
    cluster.apply_rules(lab)
    _configure_api(lab)
    for namespace, module, argument in (
        ("vpc", "lab.services.imds", cluster.imds_directory(paths)),
        ("aws", "lab.services.aws_api", _api_configuration(paths)),
    ):
        command = [sys.executable, "-m", module, str(argument)]
        start(paths, in_netns(paths.netns(namespace), command), logs / f"{module}.log")
    return lab


def close_vpc(paths: Paths) -> None:
    """Take the VPC away, and whatever is in it; volumes, snapshots and file systems stay."""
    teardown.stop(paths)
    cluster.record_of(paths).unlink(missing_ok=True)


def converge(lab: Lab, plan: Plan, say: Say) -> None:
    """Make the lab what a plan says, from what the plan before said; machines that are new are booting afterwards.

    The instances of a group stay when only what they are made from has changed: see `lab.cluster.fleet.refresh`.
    """
    before, lab.plan = lab.plan, plan
    if plan.file_system:
        lab.file_system().mkdir(mode=0o755, parents=True, exist_ok=True)
    network.update(lab.paths, before, plan, lab.paths.state / "logs")
    _configure_api(lab)
    cluster.apply_rules(lab)
    _converge_volumes(lab, before)
    wanted = {instance.id: instance for instance in plan.instances}
    for node in [node for node in lab.nodes.values() if node.group is None]:
        if node.id in wanted:
            _converge_instance(lab, node, wanted.pop(node.id))
        else:
            cluster.terminate(lab, node)
    for instance in wanted.values():
        _launch_instance(lab, instance, say)
    fleet.converge(lab, say)
    lab.save()


def _converge_volumes(lab: Lab, before: Plan) -> None:
    for volume in lab.plan.volumes.values():
        if volume.id not in before.volumes:
            volumes.create(lab.paths, volume)
        elif before.volumes[volume.id].size != volume.size:
            volumes.grow(lab.paths, volume)
    for gone in before.volumes.keys() - lab.plan.volumes.keys():
        volumes.remove(lab.paths, gone)


def _converge_instance(lab: Lab, node: Node, instance: Instance) -> None:
    """Give an instance that stays the volumes, the tags and the type that it is to have."""
    machine = lab.machine(node.name)
    for name in volumes.attached(machine.by_id) - {volumes.link_name(one.id) for one in instance.volumes}:
        machine.power_off()  # as `stopInstanceBeforeDetaching` says: a mounted volume never detaches
        volumes.detach(name, machine.by_id)
    cluster.attach_volumes(lab)
    template, node.template = node.template, instance.template
    for key, value in instance.template.metadata_tags.items():
        if template.metadata_tags.get(key) != value:
            imds.announce(cluster.imds_directory(lab.paths), node.address, f"tags/instance/{key}", value)
    if template.instance_type != instance.template.instance_type:
        machine.power_off()
        imds.announce(
            cluster.imds_directory(lab.paths), node.address, "instance-type", instance.template.instance_type
        )
        cluster.power_on(lab, node)


def _configure_api(lab: Lab) -> None:
    """Let AWS's API answer by the lab's plan."""
    file = _api_configuration(lab.paths)
    new = file.with_suffix(".new")
    events = cluster.events_directory(lab.paths)
    settings = aws_api.configuration(lab.plan, lab.paths.state / "tls", events, mount_targets=not lab.nfs)
    new.write_text(json.dumps(settings))
    new.replace(file)


def give_secret(lab: Lab, arn: str, value: str) -> None:
    """Give one of the account's own secrets a value, in place of the one that it has."""
    aws_api.give_secret(_api_configuration(lab.paths).parent, arn, value)


def _api_configuration(paths: Paths) -> Path:
    return paths.state / "aws_api.json"


def _launch_instance(lab: Lab, instance: Instance, say: Say, attach: bool = True) -> None:
    node = Node(
        instance.name, instance.id, None, instance.subnet, instance.address, instance.template, tuple(cores())
    )
    _connect_client(lab, instance.subnet)
    cluster.launch(lab, node, say)
    # After power-on, as on AWS, where an attachment needs an instance that runs.
    if attach:
        cluster.attach_volumes(lab)


def _connect_client(lab: Lab, subnet_id: str) -> None:
    """Let somebody be in the VPC who belongs to no security group, at an address that AWS would give away last."""
    if lab.paths.netns("client") not in namespaces(lab.paths):
        address = lab.plan.subnets[subnet_id].cidr[-2]
        network.connect(lab.paths, "client", [address], cluster.gateway(lab, subnet_id))


def replace_master(lab: Lab, say: Say, attach: bool = True) -> None:
    """Terminate the master and boot another machine with its address and volumes; it is booting when this returns.

    AWS does this when the master's user data change. The new one has another id and a blank disk.

    Args:
        attach: whether the volumes are attached now; else `attach_volumes` does it
    """
    old = lab.master()
    cluster.terminate(lab, old)
    (instance,) = [one for one in lab.plan.instances if one.name == old.name]
    _launch_instance(lab, replace(instance, id=f"i-{secrets.token_hex(9)[:17]}"), say, attach)


def down(paths: Paths) -> None:
    """Take the lab away, whatever is left of it; what it built and downloaded goes to the cache."""
    teardown.stop(paths)
    cache.keep(paths)
    teardown.remove(paths)
