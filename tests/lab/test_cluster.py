"""A real boot with root disks and NAT: it computes, and nothing but what has to answers.

All tests share one cluster and leave it as they found it; those that stop nodes come last.
"""

from __future__ import annotations

import configparser
import gzip
import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from components import facts, userdata
from lab.aws.cloud import S3
from lab.aws.plan import make_plan
from lab.cluster import build, cache, cluster, fleet
from lab.cluster.cluster import Lab
from lab.cluster.program import SMALL_VOLUMES, record
from lab.linux import network, volumes
from lab.linux.host import run, wait_until
from lab.services import imds
from lab.trials import faults, matrix
from lab.trials.job import CLASSICAL, USER, DemoJob, compare, fetch_job, run_job
from tests.lab.conftest import configuration
from tests.lab.support import (
    ALL_PORTS,
    DEADLINE,
    FLOAT32_ROUNDING,
    READY_SECONDS,
    as_user,
    compute,
    held,
    listening,
    on,
    people,
    reached,
    run_oneshot,
    wait_until_a_task_runs,
)
from tests.lab.web import (
    Client,
    account,
    administrator,
    administrators_password,
    calculations,
    submit,
)

pytestmark = pytest.mark.lab


@contextmanager
def blocked(lab: Lab, *ports: int) -> Iterator[None]:
    """The security groups without the rules for these ports: what listens there does not answer meanwhile."""
    plan = lab.plan
    lab.plan = replace(plan, rules=[rule for rule in plan.rules if not set(rule.ports or ()) & set(ports)])
    cluster.apply_rules(lab)
    try:
        yield
    finally:
        lab.plan = plan
        cluster.apply_rules(lab)


def reboot(lab: Lab, name: str) -> None:
    machine = lab.machine(name)
    before = machine.init()
    machine.execute(["systemctl", "reboot"])
    wait_until(f"the reboot of {name}", lambda: machine.init() not in (None, before), DEADLINE)
    lab.nodes[name].ready_after = None


def says(lab: Lab, name: str, problem: str) -> bool:
    """Whether something like that is among a node's problems."""
    return any(problem in one for one in cluster.state(lab, lab.nodes[name]).problems)


def test_every_node_boots_with_a_clean_cloud_init(nfs_cluster: Lab) -> None:
    for name in nfs_cluster.nodes:
        status = json.loads(on(nfs_cluster, name, "cloud-init status --wait --format json"))
        assert (status["status"], status["errors"], status["recoverable_errors"]) == ("done", [], {}), name


def test_cloud_init_finds_the_user_data_valid(nfs_cluster: Lab) -> None:
    for name in nfs_cluster.nodes:
        said = on(nfs_cluster, name, "cloud-init schema --system 2>&1")
        assert "Valid schema user-data" in said
        assert "deprecated" not in said.lower()


def test_both_workers_compute_and_the_numbers_equal_a_single_node_run(
    nfs_cluster: Lab, tmp_path: Path
) -> None:
    work, difference = compute(nfs_cluster, tmp_path)
    assert {name for name, (tasks, _) in work.items() if tasks > 0} == {"worker-1", "worker-2"}
    assert difference.datasets >= 4
    assert difference.relative <= FLOAT32_ROUNDING
    assert {file.name.partition("_")[0] for file in tmp_path.glob("*.csv")} >= {"hazard"}


def test_from_a_worker_only_amqp_and_dbserver_of_the_master_answer(nfs_cluster: Lab) -> None:
    of_the_master = reached(nfs_cluster, "worker-1", nfs_cluster.master().address, ALL_PORTS)
    assert of_the_master == {facts.AMQP_PORT, facts.DBSERVER_PORT}


