"""The stack's configuration, parsed once into a frozen, typed model. No Pulumi in here.

Each key's default and its check stand in one table, `KEYS`; Pulumi.yaml repeats key, type and default with a
description (a test compares them).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Any, Final, Literal, NamedTuple, get_args

from components import capacity, facts, instance_types, subnets
from components.changes import Change

Egress = Literal["nat", "endpoints"]
WorkerStorage = Literal["nfs", "diskless"]


# Debian publishes the ids of its current images under these names, in every region.
# https://wiki.debian.org/Cloud/AmazonEC2Image/Trixie
DEBIAN_IMAGE: Final[Mapping[instance_types.Architecture, str]] = {
    "x86_64": "/aws/service/debian/release/13/latest/amd64",
    "arm64": "/aws/service/debian/release/13/latest/arm64",
}


class Problem(NamedTuple):
    """One thing wrong with the settings: the key, the value it has, and what to do about it."""

    key: str
    value: object
    remedy: str


class SettingsError(ValueError):
    """Everything that is wrong with the settings, in one message."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"  {key} = {_shown(value)}: {remedy}" for key, value, remedy in self.problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"{count} with the settings:", *lines]))


def _shown(value: object) -> str:
    if "PRIVATE KEY" in str(value):  # which must not get to a terminal or a log
        return "(a private key)"
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


# A parser takes what the configuration holds and returns the typed value, or raises a ValueError whose text
# is the remedy.
Parser = Callable[[object], Any]

# Private address space: RFC 1918, and for clients also RFC 6598 (carriers' and VPNs' shared space).
_RFC1918: Final = tuple(IPv4Network(cidr) for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_CLIENT_SPACE: Final = (*_RFC1918, IPv4Network("100.64.0.0/10"))


_NETWORK_REMEDY: Final = "write an IPv4 network such as 10.20.0.0/16"


def _network(value: object) -> IPv4Network:
    try:
        network = IPv4Network(str(value), strict=False)
    except ValueError:
        raise ValueError(_NETWORK_REMEDY) from None
    if str(network) != value:
        bits = IPv4Interface(str(value)).ip != network.network_address
        raise ValueError(f"{'the address has host bits set: ' if bits else ''}write {network}")
    return network


def _vpc_cidr(value: object) -> IPv4Network:
    if "/" not in str(value):  # a network of one address, which is right for a client alone
        raise ValueError(_NETWORK_REMEDY)
    network = _network(value)
    if not any(network.subnet_of(private) for private in _RFC1918):
        raise ValueError("choose a private network (10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16)")
    if network.prefixlen < subnets.LARGEST_PREFIX:
        raise ValueError(f"AWS allows no VPC larger than /{subnets.LARGEST_PREFIX}")
    if network.prefixlen > subnets.SMALLEST_PREFIX:
        raise ValueError(f"too small for the subnets: choose /{subnets.SMALLEST_PREFIX} or larger")
    return network


def _client_cidr(value: object) -> IPv4Network:
    network = _network(value)
    if not any(network.subnet_of(private) for private in _CLIENT_SPACE):
        raise ValueError(
            "no public network may reach the WebUI, whatever webuiLogin and webuiCertificate are: name the private "
            "network of your VPN or peering, or use the SSM port forwarding that the output webUiPortForward shows"
        )
    return network


def _existing(example: str, *prefixes: str) -> Parser:
    """Ids of what exists on AWS, or none."""

    def parse(value: object) -> str:
        if value != "" and not re.fullmatch(
            rf"({'|'.join(prefixes)})-([0-9a-f]{{8}}|[0-9a-f]{{17}})", str(value), re.ASCII
        ):
            raise ValueError(f"write {example}, or leave it out for a new one")
        return str(value)

    return parse


_VOLUME: Final = _existing(
    "the id of a volume such as vol-0123456789abcdef0, or of a snapshot, snap-…", "vol", "snap"
)
_FILE_SYSTEM: Final = _existing("the id of a file system of EFS such as fs-0123456789abcdef0", "fs")


def _list_of(parse: Parser) -> Parser:
    def parse_list(value: object) -> tuple[Any, ...]:
        items = value
        if isinstance(value, str):  # Pulumi hands over a structured value as JSON
            try:
                items = json.loads(value)
            except json.JSONDecodeError:
                items = None
        if not isinstance(items, list | tuple):
            raise ValueError("write a list: pulumi config set --path 'KEY[0]' …, or in YAML")
        parsed = []
        wrong: dict[str, list[str]] = {}
        for item in items:
            try:
                parsed.append(parse(item))
            except ValueError as error:
                wrong.setdefault(str(error), []).append(str(item))
        if wrong:
            raise ValueError("; ".join(f"{', '.join(those)}: {remedy}" for remedy, those in wrong.items()))
        return tuple(dict.fromkeys(parsed))

    return parse_list


def _non_empty(parse: Parser) -> Parser:
    def parse_non_empty(value: object) -> tuple[Any, ...]:
        items: tuple[Any, ...] = parse(value)
        if not items:
            raise ValueError("name at least one")
        return items

    return parse_non_empty


def _at_most(number: int, parse: Parser, remedy: str) -> Parser:
    def parse_at_most(value: object) -> tuple[Any, ...]:
        items: tuple[Any, ...] = parse(value)
        if len(items) > number:
            raise ValueError(remedy)
        return items

    return parse_at_most


def _zone(value: object) -> str:
    if not re.fullmatch(r"[a-z]+(-[a-z]+)+-\d[a-z]", str(value), re.ASCII):
        raise ValueError("write a zone's name such as eu-central-1a")
    return str(value)


def _zones(value: object) -> tuple[str, ...]:
    zones: tuple[str, ...] = _list_of(_zone)(value)
    if zones and len(zones) != subnets.ZONES:
        raise ValueError(f"name {subnets.ZONES} different zones, the master's first, or none")
    return zones


def _instance_type(value: object) -> str:
    name = str(value)
    instance_types.check(name)
    return name


def _one_of(*choices: str) -> Parser:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}")
        return str(value)

    return parse


