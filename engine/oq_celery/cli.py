"""The command `oq-celery`: run a worker, or look at the cluster."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from oq_celery import __version__


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
    worker.set_defaults(run=run_worker)
    arguments = parser.parse_args()
    os.environ.setdefault("OQ_DISTRIBUTE", "no")  # this command distributes nothing
    arguments.run(arguments)


def run_worker(arguments: argparse.Namespace) -> None:
    """Run the Celery worker in this process."""
    from openquake.baselib import config

    from oq_celery import settings

    try:
        if not settings.use_celery(config):
            _fail("[celery] use_celery is not true in openquake.cfg: this machine is not to be a worker")
        concurrency = arguments.concurrency or default_concurrency(
            settings.load(config).memory_per_process_mb
        )
    except settings.SettingsError as error:
        _fail(str(error))
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
            "--hostname=openquake@%h",
            "--loglevel=INFO",
        ]
    )


def default_concurrency(memory_per_process_mb: int) -> int:
    """The number of processes that this machine has cores and memory for, at least one."""
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return max(1, min(len(os.sched_getaffinity(0)), memory_mb // memory_per_process_mb))


def _fail(message: str) -> NoReturn:
    sys.exit(f"oq-celery: {message}")
