"""What the lab changes of the machine that it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base import LabError
from lab.linux.host import ENOUGH_INSTANCES, allow_inotify


@pytest.mark.parametrize(
    ("before", "after"), [(128, ENOUGH_INSTANCES), (ENOUGH_INSTANCES * 2, ENOUGH_INSTANCES * 2)]
)
def test_the_limit_of_inotify_instances_is_raised_and_never_lowered(
    tmp_path: Path, before: int, after: int
) -> None:
    """With 128, one boot in six ended in emergency mode while four other labs ran; with more, none of sixty."""
    limit = tmp_path / "max_user_instances"
    limit.write_text(f"{before}\n")
    allow_inotify(limit)
    assert int(limit.read_text()) == after


def test_a_limit_that_cannot_be_raised_is_named_with_the_command_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text("128\n")

    def refuse(_path: Path, _text: str) -> int:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(LabError, match=f"sudo sysctl fs.inotify.max_user_instances={ENOUGH_INSTANCES}"):
        allow_inotify(limit)
