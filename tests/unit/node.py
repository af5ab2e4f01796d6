"""Modules of the nodes' program, loaded here with the facts that the Pulumi program gives to a node."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from components import userdata
from lab.aws import user_data
from lab.aws.recording import Recording

FACTS_FILE = Path("/etc/openquake/node.json")
_USER_DATA = {
    "master": ("aws:ec2/instance:Instance", "userDataBase64"),
    "worker": ("aws:ec2/launchTemplate:LaunchTemplate", "userData"),
}


def node_facts(recording: Recording, role: str) -> dict[str, Any]:
    """What a recorded node (master or worker) reads in its facts file."""
    facts: dict[str, Any] = json.loads(node_files(recording, role)[str(FACTS_FILE)])
    return facts


def node_files(recording: Recording, role: str) -> dict[str, str]:
    """The files that cloud-init writes on a recorded node (master or worker), by their paths."""
    type_, argument = _USER_DATA[role]
    written = user_data.decode(recording.one(type_).inputs[argument])["write_files"]
    return {one["path"]: one["content"] for one in written}


@contextmanager
def node_module(name: str, facts: Mapping[str, Any]) -> Iterator[Any]:
    """oq_node.`name` as on a node with these facts, imported for the length of the context only."""
    read_text = Path.read_text

    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        return json.dumps(facts) if path == FACTS_FILE else read_text(path, *args, **kwargs)

    path = [str(userdata.CLOUD_INIT_DIR), *sys.path]
    with mock.patch.dict(sys.modules), mock.patch.object(sys, "path", path):
        for loaded in [one for one in sys.modules if one.partition(".")[0] == "oq_node"]:
            del sys.modules[loaded]
        with mock.patch.object(Path, "read_text", read):
            module = importlib.import_module(f"oq_node.{name}")
        yield module
