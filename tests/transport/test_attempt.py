"""What a worker says of an attempt, and what becomes of its file when nobody knows whether it was heard; no broker."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.transport import harness

# A publisher that does not answer to "ended" as a broker does, and a task whose result needs a file.
ATTEMPT = """
    import pickle, sys
    from dataclasses import replace
    from pathlib import Path
    from openquake.baselib import parallel
    from oq_celery import protocol
    from oq_celery.attempt import Attempt
    from oq_celery.settings import Settings

    class Publisher:
        def depth(self, channel):
            return 0, 1
        def tell(self, channel, headers):
            pass
        def publish(self, channel, body, headers):
            {outcome}

    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path(sys.argv[1]), 2048, 16, 4)
    header = protocol.TaskHeader("oq.user.1.x", "master", 0, "bytes", 1, "user", 0, protocol.versions())
    monitor = parallel.Monitor("bytes", dbserver_host=parallel.config.dbserver.host)
    monitor.backurl, monitor.inject, monitor.calc_id = "celery://x", False, 1
    attempt = Attempt(settings, Publisher(), header, "node", "message")
    parallel.Socket = lambda *_: __import__("contextlib").nullcontext(attempt)
    body = pickle.dumps((bytes, [parallel.Pickled(1_000_000)], monitor))
    try:
        attempt.run(body, may_be_copy=False)
    except SystemExit:
        pass
    print(len(list(Path(sys.argv[1]).rglob("result-*"))))
"""


@pytest.mark.parametrize(
    "outcome",
    [
        "raise SystemExit('while the confirm was waited for')",  # a cold shutdown
        "return False",  # after a first try that broke: the queue has gone, the message may have been taken before
    ],
)
def test_the_file_stays_for_the_master_who_may_know_of_it(outcome: str, tmp_path: Path) -> None:
    if not harness.ENGINE.exists():
        pytest.skip("the engine's environment is missing (make .venv-engine/.done)")
    code = textwrap.dedent(ATTEMPT.replace("{outcome}", outcome))
    command: list[str | Path] = [harness.ENGINE / "bin/python", "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={"OQ_DISTRIBUTE": "no"}, check=False)
    assert done.stdout.split() == ["1"], done.stderr


# As `ATTEMPT`, for a task that meets an error.
ERRORS = """
    import pickle
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
            print(headers["kind"], b"in task" in body)
            return True

    def task(error, monitor):
        raise error

    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path("/none"), 2048, 16, 4)
    header = protocol.TaskHeader("oq.user.1.x", "master", 0, "task", 1, "user", 0, protocol.versions())
    monitor = parallel.Monitor("task", dbserver_host=parallel.config.dbserver.host)
    monitor.backurl, monitor.inject, monitor.calc_id = "celery://x", True, 1
    for error in (OSError(116, "Stale file handle"), MemoryError(), OSError(2, "No such file"), ValueError()):
        attempt = Attempt(settings, Publisher(), header, "node", "message")
        parallel.Socket = lambda *_: __import__("contextlib").nullcontext(attempt)
        try:
            attempt.run(pickle.dumps((task, [parallel.Pickled(error)], monitor)), may_be_copy=False)
        except UnableError:
            pass
"""


def test_an_error_of_the_machine_leaves_the_task_to_others_and_one_of_the_task_is_its_result() -> None:
    """With the traceback, which the job's log shows if no worker can do it."""
    unable, ended = "unable True", "ended True"
    assert harness.python(ERRORS) == [unable, unable, ended, ended]
