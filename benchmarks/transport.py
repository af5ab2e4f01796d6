"""Tasks per second and MB per second between a master and its workers."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from statistics import median

from benchmarks.modes import CORES, MODES, OURS, Mode, ready, running_broker
from benchmarks.report import Chart, Part, Table

TITLE = f"Through the transport, {CORES} worker processes"
MB = 2**20
IN_FLIGHT = 2 * CORES
"""Tasks that the engine sends ahead: twice the number of processes."""
NOTE = f"""\
Tasks that do nothing, and tasks that send their argument back (so each MB goes both ways and counts twice);
{IN_FLIGHT} in flight, as the engine does it, and with the engine's own bookkeeping of each task. Median of the
rounds; ratio: ours by zmq's, higher is better. Ours writes what is above 1 MB to the shared directory with a
checksum (here the local disk's cache) and hands an attempt over whole; zmq's hands it over in pieces and loses
it with its worker."""


def measure(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure all sizes in all modes, in turn."""
    sizes = [(0, 20), (MB, 4)] if quick else [(0, 500), (MB, 100), (20 * MB, 20)]
    rounds = 1 if quick else 3
    rates: dict[int, dict[str, list[float]]] = {size: {name: [] for name in MODES} for size, _ in sizes}
    try:
        with running_broker(directory) as broker:
            for number in range(rounds):
                for name in MODES:
                    round_directory = directory / f"round-{number}"
                    with ready(name, round_directory, broker) as mode:
                        for size, count in sizes:
                            rate = _rate(mode, size, count)
                            rates[size][name].append(rate)
                            say(
                                f"round {number + 1}, {name}, {count} times {_size(size)}: {rate:.0f} {_unit(size)}"
                            )
    finally:
        _report(
            part, {size: {name: _median(values) for name, values in by.items()} for size, by in rates.items()}
        )


def _rate(mode: Mode, size: int, count: int) -> float:
    """Tasks per second, or MB per second of tasks with so many bytes."""
    task = {"task": "echo", "size": size} if size else {"task": "nap", "seconds": 0}
    seconds = mode.starmap(count=count, in_flight=IN_FLIGHT, **task)["seconds"]
    return count / seconds * (2 * size / MB if size else 1)


def _median(values: list[float]) -> float:
    return median(values) if values else nan


def _report(part: Part, medians: dict[int, dict[str, float]]) -> None:
    rows = [
        [_size(size), _unit(size), *(f"{by[name]:.0f}" for name in MODES), f"{by[OURS] / by['zmq']:.2f}"]
        for size, by in medians.items()
    ]
    part.tables.append(Table("Rates", NOTE, ["payload", "unit", *MODES, "ratio"], rows))
    for size, group in ((0, [0]), (MB, [one for one in medians if one])):
        part.charts.append(
            Chart(
                f"Through the transport: {_unit(size)}",
                _unit(size),
                [_size(one) for one in group],
                {name: [medians[one][name] for one in group] for name in MODES},
            )
        )


def _size(size: int) -> str:
    return f"{size // MB} MB" if size else "no payload"


def _unit(size: int) -> str:
    return "MB/s" if size else "tasks/s"
