"""Compare the results of two calculations bit for bit: run by the engine's Python, as a user who may read them.

Called as `compare_datastores.py ONE OTHER`; prints one JSON object, which `compare` describes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    import h5py

NOT_RESULTS = {
    "performance_data": "what the run measured of itself: seconds and memory by operation",
    "task_info": "the same by task, in the order in which tasks ended",
    "task_sent": "bytes of the arguments of tasks",
    "starmap_info": "seconds that each process worked",
    "source_info": "a column of seconds by source, and its rows sorted by it",
    "source_data/ctimes": "seconds by source",
    "source_model_read_times": "seconds by file",
    "ruptimes": "seconds by rupture",
    "oqparam": "the job file, with the paths of its inputs",
    "input": "the inputs themselves, under their paths",
    "_csm": "a pickle of the sources, in which each carries its seconds",
    "png": "pictures of results, which have the calculation's number in their titles",
}
"""Datasets and groups that cannot be equal, and why."""


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a dataset are the same, bit by bit."""
    if isinstance(one, bytes | str):
        return bool(one == other)
    one, other = numpy.asarray(one), numpy.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.names:  # the engine takes the order of some columns from a set
        return sorted(one.dtype.names) == sorted(other.dtype.names or ()) and all(
            equal(one[name], other[name]) for name in one.dtype.names
        )
    if one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return all(equal(x, y) for x, y in zip(one.ravel(), other.ravel(), strict=True))
    return bool(one.tobytes() == other.tobytes())


def distance(one: Any, other: Any) -> tuple[float, float] | None:
    """The largest absolute and relative difference of two arrays; None when they are not numbers of one shape.

    Both are infinite where one of two numbers is.
    """
    one, other = numpy.asarray(one), numpy.asarray(other)
    if one.dtype.names and other.dtype.names and set(one.dtype.names) == set(other.dtype.names):
        pairs = [
            distance(one[name], other[name]) for name in one.dtype.names if not equal(one[name], other[name])
        ]
        known = [pair for pair in pairs if pair is not None]
        return (max(p[0] for p in known), max(p[1] for p in known)) if len(known) == len(pairs) else None
    if one.shape != other.shape or one.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
        return None
    one, other = one.astype(numpy.float64), other.astype(numpy.float64)
    if not numpy.array_equal(numpy.isnan(one), numpy.isnan(other)):
        return None
    with numpy.errstate(invalid="ignore"):  # infinity minus infinity
        absolute = numpy.nan_to_num(numpy.abs(one - other), posinf=numpy.inf)
    scale = numpy.maximum(numpy.abs(one), numpy.abs(other))
    relative = absolute / numpy.where((scale > 0) & numpy.isfinite(scale), scale, 1)
    return float(absolute.max(initial=0)), float(relative.max(initial=0))


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets with results, by name."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        is_result = not {name, name.split("/")[0]} & NOT_RESULTS.keys()
        if is_result and hasattr(item, "shape"):  # not a group
            found[name] = item

    file.visititems(visit)
    return found


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare two datastores, HDF5 files.

    Returns:
        `equal`: the names of the datasets that are equal bit for bit; `different`: by the name of a
        dataset, its largest `absolute` and `relative` difference (a share of the larger number), or the
        reason `why` there is none
    """
    import h5py  # the project's own environment, which imports NOT_RESULTS, has none

    same: list[str] = []
    different: dict[str, dict[str, Any]] = {}
    with h5py.File(first, "r") as file, h5py.File(second, "r") as other_file:
        one, other = datasets(file), datasets(other_file)
        for name in sorted(one.keys() | other.keys()):
            if name not in one or name not in other:
                different[name] = {"why": f"only in the {'first' if name in one else 'second'}"}
                continue
            value, other_value = one[name][()], other[name][()]
            if equal(value, other_value):
                same.append(name)
            elif numpy.shape(value) != numpy.shape(other_value):
                different[name] = {"why": f"shapes {numpy.shape(value)} and {numpy.shape(other_value)}"}
            elif (far := distance(value, other_value)) is None:
                different[name] = {"why": "not the same"}
            else:
                different[name] = {"absolute": far[0], "relative": far[1]}
    return {"equal": same, "different": different}


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], sys.argv[2])))
