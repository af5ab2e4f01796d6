"""Runs: a plan is done to a world, and a checker looks at what came of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from explorer import baseline, checker
from explorer.baseline import Baselines
from explorer.checker import Left, Seen, Struck
from explorer.injector import Scene, strike
from explorer.ledger import ENDINGS, Entry
from explorer.schedule import Fault, Plan
from explorer.workload import EngineJob, Job, Workload
from explorer.world import ForkServer, World
from tests.transport import processes, rabbitmq
from tests.transport.forks import Child

POLL_SECONDS: Final = 0.02
# Without any event for so long after the last fault, and for the longest task beyond it, a job hangs.
PATIENCE: Final = 120.0
STARTS: Final = 3
PROCESS_SECONDS: Final = 30.0  # for a process to end after its master, on a busy machine


@dataclass
class Outcome:
    """How a run went.

    Attributes:
        plan: of the run.
        seconds: from its start to its verdict.
        struck: the faults that were done.
        endings: of each job: "equal" or what ended it.
        wrong: what should not be so, in words; empty for a good run.
    """

    plan: Plan
    seconds: float
    struck: list[Struck]
    endings: list[str]
    wrong: list[str] = field(default_factory=list)

    def entry(self) -> Entry:
        """For the ledger."""
        faults = tuple(one.fault.kind for one in self.struck if one.hit)
        ending = "wrong" if self.wrong else max((_ENDING[one.split()[0]] for one in self.endings), key=_rank)
        return Entry(
            self.plan.seed, tuple(job.profile for job in self.plan.jobs), faults, ending, tuple(self.wrong)
        )

    def __str__(self) -> str:
        jobs = ", ".join(
            f"{job.profile} {ending}" for job, ending in zip(self.plan.jobs, self.endings, strict=True)
        )
        faults = "; ".join(f"{one.fault}{'' if one.hit else ' [missed]'}" for one in self.struck)
        verdict = "".join(f"\n    WRONG  {line}" for line in self.wrong)
        return f"seed {self.plan.seed}: {self.seconds:.1f} s: {jobs}: {faults or 'no fault'}{verdict}"


_ENDING: Final = {
    "equal": "equal",
    "failed": "failed",
    "interrupted": "ended",
    "killed": "ended",
    "hangs": "wrong",
}


def _rank(ending: str) -> int:
    return list(ENDINGS).index(ending)


class History:
    """The events of a job, read as they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self._read = 0
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [json.loads(line) for line in lines]
        self.events += found
        return found


