"""Run calculations one after another, each in a child of one process that has imported the engine.

Run by the engine's Python on the master, as the user who calculates: `driver.py cluster` or `driver.py
reference`. It reads one JSON request a line and answers with one JSON object a line. The import of the engine costs
seconds, which is more than most of its test jobs take.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

STORED = re.compile(r"Stored .* on (/\S+\.hdf5) in ")
DISTRIBUTION = re.compile(r"Using \d+ (\w+) workers")
SENT = re.compile(r"Sent \d+ (\w+?)_? tasks")
ENGINE = ("openquake.commands.engine", "openquake.calculators.export")
"""What to import for all of it to be there."""
OVERRIDES = "split_time=86400"
"""Parameters of the jobs that do not say themselves when a task of classical PSHA hands over what it has not done. By
default it does so after 10 s or more: on a busy machine the work would be cut elsewhere, and last bits differ."""
GRACE_SECONDS = 20
"""After Ctrl-C a job may take this long until it is killed."""


def in_child(work: Callable[[], dict[str, Any]], log: Path, limit: float) -> dict[str, Any]:
    """Do `work` in a child process that leads a session; its answer.

    Args:
        log: where what it prints goes
        limit: seconds after which it is interrupted, and killed if that does not help

    Returns:
        what `work` returned, or `error` with the exception that ended it
    """
    answer = log.with_suffix(".answer")
    answer.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        try:
            found = work()
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        answer.write_text(json.dumps(found))
        raise SystemExit  # through the whole interpreter, for the sake of what is registered with atexit
    late = False
    try:
        late = not _ends(pid, limit)
        if late:
            os.kill(pid, signal.SIGINT)
            _ends(pid, GRACE_SECONDS)
    finally:
        for kill, target in ((os.kill, pid), (os.killpg, pid)):
            with contextlib.suppress(ProcessLookupError):
                kill(target, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if late:
        return {"error": f"not done after {limit:.0f} s", "late": True}
    if not answer.exists():
        return {"error": f"its process ended with {os.waitstatus_to_exitcode(status)}"}
    found = json.loads(answer.read_text())
    answer.unlink()
    return dict(found)


def _ends(pid: int, seconds: float) -> bool:
    """Wait for a child to end, so long; EOFError when nobody asks any more."""
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor, 0], [], [], seconds)
    finally:
        os.close(descriptor)
    if 0 in ready:
        raise EOFError
    return bool(ready)


def begin_pool_process() -> None:
    """What the process of a pool begins with: it sends all results of a Starmap on one connection.

    Upstream connects anew for each task, and ZeroMQ reads fairly from all connections on which something waits, which
    need not be the order in which it was sent. Then sums and the rows of tables come out in another order, too.
    """
    parallel: Any = importlib.import_module("openquake.baselib.parallel")
    upstream_call, upstream_socket = parallel.safely_call, parallel.Socket
    connections: dict[str, Any] = {}

    def call(func: Callable[..., Any], args: Any, task_no: int, monitor: Any) -> None:
        if task_no == 0 and monitor.backurl in connections:  # of an earlier Starmap, which had the same port
            connections.pop(monitor.backurl).__exit__(None, None, None)
        upstream_call(func, args, task_no, monitor)

    def connect(end_point: str, socket_type: int, mode: str, timeout: int = 60) -> Any:
        if mode != "connect":
            return upstream_socket(end_point, socket_type, mode, timeout)
        if end_point not in connections:
            connections[end_point] = upstream_socket(end_point, socket_type, mode, timeout).__enter__()
        return contextlib.nullcontext(connections[end_point])

    parallel.safely_call, parallel.Socket = call, connect
    parallel.init_workers()


def calculate(job_ini: Path, parent: str | None, one_process: bool) -> dict[str, Any]:
    """What `oq engine --run` does.

    Args:
        parent: the datastore of the calculation that it starts from
        one_process: with a pool of one process, which comes from the fork server
    """
    engine: Any = importlib.import_module("openquake.engine.engine")
    commands: Any = importlib.import_module("openquake.commands.engine")
    engine._PID, engine._PPID = os.getpid(), os.getppid()  # which it asked for when it was imported
    os.chdir(job_ini.parent)
    if one_process:
        parallel: Any = importlib.import_module("openquake.baselib.parallel")
        parallel.mp_context = multiprocessing.get_context("forkserver")
        # It runs, and is no child of this process, which it would otherwise be asked for.
        setattr(forkserver._forkserver, "ensure_running", lambda: None)  # noqa: B010
        parallel.init_workers = begin_pool_process
        parallel.Starmap.init("processpool")
        if len(parallel.Starmap.pids) != 1:
            raise RuntimeError(f"a pool of {len(parallel.Starmap.pids)} processes")
    number = int(Path(parent).stem.removeprefix("calc_")) if parent else None
    own = re.search(r"^split_time\b", job_ini.read_text(), re.MULTILINE)
    commands.main(run=[str(job_ini)], param="" if own else OVERRIDES, hazard_calculation_id=number)
    return {}


def run(request: dict[str, Any], one_process: bool) -> dict[str, Any]:
    """Run `ini` after `parent` within `limit` seconds, logging to `log`.

    Returns:
        `seconds`, `datastore`, the `distributions` that the log names, the names of the `tasks` that
        were done, and `error` when it failed
    """
    log = Path(request["log"])
    log.unlink(missing_ok=True)
    begin = time.monotonic()
    found = in_child(
        lambda: calculate(Path(request["ini"]), request["parent"], one_process), log, request["limit"]
    )
    found["seconds"] = time.monotonic() - begin
    text = log.read_text(errors="replace")
    stored = STORED.findall(text)
    found["datastore"] = stored[-1] if stored else None
    found["distributions"] = sorted(set(DISTRIBUTION.findall(text)))
    found["tasks"] = sorted(set(SENT.findall(text)) | _tasks(found["datastore"]))
    return found


def _tasks(datastore: str | None) -> set[str]:
    """The names of the tasks and subtasks that a datastore says were done."""
    if datastore is None:
        return set()
    h5py: Any = importlib.import_module("h5py")
    with h5py.File(datastore, "r") as file:
        return {name.decode() for name in file["task_info"]["taskname"]} if "task_info" in file else set()


def remove(datastores: list[str]) -> dict[str, Any]:
    """Remove calculations from the disk."""
    for datastore in datastores:
        base = datastore.removesuffix(".hdf5")
        for path in (datastore, f"{base}_tmp.hdf5"):
            Path(path).unlink(missing_ok=True)
        shutil.rmtree(base, ignore_errors=True)
    return {}


def serve(kind: str) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the job that runs
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is not an answer
    compare_datastores = importlib.import_module("compare_datastores")
    for name in ENGINE:
        importlib.import_module(name)
    if kind == "reference":
        # Upstream spawns its pools, each of whose processes then imports the engine: seconds, up to three times a job.
        multiprocessing.set_forkserver_preload(list(ENGINE))
        forkserver.ensure_running()
    for line in sys.stdin:
        request = json.loads(line)
        if "ini" in request:
            found = run(request, one_process=kind == "reference")
        elif "remove" in request:
            found = remove(request["remove"])
        else:
            compare = partial(compare_datastores.compare, *request["compare"])
            found = in_child(compare, Path(request["log"]), request["limit"])
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
