"""A stand-in for a fleet of workers: takes tasks from the real queue, sleeps, and answers in the real protocol.

    python -m standin '{"processes": 512, "records": [[1.5, 80000], ...]}'

Of a worker it has all that the broker and the master see: a consumer for each node, a connection for each process, the
look at the result queue, "started", "alive", the confirmed "ended" with results of the recorded size (in a file when
large), and the acknowledgement after it. It does not read arguments. Runs in the engine's environment; prints "ready".
"""

from __future__ import annotations

import heapq
import itertools
import json
import pickle
import resource
import selectors
import sys
import time
import uuid
from typing import Any

import amqp
from amqp import spec
from openquake.baselib import config
from openquake.baselib.parallel import FakePickle, Pickled, Result
from oq_celery import broker, protocol, spool
from oq_celery.protocol import Reply, Running, TaskHeader
from oq_celery.settings import Settings, load
from oq_celery.spool import StoredPickle

NODE_PROCESSES = 16
ALIVE_SECONDS = 2.0  # as in watch.py
LOOK_SECONDS = 2.0  # as in attempt.py


class Process:
    """A process of a worker: its connection, and the task that it does."""

    def __init__(self, node: Node, number: int, settings: Settings) -> None:
        self.node = node
        self.name = f"{node.name}/{number}"
        self.task: tuple[amqp.Message, TaskHeader, float, int] | None = None
        self.connection = broker.connect(settings)
        self._plain, self._confirming = self.connection.channel(), self.connection.channel()
        self._confirming.confirm_select()
        self._confirming.events["basic_ack"].add(self._confirmed)
        self._looked = 0.0
        self._settings = settings

    def begin(self, message: amqp.Message, header: TaskHeader, record: tuple[float, int]) -> None:
        """Take a task."""
        self.task = message, header, *record
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            # A passive declaration, whose answer comes with the next events.
            arguments: tuple[Any, ...] = (0, header.channel, True, False, False, False, False, {})
            self._plain.send_method(spec.Queue.Declare, "BsbbbbbF", arguments)
        self._publish(self._plain, "started")

    def end(self, monitor: Any, pickled: Pickled) -> None:
        """Answer; `_confirmed` follows."""
        assert self.task is not None
        _, header, seconds, size = self.task
        attempt = f"result-{header.task_no}-{uuid.uuid4().hex[:16]}"
        limit = self._settings.max_message_kb * 1024 // 2
        if size > limit:
            path = self._settings.spool / header.channel / attempt
            pickled = StoredPickle(pickled, spool.write(path, pickled.pik))
        measured = monitor.new(operation="total replay", measuremem=True, task_no=header.task_no, weight=1.0)
        measured.duration, measured.counts = seconds, 1
        results = [
            self._result(measured, pickled, "", {"data": size}),
            self._result(measured, FakePickle(size), "TASK_ENDED", {}),
        ]
        body = pickle.dumps(results, pickle.HIGHEST_PROTOCOL)
        self._publish(self._confirming, "ended", body, attempt, has_file=size > limit)

    def _result(self, monitor: Any, pickled: Any, msg: str, nbytes: dict[str, int]) -> Result:
        result = object.__new__(Result)
        vars(result).update(
            pik=pickled, nbytes=nbytes, mon=monitor, tb_str="", msg=msg, workerid=(self.node.name, self.name)
        )
        return result

    def _publish(
        self,
        channel: amqp.Channel,
        kind: Any,
        body: bytes = b"",
        attempt: str = "",
        *,
        has_file: bool = False,
    ) -> None:
        assert self.task is not None
        message, header, *_ = self.task
        reply = Reply(
            kind,
            self.node.name,
            self.name,
            message.headers["id"],
            header.task_no,
            attempt,
            has_file,
            None,
            body,
        )
        properties = {"application_headers": reply.headers(), "delivery_mode": 2 if kind == "ended" else 1}
        channel.basic_publish(
            amqp.Message(body, **properties), routing_key=header.channel, mandatory=kind == "ended"
        )

    def _confirmed(self, *_: Any) -> None:
        assert self.task is not None
        message, self.task = self.task[0], None
        message.channel.basic_ack(message.delivery_tag)
        self.node.free.append(self)


