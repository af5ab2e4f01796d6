"""A cluster that a release made is updated by the present program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.region.stack import Stack
from tests.engine.conftest import labels
from tests.engine.record import RELEASES
from tests.engine.test_life import ATTACHMENT, EFS, MASTER, VOLUME, WORKERS

# Updated in place, or replaced by others of the same use, at every release: user data and bundle are other ones.
REPLACED = {MASTER, "BucketObjectv2:engine-engine", "Command:readiness-wait"}


@pytest.fixture(params=sorted(RELEASES.glob("*.json")), ids=lambda path: path.stem)
def released(request: pytest.FixtureRequest, empty: Stack) -> Stack:
    """A stack with the defaults as a release made it."""
    empty.configure()
    empty.run("stack", "import", f"--file={request.param}")
    return empty


def test_an_upgrade_replaces_the_master_rolls_the_workers_and_leaves_the_rest_in_place(
    released: Stack,
) -> None:
    before = released.resources()
    released.up()
    after = released.resources()
    lost = {label for label in before if label not in after or after[label]["id"] != before[label]["id"]}
    assert lost - labels(before, ATTACHMENT) <= REPLACED
    assert MASTER in lost
    assert labels(before, ATTACHMENT) <= lost
    for label in labels(before, VOLUME) | labels(before, EFS):
        assert after[label]["id"] == before[label]["id"], label
    version = "mixedInstancesPolicy"
    assert after[WORKERS]["inputs"][version] != before[WORKERS]["inputs"][version]
    assert released.preview() == []


def test_recorded_states_say_nothing_of_the_machine_that_made_them() -> None:
    releases: list[Path] = sorted(RELEASES.glob("*.json"))
    assert releases
    for path in releases:
        text = path.read_text()
        assert json.loads(text)["deployment"]["resources"]
        assert not [word for word in ("/home/", "/root/", "/tmp/", ".venv") if word in text]
