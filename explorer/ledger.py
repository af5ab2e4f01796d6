"""What was run, in figures: docs/faults.json, and the page docs/faults.md that is written from it."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

# How a run ended, from the best to the worst, and the heading of its column.
ENDINGS: Final = {
    "equal": "equal bit for bit",
    "failed": "failed, as the fault explains",
    "ended": "ended by the fault",
    "wrong": "wrong",
}
TIERS: Final = {
    "transport": (
        "Transport tier",
        "`python -m explorer`: a real RabbitMQ, three workers of two processes, and masters, all on one machine's "
        "loopback, each behind a TCP proxy. A job is a tree of tasks that follows from the seed (sizes around every "
        "threshold of the transport, subtasks, arguments shared and unique, tasks that fail or kill their process), "
        "whose results are known in advance, or one of the engine's own test calculations, compared with an "
        "undisturbed run on the same workers. That those are the numbers of one process is `make qa`'s matter.",
    ),
    "lab": (
        "Lab tier",
        "`python -m lab faults`: the engine's demos on nodes that boot as on AWS, compared with an undisturbed run on "
        "the same nodes. The shared file system is not behind the link that a partition cuts, as EFS is on AWS.",
    ),
}
TESTS: Final = "tests/transport"
FOUND: Final = (
    (5023, "a result queue stayed for an hour when its job ended while RabbitMQ was away", "test_faults.py"),
    (
        503898302,
        "a worker whose task queue was deleted while it paused never took a task again",
        "test_faults.py",
    ),
    (
        302175830,
        "with the shared directory full for three seconds, h5py printed that a write had failed, and the calculation "
        "went on with zeros in place of what was lost",
        "test_writes.py",
    ),
    (
        302176695,
        "Ctrl-C in the middle of a write made an aborted calculation a failed one",
        "test_bookkeeping.py",
    ),
    (470585097, "a second error, of closing the file, hid in the log that the disk was full", "test_jobs.py"),
    (
        662745190,
        "after a broken connection a worker told masters late what it ran, so a task was computed a second time beside "
        "itself (the results were right)",
        "test_lease.py",
    ),
)
"""Faults of this project that the explorer has found: the seed, what was wrong, and the test that holds it now."""
KNOWN: Final = (
    (
        564658114,
        "after a partition two workers began the same task 0.1 s apart (the results are right): both had waited for "
        "the master, which, just back, answers who asks whether a copy is to be done before it has the word of who has "
        "begun. By reading, and not mended; 68 further runs of the seed have not shown it again",
    ),
    (
        226874979,
        "the trial's own fault, mended: the last worker was killed, and the trial, which stands in for the group, "
        "started another one only after its third fault, which waited for a task to run",
    ),
)
"""What is known of the seeds with something wrong in the newest figures."""
NOT_DONE: Final = """## What is not tried

- Steps of the clock: the transport measures time with the monotonic clock, which no step changes; the processes of a
  machine without time namespaces cannot be given a clock of their own.
- Rare lengths of an outage (longer than a lease, a time-out of TCP, two heartbeats) come in one of twelve faults.
- Delays that only clean up are shortened: files of lost masters go after 90 seconds here, not after ten minutes.
"""


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        seed: that repeats it.
        jobs: the kinds of its jobs.
        faults: the kinds of the faults that struck.
        ending: one of ENDINGS, the worst of its jobs.
        wrong: what was wrong, in words.
    """

    seed: int
    jobs: tuple[str, ...]
    faults: tuple[str, ...]
    ending: str
    wrong: tuple[str, ...] = ()


@dataclass
class Tier:
    """What was run at one tier.

    Attributes:
        date: of the last run.
        versions: of what was run.
        runs: their number.
        faults: how many struck.
        minutes: how long it took.
        kinds: of each kind of fault, the runs that it struck, by their ending.
        jobs: of each kind of job, its runs, by their ending.
        failures: seeds of runs with something wrong, and what.
    """

    date: str
    versions: dict[str, str]
    runs: int = 0
    faults: int = 0
    minutes: float = 0.0
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    jobs: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[tuple[int, list[str]]] = field(default_factory=list)


