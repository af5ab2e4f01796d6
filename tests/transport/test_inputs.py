"""Jobs whose files only the master sees: what a worker opens, what stays on the master, what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Broker, Cluster
from tests.transport.test_results import OneCore

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can start a worker that does not see a directory"
)
COPIED = "to where workers see them"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the workers do not see."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory, broker: Broker, home: Path) -> Iterator[Cluster]:
    """A cluster whose two workers do not see the home."""
    (home / "tmp").mkdir()
    changes = {"directory.custom_tmp": str(home / "tmp")}
    with harness.cluster(tmp_path_factory.mktemp("blind") / "oqlab-blind", broker, **changes) as made:
        for name in ("one", "two"):
            made.worker(name, prefix=harness.hiding(home))
        yield made


@pytest.fixture(scope="module")
def one_core(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> OneCore:
    return OneCore(tmp_path_factory.mktemp("alone"), broker)


def logic_tree_job(folder: Path) -> Path:
    """A job with two source models."""
    shutil.copytree(harness.ENGINE / "demos/hazard/LogicTreeCase1ClassicalPSHA", folder)
    return folder / "job.ini"


def nothing_stays(cluster: Cluster) -> bool:
    return list((cluster.shared / "oq_celery_inputs").iterdir()) == []


def test_source_models_that_only_the_master_sees(blind: Cluster, home: Path, one_core: OneCore) -> None:
    """Several source models; sections and sources of faults; files beside those that the job names."""
    inis = [
        logic_tree_job(home / "two models"),
        shutil.copytree(harness.QA_TESTS / "classical/case_65", home / "Łódź, эксперимент №1") / "job.ini",
    ]
    inis[0].parent.chmod(0o700)
    for file in inis[0].parent.iterdir():
        file.chmod(0o600)
    here, there = one_core.run(*inis), blind.run(*inis)
    assert there.status == 0, there.output
    assert there.output.count(COPIED) == 2
    for one, other in zip(here.datastores, there.datastores, strict=True):
        found = harness.differences(one, other, blind.env)
        assert len(found.pop("equal")) > 20
        assert not found
    assert nothing_stays(blind)
