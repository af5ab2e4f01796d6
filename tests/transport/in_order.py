"""Run a Python program whose processpool has its results in the order in which they were sent: in_order.py PROGRAM ...

See `lab.trials.qa.driver.begin_pool_process`.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from typing import Any

from lab.trials.qa import driver


def main() -> None:
    """Change what each process of a pool begins with, and run the program."""
    parallel: Any = importlib.import_module("openquake.baselib.parallel")
    parallel.init_workers = driver.begin_pool_process
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
