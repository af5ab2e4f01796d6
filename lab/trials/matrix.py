"""`python -m lab faults`: jobs during which nodes die, leave, are cut off or come, as a seed decides.

Each run has to end with the numbers of the same job on the same lab without a fault.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from components import facts
from explorer import ledger
from explorer.ledger import Entry
from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import build, cluster, fleet
from lab.cluster.cluster import Lab
from lab.cluster.program import read_config, record
from lab.linux.host import Paths, cores, wait_until
from lab.trials import faults
from lab.trials.job import CLASSICAL, DemoJob, Run, compare, fetch_job, run_job, work_done

Say = Callable[[str], None]
WORKERS = 2
JOB_SECONDS = 300
"""After that a run has failed: many times what the jobs take, and less than patience."""
READY_SECONDS = 300
"""After that a worker that was started in the place of another one has failed."""
ANSWER_SECONDS = 120
"""After that a worker that was cut off, or whose broker was, has not come back to it."""
LEFT_SECONDS = 30
"""After that queues of a job that has ended are left."""
FILES_SECONDS = 900
"""After that files of one are left: a worker removes a directory that has had no queue for ten minutes (watch.py)."""
FROZEN_SECONDS = 10
"""After so long a worker that does not answer a look counts as one that says nothing."""
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        share: how often it comes, relative to the others
        seconds: ranges of its length: the usual one, and the rare one
        strike: does it, given the worker that runs a task and the length; returns when it is over
        excuses: a pattern of what a job may say that fails because of it; most faults excuse nothing
    """

    name: str
    share: int
    seconds: tuple[tuple[float, float], ...]
    strike: Callable[[Lab, str, float], None]
    excuses: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault of a run: it strikes when that share of the job's tasks is done, and a task runs."""

    kind: Kind
    share: float
    seconds: float

    def __str__(self) -> str:
        length = f", {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind.name} ({self.share:.0%} of the tasks done{length})"


@dataclass(frozen=True)
class Case:
    """One run."""

    seed: int
    job: DemoJob
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Result:
    """How a run ended; no trouble means: with the numbers of the undisturbed run, bit for bit.

    Attributes:
        struck: the faults that came to their moment
        excused: the job failed, and said truly why
    """

    case: Case
    seconds: float
    struck: tuple[Fault, ...]
    trouble: str = ""
    excused: bool = False

    def entry(self) -> Entry:
        """For the ledger."""
        ending = "equal" if not self.trouble else "failed" if self.excused else "wrong"
        wrong = (self.trouble,) if ending == "wrong" else ()
        kinds = tuple(fault.kind.name for fault in self.struck)
        return Entry(self.case.seed, (self.case.job.name,), kinds, ending, wrong)

    def __str__(self) -> str:
        struck = "; ".join(map(str, self.struck)) or "no fault"
        name, ending = self.case.job.name, self.trouble or "equal"
        return f"seed {self.case.seed}: {self.seconds:.1f} s: {name}: {struck}: {ending}"


# Upstream splits classical tasks by the clock, after ten seconds: the last bits of a result then depend on how long a
# fault holds up a task.
UNCUT = DemoJob(CLASSICAL.name, CLASSICAL.folder, {"width_of_mfd_bin": "0.2\nsplit_time = 86400"})
JOBS = (
    UNCUT,
    DemoJob("event based", "demos/hazard/EventBasedPSHA", {"ses_per_logic_tree_path": "20"}),
    DemoJob("event based risk", "demos/risk/EventBasedRisk", {"investigation_time": "1000"}),
)
STORAGES = {"nfs": 3, "diskless": 1}
"""The storage modes of workers, and how many of four runs are in each."""
KINDS = (
    Kind("kill a worker", 3, ((0, 0),), lambda lab, worker, _: cluster.kill(lab, worker)),
    # Less than AWS's two minutes, which are longer than the jobs: so the tasks have to be handed back.
    Kind("spot interruption", 3, ((16, 24),), faults.interrupt),
    Kind("partition a worker", 4, ((2, 20), (22, 45)), faults.partition),
    Kind("partition a worker for long", 1, ((90, 120),), faults.partition),
    Kind("stop a worker", 2, ((2, 10), (31, 40)), faults.freeze),
    Kind("restart RabbitMQ", 2, ((0, 0),), lambda lab, _, __: faults.restart(lab, "rabbitmq")),
    Kind("kill RabbitMQ", 2, ((0, 4),), lambda lab, _, seconds: faults.crash(lab, "rabbitmq", seconds)),
    Kind("restart DbServer", 1, ((0, 0),), lambda lab, _, __: faults.restart(lab, "dbserver")),
    Kind("kill DbServer", 1, ((0, 4),), lambda lab, _, seconds: faults.crash(lab, "dbserver", seconds)),
    Kind("scale in", 2, ((0, 0),), lambda lab, _, __: fleet.scale(lab, WORKERS - 1)),
    Kind("scale out", 2, ((0, 0),), lambda lab, _, __: fleet.scale(lab, WORKERS + 1)),
    Kind(
        "a worker loses its shared directory",
        2,
        ((1, 10),),
        faults.cover_shared,
        r"turned down by a worker|No such file|File not found|Read-only",
    ),
    Kind("full disk under RabbitMQ", 2, ((2, 20),), faults.fill_rabbitmq),
    Kind("AWS throttles all requests", 2, ((10, 40), (60, 120)), faults.throttle),
)
RARE = 0.2
"""The share of rare lengths."""
ALONE = ("spot interruption", "scale in", "scale out")
"""The group is changed by one of these at a time."""


