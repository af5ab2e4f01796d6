"""What `oq-celery status` says of a broker that takes no messages, and of masters with other clocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.transport import harness, processes
from tests.transport.harness import Cluster
from tests.transport.jobs import held, release, running
from tests.transport.limits import EXCEEDED, alarm
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker


def answered(look: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What a look at the broker finds, however often that does not answer in time on a busy machine."""
    found: list[dict[str, Any]] = []

    def answers() -> bool:
        found.extend(one for one in [look()] if one is not None)
        return bool(found)

    wait_until(answers, "the broker to answer a status")
    return found[0]


def text(cluster: Cluster) -> dict[str, Any] | None:
    """What people see of a status."""
    done = processes.run([processes.ENGINE / "bin/oq-celery", "status"], cluster.env)
    return None if done.returncode else {"text": done.stdout}


@pytest.mark.parametrize("kind", EXCEEDED)
def test_status_says_which_alarm_there_is_and_what_to_do(cluster: Cluster, broker: Broker, kind: str) -> None:
    with alarm(broker, kind):
        found = answered(cluster.status)
        shown = answered(lambda: text(cluster))["text"]
    assert found["alarm"] == kind
    assert found["consumers"] == 2
    assert f"takes no messages ({kind})" in shown
    assert "Then all goes on by itself" in shown
    wait_until(lambda: len(answered(cluster.status)["workers"]) == 2, "the workers again")


def test_an_alarm_is_seen_whose_word_comes_behind_the_confirm() -> None:
    """RabbitMQ takes the first message of a connection also while it has an alarm; the two come from two processes."""
    code = """
        from oq_celery import broker
        class Connection:
            sent, blocked, alarm = 0, False, True
            def channel(self):
                return self
            def confirm_select(self):
                self.events = {"basic_ack": set()}
            def basic_publish(self, message):
                self.sent += 1
            def drain_events(self, timeout):
                if self.sent:
                    self.sent -= 1
                    self.tag = getattr(self, "tag", 0) + 1
                    (confirm,) = self.events["basic_ack"]
                    confirm(self.tag, False)
                if self.alarm and self.tag == 1 and not self.blocked:
                    self.blocked, self.sent = True, 0
                elif self.blocked:
                    self.on_blocked("low on disk")
        calm = Connection()
        calm.alarm = False
        print(broker.alarm(Connection()), broker.alarm(calm))
        """
    assert processes.python(code) == ["low on disk None"]


def test_status_ends_when_an_alarm_begins_while_it_asks(cluster: Cluster, broker: Broker) -> None:
    """The broker takes its connection, and not its question; the alarm lasts until it has ended."""
    code = """
        import contextlib
        from openquake.baselib import config
        from oq_celery import broker, settings, status
        broker.alarm = lambda connection: None
        with contextlib.suppress(*broker.ERRORS):
            status.read(settings.load(config))
        print("ends")
        """
    with alarm(broker):
        assert cluster.python(code) == "ends\n"


def test_an_answer_that_would_run_something_is_none(cluster: Cluster, tmp_path: Path) -> None:
    """Whoever knows the broker's password can answer a question to the workers, and root asks them."""
    code = """
        import contextlib, json, os, pickle, threading
        from kombu import Connection, Exchange, Queue
        from openquake.baselib import config
        from oq_celery import settings, status

        class Harm:
            def __reduce__(self):
                return os.mkdir, (os.environ["HARMED"],)

        def answer(message):
            plain = message.content_type == "application/json"
            question = json.loads(message.body) if plain else pickle.loads(message.body)
            properties = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
            harm = channel.prepare_message(pickle.dumps(Harm()), headers={"ticket": question["ticket"]}, **properties)
            channel.basic_publish(harm, **question["reply_to"])
            answered.append(plain)

        status.REPLY_SECONDS = 3.0  # for all answers, on a busy machine, too
        given, answered = settings.load(config), []
        with Connection(given.url) as connection:
            channel = connection.channel()
            commands = Exchange("celery.pidbox", "fanout", durable=False, delivery_mode="transient")
            heard = Queue("", commands, exclusive=True)
            with connection.Consumer(heard, on_message=answer, no_ack=True, channel=channel):
                read = threading.Thread(target=lambda: print(len(status.read(given).workers)))
                read.start()
                while read.is_alive():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)
        print(*answered, os.path.exists(os.environ["HARMED"]))
        """
    assert cluster.python(code, HARMED=str(tmp_path / "harmed")).split() == ["2", "True", "True", "False"]


