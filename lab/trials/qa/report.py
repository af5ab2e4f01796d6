"""docs/qa.md: what became of each job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lab.trials.compare_datastores import NOT_RESULTS
from lab.trials.qa.driver import OVERRIDES
from lab.trials.qa.jobs import Job
from lab.trials.qa.results import CLOSE, DIFFERENT, EQUAL, FAILED, GOOD, REFUSED, Result
from lab.trials.qa.run import HASH_SEED

PAGE = """# The engine's own jobs

Written by `{command}` (`python -m lab qa`) on {date}, on the lab of [lab.md](lab.md) with engine {engine}, oq_celery
{oq_celery}, Python {python}, two workers.

The engine's package ships {number} job files in its test data and demos. Each was run by `oq engine --run` as an
ordinary user from a home directory, which no worker sees, on the cluster and, for comparison, with a processpool of
one process, with the same `num_cores`. {summary}

Compared are all datasets of the two datastores, bit for bit, but these, which cannot be equal:

{excluded}

A job that starts from another one's calculation (`job_risk.ini` after `job_haz.ini`) runs with `--hc`, as in
upstream's own tests. "Refused" is a job that ends with the same error on both sides: many are upstream's tests of
error messages. The pool of one process is upstream's own, but forked by a server that has imported the engine, and it
sends the results of all tasks on one connection, which keeps their order; upstream's connects anew for each task.
Both runs have the parameter `{overrides}` unless the job has its own, since a task of classical PSHA that takes longer
would be split by the clock, and `PYTHONHASHSEED={seed}`, since some texts in the results are in the order of a set.

| folder | jobs | equal bit for bit | differ for a reason | refused by upstream | faults |
|---|---:|---:|---:|---:|---:|
{table}
"""


def page(
    jobs: Sequence[Job], results: Mapping[str, Result], versions: Mapping[str, str], command: str, date: str
) -> str:
    """The page about these jobs, in Markdown.

    Args:
        results: by the paths of the job files, of all of them
        versions: `engine`, `oq_celery`, `python`
        command: that has run them
    """
    text = PAGE.format(
        command=command,
        date=date,
        number=len(jobs),
        summary=_summary([results[job.ini] for job in jobs]),
        excluded="\n".join(f"- `{name}`: {reason}" for name, reason in NOT_RESULTS.items()),
        table=_table(jobs, results),
        overrides=OVERRIDES,
        seed=HASH_SEED,
        **versions,
    )
    for outcome, title in (
        (DIFFERENT, "Faults: different"),
        (FAILED, "Faults: failed on the cluster"),
        (CLOSE, "Different for a reason"),
        (REFUSED, "Refused by upstream"),
    ):
        chosen = [results[job.ini] for job in jobs if results[job.ini].outcome == outcome]
        if chosen:
            text += f"\n## {title}\n\n" + "\n".join(f"- {_item(result)}" for result in chosen) + "\n"
    return text


def _summary(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    faults = sum(number for outcome, number in counts.items() if outcome not in GOOD)
    datasets = sum(result.equal for result in results)
    differ = "differs" if counts[CLOSE] == 1 else "differ"
    return (
        f"**{counts[EQUAL]} are equal bit for bit, {counts[CLOSE]} {differ} for a reason that is given below, "
        f"{counts[REFUSED]} cannot be run by upstream either, {faults} are none of these.** "
        f"{datasets} datasets are equal."
    )


def _table(jobs: Sequence[Job], results: Mapping[str, Result]) -> str:
    groups: dict[str, Counter[str]] = {}
    for job in jobs:
        groups.setdefault(job.group, Counter())[results[job.ini].outcome] += 1
    rows = []
    for name, counts in sorted(groups.items()):
        faults = sum(number for outcome, number in counts.items() if outcome not in GOOD)
        cells = (name, counts.total(), counts[EQUAL], counts[CLOSE], counts[REFUSED], faults)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _item(result: Result) -> str:
    """A job in one line: what differs and why, or its error."""
    line = f"`{result.ini}`"
    if result.different:
        line += ": " + ", ".join(f"`{name}` {_far(one)}" for name, one in result.different.items())
    return line + (f": {result.why}" if result.why else "")


def _far(one: Mapping[str, object]) -> str:
    return str(one["why"]) if "why" in one else f"{one['relative']:.1e} relative"
