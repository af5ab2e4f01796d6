"""The VPC: network namespaces, their links, the security groups, and the resolver.

Namespaces of a lab (`oqlab-…`)::

    master, worker-1 …   instances, each with one interface
    client               an address of the VPC that belongs to no security group
    aws                  EFS mount targets and AWS's API, at the endpoints' addresses
    world                the internet: an address that answers, and this machine's way out by slirp4netns
    vpc                  the router between them all

Every link is point to point into `vpc`, so each packet passes its forward chain, where the security groups
are. Nothing of this machine's own network is changed: slirp4netns carries what leaves through ordinary
sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lab.aws.cloud import S3, Interface, Plan, Rule
from lab.base import LabError
from lab.linux.host import Paths, in_netns, kill, run, start, wait_until

IMDS = IPv4Address("169.254.169.254")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
# The lab's internet is in the block that RFC 2544 sets aside for benchmarks, which no real network has.
WORLD_NETWORK = IPv4Network("198.19.0.0/24")
# The router's end of the link to the world: the NAT gateway's public address.
WORLD_LINK = IPv4Address("198.19.0.1")
WORLD = IPv4Address("198.19.0.10")  # answers HTTP to whoever gets there
PUBLIC_API = IPv4Address("198.19.0.20")  # AWS's API as the internet sees it
SLIRP_NETWORK = IPv4Network("198.18.0.0/24")
SLIRP_GATEWAY = IPv4Address("198.18.0.2")  # slirp4netns's own places in the network it is given
SLIRP_RESOLVER = IPv4Address("198.18.0.3")
DEVICE = "ens5"  # an instance's interface, named as on Nitro instances


def router_address(network: IPv4Network) -> IPv4Address:
    """A subnet's gateway: AWS reserves the address after the network's."""
    return network.network_address + 1


def resolver_address(vpc: IPv4Network) -> IPv4Address:
    """The VPC's resolver: the VPC's base plus two, says AWS."""
    return vpc.network_address + 2


def mac_address(address: IPv4Address) -> str:
    """A locally administered MAC address made of the IP address."""
    return "02:00:" + ":".join(f"{byte:02x}" for byte in address.packed)


def link_name(name: str) -> str:
    """The router's end of the link to a namespace."""
    return f"to-{name}"


def create(paths: Paths, vpc_network: IPv4Network, logs: Path) -> None:
    """Make the namespaces that are there before anything in the VPC, and their way out."""
    vpc = paths.netns("vpc")
    _namespace(vpc)
    # Strict reverse paths are AWS's source check; there is no IPv6 in the VPC, so none passes beside the
    # rules.
    _sysctl(vpc, "ipv4/ip_forward=1", "ipv4/conf/all/rp_filter=1", "ipv6/conf/all/disable_ipv6=1")
    _change_addresses(vpc, "lo", set(), {router_address(vpc_network), resolver_address(vpc_network), IMDS})
    _ip(vpc, "route", "add", "blackhole", str(vpc_network))
    connect(paths, "aws", [PUBLIC_API, S3], router_address(vpc_network))
    world = paths.netns("world")
    connect(paths, "world", [WORLD], WORLD_LINK)
    _ip(vpc, "address", "add", f"{WORLD_LINK}/32", "dev", link_name("world"))
    _ip(vpc, "route", "add", "default", "dev", link_name("world"), "via", str(WORLD), "onlink")
    _sysctl(world, "ipv4/ip_forward=1")
    _nft(
        world,
        "table ip world { chain out { type nat hook postrouting priority 100; oifname tap0 masquerade; }; }",
    )
    # The lab's own addresses are behind the router, whatever this machine's network calls by them.
    for own in (vpc_network, WORLD_NETWORK):
        _ip(world, "route", "add", str(own), "via", str(WORLD_LINK), "dev", DEVICE)
    _start_slirp(paths, world, logs)


def update(paths: Paths, before: Plan, after: Plan, logs: Path) -> None:
    """Change the subnets' gateways, AWS's addresses and the names in the VPC from those of one plan to another's.

    The security groups are `apply_rules`'s.
    """
    vpc, aws = paths.netns("vpc"), paths.netns("aws")
    _change_addresses(vpc, "lo", _gateways(before), _gateways(after))
    gone, new = _change_addresses(aws, DEVICE, _aws_addresses(before), _aws_addresses(after))
    for address in gone:
        _ip(vpc, "route", "delete", f"{address}/32", "dev", link_name("aws"))
    for address in new:
        _ip(vpc, "route", "add", f"{address}/32", "dev", link_name("aws"))
    pids = _resolver(paths)
    if not pids or _names(before) != _names(after):
        kill(pids)
        _start_resolver(paths, after, logs)


def _gateways(plan: Plan) -> set[IPv4Address]:
    """Those of the subnets, but for the one that is there with the VPC."""
    return {router_address(subnet.cidr) for subnet in plan.subnets.values()} - {router_address(plan.vpc)}


