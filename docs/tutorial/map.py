"""Draw a hazard map that the engine has exported, with the outlines of the area sources: docs/tutorial.md.

    python map.py RESULTS MODEL PICTURE [--measure "SA(1.0)"]

RESULTS is the folder with `hazard_map-mean_*.csv`, MODEL the one with the source models. Needs matplotlib alone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

POSITIONS = ".//{*}areaGeometry//{*}posList"


def read_map(results: Path, measure: str) -> tuple[str, list[tuple[float, float, float]]]:
    """The mean hazard map of the newest calculation in a folder.

    Args:
        results: the folder with the engine's exports.
        measure: an intensity measure, such as "PGA".

    Returns:
        The name of its column, such as "PGA-0.1"; longitude, latitude (degrees) and acceleration (g) of each site.

    Raises:
        SystemExit: there is no such export, or the measure is not in it.
    """
    files = sorted(results.glob("hazard_map-mean_*.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        sys.exit(
            f"{results}: no hazard_map-mean_*.csv; download the outputs with oq-cluster get ID --out {results}"
        )
    with files[-1].open() as text:
        rows = list(csv.DictReader(line for line in text if not line.startswith("#")))
    columns = [name for name in rows[0] if name.startswith(f"{measure}-")]
    if not columns:
        known = sorted({name.rpartition("-")[0] for name in rows[0]} - {""})
        sys.exit(f"{files[-1]}: no {measure}; choose one of: {', '.join(known)}")
    return columns[0], [(float(row["lon"]), float(row["lat"]), float(row[columns[0]])) for row in rows]


def outlines(model: Path) -> Iterator[tuple[list[float], list[float]]]:
    """Longitudes and latitudes of the outline of each area source below a folder, closed."""
    for path in sorted(model.rglob("*.xml")):
        for positions in ElementTree.parse(path).iterfind(POSITIONS):  # noqa: S314 - the user's own model
            numbers = [float(number) for number in (positions.text or "").split()]
            yield [*numbers[::2], numbers[0]], [*numbers[1::2], numbers[1]]


def draw(results: Path, model: Path, picture: Path, measure: str) -> None:
    """Write the picture; the format follows from its name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    column, sites = read_map(results, measure)
    longitudes, latitudes, values = zip(*sites, strict=True)
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    contours = axes.tricontourf(longitudes, latitudes, values, levels=12, cmap="YlOrRd")
    figure.colorbar(contours, label=f"{measure} (g)", shrink=0.9)
    for outline in outlines(model):
        axes.plot(*outline, color="black", linewidth=0.5, alpha=0.6)
    axes.set(
        xlim=(min(longitudes), max(longitudes)),
        ylim=(min(latitudes), max(latitudes)),
        xlabel="longitude (°)",
        ylabel="latitude (°)",
        title=f"mean {measure}, probability of exceedance {column.rpartition('-')[2]} in the investigation time",
        aspect=1.28,  # of a degree of latitude to one of longitude at 39° N
    )
    figure.savefig(picture, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a hazard map that the OpenQuake engine has exported.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder with hazard_map-mean_*.csv")
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder with the source models")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="what to write, such as map.png")
    parser.add_argument("--measure", default="PGA", help="intensity measure (default: PGA)")
    given = parser.parse_args(arguments)
    draw(given.results, given.model, given.picture, given.measure)


if __name__ == "__main__":
    main()