def _integer(lowest: int, highest: int) -> Parser:
    def parse(value: object) -> int:
        remedy = f"write a whole number from {lowest} to {highest}"
        if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value), re.ASCII):
            raise ValueError(remedy)
        number = int(str(value))
        if not lowest <= number <= highest:
            raise ValueError(remedy)
        return number

    return parse


def _price(value: object) -> float:
    remedy = f"write a number of USD from 0 to {_HIGHEST_PRICE} such as 0.15, 0 for AWS's list price"
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?", str(value), re.ASCII):
        raise ValueError(remedy)
    if (number := float(str(value))) > _HIGHEST_PRICE:
        raise ValueError(remedy)
    return number


def _email(value: object) -> str:
    if value == "":  # nobody
        return ""
    if not re.fullmatch(r"[\w.+-]+@([\w-]+\.)+[\w-]+", str(value), re.ASCII):
        raise ValueError("write one address such as seismology@example.org, or leave it out for no e-mails")
    return str(value)


def _boolean(value: object) -> bool:
    match value:
        case True | "true":
            return True
        case False | "false":
            return False
    raise ValueError("write true or false")


def _image(value: object) -> str:
    if value == "":  # Pulumi.yaml has to give a default; the empty one means Debian's own image
        return ""
    if not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})", str(value), re.ASCII):
        raise ValueError(
            "write an image id such as ami-0123456789abcdef0, or leave it out for Debian's own image"
        )
    return str(value)


def _key(value: object) -> str:
    if value == "":  # AWS's own keys
        return ""
    text = str(value)
    arn = r"arn:aws:kms:[a-z0-9-]+:\d{12}:key/([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})"
    if text.startswith("alias/aws/"):
        raise ValueError("that is a key of AWS's own, which nobody can manage: leave it out for those")
    if not re.fullmatch(rf"{arn}|alias/[\w/-]{{1,250}}", text, re.ASCII):
        raise ValueError(
            "write the ARN of a key such as arn:aws:kms:eu-central-1:123456789012:key/"
            "01234567-89ab-cdef-0123-456789abcdef, or an alias such as alias/openquake, or leave it out for AWS's keys"
        )
    return text


def _idle_minutes(value: object) -> int:
    with contextlib.suppress(ValueError):
        minutes = int(_integer(0, _MOST_IDLE_MINUTES)(value))
        if minutes == 0 or minutes >= _LEAST_IDLE_MINUTES:
            return minutes
    raise ValueError(
        f"write 0 for never, or a whole number of minutes from {_LEAST_IDLE_MINUTES} to {_MOST_IDLE_MINUTES}"
    )


OWN_CERTIFICATE: Final = "self"


