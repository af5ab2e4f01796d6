"""What the cluster costs: AWS's list prices, and an estimate made from them. No Pulumi in here.

Prices are on demand, for Linux, in USD, before tax and without AWS's free tier. What is not in the tables has no price:
the estimate then says what is unknown, and nothing else depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from components import facts
from components.instance_types import InstanceType, processes
from components.settings import Settings
from components.subnets import endpoint_services

DATE: Final = "2026-01-19"
"""Of the oldest table below."""
HOURS: Final = 730
"""Of a month, as AWS's calculator counts."""

# An hour of the size `large` in us-east-1. Karpenter's table, generated from AWS's price list on 2026-01-19:
# https://github.com/aws/karpenter-provider-aws/blob/main/pkg/providers/pricing/zz_generated.pricing_aws.go
_LARGE: Final[Mapping[str, float]] = {
    "c5": 0.085,
    "c6a": 0.0765,
    "c6i": 0.085,
    "c7a": 0.10264,
    "c7i": 0.08925,
    "m5": 0.096,
    "m6a": 0.0864,
    "m6i": 0.096,
    "m7a": 0.11592,
    "m7i": 0.1008,
    "r6a": 0.1134,
    "r6i": 0.126,
    "r7a": 0.15215,
    "r7i": 0.1323,
    "t3": 0.0832,
}
# How much a size is of `large`. Each costs its share; those of `metal` do not in all families, so they have no price.
_SIZES: Final[Mapping[str, float]] = {
    "nano": 1 / 16,
    "micro": 1 / 8,
    "small": 1 / 4,
    "medium": 1 / 2,
    "large": 1,
}

# What one type of a class costs an hour in each region; other types of the class are taken to be dearer or cheaper in
# the same proportion, which holds for c6a, c6i and c7i to the last digit and is an estimate for others.
# SkyPilot's catalog of AWS, read on 2026-11-26:
# https://github.com/skypilot-org/skypilot-catalog/blob/00148f2af3672e2229b4f7bf8157d5a3f36e3c35/catalogs/v8/aws/vms.csv
_CLASSES: Final[Mapping[str, Mapping[str, float]]] = {
    "c": {  # c6i.2xlarge
        "us-east-1": 0.34,
        "us-east-2": 0.34,
        "us-west-2": 0.34,
        "ca-central-1": 0.372,
        "eu-central-1": 0.388,
        "eu-west-1": 0.3648,
        "eu-west-2": 0.404,
        "ap-northeast-1": 0.428,
        "ap-southeast-1": 0.392,
        "ap-southeast-2": 0.444,
    },
    "m": {  # m7i.12xlarge
        "us-east-1": 2.4192,
        "us-east-2": 2.4192,
        "us-west-2": 2.4192,
        "ca-central-1": 2.6964,
        "eu-central-1": 2.898,
        "eu-west-1": 2.6964,
        "eu-west-2": 2.7972,
        "ap-northeast-1": 3.1248,
        "ap-southeast-1": 3.024,
        "ap-southeast-2": 3.024,
    },
    "r": {  # r8i.xlarge
        "us-east-1": 0.27784,
        "us-east-2": 0.27784,
        "us-west-2": 0.27784,
        "ca-central-1": 0.3043,
        "eu-central-1": 0.33516,
        "eu-west-2": 0.32634,
        "ap-northeast-1": 0.33516,
        "ap-southeast-1": 0.33516,
        "ap-southeast-2": 0.33296,
    },
    "t": {  # t3.xlarge
        "us-east-1": 0.1664,
        "us-east-2": 0.1664,
        "us-west-2": 0.1664,
        "ca-central-1": 0.1856,
        "eu-central-1": 0.192,
        "eu-west-1": 0.1824,
        "eu-west-2": 0.1888,
        "ap-northeast-1": 0.2176,
        "ap-southeast-1": 0.2112,
        "ap-southeast-2": 0.2112,
    },
}
_BASE_REGION: Final = "us-east-1"


class _Services(NamedTuple):
    """An hour of a NAT gateway and of an interface endpoint in one zone; a month of 1 GB on gp3."""

    nat: float | None
    endpoint: float | None
    gp3: float | None


_UNKNOWN: Final = _Services(None, None, None)
# From public copies of AWS's price pages (VPC, PrivateLink, EBS), read on 2026-11-26.
_US: Final = _Services(nat=0.045, endpoint=0.01, gp3=0.08)
_SERVICES: Final[Mapping[str, _Services]] = {
    "us-east-1": _US,
    "us-east-2": _US,
    "us-west-2": _US,
    "eu-central-1": _Services(nat=0.052, endpoint=0.012, gp3=0.0952),
    "eu-west-1": _Services(nat=0.048, endpoint=0.011, gp3=0.088),
}
# The same in all these regions: an hour of a public IPv4 address; one publication of metrics; a month of a metric, of a
# metric that an alarm looks at, and at more often than once a minute, of a secret, and of a key.
# https://aws.amazon.com/cloudwatch/pricing/ and others, as above.
_IPV4: Final = 0.005
_METRIC: Final = 0.30
_ALARM: Final = 0.10
_FAST_ALARM: Final = 0.30
_PUBLICATION: Final = 0.01 / 1000
_SECRET: Final = 0.40
_KEY: Final = 1.0
# Those of components/alarms.py, which knows Pulumi; a test counts them. Where the master stops when it is idle, the
# alarm on its silence looks at its status checks, too.
_MAIL_ALARM_METRICS: Final = 12
_STATUS_CHECKS: Final = 1
# Metrics of an instance by the minute: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/viewing_metrics_with_cloudwatch.html
_DETAILED_METRICS: Final = 7


