"""Which mails the alarms send over what the nodes have published: no clock, no input.

An alarm is on at the end of a period when its last `periods` whole periods all breach; a period without data breaches
where the alarm says so, or counts for nothing. When it goes on, its topics send a mail to each subscriber; while it
stays on they send no other one. (Where data are missing AWS also looks a few periods further back: left out.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lab.aws.autoscaling import Sample, breaches
from lab.aws.cloud import Alarm


@dataclass(frozen=True)
class Mail:
    """What a subscriber gets; `time` in seconds since the epoch."""

    time: float
    address: str
    alarm: str
    text: str


def sped_up(alarm: Alarm, speedup: int) -> Alarm:
    """The alarm that looks at so many times fewer periods, at one at least."""
    return replace(alarm, periods=max(1, alarm.periods // speedup))


def mails(
    alarms: Iterable[Alarm],
    subscribers: Mapping[str, Sequence[str]],
    samples: Sequence[Sample],
    since: float,
    now: float,
) -> list[Mail]:
    """The mails from the period of `since`, when the alarms are made, until now, the first one first."""
    found = [
        Mail(moment, address, alarm.name, alarm.text)
        for alarm in alarms
        for moment in _goes_on(alarm, samples, since, now)
        for topic in alarm.actions
        for address in subscribers.get(topic, ())
    ]
    return sorted(found, key=lambda mail: mail.time)


def _goes_on(alarm: Alarm, samples: Iterable[Sample], since: float, now: float) -> Iterable[float]:
    """The moments at which an alarm goes on."""
    highest: dict[int, float] = {}
    for sample in samples:
        if (sample.namespace, sample.name) == (alarm.namespace, alarm.metric) and (
            sample.dimensions == alarm.dimensions
        ):
            period = int(sample.time // alarm.period)
            highest[period] = max(sample.value, highest.get(period, sample.value))
    on, breaching = False, 0
    for period in range(int(since // alarm.period), int(now // alarm.period)):
        value = highest.get(period)
        if value is None and alarm.missing == "ignore":
            continue
        bad = alarm.missing == "breaching" if value is None else breaches(alarm, value)
        breaching = breaching + 1 if bad else 0
        if breaching >= alarm.periods and not on:
            yield float((period + 1) * alarm.period)
        on = breaching >= alarm.periods