def test_without_its_rule_in_the_program_the_dbserver_is_cut_off(nfs_cluster: Lab) -> None:
    recording = record(configuration())
    kept = [one for one in recording.resources if one.inputs.get("toPort") != facts.DBSERVER_PORT]
    assert len(kept) < len(recording.resources)
    forgetful = make_plan(replace(recording, resources=kept))
    cluster.apply_rules(replace(nfs_cluster, plan=forgetful))
    try:
        assert reached(nfs_cluster, "worker-1", nfs_cluster.master().address) == {facts.AMQP_PORT}
    finally:
        cluster.apply_rules(nfs_cluster)


def test_from_a_client_address_only_the_webui_answers(nfs_cluster: Lab) -> None:
    assert reached(nfs_cluster, "client", nfs_cluster.master().address, ALL_PORTS) == {facts.WEBUI_PORT}


def test_nobody_gets_to_a_worker(nfs_cluster: Lab) -> None:
    for source in ("client", "master", "worker-2"):
        assert reached(nfs_cluster, source, nfs_cluster.nodes["worker-1"].address) == set(), source


def test_nobody_on_the_internet_gets_in(nfs_cluster: Lab) -> None:
    """The lab's router lets nothing in from there, as AWS does where no node has a public address. That none has one is
    what the plan asks for: `tests/unit/test_model.py`.
    """
    for node in nfs_cluster.nodes.values():
        assert reached(nfs_cluster, "world", node.address) == set(), node.name


def test_a_worker_reaches_nothing_outside_the_vpc(nfs_cluster: Lab) -> None:
    for target in (network.WORLD, network.PUBLIC_API, S3, network.WORLD_LINK):
        assert reached(nfs_cluster, "worker-1", target) == set(), target


def test_in_the_vpc_a_worker_reaches_nfs_and_the_endpoints_besides(nfs_cluster: Lab) -> None:
    for target in nfs_cluster.plan.mount_targets:
        assert reached(nfs_cluster, "worker-1", target.address) == {facts.NFS_PORT}
    for endpoint in nfs_cluster.plan.endpoints:
        for interface in endpoint.interfaces:
            assert reached(nfs_cluster, "worker-1", interface.address) == {facts.HTTPS_PORT}, endpoint.name
    assert reached(nfs_cluster, "client", nfs_cluster.plan.mount_targets[0].address) == set()


def test_the_master_gets_out_through_nat_by_http_and_https_only(nfs_cluster: Lab) -> None:
    assert reached(nfs_cluster, "master", network.WORLD) == {facts.HTTP_PORT, facts.HTTPS_PORT}


def test_only_the_three_services_listen_to_the_network(nfs_cluster: Lab) -> None:
    assert listening(nfs_cluster, "master") == {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}
    for node in nfs_cluster.workers():
        assert listening(nfs_cluster, node.name) == set(), node.name


def test_rabbitmq_has_no_guest(nfs_cluster: Lab) -> None:
    assert on(nfs_cluster, "master", "rabbitmqctl list_users --silent --no-table-headers").split() == [
        facts.AMQP_USER,
        "[]",
    ]
    refused = nfs_cluster.machine("master").execute(["rabbitmqctl", "authenticate_user", "guest", "guest"])
    assert refused.returncode != 0


