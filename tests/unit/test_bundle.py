"""The engine bundle: what is in it, and that the same sources give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from components.bundle import engine_bundle
from tests.unit.conftest import Record

ENGINE = Path(__file__).parent.parent.parent / "engine"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the engine's sources to play with."""
    return Path(shutil.copytree(ENGINE, tmp_path / "engine"))


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_the_bundle_holds_what_the_engines_build_reads() -> None:
    held = set(names(engine_bundle(ENGINE).data))
    project = tomllib.loads((ENGINE / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    build = (ENGINE / "build-image").read_text()
    needed = {"build-image", "pyproject.toml", "requirements.txt", *wheel["force-include"]}
    needed |= set(re.findall(r"\$source/([\w.-]+)", build))
    needed |= {project["project"]["readme"]} if "readme" in project["project"] else set()
    assert needed <= held
    for package in wheel["packages"]:
        files = set(tracked(package))
        assert any(name.endswith(".py") for name in files), package
        assert files <= held
    assert {"oq_webui/nginx.conf", "oq_webui/py.typed"} <= held
    assert any(name.startswith("oq_webui/templates/") for name in held)


def tracked(package: str) -> list[str]:
    """The files of a package that belong to the project, whatever they are called."""
    listed = subprocess.run(["git", "ls-files", package], cwd=ENGINE, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"no checkout of git: {listed.stderr}")
    return listed.stdout.splitlines()


def test_nothing_that_the_engine_does_not_consist_of_is_in_it(sources: Path) -> None:
    before = engine_bundle(sources)
    (sources / "notes.txt").write_text("a stray file")
    (sources / "oq_celery" / ".DS_Store").write_bytes(b"where the icons are")
    (sources / "oq_celery" / "hook.py~").write_text("before the last change")
    (sources / "requirements.in").write_text("# a comment")
    (sources / "oq_celery" / "__pycache__").mkdir(exist_ok=True)
    (sources / "oq_celery" / "__pycache__" / "hook.cpython-311.pyc").write_bytes(b"compiled")
    assert engine_bundle(sources) == before


def test_the_same_sources_give_the_same_bytes_whenever_and_wherever(sources: Path) -> None:
    for path in sources.rglob("*"):
        os.utime(path, (1, 1_000_000_000))
        path.chmod(0o755 if path.is_dir() else 0o600)
    assert engine_bundle(sources) == engine_bundle(ENGINE)


def test_line_ends_of_windows_are_not_the_nodes(sources: Path) -> None:
    for path in sources.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert engine_bundle(sources) == engine_bundle(ENGINE)


def test_another_byte_in_the_sources_gives_another_hash(sources: Path) -> None:
    before = engine_bundle(sources).sha256
    module = next((sources / "oq_celery").glob("*.py"))
    module.write_text(module.read_text() + "\n")
    assert engine_bundle(sources).sha256 != before


def test_a_missing_part_is_named(sources: Path) -> None:
    (sources / "requirements.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"requirements\.txt"):
        engine_bundle(sources)


def test_the_program_uploads_the_bundle_under_its_hash(record: Record) -> None:
    uploaded = record().one("aws:s3/bucketObjectv2:BucketObjectv2").inputs
    data = base64.b64decode(uploaded["contentBase64"])
    assert data == engine_bundle(ENGINE).data
    assert uploaded["key"] == f"engine/{hashlib.sha256(data).hexdigest()}.zip"


@pytest.mark.parametrize("node", [True, False])
def test_a_build_removes_what_a_power_cut_has_left_of_another_one(tmp_path: Path, node: bool) -> None:
    """On a node; the program that leads into the build's own namespace is made up here."""
    program = tmp_path / "bin/unshare"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho builds\n")
    program.chmod(0o755)
    names = {"openquake-engine-old/tree", "openquake-engine-new/engine", "other"}
    for name in names:
        (tmp_path / "tmp" / name).mkdir(parents=True)
    temporary = tmp_path / "tmp/openquake-engine-new" if node else tmp_path / "tmp"
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    done = subprocess.run(
        ["sh", ENGINE / "build-image", "/opt/openquake", "image"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "builds\n", done.stderr
    kept = {name for name in names if (tmp_path / "tmp" / name).exists()}
    assert kept == (names - {"openquake-engine-old/tree"} if node else names)
