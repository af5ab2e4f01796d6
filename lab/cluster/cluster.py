"""A lab from up to down: builds what a plan says, and remembers it in the lab's own directory."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

from components import facts, userdata
from lab.aws.cloud import Group, Instance, Interface, Plan, Template
from lab.base import LabError
from lab.linux import images, network, teardown, volumes
from lab.linux.host import Paths, cores, in_netns, start
from lab.linux.machine import Machine
from lab.services import aws_api, imds, tls

Say = Callable[[str], None]
ENGINES = Path(facts.ENGINE_IMAGE_DIR).relative_to(facts.NFS_DIR)
"""Where engine images are within the shared file system."""
KEPT_ENGINES = 3
"""Engine images in the cache, of some 350 MB each."""
READY_SECONDS = 1200
"""A first boot builds the engine: minutes, on a slow network many."""
NODE_FACTS = "/etc/openquake/node.json"
"""The file in a node's user data that holds what its own program knows."""
LEAVING_POLL_SECONDS = 0.5
"""Between two looks at whether a node that leaves is done."""
EFS = "/run/oqlab/efs"
APT = "/run/oqlab/apt"


@dataclass
class Node:
    """One instance of the lab.

    :ivar group: the autoscaling group that it belongs to, None for an instance of the program's own
    :ivar powered_on: when, in seconds since the epoch
    :ivar ready_after: seconds from then until it was ready, None before
    :ivar leaves_by: when the group ends it at the latest, in seconds since the epoch; None while it stays
    """

    name: str
    id: str
    group: str | None
    subnet: str
    address: IPv4Address
    template: Template
    cpus: tuple[int, ...]
    powered_on: float = 0.0
    ready_after: float | None = None
    leaves_by: float | None = None


@dataclass
class Lab:
    """A lab that is up: what it was built from and its nodes. Saved after every change.

    :ivar layers: the directories that make up the nodes' image, the uppermost first
    """

    paths: Paths
    plan: Plan
    layers: list[Path]
    authority: str
    nodes: dict[str, Node] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def save(self) -> None:
        """Write it to the lab's directory, atomically."""
        file = _file(self.paths)
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_bytes(pickle.dumps(self))
        new.replace(file)

    def machine(self, name: str) -> Machine:
        """The machine of a node; LabError that lists the nodes when there is none of this name."""
        if name not in self.nodes:
            raise LabError(f"no node {name}; there are {', '.join(self.nodes)}")
        node = self.nodes[name]
        binds = {self.paths.state / "efs": EFS, self.paths.state / "apt": APT}
        return Machine(self.paths, name, node.address, node.cpus, binds)

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


def _file(paths: Paths) -> Path:
    return paths.state / "lab.pickle"


def load(paths: Paths) -> Lab:
    """The lab that is up; LabError when there is none."""
    file = _file(paths)
    if not file.exists():
        hint = "a part of one is left: python -m lab down" if teardown.exists(paths) else "python -m lab up"
        raise LabError(f"no lab is up ({hint})")
    lab = pickle.loads(file.read_bytes())  # noqa: S301  written by save() into root's own directory
    assert isinstance(lab, Lab)
    return lab


def refuse_second(paths: Paths) -> None:
    """LabError when a lab of this name, or a part of one, is there."""
    if teardown.exists(paths):
        raise LabError(f"a lab named {paths.name} is there already; first: python -m lab down")


def up(paths: Paths, plan: Plan, say: Say, cold: bool = False) -> Lab:
    """Build what the plan says and power the nodes on; they are booting when this returns.

    :param cold: start with an empty shared file system, without the engine that the cache keeps
    """
    refuse_second(paths)
    image = images.base_image(paths, () if plan.official_image else baked_packages(plan), say)
    paths.state.mkdir(parents=True, mode=0o700)
    _take_packages(paths)
    efs, baked = paths.state / "efs", paths.state / "baked"
    efs.mkdir(mode=0o755)
    kept = kept_engine(paths, plan)
    if kept.exists() and not cold:
        # Where nobody gets out, the image of the nodes carries it; else it is on a file system that was kept.
        place = efs / ENGINES if plan.official_image else baked / facts.BAKED_ENGINE_DIR.lstrip("/")
        place.mkdir(parents=True)
        shutil.copy2(kept, place)
    logs = paths.state / "logs"
    certificates = paths.state / "tls"
    layers = [baked, image] if baked.exists() else [image]
    lab = Lab(paths, plan, layers, tls.make_certificates(certificates, aws_api.host_names(plan.region)))
    lab.save()
    network.create(paths, plan, logs)
    configuration = paths.state / "aws_api.json"
    configuration.write_text(json.dumps(aws_api.configuration(plan, certificates, events_directory(paths))))
    for namespace, module, argument in (
        ("vpc", "lab.services.imds", imds_directory(paths)),
        ("aws", "lab.services.aws_api", configuration),
    ):
        command = [sys.executable, "-m", module, str(argument)]
        start(paths, in_netns(paths.netns(namespace), command), logs / f"{module}.log")
    subnet = plan.subnets[plan.instances[0].subnet].cidr
    # An address that AWS would give away last: somebody in the VPC who belongs to no security group.
    network.connect(paths, "client", [subnet[-2]], network.router_address(subnet))
    for instance in plan.instances:
        _launch_instance(lab, instance)
    scale(lab, plan.groups[0].desired)
    return lab


