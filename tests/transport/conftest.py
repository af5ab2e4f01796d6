"""The broker and the cluster that the tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [
        f"{what} is missing ({remedy})"
        for what, path, remedy in (
            ("RabbitMQ", harness.RABBITMQ, "apt-get install rabbitmq-server"),
            ("the engine's environment", harness.ENGINE / "bin/oq-celery", "make .venv-engine/.done"),
        )
        if not path.exists()
    ]
    for item in items:
        if Path(__file__).parent in item.path.parents and "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.transport)
            if missing:
                item.add_marker(pytest.mark.skip(reason="; ".join(missing)))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Broker]:
    """A RabbitMQ server for all tests."""
    # So that what the tests have started ends with them also when they are terminated.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 1))
    # Where the tests run in a script's background, SIGINT is ignored here and in all that they start: not so then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = harness.Broker(tmp_path_factory.mktemp("rabbitmq") / "server")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, broker: harness.Broker) -> Iterator[harness.Cluster]:
    """Two workers of one process each, and a configuration under which no ZeroMQ port can be had for results."""
    directory = tmp_path_factory.mktemp("cluster") / "oqlab"
    # An empty range: a job that wants a ZeroMQ socket for results fails.
    with harness.cluster(directory, broker, **{"dbserver.receiver_ports": "9-9"}) as made:
        for name in ("one", "two"):
            made.worker(name)
        yield made
