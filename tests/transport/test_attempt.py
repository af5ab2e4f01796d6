"""What a worker says of an attempt, and what becomes of its file when nobody knows whether it was heard; no broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport import processes

# A publisher that does with what is published what `outcome` says, and attempts at `task` with one argument.
PROGRAM = """
    import contextlib, pickle, sys
    from pathlib import Path
    from openquake.baselib import parallel
    from oq_celery import protocol
    from oq_celery.attempt import Attempt, UnableError
    from oq_celery.settings import Settings

    class Publisher:
        def depth(self, channel):
            return 0, 1
        def tell(self, channel, headers):
            pass
        def publish(self, channel, body, headers):
            {outcome}

    def attempt(task, argument):
        settings = Settings("host", 5672, "user", "secret", "/", "celery", Path(sys.argv[1]), 2048, 16, 4)
        header = protocol.TaskHeader("oq.user.1.x", "master", 0, "task", 1, "user", 0, protocol.versions())
        monitor = parallel.Monitor("task", dbserver_host=parallel.config.dbserver.host)
        monitor.backurl, monitor.inject, monitor.calc_id = "celery://x", task is not bytes, 1
        made = Attempt(settings, Publisher(), header, "node", "message")
        parallel.Socket = lambda *_: contextlib.nullcontext(made)
        with contextlib.suppress(SystemExit, UnableError):
            made.run(pickle.dumps((task, [parallel.Pickled(argument)], monitor)), may_be_copy=False)
"""
# A task whose result needs a file.
LARGE = (
    PROGRAM
    + """
    attempt(bytes, 1_000_000)
    print(len(list(Path(sys.argv[1]).rglob("result-*"))))
"""
)


@pytest.mark.parametrize(
    "outcome",
    [
        "raise SystemExit('while the confirm was waited for')",  # a cold shutdown
        "return False",  # after a first try that broke: the queue has gone, the message may have been taken before
    ],
)
def test_the_file_stays_for_the_master_who_may_know_of_it(outcome: str, tmp_path: Path) -> None:
    assert processes.python(LARGE.replace("{outcome}", outcome), tmp_path) == ["1"]


# Tasks that meet an error.
ERRORS = (
    PROGRAM.replace("{outcome}", 'return print(headers["kind"], b"in task" in body) is None')
    + """
    def task(error, monitor):
        raise error

    spool = Path(sys.argv[1], "oq_celery")  # the master's
    spool.mkdir()
    # As upstream's DataStore.open raises those of h5py.
    opened = "[Errno {0}] Unable to open file (unable to open file: name = 'x', errno = {0}) in /data/calc_1.hdf5"
    for error in (
        OSError(116, "Stale file handle"), MemoryError(), OSError(opened.format(116)),
        OSError(12, "Cannot allocate memory"), OSError(24, "Too many open files"),
        OSError(2, "No such file"), OSError(opened.format(2)), ValueError(),
    ):
        attempt(task, error)
    spool.rmdir()  # as of a worker whose mount has gone
    for error in OSError(2, "No such file"), ValueError():
        attempt(task, error)
"""
)


def test_an_error_of_the_machine_leaves_the_task_to_others_and_one_of_the_task_is_its_result(
    tmp_path: Path,
) -> None:
    """With the traceback, which the job's log shows if no worker can do it."""
    unable, ended = "unable True", "ended True"
    assert processes.python(ERRORS, tmp_path) == [unable] * 5 + [ended] * 3 + [unable, ended]
