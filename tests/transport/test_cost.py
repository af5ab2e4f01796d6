"""What a calculation's tasks cost: the meter and the line in the log without a broker, then a calculation with both."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from tests.transport import harness, processes, rabbitmq
from tests.transport.test_faults import parent

from oq_celery import cost  # isort: skip
from oq_celery.cost import Cost, Meter, parse  # isort: skip
from oq_celery.ledger import DEAD_SECONDS, SILENT_SECONDS, Ledger  # isort: skip
from oq_celery.protocol import Kind, Reply, Running, running_body  # isort: skip

TASK = 7
ONE, OTHER = "one/1", "other/1"  # processes of two workers


def reply(kind: Kind, worker: str = ONE, seconds: float = 0.0) -> Reply:
    return Reply(kind, worker.split("/")[0], worker, "m", TASK, seconds=seconds)


def alive(worker: str) -> Reply:
    return Reply("alive", "node", "node/0", "", body=running_body([Running(TASK, worker, "m")]))


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def ledger(meter: Meter) -> Ledger:
    """With one task, sent long after the connection was made."""
    made = Ledger(4, meter)
    made.connected(0.0)
    made.add(TASK)
    made.sent(TASK, 5, 1000.0)
    return made


def test_an_attempt_counts_with_the_seconds_that_its_worker_measured(ledger: Ledger, meter: Meter) -> None:
    ledger.heard(reply("started"), 1001.0)
    ledger.heard(reply("ended", seconds=9.5), 1011.0)
    ledger.remove(TASK)
    assert meter.cost() == (9.5, 0.0)


@pytest.mark.parametrize(("kind", "measured", "seconds"), [("lost", 0.0, 10.0), ("unable", 9.0, 9.0)])
def test_what_a_worker_did_before_it_was_lost_is_done_again(
    ledger: Ledger, meter: Meter, kind: Kind, measured: float, seconds: float
) -> None:
    """A process that has died measures nothing: then it is what the master has heard."""
    ledger.heard(reply("started"), 1001.0)
    ledger.heard(reply(kind, seconds=measured), 1011.0)
    assert meter.cost() == (seconds, seconds)
    ledger.heard(reply("started", OTHER), 1012.0)
    ledger.heard(reply("ended", OTHER, 20.0), 1033.0)
    assert meter.cost() == (seconds + 20.0, seconds)


def test_a_worker_that_fell_silent_counts_until_it_was_last_heard(ledger: Ledger, meter: Meter) -> None:
    ledger.heard(reply("started"), 1001.0)
    ledger.heard(alive(ONE), 1005.0)
    assert meter.cost() == (4.0, 0.0)
    assert ledger.answer(reply("asks", OTHER), 1005.0 + DEAD_SECONDS + 1) == "do"
    assert meter.cost() == (4.0, 4.0)


def test_a_worker_that_was_silent_and_ends_all_the_same_counts_once(ledger: Ledger, meter: Meter) -> None:
    ledger.heard(reply("started"), 1001.0)
    ledger.heard(alive(ONE), 1005.0)
    ledger.audit(1005.0 + SILENT_SECONDS)
    assert meter.cost() == (4.0, 4.0)
    ledger.heard(reply("ended", seconds=30.0), 1032.0)
    assert meter.cost() == (30.0, 0.0)


def test_results_that_come_twice_are_done_again(ledger: Ledger, meter: Meter) -> None:
    for worker in (ONE, OTHER):
        ledger.heard(reply("started", worker), 1001.0)
        ledger.heard(reply("ended", worker, 5.0), 1006.0)
    meter.unused(reply("ended", OTHER, 5.0))  # the channel has dropped it
    assert meter.cost() == (10.0, 5.0)


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_messages_gives_more_seconds_again_than_there_are_or_less_than_none(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's
    meter, now = Meter(), 0.0
    for _ in range(200):
        now += chance.random()
        worker = chance.choice([ONE, OTHER])
        match chance.randrange(3):
            case 0:
                meter.runs(worker, "m", now)
            case 1:
                meter.silent(worker, "m")
            case _:
                kind: Kind = chance.choice(["ended", "lost", "unable", "failed"])
                seconds = 0.0 if kind == "lost" else chance.random()
                meter.ended(reply(kind, worker, seconds), now)
        total, again = meter.cost()
        assert -1e-9 <= again <= total + 1e-9


@pytest.mark.parametrize(
    ("spent", "line"),
    [
        (Cost(0.5, 0.0, None), "Tasks took 0.5 s of worker processes"),
        (
            Cost(4320.0, 240.0, 0.051),
            "Tasks took 4320.0 s of worker processes (1 h 12 min), 240.0 s of it again, after losses: "
            "about 0.0612 USD at 0.051 USD an hour",
        ),
        (
            Cost(1e6, 0.0, 0.0125),
            "Tasks took 1000000.0 s of worker processes (277 h 47 min): about 3.47 USD at 0.0125 USD an hour",
        ),
        (Cost(90.0, 90.0, 1e-5), None),
    ],
)
def test_the_line_of_the_log_says_all_and_is_read_again(spent: Cost, line: str | None) -> None:
    assert line is None or str(spent) == line
    assert parse(str(spent)) == spent


@pytest.mark.parametrize(
    "line", ["Tasks took long", "Sent 5 tasks", "", "Tasks took 5 s of worker processes!"]
)
def test_no_other_line_is_taken_for_it(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("said", "price"),
    [("0.051", 0.051), ("", None), ("cheap", None), ("-1", None), ("nan", None), ("0", None)],
)
def test_what_is_no_price_is_unknown(said: str, price: float | None) -> None:
    assert cost.price({cost.PRICE: said}) == price
    assert cost.price({}) is None


MASTER = """
import sys
from openquake.baselib import parallel
import tasks
from oq_celery import cost, ledger, watch
heard = ledger.Ledger.heard
def say(self, reply, now):
    heard(self, reply, now)
    for row in reply.running() if reply.kind == "alive" else ():
        print("alive", row.worker, "every", watch.WATCH_SECONDS, flush=True)
