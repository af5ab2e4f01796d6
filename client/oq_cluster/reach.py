"""How the cluster is reached: a door to its WebUI, and commands on its master. The only place that knows of the ways.

On AWS both go through Session Manager, or the WebUI's address is in reach by itself. In a lab both are commands of the
lab that do what Session Manager does.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

import requests

from oq_cluster import session_manager, stack
from oq_cluster.errors import Asleep, ClientError, LostConnection, Unreachable
from oq_cluster.session_manager import Answer, Session, SessionManager
from oq_cluster.stack import Outputs, Source

# What answers without a login, or says that it wants one.
PROBE: Final = "/v1/engine_version"
OPEN_SECONDS: Final = 60.0
_PORTS: Final = 3  # that are tried for a forward, of which any one will do
_STATUS: Final = "oq-cluster-status="
_ACTIVITIES: Final = 20  # of the group, the newest; as many may be the ends of instances
# The command ends before its output is compressed and cut: one whose reader has gone would fail. With the space, since
# $(( begins an arithmetic expression for Debian's sh.
_PACKED: Final = (
    'output=$( {line}); status=$?; printf "%s\\n" "$output" | gzip -9 | base64 -w0 | '
    f"head -c {session_manager.OUTPUT_BYTES - 1000}; exit $status"
)
# What a master is, in EC2's words; OFF are those in which somebody can start it, now or in a moment.
RUNNING: Final = "running"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"
GONE: Final = frozenset({"shutting-down", "terminated"})
OFF: Final = frozenset({STOPPING, STOPPED})


class Door(ABC):
    """A way to the WebUI."""

    @abstractmethod
    def url(self) -> str:
        """The WebUI's address on this computer, without a slash at its end; opens the way.

        Raises:
            ClientError: there is no way.
        """

    def close(self) -> None:  # noqa: B027  not every way has something to take away
        """Take away what was opened; the next `url` opens it again."""


class Direct(Door):
    """The address itself is in reach."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def url(self) -> str:
        """The address."""
        return self._url


class _EndedError(LostConnection):
    """The process of a port forward has ended before anything answered."""


class _Log:
    """What a process prints, to be read while it goes on.

    By the file's name, since a file that a process inherits has one position for both.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._path = Path(self._directory.name, "log")
        self.file = self._path.open("w")

    def text(self) -> str:
        """All that it has printed until now."""
        return self._path.read_text(errors="replace")

    def tail(self) -> str:
        """The last lines, each indented on a line of its own."""
        lines = [line for line in self.text().splitlines() if line.strip()]
        return "".join(f"\n  {line}" for line in lines[-3:])

    def close(self) -> None:
        """Remove it; the process has ended."""
        self.file.close()
        self._directory.cleanup()


class Forward(Door):
    """A process that forwards a local port; each kind starts it in its way."""

    def __init__(self, scheme: str, port: int = 0) -> None:
        """`scheme` is http or https, `port` the local one, any free one without."""
        self.scheme = scheme
        self.wanted = port
        self._port = 0
        self._log: _Log | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._opened = False  # it was, once

    @abstractmethod
    def start(self, port: int, log: IO[str]) -> subprocess.Popen[Any]:
        """Start the process for a local port."""

    @abstractmethod
    def end(self) -> None:
        """End the process."""

    def listens(self, port: int, printed: str) -> bool:
        """Whether a process that has printed this may have the port already."""
        del port, printed
        return True

    def remedy(self) -> str:
        """What to do when the process has ended by itself."""
        return "try again"

    def url(self) -> str:
        """The forwarded address; waits until something answers there.

        Raises:
            LostConnection: nothing does, or there is no way any more where one was.
            Unreachable: there is no way from the beginning.
            ClientError: another program has the wanted port, or this user may not have it.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()  # whatever answers at its port now, it is not the WebUI
        for left in reversed(range(_PORTS)):
            try:
                if self._log is None:
                    self._open()
                break
            except _EndedError:  # somebody may have taken the port, which was free a moment ago
                if self.wanted or not left:
                    raise
                self._port = 0
        return f"{self.scheme}://127.0.0.1:{self._port}"

    def _open(self) -> None:
        port = _free_port(self.wanted or self._port)  # a browser has the former one
        if self.wanted not in (0, port):
            raise ClientError(
                f"port {self.wanted} of this computer is taken: end that program, or name another port"
            )
        self._log = log = _Log()
        try:
            self._process = process = self.start(port, log.file)
            url = f"{self.scheme}://127.0.0.1:{port}"
            _wait_for(url, process, log, lambda: self.listens(port, log.text()), self.remedy)
        except Unreachable as error:
            self.close()
            if self._opened:
                raise LostConnection(str(error)) from error
            raise
        except BaseException:
            self.close()
            raise
        self._port, self._opened = port, True

    def close(self) -> None:
        """End it."""
        if self._log is not None:
            log, self._log, self._process = self._log, None, None
            self.end()
            log.close()


