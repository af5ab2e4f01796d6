"""What the lab's cache has under an engine's name is that engine, or is not used."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from components.bundle import engine_bundle
from lab.aws.cloud import Plan, S3Object
from lab.cluster import cache
from lab.linux.host import Paths

ENGINE = Path(__file__).parents[2] / "engine"

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths("oqlabcache", tmp_path / "cache")


def plan(comment: str = "") -> Plan:
    """What the program makes of the engine's sources, or of those with another comment."""
    data = io.BytesIO(engine_bundle(ENGINE).data)
    if comment:
        with zipfile.ZipFile(data, "a") as bundle:
            bundle.writestr("oq_celery/more.py", comment)
    return Plan(
        "eu-central-1",
        "123456789012",
        IPv4Network("10.0.0.0/16"),
        objects=[S3Object("", "", data.getvalue())],
    )


def build(of: Plan, image: Path, directory: Path) -> None:
    """The image that the bundle's own script builds, as far as it comes without Python."""
    (bundle,) = of.objects
    tree = directory / "tree"
    zipfile.ZipFile(io.BytesIO(bundle.content)).extractall(directory / "engine")
    programs = directory / "bin"
    programs.mkdir()
    for name, status in (("mount", 0), ("umount", 0), ("python3", 1)):
        (programs / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "BUILD_IMAGE_NAMESPACE": "1",
        "TMPDIR": str(directory),
    }
    subprocess.run(["sh", directory / "engine/build-image", tree, image], env=environment, check=False)
    image.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mksquashfs", tree, image, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL
    )


def test_a_lab_takes_the_engine_of_its_bundle(paths: Paths, tmp_path: Path) -> None:
    """Not shown: what the build makes of these sources."""
    said: list[str] = []
    assert not cache.has_engine(paths, plan(), said.append)
    build(plan(), cache.kept_engine(paths, plan()), tmp_path)
    assert cache.has_engine(paths, plan(), said.append)
    cache.take_engines(paths, plan(), tmp_path / "place", said.append)
    assert [one.name for one in (tmp_path / "place").iterdir()] == [cache.kept_engine(paths, plan()).name]
    assert said == []


@pytest.mark.parametrize("kind", ["of other sources", "of earlier versions", "cut off"])
def test_an_image_that_only_has_the_name_is_removed(paths: Paths, tmp_path: Path, kind: str) -> None:
    image = cache.kept_engine(paths, plan())
    build(plan("# another" if kind == "of other sources" else ""), image, tmp_path)
    if kind == "of earlier versions":  # which do not say what they were built from
        image.unlink()
        subprocess.run(["mksquashfs", tmp_path / "bin", image, "-quiet", "-no-progress"], check=True)
    elif kind == "cut off":
        os.truncate(image, image.stat().st_size // 2)
    said: list[str] = []
    cache.take_engines(paths, plan(), tmp_path / "place", said.append)
    assert not (tmp_path / "place").exists()
    assert not image.exists()
    (line,) = said
    assert str(image) in line
