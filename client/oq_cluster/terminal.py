"""What people see while a command works: lines on standard error, and one that is written over."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Final, TextIO

# What would act on the terminal of whoever reads it; a tab and an end of a line do no harm.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """A text for people; others may have written parts of it, such as a job's description or its log."""
    return _CONTROL.sub("?", text)


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
        print(plain(line), file=self.stream, flush=True)

    def status(self, text: str) -> None:
        """Write over the status line; empty takes it away."""
        if not self.live or (not text and not self._shown):
            return
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{plain(text[:width])}")
        self.stream.flush()
        self._shown = bool(text)
