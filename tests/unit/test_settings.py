"""The settings: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from components import subnets
from components.capacity import hook_seconds
from components.settings import KEYS, Problem, Settings, SettingsError

PROJECT = Path(__file__).parent.parent.parent


def problems(raw: Mapping[str, object]) -> dict[str, Problem]:
    """The problems that a configuration has, by key. Fails if it has none."""
    with pytest.raises(SettingsError) as error:
        Settings.parse(raw)
    return {problem.key: problem for problem in error.value.problems}


def test_no_configuration_at_all_gives_the_defaults() -> None:
    settings = Settings.parse({})
    assert settings.vpc_cidr == IPv4Network("10.20.0.0/16")
    assert settings.client_cidrs == (settings.vpc_cidr,)
    assert settings.egress == "nat"
    assert settings.ami_id == ""
    assert settings.keep_data_on_destroy
    assert settings.architecture == "x86_64"


def test_a_key_that_is_not_set_is_as_if_it_were_not_there() -> None:
    assert Settings.parse(dict.fromkeys(KEYS)) == Settings.parse({})


def test_zero_and_false_are_kept() -> None:
    settings = Settings.parse(
        {"workerMin": "0", "workerDesired": 0, "webui": "false", "keepDataOnDestroy": False}
    )
    assert (settings.worker_min, settings.worker_desired) == (0, 0)
    assert (settings.webui, settings.keep_data_on_destroy) == (False, False)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings.parse({}).worker_max = 3  # type: ignore[misc]


def test_pulumi_yaml_documents_each_key_with_its_type_and_default() -> None:
    documented = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())["config"]
    assert list(documented) == list(KEYS)
    types = {str: "string", int: "integer", bool: "boolean", list: "array"}
    for key, entry in documented.items():
        assert entry["default"] == KEYS[key].default, key
        assert entry["type"] == types[type(KEYS[key].default)], key
        assert len(entry["description"]) > 20, key


def test_the_example_stack_is_right() -> None:
    config = yaml.safe_load((PROJECT / "Pulumi.dev.yaml").read_text())["config"]
    region = config.pop("aws:region")
    settings = Settings.parse(
        {key.removeprefix("openquake-cluster:"): value for key, value in config.items()}
    )
    assert region
    assert not settings.keep_data_on_destroy


def test_every_problem_is_said_at_once_with_key_value_and_remedy() -> None:
    wrong: dict[str, object] = {
        "vpcCidr": "10.0.0.0/28",
        "egress": "proxy",
        "workerMin": "many",
        "amiId": "debian",
        "webui": "maybe",
        "workersMax": "3",
    }
    with pytest.raises(SettingsError) as error:
        Settings.parse(wrong)
    assert {problem.key: problem.value for problem in error.value.problems} == wrong
    lines = str(error.value).splitlines()
    assert lines[0] == "6 problems with the settings:"
    for (key, value), problem in zip(sorted(wrong.items()), sorted(error.value.problems), strict=True):
        assert f"  {key} = {value}: {problem.remedy}" in lines
        assert problem.remedy


def test_an_unknown_key_is_refused_and_the_nearest_one_named() -> None:
    assert problems({"workerSpots": "true"})["workerSpots"].remedy.endswith("did you mean workerSpot?")
    assert problems({"zzz": "1"})["zzz"].remedy == "there is no such setting"


def test_a_master_that_stops_itself_does_so_after_ten_minutes_at_least_and_leaves_no_workers_behind() -> None:
    for minutes in ("1", "9", "-5", "10081", "soon", "1.5"):
        remedy = problems({"stopWhenIdleMinutes": minutes})["stopWhenIdleMinutes"].remedy
        assert "0 for never, or a whole number of minutes from 10 to 10080" in remedy
    found = problems({"stopWhenIdleMinutes": "30", "workerMin": "1"})
    assert found["stopWhenIdleMinutes"].remedy.startswith("needs workerMin = 0 and not 1")
    assert Settings.parse({"stopWhenIdleMinutes": "30"}).stop_when_idle_minutes == 30
    assert Settings.parse({"workerMin": "1"}).stop_when_idle_minutes == 0


@pytest.mark.parametrize(
    ("cidr", "remedy"),
    [
        ("10.0.0.0/25", "too small for the subnets"),
        ("10.0.0.0/15", "no VPC larger"),
        ("11.0.0.0/16", "private network"),
        ("172.32.0.0/16", "private network"),
        ("100.64.0.0/16", "private network"),
        ("10.0.1.0/16", "the address has host bits set: write 10.0.0.0/16"),
        ("10.0.0.0/255.255.0.0", "write 10.0.0.0/16"),
        ("10.20.0.1", "write an IPv4 network such as 10.20.0.0/16"),
        ("fd00::/48", "IPv4 network"),
        ("", "IPv4 network"),
    ],
)
def test_a_vpc_network_that_cannot_be_is_refused(cidr: str, remedy: str) -> None:
    assert remedy in problems({"vpcCidr": cidr})["vpcCidr"].remedy


def test_a_client_network_may_be_one_address_with_its_prefix() -> None:
    assert problems({"clientCidrs": ["10.1.2.3"]})["clientCidrs"].remedy == "10.1.2.3: write 10.1.2.3/32"
    assert Settings.parse({"clientCidrs": ["10.1.2.3/32"]}).client_cidrs == (IPv4Network("10.1.2.3/32"),)


@pytest.mark.parametrize(
    "cidr", ["0.0.0.0/0", "8.8.8.0/24", "10.0.0.0/7", "192.0.0.0/8", "198.51.100.7/32", "::/0"]
)
def test_a_public_client_network_is_refused(cidr: str) -> None:
    assert cidr in problems({"clientCidrs": [cidr]})["clientCidrs"].remedy


@pytest.mark.parametrize(
    "zones", [["eu-central-1a"], ["eu-central-1a"] * 2, ["eu-central-1a", "eu-central-1b", "eu-central-1c"]]
)
def test_two_zones_are_named_or_none(zones: list[str]) -> None:
    assert "2 different zones" in problems({"zones": zones})["zones"].remedy
    assert Settings.parse({"zones": ["eu-central-1b", "eu-central-1a"]}).zones == (
        "eu-central-1b",
        "eu-central-1a",
    )
    assert Settings.parse({"zones": []}).zones == ()


@pytest.mark.parametrize("zone", ["a", "eu-central-1", "euc1-az2", "eu-central-1A"])
def test_what_is_no_name_of_a_zone_is_refused(zone: str) -> None:
    assert f"{zone}: write a zone's name" in problems({"zones": [zone, "eu-central-1a"]})["zones"].remedy


def test_the_remedy_for_a_public_client_network_is_port_forwarding() -> None:
    assert "webUiPortForward" in problems({"clientCidrs": ["0.0.0.0/0"]})["clientCidrs"].remedy


def test_all_bad_values_of_a_list_are_named_at_once_those_with_one_remedy_together() -> None:
    found = problems({"clientCidrs": ["0.0.0.0/0", "10.1.0.0/16", "8.8.8.0/24", "10.1.0.7/16"]})
    remedy = found["clientCidrs"].remedy
    assert remedy.startswith("0.0.0.0/0, 8.8.8.0/24: no public network")
    assert remedy.endswith("; 10.1.0.7/16: the address has host bits set: write 10.1.0.0/16")


def test_one_problem_is_one_and_a_network_is_shown_as_it_was_written() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.parse({"vpcCidr": "10.0.0.0/24", "workerMax": "1000"})
    first, line = str(error.value).splitlines()
    assert first == "1 problem with the settings:"
    assert line.startswith("  vpcCidr = 10.0.0.0/24: has room for ")


def test_a_list_is_json_as_pulumi_hands_it_over() -> None:
    networks = tuple(IPv4Network(cidr) for cidr in ("10.1.0.0/16", "100.64.0.0/10"))
    assert Settings.parse({"clientCidrs": '["10.1.0.0/16", "100.64.0.0/10"]'}).client_cidrs == networks
    assert "--path" in problems({"clientCidrs": "10.1.0.0/16,100.64.0.0/10"})["clientCidrs"].remedy


def test_the_client_networks_are_no_more_than_a_security_group_has_rules_for() -> None:
    cidrs = [f"10.1.{number}.0/24" for number in range(59)]
    assert len(Settings.parse({"clientCidrs": cidrs[:58]}).client_cidrs) == 58
    assert "list at most 58 networks" in problems({"clientCidrs": cidrs})["clientCidrs"].remedy


def test_a_list_names_each_value_once() -> None:
    settings = Settings.parse({"workerInstanceTypes": ["c7i.large", "c6i.large", "c7i.large"]})
    assert settings.worker_instance_types == ("c7i.large", "c6i.large")


@pytest.mark.parametrize(("value", "remedy"), [("[]", "at least one"), ("{}", "a list"), ("3", "a list")])
def test_worker_types_are_a_list_with_something_in_it(value: str, remedy: str) -> None:
    assert remedy in problems({"workerInstanceTypes": value})["workerInstanceTypes"].remedy


@pytest.mark.parametrize(
    "name", ["c7i", "c7i.", "2xlarge", "C7I.LARGE", "c7i.huge", "c7i.large.search", "cache.m5.large"]
)
def test_what_is_no_instance_type_is_refused(name: str) -> None:
    assert "c7i.2xlarge" in problems({"masterInstanceType": name})["masterInstanceType"].remedy
    assert name in problems({"workerInstanceTypes": [name]})["workerInstanceTypes"].remedy


@pytest.mark.parametrize(
    "name", ["m4.large", "t2.micro", "r4.xlarge", "i3.large", "p3.2xlarge", "c4.8xlarge"]
)
def test_a_type_whose_disks_have_no_nvme_serial_is_refused(name: str) -> None:
    assert "Nitro" in problems({"masterInstanceType": name})["masterInstanceType"].remedy


def test_all_nodes_have_one_architecture() -> None:
    found = problems({"masterInstanceType": "m7i.large", "workerInstanceTypes": ["c7i.large", "c7g.large"]})
    assert found["workerInstanceTypes"].value == "c7g.large"
    arm = Settings.parse(
        {
            "masterInstanceType": "t4g.large",
            "workerInstanceTypes": ["c7gn.large", "r8g.large"],
            "amiId": "ami-0123456789abcdef0",
        }
    )
    assert arm.architecture == "arm64"


def test_another_architecture_needs_an_image_and_the_remedy_says_where_debians_is() -> None:
    """In a cluster that is there, the new master would be refused when the old one is gone."""
    found = problems({"masterInstanceType": "m7g.large", "workerInstanceTypes": ["c7g.large"]})
    assert found.keys() == {"amiId"}
    assert "aws ssm get-parameter --name /aws/service/debian/release/13/latest/arm64" in found["amiId"].remedy


def test_a_cluster_without_a_way_out_needs_an_image_with_everything_in_it() -> None:
    assert "baked in" in problems({"egress": "endpoints"})["amiId"].remedy
    assert Settings.parse({"egress": "endpoints", "amiId": "ami-0123456789abcdef0"}).egress == "endpoints"


@pytest.mark.parametrize("image", ["ami-123", "ami-0123456789ABCDEF0", "ami-0123456789abcdef01", "debian-13"])
def test_what_is_no_image_id_is_refused(image: str) -> None:
    assert "ami-" in problems({"amiId": image})["amiId"].remedy


def test_the_fleet_must_fit_into_the_workers_subnets() -> None:
    vpc = "10.0.0.0/24"
    room = subnets.worker_capacity(IPv4Network(vpc))
    assert Settings.parse({"vpcCidr": vpc, "workerMax": room}).worker_max == room
    found = problems({"vpcCidr": vpc, "workerMax": room + 1})
    assert str(room) in found["vpcCidr"].remedy


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
@example(minimum=2, desired=2, maximum=2)
@example(minimum=2, desired=1, maximum=3)
@example(minimum=2, desired=4, maximum=3)
@example(minimum=4, desired=3, maximum=3)
def test_the_numbers_of_workers_are_accepted_exactly_when_the_least_is_not_above_the_most(
    minimum: int, desired: int, maximum: int
) -> None:
    raw = {"workerMin": str(minimum), "workerDesired": str(desired), "workerMax": str(maximum)}
    if minimum <= maximum:
        settings = Settings.parse(raw)
        assert (settings.worker_min, settings.worker_max) == (minimum, maximum)
        # It counts at creation only, so a later change of the others need not mind it.
        assert settings.worker_desired == sorted((minimum, desired, maximum))[1]
    else:
        assert problems(raw).keys() == {"workerMin"}


@pytest.mark.parametrize(("written", "usd"), [("0", 0), (0.15, 0.15), ("0.15", 0.15), ("1000", 1000)])
def test_a_price_is_a_number_of_dollars(written: object, usd: float) -> None:
    assert Settings.parse({"workerHourPrice": written}).worker_hour_price == usd


@pytest.mark.parametrize("written", ["-1", "0,15", "1e3", "$1", "", "nan", "1000.1", True, "٣"])
def test_what_is_no_price_is_refused(written: object) -> None:
    assert "0.15" in problems({"workerHourPrice": written})["workerHourPrice"].remedy


@pytest.mark.parametrize("address", ["", "a@b.org", "first.last+quakes@mail.example.org"])
def test_mails_go_to_one_address_or_to_nobody(address: str) -> None:
    assert Settings.parse({"alarmEmail": address}).alarm_email == address


@pytest.mark.parametrize(
    "address", ["a", "a@b", "a@b.org, c@d.org", "A <a@b.org>", "a@@b.org", "a b@c.org", "ä@b.org"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert "seismology@example.org" in problems({"alarmEmail": address})["alarmEmail"].remedy


def test_a_base_on_demand_is_for_spot_fleets_and_no_larger_than_the_fleet() -> None:
    assert "workerSpot" in problems({"workerOnDemandBase": "2"})["workerOnDemandBase"].remedy
    spot = {"workerSpot": "true", "workerMax": "4", "workerOnDemandBase": "4"}
    assert Settings.parse(spot).worker_on_demand_base == 4
    assert "workerMax = 4" in problems({**spot, "workerOnDemandBase": "5"})["workerOnDemandBase"].remedy


CERTIFICATE = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:seismology/webui-AbC123"


def test_a_certificate_is_the_masters_own_or_in_a_secret_that_is_named_by_its_whole_arn() -> None:
    found = {value: Settings.parse({"webuiCertificate": value}) for value in ("", "self", CERTIFICATE)}
    assert [one.webui_certificate for one in found.values()] == list(found)
    assert [one.certificate_secret for one in found.values()] == ["", "", CERTIFICATE]


@pytest.mark.parametrize(
    "value",
    [
        "true",
        "Self",
        "webui-AbC123",
        CERTIFICATE[:-7],  # a part of an ARN, which could be another secret's
        CERTIFICATE.replace("secretsmanager", "acm"),
        CERTIFICATE.replace("arn:aws:", "arn:aws-cn:"),
        CERTIFICATE + "\n",
        CERTIFICATE + " --x",
    ],
)
def test_what_names_no_certificate_is_refused(value: str) -> None:
    remedy = problems({"webuiCertificate": value})["webuiCertificate"].remedy
    assert "describe-secret" in remedy


def test_a_private_key_in_a_setting_gets_into_no_message() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"
    with pytest.raises(SettingsError, match=r"webuiCertificate = \(a private key\): write self") as error:
        Settings.parse({"webuiCertificate": pem})
    assert "MIGH" not in str(error.value)


def test_without_the_webui_there_is_nothing_that_shows_a_certificate() -> None:
    found = problems({"webuiCertificate": "self", "webui": "false"})
    assert "set webui to true" in found["webuiCertificate"].remedy


def test_a_budget_wants_somebody_who_is_told() -> None:
    assert "monthlyBudget" in problems({"monthlyBudget": "500"})["alarmEmail"].remedy
    assert Settings.parse({"monthlyBudget": "500", "alarmEmail": "a@b.org"}).monthly_budget == 500


@pytest.mark.parametrize(("key", "least"), [("homeVolumeGb", 1), ("varVolumeGb", 4), ("rabbitmqVolumeGb", 4)])
def test_a_volume_is_large_enough_for_what_the_master_does_there(key: str, least: int) -> None:
    Settings.parse({key: str(least)})
    assert problems({key: str(least - 1)}).keys() == {key}


@given(st.integers(-10, 70000))
def test_a_volume_has_a_size_that_gp3_has(size: int) -> None:
    if 1 <= size <= 65536:
        assert Settings.parse({"homeVolumeGb": str(size)}).home_volume_gb == size
    else:
        assert problems({"homeVolumeGb": str(size)}).keys() == {"homeVolumeGb"}


@pytest.mark.parametrize("key", ["homeVolumeId", "varVolumeId", "rabbitmqVolumeId"])
def test_an_existing_volume_is_named_by_its_id_or_that_of_a_snapshot(key: str) -> None:
    for right in ("", "vol-0123456789abcdef0", "vol-0123abcd", "snap-0123456789abcdef0"):
        assert list(Settings.parse({key: right}).volume_sources.values()).count(right) >= 1
    for wrong in (
        "home",
        "vol-0123",
        "fs-0123456789abcdef0",
        "VOL-0123456789abcdef0",
        "vol-0123456789abcdef0 ",
    ):
        assert "vol-0123456789abcdef0, or of a snapshot, snap-" in problems({key: wrong})[key].remedy


def test_an_existing_file_system_is_named_by_its_id() -> None:
    assert Settings.parse({"fileSystemId": "fs-0123456789abcdef0"}).file_system_id == "fs-0123456789abcdef0"
    assert (
        "fs-0123456789abcdef0" in problems({"fileSystemId": "vol-0123456789abcdef0"})["fileSystemId"].remedy
    )


def test_a_volume_is_at_one_mount_point_only_and_a_snapshot_may_be_for_more() -> None:
    keys = ("homeVolumeId", "varVolumeId", "rabbitmqVolumeId")
    found = problems(dict.fromkeys(keys, "vol-0123456789abcdef0"))
    assert list(found) == list(keys[1:])
    assert {problem.remedy for problem in found.values()} == {"name another one, since homeVolumeId has it"}
    Settings.parse(dict.fromkeys(keys, "snap-0123456789abcdef0"))


@given(st.integers(-10, 1000))
def test_backups_are_kept_for_a_year_at_most(days: int) -> None:
    if 0 <= days <= 365:
        assert Settings.parse({"backupDays": str(days)}).backup_days == days
    else:
        assert problems({"backupDays": str(days)}).keys() == {"backupDays"}


@given(st.integers(-10, 3000))
def test_a_worker_may_drain_for_as_long_as_aws_waits_for_it(minutes: int) -> None:
    try:
        seconds = hook_seconds(minutes)
    except ValueError:
        assert problems({"drainMinutes": str(minutes)}).keys() == {"drainMinutes"}
    else:
        assert Settings.parse({"drainMinutes": str(minutes)}).drain_minutes == minutes
        assert 60 * minutes < seconds <= 7200


def test_the_remedy_for_too_long_a_drain_names_the_longest() -> None:
    assert "119" in problems({"drainMinutes": "120"})["drainMinutes"].remedy


_PRIVATE = [IPv4Network(cidr) for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_a_vpc_network_is_accepted_exactly_when_it_is_private_and_of_a_fitting_size(
    address: int, length: int
) -> None:
    network = IPv4Network((address, length), strict=False)
    private = any(network.subnet_of(space) for space in _PRIVATE)
    if private and 16 <= length <= 24:
        assert Settings.parse({"vpcCidr": str(network)}).vpc_cidr == network
    else:
        assert problems({"vpcCidr": str(network)}).keys() == {"vpcCidr"}


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(string.printable, max_size=12),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=2),
    st.lists(st.integers(), max_size=2).map(json.dumps),
)


@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), _VALUES))
def test_no_value_whatever_breaks_the_parser(raw: dict[str, Any]) -> None:
    """It gives settings or says what is wrong with the keys it was given, or that clash with those."""
    try:
        settings = Settings.parse(raw)
    except SettingsError as error:
        assert error.problems
        assert all(problem.remedy for problem in error.problems)
        assert len(str(error).splitlines()) >= len(error.problems) + 1
    else:
        assert settings.worker_min <= settings.worker_desired <= settings.worker_max
