"""What a lab takes from the cache and leaves there: images, engines, Debian packages."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from components import facts
from lab.aws.cloud import Plan, S3Object
from lab.linux import images
from lab.linux.host import Paths

ENGINES = Path(facts.ENGINE_IMAGE_DIR).relative_to(facts.NFS_DIR)
"""Where engine images are within the shared file system."""
KEPT_ENGINES = 3
"""Engine images in the cache, of some 350 MB each."""
SOURCES = "sources.sha256"
"""The file in an engine's image that says what it was built from, as `build-image` writes it."""
NODE_FACTS = "/etc/openquake/node.json"
"""The file in a node's user data that holds what its own program knows."""


def nodes_image(paths: Paths, plan: Plan, say: Callable[[str], None]) -> Path:
    """The image that the plan's nodes start from, built if the cache lacks it."""
    return images.base_image(paths, () if plan.official_image else baked_packages(plan), say)


def baked_packages(plan: Plan) -> Sequence[str]:
    """The Debian packages that the user data would install: what an image with everything baked in has."""
    from lab.aws import user_data  # with YAML, which most of the lab's commands need not load

    packages: set[str] = set()
    for template in plan.templates:
        config = user_data.decode(base64.b64encode(template.user_data).decode())
        for file in config["write_files"]:
            if file["path"] == NODE_FACTS:
                packages.update(json.loads(file["content"]).get("packages", ()))
    return sorted(packages)


def take_engines(paths: Paths, plan: Plan, place: Path, say: Callable[[str], None]) -> None:
    """Put the engines that earlier labs have built of the plan's bundles into a directory."""
    for bundle in plan.objects:
        if _has(paths, bundle, say):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_engine(paths, bundle), place)


def keep(paths: Paths) -> None:
    """Put what a lab has built and downloaded into the cache."""
    _keep(paths, (paths.state / "apt").glob("*.deb"), "apt")
    if _keep(paths, paths.state.glob(f"efs/*/{ENGINES}/*.squashfs"), "engine"):
        _forget_old_engines(paths)


def take_packages(paths: Paths) -> None:
    """Give the lab the packages that earlier ones have downloaded.

    A copy: apt locks its directory, and of two labs that boot at once one would fail.
    """
    apt = paths.state / "apt"
    (apt / "partial").mkdir(parents=True)
    for package in (paths.cache / "apt").glob("*.deb"):
        shutil.copy2(package, apt)


def kept_engine(paths: Paths, plan: Plan) -> Path:
    """Where the cache keeps the engine that the plan's bundle gives; what a retained file system has on AWS."""
    (bundle,) = plan.objects
    return _engine(paths, bundle)


def has_engine(paths: Paths, plan: Plan, say: Callable[[str], None]) -> bool:
    """Whether the cache has the engine that the plan's bundle gives."""
    (bundle,) = plan.objects
    return _has(paths, bundle, say)


def _has(paths: Paths, bundle: S3Object, say: Callable[[str], None]) -> bool:
    """Whether the cache has a bundle's engine; what only has its name is removed."""
    kept = _engine(paths, bundle)
    if not kept.exists():
        return False
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as files:
        lines = [f"{hashlib.sha256(files.read(name)).hexdigest()}  ./{name}\n" for name in files.namelist()]
    found = subprocess.run(["unsquashfs", "-cat", kept, SOURCES], capture_output=True)
    if found.returncode == 0 and found.stdout == "".join(sorted(lines)).encode():
        return True
    say(f"{kept} was not built from these sources: removing it")
    kept.unlink(missing_ok=True)
    return False


def _engine(paths: Paths, bundle: S3Object) -> Path:
    from components import userdata

    name = userdata.engine_id(hashlib.sha256(bundle.content).hexdigest())
    return paths.cache / "engine" / f"{name}.squashfs"


def _keep(paths: Paths, files: Iterable[Path], kind: str) -> bool:
    """Copy files into a directory of the cache, unless they are there; True if one was new."""
    directory = paths.cache / kind
    new = [file for file in files if not (directory / file.name).exists()]
    for file in new:
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f"{file.name}.{paths.name}.partial"  # another lab may be keeping the same
        shutil.copyfile(file, part)
        part.rename(directory / file.name)
    return bool(new)


def _forget_old_engines(paths: Paths) -> None:
    kept = (paths.cache / "engine").glob("*.squashfs")
    newest_first = sorted(kept, key=lambda file: file.stat().st_mtime, reverse=True)
    for old in newest_first[KEPT_ENGINES:]:
        old.unlink()
