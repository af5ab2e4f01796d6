"""What follows from an EC2 instance type's name, and how many OpenQuake processes a type runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from components import facts

Architecture = Literal["x86_64", "arm64"]

# family letters (or u-6tb), generation, attributes, size: c7gn.2xlarge, m7i-flex.large, u7i-12tb.224xlarge,
# c6i.metal
# https://docs.aws.amazon.com/ec2/latest/instancetypes/instance-type-names.html
_FORM: Final = re.compile(
    r"(?P<family>(u-\d+tb|[a-z]+)(?P<generation>\d+)(?P<attributes>[a-z0-9-]*))"
    r"\.(nano|micro|small|medium|large|\d*xlarge|metal(-\d+xl)?)"
)

# Families on the Xen hypervisor, whose disks are no NVMe devices and so cannot be found by volume id on the
# node.
# https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-nitro-instances.html (Xen-based instances)
_XEN_FAMILIES: Final = frozenset(
    {"c1", "c3", "c4", "cc2", "cr1", "d2", "f1", "g2", "g3", "g3s", "h1", "hs1", "i2", "i3", "m1", "m2", "m3"}
    | {"m4", "p2", "p3", "r3", "r4", "t1", "t2", "x1", "x1e"}
)


@dataclass(frozen=True)
class InstanceType:
    """What AWS says of an instance type: its virtual CPUs and its memory in MiB."""

    name: str
    vcpus: int
    memory_mb: int


def check(instance_type: str) -> None:
    """Raise a ValueError that holds the remedy if this cannot be the type of one of our nodes."""
    form = _FORM.fullmatch(instance_type)
    if form is None:
        raise ValueError("write an EC2 instance type such as c7i.2xlarge")
    family = form["family"]
    if family.startswith("mac"):
        raise ValueError("choose a type that runs Linux; mac types do not")
    if family in _XEN_FAMILIES and ".metal" not in instance_type:
        raise ValueError(
            "choose a type on the Nitro system (such as m7i, c7i, t3): disks are found by NVMe serial"
        )


def architecture(instance_type: str) -> Architecture:
    """The processor architecture that a type's name tells: `g` among the attributes, or the family a1, is
    Graviton.
    """
    form = _FORM.fullmatch(instance_type)
    if form is None:
        raise ValueError(f"{instance_type!r} is no EC2 instance type")
    return "arm64" if "g" in form["attributes"] or form["family"] == "a1" else "x86_64"


def processes(instance_type: InstanceType, reserved_mb: int = 0) -> int:
    """The worker processes on one machine: one per virtual CPU that has its memory, and at least one.

    `reserved_mb` of memory (MiB) are for something else.
    """
    memory_mb = instance_type.memory_mb - reserved_mb
    return max(1, min(instance_type.vcpus, memory_mb // facts.MEMORY_PER_PROCESS_MB))


def least_processes(types: Iterable[InstanceType], reserved_mb: int = 0) -> int:
    """The worker processes on any machine of these types: those of the smallest.

    Scaling counts with these: too few workers would leave tasks waiting for another boot, too many share the
    work and end it sooner.
    """
    return min(processes(instance_type, reserved_mb) for instance_type in types)


def fleet_processes(workers: int, types: Iterable[InstanceType], reserved_mb: int = 0) -> int:
    """The worker processes of a full fleet: `workers` machines of the largest type.

    The engine keeps twice this many tasks in flight, so too large a number costs little and too small a
    number leaves late workers idle; hence the largest type.
    """
    return workers * max(processes(instance_type, reserved_mb) for instance_type in types)
