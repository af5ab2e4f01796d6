"""Whether a turn has come, by what SQLite says; tests/transport have the engine's database and its processes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from oq_celery import turn


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("SQLITE_BUSY", True),
        ("SQLITE_BUSY_RECOVERY", True),  # another reads what a DbServer that was killed has left
        ("SQLITE_CANTOPEN", False),
    ],
)
def test_a_database_that_is_busy_for_whatever_reason_is_asked_again(
    name: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors are made up, as Python raises them: with SQLite's extended codes."""

    def connect(*_: Any, **__: Any) -> None:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorname, error.sqlite_errorcode = name, getattr(sqlite3, name)
        raise error

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert turn._waits(Path("db.sqlite3"), 5) is waits
