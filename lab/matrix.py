"""``python -m lab faults``: jobs during which workers die, leave, are cut off or come, and services restart.

Each run has to end with the numbers of the same job on the same lab without a fault.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from components import facts
from lab import cluster, faults
from lab.cluster import Lab
from lab.host import LabError, Paths, cores, wait_until
from lab.job import CLASSICAL, DemoJob, Run, compare, fetch_job, run_job, work_done
from lab.plan import make_plan, read_config, record

Say = Callable[[str], None]
WORKERS = 2
JOB_SECONDS = 240
"""After that a run has failed: many times what the jobs take, and less than patience."""
READY_SECONDS = 300
"""After that a worker that was started in the place of another one has failed."""
ANSWER_SECONDS = 120
"""After that a worker that was cut off, or whose broker was, has not come back to it."""
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    :ivar strike: does it, given the worker that runs a task; returns when it is over
    """

    name: str
    strike: Callable[[Lab, str], None]


@dataclass(frozen=True)
class Case:
    """One run: the fault strikes when a task runs (`share` 0) or when that share of the tasks is done."""

    job: DemoJob
    fault: Fault
    share: float

    @property
    def moment(self) -> str:
        """In words."""
        return f"{self.share:.0%} of the tasks done" if self.share else "the first task runs"


@dataclass(frozen=True)
class Result:
    """How a run ended; no trouble means: with the numbers of the undisturbed run, to the bit."""

    case: Case
    storage: str
    seconds: float
    trouble: str = ""

    def row(self) -> tuple[str, ...]:
        """As a line of the table."""
        case = self.case
        equal = self.trouble or "yes"
        return case.job.name, case.fault.name, case.moment, self.storage, f"{self.seconds:.1f}", equal


JOBS = (
    CLASSICAL,
    DemoJob("event based", "demos/hazard/EventBasedPSHA", {"ses_per_logic_tree_path": "20"}),
    DemoJob("event based risk", "demos/risk/EventBasedRisk", {"investigation_time": "1000"}),
)
STORAGES = {"nfs": JOBS, "diskless": JOBS[:1]}
"""The storage modes of workers, and the jobs that run in each."""
FAULTS = (
    Fault("kill a worker", cluster.kill),
    # Less than AWS's two minutes, which are longer than the jobs: so the tasks have to be handed back.
    Fault("spot interruption, 20 s", lambda lab, worker: faults.interrupt(lab, worker, 20)),
    Fault("partition, 5 s", lambda lab, worker: faults.partition(lab, worker, 5)),
    Fault("partition, 30 s", lambda lab, worker: faults.partition(lab, worker, 30)),
    Fault("partition, 120 s", lambda lab, worker: faults.partition(lab, worker, 120)),
    Fault("restart RabbitMQ", lambda lab, _: faults.restart(lab, "rabbitmq")),
    Fault("restart DbServer", lambda lab, _: faults.restart(lab, "dbserver")),
    Fault("scale in to 1", lambda lab, _: cluster.scale(lab, WORKERS - 1)),
    Fault("scale out to 3", lambda lab, _: cluster.scale(lab, WORKERS + 1)),
)

PAGE = """# Faults in the middle of a calculation

Written by `make faults` (`python -m lab faults`), on the lab of [lab.md](lab.md), {cores} cores, two workers.

{equal} of {runs} runs ended with numbers equal to the bit to those of the same job on the same lab without a fault. The
matrix has {asked} runs; these took {minutes:.0f} minutes, boots included. The seconds are of `oq engine --run`.

Compared are all datasets of floating point numbers in the two datastores, apart from those that tell of the run and
not of the hazard (times, memory, how the work was cut into tasks). The engine is deterministic for these jobs. A
task of classical PSHA that took longer than `split_time` (10 s and more) would split itself by the clock; these do not.

A fault strikes the worker that runs a task, when the first task runs or when half of the tasks are done. The notice
of a spot interruption is shortened to 20 s, because these jobs end before two minutes are over; what is unfinished 15 s
before the end is handed back. Scaling in goes through the group's lifecycle hook and drains the worker.

| job | fault | when | workers' storage | seconds | equal to the bit |
|---|---|---|---|---:|---|
{rows}

What it does not show: the shared file system is not behind the link that a partition cuts, as EFS is on AWS.
"""


