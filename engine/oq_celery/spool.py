"""Large tasks and results, by reference through the shared directory.

Every channel has a directory of its own under `<shared_dir>/oq_celery`. A file is referred to only by messages that are
sent after it has been closed, so nobody reads one that is not complete. The master removes it when its content has
been used; the directory goes with its channel. Every reference carries the checksum of what it refers to.

On NFS each operation on a name costs milliseconds, so there are few: a file is created under its own name, written,
closed, opened, read and unlinked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import pickle
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Iterable
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

from openquake.baselib.parallel import Pickled, decompress

from oq_celery.protocol import Stored

# Users' jobs and the workers run as different users of one group, and both remove the files.
DIRECTORY_MODE = 0o2770
FILE_MODE = 0o660
# Bytes that are read at once. What is larger is read twice, first to compare the checksum, then by the unpickler, with
# the second pass from the page cache: from 1 MB on that takes half the time of one pass into new memory, whose pages
# cost more than the reading. (A mapping would save the second pass, but an error of NFS would then be a signal that
# ends the process, and not an OSError.)
CHUNK = 1 << 18
DIGITS = 32  # of a checksum, hexadecimal

log = logging.getLogger(__name__)


class CorruptError(RuntimeError):
    """A stored payload is not what was written."""


class StoredPickle(Pickled):  # type: ignore[misc]
    """A `Pickled` whose bytes lie in a file; the engine unpickles it without having held the bytes.

    Attributes:
        checked: the file has been compared with its checksum just now, and need not be once more.
    """

    checked = False

    def __init__(self, pickled: Pickled, stored: Stored) -> None:
        self.clsname = pickled.clsname
        self.calc_id = pickled.calc_id
        self.compressed = pickled.compressed
        self.stored = stored

    def __len__(self) -> int:
        return self.stored.size

    def check(self) -> None:
        """Compare the file with its checksum.

        Raises:
            CorruptError: if it is not what was written.
            OSError: if it cannot be read.
        """
        with Path(self.stored.path).open("rb") as file:
            _check(self.stored, file)
        self.checked = True

    def unpickle(self) -> Any:
        """Check and load the object; of a large one it is the only copy in memory."""
        if self.compressed:
            return pickle.loads(decompress(read(self.stored)))  # noqa: S301
        return load(self.stored, checked=self.checked)


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


def load(stored: Stored, *, checked: bool = False) -> Any:
    """The object whose pickle `stored` refers to; it is compared with its checksum before it is loaded.

    Args:
        stored: where it is.
        checked: that has been done already.

    Raises:
        CorruptError: if its bytes are not those that were written.
        OSError: if the file cannot be read.
    """
    if stored.size <= CHUNK:
        return pickle.loads(read(stored))  # noqa: S301
    with Path(stored.path).open("rb") as file:
        if checked:
            file.seek(stored.offset)
        else:
            _check(stored, file)
        return pickle.load(file)  # noqa: S301


def write(path: Path, data: bytes, checksum: str | None = None) -> Stored:
    """Write a file and return the reference to all of it; nothing is left of one that cannot be written.

    Args:
        path: does not exist yet.
        data: its content.
        checksum: of the content, when it is known already.
    """
    writer = Writer(path)
    try:
        stored = writer.append(data, checksum)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return stored


def replace(path: Path, data: bytes) -> None:
    """Write a file that others read at any time: they find the old content or the new one."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    write(new, data)
    try:
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def digest(data: bytes) -> str:
    """The checksum of a payload, by which equal arguments are also known.

    SHA-256 has instructions of its own in current CPUs: it takes half the time of BLAKE2b and is no slower without
    them. 128 bits of it are more than chance will ever make equal.
    """
    return hashlib.sha256(data).hexdigest()[:DIGITS]


class Writer:
    """Appends payloads to one new file, which is good after `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = self._create()
        except FileNotFoundError:  # the first file of its channel here
            make_directory(path.parent)
            self._file = self._create()

    def append(self, data: bytes, checksum: str | None = None) -> Stored:
        """Append one payload, whose checksum may be known already."""
        stored = Stored(str(self._path), self._file.tell(), len(data), checksum or digest(data))
        self._file.write(data)
        return stored

    def close(self) -> None:
        """Write everything out."""
        self._file.close()  # NFS reports a full disk here

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # what could not be written is to be removed anyway
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _create(self) -> BufferedWriter:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        # The group reads it; whoever may write into the directory may remove it.
        if not os.fstat(descriptor).st_mode & stat.S_IRGRP:
            os.fchmod(descriptor, FILE_MODE)
        return os.fdopen(descriptor, "wb")


class References:
    """Counts who still needs which file of a channel's directory and removes a file with its last reference.

    Files are known by their names in the directory: another machine may see the directory under another path.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count: Counter[str] = Counter()
        self._warned = False  # that a file cannot be removed

    def __contains__(self, path: str) -> bool:
        return Path(path).name in self._count

    def retain(self, paths: Iterable[str]) -> None:
        """Add a reference to each path."""
        self._count.update(Path(path).name for path in paths)

    def release(self, paths: Iterable[str]) -> None:
        """Take the references back. A file that cannot be removed goes with its directory, and ends no job."""
        for name in [Path(path).name for path in paths]:
            self._count[name] -= 1
            if self._count[name] <= 0:
                del self._count[name]
                try:
                    (self._directory / name).unlink(missing_ok=True)
                except OSError as error:
                    log.log(logging.DEBUG if self._warned else logging.WARNING, "A file stays: %s", error)
                    self._warned = True


def make_directory(path: Path) -> None:
    """Make a channel's directory, and the spool directory above it."""
    for directory in (path.parent, path):
        make(directory)


def make(directory: Path) -> None:
    """Make a directory, writable by the group, unless it is there.

    Nobody ever sees one with other rights, nor does a process that is killed leave one: it gets its name last.
    """
    if directory.is_dir():
        return
    new = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        new.chmod(DIRECTORY_MODE)
        new.rename(directory)  # also onto an empty one, which is the same
    except OSError as error:
        with contextlib.suppress(OSError):
            new.rmdir()
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
            raise


def remove_directory(path: Path) -> None:
    """Remove a channel's directory with all that is in it; a missing one is no error."""
    shutil.rmtree(path, ignore_errors=True)


def _check(stored: Stored, file: BufferedReader) -> None:
    """Compare the checksum of what lies in an open file, and leave the file at the payload's begin."""
    file.seek(stored.offset)
    state, left = hashlib.sha256(), stored.size
    buffer = memoryview(bytearray(CHUNK))
    while left and (count := file.readinto(buffer[: min(CHUNK, left)])):
        state.update(buffer[:count])
        left -= count
    if left or state.hexdigest()[:DIGITS] != stored.digest:
        raise _corrupt(stored)
    file.seek(stored.offset)


def _corrupt(stored: Stored) -> CorruptError:
    return CorruptError(f"{stored.path} has not the {stored.size} bytes that were written at {stored.offset}")
