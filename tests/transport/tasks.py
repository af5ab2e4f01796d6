"""Tasks for the tests, importable by masters and workers (PYTHONPATH)."""

# ruff: noqa: ARG001 - the engine looks at the names of the arguments

from __future__ import annotations

import os
import socket
import time
from typing import Any


def square(numbers: list[int], monitor: Any) -> dict[int, int]:
    return {number: number**2 for number in numbers}


def fail(numbers: list[int], monitor: Any) -> dict[int, int]:
    raise ValueError(f"cannot square {numbers}")


def where(numbers: list[int], monitor: Any) -> dict[str, int]:
    time.sleep(0.2)
    return {f"{socket.gethostname()}/{os.getpid()}": 1}


def shared_sum(power: int, monitor: Any) -> dict[int, int]:
    with monitor.shared["numbers"] as numbers:
        return {power: int((numbers**power).sum())}


def size(data: bytes, monitor: Any) -> dict[str, int]:
    return {"size": len(data)}
