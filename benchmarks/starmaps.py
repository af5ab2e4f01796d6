"""Artificial tasks and a master for them; runs in the engine's environment, masters and workers import it.

    python -c "import starmaps; starmaps.main()" '{"task": "nap", "arguments": [[0.0]], "in_flight": 4, "processes": 2}'

prints {"seconds": ..., "memory_mb": ...} of the master.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openquake.baselib.parallel import Starmap

WARM_UP_SECONDS = 240.0


def nap(seconds: float, monitor: Any) -> dict[int, int]:  # noqa: ARG001 - the engine injects it
    """Sleep; says in which process."""
    time.sleep(seconds)
    return {os.getpid(): 1}


def echo(data: bytes, monitor: Any) -> dict[str, bytes]:  # noqa: ARG001
    """Send the argument back."""
    return {"data": data}


def mark(directory: bytes, seconds: float, monitor: Any) -> dict[int, int]:
    """Leave a file when the task starts, named after task and process, and sleep."""
    (Path(os.fsdecode(directory)) / f"{monitor.task_no}.{os.getpid()}").touch()
    time.sleep(seconds)
    return {os.getpid(): 1}


def meet(directory: bytes, processes: int, seconds: float, monitor: Any) -> dict[int, int]:  # noqa: ARG001
    """Wait until so many processes are in this task at the same time, or for so many seconds; the process's parent."""
    end = time.monotonic() + seconds
    here = Path(os.fsdecode(directory))
    (here / str(os.getpid())).touch()
    while len(list(here.iterdir())) < processes and time.monotonic() < end:
        time.sleep(0.05)
    return {os.getpid(): os.getppid()}


def warm_up(processes: int) -> None:
    """Let every process do a task, so that its start is not measured.

    They have to wait for each other: of processes that are free, whoever hands tasks out may prefer some, and Celery
    goes round them in steps that can leave others out for ever.
    """
    with tempfile.TemporaryDirectory() as directory:
        # A single task would run in the master, and one with the name of a directory that workers may not see, too.
        arguments = [(os.fsencode(directory), processes, WARM_UP_SECONDS)] * max(processes, 2)
        seen = {process: parent for result in Starmap(meet, arguments) for process, parent in result.items()}
    if os.environ["OQ_DISTRIBUTE"] == "celery" and os.getpid() in seen.values():
        sys.exit("the master has done the tasks itself")
    if len(seen) < processes:
        sys.exit(f"only {len(seen)} of {processes} processes have worked in {WARM_UP_SECONDS:.0f} s")


def run(task: str, count: int, in_flight: int, processes: int, **options: Any) -> dict[str, float]:
    """Send `count` tasks, at most `in_flight` at once, and take their results.

    Args:
        task: name of a function here.
        count: of tasks.
        in_flight: how many the engine sends ahead.
        processes: of the workers.
        options: seconds and directory of `nap` and `mark`, size in bytes of `echo`'s payload.
    """
    Starmap.CT = 2 * processes
    warm_up(processes)
    Starmap.CT = in_flight
    arguments: list[tuple[Any, ...]]
    if task == "echo":
        # Random, or it would be compressed; different, or it would be sent once.
        payload = random.Random(1).randbytes(options["size"])  # noqa: S311
        arguments = [(number.to_bytes(8, "big") + payload[8:],) for number in range(count)]
    elif task == "mark":
        arguments = [(os.fsencode(options["directory"]), options["seconds"])] * count
    else:
        arguments = [(options["seconds"],)] * count
    begin = time.perf_counter()
    for _ in Starmap(globals()[task], arguments):
        pass
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Argument:
    """So many bytes, different ones for each task, that are there only when the task is sent."""

    def __init__(self, number: int, size: int) -> None:
        self._number = number
        self._size = size

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return bytes, (self._number.to_bytes(8, "big") + bytes(self._size),)


def replay(data: bytes, monitor: Any) -> None:
    """Never called: the stand-in of a fleet answers for it."""
    raise NotImplementedError


def replay_main() -> None:
    """Send tasks as the first argument says; prints tasks per second, and CPU per task, of the middle half."""
    what = json.loads(sys.argv[1])
    count = what["count"]
    Starmap.CT = what["in_flight"]
    ends, cpu = [], []
    try:
        for _ in Starmap(replay, [(Argument(number, what["size"]),) for number in range(count)]):
            ends.append(time.perf_counter())
            cpu.append(time.process_time())
    finally:
        Starmap.shutdown()
    first, last = count // 4, 3 * count // 4
    found = {
        "rate": (last - first) / (ends[last] - ends[first]),
        "cpu_ms": 1000 * (cpu[last] - cpu[first]) / (last - first),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


def main() -> None:
    """Run what the first argument says."""
    try:
        print(json.dumps(run(**json.loads(sys.argv[1]))))
    finally:
        Starmap.shutdown()
