"""Workers, while they live and afterwards: what they say and cost, and that their end changes no bit of a result.

`make faults` ends many more of them; see docs/faults.md.
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from components import facts
from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab
from lab.linux.host import wait_until
from lab.services import aws_api, imds
from lab.trials import faults, matrix
from lab.trials.job import CLASSICAL, USER, compare, fetch_job, run_job, work_done
from tests.lab.support import DEADLINE, READY_SECONDS, as_user, on, run_oneshot

pytestmark = pytest.mark.lab

LOGS = f"{facts.NODE_PROGRAM} logs"


def listed(lab: Lab) -> dict[str, Any]:
    """What `oq-node logs` knows of each worker, by instance id."""
    return {one["instance"]: one for one in json.loads(on(lab, "master", f"{LOGS} --json"))}


def shown(lab: Lab, worker: str) -> str:
    """The whole log of a worker, as `oq-node logs` shows it."""
    return on(lab, "master", f"{LOGS} {worker} --lines 1000000")


def has_said(lab: Lab, worker: str, words: str) -> bool:
    """Whether a worker's log has these words."""
    return words in shown(lab, worker)


def log_of(lab: Lab, name: str) -> str:
    """The path of a node's log."""
    return f"{facts.LOGS_DIR}/{lab.nodes[name].id}.log"


def test_every_worker_that_lives_is_listed_under_its_names(nfs_cluster: Lab) -> None:
    found = listed(nfs_cluster)
    for node in nfs_cluster.workers():
        host = on(nfs_cluster, node.name, "hostname").strip()
        worker = found[node.id]
        assert (worker["host"], worker["address"], worker["alive"]) == (host, str(node.address), True)
        for name in (node.id, f"openquake@{host}", str(node.address)):
            wait_until(
                f"the log of {name}", partial(has_said, nfs_cluster, name, "the worker is ready"), DEADLINE
            )


def test_only_root_writes_the_logs_and_the_group_reads_them(nfs_cluster: Lab) -> None:
    path = log_of(nfs_cluster, "worker-1")
    rights = on(nfs_cluster, "master", f"stat --format '%a %U %G' {facts.LOGS_DIR} {path}").splitlines()
    group = facts.OPENQUAKE_USER
    assert rights == [f"2750 root {group}", f"640 root {group}"]
    fetch_job(nfs_cluster, CLASSICAL)
    on(nfs_cluster, "master", f"id {USER} || useradd --create-home --groups {group} {USER}")
    assert as_user(nfs_cluster, USER, f"tail -n 1 {path}")[0] == 0
    for line in (f"echo forged >> {path}", f"rm -f {path}", f"touch {facts.LOGS_DIR}/mine"):
        assert as_user(nfs_cluster, USER, line)[0] != 0, line
    machine = nfs_cluster.machine("worker-1")
    for line in (f"echo forged >> {path}", f"rm -f {path}"):  # as a task could
        assert machine.execute(["runuser", "-u", group, "--", "sh", "-c", line]).returncode != 0, line
    assert on(nfs_cluster, "master", f"runuser -u nobody -- cat {path} || echo refused").strip() == "refused"


def test_no_secret_is_in_the_logs(nfs_cluster: Lab) -> None:
    secrets = on(
        nfs_cluster, "master", f"sed -n 's/^\\(password\\|authkey\\) = //p' {facts.OPENQUAKE_CFG}"
    ).split()
    assert len(secrets) == 2
    for secret in secrets:
        assert on(nfs_cluster, "master", f"grep -l {secret} {facts.LOGS_DIR}/* || true") == ""


def test_what_the_tasks_of_a_calculation_cost_is_in_its_log_and_can_be_asked_later(nfs_cluster: Lab) -> None:
    tag = cluster.imds_directory(nfs_cluster.paths), nfs_cluster.master().address
    imds.announce(*tag, f"tags/instance/{facts.PROCESS_HOUR_TAG}", "0.051")
    run_oneshot(nfs_cluster, facts.REFRESH_SERVICE)
    run_job(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL), None, show=False)
    status, said = as_user(nfs_cluster, USER, "oq-celery cost --json")
    assert status == 0, said
    cost = json.loads(said)[-1]
    assert (cost["user"], cost["status"], cost["price"]) == (USER, "complete", 0.051)
    assert cost["seconds"] > 0
    assert cost["usd"] == pytest.approx(cost["seconds"] / 3600 * 0.051)
    log = as_user(nfs_cluster, USER, f"oq-celery follow {cost['id']}")[1]
    assert f"Tasks took {cost['seconds']:.1f} s of worker processes" in log


