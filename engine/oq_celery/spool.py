"""Large tasks and results, by reference through the shared directory.

Every channel has a directory of its own under `<shared_dir>/oq_celery`. A file is written under a temporary
name, given its name when it is complete, and removed by the master when its content has been used; the
directory goes with its channel. Every reference carries the checksum of what it refers to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from openquake.baselib.parallel import Pickled, decompress

from oq_celery.protocol import Stored

# Users' jobs and the workers run as different users of one group, and both remove the files.
DIRECTORY_MODE = 0o2770
FILE_MODE = 0o660
CHUNK = 1 << 20
IN_ONE_PIECE = 32 * CHUNK  # bytes that may be in memory twice, for which the file is read once


class CorruptError(RuntimeError):
    """A stored payload is not what was written."""


class StoredPickle(Pickled):  # type: ignore[misc]
    """A `Pickled` whose bytes lie in a file; the engine unpickles it without having held the bytes."""

    def __init__(self, pickled: Pickled, stored: Stored) -> None:
        self.clsname = pickled.clsname
        self.calc_id = pickled.calc_id
        self.compressed = pickled.compressed
        self.stored = stored

    def __len__(self) -> int:
        return self.stored.size

    def check(self) -> None:
        """Read it once.

        Raises:
            CorruptError: if it is not what was written.
            OSError: if it cannot be read.
        """
        _checked(self.stored).close()

    def unpickle(self) -> Any:
        """Check and load the object; of a large one it is the only copy in memory."""
        if self.compressed:
            return pickle.loads(decompress(read(self.stored)))  # noqa: S301
        if self.stored.size <= IN_ONE_PIECE:
            return pickle.loads(read(self.stored))  # noqa: S301
        with _checked(self.stored) as file:
            return pickle.load(file)  # noqa: S301


def read(stored: Stored) -> bytes:
    """The bytes that `stored` refers to.

    Raises:
        CorruptError: if they are not those that were written.
        OSError: if the file cannot be read.
    """
    with Path(stored.path).open("rb") as file:
        file.seek(stored.offset)
        data = file.read(stored.size)
    if len(data) != stored.size or digest(data) != stored.digest:
        raise _corrupt(stored)
    return data


def write(path: Path, data: bytes) -> Stored:
    """Write a file in one step and return the reference to all of it."""
    writer = Writer(path)
    stored = writer.append(data)
    writer.close()
    return stored


def digest(data: bytes) -> str:
    """The checksum of a payload: BLAKE2b is about as fast as the file system and finds what it garbles."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Writer:
    """Appends payloads to one new file, which gets its name when it is closed."""

    def __init__(self, path: Path) -> None:
        make_directory(path.parent)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb")
        os.fchmod(self._file.fileno(), FILE_MODE)

    def append(self, data: bytes) -> Stored:
        """Append one payload; the reference is good after `close`."""
        stored = Stored(str(self._path), self._file.tell(), len(data), digest(data))
        self._file.write(data)
        return stored

    def close(self) -> None:
        """Write everything out and give the file its name."""
        self._file.close()  # NFS reports a full disk here
        self._part.rename(self._path)

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # what could not be written is to be removed anyway
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


class References:
    """Counts who still needs which file and removes a file with its last reference."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def __contains__(self, path: str) -> bool:
        return path in self._count

    def retain(self, paths: Iterable[str]) -> None:
        """Add a reference to each path."""
        self._count.update(paths)

    def release(self, paths: Iterable[str]) -> None:
        """Take the references back."""
        for path in paths:
            self._count[path] -= 1
            if self._count[path] <= 0:
                del self._count[path]
                Path(path).unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a channel's directory, and the spool directory above it, writable by the group."""
    for directory in (path.parent, path):
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        directory.chmod(DIRECTORY_MODE)


def remove_directory(path: Path) -> None:
    """Remove a channel's directory with all that is in it; a missing one is no error."""
    shutil.rmtree(path, ignore_errors=True)


def _checked(stored: Stored) -> BinaryIO:
    """Open the file of `stored` at its offset, after a first pass that compares the checksum."""
    file = Path(stored.path).open("rb")  # noqa: SIM115 - the caller closes it
    file.seek(stored.offset)
    state, left = hashlib.blake2b(digest_size=16), stored.size
    while left and (chunk := file.read(min(CHUNK, left))):
        state.update(chunk)
        left -= len(chunk)
    if left or state.hexdigest() != stored.digest:
        file.close()
        raise _corrupt(stored)
    file.seek(stored.offset)
    return file


def _corrupt(stored: Stored) -> CorruptError:
    return CorruptError(f"{stored.path} has not the {stored.size} bytes that were written at {stored.offset}")
