"""Record the state of a cluster that this version of the program makes: `python -m tests.engine.record`.

Done at a release: later versions are tested to update such a cluster (test_upgrade). Settings are the defaults.
"""

from __future__ import annotations

import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from lab.base import REPOSITORY
from lab.region.provider import Provider
from lab.region.stack import Stack, find_pulumi, served

RELEASES = Path(__file__).parent / "releases"
# What is of no use to a later version: where the program stood, and what no later one leaves unchanged.
LEFT_OUT = {"sourcePosition", "stackTrace", "secrets_providers"}
SHORTENED = {"contentBase64", "userData", "userDataBase64", "dir"}
OF_THE_RELEASE = "b2YgdGhlIHJlbGVhc2U="


def shortened(value: Any) -> Any:
    """A part of a state without what a test needs not, and without the paths of this machine."""
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in LEFT_OUT}
    return {key: _short(key, item) for key, item in kept.items()}


def _short(key: str, value: Any) -> Any:
    if key == "propertyDependencies":  # the same names as those of the arguments
        return value
    if key == "interpreter":
        return ["of the release"]
    return OF_THE_RELEASE if key in SHORTENED else shortened(value)


def main() -> None:
    """Write the state of this version to the file that has its name."""
    pulumi = find_pulumi()
    if pulumi is None:
        sys.exit("needs Pulumi's command line: `make engine` builds it")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    with served(Provider()) as environment, tempfile.TemporaryDirectory() as directory:
        stack = Stack(pulumi, Path(directory) / "stack", environment).init()
        stack.up()
        state = shortened(json.loads(stack.run("stack", "export")))
    RELEASES.mkdir(exist_ok=True)
    (RELEASES / f"{version}.json").write_text(json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    main()
