"""The transport's tests, and the explorer of faults, in process and network namespaces of their own.

`oq abort 1` looks for a process called `oq-job-1` on the whole machine, and would find that of tests which run at the
same time. In namespaces it finds its own only, ports are free whoever else listens, and whatever the tests have
started ends with them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_MARKER = "OQ_TESTS_ISOLATED"
# The shell stays, as the first process of the namespace: it reaps those whose parents were killed.
_INSIDE = 'ip link set lo up && {drop}"$@"; exit $?'


def inside() -> bool:
    """Whether these tests run in namespaces of their own."""
    return _MARKER in os.environ


def _command(command: Sequence[str]) -> list[str]:
    namespaces = ["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc"]
    drop = ""
    if os.geteuid() != 0:
        # Capabilities over the namespaces, for the shell only: the tests run as the user that they are.
        namespaces += ["--user", "--map-current-user", "--keep-caps"]
        drop = "setpriv --ambient-caps=-all --inh-caps=-all "
    return ["unshare", *namespaces, "--", "sh", "-c", _INSIDE.format(drop=drop), "sh", *command]


def why_not() -> str | None:
    """Why this machine gives the tests no namespaces; None when it does."""
    try:
        done = subprocess.run(_command(["true"]), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "no unshare (util-linux)"
    return None if done.returncode == 0 else (done.stderr.strip() or f"unshare: exit {done.returncode}")


def run_again(module: str, arguments: Sequence[str]) -> int:
    """Run a program in new namespaces, to its end.

    Args:
        module: of Python, as after `-m`.
        arguments: of the program.

    Returns:
        Its exit status.
    """
    tests = subprocess.Popen(
        _command([sys.executable, "-m", module, *arguments]), env=os.environ | {_MARKER: "1"}
    )
    # unshare waits with SIGTERM blocked; killed, it takes all of the namespace with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: tests.kill())
    # The terminal sends it to the tests as well, which end in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = tests.wait()
    return status if status >= 0 else 128 - status