def _free_port(wanted: int = 0) -> int:
    """A port that nobody has; the wanted one, if it is such a one.

    Raises:
        ClientError: this user may not have the wanted one.
    """
    with socket.socket() as found:
        if os.name != "nt":  # where this would give away a port that somebody has
            # As the plugin does it, whose last connections may not be forgotten yet.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", wanted))
        except PermissionError as error:
            raise ClientError(
                f"port {wanted} of this computer: {error.strerror}: name one from 1024 on, or none"
            ) from None
        except OSError:
            found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(
    url: str,
    process: subprocess.Popen[Any],
    log: _Log,
    listens: Callable[[], bool],
    remedy: Callable[[], str],
) -> None:
    """Wait until the WebUI answers.

    Args:
        listens: whether what answers may be the process; before, it is another program.
        remedy: what to do when the process has ended.

    Raises:
        LostConnection: the process has ended, or it does not answer in time.
    """
    deadline = time.monotonic() + OPEN_SECONDS
    while process.poll() is None:
        try:
            if not listens():
                raise ConnectionError
            _probe(url)
        except OSError:  # requests' errors are
            if time.monotonic() > deadline:
                raise LostConnection(
                    f"the WebUI does not answer through the port forward after {OPEN_SECONDS:.0f} s: the master may "
                    f"be booting; look at it with oq-cluster workers or oq-cluster shell{log.tail()}"
                ) from None
            time.sleep(0.2)
        else:
            if process.poll() is None:  # or it was another program at this port
                return
    raise _EndedError(f"the port forward ended unexpectedly: {remedy()}{log.tail()}")


def _probe(url: str) -> None:
    """Let something answer at a URL; whose certificate it has is looked at before anything is sent that matters.

    Raises:
        OSError: nothing does.
    """
    parts = urlsplit(url)
    if parts.scheme == "https":
        ssl.get_server_certificate((parts.hostname or "", parts.port or 0), timeout=10)
    else:
        with requests.Session() as session:
            session.trust_env = False  # no proxy is asked for what is on this computer
            session.get(url + PROBE, timeout=10, allow_redirects=False)


