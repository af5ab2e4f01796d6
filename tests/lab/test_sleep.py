"""A master that nobody needs stops itself; started again, it goes on as if nothing had been."""

from __future__ import annotations

import time

import pytest

from components import facts
from lab.cluster import cluster, fleet
from lab.cluster.cluster import Lab
from lab.linux.host import wait_until
from lab.services import imds
from lab.trials.job import CLASSICAL, compare, fetch_job, run_job
from tests.lab.support import listening, on, people
from tests.lab.web import administrator, calculations

pytestmark = pytest.mark.lab

MINUTES = 2
BUSY = "/run/openquake/busy"
# Whether the look finds that somebody needs the master: then it writes down when.
LOOK = f"rm -f {BUSY}; touch --date '1 hour ago' {BUSY}; {facts.ENGINE_DIR}/bin/oq-idle 1000; stat --format %Y {BUSY}"


def may_stop_after(lab: Lab, minutes: int) -> None:
    """Change the tag of the master's instance, as `pulumi up` does with another `stopWhenIdleMinutes`."""
    path = f"tags/instance/{facts.STOP_WHEN_IDLE_TAG}"
    imds.announce(cluster.imds_directory(lab.paths), lab.master().address, path, str(minutes))


def is_needed(lab: Lab) -> bool:
    """Whether the master finds that somebody needs it."""
    return time.time() - int(on(lab, "master", LOOK)) < 60


def test_a_master_that_nobody_needs_stops_itself_and_comes_back_as_it_was(nfs_cluster: Lab) -> None:
    people(nfs_cluster, "ann")
    first = run_job(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL), None, show=False)
    assert is_needed(nfs_cluster)  # by its workers
    fleet.scale(nfs_cluster, 0)
    wait_until("nobody to need it", lambda: not is_needed(nfs_cluster), 60)
    on(nfs_cluster, "master", "systemd-run --quiet --unit=anns --uid=ann sleep 600")
    assert is_needed(nfs_cluster)
    on(nfs_cluster, "master", "systemctl stop anns")
    administrator(nfs_cluster)
    assert time.time() - int(on(nfs_cluster, "master", "stat --format %Y /run/openquake-webui/asked")) < 60
    known, address = calculations(nfs_cluster), nfs_cluster.master().address
    account = on(nfs_cluster, "master", "id ann")

    may_stop_after(nfs_cluster, MINUTES)
    asked = time.monotonic()
    # Not asked itself: what is asked while it stops may never answer.
    wait_until("the stop", lambda: not nfs_cluster.machine("master").pids(), (MINUTES + 4) * 60)
    assert time.monotonic() - asked > (MINUTES - 1) * 60
    assert nfs_cluster.workers() == []

    may_stop_after(nfs_cluster, 0)
    cluster.power_on(nfs_cluster, nfs_cluster.master())
    cluster.wait_until_ready(nfs_cluster, print, timeout=300)
    assert nfs_cluster.master().address == address
    assert listening(nfs_cluster, "master") == {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}
    assert (calculations(nfs_cluster), on(nfs_cluster, "master", "id ann")) == (known, account)
    fleet.scale(nfs_cluster, 1)
    cluster.wait_until_ready(nfs_cluster, print, timeout=300)
    again = run_job(nfs_cluster, fetch_job(nfs_cluster, CLASSICAL), None, show=False)
    assert compare(nfs_cluster, first, again).relative == 0
