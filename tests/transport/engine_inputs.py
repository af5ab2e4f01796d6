"""The input files of jobs as the engine lists them; runs in the engine's environment: engine_inputs.py DIRECTORY …

Prints a JSON object: the files of each job file below the directories. A job that the engine refuses has none.
"""

import contextlib
import io
import json
import logging
import os
import sys
from pathlib import Path

os.environ["OQ_DISTRIBUTE"] = "no"

from openquake.commonlib import readinput


def main() -> None:
    """Read them all."""
    logging.disable(logging.CRITICAL)
    found = {}
    for ini in sorted(path for directory in sys.argv[1:] for path in Path(directory).rglob("*.ini")):
        files = []
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            named = readinput.get_input_files(readinput.get_oqparam(str(ini)))
            files = [os.path.normpath(name) for name in named if not name.startswith("<")]
        found[str(ini)] = files
    print(json.dumps(found))


if __name__ == "__main__":
    main()
