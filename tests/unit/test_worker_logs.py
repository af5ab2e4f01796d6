"""The log that a worker leaves on the shared file system, and the master's command that shows it.

The worker's metadata, its mount and its journal are made up; real boots and real deaths are in the lab's tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oq_logs import cli

from components import facts
from tests.unit.conftest import ENDPOINTS_DISKLESS, MODES, NAT, Record
from tests.unit.node import node_facts, node_files, node_module

INSTANCE, HOST, ADDRESS = "i-0123456789abcdef0", "ip-10-20-17-4", "10.20.17.4"
METADATA = {"instance-id": INSTANCE, "local-ipv4": ADDRESS}
SECOND = 1_000_000  # microseconds, in which the journal counts
BOOT_TIME = 1_790_000_000


def entry(message: Any, number: int = 0, **fields: Any) -> dict[str, Any]:
    """An entry as `journalctl --output=json` prints it."""
    return {
        "MESSAGE": message,
        "SYSLOG_IDENTIFIER": "oq-celery",
        "_PID": "17",
        "__REALTIME_TIMESTAMP": str((BOOT_TIME + number) * SECOND),
        "__CURSOR": f"s=abc;i={number}",
    } | fields


@pytest.fixture
def journal(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The worker's program, whose file system and state are below tmp_path."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "state").mkdir()
    told = node_facts(record(), "worker") | {
        "nfs_dir": str(tmp_path),
        "logs_dir": str(tmp_path / "logs"),
    }
    with node_module("journal", told) as module:
        monkeypatch.setattr(module, "metadata", METADATA.__getitem__)
        monkeypatch.setattr(module.socket, "gethostname", lambda: HOST)
        monkeypatch.setattr(module.os.path, "ismount", lambda path: path == str(tmp_path))
        yield module


@pytest.fixture
def log(journal: Any, tmp_path: Path) -> Any:
    return journal.Log(tmp_path / "logs", tmp_path / "state")


def write(journal: Any, log: Any, *messages: str, begin: int = 0) -> None:
    """Let the worker copy these messages, one entry each."""
    said = [entry(message, begin + number) for number, message in enumerate(messages)]
    log.append("".join(map(journal.line, said)), said[-1]["__CURSOR"])


def test_an_entry_is_a_line_with_its_time_and_who_said_it(journal: Any) -> None:
    assert journal.line(entry("ready")) == "2026-09-21T14:13:20.000+00:00 oq-celery[17]: ready\n"
    assert journal.line(entry("Out of memory", SYSLOG_IDENTIFIER="kernel", _PID="1")).endswith(
        " kernel[1]: Out of memory\n"
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Traceback:\n  File", "Traceback:\n      File"),  # no task can make up an entry of another
        ([0x6F, 0x71, 0xFF], "oq\ufffd"),
        (["a", "b"], "a b"),
        (None, ""),
        ("\x1b[2Jgone\x07", "?[2Jgone?"),
    ],
)
def test_what_is_no_plain_line_becomes_harmless_text(journal: Any, message: Any, text: str) -> None:
    assert journal.line(entry(message)).partition(": ")[2] == text + "\n"


def test_the_place_in_the_journal_is_kept_after_the_lines_are_on_the_file_server(
    journal: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round, what a crash in between takes would never be copied."""
    order: list[str] = []
    monkeypatch.setattr(journal.os, "fsync", lambda _file: order.append(f"fsync, {log.cursor!r} before"))
    write(journal, log, "one", "two")
    assert order == ["fsync, '' before"]
    assert log.cursor == "s=abc;i=1"


