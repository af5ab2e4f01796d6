"""Forks masters and workers from a process that has imported the engine, which takes most of their start.

Runs in the engine's environment: `python -m explorer.nursery worker|master`. It reads one JSON object per line, and
writes one for every process that begins or ends. Its children end with it. Each has values of openquake.cfg of its own,
put into the engine's configuration before oq_celery reads it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib.util
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What takes long of a role's imports, and reads no setting that a child has of its own.
IMPORTS = {
    "worker": [
        "openquake.engine.engine",
        "celery.bin.worker",
        "celery.concurrency.prefork",
        "kombu.transport.pyamqp",
    ],
    "master": [
        "openquake.commands.engine",
        "openquake.calculators",
        "openquake.calculators.export",
        "openquake.server.dbserver",
    ],
}
_LOADED: list[Any] = []
PR_SET_PDEATHSIG = 1  # sys/prctl.h
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18  # sched.h, sys/mount.h


def main(role: str) -> None:
    """Import what the role needs, then serve."""
    if role == "worker":
        os.environ["OQ_DISTRIBUTE"] = "no"  # as `oq-celery worker` does before it imports the engine
    _remember_settings()
    for name in IMPORTS[role]:
        importlib.import_module(name)
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
                _say(id=request["id"], pid=_fork(request))  # before its end can be said


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say(ended=pid, status=os.waitstatus_to_exitcode(status))


def _say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(request)
        code = _KINDS[request["kind"]](request)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # What the interpreter does at its end, but for what belongs to the parent.
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _become(request: dict[str, Any]) -> None:
    """Be a process of one's own: session, output, signals, and no ZeroMQ context whose threads stayed behind."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # for those that hang
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    from openquake.baselib import config, zeromq

    zeromq.context = zeromq.zmq.Context()
    for name, value in request["config"].items():
        section, key = name.split(".")
        config[section][key] = value
    _renew_settings()
    if request["own_mounts"]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            raise OSError(ctypes.get_errno(), "no mount namespace")
    for name, value in request["hurry"].items():
        _hurry(name, value)


def _hurry(name: str, value: float) -> None:
    """Shorten a delay that is longer than the explorer's patience, where the package has it."""
    module, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(f"oq_celery.{module}"):
        found = importlib.import_module(f"oq_celery.{module}")
        if hasattr(found, attribute):
            setattr(found, attribute, value)


def _worker(request: dict[str, Any]) -> int:
    from oq_celery import cli

    sys.argv = ["oq-celery", "worker", *request["arguments"]]
    cli.main()
    return 0


def _master(request: dict[str, Any]) -> int:
    from explorer import master, workload

    _tell_channels(Path(request["history"]))
    return master.run(workload.draw(request["seed"], request["profile"]), Path(request["history"]))


def _engine(request: dict[str, Any]) -> int:
    from openquake.commands.__main__ import oq

    from explorer import tasks

    _own_database()
    history = request["history"]
    _tell_channels(Path(history))
    sys.argv = ["oq", "engine", "--run", *request["arguments"]]
    try:
        oq()
    except BaseException as error:
        tasks.note(history, event="error", type=type(error).__name__, text=str(error)[-6000:])
        raise
    tasks.note(history, event="done")
    return 0


def _database(_: dict[str, Any]) -> int:
    from openquake.server import dbserver

    _own_database()
    dbserver.run_server(foreground=True)
    return 0


def _own_database() -> None:
    """Let the engine use the database of this process's configuration, not that of the import."""
    from openquake.baselib import config
    from openquake.commonlib import dbapi

    dbapi.db.args = (config.dbserver.file, *dbapi.db.args[1:])


def _remember_settings() -> None:
    """Keep what oq_celery reads at the import, which it holds on to, for `_renew_settings`."""
    from oq_celery import settings

    load = settings.load

    def load_and_remember(config: settings.Config) -> settings.Settings:
        found = load(config)
        _LOADED.append(found)
        return found

    settings.load = load_and_remember


def _renew_settings() -> None:
    """Let what was read at the import say what this process's configuration says."""
    from openquake.baselib import config
    from oq_celery import settings

    before = list(_LOADED)
    own = settings.load(config)
    for loaded in before:
        for field in dataclasses.fields(loaded):
            object.__setattr__(loaded, field.name, getattr(own, field.name))


def _tell_channels(history: Path) -> None:
    """Let the history know the channels that this process opens."""
    from oq_celery.channel import Channel

    from explorer import tasks

    begin = Channel.__init__

    def begin_and_tell(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        tasks.note(str(history), event="channel", name=self.name)

    setattr(Channel, "__init__", begin_and_tell)  # noqa: B010 - to mypy a method is no attribute


_KINDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "worker": _worker,
    "master": _master,
    "engine": _engine,
    "database": _database,
}

if __name__ == "__main__":
    main(sys.argv[1])