def draw(seed: int) -> Case:
    """The run of a seed."""
    chance = random.Random(f"lab {seed}")  # noqa: S311 - the seed has to decide
    drawn: list[Fault] = []
    for _ in range(chance.choice((1, 1, 2, 2, 3))):
        kinds = [
            kind for kind in KINDS if not any(kind.name in ALONE and one.kind.name in ALONE for one in drawn)
        ]
        kind = chance.choices(kinds, [kind.share for kind in kinds])[0]
        seconds = kind.seconds[-1 if chance.random() < RARE else 0]
        drawn.append(Fault(kind, chance.choice((0.0, 0.0, chance.uniform(0, 0.9))), chance.uniform(*seconds)))
    return Case(seed, chance.choice(JOBS), tuple(drawn))


def explore(
    paths: Paths,
    stack: str,
    settings: Sequence[str],
    storages: Sequence[str],
    seeds: Sequence[int],
    document: Path,
    say: Say,
) -> list[Result]:
    """The runs of some seeds, one after the other, on a cluster per storage mode that is made for it.

    Args:
        document: the file with the figures, which has them as soon as the runs of a storage mode are done
    """
    build.refuse_second(paths)
    results: list[Result] = []
    begin = time.monotonic()
    shares = {storage: STORAGES[storage] for storage in storages}
    first = 0
    for storage, share in shares.items():
        last = first + round(len(seeds) * share / sum(shares.values()))
        asked = [*settings, f"workerStorage={storage}", f"workerDesired={WORKERS}"]
        plan = make_plan(record(read_config(stack, asked)))
        try:
            lab = build.up(paths, plan, say)
            cluster.wait_until_ready(lab, say)
            later: set[str] = set()
            for result in run_cases(lab, [draw(seed) for seed in seeds[first:last]], later, say):
                results.append(result)
                say(str(result))
            if left := _last_look(lab, later):
                # Whose they are is in the log; the last run stands for all.
                trouble = f"{results[-1].trouble} left in the end: {' '.join(left)}".lstrip()
                results[-1] = replace(results[-1], trouble=trouble, excused=False)
                say(str(results[-1]))
        finally:
            build.down(paths)
        first = last
        versions = {"workers": " and ".join(shares), "cores": str(len(cores()))} | ledger.machine()
        tier = ledger.sum_up([result.entry() for result in results], versions, time.monotonic() - begin)
        ledger.record(document, "lab", tier)
    return results


def run_cases(lab: Lab, asked: Sequence[Case], later: set[str], say: Say) -> Iterator[Result]:
    """Run cases on a lab whose workers are all ready; they are so again after each.

    Args:
        later: gets the directories of jobs that have ended, which the workers have to remove in time.
    """
    undisturbed: dict[str, tuple[Path, Run, int]] = {}
    for case in asked:
        name = case.job.name
        if name not in undisturbed:
            job_ini = fetch_job(lab, case.job)
            run = run_job(lab, job_ini, None, show=False, limit=JOB_SECONDS)
            tasks = sum(number for number, _ in work_done(lab, run).values())
            undisturbed[name] = job_ini, run, tasks
            say(f"{name}, undisturbed: {run.seconds:.1f} s, {tasks} tasks")
        yield run_case(lab, case, *undisturbed[name], later)
        fleet.scale(lab, WORKERS)
        cluster.wait_until_ready(lab, lambda _: None, timeout=READY_SECONDS)
        wait_until(f"all workers to answer after seed {case.seed}", lambda: _all_answer(lab), ANSWER_SECONDS)


def run_case(lab: Lab, case: Case, job_ini: Path, undisturbed: Run, tasks: int, later: set[str]) -> Result:
    """One run with its faults, compared with the undisturbed run of so many tasks; `later` is that of `run_cases`."""
    begin = time.time()
    trouble = ""
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, lab, job_ini, None, show=False, limit=JOB_SECONDS)
        moments = [pool.submit(_strike, lab, begin, job, fault, tasks) for fault in case.faults]
        _replace_the_last(lab, case, moments)
        struck = tuple(fault for fault in (moment.result() for moment in moments) if fault)
        try:
            run = job.result()
            seconds = run.seconds
        except LabError as error:
            trouble = f"failed: {last_words(str(error))}"
            seconds = time.time() - begin
    if trouble:
        excused = any(fault.kind.excuses and re.search(fault.kind.excuses, trouble) for fault in struck)
        return Result(case, seconds, struck, trouble, excused)
    difference = compare(lab, undisturbed, run)
    if difference.absolute:
        trouble = f"differs by {difference.absolute:.1e}, {difference.relative:.1e} relative"
    elif left := _left(lab, later, struck):
        trouble = f"left: {' '.join(left)}"
    return Result(case, seconds, struck, trouble)


