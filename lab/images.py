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

from lab.host import LabError, Paths, mounts_below, run

SUITE = "trixie"
PACKAGES = (
    # What of Debian's cloud image the nodes may rely on; it has more, and no node may need more without
    # installing it.
    "systemd", "systemd-sysv", "dbus", "udev", "cloud-init", "iproute2", "netbase", "procps", "util-linux",
    "kmod", "e2fsprogs", "python3", "ca-certificates", "sudo", "netcat-openbsd", "openssh-server",
)  # fmt: skip
TREE = Path(__file__).parent / "image"
"""Files that the lab adds to an image; each says why."""
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def base_image(paths: Paths, extra: Sequence[str], say: Callable[[str], None]) -> Path:
    """The directory of an image with ``extra`` packages on top of the base's, built if the cache lacks it.

    :param extra: none for what AWS's Debian image has; packages for an image with everything baked in
    :param say: told what takes time
    """
    packages = sorted({*PACKAGES, *extra})
    image = paths.cache / "images" / f"{SUITE}-{_key(packages)}"
    image.parent.mkdir(parents=True, exist_ok=True)
    with (image.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another lab may be building
        if not image.is_dir():
            say(f"building the Debian {SUITE} image with {len(packages)} packages (once)")
            _build(image, packages)
    return image


def _build(image: Path, packages: Sequence[str]) -> None:
    partial = image.with_suffix(".partial")
    for mount in mounts_below(partial):  # an interrupted build's
        run(["umount", mount])
    if partial.exists():
        shutil.rmtree(partial)
    run([
        "mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase",
        f"--include={','.join(packages)}", SUITE, partial,
    ])  # fmt: skip
    shutil.copytree(TREE, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    _trust_host_authorities(partial)
    (partial / "etc/hostname").unlink(missing_ok=True)
    (partial / "etc/resolv.conf").unlink(missing_ok=True)
    (partial / "etc/machine-id").write_text("")
    partial.rename(image)


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
