"""A sample of `make qa`: every calculation mode, and every function that the engine hands to a Starmap.

The workers do not see the directories of the jobs, as on AWS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import pytest

from lab.trials.qa.jobs import Job, families
from lab.trials.qa.results import EQUAL, Result, Results
from lab.trials.qa.run import CLUSTER, ENVIRONMENTS, PROGRAMS, REFERENCE, Driver, describe, run_all
from tests.transport import harness, processes
from tests.transport.engine_tasks import engine_tasks
from tests.transport.harness import Cluster
from tests.transport.rabbitmq import Broker

PACKAGE = harness.QA_TESTS.parent
POST_RISK = "event_based_risk/reinsurance_2/job_post.ini"
CHANGED = {
    # Tasks that split themselves, as upstream's do by the clock after 10 s and more; only one with two sources can.
    "classical/case_22/job_splitting.ini": "split_sources = true\nsplit_time = 0",
    # Ruptures are filtered by tasks where there are more sites than this.
    "event_based_risk/case_01/job_filtering.ini": "max_sites_disagg = 1",
    # As `oq reaggregate` does it, and upstream's own test: the job of this folder once more, after itself.
    POST_RISK: "calculation_mode = post_risk",
}
"""The `job.ini` of a folder with other values of some keys."""
SAMPLE = (
    *CHANGED,
    "classical/case_22/job.ini",
    "classical/case_65/job.ini",
    "classical_bcr/case_1/job_risk.ini",
    "classical_damage/case_1a/job_haz.ini",
    "classical_damage/case_1a/job_risk.ini",
    "classical_risk/case_3/job.ini",
    "conditional_spectrum/case_1/job.ini",
    "disagg/case_1/job.ini",
    "event_based/case_2/job.ini",
    "event_based_damage/case_11/job.ini",
    "event_based_risk/case_1f/job_h.ini",
    "event_based_risk/case_1f/job_r.ini",
    "event_based_risk/reinsurance_2/job.ini",
    "event_based_risk/case_01/job.ini",
    "gmf_ebrisk/case_1/job_risk.ini",
    # Packages that the engine's own metadata does not name: networkx, and onnxruntime in scenario/case_27.
    "infrastructure_risk/five_nodes_demsup_directed/job.ini",
    "logictree/case_05/job.ini",
    "logictree/case_13/job_gmv.ini",
    "multi_risk/case_1/job.ini",
    "postproc/case_median_spectrum/job1.ini",
    "postproc/case_mrd/job.ini",
    "scenario/case_21/job.ini",
    "scenario/case_27/job.ini",
    "scenario_damage/case_1/job_risk.ini",
    "scenario_risk/case_1/job_risk.ini",
)
COMMAND = "of {}, which is no calculation"
NOT_IN_SAMPLE = {
    "check_complex_fault": "of a function that nothing in the engine calls",
    "export_csv": "of `oq postjobs`, which asks for a processpool itself",
    "exposure_by_hex6": COMMAND.format("expo_to_hdf5"),
    "gen_tasks": COMMAND.format("expo_to_hdf5"),
    "make_hmap_png": "for maps of 1,000 sites and more: too long for a sample",
    "read_crmodel": COMMAND.format("build_exposure_hdf5"),
    "read_sm": COMMAND.format("`oq renumber_sm`"),
    "reduce_sm": COMMAND.format("`oq reduce_sm`"),
    "save_rates": "for more than 100 MB of rates, and asks for a processpool itself",
}
"""Functions that no job of the sample runs, and why."""
MODES = (
    "from openquake.calculators import base, export\nimport json\nprint(json.dumps(sorted(base.calculators)))"
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can start a worker that does not see a directory"
)


def sample() -> list[list[Job]]:
    """The jobs, those that start from each other together."""
    found = families(f"qa_tests_data/{ini}" for ini in SAMPLE if ini != POST_RISK)
    parent = str(PurePosixPath(f"qa_tests_data/{POST_RISK}").with_name("job.ini"))
    for family in found:
        if family == [Job(parent)]:
            family.append(Job(f"qa_tests_data/{POST_RISK}", parent))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the engine's jobs that the workers do not see."""
    made = tmp_path_factory.mktemp("home")
    for kind in (CLUSTER, REFERENCE):
        shutil.copytree(harness.QA_TESTS, made / kind / "qa_tests_data")
        for ini, lines in CHANGED.items():
            file = made / kind / "qa_tests_data" / ini
            keys = "|".join(line.partition(" ")[0] for line in lines.splitlines())
            text = re.sub(rf"(?m)^({keys}) *=.*", "", file.with_name("job.ini").read_text())
            section = re.search(r"(?m)^\[\w+\]$", text)
            assert section is not None
            file.write_text(f"{text[: section.end()]}\n{lines}\n{text[section.end() :]}")
    for program in PROGRAMS:
        shutil.copy(program, made)
    (made / "tmp").mkdir()
    return made


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker, home: Path
) -> Iterator[dict[str, Result]]:
    """What became of each job of the sample."""
    directory = tmp_path_factory.mktemp("sample")
    changes = {"directory.custom_tmp": str(home / "tmp")}
    with ExitStack() as stack:
        clusters: list[Cluster] = []

        def start_driver(kind: str) -> Driver:
            """Each with a database of its own, since without a DbServer only one may write to it."""
            name = f"{kind}-{len(clusters)}"
            made = stack.enter_context(harness.cluster(directory / f"oqlab-{name}", broker, **changes))
            clusters.append(made)
            command = [str(processes.ENGINE / "bin/python"), str(home / "driver.py"), kind]
            if kind == CLUSTER:
                for worker in ("one", "two"):
                    made.worker(worker, prefix=harness.hiding(home))
            else:
                command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *command]
            return Driver(kind, command, str(home), directory / f"{name}.log", made.env | ENVIRONMENTS[kind])

        remembered = Results(directory / "results", {})
        jobs = sample()
        run_all(start_driver, jobs, remembered, print)
        found = {job.ini: remembered.get(job.ini) for family in jobs for job in family}
        yield {ini: result for ini, result in found.items() if result is not None}


@pytest.mark.parametrize("ini", SAMPLE)
def test_the_numbers_are_those_of_one_process_to_the_bit(ini: str, results: dict[str, Result]) -> None:
    result = results[f"qa_tests_data/{ini}"]
    assert result.outcome == EQUAL, describe(result)


def test_the_sample_has_every_calculation_mode(broker: Broker, tmp_path: Path, home: Path) -> None:
    modes = json.loads(Cluster(tmp_path / "oqlab-modes", broker).python(MODES))
    texts = [(home / CLUSTER / "qa_tests_data" / ini).read_text() for ini in SAMPLE]
    used = {match[1] for text in texts if (match := re.search(r"^calculation_mode\s*=\s*(\w+)", text, re.M))}
    assert set(modes) - used == set()


def test_every_function_that_the_engine_hands_to_a_starmap_is_run_or_has_a_reason(
    results: dict[str, Result],
) -> None:
    ran = {name for result in results.values() for name in result.tasks}
    handed = engine_tasks(PACKAGE)
    missing = {name: places for name, places in handed.items() if name not in ran | NOT_IN_SAMPLE.keys()}
    assert missing == {}
    assert NOT_IN_SAMPLE.keys() <= handed.keys() - ran, "a reason for what is run, or is not there"