def type_hour(instance_type: str, region: str) -> float | None:
    """What an hour of an instance type costs in a region; None if that is not known."""
    family, _, size = instance_type.partition(".")
    times = re.fullmatch(r"(\d*)xlarge", size)
    share = 2.0 * int(times[1] or 1) if times else _SIZES.get(size)
    of_class = _CLASSES.get(family[:1], {})
    if family not in _LARGE or share is None or region not in of_class:
        return None
    return _LARGE[family] * share * of_class[region] / of_class[_BASE_REGION]


def worker_hour(settings: Settings, region: str) -> float | None:
    """What an hour of a worker costs: as the settings say, or else the type that they prefer; None if not known."""
    return settings.worker_hour_price or type_hour(settings.worker_instance_types[0], region)


@dataclass(frozen=True)
class Estimate:
    """What a cluster costs in USD.

    `month` has the parts of an idle month, `worker` is an hour of one of its `workers`, of which `staying` are there
    always, and `master` an hour of the master. None is what nobody knows.
    """

    region: str
    month: Mapping[str, float | None]
    worker: float | None
    workers: int
    master: float | None = 0.0
    staying: int = 0

    @property
    def month_idle(self) -> float | None:
        """A month in which nothing is computed."""
        return _sum(self.month.values())

    @property
    def hour_full(self) -> float | None:
        """An hour with all workers, of whom the month has those that stay already."""
        return _sum([_times(1 / HOURS, self.month_idle), _times(self.workers - self.staying, self.worker)])

    @property
    def hour_rest(self) -> float | None:
        """An hour of what is neither the master nor a worker: network, disks, metrics, secrets."""
        machines = _sum([self.master, _times(self.staying, self.worker) if self.staying else 0.0])
        if self.month_idle is None or machines is None:
            return None
        return self.month_idle / HOURS - machines

    def idle_text(self) -> str:
        """The idle month, for people."""
        if self.month_idle is None:
            return self._unknown([part for part, usd in self.month.items() if usd is None])
        return f"about {self.month_idle:.0f} USD ({self._basis()}; without EFS, snapshots and traffic)"

    def full_text(self) -> str:
        """The hour with all workers, for people."""
        full = self.hour_full
        if full is None or self.worker is None:
            parts = [part for part, usd in self.month.items() if usd is None]
            return self._unknown([*parts, *(["a worker"] if self.worker is None else [])])
        return (
            f"about {full:.2f} USD: {self.workers} workers at {self.worker:.3f} and "
            f"{full - self.workers * self.worker:.2f} for the rest ({self._basis()})"
        )

    def _basis(self) -> str:
        return f"estimate, list prices on demand of {DATE} in {self.region}"

    def _unknown(self, parts: Sequence[str]) -> str:
        return f"unknown: components/prices.py has no price in {self.region} of {', '.join(parts)}"


def estimate(settings: Settings, region: str) -> Estimate:
    """What the cluster of these settings costs in a region."""
    services = _SERVICES.get(region, _UNKNOWN)
    worker = worker_hour(settings, region)
    disks = sum(
        size
        for mount, size in settings.volume_gb.items()
        if not settings.volume_sources[mount].startswith("vol-")
    )
    endpoints = len(endpoint_services(settings.egress))
    alarms = _FAST_ALARM + _ALARM if settings.worker_min < settings.worker_max else 0
    master = type_hour(settings.master_instance_type, region)
    month = {f"master, {settings.master_instance_type}": _times(HOURS, master)}
    if settings.egress == "nat":
        month["NAT gateway and its public address"] = _times(HOURS, _sum([services.nat, _IPV4]))
    month[f"{endpoints} interface endpoints"] = _times(endpoints * HOURS, services.endpoint)
    month[f"EBS, {disks} GB gp3, and the root disk"] = _times(disks + facts.MASTER_ROOT_GB, services.gp3)
    publications = HOURS * 3600 / facts.METRICS_IDLE_SECONDS * _PUBLICATION
    month["metrics and alarms"] = (_own_metrics() + _DETAILED_METRICS) * _METRIC + publications + alarms
    if settings.alarm_email:
        metrics = _MAIL_ALARM_METRICS + (_STATUS_CHECKS if settings.stop_when_idle_minutes else 0)
        month["alarms that send e-mails, and their key"] = metrics * _ALARM + _KEY
    month["secrets"] = _SECRET * (2 if settings.webui else 1)
    if settings.worker_min:
        month[f"{settings.worker_min} workers that stay"] = _times(settings.worker_min * HOURS, worker)
    return Estimate(region, month, worker, settings.worker_max, master, settings.worker_min)


def _own_metrics() -> int:
    return len(facts.METRICS) + len(facts.VOLUME_MOUNTS)


def process_hour(worker: float | None, worker_type: InstanceType, reserved_mb: int = 0) -> float | None:
    """What an hour of one of the worker's processes costs, when the worker costs so much; None if that is not known.

    `reserved_mb` of its memory (MiB) are for something else.
    """
    return _times(1 / processes(worker_type, reserved_mb), worker)


def _sum(prices: Iterable[float | None]) -> float | None:
    total = 0.0
    for price in prices:
        if price is None:
            return None
        total += price
    return total


def _times(number: float, price: float | None) -> float | None:
    return None if price is None else number * price
