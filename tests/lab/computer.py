"""Somebody's computer with `oq-cluster`, beside a lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.base import REPOSITORY
from lab.cluster.cluster import Lab

SECONDS = 600  # a boot on a busy machine is in it


@dataclass
class Computer:
    """Somebody's computer: configuration and files of its own."""

    lab: Lab
    home: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY / "client"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "OQLAB_CACHE": str(self.lab.paths.cache),
        }

    def command(self, *words: str | Path) -> list[str]:
        """A command line of oq-cluster."""
        place = [f"--lab={self.lab.paths.name}", f"--directory={REPOSITORY}"]
        return [sys.executable, "-m", "oq_cluster", *map(str, words), *place]

    def oq(self, *words: str | Path, status: int = 0, stdin: str = "") -> str:
        """What a command prints; its exit status is checked."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        self.errors = done.stderr
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str | Path, status: int = 0) -> Any:
        """The same as JSON."""
        return json.loads(self.oq(*words, "--json", status=status))

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A command that runs while the block lasts; its standard error is a pipe."""
        process = subprocess.Popen(
            self.command(*words),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # tests in the background ignore it
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def person(lab: Lab, home: Path, name: str) -> Computer:
    """The computer of somebody who has made an account and has logged in."""
    computer = Computer(lab, home)
    password = computer.json("users", "add", name)["password"]
    computer.oq("login", name, "--password-stdin", stdin=f"{password}\n")
    assert password not in "".join(path.read_text() for path in (home / "config").rglob("*.json"))
    return computer
