"""The engine's own jobs on a cluster that nothing breaks: what they must give on one that breaks.

That these are also the numbers of a single process is tested elsewhere (tests/transport/test_results.py).
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Final

from explorer.workload import ENGINE_JOBS
from explorer.world import World
from tests.transport import harness, processes

SECONDS: Final = 600.0  # for a job without faults, on a busy machine


def source(job: str) -> Path:
    """The job file of one of ENGINE_JOBS: of the demos in the engine's environment, or of its own tests."""
    ini = ENGINE_JOBS[job]
    return processes.ENGINE / ini if ini.startswith("demos") else harness.QA_TESTS / ini


class Baselines:
    """Undisturbed runs of the engine's jobs, each made when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._found: dict[str, list[Path]] = {}

    def differences(self, world: World, job: str, log: str) -> list[str]:
        """What differs from the baseline of a job, in words; of all numbers, bit for bit.

        Args:
            world: where nothing breaks at the moment.
            job: one of ENGINE_JOBS.
            log: what the run has printed, which names its datastores.
        """
        with self._lock:
            if job not in self._found:
                self._found[job] = self._run(world, job)
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

    def _run(self, world: World, job: str) -> list[Path]:
        place = self._directory / job.replace(" ", "-").replace(",", "")
        ini = shutil.copytree(source(job).parent, place / "job") / source(job).name
        history = str(place / "history.jsonl")
        master = world.start_master(0, "engine", place / "log", arguments=arguments(ini), history=history)
        assert master.over.wait(SECONDS), f"{job} takes too long without faults"
        assert master.status == 0, master.output()
        found = datastores(master.output())
        return [Path(shutil.copy(path, place)) for path in found]  # for the world may end


def arguments(ini: Path) -> list[str]:
    """What `oq engine --run` is given: else upstream's classical tasks split by the clock, after ten seconds, and the
    last bits of a result depend on how busy the machine is.
    """
    return [str(ini), "--param", "split_time=86400"]


def datastores(log: str) -> list[Path]:
    """The datastores that `oq engine --run` says it has written."""
    return [Path(path) for path in re.findall(r"Stored .* on (\S+\.hdf5)", log)]
