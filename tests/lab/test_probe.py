"""The probe that looks which ports answer: its silence says something, or it fails. On the loopback, without a lab."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import probe

HERE = "127.0.0.1"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that answers nobody: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((HERE, 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex((HERE, port))
        yield port


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that answers with a reset, and that nobody takes meanwhile."""
    with socket.socket() as one:
        one.bind((HERE, 0))
        yield one.getsockname()[1]


def test_open_and_closed_ports_answer_and_silent_ones_do_not(silent: int, closed: int) -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
        for one, found in ((port, {port}), (closed, {closed}), (silent, set())):
            assert probe.answering(HERE, range(one, one + 1), (HERE, port)) == found


def test_a_probe_whose_control_does_not_answer_fails(
    silent: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else it has heard: on a machine that is too slow it would hear nothing, too."""
    monkeypatch.setattr(probe, "CONTROL_SECONDS", 0.5)
    with pytest.raises(SystemExit, match="does not answer"):
        probe.answering(HERE, range(closed, closed + 1), (HERE, silent))


def test_a_probe_that_can_send_nothing_fails(closed: int) -> None:
    program = str(Path(probe.__file__))
    done = subprocess.run(
        [sys.executable, program, "255.255.255.255", "1", "9", HERE, str(closed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing was sent to ('255.255.255.255', 1)" in done.stderr
    assert done.stdout == ""


def test_it_prints_what_answers(closed: int) -> None:
    program, port = str(Path(probe.__file__)), str(closed)
    done = subprocess.run(
        [sys.executable, program, HERE, port, port, HERE, port], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [closed]
