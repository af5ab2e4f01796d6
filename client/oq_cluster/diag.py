"""One archive for a bug report: what the cluster is and what it says, without secrets."""

from __future__ import annotations

import functools
import io
import json
import platform
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from oq_cluster import __version__
from oq_cluster.errors import ClientError
from oq_cluster.reach import Master
from oq_cluster.stack import Outputs
from oq_cluster.terminal import Terminal
from oq_cluster.webui import WebUI

# What is asked of the master, each in one command; of journals the newest first, since AWS may cut the end off. Files
# with secrets in them are not read at all, since AWS keeps the output of commands: openquake.cfg, RabbitMQ's
# definitions, the WebUI's secrets.
COMMANDS: Final[Mapping[str, str]] = {
    "node.json": "oq-node status",
    "queue.json": "oq-celery status --json",
    "units.txt": "systemctl list-units --no-pager --all 'openquake*' 'rabbitmq*'",
    "disks.txt": "df -h; echo; free -m; echo; uptime",
    "journal.txt": "journalctl --no-pager --reverse --lines=3000 --priority=info",
    "kernel.txt": "journalctl --no-pager --reverse --lines=300 --dmesg --priority=warning",
}
# The safety net, should a program print a secret: whatever follows such a word.
_SECRET: Final = re.compile(
    r"""(?i)((?:pass(?:word|wd)?|secret(?:_?key)?|token|authkey|sessionid|cookie)\w*["']?\s*[=:]\s*["']?)[^\s"',]+"""
)
_USER_IN_URL: Final = re.compile(r"(\w+://[^\s:/@]+:)[^\s@/]+@")


def collect(
    outputs: Outputs, webui: Callable[[], WebUI], master: Master, number: int | None, terminal: Terminal
) -> dict[str, str]:
    """The archive's files by their names. What cannot be had says why in its place.

    Args:
        webui: gives the WebUI, which the cluster may lack.
        number: a calculation to describe, too.
    """
    about = {"oq-cluster": __version__, "python": platform.python_version(), "system": platform.platform()}
    parts: dict[str, Callable[[], str]] = {
        "client.json": lambda: json.dumps(about, indent=2),
        "outputs.json": lambda: json.dumps(dict(outputs.values), indent=2),
        "fleet.json": lambda: json.dumps(master.fleet(), indent=2),
        "engine.txt": lambda: webui().version(),
        "calculations.json": lambda: json.dumps(webui().calculations()[:50], indent=2),
    }
    if number is not None:
        parts |= {
            f"calculation-{number}.json": lambda: json.dumps(webui().calculation(number), indent=2),
            f"calculation-{number}.log": lambda: "\n".join(
                " ".join(map(str, row)) for row in webui().log(number)
            ),
        }
    parts |= {name: functools.partial(_run, master, line) for name, line in COMMANDS.items()}
    found = {}
    for name, part in parts.items():
        terminal.status(f"{name} …")
        try:
            found[name] = redacted(part())
        except ClientError as error:
            found[name] = f"not to be had: {redacted(str(error))}\n"
    terminal.status("")
    return found


def _run(master: Master, line: str) -> str:
    return master.run_packed(f"({line}) 2>&1").output


def redacted(text: str) -> str:
    """A text without what looks like a secret."""
    return _USER_IN_URL.sub(r"\1…@", _SECRET.sub(r"\1…", text))


def write(path: Path, files: Mapping[str, str]) -> None:
    """Write the archive.

    Raises:
        ClientError: it cannot be written.
    """
    try:
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                data = text.encode()
                member = tarfile.TarInfo(f"oq-cluster-diag/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    except OSError as error:
        raise ClientError(f"{path} cannot be written: {error}") from None