def imds_directory(paths: Paths) -> Path:
    """Where the metadata of each instance is."""
    return paths.state / "imds"


def events_directory(paths: Paths) -> Path:
    """Where the AWS API writes down what nodes tell it."""
    return paths.state / "events"


def baked_packages(plan: Plan) -> Sequence[str]:
    """The Debian packages that the user data would install: what an image with everything baked in has."""
    packages: set[str] = set()
    for template in [*(one.template for one in plan.instances), *(group.template for group in plan.groups)]:
        config = userdata.decode(base64.b64encode(template.user_data).decode())
        for file in config["write_files"]:
            if file["path"] == NODE_FACTS:
                packages.update(json.loads(file["content"]).get("packages", ()))
    return sorted(packages)


def _free_addresses(lab: Lab, subnet_id: str) -> Iterator[IPv4Address]:
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


def _gateway(lab: Lab, subnet_id: str) -> IPv4Address:
    return network.router_address(lab.plan.subnets[subnet_id].cidr)


def _launch_instance(lab: Lab, instance: Instance, attach: bool = True) -> None:
    node = Node(
        instance.name, instance.id, None, instance.subnet, instance.address, instance.template, tuple(cores())
    )
    for volume in instance.volumes:
        volumes.create(lab.paths, volume.id, volume.size)
    _launch(lab, node)
    # After power-on, as on AWS, where an attachment needs an instance that runs.
    if attach:
        attach_volumes(lab)


def attach_volumes(lab: Lab) -> None:
    """Attach the master's volumes to it."""
    (instance,) = [one for one in lab.plan.instances if one.name == lab.master().name]
    for volume in instance.volumes:
        volumes.attach(lab.paths, volume.id, lab.machine(instance.name).by_id)


def replace_master(lab: Lab, attach: bool = True) -> None:
    """Terminate the master and boot another machine with its address and volumes; it is booting when this returns.

    AWS does this when the master's user data change. The new one has another id and a blank disk.

    :param attach: whether the volumes are attached now; else :func:`attach_volumes` does it
    """
    old = lab.master()
    lab.machine(old.name).power_off()
    _terminate(lab, old)
    (instance,) = [one for one in lab.plan.instances if one.name == old.name]
    _launch_instance(lab, replace(instance, id=f"i-{secrets.token_hex(9)[:17]}"), attach)
    lab.nodes = {old.name: lab.nodes.pop(old.name), **lab.nodes}
    lab.save()


