"""The broker's limits of memory and disk: exceeded for the length of a block, and then what they were."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.transport.rabbitmq import NODES_CONFIGURATION, Broker

# RabbitMQ's own. That of the nodes is about their disk, so the tests' broker does not have it (`rabbitmq.Broker`).
DISK_FREE_LIMIT = "50MB"
# What is always exceeded: more than any disk has, in bytes, and no memory.
EXCEEDED = {
    "low on disk": ("set_disk_free_limit", "1000000000000000"),
    "low on memory": ("set_vm_memory_high_watermark", "0.0000001"),
}


def usual() -> dict[str, tuple[str, str]]:
    """How each limit is set to what the tests' broker starts with."""
    (memory,) = re.findall(
        r"^vm_memory_high_watermark\.relative = (.+)$", NODES_CONFIGURATION.read_text(), re.M
    )
    return {
        "low on disk": ("set_disk_free_limit", DISK_FREE_LIMIT),
        "low on memory": ("set_vm_memory_high_watermark", memory),
    }


@contextmanager
def alarm(broker: Broker, kind: str = "low on memory") -> Iterator[None]:
    """The broker takes no messages within the block, as when its disk or its memory is nearly full."""
    broker.control(*EXCEEDED[kind])
    try:
        yield
    finally:
        broker.control(*usual()[kind])
