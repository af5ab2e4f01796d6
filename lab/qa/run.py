"""``make qa``: the engine's own jobs on the cluster and with one process, compared."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components import facts
from lab.cluster import Lab, kept_engine
from lab.host import LabError
from lab.job import USER, make_user
from lab.qa.jobs import EXPLAINED, Job
from lab.qa.results import DIFFERENT, EQUAL, Result, Results, judge

Say = Callable[[str], None]
Answers = dict[str, dict[str, Any]]
"""What a driver answered for the jobs of a family, by their paths."""

LIMIT_SECONDS = 600
"""A job that takes longer is stopped, and has failed."""
REFERENCE_RUNS = 3
"""A pool of one process connects anew for each task, and now and then one overtakes another: then it runs again."""
HOME = f"/home/{USER}/qa"
PROGRAMS = (Path(__file__).with_name("driver.py"), Path(__file__).parents[1] / "compare_datastores.py")
CLUSTER, REFERENCE = "cluster", "reference"
TREES = ("qa_tests_data", "demos")


class Driver:
    """A driver.py on the master, as the lab's user."""

    def __init__(self, lab: Lab, kind: str, core: int) -> None:
        # A core of its own: a processpool that the engine starts has one process then, here and on the cluster.
        environment = "CI=1 " + ("OQ_DISTRIBUTE=processpool " if kind == REFERENCE else "")
        line = (
            f"cd {HOME} && exec env {environment} taskset --cpu-list {core}"
            f" {facts.ENGINE_DIR}/bin/python driver.py {kind}"
        )
        command = lab.machine(lab.master().name).command(["runuser", "--login", USER, "--command", line])
        self.kind = kind
        self._log = lab.paths.state / "logs" / f"qa-{kind}.log"
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
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
            raise LabError(f"the driver of the {self.kind} has ended: {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run_family(self, family: Sequence[Job], attempt: int = 0) -> Answers:
        """Run a family's jobs."""
        answers: Answers = {}
        for job in family:
            parent = answers[job.parent]["datastore"] if job.parent else None
            if job.parent and parent is None:
                error = f"{job.parent}, which it starts from, has failed"
                answers[job.ini] = {"error": error, "seconds": 0.0, "datastore": None, "tasks": {}}
                continue
            answers[job.ini] = self._ask(
                ini=f"{HOME}/{self.kind}/{job.ini}",
                parent=parent,
                limit=LIMIT_SECONDS,
                log=f"{HOME}/logs/{self.kind}/{job.ini}.{attempt}.log",
            )
        return answers

    def compare(self, job: Job, one: str, other: str) -> dict[str, Any]:
        """Compare two datastores of a job."""
        return self._ask(compare=[one, other], limit=LIMIT_SECONDS, log=f"{HOME}/logs/{job.ini}.compared.log")

    def remove(self, answers: Answers) -> None:
        """Remove the calculations of a family."""
        self._ask(remove=[answer["datastore"] for answer in answers.values() if answer["datastore"]])

    def end(self) -> None:
        """End it, and with it the job that it runs."""
        assert self._process.stdin is not None
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


def prepare(lab: Lab) -> list[str]:
    """Copy the engine's jobs into the user's home, once for each side; the paths of all .ini files."""
    make_user(lab)
    master = lab.machine(lab.master().name)
    copy = f"""
        set -e
        mkdir -p {HOME}/logs
        cd {HOME}
        for side in {CLUSTER} {REFERENCE}; do
            test ! -e $side || continue
            rm -rf $side.new
            mkdir $side.new
            cp -r {facts.ENGINE_DIR}/demos $side.new
            cp -r {facts.ENGINE_DIR}/lib/python3*/site-packages/openquake/qa_tests_data $side.new
            chmod -R u+w $side.new
            mv $side.new $side
        done
        cd {CLUSTER}
        find {" ".join(TREES)} -name '*.ini'
        """
    done = master.execute(["runuser", "--login", USER, "--command", copy], timeout=LIMIT_SECONDS)
    if done.returncode:
        raise LabError(f"copying the engine's jobs: {done.stderr.strip()}")
    for program in PROGRAMS:
        master.root_of(f"{HOME}/{program.name}").write_text(program.read_text())
    return done.stdout.split()


def versions(lab: Lab) -> dict[str, str]:
    """What makes a result another one: the engine on the nodes with all that it needs, and this harness.

    :return: ``engine``, ``oq_celery`` and ``python``: versions; ``image`` and ``harness``: hashes
    """
    program = (
        "import json, platform\nfrom importlib.metadata import version\n"
        "print(json.dumps({'engine': version('openquake.engine'), 'oq_celery': version('oq_celery'),"
        " 'python': platform.python_version()}))"
    )
    command = [f"{facts.ENGINE_DIR}/bin/python", "-c", program]
    answer = lab.machine(lab.master().name).execute(command, timeout=LIMIT_SECONDS)
    if answer.returncode:
        raise LabError(f"the engine's version: {answer.stderr.strip()}")
    digest = hashlib.sha256(b"".join(program.read_bytes() for program in PROGRAMS)).hexdigest()
    image = kept_engine(lab.paths, lab.plan).stem
    return {**json.loads(answer.stdout), "image": image, "harness": digest[:16]}


def run_all(lab: Lab, asked: Sequence[Sequence[Job]], results: Results, say: Say) -> None:
    """Run families that have no results yet, both sides at the same time, and remember what became of each job."""
    todo = [family for family in asked if any(results.get(job.ini) is None for job in family)]
    number = sum(map(len, asked))
    done = number - sum(map(len, todo))
    say(f"{number} jobs, {done} of them with a result of these versions")
    if not todo:
        return
    first, last = lab.master().cpus[0], lab.master().cpus[-1]
    spare = Driver(lab, REFERENCE, last)
    sides = [_Side(Driver(lab, kind, core), todo) for kind, core in ((CLUSTER, first), (REFERENCE, last))]
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
    judged = {job.ini: _judge(spare, job, ours, theirs) for job in family}
    for attempt in range(1, REFERENCE_RUNS):
        unequal = [job for job in family if judged[job.ini].outcome == DIFFERENT]
        if not unequal:
            break
        again = spare.run_family(family, attempt)
        judged |= {job.ini: _judge(spare, job, ours, again) for job in unequal}
        spare.remove(again)
    spare.remove(ours)
    spare.remove(theirs)
    yield from judged.values()


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
        line += f" ({', '.join(result.different)}: " + (f"{far[1]:.1e} relative)" if far else "not the same)")
    elif result.why:
        line += f": {result.why}"
    return line + " {:.1f} s, {:.1f} s with one process".format(*result.seconds)
