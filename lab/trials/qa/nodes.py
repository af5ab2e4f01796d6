"""The engine's own jobs on a lab's master, where its user runs them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

from components import facts
from lab.base import LabError
from lab.cluster.cluster import Lab
from lab.trials.job import USER, make_user
from lab.trials.qa.run import CLUSTER, ENVIRONMENTS, LIMIT_SECONDS, PROGRAMS, REFERENCE, TREES, Driver

HOME = f"/home/{USER}/qa"
PYTHON = f"{HOME}/python"
"""The nodes' command `oq` under another name: it runs the engine's program that it is called like, with the processor
features and the compiled code that all nodes have in common. Without it, the last bits of results are others."""

PARTS_THAT_COMPUTE = ("requirements.txt", "oq_celery.pth", "oq_celery")
"""Of an engine bundle."""


def start_driver(lab: Lab, kind: str) -> Driver:
    """A driver on the master, as the lab's user, who may use one of its cores: a processpool has one process then."""
    master = lab.master()
    core = master.cpus[0] if kind == CLUSTER else master.cpus[-1]
    environment = " ".join(f"{name}={value}" for name, value in {"CI": "1", **ENVIRONMENTS[kind]}.items())
    line = f"cd {HOME} && exec env {environment} taskset --cpu-list {core} {PYTHON} driver.py {kind}"
    command = lab.machine(master.name).command(["runuser", "--login", USER, "--command", line])
    return Driver(kind, command, HOME, lab.paths.state / "logs" / f"qa-{kind}.log")


def prepare(lab: Lab) -> list[str]:
    """Copy the engine's jobs into the user's home, once for each side; the paths of all .ini files."""
    make_user(lab)
    master = lab.machine(lab.master().name)
    copy = f"""
        set -e
        mkdir -p {HOME}/logs
        cd {HOME}
        ln -sf "$(command -v oq)" {PYTHON}
        for side in {CLUSTER} {REFERENCE}; do
            test ! -e $side || continue
            rm -rf $side.new
            mkdir $side.new
            cp -r {facts.ENGINE_DIR}/demos $side.new
            cp -r {facts.ENGINE_DIR}/lib/python3*/site-packages/openquake/qa_tests_data $side.new
            chmod -R u+w $side.new
            mv $side.new $side
        done
        cd {CLUSTER}
        find {" ".join(TREES)} -name '*.ini'
        """
    done = master.execute(["runuser", "--login", USER, "--command", copy], timeout=LIMIT_SECONDS)
    if done.returncode:
        raise LabError(f"copying the engine's jobs: {done.stderr.strip()}")
    for program in PROGRAMS:
        master.root_of(f"{HOME}/{program.name}").write_text(program.read_text())
    return done.stdout.split()


def versions(lab: Lab) -> dict[str, str]:
    """What makes a result another one: the engine on the nodes with all that it needs, and this harness.

    Returns:
        `engine`, `oq_celery` and `python`: versions; `computes` and `harness`: hashes
    """
    program = (
        "import json, platform\nfrom importlib.metadata import version\n"
        "print(json.dumps({'engine': version('openquake.engine'), 'oq_celery': version('oq_celery'),"
        " 'python': platform.python_version()}))"
    )
    command = [f"{facts.ENGINE_DIR}/bin/python", "-c", program]
    answer = lab.machine(lab.master().name).execute(command, timeout=LIMIT_SECONDS)
    if answer.returncode:
        raise LabError(f"the engine's version: {answer.stderr.strip()}")
    digest = hashlib.sha256(b"".join(program.read_bytes() for program in PROGRAMS)).hexdigest()
    (bundle,) = lab.plan.objects
    return {**json.loads(answer.stdout), "computes": computes(bundle.content), "harness": digest[:16]}


def computes(bundle: bytes) -> str:
    """A hash of that in an engine bundle which takes part in calculations: oq_celery and the locked packages.

    The WebUI's program or the keeper of logs may change without any job of them being run again.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        for name in sorted(archive.namelist()):
            if name.partition("/")[0] in PARTS_THAT_COMPUTE:
                digest.update(name.encode() + b"\0" + archive.read(name))
    return digest.hexdigest()[:16]
