"""Mails to people in the lab: the model of the alarms, which needs no root, and the alarms over what a real master
publishes when its disks and its memory are full, tasks wait without workers, its broker is blocked, a calculation
fails, and when it falls silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from components import facts
from lab.aws import alarms
from lab.aws.autoscaling import Sample
from lab.aws.cloud import Alarm
from lab.aws.plan import make_plan
from lab.base import LabError
from lab.cluster import scaler
from lab.cluster.cluster import Lab
from lab.cluster.program import read_config, record
from lab.linux.host import Paths
from lab.trials.job import CLASSICAL, DemoJob, fetch_job, run_job
from tests.lab.conftest import booted
from tests.lab.support import on

ADDRESS = "seismology@example.org"
NOW = 1_800_000_000.0  # the beginning of a minute
SPEEDUP = 5
"""By how much the alarms look at fewer minutes than recorded: silence is an alarm after two minutes, not ten."""
ONE_PERIOD = 15
"""The same for alarms that look at one minute alone: as many as the slowest of them looks at."""
TOLD_SECONDS = 360
"""The longest wait for a mail, on a machine with other things to do."""


@pytest.fixture(scope="module")
def watched() -> dict[str, Alarm]:
    """The alarms that send mails, by the component's name of them."""
    plan = make_plan(record(read_config("dev", [f"alarmEmail={ADDRESS}"])))
    assert [*plan.subscribers.values()] == [[ADDRESS]]
    return {_short(alarm.name): alarm for alarm in plan.alarms}


def _short(name: str) -> str:
    """An alarm's name in its component: Pulumi puts seven digits behind it."""
    return name.removeprefix("alarms-").rpartition("-")[0]


def told(alarm: Alarm, values: Mapping[int, float], minutes: int) -> list[float]:
    """The minutes at whose end an alarm sends a mail, when it has these values in some minutes."""
    samples = [
        Sample(NOW + 60 * minute + 7, alarm.namespace, alarm.metric, alarm.dimensions, value)
        for minute, value in values.items()
    ]
    subscribers = {action: [ADDRESS] for action in alarm.actions}
    sent = alarms.mails([alarm], subscribers, samples, NOW - 60, NOW + 60 * minutes)
    return [(mail.time - NOW) / 60 for mail in sent]


def test_an_alarm_is_on_when_all_its_minutes_breach_and_sends_one_mail(watched: dict[str, Alarm]) -> None:
    disk = watched["disk-home"]
    assert disk.periods == 3
    assert told(disk, {0: 81, 1: 79, 2: 80, 3: 80, 4: 90, 5: 90}, 10) == [5]
    memory = watched["memory"]
    assert memory.periods == 5
    gap = dict.fromkeys((0, 1, 2, 3, 5, 6, 7, 8), 95)
    assert told(memory, gap, 10) == []  # a minute without data is none that breaches


def test_an_alarm_that_goes_off_and_on_again_sends_another_mail(watched: dict[str, Alarm]) -> None:
    assert told(watched["failed"], {1: 1, 2: 2, 3: 0, 4: 0, 5: 1}, 10) == [2, 6]


def test_a_master_that_wakes_with_a_disk_as_full_as_before_sends_no_other_mail(
    watched: dict[str, Alarm],
) -> None:
    """Until the disk has been less full."""
    slept = dict.fromkeys((0, 1, 2, 3, 60, 61, 62, 63), 85)
    assert told(watched["disk-home"], slept, 70) == [3]
    assert told(watched["disk-home"], slept | {59: 70}, 70) == [3, 63]


def test_what_happens_in_the_minute_in_which_the_alarms_are_made_is_told(watched: dict[str, Alarm]) -> None:
    assert told(watched["failed"], {-1: 1, 0: 0}, 5) == [0]


def test_silence_is_an_alarm_and_any_word_ends_it(watched: dict[str, Alarm]) -> None:
    silence = watched["silence"]
    assert silence.periods == 10
    assert told(silence, {0: 0, 1: 3, 15: 1000}, 30) == [12, 26]
    assert told(silence, dict.fromkeys(range(0, 40, 9), 0), 40) == []


def test_an_alarm_by_metric_math_over_what_amazon_publishes_is_left_out(watched: dict[str, Alarm]) -> None:
    assert "unready" not in watched
    assert len(watched) == 10
    # AWS's checks of the instance say whether a master that may stop itself is on.
    sleeping = make_plan(
        record(read_config("dev", [f"alarmEmail={ADDRESS}", "stopWhenIdleMinutes=60", "workerMin=0"]))
    )
    assert {*watched} - {_short(alarm.name) for alarm in sleeping.alarms} == {"silence"}


