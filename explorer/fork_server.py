"""Forks masters and workers from a process that has imported the engine, which takes most of their start.

Runs in the engine's environment: `python -m explorer.fork_server worker|master`. Each process has values of
openquake.cfg of its own, put into the engine's configuration before oq_celery reads it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.transport import fork_server

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
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18  # sched.h, sys/mount.h


def main(role: str) -> None:
    """Import what the role needs, then serve."""
    if role == "worker":
        # As `oq-celery worker` does before it imports the engine.
        os.environ |= {"OQ_DISTRIBUTE": "no", "HDF5_USE_FILE_LOCKING": "FALSE"}
    _remember_settings()
    for name in IMPORTS[role]:
        importlib.import_module(name)
    fork_server.serve(_run)


def _run(request: dict[str, Any]) -> int:
    _become(request)
    return _KINDS[request["kind"]](request)


def _become(request: dict[str, Any]) -> None:
    """Be a process of one's own: its settings, its mounts, its delays."""
    from openquake.baselib import config

    for name, value in request["config"].items():
        section, key = name.split(".")
        config[section][key] = value
    _renew_settings()
    if request["own_mounts"]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            raise OSError(ctypes.get_errno(), "no mount namespace")
    for name, value in request["delays"].items():
        _shorten(name, value)


def _shorten(name: str, value: float) -> None:
    """Shorten a delay that is longer than the explorer's patience."""
    name, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"oq_celery.{name}")
    getattr(module, attribute)  # one that is gone shortens nothing
    setattr(module, attribute, value)


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
    _tell_lost_writes(history)
    sys.argv = ["oq", "engine", "--run", *request["arguments"]]
    try:
        oq()
    except BaseException as error:
        tasks.note_error(history, error)
        raise
    tasks.note(history, event="done")
    return 0


def _tell_lost_writes(history: str) -> None:
    """Note the error of a calculation that ends without an exception."""
    from oq_celery import writes

    from explorer import tasks

    end = writes.end

    def end_and_tell(dbcmd: Any, running: list[Any], error: str) -> NoReturn:
        tasks.note(history, event="error", type="LostWrite", text=error)
        end(dbcmd, running, error)

    writes.end = end_and_tell


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
