"""Tasks for the tests, importable by masters and workers (PYTHONPATH)."""

# ruff: noqa: ARG001 - the engine looks at the names of the arguments

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
from openquake.baselib import config
from openquake.hazardlib.gsim.boore_atkinson_2008 import BooreAtkinson2008
from openquake.hazardlib.imt import SA
from openquake.hazardlib.source import multi_fault


def square(numbers: list[int], monitor: Any) -> dict[int, int]:
    return {number: number**2 for number in numbers}


def fail(numbers: list[int], monitor: Any) -> dict[int, int]:
    raise ValueError(f"cannot square {numbers}")


def tree(depth: int, monitor: Any) -> Iterator[Any]:
    """A result, and a subtask down to depth 1."""
    with monitor("grow"):
        yield {depth: 1}
    if depth > 1:
        yield tree, depth - 1


def shared_sum(power: int, monitor: Any) -> dict[int, int]:
    with monitor.shared["numbers"] as numbers:
        return {power: int((numbers**power).sum())}


def size(data: bytes, monitor: Any) -> dict[str, int]:
    return {"size": len(data)}


def size_of_both(one: bytes, two: bytes, monitor: Any) -> dict[str, int]:
    return {"size": len(one) + len(two)}


def environment(name: str, monitor: Any) -> dict[str, str | None]:
    return {name: os.environ.get(name)}


def configured(name: str, monitor: Any) -> dict[str, str]:
    return {name: config.memory[name]}


def remembered(number: int, monitor: Any) -> list[str]:
    """What this process remembers of a calculation's file, and remember something."""
    before = sorted(multi_fault.SECTIONS)
    multi_fault.SECTIONS["calc_1.hdf5"] = number
    return before


def interpolated(number: int, monitor: Any) -> list[int]:
    """How many rows a table of coefficients has in this process, before one more is interpolated."""
    del number
    table = BooreAtkinson2008.COEFFS_SOIL_RESPONSE
    before = len(list(table))
    table[SA(0.55)]
    return [before]


def turn(job: str, directory: bytes, number: int, monitor: Any) -> dict[str, int]:
    """Write down whose turn it was."""
    with (Path(os.fsdecode(directory)) / "turns").open("a") as file:
        file.write(job)
    time.sleep(0.05)
    return {job: 1}


def pause(directory: bytes, moment: str) -> None:
    """Say that this process has come to `moment`, and stay there while the test wants it to.

    Directories are bytes here, since tasks with texts that name files of the master's stay there (`oq_celery.inputs`).
    """
    reached = Path(os.fsdecode(directory))
    (reached / f"{moment}.{os.getpid()}").touch()
    while (reached / f"hold-{moment}").exists():
        time.sleep(0.02)


def stream(number: int, directory: bytes, ballast: bytes, monitor: Any) -> Iterator[Any]:
    """Yield results one by one and ask for a subtask, with a pause at every moment that matters.

    Only the task number 0 pauses there, so that the test knows which worker has it; the task number 1 may be made
    to keep the job from its end.
    """
    if number == 1:
        pause(directory, "the end of the job")
    moments = ["before the first result", "between two results", "after the last result"]
    for moment in moments:
        if number == 0:
            pause(directory, moment)
        if moment == moments[1]:
            yield square, [number]
        if moment != moments[2]:
            yield {(number, moment): 1}


def held(number: int, directory: bytes, data: bytes, monitor: Any) -> dict[int, int]:
    """Say which task runs, and be held there while the test wants it to."""
    pause(directory, f"task {number}")
    return {number: len(data)}


def die(number: int, directory: bytes, monitor: Any) -> dict[int, int]:
    """Take the worker process along, as the kernel does when memory runs out."""
    if number == 0:
        (Path(os.fsdecode(directory)) / f"died.{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {number: 1}


def back(number: int, directory: bytes, data: bytes, monitor: Any) -> Iterator[Any]:
    """Give a large result; the task number 0 is busy before as long as the test wants."""
    if number == 0:
        pause(directory, "busy")
    yield {number: len(data), f"data of {number}": os.urandom(2_000_000)}


def looked_up(number: int, directory: bytes, file: bytes, monitor: Any) -> dict[int, int]:
    """The size of a file; the task number 0 is busy before as long as the test wants."""
    if number == 0:
        pause(directory, "busy")
    return {number: Path(os.fsdecode(file)).stat().st_size}


def leave(number: int, monitor: Any) -> dict[int, int]:
    """End the process, as a library may do."""
    sys.exit(f"no use for {number}")


def large(megabytes: int, monitor: Any) -> Iterator[dict[str, Any]]:
    """Yield so much in one result."""
    yield {"zeros": numpy.zeros(megabytes * 2**17)}
