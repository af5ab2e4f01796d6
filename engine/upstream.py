"""Every name of OpenQuake Engine that this project touches, in one table.

oq_celery, the nodes and the lab build on names of the engine, many of which are nobody's promise. Here they stand
together, so that it is one question what another version lacks: `python engine/upstream.py` with that version's Python
prints it, a line for each. tests/unit/test_upstream.py holds the table against our sources, tests/transport/
test_upstream.py against the engine that is installed. Nothing on a node imports this module.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sqlite3
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

ENGINE = "3.26.2"
"""The version that the table is of, and that engine/requirements.in takes."""

NAMES: Mapping[str, str] = {
    # the registry of distributions, and what tasks, results and arguments are
    "openquake.baselib": "__version__ config home",
    "openquake.baselib.general": "humansize",
    "openquake.baselib.hdf5": "File extend",
    "openquake.baselib.parallel": (
        "MasterKilled Monitor Pickled Result Socket Starmap check_mem_usage decompress get_return_ip init_workers "
        "memory_gb mp_context multispawn num_cores oq_distribute safely_call submit tot_cores"
    ),
    "openquake.baselib.performance": "Monitor memory_rss",
    "openquake.baselib.zeromq": "Socket TimeoutError context zmq",
    # calculations, their files and their database
    "openquake.calculators.base": "HazardCalculator parallel",
    "openquake.calculators.export": "",
    "openquake.commonlib.datastore": "DataStore get_datadir get_oq read",
    "openquake.commonlib.dbapi": "Db Row Table db",
    "openquake.commonlib.logs": "LogContext dbcmd get_datadir getpass zeromq",
    "openquake.commonlib.readinput": "_normalize get_input_files get_oqparam unzip_rename valid",
    "openquake.engine.engine": (
        "_PID _PPID _run create_jobs logs manage_signals parallel register_signals run_calc run_jobs setproctitle"
    ),
    "openquake.hazardlib.gsim.base": "registry",
    "openquake.hazardlib.gsim.coeffs_table": "CoeffsTable",
    "openquake.hazardlib.source.multi_fault": "SECTIONS",
    "openquake.hazardlib.valid": "gsim to_toml toml",
    # the commands and the WebUI's views that abort and delete
    "openquake.commands.abort": "main",
    "openquake.commands.collect_jobs": "logs main",
    "openquake.commands.dbserver": "main",
    "openquake.commands.dump": "db main safeprint smart_save zipfiles",
    "openquake.commands.engine": "confirm create_jobs del_calculation logs main",
    "openquake.commands.importcalc": "datastore logs main",
    "openquake.commands.purge": "datadir logs main",
    "openquake.commands.reset": "confirm logs main",
    "openquake.commands.webui": "main",
    "openquake.commands.workers": "main",
    "openquake.server.db.actions": (
        "List create_job create_outputs del_calc delete_uncompleted_calculations finish get_job import_job log "
        "reset_is_running upgrade_db"
    ),
    "openquake.server.db.upgrade_manager": "",
    # the WebUI as Django runs it
    "openquake.server.settings": "",
    "openquake.server.urls": "urlpatterns",
    "openquake.server.wsgi": "application",
    "openquake.server.views": (
        "JsonResponse calc_abort calc_remove calc_result calc_run calc_run_ini calc_run_scenario_from_ses calc_zip "
        "engine extract jobs_from_inis logs mp on_same_fs parallel readinput settings tempfile utils validate_ini "
        "validate_zip"
    ),
    "openquake.server.utils": "get_username get_valid_users is_superuser",
}
"""By module, what is taken from it."""

MEMBERS: Mapping[str, str] = {
    "openquake.baselib.parallel.Starmap": (
        "CT __init__ _loop _shared calc_id distribute h5 init monitor name num_tasks pids running_tasks share shutdown "
        "socket submit task_args task_no tasks"
    ),
    "openquake.baselib.parallel.Monitor": "flush save_task_info shared",
    "openquake.baselib.parallel.Pickled": "__len__ calc_id clsname compressed pik unpickle",
    "openquake.baselib.parallel.Result": "__init__ func get nbytes pik tb_str",
    "openquake.baselib.zeromq.Socket": "__enter__ __exit__ end_point send timeout",
    "openquake.baselib.hdf5.File": "__delitem__ __getitem__ __setitem__ close flush",
    "openquake.calculators.base.HazardCalculator": "read_inputs",
    "openquake.commonlib.datastore.DataStore": "filename hdf5 parent ppath tempname",
    "openquake.commonlib.dbapi.Db": "__call__ __enter__ path",
    "openquake.commonlib.logs.LogContext": "__enter__ __exit__ __init__ calc_id get_job get_oqparam new",
    "openquake.hazardlib.gsim.coeffs_table.CoeffsTable": "_coeffs",
}
"""By class, its members, those that its own methods give to an object among them."""

PARAMETERS: Mapping[str, str] = {
    "openquake.baselib.parallel.multispawn": "func allargs names nprocs logfinish",
    "openquake.baselib.parallel.safely_call": "func args task_no mon",
    "openquake.baselib.parallel.Starmap.init": "distribute",
    "openquake.commonlib.datastore.read": "read_parent",
    "openquake.server.db.actions.create_outputs": "db job_id",
    "openquake.server.db.actions.del_calc": "db job_id user delete_file force",
    "openquake.server.db.actions.import_job": "db calc_id",
    "openquake.server.db.actions.log": "db job_id timestamp level process message",
    # `oq engine --run JOB.INI --hc N`, `--export-outputs N DIRECTORY`, … : the command line is made of these
    "openquake.commands.abort.main": "job_id",
    "openquake.commands.collect_jobs.main": "job_ids save",
    "openquake.commands.dbserver.main": "cmd",
    "openquake.commands.engine.main": (
        "delete_calculation export_outputs exports hazard_calculation_id list_outputs param run show_log yes"
    ),
    "openquake.commands.importcalc.main": "calc_id",
    "openquake.commands.purge.main": "what force days",
    "openquake.commands.reset.main": "yes",
    "openquake.commands.webui.main": "cmd hostport skip_browser",
    "openquake.commands.workers.main": "cmd job_id",
}
"""By function, the names of its parameters."""

COLUMNS: Mapping[str, str] = {
    "job": "ds_calc_dir hazard_calculation_id host id is_running pid start_time status stop_time user_name workflow_id",
    "log": "id job_id level message process timestamp",
    "output": "id oq_job_id",
}
"""By table of the engine's database, its columns."""

