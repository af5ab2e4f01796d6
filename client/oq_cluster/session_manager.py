"""AWS Systems Manager: sessions through the plugin that the AWS CLI uses, and commands on the master.

The AWS CLI itself is not needed: it starts a session by the API and hands it to the executable
`session-manager-plugin`, and so does this (awscli/customizations/sessionmanager.py of the AWS CLI).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from botocore import exceptions
from botocore.exceptions import BotoCoreError
from botocore.exceptions import ClientError as ApiError

from oq_cluster.errors import ClientError, Offline, Unreachable

PLUGIN: Final = "session-manager-plugin"
# Plugins after this version take the session's token by an environment variable, so that no list of processes shows it.
_LAST_WITHOUT_VARIABLE: Final = (1, 2, 497, 0)
# https://docs.aws.amazon.com/systems-manager/latest/userguide/plugin-version-history.html
_OLDEST_SUPPORTED: Final = (1, 2, 764, 0)
_VARIABLE: Final = "AWS_SSM_START_SESSION_RESPONSE"
PORT_FORWARDING: Final = "AWS-StartPortForwardingSession"
INTERACTIVE_COMMAND: Final = "AWS-StartInteractiveCommand"

OUTPUT_BYTES: Final = 24_000
"""All that Run Command's agent keeps of a command's output (StringPrefix in agent/plugins/pluginutil of its source)."""
# What the agent puts behind the errors of every command that fails (agent/plugins/runscript).
_AGENTS_OWN: Final = re.compile(r"^failed to run commands: .*\n?", re.MULTILINE)
_POLL_SECONDS: Final = 1.0
# SSM forgets a command that the agent has not picked up in this time; 30 is the least that it takes.
_DELIVERY_SECONDS: Final = 30
# How long the end of a session may take: without a network nobody wants to wait for it, and it ends by itself.
_END_CONNECT_SECONDS: Final = 3.0
_END_READ_SECONDS: Final = 5.0
_FINAL: Final = frozenset({"Success", "Cancelled", "TimedOut", "Failed"})

_INSTALL: Final = (
    "https://docs.aws.amazon.com/systems-manager/latest/userguide/"
    "session-manager-working-with-install-plugin.html"
)
_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
)
_EXPIRED: Final = (
    exceptions.SSOTokenLoadError,
    exceptions.TokenRetrievalError,
    exceptions.UnauthorizedSSOTokenError,
)
_EXPIRED_CODES: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_INVALID_CODES: Final = frozenset({"UnrecognizedClientException", "InvalidClientTokenId"})
_NOT_CONNECTED_CODES: Final = frozenset({"TargetNotConnected", "InvalidInstanceId"})


@dataclass(frozen=True)
class Answer:
    """What a command on the master gave: exit status, standard output, standard error.

    Attributes:
        cut: whether there was more output than AWS hands over, as far as it is known (`reach.Master.run_packed`).
    """

    status: int
    output: str
    errors: str = ""
    cut: bool = False


@contextlib.contextmanager
def explained(instance_id: str = "") -> Iterator[None]:
    """Turn what AWS's SDK raises into one line with the remedy."""
    try:
        yield
    except _CREDENTIALS as error:
        raise ClientError(
            f"no AWS credentials found ({error}): run aws configure, or name a profile with --profile or AWS_PROFILE"
        ) from error
    except _EXPIRED as error:
        raise ClientError(f"your AWS session has ended ({error}): aws sso login") from error
    except ApiError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code in _EXPIRED_CODES:
            text = "your AWS credentials have expired: aws sso login, or renew them where you got them"
        elif code in _INVALID_CODES:
            text = f"AWS does not know your credentials ({message}): aws configure, or another --profile"
        elif code in _NOT_CONNECTED_CODES:
            raise Unreachable(
                f"Session Manager does not reach the master {instance_id}: it is off, still booting, or has been "
                "replaced. If it is off: oq-cluster wake; if it has been replaced and you use --outputs, export them "
                "again"
            ) from error
        elif code == "InsufficientInstanceCapacity":
            text = (
                f"AWS has no capacity for the master's instance type at the moment ({message}): try again later, or "
                "pulumi config set masterInstanceType TYPE && pulumi up"
            )
        elif code.startswith("AccessDenied") or code == "UnauthorizedOperation":  # EC2's word for it
            text = f"your AWS identity may not do this: {message}. Ask whoever administers the AWS account"
        else:
            text = f"AWS: {code}: {message}"
        raise ClientError(text) from error
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
        raise Offline(f"AWS cannot be reached: {error}") from error
    except BotoCoreError as error:
        raise ClientError(f"AWS cannot be asked: {error}") from error


