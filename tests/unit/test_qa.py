"""What `make qa` runs, how it judges, and the page that it writes; running is for the other tiers."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from components.bundle import engine_bundle
from lab.trials.qa.jobs import PARENTS, Job, families, select
from lab.trials.qa.nodes import PARTS_THAT_COMPUTE, computes
from lab.trials.qa.report import page
from lab.trials.qa.results import (
    CLOSE,
    DIFFERENT,
    EQUAL,
    FAILED,
    REFUSED,
    Result,
    Results,
    in_one_line,
    judge,
)

FOLDER = "qa_tests_data/classical_risk/case_2"


def names(*files: str) -> list[str]:
    return [f"{FOLDER}/{file}" for file in files]


def test_a_risk_calculation_starts_from_the_hazard_calculation_beside_it() -> None:
    risk, hazard = names("job_risk.ini", "job_haz.ini")
    assert families([risk, hazard]) == [[Job(hazard), Job(risk, hazard)]]


def test_a_risk_calculation_without_one_stands_alone() -> None:
    (risk,) = names("job_risk.ini")
    assert [Job(risk)] in families([risk, "qa_tests_data/classical_risk/case_3/job_haz.ini"])


@pytest.mark.parametrize("ini", PARENTS)
def test_what_upstreams_tests_start_from_is_a_job_though_its_name_may_not_say_so(ini: str) -> None:
    parent = str(Path(ini).with_name(PARENTS[ini]))
    assert families([ini, parent]) == [[Job(parent), Job(ini, parent)]]


def test_other_ini_files_are_no_jobs() -> None:
    assert families(["qa_tests_data/mosaic/aelo_changelog.ini"]) == []


def test_jobs_are_in_the_order_of_their_numbers() -> None:
    inis = [f"demos/hazard/case_{number}/job.ini" for number in (10, 2)]
    assert [family[0].ini for family in families(inis)] == inis[::-1]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("", {"a", "b", "c"}),
        ("classical", {"a", "b"}),
        ("classical/", {"a"}),
        ("case_1/", {"a", "b"}),
        ("demos", {"c"}),
        ("lassical", set()),
    ],
)
def test_a_pattern_takes_folders_by_the_beginning_of_their_names(pattern: str, taken: set[str]) -> None:
    inis = {
        "qa_tests_data/classical/case_1/job.ini": "a",
        "qa_tests_data/classical_risk/case_1/job.ini": "b",
        "demos/hazard/AreaSource/job.ini": "c",
    }
    chosen = select([[Job(ini)] for ini in inis], pattern)
    assert {inis[job.ini] for family in chosen for job in family} == taken


def answer(**changes: Any) -> dict[str, Any]:
    return {"seconds": 1.0, "datastore": "/d/calc_1.hdf5", "distributions": ["celery"], "tasks": []} | changes


ALONE = answer(datastore="/d/calc_2.hdf5", distributions=["processpool"])
SAME: dict[str, Any] = {"equal": ["hcurves"], "different": {}}
APART: dict[str, Any] = {"equal": [], "different": {"hcurves": {"absolute": 0.1, "relative": 0.5}}}
ERROR = {"error": "ValueError: no", "datastore": None}


@pytest.mark.parametrize(
    ("cluster", "reference", "comparison", "explained", "outcome"),
    [
        (answer(), ALONE, SAME, None, EQUAL),
        (answer(), ALONE, SAME, "it is so", EQUAL),
        (answer(), ALONE, APART, None, DIFFERENT),
        (answer(), ALONE, APART, "it is so", CLOSE),
        (answer(**ERROR), ALONE | ERROR, None, None, REFUSED),
        (answer(**ERROR), ALONE, None, None, FAILED),
        (answer(), ALONE | ERROR, None, None, FAILED),
        (answer(**ERROR), ALONE | ERROR | {"error": "KeyError: other"}, None, None, FAILED),
        (answer(**ERROR, late=True), ALONE | ERROR, None, None, FAILED),
        (answer(), ALONE, {"error": "MemoryError: "}, None, FAILED),
        (answer(distributions=["processpool"]), ALONE, SAME, None, FAILED),
        (answer(), ALONE | {"datastore": "/d/calc_1.hdf5"}, SAME, None, FAILED),
    ],
    ids=[
        "equal", "equal though it need not be", "different", "explained", "refused by both", "fails on the cluster",
        "fails alone", "two errors", "too late", "not compared", "not on the cluster", "compared with itself",
    ],
)  # fmt: skip
def test_a_job_is_good_only_when_both_runs_say_so(
    cluster: dict[str, Any],
    reference: dict[str, Any],
    comparison: dict[str, Any] | None,
    explained: str | None,
    outcome: str,
) -> None:
    assert judge("job.ini", cluster, reference, comparison, explained).outcome == outcome


def test_an_error_in_one_line_is_the_same_for_both_runs() -> None:
    error = 'ValueError: \n  File "/x/y.py", line 3, in f\nValueError: no /home/me/{}/a b.xml in calc_{}.hdf5'
    lines = {in_one_line(error.format("cluster", 1)), in_one_line(error.format("reference", 22))}
    assert lines == {"ValueError: no …/a b.xml in calc_N.hdf5"}


def test_the_order_of_a_set_in_an_error_says_nothing() -> None:
    one, other = (
        "ValueError: not in {'LiqProb', 'Disp', 'LSE'}",
        "ValueError: not in {'LSE', 'LiqProb', 'Disp'}",
    )
    assert in_one_line(one) == in_one_line(other) == "ValueError: not in {'Disp', 'LSE', 'LiqProb'}"
    assert in_one_line("KeyError: {'b': 1, 'a': 2}") == "KeyError: {'b': 1, 'a': 2}"


def test_results_are_remembered_for_the_same_versions_only(tmp_path: Path) -> None:
    result = Result(
        "demos/hazard/job.ini", DIFFERENT, 3, APART["different"], seconds=(1.0, 2.0), tasks=["classical"]
    )
    Results(tmp_path, {"engine": "1"}).put(result)
    again = Results(tmp_path, {"engine": "1"}).get(result.ini)
    assert again is not None
    assert again.largest == 0.5
    assert Results(tmp_path, {"engine": "2"}).get(result.ini) is None


def test_the_page_counts_every_job_and_names_those_that_are_not_equal() -> None:
    results = [
        Result("demos/hazard/a/job.ini", EQUAL, 3),
        Result("demos/hazard/b/job.ini", REFUSED, why="ValueError: no"),
        Result("qa_tests_data/disagg/c/job.ini", DIFFERENT, 1, APART["different"]),
        Result("qa_tests_data/disagg/d/job.ini", CLOSE, 1, {"x": {"why": "not the same"}}, "it is so"),
    ]
    jobs = [Job(result.ini) for result in results]
    versions = {"engine": "3", "oq_celery": "1", "python": "3.13"}
    text = page(jobs, {result.ini: result for result in results}, versions, "make qa", "2026-01-31")
    assert (
        "**1 are equal bit for bit, 1 differs for a reason that is given below, 1 cannot be run by upstream"
        in text
    )
    assert "1 are none of these" in text
    assert "| demos/hazard | 2 | 1 | 0 | 1 | 0 |" in text
    assert "| disagg | 2 | 0 | 1 | 0 | 1 |" in text
    assert "`qa_tests_data/disagg/c/job.ini`: `hcurves` 5.0e-01 relative" in text
    assert "`qa_tests_data/disagg/d/job.ini`: `x` not the same: it is so" in text
    assert "`demos/hazard/b/job.ini`: ValueError: no" in text


def changed(bundle: bytes, name: str) -> bytes:
    """A bundle with another file of that name."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive, zipfile.ZipFile(changed, "w") as other:
        for known in archive.namelist():
            other.writestr(known, archive.read(known) + (b"#" if known == name else b""))
    return changed.getvalue()


def test_what_computes_makes_a_result_another_one_and_the_rest_of_the_bundle_does_not() -> None:
    bundle = engine_bundle(Path(__file__).parents[2] / "engine").data
    files = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    others = {name for name in files if computes(changed(bundle, name)) != computes(bundle)}
    assert others == {name for name in files if name.split("/")[0] in PARTS_THAT_COMPUTE}
    assert {"requirements.txt", "oq_celery/__init__.py"} <= others
    assert "oq_webui/settings.py" in set(files) - others
