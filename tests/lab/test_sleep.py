"""A master that nobody needs stops itself or is sent to sleep; woken, it goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
from oq_idle import cli, gate
from oq_idle.cli import BUSY

from components import facts, userdata
from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab
from lab.linux.host import wait_until
from lab.services import imds
from lab.trials.job import CLASSICAL, compare, fetch_job, run_job
from tests.lab.computer import Computer, person
from tests.lab.support import DEADLINE, READY_SECONDS, listening, on, people, run_oneshot
from tests.lab.web import administrator, calculations

pytestmark = pytest.mark.lab

MINUTES = 2
ASKED = cli.WEBUI / gate.FILE  # whose time is that of the last request to the WebUI
STOP_SECONDS = 5  # in which a machine that has been told to power off is no more to be asked
# Whether the look finds that somebody needs the master: then it writes down when.
# It looks as for its timer (`idle` in cloud-init/oq_node/master.py), but for the minutes.
IDLE = "from oq_node import common, master; common.run(*master.idle('1000'), env=master.ENVIRONMENT)"
LOOK = (
    f"rm -f {BUSY}; touch --date '1 hour ago' {BUSY}; "
    f'PYTHONPATH={userdata.LIBRARY_PARENT} python3 -c "{IDLE}"; stat --format %Y {BUSY}'
)
ASLEEP = "oq-cluster: the master sleeps: oq-cluster wake starts it\n"


def may_stop_after(lab: Lab, minutes: int) -> None:
    """Change the tag of the master's instance, as `pulumi up` does with another `stopWhenIdleMinutes`."""
    path = f"tags/instance/{facts.STOP_WHEN_IDLE_TAG}"
    imds.announce(cluster.imds_directory(lab.paths), lab.master().address, path, str(minutes))


def is_needed(lab: Lab) -> bool:
    """Whether the master finds that somebody needs it."""
    began = time.time()
    return int(on(lab, "master", LOOK)) >= int(began)


def is_refused(ann: Computer, reason: str) -> None:
    """`oq-cluster sleep` says why the master stays awake."""
    ann.oq("sleep", status=1)
    assert f"stays awake: {reason}" in ann.errors


def test_a_master_sleeps_when_nobody_needs_it_and_wakes_as_it_was(nfs_cluster: Lab, tmp_path: Path) -> None:
    people(nfs_cluster, "ann")
    ann = person(nfs_cluster, tmp_path, "ann")
    job = fetch_job(nfs_cluster, CLASSICAL)
    first = run_job(nfs_cluster, job, None, show=False)

    assert is_needed(nfs_cluster)
    is_refused(ann, "2 workers are there")
    fleet.scale(nfs_cluster, 0)
    wait_until("nobody to need it", lambda: not is_needed(nfs_cluster), DEADLINE)

    number = ann.json("run", job, "--no-wait")["id"]  # whose tasks wait: no worker is there
    assert is_needed(nfs_cluster)
    is_refused(ann, "calculation ")
    ann.oq("abort", str(number))
    # A worker would drop the task of what was aborted; on AWS the task starts one.
    on(
        nfs_cluster,
        "master",
        f"rabbitmqctl --quiet purge_queue --vhost {facts.AMQP_VHOST} {facts.CELERY_QUEUE}",
    )

    on(nfs_cluster, "master", "systemd-run --quiet --unit=anns --uid=ann sleep 600")
    assert is_needed(nfs_cluster)
    on(nfs_cluster, "master", "systemctl stop anns")
    wait_until("nobody to need it", lambda: not is_needed(nfs_cluster), DEADLINE)

    stays_for_an_upload(nfs_cluster, ann)
    known, address = calculations(nfs_cluster), nfs_cluster.master().address
    account = on(nfs_cluster, "master", "id ann")

    ann.oq("list")
    may_stop_after(nfs_cluster, MINUTES)
    # As the timer does, which finds that it has been asked just now.
    run_oneshot(nfs_cluster, facts.REFRESH_SERVICE)
    time.sleep(STOP_SECONDS)
    assert "poweroff" not in on(nfs_cluster, "master", "systemctl list-jobs --no-legend")
    on(nfs_cluster, "master", f"touch --date '{MINUTES} minutes ago' {BUSY} {ASKED}")
    # Not asked itself: what is asked while it stops may never answer.
    wait_until("the stop", lambda: not nfs_cluster.machine("master").monitors(), DEADLINE)
    assert nfs_cluster.workers() == []
    ann.oq("list", status=1)
    assert ann.errors == ASLEEP
    ann.oq("users", "list", status=1)
    assert ann.errors == ASLEEP

    may_stop_after(nfs_cluster, 0)
    woken = ann.json("wake")
    print(f"awake after {woken['seconds']} s")
    assert number in [one["id"] for one in ann.json("list")]  # with the login of before
    nfs_cluster.master().ready_after = None
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    assert nfs_cluster.master().address == address
    assert listening(nfs_cluster, "master") == {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}
    assert (calculations(nfs_cluster), on(nfs_cluster, "master", "id ann")) == (known, account)
    fleet.scale(nfs_cluster, 1)
    cluster.wait_until_ready(nfs_cluster, print, timeout=READY_SECONDS)
    again = run_job(nfs_cluster, job, None, show=False)
    assert compare(nfs_cluster, first, again).relative == 0

    fleet.scale(nfs_cluster, 0)
    wait_until("nobody to need it", lambda: not is_needed(nfs_cluster), DEADLINE)
    assert ann.json("sleep") == {"state": "stopped"}
    assert not nfs_cluster.machine("master").monitors()
    assert "oq-cluster wake" in ann.oq("sleep")


class Upload:
    """The body of a request, of which nothing comes after its beginning until it is given up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self._rest = b"--x\r\n"

    def __len__(self) -> int:
        """More than comes."""
        return 10**6

    def read(self, size: int = -1) -> bytes:
        """The beginning, then an error."""
        del size
        if not self._rest:
            self.given_up.wait(120)
            raise OSError("given up")
        block, self._rest = self._rest, b""
        return block


def stays_for_an_upload(lab: Lab, ann: Computer) -> None:
    """A request that is not complete yet keeps the master, however long ago it began."""
    client, body = administrator(lab), Upload()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}

    def send() -> None:
        with contextlib.suppress(OSError):
            client.post("/v1/calc/run", data=body, headers=kind)

    upload = threading.Thread(target=send)
    upload.start()
    try:
        free = ["flock", "--exclusive", "--nonblock", "/run/openquake-webui/asked", "true"]
        wait_until("the upload", lambda: lab.machine("master").execute(free).returncode == 1, DEADLINE)
        is_refused(ann, "the WebUI is answering a request")
    finally:
        body.given_up.set()
        upload.join(60)
