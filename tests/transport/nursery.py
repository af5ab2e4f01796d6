"""Forks commands of the engine from a process that has imported it, which takes most of their start.

Runs in the engine's environment: `nursery.py PACKAGE` imports the modules of a package, and what it forks then runs a
Python script. It reads one JSON object per line, and writes one for every process that begins or ends. Its children
end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import getpass
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

INTERRUPTED = 128 + signal.SIGINT  # a shell's status of what Ctrl-C has ended
PR_SET_PDEATHSIG = 1  # sys/prctl.h


def serve(run: Callable[[dict[str, Any]], int]) -> None:
    """Fork a process for every request, until there is nobody to ask for one.

    Args:
        run: called in the process with the request; its status. A request has an `id`, the files `stdout` and `stderr`
            for what the process says, and `env`, what its environment has more than this one.
    """
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    _say(ready=os.getpid())
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        _reap()
        if 0 in ready:
            read = os.read(0, 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                request = json.loads(line)
                _say(id=request["id"], pid=_fork(request, run))  # before its end can be said


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say(ended=pid, status=os.waitstatus_to_exitcode(status))


def _say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _fork(request: dict[str, Any], run: Callable[[dict[str, Any]], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(request)
        code = run(request)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            code = INTERRUPTED
    # What the interpreter does at its end, but for what belongs to the parent.
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _become(request: dict[str, Any]) -> None:
    """Be a process of one's own: session, output, signals, and what the engine's import has kept of the parent."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # for those that hang
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), target)
    os.environ.update(request["env"])
    from openquake.baselib import zeromq
    from openquake.calculators import base
    from openquake.engine import engine

    zeromq.context = zeromq.zmq.Context()  # the other one's threads stayed behind
    engine._PID, engine._PPID = os.getpid(), os.getppid()
    engine.USER = base.USER = getpass.getuser()


def _run_script(request: dict[str, Any]) -> int:
    """Be a new Python that runs a script, `command` its path and its arguments."""
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.argv = list(request["command"])
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    for module in pkgutil.iter_modules(importlib.import_module(sys.argv[1]).__path__, f"{sys.argv[1]}."):
        importlib.import_module(module.name)
    serve(_run_script)
