"""Programs of the engine's environment as subprocesses, new ones and forks, and what the tests wait with.

The tests run under the project's environment; the engine has its own, which they drive by its commands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.transport import forks

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / ".venv-engine"
# Variables of the environment that no command of `oq` reads when it is imported, or `fork_server.py` sets right.
FORKS_MAY_CHANGE = {"LOGNAME", "PYTHONUNBUFFERED"}
# The same of what the engine imports of others.
LIBRARIES_FORKS_MAY_CHANGE = FORKS_MAY_CHANGE | {"CI", "C_FORCE_ROOT", "PYTEST_CURRENT_TEST", "PYTHONPATH"}
DEADLINE = 600.0  # seconds, against hanging only: numba compiles for minutes the first time, on a busy machine longer


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def users(directory: Path) -> Iterator[int]:
    """The processes that have a file below a directory open; their environment their titles may have overwritten."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(directory in file.readlink().parents for file in (entry / "fd").iterdir()):
                yield int(entry.name)


def wait_until(condition: Any, what: str, deadline: float = DEADLINE) -> None:
    """Poll a condition; a failure says what was waited for."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s for {what}")
        time.sleep(0.1)


def run(
    command: Sequence[str | Path], env: dict[str, str], *, check: bool = False, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without the terminal of the tests, which a calculation would outlive.

    Args:
        command: its words; a program of the engine's environment may begin as a fork.
        env: its whole environment.
        check: raise an error when it fails.
        fresh: not as a fork.
    """
    if not fresh and PYTHONS.may_fork(command, env):
        with captured() as (out, err):
            status = Forked(PYTHONS.fork(command, env, out, err)).wait()
            done = subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())
        if check:
            done.check_returncode()
        return done
    return subprocess.run(
        command,
        env=env,
        check=check,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        start_new_session=True,
    )


@contextmanager
def captured() -> Iterator[tuple[Path, Path]]:
    """Files for what a command prints; elsewhere, since who has a file of a cluster open is one of its processes."""
    with tempfile.TemporaryDirectory(prefix="oqlab-") as temporary:
        yield Path(temporary, "out"), Path(temporary, "err")


def python(code: str, *arguments: str | Path, config: Path | None = None, fresh: bool = False) -> list[str]:
    """Run code in the engine's environment, without a broker; the lines that it printed.

    Args:
        code: of Python.
        arguments: in sys.argv.
        config: openquake.cfg, for what reads it.
        fresh: not in a fork.
    """
    if not ENGINE.exists():
        pytest.skip("the engine's environment is missing (make .venv-engine/.done)")
    env = {name: value for name, value in os.environ.items() if not name.startswith("OQ_")}
    env |= {"OQ_DISTRIBUTE": "no"} | ({"OQ_CONFIG_FILE": str(config)} if config else {})
    done = run([ENGINE / "bin/python", "-c", textwrap.dedent(code), *arguments], env, fresh=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


class Process:
    """A subprocess in a session of its own, with its output in a file."""

    def __init__(self, arguments: Sequence[str | Path], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                arguments,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float = DEADLINE) -> int:
        return self._popen.wait(timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End the process and everything that it started, now."""
        if self.running():
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Forked(Process):
    """A command of the engine, forked by a process that has imported it."""

    def __init__(self, child: forks.Child) -> None:
        self._child, self.log = child, child.log

    @property
    def pid(self) -> int:
        return self._child.pid

    def running(self) -> bool:
        return self._child.running()

    def wait(self, timeout: float = DEADLINE) -> int:
        if not self._child.over.wait(timeout):
            raise AssertionError(f"process {self.pid} runs after {timeout:.0f} s: {self.output()[-2000:]}")
        assert self._child.status is not None
        return self._child.status

    def signal(self, number: int) -> None:
        self._child.signal(number)

    def kill(self) -> None:
        self._child.signal_all(signal.SIGKILL)
        self.wait()


class Pythons:
    """Programs of the engine's environment, forked from processes that have imported what it imports of others.

    Importing it takes two thirds of the CPU of a start. Nothing of the engine's own is shared, nor what reads a
    setting.
    """

    def __init__(self) -> None:
        # Without and with locks on HDF5 files, which h5py looks at when it is imported, and a worker has none.
        self._fork_servers: dict[bool, forks.ForkServer] = {}
        self._logs: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def may_fork(command: Sequence[str | Path], env: Mapping[str, str]) -> bool:
        """Whether a fork is as good as a new process."""
        program, first = Path(command[0]), str(command[1]) if len(command) > 1 else ""
        if program.parent != ENGINE / "bin" or (
            program.name == "python" and first != "-c" and first[:1] in {"", "-"}
        ):
            return False
        changed = {name for name, _ in env.items() ^ os.environ.items()}
        return all(name.startswith("OQ_") or name in LIBRARIES_FORKS_MAY_CHANGE for name in changed)

    def fork(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str],
        out: Path,
        err: Path,
        *,
        locks: bool = True,
    ) -> forks.Child:
        """Start one, if it `may_fork`.

        Args:
            command: its words.
            env: its whole environment.
            out: where it writes.
            err: where it writes its errors.
            locks: whether it locks the HDF5 files that it opens.
        """
        program, *words = map(str, command)
        if Path(program).name != "python":
            words = [program, *words]
        os.umask(umask := os.umask(0))
        own = {"environment": dict(env), "cwd": str(Path.cwd()), "umask": umask}
        return self._fork_server(locks).fork(out, err, {}, command=words, **own)

    def _fork_server(self, locks: bool) -> forks.ForkServer:
        if locks not in self._fork_servers:
            command: list[str | Path] = [
                ENGINE / "bin/python",
                Path(__file__).with_name("fork_server.py"),
                "libraries",
            ]
            env = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith("OQ_") and name not in LIBRARIES_FORKS_MAY_CHANGE
            }
            env |= {} if locks else {"HDF5_USE_FILE_LOCKING": "FALSE"}
            self._logs = self._logs or tempfile.TemporaryDirectory(prefix="oqlab-pythons-")
            log = Path(self._logs.name, f"fork-server-{len(self._fork_servers)}.log")
            self._fork_servers[locks] = forks.ForkServer(command, env, log)
            self._fork_servers[locks].wait_ready(DEADLINE)
        return self._fork_servers[locks]

    def close(self) -> None:
        """End them; those that are asked for later begin anew."""
        while self._fork_servers:
            self._fork_servers.popitem()[1].close()
        if self._logs is not None:
            self._logs.cleanup()
            self._logs = None


PYTHONS = Pythons()