SETTINGS: Mapping[str, str] = {
    "dbserver": "authkey file host port",
    "directory": "custom_tmp shared_dir",
    "distribution": "log_level oq_distribute serialize_jobs",
    "memory": "hard_mem_limit soft_mem_limit",
    "webapi": "server",
}
"""By section of openquake.cfg, the keys that the nodes write and upstream has a default for."""

TEXTS: Mapping[str, str] = {
    "openquake.baselib": "config.found config.paths",
    "openquake.engine.engine": "oq-job-",
    "openquake.baselib.parallel": "monitor.backurl monitor.filename task_sent",
    "openquake.baselib.performance": "task_info performance_data",
}
"""By module, texts in its source that something here looks for."""


def missing() -> Iterator[str]:
    """What the engine that this Python imports has not of all that, a line for each."""
    os.environ.setdefault(
        "DJANGO_SETTINGS_MODULE", "openquake.server.settings"
    )  # the WebUI's modules want it
    for name, words in NAMES.items():
        module = _module(name)
        if module is None:
            yield name
            continue
        yield from (f"{name}.{word}" for word in words.split() if not hasattr(module, word))
    for name, words in MEMBERS.items():
        has = _members(_found(name))
        yield from (f"{name}.{word}" for word in words.split() if word not in has)
    for name, words in PARAMETERS.items():
        takes = _parameters(_found(name))
        yield from (f"{name}({word})" for word in words.split() if word not in takes)
    yield from _columns()
    yield from _settings()
    for name, words in TEXTS.items():
        module = _module(name)
        source = inspect.getsource(module) if module else ""
        yield from (f"{name}: {word!r}" for word in words.split() if word not in source)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _found(name: str) -> Any:
    """What a dotted name stands for, None if it is not there."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = _module(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found
    return None


def _members(class_: Any) -> set[str]:
    if not inspect.isclass(class_):
        return set()
    members = set(dir(class_))
    for part in class_.__mro__:
        members |= set(getattr(part, "__annotations__", {}))
        if part.__module__.startswith("openquake."):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(part)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    members.add(node.attr)
    return members


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) if callable(function) else set()


def _columns() -> Iterator[str]:
    """The columns of a new database, made by upstream's own upgrades."""
    has: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "db.sqlite3")  # noqa: PTH118
        try:
            database = importlib.import_module("openquake.commonlib.dbapi").Db(
                sqlite3.connect, path, isolation_level=None, check_same_thread=False
            )
            importlib.import_module("openquake.server.db.actions").upgrade_db(database)
        except (ImportError, AttributeError) as error:
            yield f"a database: {error}"
            return
        with sqlite3.connect(path) as connection:
            for table in COLUMNS:
                has[table] = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    for table, columns in COLUMNS.items():
        yield from (f"table {table}: {column}" for column in columns.split() if column not in has[table])


def _settings() -> Iterator[str]:
    config = getattr(_module("openquake.baselib"), "config", {})
    for section, keys in SETTINGS.items():
        has = config.get(section, {})
        yield from (f"openquake.cfg [{section}] {key}" for key in keys.split() if key not in has)


if __name__ == "__main__":
    found = list(missing())
    print("\n".join(found))
    sys.exit(bool(found))
