"""Puts the Celery mode into the engine when, and only when, a process imports the engine.

`oq_celery.pth` runs `install` at the start of every Python of the environment, so this module imports next to
nothing. No upstream file is changed: some upstream modules get a word said after (or around) their own import.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False  # importing typing for it would cost every start of Python its time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    _Exec = Callable[[ModuleType], None]

DISTRIBUTE = "OQ_DISTRIBUTE"
DISTRIBUTIONS = ("celery", "no", "processpool", "slurm", "threadpool", "zmq")  # upstream's, and ours


class _EngineFinder:
    """A meta path finder that knows some modules (`_AROUND`) and leaves every other one to Python."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        around = _AROUND.get(name)
        if around is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            original = spec.loader.exec_module
            # On the instance, so that the module keeps its own loader (numba, inspect and pickle look at it).
            setattr(spec.loader, "exec_module", lambda module: around(original, module))  # noqa: B010
        return spec


def install() -> None:
    """Register the finder; called by oq_celery.pth once per process."""
    if not any(isinstance(finder, _EngineFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _EngineFinder())


def _around_baselib(execute: _Exec, module: ModuleType) -> None:
    """Choose the Celery mode, unless the environment of the command names another one; leave the terminal.

    Upstream copies `[distribution] oq_distribute` into the environment here, where children would take it for
    the user's own wish; hence the look before and the correction after.
    """
    chosen = os.environ.get(DISTRIBUTE)
    from configparser import Error

    try:
        execute(module)
    except (Error, ValueError) as error:  # ValueError: of a number that is none, or a file that is not UTF-8
        files = [path for path in map(os.path.expanduser, module.config.paths) if os.path.exists(path)]  # noqa: PTH110 - pathlib would cost each start its time
        sys.exit(
            f"openquake.cfg cannot be read: {' '.join(str(error).split())}. Correct it, or remove it if it is yours "
            f"(read: {', '.join(files)}; the last one wins)"
        )
    from oq_celery import home
    from oq_celery.settings import SettingsError, use_celery

    try:
        home.check(module.config.paths, module.home)  # first: it may also have turned the switch off
        if not use_celery(module.config):
            return
    except SettingsError as error:
        sys.exit(str(error))
    if chosen in (None, "slurm"):  # there is no SLURM here: who asks for it means the cluster
        os.environ[DISTRIBUTE] = "celery"
    elif chosen not in DISTRIBUTIONS:
        sys.exit(f"{DISTRIBUTE}={chosen}: say no, processpool or celery; without it, it is celery")
    from oq_celery.terminal import outlive

    outlive(sys.argv)


def _around_parallel(execute: _Exec, module: ModuleType) -> None:
    """Extend `openquake.baselib.parallel` when `[celery] use_celery` is true."""
    from openquake.baselib import config

    from oq_celery.settings import SettingsError, load, use_celery

    if not use_celery(config):
        execute(module)
        return
    try:
        settings = load(config)
    except SettingsError as error:
        sys.exit(str(error))
    chosen = os.environ.get(DISTRIBUTE)
    if chosen == "celery":  # the import itself would refuse it
        os.environ[DISTRIBUTE] = "no"
    try:
        execute(module)
    finally:
        if chosen == "celery":
            os.environ[DISTRIBUTE] = chosen
    from oq_celery.distribution import extend

    extend(module, settings)


def _around_codegen(execute: _Exec, module: ModuleType) -> None:
    """Let the engine in a cluster start sooner; numba in other programs stays as it is."""
    execute(module)
    baselib = sys.modules.get("openquake.baselib")
    if baselib is None:
        return
    from oq_celery.settings import use_celery

    if use_celery(baselib.config):
        from oq_celery.startup import install

        install(module)


def _around_actions(execute: _Exec, module: ModuleType) -> None:
    """A WebUI that starts declares dead only the calculations that are, not all that run."""
    execute(module)
    from openquake.baselib import config

    from oq_celery.settings import use_celery

    if use_celery(config):
        from oq_celery.commands import extend_actions
        from oq_celery.jobs import reap

        extend_actions(module)
        setattr(module, "reset_is_running", reap)  # noqa: B010 - to mypy a module has no such attribute


def _then(*functions: str) -> Callable[[_Exec, ModuleType], None]:
    """In a cluster, hand a module on to functions of this package when it has been imported."""

    def around(execute: _Exec, module: ModuleType) -> None:
        execute(module)
        from openquake.baselib import config

        from oq_celery.settings import use_celery

        if use_celery(config):
            for function in functions:
                place, _, name = function.rpartition(".")
                getattr(importlib.import_module(place), name)(module)

    return around


_AROUND: dict[str, Callable[[_Exec, ModuleType], None]] = {
    "numba.core.codegen": _around_codegen,
    "openquake.baselib": _around_baselib,
    "openquake.baselib.parallel": _around_parallel,
    "openquake.server.db.actions": _around_actions,
    "openquake.calculators.base": _then("oq_celery.distribution.extend_calculators"),
    "openquake.commonlib.logs": _then(
        "oq_celery.database.extend",
        "oq_celery.inputs.extend",
        "oq_celery.writes.extend",
        "oq_celery.runs.extend_logs",
    ),
    "openquake.commonlib.readinput": _then("oq_celery.uploads.extend_readinput"),
    "openquake.engine.engine": _then("oq_celery.runs.extend_engine"),
    "openquake.commands.abort": _then("oq_celery.commands.extend_abort"),
    "openquake.commands.collect_jobs": _then("oq_celery.commands.extend_collect_jobs"),
    "openquake.commands.dump": _then("oq_celery.commands.extend_dump"),
    "openquake.commands.engine": _then("oq_celery.commands.extend_engine"),
    "openquake.commands.importcalc": _then("oq_celery.commands.extend_importcalc"),
    "openquake.commands.purge": _then("oq_celery.commands.extend_purge"),
    "openquake.commands.reset": _then("oq_celery.commands.extend_reset"),
    "openquake.commands.workers": _then("oq_celery.commands.extend_workers"),
    "openquake.server.views": _then("oq_celery.commands.extend_views", "oq_celery.turn.extend_views"),
}
