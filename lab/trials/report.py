"""What the demo shows at the end: a table in text, and a picture of the hazard curves."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from lab.base import LabError


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first one to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, rows)])


def read_curves(file: Path) -> tuple[list[float], list[tuple[float, float, list[float]]]]:
    """The engine's export of hazard curves: the levels; longitude, latitude, probabilities of each site."""
    with file.open() as text:
        rows = list(csv.reader(line for line in text if not line.startswith("#")))
    columns = [number for number, name in enumerate(rows[0]) if name.startswith("poe-")]
    levels = [float(rows[0][number].removeprefix("poe-")) for number in columns]
    sites = [(float(row[0]), float(row[1]), [float(row[number]) for number in columns]) for row in rows[1:]]
    return levels, sites


def plot_hazard_curves(exports: Path, picture: Path, title: str) -> None:
    """Draw the mean hazard curves of the site with the highest hazard, one line per intensity measure.

    Args:
        exports: directory with the engine's CSV exports of one classical calculation

    Raises:
        LabError: when there is none in it
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    files = sorted(exports.glob("hazard_curve-mean-*.csv"), key=_intensity_order)
    if not files:
        raise LabError(f"{exports}: no hazard_curve-mean-*.csv")
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    colours = plt.get_cmap("viridis")
    site = None
    for number, file in enumerate(files):
        levels, sites = read_curves(file)
        if site is None:
            site = max(range(len(sites)), key=lambda one: sum(sites[one][2]))
        longitude, latitude, probabilities = sites[site]
        # Beyond the truncation of the ground motion the probability is zero, which has no place on this axis.
        points = [pair for pair in zip(levels, probabilities, strict=True) if pair[1] > 0]
        axes.loglog(*zip(*points, strict=True), color=colours(number / len(files)), label=_intensity(file))
        axes.set_title(f"{title}\nmean hazard curves at {longitude:.2f}°, {latitude:.2f}°", fontsize=11)
    axes.set_xlabel("acceleration (g)")
    axes.set_ylabel("probability of exceedance in the investigation time")
    axes.set_ylim(1e-6, 1.2)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def _intensity(file: Path) -> str:
    """The intensity measure in an export's name: `SA(0.1)` in `hazard_curve-mean-SA(0.1)_7.csv`."""
    return file.name.removeprefix("hazard_curve-mean-").rpartition("_")[0]


def _intensity_order(file: Path) -> float:
    """PGA before the spectral accelerations, those by their period."""
    period = re.search(r"\(([0-9.]+)\)", file.name)
    return float(period[1]) if period else 0.0
