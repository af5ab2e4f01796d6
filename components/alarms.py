"""E-mail alarms on the master, its disks, the broker, workers and calculations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from components import facts
from components.component import Component
from components.roles import document
from components.storage import enlarge_volume, volume_name
from components.tags import cluster_name
from components.userdata import WORKER_ATTEMPTS
from components.workers import IN_SERVICE_METRIC

# Percent. The engine itself ends a calculation that makes the master's memory fuller than 95: userdata.openquake_cfg.
DISK_FULL: Final = 80
MEMORY_FULL: Final = 90
_MINUTE: Final = 60
_NEVER: Final = 1_000_000  # more than any value: the alarm is on only where there are none
# Without a word of the master, and with tasks but no worker.
SILENCE_MINUTES: Final = 10
NO_WORKER_MINUTES: Final = 15
# A worker boots in two minutes or so, and one that cannot powers off after ten at least: userdata.WORKER_ATTEMPTS.
UNREADY_MINUTES: Final = 10
_UNREADY_WINDOW: Final = 15
UNREADY: Final = (
    f"An instance of the workers' group has not been ready for {UNREADY_MINUTES} minutes. Nothing to do if it is "
    "finishing its last tasks after a rotation of the secret or a rebalance recommendation. Otherwise read its "
    f"console: aws ec2 get-console-output --latest --output text --instance-id ID; after {WORKER_ATTEMPTS} failed "
    "attempts it powers off and the group starts another one"
)
"""What the e-mail of the alarm `unready` says."""
SYSTEM_CHECK: Final = "StatusCheckFailed_System"
# AWS's shortest time in which a deletion of a key can be undone.
_KEY_DAYS: Final = 7
_DISPLAY_NAME: Final = 100  # characters that SNS takes


@dataclass(frozen=True, kw_only=True)
class Watch:
    """An alarm on a metric: on when the largest value of each of the last `minutes` is at least `threshold`.

    `missing` says what minutes without data are, in CloudWatch's words; `while_on` that they are like those, but only
    while the master is on, whatever the values are. `advice` is what the mail says.
    """

    name: str
    metric: str
    threshold: float
    minutes: int
    advice: str
    dimensions: Mapping[str, str]
    namespace: str = facts.METRICS_NAMESPACE
    missing: str = "notBreaching"
    while_on: bool = False


def watches(
    cluster: str, may_be_off: bool, volume_sources: Mapping[str, str] = MappingProxyType({})
) -> list[Watch]:
    """The alarms on what the master publishes of itself.

    `may_be_off` says whether it may be off without a mail, `volume_sources` which existing volume (vol-…) a mount point
    has: those the settings do not grow.
    """
    own = {facts.METRICS_DIMENSION: cluster}
    broker_source = volume_sources.get(facts.RABBITMQ_DIR, "")
    since = f"has said nothing for {SILENCE_MINUTES} minutes"
    silent = (
        f"The master is on and {since}: its boot or its RabbitMQ is in trouble"
        if may_be_off
        else f"The master {since}: it is off, being replaced, or its RabbitMQ is down"
    )
    found = [
        Watch(
            name=f"disk-{volume_name(mount)}",
            metric=facts.DISK_METRIC,
            threshold=DISK_FULL,
            minutes=3,
            advice=(
                f"{mount} of the master is more than {DISK_FULL} % full. Remove what nobody needs there, or enlarge "
                f"it: {_enlarge(mount, volume_sources.get(mount, ''))}; the file system follows in two "
                "minutes. If the alarm shows 100 %, the file system may have an error and be read-only: "
                f"sudo journalctl -u {facts.REFRESH_SERVICE} says so, docs/trouble.md what to do"
            ),
            dimensions={**own, facts.DISK_DIMENSION: mount},
            missing="ignore",  # a master that sleeps is as full as before, of which there has been a mail
        )
        for mount in facts.VOLUME_MOUNTS
    ]
    found += [
        Watch(
            name="memory",
            metric="MemoryUsedPercent",
            threshold=MEMORY_FULL,
            minutes=5,
            advice=(
                f"The master's memory has been more than {MEMORY_FULL} % full for minutes. The engine ends the "
                "calculation that fills it: fewer at once, or a larger masterInstanceType when nothing runs"
            ),
            dimensions=own,
        ),
        Watch(
            name="broker",
            metric="BrokerBlocked",
            threshold=1,
            minutes=2,
            advice=(
                "RabbitMQ takes no messages, so calculations wait. `sudo oq-node status` on the master says why: "
                f"make room in {facts.RABBITMQ_DIR}, or enlarge it ({_enlarge(facts.RABBITMQ_DIR, broker_source)}); "
                "where memory is short fewer "
                "calculations at once, or a larger masterInstanceType when nothing runs"
            ),
            dimensions=own,
        ),
        Watch(
            name="silence",
            metric="WorkersAlive",
            threshold=_NEVER,
            minutes=SILENCE_MINUTES,
            advice=(
                f"{silent}. oq-cluster shell: `sudo oq-node status`, `sudo journalctl -u {facts.METRICS_UNIT}`; "
                "otherwise its console, by aws ec2 get-console-output"
            ),
            dimensions=own,
            missing="breaching",
            while_on=may_be_off,
        ),
        Watch(
            name="no-worker",
            metric="TasksWithoutWorker",
            threshold=1,
            minutes=NO_WORKER_MINUTES,
            advice=(
                f"Tasks have waited for {NO_WORKER_MINUTES} minutes without any worker. aws autoscaling "
                "describe-scaling-activities says whether a quota, a lack of spot capacity or a key "
                "(Client.InternalError) prevents it (oq-cluster workers shows it, too)"
            ),
            dimensions=own,
        ),
        Watch(
            name="failed",
            metric="CalculationsFailed",
            threshold=1,
            minutes=1,
            advice=(
                "A calculation has failed. `sudo oq-celery cost` on the master lists everybody's last ones with "
                "their status, `sudo oq-celery follow ID` says why; no other e-mail comes before a minute "
                "without a failure"
            ),
            dimensions=own,
        ),
    ]
    return found


def _enlarge(mount: str, source: str) -> str:
    """The command that enlarges a mount point's volume, which may be one that was taken over."""
    if source.startswith("vol-"):
        return enlarge_volume(source)
    return f"pulumi config set {volume_name(mount)}VolumeGb GB && pulumi up"


