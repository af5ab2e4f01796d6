"""What the engine writes down about tasks is what upstream writes, though in batches."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

TASKS = 40
# Two Starmaps, one within the other, subtasks, and the calculator's own measurements between the results.
MASTER = """
import contextlib, signal, sys, time
from openquake.baselib import hdf5, parallel, performance
from oq_celery import bookkeeping
import tasks
path, how, end = sys.argv[1:]
if how == "upstream":
    bookkeeping.batched = lambda _: contextlib.nullcontext()
def stop(*_):
    raise SystemExit("stopped")
signal.signal(signal.SIGTERM, stop)
if __name__ == "__main__":
    h5 = hdf5.File(path, "w")
    performance.init_performance(h5)
    monitor = performance.Monitor("aggregate", h5=h5)
    try:
        for number, _ in enumerate(parallel.Starmap(tasks.tree, [(3,)] * {tasks}, h5=h5)):
            with monitor:
                pass
            if number == 5:
                list(parallel.Starmap(tasks.square, [([n],) for n in range(3)], h5=h5))
            if number == 20 and end == "error":
                raise RuntimeError("in the calculator")
            if number == 20 and end == "stop":
                print("here", flush=True)
                time.sleep(600)
        if end == "close":
            h5.close()
    finally:
        parallel.Starmap.shutdown()
""".replace("{tasks}", str(TASKS))
READ = """
import json, sys
from openquake.baselib import hdf5
with hdf5.File(sys.argv[1]) as h5:
    info, data = h5["task_info"][()], h5["performance_data"][()]
    print(json.dumps([
        [[row["taskname"].decode(), int(row["task_no"]), float(row["weight"]), int(row["received"])] for row in info],
        [[row["operation"].decode(), int(row["counts"]), int(row["task_no"])] for row in data],
        h5["task_sent"][()].decode(),
    ]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Cluster]:
    """One process, so that the order of the tasks is always the same."""
    with harness.cluster(tmp_path_factory.mktemp("books") / "oqlab-books", broker) as made:
        made.worker("alone")
        yield made


def written(cluster: Cluster, path: Path, how: str, end: str) -> Any:
    """All but times and sizes of memory."""
    master = cluster.start("python", "-c", MASTER, path, how, end)
    if end == "stop":
        wait_until(
            lambda: "here" in master.output() or not master.running(), "the master to be in the middle"
        )
        master.signal(signal.SIGTERM)
    status = master.wait()
    assert status == (0 if end in ("close", "exit") else 1), master.output()
    result = processes.run([processes.ENGINE / "bin/python", "-c", READ, path], cluster.env, check=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("end", ["close", "exit", "error", "stop"])
def test_the_datasets_are_those_of_upstream_however_the_job_ends(cluster: Cluster, end: str) -> None:
    ours = written(cluster, cluster.data / f"ours_{end}_1.hdf5", "ours", end)
    upstream = written(cluster, cluster.data / f"upstream_{end}_1.hdf5", "upstream", end)
    assert len(upstream[0]) > 20
    assert ours == upstream


def test_who_reads_in_the_same_process_finds_everything_and_another_one_soon(cluster: Cluster) -> None:
    path = cluster.data / "calc_1.hdf5"
    found = cluster.python(
        f"""
        from openquake.baselib import hdf5, parallel, performance
        import tasks
        h5 = hdf5.File({str(path)!r}, "w")
        performance.init_performance(h5)
        writes = 0
        extend = hdf5.extend
        def counted(dataset, array, **attrs):
            global writes
            writes += isinstance(dataset, hdf5.h5py.Dataset)
            return extend(dataset, array, **attrs)
        hdf5.extend = counted
        for number, _ in enumerate(parallel.Starmap(tasks.square, [([n],) for n in range(30)], h5=h5)):
            if number == 15:
                before = writes
                print(len(h5["task_info"]) >= 14, len(h5["performance_data"]) >= 14, type(h5).__name__)
        print(len(h5["task_info"]), len(h5["performance_data"]), type(h5).__name__, writes < 30)
        """
    )
    assert found.splitlines()[-2:] == ["True True BatchedFile", "30 30 File True"]


def test_a_write_that_ctrl_c_interrupts_is_done_at_the_end_and_ctrl_c_stays_what_it_was(
    cluster: Cluster,
) -> None:
    """Between the removal of a dataset and its successor, which HDF5 cannot do in one step."""
    path = cluster.data / "interrupted_1.hdf5"
    found = cluster.python(
        f"""
        from openquake.baselib import hdf5, performance
        from oq_celery import bookkeeping
        h5 = hdf5.File({str(path)!r}, "w")
        performance.init_performance(h5)
        setitem = hdf5.File.__setitem__
        def interrupted(self, name, value):
            hdf5.File.__setitem__ = setitem
            raise KeyboardInterrupt
        try:
            with bookkeeping.batched(h5):
                h5["task_sent"] = "sent"
                hdf5.File.__setitem__ = interrupted
                h5.flush()
        except KeyboardInterrupt:
            print("interrupted", type(h5).__name__, h5["task_sent"][()].decode())
        """
    )
    assert found.splitlines()[-1] == "interrupted File sent"


def test_sizes_of_results_are_those_of_upstream_without_pickling_them_again(cluster: Cluster) -> None:
    """Within what a pickle adds to the bytes; the message itself is the same."""
    found = cluster.python(
        """
        import importlib, json, pickle
        import numpy
        from openquake.baselib import parallel, performance
        value = {
            "array": numpy.arange(100_000.0).reshape(100, 1000)[:, ::2],
            "bytes": bytes(500_000),
            "objects": numpy.array([None, "text"] * 500, object),
            "list": list(range(1000)),
            3: None,
        }
        monitor = performance.Monitor("test")
        ours = parallel.Result(value, monitor)
        upstream = {key: len(parallel.Pickled(part)) for key, part in value.items()}
        assert list(ours.nbytes) == list(upstream)
        print(max(abs(ours.nbytes[key] - upstream[key]) for key in upstream) < 300)
        print(ours.pik.pik == pickle.dumps(value, pickle.HIGHEST_PROTOCOL), ours.pik.clsname, ours.func, ours.msg == "")
        print(len(parallel.Result({}, monitor).pik.pik) > 0, parallel.Result({}, monitor).nbytes)
        import os, psutil
        print(abs(performance.memory_rss(os.getpid()) - psutil.Process().memory_info().rss) < 10_000_000)
        """
    )
    assert found.splitlines()[-4:] == ["True", "True dict None True", "True {}", "True"]
