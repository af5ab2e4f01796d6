"""How a worker goes: the node's drain watch with metadata, systemd and a clock that are made up.

That Celery ends its running tasks when systemd stops it, and that the broker gives the others to another worker, is
shown elsewhere.
"""

from __future__ import annotations

import datetime
import json
import math
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_files, node_module

START = datetime.datetime(2026, 1, 31, 23, 59, 30, tzinfo=datetime.UTC)
STATE = "autoscaling/target-lifecycle-state"
SPOT = "spot/instance-action"
REBALANCE = "events/recommendations/rebalance"
DRAIN_SECONDS = 10 * 60  # the default of drainMinutes
IDENTITY = {"instance-id": "i-0123456789abcdef0", "tags/instance/aws:autoscaling:groupName": "workers-group"}
COMPLETION = {
    "AutoScalingGroupName": "workers-group",
    "LifecycleHookName": facts.DRAIN_HOOK,
    "InstanceId": "i-0123456789abcdef0",
    "LifecycleActionResult": "CONTINUE",
}


def interruption(seconds: float) -> str:
    """A spot interruption so many seconds after START, as the metadata tell it."""
    time = START + datetime.timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": f"{time:%Y-%m-%dT%H:%M:%SZ}"})


@dataclass
class Worker:
    """A worker whose running tasks need until `tasks_end`; `announced` holds (from when, metadata path, value).

    Times are in seconds from START; only sleeping moves the clock.
    """

    module: Any
    tasks_end: float = 0.0
    announced: list[tuple[float, str, str]] = field(default_factory=list)
    now: float = 0.0
    stopped: float | None = None
    killed: float | None = None
    started: float | None = None
    said: list[str] = field(default_factory=list)
    broken_metadata: bool = False

    def run(self, command: Sequence[str], **_options: Any) -> SimpleNamespace:
        """Systemctl, which knows the Celery unit alone."""
        assert (command[0], command[-1]) == ("systemctl", facts.CELERY_UNIT)
        state = ""
        match command[1:-1]:
            case ["stop", "--no-block"]:
                assert self.module.DRAINING.exists()
                self.stopped = self.now if self.stopped is None else self.stopped
            case ["start", "--no-block"]:
                assert not self.module.DRAINING.exists()
                self.started, self.stopped = self.now, None
            case ["kill", "--signal=KILL"]:
                self.killed = self.now
            case ["is-active"]:
                ended = self.stopped is not None and (self.killed is not None or self.now >= self.tasks_end)
                state = "inactive" if ended else "active" if self.stopped is None else "deactivating"
            case _:
                raise AssertionError(command)
        return SimpleNamespace(stdout=f"{state}\n")

    def metadata(self, path: str) -> str:
        """The newest value at `path`; as on AWS, status 404 where there is none."""
        if self.broken_metadata:
            raise urllib.error.URLError("timed out")
        values = [value for since, where, value in self.announced if where == path and since <= self.now]
        if values:
            return values[-1]
        if path in IDENTITY:
            return IDENTITY[path]
        raise urllib.error.HTTPError(path, 404, "Not Found", Message(), None)

    def sleep(self, seconds: float) -> None:
        """Let time pass, an hour at most: a watch that never ends fails."""
        self.now += seconds
        assert self.now < 3600


