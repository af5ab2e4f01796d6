"""A client of the broker for what nobody does: it looks at queues, deletes and empties them, takes and copies messages.

Runs in the engine's environment, which has an AMQP library: `python -m explorer.broker_client`, one JSON object per
line and an answer to each. It reaches the broker directly, not through a proxy.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import amqp
from openquake.baselib import config
from oq_celery import broker, settings

SETTINGS = settings.load(config)


class BrokerClient:
    """One connection, opened when needed."""

    def __init__(self) -> None:
        self._connection: amqp.Connection | None = None

    def do(self, action: str, queue: str, number: int) -> Any:
        """Do one thing; what it says depends on it, None is for a queue that is not there."""
        if self._connection is None:
            self._connection = broker.connect(SETTINGS, read_timeout=10, write_timeout=10)
        channel = self._connection.channel()
        try:
            return getattr(self, action)(channel, queue, number)
        except amqp.NotFound:
            return None
        finally:
            channel.close()

    def forget(self) -> None:
        """Drop the connection after an error."""
        broker.close(self._connection)
        self._connection = None

    @staticmethod
    def delete(channel: Any, queue: str, _: int) -> int:
        """Delete the queue; how many messages were in it."""
        channel.queue_declare(queue, passive=True)
        return int(channel.queue_delete(queue) or 0)

    @staticmethod
    def purge(channel: Any, queue: str, _: int) -> int:
        """Empty the queue of what waits in it; how many messages that were."""
        return int(channel.queue_purge(queue))

    @staticmethod
    def steal(channel: Any, queue: str, number: int) -> int:
        """Take messages away for good; how many were there."""
        for taken in range(number):
            if channel.basic_get(queue, no_ack=True) is None:
                return taken
        return number

    @staticmethod
    def copy(channel: Any, queue: str, number: int) -> int:
        """Put messages into the queue once more, and back where they were; how many were there."""
        found: list[Any] = []
        while len(found) < number and (message := channel.basic_get(queue)) is not None:
            found.append(message)
        for message in found:
            again = amqp.Message(message.body, **message.properties)
            channel.basic_publish_confirm(again, routing_key=queue)
        for message in reversed(found):
            channel.basic_reject(message.delivery_tag, requeue=True)
        return len(found)


def main() -> None:
    """Answer until the input ends."""
    client = BrokerClient()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": client.do(request["action"], request["queue"], request["number"])}
        except (*broker.ERRORS, AttributeError) as error:
            client.forget()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
