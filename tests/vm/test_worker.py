"""A worker with Debian's own kernel, in a virtual machine beside a master in a container.

Its kernel mounts the shared file system over NFS and the engine's image, a file there, over a loop device; that of a
diskless one puts overlays in memory over its root. Nothing of this happens in a container, which shares this machine's
kernel. One machine for each of the storages goes through all tests in their order. What is not shown: AWS's hardware
and EFS; the NFS server is Ganesha, on a directory that the master does not reach over NFS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from components import facts
from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import cluster
from lab.cluster.cluster import Lab
from lab.cluster.program import record, small_config
from lab.trials.job import DemoJob, Run, compare, fetch_job, run_job
from lab.vm.machine import VirtualMachine
from lab.vm.node import Worker, boot_worker
from tests.lab.support import FLOAT32_ROUNDING, on
from tests.vm.support import (
    assert_a_clean_boot,
    assert_it_reads_the_shared_file_system_far_ahead,
    assert_nfs_by_the_kernels_own_client,
    assert_only_the_kernel_speaks_nfs,
    assert_the_kernel_is_told_what_a_node_wants,
    eventually,
    is_ready,
    own_lab,
    panic,
    rebooting,
)

pytestmark = [pytest.mark.vm, pytest.mark.whole, pytest.mark.timeout(3600)]

# A twentieth of the demo's sites: what a core computes in a second takes the emulation most of a minute.
JOB = DemoJob("small", "demos/hazard/AreaSourceClassicalPSHA", {"region_grid_spacing": "50.0"})

each_storage = pytest.mark.parametrize("rig", ["diskless", "nfs"], indirect=True, scope="module")
diskless = pytest.mark.parametrize("rig", ["diskless"], indirect=True, scope="module")
with_root_disk = pytest.mark.parametrize("rig", ["nfs"], indirect=True, scope="module")


@dataclass(frozen=True)
class Rig:
    """A worker with its `workerStorage`, a job, and what the master has computed of it alone."""

    storage: str
    worker: Worker
    job_ini: Path
    alone: Run

    @property
    def lab(self) -> Lab:
        return self.worker.lab

    @property
    def machine(self) -> VirtualMachine:
        return self.worker.machine

    def celery_said(self, words: str, since: float) -> int:
        """How many lines of the worker's Celery have these words, from a time on."""
        journal = f"journalctl --output=cat --unit {facts.CELERY_UNIT} --since @{since:.0f}"
        return int(self.machine.succeed(f"{journal} | grep --count --fixed-strings '{words}' || true"))

    def run_job(self) -> None:
        """Compute the job on the worker; the numbers are those of the master alone."""
        distributed = run_job(self.lab, self.job_ini, None, show=False)
        assert compare(self.lab, self.alone, distributed).relative <= FLOAT32_ROUNDING

    def wait_for_a_task(self, since: float, job: Future[None]) -> None:
        """Wait until the worker runs a task of a job that began then."""

        def runs() -> bool:
            return self.celery_said("] received", since) > self.celery_said("] succeeded", since)

        eventually("a task", lambda: job.done() or runs())
        assert not job.done()


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    plan = make_plan(record(small_config("dev", {"workerStorage": request.param, "egress": "nat"})))
    with own_lab() as paths:
        worker = boot_worker(paths, plan, print)
        lab = worker.lab
        cluster.wait_until_ready(lab, print, nodes=[lab.master()])
        job_ini = fetch_job(lab, JOB)
        yield Rig(request.param, worker, job_ini, run_job(lab, job_ini, None, processpool=True, show=False))


@each_storage
def test_it_becomes_ready_by_itself_with_the_engine_over_nfs(rig: Rig) -> None:
    eventually("a ready worker", lambda: is_ready(rig.machine))
    assert_a_clean_boot(rig.machine)
    assert_the_kernel_is_told_what_a_node_wants(rig.machine)
    assert_nfs_by_the_kernels_own_client(rig.machine)
    assert_it_reads_the_shared_file_system_far_ahead(rig.machine)
    mounted = f"findmnt --noheadings --output FSTYPE,SOURCE {facts.ENGINE_DIR}"
    kind, device = rig.machine.succeed(mounted).split()
    assert kind == "squashfs"
    image = rig.machine.succeed(f"losetup --noheadings --output BACK-FILE {device}")
    assert image.startswith(f"{facts.ENGINE_IMAGE_DIR}/")
    assert rig.machine.succeed("systemctl list-units --failed --plain --no-legend") == ""
    assert_only_the_kernel_speaks_nfs(rig.machine)


@each_storage
def test_it_computes_the_numbers_of_a_node_alone(rig: Rig) -> None:
    since = time.time()
    rig.run_job()
    assert rig.celery_said("] succeeded", since) > 0


@each_storage
def test_its_journal_is_on_the_shared_file_system_for_the_master_to_read(rig: Rig) -> None:
    logs = f"{facts.NODE_PROGRAM} logs {rig.worker.node.id} --lines 100000"
    assert "the worker is ready" in on(rig.lab, "master", logs)


@diskless
def test_a_diskless_worker_leaves_nothing_of_the_cluster_on_its_disk(rig: Rig) -> None:
    status, said = rig.machine.execute("touch /written /usr/bin/written")
    assert status != 0
    assert said.count("Read-only file system") == 2
    rig.machine.succeed("touch /etc/written /root/written /var/log/written")
    disk = "mkdir -p /run/disk && mount --bind / /run/disk && cd /run/disk"
    rig.machine.succeed(f"{disk} && test -e etc/cloud")
    hidden = "etc/openquake etc/written root/written var/log/written"
    assert rig.machine.succeed(f"cd /run/disk && find {hidden} 2>&1 || true").count("No such file") == 4
    rig.machine.succeed("umount /run/disk")


@each_storage
def test_after_a_reboot_it_is_ready_again(rig: Rig) -> None:
    rig.machine.succeed("touch /root/kept; sync")
    said = len(rig.machine.console.read_bytes())
    with rebooting(rig.machine), pytest.raises(LabError):
        rig.machine.execute("systemctl reboot; sleep 1000", timeout=30)
    going = rig.machine.console.read_bytes()[said:].decode(errors="replace")
    for trouble in ("Failed unmounting", "timed out"):
        assert trouble not in going
    eventually("a ready worker", lambda: is_ready(rig.machine))
    kept = rig.machine.execute("test -e /root/kept")[0] == 0
    assert kept == (rig.storage == "nfs")
    rig.run_job()


def assert_a_calculation_ends_well_though(rig: Rig, die: Callable[[VirtualMachine], None]) -> None:
    """The worker dies in the middle of a task, and boots by itself."""
    with ThreadPoolExecutor() as pool:
        since = time.time()
        job = pool.submit(rig.run_job)
        rig.wait_for_a_task(since, job)
        with rebooting(rig.machine):
            die(rig.machine)
        assert not job.done()
        job.result()
    eventually("a ready worker", lambda: is_ready(rig.machine))


@diskless
def test_after_a_kernel_panic_in_a_task_it_boots_and_its_calculation_ends_well(rig: Rig) -> None:
    assert_a_calculation_ends_well_though(rig, panic)


@with_root_disk
def test_after_a_power_cut_in_a_task_it_boots_and_its_calculation_ends_well(rig: Rig) -> None:
    assert_a_calculation_ends_well_though(rig, VirtualMachine.reset)
