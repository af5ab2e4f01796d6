"""What the lab makes real, as plain values: the part of a recording that has an effect on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from lab.aws.answers import DEBIAN_IMAGES

Statement = Mapping[str, object]
"""A statement of an IAM policy, as in its JSON."""


S3 = IPv4Address("198.19.0.30")
"""Where the lab's S3 answers, and where its gateway endpoint routes to."""


@dataclass(frozen=True)
class Subnet:
    """A subnet and what its route table lets out of the VPC.

    Attributes:
        nat: whether it has a default route to a NAT gateway
        s3: whether it has the route of an S3 gateway endpoint
    """

    id: str
    cidr: IPv4Network
    zone: str
    nat: bool
    s3: bool


@dataclass(frozen=True)
class Rule:
    """One rule of a security group.

    Attributes:
        direction: `ingress` or `egress`
        protocol: `tcp`, `udp`, `icmp` or `-1` for all
        ports: first and last port, None for all
        peer: a CIDR, a security group's id or a prefix list's id
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
    """An interface endpoint: the private name of a service, its interfaces, and its policy's statements."""

    name: str
    interfaces: tuple[Interface, ...]
    policy: Sequence[Statement]


@dataclass(frozen=True)
class Volume:
    """An EBS volume; size in GiB.

    Attributes:
        snapshot: the id of the snapshot that it was made from, empty for none
    """

    id: str
    size: int
    snapshot: str = ""


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

    Attributes:
        role: the name of the role that its instance profile gives it
        user_data: what IMDS serves, raw bytes
        metadata_tags: the instance's tags that IMDS serves, none where the program has not enabled it
    """

    image_id: str
    instance_type: str
    groups: tuple[str, ...]
    role: str
    user_data: bytes
    metadata_tags: Mapping[str, str] = field(default_factory=dict)


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
class Hook:
    """A lifecycle hook of terminating instances.

    Attributes:
        seconds: how long the group waits for CompleteLifecycleAction
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Step:
    """One step of a scaling policy: from `lower` to `upper` beyond the alarm's threshold, None for no end."""

    lower: float | None
    upper: float | None
    adjustment: int


@dataclass(frozen=True)
class Policy:
    """A step scaling policy.

    Attributes:
        kind: `ChangeInCapacity` or `ExactCapacity`
        warmup: seconds in which a new instance counts as being added
    """

    arn: str
    kind: str
    steps: tuple[Step, ...]
    warmup: float


@dataclass(frozen=True)
class Alarm:
    """A CloudWatch alarm over the largest value of a metric in each period.

    Attributes:
        at_least: whether values from the threshold up breach, rather than those down from it
        period: seconds
        periods: how many periods are looked at, all of which must breach
        actions: the ARNs of what it calls
        missing: what a period without data is, in CloudWatch's words
        text: what it says to people
    """

    name: str
    namespace: str
    metric: str
    dimensions: Mapping[str, str]
    at_least: bool
    threshold: float
    period: int
    periods: int
    actions: tuple[str, ...]
    missing: str = "notBreaching"
    text: str = ""


@dataclass(frozen=True)
class Group:
    """An Auto Scaling group; its instances are named `name-1` and so on.

    Attributes:
        arn: its ARN, which ends in `autoScalingGroupName/` and the name that AWS knows it by
        release: what new instances are made from, as one text: a change of it replaces those that run
        healthy: how much of the group stays in service while its instances are replaced, in percent
        warmup: seconds after which a new instance counts as being in service
        spot: whether its instances are spot capacity, but for a base of them
        tags: its own
    """

    name: str
    template: Template
    subnets: tuple[str, ...]
    desired: int
    maximum: int
    minimum: int = 0
    arn: str = ""
    release: str = ""
    healthy: int = 0
    warmup: float = 0
    spot: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    hook: Hook | None = None
    policies: tuple[Policy, ...] = ()
    alarms: tuple[Alarm, ...] = ()

    @property
    def aws_name(self) -> str:
        """The name that AWS knows it by."""
        return self.arn.rpartition("/")[2]


@dataclass(frozen=True)
class Plan:
    """All that exists and the lab builds.

    Attributes:
        rules: of all security groups
        prefix_lists: the networks behind a prefix list's id
        file_system: the id of the one with mount targets, empty without
        volumes: all EBS volumes, attached or not, by their ids
        roles: the IAM statements of each role, by its name
        alarms: those that call other things than a group's scaling policies
        subscribers: the addresses to which a topic sends mails, by its ARN
        s3_policy: the statements of the S3 gateway endpoint's policy
        bucket_policies: the statements of each bucket's own policy, by its name
        ready_seconds: how long the program waits for the master; 0 where it does not
        exports: the program's outputs; none of a plan of Pulumi's resources, whose stack has them
    """

    region: str
    account: str
    vpc: IPv4Network
    subnets: Mapping[str, Subnet] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    prefix_lists: Mapping[str, str] = field(default_factory=dict)
    endpoints: Sequence[Endpoint] = ()
    mount_targets: Sequence[Interface] = ()
    file_system: str = ""
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    roles: Mapping[str, Sequence[Statement]] = field(default_factory=dict)
    secrets: Sequence[Secret] = ()
    objects: Sequence[S3Object] = ()
    s3_policy: Sequence[Statement] = ()
    bucket_policies: Mapping[str, Sequence[Statement]] = field(default_factory=dict)
    instances: Sequence[Instance] = ()
    groups: Sequence[Group] = ()
    alarms: Sequence[Alarm] = ()
    subscribers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ready_seconds: float = 0.0
    exports: Mapping[str, Any] = field(default_factory=dict)

    @property
    def templates(self) -> list[Template]:
        """What all instances are made from, those of groups too."""
        return [*(one.template for one in self.instances), *(one.template for one in self.groups)]

    @property
    def official_image(self) -> bool:
        """Whether the nodes start from Debian's own image, not from one with all baked in."""
        return all(template.image_id in DEBIAN_IMAGES.values() for template in self.templates)
