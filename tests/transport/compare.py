"""Compares two datastores bit for bit; runs in the engine's environment: compare.py ONE OTHER.

Prints a JSON object: what differs by dataset, and under "equal" the number of equal datasets.
"""

import json
import sys
from typing import Any

import h5py
import numpy

# What a run measures of itself (times, sizes, processes), its inputs' paths, and pickles that hold times.
NOT_RESULTS = {
    "performance_data",
    "task_info",
    "task_sent",
    "starmap_info",
    "source_info",
    "source_model_read_times",
    "ruptimes",
    "oqparam",
    "input",
    "_csm",
}
TIMES = {"source_data/ctimes"}


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a dataset are the same, bit by bit."""
    if isinstance(one, bytes | str):
        return bool(one == other)
    one, other = numpy.asarray(one), numpy.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.names:  # the engine takes the order of some columns from a set
        return sorted(one.dtype.names) == sorted(other.dtype.names) and all(
            equal(one[name], other[name]) for name in one.dtype.names
        )
    if one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return all(equal(x, y) for x, y in zip(one.ravel(), other.ravel(), strict=True))
    return bool(one.tobytes() == other.tobytes())


def describe(one: Any, other: Any) -> str:
    """How far apart two values are."""
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    if one.dtype.names and sorted(one.dtype.names) == sorted(other.dtype.names or ()):
        columns = [name for name in one.dtype.names if not equal(one[name], other[name])]
        values = [f"{name}: {one[name].tolist()} and {other[name].tolist()}" for name in columns]
        return f"different: {'; '.join(values)}"[:1000]
    if one.dtype.kind != "f":
        return "different"
    scale = numpy.maximum(abs(one), abs(other))
    return f"largest relative difference {(abs(one - other) / numpy.where(scale > 0, scale, 1)).max():.2g}"


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets with results."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in NOT_RESULTS and name not in TIMES:
            found[name] = item

    file.visititems(visit)
    return found


def main() -> None:
    """Compare and print."""
    one, other = (datasets(h5py.File(path)) for path in sys.argv[1:])
    result: dict[str, Any] = dict.fromkeys(set(one) ^ set(other), "only in one")
    common = sorted(set(one) & set(other))
    result |= {
        name: describe(one[name][()], other[name][()])
        for name in common
        if not equal(one[name][()], other[name][()])
    }
    result["equal"] = [name for name in common if name not in result]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