class SessionForward(Forward):
    """A port forward of Session Manager."""

    def __init__(self, manager: SessionManager, scheme: str, remote_port: int, port: int = 0) -> None:
        super().__init__(scheme, port)
        self.manager = manager
        self.remote_port = remote_port
        self.session: Session | None = None

    def start(self, port: int, log: IO[str]) -> subprocess.Popen[Any]:
        """Start a session and its plugin, which does not see this terminal's Ctrl-C."""
        parameters = {"portNumber": [str(self.remote_port)], "localPortNumber": [str(port)]}
        self.session = self.manager.start(
            session_manager.PORT_FORWARDING,
            parameters,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return self.session.process

    def listens(self, port: int, printed: str) -> bool:
        """Whether the plugin says so, a second or two after its start (startLocalListener in its source)."""
        return f"Port {port} opened" in printed

    def remedy(self) -> str:
        """Install a newer plugin, if that may be it."""
        return session_manager.outdated() or super().remedy()

    def end(self) -> None:
        """End both."""
        if self.session is not None:
            self.session.end()
            self.session = None


class LabForward(Forward):
    """A port forward of a lab."""

    def __init__(self, source: Source, scheme: str, remote_port: int, port: int = 0) -> None:
        super().__init__(scheme, port)
        self.source = source
        self.remote_port = remote_port
        self.process: subprocess.Popen[Any] | None = None

    def start(self, port: int, log: IO[str]) -> subprocess.Popen[Any]:
        """Start the lab's command."""
        command = stack.lab_command(self.source, "forward", "master", str(self.remote_port), str(port))
        self.process = subprocess.Popen(
            command,
            env=stack.lab_environment(self.source),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return self.process

    def end(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


class Master(ABC):
    """Commands on the master, as root."""

    @abstractmethod
    def run(self, line: str, timeout: float = 60) -> Answer:
        """Run a line of shell. On AWS line and output are kept for 30 days, so neither may hold a secret."""

    def run_packed(self, line: str, timeout: float = 60) -> Answer:
        """The same, with the output compressed on its way; `cut` says whether even so its end is lost.

        Raises:
            ClientError: the output does not come compressed.
        """
        answer = self.run(_PACKED.format(line=line), timeout)
        packed = answer.output.strip()
        try:
            if not packed:  # gzip makes something of nothing, too
                raise ValueError("it has not run")
            data = base64.b64decode(packed[: len(packed) // 4 * 4])
            unpacking = zlib.decompressobj(wbits=31)
            output = unpacking.decompress(data).decode(errors="replace")
        except (ValueError, zlib.error) as error:
            raise ClientError(
                f"the output of {line} cannot be read: {answer.errors.strip() or error}"
            ) from None
        return Answer(answer.status, output, answer.errors, cut=not unpacking.eof)

    @abstractmethod
    def reveal(self, words: Sequence[str]) -> str:
        """What a command prints that is nobody else's business, such as a new password.

        Raises:
            ClientError: the command failed; with its words.
        """

    @abstractmethod
    def shell(self) -> int:
        """A shell on this terminal; its exit status."""

    @abstractmethod
    def state(self) -> str:
        """What the machine is, in EC2's words, such as "running" or "stopped"."""

    @abstractmethod
    def start(self) -> None:
        """Start the machine, which is stopped; returns before it is on."""

    @abstractmethod
    def reason(self) -> str:
        """Why it is in its state, as far as that is said."""

    @abstractmethod
    def fleet(self) -> dict[str, Any]:
        """The group of workers: minimum, desired, maximum, instances, and its last launches with their reasons."""


class AwsMaster(Master):
    """The master of a cluster on AWS."""

    def __init__(self, manager: SessionManager, group: str) -> None:
        self.manager = manager
        self.group = group

    def run(self, line: str, timeout: float = 60) -> Answer:
        """By SSM's Run Command."""
        return self.manager.run(line, timeout)

    def reveal(self, words: Sequence[str]) -> str:
        """By a session, whose output only this terminal gets; Run Command would keep it in its history."""
        line = f'{shlex.join(["sudo", *words])}; echo "{_STATUS}$?"'
        # The plugin sends what it reads to the master as keystrokes, and gives up at an end: it gets neither.
        nothing, end = os.pipe()
        try:
            session = self.manager.start(
                session_manager.INTERACTIVE_COMMAND,
                {"command": [line]},
                stdin=nothing,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                printed, _ = session.process.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                raise ClientError("the master has not run the command in time; try again") from None
            finally:
                session.end()
        finally:
            os.close(nothing)
            os.close(end)
        try:
            return revealed(printed)
        except ClientError as error:
            if _STATUS not in printed and (reason := session_manager.outdated()):
                raise ClientError(f"{error}: {reason}") from None
            raise

    def shell(self) -> int:
        """By a session of Session Manager. Ctrl-C is the shell's."""
        session = self.manager.start()
        try:
            status = _on_this_terminal(session.process)
        finally:
            session.end()
        if status and (reason := session_manager.outdated()):
            raise ClientError(f"the session has ended: {reason}")
        return status

    def state(self) -> str:
        """As EC2 has it; for an hour or so it knows those, too, that are gone."""
        return str(self._described().get("State", {}).get("Name", "terminated"))

    def reason(self) -> str:
        """As EC2 has it."""
        return str(self._described().get("StateReason", {}).get("Message", ""))

    def _described(self) -> dict[str, Any]:
        with session_manager.explained(self.manager.instance_id):
            found = self.manager.service("ec2").describe_instances(InstanceIds=[self.manager.instance_id])
        instances = [one for reservation in found["Reservations"] for one in reservation["Instances"]]
        return dict(instances[0]) if instances else {}

    def start(self) -> None:
        """By EC2."""
        with session_manager.explained(self.manager.instance_id):
            self.manager.service("ec2").start_instances(InstanceIds=[self.manager.instance_id])

    def fleet(self) -> dict[str, Any]:
        """As EC2 Auto Scaling has it."""
        client = self.manager.service("autoscaling")
        with session_manager.explained(self.manager.instance_id):
            answer = client.describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
            if not answer["AutoScalingGroups"]:
                raise ClientError(
                    f"there is no group {self.group}: export the outputs again, or pulumi refresh"
                )
            (group,) = answer["AutoScalingGroups"]
            activities = client.describe_scaling_activities(
                AutoScalingGroupName=self.group, MaxRecords=_ACTIVITIES
            )["Activities"]
        return {
            "minimum": group["MinSize"],
            "desired": group["DesiredCapacity"],
            "maximum": group["MaxSize"],
            "instances": [
                {"id": instance["InstanceId"], "state": instance["LifecycleState"]}
                for instance in group["Instances"]
            ],
            "activities": [
                {
                    "time": activity["StartTime"].isoformat(timespec="seconds"),
                    "status": activity["StatusCode"],
                    "text": activity.get("StatusMessage") or activity["Description"],
                }
                for activity in activities
                if not activity["Description"].startswith("Terminating")
            ],
        }


_LABS_OWN: Final = "lab: "  # begins the lab's own errors, where a node's command prints anything


class LabMaster(Master):
    """The master of a lab on this machine."""

    def __init__(self, source: Source, outputs: Outputs) -> None:
        self.source = source
        self.outputs = outputs

    def _exec(self, *words: str) -> list[str]:
        return stack.lab_command(self.source, "exec", "master", *words)

    def run(self, line: str, timeout: float = 60) -> Answer:
        """By the lab's exec, with no more of an environment than Run Command's agent gives."""
        try:
            done = subprocess.run(
                self._exec("--", "env", "--unset=HOME", "--unset=TERM", "sh", "-c", line),
                env=stack.lab_environment(self.source),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ClientError(f"the master has not run the command in {timeout:.0f} s; try again") from None
        if done.returncode and done.stderr.startswith(_LABS_OWN):
            raise Unreachable(done.stderr.strip())
        return Answer(done.returncode, done.stdout, done.stderr)

    def reveal(self, words: Sequence[str]) -> str:
        """The same: nothing keeps it."""
        answer = self.run(f'{shlex.join(words)} 2>&1; echo "{_STATUS}$?"', 180)
        return revealed(answer.output or f"{answer.errors}{_STATUS}{answer.status}")

    def shell(self) -> int:
        """The lab's exec on this terminal."""
        if self.state() != RUNNING:
            raise Unreachable("the lab's master is off")
        return _on_this_terminal(
            subprocess.Popen(self._exec(), env=stack.lab_environment(self.source), stdin=sys.stdin)
        )

    def state(self) -> str:
        """As the lab has it now."""
        return str(stack.read(self.source).values[stack.LAB]["master"])

    def reason(self) -> str:
        """The lab says none."""
        return ""

    def start(self) -> None:
        """By the lab's start."""
        done = subprocess.run(
            stack.lab_command(self.source, "start", "master", "--no-wait"),
            env=stack.lab_environment(self.source),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClientError(done.stderr.strip())

    def fleet(self) -> dict[str, Any]:
        """As the lab has it."""
        found: dict[str, Any] = self.outputs.values[stack.LAB]["fleet"]
        return found


def revealed(printed: str) -> str:
    """What a command printed before its exit status, without the plugin's own lines.

    Raises:
        ClientError: its status was not 0, or it never ran.
    """
    text, mark, rest = printed.replace("\r", "").partition(_STATUS)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Starting session")]
    status = re.match(r"\d+", rest)
    if not mark or status is None or int(status[0]):
        raise ClientError("\n".join(lines) or "the session has ended before the command; try again")
    return "\n".join(lines)


def _on_this_terminal(process: subprocess.Popen[Any]) -> int:
    """Wait for a process that has this terminal; Ctrl-C is its own."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, former)


def door(source: Source, outputs: Outputs, port: int = 0) -> Door:
    """The way to a cluster's WebUI.

    Args:
        port: the local one of a port forward; any free one without.
    """
    url, remote_port = outputs.webui
    scheme = urlsplit(url).scheme
    if source.lab:
        return LabForward(source, scheme, remote_port, port)
    if source.direct:
        return Direct(url)
    return SessionForward(_manager(source, outputs), scheme, remote_port, port)


def master(source: Source, outputs: Outputs) -> Master:
    """The way to a cluster's master."""
    if source.lab:
        return LabMaster(source, outputs)
    return AwsMaster(_manager(source, outputs), outputs["workerGroupName"])


def asleep(master: Master) -> Asleep | None:
    """Why a master does not answer, if that is because it is off; None too where AWS does not tell this user."""
    try:
        state = master.state()
    except ClientError:
        return None
    if state not in OFF:
        return None
    return Asleep(
        f"the master {'sleeps' if state == STOPPED else 'is going to sleep'}: oq-cluster wake starts it"
    )


def _manager(source: Source, outputs: Outputs) -> SessionManager:
    return SessionManager(outputs["region"], outputs["masterInstanceId"], source.profile)
