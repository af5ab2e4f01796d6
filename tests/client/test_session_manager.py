"""How the client comes to a cluster on AWS: Session Manager's API, its plugin, and what stands in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore import exceptions
from botocore.stub import Stubber
from oq_cluster import reach, session_manager, stack
from oq_cluster.certificate import Certificate
from oq_cluster.errors import ClientError
from oq_cluster.reach import revealed
from oq_cluster.session_manager import SessionManager
from oq_logs import cli as logs

from components import facts
from tests.client.conftest import OUTPUTS, World
from tests.client.stand_ins import PATIENCE_SECONDS

INSTANCE = OUTPUTS["masterInstanceId"]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def running(*words: str, **changes: Any) -> Iterator[subprocess.Popen[str]]:
    """A command of oq-cluster that ends with the block, or after PATIENCE_SECONDS, so that nobody reads for ever.

    Args:
        words: of the command.
        changes: of the handlers of its signals, by their names.
    """

    def prepare() -> None:
        # What runs in the background ignores Ctrl-C, and its children with it.
        for name, handler in ({"SIGINT": signal.SIG_DFL} | changes).items():
            signal.signal(signal.Signals[name], handler)

    process = subprocess.Popen(
        [sys.executable, "-m", "oq_cluster", *words],
        env=os.environ | {"PYTHONPATH": str(Path(session_manager.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    limit = threading.Timer(PATIENCE_SECONDS, process.kill)
    limit.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        limit.cancel()


@pytest.fixture
def opened(world: World) -> World:
    """A cluster that asks for no login."""
    world.webui.login = False
    return world


def test_the_plugin_is_started_as_the_aws_cli_starts_it(opened: World) -> None:
    opened.oq("list")
    (started,) = opened.aws.requests("StartSession")
    assert started["Target"] == INSTANCE
    assert started["DocumentName"] == "AWS-StartPortForwardingSession"
    assert started["Parameters"]["portNumber"] == [str(facts.WEBUI_PORT)]
    (plugin,) = opened.plugins()
    response, region, operation, profile, request, endpoint = plugin["arguments"]
    assert (response, region, operation, profile) == (
        "AWS_SSM_START_SESSION_RESPONSE", "eu-central-1", "StartSession", "",
    )  # fmt: skip
    assert json.loads(plugin["token"]) == {
        "SessionId": "ann-1", "TokenValue": "the-token", "StreamUrl": "wss://example",
    }  # fmt: skip
    assert json.loads(request) == started
    assert endpoint == os.environ["AWS_ENDPOINT_URL"]


def test_an_older_plugin_gets_the_token_as_an_argument(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "1.2.497.0")
    opened.oq("list")
    (plugin,) = opened.plugins()
    assert json.loads(plugin["arguments"][0])["TokenValue"] == "the-token"
    assert plugin["token"] is None


def test_session_and_plugin_end_with_the_command(opened: World) -> None:
    opened.oq("list")
    assert opened.aws.requests("TerminateSession") == [{"SessionId": "ann-1"}]
    (plugin,) = opened.plugins()
    assert not is_alive(plugin["pid"])


def test_session_and_plugin_end_with_ctrl_c_and_the_calculation_goes_on(opened: World) -> None:
    opened.webui.endless = True
    with running("run", str(opened.job())) as process:
        assert process.stderr is not None
        shown = ""
        while "50%" not in shown:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
        assert process.returncode == 130
    assert "The calculation goes on" in rest
    assert "oq-cluster log 1 --follow" in rest
    assert "oq-cluster abort 1" in rest
    assert "Traceback" not in rest
    assert opened.webui.calculations[1].status == "executing"
    (plugin,) = opened.plugins()
    assert not is_alive(plugin["pid"])
    assert opened.aws.requests("TerminateSession") == [{"SessionId": "ann-1"}]


def test_the_webui_is_held_open_for_a_browser_until_ctrl_c(opened: World) -> None:
    with running("webui", "--no-browser", "--json") as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert requests.get(f"{url}/v1/engine_version", timeout=10).text == "3.26.2"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert (process.returncode, "Traceback" in errors) == (0, False), errors
    (plugin,) = opened.plugins()
    assert not is_alive(plugin["pid"])


def test_without_the_plugin_nothing_is_started_and_the_message_says_where_it_is_had(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(opened.path / "nothing"))
    opened.oq("list", status=1)
    assert "session-manager-working-with-install-plugin" in opened.errors
    assert opened.aws.asked == []


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("TargetNotConnected", f"does not reach the master {INSTANCE}"),
        ("ExpiredTokenException", "aws sso login"),
        ("UnrecognizedClientException", "aws configure"),
        ("AccessDeniedException", "may not do this"),
        ("ThrottlingException", "ThrottlingException"),
    ],
)
def test_a_refusal_of_aws_is_one_line_with_the_remedy(opened: World, code: str, remedy: str) -> None:
    opened.aws.error = code
    opened.oq("list", status=1)
    assert remedy in opened.errors
    assert len(opened.errors.splitlines()) == 1


def test_without_credentials_the_message_says_how_to_get_them(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    opened.oq("list", status=1)
    assert "no AWS credentials found" in opened.errors
    opened.oq("list", "--profile", "nobody", status=1)
    assert "nobody" in opened.errors


def test_a_plugin_that_ends_by_itself_is_shown_with_its_words(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "Cannot perform start session: EOF")
    monkeypatch.setattr("oq_cluster.webui.PATIENCE_SECONDS", 0)
    opened.oq("list", status=1)
    assert "the port forward ended unexpectedly: try again" in opened.errors
    assert "Cannot perform start session: EOF" in opened.errors
    assert opened.aws.requests("TerminateSession")


@pytest.mark.parametrize(
    ("version", "old"), [("1.2.763.9", True), ("1.2.764.0", False), ("1.10.0.0", False), ("none", False)]
)
@pytest.mark.parametrize("words", [("list",), ("users", "add", "bob"), ("shell",)])
def test_a_plugin_that_is_too_old_for_aws_is_named_when_its_session_fails(
    opened: World, monkeypatch: pytest.MonkeyPatch, version: str, old: bool, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "Cannot perform start session: EOF")
    monkeypatch.setenv("STAND_IN_VERSION", version)
    monkeypatch.setattr("oq_cluster.webui.PATIENCE_SECONDS", 0)
    opened.oq(*words, status=1)
    message = f"has version {version}, and AWS supports 1.2.764.0 and newer only: install it again: https://docs.aws"
    assert (message in opened.errors) == old
    assert "an error of oq-cluster itself" not in opened.errors


def test_a_port_that_somebody_has_taken_meanwhile_is_given_up_for_another(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1]]
        free = reach._free_port
        monkeypatch.setattr(reach, "_free_port", lambda wanted=0: ports.pop() if ports else free(wanted))
        opened.oq("list")
    first, second = opened.plugins()[-2:]
    assert first["arguments"][4] != second["arguments"][4]


@contextlib.contextmanager
def another_program(port: int = 0) -> Iterator[int]:
    """What speaks HTTP on a port of this computer, and is not the WebUI."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        ends = threading.Event()

        def serve() -> None:
            listener.settimeout(0.1)
            while not ends.is_set():
                with contextlib.suppress(TimeoutError), listener.accept()[0] as here:
                    here.recv(65536)
                    here.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ends.set()
            thread.join()


