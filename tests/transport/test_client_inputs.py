"""The files that `oq-cluster` takes along, compared with the engine's list for the engine's own jobs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from oq_cluster import inputs

from tests.transport import harness, processes

pytestmark = pytest.mark.skipif(not harness.QA_TESTS.exists(), reason="needs the engine: make transport")

DEMOS = processes.ENGINE / "demos"
# Jobs that take more along than the engine lists, and what.
MORE = {
    # The archive beside the files that the engine has unpacked from it.
    "event_based_risk/case_01/job.ini": {"exposure1.zip"},
    "event_based_risk/case_01/job2.ini": {"exposure1.zip"},
    "event_based_risk/case_01/job_ins.ini": {"exposure1.zip"},
    "event_based_risk/case_01/job_missing_occupancy.ini": {"exposure1.zip"},
    "event_based_risk/case_master/job.ini": {"ssmLT.zip"},
    "event_based_risk/case_master/job_ses.ini": {"ssmLT.zip"},
    "multi_risk/case_1/job.ini": {"exposure_model.zip"},
    "multi_risk/case_1/job_2.ini": {"exposure_model.zip"},
    "scenario_damage/case_14/job_wrong.ini": {"exposure_model.zip"},
    # The job that it begins with, and that job's files.
    "event_based/case_1/job_from_ses.ini": {
        "job_ses.ini", "gsim_logic_tree.xml", "source_model_logic_tree.xml", "source_model.xml",
    },
    "event_based_risk/case_master/job_risk.ini": {
        "job_ses.ini", "gsim_logic_tree.xml", "ssmLT.zip", "ssmLT.xml", "source_model_1.xml", "source_model_2.xml",
    },
    # Tables that a ground motion model opens; the engine leaves them out of its list.
    "hazard/GMPETablePSHA/job.ini": {"gmpe.hdf5"},
    "scenario/case_35/job.ini": {"Wcrust_med_rhypo.hdf5"},
    # Two parameters name the same input; the engine takes the second one's.
    "scenario_damage/case_16/job.ini": {"taxonomy_mapping.csv"},
}  # fmt: skip


def test_nothing_is_missing_of_what_the_engine_lists_and_what_comes_besides_has_a_reason(
    tmp_path: Path,
) -> None:
    roots = []
    for source in (harness.QA_TESTS, DEMOS):  # copies, because the engine unpacks archives where they are
        roots.append(tmp_path / source.name)
        shutil.copytree(source, roots[-1])
    script = Path(__file__).with_name("engine_inputs.py")
    printed = processes.run([processes.ENGINE / "bin/python", script, *roots], dict(os.environ), check=True)
    listed = {ini: set(files) for ini, files in json.loads(printed.stdout).items() if files}
    assert len(listed) > 450
    missing: dict[str, set[str]] = {}
    more: dict[str, set[str]] = {}
    for ini, files in listed.items():
        path = Path(ini)
        name = path.relative_to(next(root for root in roots if root in path.parents)).as_posix()
        ours = {str(file) for file in inputs.gather(path).files}
        if lacking := files - ours:
            missing[name] = lacking
        if besides := {os.path.relpath(file, path.parent) for file in ours - files}:
            more[name] = besides
    assert missing == {}
    assert more == MORE
