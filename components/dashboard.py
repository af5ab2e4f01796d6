"""The dashboard: the cluster on one page of CloudWatch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from components import facts
from components.component import Component
from components.prices import Estimate
from components.tags import cluster_name, dashboard_name
from components.workers import IN_SERVICE_METRIC

_COLUMNS: Final = 24  # of CloudWatch's grid
_WIDTH: Final = 8
_HEIGHT: Final = 6
_MINUTE: Final = 60
_HOUR: Final = 3600

Line = tuple[str, str, Mapping[str, str], str]
"""A metric's namespace, name and dimensions, and the statistic that is shown."""


@dataclass(frozen=True)
class HourPrices:
    """What an hour of a worker, of the master and of all the rest costs, in USD."""

    worker: float
    master: float
    rest: float


def hour_prices(costs: Estimate) -> HourPrices | None:
    """Those of an estimate; None if one of them is not known: a wrong sum is worse than none."""
    worker, master, rest = costs.worker, costs.master, costs.hour_rest
    if worker is None or master is None or rest is None:
        return None
    return HourPrices(worker, master, rest)


@dataclass(frozen=True)
class Shown:
    """Whose metrics a dashboard shows, by AWS's names of them; `alarms` are ARNs.

    Without `prices` it shows no costs.
    """

    cluster: str
    region: str
    instance_id: str
    group_name: str
    file_system_id: str
    alarms: Sequence[str]
    prices: HourPrices | None = None


def dashboard_body(shown: Shown) -> str:
    """The JSON of the dashboard.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    master = {"InstanceId": shown.instance_id}
    workers = {"AutoScalingGroupName": shown.group_name}
    shared = {"FileSystemId": shown.file_system_id}

    def own(name: str, statistic: str = "Maximum", **dimensions: str) -> Line:
        return (
            facts.METRICS_NAMESPACE,
            name,
            {facts.METRICS_DIMENSION: shown.cluster, **dimensions},
            statistic,
        )

    graphs: dict[str, list[Line]] = {
        "Queue": [own("TasksWaiting"), own("TasksOutstanding")],
        "Workers": [own("WorkersAlive"), own("WorkersBusy")],
        "Tasks done per minute": [own("TasksDone", "Sum")],
        "CPU of master and workers, %": [
            ("AWS/EC2", "CPUUtilization", master, "Average"),
            ("AWS/EC2", "CPUUtilization", workers, "Average"),
        ],
        "Memory of the master, %": [own("MemoryUsedPercent")],
        "Disks of the master, %": [
            own(facts.DISK_METRIC, **{facts.DISK_DIMENSION: mount}) for mount in facts.VOLUME_MOUNTS
        ],
        "Shared file system, bytes read and written": [
            ("AWS/EFS", "DataReadIOBytes", shared, "Sum"),
            ("AWS/EFS", "DataWriteIOBytes", shared, "Sum"),
        ],
        "Shared file system, bytes stored": [
            ("AWS/EFS", "StorageBytes", {"StorageClass": "Total", **shared}, "Average")
        ],
        "RabbitMQ takes no messages; failed calculations": [
            own("BrokerBlocked"),
            own("CalculationsFailed", "Sum"),
        ],
    }
    widgets: list[dict[str, Any]] = [
        {
            "type": "metric",
            "properties": {
                "title": title,
                "region": shown.region,
                "view": "timeSeries",
                "period": _MINUTE,
                "yAxis": {"left": {"min": 0}},
                "metrics": [_line(line) for line in lines],
            },
        }
        for title, lines in graphs.items()
    ]
    if shown.prices:
        widgets += _costs(shown, shown.prices)
    if shown.alarms:
        widgets.append({"type": "alarm", "properties": {"title": "Alarms", "alarms": list(shown.alarms)}})
    in_row = _COLUMNS // _WIDTH
    for place, widget in enumerate(widgets):
        row, column = divmod(place, in_row)
        widget |= {"x": column * _WIDTH, "y": row * _HEIGHT, "width": _WIDTH, "height": _HEIGHT}
    return json.dumps({"widgets": widgets})


def _costs(shown: Shown, prices: HourPrices) -> list[dict[str, Any]]:
    """What the cluster costs, by the minutes that AWS counts of its machines: by the hour, and of the last day.

    AWS publishes the size of a group in each minute, a group of none too, and a status check of a master that runs. So
    the sum of the sizes is the workers' minutes, and the number of values the minutes that have passed.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html
    """
    group = ("AWS/AutoScaling", IN_SERVICE_METRIC.value, "AutoScalingGroupName", shown.group_name)
    master = ("AWS/EC2", "StatusCheckFailed", "InstanceId", shown.instance_id)
    minutes: list[list[Any]] = [
        [*group, {"id": "workers", "stat": "Sum", "visible": False}],
        [*master, {"id": "master", "stat": "SampleCount", "visible": False}],
        [*group, {"id": "all", "stat": "SampleCount", "visible": False}],
    ]
    parts = {
        "workers": f"workers * {prices.worker / 60:.8f}",
        "master": f"FILL(master, 0) * {prices.master / 60:.8f}",  # of one that sleeps there is no value
        "the rest": f"all * {prices.rest / 60:.8f}",
    }
    by_part = [[{"expression": usd, "label": label}] for label, usd in parts.items()]
    total = [[{"expression": " + ".join(parts.values()), "label": "USD"}]]
    properties = {"region": shown.region, "period": _HOUR}
    return [
        {
            "type": "metric",
            "properties": {
                "title": "Cost per hour, USD (estimate)",
                "view": "timeSeries",
                "stacked": True,
                "yAxis": {"left": {"min": 0}},
                "metrics": [*minutes, *by_part],
                **properties,
            },
        },
        {
            "type": "metric",
            "properties": {
                "title": "Cost of the last 24 hours, USD (estimate)",
                "view": "singleValue",
                "start": "-PT24H",
                "end": "P0D",
                "setPeriodToTimeRange": True,
                "metrics": [*minutes, *total],
                **properties,
            },
        },
    ]


def _line(line: Line) -> list[Any]:
    namespace, name, dimensions, statistic = line
    return [
        namespace, name, *(word for pair in dimensions.items() for word in pair), {"stat": statistic}
    ]  # fmt: skip


@dataclass(frozen=True)
class DashboardArgs:
    """Whose metrics are shown; `alarms` are ARNs. Without `prices` the dashboard shows no costs."""

    region: str
    instance_id: pulumi.Input[str]
    group_name: pulumi.Input[str]
    file_system_id: pulumi.Input[str]
    alarms: Sequence[pulumi.Input[str]]
    prices: HourPrices | None = None


class Dashboard(Component):
    """One dashboard, named after the cluster."""

    def __init__(self, name: str, args: DashboardArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        cluster = cluster_name(pulumi.get_stack())
        board = aws.cloudwatch.Dashboard(
            self.named("board"),
            dashboard_name=dashboard_name(pulumi.get_stack()),
            dashboard_body=pulumi.Output.all(
                instance_id=args.instance_id,
                group_name=args.group_name,
                file_system_id=args.file_system_id,
                alarms=pulumi.Output.all(*args.alarms),
            ).apply(
                lambda known: dashboard_body(
                    Shown(cluster=cluster, region=args.region, prices=args.prices, **known)
                )
            ),
            opts=self.child(),
        )
        self.register_outputs({"name": board.dashboard_name})
