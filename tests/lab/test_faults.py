"""Workers that die or leave in the middle of a job, on a real boot: the same numbers, bit for bit.

`make faults` runs many more of these; see docs/faults.md.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab
from lab.linux.host import wait_until
from lab.services import aws_api
from lab.trials import faults, matrix
from lab.trials.job import CLASSICAL, compare, fetch_job, run_job, work_done
from tests.lab.support import DEADLINE, READY_SECONDS, on

pytestmark = pytest.mark.lab


def test_a_worker_killed_in_the_middle_of_a_job_changes_no_bit_of_it(nfs_cluster: Lab) -> None:
    job_ini = fetch_job(nfs_cluster, CLASSICAL)
    undisturbed = run_job(nfs_cluster, job_ini, None, show=False, limit=matrix.JOB_SECONDS)
    tasks = sum(number for number, _ in work_done(nfs_cluster, undisturbed).values())
    kill = next(kind for kind in matrix.KINDS if kind.name == "kill a worker")
    case = matrix.Case(0, CLASSICAL, (matrix.Fault(kill, 0.25, 0),))
    result = matrix.run_case(nfs_cluster, case, job_ini, undisturbed, tasks, set())
    assert result.trouble == ""
    states = [cluster.state(nfs_cluster, node).problems for node in nfs_cluster.workers()]
    assert sorted(states) == [(), (cluster.OFF,)]
    fleet.scale(nfs_cluster, matrix.WORKERS)
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)


def test_a_busy_worker_that_is_scaled_in_finishes_its_task_and_says_so_though_aws_throttles_it_first(
    nfs_cluster: Lab,
) -> None:
    job_ini = fetch_job(nfs_cluster, CLASSICAL)
    undisturbed = run_job(nfs_cluster, job_ini, None, show=False, limit=matrix.JOB_SECONDS)
    leaving = nfs_cluster.workers()[-1]
    journal = "journalctl --output=cat --identifier=oq-node"
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, nfs_cluster, job_ini, None, show=False, limit=matrix.JOB_SECONDS)
        since = undisturbed.started + undisturbed.seconds
        wait_until(
            "a task of it", lambda: matrix.is_busy(nfs_cluster, leaving.name, since) or job.done(), 120
        )
        completed = cluster.events_directory(nfs_cluster.paths) / aws_api.COMPLETED / leaving.id
        with faults.throttled(nfs_cluster):
            fleet.set_capacity(nfs_cluster, 1)
            assert not job.done()
            wait_until(
                "a refusal by AWS", lambda: "Throttling" in on(nfs_cluster, leaving.name, journal), 120
            )
        wait_until("CompleteLifecycleAction", completed.exists, DEADLINE)
        said = on(nfs_cluster, leaving.name, journal)
        fleet.scale(nfs_cluster, 1)
        disturbed = job.result()
    assert "drained: all running tasks were finished" in said
    assert leaving.name not in nfs_cluster.nodes
    assert compare(nfs_cluster, undisturbed, disturbed).absolute == 0
