"""Calculations that wait for their turn leave the memory to those that compute.

Upstream starts a process with the whole engine in it, 255 MB on a node, for every calculation that is submitted, and
that waits for those before it. Where 80 % of the memory is in use it begins none. So with enough of them, some twenty
on the default master, none would ever begin. Here the process of one that came through the WebUI looks at the database
until its turn has come, and imports the engine then, with the passwords of that time; upstream's own queue has the last
word and looks once more. A command of a shell has imported the engine before it knows that it waits: where those that
wait hold much of the memory already, it is refused.
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
# In which the database lets a reader in; less than an abort waits for the end of a process.
BUSY_SECONDS = 5.0
# Of the machine's memory, for those that wait. The system, RabbitMQ, DbServer and WebUI take some 15 % of the default
# master's, so that all of them stay well below upstream's 80 %.
WAITING_SHARE = 0.25
# By this name the WebUI's unit ends, with those that compute, those that would otherwise begin while the machine stops.
# Its beginning is `jobs.TITLE`, which is not imported: with psutil this would be a process with the engine in memory
# (oq_keys.holders), for which a rotation waits.
NAME = "oq-job-waits"
_COMM = Path("/proc/self/comm")

# As the engine's GET_JOBS, whose numbers below one's own are compared; from the last one on, where those are that run.
_AHEAD = """SELECT id FROM job WHERE status IN ('executing', 'submitted')
AND host=? AND is_running=1 AND pid > 0 AND id < ? ORDER BY id DESC LIMIT 1"""
_WAITING = "SELECT pid FROM job WHERE status='submitted' AND host=?x AND pid > 0"


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
        self._call = pickle.dumps((args, kwargs or {}))

    def start(self) -> None:
        """Start it. The WebUI does not wait for its end, nor does it end with the WebUI."""
        from openquake.baselib import config

        at_once = config.distribution.serialize_jobs
        below = self._number - (at_once - 1) if at_once > 0 else 0  # all of these come first
        database = Path(config.dbserver.file).expanduser()
        words = [str(self._number), str(below), str(database)]
        # -P: modules are the engine's, and not those of the directory that the WebUI was started in.
        command = [sys.executable, "-P", "-m", __name__, *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        _started.add(process)
        assert process.stdin is not None
        self.pid = process.pid
        try:
            with process.stdin:
                # Before it goes on and writes down that it computes; an action of `commands.extend_actions`. One that
                # was aborted or removed while its files were being read gets nothing to do.
                if self._dbcmd("submit", self._number, self.pid):
                    process.stdin.write(self._call)
        except BrokenPipeError:  # aborted just now
            pass
        except BaseException:
            process.kill()
            raise


has_come = False  # whether this process has waited here, and computes now
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


def refusal(dbcmd: Callable[..., Any]) -> str | None:
    """Why a command, which has imported the engine, must not wait for its turn, too; None if it may.

    Args:
        dbcmd: of openquake.commonlib.logs.
    """
    import psutil
    from openquake.baselib.general import humansize

    held = []
    for job in dbcmd(_WAITING, socket.gethostname()):
        with contextlib.suppress(psutil.Error):  # it has ended just now
            held.append(psutil.Process(job.pid).memory_info().rss)
    if sum(held) < WAITING_SHARE * psutil.virtual_memory().total:
        return None
    return (
        f"The commands that wait for their turn ({len(held)}) hold {humansize(sum(held))} of this machine's memory, "
        "which those that compute need. Start this one when some of them have begun. What the WebUI or oq-cluster "
        "starts waits without the engine in memory, and several job files of one command (oq engine --multi --run "
        "A.ini B.ini) wait in one process"
    )


def _waits(database: Path, below: int) -> bool:
    """Whether others come first: those of this machine below a number."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{database}?mode=ro", timeout=BUSY_SECONDS, uri=True)
        ) as opened:
            return opened.execute(_AHEAD, (socket.gethostname(), below)).fetchone() is not None
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # without the reason, in the bits above
            return True  # looks again
        print(f"{database}: {error}: the DbServer is asked", file=sys.stderr)
        return False


def main() -> None:
    """Wait for a calculation's turn, and run what comes by the standard input.

    The arguments are its number, the one below which all others come first, and the path of the engine's database.
    """
    number, below, database = sys.argv[1:]
    name = _COMM.read_text()
    _COMM.write_text(NAME)
    try:
        call = sys.stdin.buffer.read()
        if not call.endswith(pickle.STOP):
            sys.exit(f"Calculation {number} does not begin: it was aborted, or the WebUI has ended")
        while _waits(Path(database), int(below)):
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:  # an abort, which writes it down itself
        sys.exit(f"Calculation {number} was aborted before its turn")
    _COMM.write_text(name)
    from openquake.engine import engine

    from oq_celery import turn  # which this program is not, to whoever imports it

    turn.has_come = True

    args, kwargs = pickle.loads(call)  # noqa: S301 - of the WebUI that started this process
    engine.run_jobs(*args, **kwargs)


if __name__ == "__main__":
    main()
