"""Root file systems of the lab's instances, built from the Debian archive and kept in the cache.

An image is named after the hash of all that makes it, built in a temporary directory and renamed when
complete, so that an interrupted build leaves nothing that looks like an image.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from components.facts import EBS_DEVICE_PREFIX
from lab.base import LabError
from lab.linux.host import Paths, mounts_below, run

SUITE = "trixie"
PACKAGES = (
    # What of Debian's cloud image the nodes may rely on; it has more, and no node may need more without
    # installing it.
    "systemd", "systemd-sysv", "dbus", "udev", "cloud-init", "iproute2", "netbase", "procps", "util-linux",
    "kmod", "e2fsprogs", "python3", "ca-certificates", "sudo", "netcat-openbsd", "openssh-server",
    "systemd-resolved",
)  # fmt: skip
MACHINE_PACKAGES = (
    # What that image has besides, as far as it shows in a boot: the kernel, the network by DHCP, the clock, sessions.
    "linux-image-cloud-amd64", "netplan.io", "dhcpcd-base", "systemd-timesyncd", "libpam-systemd", "dmidecode",
)  # fmt: skip
ROOT_LABEL = "cloudimg-rootfs"
"""Of a machine's root file system: NVMe disks have no fixed order, so it is found by this."""
EBS_NAMES = f"""\
# QEMU's NVMe disks have a model of their own, which no option changes; this is the name that udev gives to EBS volumes.
SUBSYSTEM=="block", KERNEL=="nvme*n*", ENV{{DEVTYPE}}=="disk", ENV{{ID_SERIAL_SHORT}}=="vol*", \\
  SYMLINK+="{EBS_DEVICE_PREFIX.removeprefix("/dev/")}$env{{ID_SERIAL_SHORT}}"
"""
TREE = Path(__file__).parent / "image"
"""Files that the lab adds to an image; each says why."""
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def base_image(paths: Paths, extra: Sequence[str], say: Callable[[str], None]) -> Path:
    """The directory of an image with `extra` packages on top of the base's, built if the cache lacks it.

    Args:
        extra: none for what AWS's Debian image has; packages for an image with everything baked in
        say: told what takes time
    """
    packages = sorted({*PACKAGES, *extra})
    return _cached(paths, _key(packages), packages, "minbase", _finish_node, say)


def machine_image(paths: Paths, extra: Sequence[str], say: Callable[[str], None]) -> Path:
    """The directory of an image with a kernel, for a virtual machine: it has more of Debian's cloud image.

    Args:
        extra: packages on top of it
        say: told what takes time
    """
    packages = sorted({*PACKAGES, *MACHINE_PACKAGES, *extra})
    return _cached(paths, f"machine-{_key(packages)}", packages, "minbase", _finish_machine, say)


def broker_image(paths: Paths, say: Callable[[str], None]) -> Path:
    """The directory of a small image with RabbitMQ as the nodes have it, built if the cache lacks it.

    It has no init system: what is in it is run in a chroot.

    Args:
        say: told what takes time
    """
    packages = ["rabbitmq-server"]
    key = hashlib.sha256(" ".join((SUITE, *packages)).encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    return _cached(paths, f"rabbitmq-{key}", packages, "essential", lambda _: None, say)


def _cached(
    paths: Paths,
    key: str,
    packages: Sequence[str],
    variant: str,
    finish: Callable[[Path], None],
    say: Callable[[str], None],
) -> Path:
    """The image of this key; built by mmdebstrap's variant, completed by `finish`, if the cache lacks it."""
    image = paths.cache / "images" / f"{SUITE}-{key}"
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another lab, or other tests, may be building
        if not image.is_dir():
            say(f"building the Debian {SUITE} image with {_counted(packages)} (once)")
            partial = _partial(image)
            run([
                "mmdebstrap", "--quiet", "--mode=root", "--format=directory", f"--variant={variant}",
                f"--include={','.join(packages)}", SUITE, partial,
            ])  # fmt: skip
            finish(partial)
            partial.rename(image)
    return image


def _counted(packages: Sequence[str]) -> str:
    return packages[0] if len(packages) == 1 else f"{len(packages)} packages"


def _partial(image: Path) -> Path:
    """Where an image is built; without what an interrupted build has left there."""
    partial = image.with_suffix(".partial")
    for mount in mounts_below(partial):
        run(["umount", mount])
    if partial.exists():
        shutil.rmtree(partial)
    return partial


def _finish_node(image: Path) -> None:
    """What makes an instance's root file system of it."""
    shutil.copytree(TREE, image, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    _trust_host_authorities(image)
    (image / "etc/hostname").unlink(missing_ok=True)
    (image / "etc/resolv.conf").unlink(missing_ok=True)
    (image / "etc/machine-id").write_text("")


def _finish_machine(image: Path) -> None:
    """What makes a bootable root file system of it."""
    for name in ("etc/hostname", "etc/resolv.conf"):
        (image / name).unlink(missing_ok=True)
    (image / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (image / "etc/machine-id").write_text("uninitialized\n")
    (image / "etc/fstab").write_text(f"LABEL={ROOT_LABEL} / ext4 errors=remount-ro 0 1\n")
    (image / "etc/cloud/cloud.cfg.d/90-oqlab.cfg").write_text("datasource_list: [Ec2]\n")
    (image / "etc/udev/rules.d/61-oqlab.rules").write_text(EBS_NAMES)


def _key(packages: Sequence[str]) -> str:
    """16 hex digits over all that makes an image."""
    digest = hashlib.sha256(" ".join((SUITE, *packages)).encode())
    for path in sorted(TREE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(TREE)} {path.stat().st_mode:o}".encode() + path.read_bytes())
    digest.update(HOST_CERTIFICATES.read_bytes() if HOST_CERTIFICATES.exists() else b"")
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _certificates(bundle: Path) -> list[str]:
    """The PEM certificates of a bundle."""
    text = bundle.read_text() if bundle.exists() else ""
    return re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.DOTALL)


def _trust_host_authorities(root: Path) -> None:
    """Let the image trust what this machine trusts: in many networks the registries have another CA."""
    known = set(_certificates(root / "etc/ssl/certs/ca-certificates.crt"))
    own = [certificate for certificate in _certificates(HOST_CERTIFICATES) if certificate not in known]
    for number, certificate in enumerate(own):
        (root / f"usr/local/share/ca-certificates/host-{number}.crt").write_text(certificate)
    done = subprocess.run(
        ["chroot", str(root), "update-ca-certificates"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"update-ca-certificates in the image: {done.stderr.strip()}")
