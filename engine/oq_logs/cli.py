"""The journals of workers, dead ones too, as `oq-node logs` shows them on the master.

Each worker copies its journal to the shared file system (`oq_node/journal.py`): `<instance id>.log`, and before it
`<instance id>.log.1`. The first line of a file is `-- INSTANCE HOST ADDRESS`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from oq_celery.terminal import INTERRUPTED

# Three signs of life of a worker that says nothing.
ALIVE_SECONDS = 60
FOLLOW_SECONDS = 1.0
INSTANCE_ID = re.compile(r"i-[0-9a-f]+")


@dataclass(frozen=True)
class Worker:
    """A worker that has left a log.

    Attributes:
        instance: its id on EC2.
        host: its host name, by which Celery and the logs of calculations name it.
        address: in the VPC.
        heard: when it last wrote or showed that it lives, in seconds since 1970.
        alive: whether that was just now.
        path: of its log.
    """

    instance: str
    host: str
    address: str
    heard: float
    alive: bool
    path: str


def workers(directory: Path, now: float) -> list[Worker]:
    """The workers whose logs are in a directory, the last heard first.

    Raises:
        OSError: if the directory cannot be read.
    """
    found = []
    for path in sorted(directory.iterdir()):
        if path.suffix != ".log":
            continue
        try:
            # Opened first: NFS asks the server for a file's time then, and may show an old one otherwise.
            with path.open(encoding="utf-8", errors="replace") as file:
                mark, _, names = file.readline().rstrip("\n").partition(" ")
                heard = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:  # it has become the file before the next one
            continue
        words = names.split(" ")
        if mark == "--" and len(words) == 3:
            instance, host, address = words
            found.append(Worker(instance, host, address, heard, now - heard < ALIVE_SECONDS, str(path)))
    return sorted(found, key=lambda worker: -worker.heard)


def matching(found: list[Worker], name: str) -> list[Worker]:
    """Those of a name: an instance id, a host name, a name of Celery (openquake@HOST), of a process (HOST/PID), or an
    address.
    """
    host = name.removeprefix("openquake@").partition("/")[0]
    return [worker for worker in found if host in (worker.instance, worker.host, worker.address)]


def last_lines(path: Path, number: int) -> list[str]:
    """The last lines of a worker's log, with those of the file before it."""
    lines: deque[str] = deque(maxlen=number)
    for part in (path.with_suffix(".log.1"), path):
        try:
            with part.open(encoding="utf-8", errors="replace") as file:
                next(file, None)  # whose log it is
                lines.extend(file)
        except FileNotFoundError:
            continue
    return list(lines)


def follow(path: Path) -> Iterator[str]:
    """What a worker says from now on, for ever, with a pause after each look.

    The file is opened for each look: NFS shows what another machine has written then.
    """
    status = path.stat()
    inode, place = status.st_ino, status.st_size
    new = b""
    while True:
        yield new.decode(errors="replace")
        time.sleep(FOLLOW_SECONDS)
        new = b""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # not there between two files
            if (now := os.fstat(file.fileno()).st_ino) != inode:
                new = _from(path.with_suffix(".log.1"), place)
                inode, place = now, 0
            file.seek(place)
            whole = b"".join(file.read().rpartition(b"\n")[:2])
            place += len(whole)
            new += whole


def _from(path: Path, place: int) -> bytes:
    """What a file holds from a place on."""
    with path.open("rb") as file:
        file.seek(place)
        return file.read()


def main() -> None:
    """Parse the command line and do what it says."""
    directory, region = Path(sys.argv[1]), sys.argv[2]  # which oq-node puts in front
    parser = argparse.ArgumentParser(
        prog="oq-node logs", description="The workers, dead ones too, and what each has last said."
    )
    parser.add_argument("worker", nargs="?", help="its instance id, host name or address (default: list all)")
    parser.add_argument("--lines", type=int, default=100, metavar="N", help="of its end (default: 100)")
    parser.add_argument("--follow", action="store_true", help="and what it says from now on")
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    given = parser.parse_args(sys.argv[3:])
    try:
        found = workers(directory, time.time())
        if given.worker is None:
            print(
                json.dumps([asdict(worker) for worker in found]) if given.json else table(found), flush=True
            )
            return
        named = matching(found, given.worker)
        if not named:
            _fail(_unknown(given.worker, region))
        if len(named) > 1:
            others = ", ".join(worker.instance for worker in named[1:])
            print(f"-- the log of {named[0].instance}; {given.worker} before: {others}", file=sys.stderr)
        path = Path(named[0].path)
        new = follow(path)
        if given.follow:
            next(new)  # from here on; what comes meanwhile may be shown twice, and nothing not at all
        print("".join(last_lines(path, max(0, given.lines))), end="", flush=True)
        while given.follow:
            print(next(new), end="", flush=True)
    except BrokenPipeError:  # `oq-node logs WORKER --follow | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except OSError as error:
        _fail(f"{error}. Is the shared file system mounted? sudo oq-node status")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def table(found: list[Worker]) -> str:
    """The workers as text."""
    if not found:
        return "no worker has left a log yet"
    rows = [("instance", "worker", "address", "last heard")]
    for worker in found:
        heard = datetime.fromtimestamp(worker.heard, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        rows.append(
            (worker.instance, worker.host, worker.address, heard + (", alive" if worker.alive else ""))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(word.ljust(width) for word, width in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    )


def _unknown(name: str, region: str) -> str:
    instance = name if INSTANCE_ID.fullmatch(name) else "i-…"
    return (
        f"no log of a worker {name}: `oq-node logs` lists those that there are, without workers that ended weeks ago. "
        "A worker that failed before it had mounted the shared file system has its console alone:\n"
        f"aws ec2 get-console-output --region {region} --instance-id {instance} --latest --output text"
    )


def _fail(message: str) -> NoReturn:
    sys.exit(f"oq-node logs: {message}")