def _launch_worker(lab: Lab, group: Group) -> None:
    number = lab.numbers[group.name] = lab.numbers.get(group.name, 0) + 1
    placed = [node.subnet for node in lab.workers()]
    subnet = min(group.subnets, key=placed.count)  # AWS keeps the zones of a group in balance
    own = cores()
    share = max(1, len(own) // max(1, group.desired))
    # The cores that the fewest workers have: as many as getInstanceType told the program.
    load = {core: sum(core in node.cpus for node in lab.workers()) for core in own}
    cpus = tuple(sorted(sorted(own, key=lambda core: (load[core], core))[:share]))
    name = f"{group.name}-{number}"
    identifier = f"i-{number:017x}"
    node = Node(
        name, identifier, group.name, subnet, next(_free_addresses(lab, subnet)), group.template, cpus
    )
    _launch(lab, node)


def _launch(lab: Lab, node: Node) -> None:
    """Make a node's network, metadata and disk, and power it on."""
    plan, subnet = lab.plan, lab.plan.subnets[node.subnet]
    lab.nodes[node.name] = node
    lab.save()
    network.connect(lab.paths, node.name, [node.address], _gateway(lab, node.subnet))
    apply_rules(lab)
    place = (subnet.id, str(subnet.cidr))
    imds.publish(
        imds_directory(lab.paths),
        node.address,
        imds.metadata(node.template, node.address, place, node.id, subnet.zone),
    )
    if node.group is not None:
        imds.announce(imds_directory(lab.paths), node.address, imds.LIFECYCLE_STATE, "InService")
    machine = lab.machine(node.name)
    machine.create(lab.layers, network.resolver_address(plan.vpc), lab.authority)
    power_on(lab, node)


def power_on(lab: Lab, node: Node) -> None:
    """Power a node on."""
    node.powered_on, node.ready_after = time.time(), None
    lab.machine(node.name).power_on()
    lab.save()


def apply_rules(lab: Lab) -> None:
    """Load the plan's security groups for the nodes that there are."""
    interfaces = {node.name: Interface(node.address, node.template.groups) for node in lab.nodes.values()}
    network.apply_rules(lab.paths, lab.plan, interfaces)


def scale(lab: Lab, number: int) -> None:
    """Make the group this large, and wait for those that leave; see :func:`set_capacity`."""
    set_capacity(lab, number)
    while lab.workers() != lab.staying():
        if not end_drained(lab):
            time.sleep(LEAVING_POLL_SECONDS)


def set_capacity(lab: Lab, number: int) -> None:
    """Make the group this large: replace the dead, start what lacks, let the newest of too many leave.

    Those that leave are told by their metadata, and end in :func:`end_drained`: the group's lifecycle hook.
    """
    group = lab.group()
    if not 0 <= number <= group.maximum:
        raise LabError(f"the group {group.name} has at most {group.maximum} instances")
    for node in lab.workers():
        if lab.machine(node.name).init() is None:
            _terminate(lab, node)
    for node in lab.staying()[number:]:
        node.leaves_by = time.time() + (group.hook.seconds if group.hook else 0)
        imds.announce(imds_directory(lab.paths), node.address, imds.LIFECYCLE_STATE, "Terminated")
        lab.save()
    for _ in range(number - len(lab.staying())):
        _launch_worker(lab, group)


def end_drained(lab: Lab) -> list[str]:
    """End the leaving nodes that have said that they can go, that are off, or whose time is over; their names."""
    ended = []
    for node in lab.workers():
        if node.leaves_by is None:
            continue
        completed = events_directory(lab.paths) / aws_api.COMPLETED / node.id
        if completed.exists() or time.time() > node.leaves_by or lab.machine(node.name).init() is None:
            lab.machine(node.name).power_off()
            _terminate(lab, node)
            ended.append(node.name)
    return ended


def _terminate(lab: Lab, node: Node) -> None:
    machine = lab.machine(node.name)
    machine.kill()
    network.disconnect(lab.paths, node.name)
    machine.remove()
    del lab.nodes[node.name]
    apply_rules(lab)
    lab.save()


@dataclass(frozen=True)
class State:
    """What a node says of itself; being off or still booting are problems too."""

    ready: bool
    problems: tuple[str, ...]


OFF = "off"


def state(lab: Lab, node: Node) -> State:
    """Ask a node."""
    machine = lab.machine(node.name)
    if not machine.pids():
        return State(False, (OFF,))
    try:
        answer = json.loads(machine.execute([facts.NODE_PROGRAM, "status"]).stdout)
    except (LabError, ValueError):  # it has no process 1 yet, or no program that could answer
        return State(False, ("booting",))
    return State(answer["ready"], tuple(answer["problems"]))


def wait_until_ready(lab: Lab, say: Say, timeout: float = READY_SECONDS) -> None:
    """Wait until every node says that it is ready; LabError with its problems for one that is off, or not in time.

    :param say: told when a node is ready, and why its bootstrap fails: it is tried again
    """
    begin = time.monotonic()
    failed: set[str] = set()
    waiting = [node for node in lab.nodes.values() if node.ready_after is None]
    while waiting:
        for node in list(waiting):
            answer = state(lab, node)
            problems = "; ".join(answer.problems)
            if answer.ready:
                node.ready_after = time.time() - node.powered_on
                lab.save()
                waiting.remove(node)
                say(f"{node.name} is ready {node.ready_after:.1f} s after power-on")
            elif OFF in answer.problems or time.monotonic() > begin + timeout:
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


def down(paths: Paths) -> None:
    """Take the lab away, whatever is left of it; what it built and downloaded goes to the cache."""
    teardown.stop(paths)
    _keep(paths, (paths.state / "apt").glob("*.deb"), "apt")
    if _keep(paths, (paths.state / "efs" / ENGINES).glob("*.squashfs"), "engine"):
        _forget_old_engines(paths)
    teardown.remove(paths)


def _take_packages(paths: Paths) -> None:
    """Give the lab the packages that earlier ones have downloaded.

    A copy: apt locks its directory, and of two labs that boot at once one would fail.
    """
    apt = paths.state / "apt"
    (apt / "partial").mkdir(parents=True)
    for package in (paths.cache / "apt").glob("*.deb"):
        shutil.copy2(package, apt)


def kept_engine(paths: Paths, plan: Plan) -> Path:
    """Where the cache keeps the engine that the plan's bundle gives; what a retained file system has on AWS."""
    (bundle,) = plan.objects
    name = userdata.engine_id(hashlib.sha256(bundle.content).hexdigest())
    return paths.cache / "engine" / f"{name}.squashfs"


def _keep(paths: Paths, files: Iterable[Path], kind: str) -> bool:
    """Copy files into a directory of the cache, unless they are there; True if one was new."""
    directory = paths.cache / kind
    new = [file for file in files if not (directory / file.name).exists()]
    for file in new:
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f"{file.name}.{paths.name}.partial"  # another lab may be keeping the same
        shutil.copyfile(file, part)
        part.rename(directory / file.name)
    return bool(new)


def _forget_old_engines(paths: Paths) -> None:
    kept = (paths.cache / "engine").glob("*.squashfs")
    newest_first = sorted(kept, key=lambda file: file.stat().st_mtime, reverse=True)
    for old in newest_first[KEPT_ENGINES:]:
        old.unlink()
