"""This machine: its commands, its processes, and whether a lab can run on it.

Everything that a lab starts or makes carries the lab's name: namespaces and directories by their names,
processes by an environment variable that their children inherit. So a lab can be found and taken down without
any record of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import REPOSITORY, LabError

MARKER = "OQLAB_PROCESS"
"""Environment variable of every process of a lab: the lab's name."""


@dataclass(frozen=True)
class Paths:
    """Where a lab keeps its things.

    Attributes:
        name: the lab's name, the prefix of all it makes: `oqlab` or `oqlab` and a few letters or digits
        cache: what is worth keeping between labs (base images, engine images, apt archives)
    """

    name: str
    cache: Path

    @property
    def state(self) -> Path:
        """The lab's own directory: disks, keys, state; removed by `down`."""
        return Path("/var/lib") / self.name

    def netns(self, short: str) -> str:
        """The name of one of the lab's network namespaces."""
        return f"{self.name}-{short}"


def lab_paths() -> Paths:
    """Paths from the environment: OQLAB_NAME (a second lab beside the first) and OQLAB_CACHE."""
    name = os.environ.get("OQLAB_NAME", "oqlab")
    if not re.fullmatch(r"oqlab[a-z0-9]{0,8}", name):
        raise LabError(f"OQLAB_NAME={name}: must be 'oqlab' and at most 8 letters or digits")
    return Paths(name, Path(os.environ.get("OQLAB_CACHE", REPOSITORY / ".cache")).resolve())


def run(command: Sequence[str | Path], *, check: bool = True, stdin: str | None = None) -> str:
    """Run a command, return what it wrote; LabError with its own words when it fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, input=stdin, check=False
    )
    if check and done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise LabError(f"{words}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def in_netns(namespace: str, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in a network namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]


def start(paths: Paths, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a background process of the lab, in its own session, writing to a log file."""
    environment = {**os.environ, MARKER: paths.name, "PYTHONPATH": str(REPOSITORY)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
        )


PREFERRED = -10
"""The niceness of what shall have a core of its own: nine times the weight of the others (sched(7))."""


def prefer(pid: int, processes: Path = Path("/proc")) -> None:
    """Give a process that leads a session a core before others get one; without the right to, leave it as it is.

    Where the kernel groups processes by session for its scheduler, the group's niceness counts and not the process's.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PREFERRED)
    group = processes / str(pid) / "autogroup"
    with contextlib.suppress(OSError):
        if group.exists():
            group.write_text(str(PREFERRED))


def every_process(file: str) -> Iterator[tuple[int, list[bytes]]]:
    """The processes of this machine, each with the words of a file that the kernel has of it: "cmdline" or "environ".

    One that ends meanwhile is left out, as are the kernel's own without such a file.
    """
    # glob("*/environ") asks whether a file exists, and fails when its process ends in that moment.
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(process.name), (process / file).read_bytes().split(b"\0")


def processes(paths: Paths) -> list[int]:
    """The processes that carry the lab's marker, and those inside its namespaces."""
    wanted = f"{MARKER}={paths.name}".encode()
    found = {pid for pid, words in every_process("environ") if wanted in words}
    for namespace in namespaces(paths):
        found.update(int(pid) for pid in run(["ip", "netns", "pids", namespace], check=False).split())
    return sorted(found - {os.getpid()})


def namespaces(paths: Paths) -> list[str]:
    """The lab's network namespaces that exist."""
    directory = Path("/run/netns")
    return sorted(path.name for path in directory.glob(f"{paths.name}-*")) if directory.exists() else []


CGROUPS = Path("/sys/fs/cgroup")


def control_group_roots() -> list[Path]:
    """The trees of control groups that systemd manages: the one of version 2, and with version 1 its own."""
    roots = [CGROUPS, CGROUPS / "unified", CGROUPS / "systemd"]
    return [root for root in roots if (root / "cgroup.procs").exists()]


def join_control_group(name: str) -> None:
    """Move this process into a control group of its own, made if it is not there."""
    for root in control_group_roots():
        group = root / name
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove_control_groups(prefix: str) -> None:
    """Remove the empty control groups whose names start like this, and all below them."""
    for root in control_group_roots():
        for top in root.glob(f"{prefix}*"):
            for directory, _, _ in os.walk(top, topdown=False):
                os.rmdir(directory)  # noqa: PTH106  os.walk gives text


