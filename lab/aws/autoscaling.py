"""A model of how CloudWatch alarms and step scaling policies change the size of a group: no clock, no input.

What AWS documents and the model keeps:

- An alarm looks at the last `periods` whole periods and is on when the largest value of each breaches; a period
  without data does not breach. (Where data are missing AWS also looks a few periods further back: left out.)
  https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html
- An alarm calls its policies when it goes on, and once a minute while it stays on.
- The step is the one that holds the difference between value and threshold. Where the alarm is on from the threshold
  up, a step's lower bound belongs to it; where it is on down from the threshold, its upper bound does.
- Instances that are warming up are not part of the capacity that a change is added to, so that a second call in the
  same step adds nothing; and while one warms up, nothing is scaled in.
- The group stays between its minimum and its maximum.
  https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-scaling-simple-step.html

What it leaves out: seconds to minutes of AWS's own delay, cooldowns of simple policies, which the program does not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.aws.cloud import Alarm, Group, Policy

CALL_SECONDS = 60
"""Between two calls of a policy by an alarm that stays on."""
RETRY_SECONDS = 20
"""Between two attempts of a group to start what it lacks; AWS's come in longer and longer intervals."""
# What the activity of such an attempt says, as people have quoted it:
# https://github.com/buildkite/elastic-ci-stack-for-aws/issues/851
# https://docs.aws.amazon.com/autoscaling/ec2/userguide/ts-as-capacity.html
_NO_SPOT = (
    "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
    "configuration. Please adjust your request and try again. Launching EC2 instance failed."
)
_NO_CAPACITY = (
    "We currently do not have sufficient {} capacity in the Availability Zone you requested. "
    "Launching EC2 instance failed."
)


def no_capacity(group: Group) -> str:
    """What AWS says when it has no instance for a group."""
    return _NO_SPOT if group.spot else _NO_CAPACITY.format(group.template.instance_type)


@dataclass(frozen=True)
class Sample:
    """One value that was published; `time` in seconds since the epoch."""

    time: float
    namespace: str
    name: str
    dimensions: Mapping[str, str]
    value: float

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> Sample:
        """From the JSON object that the lab's AWS API writes for it."""
        return cls(line["time"], line["namespace"], line["name"], line["dimensions"], line["value"])


@dataclass(frozen=True)
class Fleet:
    """A group at one moment: the instances that it wants, and how many of those warm up for a policy."""

    wanted: int
    warming: int


def breach(alarm: Alarm, samples: Iterable[Sample], now: float) -> float | None:
    """The value of the last period of an alarm that is on; None when it is not. Missing data do not breach."""
    end = now // alarm.period * alarm.period
    highest: dict[int, float] = {}
    for sample in samples:
        if (sample.namespace, sample.name) != (alarm.namespace, alarm.metric):
            continue
        if sample.dimensions == alarm.dimensions and end - alarm.periods * alarm.period <= sample.time < end:
            period = int(sample.time // alarm.period)
            highest[period] = max(sample.value, highest.get(period, sample.value))
    breaching = [value for value in highest.values() if breaches(alarm, value)]
    return highest[max(highest)] if len(breaching) == alarm.periods else None


def breaches(alarm: Alarm, value: float) -> bool:
    """Whether a period with this value breaches."""
    return value >= alarm.threshold if alarm.at_least else value <= alarm.threshold


def called(policy: Policy, alarm: Alarm, value: float, fleet: Fleet) -> int:
    """How many instances a policy wants when an alarm that is on calls it with a value."""
    difference = value - alarm.threshold
    for step in policy.steps:
        lower = float("-inf") if step.lower is None else step.lower
        upper = float("inf") if step.upper is None else step.upper
        if lower <= difference < upper if alarm.at_least else lower < difference <= upper:
            break
    else:
        return fleet.wanted
    if policy.kind == "ExactCapacity":
        wanted = step.adjustment
    elif step.adjustment > 0:
        wanted = max(fleet.wanted, fleet.wanted - fleet.warming + step.adjustment)
    else:
        wanted = fleet.wanted + step.adjustment
    return fleet.wanted if wanted < fleet.wanted and fleet.warming else wanted


@dataclass
class Scaler:
    """The alarms and policies of one group, followed over time.

    Attributes:
        calls: when each alarm that is on last called, by its name
    """

    group: Group
    calls: dict[str, float] = field(default_factory=dict)

    def warmup(self) -> float:
        """Seconds in which a new instance counts as warming up: the longest of its policies."""
        return max((policy.warmup for policy in self.group.policies), default=0)

    def wanted(self, samples: Sequence[Sample], fleet: Fleet, now: float) -> tuple[int, list[str]]:
        """The number of instances after what the alarms do now, and a line for each call that changes it."""
        policies = {policy.arn: policy for policy in self.group.policies}
        wanted, lines = fleet.wanted, []
        for alarm in self.group.alarms:
            value = breach(alarm, samples, now)
            if value is None:
                self.calls.pop(alarm.name, None)
                continue
            if now - self.calls.get(alarm.name, float("-inf")) < CALL_SECONDS:
                continue
            self.calls[alarm.name] = now
            for arn in alarm.actions:
                number = called(policies[arn], alarm, value, Fleet(wanted, fleet.warming))
                number = min(max(number, self.group.minimum), self.group.maximum)
                if number != wanted:
                    lines.append(f"{alarm.metric} is {value:g}: {wanted} -> {number} workers")
                wanted = number
        return wanted, lines
