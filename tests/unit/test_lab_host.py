"""What the lab changes of the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.base import LabError
from lab.linux.host import ENOUGH_INSTANCES, PREFERRED, allow_inotify, prefer


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


@pytest.mark.parametrize("grouped", [True, False])
def test_who_is_preferred_is_so_as_a_process_and_where_the_kernel_groups_sessions_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    """With its own niceness alone, a busy loop had the quarter of a core that it had without; with both, all of one."""
    given = []
    monkeypatch.setattr(os, "setpriority", lambda *words: given.append(words))
    group = tmp_path / "17" / "autogroup"
    group.parent.mkdir()
    if grouped:
        group.write_text("/autogroup-3 nice 0\n")
    prefer(17, tmp_path)
    assert given == [(os.PRIO_PROCESS, 17, PREFERRED)]
    assert [path.read_text() for path in tmp_path.glob("*/autogroup")] == (
        [str(PREFERRED)] if grouped else []
    )


def test_without_the_right_to_be_preferred_a_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    before = os.getpriority(os.PRIO_PROCESS, os.getpid())
    prefer(os.getpid())
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before
