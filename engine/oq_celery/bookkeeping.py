"""What the engine writes down about each task, written in batches.

Upstream's master reads, deletes and makes anew the dataset `task_sent` for every task that ends, and extends and
flushes `task_info` and `performance_data`: one to two milliseconds in its only thread, more than all else that a short
task costs. Here the same rows, made by upstream's own functions, are collected while a `Starmap` runs and written once
a second, in the same order. Whoever reads one of the three in this process, flushes or closes the file finds everything
written; so it is when the calculation fails or is interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import psutil
from openquake.baselib import hdf5, performance

SENT = "task_sent"
ROWS = ("task_info", "performance_data")
WRITE_SECONDS = 1.0  # between two batches: so old may be what another process reads
LOOK_SECONDS = 0.1  # between two looks at the memory in use, which upstream takes for every result

_books: weakref.WeakSet[Book] = weakref.WeakSet()


class Book:
    """The rows of one file that have not been written yet; upstream's functions take it for the file."""

    mode = "r+"

    def __init__(self, file: BatchedFile) -> None:
        self.users = 0  # the running Starmaps
        self.sent: str | None = None  # the new content of SENT
        self._file = file
        self._rows: dict[str, _Rows] = {name: _Rows(self) for name in ROWS}
        self._written = time.monotonic()
        _books.add(self)

    def __getitem__(self, name: str) -> _Rows:
        return self._rows[name]

    def write_if_due(self) -> None:
        """Write when the last time is long enough ago."""
        if time.monotonic() >= self._written + WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write everything into the file, if it is open."""
        self._written = time.monotonic()
        if not self._file:
            return
        for name, rows in self._rows.items():
            if rows.arrays:
                arrays, rows.arrays = rows.arrays, []
                dataset = hdf5.File.__getitem__(self._file, name)
                hdf5.extend(dataset, numpy.concatenate(arrays))
                dataset.flush()
        if self.sent is not None:
            if SENT in self._file:  # it is not if this was interrupted before
                hdf5.File.__delitem__(self._file, SENT)
            hdf5.File.__setitem__(self._file, SENT, self.sent)
            self.sent = None


class _Rows:
    """As much of an extensible dataset as `hdf5.extend` needs: what is appended waits."""

    def __init__(self, book: Book) -> None:
        self.arrays: list[Any] = []
        self._book = book

    def __len__(self) -> int:
        return 0

    def resize(self, shape: tuple[int, ...]) -> None:
        """There is always room."""

    def __setitem__(self, _: slice, array: Any) -> None:
        self.arrays.append(array)

    def flush(self) -> None:
        """Where upstream notifies readers."""
        self._book.write_if_due()


class _Text:
    """As much of a dataset as it takes to read the text in it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __getitem__(self, _: tuple[()]) -> bytes:
        return self._text.encode()


class BatchedFile(hdf5.File):  # type: ignore[misc]
    """An open file with a book."""

    book: Book

    def __getitem__(self, name: str) -> Any:
        if name == SENT and self.book.sent is not None:
            return _Text(self.book.sent)
        if name in ROWS:
            self.book.write()
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == SENT:
            self.book.sent = value
        else:
            super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        if name != SENT:  # which is deleted only to be made anew
            super().__delitem__(name)

    def flush(self) -> None:
        """Write everything, into the file and out of it."""
        self.book.write()
        super().flush()

    def close(self) -> None:
        """Write everything, and close the file."""
        self.book.write()
        super().close()


@contextlib.contextmanager
def batched(h5: Any) -> Iterator[None]:
    """Write in batches what the engine writes down about tasks, until the block ends.

    Args:
        h5: of a Starmap: a file or a datastore; one that is open for reading only is left alone.
    """
    file = getattr(h5, "hdf5", h5)
    if not isinstance(file, hdf5.File) or file.mode == "r" or any(name not in file for name in (SENT, *ROWS)):
        yield
        return
    if not isinstance(file, BatchedFile):
        file.__class__ = BatchedFile  # this object alone
        file.book = Book(file)
    file.book.users += 1
    try:
        yield
    finally:
        file.book.users -= 1
        if not file.book.users:
            file.book.write()
            file.__class__ = hdf5.File


def write_all() -> None:
    """Write what an error or an abort left unwritten."""
    for book in list(_books):
        book.write()


def extend(parallel: Any) -> None:
    """Let the engine's own functions write into the book of a file that has one, and measure at less cost."""
    monitor = parallel.Monitor
    upstream_result = parallel.Result.__init__
    upstream_flush = monitor.flush
    upstream_task_info = monitor.save_task_info

    def flush(self: Any, h5: Any) -> None:
        upstream_flush(self, _book_of(h5))

    def save_task_info(self: Any, h5: Any, res: Any, name: str, mem_gb: float = 0) -> None:
        upstream_task_info(self, _book_of(h5), res, name, mem_gb)

    def result(self: Any, val: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(val, dict) and val:
            upstream_result(self, {}, *args, **kwargs)
            self.pik = parallel.Pickled(val)
            self.nbytes = {key: _size(value, parallel.Pickled) for key, value in val.items()}
        else:
            upstream_result(self, val, *args, **kwargs)

    parallel.Result.__init__ = result
    monitor.flush = flush
    monitor.save_task_info = save_task_info
    parallel.check_mem_usage = _now_and_then(parallel.check_mem_usage)
    parallel.memory_gb = _now_and_then(parallel.memory_gb)
    performance.memory_rss = _own_memory(performance.memory_rss)


def _book_of(h5: Any) -> Any:
    file = getattr(h5, "hdf5", h5)
    return file.book if isinstance(file, BatchedFile) else h5


def _size(value: Any, pickled: type) -> int:
    """The size of a part of a result, for the log's "Received ..."; upstream pickles each part once more for it."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        return value.nbytes
    return len(pickled(value))


def _own_memory(function: Callable[[int], int]) -> Callable[[int], int]:
    """Upstream's `memory_rss`, which does not learn anew each time who this process is; a task asks twice."""
    known: dict[int, psutil.Process] = {}  # at most this one, and before a fork its parent

    @functools.wraps(function)
    def look(pid: int) -> int:
        if pid != os.getpid():
            return function(pid)
        if pid not in known:
            known[pid] = psutil.Process(pid)
        resident: int = known[pid].memory_info().rss
        return resident

    return look


def _now_and_then(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives its last value again for LOOK_SECONDS."""
    known: dict[Any, tuple[float, Any]] = {}

    @functools.wraps(function)
    def look(*args: Any) -> Any:
        key = tuple(map(str, args))
        now = time.monotonic()
        until, value = known.get(key, (0.0, None))
        if now >= until:
            value = function(*args)
            known[key] = now + LOOK_SECONDS, value
        return value

    return look
