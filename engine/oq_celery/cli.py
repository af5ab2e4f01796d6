"""The command `oq-celery`: run a worker, or look at the cluster."""

from __future__ import annotations

import argparse
import contextlib
import gc
import getpass
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oq_celery import __version__
from oq_celery.terminal import INTERRUPTED

if TYPE_CHECKING:
    from oq_celery.settings import Settings

LISTED = 20  # calculations, where none is named
CONNECT_SECONDS = 3  # for the DbServer to take a connection
OPEN_FILES = 65536  # of a worker, as RabbitMQ's package sets it for the broker


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="oq-celery", description="The OpenQuake Engine on Celery and RabbitMQ."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    worker = commands.add_parser(
        "worker",
        help="run a worker in the foreground",
        description="Run a worker in the foreground. SIGTERM ends it when its running tasks are done.",
    )
    worker.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="number of processes (default: one for each core, and for each [celery] memory_per_process_mb)",
    )
    worker.add_argument(
        "--reserved-mb",
        type=int,
        default=0,
        metavar="MIB",
        help="memory that is not for the processes, where their number follows from it (default: 0)",
    )
    worker.add_argument(
        "--name", default="%h", help="tells several workers of one machine apart (default: the host's name)"
    )
    worker.set_defaults(run=run_worker)
    status = commands.add_parser(
        "status",
        help="show workers, queue and jobs",
        description="Show the workers, the tasks that wait, and what runs of each job.",
    )
    status.add_argument("--json", action="store_true", help="print a JSON object")
    status.set_defaults(run=show_status)
    follower = commands.add_parser(
        "follow",
        help="show the log of a calculation, and go on while it runs",
        description="Show the log of a calculation from its beginning, and go on until it ends, wherever it was "
        "started. Ctrl-C ends this command, not the calculation. The status is 0 if the calculation is complete.",
    )
    follower.add_argument(
        "calculation", type=int, nargs="?", default=-1, help="its number (default: -1, the last one of yours)"
    )
    follower.set_defaults(run=follow)
    coster = commands.add_parser(
        "cost",
        help="show what the tasks of calculations have cost",
        description="Show for how long processes of workers were busy with a calculation's tasks, and what that cost "
        "where the price of an hour was known. Workers that wait, the master and the disks are not in it.",
    )
    coster.add_argument(
        "calculation", type=int, nargs="?", help="its number (default: your last 20, as root everybody's)"
    )
    coster.add_argument("--json", action="store_true", help="print a JSON list")
    coster.set_defaults(run=show_cost)
    reaper = commands.add_parser(
        "reap",
        help="mark calculations whose process is gone as failed",
        description="Mark calculations whose process, or whose master, is gone as failed, so that others need not wait "
        "for them. For a timer on the master; it needs leave to write the engine's database.",
    )
    reaper.set_defaults(run=reap_jobs)
    arguments = parser.parse_args()
    os.environ["OQ_DISTRIBUTE"] = "no"  # this command distributes nothing
    try:
        arguments.run(arguments, _settings())
        sys.stdout.flush()
    except BrokenPipeError:  # `oq-celery follow ID | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)


def run_worker(arguments: argparse.Namespace, settings: Settings) -> None:
    """Run the Celery worker in this process."""
    from oq_celery import inputs

    with contextlib.suppress(OSError):  # a worker without its shared directory has other ways to say so
        inputs.make_root(settings)
    concurrency = arguments.concurrency or default_concurrency(
        settings.memory_per_process_mb, arguments.reserved_mb
    )
    # Celery has some six pipes to each of its processes: systemd's 1024 files are enough for 167 of them.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    # Until the fork: what is imported stays, and looking for garbage in it is a tenth of a worker's start.
    gc.disable()
    from oq_celery.worker import app

    # -O fair: a task goes to a process that is free. Gossip and mingle are for workers that talk to each
    # other.
    app.worker_main(
        [
            "worker",
            f"--concurrency={concurrency}",
            "--pool=prefork",
            "-Ofair",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            f"--hostname=openquake@{arguments.name}",
            "--loglevel=INFO",
        ]
    )


