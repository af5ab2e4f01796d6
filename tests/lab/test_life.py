"""The life of a cluster under Pulumi's real engine, on nodes that boot here: `pulumi up` to `pulumi destroy`, and back.

One cluster and its data go through all tests in their order; each leaves it up. After each change, those who compute
find everything as it was, and the next calculation equals the first bit for bit. What is not shown: that AWS does what
the lab does, and how long AWS takes for it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from components import facts
from lab.aws.plan import make_plan
from lab.base import REPOSITORY
from lab.cluster import build, cache, cluster, fleet
from lab.cluster.cluster import Lab
from lab.cluster.program import SMALL_VOLUMES, record
from lab.cluster.region import ATTACHMENT, LabRegion
from lab.linux import host, volumes
from lab.linux.host import Paths
from lab.region.provider import Values
from lab.region.stack import Stack, served
from lab.trials.job import CLASSICAL, USER, DemoJob, Run, compare, fetch_job, run_job
from tests.engine.conftest import pulumi
from tests.lab.support import DEADLINE, READY_SECONDS, as_user, on, people, wait_until_a_task_runs
from tests.lab.web import calculations

pytestmark = pytest.mark.lab
__all__ = ["pulumi"]

SETTINGS: dict[str, object] = {**SMALL_VOLUMES, "workerDesired": 2, "workerMax": 3, "drainMinutes": 2}
# Long enough to change settings meanwhile; its tasks do not split by the clock, or sums would have other parts.
LONG = DemoJob("classical", CLASSICAL.folder, {"width_of_mfd_bin": "0.05\nsplit_time = 86400"})
PROGRAM = ("__main__.py", "Pulumi.yaml", "components", "cloud-init", "engine")


class Region(LabRegion):
    """A region in which something can be made without Pulumi's getting to know of it.

    Attributes:
        holds: the type of a resource that is made and never answered for; `held` is set then
    """

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths, print)
        self.holds = ""
        self.held, self.let_go = threading.Event(), threading.Event()

    def make(self, type_: str, name: str, id_: str, outputs: Values) -> None:
        super().make(type_, name, id_, outputs)
        if type_ == self.holds:
            self.held.set()
            self.let_go.wait()


@dataclass
class Life:
    """A cluster through its changes.

    Attributes:
        first: the first calculation, of which the later ones are repetitions
        known: what those who compute see of the cluster
    """

    region: Region
    stack: Stack
    settings: dict[str, object] = field(default_factory=lambda: dict(SETTINGS))
    first: Run | None = None
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def lab(self) -> Lab:
        assert self.region.lab is not None
        return self.region.lab

    def up(self, **settings: object) -> None:
        """Change settings, update, and wait for what AWS does afterwards and for all nodes."""
        self.settings |= settings
        self.stack.configure(**self.settings)
        self.stack.up()
        self.settle()

    def settle(self) -> None:
        self.region.settle()
        cluster.wait_until_ready(self.lab, print, timeout=READY_SECONDS)
        # What a timer does within a minute: accounts are written down, num_cores follows the fleet's size. What it does
        # last, the growth of file systems, a container may be refused.
        self.lab.machine("master").execute(["systemctl", "start", facts.REFRESH_SERVICE])

    def compute(self) -> Run:
        return run_job(self.lab, fetch_job(self.lab, CLASSICAL), None, show=False, limit=300)

    def look(self) -> None:
        """Remember what those who compute see."""
        self.known = self._seen()

    def assert_as_before(self) -> None:
        """All is as it was, and the next calculation equals the first bit for bit."""
        assert self.first is not None
        assert self._seen() == self.known
        again = self.compute()
        assert compare(self.lab, self.first, again).absolute == 0
        assert again.calculation == self.known["calculations"][-1]["id"] + 1
        assert self.stack.preview() == []
        self.look()

    def _seen(self) -> dict[str, Any]:
        assert self.first is not None
        directory = f"/home/{USER}/exported"
        export = f"rm -rf {directory} && oq engine --export-outputs {self.first.calculation} {directory} >&2"
        line = f"{export} && cat {directory}/*.csv"
        exported = on(self.lab, "master", f"runuser --login {USER} --command '{line}'")
        return {
            "exported": hashlib.sha256(exported.encode()).hexdigest(),
            "calculations": calculations(self.lab),
            "accounts": on(
                self.lab, "master", f"id {USER}; id bob; stat --format '%n %u %g %a' /home/* /home/bob/notes"
            ),
            "addresses": [node.address for node in self.lab.nodes.values() if node.group is None],
        }


@pytest.fixture(scope="module")
def life(paths: Paths, pulumi: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    build.down(paths)  # what a test run that was killed has left
    try:
        region = Region(paths)
        with served(region) as environment:
            stack = Stack(pulumi, tmp_path_factory.mktemp("life") / "stack", environment).init()
            life = Life(region, stack)
            life.up()
            life.first = life.compute()
            people(life.lab, "bob")
            on(life.lab, "master", "runuser --login bob --command 'echo mine > notes'")
            life.settle()
            life.look()
            yield life
            region.let_go.set()
    finally:
        build.down(paths)


def test_settings_change_while_a_calculation_computes_and_its_numbers_do_not(life: Life) -> None:
    """The workers are replaced through their hook by diskless ones, while both have tasks."""
    job_ini = fetch_job(life.lab, LONG)
    alone = run_job(life.lab, job_ini, None, show=False, limit=900)
    old = {node.id for node in life.lab.workers()}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, life.lab, job_ini, None, show=False, limit=900)
        wait_until_a_task_runs(life.lab, alone.started + alone.seconds, running)
        life.up(workerStorage="diskless", workerMax=4, drainMinutes=3)
        assert compare(life.lab, alone, running.result()).absolute == 0
    assert old.isdisjoint(node.id for node in life.lab.workers())
    for node in life.lab.workers():
        on(life.lab, node.name, "findmnt --source openquake-diskless")
    completed = cluster.events_directory(life.lab.paths) / "completed"
    assert old <= {file.name for file in completed.iterdir()}
    life.up(workerStorage="nfs", workerMax=3, drainMinutes=2)
    life.look()
    life.assert_as_before()


def test_another_type_of_master_is_there_after_a_restart_and_a_larger_volume_at_once(life: Life) -> None:
    """The file system on it grows with the kernel's leave, which a container may lack: tests/vm has that."""
    machine, running = on(life.lab, "master", "cat /etc/machine-id"), life.lab.machine("master").init()
    life.up(masterInstanceType="t3.xlarge", varVolumeGb=7)
    assert on(life.lab, "master", "cat /etc/machine-id") == machine
    assert life.lab.machine("master").init() != running
    assert life.lab.master().template.instance_type == "t3.xlarge"
    (grown,) = [one for one in life.lab.plan.volumes.values() if one.size == 7]
    link = f"{facts.EBS_DEVICE_PREFIX}{grown.id.replace('-', '')}"
    assert int(on(life.lab, "master", f"blockdev --getsize64 {link}")) == 7 * 1024**3
    life.assert_as_before()


