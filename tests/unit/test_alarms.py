"""Mails to people: the alarms that the program registers, their topic and its key.

That mails arrive is AWS's to show; that the alarms go on for what real nodes publish is shown by the lab.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from components import facts, prices, userdata
from components.settings import Settings
from lab.aws.recording import Recording
from lab.aws.resources import ACCOUNT, REGION
from tests.unit.conftest import Record

ADDRESS = "seismology@example.org"
ALARM = "aws:cloudwatch/metricAlarm:MetricAlarm"
TOPIC = "aws:sns/topic:Topic"
KEY = "aws:kms/key:Key"


@pytest.fixture
def recording(record: Record) -> Recording:
    return record(alarmEmail=ADDRESS)


def alarms(recording: Recording) -> dict[str, dict[str, Any]]:
    """The inputs of the alarms that send mails, by the end of their names."""
    topic = recording.one(TOPIC).outputs["arn"]
    return {
        one.name.removeprefix("alarms-"): one.inputs
        for one in recording.of_type(ALARM)
        if topic in one.inputs["alarmActions"]
    }


def test_without_an_address_there_is_nothing_of_it(record: Record) -> None:
    assert not [one.name for one in record().resources if one.name.startswith("alarms")]


def test_there_is_an_alarm_for_all_that_people_are_told(recording: Recording) -> None:
    found = alarms(recording)
    assert found.keys() == {
        "disk-home", "disk-var", "disk-rabbitmq", "memory", "broker", "silence", "no-worker", "failed", "status-system",
        "status-instance", "unready",
    }  # fmt: skip


@pytest.mark.parametrize("minutes", ["0", "30"])
def test_the_estimate_counts_the_metrics_that_the_alarms_look_at(record: Record, minutes: str) -> None:
    """AWS's unit is the alarm metric, not the alarm."""
    looked_at = 0
    for alarm in alarms(record(alarmEmail=ADDRESS, stopWhenIdleMinutes=minutes)).values():
        metrics = [query["metric"] for query in alarm.get("metricQueries") or () if query.get("metric")] or [
            alarm
        ]
        looked_at += len({(metric["namespace"], metric["metricName"]) for metric in metrics})
    with_mails, without = (
        prices.estimate(Settings.parse({"alarmEmail": address, "stopWhenIdleMinutes": minutes}), REGION).month
        for address in (ADDRESS, "")
    )
    (part,) = with_mails.keys() - without.keys()
    assert with_mails[part] == pytest.approx(0.1 * looked_at + 1)


def test_each_alarm_says_which_cluster_it_is_and_what_to_do(recording: Recording) -> None:
    for name, alarm in alarms(recording).items():
        text = alarm["alarmDescription"]
        assert text.startswith("openquake-cluster-test: "), name
        assert text.endswith("."), name
        assert 100 < len(text) < 1024, name  # AWS's limit


def test_the_advice_for_a_volume_that_was_taken_over_is_a_command_that_enlarges_it(
    record: Record, recording: Recording
) -> None:
    volume, snapshot = "vol-0123456789abcdef0", "snap-0123456789abcdef0"
    adopted = record(
        alarmEmail=ADDRESS, homeVolumeId=volume, varVolumeId=snapshot, rabbitmqVolumeId=volume[:-1] + "1"
    )
    for name, id_ in (
        ("disk-home", volume),
        ("disk-rabbitmq", volume[:-1] + "1"),
        ("broker", volume[:-1] + "1"),
    ):
        text = alarms(adopted)[name]["alarmDescription"]
        assert f"aws ec2 modify-volume --volume-id {id_} --size GB" in text
        assert "VolumeGb" not in text
        assert len(text) < 1024
    own = alarms(adopted)["disk-var"]["alarmDescription"]
    assert own == alarms(recording)["disk-var"]["alarmDescription"]
    assert "pulumi config set varVolumeGb GB && pulumi up" in own


def test_each_alarm_is_on_after_whole_minutes_that_all_breach(recording: Recording) -> None:
    for name, alarm in alarms(recording).items():
        if name == "unready":
            continue
        assert alarm["period"] >= facts.METRICS_IDLE_SECONDS, name  # an idle master publishes no oftener
        assert alarm["datapointsToAlarm"] == alarm["evaluationPeriods"], name
        assert (alarm["statistic"], alarm["comparisonOperator"]) == (
            "Maximum",
            "GreaterThanOrEqualToThreshold",
        )