def cases(storage: str) -> list[Case]:
    """The runs of one storage mode: each of its jobs with each fault; the moments take turns."""
    shares = (0.0, 0.5)
    first = list(STORAGES).index(storage)
    return [
        Case(job, fault, shares[(first + job_number + fault_number) % 2])
        for (job_number, job), (fault_number, fault) in product(
            enumerate(STORAGES[storage]), enumerate(FAULTS)
        )
    ]


def run_matrix(
    paths: Paths, stack: str, settings: Sequence[str], storages: Sequence[str], document: Path, say: Say
) -> list[Result]:
    """All runs, one after the other, on a cluster per storage mode that is made for it and taken down after.

    :param document: the file with the table, which has each run as soon as it is done
    """
    cluster.refuse_second(paths)
    results: list[Result] = []
    begin = time.monotonic()
    for storage in storages:
        asked = [*settings, f"workerStorage={storage}", f"workerDesired={WORKERS}"]
        plan = make_plan(record(read_config(stack, asked)))
        try:
            lab = cluster.up(paths, plan, say)
            cluster.wait_until_ready(lab, say)
            for result in run_cases(lab, storage, cases(storage), say):
                results.append(result)
                say(" | ".join(result.row()))
                document.write_text(markdown(results, time.monotonic() - begin))
        finally:
            cluster.down(paths)
    return results


def markdown(results: Sequence[Result], seconds: float) -> str:
    """The page about the matrix."""
    rows = ["| " + " | ".join(result.row()) + " |" for result in results]
    equal = sum(not result.trouble for result in results)
    return PAGE.format(
        rows="\n".join(rows),
        runs=len(results),
        asked=sum(len(cases(storage)) for storage in STORAGES),
        equal=equal,
        minutes=seconds / 60,
        cores=len(cores()),
    )


def run_cases(lab: Lab, storage: str, asked: Sequence[Case], say: Say) -> Iterator[Result]:
    """Run cases on a lab whose workers are all ready; they are so again after each."""
    undisturbed: dict[str, tuple[Path, Run, int]] = {}
    for case in asked:
        name = case.job.name
        if name not in undisturbed:
            job_ini = fetch_job(lab, case.job)
            run = run_job(lab, job_ini, None, show=False, limit=JOB_SECONDS)
            tasks = sum(number for number, _ in work_done(lab, run).values())
            undisturbed[name] = job_ini, run, tasks
            say(f"{name}, undisturbed: {run.seconds:.1f} s, {tasks} tasks")
        yield run_case(lab, storage, case, *undisturbed[name])
        cluster.scale(lab, WORKERS)
        cluster.wait_until_ready(lab, lambda _: None, timeout=READY_SECONDS)
        wait_until(f"all workers to answer after {case.fault.name}", lambda: _all_answer(lab), ANSWER_SECONDS)


def run_case(lab: Lab, storage: str, case: Case, job_ini: Path, undisturbed: Run, tasks: int) -> Result:
    """One run with its fault, compared with the undisturbed run of so many tasks."""
    begin = time.time()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, lab, job_ini, None, show=False, limit=JOB_SECONDS)
        struck = None
        if worker := _wait_for_moment(lab, begin, job, case.share * tasks):
            struck = pool.submit(case.fault.strike, lab, worker)
        trouble = "" if struck else "the job ended before the fault"
        try:
            run = job.result()
            difference = compare(lab, undisturbed, run)
            if difference.absolute:
                trouble = f"differs by {difference.absolute:.1e}, {difference.relative:.1e} relative"
        except LabError as error:
            trouble = f"failed: {last_words(str(error))}"
        seconds = time.time() - begin if trouble else run.seconds
        if struck:
            struck.result()
    return Result(case, storage, seconds, trouble)


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
    """How many tasks Celery says that it has received and done."""
    command = ["journalctl", "--output=cat", "--unit", facts.CELERY_UNIT, "--since", f"@{since:.3f}"]
    log = lab.machine(worker).execute(command).stdout
    return log.count("] received"), log.count("] succeeded")