def _aws_addresses(plan: Plan) -> set[IPv4Address]:
    """Where AWS answers inside the VPC."""
    inside = {interface.address for endpoint in plan.endpoints for interface in endpoint.interfaces}
    return inside | {target.address for target in plan.mount_targets}


def _change_addresses(
    namespace: str, device: str, before: set[IPv4Address], after: set[IPv4Address]
) -> tuple[list[IPv4Address], list[IPv4Address]]:
    """Remove addresses from a device and add others; which."""
    gone, new = sorted(before - after), sorted(after - before)
    for address in gone:
        _ip(namespace, "address", "delete", f"{address}/32", "dev", device)
    for address in new:
        _ip(namespace, "address", "add", f"{address}/32", "dev", device)
    return gone, new


def connect(paths: Paths, name: str, addresses: Sequence[IPv4Address], gateway: IPv4Address) -> None:
    """Make a namespace with these addresses, linked to the router."""
    vpc, namespace = paths.netns("vpc"), paths.netns(name)
    _namespace(namespace)
    run([
        "ip", "-n", vpc, "link", "add", link_name(name), "type", "veth",
        "peer", "name", DEVICE, "address", mac_address(addresses[0]), "netns", namespace,
    ])  # fmt: skip
    _ip(vpc, "link", "set", link_name(name), "up")
    _ip(namespace, "link", "set", DEVICE, "up")
    for address in addresses:
        _ip(namespace, "address", "add", f"{address}/32", "dev", DEVICE)
        _ip(vpc, "route", "add", f"{address}/32", "dev", link_name(name))
    # Every address of the VPC is behind the router, on the same subnet too: no neighbour is reached around
    # it.
    _ip(namespace, "route", "add", f"{gateway}/32", "dev", DEVICE, "scope", "link", "src", str(addresses[0]))
    _ip(
        namespace, "route", "replace", "default", "via", str(gateway), "dev", DEVICE, "src", str(addresses[0])
    )


def disconnect(paths: Paths, name: str) -> None:
    """Remove a namespace and its link; its addresses are free when this returns."""
    # First: with its namespace the kernel removes a link some time later, and until then the route has its addresses.
    run(["ip", "-n", paths.netns("vpc"), "link", "delete", link_name(name)], check=False)
    run(["ip", "netns", "delete", paths.netns(name)], check=False)


@contextmanager
def silent(paths: Paths, name: str) -> Iterator[None]:
    """Drop all packets from and to a namespace, as a link does that is cut without anybody's notice."""
    vpc, table = paths.netns("vpc"), f"ip silent_{name.replace('-', '_')}"
    link = link_name(name)
    _nft(
        vpc,
        f"table {table} {{ chain from {{ type filter hook prerouting priority -300; iifname {link} drop; }};"
        f" chain to {{ type filter hook postrouting priority 300; oifname {link} drop; }}; }}",
    )
    try:
        yield
    finally:
        run(in_netns(vpc, ["nft", "delete", "table", *table.split()]), check=False)


def apply_rules(paths: Paths, plan: Plan, instances: Mapping[str, Interface]) -> None:
    """Load the security groups and routes as they are for these instances, in one atomic change."""
    _nft(paths.netns("vpc"), ruleset(plan, instances.values()))


def ruleset(plan: Plan, instances: Iterable[Interface]) -> str:
    """The router's nftables rules: routes out of the VPC, egress of the source, ingress of the destination.

    What has an interface with security groups is refused what no rule allows; what has none (the client) is
    not asked.
    """
    interfaces = [*instances, *plan.mount_targets]
    interfaces += [interface for endpoint in plan.endpoints for interface in endpoint.interfaces]
    members: dict[str, list[IPv4Address]] = {}
    for rule in plan.rules:
        members.setdefault(rule.group, [])
        if rule.peer.startswith("sg-"):
            members.setdefault(rule.peer, [])
    for interface in interfaces:
        for group in interface.groups:
            members.setdefault(group, []).append(interface.address)
    sets = {_set_name(group): addresses for group, addresses in members.items()}
    sets["guarded"] = [interface.address for interface in interfaces]
    nat = [subnet.cidr for subnet in plan.subnets.values() if subnet.nat]
    s3 = [subnet.cidr for subnet in plan.subnets.values() if subnet.s3]
    resolver = resolver_address(plan.vpc)
    return "\n".join(
        [
            "table ip vpc",
            "delete table ip vpc",
            "table ip vpc {",
            *(_set(name, addresses) for name, addresses in sets.items()),
            _set("nat_subnets", nat),
            _set("s3_subnets", s3),
            "chain input { type filter hook input priority 0; policy drop;",
            "  ct state established,related accept",
            '  iifname "lo" accept',
            f"  ip daddr {IMDS} tcp dport 80 accept",
            f"  ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept",
            "}",
            "chain forward { type filter hook forward priority 0; policy drop;",
            "  ct state established,related accept",
            '  iifname "to-world" drop',
            f"  ip daddr {S3} ip saddr != @s3_subnets drop",
            f"  ip daddr {PUBLIC_API} ip saddr != @nat_subnets drop",
            '  oifname "to-world" ip saddr != @nat_subnets drop',
            "  ip saddr @guarded jump egress",
            "  ip daddr @guarded jump ingress",
            "  accept",
            "}",
            "chain egress {",
            *(line for rule in plan.rules if rule.direction == "egress" for line in _rule(rule, plan)),
            "  drop",
            "}",
            "chain ingress {",
            *(line for rule in plan.rules if rule.direction == "ingress" for line in _rule(rule, plan)),
            "  drop",
            "}",
            "chain nat { type nat hook postrouting priority 100;",
            '  oifname "to-world" masquerade',
            "}",
            "}",
            "",
        ]
    )