def test_a_queue_of_somebodys_own_stops_no_status(cluster: harness.Cluster) -> None:
    """RabbitMQ answers a look at an exclusive queue with an error; its name is free for anybody to choose."""
    code = """
        import shutil
        from kombu import Connection, Queue
        from openquake.baselib import config
        from oq_celery import settings, status
        given = settings.load(config)
        for name in ("oq.x.1.0", "x"):
            (given.spool / name).mkdir(parents=True)
            (given.spool / name / status.PROGRESS_FILE).touch()
        with Connection(given.url) as connection:
            for name in ("oq.x.1.0", "x"):
                Queue(name, exclusive=True, channel=connection.channel()).declare()
            print(len(status.read(given).workers))
        for name in ("oq.x.1.0", "x"):
            shutil.rmtree(given.spool / name)
        """
    assert cluster.python(code) == "2\n"


def test_what_others_have_written_is_no_command_to_a_terminal() -> None:
    code = r"""
        from types import SimpleNamespace
        from oq_celery.jobs import follow
        from oq_celery.status import Status, Tasks, Worker
        records = [SimpleNamespace(id=1, timestamp="now", level="INFO", message="\x1b]0;x\x07")]
        job = SimpleNamespace(status="complete")
        answers = {"get_job": lambda *_: job}
        print(*follow(lambda action, *_: job if action == "get_job" else [records.pop()] if records else [], 1))
        workers = [Worker("two\x1b[2J\nthree", 1, 0)]
        print(Status("host", 0, 0, workers, [Tasks(1, "ann\x1b[2J", "square")], None))
        """
    found = processes.python(code)
    assert found[0] == "[now #1 INFO] ?]0;x?"
    assert any(line.startswith("two?[2J?three") for line in found)
    assert "ann?[2J" in found[-1]


def test_nothing_but_a_file_is_read_for_the_progress_of_a_master(tmp_path: Path) -> None:
    """Whoever computes may put anything into the shared directory, and root reads there each minute."""
    fifo, link, file = (tmp_path / name for name in ("fifo", "link", "file"))
    os.mkfifo(fifo)
    file.write_bytes(b"x" * 10_000)
    link.symlink_to(file)
    code = """
        import sys
        from pathlib import Path
        from oq_celery import status
        for path in map(Path, sys.argv[1:]):
            try:
                print(len(status._read(path)))
            except OSError:
                print("refused")
        """
    assert processes.python(code, fifo, link, file) == ["refused", "refused", "4096"]


def test_the_progress_of_a_master_with_another_clock_is_seen(cluster: Cluster, tmp_path: Path) -> None:
    code = """
        import sys
        from openquake.baselib import parallel
        import tasks
        if __name__ == "__main__":
            arguments = [(number, sys.argv[1].encode(), b"") for number in range(2)]
            parallel.Starmap(tasks.back, arguments).reduce()
        """
    spool = cluster.shared / "oq_celery"
    with held(tmp_path, "busy"), running(cluster, code, words=(tmp_path,)) as (job,):
        wait_until(lambda: list(spool.glob("*/progress.json")), "the master's report")
        job.signal(signal.SIGSTOP)  # or it would write a new one
        (report,) = spool.glob("*/progress.json")
        hour_ago = time.time() - 3600
        os.utime(report, (hour_ago, hour_ago))
        (tasks,) = answered(cluster.status)["tasks"]
        assert tasks["done"] + tasks["running"] + tasks["waiting"] == 2
        job.signal(signal.SIGCONT)
        release(tmp_path, "busy")
        assert job.wait() == 0, job.output()