def _replace_the_last(lab: Lab, case: Case, moments: Sequence[Future[Fault | None]]) -> None:
    """Until all faults have come to their moment, start workers where none lives, as the group does by itself.

    Such a moment may be one in which a task runs, which takes a worker. Faults that change the group do so first.
    """
    changes = [moment for fault, moment in zip(case.faults, moments, strict=True) if fault.kind.name in ALONE]
    waiting = {*moments}
    while True:
        waiting = wait(waiting, timeout=1).not_done
        if all(moment.done() for moment in changes) and not any(
            _lives(lab, node.name) for node in lab.staying()
        ):
            fleet.scale(lab, WORKERS)
        if not waiting:
            return


def _strike(lab: Lab, begin: float, job: Future[Run], fault: Fault, tasks: int) -> Fault | None:
    """Wait for a fault's moment and do it; the fault, or None when job or worker had ended before."""
    worker = _wait_for_moment(lab, begin, job, fault.share * tasks)
    if worker is None:
        return None
    try:
        fault.kind.strike(lab, worker, fault.seconds)
    except LabError:
        if _lives(lab, worker):
            raise
        return None
    return fault


def _lives(lab: Lab, worker: str) -> bool:
    return worker in lab.nodes and lab.machine(worker).init() is not None


def _left(lab: Lab, later: set[str], struck: Sequence[Fault]) -> list[str]:
    """Queues of jobs that have ended, and files of one that no fault has struck, after a while."""
    master = lab.machine(lab.master().name)
    end = time.monotonic() + LEFT_SECONDS
    while True:
        listed = master.execute(["rabbitmqctl", "--quiet", "list_queues", "-p", facts.AMQP_VHOST, "name"])
        queues = [name for name in listed.stdout.split() if name.startswith("oq.")]
        files = _directories(lab) - later
        if not queues and not files:
            return []
        if time.monotonic() > end:
            later |= files
            return queues if struck else [*queues, *sorted(files)]
        time.sleep(POLL_SECONDS)


def _directories(lab: Lab) -> set[str]:
    """Those of jobs in the shared file system."""
    listed = lab.machine(lab.master().name).execute(["ls", f"{facts.SHARED_DIR}/oq_celery"])
    return set(listed.stdout.split())


def _last_look(lab: Lab, later: set[str]) -> list[str]:
    """What the workers have not removed of what was to go."""
    with contextlib.suppress(LabError):
        wait_until("files to go", lambda: not later & _directories(lab), FILES_SECONDS)
    return sorted(later & _directories(lab))


def last_words(log: str) -> str:
    """The last line of a job's log."""
    return re.sub(r"\s+", " ", log.strip().splitlines()[-1])[:200]


def _wait_for_moment(lab: Lab, since: float, job: Future[Run], done: float) -> str | None:
    """The worker that runs a task when so many tasks are done; None when the job has ended before."""
    while not job.done():
        progress = {node.name: _progress(lab, node.name, since) for node in lab.staying()}
        busy = [name for name, (received, finished) in progress.items() if received > finished]
        if busy and sum(finished for _, finished in progress.values()) >= done:
            return busy[0]
        time.sleep(POLL_SECONDS)
    return None


def _all_answer(lab: Lab) -> bool:
    """Whether as many workers as there should be answer through RabbitMQ: Celery's own word, not systemd's."""
    answer = lab.machine(lab.master().name).execute(["oq-celery", "status", "--json"])
    return answer.returncode == 0 and len(json.loads(answer.stdout)["workers"]) == WORKERS


def is_busy(lab: Lab, worker: str, since: float) -> bool:
    """Whether a worker runs a task that it has received since then."""
    received, finished = _progress(lab, worker, since)
    return received > finished


def _progress(lab: Lab, worker: str, since: float) -> tuple[int, int]:
    """How many tasks Celery says that it has received and done; none of a worker that another fault has struck.

    One that has ended has no journal, and in one that is frozen nothing ends that has just begun to read it.
    """
    command = ["journalctl", "--output=cat", "--unit", facts.CELERY_UNIT, "--since", f"@{since:.3f}"]
    try:
        log = lab.machine(worker).execute(command, timeout=FROZEN_SECONDS).stdout
    except subprocess.TimeoutExpired:
        return 0, 0
    except LabError:
        if _lives(lab, worker):
            raise
        return 0, 0
    return log.count("] received"), log.count("] succeeded")
