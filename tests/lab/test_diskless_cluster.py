"""A real boot of diskless workers in a VPC without any way out, and taking down a lab that has crashed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from components import facts
from lab.aws.cloud import S3
from lab.cluster import build
from lab.cluster.cluster import Lab
from lab.linux import network
from lab.linux.host import kill, processes
from lab.trials.job import CLASSICAL, fetch_job
from tests.lab.conftest import left_over
from tests.lab.support import FLOAT32_ROUNDING, compute, listening, on, reached
from tests.lab.web import Client

pytestmark = pytest.mark.lab


def test_the_engine_comes_from_the_machines_image(diskless_cluster: Lab) -> None:
    """Nothing was on the shared file system, and there is no way to PyPI."""
    log = on(diskless_cluster, "master", "journalctl --output=cat --identifier=oq-node")
    assert f"taking {facts.BAKED_ENGINE_DIR}/" in log


def test_diskless_workers_compute_and_the_numbers_equal_a_single_node_run(
    diskless_cluster: Lab, tmp_path: Path
) -> None:
    work, difference = compute(diskless_cluster, tmp_path)
    assert {name for name, (tasks, _) in work.items() if tasks > 0} == {"worker-1", "worker-2"}
    assert difference.relative <= FLOAT32_ROUNDING


def test_a_diskless_worker_cannot_write_its_root_disk(diskless_cluster: Lab) -> None:
    machine = diskless_cluster.machine("worker-1")
    refused = machine.execute(["touch", "/written", "/usr/bin/written"])
    assert refused.stderr.count("Read-only file system") == 2
    for directory in ("/etc", "/var/log", "/root"):
        on(diskless_cluster, "worker-1", f"touch {directory}/written")
        assert not (machine.directory / "upper" / directory[1:] / "written").exists()


def test_directories_in_memory_are_no_more_open_than_those_of_the_image(diskless_cluster: Lab) -> None:
    modes = "stat --format '%n %a' etc home opt root srv usr/local var"
    image = "mkdir -p /run/image && mount --bind / /run/image"
    of_image = on(diskless_cluster, "worker-1", f"{image} && cd /run/image && {modes}")
    assert on(diskless_cluster, "worker-1", f"umount /run/image; cd / && {modes}") == of_image
    room = on(
        diskless_cluster, "worker-1", "df --output=size /run/openquake/diskless /tmp | tail -n 2"
    ).split()
    memory = int(on(diskless_cluster, "worker-1", "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    page = 4  # kB, to which the kernel rounds a share of the memory up
    assert all(int(size) < memory / 4 + page for size in room)


def test_what_a_diskless_worker_says_outlives_it_on_the_shared_file_system(diskless_cluster: Lab) -> None:
    for node in diskless_cluster.workers():
        assert "the worker is ready" in on(
            diskless_cluster, "master", f"{facts.NODE_PROGRAM} logs {node.id} --lines 100000"
        )


def test_nothing_that_is_baked_into_the_image_listens_to_the_network(diskless_cluster: Lab) -> None:
    assert listening(diskless_cluster, "master") == {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}
    for node in diskless_cluster.workers():
        assert listening(diskless_cluster, node.name) == set(), node.name


def shown(lab: Lab) -> str:
    """The certificate that the master has made, as it hands it over."""
    return on(lab, "master", f"cat {facts.WEBUI_CERTIFICATE}")


def test_without_login_anybody_computes_and_still_nobody_sees_djangos_debug_page(
    diskless_cluster: Lab,
) -> None:
    """All of it as the QGIS plugin asks, by HTTPS."""
    anybody, somebody = (Client(diskless_cluster, trusted=shown(diskless_cluster)) for _ in range(2))
    number = int(anybody.run(fetch_job(diskless_cluster, CLASSICAL)).json()["job_id"])
    assert somebody.wait(number) == "complete"
    assert number in somebody.listed()
    for path in ("/engine/", f"/engine/{number}/outputs"):
        assert somebody.get(path).status_code == 200, path
    wrong = somebody.get("/nothing")
    assert (wrong.status_code, "URLconf" in wrong.text) == (404, False)
    assert somebody.get("/v1/calc/list", headers={"Host": "rebound.example"}).status_code == 400


def test_plain_http_is_shown_the_way_to_https_and_gets_nothing_else(diskless_cluster: Lab) -> None:
    plain = Client(diskless_cluster)
    looked, sent = plain.get("/engine/?a=b"), plain.post("/v1/calc/run", data={"a": "b"})
    assert (looked.status_code, looked.headers["Location"]) == (307, f"https{plain.url[4:]}/engine/?a=b")
    assert (sent.status_code, "speaks HTTPS" in sent.text) == (400, True)


def test_who_does_not_know_the_certificate_does_not_believe_it(diskless_cluster: Lab) -> None:
    stranger = Client(diskless_cluster, trusted=shown(diskless_cluster))
    stranger.session.verify = True
    with pytest.raises(requests.exceptions.SSLError, match="self-signed certificate"):
        stranger.get("/engine/")


def test_a_certificate_of_the_masters_own_is_on_a_data_volume_and_its_key_is_roots(
    diskless_cluster: Lab,
) -> None:
    kept, before = f"{facts.WEBUI_KEPT_PAIR} {facts.WEBUI_PAIR}", shown(diskless_cluster)
    assert on(diskless_cluster, "master", f"stat --format '%a %U' {kept}") == "600 root\n" * 2
    for user in (facts.OPENQUAKE_USER, "www-data"):
        read = f"runuser --user {user} -- cat {kept} 2>&1 || true"
        assert on(diskless_cluster, "master", read).count("Permission denied") == 2, user
    devices = f"stat --format %d {facts.WEBUI_KEPT_PAIR} {facts.VAR_MOUNT} /var/lib"
    volume, var, image = on(diskless_cluster, "master", devices).split()
    assert volume == var != image
    # As on the next master, which has the volume and nothing else.
    renew = f"rm -r {facts.WEBUI_TLS_DIR} && systemctl restart {facts.CERTIFICATE_UNIT}"
    on(diskless_cluster, "master", renew)
    assert shown(diskless_cluster) == before


def test_by_night_another_certificate_reaches_people_and_the_same_one_interrupts_nobody(
    diskless_cluster: Lab,
) -> None:
    timers = json.loads(on(diskless_cluster, "master", "systemctl list-timers --output=json"))
    assert {timer["unit"]: timer["activates"] for timer in timers}[
        facts.CERTIFICATE_RENEWAL_TIMER
    ] == facts.CERTIFICATE_RENEWAL_SERVICE

    def night() -> str:
        """What the timer starts, and when nginx began."""
        on(diskless_cluster, "master", f"systemctl start {facts.CERTIFICATE_RENEWAL_SERVICE}")
        # The restart of the others has begun then; this waits for its end.
        on(diskless_cluster, "master", f"systemctl start {facts.NGINX_UNIT} {facts.WEBUI_UNIT}")
        began = f"systemctl show --property ExecMainStartTimestampMonotonic {facts.NGINX_UNIT}"
        return on(diskless_cluster, "master", began)

    before, began = shown(diskless_cluster), night()
    assert (shown(diskless_cluster), night()) == (before, began)
    # It is made anew then, as it is before its end.
    on(diskless_cluster, "master", f"rm {facts.WEBUI_KEPT_PAIR}")
    assert night() != began
    assert shown(diskless_cluster) != before
    Client(diskless_cluster, trusted=shown(diskless_cluster)).listed()


def test_without_nat_not_even_the_master_gets_out(diskless_cluster: Lab) -> None:
    for target in (network.WORLD, network.PUBLIC_API):
        assert reached(diskless_cluster, "master", target) == set()
    assert reached(diskless_cluster, "master", S3) == {facts.HTTPS_PORT}


def test_down_removes_everything_after_a_crash_of_the_lab(diskless_cluster: Lab) -> None:
    paths = diskless_cluster.paths
    kill(processes(paths)[::2])
    (paths.state / "lab.pickle").write_bytes(b"half a fi")
    build.down(paths)
    assert left_over(paths) == []