def test_what_no_topic_is_told_sends_no_mail(watched: dict[str, Alarm]) -> None:
    alarm = watched["status-system"]
    sample = Sample(NOW, alarm.namespace, alarm.metric, alarm.dimensions, 1)
    assert (
        alarms.mails([alarms.sped_up(alarm, 5)], {"arn:of-another": [ADDRESS]}, [sample], NOW - 60, NOW + 120)
        == []
    )


@pytest.fixture(scope="module")
def lab(paths: Paths) -> Iterator[Lab]:
    """A master without workers whose alarms send mails."""
    with booted(paths, workerDesired=0, alarmEmail=ADDRESS) as one:
        yield one


def wait_for_mail(lab: Lab, *names: str, since: float = 0) -> None:
    """Wait until these alarms have sent a mail since then; the test fails when they do not in time.

    Each looks at one period alone; the tests of `lab.aws.alarms` have several.
    """

    def sent() -> set[str]:
        mails = scaler.mails(lab, ONE_PERIOD)
        return {_short(mail.alarm) for mail in mails if mail.address == ADDRESS and mail.time > since}

    _wait(lambda: sent() >= set(names), lambda: f"mails: {sorted(sent())}, not all of {names}")


def _wait(come: Callable[[], bool], words: Callable[[], str]) -> None:
    deadline = time.monotonic() + TOLD_SECONDS
    while not come():
        if time.monotonic() > deadline:
            pytest.fail(words())
        time.sleep(2)


def fill_disks(lab: Lab) -> str:
    """Fill nine tenths of what is free of each of the master's disks; what is to be removed afterwards."""
    for mount in facts.VOLUME_MOUNTS:
        free = on(lab, "master", f"stat --file-system --format='%a * %S / 1024 / 1024' {mount} | xargs expr")
        on(lab, "master", f"fallocate --length {int(free) * 9 // 10}M {mount}/full")
    return " ".join(f"{mount}/full" for mount in facts.VOLUME_MOUNTS)


@contextmanager
def full_memory(lab: Lab) -> Iterator[None]:
    """The master's kernel says that 8 % of the memory are left: to fill it would fill this machine's."""
    total = "$(sed -n 's/^MemTotal: *//p' /proc/meminfo | cut -d' ' -f1)"
    told = f'sed "s/^MemAvailable:.*/MemAvailable: $(({total} * 8 / 100)) kB/" /proc/meminfo > /run/meminfo'
    on(lab, "master", f"{told} && mount --bind /run/meminfo /proc/meminfo")
    try:
        yield
    finally:
        on(lab, "master", "umount /proc/meminfo")


@contextmanager
def waiting_job(lab: Lab) -> Iterator[None]:
    """A calculation, the lab's first one, whose tasks wait, since there are no workers."""
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_job, lab, fetch_job(lab, CLASSICAL), None, show=False)
        try:
            _wait(
                lambda: any(one.value for one in scaler.samples(lab, 0) if one.name == "TasksWithoutWorker"),
                lambda: "no task waits",
            )
            yield
        finally:
            on(lab, "master", "oq abort 1")
            assert job.exception() is not None


@pytest.mark.lab
def test_people_are_told_of_what_is_full_blocked_failed_and_silent_and_of_tasks_without_workers(
    lab: Lab,
) -> None:
    metrics = {facts.DISK_METRIC, *facts.METRICS}
    _wait(
        lambda: {one.name for one in scaler.samples(lab, 0)} >= metrics,
        lambda: "not all metrics are published",
    )
    assert scaler.mails(lab, SPEEDUP) == []

    limit = "rabbitmqctl --quiet set_disk_free_limit"
    with waiting_job(lab):
        with pytest.raises(LabError):
            job = DemoJob("failing", CLASSICAL.folder, {"area_source_discretization": "-1"})
            run_job(lab, fetch_job(lab, job), None, processpool=True, show=False)
        full = fill_disks(lab)
        on(lab, "master", f"{limit} 1000GB")
        disks = [f"disk-{name}" for name in ("home", "var", "rabbitmq")]
        with full_memory(lab):  # in which the engine starts no process
            wait_for_mail(lab, *disks, "memory", "no-worker", "broker", "failed")
        on(lab, "master", f"rm {full}; {limit} 50MB")

    on(lab, "master", f"systemctl stop {facts.METRICS_UNIT}")
    wait_for_mail(lab, "silence", since=time.time())
    on(lab, "master", f"systemctl start {facts.METRICS_UNIT}")
