"""The gate between the WebUI's requests and a master that goes: what was accepted is not lost.

It is one file in the WebUI's runtime directory. The file's time is that of the last request. A request holds a shared
lock on it until it is answered. Who wants to power off takes the exclusive lock, while which new requests wait, looks
once more, and then bars the gate, or lets them go on. Something in the file means that it is barred: the master goes.
The directory is the WebUI's user's and root is who decides, so it takes nothing for the file that only leads elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FILE = "asked"
TRY_SECONDS = 3.0  # for the requests of an open page, which are short and many
POLL_SECONDS = 0.1
# After so long the power-off has failed: a shutdown takes a minute and a half at most.
STALE_SECONDS = 300.0


class Gate:
    """The gate in a directory; the WebUI makes it, and there is none without the WebUI."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / FILE

    def make(self) -> None:
        """Make it, as the WebUI's user."""
        self.file.touch()

    def enter(self) -> IO[bytes] | None:
        """Let a request in; it waits while somebody decides.

        Returns:
            The request's place, to be closed when it is answered; None if the gate is barred.
        """
        place = self.file.open("rb")
        fcntl.flock(place, fcntl.LOCK_SH)
        found = os.fstat(place.fileno())
        if found.st_size:
            if time.time() - found.st_mtime <= STALE_SECONDS:
                place.close()
                return None
            self.file.write_bytes(b"")
        return place

    def asked(self) -> float:
        """When the last request came, in seconds since 1970; 0 if there is no gate."""
        try:
            return self.file.lstat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextlib.contextmanager
    def closed(self) -> Iterator[bool]:
        """Let nobody in while the block lasts; False if somebody stays inside, and then it stays open."""
        try:
            place = self._open(os.O_RDONLY)
        except FileNotFoundError:
            yield True
            return
        except OSError:  # something else in its place
            yield False
            return
        with place:
            yield _locked(place, time.monotonic() + TRY_SECONDS)

    def bar(self) -> None:
        """Refuse all requests from now on, those too that wait."""
        with contextlib.suppress(FileNotFoundError), self._open(os.O_WRONLY) as place:
            place.write(b"the master goes\n")

    def _open(self, flags: int) -> IO[bytes]:
        """Open the file itself; OSError for anything else under its name."""
        descriptor = os.open(self.file, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        place = os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "wb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            place.close()
            raise OSError(f"{self.file} is no file")
        return place


def _locked(place: IO[bytes], deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True
