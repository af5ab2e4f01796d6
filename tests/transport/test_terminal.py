"""What becomes of a calculation when the terminal goes from which it was started."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from oq_celery.terminal import runs_calculations

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

OQ = processes.ENGINE / "bin/oq"
WAITS = "Waiting for workers: 0 alive"


class Terminal:
    """A pseudo-terminal with an interactive shell in it, as `ssh`, a window or Session Manager give it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.output = ""
        self.shell, self._master = pty.fork()
        if not self.shell:
            os.chdir(directory)
            env = cluster.env | {"PYTHONUNBUFFERED": "1"}
            os.execve("/bin/bash", ["bash", "--norc", "-i"], env)  # noqa: S606 - the shell is what is wanted
        threading.Thread(target=self._read, daemon=True).start()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, text: str) -> None:
        wait_until(lambda: text in self.output, f"{text!r} in the terminal")

    def close(self) -> None:
        """Take it away as Session Manager does: the shell is killed, then the terminal is closed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.shell, signal.SIGKILL)
        os.close(self._master)
        os.waitpid(self.shell, 0)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 4096):
                self.output += data.decode(errors="replace")


@pytest.fixture
def empty(tmp_path: Path, broker: Broker) -> Iterator[Cluster]:
    """A cluster without workers, in which a job waits for them, and a job."""
    with harness.cluster(tmp_path / "oqlab-terminal", broker) as made:
        harness.qa_job("event_based/case_2", tmp_path)
        try:
            yield made
        finally:
            for process in processes.users(made.directory):
                kill(process)


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def status(cluster: Cluster) -> str:
    code = "from openquake.commonlib.dbapi import db\nprint(*[job.status for job in db('SELECT * FROM job')])"
    return cluster.python(code).strip()


def test_a_calculation_goes_on_without_its_terminal_and_can_be_followed(
    tmp_path: Path, broker: Broker, empty: Cluster
) -> None:
    """The end of a whole session of a user is a test of the lab."""
    terminal = Terminal(empty, tmp_path / "job")
    terminal.type(f"{OQ} engine --run job.ini\n")
    terminal.see(WAITS)
    terminal.close()
    follower = empty.start("oq-celery", "follow", "1")
    wait_until(lambda: WAITS in follower.output(), "the log of a calculation that runs")
    empty.worker("one")
    assert follower.wait() == 0, follower.output()
    assert follower.output().splitlines()[-1] == "Calculation 1 is complete"
    assert "Stored " in follower.output()
    assert status(empty) == "complete"
    assert broker.result_queues() == []


def test_ctrl_c_ends_the_calculation_and_the_shell_is_told(
    tmp_path: Path, broker: Broker, empty: Cluster
) -> None:
    terminal = Terminal(empty, tmp_path / "job")
    terminal.type(f"{OQ} engine --run job.ini; echo status=$?\n")
    terminal.see(WAITS)
    terminal.type("\x03")
    # An interactive shell drops the rest of the line when its command ended by Ctrl-C.
    terminal.see("MasterKilled")
    wait_until(lambda: not broker.result_queues(), "the result queue to go")
    wait_until(lambda: "executing" not in status(empty), "the calculation to end")
    terminal.type("echo back$((1+1))\n")
    terminal.see("back2")
    terminal.close()


def test_what_ends_a_calculation_is_the_status_of_the_command(tmp_path: Path, empty: Cluster) -> None:
    (tmp_path / "job/broken.ini").write_text("[general]\ncalculation_mode = classical\nsites = nowhere\n")
    terminal = Terminal(empty, tmp_path / "job")
    terminal.type(f"{OQ} engine --run broken.ini 2>errors; echo status=$?; wc -l < errors\n")
    terminal.see("status=1")
    terminal.close()
    assert "nowhere" in (tmp_path / "job/errors").read_text()


def test_follow_says_which_calculation_there_is_not(empty: Cluster) -> None:
    empty.python(
        "from openquake.server.db import actions\nfrom openquake.commonlib.dbapi import db\nactions.upgrade_db(db)"
    )
    for number, what in (("7", "there is no calculation 7"), ("-1", "there is no calculation -1 of yours")):
        done = processes.run([processes.ENGINE / "bin/oq-celery", "follow", number], empty.env)
        assert (done.returncode, done.stderr) == (1, f"oq-celery: {what}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("oq engine --run job.ini", True),
        ("/opt/openquake/bin/oq engine --multi --run=job.ini", True),
        ("oq run job.ini -p a=1", True),
        ("oq run --pdb job.ini", False),
        ("oq reaggregate 1 taxonomy", True),
        ("oq rerun 1", True),
        ("oq mosaic run_site 10,45", True),
        ("oq shell my.program", True),
        ("oq shell", False),
        ("oq engine --lhc", False),
        ("oq webui start", False),
        ("oq", False),
        ("oq-celery worker", False),
        ("", False),
    ],
)
def test_only_what_computes_leaves_its_terminal(line: str, expected: bool) -> None:
    assert runs_calculations(line.split()) is expected
