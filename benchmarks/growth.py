"""How the cost of the transport grows with the number of tasks in the queue and of worker processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.modes import CORES, OURS, Mode, ready, running_broker
from benchmarks.report import Chart, Part, Table
from tests.transport.rabbitmq import Broker

TITLE = "How cost grows"
COMPARED = ("zmq", OURS)
NAP_SECONDS = 0.5
NAPS = 8
"""Tasks for each worker process, one after another."""
QUEUED_NOTE = f"""\
Tasks that do nothing, all of them in the queue at once, {CORES} worker processes. Memory: the highest resident
size of the master's process, which holds the engine (of ours also in front of an empty queue), and of
RabbitMQ's."""
PROCESSES_NOTE = f"""\
{NAPS} tasks for each process that sleep {NAP_SECONDS} s, so {NAPS * NAP_SECONDS:.0f} s is what no transport can
beat; two tasks for each process in flight. All processes are on this machine's {CORES} cores, which therefore
do the work of all of them."""


def measure(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure both."""
    with running_broker(directory) as broker:
        _queued(part, directory / "queued", broker, say, [10, 100] if quick else [10, 100, 1000, 10000])
        _processes(part, directory / "processes", broker, say, [1, 2] if quick else [1, 2, 4, 8, 16, 32, 64])


def _queued(
    part: Part, directory: Path, broker: Broker, say: Callable[[str], None], counts: list[int]
) -> None:
    rows: dict[int, list[str]] = {count: [f"{count:,}"] for count in counts}
    per_task: dict[str, list[float]] = {name: [] for name in COMPARED}
    head = ["tasks", *(f"{name} {what}" for name in COMPARED for what in ("s", "ms/task", "master MB"))]
    try:
        for name in COMPARED:
            with ready(name, directory, broker) as mode:
                for count in counts:
                    seconds, master, peak = _run(mode, broker, count, count, 0.0)
                    per_task[name].append(1000 * seconds / count)
                    rows[count] += [f"{seconds:.2f}", f"{1000 * seconds / count:.2f}", f"{master:.0f}"]
                    rows[count] += [f"{peak:.0f}"] if name == OURS else []
                    say(
                        f"{name}, {count} tasks queued: {seconds:.2f} s, master {master:.0f} MB, "
                        f"RabbitMQ {peak:.0f} MB"
                    )
    finally:
        x = [f"{count:,}" for count in counts]
        part.add(
            Table("Queued tasks", QUEUED_NOTE, [*head, "RabbitMQ MB"], list(rows.values())),
            Chart("Cost of one of so many queued tasks", "ms/task", x, per_task, lines=True),
        )


def _processes(
    part: Part, directory: Path, broker: Broker, say: Callable[[str], None], numbers: list[int]
) -> None:
    rows = []
    took: dict[str, list[float]] = {name: [] for name in COMPARED}
    head = ["processes", "tasks", *(f"{name} {what}" for name in COMPARED for what in ("s", "master MB"))]
    try:
        for processes in numbers:
            rows.append([str(processes), str(NAPS * processes)])
            for name in COMPARED:
                with ready(name, directory, broker, processes) as mode:
                    seconds, master, peak = _run(mode, broker, NAPS * processes, 2 * processes, NAP_SECONDS)
                took[name].append(seconds)
                rows[-1] += [f"{seconds:.2f}", f"{master:.0f}"] + ([f"{peak:.0f}"] if name == OURS else [])
                say(
                    f"{name}, {processes} processes: {seconds:.2f} s, master {master:.0f} MB, "
                    f"RabbitMQ {peak:.0f} MB"
                )
    finally:
        series = {**took, "no transport": [NAPS * NAP_SECONDS] * len(rows)}
        x = [row[0] for row in rows]
        part.add(
            Table("Worker processes", PROCESSES_NOTE, [*head, "RabbitMQ MB"], rows),
            Chart("Sleeping tasks, by worker processes", "seconds", x, series, lines=True),
        )


def _run(
    mode: Mode, broker: Broker, count: int, in_flight: int, seconds: float
) -> tuple[float, float, float]:
    """Seconds, the master's and the broker's highest resident memory in MB."""
    # The runtime of Erlang is the process with the memory; writing 5 forgets its highest so far: proc(5).
    process = Path("/proc", broker.control("eval", "os:getpid().").strip().strip('"'))
    (process / "clear_refs").write_text("5")
    measured = mode.starmap(task="nap", count=count, in_flight=in_flight, seconds=seconds)
    status = (process / "status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    return measured["seconds"], measured["memory_mb"], peak