def test_a_mail_says_the_minutes_and_attempts_that_are_so(recording: Recording, record: Record) -> None:
    found = alarms(recording)
    for name in ("silence", "no-worker"):
        assert f" for {found[name]['evaluationPeriods']} minutes" in found[name]["alarmDescription"]
    sleeping = alarms(record(alarmEmail=ADDRESS, stopWhenIdleMinutes="60"))["silence"]
    assert f" for {sleeping['evaluationPeriods']} minutes" in sleeping["alarmDescription"]
    unready = found["unready"]
    assert f" for {unready['datapointsToAlarm']} minutes" in unready["alarmDescription"]
    assert f" after {userdata.WORKER_ATTEMPTS} failed attempts " in unready["alarmDescription"]


def test_missing_data_are_an_alarm_of_their_own_and_of_no_other(recording: Recording) -> None:
    missing = {name: alarm["treatMissingData"] for name, alarm in alarms(recording).items()}
    disks = dict.fromkeys((name for name in missing if name.startswith("disk-")), "ignore")
    assert len(disks) == len(facts.VOLUME_MOUNTS)
    assert missing == dict.fromkeys(missing, "notBreaching") | disks | {"silence": "breaching"}
    silence = alarms(recording)["silence"]
    assert silence["metricName"] == "WorkersAlive"  # which the broker has to answer for
    assert silence["threshold"] > 1000  # workerMax: no number of workers is an alarm


def test_a_master_that_may_stop_itself_is_silent_only_while_it_is_on(
    record: Record, recording: Recording
) -> None:
    sleeping = record(alarmEmail=ADDRESS, stopWhenIdleMinutes="60")
    always, alarm = alarms(recording)["silence"], alarms(sleeping)["silence"]
    checks, words, said = alarm["metricQueries"]
    master = sleeping.one("aws:ec2/instance:Instance").id
    assert checks["metric"] == {
        "namespace": "AWS/EC2",
        "metricName": "StatusCheckFailed",  # only a running instance has it
        "dimensions": {"InstanceId": master},
        "period": 60,
        "stat": "SampleCount",  # never 0, however many checks fail: IF takes a 0 for false
    }
    assert words["metric"] == {
        "namespace": always["namespace"],
        "metricName": always["metricName"],
        "dimensions": always["dimensions"],
        "period": always["period"],
        "stat": "SampleCount",  # an idle master's largest value is no worker, too
    }
    assert (checks["id"], words["id"], said["expression"]) == ("checks", "words", "IF(checks, words, 0)")
    # A minute with both, one with checks alone, one of a master that is off, and the last words of one that goes.
    assert _if([1, 1, None, None], [6, None, None, 1], 0) == [6, 0, None, None]
    assert [query.get("returnData", False) for query in (checks, words, said)] == [False, False, True]
    assert (alarm["comparisonOperator"], alarm["threshold"]) == ("LessThanThreshold", 1)
    assert alarm["treatMissingData"] == "notBreaching"
    for key in ("evaluationPeriods", "datapointsToAlarm", "alarmActions"):
        assert alarm[key] == always[key]


def test_that_mail_says_that_the_master_is_on_and_otherwise_that_it_may_be_off(
    record: Record, recording: Recording
) -> None:
    sleeping = record(alarmEmail=ADDRESS, stopWhenIdleMinutes="60")
    text = alarms(sleeping)["silence"]["alarmDescription"]
    assert text.startswith("openquake-cluster-test: The master is on and has said nothing for 10 minutes")
    assert "it is off" in alarms(recording)["silence"]["alarmDescription"]
    assert "`sudo oq-node status`" in text


def test_of_a_master_that_may_stop_itself_all_other_alarms_are_the_same(
    record: Record, recording: Recording
) -> None:
    sleeping, always = alarms(record(alarmEmail=ADDRESS, stopWhenIdleMinutes="60")), alarms(recording)
    assert {name for name in always.keys() | sleeping.keys() if always[name] != sleeping[name]} == {"silence"}


def test_a_disk_is_watched_by_the_mount_point_under_which_the_master_publishes_it(
    recording: Recording,
) -> None:
    disks = {
        name: alarm["dimensions"][facts.DISK_DIMENSION]
        for name, alarm in alarms(recording).items()
        if alarm.get("metricName") == facts.DISK_METRIC
    }
    assert disks == {"disk-home": "/home", "disk-var": "/var", "disk-rabbitmq": "/var/lib/rabbitmq"}
    for name in disks:
        assert alarms(recording)[name]["threshold"] == 80


