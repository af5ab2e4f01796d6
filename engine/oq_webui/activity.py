"""Django's middleware that leaves the time of the last request where `oq-idle` finds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 10.0  # between two notes: pages ask every second
FILE = "asked"


class Activity:
    """Touches a file in the unit's runtime directory; does nothing where there is none."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        directory = os.environ.get("RUNTIME_DIRECTORY")  # systemd's
        self._file = Path(directory, FILE) if directory else None
        self._noted = -SECONDS

    def __call__(self, request: Any) -> Any:
        """Answer, and note that somebody has asked."""
        if self._file and time.monotonic() - self._noted >= SECONDS:
            self._noted = time.monotonic()
            self._file.touch()
        return self._get_response(request)
