"""What the logs of calculations are told of a group of workers that starts none, with made-up answers of AWS.

That a line gets into the log of a calculation that waits is shown by the lab's tests.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from oq_fleet import watch
from oq_fleet.reasons import reason
from oq_fleet.watch import Fleet, Line, Told

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_files
from tests.unit.test_program import GROUP

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
TAGS = {"Project": "openquake-cluster", "Stack": "test"}
# As AWS has worded them: kubernetes/autoscaler issue 3241, buildkite/elastic-ci-stack-for-aws issue 851,
# aws/aws-parallelcluster issues 1944 and 340, and EC2's list of error codes.
NO_SPOT = (
    "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
    "configuration. Please adjust your request and try again. Launching EC2 instance failed."
)
OLD_NO_SPOT = "There is no Spot capacity available that matches your request. Launching EC2 instance failed."
NO_SPOT_IN_ZONE = (
    "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available."
)
SPOT_QUOTA = (
    "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded."
)
QUOTA = (
    "You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket that the "
    "specified instance type belongs to. Launching EC2 instance failed."
)
FREE_PLAN = (
    "Could not launch Spot Instances. InvalidParameterCombination - The specified instance type is not eligible for "
    "Free Tier. For a list of Free Tier instance types, run 'describe-instance-types'. Launching EC2 instance failed."
)
NO_CAPACITY = (
    "We currently do not have sufficient c7i.2xlarge capacity in the Availability Zone you requested (eu-central-1a). "
    "Launching EC2 instance failed."
)
# https://docs.aws.amazon.com/autoscaling/ec2/userguide/ts-as-instancelaunchfailure.html
NO_KEY = (
    "Instance became unhealthy while waiting for instance to be in InService state. Termination Reason: "
    "Client.InternalError: Client error on launch"
)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (NO_SPOT, "no spot capacity .*workerOnDemandBase"),
        (OLD_NO_SPOT, "no spot capacity"),
        (NO_SPOT_IN_ZONE, "no spot capacity"),
        (SPOT_QUOTA, "quota of spot capacity .*All Standard Spot Instance Requests"),
        (QUOTA, "quota of vCPUs .*Running On-Demand Standard instances"),
        ("VcpuLimitExceeded", "quota of vCPUs"),
        (NO_CAPACITY, "no capacity of these instance types .*workerInstanceTypes"),
        ("InsufficientFreeAddressesInSubnet", "no free address"),
        (FREE_PLAN, "free plan.*Upgrade the plan"),
        (NO_KEY, "the key of the workers' root disks.*workerKeyGrantCommand.*AWSServiceRoleForAutoScaling"),
        (f"Could not launch Spot Instances. {NO_KEY}", "the key of the workers' root disks"),
    ],
)
def test_a_reason_is_said_with_what_to_do_and_in_amazons_words(message: str, words: str) -> None:
    found = reason(message)
    assert re.search(words, found.text)
    assert found.text.endswith(f"AWS says: {message}")


def test_an_unknown_reason_is_said_in_amazons_words_but_not_in_thousands_of_characters() -> None:
    assert reason("The image ami-0123456789abcdef0 is gone.").text == (
        "AWS says: The image ami-0123456789abcdef0 is gone."
    )
    assert len(reason("not authorized: " + "x " * 5000).text) < 500


def test_the_same_reason_in_another_zone_or_of_another_machine_is_no_new_one() -> None:
    assert reason(NO_CAPACITY).kind == reason(NO_CAPACITY.replace("1a", "1b")).kind
    one, other = (
        "ami-0123456789abcdef0 is gone in eu-central-1a",
        "ami-0fedcba9876543210 is gone in us-east-1f",
    )
    assert reason(one).kind == reason(other).kind
    assert reason(one).kind != reason("The key of the disks is gone").kind


def fleet(present: int, wanted: int, message: str = "") -> Fleet:
    return Fleet(wanted, present, reason(message) if message else None)


def said(told: Told, waiting: dict[int, int], *fleets: Fleet) -> list[Line]:
    """What is said at a look at each of these fleets."""
    return [line for now in fleets for line in told.lines(waiting, now)]


def test_each_calculation_whose_tasks_wait_is_told_once_for_each_reason() -> None:
    lacking, refused = fleet(0, 4, NO_SPOT), fleet(0, 4, SPOT_QUOTA)
    lines = said(Told(), {7: 30, 9: 1}, *[lacking] * 4, *[refused] * 3, lacking)
    assert [(job, level) for job, level, _ in lines] == [(7, "WARNING"), (9, "WARNING")] * 2
    first, _, second, _ = [text for _, _, text in lines]
    assert first.startswith(
        "No worker starts for 30 waiting tasks, 0 of 4 are there: AWS has no spot capacity"
    )
    assert "quota" in second
    assert " 1 waiting task," in lines[1][2]


def test_of_a_calculation_that_comes_later_the_log_says_it_too() -> None:
    told = Told()
    said(told, {7: 30}, *[fleet(0, 4, NO_SPOT)] * 2)
    assert [job for job, _, _ in said(told, {7: 30, 8: 5}, fleet(0, 4, NO_SPOT))] == [8]


def test_a_fleet_that_is_too_small_is_told_apart_from_none() -> None:
    ((_, _, text),) = said(Told(), {7: 30}, *[fleet(1, 4, NO_SPOT)] * 2)
    assert text.startswith("No further worker starts for 30 waiting tasks, 1 of 4 are there")


def test_what_is_seen_for_the_first_time_may_be_about_to_change() -> None:
    assert said(Told(), {7: 30}, fleet(0, 4, NO_SPOT), fleet(4, 4), fleet(0, 4, NO_SPOT)) == []


def test_a_group_that_has_all_its_instances_or_has_not_failed_is_not_spoken_of() -> None:
    assert said(Told(), {7: 30}, *[fleet(4, 4)] * 3, *[fleet(2, 4)] * 3) == []


def test_the_end_of_the_lack_is_told_and_a_new_one_is_told_again() -> None:
    told = Told()
    lacking = [fleet(0, 2, NO_SPOT)] * 2
    lines = said(told, {7: 30}, *lacking, fleet(1, 2), fleet(2, 2), fleet(2, 2), *lacking)
    assert [text.split(":")[0] for _, _, text in lines] == [
        "No worker starts for 30 waiting tasks, 0 of 2 are there",
        "Workers start again",
        "No worker starts for 30 waiting tasks, 0 of 2 are there",
    ]
    assert lines[1][1] == "INFO"
    told.forget()
    assert said(told, {7: 30}, fleet(2, 2)) == []


def test_a_line_that_could_not_be_written_is_said_again() -> None:
    told, lacking = Told(), fleet(0, 2, NO_SPOT)
    said(told, {7: 1}, lacking)
    next(told.lines({7: 1}, lacking))  # whoever writes it fails, and does not come back
    assert len(said(told, {7: 1}, lacking)) == 1


def activity(
    message: str, minutes: float, code: str = "Failed", what: str = "Launching a new EC2 instance"
) -> Any:
    return {
        "ActivityId": "1",
        "AutoScalingGroupName": "workers",
        "Description": f"{what}.  Status Reason: {message}",
        "Cause": "At … an instance was started in response to a difference between desired and actual capacity.",
        "StartTime": NOW - timedelta(minutes=minutes),
        "StatusCode": code,
        **({"StatusMessage": message} if message else {}),
    }


def asked(
    states: Sequence[str], wanted: int, activities: Sequence[Any] | None, suspended: Sequence[str] = ()
) -> Fleet:
    """What is read of a group, by botocore's model of AWS's answers; without activities nobody may ask for them."""
    client = boto3.client("autoscaling", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    instance = {"AvailabilityZone": "x", "HealthStatus": "Healthy", "ProtectedFromScaleIn": False}
    group = {
        "AutoScalingGroupName": "workers",
        "MinSize": 0,
        "MaxSize": 8,
        "DesiredCapacity": wanted,
        "DefaultCooldown": 300,
        "AvailabilityZones": ["x"],
        "HealthCheckType": "EC2",
        "CreatedTime": NOW,
        "SuspendedProcesses": [{"ProcessName": process} for process in ("AZRebalance", *suspended)],
        "Instances": [
            {**instance, "InstanceId": f"i-{number}", "LifecycleState": state}
            for number, state in enumerate(states)
        ],
    }
    with Stubber(client) as stub:
        stub.add_response(
            "describe_auto_scaling_groups",
            {"AutoScalingGroups": [group]},
            {"Filters": [{"Name": f"tag:{key}", "Values": [value]} for key, value in TAGS.items()]},
        )
        if activities is not None:
            stub.add_response(
                "describe_scaling_activities",
                {"Activities": list(activities)},
                {"AutoScalingGroupName": "workers", "MaxRecords": watch.ACTIVITIES},
            )
        return watch.read(client, TAGS, NOW)


def test_the_group_lacks_what_neither_serves_nor_starts_and_the_newest_failure_says_why() -> None:
    states = ["InService", "Pending", "Pending:Wait", "Terminating:Wait", "Terminated"]
    found = asked(states, 5, [activity("", 1, "InProgress"), activity(NO_SPOT, 2), activity(QUOTA, 3)])
    assert (found.present, found.wanted, found.lacks) == (3, 5, True)
    assert found.failure == reason(NO_SPOT)
    assert asked([], 1, [activity(OLD_NO_SPOT, 2, "Cancelled")]).failure == reason(OLD_NO_SPOT)


def test_neither_an_old_failure_nor_one_to_end_an_instance_says_why_none_starts() -> None:
    activities = [activity("it is protected", 1, what="Terminating EC2 instance: i-1"), activity(NO_SPOT, 61)]
    assert not asked(["InService"], 2, activities).lacks


def test_a_group_that_is_suspended_says_so_though_nothing_fails_any_more() -> None:
    """As AWS does after a day of failures."""
    failure = asked(["InService"], 2, None, ["Launch"]).failure
    assert failure is not None
    assert "resume-processes --auto-scaling-group-name workers --scaling-processes Launch" in failure.text
    assert asked(["InService"], 2, [activity(NO_SPOT, 1)], ["HealthCheck"]).failure == reason(NO_SPOT)


def test_of_a_full_group_no_activities_are_asked_for() -> None:
    assert asked(["InService"], 1, None) == Fleet(1, 1, None)


def test_without_a_group_of_these_tags_the_error_names_them() -> None:
    pages = SimpleNamespace(paginate=lambda **_: [{"AutoScalingGroups": []}])
    client = SimpleNamespace(get_paginator=lambda _: pages)
    with pytest.raises(LookupError, match=r"Stack.*test"):
        watch.read(client, TAGS, NOW)


class _EnoughError(BaseException):
    """Ends a watch that goes on for ever."""


def watched(
    monkeypatch: pytest.MonkeyPatch, looks: Sequence[Callable[[], Any]], now: Fleet, **changed: Any
) -> list[Line]:
    """What is written at some looks at the status, one after the other."""
    written: list[Line] = []
    left = iter(looks)

    def look() -> Any:
        try:
            return next(left)()
        except StopIteration:
            raise _EnoughError from None

    monkeypatch.setattr("oq_fleet.watch.time.sleep", lambda _seconds: None)
    write = changed.get("write", lambda *line: written.append(line))
    with pytest.raises(_EnoughError):
        watch.watch(look, lambda: now, write)
    return written


def status(**waiting: int) -> Callable[[], Any]:
    """A look that finds so many tasks waiting of calculations j7, j8 and so on."""
    rows = [SimpleNamespace(job=int(job[1:]), waiting=number) for job, number in waiting.items()]
    return lambda: SimpleNamespace(tasks=rows)


def no_broker() -> Any:
    raise ConnectionError("no broker")


def test_only_calculations_with_waiting_tasks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = fleet(0, 4, NO_SPOT)
    assert [line[0] for line in watched(monkeypatch, [status(j7=30, j8=0)] * 3, lacking)] == [7]
    assert watched(monkeypatch, [status(j8=0)] * 3, lacking) == []


def test_a_broker_that_is_away_is_reported_once_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = [status(j7=3), no_broker, no_broker, status(j7=3)]
    assert [line[0] for line in watched(monkeypatch, looks, fleet(0, 4, NO_SPOT))] == [7]
    assert capsys.readouterr().out == "fleet: no broker\n"


def test_the_masters_unit_looks_for_the_group_by_tags_that_it_has(record: Record) -> None:
    recording = record()
    unit = node_files(recording, "master")[f"/etc/systemd/system/{facts.FLEET_UNIT}"]
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *words = shlex.split(line.partition(" -m ")[2])
    assert program == "oq_fleet.watch"
    given = list(zip(words[::2], words[1::2], strict=True))
    assert given[0] == ("--region", "eu-central-1")
    named = dict(value.split("=") for option, value in given[1:] if option == "--tag")
    has = {tag["key"]: tag["value"] for tag in recording.one(GROUP).inputs["tags"]}
    assert named.keys() == {"Project", "Stack"}
    assert named.items() <= has.items()
