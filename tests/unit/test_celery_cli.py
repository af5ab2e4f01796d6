"""What `oq-celery` says when nobody reads it any more, or the DbServer is away, with the engine made up.

With the engine it is started by tests/transport.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from oq_celery import cli
from oq_celery.terminal import INTERRUPTED

COMMANDS = [["follow", "5"], ["cost"], ["cost", "5"]]


class TimeoutError(RuntimeError):
    """Upstream's, which is none of Python's."""


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the command takes of the engine, for a test to change."""
    dbserver = SimpleNamespace(host="127.0.0.1", port=1999)
    zeromq = SimpleNamespace(TimeoutError=TimeoutError)
    made = SimpleNamespace(dbserver=dbserver, dbcmd=lambda *_: None)
    for one in (
        module("openquake.baselib", config=SimpleNamespace(dbserver=dbserver), zeromq=zeromq),
        module("openquake.commonlib.logs", dbcmd=lambda *words: made.dbcmd(*words)),
        module(
            "oq_celery.jobs", follow=lambda dbcmd, number: dbcmd("log", number), GOOD=("complete", "shared")
        ),
        module(
            "oq_celery.cost", last=lambda dbcmd, *_: dbcmd("last"), of_number=lambda dbcmd, _: dbcmd("one")
        ),
    ):
        monkeypatch.setitem(sys.modules, one.__name__, one)
        package, _, name = one.__name__.rpartition(".")
        if package == "oq_celery":  # which is imported, and has the real module from then on
            monkeypatch.setattr(f"oq_celery.{name}", one, raising=False)
    monkeypatch.setattr(cli, "_settings", lambda: None)
    monkeypatch.setenv("OQ_DISTRIBUTE", "no")  # which the command sets
    return made


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """Run the command; what it ends with."""
    monkeypatch.setattr(sys, "argv", ["oq-celery", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@contextmanager
def unread() -> Iterator[None]:
    """The output goes to a program that has ended, as after `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, redirect_stdout(output):
        yield


@pytest.mark.parametrize("words", [["follow", "5"], ["cost"]])
def test_a_command_that_nobody_reads_any_more_ends_quietly(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    answers = {"get_job": SimpleNamespace(id=5, status="complete"), "log": ["a line"], "last": []}
    engine.dbcmd = lambda action, *_: answers[action]
    with unread():
        assert run(monkeypatch, *words) == INTERRUPTED


@pytest.mark.parametrize(("ended", "status"), [("complete", 0), ("shared", 0), ("failed", 1), ("aborted", 1)])
def test_follow_ends_as_the_calculation_did(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, ended: str, status: int
) -> None:
    engine.dbcmd = lambda action, *_: SimpleNamespace(id=5, status=ended) if action == "get_job" else []
    assert run(monkeypatch, "follow", "5") == status


@pytest.mark.parametrize("words", COMMANDS)
def test_a_dbserver_that_does_not_answer_in_time_is_named_with_the_command_that_shows_why(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def late(*_: Any) -> None:
        raise TimeoutError("While sending")

    engine.dbcmd = late
    said = run(monkeypatch, *words)
    assert said == (
        "oq-celery: the DbServer at 127.0.0.1:1999 does not answer: sudo systemctl status openquake-dbserver"
    )


@pytest.mark.parametrize("words", COMMANDS)
def test_a_dbserver_that_is_down_is_not_waited_for(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        engine.dbserver.host, engine.dbserver.port = "localhost", free.getsockname()[1]
    said = run(monkeypatch, *words)
    assert "sudo systemctl status openquake-dbserver (" in said
