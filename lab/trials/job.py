"""Running a calculation on the lab's cluster as a user would: over there, by `oq engine --run`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import facts
from lab.base import LabError
from lab.cluster.cluster import Lab

USER = "seismologist"
"""The ordinary user of the lab, made on the master when first needed."""
CALCULATION = re.compile(r"^\[[^\]]* #(\d+) ", re.MULTILINE)
"""How the engine's log names the calculation: `[2026-01-31 12:00:00 #7 INFO] …`."""
CUT = ("source_data/", "rup/")
"""Datasets about the tasks that a job was cut into, or in the order of these: they follow from the number of cores."""
STORED = re.compile(r"Stored .* on (/\S+\.hdf5) in ")
"""Where the engine's log says that it has put the results."""
SUCCEEDED = re.compile(r"Task .* succeeded in ([0-9.e+-]+)s")
"""What Celery logs of a task that is done."""


@dataclass(frozen=True)
class DemoJob:
    """A demo of the engine, perhaps changed.

    Attributes:
        folder: in the engine's environment
        changes: of its job file: the value of a key
        file: the job file
    """

    name: str
    folder: str
    changes: Mapping[str, str] = field(default_factory=dict)
    file: str = "job.ini"


CLASSICAL = DemoJob("classical", "demos/hazard/AreaSourceClassicalPSHA")


@dataclass(frozen=True)
class Run:
    """A calculation that ended well.

    Attributes:
        datastore: its HDF5 file on the master
        seconds: of `oq engine --run`, start to end
        started: seconds since the epoch
    """

    calculation: int
    datastore: str
    seconds: float
    started: float


def fetch_job(lab: Lab, job: DemoJob) -> Path:
    """Copy a demo out of the engine on the master, with its changes; its job file."""
    source = lab.machine(lab.master().name).root_of(f"{facts.ENGINE_DIR}/{job.folder}")
    directory = lab.paths.state / "jobs" / f"{source.name}-{job.name.replace(' ', '-')}"
    shutil.copytree(source, directory, dirs_exist_ok=True)
    job_ini = directory / job.file
    text = job_ini.read_text()
    for key, value in job.changes.items():
        text, number = re.subn(rf"(?m)^{key} *=.*$", f"{key} = {value}", text)
        if number != 1:
            raise LabError(f"{job.folder}: {number} lines set {key}")
    job_ini.write_text(text)
    return job_ini


def run_job(
    lab: Lab,
    job_ini: Path,
    out: Path | None,
    *,
    processpool: bool = False,
    show: bool = True,
    limit: float | None = None,
) -> Run:
    """Copy the job's folder to the master, run it there, and export all outputs to `out`.

    Args:
        processpool: on the master alone, as the engine does without a cluster
        show: print the job's log as it is written
        limit: seconds after which it is stopped, and has failed

    Raises:
        LabError: when there is no such job or it fails
    """
    if not job_ini.is_file():
        raise LabError(f"{job_ini}: no such file")
    master = lab.machine(lab.master().name)
    directory = f"/home/{USER}/{job_ini.resolve().parent.name}-{time.time_ns()}"
    make_user(lab)
    _copy_in(lab, job_ini.resolve().parent, directory)
    environment = "OQ_DISTRIBUTE=processpool " if processpool else ""
    limited = "" if limit is None else f"timeout --signal=INT --kill-after=20 {limit:.0f} "
    started = time.time()
    log = _as_user(
        lab,
        f"cd {directory} && {environment}exec {limited}oq engine --run {shlex.quote(job_ini.name)} 2>&1",
        show,
    )
    seconds = time.time() - started
    calculation, stored = CALCULATION.search(log), STORED.search(log)
    if calculation is None or stored is None:
        raise LabError(f"{job_ini}: the engine's log names no calculation or no datastore:\n{log[-2000:]}")
    run = Run(int(calculation[1]), stored[1], seconds, started)
    if out is not None:
        _as_user(
            lab, f"exec oq engine --export-outputs {run.calculation} {directory}/exported 2>&1", show=False
        )
        out.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            master.command(["tar", "--create", f"--directory={directory}/exported", "."]),
            capture_output=True,
            check=True,
        )
        subprocess.run(
            ["tar", "--extract", "--no-same-owner", f"--directory={out}"], input=packed.stdout, check=True
        )
    return run


