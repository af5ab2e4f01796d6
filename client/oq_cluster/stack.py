"""Which cluster is meant, and its stack's outputs: addresses and names, no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from oq_cluster import config
from oq_cluster.errors import ClientError, UsageError

# The outputs that every cluster has (__main__.py of the program) and something here needs.
REQUIRED: Final = ("region", "masterInstanceId", "workerGroupName", "secretName")
LAB: Final = "lab"  # a lab's addition to the outputs
DEFAULT_LAB: Final = "oqlab"


@dataclass(frozen=True)
class Source:
    """Where a cluster's outputs come from: a stack, a file or a lab, exactly one of them.

    Attributes:
        stack: the name of a Pulumi stack.
        outputs: a file with what `pulumi stack output --json` has printed.
        lab: the name of a lab on this machine.
        directory: of the Pulumi program, for a stack and a lab.
        profile: of AWS's configuration; empty for the default.
        direct: whether the WebUI's address is in reach, without Session Manager.
    """

    stack: str = ""
    outputs: str = ""
    lab: str = ""
    directory: str = ""
    profile: str = ""
    direct: bool = False

    def __str__(self) -> str:
        """For people."""
        return f"stack {self.stack}" if self.stack else f"lab {self.lab}" if self.lab else self.outputs


def remembered() -> Source:
    """The cluster of the last `oq-cluster use`.

    Raises:
        UsageError: there is none.
    """
    found = config.read(config.CLUSTER)
    if not found:
        raise UsageError(
            "which cluster? Name one once, from the directory of the Pulumi program: oq-cluster use --stack NAME "
            "(or --outputs FILE, with what `pulumi stack output --json` prints; or --lab)"
        )
    try:
        return Source(**found)
    except TypeError:
        raise UsageError("the remembered cluster is of another version: repeat oq-cluster use") from None


def remember(source: Source) -> None:
    """Make a cluster the default."""
    config.write(config.CLUSTER, asdict(source))


@dataclass(frozen=True)
class Outputs:
    """A stack's outputs."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> str:
        return str(self.values[name])

    @property
    def webui(self) -> tuple[str, int]:
        """The WebUI's address in the cluster's network, and its port.

        Raises:
            ClientError: the cluster has none.
        """
        url = self.values.get("webUiUrl")
        if not url:
            raise ClientError(
                "this cluster has no WebUI, by which jobs come to it: "
                "pulumi config set webui true && pulumi up, which replaces the master (running calculations are "
                "lost), or compute in oq-cluster shell"
            )
        port = urlsplit(str(url)).port
        if port is None:
            raise ClientError(f"the output webUiUrl ({url}) names no port: export the outputs again")
        return str(url), port

    @property
    def identity(self) -> str:
        """What tells this cluster from all others, also after its master was replaced."""
        if LAB in self.values:
            return f"lab {self.values[LAB]['name']}"
        return f"{self['region']} {self['secretName']}"


def read(source: Source) -> Outputs:
    """Ask for a cluster's outputs.

    Raises:
        ClientError: they cannot be had; the message says what to do.
    """
    if source.stack:
        directory = ["--cwd", source.directory] if source.directory else []
        command = ["pulumi", "stack", "output", "--json", "--non-interactive", "--stack", source.stack]
        text = _printed([*command, *directory], "use --outputs FILE with the exported outputs")
    elif source.lab:
        text = _printed(lab_command(source, "outputs"), "boot it: python -m lab up", lab_environment(source))
    else:
        try:
            text = config.given(Path(source.outputs))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{source.outputs} cannot be read ({error}): write the file with: pulumi stack output --json > "
                f"{source.outputs}"
            ) from None
    try:
        values = json.loads(text)
        missing = [name for name in REQUIRED if name not in values]
    except (ValueError, TypeError):
        values, missing = {}, list(REQUIRED)
    if missing:
        raise ClientError(
            f"{source}: these are not the outputs of a cluster, there is no {', '.join(missing)}; "
            "pulumi up makes one, or wait until it has ended; pulumi stack output --json prints them"
        )
    return Outputs(values)


def lab_command(source: Source, *words: str) -> list[str]:
    """The command line of a lab's command."""
    python = Path(source.directory, ".venv/bin/python")
    return [str(python) if python.exists() else sys.executable, "-m", "lab", *words]


def lab_environment(source: Source) -> dict[str, str]:
    """The environment of a lab's commands: where the program is, and which lab."""
    return {**os.environ, "PYTHONPATH": source.directory, "OQLAB_NAME": source.lab}


def _printed(command: list[str], remedy: str, environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise ClientError(f"{command[0]} is not on this computer: install it, or {remedy}") from None
    if done.returncode:
        raise ClientError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}\n({remedy})")
    return done.stdout
