"""EBS volumes: sparse files behind loop devices, under the names that udev gives them on Nitro instances."""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path

from components.facts import EBS_DEVICE_PREFIX
from lab.aws.cloud import Volume
from lab.base import LabError
from lab.linux.host import Paths, run

LOOP_MAJOR = 7
"""The kernel's number for loop devices, Documentation/admin-guide/devices.txt."""

LOOP_NODES = 64
"""Loop devices that an instance can use: its volumes' and those that `mount -o loop` takes in it."""


def loop_nodes(paths: Paths) -> list[Path]:
    """Device nodes for an instance's /dev: loop0 and so on, made once per lab.

    A container's /dev does not follow the machine's, so its nodes have to be there before it starts.
    """
    directory = paths.state / "dev"
    directory.mkdir(parents=True, exist_ok=True)
    nodes = [directory / f"loop{number}" for number in range(LOOP_NODES)]
    for number, node in enumerate(nodes):
        if not node.exists():
            os.mknod(node, 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
    return nodes


def create(paths: Paths, volume: Volume) -> None:
    """Make a volume, blank or from its snapshot; it takes only the room that is written."""
    file = file_of(paths, volume.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    if volume.snapshot:
        _copy(_snapshot(paths, volume.snapshot), file)
    with file.open("ab") as disk:
        disk.truncate(volume.size * 1024**3)


def grow(paths: Paths, volume: Volume) -> None:
    """Give a volume the size that it is to have, while it is attached, too."""
    os.truncate(file_of(paths, volume.id), volume.size * 1024**3)
    device = device_of(paths, volume.id)
    if device is not None:
        run(["losetup", "--set-capacity", device])


def remove(paths: Paths, volume_id: str) -> None:
    """Delete a volume and what it holds."""
    file_of(paths, volume_id).unlink(missing_ok=True)


def take_snapshot(paths: Paths, volume_id: str) -> str:
    """Make a snapshot of a volume that no machine writes to; its id."""
    snapshot_id = f"snap-{secrets.token_hex(9)[:17]}"
    file = _snapshot(paths, snapshot_id)
    file.parent.mkdir(exist_ok=True)
    _copy(file_of(paths, volume_id), file)
    return snapshot_id


def snapshots(paths: Paths) -> dict[str, int]:
    """The snapshots that there are, and the sizes of the volumes that they were made of, in GiB."""
    return {file.name: file.stat().st_size // 1024**3 for file in (paths.state / "snapshots").glob("snap-*")}


def device_of(paths: Paths, volume_id: str) -> Path | None:
    """The loop device of a volume; None where it is not attached."""
    file = file_of(paths, volume_id)
    return next((device for device, back in loops(paths).items() if back == file), None)


def attach(paths: Paths, volume_id: str, by_id: Path) -> None:
    """Attach a volume: a loop device, and its name in an instance's /dev/disk/by-id directory."""
    file = file_of(paths, volume_id)
    device = device_of(paths, volume_id)
    if device is None:
        device = Path(run(["losetup", "--find", "--show", file]).strip())
    if int(device.name.removeprefix("loop")) >= LOOP_NODES:
        raise LabError(f"{volume_id}: no loop device below {LOOP_NODES} is free; see losetup --list")
    link = by_id / link_name(volume_id)
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../{device.name}")


def detach(name: str, by_id: Path) -> None:
    """Detach a volume from a machine that is off, by the name that it has there."""
    link = by_id / name
    run(["losetup", "--detach", Path("/dev", link.readlink().name)])
    link.unlink()


def attached(by_id: Path) -> set[str]:
    """The names in a machine's /dev/disk/by-id of the volumes that are attached to it."""
    return {link.name for link in by_id.glob("*")}


def loops(paths: Paths) -> dict[Path, Path]:
    """Loop devices whose file is the lab's, and that file.

    Compared by inode, because a loop device that was set up inside an instance names the file as seen from
    there.
    """
    listing = run(["losetup", "--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"])
    devices = json.loads(listing)["loopdevices"] if listing.strip() else []
    files = {}
    for pattern in ("volumes/*", "efs/*/engine/*"):
        for file in paths.state.glob(pattern):
            status = file.stat()
            number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
            files[(status.st_ino, number)] = file
    found = {}
    for device in devices:
        key = (int(device["back-ino"] or 0), (device["back-maj:min"] or "").strip())
        if key in files:
            found[Path(device["name"])] = files[key]
    return found


def detach_all(paths: Paths) -> None:
    """Free every loop device whose file is the lab's."""
    for device in loops(paths):
        run(["losetup", "--detach", device], check=False)


def file_of(paths: Paths, volume_id: str) -> Path:
    """The file that holds a volume."""
    return paths.state / "volumes" / volume_id


def _snapshot(paths: Paths, snapshot_id: str) -> Path:
    return paths.state / "snapshots" / snapshot_id


def _copy(source: Path, target: Path) -> None:
    run(["cp", "--sparse=always", "--reflink=auto", source, target])


def link_name(volume_id: str) -> str:
    """The name that udev gives to a volume on Nitro instances."""
    return Path(EBS_DEVICE_PREFIX).name + volume_id.replace("-", "")
