"""The broker and the cluster that the tests share, and the namespaces that they run in.

`--rabbitmq=nodes`, the default, is the server that the nodes have, in an image of their Debian; `--rabbitmq=host` is
that of this machine. They deliver differently after a broken connection.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.linux import images
from lab.linux.host import lab_paths
from tests.transport import harness, isolation, processes, rabbitmq

NODES, HOST = "nodes", "host"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rabbitmq", choices=(NODES, HOST), default=NODES, help="whose RabbitMQ to test with")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run in namespaces what is only about the transport; called when the command line names this directory."""
    here = Path(__file__).parent
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    only_here = all(path.is_relative_to(here) for path in paths)
    if not only_here or isolation.inside() or config.option.collectonly or isolation.why_not():
        return None
    capture = config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        if not _why_not_nodes_broker(config):
            images.broker_image(lab_paths(), print)  # now, while there is a network
        return isolation.run_again("pytest", config.invocation_params.args)


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    if not isolation.inside():
        reason = isolation.why_not() or "these are not only the transport's tests"
        lines.append(
            f"transport: not in namespaces of its own ({reason}): "
            "another run on this machine at the same time may disturb it"
        )
    if config.getoption("rabbitmq", NODES) == NODES and (reason := _why_not_nodes_broker(config)):
        lines.append(f"transport: with this machine's RabbitMQ instead of the nodes': {reason}")
    return lines


def _why_not_nodes_broker(config: pytest.Config) -> str:
    """Why the tests use this machine's server; empty when they use that of the nodes."""
    if config.getoption("rabbitmq", NODES) == HOST:
        return "as asked for"
    if os.geteuid() != 0:
        return "its image is built by root"
    return "" if shutil.which("mmdebstrap") else "its image is built by mmdebstrap, which is missing"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needed = [("the engine's environment", processes.ENGINE / "bin/oq-celery", "make .venv-engine/.done")]
    if _why_not_nodes_broker(config):
        needed.append(("RabbitMQ", rabbitmq.RABBITMQ, "apt-get install rabbitmq-server"))
    missing = [f"{what} is missing ({remedy})" for what, path, remedy in needed if not path.exists()]
    for item in items:
        if Path(__file__).parent in item.path.parents and "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.transport)
            if missing:
                item.add_marker(pytest.mark.skip(reason="; ".join(missing)))


@pytest.fixture(scope="session")
def broker(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[rabbitmq.Broker]:
    """A RabbitMQ server for all tests."""
    reason = _why_not_nodes_broker(request.config)
    if reason and os.environ.get("CI") and request.config.getoption("rabbitmq", NODES) == NODES:
        pytest.fail(f"CI tests with the nodes' RabbitMQ, not with this machine's: {reason}")
    image = None if reason else images.broker_image(lab_paths(), print)
    # So that what the tests have started ends with them also when they are terminated.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 1))
    # Where the tests run in a script's background, SIGINT is ignored here and in all that they start: not so then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = rabbitmq.Broker(tmp_path_factory.mktemp("rabbitmq") / "server", image)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session", autouse=True)
def _pythons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests start has a temporary directory of its own: what is killed leaves files there."""
    tmp_path_factory.getbasetemp()  # which stays, for whoever looks for what went wrong
    with (
        tempfile.TemporaryDirectory(prefix="oqlab-", ignore_cleanup_errors=True) as temporary,
        pytest.MonkeyPatch.context() as environment,
    ):
        Path(temporary).chmod(0o1777)  # some tests start processes of other users
        environment.setenv("TMPDIR", temporary)
        yield
        processes.PYTHONS.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, broker: rabbitmq.Broker) -> Iterator[harness.Cluster]:
    """Two workers of one process each, and a configuration under which no ZeroMQ port can be had for results."""
    directory = tmp_path_factory.mktemp("cluster") / "oqlab"
    # An empty range: a job that wants a ZeroMQ socket for results fails.
    with harness.cluster(directory, broker, **{"dbserver.receiver_ports": "9-9"}) as made:
        for name in ("one", "two"):
            made.worker(name)
        yield made
