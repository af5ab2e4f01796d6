"""Calculations that wait for their turn leave the memory to those that compute.

Upstream starts a process with the whole engine in it, 255 MB on a node, for every calculation that is submitted, and
that waits for those before it. Where 80 % of the memory are in use it begins none. So with enough of them, some twenty
on the default master, none would ever begin. Here the process of one that came through the WebUI looks at the database
until its turn has come, and imports the engine then; upstream's own queue has the last word and looks once more. A
command that would wait in such a memory is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LOOK_SECONDS = 1.0
BUSY_SECONDS = 60.0  # in which the database lets a reader in

# As the engine's GET_JOBS, whose numbers below one's own are compared.
AHEAD = """SELECT id FROM job WHERE status IN ('executing', 'submitted')
AND host=?x AND is_running=1 AND pid > 0 AND id < ?x ORDER BY id"""


FULL_PERCENT = 80  # of the memory: from there on `engine.run_calc` begins no calculation


class Waiting:
    """A process that runs calculations when their turn has come, with as much of `multiprocessing.Process` as the
    WebUI uses.

    Attributes:
        pid: of the process, after `start`.
    """

    pid = 0

    def __init__(
        self, dbcmd: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> None:
        """Start nothing yet.

        Args:
            dbcmd: of openquake.commonlib.logs.
            args: of the engine's `run_jobs`; the first one is a list of LogContexts.
            kwargs: of it, too.
        """
        self._dbcmd = dbcmd
        self._number = args[0][0].calc_id
        self._call = args, kwargs or {}

    def start(self) -> None:
        """Start it. The WebUI does not wait for its end, nor does it end with the WebUI."""
        command = [sys.executable, "-m", __name__, str(self._number)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        _started.add(process)
        assert process.stdin is not None
        self.pid = process.pid
        # Before it can go on, and write down that it computes.
        self._dbcmd("update_job", self._number, {"status": "submitted", "pid": self.pid})
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it was aborted just now
            pickle.dump(self._call, process.stdin)


_started: set[subprocess.Popen[bytes]] = set()


def reap() -> None:
    """Ask for the exit status of what has been started here and has ended, or it stays as a zombie."""
    for process in _started.copy():
        if process.poll() is not None:
            _started.discard(process)


def extend_views(views: Any) -> None:
    """Change `openquake.server.views`: what it submits waits in a process of its own kind."""
    run_jobs, upstream_process = views.engine.run_jobs, views.mp.Process

    def process(
        target: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if target is run_jobs:
            return Waiting(views.logs.dbcmd, args, kwargs)
        return upstream_process(target=target, args=args, kwargs=kwargs or {})

    views.mp = SimpleNamespace(Process=process)


def refusal(dbcmd: Callable[..., Any], number: int) -> str | None:
    """Why a calculation of this process, which has imported the engine, must not wait for its turn; None if it may.

    Args:
        dbcmd: of openquake.commonlib.logs.
        number: of the calculation.
    """
    import psutil

    used = psutil.virtual_memory().percent
    below = _has_to_wait_for(number)
    ahead = list(dbcmd(AHEAD, socket.gethostname(), below)) if used >= FULL_PERCENT and below else []
    if not ahead:
        return None
    return (
        f"Calculation {number} does not begin: {len(ahead)} calculations come before it, and {used:.0f} % of the "
        "memory are in use, also by those that wait. Start it again when they have ended; one that the WebUI or "
        "oq-cluster starts waits without memory, and several of one command (oq engine --multi --run A.ini B.ini) "
        "share it"
    )


def _has_to_wait_for(number: int) -> int:
    """Below which number a calculation has to wait for all others; 0 where `serialize_jobs` lets all run at once."""
    from openquake.baselib import config

    at_once = config.distribution.serialize_jobs
    return number - (at_once - 1) if at_once > 0 else 0


def _waits(number: int) -> bool:
    """Whether others come first. Where the database cannot be read, upstream's queue asks the DbServer."""
    from openquake.baselib import config

    below = _has_to_wait_for(number)
    path = Path(config.dbserver.file).expanduser()
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", timeout=BUSY_SECONDS, uri=True)
        ) as database:
            ahead = database.execute(AHEAD.replace("?x", "?"), (socket.gethostname(), below)).fetchone()
    except sqlite3.Error as error:
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return ahead is not None


def main() -> None:
    """Wait for the turn of the calculation whose number is the argument, and run what comes by the standard input."""
    number = int(sys.argv[1])
    try:
        call = sys.stdin.buffer.read()
        if not call:
            sys.exit(f"The WebUI ended before it had said what calculation {number} is")
        while _waits(number):
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:  # an abort, which writes it down itself
        sys.exit(f"Calculation {number} was aborted before its turn")
    from openquake.engine import engine

    args, kwargs = pickle.loads(call)  # noqa: S301 - of the WebUI that started this process
    engine.run_jobs(*args, **kwargs)


if __name__ == "__main__":
    main()