class Node:
    """A worker: its consumer and its processes."""

    def __init__(self, fleet: Fleet, number: int, processes: int, settings: Settings) -> None:
        self.name = f"openquake@node-{number}"
        self.processes = [Process(self, one, settings) for one in range(processes)]
        self.free = list(self.processes)
        self.connection = broker.connect(settings)
        self._channel = self.connection.channel()
        broker.declare_tasks(self._channel, settings.queue)
        self._channel.basic_qos(0, processes, False)
        self._channel.basic_consume(settings.queue, callback=lambda message: fleet.begin(self, message))

    def tell_alive(self) -> None:
        """Say what runs here, channel by channel."""
        running: dict[str, list[Running]] = {}
        for process in self.processes:
            if process.task is not None:
                message, header, *_ = process.task
                running.setdefault(header.channel, []).append(
                    Running(header.task_no, process.name, message.headers["id"])
                )
        for channel, tasks in running.items():
            reply = Reply("alive", self.name, "", "", body=protocol.running_body(tasks))
            message = amqp.Message(reply.body, application_headers=reply.headers(), delivery_mode=1)
            self._channel.basic_publish(message, routing_key=channel)


class Fleet:
    """All nodes, in one loop."""

    def __init__(self, processes: int, records: list[tuple[float, int]]) -> None:
        settings = load(config)
        self._records = records
        self._pickled = {size: Pickled({"data": bytes(size)}) for _, size in records}
        self._monitors: dict[str, Any] = {}
        self._due: list[tuple[float, int, Process]] = []
        self._count = itertools.count()
        sizes = [min(NODE_PROCESSES, processes - first) for first in range(0, processes, NODE_PROCESSES)]
        self._nodes = [Node(self, number, size, settings) for number, size in enumerate(sizes)]
        self._selector = selectors.DefaultSelector()
        for node in self._nodes:
            for connection in (node.connection, *(process.connection for process in node.processes)):
                self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def begin(self, node: Node, message: amqp.Message) -> None:
        """Give a task to a free process of the node."""
        (plain, stored, body), _, _ = pickle.loads(message.body)  # noqa: S301
        header = TaskHeader.parse(plain)
        if header.channel not in self._monitors:
            call = spool.read(protocol.Stored(**stored)) if stored else body
            self._monitors[header.channel] = pickle.loads(call)[2]  # noqa: S301
        record = self._records[header.task_no % len(self._records)]
        process = node.free.pop()
        process.begin(message, header, record)
        heapq.heappush(self._due, (time.monotonic() + record[0], next(self._count), process))

    def run(self) -> None:
        """Until it is killed."""
        alive = 0.0
        while True:
            now = time.monotonic()
            if now >= alive:
                alive = now + ALIVE_SECONDS
                for node in self._nodes:
                    node.tell_alive()
            while self._due and self._due[0][0] <= now:
                process = heapq.heappop(self._due)[2]
                assert process.task is not None
                _, header, _, size = process.task
                process.end(self._monitors[header.channel], self._pickled[size])
            wait = min(alive, self._due[0][0] if self._due else alive) - time.monotonic()
            for key, _ in self._selector.select(max(0.0, wait)):
                self._drain(key.data)

    @staticmethod
    def _drain(connection: amqp.Connection) -> None:
        """Handle everything that has come."""
        while True:
            try:
                connection.drain_events(timeout=0)
            except TimeoutError:
                return


def main() -> None:
    """Do what the first argument says."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    what = json.loads(sys.argv[1])
    fleet = Fleet(what["processes"], [(seconds, int(size)) for seconds, size in what["records"]])
    print("ready", flush=True)
    fleet.run()


if __name__ == "__main__":
    main()
