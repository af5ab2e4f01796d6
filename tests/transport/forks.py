"""The tests' end of `fork_server.py`: processes of the engine's environment that begin as forks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORK_SECONDS = 60.0  # for a fork, on a busy machine


class Child:
    """A process that a fork server has forked."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.status: int | None = None
        self.ended = 0.0  # monotonic
        self.over = threading.Event()

    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.over.is_set()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; nothing if it has ended."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):  # its end is not known yet
                os.kill(self.pid, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to the process and to what it has started."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def children(self) -> list[int]:
        """The processes that it has forked."""
        try:
            return [
                int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            ]
        except OSError:
            return []

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class ForkServer:
    """The process that forks, and what is known of its children."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str], log: Path) -> None:
        """Start it.

        Args:
            command: of a Python program that calls `fork_server.serve`.
            env: its whole environment.
            log: for its errors.
        """
        self._children: dict[int, Child] = {}
        self._answers: dict[int, Child] = {}  # by the number of the request
        self._number = 0
        self._condition = threading.Condition()
        self._ready = self._gone = False
        self._log = log
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_ready(self, seconds: float) -> None:
        """Wait until it has imported what its children need."""
        with self._condition:
            self._condition.wait_for(lambda: self._ready or self._gone, seconds)
        assert self._ready, self._log.read_text()

    def fork(self, stdout: Path, stderr: Path, env: Mapping[str, str], **request: Any) -> Child:
        """Start a process.

        Args:
            stdout: where it writes, to the end of the file.
            stderr: where it writes its errors.
            env: variables that it has in its environment besides the fork server's.
            request: what the program needs.
        """
        for log in (stdout, stderr):
            log.touch()  # who asks for its output may be quicker than it
        with self._condition:
            self._number += 1
            number = self._number
            common = {"id": number, "stdout": str(stdout), "stderr": str(stderr), "env": dict(env)}
            assert self._popen.stdin is not None
            self._popen.stdin.write(json.dumps({**common, **request}).encode() + b"\n")
            self._popen.stdin.flush()
            forked = self._condition.wait_for(lambda: number in self._answers, FORK_SECONDS)
            assert forked, f"the fork server does not fork: {self._log.read_text()}"
            child = self._answers.pop(number)
            child.log = stdout
            return child

    def close(self) -> None:
        """End it and its children."""
        for child in list(self._children.values()):
            child.signal_all(signal.SIGKILL)
        self._popen.kill()
        self._popen.wait()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            words = json.loads(line)
            with self._condition:
                if "ready" in words:
                    self._ready = True
                elif "ended" in words:
                    child = self._children.pop(words["ended"])
                    child.status, child.ended = words["status"], time.monotonic()
                    child.over.set()
                else:
                    child = Child(words["pid"], self._log)
                    self._answers[words["id"]] = self._children[words["pid"]] = child
                self._condition.notify_all()
        with self._condition:  # its children have ended with it
            self._gone = True
            for child in self._children.values():
                child.over.set()
            self._condition.notify_all()
