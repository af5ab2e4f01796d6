"""What `make bench` writes when something fails; nothing is measured here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.report import Chart, Part, Table


def half(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """Two rows were planned, and the first one was measured to its middle."""
    del directory, say, quick
    try:
        raise RuntimeError("only 56 of 64 processes have worked\nin 240 s")
    finally:
        part.add(
            Table("Figures", "A note.", ["n", "zmq s", "ours s"], [["1", "1.5"]]),
            Chart("Figures", "s", ["1", "2"], {"zmq": [1.5], "ours": []}, lines=True),
        )


def nothing(part: Part, directory: Path, say: Callable[[str], None], quick: bool) -> None:
    """It fails before anything was measured."""
    del directory, say, quick
    part.add(Table("Nothing", "A note.", ["n"], []), Chart("Nothing", "s", [], {"zmq": []}))
    raise RuntimeError


def test_a_part_that_fails_keeps_what_it_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PARTS", {"half": ("Half", half), "nothing": ("Nothing", nothing)})
    monkeypatch.setattr("benchmarks.machine.describe", lambda: "a machine")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path)])
    assert command.main() == 1
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Not complete, because it failed: only 56 of 64 processes have worked\n" in page
    assert "| 1 | 1.5   |        |" in page
    assert "because it failed: RuntimeError" in page
    assert (tmp_path / "benchmarks.png").exists()
