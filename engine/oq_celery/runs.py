"""How the commands of the engine run calculations: what was aborted before its turn is not computed, what is aborted
while it is computed is called so, several at once survive the death of one, and none gets the number of old results.

For `oq engine --run` upstream writes the process into the calculation's record and gives it the title `oq-job-N`. It
does neither for a calculation inside another one (the hazard that `hazard_calculation_id = job.ini` of a risk job asks
for), and `oq run --slowest` has no title: who aborted these ended nothing. Here both hold for all that computes, where
`abort.py` and `jobs.py` find it. Such a record still has no host, so nothing in upstream's queue waits for it: it may
be of an `oq shell`, or belong to what would wait.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import inspect
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

from oq_celery import cost, home, turn
from oq_celery.abort import GRACE_SECONDS
from oq_celery.distribution import CELERY
from oq_celery.hook import DISTRIBUTE
from oq_celery.jobs import TITLE, UNFINISHED
from oq_celery.terminal import INTERRUPTED

_NAME = Path("/proc/self/comm")
_SCORE = Path("/proc/self/oom_score_adj")
# Half of the machine's memory is added to what a calculation holds when the kernel compares, out of 1000.
ENDED_FIRST = 500
_entered: list[Any] = []  # the LogContexts of what this process computes, the inner one last
CTRL_C_SECONDS = 5.0  # Ctrl-C has reached them, too; a second one could disturb what they put in order


def extend_logs(logs: Any) -> None:
    """Change `openquake.commonlib.logs`: whatever computes can be found, what Ctrl-C or an abort ends is aborted, not
    failed, and what a calculation has cost is in its log; so is the first of several errors, each of which came from
    the one before. A calculation is its user's, also where the engine names none. A negative number, as of `oq show`
    without one, counts the calculations of whoever asks.
    """
    upstream_init = logs.LogContext.__init__
    signature = inspect.signature(upstream_init)
    upstream_enter, upstream_exit = logs.LogContext.__enter__, logs.LogContext.__exit__
    former: list[tuple[Callable[[], None], str | None]] = []
    begun: weakref.WeakSet[Any] = weakref.WeakSet()

    @functools.wraps(upstream_init)
    def init(self: Any, params: dict[str, Any], *args: Any, **options: Any) -> None:
        if not int(params.get("job_id", 0)):  # it gets a number
            skip_taken(logs)
        given = signature.bind(self, params, *args, **options)
        # Without a name the DbServer would write down its own account. `oq run --slowest` gives the machine's in its
        # place. One inside another (a hazard that a risk job asks for) is that one's user's, which in a process of the
        # WebUI is not the account.
        if given.arguments.get("user_name") in (None, "", socket.gethostname()):
            given.arguments["user_name"] = _entered[-1].user_name if _entered else getpass.getuser()
        hazard = given.arguments.get("hc_id")
        if isinstance(hazard, int) and hazard < 0:  # `oq run --hc -2`, of which upstream knows -1
            job = upstream_dbcmd("get_job", hazard, given.arguments["user_name"])
            if job is None:
                sys.exit(f"There is no calculation {hazard} of yours")
            given.arguments["hc_id"] = job.id
        upstream_init(*given.args, **given.kwargs)

    upstream_dbcmd = logs.dbcmd

    @functools.wraps(upstream_dbcmd)
    def dbcmd(action: str, *args: Any) -> Any:
        if action == "get_job" and int(args[0]) < 0 and args[1:] in ((), (None,)):
            args = (args[0], getpass.getuser())  # everybody's last one is somebody else's results
        return upstream_dbcmd(action, *args)

    def enter(self: Any) -> Any:
        # Before the look at the status: who aborts it later finds this process.
        former.append((_entitle(self.calc_id), os.environ.get(DISTRIBUTE)))
        try:
            job = logs.dbcmd("get_job", self.calc_id)
            status = job.status if job is not None else "deleted"
            if self.new and status in ("aborted", "deleted"):
                raise KeyboardInterrupt(f"calculation {self.calc_id} was {status} before it began")
            # A workflow enters twice: its first block, which reads the files, has said that it is complete.
            if status == "created" or self in begun:
                logs.dbcmd("update_job", self.calc_id, _begun() | {"status": "executing"})
            first = self not in begun
            begun.add(self)
            _be_ended_first()
            found = upstream_enter(self)
            if first:
                _say_num_cores()
        except BaseException:
            former.pop()[0]()
            raise
        _entered.append(self)
        return found

    def leave(self: Any, etype: type[BaseException] | None, error: Any, traceback: Any) -> None:
        errors = _chain(error)
        interruption = next(filter(_interrupts, errors), None)
        handlers: dict[signal.Signals, Any] = {}
        if interruption is not None:
            # What comes now must not be interrupted by another Ctrl-C: tasks are taken back, the end is written down.
            with contextlib.suppress(ValueError):  # not the main thread
                for number in (signal.SIGINT, signal.SIGTERM):
                    handlers[number] = signal.signal(number, signal.SIG_IGN)
            logging.error("Aborted: %s", interruption)
            etype = SystemExit  # whose end upstream calls aborted
        elif len(errors) > 1:
            first = errors[-1]
            logging.error("The first error was %s: %s", type(first).__name__, " ".join(str(first).split()))
        if spent := cost.of_calculation(self.calc_id):
            logging.info("%s", spent)
            if not logging.root.isEnabledFor(
                logging.INFO
            ):  # `oq-celery cost` reads it from there, whoever wants no log
                logs.dbcmd("log", self.calc_id, datetime.now(UTC), "INFO", "oq_celery", str(spent))
        try:
            upstream_exit(self, etype, error, traceback)
        finally:
            _entered.remove(self)
            restore, distribute = former.pop()
            restore()
            # `reaggregate_by` chooses a processpool, and the calculations after this one had it, too.
            if distribute is not None:
                os.environ[DISTRIBUTE] = distribute
            # A session goes on, and hears the next one; the engine's command, which set its own handlers, ends.
            for number, handler in handlers.items():
                if _of_a_session(handler):
                    signal.signal(number, handler)

    upstream_get_job = logs.LogContext.get_job

    def get_job(self: Any) -> Any:
        """Upstream's; to a workflow, which knows no other end, one that was aborted has failed."""
        job = upstream_get_job(self)
        if job.workflow_id and job.status == "aborted":
            job.status = "failed"
        return job

    logs.dbcmd = dbcmd
    logs.LogContext.__init__, logs.LogContext.get_job = init, get_job
    logs.LogContext.__enter__, logs.LogContext.__exit__ = enter, leave


