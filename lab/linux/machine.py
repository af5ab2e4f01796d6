"""An instance: a container that systemd boots on an overlay of an image, in one of the lab's namespaces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from lab.base import LabError
from lab.linux import volumes
from lab.linux.host import (
    Paths,
    allow_inotify,
    every_process,
    is_alive,
    join_control_group,
    kill,
    run,
    signal_quietly,
    start,
    wait_until,
)

REBOOT = 133
"""systemd-nspawn's exit code when the system in it asks for a reboot (with --keep-unit)."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


@dataclass(frozen=True)
class Machine:
    """The container of a node.

    Attributes:
        name: `master`, `worker-1` …; also its network namespace's name
        cpus: the cores of this machine that it may use: its vCPUs
    """

    paths: Paths
    name: str
    address: IPv4Address
    cpus: tuple[int, ...]
    binds: dict[Path, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where its disk and its console log are."""
        return self.paths.state / "nodes" / self.name

    @property
    def root(self) -> Path:
        """Its root file system, mounted while it exists."""
        return self.directory / "root"

    @property
    def by_id(self) -> Path:
        """The directory that it sees as /dev/disk/by-id."""
        return self.directory / "by-id"

    def create(self, layers: Sequence[Path], resolver: IPv4Address, authority: str) -> None:
        """Make its disk: an overlay of the image, and what DHCP and the lab's own API need in it.

        Args:
            layers: the directories that make up the image, the uppermost first
            authority: PEM certificate that the lab's AWS API is signed with
        """
        for name in ("root", "upper", "work", "by-id"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        image = ":".join(map(str, layers))
        options = f"lowerdir={image},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run(["mount", "-t", "overlay", "overlay", "-o", options, self.root])
        etc = self.root / "etc"
        (etc / "resolv.conf").write_text(f"nameserver {resolver}\n")
        (self.root / "usr/local/share/ca-certificates/oqlab.crt").write_text(authority)
        with (etc / "ssl/certs/ca-certificates.crt").open("a") as bundle:
            bundle.write(authority)

    def power_on(self) -> None:
        """Start it, and keep it started over its own reboots."""
        allow_inotify()
        binds = [f"--bind={source}:{target}" for source, target in self.binds.items()]
        binds += [f"--bind={node}:/dev/{node.name}" for node in volumes.loop_nodes(self.paths)]
        command = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", f"--directory={self.root}",
            f"--machine={self.paths.netns(self.name)}", f"--hostname={self.name}",
            f"--network-namespace-path=/run/netns/{self.paths.netns(self.name)}",
            f"--cpu-affinity={','.join(map(str, self.cpus))}",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only",
            "--capability=CAP_SYS_RESOURCE",  # to enlarge a mounted file system
            "--bind=/dev/loop-control", f"--bind={self.by_id}:/dev/disk/by-id", *binds,
        ]  # fmt: skip
        supervisor = [sys.executable, "-m", "lab.linux.machine", self.paths.netns(self.name)]
        start(self.paths, [*_scope(self.paths.netns(self.name)), *supervisor, *command], self.console)

    @property
    def console(self) -> Path:
        """The file with what it wrote to its console."""
        return self.directory / "console.log"

    def monitors(self) -> list[int]:
        """Its supervisor and its container's monitor; none when it is off."""
        wanted = f"--machine={self.paths.netns(self.name)}".encode()
        return [pid for pid, words in every_process("cmdline") if wanted in words]

    def pids(self) -> list[int]:
        """Its monitors and all that runs in it, or in its network from outside, such as a port forward."""
        inside = run(["ip", "netns", "pids", self.paths.netns(self.name)], check=False)
        return self.monitors() + [int(pid) for pid in inside.split()]

    def init(self) -> int | None:
        """The process id, on this machine, of its process 1; None when it is off."""
        for pid in run(["ip", "netns", "pids", self.paths.netns(self.name)], check=False).split():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it ended
                continue
            if re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE):  # its number here, and in there
                return int(pid)
        return None

    def root_of(self, path: str) -> Path:
        """The path on this machine of a file in it, whatever is mounted there; it has to be on."""
        return Path(f"/proc/{self.init()}/root{path}")

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` inside it, as root, on its cores; LabError when it is off."""
        pid = self.init()
        if pid is None:
            raise LabError(f"{self.name} is off")
        environment = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        cpus = ",".join(map(str, self.cpus))
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return [
            "taskset", "--cpu-list", cpus, "nsenter", f"--target={pid}", *namespaces, "--",
            "env", "-i", *environment, *words,
        ]  # fmt: skip

    def execute(self, words: Sequence[str], timeout: float | None = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside it and wait for it."""
        return subprocess.run(
            self.command(words),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """Cut its power: SIGKILL to all of it, the supervisor first."""
        kill(self.pids())

    def power_off(self, timeout: float = 20) -> None:
        """Shut it down as the console's power button does, and cut the power if it takes too long."""
        pid = self.init()
        if pid is not None:
            signal_quietly(pid, signal.SIGRTMIN + 4)  # systemd(1): start poweroff.target
            try:
                wait_until("power-off", lambda: not is_alive(pid), timeout)
            except LabError:
                print(f"{self.name} does not shut down within {timeout:.0f} s: its power is cut")
        self.kill()

    def remove(self) -> None:
        """Take its disk away."""
        run(["umount", "--lazy", self.root], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def _systemd_runs_here() -> bool:
    return Path("/run/systemd/system").is_dir()


def _scope(name: str) -> list[str]:
    """On a machine that systemd runs, a scope of its own, whose control groups the container may manage."""
    if not _systemd_runs_here():
        return []
    options = ["--quiet", "--collect", "--scope", f"--unit={name}", "--property=Delegate=yes"]
    return ["systemd-run", *options, "--"]


def supervise(name: str, command: Sequence[str]) -> int:
    """Run systemd-nspawn, again after each reboot of the system in it; its last exit code."""
    if not _systemd_runs_here():
        join_control_group(name)  # or the systemds of two containers would manage the same groups
    environment = dict(os.environ)
    if Path("/sys/fs/cgroup/unified").is_dir():
        # A hybrid tree of control groups: the container gets the legacy ones (with the unified it hangs at
        # power-off).
        environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "0"
    while (code := subprocess.run(command, env=environment, check=False).returncode) == REBOOT:
        continue
    return code


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1], sys.argv[2:]))
