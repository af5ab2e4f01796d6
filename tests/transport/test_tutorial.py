"""The tutorial's job, on a coarser grid: the engine's package has its model, workers compute it, the map is drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from docs.tutorial import map as hazard_map
from tests.transport import harness, processes
from tests.transport.harness import Cluster

DOCS = processes.ROOT / "docs"
TEXT = (DOCS / "tutorial.md").read_text()
COARSE = "area_source_discretization=50,width_of_mfd_bin=0.5"


def test_the_tutorials_job_gives_a_map(cluster: Cluster, tmp_path: Path) -> None:
    (folder,) = re.findall(r"'openquake/qa_tests_data/(\S+)/\*'", TEXT)
    shutil.copytree(harness.QA_TESTS / folder, tmp_path / "model")
    shutil.copy(DOCS / "tutorial/job.ini", tmp_path)
    lines = (DOCS / "tutorial/sites.csv").read_text().splitlines()
    (tmp_path / "sites.csv").write_text("\n".join([lines[0], *lines[1::70]]) + "\n")
    exports = f"export_dir={tmp_path}"
    job = cluster.run(tmp_path / "job.ini", options=["--exports", "csv", "--param", f"{COARSE},{exports}"])
    assert job.status == 0, job.output
    column, sites = hazard_map.read_map(tmp_path, "PGA")
    assert column == "PGA-0.1"
    assert len(sites) == len(lines[1::70])
    assert 0.1 < max(value for _, _, value in sites) < 2
    hazard_map.draw(tmp_path, tmp_path / "model", tmp_path / "map.png", "PGA")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_tutorial_downloads_the_engine_that_the_nodes_have() -> None:
    (pinned,) = re.findall(
        r"^openquake\.engine==(\S+)$", (processes.ROOT / "engine/requirements.in").read_text(), re.M
    )
    assert set(re.findall(r"openquake\.engine==(\S+)|openquake_engine-([\d.]+)-py3", TEXT)) == {
        (pinned, ""),
        ("", pinned),
    }