def show_status(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print what the cluster does."""
    from oq_celery import broker, status

    try:
        now = status.read(settings)
    except broker.ERRORS as error:
        _fail(f"RabbitMQ at {settings.host}:{settings.port} does not answer: {error}")
    print(now.json() if arguments.json else now)


def follow(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the log of a calculation until it ends."""
    del settings
    from oq_celery import jobs

    number = arguments.calculation
    with _database() as dbcmd:
        job = dbcmd("get_job", number, getpass.getuser() if number < 0 else None)
        if job is None:
            _fail(f"there is no calculation {number}" + (" of yours" if number < 0 else ""))
        try:
            for line in jobs.follow(dbcmd, job.id):
                print(line, flush=True)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        ended = dbcmd("get_job", job.id)
    if ended is None:
        _fail(f"calculation {job.id} was deleted")
    print(f"Calculation {job.id} is {ended.status}", flush=True)
    sys.exit(ended.status not in jobs.GOOD)


def show_cost(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print what calculations have cost."""
    del settings
    from oq_celery import cost

    with _database() as dbcmd:
        if arguments.calculation is None:
            found = cost.last(dbcmd, getpass.getuser(), os.geteuid(), LISTED)
        elif one := cost.of_number(dbcmd, arguments.calculation):
            found = [one]
        else:
            _fail(f"there is no calculation {arguments.calculation}")
    if arguments.json:
        print(json.dumps([calculation.plain() for calculation in found]))
    else:
        print("\n".join(map(str, found)) or "there is no calculation yet")


def reap_jobs(arguments: argparse.Namespace, settings: Settings) -> None:
    """Mark calculations whose process is gone as failed, and say which."""
    del arguments
    import sqlite3

    from openquake.commonlib.dbapi import db

    from oq_celery import identity, inputs, jobs

    if not Path(db.path).exists():  # connecting would make one
        _fail(f"there is no database {db.path} yet")
    # Root would leave files of its own beside the database, and follow a link that is put in its place.
    with identity.acting_as(identity.keeper()):
        try:
            for line in jobs.reap(db):
                print(line)
        except sqlite3.Error as error:
            _fail(f"{db.path}: {error}")
        try:
            inputs.sweep(settings)
        except PermissionError as error:
            _fail(
                f"{error}: this command runs under the account of the workers, to which the directory has to belong"
            )
        except OSError as error:
            _fail(str(error))


def default_concurrency(memory_per_process_mb: int, reserved_mb: int = 0) -> int:
    """The number of processes that this machine has cores and memory for, at least one.

    Of the memory, `reserved_mb` (MiB) are for something else.
    """
    cores = len(os.sched_getaffinity(0))
    shown_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    # A machine that is sold with 16 GB shows less: what firmware and kernel keep, up to 8 % on AWS, costs no process.
    # What is sold are halves of a GiB for each core.
    half_mb = cores * 512
    sold_mb = min(-(-shown_mb // half_mb) * half_mb, shown_mb * 100 // 92)
    return max(1, min(cores, (sold_mb - reserved_mb) // memory_per_process_mb))


@contextlib.contextmanager
def _database() -> Iterator[Callable[..., Any]]:
    """Upstream's `dbcmd`, for as long as the DbServer answers; the end of this command when it does not."""
    from openquake.baselib import config, zeromq
    from openquake.commonlib.logs import dbcmd

    host, port = config.dbserver.host, config.dbserver.port
    silent = f"the DbServer at {host}:{port} does not answer: sudo systemctl status openquake-dbserver"
    if host != "127.0.0.1":  # where upstream needs no DbServer
        # A request would wait ten minutes, as is right for one that comes while the DbServer is restarted.
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            _fail(f"{silent} ({error})")
    try:
        yield dbcmd
    except zeromq.TimeoutError:
        _fail(silent)


def _settings() -> Settings:
    from openquake.baselib import config

    from oq_celery import settings

    try:
        if not settings.use_celery(config):
            _fail(f"[celery] use_celery is not true in {', '.join(config.found)}")
        return settings.load(config)
    except settings.SettingsError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    sys.exit(f"oq-celery: {message}")
