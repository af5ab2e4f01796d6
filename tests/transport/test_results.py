"""The engine's own calculations on two workers give the numbers that they give on one machine."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.trials.qa.driver import OVERRIDES
from tests.transport import harness, processes
from tests.transport.harness import Cluster, Job
from tests.transport.rabbitmq import Broker

QA = harness.QA_TESTS
JOBS = {
    "classical": "demos/hazard/AreaSourceClassicalPSHA/job.ini",
    "event based": f"{QA}/event_based/case_1/job.ini",
    "disaggregation": f"{QA}/disagg/case_1/job.ini",
    "event based risk, ebrisk": f"{QA}/event_based_risk/case_01/job.ini",
    "event based risk, from ground motion fields": f"{QA}/event_based_risk/case_master/job.ini",
}


# By default a busy machine cuts the work in other places.
OPTIONS = ["--param", OVERRIDES]


def copies(directory: Path) -> list[Path]:
    """The jobs' folders, where the engine may write beside the job.ini."""
    inis = []
    for number, ini in enumerate(JOBS.values()):
        folder = directory / str(number)
        shutil.copytree((processes.ENGINE / ini).parent, folder)
        inis.append(folder / Path(ini).name)
    return inis


@pytest.fixture(scope="module")
def inis(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return copies(tmp_path_factory.mktemp("jobs"))


@dataclass(frozen=True)
class Runs:
    """The same calculations, in the order of JOBS."""

    on_cluster: Job
    on_one_core: Job


class OneCore:
    """Upstream's processpool on one core, which then has one process; with a database of its own.

    `in_order.py` takes a race of upstream's out of it, in which results of short tasks overtake each other.
    """

    def __init__(self, directory: Path, broker: Broker) -> None:
        self._cluster = Cluster(directory / "oqlab-alone", broker)

    def run(self, *inis: Path) -> Job:
        """Run calculations one after another."""
        python, in_order = processes.ENGINE / "bin/python", Path(__file__).with_name("in_order.py")
        prefix = ["taskset", "--cpu-list", "0", str(python), str(in_order)]
        job = self._cluster.run(
            *inis, prefix=prefix, options=OPTIONS, OQ_DISTRIBUTE="processpool", PYTHONPATH=str(processes.ROOT)
        )
        assert job.status == 0, job.output
        return job


@pytest.fixture(scope="module")
def one_core(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> OneCore:
    return OneCore(tmp_path_factory.mktemp("alone"), broker)


@pytest.fixture(scope="module")
def runs(cluster: Cluster, inis: list[Path], one_core: OneCore) -> Runs:
    """Both at the same time, which the engine would refuse to do with one database."""
    with ThreadPoolExecutor() as executor:
        on_one_core = executor.submit(one_core.run, *inis)
        on_cluster = cluster.run(*inis, options=OPTIONS)
        assert on_cluster.status == 0, on_cluster.output
        return Runs(on_cluster, on_one_core.result())


@pytest.mark.parametrize("kind", JOBS)
def test_the_numbers_equal_those_of_a_pool_of_one_process_to_the_bit(
    kind: str, cluster: Cluster, runs: Runs
) -> None:
    """Every dataset of the datastore but those about the run itself.

    Against a pool of several processes this would fail by up to 3e-7: such a pool adds the results up as they
    come, and two runs of it differ from each other by as much.
    """
    number = list(JOBS).index(kind)
    ours, pools = runs.on_cluster.datastores[number], runs.on_one_core.datastores[number]
    assert differences(ours, pools, cluster) == {}


def differences(one: Path, other: Path, cluster: Cluster) -> dict[str, str]:
    """What differs between two datastores, which have many datasets in common."""
    found = harness.differences(one, other, cluster.env)
    assert len(found.pop("equal")) > 20
    return found


def test_runs_on_the_cluster_are_equal_to_the_bit_whichever_worker_ends_first(
    cluster: Cluster, runs: Runs, inis: list[Path]
) -> None:
    """The job whose results come in another order most easily."""
    number = list(JOBS).index("event based risk, ebrisk")
    again = cluster.run(*[inis[number]] * 6, options=OPTIONS)
    assert again.status == 0, again.output
    for datastore in again.datastores:
        assert differences(runs.on_cluster.datastores[number], datastore, cluster) == {}


@pytest.mark.usefixtures("runs")
def test_both_workers_computed(cluster: Cluster) -> None:
    for worker in cluster.processes[:2]:
        assert worker.output().count("succeeded in") > 5


def test_an_undisturbed_job_has_nothing_to_say_about_the_transport(runs: Runs) -> None:
    """Neither the broker nor the workers were away, so no line of its log speaks of RabbitMQ or of waiting."""
    assert "RabbitMQ" not in runs.on_cluster.output
    assert "Waiting for workers" not in runs.on_cluster.output


def test_no_result_travels_through_a_zeromq_port(runs: Runs) -> None:
    """The cluster's configuration has no port for ZeroMQ results, so a job that asked for one would fail."""
    assert "Using 2 celery workers" in runs.on_cluster.output


def test_the_environment_of_a_command_can_still_choose_the_processpool(runs: Runs) -> None:
    assert "Using 2 processpool workers" in runs.on_one_core.output
    assert "celery" not in runs.on_one_core.output
