"""Wait until a node says that it is ready, by running its status command through SSM. Run by the readiness
component.

    python -m components.wait_until_ready --region eu-central-1 --minutes 30 i-0123456789abcdef0

Credentials are boto3's usual ones, or those of --profile. Exits 0 when the node is ready; otherwise 1, with the node's
last problems and the end of its log on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError

from components import facts

_LOG: Final = (
    f"journalctl --no-pager --lines=60 --identifier={facts.NODE_LOG} --identifier={facts.VOLUMES_LOG}"
)
_POLL_SECONDS: Final = 10
_ANSWER_POLL_SECONDS: Final = 1
# SSM forgets a command that the agent has not picked up in this time; 30 is the least that it takes.
_DELIVERY_SECONDS: Final = 30
_ANSWER_SECONDS: Final = 2 * _DELIVERY_SECONDS
# The state of a command that the agent has picked up, and those after which nothing more comes.
_RUNNING: Final = "InProgress"
_FINAL: Final = frozenset({"Success", "Cancelled", "TimedOut", "Failed"})
# What SSM says while the agent has not registered yet, and in the moment before an invocation exists.
_NOT_YET: Final = frozenset({"InvalidInstanceId", "InvocationDoesNotExist"})
# What AWS says when it is asked too often; https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"}
)
# The connection of a laptop that moves, say.
_UNREACHED: Final = (BotoConnectionError, HTTPClientError)


class NotReady(Exception):
    """The node was not ready at the deadline; the text says why, as far as it is known."""


@dataclass(frozen=True)
class Answer:
    """What a command on the node gave: its exit status and what it printed."""

    status: int
    output: str


@dataclass
class Node:
    """A node, asked through SSM. `client` is boto3's SSM client; clock and sleep count in seconds.

    Of the last command, `trouble` is why AWS could not be asked, nothing where it could, and `busy` is whether the node
    had begun with it when it was given up.
    """

    client: Any
    instance_id: str
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    trouble: str = ""
    busy: bool = False

    def run(self, command: str) -> Answer | None:
        """Run a shell command; None if the node's agent, or AWS, does not answer (yet)."""
        self.trouble = ""
        self.busy = False
        try:
            sent = self.client.send_command(
                InstanceIds=[self.instance_id],
                DocumentName="AWS-RunShellScript",
                Parameters={"commands": [command]},
                TimeoutSeconds=_DELIVERY_SECONDS,
            )
        except (ClientError, *_UNREACHED) as error:
            self.trouble = _passing(error)
            return None
        deadline = self.clock() + _ANSWER_SECONDS
        while self.clock() < deadline:
            self.sleep(_ANSWER_POLL_SECONDS)
            try:
                result = self.client.get_command_invocation(
                    CommandId=sent["Command"]["CommandId"], InstanceId=self.instance_id
                )
            except (ClientError, *_UNREACHED) as error:
                self.trouble = _passing(error)
                continue
            self.trouble = ""
            self.busy = result["Status"] == _RUNNING
            if result["Status"] in _FINAL:
                if result["ResponseCode"] < 0:  # the command never ran
                    return None
                return Answer(result["ResponseCode"], result["StandardOutputContent"])
        return None


def _passing(error: Exception) -> str:
    """Why AWS could not be asked, if the agent is not just late; raises what does not pass by itself."""
    if not isinstance(error, ClientError):
        return str(error)
    code = error.response["Error"]["Code"]
    if code in _NOT_YET:
        return ""
    if code in _THROTTLED or error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
        return str(error)
    raise error


def wait(node: Node, minutes: float, report: Callable[[str], None]) -> None:
    """Return when the node is ready, telling `report` about each change; raise NotReady after `minutes`."""
    deadline = node.clock() + minutes * 60
    state = ""
    while True:
        answer = node.run(f"{facts.NODE_PROGRAM} status")
        now = _state(node, answer)
        if answer is not None and answer.status == 0:
            report("ready")
            return
        if now != state:
            report(now)
            state = now
        if node.clock() >= deadline:
            raise NotReady(_explanation(node, minutes, state))
        node.sleep(_POLL_SECONDS)


def _state(node: Node, answer: Answer | None) -> str:
    """What an answer of the status command says, in one line."""
    if node.trouble:
        return f"AWS does not answer: {node.trouble}"
    if answer is None:
        return (
            f"the status command has not ended after {_ANSWER_SECONDS} s: the node is busy, or short of memory"
            if node.busy
            else "the SSM agent does not answer"
        )
    try:
        problems = json.loads(answer.output)["problems"]
    except (ValueError, KeyError, TypeError):
        return f"the status command gave exit status {answer.status}: {answer.output.strip() or '(nothing)'}"
    return "not ready: " + "; ".join(problems)


def _explanation(node: Node, minutes: float, state: str) -> str:
    log = node.run(_LOG)
    if log is None:
        end = (
            "its log cannot be read through SSM; see the console: "
            f"aws ec2 get-console-output --latest --output text --instance-id {node.instance_id}"
        )
    else:
        end = f"the end of its log:\n{log.output.rstrip()}"
    return f"{node.instance_id} was not ready after {minutes:g} minutes: {state}\n{end}"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="wait_until_ready", description="Wait until a node says that it is ready."
    )
    parser.add_argument("--region", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="give up after this time")
    parser.add_argument("--profile", help="of AWS's configuration, whatever the environment has")
    parser.add_argument("instance_id")
    given = parser.parse_args(arguments)
    try:
        session = boto3.Session(profile_name=given.profile)
        node = Node(session.client("ssm", region_name=given.region), given.instance_id)
        wait(node, given.minutes, lambda line: print(line, flush=True))
    except NotReady as error:
        print(error, file=sys.stderr)
    except (BotoCoreError, ClientError) as error:  # no credentials, no rights, no network
        print(f"cannot ask AWS whether the master is ready (waitForReady): {error}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
