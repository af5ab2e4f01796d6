"""A cluster that the client reaches as on AWS, with stand-ins on this machine: AWS's API, the plugin, and the WebUI."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from oq_cluster import cli, commands, session_manager, submit, webui

from tests.client.stand_ins import PASSWORD, FakeAws, FakeWebUI, served

OUTPUTS: dict[str, Any] = {
    "region": "eu-central-1",
    "masterInstanceId": "i-0123456789abcdef0",
    "masterAddress": "10.20.0.10",
    "webUiUrl": "http://10.20.0.10:8800",
    "workerGroupName": "workers-1",
    "secretName": "secrets-1",
}


@dataclass
class World:
    """The stand-ins, and the command."""

    path: Path
    webui: FakeWebUI
    aws: FakeAws
    capsys: pytest.CaptureFixture[str]
    errors: str = ""

    def oq(self, *words: str | Path, status: int = 0) -> str:
        """What a command prints on standard output; its exit status is checked."""
        found = cli.main([str(word) for word in words])
        printed = self.capsys.readouterr()
        self.errors = printed.err
        assert found == status, printed
        return printed.out

    def plugins(self) -> list[dict[str, Any]]:
        """What each plugin that was started was given."""
        record = self.path / "plugins"
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []

    def login(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Log in as ann."""
        read, write = os.pipe()
        os.write(write, f"{PASSWORD}\n".encode())
        os.close(write)
        with os.fdopen(read) as given:
            monkeypatch.setattr("sys.stdin", given)
            self.oq("login", "ann", "--password-stdin")

    def direct(self) -> None:
        """Use the WebUI's address itself, which is quicker than a port forward."""
        outputs = self.path / "direct.json"
        outputs.write_text(
            json.dumps(OUTPUTS | {"webUiUrl": f"http://127.0.0.1:{os.environ['STAND_IN_PORT']}"})
        )
        self.oq("use", "--outputs", outputs, "--direct")

    def job(self, description: str = "a job", name: str = "job.ini") -> Path:
        """A small job file with one input."""
        folder = self.path / "job"
        folder.mkdir(exist_ok=True)
        (folder / "sites.csv").write_text("lon,lat\n0,0\n")
        ini = folder / name
        ini.write_text(
            f"[general]\ndescription = {description}\ncalculation_mode = classical\nsites_csv = sites.csv\n"
        )
        return ini


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    """A cluster whose outputs are the default."""
    fakes = FakeWebUI(), FakeAws()
    with served(fakes[0]) as port, served(fakes[1]) as aws_port:
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "session-manager-plugin").symlink_to(Path(__file__).with_name("session-manager-plugin"))
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "STAND_IN_PORT": str(port),
            "STAND_IN_RECORD": str(tmp_path / "plugins"),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws_port}",
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "example",
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        monkeypatch.setattr(submit, "_POLL_SECONDS", 0.02)
        monkeypatch.setattr(session_manager, "_POLL_SECONDS", 0.02)
        monkeypatch.setattr(webui, "_PAUSES", (0.02, 0.05))
        monkeypatch.setattr(commands, "_POLL_SECONDS", 0.02)
        monkeypatch.setattr(submit, "_APPEARS_SECONDS", 0.3)
        world = World(tmp_path, *fakes, capsys)
        outputs = tmp_path / "cluster.json"
        outputs.write_text(json.dumps(OUTPUTS))
        world.oq("use", "--outputs", outputs)
        try:
            yield world
        finally:  # what a test that failed has left
            for plugin in world.plugins():
                with contextlib.suppress(OSError):  # it has ended, as it should
                    if str(programs) in Path(f"/proc/{plugin['pid']}/cmdline").read_text():
                        os.kill(plugin["pid"], signal.SIGKILL)