def _certificate(value: object) -> str:
    arn = r"arn:aws:secretsmanager:[a-z]+(-[a-z]+)+-\d:\d{12}:secret:[\w/+=.@-]+-[A-Za-z0-9]{6}"
    if value in ("", OWN_CERTIFICATE) or re.fullmatch(arn, str(value), re.ASCII):
        return str(value)
    raise ValueError(
        "write self for a certificate that the master makes, or the whole ARN of the secret that holds yours "
        "(arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-XXXXXX: aws secretsmanager describe-secret --secret-id "
        "NAME shows it), or leave it out for plain HTTP"
    )


class Key(NamedTuple):
    """A configuration key: its default, as written in Pulumi.yaml, the parser of its value, and what a change of it
    does to a cluster that exists. `docs/operations.md` shows `changes`; a test compares them with Pulumi's engine.
    """

    default: object
    parse: Parser
    changes: Set[Change]


_WORKERS: Final = _integer(0, 1000)
# Longer than somebody needs from the machine's start to a session on it; a week.
_LEAST_IDLE_MINUTES: Final = 10
_MOST_IDLE_MINUTES: Final = 7 * 24 * 60
# gp3's limit in GiB: https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html
_LARGEST_VOLUME_GB: Final = 65536
# The engine is built in /var/tmp, and RabbitMQ stops its publishers when less than 1 GB is free.
LEAST_VOLUME_GB: Final[Mapping[str, int]] = {facts.HOME_MOUNT: 1, facts.VAR_MOUNT: 4, facts.RABBITMQ_DIR: 4}


def _volume_gb(mount: str) -> Parser:
    return _integer(LEAST_VOLUME_GB[mount], _LARGEST_VOLUME_GB)


_HIGHEST_PRICE: Final = 1000
_HIGHEST_BUDGET: Final = 1_000_000

_OTHER_VOLUME: Final = {Change.DATA_EXCHANGED, Change.MASTER_REPLACED}

# A security group takes 60 rules for what comes in; two of the master's are RabbitMQ's and the DbServer's.
# https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
_MOST_CLIENT_CIDRS: Final = 60 - 2

KEYS: Final[Mapping[str, Key]] = {
    "vpcCidr": Key("10.20.0.0/16", _vpc_cidr, {Change.REFUSED}),
    "zones": Key([], _zones, {Change.REFUSED}),
    "clientCidrs": Key(
        [],
        _at_most(
            _MOST_CLIENT_CIDRS,
            _list_of(_client_cidr),
            f"list at most {_MOST_CLIENT_CIDRS} networks, AWS's limit for rules in a security group: merge adjacent "
            "ones",
        ),
        {Change.RULES},
    ),
    "egress": Key("nat", _one_of(*get_args(Egress)), {Change.WAY_OUT, Change.RULES}),
    "masterInstanceType": Key("m7i.large", _instance_type, {Change.MASTER_RESIZED}),
    "amiId": Key("", _image, {Change.MASTER_REPLACED, Change.WORKERS_ROLLED}),
    "workerInstanceTypes": Key(
        ["c7i.2xlarge", "c6i.2xlarge", "c7a.2xlarge", "c6a.2xlarge"],
        _non_empty(_list_of(_instance_type)),
        {Change.WORKERS_ROLLED, Change.NUM_CORES, Change.PRICE},
    ),
    "workerMin": Key(0, _WORKERS, {Change.FLEET_SIZE}),
    "workerDesired": Key(2, _WORKERS, set()),
    "workerMax": Key(8, _integer(1, 1000), {Change.FLEET_SIZE, Change.NUM_CORES}),
    "workerSpot": Key(False, _boolean, {Change.WORKERS_ROLLED}),
    "workerOnDemandBase": Key(0, _WORKERS, {Change.WORKERS_ROLLED}),
    "workerHourPrice": Key("0", _price, {Change.PRICE}),
    "workerStorage": Key(
        "nfs", _one_of(*get_args(WorkerStorage)), {Change.WORKERS_ROLLED, Change.NUM_CORES, Change.PRICE}
    ),
    "drainMinutes": Key(
        10, _integer(1, capacity.LONGEST_DRAIN_MINUTES), {Change.HOOK, Change.WORKERS_ROLLED}
    ),
    "homeVolumeGb": Key(100, _volume_gb(facts.HOME_MOUNT), {Change.VOLUME_GROWN}),
    "varVolumeGb": Key(50, _volume_gb(facts.VAR_MOUNT), {Change.VOLUME_GROWN}),
    "rabbitmqVolumeGb": Key(20, _volume_gb(facts.RABBITMQ_DIR), {Change.VOLUME_GROWN}),
    "homeVolumeId": Key("", _VOLUME, _OTHER_VOLUME),
    "varVolumeId": Key("", _VOLUME, _OTHER_VOLUME),
    "rabbitmqVolumeId": Key("", _VOLUME, _OTHER_VOLUME),
    "fileSystemId": Key(
        "", _FILE_SYSTEM, {Change.DATA_EXCHANGED, Change.MASTER_REPLACED, Change.WORKERS_ROLLED}
    ),
    "keepDataOnDestroy": Key(True, _boolean, {Change.KEPT_IN_STATE}),
    "kmsKeyId": Key("", _key, {Change.REFUSED}),
    "backupDays": Key(14, _integer(0, 365), {Change.BACKUPS}),
    "webui": Key(True, _boolean, {Change.MASTER_REPLACED, Change.RULES}),
    "webuiLogin": Key(True, _boolean, {Change.MASTER_REPLACED}),
    "webuiCertificate": Key("", _certificate, {Change.MASTER_REPLACED}),
    "stopWhenIdleMinutes": Key(0, _idle_minutes, {Change.IDLE_STOP}),
    "alarmEmail": Key("", _email, {Change.MAILS}),
    "monthlyBudget": Key(0, _integer(0, _HIGHEST_BUDGET), {Change.BUDGET}),
    "waitForReady": Key(True, _boolean, {Change.WAIT}),
    "readyTimeoutMinutes": Key(30, _integer(1, 240), {Change.WAIT}),
}