def test_a_master_on_broken_hardware_is_recovered(recording: Recording) -> None:
    system, instance = (alarms(recording)[f"status-{check}"] for check in ("system", "instance"))
    master = recording.one("aws:ec2/instance:Instance").id
    for alarm, metric in ((system, "StatusCheckFailed_System"), (instance, "StatusCheckFailed_Instance")):
        assert (alarm["namespace"], alarm["metricName"]) == ("AWS/EC2", metric)
        assert alarm["dimensions"] == {"InstanceId": master}
    assert system["alarmActions"][0] == f"arn:aws:automate:{REGION}:ec2:recover"
    assert instance["alarmActions"] == [recording.one(TOPIC).outputs["arn"]]


def test_the_mail_about_broken_hardware_promises_no_recovery_to_types_that_have_none(
    recording: Recording,
) -> None:
    text = alarms(recording)["status-system"]["alarmDescription"]
    assert "instance store" in text
    assert "stop and start" in text


def test_a_machine_that_does_not_become_a_worker_is_noticed_before_it_powers_off(
    recording: Recording,
) -> None:
    alarm, group = alarms(recording)["unready"], recording.one("aws:autoscaling/group:Group")
    machines, workers, heard, difference = alarm["metricQueries"]
    # CloudWatch takes a missing number for 0 in arithmetic: without the first word a silent master would count as one
    # whose workers are all broken.
    assert (difference["expression"], difference["returnData"]) == ("IF(heard, machines - workers, 0)", True)
    assert heard["metric"] == workers["metric"] | {"stat": "SampleCount"}
    assert machines["metric"]["dimensions"] == {"AutoScalingGroupName": group.outputs["name"]}
    assert [machines["metric"]["metricName"]] == group.inputs["enabledMetrics"]
    assert workers["metric"]["metricName"] in facts.METRICS
    assert workers["metric"]["dimensions"] == {facts.METRICS_DIMENSION: "openquake-cluster-test"}
    minutes = userdata.WORKER_ATTEMPTS * userdata.BOOTSTRAP_RETRY_SECONDS / 60  # at least, until it is off
    assert alarm["datapointsToAlarm"] <= minutes < alarm["evaluationPeriods"]


def test_the_address_is_the_topics_only_subscriber(recording: Recording) -> None:
    subscription = recording.one("aws:sns/topicSubscription:TopicSubscription").inputs
    topic = recording.one(TOPIC).outputs["arn"]
    assert subscription == {"topic": topic, "protocol": "email", "endpoint": ADDRESS}


def test_only_alarms_of_this_account_publish_and_use_the_key(recording: Recording) -> None:
    topic, key = recording.one(TOPIC), recording.one(KEY)
    assert topic.inputs["kmsMasterKeyId"] == key.outputs["arn"]
    (publishers,) = _statements(recording.one("aws:sns/topicPolicy:TopicPolicy").inputs["policy"])
    owner, users = _statements(key.inputs["policy"])
    assert owner["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    for statement in (publishers, users):
        assert statement["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
        assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    assert (publishers["Action"], publishers["Resource"]) == ("sns:Publish", topic.outputs["arn"])
    # https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html
    assert users["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]


@pytest.mark.parametrize("idle", [0, 60])
def test_a_cluster_that_is_being_made_is_watched_but_sends_no_mail_about_its_silence(
    record: Record, recording: Recording, idle: int
) -> None:
    """Where the first `pulumi up` fails at the wait, it has the other alarms already."""
    made = record(alarmEmail=ADDRESS, stopWhenIdleMinutes=idle)
    wait = made.one("command:local:Command")
    waiting = {one.name for one in made.of_type(ALARM) if wait.urn in one.dependencies}
    assert waiting == {"alarms-silence", "alarms-unready"}
    impatient = record(alarmEmail=ADDRESS, waitForReady="false", workerStorage="diskless")
    assert alarms(impatient).keys() == alarms(recording).keys()


Minutes = list[float | None]


def _if(condition: Minutes, value: Minutes, otherwise: float) -> Minutes:
    """CloudWatch's IF(metric1, metric2, scalar3), None for a minute without data.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html#using-IF-expressions
    """
    return [
        None if is_so is None else (then or 0) if is_so else otherwise
        for is_so, then in zip(condition, value, strict=True)
    ]


def test_the_model_of_if_does_with_missing_data_what_amazons_example_shows() -> None:
    assert _if([1, 1, 0, 0, None], [30, None, 0, 0, 30], 5) == [30, 0, 5, 5, None]


def _statements(policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return found
