"""What a command that leaves its terminal says there at its end; tests/transport show the rest, with the engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ENGINE = Path(__file__).parent.parent.parent / "engine"
SPOKEN = 300_000  # more than a pipe holds
PROGRAM = f"""
from oq_celery import terminal

terminal._has_terminal = lambda: True
terminal.outlive(["oq", "engine", "--run", "job.ini"])
print("x" * {SPOKEN})
print("the last line")
"""


def test_a_slow_reader_of_a_terminal_that_does_not_wait_gets_the_last_line_too() -> None:
    """A pipe stands for the terminal here: another program, of the same shell, has made it so."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writer, cwd=ENGINE) as process:
        os.close(writer)
        time.sleep(2)  # in which all is said, and copied as far as the pipe holds it
        with os.fdopen(reader, "rb") as file:
            said = file.read()
        assert process.wait(10) == 0
    assert len(said) == SPOKEN + len("\nthe last line\n")
    assert said.endswith(b"\nthe last line\n")
