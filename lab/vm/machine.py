"""A virtual machine: QEMU without hardware support, Debian's cloud kernel, NVMe disks plugged in as it runs."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from lab.aws.cloud import Volume
from lab.base import LabError
from lab.linux import network, volumes
from lab.linux.host import Paths, in_netns, prefer, run, start, wait_until
from lab.linux.images import ROOT_LABEL

ROOT_GB: Final = 6
TRUSTED: Final = Path("/etc/ssl/certs/ca-certificates.crt")
"""What an image trusts."""
SLOTS: Final = 4
"""Places for disks that are plugged in."""
TAP: Final = "tap0"
BRIDGE: Final = "bridge"
# One virtual core, which a thread of QEMU emulates: with several it takes longer, since they wait for each other.
# `max` is what the emulation can do; the kernel asks for nothing that it cannot.
_MACHINE: Final = ("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1")
QEMU: Final = "qemu-system-x86_64"
_CONSOLE: Final = "console=ttyS0 systemd.debug_shell=ttyS1"
"""Root's shell on the second serial line comes with systemd: nothing of ours is in the image."""


@dataclass
class VirtualMachine:
    """A virtual machine in one of the lab's namespaces, with the address and the metadata that belong there.

    Attributes:
        name: also its namespace's
        memory_mb: of the machine
    """

    paths: Paths
    name: str
    memory_mb: int = 1536

    @property
    def directory(self) -> Path:
        """Where its disk, its console's log and its sockets are."""
        return self.paths.state / "vm" / self.name

    @property
    def console(self) -> Path:
        """The file with what it wrote to its first serial line."""
        return self.directory / "console.log"

    def create(self, image: Path, authority: str) -> None:
        """Make its root disk of an image's directory.

        Args:
            authority: PEM certificate that the lab's AWS API is signed with
        """
        self.directory.mkdir(parents=True)
        disk = self.directory / "root.ext4"
        run(["mkfs.ext4", "-q", "-F", "-L", ROOT_LABEL, "-d", image, disk, f"{ROOT_GB}G"])
        bundle = self.directory / TRUSTED.name
        bundle.write_text((image / TRUSTED.relative_to("/")).read_text() + authority)
        run(["debugfs", "-w", "-R", f"rm {TRUSTED}", disk])
        run(["debugfs", "-w", "-R", f"write {bundle} {TRUSTED}", disk])
        for name in ("vmlinuz", "initrd.img"):
            (file,) = (image / "boot").glob(f"{name}-*")
            shutil.copy(file, self.directory / name)

    def power_on(self, address: IPv4Address, instance_id: str, instance_type: str) -> None:
        """Start it on the tap of its namespace; it is booting when this returns."""
        firmware = f"{instance_id[2:10]:0<8}"
        uuid = f"ec2{firmware[3:8]}-0000-0000-0000-{secrets.token_hex(6)}"
        command = [
            QEMU, *_MACHINE, "-m", str(self.memory_mb), "-nodefaults", "-display", "none",
            # By these words cloud-init knows where it is.
            "-smbios", f"type=1,manufacturer=Amazon EC2,product={instance_type},uuid={uuid},serial={uuid}",
            "-kernel", str(self.directory / "vmlinuz"),
            "-initrd", str(self.directory / "initrd.img"),
            "-append", f"root=LABEL={ROOT_LABEL} ro {_CONSOLE} net.ifnames=0",
            "-drive", f"file={self.directory}/root.ext4,if=none,id=root,format=raw,cache=unsafe",
            "-device", "nvme,drive=root,serial=vol0root",
            *(word for slot in range(SLOTS)
              for word in ("-device", f"pcie-root-port,id=slot{slot},chassis={slot + 1},slot={slot + 1}")),
            "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,romfile=,mac={network.mac_address(address)}",
            "-device", "virtio-rng-pci",
            "-serial", f"file:{self.console}",
            "-serial", f"unix:{self.directory}/shell,server=on,wait=off",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
        ]  # fmt: skip
        emulator = start(
            self.paths, in_netns(self.paths.netns(self.name), command), self.directory / "qemu.log"
        )
        prefer(emulator.pid)  # or what times out in the machine does so while others have its only core
        sockets = [self.directory / name for name in ("qmp", "shell")]
        wait_until("QEMU", lambda: all(path.exists() for path in sockets), 60)

    def plug(self, volume: Volume, slot: int) -> None:
        """Plug a volume in, as a new NVMe disk with its id for a serial number, as on Nitro instances."""
        file = volumes.file_of(self.paths, volume.id)
        drive = f"volume{slot}"
        block = {"node-name": drive, "driver": "raw", "file": {"driver": "file", "filename": str(file)}}
        self.monitor("blockdev-add", **block)
        serial = volume.id.replace("-", "")
        self.monitor(
            "device_add", driver="nvme", drive=drive, serial=serial, bus=f"slot{slot}", id=f"nvme{slot}"
        )

    def reset(self) -> None:
        """Cut its power and give it back: what was not written is lost."""
        self.monitor("system_reset")

    def boots(self) -> int:
        """How often its kernel has started."""
        return len(re.findall(rb"Linux version \d", self.console.read_bytes()))

    def monitor(self, command: str, **arguments: Any) -> Any:
        """A command of QEMU's monitor protocol; LabError with its answer if that is an error."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.directory / "qmp"))
            with connection.makefile("rw") as lines:
                lines.readline()  # its greeting
                for request in ("qmp_capabilities", command):
                    words = {"execute": request, "arguments": arguments if request == command else {}}
                    lines.write(json.dumps(words) + "\n")
                    lines.flush()
                    while "event" in (answer := json.loads(lines.readline())):
                        continue
        if "error" in answer:
            raise LabError(f"{self.name}: {command}: {answer['error']['desc']}")
        return answer["return"]

    def execute(self, line: str, timeout: float = 120) -> tuple[int, str]:
        """The exit status and the output of a line of shell, as root; LabError when there is no answer in time."""
        begin, end = secrets.token_hex(8), secrets.token_hex(8)
        # The terminal shows what is typed: there the marks are in pieces. Programs do not write to it, or they would
        # fit their words into its width.
        piped = f"( {line} ) < /dev/null 2>&1 | cat"
        typed = f"echo {begin[:8]}''{begin[8:]}; {piped}; echo {end[:8]}''{end[8:]} ${{PIPESTATUS[0]}}\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.directory / "shell"))
            connection.settimeout(1)
            connection.sendall(typed.encode())
            seen, deadline = "", time.monotonic() + timeout
            while not (found := re.search(rf"(?s){begin}\n(.*){end} (\d+)", seen)):
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: no answer to {line!r} in {timeout:.0f} s: {seen[-500:]}")
                try:
                    said = connection.recv(65536)
                except TimeoutError:
                    continue
                if not said:
                    raise LabError(f"{self.name}: it ended before its answer to {line!r}: {seen[-500:]}")
                seen += said.decode(errors="replace").replace("\r", "")
        return int(found[2]), found[1]

    def succeed(self, line: str, timeout: float = 120) -> str:
        """What a line of shell prints; LabError when it fails."""
        status, output = self.execute(line, timeout)
        if status:
            raise LabError(f"{self.name}: {line}: exit {status}: {output[-2000:]}")
        return output


def connect_tap(
    paths: Paths, name: str, address: IPv4Address, subnet: IPv4Network, resolver: IPv4Address
) -> None:
    """Give the namespace's link to a virtual machine, and tell that its address by DHCP.

    The namespace itself is at the address that AWS reserves for later use.
    """
    namespace, vpc = paths.netns(name), paths.netns("vpc")
    own = subnet[3]
    for words in (
        f"address flush dev {network.DEVICE}",
        f"link set {network.DEVICE} address {network.mac_address(own)}",
        f"link add {BRIDGE} type bridge",
        f"address add {own}/{subnet.prefixlen} dev {BRIDGE}",
        f"tuntap add {TAP} mode tap",
        f"link set {network.DEVICE} master {BRIDGE}",
        f"link set {TAP} master {BRIDGE} up",
        f"link set {BRIDGE} up",
    ):
        run(["ip", "-n", namespace, *words.split()])
    # The router answers for all others of the subnet, which are behind it here.
    run(in_netns(vpc, ["sysctl", "-q", "-w", f"net/ipv4/conf/{network.link_name(name)}/proxy_arp=1"]))
    command = [
        "dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--pid-file=",
        "--user=root", "--port=0", f"--interface={BRIDGE}", "--bind-interfaces", "--leasefile-ro",
        f"--dhcp-range={subnet.network_address},static,{subnet.netmask}",
        f"--dhcp-host={network.mac_address(address)},{address}",
        f"--dhcp-option=option:router,{network.router_address(subnet)}",
        f"--dhcp-option=option:dns-server,{resolver}",
    ]  # fmt: skip
    start(paths, in_netns(namespace, command), paths.state / "logs" / f"dhcp-{name}.log")
