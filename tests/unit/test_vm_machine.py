"""What is said of a virtual machine that has gone; tests/vm boot real ones."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from lab.base import LabError
from lab.linux.host import Paths
from lab.vm.machine import VirtualMachine


def _hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1024)


def test_a_machine_whose_emulator_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VirtualMachine, "directory", tmp_path)
    machine = VirtualMachine(Paths("oqlabtest", tmp_path), "master")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "shell"))
        server.listen()
        threading.Thread(target=_hang_up, args=(server,), daemon=True).start()
        with pytest.raises(LabError, match="master: it ended before its answer to 'true'"):
            machine.execute("true", timeout=60)
