"""What was measured, as text, as a page of documentation and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Table:
    """Measured figures; `note` says what they are."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A table that is readable as text, too."""
        widths = [max(len(row[i]) for row in [self.head, *self.rows]) for i in range(len(self.head))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in [self.head, ["-" * width for width in widths], *self.rows]
        ]
        return "\n".join([f"### {self.title}", "", self.note, "", *lines, ""])


@dataclass(frozen=True)
class Chart:
    """One picture: values of each series over the labels of x; points for NaN are left out."""

    title: str
    unit: str
    x: Sequence[str]
    series: Mapping[str, Sequence[float]]
    lines: bool = False  # bars otherwise
    stacked: bool = False


@dataclass
class Part:
    """What one part of the benchmarks has measured so far, or why it was left out."""

    title: str
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""  # what ended it before it had measured everything

    def add(self, table: Table, chart: Chart) -> None:
        """Add figures, also when some are missing at the end: because what should have measured them has failed."""
        rows = [[*row, *[""] * (len(table.head) - len(row))] for row in table.rows]
        series = {
            name: [*values, *[nan] * (len(chart.x) - len(values))] for name, values in chart.series.items()
        }
        if any(not isnan(value) for values in series.values() for value in values):
            self.tables.append(replace(table, rows=rows))
            self.charts.append(replace(chart, series=series))

    def markdown(self) -> str:
        """The part of the page."""
        body = [f"Skipped: {self.skipped}\n"] if self.skipped else []
        body += [f"Not complete, because it failed: {self.failed}\n"] if self.failed else []
        return "\n".join([f"## {self.title}", "", *body, *(table.markdown() for table in self.tables)])


def write(directory: Path, introduction: str, parts: Sequence[Part]) -> None:
    """Write benchmarks.md, and benchmarks.png and .svg if there is anything to draw."""
    directory.mkdir(parents=True, exist_ok=True)
    charts = [chart for part in parts for chart in part.charts]
    picture = "![The figures below as a plot](benchmarks.svg)\n\n" if charts else ""
    text = f"# Benchmarks\n\n{introduction}\n\n{picture}" + "\n".join(part.markdown() for part in parts)
    (directory / "benchmarks.md").write_text(text)
    if charts:
        _draw(charts, directory)


def _draw(charts: Sequence[Chart], directory: Path) -> None:
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(charts) :]:
        axes.axis("off")
    names = dict.fromkeys(name for chart in charts for name in chart.series)
    colours = {name: pyplot.colormaps["tab10"](number % 10) for number, name in enumerate(names)}
    for chart, axes in zip(charts, grid.flat, strict=False):
        axes.set_title(chart.title, fontsize=10)
        axes.set_ylabel(chart.unit)
        places = range(len(chart.x))
        below = [0.0] * len(chart.x)
        width = 0.8 if chart.stacked else 0.8 / len(chart.series)
        for number, (name, values) in enumerate(chart.series.items()):
            if chart.lines:
                axes.plot(places, values, marker="o", label=name, color=colours[name])
            elif chart.stacked:
                axes.bar(places, values, width, bottom=below, label=name, color=colours[name])
                below = [one + other for one, other in zip(below, values, strict=True)]
            else:
                shift = width * (number - (len(chart.series) - 1) / 2)
                shifted = [place + shift for place in places]
                axes.bar(shifted, values, width, label=name, color=colours[name])
        if chart.lines:
            axes.set_ylim(bottom=0)
        axes.set_xticks(list(places), chart.x, fontsize=8)
        if len(chart.series) > 1:
            axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
        if len(chart.x) == 1:
            axes.set_xlim(-1, 1)
    for kind in ("png", "svg"):
        figure.savefig(
            directory / f"benchmarks.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None
        )
    pyplot.close(figure)
