"""The command line of the benchmarks: `make bench`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import boots, deaths, fleet, growth, jobs, machine, report, transport
from benchmarks.modes import Skipped
from benchmarks.report import Part

PARTS: dict[str, tuple[str, Callable[[Part, Path, Callable[[str], None], bool], None]]] = {
    "jobs": (jobs.TITLE, jobs.measure),
    "transport": (transport.TITLE, transport.measure),
    "growth": (growth.TITLE, growth.measure),
    "fleet": (fleet.TITLE, fleet.measure),
    "kill": (deaths.KILL, deaths.measure_kill),
    "partition": (deaths.PARTITION, deaths.measure_partition),
    "boots": (boots.TITLE, boots.measure),
}


def say(line: str) -> None:
    """Print a line of progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def main() -> int:
    """Measure, print and write; 1 when a part has failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the cluster on this machine, which should do nothing else meanwhile.",
        epilog="Parts: " + "; ".join(f"{name}: {title}" for name, (title, _) in PARTS.items()),
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="NAME", help="this part alone; repeatable"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and small: whether it works, not how fast it is"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for benchmarks.md, .png and .svg (default: docs; out if not everything)",
    )
    arguments = parser.parse_args()
    out = arguments.out or Path("out" if arguments.only or arguments.quick else "docs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends what runs, as Ctrl-C does
    introduction = machine.describe()
    print(introduction, flush=True)
    parts, failed = [], False
    for name in arguments.only or PARTS:
        title, measure = PARTS[name]
        say(title)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="oqlab-bench-") as directory:
            part = Part(title)
            try:
                measure(part, Path(directory), say, arguments.quick)
            except Skipped as reason:
                part.skipped = str(reason)
            except Exception as error:  # what was measured before it stays
                traceback.print_exc()
                part.failed, failed = str(error).partition("\n")[0] or type(error).__name__, True
        parts.append(part)
        print(f"\n{part.markdown()}", flush=True)
        say(f"{title}: {time.monotonic() - begin:.0f} s")
        report.write(out, introduction, parts)
    say(f"written: {out}/benchmarks.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