def kill(pids: Iterable[int], timeout: float = 60) -> None:
    """SIGKILL processes and wait until they are gone; LabError if one stays."""
    waiting = list(pids)
    for pid in waiting:
        signal_quietly(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while waiting := [pid for pid in waiting if is_alive(pid)]:
        if time.monotonic() > deadline:
            raise LabError(f"processes do not die: {waiting}")
        time.sleep(0.05)


def signal_quietly(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(what: str, ready: Callable[[], object], timeout: float) -> None:
    """Call `ready()` until it is true; LabError naming `what` after `timeout` seconds.

    Between two calls there is a pause as long as a call, so that many programs that look leave others a core.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if ready():
            return
        now = time.monotonic()
        if now > deadline:
            raise LabError(f"timed out after {timeout:.0f} s waiting for {what}")
        time.sleep(min(0.5, max(0.1, now - began)))


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].replace("\\040", " ")
        if Path(point).is_relative_to(directory):
            found.append(point)
    return sorted(found, key=len, reverse=True)


COMMANDS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "slirp4netns": "slirp4netns",
    "dnsmasq": "dnsmasq-base",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "sysctl": "procps",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
}
"""What the lab calls, and the Debian package it is in."""


def missing(paths: Paths) -> list[str]:
    """What this machine lacks to run a lab; empty when nothing."""
    if sys.platform != "linux":
        return ["Linux"]
    if os.geteuid() != 0:
        return ["root (try sudo)"]
    lacks = [f"{command} ({package})" for command, package in COMMANDS.items() if not shutil.which(command)]
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        lacks.append("a 64-bit Intel or AMD processor with AVX2")  # which the nodes' engine is told to use
    filesystems = Path("/proc/filesystems").read_text().split()
    for name in ("overlay", "squashfs"):
        # A filesystem may be a module that is not loaded yet: loading it is what tells.
        if (
            name not in filesystems
            and subprocess.run(["modprobe", "-q", name], capture_output=True, check=False).returncode
        ):
            lacks.append(f"the kernel's {name}")
    lacks += [f"{node}" for node in ("/dev/loop-control", "/dev/net/tun") if not Path(node).exists()]
    if not lacks:
        lacks += _missing_features(paths)
    return lacks


def _missing_features(paths: Paths) -> list[str]:
    """Kernel features that only trying tells: namespaces, nftables in one, overlay on the lab's disk."""
    lacks = []
    ruleset = "table ip oqlab { chain c { type nat hook postrouting priority 100; masquerade; }; }"
    probe = subprocess.run(
        ["unshare", "--net", "nft", "-f", "-"], input=ruleset, capture_output=True, text=True, check=False
    )
    if probe.returncode:
        lacks.append(f"nftables in a network namespace ({probe.stderr.strip().splitlines()[0]})")
    scratch = Path(tempfile.mkdtemp(prefix=f"{paths.name}.probe.", dir=paths.state.parent))
    try:
        for name in ("lower", "upper", "work", "root"):
            (scratch / name).mkdir()
        options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
        probe = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, f"{scratch}/root"],
            capture_output=True,
            text=True,
            check=False,
        )
        if probe.returncode:
            lacks.append(f"an overlay over {scratch.parent} ({probe.stderr.strip()})")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return lacks


INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
ENOUGH_INSTANCES = 8192


def allow_inotify(limit: Path = INOTIFY_INSTANCES) -> None:
    """Let the systemd of every node watch files; LabError if this machine's limit cannot be raised. It stays raised.

    The kernel counts root's inotify instances in all containers together, and allows 128 by default; a node has some
    ten. Without one more, systemd mounts nothing, and the boot ends in emergency mode.
    """
    if int(limit.read_text()) >= ENOUGH_INSTANCES:
        return
    try:
        limit.write_text(str(ENOUGH_INSTANCES))
    except OSError as error:
        raise LabError(
            f"the nodes need more inotify instances than this machine allows, and {limit} cannot be changed ({error}): "
            f"sudo sysctl fs.inotify.max_user_instances={ENOUGH_INSTANCES}"
        ) from error


def require_root() -> None:
    """LabError in one line for anybody else, who may not even look at a lab."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: try sudo")


def require_host(paths: Paths) -> None:
    """LabError in one line when a lab cannot run here."""
    if lacks := missing(paths):
        raise LabError(f"this machine cannot run the lab; missing: {', '.join(lacks)}")
