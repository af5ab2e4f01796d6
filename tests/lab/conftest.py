"""Clusters that the lab's tests share: each boots once per module, under a name that only this run has."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import build, cache, cluster
from lab.cluster.cluster import Lab
from lab.cluster.program import record, small_config
from lab.linux import host, teardown
from lab.linux.host import Paths
from tests.lab.support import READY_SECONDS

OWN_IMAGE = "ami-0123456789abcdef0"
NAMES = ("oqlabtest", *(f"oqlabtest{number}" for number in range(2, 100)))


def paths_of(name: str) -> Paths:
    """A lab of the tests: it shares the cache with the others of this clone."""
    return Paths(name, host.lab_paths().cache)


TIMEOUT = 1800
"""Seconds for a test with what it needs, against hanging: the first one builds an image and an engine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("lab")]
    for item in marked:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT))
    if marked and (lacks := host.missing(paths_of(NAMES[0]))):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"missing here: {', '.join(lacks)}"))


@pytest.fixture(scope="session")
def paths() -> Iterator[Paths]:
    with own_name() as name:
        yield paths_of(name)


@contextmanager
def own_name() -> Iterator[str]:
    """The name of a lab that no other run of tests uses while the block lasts.

    The name's lock goes with the run, so a run that was killed leaves its name free and perhaps its lab: what is found
    of such labs is removed. Names with nothing to remove are left alone: another run may be about to take them.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is up is taken down then, too
    own: tuple[str, IO[str]] | None = None
    for name in NAMES:
        if own is not None and not paths_of(name).state.exists():
            continue
        lock = Path("/run", f"{name}.lock").open("w")  # noqa: SIM115  held as long as the block
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        teardown.remove(paths_of(name))
        if own is None:
            own = name, lock
        else:
            lock.close()
    if own is None:
        pytest.fail(f"{len(NAMES)} runs of the lab's tests are going on already")
    with own[1]:
        yield own[0]


@pytest.fixture(scope="module")
def nfs_cluster(paths: Paths) -> Iterator[Lab]:
    """A master and two workers with root disks; the master gets out by NAT."""
    with booted(paths, workerStorage="nfs", egress="nat") as lab:
        yield lab


@pytest.fixture(scope="module")
def diskless_cluster(paths: Paths) -> Iterator[Lab]:
    """A master and two diskless workers; nothing gets out of the VPC, so their image has everything baked in. The WebUI
    asks nobody for a password, and speaks HTTPS with a certificate of its own.
    """
    settings = {
        "workerStorage": "diskless",
        "egress": "endpoints",
        "amiId": OWN_IMAGE,
        "webuiLogin": "false",
        "webuiCertificate": "self",
    }
    with booted(paths, **settings) as lab:
        yield lab


def configuration(**settings: object) -> dict[str, str]:
    return small_config("dev", {"workerDesired": 2, **settings})


@contextmanager
def booted(
    paths: Paths, powered_on: Callable[[Lab], object] = lambda _lab: None, /, **settings: object
) -> Iterator[Lab]:
    """A lab that is ready; `powered_on` is called while its nodes boot."""
    teardown.remove(paths)  # what a test run that was killed has left
    have_engine(paths)
    try:
        lab = build.up(paths, make_plan(record(configuration(**settings))), print)
        powered_on(lab)
        cluster.wait_until_ready(lab, print, timeout=READY_SECONDS)  # says why not, before TIMEOUT ends all
        yield lab
    finally:
        build.down(paths)
    with suppress(LabError):  # the kernel may take a moment to let a loop device go
        host.wait_until("the last device to go", lambda: not left_over(paths), 30)
    assert left_over(paths) == []


def have_engine(paths: Paths) -> None:
    """Have the engine of this bundle in the cache.

    Of several runs that begin with a new one, the first builds it, with a master that has a way to PyPI; the others
    wait, where each would otherwise compile the same on the same cores.
    """
    plan = make_plan(record(configuration(workerDesired=0)))
    paths.cache.mkdir(parents=True, exist_ok=True)
    with (paths.cache / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cache.has_engine(paths, plan, print):
            return
        try:
            cluster.wait_until_ready(build.up(paths, plan, print), print)
        finally:
            build.down(paths)


def left_over(paths: Paths) -> list[str]:
    """Whatever of a lab is still on this machine."""
    loops = host.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"]).split()
    groups = [str(group) for root in host.control_group_roots() for group in root.glob(f"{paths.name}-*")]
    return [
        *map(str, host.processes(paths)),
        *host.namespaces(paths),
        *host.mounts_below(paths.state),
        *(loop for loop in loops if loop.startswith(f"{paths.state}/")),
        *groups,
        *map(str, paths.state.glob("*")),
    ]
