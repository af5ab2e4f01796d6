"""What the lab makes real, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True)
class Subnet:
    """A subnet and what its route table lets out of the VPC.

    :ivar nat: whether it has a default route to a NAT gateway
    :ivar s3: whether it has the route of an S3 gateway endpoint
    """

    id: str
    cidr: IPv4Network
    zone: str
    nat: bool
    s3: bool


@dataclass(frozen=True)
class Rule:
    """One rule of a security group.

    :ivar direction: ``ingress`` or ``egress``
    :ivar protocol: ``tcp``, ``udp``, ``icmp`` or ``-1`` for all
    :ivar ports: first and last port, None for all
    :ivar peer: a CIDR, a security group's id or a prefix list's id
    """

    group: str
    direction: str
    protocol: str
    ports: tuple[int, int] | None
    peer: str


@dataclass(frozen=True)
class Interface:
    """An elastic network interface: an address and the security groups around it."""

    address: IPv4Address
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Endpoint:
    """An interface endpoint: the private name of a service, and its interfaces."""

    name: str
    interfaces: tuple[Interface, ...]


@dataclass(frozen=True)
class Volume:
    """An EBS volume that is attached to the master."""

    id: str
    size_gb: int


@dataclass(frozen=True)
class Role:
    """An IAM role: its name and its policy statements, as in their JSON."""

    name: str
    statements: tuple[Mapping[str, object], ...]


@dataclass(frozen=True)
class Template:
    """How an instance is made: what is common to the master and to the instances of a group.

    :ivar user_data: what IMDS serves, raw bytes
    """

    image_id: str
    instance_type: str
    groups: tuple[str, ...]
    role: str
    user_data: bytes


@dataclass(frozen=True)
class Plan:
    """All that the program registered and the lab builds."""

    region: str
    account: str
    vpc: IPv4Network
    subnets: Mapping[str, Subnet]
    rules: Sequence[Rule]
    prefix_lists: Mapping[str, IPv4Network]
    endpoints: Sequence[Endpoint]
    mount_targets: Sequence[Interface]
    roles: Mapping[str, Role]
