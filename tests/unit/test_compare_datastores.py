"""When the results of two calculations are equal bit for bit, and how far apart they are otherwise.

That datastores of the engine's are read is shown where there is an engine: tests/lab, `make qa`.
"""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy
import pytest

from lab.trials.compare_datastores import distance, equal


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        (numpy.float64(nan), numpy.float64(nan), True),
        (numpy.float64(0.0), numpy.float64(-0.0), False),
        (numpy.float64(1.0), numpy.float32(1.0), False),
        (numpy.array([nan, 1.0]), numpy.array([nan, 1.0]), True),
        (numpy.array([nan, 1.0], object), numpy.array([nan, 1.0], object), True),
        (b"a text", b"a text", True),
        (b"a text", b"another", False),
        (numpy.int64(1), numpy.int64(2), False),
    ],
)
def test_numbers_are_equal_by_their_bits_in_an_array_or_alone(one: Any, other: Any, are_equal: bool) -> None:
    assert equal(one, other) is are_equal


@pytest.mark.parametrize(
    ("one", "other", "far"),
    [
        ([1.0, 2.0], [1.0, 2.5], (0.5, 0.2)),
        ([inf, -inf], [inf, -inf], (0.0, 0.0)),
        ([inf], [5.0], (inf, inf)),
        ([nan, 0.0], [nan, 0.0], (0.0, 0.0)),
        ([nan], [1.0], None),
    ],
)
def test_a_number_is_infinitely_far_from_infinity(
    one: list[float], other: list[float], far: tuple[float, float] | None
) -> None:
    assert distance(numpy.array(one), numpy.array(other)) == far
