"""The layers of lab/: each package may import those before it, and nothing of the cluster imports the lab."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
# A package and those that it may import, besides itself and lab/base.py.
MAY_IMPORT: dict[str, set[str]] = {
    "aws": set(),
    "region": {"aws"},
    "linux": {"aws"},
    "services": {"aws", "linux"},
    "cluster": {"aws", "region", "linux", "services"},
    "vm": {"aws", "linux", "services", "cluster"},
    "trials": {"aws", "region", "linux", "services", "cluster"},
}
THE_CLUSTERS = ("__main__.py", "components", "cloud-init", "engine", "client")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, also those that it imports as names of a package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def packages_of(path: Path) -> set[str]:
    """The packages of the lab that a file imports."""
    parts = [module.split(".") for module in imported(path)]
    return {found[1] for found in parts if found[0] == "lab" and len(found) > 1} - {"base"}


def test_every_folder_of_the_lab_with_programs_is_a_package_with_a_sentence() -> None:
    packages = {path.parent.name for path in (PROJECT / "lab").glob("*/__init__.py")}
    assert packages == MAY_IMPORT.keys()
    for package in packages:
        text = (PROJECT / "lab" / package / "__init__.py").read_text()
        assert (ast.get_docstring(ast.parse(text)) or "").endswith("."), package


def test_the_labs_commands_do_not_load_what_takes_longer_than_most_of_them() -> None:
    """Each command of oq-cluster --lab starts some of them."""
    program = "import lab.cli, sys; print(*{'pulumi', 'botocore', 'yaml', 'numpy'} & {*sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_before_it(package: str) -> None:
    files = list((PROJECT / "lab" / package).rglob("*.py"))
    assert files
    for path in files:
        assert packages_of(path) <= MAY_IMPORT[package] | {package}, path


def test_the_policy_pack_imports_facts_and_nothing_else_of_the_project_and_nobody_needs_it() -> None:
    ours = {"components", "lab", "tests", "docs", "explorer", "benchmarks", "oq_celery", "oq_node"}
    files = list((PROJECT / "policy").glob("*.py"))
    assert len(files) > 5
    modules = {module for path in files for module in imported(path) if module.split(".")[0] in ours}
    assert modules == {"components", "components.facts"}
    for name in ("components", "cloud-init", "engine", "lab"):
        for path in (PROJECT / name).rglob("*.py"):
            assert not [module for module in imported(path) if module.split(".")[0] == "policy"], path


def test_the_client_imports_nothing_else_of_the_project_and_only_documents_and_tests_import_it() -> None:
    files = list((PROJECT / "client/oq_cluster").glob("*.py"))
    assert len(files) > 10
    allowed = {"oq_cluster", "boto3", "botocore", "requests", "__future__", *sys.stdlib_module_names}
    for path in files:
        assert {module.split(".")[0] for module in imported(path)} <= allowed, path
    for name in ("components", "cloud-init", "engine", "lab", "policy"):
        for path in (PROJECT / name).rglob("*.py"):
            assert not [module for module in imported(path) if module.split(".")[0] == "oq_cluster"], path


def test_nothing_of_the_cluster_imports_the_lab() -> None:
    files = [
        path
        for name in THE_CLUSTERS
        for path in ([PROJECT / name] if name.endswith(".py") else (PROJECT / name).rglob("*.py"))
    ]
    assert len(files) > 30
    for path in files:
        assert not [module for module in imported(path) if module.split(".")[0] in ("lab", "tests")], path
