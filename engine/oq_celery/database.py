"""Requests to the DbServer, which outlive it.

A DbServer that is restarted or killed takes with it the requests that it has not answered, and its clients do not
notice: upstream's waits ten minutes for the answer and then fails the calculation, for a line of its log as well as
for its end. Here a client sees the connection break and asks the next DbServer. The request may have been done, with
only its answer lost; so what must not be done twice is looked for first.

Answers are pickles, which may make their reader run anything. Whoever may ask the DbServer may make it answer anything,
and root asks it, too (`sudo oq abort`). So of an answer only plain values, the engine's rows and errors are read.
"""

from __future__ import annotations

import functools
import io
import pickle
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

import zmq
from openquake.baselib import zeromq

DONE: Final[Mapping[str, Callable[..., tuple[Any, ...]]]] = {
    "log": lambda job, time, _level, process, message: (
        "SELECT id FROM log WHERE job_id=?x AND timestamp=?x AND process=?x AND message=?x LIMIT 1",
        job, time, process, message,
    ),
    "create_outputs": lambda job, *_: ("SELECT id FROM output WHERE oq_job_id=?x LIMIT 1", job),
    "import_job": lambda job, *_: ("SELECT id FROM job WHERE id=?x", job),
}  # fmt: skip
"""By action of the DbServer that would do harm a second time, the query that finds what it has done.

All others read, or say what is to be so afterwards. `create_job` may leave a row of a calculation that never begins,
with the status `created`, which holds up nobody.
"""


_ANSWERS: Final = {
    "openquake.baselib.parallel": {"Pickled", "Result"},
    "openquake.baselib.performance": {"Monitor"},
    "openquake.commonlib.dbapi": {"Row", "Table"},
    "openquake.server.db.actions": {"List"},
    "datetime": {"date", "datetime", "timedelta", "timezone"},
}
"""By module, what an answer of the DbServer is made of, beside plain values and errors of `_ERRORS`."""
_ERRORS: Final = {
    "builtins",
    "openquake.commonlib.dbapi",
    "openquake.server.db.upgrade_manager",
    "psutil",
    "sqlite3",
}
"""The modules whose exceptions an answer may be."""


class _LostError(Exception):
    """The connection broke with a request on it."""


class Connection(zeromq.Socket):  # type: ignore[misc]
    """Upstream's client socket for one request, but one that sees its connection break and asks again."""

    def __enter__(self) -> Connection:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def send(self, request: tuple[Any, ...]) -> Any:
        """The DbServer's answer.

        Raises:
            openquake.baselib.zeromq.TimeoutError: if there is none in time.
        """
        deadline = time.monotonic() + self.timeout / 1000
        lost = False
        while True:
            try:
                if lost and self._is_done(request, deadline):
                    return None
                return self._ask(request, deadline)
            except _LostError:
                lost = True
                self._close()
                self._open()

    def _open(self) -> None:
        self.zsocket = zeromq.context.socket(zmq.REQ)
        # A request goes to the DbServer that is there, and does not lie here until there is one.
        self.zsocket.immediate = True
        self.zsocket.linger = 0
        self._breaks = self.zsocket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.zsocket.connect(self.end_point)

    def _close(self) -> None:
        self.zsocket.disable_monitor()
        self._breaks.close()
        self.zsocket.close()

    def _is_done(self, request: tuple[Any, ...], deadline: float) -> bool:
        """Whether a request whose answer was lost needs no repetition."""
        action, *arguments = request
        if action not in DONE:
            return False
        return bool(self._ask(DONE[action](*arguments), deadline).get())

    def _ask(self, request: tuple[Any, ...], deadline: float) -> Any:
        poller = zmq.Poller()
        poller.register(self.zsocket, zmq.POLLIN)
        poller.register(self._breaks, zmq.POLLIN)
        try:
            self.zsocket.sndtimeo = _milliseconds(deadline)
            self.zsocket.send_pyobj(request)
            ready = dict(poller.poll(_milliseconds(deadline)))
        except zmq.Again:  # no DbServer
            ready = {}
        if self.zsocket in ready:
            return load(self.zsocket.recv())
        if ready:
            raise _LostError
        raise zeromq.TimeoutError(f"While sending {request!r} to {self.end_point}")


def load(answer: bytes) -> Any:
    """Read an answer of the DbServer.

    Raises:
        pickle.UnpicklingError: if there is something in it that is not of answers.
    """
    return _Answer(io.BytesIO(answer)).load()


class _Answer(pickle.Unpickler):
    """Finds the classes that answers are made of, and nothing that can be called beside."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of an answer."""
        if name in _ANSWERS.get(module, ()):
            found = super().find_class(module, name)
            return _plain(found) if name == "Pickled" else found
        if module in _ERRORS and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, Exception):
                return found
        raise pickle.UnpicklingError(f"an answer of the DbServer has {module}.{name} in it")


@functools.cache
def _plain(pickled: Any) -> Any:
    """Upstream's class of a value that is a pickle of its own, which reads that in the same way."""

    from openquake.baselib.parallel import decompress

    class Plain(pickled):  # type: ignore[misc]
        def unpickle(self) -> Any:
            return load(decompress(self.pik) if self.compressed else self.pik)

    return Plain


def _milliseconds(deadline: float) -> int:
    return max(0, round((deadline - time.monotonic()) * 1000))


def extend(logs: Any) -> None:
    """Let the engine's module `openquake.commonlib.logs`, just imported, ask the DbServer by a `Connection`."""
    logs.zeromq = SimpleNamespace(Socket=Connection, zmq=zmq)