def status_checks() -> list[Watch]:
    """The alarms on AWS's checks of the master; their dimension is its id."""
    return [
        Watch(
            name="status-system",
            metric=SYSTEM_CHECK,
            threshold=1,
            minutes=2,
            advice=(
                "AWS reports a hardware fault under the master and usually recovers it as the same instance with the "
                "same disks; running calculations fail. Check in a few minutes whether it is back. AWS does not "
                "recover most types with instance store volumes (such as m6id, c7gd): stop and start those, aws ec2 "
                "stop-instances, then aws ec2 start-instances"
            ),
            dimensions={},
            namespace="AWS/EC2",
        ),
        Watch(
            name="status-instance",
            metric="StatusCheckFailed_Instance",
            threshold=1,
            minutes=2,
            advice=(
                "EC2's instance status check of the master fails: its operating system does not respond (memory "
                "full, kernel panic, broken file system). Read its console, aws ec2 get-console-output --latest "
                "--output text --instance-id ID, then reboot it, aws ec2 reboot-instances --instance-ids ID; running "
                "calculations fail"
            ),
            dimensions={},
            namespace="AWS/EC2",
        ),
    ]


@dataclass(frozen=True)
class AlarmsArgs:
    """Who gets the mails, and what is watched besides what the master publishes.

    `volume_sources` are those of Storage. A master that `stops_itself` is no matter for a mail while it is off. The
    alarms on silence and on workers that do not become ready exist after everything in `after`: a cluster that is being
    made is silent, too.
    """

    email: str
    volume_sources: Mapping[str, str]
    account: pulumi.Input[str]
    region: str
    instance_id: pulumi.Input[str]
    stops_itself: bool
    group_name: pulumi.Input[str]
    after: Sequence[pulumi.Resource]


