"""A calculation that has lost a write is failed. `make faults` fills the disk in the middle of calculations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.rabbitmq import Broker

# A calculation by the engine's own functions. When one of them has done its work for the first time, the destructor of
# a dataset cannot write, because a limit of the size of files forbids it where the dataset lies in its file: further on
# than any other file of this process is long.
PROGRAM = """
import os, resource, signal, sys
import h5py
from openquake.calculators import base
from openquake.calculators.event_based import EventBasedCalculator
from openquake.commonlib import logs
from openquake.engine import engine

moment, directory, *inis = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
files = []

SIZE = 1 << 28

def lose():
    files.append(h5py.File(f"{directory}/lost.hdf5", "w"))
    files[0].create_dataset("before", (SIZE,), "u1")[-1] = 1
    lost = files[0].create_dataset("lost", (1000,), chunks=(1000,))
    lost[:] = 1.0
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, resource.RLIM_INFINITY))
    del lost

def wrap(place, name):
    upstream = getattr(place, name)
    def function(*args, **kw):
        found = upstream(*args, **kw)
        print("called", name, flush=True)
        if name == moment:
            lose()
        return found
    setattr(place, name, function)

wrap(EventBasedCalculator, "agg_dicts")
wrap(EventBasedCalculator, "post_execute")
wrap(base, "expose_outputs")
logs.dbcmd("upgrade_db")
for job in engine.create_jobs(inis):
    print("calculation", job.calc_id)
    engine.run_jobs([job])
if not inis:
    lose()
print("ended")
os._exit(0)  # HDF5 may crash when it closes the file
"""


def run(cluster: Cluster, directory: Path, moment: str, *inis: Path) -> tuple[int, list[str]]:
    """The exit status of the program, and what it has printed."""
    command: list[str | Path] = [
        processes.ENGINE / "bin/python",
        "-u",
        "-c",
        PROGRAM,
        moment,
        directory,
        *inis,
    ]
    done = processes.run(command, cluster.env)
    assert "File too large" in done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("moment", ["agg_dicts", "expose_outputs"])
def test_a_calculation_that_has_lost_a_write_fails_at_once_with_the_reason(
    cluster: Cluster, broker: Broker, tmp_path: Path, moment: str
) -> None:
    """If it is in the first of several results, the next one is not waited for."""
    status, said = run(cluster, tmp_path, moment, harness.qa_job("event_based/case_2", tmp_path))
    assert status == 1
    assert said[-1] == f"called {moment}"
    assert (said.count("called agg_dicts") == 1) == (moment == "agg_dicts")
    (number,) = [int(line.split()[1]) for line in said if line.startswith("calculation")]
    found = ast.literal_eval(
        cluster.python(
            f"""
            from openquake.commonlib import logs
            job = logs.dbcmd("get_job", {number})
            outputs, log = logs.dbcmd("get_outputs", {number}), logs.dbcmd("get_log", {number})
            print([job.status, job.is_running, bool(outputs), log])
            """
        )
    )
    assert found[:3] == ["failed", 0, moment == "expose_outputs"]
    assert "Results could not be written, so the calculation has failed: " in found[3][-1]
    assert "File too large" in found[3][-1]
    assert broker.result_queues() == []
    assert list((cluster.shared / "oq_celery_inputs").iterdir()) == []


def test_what_is_lost_outside_of_calculations_ends_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert run(cluster, tmp_path, "never") == (0, ["ended"])