def skip_taken(logs: Any) -> None:
    """Take no number under which anybody has results already, as after a restore of the database from a snapshot.

    Upstream takes it and says that the file is there, once for each; its record then is of former results, and these
    go with it when it is deleted. Of somebody else's it says nothing: two calculations have the number then, and the
    one without a record cannot be brought back under it (`oq importcalc`).
    """
    taken = {
        int(number)
        for directory in _data_directories(logs)
        for path in directory.glob("calc_*")
        if (number := path.name.removeprefix("calc_").partition(".")[0].removesuffix("_tmp")).isdecimal()
    }
    if taken and logs.dbcmd("last_number") + 1 in taken:
        logs.dbcmd("skip_numbers", max(taken))


def _data_directories(logs: Any) -> Iterator[Path]:
    """Where this process keeps results, and where all users of the cluster do, by upstream's rule for each of them."""
    from openquake.baselib import config

    shared = Path(config.directory.shared_dir)
    yield Path(logs.get_datadir())
    yield shared / "oqdata"  # of the user openquake, where the shared directory has that name
    yield from shared.glob("*/oqdata")


def _say_num_cores() -> None:
    """Say in a calculation's log that its user's own file, not the cluster's, says how many processes it is for."""
    from openquake import baselib
    from openquake.baselib import parallel

    if parallel.oq_distribute() != CELERY or os.environ.get("OQ_NUM_CORES"):
        return
    if line := home.num_cores(baselib.config.paths, baselib.home):
        logging.warning("%s: at most %d tasks are with the workers at once", line, 2 * parallel.num_cores)