@dataclass(frozen=True)
class Settings:
    """The settings of a stack, checked. Sizes are in GiB, `client_cidrs` is never empty; no `zones` means those that
    lookups.py chooses, `ami_id` "" Debian's image, `kms_key_id` "" AWS's keys, `backup_days` 0 no backups,
    `worker_hour_price` 0 AWS's list price, `webui_certificate` "" plain HTTP and OWN_CERTIFICATE one of the master's
    own, else the ARN of a secret, `stop_when_idle_minutes` 0 never, `alarm_email` "" nobody, `monthly_budget` 0
    no budget.
    """

    vpc_cidr: IPv4Network
    zones: tuple[str, ...]
    client_cidrs: tuple[IPv4Network, ...]
    egress: Egress
    master_instance_type: str
    ami_id: str
    worker_instance_types: tuple[str, ...]
    worker_min: int
    worker_desired: int
    worker_max: int
    worker_spot: bool
    worker_on_demand_base: int
    worker_hour_price: float
    worker_storage: WorkerStorage
    drain_minutes: int
    home_volume_gb: int
    var_volume_gb: int
    rabbitmq_volume_gb: int
    home_volume_id: str
    var_volume_id: str
    rabbitmq_volume_id: str
    file_system_id: str
    keep_data_on_destroy: bool
    kms_key_id: str
    backup_days: int
    webui: bool
    webui_login: bool
    webui_certificate: str
    stop_when_idle_minutes: int
    alarm_email: str
    monthly_budget: int
    wait_for_ready: bool
    ready_timeout_minutes: int

    @property
    def certificate_secret(self) -> str:
        """The ARN of the secret with the user's certificate; "" where there is none."""
        return "" if self.webui_certificate == OWN_CERTIFICATE else self.webui_certificate

    @property
    def architecture(self) -> instance_types.Architecture:
        """The one architecture of all nodes."""
        return instance_types.architecture(self.master_instance_type)

    @property
    def volume_gb(self) -> dict[str, int]:
        """The size of the volume for each mount point."""
        sizes = (self.home_volume_gb, self.var_volume_gb, self.rabbitmq_volume_gb)
        return dict(zip(facts.VOLUME_MOUNTS, sizes, strict=True))

    @property
    def volume_sources(self) -> dict[str, str]:
        """The existing volume (vol-…) or snapshot (snap-…) for each mount point; "" is a new volume."""
        sources = (self.home_volume_id, self.var_volume_id, self.rabbitmq_volume_id)
        return dict(zip(facts.VOLUME_MOUNTS, sources, strict=True))

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Settings:
        """The settings that `raw` (configuration key to value, as text or typed; None is unset) asks for.

        Raises SettingsError with everything that is wrong.
        """
        problems = [_unknown(key, value) for key, value in raw.items() if key not in KEYS]
        given = {key: KEYS[key].default if raw.get(key) is None else raw[key] for key in KEYS}
        parsed: dict[str, Any] = {}
        for key, value in given.items():
            try:
                parsed[key] = KEYS[key].parse(value)
            except ValueError as error:
                problems.append(Problem(key, value, str(error)))
        problems += _contradictions(parsed)
        if problems:
            raise SettingsError(problems)
        # It matters only at creation, so it must not block a later change to the others.
        parsed["workerDesired"] = min(max(parsed["workerDesired"], parsed["workerMin"]), parsed["workerMax"])
        parsed["clientCidrs"] = parsed["clientCidrs"] or (parsed["vpcCidr"],)
        return cls(**{_snake_case(key): value for key, value in parsed.items()})


