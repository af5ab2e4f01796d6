"""The table of prices and the estimate that is made from it. That AWS takes these prices is not shown here."""

from __future__ import annotations

import pytest
import yaml

from components import facts
from components.instance_types import InstanceType
from components.prices import Estimate, estimate, process_hour, type_hour
from components.settings import Settings
from docs.tables import PROJECT
from tests.unit.conftest import AMI, Record

REGION = "eu-central-1"


def month(**settings: object) -> dict[str, float | None]:
    """The parts of an idle month in REGION."""
    return dict(estimate(Settings.parse(settings), REGION).month)


@pytest.mark.parametrize(
    ("instance_type", "region", "usd"),
    [
        # as SkyPilot's catalog has them, whose other types the regions' factors come from
        ("c7i.large", "eu-central-1", 0.10185),
        ("c7i.4xlarge", "eu-west-1", 0.76608),
        ("c7i.8xlarge", "ap-southeast-2", 1.8648),
        ("c6a.xlarge", "eu-west-2", 0.1818),
        ("c6a.xlarge", "ap-northeast-1", 0.1926),
        ("m7i.16xlarge", "eu-central-1", 3.864),
        ("m7i.2xlarge", "ap-southeast-1", 0.504),
        ("t3.small", "eu-central-1", 0.024),
        # as Karpenter's table has them
        ("c7a.2xlarge", "us-east-1", 0.41056),
        ("m7a.medium", "us-east-1", 0.05796),
        ("r7i.12xlarge", "us-east-1", 3.1752),
        ("t3.nano", "us-east-1", 0.0052),
    ],
)
def test_a_type_costs_what_the_sources_say(instance_type: str, region: str, usd: float) -> None:
    assert type_hour(instance_type, region) == pytest.approx(usd, rel=1e-4)


@pytest.mark.parametrize(
    ("instance_type", "region"),
    [
        ("x2idn.16xlarge", "us-east-1"),
        ("c7i-flex.large", "us-east-1"),
        ("c7i.metal-24xl", "us-east-1"),
        ("c7i.large", "sa-east-1"),
        ("r7i.large", "eu-west-1"),
    ],
)
def test_what_is_not_in_the_table_has_no_price(instance_type: str, region: str) -> None:
    assert type_hour(instance_type, region) is None


def test_the_table_has_the_types_of_the_defaults_and_of_the_example() -> None:
    config = yaml.safe_load((PROJECT / "Pulumi.dev.yaml").read_text())["config"]
    example = {
        key: config[f"openquake-cluster:{key}"] for key in ("masterInstanceType", "workerInstanceTypes")
    }
    for settings in (Settings.parse({}), Settings.parse(example)):
        for name in (settings.master_instance_type, *settings.worker_instance_types):
            assert type_hour(name, config["aws:region"]), name


def test_an_idle_month_has_a_part_for_all_that_is_paid_by_the_hour() -> None:
    assert {part: usd and round(usd, 2) for part, usd in month().items()} == {
        "master, m7i.large": 88.15,  # 0.12075 an hour
        "NAT gateway and its public address": 41.61,  # 0.052 and 0.005
        "2 interface endpoints": 17.52,  # 0.012 each
        "EBS, 170 GB gp3, and the root disk": 18.09,  # 190 GB at 0.0952
        "metrics and alarms": 6.84,  # 20 metrics at 0.30, two alarms for 0.40, 43 800 publications
        "secrets": 0.8,
    }
    assert estimate(Settings.parse({}), REGION).month_idle == pytest.approx(
        sum(usd or 0 for usd in month().values())
    )


def test_the_parts_follow_the_settings() -> None:
    closed = month(egress="endpoints", amiId=AMI, webui=False)
    assert "NAT gateway and its public address" not in closed
    assert closed["5 interface endpoints"] == pytest.approx(5 * 0.012 * 730)
    assert closed["secrets"] == 0.4
    adopted = month(homeVolumeId="vol-0123456789abcdef0")  # its size is not the setting's
    assert "EBS, 70 GB gp3, and the root disk" in adopted
    assert month(workerMin=2)["2 workers that stay"] == pytest.approx(2 * 0.4074 * 730)
    fixed = month(workerMin=1, workerMax=1)["metrics and alarms"]
    assert fixed == pytest.approx(
        (month()["metrics and alarms"] or 0) - 0.4
    )  # two alarms fewer, one of them fast


def test_there_are_as_many_metrics_and_alarms_as_are_counted(record: Record) -> None:
    scaling = record().of_type("aws:cloudwatch/metricAlarm:MetricAlarm")
    assert [one.inputs["period"] < 60 for one in scaling] == [False, True]
    looked_at = {one.inputs["metricName"] for one in scaling}
    assert looked_at == {"TasksOutstanding", "TasksWaiting"}
    assert looked_at <= set(facts.METRICS)


def test_an_hour_with_all_workers_is_theirs_and_a_share_of_the_month() -> None:
    costs = Estimate(REGION, {"a": 365.0, "b": 365.0}, 0.5, 4)
    assert (costs.month_idle, costs.hour_full) == (730, 3)
    assert costs.idle_text().startswith("about 730 USD (estimate, list prices on demand of 20")
    assert costs.full_text().startswith("about 3.00 USD: 4 workers at 0.500 and 1.00 for the rest (estimate")


@pytest.mark.parametrize("minimum", [0, 2, 8])
def test_an_hour_with_all_workers_counts_those_that_stay_once(minimum: int) -> None:
    costs = estimate(Settings.parse({"workerMin": minimum}), REGION)
    assert costs.worker is not None
    assert costs.master is not None
    assert costs.hour_rest is not None
    others = costs.hour_rest + costs.master
    assert costs.hour_full == pytest.approx(others + 8 * costs.worker)
    assert f" 8 workers at {costs.worker:.3f} and {others:.2f} for the rest " in costs.full_text()


def test_a_price_of_the_users_own_replaces_the_tables() -> None:
    own = estimate(
        Settings.parse({"workerHourPrice": "0.15", "workerInstanceTypes": ["hpc7a.96xlarge"]}), REGION
    )
    assert own.worker == 0.15
    assert own.hour_full is not None


def test_what_nobody_knows_is_named_and_the_rest_is_not_guessed() -> None:
    costs = estimate(Settings.parse({"workerInstanceTypes": ["hpc7a.96xlarge"]}), REGION)
    assert costs.idle_text().startswith("about ")
    assert (costs.worker, costs.hour_full) == (None, None)
    assert costs.full_text() == "unknown: components/prices.py has no price in eu-central-1 of a worker"
    elsewhere = estimate(Settings.parse({}), "sa-east-1")
    assert elsewhere.month_idle is None
    assert elsewhere.idle_text() == (
        "unknown: components/prices.py has no price in sa-east-1 of master, m7i.large, NAT gateway and its public "
        "address, 2 interface endpoints, EBS, 170 GB gp3, and the root disk"
    )


def test_a_process_costs_its_share_of_the_worker() -> None:
    worker = InstanceType("c6i.2xlarge", 8, 16384)
    assert process_hour(0.4, worker) == pytest.approx(0.05)
    assert process_hour(0.4, worker, reserved_mb=2048) == pytest.approx(0.4 / 7)
    assert process_hour(None, worker) is None
