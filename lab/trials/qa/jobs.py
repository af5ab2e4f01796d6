"""The engine's own jobs: the test calculations and demos that its package ships, and which of them follows which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

PARENT_NAMES = {
    "job_risk.ini": ("job_haz.ini", "job_hazard.ini"),
    "job_r.ini": ("job_h.ini",),
}
"""By its name, the hazard calculation in the same folder that a risk calculation starts from."""

PARENTS: Mapping[str, str] = {
    "qa_tests_data/event_based_risk/case_miriam/job3.ini": "job2.ini",
    "qa_tests_data/scenario_damage/case_8/job.ini": "prejob.ini",
    "qa_tests_data/scenario_risk/case_shakemap/job.ini": "pre-job.ini",
    "qa_tests_data/scenario_risk/case_shapefile/job.ini": "prepare_job.ini",
    "qa_tests_data/scenario_risk/case_shapefile/job_zipped.ini": "prepare_job.ini",
}
"""What else starts from a calculation in its folder, as upstream's own tests of the calculators run these jobs."""

_STATE_OF_PROCESSES = (
    "the last bits of a task depend on what its process has computed before: with one worker of one process the "
    "cluster's are those of the pool, and a pool of four processes gives the cluster's values, too, in some of its runs"
)
EXPLAINED: Mapping[str, str] = {
    "qa_tests_data/disagg/case_13/job.ini": _STATE_OF_PROCESSES,
    "qa_tests_data/disagg/case_14/job.ini": _STATE_OF_PROCESSES,
}
"""Jobs whose numbers may differ from those of a pool of one process, and why."""


@dataclass(frozen=True)
class Job:
    """One job file.

    Attributes:
        ini: its path: `qa_tests_data/classical/case_1/job.ini`, `demos/hazard/…`
        parent: of the job whose calculation it starts from, by `--hc`
    """

    ini: str
    parent: str | None = None

    @property
    def group(self) -> str:
        """The folder that the report counts it under: `classical`, `demos/risk`."""
        top, second, *_ = PurePosixPath(self.ini).parts
        return f"{top}/{second}" if top == "demos" else second


def parent_of(ini: str, inis: Iterable[str]) -> str | None:
    """The job that another one starts from."""
    path = PurePosixPath(ini)
    names = [PARENTS[ini]] if ini in PARENTS else PARENT_NAMES.get(path.name, ())
    candidates = [str(path.with_name(name)) for name in names]
    return next((candidate for candidate in candidates if candidate in set(inis)), None)


def families(inis: Iterable[str]) -> list[list[Job]]:
    """Jobs that start from each other, the parent first; a job that stands alone is a family of its own.

    Args:
        inis: the paths of all files that may be jobs; taken are `job*.ini` and what these start from
    """
    files = set(inis)
    known = {ini for ini in files if PurePosixPath(ini).match("job*.ini")}
    known |= {parent for ini in known if (parent := parent_of(ini, files))}
    parents = {ini: parent_of(ini, known) for ini in sorted(known, key=_natural)}
    found = {ini: [Job(ini)] for ini, parent in parents.items() if parent is None}
    for ini, parent in parents.items():
        if parent is not None:
            found[parent].append(Job(ini, parent))
    return list(found.values())


def select(all_families: Sequence[Sequence[Job]], pattern: str) -> list[list[Job]]:
    """The families with a job whose path contains a pattern, at the beginning of a part of it.

    `classical` takes `classical/…` and `classical_risk/…`; `classical/case_1/` one folder.
    """
    wanted = re.compile(r"(?:^|/)" + re.escape(pattern))
    return [list(family) for family in all_families if any(wanted.search(job.ini) for job in family)]


def _natural(ini: str) -> list[str | int]:
    """Sorts case_2 before case_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", ini)]
