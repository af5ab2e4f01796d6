"""The master with Debian's own kernel, in a virtual machine: what a container cannot show of its boots.

One machine goes through all tests in their order. Its processor is emulated, so each boot takes a minute or more. What
is not shown: AWS's hardware (EBS, ENA; a rule gives QEMU's disks EBS's names) and EFS: the NFS server is Ganesha.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from components import facts, userdata
from lab.aws.plan import make_plan
from lab.cluster import cache
from lab.cluster.program import SMALL_VOLUMES, record, small_config
from lab.linux import volumes
from lab.linux.host import run
from lab.vm.node import Master, boot_master
from tests.lab.conftest import OWN_IMAGE
from tests.vm.support import (
    BOOT_SECONDS,
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

GROWTH = Path(__file__).parents[2] / "engine/oq_refresh/growth.py"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def master() -> Iterator[Master]:
    # All packages are in its image: unpacking them would take the emulation minutes.
    plan = make_plan(record(small_config("dev", {"amiId": OWN_IMAGE, "egress": "endpoints"})))
    with own_lab() as paths:
        yield boot_master(paths, plan, print)


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
    assert_nfs_by_the_kernels_own_client(master.machine)
    assert_a_clean_boot(master.machine)
    assert_only_the_kernel_speaks_nfs(master.machine)


def test_kernel_resolver_and_logins_are_told_what_a_node_wants(master: Master) -> None:
    assert_the_kernel_is_told_what_a_node_wants(master.machine)
    listening = master.machine.succeed("ss --listening --tcp --udp --numeric --no-header")
    assert ":5355" not in listening
    logind = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    assert master.machine.succeed(f"busctl get-property {logind} RemoveIPC").strip() == "b false"


def test_a_file_system_that_is_smaller_than_its_volume_grows_while_it_is_mounted(master: Master) -> None:
    """As after a larger `homeVolumeGb`; an NVMe disk of QEMU cannot itself grow while it is plugged in.

    What does it comes with the engine, which is not here: the module alone is, without the timer that calls it.
    """
    module = base64.b64encode(GROWTH.read_bytes()).decode()
    master.machine.succeed(
        f"mkdir /run/oq_refresh && echo {module} | base64 --decode > /run/oq_refresh/growth.py"
    )
    call = "from oq_refresh import growth; print(growth.grow())"
    said = master.machine.succeed(
        f"PYTHONPATH=/run:{userdata.LIBRARY_PARENT} python3 -c '{call}'", BOOT_SECONDS
    )
    assert said.strip() == f"{facts.HOME_MOUNT} has grown with its volume"
    size = "findmnt --bytes --noheadings --output SIZE /home"
    assert int(master.machine.succeed(size)) > 1.9 * 1024**3


def test_after_a_kernel_panic_it_boots_by_itself_and_has_its_data(master: Master) -> None:
    master.machine.succeed("echo kept > /home/file; echo kept > /var/lib/openquake/file; sync")
    formatted = master.machine.succeed("blkid --output value --match-tag UUID $(findmnt -no SOURCE /home)")
    with rebooting(master.machine):
        panic(master.machine)
    eventually("the volumes", lambda: mounted(master))
    assert master.machine.succeed("cat /home/file /var/lib/openquake/file") == "kept\nkept\n"
    again = master.machine.succeed("blkid --output value --match-tag UUID $(findmnt -no SOURCE /home)")
    assert again == formatted
    # The journal of the early boot has moved to the volume with the rest of /var.
    eventually("the journal", lambda: "Linux version" in master.machine.succeed("journalctl --dmesg --boot"))


@pytest.mark.whole
def test_after_a_power_cut_the_volumes_are_checked_and_mounted(master: Master) -> None:
    with rebooting(master.machine):
        master.machine.reset()
    eventually("the volumes", lambda: mounted(master))
    assert master.machine.succeed("cat /home/file") == "kept\n"
    assert master.machine.execute("journalctl --boot --unit 'openquake-volume@*' | grep -i error")[0] == 1


@pytest.mark.whole
def test_with_an_engine_it_is_ready_and_reads_the_shared_file_system_far_ahead(master: Master) -> None:
    if not list((master.lab.file_system() / cache.ENGINES).glob("*.squashfs")):
        pytest.skip("no lab has built this engine yet: python -m lab up")
    eventually("a ready master", lambda: is_ready(master.machine))
    assert_it_reads_the_shared_file_system_far_ahead(master.machine)
