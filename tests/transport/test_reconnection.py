"""A worker that is back at the broker before the broker has given its old connection up."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.transport import harness, rabbitmq
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

# What a cut connection leaves at the broker for half a minute, under the name that Celery would give it.
HOLD = """
import sys
from openquake.baselib import config
from oq_celery import broker, settings
connection = broker.connect(settings.load(config))
connection.channel().queue_declare(sys.argv[1], exclusive=True)
print("held", flush=True)
while True:
    connection.drain_events()
"""


@contextmanager
def held(cluster: Cluster, queue: str) -> Iterator[None]:
    """Another connection has this queue for itself."""
    holder = cluster.start("python", "-c", HOLD, queue)
    wait_until(lambda: "held" in holder.output(), "the queue to be held")
    try:
        yield
    finally:
        holder.kill()


def workers(cluster: Cluster) -> list[str]:
    """The names of those that answer to commands, also of other clusters on the same broker; for a poll."""
    status = cluster.status()
    return [worker["name"] for worker in status["workers"]] if status else []


def test_a_worker_starts_while_its_old_connection_is_known_still(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-back", broker) as cluster:
        with held(cluster, "openquake@back.celery.pidbox"):
            worker = cluster.worker("back")
            # Who does not answer in a second is not listed: on a busy machine it is asked again.
            wait_until(lambda: "openquake@back" in workers(cluster), "the worker to answer")
        assert "RESOURCE_LOCKED" not in worker.output()


def test_a_worker_that_reconnects_gets_another_queue_for_commands(tmp_path: Path, broker: Broker) -> None:
    """So that the one of its old connection, which the broker may keep for a while, cannot be in its way."""
    with harness.cluster(tmp_path / "oqlab-again", broker) as cluster:
        worker = cluster.worker("again")

        def queues() -> set[str]:
            names = broker.control("list_queues", "-p", rabbitmq.VHOST, "name").split()
            return {name for name in names if name.startswith("openquake@again.")}

        (before,) = queues()
        broker.close_connections()
        wait_until(lambda: queues() and before not in queues(), "the worker to be back")
        assert worker.running()


def test_a_process_whose_user_the_broker_knows_no_more_ends(tmp_path: Path, broker: Broker) -> None:
    """Its worker waits for it, and comes back with the secret that a rotation has made; it does so after a minute."""
    code = """
        import dataclasses
        from openquake.baselib import config
        from oq_celery import broker, settings
        broker.REFUSED_SECONDS = 2.0
        print("asks", flush=True)
        former = dataclasses.replace(settings.load(config), password="former")
        broker.Publisher(former).publish("queue", b"", {})
        """
    with harness.cluster(tmp_path / "oqlab-former", broker) as cluster:
        process = cluster.start("python", "-c", textwrap.dedent(code))
        assert process.wait() == 1
        assert "asks" in process.output()
        assert "refused" in process.output()
