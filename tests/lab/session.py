"""A user's session as Session Manager gives one, and its sudden end; a program on its own, run on the lab's master.

    session.py USER DIRECTORY

Logs in as the user in a pseudo-terminal, starts the job of a directory there, and takes the terminal away when the
engine has sent tasks: the shell is killed and the terminal closed. Prints what the terminal has shown.
"""

from __future__ import annotations

import os
import pty
import signal
import sys
import time

SECONDS = 300


def main(user: str, directory: str) -> None:
    shell, terminal = pty.fork()
    if not shell:
        os.execvp("su", ["su", "--login", user])  # noqa: S606
    os.write(terminal, f"cd {directory}; oq engine --run job.ini\n".encode())
    shown = b""
    deadline = time.monotonic() + SECONDS
    while b" classical tasks" not in shown:
        shown += os.read(terminal, 4096)
        if time.monotonic() > deadline:
            break
    os.kill(shell, signal.SIGKILL)
    os.close(terminal)
    print(shown.decode(errors="replace"))


if __name__ == "__main__":
    main(*sys.argv[1:])
