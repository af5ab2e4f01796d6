"""A calculation outlives the terminal that started it.

A terminal goes for many reasons: a laptop sleeps, a network breaks, Session Manager ends a session after 20 minutes
without a key press. Upstream's `oq engine --run` is a child of that terminal and ends with it, by its hangup or by
what ends the shell's processes.

So the process that a terminal starts computes nothing. It forks: the child has a session of its own, which no
terminal's end reaches, and writes what it says into a file without a name; the parent stays with the terminal, copies
that file to it, passes on Ctrl-C, and ends as the child does. When the terminal goes, the parent ends alone.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# With arguments: `oq shell` alone is a session, with a module it is a program.
COMPUTE = ("run", "mosaic", "reaggregate", "rerun", "shell")
TERMINAL = "/dev/tty"  # that of the process that opens it, whichever it is
COPY_SECONDS = 0.1
CHUNK = 1 << 16

# What Ctrl-C and Ctrl-\ send to all processes of the terminal's foreground, what `kill` sends to one.
TO_ALL = frozenset({signal.SIGINT, signal.SIGQUIT})
TO_ONE = frozenset({signal.SIGTERM})
INTERRUPTED = 128 + signal.SIGINT  # a shell's status of what Ctrl-C has ended


def outlive(arguments: Sequence[str]) -> None:
    """Fork when this is the command of a calculation, started from a terminal; only the child returns.

    To be called early in the life of the process, before it has threads or knows its own number.

    Args:
        arguments: the process's command line.
    """
    if not runs_calculations(arguments) or not _has_terminal():
        return
    waited = {signal.SIGCHLD, signal.SIGHUP, *TO_ALL, *TO_ONE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    sources = _sources()
    child = os.fork()
    if child:
        _stay(child, sources, waited)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the engine leaves it so
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    nothing = os.open(os.devnull, os.O_RDONLY)
    if os.isatty(0):  # a file or a pipe stays: `oq shell MODULE` may read it
        os.dup2(nothing, 0)
    for target, source in sources.items():
        os.dup2(source, target)
    for descriptor in {nothing, *sources.values()}:
        os.close(descriptor)


def runs_calculations(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of a command that computes, without the debugger, which needs a terminal."""
    program, *rest = arguments or [""]
    if Path(program).name != "oq" or not rest:
        return False
    command, *options = rest
    if command == "engine":
        return any(option == "--run" or option.startswith("--run=") for option in options)
    return command in COMPUTE and bool(options) and not {"--pdb", "-d"} & set(options)


def _has_terminal() -> bool:
    """Whether there is a terminal whose end would reach this process: not under `nohup`, cron or systemd."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return False
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _sources() -> dict[int, int]:
    """For standard output and error, a new file that the child writes in its place.

    A pipe's reader may end with the terminal, so it gets a copy as a terminal does; files of the user's stay.
    """
    found: dict[int, int] = {}
    files: dict[tuple[int, int], int] = {}
    for target in (1, 2):
        try:
            status = os.fstat(target)
        except OSError:  # closed
            continue
        if os.isatty(target) or stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
            same = (status.st_dev, status.st_ino)
            if same not in files:
                with tempfile.TemporaryFile(buffering=0) as file:
                    files[same] = os.dup(file.fileno())
            found[target] = files[same]
    return found


def _stay(child: int, sources: dict[int, int], waited: set[signal.Signals]) -> NoReturn:
    """Copy what the child says, pass signals on to it, and end as it does, or alone when the terminal goes."""
    # Of two targets that are one, the first gets it all.
    copies = {source: _Copy(source, target) for target, source in reversed(sources.items())}
    while True:
        got = signal.sigtimedwait(waited, COPY_SECONDS)
        number = got.si_signo if got else None
        if number == signal.SIGHUP:
            os._exit(128 + signal.SIGHUP)
        if number in TO_ALL:
            _send_to_group(child, signal.Signals(number))
        elif number in TO_ONE:
            os.kill(child, number)
        ended, status = os.waitpid(child, os.WNOHANG)
        for copy in copies.values():
            copy.copy()
        if ended:
            break
    for copy in copies.values():
        copy.finish()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:  # a shell tells by it that this was Ctrl-C
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _send_to_group(child: int, number: signal.Signals) -> None:
    try:
        os.killpg(child, number)
    except ProcessLookupError:  # it is not yet in a group of its own
        os.kill(child, number)


class _Copy:
    """Copies a file that grows to a descriptor, as long as somebody takes it."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self._offset = 0
        self._wanted = True

    def copy(self) -> None:
        """Copy all that is new."""
        while self._wanted and (data := os.pread(self._source, CHUNK, self._offset)):
            try:
                self._offset += os.write(self._target, data)
            except BlockingIOError:  # somebody has made the terminal so; the rest comes later
                return
            except OSError:  # the reader has gone, the calculation goes on
                self._wanted = False

    def finish(self) -> None:
        """Copy all that is left, and wait where there is no room for it now."""
        self.copy()
        while self._wanted and os.pread(self._source, 1, self._offset):
            select.select([], [self._target], [])
            self.copy()
