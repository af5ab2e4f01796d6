"""Compare the results of two calculations: run by the engine's Python, as the user who ran them.

Prints one JSON object: how many datasets were compared, the largest absolute and the largest relative
difference.
"""

import json
import sys

import h5py
import numpy

# What tells of the run and not of the hazard: times, memory, how the work was cut into tasks.
OF_THE_RUN = (
    "performance_data", "task_info", "task_sent", "starmap_info", "source_info", "source_data", "oqparam",
    "input", "_csm", "_poes", "_rates", "log", "params_by_file", "source_model_read_times",
    "ruptimes",
)  # fmt: skip


def numbers(datastore: str) -> dict[str, numpy.ndarray]:
    """The datasets of floating point numbers in a calculation's datastore, an HDF5 file."""
    found: dict[str, numpy.ndarray] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(OF_THE_RUN):
            values = item[()]
            fields = values.dtype.names or ()
            for field in fields or ("",):
                column = numpy.asarray(values[field] if field else values)
                if column.dtype.kind == "f":
                    found[f"{name}/{field}"] = column.astype(numpy.float64)

    with h5py.File(datastore, "r") as store:
        store.visititems(visit)
    return found


def main(first: str, second: str) -> None:
    """Compare and print."""
    one, other = numbers(first), numbers(second)
    if one.keys() != other.keys():
        raise SystemExit(f"different datasets: {sorted(one.keys() ^ other.keys())}")
    absolute = relative = 0.0
    for name, values in one.items():
        if values.shape != other[name].shape:
            raise SystemExit(f"{name}: {values.shape} and {other[name].shape}")
        if not numpy.array_equal(numpy.isnan(values), numpy.isnan(other[name])):
            raise SystemExit(f"{name}: numbers in one calculation, none in the other")
        difference = numpy.nan_to_num(numpy.abs(values - other[name]))
        absolute = max(absolute, float(difference.max(initial=0)))
        nonzero = numpy.abs(values) > 0
        relative = max(relative, float((difference[nonzero] / numpy.abs(values[nonzero])).max(initial=0)))
    print(json.dumps({"datasets": len(one), "absolute": absolute, "relative": relative}))


main(sys.argv[1], sys.argv[2])