def sum_up(entries: Sequence[Entry], versions: dict[str, str], seconds: float) -> Tier:
    """The figures of some runs."""
    tier = Tier(f"{datetime.now(UTC):%Y-%m-%d}", versions, len(entries), minutes=seconds / 60)
    tier.faults = sum(len(entry.faults) for entry in entries)
    tier.kinds = _count((kind, entry.ending) for entry in entries for kind in set(entry.faults))
    tier.jobs = _count((job, entry.ending) for entry in entries for job in set(entry.jobs))
    tier.failures = [(entry.seed, list(entry.wrong)) for entry in entries if entry.wrong]
    return tier


def _count(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for name, ending in pairs:
        counted.setdefault(name, Counter())[ending] += 1
    return {name: dict(counts) for name, counts in sorted(counted.items())}


def machine() -> dict[str, str]:
    """The versions that are this machine's."""
    return {"Linux": platform.release(), "Python": platform.python_version()}


def record(data: Path, name: str, tier: Tier) -> None:
    """Put the figures of a tier in the place of its former ones, and write the page beside them."""
    tiers = read(data) if data.exists() else {}
    tiers[name] = tier
    data.parent.mkdir(parents=True, exist_ok=True)
    new = data.with_suffix(".new")  # who stops an exploration may kill it
    new.write_text(json.dumps({name: asdict(one) for name, one in tiers.items()}, indent=1) + "\n")
    new.replace(data)
    data.with_suffix(".md").write_text(page(tiers))


def read(data: Path) -> dict[str, Tier]:
    """The figures of all tiers that have been run."""
    return {name: Tier(**figures) for name, figures in json.loads(data.read_text()).items()}


def page(tiers: dict[str, Tier]) -> str:
    """The page about all tiers."""
    parts = [
        "# Faults in the middle of a calculation",
        "Written by `make faults`. A run is what a seed decides: jobs, faults, and the events that set these off. It "
        "is right when each job ends with the results that it must have, bit for bit, each once and in order, or "
        "with an error that the faults of the run explain; when no task was computed more often than they explain; "
        "and when it leaves no queue, file or process behind. `make faults SEED=…` repeats a run.",
    ]
    for name, (title, text) in TIERS.items():
        if name in tiers:
            parts += [f"## {title}", text, *_figures(tiers[name])]
    return "\n\n".join([*parts, *_found(), NOT_DONE])


def _found() -> list[str]:
    """The section about what was found, ever."""
    lines = ["| seed | what was wrong | test |", "|---|---|---|"]
    lines += [f"| {seed} | {what} | [{test}](../{TESTS}/{test}) |" for seed, what, test in FOUND]
    text = (
        "Each is fixed, and covered by a test. What is wrong above and not listed here is unexplained. A seed "
        "reproduces its run only until a kind of fault or job is added."
    )
    known = [f"- seed {seed}: {what}." for seed, what in KNOWN]
    return [
        "## What it has found",
        text,
        "\n".join(lines),
        *(["Known besides:", "\n".join(known)] if known else []),
    ]


def _figures(tier: Tier) -> list[str]:
    wrong = len(tier.failures)
    versions = ", ".join(f"{name} {version}" for name, version in tier.versions.items())
    parts = [
        f"{tier.date}, {versions}: {tier.runs} runs with {tier.faults} faults in {tier.minutes:.0f} minutes; "
        f"{wrong or 'none'} with something wrong.",
        _table("fault", tier.kinds),
        _table("job", tier.jobs),
    ]
    if tier.failures:
        lines = [f"- seed {seed}: {wrongs[0]}" for seed, wrongs in tier.failures]
        parts += ["Seeds with something wrong:", "\n".join(lines)]
    return parts


def _table(what: str, rows: dict[str, dict[str, int]]) -> str:
    columns = [ending for ending in ENDINGS if any(ending in counts for counts in rows.values())]
    lines = [
        "| " + " | ".join([what, "runs", *(ENDINGS[ending] for ending in columns)]) + " |",
        "|" + "---|" + "---:|" * (1 + len(columns)),
    ]
    for name, counts in rows.items():
        cells = [name, str(sum(counts.values())), *(str(counts.get(ending, 0)) for ending in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
