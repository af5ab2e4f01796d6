"""What the tests on real boots ask of a lab."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from components import facts
from lab.cluster.cluster import Lab
from lab.linux.host import in_netns, wait_until
from lab.trials import matrix
from lab.trials.job import CLASSICAL, Difference, Run, compare, fetch_job, run_job, work_done

ALL_PORTS = (1, 65535)
LOW_PORTS = (1, 10000)  # all that this project uses, in a sixth of the time
# Seconds for what has to happen, and for nodes to be ready again; against hanging only, on however busy a machine.
DEADLINE = 600.0
READY_SECONDS = 900
# The engine adds up float32 in the order in which tasks end: a few units in the last place, of 2**-23 each.
FLOAT32_ROUNDING = 8 * 2**-23


def reached(lab: Lab, source: str, target: IPv4Address, ports: tuple[int, int] = LOW_PORTS) -> set[int]:
    """The TCP ports of an address that packets from one of the lab's namespaces get to, open or not.

    The test fails where packets cannot be sent, or where what is known to answer there does not.
    """
    program = str(Path(__file__).with_name("probe.py"))
    command = [sys.executable, program, str(target), *map(str, ports), *map(str, known(lab, source))]
    done = subprocess.run(
        in_netns(lab.paths.netns(source), command), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{source}: {done.stderr}"
    return set(json.loads(done.stdout))


def known(lab: Lab, source: str) -> tuple[IPv4Address, int]:
    """An address and a port that answer to a namespace of the lab whatever a test looks at."""
    if source == "world":
        return IPv4Address("127.0.0.1"), 9  # with a reset: nothing of the cluster's answers there
    if source == "client":
        return lab.master().address, facts.WEBUI_PORT
    if source == "master":
        return lab.plan.endpoints[0].interfaces[0].address, facts.HTTPS_PORT
    return lab.master().address, facts.AMQP_PORT


def on(lab: Lab, node: str, line: str, timeout: float = DEADLINE) -> str:
    """What a line of shell prints on a node; the test fails when the line does."""
    done = lab.machine(node).execute(["bash", "-c", line], timeout)
    assert done.returncode == 0, f"{node}: {line}: {done.stdout}{done.stderr}"
    return done.stdout


def run_oneshot(lab: Lab, unit: str) -> None:
    """Have the master run a oneshot unit from beginning to end, also when its timer has begun it a moment before."""
    on(lab, "master", f"systemctl start {unit} && systemctl start {unit}")


def listening(lab: Lab, node: str) -> set[int]:
    """The TCP ports on which a node listens to the network, not only to itself."""
    sockets = [line.split()[3] for line in on(lab, node, "ss -ltnH").splitlines()]
    return {
        int(port)
        for address, _, port in (socket.rpartition(":") for socket in sockets)
        if not address.startswith("127.") and address != "[::1]"
    }


def compute(lab: Lab, out: Path) -> tuple[dict[str, tuple[int, float]], Difference]:
    """Run the demo job on the cluster and on the master alone: the workers' shares, and the difference."""
    job_ini = fetch_job(lab, CLASSICAL)
    distributed: Run = run_job(lab, job_ini, out, show=False)
    work = work_done(lab, distributed)
    alone = run_job(lab, job_ini, None, processpool=True, show=False)
    return work, compare(lab, alone, distributed)


def wait_until_a_task_runs(lab: Lab, since: float, job: Future[Any]) -> None:
    wait_until(
        "a task to run",
        lambda: any(matrix.is_busy(lab, node.name, since) for node in lab.workers()) or job.done(),
        DEADLINE,
    )
    assert not job.done()


@contextmanager
def held(lab: Lab) -> Iterator[None]:
    """Stop what the workers compute for as long as the block lasts; Celery itself goes on."""

    def tell(signal: str) -> None:
        main = f"main=$(systemctl show --value --property MainPID {facts.CELERY_UNIT})"
        for worker in lab.workers():
            on(lab, worker.name, f"{main}; kill -{signal} $(cat /proc/$main/task/$main/children)")

    tell("STOP")
    try:
        yield
    finally:
        tell("CONT")


def people(lab: Lab, *names: str) -> str:
    """Accounts of people who compute, and a job that both may read."""
    for name in names:
        add = f"useradd --create-home --shell /bin/bash --groups {facts.OPENQUAKE_USER} {name}"
        on(lab, "master", f"id {name} 2>/dev/null || {add}")
    return f"{facts.ENGINE_DIR}/{CLASSICAL.folder}"


def as_user(lab: Lab, name: str, line: str) -> tuple[int, str]:
    """The status and the output of what a user does on the master."""
    done = lab.machine("master").execute(["runuser", "--login", name, "--command", line], DEADLINE)
    return done.returncode, done.stdout + done.stderr
