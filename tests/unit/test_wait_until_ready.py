"""The wait for the master, against botocore's own model of SSM and a clock that does not wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from botocore.stub import Stubber

from components import wait_until_ready
from components.wait_until_ready import Node, NotReady, main, wait

INSTANCE = "i-0123456789abcdef0"
READY = json.dumps({"ready": True, "role": "master", "problems": []})


def status(*problems: str) -> str:
    return json.dumps({"ready": False, "role": "master", "problems": problems})


@dataclass
class Ssm:
    """A node whose SSM client gives the answers that a test has queued, and a clock that only sleeping
    moves.
    """

    stub: Stubber
    node: Node = field(init=False)
    now: float = 0.0
    commands: int = 0

    def __post_init__(self) -> None:
        self.node = Node(self.stub.client, INSTANCE, clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def sends(self, command: str = "/usr/local/sbin/oq-node status") -> str:
        """Expect a command to be sent."""
        self.commands += 1
        command_id = f"{self.commands:08}-0000-4000-8000-000000000000"
        self.stub.add_response(
            "send_command",
            {"Command": {"CommandId": command_id}},
            {
                "InstanceIds": [INSTANCE],
                "DocumentName": "AWS-RunShellScript",
                "Parameters": {"commands": [command]},
                "TimeoutSeconds": 30,
            },
        )
        return command_id

    def answers(self, command_id: str, exit_status: int, output: str, state: str | None = None) -> None:
        """Give the outcome of a command."""
        self.stub.add_response(
            "get_command_invocation",
            {
                "Status": state or ("Success" if exit_status == 0 else "Failed"),
                "ResponseCode": exit_status,
                "StandardOutputContent": output,
            },
            {"CommandId": command_id, "InstanceId": INSTANCE},
        )

    def runs(self, exit_status: int, output: str, command: str = "/usr/local/sbin/oq-node status") -> None:
        """Expect a command and give its outcome."""
        self.answers(self.sends(command), exit_status, output)

    def refuses(self, operation: str, code: str) -> None:
        """Have AWS refuse a call."""
        self.stub.add_client_error(operation, code)


@pytest.fixture
def ssm() -> Iterator[Ssm]:
    client = boto3.client("ssm", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(client) as stub:
        yield Ssm(stub)
        stub.assert_no_pending_responses()


def test_it_ends_when_the_master_says_that_it_is_ready(ssm: Ssm) -> None:
    said: list[str] = []
    ssm.runs(1, status("the engine is not published yet", "openquake-webui.service is inactive"))
    ssm.runs(0, READY)
    wait(ssm.node, 30, said.append)
    assert said == [
        "not ready: the engine is not published yet; openquake-webui.service is inactive",
        "ready",
    ]


def test_it_is_patient_with_an_agent_that_is_not_there_yet_and_says_each_state_once(ssm: Ssm) -> None:
    said: list[str] = []
    ssm.refuses("send_command", "InvalidInstanceId")
    ssm.refuses("send_command", "InvalidInstanceId")
    command = ssm.sends()
    ssm.refuses("get_command_invocation", "InvocationDoesNotExist")
    ssm.answers(command, -1, "", state="InProgress")
    ssm.answers(command, 1, status("RabbitMQ is starting"))
    ssm.runs(1, status("RabbitMQ is starting"))
    ssm.runs(0, READY)
    wait(ssm.node, 30, said.append)
    assert said == ["the SSM agent does not answer", "not ready: RabbitMQ is starting", "ready"]


def test_a_node_that_does_not_finish_its_status_is_not_taken_for_one_without_an_agent(ssm: Ssm) -> None:
    command = ssm.sends()
    for state in ("Pending", *["InProgress"] * 59):
        ssm.answers(command, -1, "", state=state)
    ssm.runs(0, READY)
    reports: list[str] = []
    wait(ssm.node, 30, reports.append)
    assert reports == [
        "the status command has not ended after 60 s: the node is busy, or short of memory",
        "ready",
    ]


def test_a_command_that_never_reached_the_node_is_sent_again(ssm: Ssm) -> None:
    said: list[str] = []
    ssm.answers(ssm.sends(), -1, "", state="TimedOut")
    ssm.runs(0, READY)
    wait(ssm.node, 30, said.append)
    assert said == ["the SSM agent does not answer", "ready"]


def test_at_the_deadline_it_fails_with_the_problems_and_the_end_of_the_log(ssm: Ssm) -> None:
    ssm.runs(1, status("cloud-init failed"))
    ssm.runs(1, status("/var is not mounted"))
    ssm.runs(0, "line 1\nvolumes: no such device\n", wait_until_ready._LOG)
    with pytest.raises(NotReady) as error:
        wait(ssm.node, 0.1, lambda _line: None)
    assert f"{INSTANCE} was not ready after 0.1 minutes: not ready: /var is not mounted" in str(error.value)
    assert str(error.value).endswith("volumes: no such device")
    assert "cloud-init failed" not in str(error.value)


def test_if_the_agent_never_came_it_says_where_else_to_look(ssm: Ssm) -> None:
    for _ in range(2):
        ssm.refuses("send_command", "InvalidInstanceId")
    with pytest.raises(NotReady, match=f"get-console-output .*{INSTANCE}"):
        wait(ssm.node, 0, lambda _line: None)


def test_a_status_command_that_breaks_is_quoted(ssm: Ssm) -> None:
    said: list[str] = []
    ssm.runs(127, "sh: 1: oq-node: not found\n")
    ssm.runs(1, "[]")
    ssm.runs(0, READY)
    wait(ssm.node, 30, said.append)
    assert said[0] == "the status command gave exit status 127: sh: 1: oq-node: not found"
    assert said[1] == "the status command gave exit status 1: []"


def test_an_aws_that_is_away_or_asked_too_often_is_asked_again_and_said(
    ssm: Ssm, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    ssm.stub.add_client_error("send_command", "InternalServerError", http_status_code=500)
    command = ssm.sends()
    ssm.refuses("get_command_invocation", "ThrottlingException")
    ssm.answers(command, 1, status("RabbitMQ is starting"))
    ssm.runs(0, READY)
    wait(ssm.node, 30, said.append)
    assert [line.partition(" (")[0] for line in said] == [
        "AWS does not answer: An error occurred",
        "not ready: RabbitMQ is starting",
        "ready",
    ]

    def unplugged(**_: object) -> None:
        raise botocore.exceptions.EndpointConnectionError(endpoint_url="https://ssm")

    monkeypatch.setattr(ssm.node.client, "send_command", unplugged)
    with pytest.raises(NotReady, match="AWS does not answer: Could not connect to the endpoint"):
        wait(ssm.node, 0.1, said.append)


def test_another_refusal_of_awss_ends_the_wait_at_once(ssm: Ssm) -> None:
    ssm.refuses("send_command", "AccessDeniedException")
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        wait(ssm.node, 30, lambda _line: None)
    command = ssm.sends()
    ssm.refuses("get_command_invocation", "AccessDeniedException")
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        wait(ssm.node, 30, lambda _line: None)
    assert command


@pytest.mark.parametrize(
    ("outcome", "exit_status", "text"),
    [
        (None, 0, ""),
        (NotReady("the log's end"), 1, "the log's end"),
        (botocore.exceptions.NoCredentialsError(), 1, "Unable to locate credentials"),
    ],
)
def test_the_command_line_ends_with_a_message_and_never_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Exception | None,
    exit_status: int,
    text: str,
) -> None:
    def waited(node: Node, minutes: float, _report: object) -> None:
        assert (node.instance_id, minutes) == (INSTANCE, 5)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(wait_until_ready, "wait", waited)
    assert main(["--region", "eu-central-1", "--minutes", "5", INSTANCE]) == exit_status
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("profile", "key"), [([], "AKIAENVIRONMENT"), (["--profile", "seismo"], "AKIAPROFILE")]
)
def test_a_profile_that_is_named_wins_over_keys_in_the_environment_as_it_does_for_the_provider(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: list[str], key: str
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[seismo]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    used: list[str] = []

    def waited(node: Node, _minutes: float, _report: object) -> None:
        used.append(node.client._request_signer._credentials.access_key)

    monkeypatch.setattr(wait_until_ready, "wait", waited)
    assert main(["--region", "eu-central-1", "--minutes", "5", *profile, INSTANCE]) == 0
    assert used == [key]


def test_a_profile_that_is_not_there_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert main(["--region", "eu-central-1", "--minutes", "5", "--profile", "seismo", INSTANCE]) == 1
    assert "seismo" in capsys.readouterr().err