class Run:
    """One run of a plan in a world."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        directory: Path,
        baselines: Baselines,
    ) -> None:
        self._world = world
        self._baselines = baselines
        self._plan = plan
        self._patience = PATIENCE + max(job.seconds() for job in plan.jobs)
        self._directories = [directory / f"job-{number}" for number in range(len(plan.jobs))]
        self._histories = [History(path / "history.jsonl") for path in self._directories]
        self._struck: list[Struck] = []
        self._threads: list[threading.Thread] = []

    def do(self) -> Outcome:
        """Run it to its verdict."""
        begin = time.monotonic()
        for path in self._directories:
            path.mkdir(parents=True)
        masters = [self._start(number, job) for number, job in enumerate(self._plan.jobs)]
        self._explore(masters)
        for thread in self._threads:
            thread.join()
        hung = [master for master in masters if master.running()]
        for master in hung:
            master.signal(signal.SIGUSR1)  # its threads' stacks go to its log
            time.sleep(1)
            master.signal_all(signal.SIGKILL)
            master.over.wait(10)
        for history in self._histories:
            history.new()
        seen = [
            Seen(history.events, None if master in hung else master.status, master.ended)
            for history, master in zip(self._histories, masters, strict=True)
        ]
        wrong = [f"{one.fault} went wrong itself: {one.detail}" for one in self._struck if one.detail]
        wrong += [
            line
            for job, one in zip(self._plan.jobs, seen, strict=True)
            for line in checker.check_job(job, one, self._struck)
        ]
        left = self._left(seen, masters)
        wrong += checker.check_left(left)
        for number, job in enumerate(self._plan.jobs):
            if isinstance(job, EngineJob) and seen[number].of("done"):
                log = (self._directories[number] / "log").read_text()
                wrong += self._baselines.differences(self._world, job.profile, log)
        endings = [_ending(one) for one in seen]
        return Outcome(self._plan, time.monotonic() - begin, self._struck, endings, wrong)

    def _start(self, number: int, job: Job) -> Child:
        """Start the master of a job."""
        log, history = self._directories[number] / "log", str(self._histories[number].path)
        if isinstance(job, Workload):
            return self._world.start_master(
                number, "master", log, seed=job.seed, profile=job.profile, history=history
            )
        self._world.start_database()
        folder = self._directories[number] / "job"
        ini = shutil.copytree(baseline.source(job.profile).parent, folder) / baseline.source(job.profile).name
        return self._world.start_master(
            number, "engine", log, arguments=baseline.arguments(ini), history=history
        )

    def _explore(self, masters: list[Child]) -> None:
        """Let the faults strike at their moments, until the jobs have ended or hang."""
        start = quiet = time.monotonic()
        waiting = list(self._plan.faults)
        due: list[tuple[float, Fault, int]] = []
        counts: Counter[str] = Counter()
        for fault in [fault for fault in waiting if fault.trigger.event == "started"]:
            waiting.remove(fault)
            due.append((start + 3 * fault.trigger.after, fault, 0))
        scene = self._scene(masters)
        while any(master.running() for master in masters):
            for event in [event for history in self._histories for event in history.new()]:
                quiet = max(quiet, event["t"])
                counts[event["event"]] += 1
                here = event["event"], counts[event["event"]]
                for fault in [one for one in waiting if (one.trigger.event, one.trigger.number) == here]:
                    waiting.remove(fault)
                    due.append((time.monotonic() + fault.trigger.after, fault, event["pid"]))
            now = time.monotonic()
            for moment in [moment for moment in due if moment[0] <= now]:
                due.remove(moment)
                thread = threading.Thread(
                    target=self._strike, args=(scene(moment[2]), moment[1]), daemon=True
                )
                thread.start()
                self._threads.append(thread)
            if any(thread.is_alive() for thread in self._threads):
                quiet = now
            if now - quiet > self._patience:
                return
            time.sleep(POLL_SECONDS)

    def _scene(self, masters: list[Child]) -> Callable[[int], Scene]:
        def channels(job: int) -> list[str]:
            return [event["name"] for event in self._histories[job].events if event["event"] == "channel"]

        return lambda pid: Scene(self._world, masters, channels, pid)

    def _strike(self, scene: Scene, fault: Fault) -> None:
        self._struck.append(strike(scene, fault))

    def _orphans(self, names: set[str]) -> set[str]:
        """Of these channels, those of which a directory tells the workers that a queue is to be deleted."""
        return {
            name for name in names & set(self._world.broker.queues()) if (self._world.spool / name).exists()
        }

    def _remaining(self, masters: list[Child]) -> list[str]:
        """The processes that masters have started and that did not end with them; one that ends now has its time."""
        sessions = {master.pid for master in masters}
        end = time.monotonic() + PROCESS_SECONDS
        while (found := list(_of_sessions(sessions))) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return found

    def _left(self, seen: list[Seen], masters: list[Child]) -> Left:
        """Wait for what should go, and look for what stays."""
        left = Left(worker_trouble=self._world.settle(), processes=self._remaining(masters))
        killed = {
            event["name"]
            for one in seen
            if one.status is None or one.status < 0
            for event in one.of("channel")
        }
        mine = {event["name"] for one in seen for event in one.of("channel")}
        end = time.monotonic() + checker.KILLED_SECONDS
        while time.monotonic() < end and self._orphans(mine):
            time.sleep(0.2)
        if not self._world.drained():
            left.waiting = self._world.undone() or 0
        for one in seen:
            for event in one.of("channel"):
                name = event["name"]
                directory = self._world.spool / name
                # What is still computed at the end of a job may make its directory again, until the workers remove it.
                if directory.exists() and (one.status != 0 or self._struck):
                    self._world.later.append(directory)
                elif directory.exists():
                    left.files.append(f"{name} with {[path.name for path in directory.iterdir()][:5]}")
                if name in self._world.broker.queues():
                    # Of a master that was killed, a queue of which no file or task tells the workers stays for an hour.
                    if name not in killed or directory.exists():
                        left.queues.append(name)
                    self._world.forget_queue(name)
        return left


def _of_sessions(sessions: set[int]) -> Iterator[str]:
    """The processes of these sessions that have not ended, in words."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, rest = (entry / "stat").read_text().rpartition(")")
            state, _, _, session = rest.split()[:4]  # see proc_pid_stat(5)
            if int(session) in sessions and state != "Z":
                yield f"{name})"


