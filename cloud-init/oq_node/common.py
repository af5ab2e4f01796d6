"""What master and worker have in common: facts, steps that fail loudly, users, mounts, the secret, the configuration.

Standard library only: on a worker nothing else is there before the engine is mounted.
"""

from __future__ import annotations

import configparser
import fcntl
import grp
import io
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FACTS: dict[str, Any] = json.loads(Path("/etc/openquake/node.json").read_text())
STATE = Path("/run/openquake/bootstrap.json")
IMDS = "http://169.254.169.254/latest"
MOUNT_ATTEMPTS_SECONDS = 30
MOUNT_SECONDS = 10  # for a file server's answer


class NodeError(Exception):
    """A bootstrap step failed for a reason that its message tells."""


def say(message: str) -> None:
    """Print one line; the units of this program send it to the journal."""
    print(message, flush=True)


def run(*command: str, **kwargs: Any) -> str:
    """Run a command and return what it printed; raise NodeError with the end of its output when it fails."""
    done: subprocess.CompletedProcess[str]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise NodeError(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    return done.stdout


def record(**state: Any) -> None:
    """Write down how far the bootstrap is, for `oq-node status`, beside what is written there already."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    new = STATE.with_name(STATE.name + ".new")
    new.write_text(json.dumps(recorded() | state))
    new.replace(STATE)  # at once, for `oq-node status` reads it at any moment


def recorded() -> dict[str, Any]:
    """What this boot's bootstrap has written down: `step`, where it is, and `failed`, where and why it last failed."""
    return dict(json.loads(STATE.read_text())) if STATE.exists() else {}


@contextmanager
def step(name: str) -> Iterator[None]:
    """One step of the bootstrap: named in the log with its duration, named again when it fails, for whatever reason."""
    started = time.monotonic()
    record(step=name)
    say(f"{name} …")
    try:
        yield
    except Exception as error:
        failed = f"{name}: {_words(error)}"
        record(step="", failed=failed)
        say(f"FAILED at {failed}")
        raise SystemExit(1) from error
    say(f"{name}: {time.monotonic() - started:.1f} s")


def until(what: str, seconds: float, check: Callable[[], Any], every: float = 1.0) -> Any:
    """Return the first true value of check(), tried for so many seconds; a line of progress every half a minute."""
    started = time.monotonic()
    said = started
    last_error = ""
    while True:
        try:
            if value := check():
                return value
        except Exception as error:
            last_error = f" ({_words(error)})"
        now = time.monotonic()
        if now - started > seconds:
            raise NodeError(f"timed out after {seconds:.0f} s waiting for {what}{last_error}")
        if now - said > 30:
            say(f"waiting for {what}: {now - started:.0f} s{last_error}")
            said = now
        time.sleep(every)


def _words(error: Exception) -> str:
    """What an error says; what nobody thought of says little without its type."""
    return str(error) if isinstance(error, (NodeError, OSError, subprocess.SubprocessError)) else repr(error)


def metadata(path: str) -> str:
    """One value of the instance's metadata (IMDSv2)."""
    request = urllib.request.Request(  # noqa: S310 - a fixed http address of the instance itself
        f"{IMDS}/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        token = answer.read().decode()
    request = urllib.request.Request(f"{IMDS}/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})  # noqa: S310
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        return str(answer.read().decode())


def ensure_user(name: str, number: int, home: str, *owned: str) -> None:
    """Make a system user and group with this id, or give the one that a package made this id and its files."""
    try:
        if grp.getgrnam(name).gr_gid != number:
            run("groupmod", "--gid", str(number), name)
    except KeyError:
        run("groupadd", "--gid", str(number), name)
    try:
        if pwd.getpwnam(name).pw_uid != number:
            run("usermod", "--uid", str(number), "--gid", str(number), name)
    except KeyError:
        shell = "/usr/sbin/nologin"
        run(
            "useradd", "--uid", str(number), "--gid", str(number), "--home-dir", home, "--no-create-home",
            "--shell", shell, name,
        )  # fmt: skip
    for path in owned:
        if Path(path).exists():
            run("chown", "--recursive", f"{name}:{name}", path)


def write(path: str, text: str, mode: int = 0o644, group: str = "root") -> None:
    """Write a file of root's atomically, never readable to more than its mode says."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave an empty file
    shutil.chown(new, "root", group)
    new.chmod(mode)
    new.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def start(*units: str, boot: bool = True) -> None:
    """Start units, all at once, and enable them at boot; with the end of its journal when one does not start."""
    run("systemctl", *(["enable", *units] if boot else ["daemon-reload"]))  # both read the unit files anew
    run("systemctl", "start", "--no-block", *units)
    for unit in units:
        try:
            run("systemctl", "start", unit)
        except NodeError as error:
            journal = subprocess.run(
                ["journalctl", "--no-pager", "--lines=15", "--output=cat", "--unit", unit],
                capture_output=True,
                text=True,
            ).stdout
            raise NodeError(f"{error}\n{journal}") from error


def mount_unit(what: str, where: str, kind: str, options: str) -> None:
    """Write and start a systemd mount unit. At later boots the mounts' own service starts it, until it succeeds."""
    name = where.strip("/").replace("/", "-") + ".mount"
    Path(where).mkdir(parents=True, exist_ok=True)
    requires = f"RequiresMountsFor={what}\n" if what.startswith("/") else ""
    write(
        f"/etc/systemd/system/{name}",
        f"[Unit]\nDescription=OpenQuake: {where}\nWants=network-online.target\nAfter=network-online.target\n"
        f"{requires}\n"
        f"[Mount]\nWhat={what}\nWhere={where}\nType={kind}\nOptions={options}\n",
    )
    start(name, boot=False)


def mount_shared() -> None:
    """Mount the shared file system by the address of its mount target in this zone.

    Debian's image has no mount.nfs4, and the kernel needs none: `addr=` is what the helper would have looked up. The
    other options are AWS's advice for EFS (https://docs.aws.amazon.com/efs/latest/ug/mounting-fs-nfs-mount-settings.html),
    but for lookupcache: what was not there is asked for again each time, not only after a minute (nfs(5)), since nodes
    wait for each other's files.
    """
    zone = metadata("placement/availability-zone")
    addresses = FACTS["nfs_addresses"]
    try:
        address = addresses[zone]
    except KeyError:
        raise NodeError(f"no mount target in zone {zone}: there are {addresses}") from None
    # A server of NFS believes its client who it is. Here only the kernel is one: it is in no slice (docs/security.md).
    for unit in "system.slice", "user.slice":
        run("systemctl", "set-property", unit, "IPAddressDeny=" + " ".join(addresses.values()))
    options = (
        f"vers=4.1,rsize={FACTS['nfs_block']},wsize={FACTS['nfs_block']},hard,timeo=600,retrans=2,noresvport,"
        f"lookupcache=positive,noatime,addr={address}"
    )

    def mount() -> bool:
        mount_unit(f"{address}:/", FACTS["nfs_dir"], "nfs4", options)
        return True

    until(f"NFS from {address}", MOUNT_ATTEMPTS_SECONDS, mount, every=5)


def engine_image() -> Path:
    """Where on the shared file system this cluster's engine is."""
    return Path(FACTS["engine_image_dir"], FACTS["engine_id"] + ".squashfs")


def mount_engine() -> None:
    """Mount the engine's image read-only, and see to it that all is mounted at later boots.

    _netdev: or systemd would take it for a local file system, for which everything at boot waits.
    """
    mount_unit(str(engine_image()), FACTS["engine_dir"], "squashfs", "loop,ro,nodev,nosuid,_netdev")
    start(FACTS["mounts_unit"])


def amqp_user(secret: Mapping[str, str]) -> str:
    """RabbitMQ's user of this secret; each rotation of the secret makes another one."""
    return secret.get("amqp_user", FACTS["amqp_user"])


def passwords(secret: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The secret's values where openquake.cfg has them."""
    return {
        "amqp": {"user": amqp_user(secret), "password": secret["amqp_password"]},
        "dbserver": {"authkey": secret["dbserver_authkey"]},
    }


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Nobody else has this lock meanwhile; none but root can have it, since none can open it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_configuration(values: Mapping[str, Mapping[str, str]]) -> None:
    """Put values, by section and key, into openquake.cfg; readable to group openquake only."""
    with locked(FACTS["openquake_cfg"] + ".lock"):  # two may write at the same time
        config = read_configuration()
        config.read_dict(values)
        text = io.StringIO()
        config.write(text)
        write(FACTS["openquake_cfg"], text.getvalue(), 0o640, FACTS["openquake_user"])


def read_configuration() -> configparser.ConfigParser:
    """openquake.cfg, as cloud-init wrote it and the node went on."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(FACTS["openquake_cfg"])
    return config


def answers(host: str, port: int) -> bool:
    """Whether a TCP port takes connections."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False


def bootstrap_problems() -> list[str]:
    """A line while this machine has not become a node: where that is, and why it is tried again."""
    if Path(FACTS["bootstrap_done"]).exists():
        return []
    state = recorded()
    found = f"bootstrap is at {state['step']}" if state.get("step") else "bootstrap waits for its turn"
    return [found + (f"; it has failed at {state['failed']}" if "failed" in state else "")]


def unit_problems(*units: str) -> list[str]:
    """A line for each unit that is not active."""
    problems = []
    for unit in units:
        state = subprocess.run(
            ["systemctl", "is-active", unit], capture_output=True, text=True
        ).stdout.strip()
        if state != "active":
            problems.append(f"{unit} is {state}")
    return problems


def failed_units(*units: str) -> list[str]:
    """A line for each unit that a timer starts and that has failed the last time."""
    return [
        f"{unit} has failed (sudo journalctl -u {unit})"
        for unit in units
        if not subprocess.run(["systemctl", "is-failed", "--quiet", unit]).returncode
    ]


def mount_problems(*directories: str) -> list[str]:
    """A line for each directory that should be a mount point and is not, or whose file server does not answer.

    Such a one holds up whoever looks, until it answers again or they are killed: so another program looks.
    """
    found = []
    for directory in directories:
        try:
            if subprocess.run(["mountpoint", "--quiet", directory], timeout=MOUNT_SECONDS).returncode:
                found.append(f"{directory} is not mounted")
        except subprocess.TimeoutExpired:
            found.append(f"{directory} does not answer")
    return found


def main(
    role: str,
    bootstrap: Callable[[], None],
    problems: Callable[[], list[str]],
    others: Mapping[str, tuple[str, Callable[[], None]]],
) -> None:
    """The command line: `bootstrap` until it has succeeded once, `status` whenever asked, other commands.

    `others` are by name what each does, for the usage, and the function that does it.
    """
    words = sys.argv[1:]
    command = words[0] if len(words) == 1 or words[:1] == ["logs"] else ""  # which has words of its own
    if command == "bootstrap":
        started = time.monotonic()
        bootstrap()
        os.sync()  # or a power cut may leave half of a node that counts as one
        Path(FACTS["bootstrap_done"]).touch()
        say(f"the {role} is ready, after {time.monotonic() - started:.1f} s")
    elif command == "status":
        found = bootstrap_problems() + problems()
        print(json.dumps({"ready": not found, "role": role, "problems": found}))
        raise SystemExit(1 if found else 0)
    elif command in others:
        try:
            others[command][1]()
        except (NodeError, OSError, subprocess.SubprocessError) as error:
            say(f"{command} failed: {error}")
            raise SystemExit(1) from error
    else:
        usage = [
            f"usage: oq-node {' | '.join(['bootstrap', 'status', *others])}\n",
            "  bootstrap  make this node (openquake-bootstrap.service calls it until it succeeds)",
            "  status     one JSON object: ready, role, problems; exit code 0 when ready",
            *(f"  {name:<9}  {text}" for name, (text, _) in others.items()),
        ]
        raise SystemExit("\n".join(usage))
