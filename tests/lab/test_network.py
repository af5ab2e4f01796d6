"""The network of the lab, without a machine in it."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lab.linux import network
from lab.linux.host import Paths, run

pytestmark = pytest.mark.lab

ADDRESS, GATEWAY = IPv4Address("10.20.128.4"), IPv4Address("10.20.128.1")
TIMES = 20  # the kernel takes longer than a new link with most of them


def test_the_address_of_a_node_that_is_gone_is_free_at_once(paths: Paths) -> None:
    vpc = paths.netns("vpc")
    run(["ip", "netns", "add", vpc])
    name = "worker-0"
    try:
        for number in range(TIMES):
            name = f"worker-{number}"
            network.connect(paths, name, [ADDRESS], GATEWAY)
            network.disconnect(paths, name)
    finally:
        network.disconnect(paths, name)
        run(["ip", "netns", "delete", vpc], check=False)