def test_nothing_is_written_below_a_mount_point_without_its_file_system(
    journal: Any, log: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(journal.os.path, "ismount", lambda _path: False)
    with pytest.raises(OSError, match="is not mounted"):
        write(journal, log, "lost?")
    assert list((tmp_path / "logs").iterdir()) == []
    assert log.cursor == ""


def test_a_worker_keeps_two_files_of_a_limited_size(
    journal: Any, log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FILE_BYTES", 1000)
    for number in range(50):
        write(journal, log, f"line {number}", begin=number)
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == [f"{INSTANCE}.log", f"{INSTANCE}.log.1"]
    assert all(file.stat().st_size < 1200 for file in files)
    assert all(file.read_text().startswith(f"-- {INSTANCE} {HOST} {ADDRESS}\n") for file in files)
    last = cli.last_lines(files[0], 20)
    assert [text.split(": ")[1] for text in last] == [f"line {number}\n" for number in range(30, 50)]


def test_an_error_is_said_once_and_the_copy_begins_again_where_it_was(
    journal: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    begun: list[str] = []
    attempts = iter([OSError("No space left"), OSError("No space left"), None])

    def copy(log: Any) -> None:
        begun.append(log.cursor)
        if error := next(attempts):
            raise error
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other tests leave threads behind

    (tmp_path / "state/cursor").write_text("s=abc;i=7")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(journal, "copy", copy)
    monkeypatch.setattr(journal, "say", said.append)
    monkeypatch.setattr(journal.time, "sleep", lambda _seconds: None)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        journal.main()
    finally:
        signal.sigwait({signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert begun == ["s=abc;i=7"] * 3
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_worker_that_says_nothing_still_shows_that_it_lives(
    journal: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(journal, log, "one")
    os.utime(log.path, (BOOT_TIME, BOOT_TIME))
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0)
    monkeypatch.setattr(journal, "entries", lambda _cursor: iter([[]]))
    journal.copy(log)
    assert log.path.stat().st_mtime > BOOT_TIME
    assert cli.last_lines(log.path, 10)[0].endswith("one\n")


def test_a_worker_that_falls_silent_with_a_full_file_is_listed_and_shows_that_it_lives(
    journal: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FILE_BYTES", 1)
    write(journal, log, "the last word")
    log.beat()
    assert [worker.instance for worker in cli.workers(log.path.parent, 0)] == [INSTANCE]
    assert cli.last_lines(log.path, 10)[0].endswith(": the last word\n")


def test_a_worker_is_alive_for_three_signs_of_life(journal: Any, log: Any) -> None:
    write(journal, log, "one")
    heard = log.path.stat().st_mtime
    beat = 20
    assert beat == journal.BEAT_SECONDS
    for seconds, alive in ((0, True), (3 * beat - 1, True), (3 * beat + 1, False)):
        (found,) = cli.workers(log.path.parent, heard + seconds)
        assert (found.instance, found.host, found.address, found.alive) == (INSTANCE, HOST, ADDRESS, alive)


@pytest.mark.parametrize("name", [INSTANCE, HOST, f"openquake@{HOST}", f"{HOST}/1234", ADDRESS])
def test_a_worker_is_found_by_each_of_its_names(journal: Any, log: Any, name: str) -> None:
    write(journal, log, "one")
    found = cli.workers(log.path.parent, 0)
    assert cli.matching(found, name) == found
    assert cli.matching(found, "0" + name) == []


def run(directory: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as oq-node starts it."""
    command = [sys.executable, "-c", "from oq_logs.cli import main; main()", str(directory), "eu-central-1"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([*command, *words], text=True, env=environment, **streams)


def test_of_two_workers_with_one_address_the_last_heard_is_shown_and_the_other_named(
    journal: Any, log: Any
) -> None:
    write(journal, log, "said by the second")
    earlier = log.path.with_name("i-0000.log")
    earlier.write_text(f"-- i-0000 {HOST} {ADDRESS}\nsaid by the first\n")
    os.utime(earlier, (BOOT_TIME, BOOT_TIME))
    done = run(log.path.parent, ADDRESS)
    assert done.stdout.endswith(": said by the second\n")
    assert "i-0000" in done.stderr
    assert run(log.path.parent, "i-0000").stdout == "said by the first\n"


def test_the_list_and_a_worker_without_a_log_say_what_to_do(journal: Any, log: Any, tmp_path: Path) -> None:
    assert run(log.path.parent).stdout == "no worker has left a log yet\n"
    write(journal, log, "one", "two")
    assert f"{INSTANCE}  {HOST}  {ADDRESS}" in run(log.path.parent).stdout
    assert run(log.path.parent, "--json").stdout.startswith('[{"instance": "i-')
    assert run(log.path.parent, INSTANCE, "--lines", "1").stdout.endswith(": two\n")
    unknown = run(log.path.parent, "i-0fff")
    assert unknown.returncode == 1
    assert "get-console-output --region eu-central-1 --instance-id i-0fff" in unknown.stderr
    away = run(tmp_path / "nothing")
    assert (away.returncode, "sudo oq-node status" in away.stderr) == (1, True)


@pytest.mark.parametrize("words", [[], [INSTANCE], [INSTANCE, "--follow"]])
def test_a_reader_that_has_ended_is_no_fault_of_the_file_system(
    journal: Any, log: Any, words: list[str]
) -> None:
    write(journal, log, "one", "two")
    reader, writer = os.pipe()
    os.close(reader)
    done = run(log.path.parent, *words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (130, "")


def test_what_comes_later_is_followed_into_the_next_file(
    journal: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oq_logs.cli.time.sleep", lambda _seconds: None)
    write(journal, log, "before")
    new = cli.follow(log.path)
    assert next(new) == ""
    write(journal, log, "later")
    assert next(new).endswith(": later\n")
    write(journal, log, "end of the file")
    monkeypatch.setattr(journal, "FILE_BYTES", 1)
    write(journal, log, "next")
    said = [text.rpartition(": ")[2] for text in next(new).splitlines()]
    assert said == ["end of the file", f"-- {INSTANCE} {HOST} {ADDRESS}", "next"]


@pytest.mark.parametrize("mode", [NAT, ENDPOINTS_DISKLESS])
def test_only_workers_copy_their_journal_and_nothing_depends_on_it(record: Record, mode: str) -> None:
    path = f"/etc/systemd/system/{facts.JOURNAL_UNIT}"
    recording = record(**MODES[mode])
    assert not [name for name in node_files(recording, "master") if "journal.py" in name or name == path]
    written = node_files(recording, "worker")
    unit = written[path]
    assert "CapabilityBoundingSet=\n" in unit
    assert "UMask=0027\n" in unit
    assert f"Before={facts.CELERY_UNIT} {facts.DRAIN_UNIT}\n" in unit  # so it is stopped after them
    dependent = [
        name for name, text in written.items() if name.endswith(".service") and facts.JOURNAL_UNIT in text
    ]
    assert dependent == []


def test_logs_that_nobody_writes_any_more_go_after_their_days_by_the_time_of_the_last_word(
    record: Record,
) -> None:
    rules = node_files(record(), "master")["/etc/tmpfiles.d/openquake.conf"].splitlines()
    assert f"e {facts.LOGS_DIR} - - - m:{facts.LOG_DAYS}d" in rules


def test_the_directory_of_the_logs_is_not_below_one_that_users_write() -> None:
    assert not facts.LOGS_DIR.startswith(facts.SHARED_DIR)
