"""Forks programs of the engine's environment from a process that has imported what takes most of their start.

Runs in the engine's environment. `fork_server.py commands` imports the commands of `oq`, and what it forks runs one of
them with the settings of its own environment. `fork_server.py libraries` imports nothing of the engine but what the
engine and its workers import of others: what it forks is as good as a new Python, under another openquake.cfg, too. It
reads one JSON object per line, and writes one for every process that begins or ends. Its children end with it.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import faulthandler
import getpass
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT  # a shell's status of what Ctrl-C has ended
PR_SET_PDEATHSIG = 1  # sys/prctl.h
COMMANDS = "openquake.commands"  # all of which `oq` imports, whichever it is told
# What a worker and a job on a cluster import of others besides; those of the engine are found.
CELERY = (
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "celery.fixups.django",
    "celery.worker.components",
    "celery.worker.consumer",
    "kombu.transport.pyamqp",
)
_OURS = {"__main__", "openquake", "oq_celery", "oq_webui"}


def serve(run: Callable[[dict[str, Any]], int], *, whole_end: bool = False) -> None:
    """Fork a process for every request, until there is nobody to ask for one.

    Args:
        run: called in the process with the request; its status. A request has an `id`, the files `stdout` and `stderr`
            for what the process says, and `env`, what its environment has more than this one.
        whole_end: whether a process ends as Python does, which closes the HDF5 files that are still open. Of what the
            engine has made when it was imported some is the parent's, and has to stay as it is.
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
                _say(id=request["id"], pid=_fork(request, run, whole_end))  # before its end can be said


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say(ended=pid, status=os.waitstatus_to_exitcode(status))


def _say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _fork(request: dict[str, Any], run: Callable[[dict[str, Any]], int], whole_end: bool) -> int:
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
    if whole_end:
        sys.exit(code)
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
    if "openquake" in sys.modules:
        _renew_engine()


def _renew_engine() -> None:
    from openquake.baselib import zeromq
    from openquake.calculators import base
    from openquake.engine import engine

    zeromq.context = zeromq.zmq.Context()  # the other one's threads stayed behind
    engine._PID, engine._PPID = os.getpid(), os.getppid()
    engine.USER = base.USER = getpass.getuser()


def _buffer_output() -> None:
    """Print through a buffer of one's own, or none, as the environment says."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    binary = open(1, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115 - a descriptor
    sys.stdout = io.TextIOWrapper(binary, encoding=sys.stdout.encoding, write_through=unbuffered)


def _run_script(request: dict[str, Any]) -> int:
    """Be a new Python that runs a script, `command` its path and its arguments."""
    _buffer_output()
    return _script(request["command"])


def _script(words: list[str]) -> int:
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")
    return 0


def _run_python(request: dict[str, Any]) -> int:
    """Be a new Python: `command` its arguments, `environment` its whole environment, `cwd` and `umask` its own."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    tempfile.tempdir = None  # where the environment says
    _buffer_output()
    first, *rest = request["command"]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if first != "-c":
        sys.path.insert(0, str(Path(first).resolve().parent))
        return _script(request["command"])
    sys.path.insert(0, "")
    code, *arguments = rest
    sys.argv = ["-c", *arguments]
    main = ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    exec(compile(code, "<string>", "exec"), vars(main))  # noqa: S102 - the tests' own code
    return 0


def _import_libraries() -> None:
    """Import what the engine imports of others, as the engine does."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as openquake.baselib, before anybody imports numpy
    names = [sys.executable, __file__, "names"]
    named = subprocess.run(names, check=True, capture_output=True, text=True).stdout
    for name in (*named.splitlines(), *CELERY):
        if name.partition(".")[0] not in _OURS:
            with contextlib.suppress(ImportError):  # names that their packages have given to other modules
                importlib.import_module(name)
    # A title is written over the environment that Python began with, which is found before that has changed.
    import setproctitle

    setproctitle.getproctitle()
    # Numba's, which oq_celery changes when an engine in a cluster imports it.
    from numba.core import codegen
    from oq_celery import startup

    startup.install(codegen)
    del sys.modules["oq_celery.startup"]  # nothing of ours is shared but that


def _import_commands() -> None:
    for module in pkgutil.iter_modules(importlib.import_module(COMMANDS).__path__, f"{COMMANDS}."):
        importlib.import_module(module.name)


if __name__ == "__main__":
    if sys.argv[1] == "libraries":
        sys.path.pop(0)  # of this script
        _import_libraries()
        serve(_run_python, whole_end=True)
    elif sys.argv[1] == "names":  # of all modules that the engine imports, in this order
        _import_commands()
        importlib.import_module("openquake.calculators.export")
        print(*sys.modules, sep="\n")
    else:
        _import_commands()
        serve(_run_script)
