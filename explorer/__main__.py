"""The command line of the explorer: `make faults`."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from explorer import runs, schedule
from explorer.runs import Outcome


def main() -> int:
    """Explore, print and write; 1 when something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m explorer",
        description="Run jobs whose results are known on a cluster that breaks as a seed decides.",
        epilog="Kinds of faults: " + "; ".join(schedule.KINDS),
    )
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="how many seeds (default: 20)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="the first one (default: a fresh one)")
    parser.add_argument(
        "--kind",
        action="append",
        choices=schedule.KINDS,
        default=[],
        metavar="KIND",
        help="only this kind; repeatable",
    )
    parser.add_argument(
        "--worlds", type=int, default=2, metavar="N", help="so many side by side (default: 2)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("out/explorer"),
        metavar="DIR",
        help="for the logs of what goes wrong",
    )
    arguments = parser.parse_args()
    if missing := runs.installed():
        print("; ".join(missing), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    first = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    print(f"seeds {first} to {first + arguments.runs - 1}", flush=True)
    plans = [schedule.draw(first + number, arguments.kind) for number in range(arguments.runs)]
    begin = time.monotonic()

    def say(outcome: Outcome) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {outcome}", flush=True)

    with tempfile.TemporaryDirectory(prefix="oqexplorer-", ignore_cleanup_errors=True) as directory:
        outcomes = runs.explore(Path(directory), plans, arguments.worlds, arguments.keep, say)
    bad = [outcome for outcome in outcomes if outcome.wrong]
    print(f"{len(outcomes)} runs in {time.monotonic() - begin:.0f} s, {len(bad)} with something wrong")
    for outcome in bad:
        print(f"make faults SEED={outcome.plan.seed}: {outcome.wrong[0]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