@dataclass
class SessionManager:
    """Session Manager of one region, for one instance."""

    region: str
    instance_id: str
    profile: str = ""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @cached_property
    def client(self) -> Any:
        """boto3's client."""
        return self.service("ssm")

    def service(self, name: str) -> Any:
        """boto3's client of a service."""
        with explained(self.instance_id):
            return self._session.client(name, region_name=self.region)

    @cached_property
    def _session(self) -> Any:
        """boto3's, which keeps the credentials that it has found."""
        import boto3  # more than half of what the client would load for commands that ask AWS nothing

        return boto3.Session(profile_name=self.profile or None)

    def start(
        self, document: str = "", parameters: Mapping[str, list[str]] | None = None, **options: Any
    ) -> Session:
        """Start a session and the plugin for it.

        Args:
            document: what kind of session; a shell without.
            parameters: of the document.
            options: of `subprocess.Popen`.

        Raises:
            ClientError: there is no plugin, or AWS refuses.
        """
        environment = plugin_environment()
        request: dict[str, Any] = {"Target": self.instance_id}
        if document:
            request |= {"DocumentName": document, "Parameters": dict(parameters or {})}
        with explained(self.instance_id):
            response = self.client.start_session(**request)
        session = {name: response[name] for name in ("SessionId", "TokenValue", "StreamUrl")}
        given = json.dumps(session)
        if environment is not None:
            environment[_VARIABLE], given = given, _VARIABLE
        # The plugin asks AWS for the same session again when its connection breaks, with these credentials.
        words = [
            PLUGIN, given, self.region, "StartSession", self.profile, json.dumps(request),
            self.client.meta.endpoint_url,
        ]  # fmt: skip
        try:
            process = subprocess.Popen(words, env=environment, **options)
        except OSError as error:
            self.terminate(response["SessionId"])
            raise ClientError(f"{PLUGIN}: {error}: install it again: {_INSTALL}") from None
        return Session(self, response["SessionId"], process)

    def terminate(self, session_id: str) -> None:
        """End a session on AWS's side; one that has ended already, or cannot be ended, ends by itself."""
        from botocore.config import Config

        limits = Config(
            connect_timeout=_END_CONNECT_SECONDS,
            read_timeout=_END_READ_SECONDS,
            retries={"total_max_attempts": 1},
        )
        with contextlib.suppress(BotoCoreError, ApiError):
            client = self._session.client("ssm", region_name=self.region, config=limits)
            client.terminate_session(SessionId=session_id)

    def run(self, line: str, timeout: float = 60) -> Answer:
        """Run a line of shell as root, and wait for it. AWS keeps line and output for 30 days: no secrets in it.

        Output after OUTPUT_BYTES is lost.

        Args:
            line: for /bin/sh.
            timeout: seconds.

        Raises:
            ClientError: the master does not answer, or not in time.
        """
        with explained(self.instance_id):
            sent = self.client.send_command(
                InstanceIds=[self.instance_id],
                DocumentName="AWS-RunShellScript",
                Parameters={"commands": [line], "executionTimeout": [str(max(1, round(timeout)))]},
                TimeoutSeconds=_DELIVERY_SECONDS,
            )
            command = sent["Command"]["CommandId"]
            deadline = self.clock() + _DELIVERY_SECONDS + timeout
            while self.clock() < deadline:
                self.sleep(_POLL_SECONDS)
                try:
                    result = self.client.get_command_invocation(
                        CommandId=command, InstanceId=self.instance_id
                    )
                except ApiError as error:
                    if error.response["Error"]["Code"] != "InvocationDoesNotExist":  # it does in a moment
                        raise
                    continue
                if result["Status"] in _FINAL:
                    if result["ResponseCode"] < 0:
                        break
                    errors = _AGENTS_OWN.sub("", result.get("StandardErrorContent", ""))
                    return Answer(result["ResponseCode"], result["StandardOutputContent"], errors)
        raise Unreachable(
            f"the master {self.instance_id} has not run the command in time: it is busy, booting or off; "
            "try again, or look at it with oq-cluster shell"
        )


@dataclass
class Session:
    """A session with the plugin's process."""

    manager: SessionManager
    id: str
    process: subprocess.Popen[Any]

    def end(self) -> None:
        """End the process and the session."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.manager.terminate(self.id)


def plugin_environment() -> dict[str, str] | None:
    """The environment for a plugin that takes the session's token from it; None for an older plugin.

    Raises:
        ClientError: there is no plugin.
    """
    version = _version()
    return dict(os.environ) if version is not None and version > _LAST_WITHOUT_VARIABLE else None


def outdated() -> str:
    """That the plugin is too old for AWS, which may be why a session has failed, with the remedy; empty if it is not.

    Raises:
        ClientError: there is no plugin.
    """
    version = _version()
    if version is None or version >= _OLDEST_SUPPORTED:
        return ""
    here, oldest = (".".join(map(str, numbers)) for numbers in (version, _OLDEST_SUPPORTED))
    return (
        f"the Session Manager plugin on this computer has version {here}, and AWS supports {oldest} and newer only: "
        f"install it again: {_INSTALL}"
    )


def _version() -> tuple[int, ...] | None:
    """The plugin's version; None for one that shows none.

    Raises:
        ClientError: there is no plugin.
    """
    try:
        shown = subprocess.run([PLUGIN, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        raise ClientError(
            f"the Session Manager plugin is not on this computer: {_INSTALL} "
            "(or use --direct, where a VPN reaches the master's address)"
        ) from None
    try:
        return tuple(int(part) for part in shown.strip().split("."))
    except ValueError:
        return None