def test_instance_metadata_needs_a_token(nfs_cluster: Lab) -> None:
    program = (
        "import urllib.request, urllib.error\n"
        "try: urllib.request.urlopen('http://169.254.169.254/latest/meta-data/')\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    assert on(nfs_cluster, "worker-1", f'python3 -c "{program}"').strip() == "401"


def test_a_workers_role_reads_the_clusters_secret_alone_and_cannot_change_it(nfs_cluster: Lab) -> None:
    clusters, webuis = (secret.arn for secret in nfs_cluster.plan.secrets)
    program = (
        "import boto3\n"
        f"client = boto3.client('secretsmanager', region_name='{nfs_cluster.plan.region}')\n"
        f"print(len(client.get_secret_value(SecretId='{clusters}')['SecretString']) > 0)\n"
        f"try: client.put_secret_value(SecretId='{clusters}', SecretString='mine')\n"
        "except client.exceptions.ClientError as error: print(error.response['Error']['Code'])\n"
        f"try: client.get_secret_value(SecretId='{webuis}')\n"
        "except client.exceptions.ClientError as error: print(error.response['Error']['Code'])"
    )
    said = on(
        nfs_cluster,
        "worker-1",
        f'AWS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt {facts.ENGINE_DIR}/bin/python -c "{program}"',
    )
    assert said.split() == ["True", "AccessDeniedException", "AccessDeniedException"]


def test_a_job_with_several_source_models_in_a_users_home(nfs_cluster: Lab, tmp_path: Path) -> None:
    """The engine reads them in tasks, and a worker has no homes; nothing of them stays on the shared file system."""
    job_ini = fetch_job(nfs_cluster, DemoJob("logic tree", "demos/hazard/LogicTreeCase1ClassicalPSHA"))
    distributed = run_job(nfs_cluster, job_ini, tmp_path, show=False)
    alone = run_job(nfs_cluster, job_ini, None, processpool=True, show=False)
    assert compare(nfs_cluster, alone, distributed).relative <= FLOAT32_ROUNDING
    log = on(nfs_cluster, "master", f"oq engine --show-log {distributed.calculation}")
    assert re.search(r"Copied \d+ input files", log)
    copies = f"{facts.SHARED_DIR}/oq_celery_inputs"
    owner = f"{facts.OPENQUAKE_USER}:{facts.OPENQUAKE_USER} 3730"
    assert on(nfs_cluster, "master", f"stat --format='%U:%G %a' {copies} && ls {copies}").strip() == owner
    listed = f"runuser --login {USER} --command 'ls {copies}' 2>&1 || true"
    assert "Permission denied" in on(nfs_cluster, "master", listed)


def test_the_api_computes_for_the_fleet_as_large_as_it_is_now(nfs_cluster: Lab) -> None:
    """`pulumi up` with another workerMax changes a tag of the running master; here the tag's value alone changes."""
    master = nfs_cluster.master()
    directory, path = cluster.imds_directory(nfs_cluster.paths), f"tags/instance/{facts.NUM_CORES_TAG}"
    before = master.template.metadata_tags[facts.NUM_CORES_TAG]
    assert before != "100"
    try:
        for value in ("100", before):
            imds.announce(directory, master.address, path, value)
            run_oneshot(nfs_cluster, facts.REFRESH_SERVICE)
            log = submit(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL))
            assert f"Using {value} celery workers, concurrent_tasks={2 * int(value)}" in log
    finally:
        imds.announce(directory, master.address, path, before)
    timers = json.loads(on(nfs_cluster, "master", "systemctl list-timers --output=json"))
    assert facts.REFRESH_TIMER in {timer["unit"] for timer in timers}


def test_the_words_of_rabbitmq_are_in_its_journal(nfs_cluster: Lab) -> None:
    said = on(nfs_cluster, "master", f"journalctl --output=cat --unit {facts.RABBITMQ_UNIT}")
    assert "Starting broker" in said


# A minute of the demo job: long enough to be seen at work, and for what is done meanwhile.
LONG_JOB = DemoJob("long", CLASSICAL.folder, {"area_source_discretization": "1.5"})
LONG = "--param " + " ".join(f"{key}={value}" for key, value in LONG_JOB.changes.items())


