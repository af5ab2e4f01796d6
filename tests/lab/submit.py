"""Run a calculation through the engine's API, as a client does; a program on its own, run inside a lab's namespace.

    submit.py URL JOB_INI SECONDS

Prints the calculation's log when it is complete, and ends with its status otherwise.
"""

from __future__ import annotations

import io
import sys
import time
import zipfile
from pathlib import Path

import requests


def main(url: str, job_ini: str, seconds: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for file in Path(job_ini).parent.iterdir():
            packed.write(file, file.name)
    answer = requests.post(
        f"{url}/v1/calc/run", files={"archive": ("job.zip", archive.getvalue())}, timeout=60
    )
    answer.raise_for_status()
    calculation = f"{url}/v1/calc/{answer.json()['job_id']}"
    deadline = time.monotonic() + float(seconds)
    while (status := requests.get(f"{calculation}/status", timeout=60).json()["status"]) != "complete":
        if status in ("failed", "aborted") or time.monotonic() > deadline:
            sys.exit(f"{calculation} is {status}")
        time.sleep(1)
    for line in requests.get(f"{calculation}/log/0:", timeout=60).json():
        print(*line)


if __name__ == "__main__":
    main(*sys.argv[1:])
