"""The machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

from tests.transport.processes import ENGINE

RATIOS = (
    "All figures come from one run on one machine. Ratios within the run are what counts: another machine, or the "
    "same one on another day, gives other seconds."
)


def describe() -> str:
    """Date, cores, memory, kernel and versions, as an introduction to the figures."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    code = (
        "import platform, celery, zmq; from importlib.metadata import version as v; "
        'print(f\'Python {platform.python_version()}, engine {v("openquake.engine")}, oq_celery {v("oq_celery")}, \''
        "f'Celery {celery.__version__}, ZeroMQ {zmq.zmq_version()}')"
    )
    versions = _output([str(ENGINE / "bin/python"), "-c", code])
    rabbitmq = _output(["dpkg-query", "--show", "--showformat=${Version}", "rabbitmq-server"])
    kernel = ".".join(platform.release().split(".")[:2])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"{RATIOS}\n",
            f"- {time.strftime('%Y-%m-%d')}, `make bench`; load average at the start {load}",
            f"- {len(os.sched_getaffinity(0))} cores ({cpu}), {memory:.0f} GB of memory, Linux {kernel}",
            f"- {versions}, RabbitMQ {rabbitmq}",
        ]
    )


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
