"""Publishes what the queue and the fleet do to CloudWatch, where the scaling policies and people read it.

Runs on the master with the engine's Python. Every few seconds while there is work and once more at its end, so that no
alarm acts on what was; once a minute otherwise: a metric costs by the request.
"""

from __future__ import annotations

import time
from typing import Any

from oq_node.common import FACTS, say

BUSY_SECONDS: int = FACTS["metrics_seconds"]
IDLE_SECONDS: int = FACTS["metrics_idle_seconds"]


def metric_data(status: Any, cluster: str) -> list[dict[str, Any]]:
    """The metrics of one moment, as PutMetricData takes them. `status` is an oq_celery.status.Status.

    While the broker takes no messages, workers cannot say what they do. What is unknown then is left out: no alarm
    takes workers away for data that are missing.
    """
    alive = len(status.workers) if status.alarm is None else status.consumers
    values = {
        "TasksWaiting": status.waiting,
        "WorkersAlive": alive,
        "BacklogPerWorker": status.waiting / max(1, alive),
    }
    if status.alarm is None:
        values["TasksOutstanding"] = status.outstanding
        values["WorkersBusy"] = sum(1 for worker in status.workers if worker.busy)
    return [
        {
            "MetricName": name,
            "Dimensions": [{"Name": FACTS["metrics_dimension"], "Value": cluster}],
            "Value": value,
            "Unit": "Count",
            "StorageResolution": 1,  # seconds: alarms of less than a minute need it
        }
        for name, value in values.items()
    ]


def main() -> None:
    """Publish for ever; a broker or CloudWatch that does not answer is reported and asked again."""
    import boto3
    from openquake.baselib import config
    from oq_celery import settings, status

    client = boto3.client("cloudwatch", region_name=FACTS["region"])
    celery = settings.load(config)
    published, worked, trouble = -float(IDLE_SECONDS), False, ""
    while True:
        started = time.monotonic()
        try:
            now = status.read(celery)
            busy = bool(now.outstanding) or now.alarm is not None
            if busy or worked or started - published >= IDLE_SECONDS:
                client.put_metric_data(
                    Namespace=FACTS["metrics_namespace"], MetricData=metric_data(now, FACTS["cluster"])
                )
                published, worked = started, busy
            found = "" if now.alarm is None else f"RabbitMQ takes no messages: {now.alarm}"
        except Exception as error:  # neither boto3's errors nor the broker's have a common base
            found = str(error) or type(error).__name__
        if found and found != trouble:
            say(f"metrics: {found}")
        trouble = found
        time.sleep(max(0.0, BUSY_SECONDS - (time.monotonic() - started)))


if __name__ == "__main__":
    main()
