"""The master with Debian's own kernel, in a virtual machine: what a container cannot show of its boots.

One machine goes through all tests in their order. Its processor is emulated, so each boot takes a minute or more. What
is not shown: AWS's hardware (EBS, ENA; a rule gives QEMU's disks EBS's names) and EFS: the NFS server is Ganesha.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from components import facts
from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import build, cache
from lab.cluster.program import SMALL_VOLUMES, record, small_config
from lab.linux import host, volumes
from lab.linux.host import Paths, run, wait_until
from lab.vm.node import Master, boot_master, missing
from tests.lab.conftest import OWN_IMAGE, own_name

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

BOOT_SECONDS = 1200
"""A boot takes one minute, and twenty times that on a machine whose cores have ten other things to do."""


@pytest.fixture(scope="module")
def master() -> Iterator[Master]:
    paths = Paths("oqlab", host.lab_paths().cache)
    if lacks := [*host.missing(paths), *missing()]:
        pytest.skip(f"missing here: {', '.join(lacks)}")
    with own_name() as name:
        paths = Paths(name, paths.cache)
        # All packages are in its image: unpacking them would take the emulation minutes.
        plan = make_plan(record(small_config("dev", {"amiId": OWN_IMAGE, "egress": "endpoints"})))
        try:
            yield boot_master(paths, plan, print)
        finally:
            build.down(paths)


def eventually(what: str, true: Callable[[], object]) -> None:
    """Wait until something is so; while the machine boots, its shell does not answer."""

    def so() -> object:
        try:
            return true()
        except LabError:
            return False

    wait_until(what, so, BOOT_SECONDS)


def mounted(master: Master) -> bool:
    """Whether all data volumes are."""
    return all(master.machine.execute(f"mountpoint -q {mount}")[0] == 0 for mount in facts.VOLUME_MOUNTS)


def test_volumes_that_are_plugged_in_late_are_found_formatted_and_mounted(master: Master) -> None:
    journal = f"journalctl --output=cat --identifier={facts.VOLUMES_LOG}"
    eventually("the wait for volumes", lambda: "is the volume attached?" in master.machine.succeed(journal))
    assert master.machine.execute("ls /dev/nvme1n1")[0] != 0
    (home,) = [volume for volume in master.instance.volumes if volume.size == SMALL_VOLUMES["homeVolumeGb"]]
    run(["mkfs.ext4", "-q", volumes.file_of(master.lab.paths, home.id)])  # another test lets it grow
    volumes.grow(master.lab.paths, replace(home, size=2))
    master.plug()
    eventually("the volumes", lambda: mounted(master))
    for volume in master.instance.volumes:
        link = f"{facts.EBS_DEVICE_PREFIX}{volume.id.replace('-', '')}"
        assert master.machine.succeed(f"readlink --canonicalize {link}").startswith("/dev/nvme")
    assert "formatting the blank volume" in master.machine.succeed(journal)
    for mount in facts.VOLUME_MOUNTS:  # a damaged file system is not written any more
        assert "errors=remount-ro" in master.machine.succeed(f"findmnt --noheadings --output OPTIONS {mount}")


def test_the_first_boot_is_clean_and_has_the_shared_file_system_by_the_kernels_own_client(
    master: Master,
) -> None:
    eventually("NFS", lambda: master.machine.execute(f"mountpoint -q {facts.NFS_DIR}")[0] == 0)
    options = master.machine.succeed(f"findmnt --noheadings --output FSTYPE,OPTIONS {facts.NFS_DIR}")
    assert options.startswith("nfs4")
    assert {"vers=4.1", "lookupcache=pos", "hard"} <= {*options.split()[1].split(",")}
    said = json.loads(master.machine.succeed("cloud-init status --wait --format json", BOOT_SECONDS))
    assert (said["status"], said["errors"], said["recoverable_errors"]) == ("done", [], {})
    assert said["datasource"] == "ec2local"  # which has asked before the network was configured
    assert "Valid schema user-data" in master.machine.succeed("cloud-init schema --system 2>&1")


def test_kernel_resolver_and_logins_are_told_what_a_node_wants(master: Master) -> None:
    assert master.machine.succeed("sysctl --values kernel.panic").strip() == "10"
    huge_pages = master.machine.succeed("cat /sys/kernel/mm/transparent_hugepage/enabled")
    assert "[madvise]" in huge_pages
    listening = master.machine.succeed("ss --listening --tcp --udp --numeric --no-header")
    assert ":5355" not in listening
    logind = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    assert master.machine.succeed(f"busctl get-property {logind} RemoveIPC").strip() == "b false"


def test_a_file_system_that_is_smaller_than_its_volume_grows_while_it_is_mounted(master: Master) -> None:
    """As after a larger `homeVolumeGb`; an NVMe disk of QEMU cannot itself grow while it is plugged in."""
    configured = f"test -s {facts.OPENQUAKE_CFG}"
    eventually("the configuration", lambda: master.machine.execute(configured)[0] == 0)
    size = "findmnt --bytes --noheadings --output SIZE /home"
    master.machine.succeed(f"systemctl start {facts.REFRESH_SERVICE}", BOOT_SECONDS)
    assert int(master.machine.succeed(size)) > 1.9 * 1024**3


def test_after_a_kernel_panic_it_boots_by_itself_and_has_its_data(master: Master) -> None:
    master.machine.succeed("echo kept > /home/file; echo kept > /var/lib/openquake/file; sync")
    formatted = master.machine.succeed("blkid --output value --match-tag UUID $(findmnt -no SOURCE /home)")
    boots = master.machine.boots()
    with pytest.raises(LabError):  # nobody answers any more
        master.machine.execute("echo c > /proc/sysrq-trigger", timeout=5)
    wait_until("another boot", lambda: master.machine.boots() == boots + 1, BOOT_SECONDS)
    eventually("the volumes", lambda: mounted(master))
    assert master.machine.succeed("cat /home/file /var/lib/openquake/file") == "kept\nkept\n"
    again = master.machine.succeed("blkid --output value --match-tag UUID $(findmnt -no SOURCE /home)")
    assert again == formatted
    # The journal of the early boot has moved to the volume with the rest of /var.
    eventually("the journal", lambda: "Linux version" in master.machine.succeed("journalctl --dmesg --boot"))


@pytest.mark.whole
def test_after_a_power_cut_the_volumes_are_checked_and_mounted(master: Master) -> None:
    boots = master.machine.boots()
    master.machine.reset()
    wait_until("another boot", lambda: master.machine.boots() == boots + 1, BOOT_SECONDS)
    eventually("the volumes", lambda: mounted(master))
    assert master.machine.succeed("cat /home/file") == "kept\n"
    assert master.machine.execute("journalctl --boot --unit 'openquake-volume@*' | grep -i error")[0] == 1


@pytest.mark.whole
def test_with_an_engine_it_is_ready_and_reads_the_shared_file_system_far_ahead(master: Master) -> None:
    if not list((master.lab.file_system() / cache.ENGINES).glob("*.squashfs")):
        pytest.skip("no lab has built this engine yet: python -m lab up")
    eventually("a ready master", lambda: master.machine.execute(f"{facts.NODE_PROGRAM} status")[0] == 0)
    read_ahead = master.machine.succeed(f"cat /sys/class/bdi/$(mountpoint -d {facts.NFS_DIR})/read_ahead_kb")
    assert int(read_ahead) == 15360
