"""Run a Pulumi program for a language host, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pulumi
import pulumi.runtime
from pulumi.runtime.stack import run_in_stack

from lab.base import REPOSITORY

OURS = {"components", "lab"}
"""The packages of this repository that a program may import."""

TOLD_THE_USER = 32
"""The exit status that says: the user has been told what was wrong. As that of Pulumi's own executor."""


def run(directory: str, config: dict[str, str], secret_keys: list[str], settings: dict[str, Any]) -> None:
    """Run the program in a directory, and exit.

    Args:
        config: the stack's configuration, values as text
        settings: arguments of pulumi.runtime.Settings
    """
    # Ctrl-C ends it without a word: the engine, which hears it, too, says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(directory)
    sys.path[:] = [directory, *(path for path in sys.path if Path(path).resolve() != REPOSITORY)]
    for module in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[module]  # the program's own may be others: a test runs older and broken ones, too
    # where pulumi.Config and the program's own list of keys look
    os.environ["PULUMI_CONFIG"] = json.dumps(config)
    os.environ["PULUMI_CONFIG_SECRET_KEYS"] = json.dumps(secret_keys)
    pulumi.runtime.set_all_config(config, secret_keys)
    pulumi.runtime.configure(pulumi.runtime.Settings(**settings))

    def execute() -> None:
        runpy.run_path(str(Path(directory) / "__main__.py"), run_name="__main__")

    try:
        asyncio.run(run_in_stack(execute))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        sys.exit(TOLD_THE_USER)
