"""What the other tests rely on."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.transport import isolation
from tests.transport.harness import Broker, wait_until


def test_the_broker_has_the_nodes_limits(broker: Broker) -> None:
    assert (
        broker.control("eval", "application:get_env(rabbit, max_message_size).").strip() == "{ok,134217728}"
    )
    assert (
        broker.control("eval", "application:get_env(rabbit, consumer_timeout).").strip() == "{ok,2592000000}"
    )


def test_the_broker_in_the_nodes_image_is_of_their_debian(broker: Broker) -> None:
    if broker.image is None:
        pytest.skip("this machine's own RabbitMQ")
    assert broker.version().startswith("4.0.")


@pytest.mark.skipif(not isolation.inside(), reason="not in namespaces of its own")
def test_what_has_lost_its_parent_is_reaped(tmp_path: Path) -> None:
    """Other tests wait for the processes of workers that they killed to be gone."""
    orphan = tmp_path / "orphan"
    subprocess.run(["sh", "-c", f"sleep 0.1 & echo $! > {orphan}"], check=True)
    wait_until(lambda: not Path(f"/proc/{orphan.read_text().strip()}").exists(), "the orphan to be gone")


@pytest.mark.skipif(not isolation.inside(), reason="not in namespaces of its own")
def test_nothing_outside_the_namespaces_is_seen() -> None:
    assert Path("/proc/1/comm").read_text().strip() == "sh"
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
