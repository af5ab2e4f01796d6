"""The recordings that the tests look at: one run of the program for each configuration, kept for the
session.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import hypothesis
import pytest

from lab.aws.recorder import run_program
from lab.aws.recording import Recording

Record = Callable[..., Recording]

# A custom image, which `egress: endpoints` asks for.
AMI = "ami-0123456789abcdef0"

NAT = "nat"
ENDPOINTS = "endpoints"
NAT_DISKLESS = "nat, diskless, no WebUI, no wait"
ENDPOINTS_DISKLESS = "endpoints, diskless, no WebUI"
SMALL = "smallest network, client networks, spot, nothing kept"
# Every kind of cluster: both ways out, both storage modes, with and without WebUI.
MODES: dict[str, dict[str, str]] = {
    NAT: {},
    ENDPOINTS: {"egress": "endpoints", "amiId": AMI},
    NAT_DISKLESS: {"workerStorage": "diskless", "webui": "false", "waitForReady": "false"},
    ENDPOINTS_DISKLESS: {
        "egress": "endpoints",
        "amiId": AMI,
        "workerStorage": "diskless",
        "webui": "false",
        "clientCidrs": '["10.1.0.0/16"]',
    },
    SMALL: {
        "vpcCidr": "192.168.7.0/24",
        "clientCidrs": '["10.1.0.0/16", "100.64.8.0/24"]',
        "workerInstanceTypes": '["c7i.large", "m7i.large"]',
        "workerSpot": "true",
        "keepDataOnDestroy": "false",
    },
}

hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("here")


def pytest_configure(config: pytest.Config) -> None:
    # The SDK complains about its own old classes when it is imported; test_program looks for what the program
    # uses.
    config.addinivalue_line("filterwarnings", "ignore:.*has been deprecated in favor of:DeprecationWarning")


@cache
def _record(config: frozenset[tuple[str, str]], preview: bool) -> Recording:
    return run_program(dict(config), preview=preview)


@pytest.fixture(scope="session")
def record() -> Record:
    """The recording of a configuration given as keyword arguments; `preview=True` for a preview."""

    def recorded(preview: bool = False, **config: str) -> Recording:
        return _record(frozenset(config.items()), preview)

    return recorded


@pytest.fixture(params=list(MODES.values()), ids=list(MODES), scope="session")
def each_mode(request: pytest.FixtureRequest, record: Record) -> Recording:
    """The recording of each kind of cluster in turn."""
    return record(**request.param)
