"""The engine's own jobs without a cluster, in one process: what they must give on one that breaks."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Final

from explorer.workload import ENGINE_JOBS
from explorer.world import Nursery
from tests.transport import harness

SECONDS: Final = 600.0  # for a job without faults; numba may have to compile


def source(job: str) -> Path:
    """The job file of one of ENGINE_JOBS: of the demos in the engine's environment, or of its own tests."""
    ini = ENGINE_JOBS[job]
    return harness.ENGINE / ini if ini.startswith("demos") else harness.QA_TESTS / ini


class Baselines:
    """Runs of the engine's jobs without a cluster, each made when it is first needed."""

    def __init__(self, directory: Path, nursery: Nursery) -> None:
        self._directory = directory
        self._nursery = nursery
        self._lock = threading.Lock()
        self._found: dict[str, list[Path]] = {}

    def differences(self, job: str, log: str) -> list[str]:
        """What differs from the baseline of a job, in words; of all numbers, to the bit.

        Args:
            job: one of ENGINE_JOBS.
            log: what the run has printed, which names its datastores.
        """
        with self._lock:
            if job not in self._found:
                self._found[job] = self._run(job)
        found = datastores(log)
        if len(found) != len(self._found[job]):
            return [f"results: {len(found)} datastores instead of {len(self._found[job])}"]
        wrong = []
        for one, other in zip(self._found[job], found, strict=True):
            different = harness.differences(one, other, {"PATH": "/usr/bin:/bin"})
            equal = different.pop("equal")
            wrong += [f"results: {name}: {how}" for name, how in different.items()]
            if not equal:
                wrong.append("results: the datastores have no dataset in common")
        return wrong

    def _run(self, job: str) -> list[Path]:
        place = self._directory / job.replace(" ", "-").replace(",", "")
        ini = shutil.copytree(source(job).parent, place / "job") / source(job).name
        config = {"dbserver.file": str(place / "db.sqlite3")}
        env = {"OQ_DISTRIBUTE": "no", "OQ_DATADIR": str(place / "data")}
        history = str(place / "history.jsonl")
        child = self._nursery.fork(
            "engine", place / "log", config, env, arguments=[str(ini)], history=history
        )
        assert child.over.wait(SECONDS), f"{job} takes too long without a cluster"
        assert child.status == 0, child.output()
        return datastores(child.output())


def datastores(log: str) -> list[Path]:
    """The datastores that `oq engine --run` says it has written."""
    return [Path(path) for path in re.findall(r"Stored .* on (\S+\.hdf5)", log)]
