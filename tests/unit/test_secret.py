"""The program that reads a secret and makes it first, with Secrets Manager made up.

What the real one answers to whom is shown by the lab's tests.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

PROGRAM = Path(__file__).parent.parent.parent / "cloud-init/oq_node/secret.py"
WANTED = ("amqp_password=32", "dbserver_authkey=16")


class NotFound(ClientError):  # type: ignore[misc]
    """As botocore makes one for a client."""


class SecretsManager:
    """One secret; it answers a question for it with `error` if there is one."""

    exceptions = SimpleNamespace(ResourceNotFoundException=NotFound)

    def __init__(self, value: str | None = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error
        self.put: list[str] = []

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:
        assert SecretId == "the secret"
        if self.error is not None:
            raise self.error
        if self.value is None:
            raise answer("ResourceNotFoundException", NotFound)
        return {"SecretString": self.value}

    def put_secret_value(self, *, SecretId: str, SecretString: str) -> None:
        assert SecretId == "the secret"
        self.put.append(SecretString)


def answer(code: str, kind: type[ClientError] = ClientError) -> ClientError:
    return kind({"Error": {"Code": code, "Message": "made up"}}, "GetSecretValue")


Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program's command with a Secrets Manager."""

    def program(manager: SecretsManager, command: str, *words: str) -> None:
        boto3 = SimpleNamespace(client=lambda _service, **_region: manager)
        monkeypatch.setitem(sys.modules, "boto3", boto3)
        monkeypatch.setattr("sys.argv", [str(PROGRAM), command, "eu-central-1", "the secret", *words])
        runpy.run_path(str(PROGRAM))

    return program


@pytest.mark.parametrize(
    "error",
    [
        answer("AccessDeniedException"),
        answer("DecryptionFailure"),
        answer("InvalidRequestException"),  # it is marked for deletion
        answer("ThrottlingException"),
        EndpointConnectionError(endpoint_url="https://secretsmanager"),
    ],
    ids=lambda error: str(getattr(error, "response", {}).get("Error", {}).get("Code", "no connection")),
)
def test_a_secret_that_cannot_be_read_is_not_taken_for_none_and_written_over(
    run: Run, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """All nodes would have the old one, and the WebUI's sessions another key."""
    manager = SecretsManager("in use", error)
    with pytest.raises(type(error)) as raised:
        run(manager, "ensure", *WANTED)
    assert raised.value is error
    assert manager.put == []
    assert capsys.readouterr().out == ""


def test_a_secret_that_has_a_value_keeps_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    manager = SecretsManager('{"amqp_password": "in use"}')
    run(manager, "ensure", *WANTED)
    assert manager.put == []
    assert capsys.readouterr().out == '{"amqp_password": "in use"}\n'


def test_one_without_a_value_is_made_anew_each_time(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for _ in range(2):
        manager = SecretsManager()
        run(manager, "ensure", *WANTED)
        (put,) = manager.put
        assert capsys.readouterr().out == put + "\n"
        made.append(json.loads(put))
    for values in made:
        assert re.fullmatch("[0-9a-f]{64}", values["amqp_password"])
        assert re.fullmatch("[0-9a-f]{32}", values["dbserver_authkey"])
        assert len(values) == 2
    assert len({value for values in made for value in values.values()}) == 4


def test_who_only_reads_it_makes_none(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    manager = SecretsManager()
    with pytest.raises(SystemExit) as ended:
        run(manager, "get")
    assert ended.value.code == 3  # by which a worker waits
    assert manager.put == []
    assert capsys.readouterr().out == ""
