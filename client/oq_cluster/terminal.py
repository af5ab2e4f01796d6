"""What people see while a command works: lines on standard error, and one that is written over."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO


def megabytes(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / 1e6:.1f} MB"


class Terminal:
    """Standard error. The line that is written over is only there on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._shown = False

    @property
    def live(self) -> bool:
        """Whether there is such a line."""
        return self.stream.isatty()

    def say(self, line: str) -> None:
        """Print a line."""
        self.status("")
        print(line, file=self.stream, flush=True)

    def status(self, text: str) -> None:
        """Write over the status line; empty takes it away."""
        if not self.live or (not text and not self._shown):
            return
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{text[:width]}")
        self.stream.flush()
        self._shown = bool(text)