def test_without_its_directory_or_room_in_it_a_worker_computes_and_its_log_comes_later(
    nfs_cluster: Lab,
) -> None:
    on(nfs_cluster, "master", f"mv {facts.LOGS_DIR} {facts.LOGS_DIR}.away")
    full = f"mount -t tmpfs -o size=64k full {facts.LOGS_DIR}"
    try:
        run_job(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL), None, show=False)
        on(nfs_cluster, "worker-1", "logger said while there was no directory")
    finally:
        on(nfs_cluster, "master", f"mv {facts.LOGS_DIR}.away {facts.LOGS_DIR}")
    on(nfs_cluster, "worker-2", f"{full} && head -c 100K /dev/zero > {facts.LOGS_DIR}/filler || true")
    try:
        on(nfs_cluster, "worker-2", "logger said while there was no room")
        journal = f"journalctl --output=cat --identifier={facts.NODE_LOG}"
        wait_until(
            "worker-2 to say so",
            lambda: "No space left" in on(nfs_cluster, "worker-2", journal),
            DEADLINE,
        )
        run_job(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL), None, show=False)
    finally:
        on(nfs_cluster, "worker-2", f"umount --lazy {facts.LOGS_DIR}")
    for name, words in (
        ("worker-1", "while there was no directory"),
        ("worker-2", "while there was no room"),
    ):
        instance = nfs_cluster.nodes[name].id
        wait_until(f"the log of {name}", partial(has_said, nfs_cluster, instance, words), DEADLINE)
        assert shown(nfs_cluster, instance).count(words) == 1
    assert all(cluster.state(nfs_cluster, node).problems == () for node in nfs_cluster.workers())


def test_what_a_worker_said_before_it_was_killed_is_read_on_the_master(nfs_cluster: Lab) -> None:
    node = nfs_cluster.nodes["worker-1"]
    instance = node.id
    tick = "while sleep 0.1; do date +tick-%s.%N; done"
    on(nfs_cluster, "worker-1", f"systemd-run --quiet sh -c '{tick}'; sleep 5; logger last words")
    wait_until("its last words", partial(has_said, nfs_cluster, instance, "last words"), DEADLINE)
    cluster.kill(nfs_cluster, "worker-1")
    died = time.time()
    fleet.scale(nfs_cluster, 2)
    said = shown(nfs_cluster, instance)
    assert "last words" in said
    lost = died - max(map(float, re.findall(r"tick-([0-9.]+)", said)))
    print(f"lost: the last {lost:.2f} s")  # a figure, not a proof: it is longer on a busy machine
    wait_until("its silence to be seen", lambda: not listed(nfs_cluster)[instance]["alive"], DEADLINE)
    assert listed(nfs_cluster)[nfs_cluster.nodes["worker-2"].id]["alive"]
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    assert "last words" in shown(nfs_cluster, instance)


def test_logs_of_the_long_dead_go_and_those_of_others_stay(nfs_cluster: Lab) -> None:
    old, young = (f"{facts.LOGS_DIR}/{name}.log" for name in ("i-0000000000000000a", "i-0000000000000000b"))
    for path, days in ((old, facts.LOG_DAYS + 1), (young, facts.LOG_DAYS - 1)):
        on(nfs_cluster, "master", f"echo -- i host 10.0.0.1 > {path}; touch --date '{days} days ago' {path}")
    before = set(listed(nfs_cluster))
    on(nfs_cluster, "master", "systemctl is-active systemd-tmpfiles-clean.timer")
    on(nfs_cluster, "master", "systemctl start systemd-tmpfiles-clean.service")
    left = on(nfs_cluster, "master", f"ls {facts.LOGS_DIR}").split()
    assert young.rpartition("/")[2] in left
    assert old.rpartition("/")[2] not in left
    assert before <= set(listed(nfs_cluster))


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
