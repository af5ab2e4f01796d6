"""What the lab makes real, as plain values: the part of a recording that has an effect on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

Statement = Mapping[str, object]
"""A statement of an IAM policy, as in its JSON."""


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
    """An EBS volume; size in GiB."""

    id: str
    size: int


@dataclass(frozen=True)
class Secret:
    """A Secrets Manager secret; it has no value until a node gives it one."""

    name: str
    arn: str


@dataclass(frozen=True)
class S3Object:
    """An object that the program puts into a bucket."""

    bucket: str
    key: str
    content: bytes


@dataclass(frozen=True)
class Template:
    """What an instance is made from, alone or in a group.

    :ivar role: the name of the role that its instance profile gives it
    :ivar user_data: what IMDS serves, raw bytes
    """

    image_id: str
    instance_type: str
    groups: tuple[str, ...]
    role: str
    user_data: bytes


@dataclass(frozen=True)
class Instance:
    """An instance that the program registers itself, with a fixed address."""

    name: str
    id: str
    subnet: str
    address: IPv4Address
    template: Template
    volumes: tuple[Volume, ...]


@dataclass(frozen=True)
class Group:
    """An autoscaling group; its instances are named ``name-1`` and so on."""

    name: str
    template: Template
    subnets: tuple[str, ...]
    desired: int
    maximum: int


@dataclass(frozen=True)
class Plan:
    """All that the program registered and the lab builds.

    :ivar rules: of all security groups
    :ivar prefix_lists: the networks behind a prefix list's id
    :ivar roles: the IAM statements of each role, by its name
    :ivar s3_policy: the statements of the S3 gateway endpoint's policy
    :ivar official_image: whether the nodes start from Debian's own image, not from one with all baked in
    """

    region: str
    account: str
    vpc: IPv4Network
    subnets: Mapping[str, Subnet]
    rules: Sequence[Rule]
    prefix_lists: Mapping[str, str]
    endpoints: Sequence[Endpoint]
    mount_targets: Sequence[Interface]
    roles: Mapping[str, Sequence[Statement]]
    secrets: Sequence[Secret]
    objects: Sequence[S3Object]
    s3_policy: Sequence[Statement]
    instances: Sequence[Instance]
    groups: Sequence[Group]
    official_image: bool
