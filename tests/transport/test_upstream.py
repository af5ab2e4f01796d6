"""What the installed engine lacks of the names that this project touches: nothing. And what its tasks must not do."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from tests.transport import harness
from tests.transport.engine_tasks import engine_tasks

PROJECT = Path(__file__).parent.parent.parent
ENGINE_PYTHON = PROJECT / ".venv-engine/bin/python"


def lacks(*code: str) -> list[str]:
    """What the engine lacks, a line for each, after some code has changed the table."""
    program = "\n".join(("import upstream", *code, "print(*upstream.missing(), sep='\\n')"))
    done = subprocess.run(
        [ENGINE_PYTHON, "-c", program], cwd=PROJECT / "engine", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_installed_engine_has_every_name_of_the_table() -> None:
    assert [line for line in lacks() if line] == []


def test_each_kind_of_name_that_is_missing_is_said() -> None:
    changes = (
        "upstream.NAMES = {**upstream.NAMES, 'openquake.baselib.general': 'humansize oldsize', 'openquake.gone': 'x'}",
        "upstream.MEMBERS = {'openquake.baselib.parallel.Starmap': 'socket sockets', 'openquake.gone.Class': 'x'}",
        "upstream.PARAMETERS = {'openquake.commands.reset.main': 'yes no', 'openquake.commands.reset.sub': 'x'}",
        "upstream.COLUMNS = {'job': 'id number', 'jobs': 'id'}",
        "upstream.SETTINGS = {'dbserver': 'port ports', 'webui': 'key'}",
        "upstream.TEXTS = {'openquake.engine.engine': 'oq-job- oq-task-'}",
    )
    assert lacks(*changes) == [
        "openquake.baselib.general.oldsize",
        "openquake.gone",
        "openquake.baselib.parallel.Starmap.sockets",
        "openquake.gone.Class.x",
        "openquake.commands.reset.main(no)",
        "openquake.commands.reset.sub(x)",
        "table job: number",
        "table jobs: id",
        "openquake.cfg [dbserver] ports",
        "openquake.cfg [webui] key",
        "openquake.engine.engine: 'oq-task-'",
    ]


def test_tasks_that_write_files_ask_for_the_masters_own_processes() -> None:
    """Two attempts on workers would write twice: `save_rates` would double the rates, and nobody would know."""
    package = harness.QA_TESTS.parent
    handed = engine_tasks(package)
    for place in handed["save_rates"] | handed["export_csv"]:
        file, _, line = place.partition(":")
        tree = ast.parse((package / file).read_text(encoding="utf-8"))
        (call,) = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and node.lineno == int(line)
            and ast.unparse(node.func).endswith("Starmap")
        )
        assert {one.arg: ast.unparse(one.value) for one in call.keywords}["distribute"] == "'processpool'", (
            place
        )
