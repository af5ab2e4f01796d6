"""Copies this worker's journal to the shared file system, where it outlives the machine.

Each line is on the file server about a second after it was said: so much is lost when a machine ends without a word.
What cannot be written (the file system is away or full) stays in the journal and is copied later; nothing waits for it.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oq_node.common import FACTS, metadata, say

DIRECTORY = Path(FACTS["logs_dir"])
GATHER_SECONDS = 0.5  # between two writes: EFS charges for small ones, too
BEAT_SECONDS = 20  # between two signs of life of a worker that says nothing
RETRY_SECONDS = 10
# A worker keeps this file and the one before it.
FILE_BYTES = 10 * 2**20
PIPE_BYTES = 2**20  # the kernel's limit; so much is written at once
FIELDS = "MESSAGE,SYSLOG_IDENTIFIER,_COMM,_PID"
# What would act on the terminal of whoever reads it.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Log:
    """The file of this worker, and the place in the journal up to which it is written."""

    def __init__(self, directory: Path, state: Path) -> None:
        instance = metadata("instance-id")
        self.path = directory / f"{instance}.log"
        self._head = f"-- {instance} {socket.gethostname()} {metadata('local-ipv4')}\n"
        self._cursor = state / "cursor"

    @property
    def cursor(self) -> str:
        """Of the last entry that is written; empty when none is."""
        return self._cursor.read_text() if self._cursor.exists() else ""

    def append(self, lines: str, cursor: str) -> None:
        """Write lines, and the cursor of the last one when they are on the file server."""
        if not os.path.ismount(FACTS["nfs_dir"]):
            raise OSError(f"{FACTS['nfs_dir']} is not mounted")
        # Before a line and not after one: a worker that says nothing more has its file all the same.
        if self.path.exists() and self.path.stat().st_size > FILE_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
        with self.path.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write(self._head)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if cursor:
            new = self._cursor.with_suffix(".new")
            new.write_text(cursor)
            new.replace(self._cursor)

    def beat(self) -> None:
        """Show that the worker lives."""
        os.utime(self.path)


def line(entry: dict[str, Any]) -> str:
    """An entry of the journal as lines of text; only the first of them does not begin with a space."""
    text = CONTROL.sub("?", _text(entry.get("MESSAGE"))).replace("\n", "\n    ")
    seconds = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
    who = _text(entry.get("SYSLOG_IDENTIFIER") or entry.get("_COMM"))
    process = f"[{entry['_PID']}]" if "_PID" in entry else ""
    return f"{when} {who}{process}: {text}\n"


def _text(value: Any) -> str:
    """A field's value in journalctl's JSON: text, the bytes of what is no text, or several of these."""
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            return bytes(value).decode(errors="replace")
        return " ".join(map(_text, value))
    return value or ""


def entries(cursor: str) -> Iterator[list[dict[str, Any]]]:
    """What the journal says after a cursor, or from this boot on, as it comes; nothing for a second is an empty list.

    Ends when this program is told to, with what was said until then.
    """
    begin = f"--after-cursor={cursor}" if cursor else "--boot"
    command = ["journalctl", "--follow", "--no-tail", "--all", "--output=json", f"--output-fields={FIELDS}"]
    with subprocess.Popen([*command, begin], stdout=subprocess.PIPE, pipesize=PIPE_BYTES) as journal:
        try:
            assert journal.stdout is not None
            pipe, rest = journal.stdout.fileno(), b""
            ending = False
            while not ending:
                ending = signal.SIGTERM in signal.sigpending()
                said = b""
                if select.select([pipe], [], [], 1)[0]:
                    time.sleep(GATHER_SECONDS)
                    said = os.read(pipe, PIPE_BYTES)
                    if not said:
                        raise OSError(f"journalctl has ended with {journal.wait()}")
                *whole, rest = (rest + said).split(b"\n")
                yield [json.loads(text) for text in whole]
        finally:
            journal.kill()


def copy(log: Log) -> None:
    """Copy the journal until this program is told to end; OSError when it cannot be written."""
    beaten = time.monotonic()
    for said in entries(log.cursor):
        if said:
            log.append("".join(map(line, said)), said[-1]["__CURSOR"])
        elif time.monotonic() - beaten < BEAT_SECONDS:
            continue
        else:
            log.beat()
        beaten = time.monotonic()


def main() -> None:
    """Copy until the end; begin anew after an error, which is said once."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    state, trouble = Path(os.environ["STATE_DIRECTORY"]), ""
    while signal.SIGTERM not in signal.sigpending():
        try:
            copy(Log(DIRECTORY, state))
        except OSError as error:
            if str(error) != trouble:
                say(f"the journal is not copied to {DIRECTORY} for now: {error}")
            trouble = str(error)
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
