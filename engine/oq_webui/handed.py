"""The server's secrets, which systemd hands to it in an open file.

A file with a name would be open to all that its user runs, and that is everybody's calculations: one whose job file
named it would have it in its log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache

NAME = "secrets"
"""Of the file, in the unit's OpenFile=. It is JSON: `secret_key`, `admin_password` and, after a rotation,
`previous_secret_key`."""
_FIRST = 3  # sd_listen_fds(3)


def handed(name: str) -> str | None:
    """One of the secrets; None where there is none, as in a command about accounts."""
    return _values().get(name)


@cache
def _values() -> Mapping[str, str]:
    """All of them: read once, after which the file is closed; gunicorn would take what is said of it for a socket."""
    for_whom, names = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDNAMES", "").split(":")
    os.environ.pop("LISTEN_FDS", None)
    if for_whom != str(os.getpid()) or NAME not in names:
        return {}
    with os.fdopen(_FIRST + names.index(NAME), encoding="utf-8") as file:
        values: dict[str, str] = json.load(file)
    return values