class Alarms(Component):
    """A topic with one subscriber by mail, who has to confirm it once, and the alarms that publish to it.

    A master whose hardware fails is moved to other hardware, as the same machine, where AWS can do that with its type,
    and somebody is told.
    """

    arns: list[pulumi.Output[str]]

    def __init__(self, name: str, args: AlarmsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        self._cluster = cluster_name(pulumi.get_stack())
        topic = self._topic(args)
        self.arns = []
        for watch in watches(self._cluster, args.stops_itself, args.volume_sources):
            if watch.while_on:
                self._silent_while_on(watch, args, topic)
            else:
                self._alarm(watch, [topic.arn], args.after if watch.missing == "breaching" else ())
        machine = {"InstanceId": args.instance_id}
        recover = f"arn:aws:automate:{args.region}:ec2:recover"
        for watch in status_checks():
            actions = [recover] if watch.metric == SYSTEM_CHECK else []
            self._alarm(watch, [*actions, topic.arn], dimensions=machine)
        self._unready(args, topic)
        self.register_outputs({"topicArn": topic.arn})

    def _topic(self, args: AlarmsArgs) -> aws.sns.Topic:
        # A key of its own, since CloudWatch may not use AWS's for SNS and would drop its messages:
        # https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html#compatibility-with-aws-services
        alarms_only: dict[str, Any] = {
            "Effect": "Allow",
            "Principal": {"Service": "cloudwatch.amazonaws.com"},
            "Condition": {"StringEquals": {"aws:SourceAccount": args.account}},
        }
        key = aws.kms.Key(
            self.named("key"),
            description="The cluster's mails on their way",
            enable_key_rotation=True,
            deletion_window_in_days=_KEY_DAYS,
            policy=document(
                {
                    "Effect": "Allow",  # or nobody could ever change or delete it
                    "Principal": {"AWS": pulumi.Output.concat("arn:aws:iam::", args.account, ":root")},
                    "Action": "kms:*",
                    "Resource": "*",
                },
                {**alarms_only, "Action": ["kms:Decrypt", "kms:GenerateDataKey*"], "Resource": "*"},
            ),
            tags=self.tags("key"),
            opts=self.child(),
        )
        topic = aws.sns.Topic(
            self.named("topic"),
            display_name=self._cluster[:_DISPLAY_NAME],
            kms_master_key_id=key.arn,
            tags=self.tags("topic"),
            opts=self.child(),
        )
        aws.sns.TopicPolicy(
            self.named("publishers"),
            arn=topic.arn,
            policy=document({**alarms_only, "Action": "sns:Publish", "Resource": topic.arn}),
            opts=self.child(),
        )
        aws.sns.TopicSubscription(
            self.named("mail"),
            topic=topic.arn,
            protocol="email",
            endpoint=args.email,
            opts=self.child(),
        )
        return topic

    def _unready(self, args: AlarmsArgs, topic: aws.sns.Topic) -> None:
        """An alarm on machines that the group counts as workers and the master does not, while it says anything."""
        alarm = aws.cloudwatch.MetricAlarm(
            self.named("unready"),
            alarm_description=f"{self._cluster}: {UNREADY}.",
            metric_queries=[
                _query(
                    "machines",
                    "Maximum",
                    "AWS/AutoScaling",
                    IN_SERVICE_METRIC.value,
                    {"AutoScalingGroupName": args.group_name},
                ),
                _query(
                    "workers",
                    "Maximum",
                    facts.METRICS_NAMESPACE,
                    "WorkersAlive",
                    {facts.METRICS_DIMENSION: self._cluster},
                ),
                _query(
                    "heard",
                    "SampleCount",
                    facts.METRICS_NAMESPACE,
                    "WorkersAlive",
                    {facts.METRICS_DIMENSION: self._cluster},
                ),
                # Nothing where the master has said nothing, which has an alarm of its own: a missing number would count
                # as none.
                aws.cloudwatch.MetricAlarmMetricQueryArgs(
                    id="unready",
                    expression="IF(heard, machines - workers, 0)",
                    label="Unready",
                    return_data=True,
                ),
            ],
            comparison_operator="GreaterThanOrEqualToThreshold",
            threshold=1,
            # Between two machines that fail there are minutes with none.
            evaluation_periods=_UNREADY_WINDOW,
            datapoints_to_alarm=UNREADY_MINUTES,
            treat_missing_data="notBreaching",
            alarm_actions=[topic.arn],
            tags=self.tags("unready"),
            opts=self.child(depends_on=list(args.after)),
        )
        self.arns.append(alarm.arn)

    def _silent_while_on(self, watch: Watch, args: AlarmsArgs, topic: aws.sns.Topic) -> None:
        """An alarm on minutes without data in which the machine is on: AWS checks no other one.

        What metric math does with data that are missing:
        https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html#using-IF-expressions
        """
        alarm = aws.cloudwatch.MetricAlarm(
            self.named(watch.name),
            alarm_description=f"{self._cluster}: {watch.advice}.",
            metric_queries=[
                _query(
                    "checks", "SampleCount", "AWS/EC2", "StatusCheckFailed", {"InstanceId": args.instance_id}
                ),
                _query("words", "SampleCount", watch.namespace, watch.metric, watch.dimensions),
                # As many words as there are; 0 in a minute with checks alone; nothing in one without checks.
                aws.cloudwatch.MetricAlarmMetricQueryArgs(
                    id="said", expression="IF(checks, words, 0)", label="Said", return_data=True
                ),
            ],
            comparison_operator="LessThanThreshold",
            threshold=1,
            evaluation_periods=watch.minutes,
            datapoints_to_alarm=watch.minutes,
            treat_missing_data="notBreaching",
            alarm_actions=[topic.arn],
            tags=self.tags(watch.name),
            opts=self.child(depends_on=list(args.after)),
        )
        self.arns.append(alarm.arn)

    def _alarm(
        self,
        watch: Watch,
        actions: Sequence[pulumi.Input[str]],
        after: Sequence[pulumi.Resource] = (),
        dimensions: Mapping[str, pulumi.Input[str]] | None = None,
    ) -> None:
        """An alarm that calls `actions`; `dimensions` stand for the watch's where they are not known yet."""
        alarm = aws.cloudwatch.MetricAlarm(
            self.named(watch.name),
            alarm_description=f"{self._cluster}: {watch.advice}.",
            namespace=watch.namespace,
            metric_name=watch.metric,
            dimensions=watch.dimensions if dimensions is None else dimensions,
            statistic="Maximum",
            comparison_operator="GreaterThanOrEqualToThreshold",
            threshold=watch.threshold,
            period=_MINUTE,
            evaluation_periods=watch.minutes,
            datapoints_to_alarm=watch.minutes,
            treat_missing_data=watch.missing,
            alarm_actions=list(actions),
            tags=self.tags(watch.name),
            opts=self.child(depends_on=list(after)),
        )
        self.arns.append(alarm.arn)


def _query(
    id_: str, stat: str, namespace: str, name: str, dimensions: Mapping[str, pulumi.Input[str]]
) -> aws.cloudwatch.MetricAlarmMetricQueryArgs:
    """A metric by the minute, for the expression of an alarm."""
    return aws.cloudwatch.MetricAlarmMetricQueryArgs(
        id=id_,
        metric=aws.cloudwatch.MetricAlarmMetricQueryMetricArgs(
            namespace=namespace, metric_name=name, dimensions=dimensions, period=_MINUTE, stat=stat
        ),
    )
