"""Large arguments and results pass by the broker, and nobody holds them longer than needed."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from tests.transport import harness
from tests.transport.harness import Cluster
from tests.transport.rabbitmq import Broker

MB = 2**20
# Whatever is written is damaged on its way to the disk.
DAMAGE = """
import openquake.baselib.parallel  # brings oq_celery in
from oq_celery import spool
append = spool.Writer.append
def damaged(self, *args):
    stored = append(self, *args)
    self._file.seek(1000)
    self._file.write(b"damage")
    return stored
spool.Writer.append = damaged
"""


def memory(pid: int, what: str) -> int:
    """Bytes of memory of a process: VmRSS, or VmHWM for the largest there ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@pytest.mark.parametrize(("megabytes", "tasks"), [(300, 6), (1024, 2)])
def test_the_memory_of_master_and_broker_does_not_grow_with_the_number_of_large_results(
    megabytes: int, tasks: int, cluster: Cluster, broker: Broker
) -> None:
    """Each result is an array of so many megabytes. The engine keeps one while it loads the next."""
    before = memory(broker.pid, "VmRSS")
    found = json.loads(
        cluster.python(
            f"""
            import json, resource
            import numpy
            from openquake.baselib import parallel
            import tasks
            empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            total = 0
            for result in parallel.Starmap(tasks.large, [({megabytes},)] * {tasks}):
                total += result["zeros"].nbytes
                del result
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps([total, 1024 * (peak - empty)]))
            """
        ).splitlines()[-1]
    )
    total, held = found
    assert total == tasks * megabytes * MB
    assert held < 2.1 * megabytes * MB
    assert memory(broker.pid, "VmRSS") - before < 100 * MB
    assert list((cluster.shared / "oq_celery").iterdir()) == []


def test_an_argument_that_tasks_share_is_written_once(cluster: Cluster) -> None:
    found = cluster.python(
        """
        from pathlib import Path
        from openquake.baselib import config, parallel
        import tasks
        written = []
        from oq_celery import spool
        write = spool.write
        spool.write = lambda path, *args: (written.append(path.name), write(path, *args))[1]
        shared = bytes(1_000_000)
        print(parallel.Starmap(tasks.size_of_both, [(shared, b"x" * number) for number in range(6)]).reduce())
        print(len(written))
        """
    )
    assert found.splitlines()[-2:] == ["{'size': 6000015}", "1"]


def test_a_task_may_have_the_same_large_argument_twice(cluster: Cluster) -> None:
    found = cluster.python(
        """
        from openquake.baselib import parallel
        import tasks
        shared = bytes(1_000_000)
        print(parallel.Starmap(tasks.size_of_both, [(shared, shared), (shared, shared)]).reduce())
        """
    )
    assert found.splitlines()[-1] == "{'size': 4000000}"
    assert list((cluster.shared / "oq_celery").iterdir()) == []


def test_a_damaged_file_is_an_error_and_never_a_wrong_number(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-damaged", broker, **{"celery.max_attempts": "1"}) as cluster:
        cluster.worker("sound")
        found = cluster.python(
            DAMAGE
            + textwrap.dedent(
                """
                from openquake.baselib import parallel
                import tasks
                try:
                    parallel.Starmap(tasks.size, [(bytes(1_000_000),), (bytes(1_000_000),)]).reduce()
                except RuntimeError as error:
                    print(error)
                """
            )
        )
    assert "was turned down by a worker 3 times" in found  # other ones might have read it
    assert "has not the" in found
    assert "bytes that were written" in found


TWO_LARGE_RESULTS = """
from openquake.baselib import parallel
import tasks
try:
    acc = parallel.Starmap(tasks.large, [(2,), (2,)]).reduce()
    print("bytes", acc["zeros"].nbytes)
except RuntimeError as error:
    print(error)
"""


def test_results_that_can_never_be_read_are_an_error(tmp_path: Path, broker: Broker) -> None:
    with harness.cluster(tmp_path / "oqlab-damage", broker, **{"celery.max_attempts": "1"}) as cluster:
        cluster.worker("damaging", changed=DAMAGE)
        found = cluster.python(TWO_LARGE_RESULTS)
    assert "its results cannot be read" in found
    assert "has not the" in found


def test_results_that_cannot_be_read_are_computed_again(tmp_path: Path, broker: Broker) -> None:
    """The arguments of a task are kept until its results are here."""
    once = "append_well = append\ndef append_once(self, *args):\n    spool.Writer.append = append_well\n"
    once += "    return damaged(self, *args)\nspool.Writer.append = append_once\n"
    with harness.cluster(tmp_path / "oqlab-damage", broker) as cluster:
        cluster.worker("damages one", changed=DAMAGE + once)
        master = cluster.start("python", "-c", TWO_LARGE_RESULTS)
        assert master.wait() == 0, master.output()
    assert f"bytes {2 * MB}" in master.output()
    assert "its results cannot be read" in master.output()


def test_a_large_pickle_is_checked_before_it_is_loaded_piece_by_piece(cluster: Cluster) -> None:
    """Above CHUNK it is not read into memory first, so its checksum has a way of its own."""
    found = cluster.python(
        """
        import os, pathlib
        from openquake.baselib.parallel import Pickled
        from oq_celery import spool
        content = os.urandom(30_000_000)
        pickled = Pickled(content)
        path = pathlib.Path(os.environ["OQ_DATADIR"], "channel", "large")
        stored = spool.StoredPickle(pickled, spool.write(path, pickled.pik))
        assert not stored.compressed and stored.stored.size > spool.CHUNK
        print(stored.unpickle() == content)
        with path.open("r+b") as file:
            file.seek(20_000_000)
            file.write(b"damage")
        try:
            stored.unpickle()
        except spool.CorruptError as error:
            print(error)
        """
    )
    assert found.splitlines()[0] == "True"
    assert "bytes that were written" in found
