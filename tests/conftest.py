"""What holds for the tests of all tiers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pluggy import Result


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A tier that a machine cannot run is skipped with the reason, but not in CI, which would be green without it."""
    outcome: Result[pytest.TestReport] = yield  # type: ignore[assignment]
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr[-1]}"  # type: ignore[index]
