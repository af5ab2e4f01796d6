"""The tutorial's commands exist, and its files fit together; tests/transport/test_tutorial.py computes its job."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from oq_cluster import cli

from docs.tutorial import map as hazard_map
from lab import cli as lab_cli

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tutorial.md").read_text()
MODEL = """<nrml xmlns="http://openquake.org/xmlns/nrml/0.5" xmlns:gml="http://www.opengis.net/gml"><sourceModel>
<areaSource><areaGeometry><gml:Polygon><gml:posList>25 35 26 35 26 36</gml:posList></gml:Polygon></areaGeometry>
</areaSource></sourceModel></nrml>"""
MAP = "#,,,from the engine\nlon,lat,PGA-0.1,SA(1.0)-0.1\n25,35,.1,.2\n26,35,.2,.3\n26,36,.3,.4\n25,36,.4,.5\n"


def commands(program: str) -> list[list[str]]:
    """The words after a program's name in the indented lines and the code quotes of the tutorial."""
    lines = re.findall(rf"^    {re.escape(program)} (.+)$", TEXT, re.MULTILINE)
    quoted = re.findall(rf"`{re.escape(program)} ([^`]+)`", TEXT)
    return [shlex.split(line, comments=True) for line in lines + quoted]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/hazard_map-mean_2.csv").write_text(MAP)
    return tmp_path / "results"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/sources.xml").write_text(MODEL)
    return tmp_path / "model"


def test_each_command_of_oq_cluster_is_one_with_these_options() -> None:
    found = [words for words in commands("oq-cluster") if len(words) > 1 or words[0] in ("workers", "list")]
    assert len(found) > 12
    for words in found:
        cli.parser().parse_args([re.sub(r"^ID$", "1", word) for word in words])


def test_each_command_of_the_lab_is_one_with_these_options() -> None:
    found = commands(".venv/bin/python -m lab")
    assert {words[0] for words in found} == {"up", "down", "kill"}
    for words in found:
        lab_cli._parser().parse_args(words)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("words", commands("python map.py"), ids=lambda words: words[-1])
def test_the_maps_are_drawn_by_the_commands_that_the_tutorial_names(
    words: list[str], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results.rename(words[0])
    hazard_map.main(words)
    assert Path(words[2]).read_bytes().startswith(b"\x89PNG")
    assert (DOCS / "tutorial" / words[2]).exists(), "the tutorial shows it"


def test_a_map_has_the_sites_and_values_of_the_export(results: Path) -> None:
    column, sites = hazard_map.read_map(results, "SA(1.0)")
    assert column == "SA(1.0)-0.1"
    assert sites[0] == (25.0, 35.0, 0.2)


def test_the_outline_of_an_area_source_is_closed(model: Path) -> None:
    assert list(hazard_map.outlines(model)) == [([25.0, 26.0, 26.0, 25.0], [35.0, 35.0, 36.0, 35.0])]


def test_a_measure_that_was_not_computed_is_an_error_with_those_that_were(results: Path) -> None:
    with pytest.raises(SystemExit, match=r"no PGV; choose one of: PGA, SA\(1\.0\)"):
        hazard_map.read_map(results, "PGV")


def test_a_folder_without_a_map_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="oq-cluster get ID"):
        hazard_map.read_map(tmp_path, "PGA")


def test_the_costs_are_those_of_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    (month,) = re.findall(r"`Pulumi.dev.yaml` \| \*\*an idle month\*\* \| \*\*(\d+)\*\*", readme)
    (hour,) = re.findall(
        r"`Pulumi.dev.yaml` \| an hour with all 4 workers, master and the rest included \| ([\d.]+)", readme
    )
    assert f"costs ${int(month) / 730:.2f} an hour without a calculation" in TEXT
    assert set(re.findall(r"about\s+\$([\d.]+) an hour", TEXT)) == {hour}


def test_the_pictures_are_small() -> None:
    pictures = list((DOCS / "tutorial").glob("*.png"))
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
