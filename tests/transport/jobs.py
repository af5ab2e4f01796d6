"""Jobs that are held where the tests want them, and that hold up nobody when a test fails."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.transport.harness import Cluster
from tests.transport.processes import Process


@contextmanager
def held(directory: Path, *moments: str) -> Iterator[None]:
    """Whoever comes to one of these moments (`tasks.pause`) stays there until `release`, or the end of the block."""
    for moment in moments:
        (directory / f"hold-{moment}").touch()
    try:
        yield
    finally:
        release(directory, *moments)


def release(directory: Path, *moments: str) -> None:
    for moment in moments:
        (directory / f"hold-{moment}").unlink(missing_ok=True)


@contextmanager
def running(
    cluster: Cluster, *codes: str, words: tuple[str | Path, ...] = (), **env: str
) -> Iterator[list[Process]]:
    """Jobs of so many programs in Python, each with these words; none of them outlives the block."""
    with ExitStack() as jobs:
        started = []
        for code in codes:
            started.append(job := cluster.start("python", "-c", textwrap.dedent(code), *words, **env))
            jobs.callback(job.kill)
        yield started