def test_a_celery_that_hangs_at_its_start_is_killed_and_started_again(nfs_cluster: Lab) -> None:
    """Of a shorter wait than the unit's; what hangs here, and takes no SIGTERM, is a command before Celery."""
    directory = f"/run/systemd/system/{facts.CELERY_UNIT}.d"
    hang = "test -e /run/hung || { touch /run/hung; trap : TERM; while sleep 1; do :; done; }"
    drop_in = rf"[Service]\nTimeoutStartSec=60\nExecStartPre=+sh -c \"{hang}\"\n"
    write = f"mkdir -p {directory} && printf '{drop_in}' > {directory}/hang.conf && systemctl daemon-reload"
    on(nfs_cluster, "worker-2", f"{write} && systemctl restart --no-block {facts.CELERY_UNIT}")
    try:
        said = f"journalctl --output=cat --unit {facts.CELERY_UNIT}"
        killed = "start-pre operation timed out. Killing"
        wait_until("the kill", lambda: killed in on(nfs_cluster, "worker-2", said), DEADLINE)
        nfs_cluster.nodes["worker-2"].ready_after = None
        cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    finally:
        on(nfs_cluster, "worker-2", f"rm -r {directory}/hang.conf /run/hung; systemctl daemon-reload")


def test_a_calculation_outlives_the_session_of_its_user(nfs_cluster: Lab) -> None:
    directory = people(nfs_cluster, "ann")
    program = shlex.quote(Path(__file__).with_name("session.py").read_text())
    shown = on(nfs_cluster, "master", f"python3 -c {program} ann {directory}")
    assert " classical tasks" in shown, shown
    status, log = as_user(nfs_cluster, "ann", "oq-celery follow")
    assert status == 0, log
    assert "Stored " in log


def test_a_program_of_a_user_has_the_engines_environment(nfs_cluster: Lab) -> None:
    people(nfs_cluster, "ann")
    code = "import os\ndef main(word):\n    print(word, oct(os.umask(0)), 'NUMBA_CPU_NAME' in os.environ)\n"
    write = f"printf {shlex.quote(code)} > my_program.py"
    run = "PYTHONPATH=. oq shell my_program word"
    on(nfs_cluster, "master", f"runuser --login ann --command {shlex.quote(write)}")
    said = on(nfs_cluster, "master", f"runuser --login ann --command {shlex.quote(run)}")
    assert said.split()[-3:] == ["word", "0o7", "True"]


def test_nobody_aborts_or_removes_what_is_not_theirs_and_what_is_aborted_has_ended(nfs_cluster: Lab) -> None:
    directory = people(nfs_cluster, "ann", "bob")
    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = pool.submit(as_user, nfs_cluster, "bob", f"cd {directory}; exec oq engine --run job.ini {LONG}")
        wait_until_a_task_runs(nfs_cluster, since, job)
        number = calculations(nfs_cluster)[-1]["id"]
        status, said = as_user(nfs_cluster, "ann", f"oq abort {number}")
        assert (status, f"sudo oq abort {number}" in said) == (1, True), said
        said = administrator(nfs_cluster).post(f"/v1/calc/{number}/abort").text
        assert f"sudo oq abort {number}" in said
        assert f"{number} of bob" not in as_user(nfs_cluster, "ann", "oq purge old --days 0")[1]
        assert calculations(nfs_cluster)[-1]["status"] == "executing"
        assert not job.done()
        status, said = as_user(nfs_cluster, "bob", f"oq engine --delete-calculation {number} --yes")
        assert status == 0, said
        assert job.result()[0] != 0
    assert number not in {one["id"] for one in calculations(nfs_cluster)}
    left = f"find {facts.SHARED_DIR} -ignore_readdir_race -name 'calc_{number}*' -o -name '.nfs*'"
    assert on(nfs_cluster, "master", left) == ""
    queues = on(nfs_cluster, "master", f"rabbitmqctl --silent list_queues -p {facts.AMQP_VHOST} name")
    assert "oq." not in queues


def test_reset_leaves_the_database_and_the_calculations_of_others(nfs_cluster: Lab) -> None:
    directory = people(nfs_cluster, "ann", "bob")
    for name in ("ann", "bob"):
        status, said = as_user(nfs_cluster, name, f"cd {directory}; exec oq engine --run job.ini")
        assert status == 0, said
    assert as_user(nfs_cluster, "ann", "oq reset --yes")[0] == 0
    owners = {one["owner"].partition("@")[0] for one in calculations(nfs_cluster)}
    assert "bob" in owners
    assert "ann" not in owners
    assert nfs_cluster.machine("master").execute(["oq", "reset", "--yes"], DEADLINE).returncode == 1
    assert "bob" in as_user(nfs_cluster, "bob", "oq purge old --days 0")[1]


