"""The engine's own calculations on two workers give the numbers that they give on one machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Cluster, Job

QA = "lib/python3.11/site-packages/openquake/qa_tests_data"
JOBS = {
    "classical": "demos/hazard/AreaSourceClassicalPSHA/job.ini",
    "event based": f"{QA}/event_based/case_1/job.ini",
    "disaggregation": f"{QA}/disagg/case_1/job.ini",
    "event based risk, ebrisk": f"{QA}/event_based_risk/case_01/job.ini",
    "event based risk, from ground motion fields": f"{QA}/event_based_risk/case_master/job.ini",
}


def copies(directory: Path) -> list[Path]:
    """The jobs' folders, where the engine may write beside the job.ini."""
    inis = []
    for number, ini in enumerate(JOBS.values()):
        folder = directory / str(number)
        shutil.copytree((harness.ENGINE / ini).parent, folder)
        inis.append(folder / Path(ini).name)
    return inis


@pytest.fixture(scope="module")
def inis(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return copies(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def on_cluster(cluster: Cluster, inis: list[Path]) -> Job:
    """All jobs on the cluster of two workers."""
    job = cluster.run(*inis)
    assert job.status == 0, job.output
    return job


@pytest.fixture(scope="module")
def on_one_core(cluster: Cluster, inis: list[Path]) -> Job:
    """The same jobs by upstream's processpool on one core, with the configuration but its ZeroMQ ports."""
    job = cluster.run(
        *inis,
        prefix=["taskset", "--cpu-list", "0"],
        OQ_DISTRIBUTE="processpool",
        OQ_CONFIG_FILE=str(cluster.with_zeromq_ports()),
    )
    assert job.status == 0, job.output
    return job


@pytest.mark.parametrize("kind", JOBS)
def test_the_numbers_equal_those_of_a_pool_of_one_process_to_the_bit(
    kind: str, cluster: Cluster, on_cluster: Job, on_one_core: Job
) -> None:
    """Every dataset of the datastore but those about the run itself.

    Against a pool of several processes this would fail by up to 3e-7: such a pool adds the results up as they
    come, and two runs of it differ from each other by as much.
    """
    number = list(JOBS).index(kind)
    found = harness.differences(on_cluster.datastores[number], on_one_core.datastores[number], cluster.env)
    assert len(found.pop("equal")) > 20
    assert found == {}


@pytest.mark.usefixtures("on_cluster")
def test_both_workers_computed(cluster: Cluster) -> None:
    for worker in cluster.processes[:2]:
        assert worker.output().count("succeeded in") > 5


def test_an_undisturbed_job_has_nothing_to_say_about_the_transport(on_cluster: Job) -> None:
    """Neither the broker nor the workers were away, so no line of its log speaks of RabbitMQ or of waiting."""
    assert "RabbitMQ" not in on_cluster.output
    assert "Waiting for workers" not in on_cluster.output


def test_no_result_travels_through_a_zeromq_port(on_cluster: Job) -> None:
    """The cluster's configuration has no port for ZeroMQ results, so a job that asked for one would fail."""
    assert "Using 2 celery workers" in on_cluster.output


def test_the_environment_of_a_command_can_still_choose_the_processpool(on_one_core: Job) -> None:
    assert "Using 2 processpool workers" in on_one_core.output
    assert "celery" not in on_one_core.output