def _snake_case(key: str) -> str:
    return re.sub(r"([A-Z])", lambda capital: "_" + capital[1].lower(), key)


def _unknown(key: str, value: object) -> Problem:
    near = difflib.get_close_matches(key, KEYS, n=1)
    return Problem(
        key, value, "there is no such setting" + "".join(f"; did you mean {name}?" for name in near)
    )


def _contradictions(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between settings that are right by themselves; `parsed` lacks the others."""
    for rule in (_of_sizes, _of_what_needs_another, _of_volumes, _of_images, _of_architectures):
        yield from rule(parsed)


def _of_sizes(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    minimum, maximum = parsed.get("workerMin"), parsed.get("workerMax")
    if minimum is not None and maximum is not None and minimum > maximum:
        yield Problem("workerMin", minimum, f"must not be above workerMax = {maximum}")
    vpc = parsed.get("vpcCidr")
    if vpc is not None and maximum is not None and maximum > (room := subnets.worker_capacity(vpc)):
        yield Problem(
            "vpcCidr", str(vpc), f"has room for {room} workers and workerMax = {maximum}: enlarge it"
        )
    base = parsed.get("workerOnDemandBase")
    if base and maximum is not None and base > maximum:
        yield Problem("workerOnDemandBase", base, f"must not be above workerMax = {maximum}")


def _of_what_needs_another(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    idle, minimum = parsed.get("stopWhenIdleMinutes"), parsed.get("workerMin")
    if idle and minimum:
        remedy = (
            f"needs workerMin = 0 and not {minimum}, since workers would go on, and cost, without their master; write "
            "0 for a master that never stops itself"
        )
        yield Problem("stopWhenIdleMinutes", idle, remedy)
    base = parsed.get("workerOnDemandBase")
    if base and parsed.get("workerSpot") is False:
        remedy = "set workerSpot to true, or leave it out: without it all workers are on demand"
        yield Problem("workerOnDemandBase", base, remedy)
    if parsed.get("webuiCertificate") and parsed.get("webui") is False:
        remedy = "set webui to true, or leave it out: without the WebUI nothing shows a certificate"
        yield Problem("webuiCertificate", parsed["webuiCertificate"], remedy)
    if parsed.get("monthlyBudget") and parsed.get("alarmEmail") == "":
        remedy = "say who is to be told when the month costs more than monthlyBudget"
        yield Problem("alarmEmail", "", remedy)


def _of_volumes(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for key in ("homeVolumeId", "varVolumeId", "rabbitmqVolumeId"):
        source = parsed.get(key, "")
        if source.startswith("vol-"):
            if source in owners:
                yield Problem(key, source, f"name another one, since {owners[source]} has it")
            owners.setdefault(source, key)


def _of_images(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    if parsed.get("amiId") != "":
        return
    if parsed.get("egress") == "endpoints":
        remedy = (
            "name an image with everything baked in (docs/operations.md says how), since egress = endpoints lets "
            "nothing be installed"
        )
        yield Problem("amiId", "", remedy)
    master = parsed.get("masterInstanceType")
    if master is not None and (architecture := instance_types.architecture(master)) != "x86_64":
        # Debian's image of the other architecture would be easy to find for a new cluster. In one that is there all
        # nodes keep the image of its first day: AWS would refuse the new master, with the old one gone.
        remedy = (
            f"name an image for {architecture} types such as {master}; the id of Debian's: "
            f"aws ssm get-parameter --name {DEBIAN_IMAGE[architecture]} --query Parameter.Value"
        )
        yield Problem("amiId", "", remedy)


def _of_architectures(parsed: Mapping[str, Any]) -> Iterator[Problem]:
    master = parsed.get("masterInstanceType")
    if master is None:
        return
    architecture = instance_types.architecture(master)
    types = parsed.get("workerInstanceTypes", ())
    if strangers := [name for name in types if instance_types.architecture(name) != architecture]:
        remedy = f"the engine is built once, on the master: choose {architecture} types like {master}"
        yield Problem("workerInstanceTypes", ", ".join(strangers), remedy)
