"""`python -m lab qa`: boots a lab, unless one is up, runs what is asked, and writes the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lab.aws.cloud import Plan
from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import build, cluster
from lab.cluster.program import read_config, record
from lab.linux import teardown
from lab.linux.host import Paths
from lab.trials.qa.jobs import families, select
from lab.trials.qa.nodes import prepare, start_driver, versions
from lab.trials.qa.report import page
from lab.trials.qa.results import GOOD, Results
from lab.trials.qa.run import Say, describe, run_all


def run(paths: Paths, stack: str, changes: Sequence[str], pattern: str, document: Path, say: Say) -> bool:
    """Run the jobs that a pattern takes; whether all of them are as they should be.

    A lab that is up is used and stays up; else one is booted and taken down again.

    Args:
        stack: the configuration of the lab that is booted, with `changes`
        pattern: see `lab.trials.qa.jobs.select`; empty for all jobs
        document: for the page with the figures, written when all jobs have run
    """
    was_up = teardown.exists(paths)
    try:
        lab = cluster.load(paths) if was_up else build.up(paths, _plan(stack, changes), say)
        cluster.wait_until_ready(lab, say)
        everything = families(prepare(lab))
        asked = select(everything, pattern)
        if not asked:
            raise LabError(f"the engine has no job in a folder {pattern}…")
        ran_with = versions(lab)
        results = Results(paths.cache / "qa", ran_with)
        run_all(partial(start_driver, lab), asked, results, say)
    finally:
        if not was_up:
            build.down(paths)
    jobs = [job for family in asked for job in family]
    found = {job.ini: result for job in jobs if (result := results.get(job.ini))}
    if asked == everything:
        document.write_text(page(jobs, found, ran_with, "make qa", time.strftime("%Y-%m-%d")))
    bad = [result for result in found.values() if result.outcome not in GOOD]
    for result in bad:
        say(describe(result))
    say(f"{len(found)} jobs, {len(bad)} of them neither equal nor explained nor refused by upstream")
    return not bad


def _plan(stack: str, changes: Sequence[str]) -> Plan:
    return make_plan(record(read_config(stack, changes)))
