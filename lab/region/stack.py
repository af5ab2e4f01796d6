"""Run Pulumi's command line on a program, with a provider and a language host that run in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
import yaml
from pulumi.runtime.proto import language_pb2_grpc, provider_pb2_grpc

from components import facts
from lab.base import REPOSITORY
from lab.region.language_host import LanguageHost
from lab.region.provider import Provider, label

BUILT: Final = REPOSITORY / ".cache/pulumi/pulumi"
"""Where `make` puts the command line that it builds."""
PACKAGES: Final = ("aws", "command")
_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""The largest message of the engine: it sends whole resources, of which one holds the bundle."""


class CommandError(Exception):
    """Pulumi's command line has failed; the text is what it printed."""


def find_pulumi() -> Path | None:
    """Pulumi's command line: the user's own, or the one that `make` has built; None if there is neither."""
    own = shutil.which("pulumi")
    if own:
        return Path(own)
    return BUILT if BUILT.exists() else None


@contextmanager
def served(provider: Provider) -> Iterator[dict[str, str]]:
    """Serve a provider and the language host on ports of the loopback; the environment by which Pulumi finds them."""
    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES)]
    server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(LanguageHost(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield {
            "PULUMI_DEBUG_PROVIDERS": ",".join(f"{package}:{port}" for package in PACKAGES),
            "PULUMI_DEBUG_LANGUAGES": f"python:{port}",
        }
    finally:
        server.stop(grace=None).wait()


def make_project(directory: Path) -> None:
    """Make a project of Pulumi with this repository's program: its settings and its state are in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    # Pulumi takes a program below the project's file only.
    (directory / "program").symlink_to(REPOSITORY)
    project = yaml.safe_load((REPOSITORY / "Pulumi.yaml").read_text())
    (directory / "Pulumi.yaml").write_text(yaml.safe_dump({**project, "main": "program"}, sort_keys=False))


def surroundings(directory: Path) -> dict[str, str]:
    """The environment of Pulumi in such a project: nothing of the user's own Pulumi is read or written."""
    return {
        **os.environ,
        "PULUMI_HOME": str(directory / "home"),
        "PULUMI_BACKEND_URL": f"file://{directory}",
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }


@dataclass(frozen=True)
class Step:
    """What Pulumi does with one resource.

    Attributes:
        label: of the resource, as lab.region.provider.label
        op: `create`, `update`, `replace`, `delete`, …: the engine's word
        changed: the arguments that differ
        old: the inputs before
        new: the inputs after
    """

    op: str
    type: str
    label: str
    changed: frozenset[str] = frozenset()
    old: Mapping[str, Any] = field(default_factory=dict)
    new: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Stack:
    """A stack of the program, in a directory of its own.

    Attributes:
        directory: holds a project with this repository's program, the stack's settings and its state; a copy
            of it is another stack at the same point
        environment: by which Pulumi finds the provider and the host
    """

    pulumi: Path
    directory: Path
    environment: Mapping[str, str]
    name: str = "test"

    @property
    def config_file(self) -> Path:
        """The stack's settings."""
        return self.directory / f"Pulumi.{self.name}.yaml"

    def configure(self, **settings: object) -> None:
        """Write the stack's settings: these and no others."""
        kept = yaml.safe_load(self.config_file.read_text()) if self.config_file.exists() else {}
        kept["config"] = {f"{facts.PROJECT}:{key}": value for key, value in settings.items()}
        self.config_file.write_text(yaml.safe_dump(kept))

    def command(self, *arguments: str) -> list[str]:
        """The command line of a Pulumi command on this stack."""
        return [str(self.pulumi), *arguments, "--non-interactive", f"--stack={self.name}"]

    def is_written(self) -> bool:
        """Whether Pulumi has left its state alone for two seconds: while it writes, the file may be empty, and to be
        killed then is another case than to be killed at work (docs/trouble.md).
        """
        (state,) = (self.directory / ".pulumi/stacks").rglob("*.json")
        return time.time() - state.stat().st_mtime > 2

    def surroundings(self) -> dict[str, str]:
        """The environment of a Pulumi command on this stack."""
        return {
            **surroundings(self.directory),
            **self.environment,
            "NO_COLOR": "1",
        }

    def run(self, *arguments: str) -> str:
        """Run a Pulumi command on this stack; its standard output. Raises CommandError if it fails."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=self.surroundings(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if "--json" not in arguments else subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"pulumi {' '.join(arguments)}:\n{done.stdout}{done.stderr or ''}")
        return done.stdout

    def init(self) -> Stack:
        """Make the stack, which is empty then."""
        make_project(self.directory)
        self.configure()
        self.run("stack", "init")
        return self

    def copy(self, directory: Path) -> Stack:
        """Another stack at the same point: a copy of state and settings."""
        shutil.copytree(self.directory, directory, symlinks=True)
        return replace(self, directory=directory)

    def up(self, *options: str) -> str:
        """Update; what Pulumi printed."""
        return self.run("up", "--yes", "--skip-preview", *options)

    def destroy(self) -> str:
        """Destroy; what Pulumi printed."""
        return self.run("destroy", "--yes", "--skip-preview")

    def refresh(self) -> str:
        """Refresh the state; what Pulumi printed."""
        return self.run("refresh", "--yes", "--skip-preview")

    def preview(self) -> list[Step]:
        """What `up` would do now, without what stays as it is and without components."""
        answer = json.loads(self.run("preview", "--json"))
        return [step for step in map(_step, answer["steps"]) if step is not None]

    def resources(self) -> dict[str, dict[str, Any]]:
        """The stack's resources in the state, by their labels; components and providers left out."""
        deployment = json.loads(self.run("stack", "export"))["deployment"]
        return {
            label(one["urn"]): one
            for one in deployment.get("resources", [])
            if one["custom"] and not one["type"].startswith("pulumi:")
        }


def _step(step: Mapping[str, Any]) -> Step | None:
    type_ = step["urn"].split("::")[2].split("$")[-1]
    after = step.get("newState") or {}
    before = step.get("oldState") or {}
    ours = (after or before).get("custom") and not type_.startswith("pulumi:")
    if step["op"] == "same" or not ours:
        return None
    return Step(
        step["op"],
        type_,
        label(step["urn"]),
        frozenset(step.get("diffReasons") or ()),
        before.get("inputs", {}),
        after.get("inputs", {}),
    )
