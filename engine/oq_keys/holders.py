"""Who still has an earlier password: the processes of this machine that were there before a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_START_FIELD = 19  # of those of /proc/PID/stat that come after the name: proc_pid_stat(5)


@dataclass(frozen=True)
class Moment:
    """A time of this machine: seconds since a boot, and which boot that was."""

    boot: str
    seconds: float


def now(proc: Path = Path("/proc")) -> Moment:
    """This moment."""
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return Moment(boot, time.clock_gettime(time.CLOCK_BOOTTIME))


def older(moment: Moment, engine: str, apart: str, proc: Path = Path("/proc")) -> Iterator[str]:
    """The processes that have the engine in their memory and began before a moment, in words.

    Each has read openquake.cfg and may open a connection with what was there then, whether it has one now or not.

    Args:
        moment: one of an earlier boot is before all processes.
        engine: the directory of the engine.
        apart: the systemd unit that speaks to no broker.
        proc: where the kernel says what runs.
    """
    if moment.boot != now(proc).boot:
        return
    for directory in proc.glob("[0-9]*"):
        try:
            name, _, rest = _text(directory / "stat").partition("(")[2].rpartition(")")
            started = int(rest.split()[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
            if started > moment.seconds or apart in _text(directory / "cgroup"):
                continue
            if f" {engine}/" in _text(directory / "maps"):
                yield f"{name} (process {directory.name})"
        except OSError:  # it has gone just now
            continue


def _text(file: Path) -> str:
    """What the kernel says of a process, whose name, and whose files' names, may be any bytes."""
    return file.read_bytes().decode(errors="replace")
