"""How the VPC's addresses are shared out: plain arithmetic.

|<--------- lower half --------->|<-------- upper half -------->|
|  master       | public | free  |  workers of   |  workers of  |
|  (a quarter)  | (/28)  |       |  the 1st zone |  the 2nd     |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

# AWS allows /16 to /28 for a VPC; below /24 the workers' subnets would be too small to be useful.
LARGEST_PREFIX: Final = 16
SMALLEST_PREFIX: Final = 24
ZONES: Final = 2  # availability zones that the fleet spreads over

# AWS keeps the first four addresses and the last one of every subnet.
# https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html
RESERVED: Final = 5
# The first of our fixed addresses in a subnet, counted from its network address: clear of AWS's own.
FIXED: Final = 10
# NAT gateways want at least a /28: https://docs.aws.amazon.com/vpc/latest/userguide/vpc-nat-gateway.html
_PUBLIC_PREFIX: Final = 28

# AWS services with an endpoint inside the VPC; a service's place in the list gives its endpoint's address, so
# new ones come last. The SSM agent needs no ec2messages endpoint where it has ssmmessages:
# https://docs.aws.amazon.com/systems-manager/latest/userguide/systems-manager-setting-up-messageAPIs.html
_SERVICES: Final = ("secretsmanager", "ssm", "ssmmessages", "monitoring", "autoscaling")
# Those that workers use, who have no other way to AWS. The master uses the rest when it has no NAT gateway.
_WORKER_SERVICES: Final = ("secretsmanager", "autoscaling")


def endpoint_services(egress: str) -> dict[str, int]:
    """The services that get an interface endpoint, and the place of each in the order of addresses.

    `egress` is the setting of that name.
    """
    return {
        service: place
        for place, service in enumerate(_SERVICES)
        if egress == "endpoints" or service in _WORKER_SERVICES
    }


@dataclass(frozen=True)
class Subnets:
    """The subnets and the fixed addresses in them; what each zone has is keyed by the zone's name."""

    master: IPv4Network
    public: IPv4Network
    workers: Mapping[str, IPv4Network]

    @property
    def master_address(self) -> IPv4Address:
        """The master's address, the same for every machine that plays the master."""
        return self.master[FIXED]

    @property
    def nfs_addresses(self) -> dict[str, IPv4Address]:
        """The address of the NFS mount target in each zone."""
        return {zone: subnet[FIXED] for zone, subnet in self.workers.items()}

    def endpoint_address(self, place: int) -> IPv4Address:
        """The address of the interface endpoint at `place` (from 0), in the master's subnet."""
        return self.master[FIXED + 1 + place]


def share_out(vpc: IPv4Network, zones: Sequence[str]) -> Subnets:
    """Cut `vpc` (/16 to /24) into the master's subnet, the public one, and the workers' in each zone.

    Raises ValueError for another size or fewer than two zones.
    """
    if not LARGEST_PREFIX <= vpc.prefixlen <= SMALLEST_PREFIX:
        raise ValueError(f"{vpc} is not between /{LARGEST_PREFIX} and /{SMALLEST_PREFIX}")
    if len(zones) < ZONES or len(set(zones)) != len(zones):
        raise ValueError(f"need {ZONES} or more different zones, got {list(zones)}")
    lower, upper = vpc.subnets(prefixlen_diff=1)
    master, rest = lower.subnets(prefixlen_diff=1)
    public = next(rest.subnets(new_prefix=_PUBLIC_PREFIX))
    per_zone = upper.subnets(prefixlen_diff=(len(zones) - 1).bit_length())
    return Subnets(master, public, dict(zip(zones, per_zone, strict=False)))


def worker_capacity(vpc: IPv4Network) -> int:
    """How many workers find an address in the workers' subnets of `vpc`, all zones together."""
    workers = share_out(vpc, [f"zone-{number}" for number in range(ZONES)]).workers
    mount_target = 1
    return sum(subnet.num_addresses - RESERVED - mount_target for subnet in workers.values())