def _be_ended_first() -> None:
    """Where memory runs out the kernel ends what computes, and not the RabbitMQ or DbServer that all others need."""
    with contextlib.suppress(OSError):
        if int(_SCORE.read_text()) < ENDED_FIRST:
            _SCORE.write_text(str(ENDED_FIRST))


def _begun() -> dict[str, object]:
    """What a calculation's record says of the process that computes it, and since when."""
    return {"pid": os.getpid(), "start_time": datetime.now(UTC)}


def _entitle(number: int) -> Callable[[], None]:
    """Give this process a calculation's title; the function returned gives it its former one again."""
    from setproctitle import getproctitle, setproctitle

    name = _NAME.read_text().rstrip("\n")
    title = getproctitle()  # which may change the name
    setproctitle(f"{TITLE}{number}")

    def restore() -> None:
        setproctitle(title)
        _NAME.write_text(name)  # of which a title takes the place

    return restore


def _interrupts(error: BaseException) -> bool:
    """Whether an exception is an abort or Ctrl-C, not the death of a process of a pool, which upstream makes one of."""
    from openquake.baselib.parallel import MasterKilled

    return isinstance(error, KeyboardInterrupt) and not isinstance(error, MasterKilled)


def _of_a_session(handler: Any) -> bool:
    """Whether a signal's handler is not the engine's, which its command sets anew for each calculation."""
    from openquake.engine import engine

    return handler is not None and getattr(handler, "func", None) is not engine.manage_signals


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception, the one in whose handling it was raised, and so on."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def extend_engine(engine: Any) -> None:
    """Change `openquake.engine.engine`: how it runs one calculation, several one after another, and several at once.

    Of several at once each needs the master's memory: there are no more than the queue lets run.
    """
    from openquake.baselib import config

    upstream_run_calc, upstream_run_jobs, upstream_run = engine.run_calc, engine.run_jobs, engine._run
    dbcmd, parallel = engine.logs.dbcmd, engine.parallel

    def aborted(context: Any) -> bool:
        job = dbcmd("get_job", context.calc_id)
        if job is not None and job.status != "aborted":
            return False
        print(f"Calculation {context.calc_id} was aborted before its turn")
        return True

    @functools.wraps(upstream_run_calc)
    def run_calc(log: Any, *args: Any, **kwargs: Any) -> Any:
        engine.register_signals(log.calc_id)
        # Before the look at the status: who aborts it later finds this process.
        engine.setproctitle(f"{TITLE}{log.calc_id}")
        if aborted(log):
            return None
        if multiprocessing.parent_process() is not None:
            # Of several at once, for which upstream has written the command's process.
            dbcmd("update_job", log.calc_id, _begun())
        return upstream_run_calc(log, *args, **kwargs)

    @functools.wraps(upstream_run)
    def _run(jobctxs: Sequence[Any], *args: Any) -> None:
        # Upstream writes down first that all of them run, also what was aborted while they waited for their turn.
        if wanted := [context for context in jobctxs if not aborted(context)]:
            upstream_run(wanted, *args)

    @functools.wraps(upstream_run_jobs)
    def run_jobs(
        jobctxs: Sequence[Any],
        concurrent_jobs: int | None = None,
        *args: Any,
        precalc: bool = False,
        **kwargs: Any,
    ) -> Any:
        wanted = [context for context in jobctxs if not aborted(context)]
        if not wanted:
            return jobctxs
        # Not of what is inside another one, which it would not let go on, nor of what has waited without the engine.
        if not _entered and not turn.has_come and (why := turn.refusal(dbcmd)):
            end_others(dbcmd, wanted, "aborted", why)
            sys.exit(why)
        if not concurrent_jobs and not precalc and len(wanted) > 1:
            # Upstream's number alone would be that of a machine with the cores of the fleet: 100 on a master of two.
            # For several at once it overrules the user's choice of a processpool, which all of them would share.
            upstreams = max(1, parallel.num_cores // 8) if parallel.oq_distribute() == CELERY else 1
            concurrent_jobs = min(upstreams, config.distribution.serialize_jobs or upstreams)
        try:
            upstream_run_jobs(wanted, concurrent_jobs, *args, precalc=precalc, **kwargs)
        except BaseException as error:
            interrupted = isinstance(error, SystemExit) or _interrupts(error)
            end_others(dbcmd, wanted, "aborted" if interrupted else "failed")
            raise
        return jobctxs

    engine.run_calc, engine.run_jobs, engine._run = run_calc, run_jobs, _run
    engine.parallel.multispawn = functools.partial(multispawn, engine.parallel, dbcmd)


def multispawn(
    parallel: Any,
    dbcmd: Callable[..., Any],
    func: Callable[..., Any],
    allargs: Sequence[tuple[Any, ...]],
    names: Sequence[str] = (),
    nprocs: int = 1,
    logfinish: bool = True,
) -> None:
    """Compute several calculations at once; stands in for upstream's, which waits for ever for one whose process died.

    Args:
        parallel: openquake.baselib.parallel.
        dbcmd: of openquake.commonlib.logs.
        func: of the engine, which computes one.
        allargs: the arguments of each; the first one is its LogContext.
        names: of the calculations, for people.
        nprocs: how many run at once.
        logfinish: whether to say when one has ended.
    """
    if parallel.oq_distribute() == "no":
        for args in allargs:
            func(*args)
        return
    waiting = list(zip(allargs, names or [f"job#{n}" for n in range(1, len(allargs) + 1)], strict=True))
    running: dict[int, tuple[Any, Any, str]] = {}
    ended = 0
    try:
        while waiting or running:
            while waiting and len(running) < nprocs:
                args, name = waiting.pop(0)
                process = parallel.mp_context.Process(target=_compute, args=(func, args, name))
                process.start()
                running[process.sentinel] = process, args[0], name
            for sentinel in wait(list(running)):
                process, context, name = running.pop(cast(int, sentinel))
                process.join()
                ended += 1
                if process.exitcode:
                    died = _died(process.exitcode)
                    line = f"The process {process.pid} of calculation {context.calc_id} {died}"
                    status = "aborted" if process.exitcode == INTERRUPTED else "failed"
                    if end_others(dbcmd, [context], status, line):
                        logging.error("%s: %s", name, line)
                elif logfinish:
                    logging.info("Finished job %s [%d of %d]", name, ended, len(allargs))
    except BaseException:
        _interrupt([process for process, _, _ in running.values()])
        raise


def _compute(func: Callable[..., Any], args: tuple[Any, ...], name: str) -> None:
    """In a process of its own: compute one, and say what ended it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        func(*args)
    except (Exception, KeyboardInterrupt) as error:
        if _interrupts(error):
            sys.exit(INTERRUPTED)
        logging.error(f"{name}: {error}")
        sys.exit(1)


def _end_with_parent() -> None:
    """End as by Ctrl-C when the command's own process is gone: nobody would wait for this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)


def _died(status: int) -> str:
    """What ended a process that did not end by itself, in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _interrupt(processes: Sequence[Any]) -> None:
    """End processes as Ctrl-C does, and kill those that do not end."""
    _join(processes, CTRL_C_SECONDS)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    _join(processes, GRACE_SECONDS)
    for process in processes:
        process.kill()
        process.join()


def _join(processes: Sequence[Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def end_others(dbcmd: Callable[..., Any], contexts: Sequence[Any], status: str, line: str = "") -> bool:
    """Write down the end of calculations that nobody computes any more; True if one had not ended yet."""
    found = False
    for context in contexts:
        job = dbcmd("get_job", context.calc_id)
        if job is not None and job.status in UNFINISHED:
            found = True
            why = line or f"Not computed: another calculation of the same command has {status}"
            # Upstream shows errors, on terminals and pages, and of what is critical nothing.
            dbcmd("log", context.calc_id, datetime.now(UTC), "ERROR", "oq_celery", why)
            dbcmd("finish", context.calc_id, status)
    return found