@pytest.fixture
def worker(record: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Worker]:
    with node_module("drain", node_facts(record(), "worker")) as module:
        made = Worker(module)

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return (START + datetime.timedelta(seconds=made.now)).astimezone(tz)

        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=made.run))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep))
        monkeypatch.setattr(module, "datetime", SimpleNamespace(datetime=Clock, UTC=datetime.UTC))
        monkeypatch.setattr(module, "metadata", made.metadata)
        monkeypatch.setattr(module, "say", made.said.append)
        monkeypatch.setattr(
            module, "DRAINING", tmp_path / "run" / "draining"
        )  # no /run/openquake after a reboot
        yield made


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    """The autoscaling API, with botocore's own model of it."""
    client = boto3.client("autoscaling", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    monkeypatch.setattr(boto3, "client", lambda _service, **_options: client)
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def notice(worker: Worker, announced: Mapping[str, str], drain_seconds: float = DRAIN_SECONDS) -> Any:
    return worker.module.notice(announced.get, START, drain_seconds)


# --- what is announced --------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [{}, {STATE: "InService"}, {STATE: "Standby"}])
def test_a_worker_that_is_in_service_has_no_notice(worker: Worker, announced: Mapping[str, str]) -> None:
    assert notice(worker, announced) is None


@pytest.mark.parametrize(
    ("announced", "word", "seconds", "terminating"),
    [
        ({STATE: "Terminated"}, "Auto Scaling group", DRAIN_SECONDS, True),
        ({SPOT: interruption(120)}, "spot interruption at 00:01:30", 105, False),
        ({SPOT: interruption(40)}, "spot interruption", 25, False),
        ({SPOT: interruption(5)}, "spot interruption", 0, False),
        ({SPOT: interruption(-60)}, "spot interruption", 0, False),
        ({REBALANCE: "{}"}, "rebalance", math.inf, False),
        ({STATE: "InService", REBALANCE: "{}"}, "rebalance", math.inf, False),
        ({STATE: "Terminated", REBALANCE: "{}"}, "Auto Scaling group", DRAIN_SECONDS, True),
        ({STATE: "Terminated", SPOT: interruption(60)}, "spot interruption", 45, True),
        ({SPOT: interruption(60), REBALANCE: "{}"}, "spot interruption", 45, False),
    ],
)
def test_each_notice_says_why_and_how_long_and_the_nearest_end_counts(
    worker: Worker, announced: Mapping[str, str], word: str, seconds: float, terminating: bool
) -> None:
    found = notice(worker, announced)
    assert word in found.reason
    assert (found.seconds, found.terminating) == (seconds, terminating)


@pytest.mark.parametrize("announced", [{STATE: "Terminated"}, {SPOT: interruption(120)}])
def test_no_certain_notice_gives_more_than_the_drain_time(
    worker: Worker, announced: Mapping[str, str]
) -> None:
    assert notice(worker, announced, drain_seconds=60).seconds == 60


def test_metadata_that_are_not_there_are_none_and_no_answer_is_an_error(worker: Worker) -> None:
    assert worker.module.read(SPOT) is None
    worker.broken_metadata = True
    with pytest.raises(OSError, match="timed out"):
        worker.module.read(SPOT)


@pytest.mark.parametrize("action", ["none", "{}", '{"time": "soon"}'])
def test_a_spot_notice_that_cannot_be_read_does_not_end_the_watch(worker: Worker, action: str) -> None:
    worker.announced = [(0, SPOT, action)]
    assert worker.module.look() is None


# --- going --------------------------------------------------------------------------------------------------


def test_running_tasks_are_waited_for(worker: Worker) -> None:
    worker.announced, worker.tasks_end = [(0, STATE, "Terminated")], 600
    worker.module.drain(worker.module.look())
    assert (worker.stopped, worker.killed) == (0, None)
    assert worker.now == 600
    assert worker.said[-1] == "drained: all running tasks were finished"


def test_what_runs_at_the_deadline_goes_back_to_the_queue(worker: Worker) -> None:
    worker.announced, worker.tasks_end = [(0, STATE, "Terminated")], 3000
    worker.module.drain(worker.module.look())
    assert worker.stopped == 0
    assert worker.killed == pytest.approx(DRAIN_SECONDS, abs=1)
    assert "back to the queue" in worker.said[-1]


def test_a_spot_interruption_during_a_long_drain_brings_the_deadline_nearer(worker: Worker) -> None:
    worker.announced = [(0, STATE, "Terminated"), (100, SPOT, interruption(220))]
    worker.tasks_end = 3000
    worker.module.drain(worker.module.look())
    assert worker.killed is not None
    assert 200 <= worker.killed <= 220 - facts.HAND_OVER_SECONDS + 2


def test_a_rebalance_recommendation_ends_no_task(worker: Worker) -> None:
    worker.announced, worker.tasks_end = [(0, REBALANCE, "{}")], 3000
    worker.module.drain(worker.module.look())
    assert (worker.stopped, worker.killed, worker.now) == (0, None, 3000)


def test_a_group_that_ends_a_worker_after_a_recommendation_gives_it_the_whole_time(worker: Worker) -> None:
    worker.announced, worker.tasks_end = [(0, REBALANCE, "{}"), (590, STATE, "Terminated")], 3000
    worker.module.drain(worker.module.look())
    assert worker.killed == pytest.approx(590 + DRAIN_SECONDS, abs=2)


def test_a_spot_interruption_after_a_recommendation_is_met(worker: Worker) -> None:
    worker.announced = [(0, REBALANCE, "{}"), (30, SPOT, interruption(150))]
    worker.tasks_end = 3000
    worker.module.drain(worker.module.look())
    assert worker.killed is not None
    assert 130 <= worker.killed <= 150 - facts.HAND_OVER_SECONDS + 2


def test_metadata_that_do_not_answer_during_a_drain_do_not_end_it(worker: Worker) -> None:
    worker.announced, worker.tasks_end = [(0, STATE, "Terminated")], 20
    found = worker.module.look()
    worker.broken_metadata = True
    worker.module.drain(found)
    assert (worker.now, worker.killed) == (20, None)


# --- the watch ----------------------------------------------------------------------------------------------


def test_the_group_is_told_when_the_tasks_are_done(worker: Worker, group: Stubber) -> None:
    worker.announced, worker.tasks_end = [(60, STATE, "Terminated")], 100
    group.add_response("complete_lifecycle_action", {}, COMPLETION)
    worker.module.main()
    assert worker.stopped is not None
    assert 60 <= worker.stopped <= 60 + facts.DRAIN_POLL_SECONDS
    assert worker.killed is None
    assert worker.now == 100


def test_a_group_that_does_not_listen_is_told_again_and_nothing_is_drained_twice(
    worker: Worker, group: Stubber
) -> None:
    worker.announced = [(0, STATE, "Terminated")]
    group.add_client_error("complete_lifecycle_action", "ThrottlingException")
    group.add_response("complete_lifecycle_action", {}, COMPLETION)
    worker.module.main()
    assert len([line for line in worker.said if line.startswith("draining")]) == 1
    assert any("ThrottlingException" in line for line in worker.said)


def test_after_a_rebalance_recommendation_the_group_is_told_only_when_it_asks(
    worker: Worker, group: Stubber
) -> None:
    worker.announced = [(0, REBALANCE, "{}"), (300, STATE, "Terminated")]
    group.add_response("complete_lifecycle_action", {}, COMPLETION)
    worker.module.main()
    assert worker.stopped == facts.DRAIN_POLL_SECONDS
    assert 300 <= worker.now <= 300 + facts.DRAIN_POLL_SECONDS


def test_a_worker_that_stays_after_a_recommendation_takes_tasks_again_and_follows_no_other(
    worker: Worker, group: Stubber
) -> None:
    worker.announced = [(0, REBALANCE, "{}"), (2000, STATE, "Terminated")]
    group.add_response("complete_lifecycle_action", {}, COMPLETION)
    worker.module.main()
    returned = facts.DRAIN_POLL_SECONDS + worker.module.RETURN_SECONDS
    assert worker.started == pytest.approx(returned, abs=facts.DRAIN_POLL_SECONDS)
    assert worker.stopped == pytest.approx(2000, abs=facts.DRAIN_POLL_SECONDS)
    assert len([line for line in worker.said if line.startswith("draining")]) == 2


def test_systemd_ends_no_task_before_the_watch_does(record: Record) -> None:
    (unit,) = [
        content for path, content in node_files(record(), "worker").items() if facts.CELERY_UNIT in path
    ]
    assert "TimeoutStopSec=infinity" in unit.splitlines()


def test_the_hook_waits_longer_than_a_worker_takes(record: Record, worker: Worker, group: Stubber) -> None:
    heartbeat = record().one("aws:autoscaling/lifecycleHook:LifecycleHook").inputs["heartbeatTimeout"]
    worker.announced, worker.tasks_end = [(0.1, STATE, "Terminated")], 3000
    group.add_response("complete_lifecycle_action", {}, COMPLETION)
    worker.module.main()
    assert worker.killed is not None
    assert worker.now < heartbeat