def a_broken_file_system_is_seen(lab: Lab, mount: str) -> None:
    """Let the kernel find an error in a data volume, of which nothing but a boot heals it, and see who says so."""
    device = on(lab, "master", f"sync; findmnt --noheadings --output SOURCE {mount}").strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
    with pytest.raises(AssertionError, match=facts.REFRESH_SERVICE):  # of the shell that starts it
        run_oneshot(lab, facts.REFRESH_SERVICE)
    assert says(lab, "master", f"{facts.REFRESH_SERVICE} has failed")
    said = on(lab, "master", f"journalctl --output=cat --identifier {facts.NODE_LOG} --lines 20")
    assert f"the file system of {mount} has had 1 errors" in said


def test_after_a_reboot_volumes_are_mounted_and_services_up_as_soon_as_the_shared_file_system_answers(
    nfs_cluster: Lab,
) -> None:
    on(nfs_cluster, "master", "date > /home/kept && rabbitmqctl --silent add_vhost kept")
    a_broken_file_system_is_seen(nfs_cluster, facts.HOME_MOUNT)
    waiting = {"master": facts.DBSERVER_UNIT, "worker-1": facts.CELERY_UNIT}
    with blocked(nfs_cluster, facts.NFS_PORT):
        for name in waiting:
            reboot(nfs_cluster, name)
        for name in waiting:
            tried = f"systemctl show --property=NRestarts --value {facts.MOUNTS_UNIT}"
            wait_until("two attempts", lambda: int(on(nfs_cluster, name, tried)) >= 2, DEADLINE)  # noqa: B023
            assert says(nfs_cluster, name, f"{facts.NFS_DIR} is not mounted")
        wait_until(
            "what needs no file system", lambda: facts.AMQP_PORT in listening(nfs_cluster, "master"), 180
        )
        for name, unit in waiting.items():
            assert says(nfs_cluster, name, f"{unit} is inactive")
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    # Not by bootcmd, which there is only with the metadata service.
    start = "systemctl show --property=InactiveExitTimestampMonotonic --value"
    units = " ".join(map(userdata.volume_unit, facts.VOLUME_MOUNTS))
    *mounted, bootcmd = map(
        int, on(nfs_cluster, "master", f"{start} {units} cloud-init-network.service").split()
    )
    assert max(mounted) < bootcmd
    # The journal goes back to the first line of the boot, which was written before /var was there.
    first = on(nfs_cluster, "master", "journalctl --boot --quiet --output=cat --no-pager | head -n 1")
    assert "Linux version" in first or "Journal started" in first
    assert "ordering cycle" not in on(nfs_cluster, "master", "journalctl --boot --no-pager")
    for directory in facts.VOLUME_MOUNTS:
        assert on(nfs_cluster, "master", f"findmnt --noheadings --output SOURCE {directory}").startswith(
            "/dev/loop"
        )
    assert on(nfs_cluster, "master", "cat /home/kept")
    assert "kept" in on(nfs_cluster, "master", "rabbitmqctl --silent list_vhosts").split()
    on(nfs_cluster, "master", "rabbitmqctl --silent delete_vhost kept")