def other_engine(life: Life, directory: Path) -> Path:
    """A program with another bundle of the engine: one comment more.

    So that its nodes need not build it, the engine of the present bundle is where they look for that of the other.
    """
    for name in PROGRAM:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / name)
    with (directory / "engine/requirements.txt").open("a") as requirements:
        requirements.write("# another one\n")
    plan = make_plan(record({}, program=directory / "__main__.py"))
    engines = life.lab.file_system() / cache.ENGINES
    (present,) = engines.glob("*.squashfs")
    shutil.copy(present, engines / cache.kept_engine(life.lab.paths, plan).name)
    return directory


def test_an_update_of_the_engine_that_is_killed_between_master_and_volumes_is_healed_and_rolled_back(
    life: Life, tmp_path: Path
) -> None:
    # The image's file by its name, after the bundle: its loop device has to do with other labs, too, and its path with
    # the mount through which the kernel looks back.
    mounted = f"$(findmnt --noheadings --output SOURCE {facts.ENGINE_DIR})"
    engine = f"basename $(losetup --noheadings --output BACK-FILE {mounted})"
    before = on(life.lab, "master", engine)
    assert before.strip().endswith(".squashfs")
    program = life.stack.directory / "program"
    program.unlink()
    program.symlink_to(other_engine(life, tmp_path))
    life.region.holds = ATTACHMENT
    with subprocess.Popen(
        life.stack.command("up", "--yes", "--skip-preview"),
        cwd=life.stack.directory,
        env=life.stack.surroundings(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as killed:
        try:
            assert life.region.held.wait(600)
            host.wait_until("the state to be written", life.stack.is_written, DEADLINE)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
    life.region.holds = ""
    life.region.let_go.set()
    for command in ("cancel --yes", "refresh --clear-pending-creates --yes --skip-preview"):
        life.stack.run(*command.split())
    life.up()
    assert on(life.lab, "master", engine) != before
    assert {on(life.lab, node.name, engine) for node in life.lab.workers()} == {
        on(life.lab, "master", engine)
    }
    life.assert_as_before()
    program.unlink()
    program.symlink_to(REPOSITORY)
    life.up()
    assert on(life.lab, "master", engine) == before
    life.assert_as_before()


def test_another_stack_goes_on_with_the_data_that_a_destroyed_one_has_left(
    life: Life, tmp_path: Path
) -> None:
    """By the commands that the first stack printed; the home directories come from a snapshot."""
    commands = life.stack.run("stack", "output", "takeDataBack", "--show-secrets").splitlines()
    (home,) = [one.id for one in life.lab.plan.volumes.values() if one.size == SMALL_VOLUMES["homeVolumeGb"]]
    life.stack.destroy()
    assert life.region.lab is None
    snapshot = volumes.take_snapshot(life.region.paths, home)
    life.stack = replace(life.stack, directory=tmp_path / "stack", name="second").init()
    life.stack.configure(**life.settings)
    for command in commands:
        life.stack.run(*shlex.split(command)[1:])
    life.stack.run("config", "set", "homeVolumeId", snapshot)
    life.stack.up()
    life.settle()
    life.assert_as_before()
    assert as_user(life.lab, "bob", "cat notes") == (0, "mine\n")


def test_destroyed_while_a_worker_drains_it_leaves_the_data_and_nothing_else(life: Life) -> None:
    """Of adopted data nothing is deleted; a calculation that runs ends with its cluster."""
    kept = {one.id for one in life.lab.plan.instances[0].volumes} | {life.lab.plan.file_system}
    job_ini = fetch_job(life.lab, LONG)
    with ThreadPoolExecutor(1) as pool:
        since = time.time()
        running = pool.submit(run_job, life.lab, job_ini, None, show=False, limit=900)
        wait_until_a_task_runs(life.lab, since, running)
        fleet.set_capacity(life.lab, 1)
        assert len(life.lab.workers()) == 2
        life.stack.destroy()
        assert running.exception() is not None
    state = life.region.paths.state
    assert host.processes(life.region.paths) == []
    assert host.namespaces(life.region.paths) == []
    left = {path.name for path in [*state.glob("volumes/*"), *state.glob("efs/*")]}
    assert kept <= left
