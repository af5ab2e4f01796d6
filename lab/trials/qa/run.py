"""`make qa`: the engine's own jobs on the cluster and with one process, compared."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.base import LabError
from lab.trials.qa.jobs import EXPLAINED, Job
from lab.trials.qa.results import EQUAL, Result, Results, judge

Say = Callable[[str], None]
Answers = dict[str, dict[str, Any]]
"""What a driver answered for the jobs of a family, by their paths."""

LIMIT_SECONDS = 600
"""A job that takes longer is stopped, and has failed."""
PROGRAMS = (Path(__file__).with_name("driver.py"), Path(__file__).parents[1] / "compare_datastores.py")
CLUSTER, REFERENCE = "cluster", "reference"
HASH_SEED = "0"
"""Of both drivers. The engine writes some texts in the order of a set of strings, which is another one in each process
that has no seed for it: the names of realizations of qa_tests_data/logictree/case_46."""
ENVIRONMENTS = {
    CLUSTER: {"PYTHONHASHSEED": HASH_SEED},
    REFERENCE: {"PYTHONHASHSEED": HASH_SEED, "OQ_DISTRIBUTE": "processpool"},
}
TREES = ("qa_tests_data", "demos")


class Driver:
    """A process that runs driver.py.

    Attributes:
        kind: CLUSTER or REFERENCE
    """

    def __init__(
        self,
        kind: str,
        command: Sequence[str],
        home: str,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            home: the directory in which it runs, with the TREES of both kinds
            log: for what it prints
        """
        self.kind = kind
        self._home = home
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
            )

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Have it do something; LabError when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # it has ended, or end() has closed its input
            line = ""
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise LabError(f"the driver of the {self.kind} has ended; it said: {said[-1]} ({self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run_family(self, family: Sequence[Job]) -> Answers:
        """Run a family's jobs."""
        answers: Answers = {}
        for job in family:
            parent = answers[job.parent]["datastore"] if job.parent else None
            if job.parent and parent is None:
                error = f"{job.parent}, which it starts from, has failed"
                answers[job.ini] = {"error": error, "seconds": 0.0, "datastore": None, "tasks": []}
                continue
            answers[job.ini] = self._ask(
                ini=f"{self._home}/{self.kind}/{job.ini}",
                parent=parent,
                limit=LIMIT_SECONDS,
                log=f"{self._home}/logs/{self.kind}/{job.ini}.log",
            )
        return answers

    def compare(self, job: Job, one: str, other: str) -> dict[str, Any]:
        """Compare two datastores of a job."""
        return self._ask(
            compare=[one, other], limit=LIMIT_SECONDS, log=f"{self._home}/logs/{job.ini}.compared.log"
        )

    def remove(self, answers: Answers) -> None:
        """Remove the calculations of a family."""
        self._ask(remove=[answer["datastore"] for answer in answers.values() if answer["datastore"]])

    def end(self) -> None:
        """End it, and with it the job that it runs."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()
        self._process.wait()


class _Side:
    """A driver and the thread in which it runs one family after another."""

    def __init__(self, driver: Driver, asked: Sequence[Sequence[Job]]) -> None:
        self.driver = driver
        self._pool = ThreadPoolExecutor(1)
        self.answers = [self._pool.submit(driver.run_family, family) for family in asked]

    def end(self) -> None:
        """End all of it, now."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.driver.end()
        self._pool.shutdown()


def run_all(
    start_driver: Callable[[str], Driver], asked: Sequence[Sequence[Job]], results: Results, say: Say
) -> None:
    """Run families that have no results yet, both sides at the same time, and remember what became of each job.

    Args:
        start_driver: starts a driver of a kind
    """
    todo = [family for family in asked if any(results.get(job.ini) is None for job in family)]
    number = sum(map(len, asked))
    done = number - sum(map(len, todo))
    say(f"{number} jobs, {done} of them with a result of these versions")
    if not todo:
        return
    spare = start_driver(REFERENCE)
    sides = [_Side(start_driver(kind), todo) for kind in (CLUSTER, REFERENCE)]
    begin, so_far = time.monotonic(), 0
    try:
        for family, *futures in zip(todo, *(side.answers for side in sides), strict=True):
            ours, theirs = (future.result() for future in futures)
            for result in _judge_family(spare, family, ours, theirs):
                results.put(result)
                so_far += 1
                left = (time.monotonic() - begin) / so_far * (number - done - so_far)
                say(f"[{done + so_far}/{number}, {left / 60:.0f} min left] {describe(result)}")
    finally:
        for side in sides:
            side.end()
        spare.end()


def _judge_family(spare: Driver, family: Sequence[Job], ours: Answers, theirs: Answers) -> Iterator[Result]:
    """What became of each job; then the calculations are removed."""
    judged = [_judge(spare, job, ours, theirs) for job in family]
    spare.remove(ours)
    spare.remove(theirs)
    yield from judged


def _judge(spare: Driver, job: Job, ours: Answers, theirs: Answers) -> Result:
    one, other = ours[job.ini], theirs[job.ini]
    comparison = None
    if one["datastore"] and other["datastore"]:
        comparison = spare.compare(job, one["datastore"], other["datastore"])
    return judge(job.ini, one, other, comparison, EXPLAINED.get(job.ini))


def describe(result: Result) -> str:
    """A result in one line."""
    line = f"{result.ini}: {result.outcome}"
    if result.outcome == EQUAL:
        line += f" ({result.equal} datasets)"
    elif result.different:
        far = result.largest
        line += f" ({', '.join(result.different)}: " + (
            "not the same)" if far is None else f"{far:.1e} relative)"
        )
    elif result.why:
        line += f": {result.why}"
    return line + " {:.1f} s, {:.1f} s with one process".format(*result.seconds)
