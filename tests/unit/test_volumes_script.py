"""What the boot script formats, with the programs of a node made up; the lab mounts real volumes with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components import userdata

SCRIPT = (userdata.CLOUD_INIT_DIR / "boot/volumes.sh").read_text()


def format_if_blank(tmp_path: Path, wipefs: str) -> tuple[int, list[str]]:
    """The exit status of the script's function of this name, and the programs that it has run, with this wipefs."""
    log = tmp_path / "log"
    for name, body in {"wipefs": wipefs, "mkfs.ext4": "", "fsck": ""}.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{body}\n')
        program.chmod(0o755)
    functions = SCRIPT.partition("\nfor volume in ")[0]
    done = subprocess.run(
        ["sh", "-c", f"{functions}\nformat_if_blank /dev/a", "openquake-volume", "/home"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    return done.returncode, log.read_text().splitlines()


def test_a_blank_volume_is_formatted(tmp_path: Path) -> None:
    status, ran = format_if_blank(tmp_path, "")
    assert (status, ran[1:]) == (0, ["mkfs.ext4 -q -m 1 /dev/a"])


@pytest.mark.parametrize("signature", ["ext4", "xfs", "gpt", "LVM2_member", "crypto_LUKS"])
def test_a_volume_with_any_signature_is_checked_and_never_formatted(tmp_path: Path, signature: str) -> None:
    """Somebody's own volume, which a setting names, too."""
    status, ran = format_if_blank(tmp_path, f"echo {signature}")
    assert (status, ran[1:]) == (0, ["fsck -p /dev/a"])


def test_a_volume_that_cannot_be_read_is_not_taken_for_blank(tmp_path: Path) -> None:
    status, ran = format_if_blank(tmp_path, "exit 1")
    assert status != 0
    assert [one.split()[0] for one in ran] == ["wipefs"]
