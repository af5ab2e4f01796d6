"""At how many worker processes the master or the broker becomes the limit, and what the limit is then."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.jobs import DEMO
from benchmarks.modes import OURS, Mode, running_broker
from benchmarks.report import Chart, Part, Table
from tests.transport.processes import ENGINE, wait_until
from tests.transport.rabbitmq import Broker

TITLE = "A fleet of thousands"
TASKS = 6
"""For each process, one after another."""
PARAMETERS = "area_source_discretization=1.5,width_of_mfd_bin=0.1,concurrent_tasks=200"
QUICK_PARAMETERS = "area_source_discretization=20,concurrent_tasks=50"
READ = """
import ast, json, sys
from openquake.baselib import hdf5
with hdf5.File(sys.argv[1]) as h5:
    rows = [row for row in h5["task_info"][()] if row["taskname"] == b"classical"]
    sent = sum(ast.literal_eval(h5["task_sent"][()].decode())["classical"].values())
print(json.dumps([[[float(row["duration"]), int(row["received"])] for row in rows], sent / len(rows)]))
"""
"""The duration of each task in seconds and the bytes of its results, and the mean bytes of the arguments."""
BUSY = 90.0
"""Percent of their time that processes compute; the master or the broker is the limit where it is less."""
NOTE = """\
The master (the engine's, without what a calculation does with its results) and RabbitMQ are real, the workers are one
process that stands in for all of them: it takes tasks from the queue, sleeps as long as a real task of
AreaSourceClassicalPSHA ({parameters}) has computed, and answers with as many bytes, in the real protocol, with as many
connections. On average of the {count} tasks recorded: {seconds:.2f} s, {sent:.0f} KB of arguments, {received:.0f} KB of
results. {tasks} tasks for each process, two for each in flight. Wanted: tasks per second that keep all processes busy;
had: those in the middle half of the run. CPU: percent of one core. {knee}"""


@dataclass(frozen=True)
class Recorded:
    """The tasks of a real calculation."""

    tasks: list[tuple[float, int]]
    sent: float

    @property
    def seconds(self) -> float:
        """On average."""
        return mean(seconds for seconds, _ in self.tasks)


@dataclass(frozen=True)
class Measured:
    """A run on so many processes."""

    processes: int
    wanted: float
    rate: float
    cpu_ms: dict[str, float]
    memory_mb: float

    @property
    def busy(self) -> float:
        """Percent of their time that the processes compute."""
        return min(100.0, 100 * self.rate / self.wanted)

    def percent(self, who: str) -> float:
        """CPU of one of the programs, of one core."""
        return self.cpu_ms[who] * self.rate / 10


def measure(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure all sizes of the fleet."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # also of the broker: a connection for each process
    numbers = [8, 32] if quick else [8, 32, 128, 512, 1024, 2048, 4096]
    runs: list[Measured] = []
    with running_broker(directory) as broker:
        mode = Mode(OURS, directory, broker)
        try:
            recorded = _record(mode, QUICK_PARAMETERS if quick else PARAMETERS)
            say(f"{len(recorded.tasks)} tasks recorded, {recorded.seconds:.2f} s each")
            for processes in numbers:
                run = _run(mode, broker, recorded, processes)
                runs.append(run)
                say(_text(run))
        finally:
            mode.end()
            if runs:
                _report(part, recorded, runs)


def _record(mode: Mode, parameters: str) -> Recorded:
    """Run the calculation on real workers."""
    mode.start_workers()
    mode.execute(ENGINE / "bin/oq", "engine", "--run", DEMO, "--param", parameters)
    mode.stop_workers()
    (datastore,) = mode.cluster.data.glob("calc_*[0-9].hdf5")
    tasks, sent = json.loads(mode.execute(ENGINE / "bin/python", "-c", READ, datastore).splitlines()[-1])
    return Recorded([(seconds, size) for seconds, size in tasks], sent)


def _run(mode: Mode, broker: Broker, recorded: Recorded, processes: int) -> Measured:
    what = json.dumps({"processes": processes, "records": recorded.tasks})
    workers = mode.cluster.start("python", "-m", "standin", what)
    try:
        wait_until(lambda: "ready" in workers.output() or not workers.running(), "the stand-in to be ready")
        if not workers.running():
            raise RuntimeError(workers.output()[-3000:])
        before = _cpu(workers.pid), _cpu(broker.pid)
        count = TASKS * processes
        code = "import starmaps; starmaps.replay_main()"
        arguments = json.dumps({"count": count, "in_flight": 2 * processes, "size": int(recorded.sent)})
        found = json.loads(mode.execute(ENGINE / "bin/python", "-c", code, arguments).splitlines()[-1])
        after = _cpu(workers.pid), _cpu(broker.pid)
    finally:
        workers.kill()
        workers.log.unlink()
    stand_in, rabbitmq = (1000 * (end - begin) / count for begin, end in zip(before, after, strict=True))
    cpu = {"master": found["cpu_ms"], "RabbitMQ": rabbitmq, "stand-in": stand_in}
    return Measured(processes, processes / recorded.seconds, found["rate"], cpu, found["memory_mb"])


def _report(part: Part, recorded: Recorded, runs: list[Measured]) -> None:
    note = NOTE.format(
        parameters=PARAMETERS,
        count=len(recorded.tasks),
        seconds=recorded.seconds,
        received=mean(size for _, size in recorded.tasks) / 1024,
        sent=recorded.sent / 1024,
        tasks=TASKS,
        knee=_knee(runs),
    )
    rows = [
        [
            f"{run.processes:,}",
            f"{run.wanted:.0f}",
            f"{run.rate:.0f}",
            f"{run.busy:.0f} %",
            *(f"{run.percent(who):.0f} %" for who in run.cpu_ms),
            *(f"{run.cpu_ms[who]:.2f}" for who in ("master", "RabbitMQ")),
            f"{run.memory_mb:.0f}",
        ]
        for run in runs
    ]
    programs = list(runs[0].cpu_ms)
    head = [
        "processes",
        "wanted tasks/s",
        "had",
        "busy",
        *programs,
        "master ms/task",
        "RabbitMQ ms/task",
        "master MB",
    ]
    x = [f"{run.processes:,}" for run in runs]
    series = {"processes busy": [run.busy for run in runs]}
    series |= {f"CPU of {who}": [run.percent(who) for run in runs] for who in programs}
    part.add(Table("Worker processes", note, head, rows), Chart(TITLE, "percent", x, series, lines=True))


def _knee(runs: list[Measured]) -> str:
    """The limit in words."""
    for run in runs:
        if run.busy < BUSY:
            most = max(run.cpu_ms, key=run.percent)
            before = runs[max(0, runs.index(run) - 1)].processes
            return (
                f"Up to {before:,} processes at least {BUSY:.0f} % of their time is used; "
                f"at {run.processes:,} the limit is {most}, with {run.percent(most):.0f} % of a core."
            )
    return f"None is the limit up to {runs[-1].processes:,} processes."


def _text(run: Measured) -> str:
    cpu = ", ".join(f"{who} {run.percent(who):.0f} %" for who in run.cpu_ms)
    return f"{run.processes} processes: {run.rate:.0f} of {run.wanted:.0f} tasks/s, busy {run.busy:.0f} %; CPU: {cpu}"


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
