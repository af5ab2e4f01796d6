"""The files of large payloads, without a broker: what others see of them, and what is left when it goes wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.transport.processes import ENGINE, run

pytestmark = pytest.mark.skipif(
    not (ENGINE / "bin/oq-celery").exists(), reason="no engine: make .venv-engine/.done"
)


def python(directory: Path, code: str, umask: int = 0o022) -> str:
    """Run code in the engine's environment with `channel`, the directory of a channel; what it printed."""
    prepared = f"from pathlib import Path; channel = Path({str(directory)!r}, 'spool', 'oq.user.1')\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OQ_")}
    before = os.umask(umask)
    try:
        result = run([ENGINE / "bin/python", "-c", prepared + textwrap.dedent(code)], environment)
    finally:
        os.umask(before)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_a_file_that_cannot_be_removed_ends_no_job_and_is_named_once(tmp_path: Path) -> None:
    found = python(
        tmp_path,
        """
        import logging
        from oq_celery import spool
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        references = spool.References(channel)
        def stale(self, missing_ok=False):
            raise OSError(116, "Stale file handle", str(self))
        Path.unlink = stale
        for number in range(3):
            references.retain([f"{channel}/file-{number}"])
            references.release([f"{channel}/file-{number}"])
        print("goes on")
        """,
    )
    assert "goes on" in found
    assert found.count("WARNING") == 1
    assert "Stale file handle" in found


def test_files_are_counted_by_name_though_machines_see_the_directory_under_other_paths(
    tmp_path: Path,
) -> None:
    found = python(
        tmp_path,
        """
        from oq_celery import spool
        alias = channel.parent.with_name("alias")
        stored = spool.write(channel / "file", b"content")
        alias.symlink_to(channel.parent)
        references = spool.References(channel)
        references.retain([stored.path])
        references.retain([str(alias / channel.name / "file")])
        references.release([stored.path])
        print(Path(stored.path).exists())
        references.release([stored.path])
        print(Path(stored.path).exists())
        """,
    )
    assert found.split() == ["True", "False"]


def test_nobody_ever_sees_a_directory_with_other_rights(tmp_path: Path) -> None:
    """Each step of making it, as another process sees it."""
    found = python(
        tmp_path,
        """
        import os
        import sys
        def look(event, _):
            if event.startswith("os.") or event == "open":
                for path in (channel.parent, channel):
                    if os.path.lexists(path):
                        seen.add(oct(os.stat(path).st_mode & 0o7777))
        seen = set()
        from oq_celery import spool
        sys.addaudithook(look)
        spool.write(channel / "file", b"content")
        spool.write(channel / "other", b"content")
        print(seen, os.listdir(channel.parent), sorted(os.listdir(channel)))
        """,
    )
    assert found.strip() == "{'0o2770'} ['oq.user.1'] ['file', 'other']"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_group_can_read_a_file_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    python(tmp_path, "from oq_celery import spool; spool.write(channel / 'file', b'content')", umask)
    mode = (tmp_path / "spool/oq.user.1/file").stat().st_mode
    assert mode & stat.S_IRGRP
    assert not mode & stat.S_IWOTH


@pytest.mark.parametrize("when", ["append", "close"])
def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path, when: str) -> None:
    found = python(
        tmp_path,
        f"""
        from oq_celery import spool
        def full(self, *_):
            raise OSError(28, "No space left on device")
        spool.Writer.{when} = full
        try:
            spool.write(channel / "file", b"content")
        except OSError as error:
            print(error, list(channel.iterdir()))
        """,
    )
    assert found.strip() == "[Errno 28] No space left on device []"


def test_a_file_costs_few_operations_on_names(tmp_path: Path) -> None:
    """On NFS each takes milliseconds."""
    found = python(
        tmp_path,
        """
        import sys
        from openquake.baselib.parallel import Pickled
        from oq_celery import spool
        operations = []
        def look(event, arguments):
            if event == "open" or event.startswith("os."):
                operations.extend(event for argument in arguments if str(argument).startswith(str(channel)))
        spool.write(channel / "first", b"makes the directory")
        references = spool.References(channel)
        pickled = Pickled(bytes(1_000_000))
        sys.addaudithook(look)
        stored = spool.write(channel / "file", pickled.pik)
        references.retain([stored.path])
        assert len(spool.StoredPickle(pickled, stored).unpickle()) == 1_000_000
        references.release([stored.path])
        print(*operations)
        """,
    )
    assert found.split() == ["open", "open", "os.remove"]


def test_what_is_read_at_any_time_is_whole_and_replaced_in_one_step(tmp_path: Path) -> None:
    found = python(
        tmp_path,
        """
        from oq_celery import spool
        for content in (b"old", b"new"):
            spool.replace(channel / "progress.json", content)
        print((channel / "progress.json").read_text(), [path.name for path in channel.iterdir()])
        """,
    )
    assert found.strip() == "new ['progress.json']"


def test_processes_that_make_the_same_directory_at_once_all_succeed(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from oq_celery import spool
        channels = [Path({str(tmp_path)!r}, "spool", f"oq.user.{{number}}") for number in range(200)]
        print("ready", flush=True)
        sys.stdin.readline()
        for channel in channels:
            spool.write(channel / sys.argv[1], b"content")
        """
    )
    processes = [
        subprocess.Popen(
            [ENGINE / "bin/python", "-c", code, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "three")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("\n")
    assert [process.returncode for process in processes] == [0, 0, 0]
    made = sorted((tmp_path / "spool").iterdir())
    assert len(made) == 200
    assert all(len(list(channel.iterdir())) == 3 for channel in made)