def _ending(seen: Seen) -> str:
    if seen.status is None:
        return "hangs"
    if seen.of("done"):
        return "equal"
    if errors := seen.of("error"):
        if errors[-1]["type"] in checker.INTERRUPTED:
            return "interrupted"
        return f"failed ({errors[-1]['type']})"
    return "killed"


def explore(
    directory: Path,
    plans: list[Plan],
    worlds: int,
    keep: Path,
    say: Callable[[Outcome], None],
    *,
    last_look: bool = True,
) -> tuple[list[Outcome], list[str]]:
    """Run plans, in so many worlds side by side.

    Args:
        directory: for the worlds; removed afterwards.
        plans: to run.
        worlds: each has a RabbitMQ and workers of its own.
        keep: where the logs of runs with something wrong go.
        say: is told of every run.
        last_look: whether to wait until what lost masters have left has gone: two and a half minutes at most.

    Returns:
        How the runs went, and what is left of lost masters in the end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []
    left: list[str] = []
    todo = iter(plans)
    lock = threading.Lock()
    fork_servers = {kind: ForkServer(kind, directory) for kind in ("worker", "master")}
    living: dict[int, World] = {}
    baselines = Baselines(directory / "baselines")

    def work(number: int) -> None:
        generation = turn = 0
        try:
            while not errors:
                with lock:
                    plan = next(todo, None)
                if plan is None:
                    break
                if number not in living:
                    generation += 1
                    living[number] = _world(directory / f"world-{number}-{generation}", fork_servers)
                turn += 1
                runs = living[number].directory / "runs" / f"{turn}-{plan.seed}"
                outcome = Run(living[number], plan, runs, baselines).do()
                with lock:
                    outcomes.append(outcome)
                    say(outcome)
                if outcome.wrong:  # a new world, for the next run is not to suffer from it
                    _keep(living[number], runs, keep / f"seed-{plan.seed}", outcome)
                    living.pop(number).remove()
                else:
                    # What was cut off in it may write its last line just now.
                    shutil.rmtree(runs, ignore_errors=True)
            if last_look and number in living:
                left.extend(living[number].last_look())
        except BaseException as error:
            errors.append(error)

    try:
        for fork_server in fork_servers.values():
            fork_server.wait_ready(processes.DEADLINE)
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(worlds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C
        errors.append(error)
        raise
    finally:
        World.remove_all()
        for fork_server in fork_servers.values():
            fork_server.close()
    if errors:
        raise errors[0]
    return outcomes, left


def _world(directory: Path, fork_servers: dict[str, ForkServer]) -> World:
    """A new world; on a machine that is too busy the first attempts may run into a deadline."""
    for attempt in range(STARTS - 1):
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            return World(directory.with_name(f"{directory.name}.{attempt}"), fork_servers)
    return World(directory, fork_servers)


def _keep(world: World, runs: Path, place: Path, outcome: Outcome) -> None:
    """Keep what tells of a run."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(runs, place)
    (place / "outcome").write_text(f"{outcome}\n")
    for worker in world.workers:
        shutil.copy(worker.log, place)
    server = world.directory / "broker/server.log"
    if server.exists():
        shutil.copy(server, place)


def missing() -> list[str]:
    """What is missing on this machine, in words with the remedy."""
    return [
        f"{what} is missing ({remedy})"
        for what, path, remedy in (
            ("RabbitMQ", rabbitmq.RABBITMQ, "apt-get install rabbitmq-server"),
            ("the engine's environment", processes.ENGINE / "bin/oq-celery", "make .venv-engine/.done"),
        )
        if not path.exists()
    ]


def rabbitmq_version() -> str:
    """The version of the RabbitMQ that is run."""
    asked = ["dpkg-query", "--show", "--showformat=${Version}", "rabbitmq-server"]
    return subprocess.run(asked, check=False, capture_output=True, text=True).stdout or "unknown"
