"""What CONTRIBUTING.md, SECURITY.md and CHANGELOG.md name is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from components.settings import KEYS

PROJECT = Path(__file__).parent.parent.parent
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()
CHANGELOG = (PROJECT / "CHANGELOG.md").read_text()
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
ROWS = [
    line for line in CONTRIBUTING.splitlines() if line.startswith("| ") and not line.startswith("| to … |")
]


def named(text: str) -> list[str]:
    """The paths that a text names in code quotes."""
    quoted = re.findall(r"`([^`\s]+)`", text)
    return [name for name in quoted if "/" in name or name.endswith((".md", ".toml", ".yaml", ".in"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_kind_of_change_names_files_that_exist(row: str) -> None:
    assert [name for name in named(row) if not (PROJECT / name).exists()] == []
    _, _, change, tests, _ = row.split("|")
    assert named(change)
    assert named(tests) or "make" in tests or tests.strip() == "all of them"


def test_a_file_that_is_not_there_would_be_seen() -> None:
    assert named("in `components/facts.py`, and `make docs`") == ["components/facts.py"]
    assert not (PROJECT / named("`components/nothing.py`")[0]).exists()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_and_paths_lead_somewhere(name: str) -> None:
    text = (PROJECT / name).read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in [*links, *named(text)] if not (PROJECT / link).exists()] == []


def test_every_command_that_is_named_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    texts = CONTRIBUTING + CHANGELOG
    named_ones = set(re.findall(r"\bmake ([a-z]+)(?=[`\s,;])", texts))
    assert {"check", "docs", "unit"} <= named_ones
    assert named_ones <= targets


def test_the_audit_looks_at_every_lock_file() -> None:
    (names,) = re.findall(r"^LOCKS := (.*\\\n.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    ours = [path for pattern in ("*.txt", "[a-z]*/*.txt") for path in PROJECT.glob(pattern)]
    locks = {str(path.relative_to(PROJECT)) for path in ours if "--hash=" in path.read_text()}
    assert set(names.replace("\\", "").split()) == locks


def test_the_version_is_the_last_one_that_the_changelog_and_the_recorded_states_know() -> None:
    headings = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == VERSION
    recorded = {path.stem for path in (PROJECT / "tests/engine/releases").glob("*.json")}
    assert recorded == set(headings[1:])


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))
    assert "Added" in kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_names_settings_that_exist() -> None:
    unreleased = CHANGELOG.partition("### Changed")[0]
    settings = unreleased[unreleased.index("Settings") : unreleased.index("The output")]
    named_ones = set(re.findall(r"`(\w+)`", settings))
    assert named_ones
    assert named_ones <= KEYS.keys()


def test_security_md_promises_no_address_to_write_to_but_the_repositorys_advisories() -> None:
    text = (PROJECT / "SECURITY.md").read_text()
    assert "private security advisory" in text
    assert not re.search(r"\w@\w", text)


def test_docstrings_are_of_one_dialect() -> None:
    """Sections of Google's style, and Markdown's code quotes; nothing of reStructuredText."""
    of_another = re.compile(r"^ +:(?:param|ivar|raises|return)\b|``|:(?:class|func|meth):`", re.MULTILINE)
    found = [
        f"{path.relative_to(PROJECT)}: {match.group()}"
        for top in (
            "benchmarks",
            "client",
            "cloud-init",
            "components",
            "docs",
            "engine",
            "explorer",
            "lab",
            "policy",
            "tests",
        )
        for path in (PROJECT / top).rglob("*.py")
        if ".venv" not in path.parts and path != Path(__file__)
        for match in of_another.finditer(path.read_text())
    ]
    assert found == []
