"""The lease: how a master holds it, and when it counts as lost; no broker, and most of the time made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from oq_celery.protocol import LEASE_SECONDS

from explorer import checker
from tests.transport.processes import python

TIME = """
    class Time:
        now = 0.0
        def monotonic(self):
            return self.now
        def sleep(self, seconds):
            self.now += seconds

    time = Time()
"""
# A message that may be a copy: whether it is done is for the master to say, if there is one.
ATTEMPT = (
    TIME
    + """
    import sys
    from pathlib import Path
    from oq_celery import attempt, clock, protocol
    from oq_celery.settings import Settings
    attempt.time = clock.time = time

    class Publisher:
        looks = 0
        def depth(self, channel):
            self.looks += 1
            if self.looks == 2:
                time.now += {away}
            return 0, int(time.now >= {back})
        def delete_unused(self, channel):
            print("deleted after", time.now)
            return True
        def ask(self, *_):
            print("asked")
            return "drop"

    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path(sys.argv[1]), 2048, 16, 4)
    header = protocol.TaskHeader("oq.user.1.x", "master", 0, "bytes", 1, "user", 0, protocol.versions())
    attempt.Attempt(settings, Publisher(), header, "node", "message").run(b"", may_be_copy=True)
"""
)


@pytest.mark.parametrize(
    ("away", "back", "found"),
    [
        (0, 9.5, ["asked"]),
        (0, 1e9, ["deleted after 10.0"]),
        (12, 14, ["asked"]),
        (12, 1e9, ["deleted after 22.5"]),
    ],
    ids=[
        "a master that comes back",
        "none",
        "one that was away as long as the broker",
        "none, and no broker for long",
    ],
)
def test_the_time_in_which_the_broker_does_not_answer_is_not_the_masters(
    away: float, back: float, found: list[str], tmp_path: Path
) -> None:
    """Both have lost it, and the worker is back first."""
    assert python(ATTEMPT.replace("{away}", str(away)).replace("{back}", str(back)), tmp_path) == found


# Looks every 30 s; the second one meets a broken connection.
SWEEP = (
    TIME
    + """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    from oq_celery import broker, clock, watch
    from oq_celery.settings import Settings
    watch.time = clock.time = time
    looks = 0

    def depth(connection, name):
        global looks
        looks += 1
        if looks == {broken}:
            raise OSError("the broker has been restarted")
        return 0, 0

    def delete_unused(connection, name):
        print(name, "deleted at look", looks)
        sys.exit()

    broker.connect = lambda *_, **__: SimpleNamespace(collect=lambda: None)
    broker.depth, broker.delete_unused = depth, delete_unused
    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path(sys.argv[1]), 2048, 16, 4)
    (settings.spool / "oq.user.1.x").mkdir(parents=True)
    watch.Sweep(settings).run()
"""
)


@pytest.mark.parametrize(("broken", "deleted"), [(0, 2), (2, 4)])
def test_what_was_seen_before_a_connection_broke_says_nothing_of_the_time_since(
    broken: int, deleted: int, tmp_path: Path
) -> None:
    found = python(SWEEP.replace("{broken}", str(broken)), tmp_path)
    assert found == [f"oq.user.1.x deleted at look {deleted}"]


# The third look meets a broken connection, and the broker takes the next one away with it.
LOOKS = (
    TIME
    + """
    from types import SimpleNamespace
    from oq_celery import broker, watch
    from oq_celery.settings import Settings
    watch.time = time
    looks = []

    class Look(watch.Repeated):
        def look(self, connection):
            looks.append(time.now)
            if len(looks) in {broken}:
                raise OSError("the connection is broken")
            if len(looks) == 6:
                print(*looks)
                raise SystemExit

    broker.connect = lambda *_, **__: SimpleNamespace(collect=lambda: None)
    Look("look", None, 2.0, 6.0).run()
"""
)


@pytest.mark.parametrize(
    ("broken", "times"),
    [([], "2.0 4.0 6.0 8.0 10.0 12.0"), ([3], "2.0 4.0 6.0 6.0 8.0 10.0"), ([1, 2, 3], "2.0 4.0 6.0 8.0 10.0 12.0"),
     ([3, 4, 5], "2.0 4.0 6.0 6.0 8.0 10.0")],
    ids=["no connection", "one that had served", "the first ones", "one that had served, and those after it"],
)  # fmt: skip
def test_a_look_on_a_connection_that_has_broken_is_taken_again_at_once_on_a_new_one(
    broken: list[int], times: str, tmp_path: Path
) -> None:
    """So that masters hear soon what runs here; a broker that takes no connection is not asked all the time."""
    assert python(LOOKS.replace("{broken}", str(broken)), tmp_path) == [times]


HOLD = """
    import logging, threading
    from pathlib import Path
    from oq_celery import broker, ledger, results
    from oq_celery.settings import Settings

    class Connection:
        def channel(self):
            return self
        def basic_qos(self, _size, count, _global):
            print("ahead", count)
        def basic_consume(self, queue, callback):
            print("consumes")
        def drain_events(self, timeout):
            raise OSError("gone")
        def close(self):
            pass

    class Handler(logging.Handler):
        def emit(self, record):
            print(threading.current_thread() is threading.main_thread(), record.getMessage())

    logging.basicConfig(level=logging.DEBUG, handlers=[Handler()])
    broker.RETRY_SECONDS = 0.01
    broker.connect = lambda *_: Connection()
    broker.declare_tasks = broker.declare_results = lambda *_: None
    broker.depth = lambda *_: (0, 1)
    broker.delete = lambda _settings, queue: print("deletes", queue)
    settings = Settings("host", 5672, "user", "secret", "/", "celery", Path("/none"), 2048, 15360, 4)
    queue = results.ResultQueue(settings, "oq.user.1.x", ledger.Ledger(4))
"""


def test_who_holds_the_lease_writes_no_log() -> None:
    """The engine's handler asks the DbServer, which may be away for ten minutes; whoever receives writes it."""
    code = (
        HOLD
        + """
    queue.start()
    while not isinstance(queue.receive(), results.Back):
        pass
    """
    )
    found = python(code)
    assert "True RabbitMQ at host: gone; trying again" in found
    assert not [line for line in found if line.startswith("False")]


def test_as_many_results_come_ahead_as_the_largest_ones_have_room() -> None:
    """64 MB, or four of 15 MB each."""
    assert "ahead 4" in python(HOLD + "    queue.start()\n    queue.receive()")


def test_a_queue_that_is_made_after_its_end_is_deleted() -> None:
    code = (
        HOLD
        + """
    broker.declare_results = lambda *_: setattr(queue, "_ended", True)
    queue.run()
    """
    )
    assert python(code) == ["deletes oq.user.1.x"]


def test_the_explorer_of_faults_allows_for_the_lease_that_masters_have() -> None:
    assert checker.LEASE_SECONDS == LEASE_SECONDS
