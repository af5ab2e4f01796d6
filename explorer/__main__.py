"""The command line of the explorer: `make faults`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from explorer import ledger, runs, schedule
from explorer.runs import Outcome
from explorer.schedule import Fault, Plan
from tests.transport import isolation, processes

REPLAYS = 3
"""Of a run with something wrong: what depends on the moment does not come every time."""


def main() -> int:
    """Explore, print and write; 1 when something was wrong."""
    arguments = _parser().parse_args()
    if missing := runs.missing():
        print("; ".join(missing), file=sys.stderr)
        return 2
    if not isolation.inside():
        if not (reason := isolation.why_not()):
            return isolation.run_again("explorer", sys.argv[1:])
        print(f"not in namespaces of its own ({reason}): another run at the same time may disturb it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends what runs, as Ctrl-C does
    first = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    root = os.geteuid() == 0  # others' faults would be others, such as a full disk that is the user's own
    plans = [schedule.draw(first + number, arguments.kind, root) for number in range(arguments.runs)]
    if arguments.faults is not None:
        plans = [_with(plan, [plan.faults[number] for number in arguments.faults]) for plan in plans]
    print(f"seeds {first} to {first + arguments.runs - 1}", flush=True)
    versions = _versions() if arguments.record else {}
    begin = time.monotonic()
    heard: list[Outcome] = []

    def say(outcome: Outcome) -> None:
        heard.append(outcome)
        print(f"{time.strftime('%H:%M:%S')}  {outcome}", flush=True)
        if arguments.record:  # now: an exploration that is stopped keeps what it has found
            tier = ledger.sum_up([one.entry() for one in heard], versions, time.monotonic() - begin)
            ledger.record(arguments.record, "transport", tier)

    with tempfile.TemporaryDirectory(prefix="oqlab-explorer-", ignore_cleanup_errors=True) as directory:
        outcomes, left = runs.explore(Path(directory), plans, arguments.worlds, arguments.keep, say)
        bad = [outcome for outcome in outcomes if outcome.wrong]
        seconds = time.monotonic() - begin
        print(f"{len(outcomes)} runs in {seconds:.0f} s, {len(bad)} with something wrong", flush=True)
        for number, outcome in enumerate(bad):
            print(f"make faults SEED={outcome.plan.seed}: {outcome.wrong[0]}", flush=True)
            if arguments.shrink:
                _shrink(outcome.plan, Path(directory) / f"shrink-{number}", arguments.keep)
    for name in left:
        print(f"left by a lost master: {name}", flush=True)
    return 1 if bad or left else 0


def _with(plan: Plan, faults: Sequence[Fault]) -> Plan:
    return dataclasses.replace(plan, faults=tuple(faults))


def _shrink(plan: Plan, directory: Path, keep: Path) -> None:
    """Find the fewest faults of a run with which something is still wrong, and print how to repeat it."""
    tries = 0

    def fails(numbers: Sequence[int]) -> bool:
        nonlocal tries
        tries += 1
        again = [_with(plan, [plan.faults[number] for number in numbers])] * REPLAYS
        outcomes, _ = runs.explore(
            directory / str(tries), again, REPLAYS, keep, lambda _: None, last_look=False
        )
        wrong = [outcome for outcome in outcomes if outcome.wrong]
        print(f"    faults {','.join(map(str, numbers))}: {len(wrong)} of {REPLAYS} wrong", flush=True)
        return bool(wrong)

    everything = range(len(plan.faults))
    if fails(everything):
        least = schedule.shrink(everything, fails)
        print(f"    make faults SEED={plan.seed} FAULTS={','.join(map(str, least))}", flush=True)


def _versions() -> dict[str, str]:
    """Of what was run."""
    names = {"engine": "openquake.baselib", "oq_celery": "oq_celery"}
    code = "import importlib; print(*(importlib.import_module(name).__version__ for name in {!r}))"
    asked = [str(processes.ENGINE / "bin/python"), "-c", code.format(list(names.values()))]
    found = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(names, found, strict=True)) | {"RabbitMQ": runs.rabbitmq_version()} | ledger.machine()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m explorer",
        description="Run jobs whose results are known on a cluster that breaks as a seed decides.",
        epilog="Kinds of faults: " + "; ".join(schedule.KINDS),
    )
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="how many seeds (default: 20)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="the first one (default: a fresh one)")
    parser.add_argument("--faults", type=_numbers, metavar="I,J", help="only these faults of a run, from 0")
    parser.add_argument(
        "--kind",
        action="append",
        choices=schedule.KINDS,
        default=[],
        metavar="KIND",
        help="only this kind; repeatable",
    )
    parser.add_argument(
        "--worlds", type=int, default=3, metavar="N", help="so many runs side by side (default: 3)"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="find the fewest faults of each run that goes wrong"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("out/explorer"),
        metavar="DIR",
        help="for the logs of what goes wrong",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="for the figures: docs/faults.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
