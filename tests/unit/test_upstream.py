"""The table of upstream's names against the sources that use them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import upstream

PROJECT = Path(__file__).parent.parent.parent
SOURCES = [
    path
    for folder in (*sorted(PROJECT.glob("engine/oq_*")), PROJECT / "cloud-init", PROJECT / "lab")
    for path in sorted(folder.rglob("*.py"))
]
# What a local name stands for where oq_celery is handed a module or a class of the engine.
HANDED = {
    "parallel": "openquake.baselib.parallel",
    "engine": "openquake.engine.engine",
    "actions": "openquake.server.db.actions",
    "views": "openquake.server.views",
    "logs": "openquake.commonlib.logs",
    "hdf5": "openquake.baselib.hdf5",
    "performance": "openquake.baselib.performance",
    "datastore": "openquake.commonlib.datastore",
    "zeromq": "openquake.baselib.zeromq",
    "multi_fault": "openquake.hazardlib.source.multi_fault",
    "starmap": "openquake.baselib.parallel.Starmap",
    "dstore": "openquake.commonlib.datastore.DataStore",
}
ADDED = {  # of ours, for the DbServer to call
    ("openquake.server.db.actions", name)
    for name in ("abort_unfinished", "last_number", "skip_numbers", "submit")
}


def known(name: str) -> bool:
    """Whether a dotted name is in the table: a module, or a name of one."""
    module, _, word = name.rpartition(".")
    return name in upstream.NAMES or word in upstream.NAMES.get(module, "").split()


def imported(tree: ast.AST) -> Iterator[str]:
    """What a source imports of the engine, and modules of it that it names in a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("openquake."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("openquake"):
            yield from (f"{node.module}.{name.name}".removesuffix(".*") for name in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"openquake(\.[a-z_0-9]+)+", node.value)
            and not node.value.endswith((".service", ".cfg", ".engine"))
        ):
            yield node.value


def touched(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The attributes of what `HANDED` names: pairs of a dotted name and an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in HANDED:
            yield HANDED[node.value.id], node.attr


def test_everything_that_is_imported_of_the_engine_is_in_the_table() -> None:
    found = {name for path in SOURCES for name in imported(ast.parse(path.read_text()))}
    assert len(found) > 20
    assert sorted(name for name in found if not known(name)) == []


def test_an_import_that_is_not_in_the_table_is_seen() -> None:
    tree = ast.parse(
        "from openquake.baselib.general import humansize, nowhere\nimport openquake.hazardlib.gsim\n"
        'name = "openquake.commands.plot"'
    )
    assert sorted(name for name in imported(tree) if not known(name)) == [
        "openquake.baselib.general.nowhere",
        "openquake.commands.plot",
        "openquake.hazardlib.gsim",
    ]


def test_the_modules_that_the_hook_knows_are_in_the_table() -> None:
    tree = ast.parse((PROJECT / "engine/oq_celery/hook.py").read_text())
    (around,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "_AROUND"
    ]
    assert isinstance(around, ast.Dict)
    modules = {key.value for key in around.keys if isinstance(key, ast.Constant)}
    assert len(modules) > 5
    assert modules - {"numba.core.codegen"} <= upstream.NAMES.keys()


# startup.py changes numba, and its `engine` is LLVM's.
OF_THE_ENGINE = [path for path in SOURCES if path.parent.name == "oq_celery" and path.name != "startup.py"]


@pytest.mark.parametrize("path", OF_THE_ENGINE, ids=lambda path: path.stem)
def test_the_attributes_that_oq_celery_takes_of_the_engine_are_in_the_table(path: Path) -> None:
    table = {**upstream.NAMES, **upstream.MEMBERS}
    found = set(touched(ast.parse(path.read_text()))) - ADDED
    assert sorted((name, word) for name, word in found if word not in table[name].split()) == []


def test_an_attribute_that_is_not_in_the_table_is_seen() -> None:
    assert list(touched(ast.parse("parallel.nowhere = starmap.nothing"))) == [
        ("openquake.baselib.parallel", "nowhere"),
        ("openquake.baselib.parallel.Starmap", "nothing"),
    ]


def test_the_columns_that_statements_name_are_in_the_table() -> None:
    words = {word for columns in upstream.COLUMNS.values() for word in columns.split()} | {
        "job",
        "log",
        "output",
    }
    sql = {
        "select",
        "from",
        "where",
        "and",
        "or",
        "in",
        "like",
        "is",
        "null",
        "order",
        "by",
        "desc",
        "limit",
        "update",
        "set",
    }
    sql |= {"insert", "into", "values", "datetime", "status", "x", "d", "now", "begin", "immediate"}
    sql |= {"coalesce", "max", "as", "number", "sqlite_sequence", "name", "seq", "not", "exists"}
    sql |= {"with", "recursive", "dependent", "union", "join", "on", "count"}
    statements = [
        text
        for path in sorted((PROJECT / "engine/oq_celery").glob("*.py"))
        for text in re.findall(r'"((?:SELECT|UPDATE|INSERT)\b.*?)"', path.read_text(), re.DOTALL)
    ]
    assert len(statements) > 8
    for text in statements:
        plain = re.sub(r"'[^']*'", "", text)
        assert set(re.findall(r"[a-z_]+", plain.lower())) - words - sql == set(), text


def test_the_table_is_of_the_version_that_the_nodes_install() -> None:
    text = (PROJECT / "engine/requirements.in").read_text()
    assert f"openquake.engine=={upstream.ENGINE}" in text