ledger.Ledger.heard = say
directory = sys.argv[1].encode()
if __name__ == "__main__":
    for result in parallel.Starmap(tasks.stream, [(number, directory, b"") for number in range(4)]):
        pass
    print(cost.of_calculation(0))
"""


def test_an_end_that_the_broker_delivers_again_is_one_end(tmp_path: Path) -> None:
    """Its acknowledgement was lost with a connection; else its seconds were paid twice."""
    config = tmp_path / "openquake.cfg"
    config.write_text(
        "[celery]\nuse_celery = true\n[amqp]\nhost = 127.0.0.1\nuser = oq\npassword = none\n"
        f"[directory]\nshared_dir = {tmp_path}\n"
    )
    code = """
        from unittest.mock import Mock
        from openquake.baselib import config
        from oq_celery import cost, ledger, protocol, results, settings
        meter = cost.Meter()
        ours = ledger.Ledger(4, meter)
        queue = results.ResultQueue(settings.load(config), "oq.ann.1.x", ours)
        ours.add(7)
        for attempt in ("a", "a", "b"):
            end = protocol.Reply("ended", "one", "one/1", "m", 7, attempt, seconds=100.0)
            queue._take(Mock(headers=end.headers(), body=b""))
        print(meter.cost(), [queue.receive() and "end" for _ in range(3)])
        """
    assert processes.python(code, config=config) == ["(200.0, 0.0) ['end', 'end', None]"]


@pytest.mark.transport
def test_what_a_killed_worker_had_done_is_counted_as_done_again(
    tmp_path: Path, broker: rabbitmq.Broker
) -> None:
    moments, moment = tmp_path / "moments", "between two results"
    moments.mkdir()
    hold = moments / f"hold-{moment}"
    hold.touch()
    with harness.cluster(tmp_path / "cost", broker) as cluster:
        workers = cluster.workers(2)
        master = cluster.start("python", "-c", MASTER, moments)
        processes.wait_until(lambda: list(moments.glob(f"{moment}.*")), moment)
        (path,) = moments.glob(f"{moment}.*")
        process = int(path.suffix[1:])
        # Between the first two words of its worker there are so many seconds.
        said = rf"^alive \S+/{process} every ([\d.]+)$"
        processes.wait_until(
            lambda: len(re.findall(said, master.output(), re.MULTILINE)) >= 3, "the ledger to hear of it"
        )
        every = float(re.findall(said, master.output(), re.MULTILINE)[0])
        workers[parent(process)].kill()
        hold.unlink()
        assert master.wait() == 0, master.output()
        spent = parse(master.output().splitlines()[-1])
        assert spent is not None, master.output()
        assert every <= spent.again <= spent.seconds


@pytest.mark.transport
def test_a_calculation_says_what_its_tasks_cost_and_so_it_can_be_asked_later(
    tmp_path: Path, broker: rabbitmq.Broker
) -> None:
    job = harness.qa_job("event_based/case_2", tmp_path)
    with harness.cluster(tmp_path / "cost", broker) as cluster:
        cluster.worker("one", 2)
        first = cluster.run(job, **{cost.PRICE: "0.05"})
        (line,) = [text for text in first.output.splitlines() if cost.BEGINNING in text]
        spent = parse(line.partition("] ")[2])
        assert spent is not None
        assert spent.seconds > 0
        assert (spent.again, spent.price) == (0.0, 0.05)
        second = cluster.run(job, OQ_DISTRIBUTE="no", **{cost.PRICE: "0.05"})
        assert cost.BEGINNING not in second.output  # no worker had a task of it
        asked = cluster.start("oq-celery", "cost", "--json")
        assert asked.wait() == 0
        known, unknown = json.loads(asked.output())
        assert (known["id"], known["seconds"], known["price"]) == (1, spent.seconds, 0.05)
        assert (unknown["id"], unknown["status"], unknown["seconds"]) == (2, "complete", None)
        cluster.run(
            job, options=["--log-level", "warn"], **{cost.PRICE: "0.05"}
        )  # as workflows of several jobs are
        asked = cluster.start("oq-celery", "cost", "3", "--json")
        assert asked.wait() == 0
        assert json.loads(asked.output())[0]["seconds"] > 0
        nothing = cluster.start("oq-celery", "cost", "99")
        assert nothing.wait() == 1
        assert "there is no calculation 99" in nothing.output()
