"""Runs of these tests beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.linux import host
from lab.linux.host import Paths
from tests.lab.conftest import own_name

pytestmark = pytest.mark.lab


def test_two_runs_have_labs_of_two_names_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    with own_name() as one:
        with own_name() as other:
            assert one != other
            left = host.start(Paths(other, tmp_path), ["sleep", "600"], tmp_path / "log")
            # The kernel shows a new program's environment, by which it is found, some time after it shows the program.
            host.wait_until("the process", lambda: left.pid in host.processes(Paths(other, tmp_path)), 60)
        # Mostly the same name, if not a run beside this one has it: whoever has it next removes what was left.
        try:
            with own_name() as again:
                assert again != one
                assert left.wait(60) == -9
        finally:
            left.kill()
