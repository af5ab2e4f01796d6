"""A master that sleeps: how it is sent there and woken, and what the other commands say of it."""

from __future__ import annotations

import io
import json

import pytest
from oq_cluster import commands
from oq_cluster.errors import Unreachable

from components import scaling
from tests.client.conftest import OUTPUTS, World

ASLEEP = "oq-cluster: the master sleeps: oq-cluster wake starts it\n"


@pytest.fixture
def asleep(world: World) -> World:
    """A cluster that asks for no login, and whose master is stopped."""
    world.webui.login = False
    world.aws.state = "stopped"
    return world


def test_sleep_asks_the_master_itself_and_waits_until_it_is_stopped(world: World) -> None:
    assert json.loads(world.oq("sleep", "--json")) == {"state": "stopped"}
    (sent,) = world.aws.requests("SendCommand")
    assert sent["Parameters"]["commands"] == ["oq-node sleep"]
    assert world.aws.state == "stopped"
    assert world.aws.requests("StopInstances") == []  # which would look at nothing


def test_a_master_that_computes_stays_awake_and_the_reason_and_the_remedy_are_one_line(world: World) -> None:
    world.aws.answers["oq-node sleep"] = 1, "calculation 4 has not ended"
    world.oq("sleep", status=1)
    assert "the master stays awake: calculation 4 has not ended. Wait" in world.errors
    assert "oq-cluster abort ID" in world.errors
    assert len(world.errors.splitlines()) == 1


def test_the_minutes_after_which_workers_leave_are_the_fleets(world: World) -> None:
    world.aws.answers["oq-node sleep"] = 1, "2 workers run"
    world.oq("sleep", status=1)
    assert commands.IDLE_MINUTES == scaling.IDLE_MINUTES
    assert f"leave after {scaling.IDLE_MINUTES} minutes" in world.errors


def test_a_master_that_goes_before_its_answer_comes_has_been_sent_to_sleep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise Unreachable("has not run the command in time")

    monkeypatch.setattr("oq_cluster.reach.AwsMaster.run", lost)
    world.aws.coming = ["running", "stopping", "stopped"]
    world.oq("sleep")
    world.aws.state = "running"
    world.oq("sleep", status=1)
    assert "has not run the command in time" in world.errors


def test_a_master_that_sleeps_is_not_sent_to_sleep_again(asleep: World) -> None:
    assert "oq-cluster wake" in asleep.oq("sleep")
    assert asleep.aws.requests("SendCommand") == []


def test_wake_starts_the_master_and_waits_until_its_webui_answers(asleep: World) -> None:
    refusals = [True, True, False]
    asleep.webui.faults.append(lambda _method, _path: bool(refusals) and refusals.pop(0))
    woken = json.loads(asleep.oq("wake", "--json"))
    assert woken["state"] == "running"
    (started,) = asleep.aws.requests("StartInstances")
    assert started["InstanceId.1"] == OUTPUTS["masterInstanceId"]
    assert refusals == []
    asleep.oq("list")


def test_wake_says_why_a_master_has_stopped_again_and_does_not_wait(asleep: World) -> None:
    asleep.webui.faults.append(lambda _method, _path: True)
    asleep.aws.starts = ("stopped", "pending", "stopped")
    asleep.oq("wake", status=1)
    assert "the master has stopped again: Client error on launch. " in asleep.errors
    assert "kms:CreateGrant" in asleep.errors


def test_wake_waits_for_a_master_that_still_stops_and_then_starts_it(asleep: World) -> None:
    asleep.aws.state, asleep.aws.coming = "running", ["stopping", "stopping", "stopped"]
    asleep.oq("wake")
    assert len(asleep.aws.requests("StartInstances")) == 1


def test_wake_of_a_master_that_is_awake_starts_nothing(world: World) -> None:
    assert "is awake" in world.oq("wake")
    assert world.aws.requests("StartInstances") == []


def test_wake_of_a_cluster_without_a_webui_waits_for_its_other_services(asleep: World) -> None:
    outputs = asleep.path / "without.json"
    outputs.write_text(json.dumps({name: value for name, value in OUTPUTS.items() if name != "webUiUrl"}))
    asleep.oq("wake", "--outputs", outputs)
    assert asleep.aws.requests("SendCommand")[-1]["Parameters"]["commands"] == ["oq-node status"]
    assert asleep.webui.asked == []


def test_wake_of_a_master_that_is_gone_says_what_to_do(asleep: World) -> None:
    asleep.aws.state = "terminated"
    asleep.oq("wake", status=1)
    assert "pulumi up" in asleep.errors


@pytest.mark.parametrize(
    ("code", "remedy"),
    [("UnauthorizedOperation", "may not do this"), ("InsufficientInstanceCapacity", "try again later")],
)
def test_a_start_that_aws_refuses_is_one_line(asleep: World, code: str, remedy: str) -> None:
    asleep.aws.ec2_error = code
    asleep.oq("wake", status=1)
    assert remedy in asleep.errors
    assert len(asleep.errors.splitlines()) == 1


def test_a_master_that_does_not_answer_in_time_ends_in_one_message(
    asleep: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oq_cluster.commands._WAKE_SECONDS", 0.1)
    asleep.webui.faults.append(lambda _method, _path: True)
    monkeypatch.setattr("oq_cluster.reach.OPEN_SECONDS", 0.1)
    asleep.oq("wake", status=1)
    assert "sudo oq-node status" in asleep.errors


@pytest.mark.parametrize(
    "words",
    [
        ("list",), ("status", "1"), ("log", "1", "--follow"), ("get", "1"), ("abort", "1"), ("shell",), ("cost",),
        ("webui", "--no-browser"), ("users", "list"), ("users", "add", "eve"), ("logs",),
        ("login", "ann", "--password-stdin"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_each_command_says_in_one_line_that_the_master_sleeps(
    asleep: World, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words[0] == "login":
        monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    asleep.oq(*words, status=1)
    assert asleep.errors == ASLEEP


def test_so_does_run_and_it_has_sent_nothing(asleep: World) -> None:
    asleep.oq("run", asleep.job(), status=1)
    assert asleep.errors == ASLEEP
    assert asleep.webui.asked == []


def test_so_does_workers_beside_the_fleet(asleep: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = {"minimum": 0, "desired": 0, "maximum": 8, "instances": [], "activities": []}
    monkeypatch.setattr("oq_cluster.reach.AwsMaster.fleet", lambda _self: fleet)
    assert "the master sleeps: oq-cluster wake starts it" in asleep.oq("workers", status=1)


def test_a_connection_that_a_master_takes_along_when_it_goes_is_not_tried_again(asleep: World) -> None:
    asleep.direct()
    asleep.aws.state = "stopping"
    asleep.webui.faults.append(lambda _method, _path: True)
    asleep.oq("list", status=1)
    assert asleep.errors == "oq-cluster: the master is going to sleep: oq-cluster wake starts it\n"
    assert len(asleep.aws.requests("DescribeInstances")) == 1


def test_who_may_not_see_the_machines_hears_of_the_connection_and_of_both_remedies(asleep: World) -> None:
    asleep.aws.ec2_error = "UnauthorizedOperation"
    asleep.oq("list", status=1)
    assert "does not reach the master" in asleep.errors
    assert "oq-cluster wake" in asleep.errors