def credentials(lab: Lab, node: str) -> tuple[str, str]:
    """RabbitMQ's user and password in a node's openquake.cfg."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(on(lab, node, f"cat {facts.OPENQUAKE_CFG}"))
    return config["amqp"]["user"], config["amqp"]["password"]


def users_of_connections(lab: Lab) -> set[str]:
    return set(on(lab, "master", "rabbitmqctl --silent list_connections user").split())


def test_a_rotation_ends_no_calculation_and_no_session_and_the_old_password_goes_when_it_may(
    nfs_cluster: Lab,
) -> None:
    job_ini = fetch_job(
        nfs_cluster, DemoJob("rotated", CLASSICAL.folder, {"area_source_discretization": "3"})
    )
    session = Client(nfs_cluster, "eve", account(nfs_cluster, "add", "eve"))
    administrators = administrators_password(nfs_cluster)
    user, password = credentials(nfs_cluster, "master")

    def look() -> None:
        """What the timer does each minute; it fails while the broker comes up."""
        on(nfs_cluster, "master", f"systemctl start {facts.REFRESH_SERVICE} || true")

    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = pool.submit(run_job, nfs_cluster, job_ini, None, show=False)
        wait_until_a_task_runs(nfs_cluster, since, job)
        with held(nfs_cluster):
            said = on(nfs_cluster, "master", "oq-node rotate")
            assert "generation 2" in said
            # What runs comes back with the old password.
            faults.restart(nfs_cluster, "rabbitmq")
            said = f"journalctl --identifier {facts.NODE_LOG} --since @{since:.0f}"

            def waits_for_the_calculation() -> bool:
                look()
                return f"RabbitMQ's {user} stays for oq-job-" in on(nfs_cluster, "master", said)

            wait_until("a look", waits_for_the_calculation, DEADLINE)
            assert not job.done()
        first = job.result()
    master = nfs_cluster.machine("master")
    assert master.execute(["rabbitmqctl", "authenticate_user", user, password]).returncode == 0

    def gone() -> bool:
        look()
        return user not in on(nfs_cluster, "master", "rabbitmqctl --silent list_users").split()

    wait_until("the old user to go", gone, DEADLINE)
    assert master.execute(["rabbitmqctl", "authenticate_user", user, password]).returncode != 0
    for worker in nfs_cluster.workers():  # whose Celery may be on its way to the new ones
        worker.ready_after = None
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    new = credentials(nfs_cluster, "master")
    assert new[0] == f"{facts.AMQP_USER}-2"
    assert {credentials(nfs_cluster, worker.name) for worker in nfs_cluster.workers()} == {new}
    assert users_of_connections(nfs_cluster) == {new[0]}
    assert session.get("/v1/calc/list").status_code == 200
    assert administrators_password(nfs_cluster) != administrators
    assert administrator(nfs_cluster).get("/v1/calc/list").status_code == 200
    second = run_job(nfs_cluster, job_ini, None, show=False)
    # The engine splits tasks by the time that they take, so sums of float32 have other parts each time.
    assert compare(nfs_cluster, first, second).relative <= 32 * FLOAT32_ROUNDING


def test_a_killed_worker_and_one_that_cannot_become_one_are_replaced(nfs_cluster: Lab) -> None:
    """The second breaks in a way that nobody has thought of, and has its attempts in less than ten minutes."""
    unit = f"/etc/systemd/system/{facts.BOOTSTRAP_UNIT}"
    on(
        nfs_cluster,
        "worker-2",
        f"echo '{{' > {cache.NODE_FACTS} && rm {facts.BOOTSTRAP_DONE} && "
        f"sed --in-place 's/^RestartSec=.*/RestartSec=100ms/' {unit} && "
        f"systemctl daemon-reload && systemctl start --no-block {facts.BOOTSTRAP_UNIT}",
    )
    wait_until("power-off", lambda: nfs_cluster.machine("worker-2").init() is None, DEADLINE)
    cluster.kill(nfs_cluster, "worker-1")
    assert cluster.state(nfs_cluster, nfs_cluster.nodes["worker-1"]).problems == (cluster.OFF,)
    fleet.scale(nfs_cluster, 2)
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    assert list(nfs_cluster.nodes) == ["master", "worker-3", "worker-4"]
    # They have booted after a rotation of the secrets.
    assert credentials(nfs_cluster, "worker-3") == credentials(nfs_cluster, "master")
    assert credentials(nfs_cluster, "worker-3")[0] != facts.AMQP_USER


def test_a_restart_of_the_dbserver_ends_no_calculation_that_came_through_the_api(nfs_cluster: Lab) -> None:
    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = DemoJob("restarted", CLASSICAL.folder, {"area_source_discretization": "3"})
        log = pool.submit(submit, nfs_cluster, fetch_job(nfs_cluster, job))
        wait_until_a_task_runs(nfs_cluster, since, log)
        faults.restart(nfs_cluster, "dbserver")
        assert not log.done()
        log.result()


def test_a_calculation_that_is_killed_has_failed_and_the_journal_says_so(nfs_cluster: Lab) -> None:
    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = pool.submit(run_job, nfs_cluster, fetch_job(nfs_cluster, LONG_JOB), None, show=False)
        wait_until_a_task_runs(nfs_cluster, since, job)
        on(nfs_cluster, "master", "pkill --signal KILL oq-job-")
        assert job.exception() is not None
    killed = calculations(nfs_cluster)[-1]
    run_oneshot(nfs_cluster, facts.REAP_SERVICE)
    said = on(
        nfs_cluster, "master", f"journalctl --output=cat --unit {facts.REAP_SERVICE} --since @{since:.0f}"
    )
    assert f"of calculation {killed['id']} is gone" in said
    assert calculations(nfs_cluster)[-1] == killed | {"status": "failed"}


def test_a_killed_master_comes_back_with_its_data_and_its_calculation_has_failed(nfs_cluster: Lab) -> None:
    """Else the database would have it running for ever, and the next calculations would wait for it."""
    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = pool.submit(run_job, nfs_cluster, fetch_job(nfs_cluster, LONG_JOB), None, show=False)
        wait_until_a_task_runs(nfs_cluster, since, job)
        before = calculations(nfs_cluster)
        cluster.kill(nfs_cluster, "master")
        assert job.exception() is not None
    assert before[-1]["status"] == "executing"
    # The root directory of /home as a file: more than fsck repairs by itself.
    (home,) = [
        one for one in nfs_cluster.plan.instances[0].volumes if one.size == SMALL_VOLUMES["homeVolumeGb"]
    ]
    device = volumes.device_of(nfs_cluster.paths, home.id)
    assert device is not None
    run(["debugfs", "-w", "-R", "set_inode_field <2> mode 0100755", device])
    cluster.power_on(nfs_cluster, nfs_cluster.master())
    wait_until("the boot", lambda: nfs_cluster.machine("master").init() is not None, DEADLINE)
    # nginx is among them, and answers that the WebUI is away
    others = {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}
    wait_until("the others", lambda: listening(nfs_cluster, "master") == others, DEADLINE)
    assert says(nfs_cluster, "master", f"{facts.HOME_MOUNT} is not mounted")
    refused, why = as_user(nfs_cluster, USER, "oq info")
    assert (refused, f"oq: {facts.HOME_MOUNT} is not mounted" in why) == (1, True), why
    run(["debugfs", "-w", "-R", "set_inode_field <2> mode 040755", device])
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    run_oneshot(nfs_cluster, facts.REAP_SERVICE)
    assert calculations(nfs_cluster) == [*before[:-1], before[-1] | {"status": "failed"}]


def replace_in_bad_hours(lab: Lab) -> None:
    """Replace the master and start one more worker while all that a boot can do without for a time is away.

    The volumes come late; the registries, AWS's API and the shared file system do not answer; and the master reboots in
    the middle.
    """
    (instance,) = lab.plan.instances
    wait = f"wait={userdata.FIRST_VOLUMES_SECONDS}\n"
    text = gzip.decompress(instance.template.user_data).decode()
    assert wait in text
    impatient = gzip.compress(text.replace(wait, "wait=3\n").encode())
    plan = lab.plan
    lab.plan = replace(
        plan, instances=[replace(instance, template=replace(instance.template, user_data=impatient))]
    )
    build.replace_master(lab, print, attach=False)
    wait_until("the wait for volumes", lambda: says(lab, "master", "bootstrap is at data volumes"), DEADLINE)
    with blocked(lab, facts.HTTP_PORT, facts.HTTPS_PORT, facts.NFS_PORT):
        fleet.set_capacity(lab, matrix.WORKERS + 1)
        cluster.attach_volumes(lab)
        wait_until("the packages", lambda: says(lab, "master", "bootstrap is at Debian packages"), DEADLINE)
        reboot(lab, "master")
        newest = lab.workers()[-1].name
        failed = "has failed at shared file system"
        wait_until("a bootstrap that fails", lambda: says(lab, newest, failed), DEADLINE)
    lab.plan = plan


def test_a_new_master_goes_on_where_the_old_one_was(nfs_cluster: Lab, tmp_path: Path) -> None:
    """Another machine, a blank disk; the volumes, the shared file system and the running workers are as they were."""
    job_ini = fetch_job(nfs_cluster, CLASSICAL)
    first = run_job(nfs_cluster, job_ini, tmp_path / "before", show=False)
    calculated = calculations(nfs_cluster)
    celery = f"systemctl show --property=MainPID {facts.CELERY_UNIT}"
    workers = {node.name: on(nfs_cluster, node.name, celery) for node in nfs_cluster.workers()}
    people(nfs_cluster, "bob", "ssm-user")
    on(
        nfs_cluster,
        "master",
        "echo 'ssm-user ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/ssm-agent-users && "
        "usermod --append --groups sudo bob",
    )
    run_oneshot(nfs_cluster, facts.REFRESH_SERVICE)
    on(
        nfs_cluster,
        "master",
        # Nobody's homes: a directory that is visited before its owner's, one that no account can be named
        # after, a system user's name.
        "mkdir /home/a-archive '/home/Data 2026' /home/backup && "
        "chown bob: /home/a-archive '/home/Data 2026' && chown 1999 /home/backup && "
        "useradd --create-home --user-group late",  # of whom nothing is written down yet
    )
    ids = f"for name in {USER} bob ssm-user; do id --user $name; id --groups --name $name | xargs -n 1 | sort; done"
    ids += "; id --user late"
    accounts = on(nfs_cluster, "master", ids)
    webui = {"bob": account(nfs_cluster, "add", "bob"), "admin": administrators_password(nfs_cluster)}
    machine = on(nfs_cluster, "master", "cat /etc/machine-id")

    replace_in_bad_hours(nfs_cluster)
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    fleet.scale(nfs_cluster, matrix.WORKERS)

    assert on(nfs_cluster, "master", "cat /etc/machine-id") != machine
    assert on(nfs_cluster, "master", ids) == accounts
    for name, password in webui.items():
        assert Client(nfs_cluster).login(name, password).status_code == 200, name
    root = on(nfs_cluster, "master", "runuser --user ssm-user -- sudo --non-interactive id --user")
    assert root.strip() == "0"
    assert calculations(nfs_cluster) == calculated
    export = f"oq engine --export-outputs {first.calculation} /home/{USER}/after >&2 && cd /home/{USER}/after"
    line = f"{export} && sha256sum *.csv"
    exported = on(nfs_cluster, "master", f"runuser --login {USER} --command '{line}'")
    before = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (tmp_path / "before").glob("*.csv")
    }
    assert before
    assert {name: digest for digest, name in map(str.split, exported.splitlines())} == before
    second = run_job(nfs_cluster, job_ini, None, show=False, limit=300)
    assert compare(nfs_cluster, first, second).absolute == 0
    assert second.calculation == first.calculation + 1
    assert {node.name: on(nfs_cluster, node.name, celery) for node in nfs_cluster.workers()} == workers