def _rule(rule: Rule, plan: Plan) -> list[str]:
    """One rule of a security group as a line of the ingress or egress chain."""
    own, other = ("saddr", "daddr") if rule.direction == "egress" else ("daddr", "saddr")
    if rule.peer.startswith("sg-"):
        peer = f"@{_set_name(rule.peer)}"
    else:
        peer = str(plan.prefix_lists.get(rule.peer, rule.peer))
    if rule.protocol == "-1":
        service = ""
    elif rule.ports is None:
        service = f"meta l4proto {rule.protocol} "
    else:
        service = f"{rule.protocol} dport {rule.ports[0]}-{rule.ports[1]} "
    return [f"  ip {own} @{_set_name(rule.group)} ip {other} {peer} {service}return"]


def _set_name(group: str) -> str:
    return group.replace("-", "_")


def _set(name: str, elements: Sequence[IPv4Address | IPv4Network]) -> str:
    inside = f"elements = {{ {', '.join(map(str, elements))} }}" if elements else ""
    return f"set {name} {{ type ipv4_addr; flags interval; auto-merge; {inside}; }}"


def _start_slirp(paths: Paths, world: str, logs: Path) -> None:
    start(
        paths,
        [
            "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", f"--cidr={SLIRP_NETWORK}",
            "--netns-type=path", f"/run/netns/{world}", "tap0",
        ],
        logs / "slirp4netns.log",
    )  # fmt: skip
    wait_until("slirp4netns's interface", lambda: "tap0" in run(["ip", "-n", world, "link"]), 60)
    wait_until("slirp4netns's address", lambda: "198.18" in run(["ip", "-n", world, "address"]), 60)
    # slirp4netns made itself the default route of the world; the VPC's addresses are behind the router, never
    # there.
    _ip(world, "route", "replace", "default", "via", str(SLIRP_GATEWAY), "dev", "tap0")


def _names(plan: Plan) -> list[tuple[str, IPv4Address]]:
    """The names of AWS's services and their addresses in the VPC."""
    domain = f"{plan.region}.amazonaws.com"
    return [
        ("amazonaws.com", PUBLIC_API),
        (f"s3.{domain}", S3),
        *(
            (endpoint.name, interface.address)
            for endpoint in plan.endpoints
            for interface in endpoint.interfaces
        ),
    ]


def _resolver(paths: Paths) -> list[int]:
    """The process of the VPC's resolver, if it runs."""
    found = []
    for pid in run(["ip", "netns", "pids", paths.netns("vpc")]).split():
        with contextlib.suppress(OSError):  # it has ended just now
            if Path(f"/proc/{pid}/comm").read_text().strip() == "dnsmasq":
                found.append(int(pid))
    return found


def _start_resolver(paths: Paths, plan: Plan, logs: Path) -> None:
    """dnsmasq as the VPC's resolver: the endpoints' private names, AWS's others, this machine's DNS."""
    names = [f"--address=/{name}/{address}" for name, address in _names(plan)]
    names.append("--address=/api.openquake.org/")  # no such name: the engine asks there for newer versions
    command = [
        "dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--bind-interfaces",
        "--conf-file=/dev/null", "--pid-file=", "--user=root", f"--listen-address={resolver_address(plan.vpc)}",
        f"--server={SLIRP_RESOLVER}", *names,
    ]  # fmt: skip
    start(paths, in_netns(paths.netns("vpc"), command), logs / "dnsmasq.log")


def _namespace(name: str) -> None:
    run(["ip", "netns", "add", name])
    _ip(name, "link", "set", "lo", "up")


def _ip(namespace: str, *words: str) -> None:
    run(["ip", "-n", namespace, *words])


def _sysctl(namespace: str, *settings: str) -> None:
    run(in_netns(namespace, ["sysctl", "-q", "-w", *(f"net/{setting}" for setting in settings)]))


def _nft(namespace: str, rules: str) -> None:
    done = subprocess.run(
        in_netns(namespace, ["nft", "-f", "-"]), input=rules, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"nft refuses the rules: {done.stderr.strip()}")


def enter(namespace: Path) -> None:
    """Put the calling thread into a network namespace, a file; LabError when that cannot be."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise LabError(f"{namespace}: {os.strerror(ctypes.get_errno())}")
