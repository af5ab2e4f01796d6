"""What the Celery mode changes in `openquake.baselib.parallel`, all in one place.

Upstream offers a registry of ways to submit a task (`submit`); around it, these names of the module are
replaced:

- `oq_distribute` also knows `celery`;
- `Socket` also connects to `celery://` URLs, on which results go to a `Channel` or to the attempt under way;
- `get_return_ip` is not asked for an address that nobody connects to;
- a `Starmap` keeps the distribution that it began with, whatever other ones choose meanwhile;
- `Starmap.init` gives a processpool the cores of this machine, `num_cores` being those of the fleet, and
  `HazardCalculator.read_inputs` wants memory for these;
- `Starmap.submit` opens the channel where upstream binds a ZeroMQ port, for tasks of this process too;
- `Starmap._loop`, and what it writes down about each task, write in batches (`bookkeeping.py`);
- `Starmap.share` turns to the processpool, because shared memory ends at the machine, and so does `Starmap.submit` for
  tasks with files that workers do not see (`inputs.unseen`) or of modules that they do not have (`modules.unseen`);
- `Starmap.shutdown` closes the channels that an error or an abort left open.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from oq_celery import inputs, modules
from oq_celery.replacing import replaced
from oq_celery.settings import Settings

CELERY = "celery"


def extend(parallel: Any, settings: Settings) -> None:
    """Give the engine's module `parallel` its Celery mode.

    Args:
        parallel: the module openquake.baselib.parallel, just imported.
        settings: of the Celery mode.
    """
    from oq_celery import bookkeeping
    from oq_celery.attempt import Attempt
    from oq_celery.channel import SCHEME, Channel

    starmap = parallel.Starmap
    upstream_distribute = parallel.oq_distribute
    upstream_socket = parallel.Socket
    upstream_return_ip = parallel.get_return_ip
    upstream_new = starmap.__init__
    upstream_init = starmap.init.__func__
    upstream_submit = starmap.submit
    upstream_share = starmap.share
    upstream_loop = starmap._loop
    upstream_shutdown = starmap.shutdown.__func__

    def oq_distribute(task: object = None) -> str:
        """Upstream's, plus celery; zmq means celery here, where there are no ZeroMQ workers.

        `run_jobs` sets zmq for several jobs at once.
        """
        dist = os.environ.get("OQ_DISTRIBUTE")
        return CELERY if dist in (CELERY, "zmq") else upstream_distribute(task)

    def connect(end_point: str, socket_type: int, mode: str, timeout: int = 60) -> Any:
        """Stand in for the class `Socket`: celery URLs lead to this process's channel or attempt."""
        if end_point.startswith(SCHEME):
            # Both outlive the task, so leaving the `with` that upstream puts around its socket ends neither.
            return contextlib.nullcontext(Channel.find(end_point) or Attempt.current(end_point))
        return upstream_socket(end_point, socket_type, mode, timeout)

    def get_return_ip(receiver_host: str) -> str:
        return "127.0.0.1" if starmap.distribute == CELERY else upstream_return_ip(receiver_host)

    def init(cls: Any, distribute: str | None = None) -> None:
        with _own_cores(parallel):
            upstream_init(cls, distribute)

    def new(self: Any, *args: Any, **kwargs: Any) -> None:
        upstream_new(self, *args, **kwargs)
        self.distribute = starmap.distribute

    def submit(self: Any, args: Any, func: Callable[..., Any] | None = None) -> None:
        first = not hasattr(self, "socket")
        if first and self.distribute == CELERY and self.num_tasks != 1:
            path = (
                os.environ.get("OQ_IMPORT_PATH")
                or modules.unseen(func or self.task_func, settings.worker_modules)
                or inputs.unseen(self, args, settings)
            )
            if path:  # modules of the user's own, or a file
                logging.warning("%s tasks run on the master: workers cannot see %s", self.name, path)
                use_pool(self)
        elif (
            func is not None
            and self.distribute == CELERY
            and (path := modules.file_of(func, settings.worker_modules))
        ):
            raise ImportError(
                f"{func.__name__}: workers cannot see {path}, and the first tasks are with them"
            )
        on_cluster = oq_distribute() == CELERY and self.distribute in (CELERY, "no")
        if on_cluster and first:
            type(self).running_tasks = self.tasks
            self.socket = Channel(settings, self.calc_id)
            self.monitor.shared = self._shared
            self.monitor.backurl = self.socket.url
        upstream_submit(self, args, func)

    def use_pool(self: Any) -> None:
        self.distribute = "processpool"
        type(self).init(self.distribute)

    def share(self: Any, **arrays: Any) -> None:
        if self.distribute == CELERY:
            cores = int(os.environ.get("OQ_NUM_CORES") or parallel.tot_cores)
            logging.warning(
                "%s tasks run on the %d cores of the master: they share its memory", self.name, cores
            )
            use_pool(self)
        upstream_share(self, **arrays)

    def loop(self: Any) -> Iterator[Any]:
        with bookkeeping.batched(self.h5) if self.distribute == CELERY else contextlib.nullcontext():
            yield from upstream_loop(self)

    def shutdown(cls: Any) -> None:
        Channel.close_all()
        bookkeeping.write_all()
        upstream_shutdown(cls)

    def celery_submit(self: Any, func: Callable[..., Any], args: Any, monitor: Any) -> None:
        if self.task_no == 0:
            _flush(self.h5)
        self.socket.submit(func, args, self.task_no, monitor, inputs.directory())

    parallel.submit[CELERY] = celery_submit
    parallel.oq_distribute = oq_distribute
    parallel.Socket = connect
    parallel.get_return_ip = get_return_ip
    starmap.__init__ = new
    starmap.init = classmethod(init)
    starmap.submit = submit
    starmap.share = share
    starmap._loop = loop
    starmap.shutdown = classmethod(shutdown)
    bookkeeping.extend(parallel)
    atexit.register(Channel.close_all)
    atexit.register(bookkeeping.write_all)


def extend_calculators(base: Any) -> None:
    """Change `openquake.calculators.base`: a processpool needs memory for the processes that it has.

    Upstream computes in one process alone, for ever ("SLOW MODE"), where there is not a quarter of a GB for each of
    `num_cores`.
    """
    upstream_read_inputs = base.HazardCalculator.read_inputs

    @functools.wraps(upstream_read_inputs)
    def read_inputs(self: Any) -> None:
        with _own_cores(base.parallel):
            upstream_read_inputs(self)

    base.HazardCalculator.read_inputs = read_inputs


def _own_cores(parallel: Any) -> AbstractContextManager[None]:
    """In it, `num_cores` is the number of processes of a processpool of this machine."""
    own = int(os.environ.get("OQ_NUM_CORES") or min(parallel.num_cores, parallel.tot_cores))
    return replaced(parallel, "num_cores", own)


def _flush(h5: Any) -> None:
    """Let the workers see what the master wrote into the datastore: NFS shows it at close or fsync only."""
    h5.flush()
    file = os.open(h5.filename, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