def test_a_port_that_another_program_has_is_not_shown_for_the_webui(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DELAY", "1")

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("oq_cluster.commands.time.sleep", interrupted)
    with another_program() as port:
        assert opened.oq("webui", "--port", str(port), "--no-browser", status=1) == ""
    assert f"port {port} of this computer is taken: end that program, or name another port" in opened.errors
    assert opened.aws.requests("StartSession") == []


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_that_there_is_not_is_wrong_usage(
    world: World, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        world.oq("webui", "--port", port)
    assert f"argument --port: {port}: a port is a number from 0 to 65535" in capsys.readouterr().err


def test_a_port_that_the_user_may_not_have_is_not_called_taken(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = socket.socket.bind

    def forbidden(given: socket.socket, address: tuple[str, int]) -> None:
        if address[1] == 80:
            raise PermissionError(errno.EACCES, "Permission denied")
        bind(given, address)

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    opened.oq("webui", "--port", "80", "--no-browser", status=1)
    assert "port 80 of this computer: Permission denied: name one from 1024 on" in opened.errors
    assert "taken" not in opened.errors
    assert opened.aws.requests("StartSession") == []


def test_what_answers_before_the_plugin_has_its_port_is_not_the_webui(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a second or two, in which another program may be quicker."""
    monkeypatch.setenv("STAND_IN_DELAY", "1")
    free = reach._free_port
    with another_program() as port:
        ports = [port]
        monkeypatch.setattr(reach, "_free_port", lambda wanted=0: ports.pop() if ports else free(wanted))
        opened.oq("list")
    assert "GET /v1/calc/list" in opened.webui.asked
    assert len(opened.plugins()) == 2


def test_what_has_the_port_of_a_plugin_that_has_ended_is_not_the_webui(opened: World) -> None:
    source = stack.Source(outputs=str(opened.path / "cluster.json"))
    door = reach.door(source, stack.read(source))
    assert isinstance(door, reach.SessionForward)
    try:
        url = door.url()
        assert door.session is not None
        os.kill(opened.plugins()[-1]["pid"], signal.SIGKILL)
        door.session.process.wait(10)
        with another_program(int(url.rpartition(":")[2])):
            assert door.url() != url
            assert requests.get(f"{door.url()}/v1/engine_version", timeout=10).text == "3.26.2"
    finally:
        door.close()


@pytest.mark.parametrize("ignored", [False, True])
def test_session_and_plugin_end_with_their_terminal_unless_nohup_says_otherwise(
    opened: World, ignored: bool
) -> None:
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    with running("webui", "--no-browser", "--json", SIGHUP=handler) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGHUP)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            assert requests.get(f"{url}/v1/engine_version", timeout=10).text == "3.26.2"
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert (process.returncode, "Traceback" in errors) == (0, False), errors
    (plugin,) = opened.plugins()
    assert not is_alive(plugin["pid"])
    assert opened.aws.requests("TerminateSession") == [{"SessionId": "ann-1"}]


def test_the_end_of_a_session_is_not_waited_for_for_long(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a network, after Ctrl-C."""
    monkeypatch.setattr(session_manager, "_END_READ_SECONDS", 0.3)
    good, held = opened.aws.answer, threading.Event()
    answers: list[bool] = []  # whether the client had gone before

    def hangs(method: str, path: str, query: Any, headers: Any, body: bytes) -> Any:
        if headers.get("X-Amz-Target", "").endswith("TerminateSession"):
            answers.append(held.wait(PATIENCE_SECONDS))
        return good(method, path, query, headers, body)

    monkeypatch.setattr(opened.aws, "answer", hangs)
    door = reach.door(source := stack.Source(outputs=str(opened.path / "cluster.json")), stack.read(source))
    door.url()
    try:
        door.close()
        assert answers == []
    finally:
        held.set()
    assert opened.aws.requests("StartSession")


def test_a_direct_address_needs_neither_aws_nor_the_plugin(opened: World) -> None:
    opened.direct()
    opened.oq("list")
    assert opened.aws.asked == []


def test_commands_on_the_master_wait_for_their_answer(world: World) -> None:
    world.aws.answers["oq-webui list"] = 0, "admin (administrator)\nann\n"
    assert json.loads(world.oq("users", "list", "--json")) == [
        {"user": "admin", "admin": True},
        {"user": "ann", "admin": False},
    ]
    (sent,) = world.aws.requests("SendCommand")
    assert (sent["InstanceIds"], sent["DocumentName"]) == ([INSTANCE], "AWS-RunShellScript")
    world.aws.answers["oq-webui remove"] = 1, "oq-webui remove: there is no account eve"
    world.oq("users", "remove", "eve", status=1)
    assert "there is no account eve" in world.errors


def test_workers_logs_and_costs_are_the_masters_own_words(world: World) -> None:
    world.aws.answers = {
        "oq-node logs --json": (0, '[{"instance": "i-1"}]'),
        "oq-node logs 10.0.0.7 --lines 2": (0, "one\ntwo\n"),
        "oq-node logs": (0, "i-1  ip-10-0-0-7\n"),
        "oq-celery cost 7 --json": (0, '[{"id": 7, "usd": 0.5}]'),
        "oq-celery cost": (0, "#7 of ann, complete: 0.50 USD\n"),
    }
    assert world.oq("logs") == "i-1  ip-10-0-0-7\n"
    assert json.loads(world.oq("logs", "--json")) == [{"instance": "i-1"}]
    assert world.oq("logs", "10.0.0.7", "--lines", "2") == "one\ntwo\n"
    shown = world.oq("logs", "10.0.0.7", "--lines", "2", "--json")
    assert json.loads(shown) == {"worker": "10.0.0.7", "lines": ["one", "two"]}
    assert world.oq("cost") == "#7 of ann, complete: 0.50 USD\n"
    assert json.loads(world.oq("cost", "7", "--json")) == [{"id": 7, "usd": 0.5}]


def test_an_output_of_more_bytes_than_aws_hands_over_comes_whole(world: World) -> None:
    for much in ("x" * 24_000, "…" * 30_000):  # three bytes each
        world.aws.answers["oq-node logs i-1"] = 0, much
        assert world.oq("logs", "i-1").strip() == much


def noise(number: int, seed: int = 1) -> str:
    """Hexadecimal digits, which a compression makes half of at best."""
    return random.Random(seed).randbytes(number // 2).hex()  # noqa: S311  no secret, the same in each run


def test_a_log_that_is_too_long_for_aws_is_no_answer_and_fewer_lines_are_suggested(world: World) -> None:
    world.aws.answers["oq-node logs i-1"] = 0, noise(80_000)
    assert world.oq("logs", "i-1", status=1) == ""
    assert "ask for fewer lines (--lines N), or: oq-cluster shell, then sudo oq-node logs i-1" in world.errors
    world.aws.answers["oq-webui list"] = 0, noise(80_000)
    world.oq("users", "list", status=1)
    assert "oq-cluster shell, then sudo oq-webui list" in world.errors
    assert "--lines" not in world.errors


def left_logs(number: int) -> list[logs.Worker]:
    """Workers as a fleet of spot capacity leaves them in weeks, the last heard first."""
    found = []
    for one in range(number):
        instance, address = f"i-0{noise(16, one)}", f"10.20.{one // 250}.{one % 250}"
        host = f"ip-{address.replace('.', '-')}"
        found.append(
            logs.Worker(
                instance, host, address, 1.7e9 - 97.3 * one, one < 5, f"/opt/openquake/logs/{instance}.log"
            )
        )
    return found


@pytest.mark.parametrize("number", [400, 4000])
def test_the_workers_that_have_left_a_log_are_listed_the_newest_of_very_many(
    world: World, number: int
) -> None:
    found = left_logs(number)
    world.aws.answers = {
        "oq-node logs --json": (0, json.dumps([asdict(one) for one in found])),
        "oq-node logs": (0, logs.table(found)),
    }
    listed = json.loads(world.oq("logs", "--json"))
    assert listed == [asdict(one) for one in found[: len(listed)]]
    assert ("older ones: oq-cluster shell, then sudo oq-node logs" in world.errors) == (number > 400)
    lines = world.oq("logs").splitlines()
    assert lines == logs.table(found).splitlines()[: len(lines)]
    assert ("older ones: oq-cluster shell, then sudo oq-node logs" in world.errors) == (number > 400)
    for count in (len(listed), len(lines) - 1):
        assert count == 400 if number == 400 else count > 400


def test_what_the_workers_of_a_large_fleet_do_comes_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [
        {"name": f"openquake@ip-10-20-{one // 250}-{one % 250}", "processes": 8, "busy": one % 9}
        for one in range(1000)
    ]
    status = {
        "host": "master",
        "waiting": 3,
        "consumers": 1000,
        "workers": workers,
        "tasks": [],
        "alarm": None,
    }
    world.aws.answers["oq-celery status --json"] = 0, json.dumps(status, indent=2)
    monkeypatch.setattr("oq_cluster.reach.AwsMaster.fleet", lambda _: fleet())
    assert json.loads(world.oq("workers", "--json"))["queue"] == status


def test_a_packed_command_keeps_its_status_its_errors_and_its_output(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the shell itself."""

    def run(_: Any, line: str, timeout: float) -> session_manager.Answer:
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, check=False, timeout=timeout
        )
        assert len(done.stdout) < session_manager.OUTPUT_BYTES
        return session_manager.Answer(done.returncode, done.stdout, done.stderr)

    monkeypatch.setattr("oq_cluster.reach.AwsMaster.run", run)
    source = stack.Source(outputs=str(world.path / "cluster.json"))
    master = reach.master(source, stack.read(source))
    answer = master.run_packed("printf 'one\n…%%s\n'; echo why >&2; (exit 3)", PATIENCE_SECONDS)
    assert answer == session_manager.Answer(3, "one\n…%s\n", "why\n", cut=False)
    both = master.run_packed("(echo one; echo two >&2) 2>&1", PATIENCE_SECONDS)  # as a bug report asks
    assert (both.status, both.output) == (0, "one\ntwo\n")
    assert master.run_packed("yes a line | head -n 9999", PATIENCE_SECONDS).output == "a line\n" * 9999
    answer = master.run_packed("head -c 60000 /dev/urandom | base64", PATIENCE_SECONDS)
    assert (answer.status, answer.cut) == (0, True)
    assert len(answer.output) > 15_000
    for status, output in (0, "oops"), (2, ""):
        wrong = session_manager.Answer(status, output)
        monkeypatch.setattr("oq_cluster.reach.AwsMaster.run", lambda *_, wrong=wrong: wrong)
        with pytest.raises(ClientError, match="cannot be read"):
            master.run_packed("true")


def fleet(*activities: tuple[timedelta, str, str], desired: int = 2) -> dict[str, Any]:
    """A group without workers; its activities by their age, status and text."""
    return {
        "minimum": 0, "desired": desired, "maximum": 4, "instances": [],
        "activities": [
            {"time": (datetime.now(UTC) - age).isoformat(timespec="seconds"), "status": status, "text": text}
            for age, status, text in activities
        ],
    }  # fmt: skip


def test_why_no_worker_starts_is_a_failure_of_the_last_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.aws.answers["oq-celery status --json"] = 0, json.dumps({"waiting": 0, "workers": []})
    old, new = timedelta(days=3), timedelta(minutes=5)
    for activities, reason in (
        ([(new, "Failed", "no capacity now"), (old, "Failed", "a quota once")], "no capacity now"),
        ([(new, "PreInService", "Launching"), (old, "Failed", "a quota once")], ""),
    ):
        monkeypatch.setattr("oq_cluster.reach.AwsMaster.fleet", lambda _, given=activities: fleet(*given))
        shown = world.oq("workers")
        assert "a quota once" not in shown
        assert (f": {reason}" in shown) if reason else ("workers are starting" in shown)


def test_an_instance_that_leaves_is_no_worker_and_its_end_no_launch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.aws.answers["oq-celery status --json"] = 0, json.dumps({"waiting": 0, "workers": []})
    moment = datetime.now(UTC)
    instance = {"AvailabilityZone": "x", "HealthStatus": "Healthy", "ProtectedFromScaleIn": False}
    group = {
        "AutoScalingGroupName": "workers", "MinSize": 0, "MaxSize": 4, "DesiredCapacity": 1,
        "DefaultCooldown": 300, "AvailabilityZones": ["x"], "HealthCheckType": "EC2", "CreatedTime": moment,
        "Instances": [{**instance, "InstanceId": "i-1", "LifecycleState": "Terminating:Wait"}],
    }  # fmt: skip
    activities = [
        {
            "ActivityId": "1", "AutoScalingGroupName": "workers", "Cause": "…", "StartTime": moment,
            "StatusCode": "Failed", "StatusMessage": f"{what} has failed", "Description": f"{what} EC2 instance",
        }
        for what in ("Terminating", "Launching a new")
    ]  # fmt: skip
    client = boto3.client("autoscaling", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    services = SessionManager.service
    monkeypatch.setattr(
        SessionManager, "service", lambda ssm, name: client if name == "autoscaling" else services(ssm, name)
    )
    with Stubber(client) as stub:
        stub.add_response("describe_auto_scaling_groups", {"AutoScalingGroups": [group]})
        stub.add_response("describe_scaling_activities", {"Activities": activities})
        shown = world.oq("workers")
    assert "workers: 0 of 1 wanted" in shown
    assert "Launching a new has failed" in shown
    assert "Terminating has failed" not in shown


def test_what_a_command_says_is_not_hidden_by_the_agents_own_words(world: World) -> None:
    world.aws.answers["oq-node rotate"] = 1, "rotate failed: /opt/openquake is not mounted"
    world.oq("rotate", status=1)
    assert world.errors == "oq-cluster: rotate failed: /opt/openquake is not mounted\n"
    world.aws.answers["oq-node rotate"] = 1, ""
    world.oq("rotate", status=1)
    assert "exit status 1" in world.errors


def fake_sudo(world: World, text: str) -> None:
    sudo = world.path / "bin/sudo"
    sudo.write_text(f'#!/bin/sh\nif [ "$1" = oq-webui ]; then {text}; fi\n')
    sudo.chmod(0o755)


def test_a_new_password_comes_by_a_session_and_never_by_run_command(world: World) -> None:
    fake_sudo(world, 'echo "$3: s3cret"')
    assert json.loads(world.oq("users", "add", "bob", "--json")) == {"user": "bob", "password": "s3cret"}
    (started,) = world.aws.requests("StartSession")
    assert started["DocumentName"] == "AWS-StartInteractiveCommand"
    assert world.aws.requests("SendCommand") == []
    assert world.aws.requests("TerminateSession")


@pytest.mark.parametrize("text", ["", "bob\ncarl\n"])
def test_the_plugin_neither_takes_what_is_there_to_read_nor_finds_its_end(world: World, text: str) -> None:
    fake_sudo(world, 'echo "$3: s3cret"')
    (world.path / "names").write_text(text)
    with (world.path / "names").open() as names:
        before = os.dup(0)
        os.dup2(names.fileno(), 0)
        try:
            assert "s3cret" in world.oq("users", "add", "bob")
            assert os.read(0, 100) == text.encode()
        finally:
            os.dup2(before, 0)
            os.close(before)


def test_an_account_that_cannot_be_made_says_why(world: World) -> None:
    fake_sudo(world, "echo oq-webui add: bob is there already; exit 1")
    world.oq("users", "add", "bob", status=1)
    assert "bob is there already" in world.errors
    with pytest.raises(ClientError, match="no such account"):
        revealed("\nStarting session with SessionId: x\nno such account\noq-cluster-status=1\n")
    with pytest.raises(ClientError, match="before the command"):
        revealed("\nStarting session with SessionId: x\n")


def test_a_shell_is_a_session_on_this_terminal(world: World) -> None:
    world.oq("shell")
    (started,) = world.aws.requests("StartSession")
    assert started == {"Target": INSTANCE}
    (plugin,) = world.plugins()
    assert plugin["output"] == str(Path("/proc/self/fd/1").readlink())
    assert world.aws.requests("TerminateSession")


def test_a_stacks_outputs_are_asked_of_pulumi_in_the_programs_directory(world: World) -> None:
    pulumi = world.path / "bin/pulumi"
    pulumi.write_text(f'#!/bin/sh\necho "$@" > {world.path}/asked\ncat {world.path}/cluster.json\n')
    pulumi.chmod(0o755)
    world.oq("use", "--stack", "prod", "--directory", world.path)
    asked = (world.path / "asked").read_text()
    assert "stack output --json" in asked
    assert f"--stack prod --cwd {world.path}" in asked
    pulumi.write_text("#!/bin/sh\necho error: no stack named prod >&2; exit 1\n")
    world.oq("use", "--stack", "prod", status=1)
    assert "no stack named prod" in world.errors


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "there is no region"), ("nonsense", "not the outputs"), (None, "pulumi stack output --json >")],
)
def test_a_file_without_a_clusters_outputs_is_refused(world: World, text: str | None, message: str) -> None:
    file = world.path / "other.json"
    if text is not None:
        file.write_text(text)
    world.oq("use", "--outputs", file, status=2 if text is None else 1)
    assert message in world.errors


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_shells_is_read(opened: World, encoding: str) -> None:
    """Windows PowerShell 5 writes UTF-16, and ends of lines of its own."""
    file = opened.path / "other.json"
    file.write_bytes(json.dumps(OUTPUTS, indent=2).replace("\n", "\r\n").encode(encoding))
    opened.oq("use", "--outputs", file)
    file.write_bytes(b"\x80\x81")
    opened.oq("use", "--outputs", file, status=2)
    assert f"{file} cannot be read" in opened.errors


def test_every_output_that_the_client_needs_is_one_of_the_programs() -> None:
    program = (Path(__file__).parent.parent.parent / "__main__.py").read_text()
    for name in (*stack.REQUIRED, "webUiUrl"):
        assert f'pulumi.export("{name}"' in program, name


def test_without_a_way_to_aws_a_certificate_can_be_had_as_a_file_and_nothing_is_asked_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise exceptions.EndpointConnectionError(endpoint_url="https://ssm")

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", unreachable)
    asked: list[bool] = []
    monkeypatch.setattr("oq_cluster.reach.asleep", lambda _: asked.append(True))
    world.oq("certificate", status=1)
    assert "speaks plain HTTP" in world.errors
    world.oq("shell", status=1)
    assert "AWS cannot be reached" in world.errors
    with pytest.raises(ClientError, match=r"oq-cluster use … --certificate"):
        Certificate("x", lambda: SessionManager("r", "i-1").run("cat x").output).renew()
    assert asked == []


def test_a_command_that_asks_aws_nothing_does_not_load_boto3() -> None:
    program = "import oq_cluster.cli, sys; print(*{'boto3', 'botocore.client'} & {*sys.modules})"
    path = {"PYTHONPATH": str(Path(session_manager.__file__).parent.parent)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