def make_user(lab: Lab) -> None:
    """Make sure of an ordinary user on the master, in the group whose members may run calculations."""
    master = lab.machine(lab.master().name)
    if master.execute(["id", USER]).returncode != 0:
        add = ["useradd", "--create-home", "--shell", "/bin/bash", "--groups", facts.OPENQUAKE_USER, USER]
        if (done := master.execute(add)).returncode != 0:
            raise LabError(f"useradd on the master: {done.stderr.strip()}")


def _copy_in(lab: Lab, source: Path, directory: str) -> None:
    packed = subprocess.run(
        ["tar", "--create", f"--directory={source}", "."], capture_output=True, check=True
    )
    unpack = f"mkdir -p {shlex.quote(directory)} && tar --extract --directory={shlex.quote(directory)}"
    command = lab.machine(lab.master().name).command(["runuser", "--login", USER, "--command", unpack])
    done = subprocess.run(command, input=packed.stdout, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"copying {source} to the master: {done.stderr.decode().strip()}")


def _as_user(lab: Lab, line: str, show: bool) -> str:
    """Run a line of shell on the master as the ordinary user; what it printed. LabError when it fails."""
    command = lab.machine(lab.master().name).command(["runuser", "--login", USER, "--command", line])
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            lines.append(printed)
            if show:
                sys.stdout.write(printed)
                sys.stdout.flush()
    log = "".join(lines)
    if process.returncode != 0:
        raise LabError(f"oq on the master: exit {process.returncode}" + ("" if show else f":\n{log[-3000:]}"))
    return log


def work_done(lab: Lab, run: Run) -> dict[str, tuple[int, float]]:
    """Tasks and seconds in tasks of each worker during a run, from Celery's log; one job ran at that time."""
    done = {}
    for node in lab.workers():
        since, until = f"@{run.started:.0f}", f"@{run.started + run.seconds + 1:.0f}"
        journal = [
            "journalctl",
            "--output=cat",
            "--unit",
            facts.CELERY_UNIT,
            "--since",
            since,
            "--until",
            until,
        ]
        log = lab.machine(node.name).execute(journal).stdout
        seconds = [float(number) for number in SUCCEEDED.findall(log)]
        done[node.name] = (len(seconds), sum(seconds))
    return done


@dataclass(frozen=True)
class Difference:
    """The largest differences between the results of two calculations.

    Attributes:
        datasets: how many datasets were compared
        relative: a share of the larger number
    """

    datasets: int
    absolute: float
    relative: float


def compare(lab: Lab, first: Run, second: Run) -> Difference:
    """Compare two calculations of the lab's user, number by number, in their datastores, but for `CUT`.

    Raises:
        LabError: when there is one that a difference says nothing of
    """
    program = (Path(__file__).parent / "compare_datastores.py").read_text()
    line = f"{facts.ENGINE_DIR}/bin/python - {shlex.quote(first.datastore)} {shlex.quote(second.datastore)}"
    command = lab.machine(lab.master().name).command(["runuser", "--login", USER, "--command", line])
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"comparing calculations: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    different: dict[str, dict[str, Any]] = {
        name: one for name, one in found["different"].items() if not name.startswith(CUT)
    }
    for name, one in different.items():
        if "why" in one:
            raise LabError(f"{name}: {one['why']}")
    return Difference(
        len(found["equal"]) + len(different),
        max((one["absolute"] for one in different.values()), default=0.0),
        max((one["relative"] for one in different.values()), default=0.0),
    )
