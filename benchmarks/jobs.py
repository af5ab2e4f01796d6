"""The same calculations by a processpool, by upstream's ZeroMQ workers and by ours."""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks.modes import CORES, MODES, OURS, Mode, running_broker
from benchmarks.report import Chart, Part, Table
from tests.transport.processes import ENGINE

TITLE = f"The same job, {CORES} processes"
DEMO = ENGINE / "demos/hazard/AreaSourceClassicalPSHA/job.ini"
FRESH, LATER, SECOND = "fresh workers", "next command", "second job of a command"
NOTE = f"""\
`{FRESH}`: from the start of `oq engine --run` to the end of the job; our workers have just started, the other
modes start theirs in the command. `{LATER}`: the same again; our workers are still there, the other modes end
theirs with every command. `{SECOND}`: from the end of the first job to the end of the second one of the same
`oq engine --run`: everybody's workers are warm. Seconds, median of the rounds (lowest-highest), modes in turn
in every round; ratio: ours by the better of the other two, lower is better."""
NOTE_AGAIN = "As above; rounds: {rounds}."


@dataclass(frozen=True)
class Calculation:
    """A job: the engine's demo with other parameters."""

    name: str
    rounds: int
    parameters: str = ""  # of oq engine --param
    later: bool = False  # measure the next command, too


SHORT = Calculation("short: AreaSourceClassicalPSHA", 3, later=True)
# Area sources of 60 times as many points: a minute and more on two cores.
LONG_PARAMETERS = "area_source_discretization=1.3"
LONG = Calculation(f"long: the same with {LONG_PARAMETERS}", 1, LONG_PARAMETERS)
QUICK = Calculation(
    "coarse: the same, area_source_discretization=40", 1, "area_source_discretization=40", True
)


def measure(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Measure all calculations."""
    with running_broker(directory) as broker:
        modes = [Mode(name, directory, broker) for name in MODES]
        try:
            say("once without measuring, so that numba has compiled everything")
            _run(modes[0], QUICK, 1)
            for calculation in [QUICK] if quick else [SHORT, LONG]:
                _measure(part, modes, calculation, say)
        finally:
            for mode in modes:
                mode.end()


def _measure(part: Part, modes: list[Mode], calculation: Calculation, say: Callable[[str], None]) -> None:
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(calculation.rounds):
        for mode in modes:
            if mode.name == OURS:  # the engine starts and ends ZeroMQ workers itself
                mode.start_workers()
            fresh, second = _run(mode, calculation, 2)
            measured = {FRESH: fresh, SECOND: second}
            if calculation.later:
                (measured[LATER],) = _run(mode, calculation, 1)
            mode.stop_workers()
            for what, value in measured.items():
                seconds[what][mode.name].append(value)
            text = ", ".join(f"{what} {value:.1f} s" for what, value in measured.items())
            say(f"{calculation.name}, round {number + 1} of {calculation.rounds}, {mode.name}: {text}")
    medians = {what: {name: median(values) for name, values in by.items()} for what, by in seconds.items()}
    rows = [
        [what, *(_text(seconds[what][name]) for name in MODES), f"{_ratio(medians[what]):.3f}"]
        for what in (FRESH, LATER, SECOND)
        if what in seconds
    ]
    again = NOTE_AGAIN.format(rounds=calculation.rounds)
    part.tables.append(Table(calculation.name, again if part.tables else NOTE, ["", *MODES, "ratio"], rows))
    part.charts.append(
        Chart(
            f"The same job, {calculation.name.partition(':')[0]}",
            "seconds",
            list(medians),
            {name: [medians[what][name] for what in medians] for name in MODES},
        )
    )


def _text(values: list[float]) -> str:
    spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
    return f"{median(values):.1f}{spread}"


def _ratio(medians: dict[str, float]) -> float:
    return medians[OURS] / min(value for name, value in medians.items() if name != OURS)


def _run(mode: Mode, calculation: Calculation, jobs: int) -> list[float]:
    """Run the calculation so many times in one command; the seconds of each, the first with the command's start."""
    parameters = ["--param", calculation.parameters] if calculation.parameters else []
    begin = time.time()
    mode.execute(ENGINE / "bin/oq", "engine", "--multi", "--run", *[DEMO] * jobs, *parameters)
    with sqlite3.connect(mode.cluster.directory / "db.sqlite3") as database:
        query = "SELECT stop_time FROM job ORDER BY id DESC LIMIT ?"
        ends = [datetime.fromisoformat(end).timestamp() for (end,) in database.execute(query, [jobs])][::-1]
    return [end - start for start, end in zip([begin, *ends], ends, strict=False)]
