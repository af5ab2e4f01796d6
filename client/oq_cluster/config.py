"""What is remembered between two commands: the default cluster, and the session of a login. Never a password."""

from __future__ import annotations

import codecs
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from oq_cluster.errors import UsageError

CLUSTER: Final = "cluster.json"
SESSIONS: Final = "sessions.json"


def directory() -> Path:
    """`oq-cluster` below the user's directory of configurations, by the XDG Base Directory Specification."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "oq-cluster"


def read(name: str) -> dict[str, Any]:
    """A file's object; empty without the file.

    Raises:
        UsageError: it is damaged.
    """
    path = directory() / name
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); remove it, then repeat use or login") from None
    return found if isinstance(found, dict) else {}


def given(path: Path) -> str:
    """The text of a file that a user has written, by `>` of any shell: that of Windows PowerShell 5 makes it UTF-16.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    data = path.read_bytes()
    return data.decode(
        "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    )


def write(name: str, value: dict[str, Any]) -> None:
    """Replace a file by an object's JSON, as `replace` does it."""
    replace(directory() / name, json.dumps(value, indent=2))


def replace(path: Path, text: str) -> None:
    """Replace a file in one step; only the user can read it.

    Raises:
        UsageError: there is no way to write it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of this command alone
        new = Path(name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from None
