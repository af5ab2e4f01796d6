"""What the tests on virtual machines share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from components import facts
from lab.base import LabError
from lab.cluster import build
from lab.linux import host
from lab.linux.host import Paths, wait_until
from lab.vm.machine import VirtualMachine
from lab.vm.node import missing
from tests.lab.conftest import own_name

BOOT_SECONDS = 2400
"""A boot takes one to four minutes, and ten times that on a machine whose cores have as many other things to do."""
LOOK_SHARE = 4
"""So many times what a look has taken passes until the next: each costs a machine that boots some of its only core."""
LONGEST_PAUSE_SECONDS = 30


@contextmanager
def own_lab() -> Iterator[Paths]:
    """Where a lab may be that only this run has; it is taken down. Skips the tests where one cannot be."""
    paths = Paths("oqlab", host.lab_paths().cache)
    if lacks := [*host.missing(paths), *missing()]:
        pytest.skip(f"missing here: {', '.join(lacks)}")
    with own_name() as name:
        paths = Paths(name, paths.cache)
        try:
            yield paths
        finally:
            build.down(paths)


def eventually(what: str, true: Callable[[], object]) -> None:
    """Wait until something is so; while the machine boots, its shell does not answer."""
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        began = time.monotonic()
        with suppress(LabError):
            if true():
                return
        now = time.monotonic()
        if now > deadline:
            raise LabError(f"timed out after {BOOT_SECONDS} s waiting for {what}")
        time.sleep(max(1.0, min(LOOK_SHARE * (now - began), LONGEST_PAUSE_SECONDS)))


def is_ready(machine: VirtualMachine) -> bool:
    """Whether a node says so."""
    return machine.execute(f"{facts.NODE_PROGRAM} status")[0] == 0


@contextmanager
def rebooting(machine: VirtualMachine) -> Iterator[None]:
    """Wait at the block's end until the machine's kernel has started once more."""
    boots = machine.boots()
    yield
    wait_until("another boot", lambda: machine.boots() == boots + 1, BOOT_SECONDS)


def panic(machine: VirtualMachine) -> None:
    """Let its kernel panic."""
    with pytest.raises(LabError):  # nobody answers any more
        machine.execute("echo c > /proc/sysrq-trigger", timeout=5)


def assert_a_clean_boot(machine: VirtualMachine) -> None:
    """cloud-init has found its datasource before the network was configured, valid user data, and no errors."""
    said = json.loads(machine.succeed("cloud-init status --wait --format json", BOOT_SECONDS))
    assert (said["status"], said["errors"], said["recoverable_errors"]) == ("done", [], {})
    assert said["datasource"] == "ec2local"
    assert "Valid schema user-data" in machine.succeed("cloud-init schema --system 2>&1", BOOT_SECONDS)


def assert_nfs_by_the_kernels_own_client(machine: VirtualMachine) -> None:
    """The shared file system is mounted as the nodes ask for it."""
    options = machine.succeed(f"findmnt --noheadings --output FSTYPE,OPTIONS {facts.NFS_DIR}")
    assert options.startswith("nfs4")
    assert {"vers=4.1", "lookupcache=pos", "hard"} <= {*options.split()[1].split(",")}


def assert_only_the_kernel_speaks_nfs(machine: VirtualMachine) -> None:
    """No process of a service or of a session reaches the servers of the shared file system, not even root's.

    In the root of the control groups, where nothing runs but the kernel's own threads, this very process would.
    """
    source = machine.succeed(f"findmnt --noheadings --output SOURCE {facts.NFS_DIR}")
    connect = f'timeout 20 bash -c ": < /dev/tcp/{source.partition(":")[0]}/2049"'
    machine.succeed(f"echo $BASHPID > /sys/fs/cgroup/cgroup.procs && {connect}")
    of_a_user = "systemd-run --quiet --wait --pipe --slice=user.slice --uid=nobody"
    for kind in ("", of_a_user):
        said = machine.succeed(f"{kind} bash -c '{connect} && echo reached || echo refused'")
        assert said.splitlines()[-1] == "refused", said


def assert_it_reads_the_shared_file_system_far_ahead(machine: VirtualMachine) -> None:
    """Fifteen blocks, as AWS's own mount helper sets it."""
    read_ahead = machine.succeed(f"cat /sys/class/bdi/$(mountpoint -d {facts.NFS_DIR})/read_ahead_kb")
    assert int(read_ahead) == 15 * facts.NFS_BLOCK // 1024


def assert_the_kernel_is_told_what_a_node_wants(machine: VirtualMachine) -> None:
    """A panic is a reboot; huge pages only where asked for."""
    assert machine.succeed("sysctl --values kernel.panic").strip() == "10"
    assert "=169.254.169.123" in machine.succeed("timedatectl show-timesync --property=SystemNTPServers")
    assert "[madvise]" in machine.succeed("cat /sys/kernel/mm/transparent_hugepage/enabled")
