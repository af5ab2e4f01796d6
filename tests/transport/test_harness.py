"""What the other tests rely on."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.transport import harness, isolation
from tests.transport.harness import Broker, wait_until

KEPT = """
import os, sys
here = {os.getpid(): "own", os.getppid(): "parent's", "oqlab-parent": "parent's", "oqlab-child": "own"}
for module, found in sorted(sys.modules.items()):
    if module.partition(".")[0] in ("openquake", "oq_celery"):
        for name, value in sorted(vars(found).items()):
            if type(value) in (int, str) and value in here:
                print(f"{module}.{name} is {here[value]}")
print(f"{__name__} {sys.argv[1:]} {os.getsid(0) == os.getpid()}")
sys.exit("the end")
"""


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


def test_a_forked_command_is_what_a_new_one_would_be(tmp_path: Path, broker: Broker) -> None:
    """Nothing that the engine's import has kept is the parent's process or user; only such values are looked at."""
    script, out, err = (tmp_path / name for name in ("script.py", "out", "err"))
    script.write_text(KEPT)
    with harness.cluster(tmp_path / "oqlab-forks", broker) as cluster:
        cluster.env["LOGNAME"] = "oqlab-parent"
        child = cluster.fork([script, "word"], out, err, {"LOGNAME": "oqlab-child"})
        assert child.over.wait(harness.DEADLINE)
    assert out.read_text().splitlines() == [
        "openquake.calculators.base.USER is own",
        "openquake.engine.engine.USER is own",
        "openquake.engine.engine._PID is own",
        "openquake.engine.engine._PPID is parent's",
        "__main__ ['word'] True",
    ]
    assert (err.read_text(), child.status) == ("the end\n", 1)
