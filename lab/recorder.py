"""Run the Pulumi program with no Pulumi engine and no AWS, and record all that it registers.

The recording is what the unit tests look at and what the lab makes real. It holds each resource's inputs as a
real engine would get them (camelCase keys, plain values), the options that Pulumi's own mocks drop, and
made-up outputs in AWS's forms: the same resource has the same id in every run.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import os
import runpy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pulumi.output import Unknown
from pulumi.runtime import mocks, rpc
from pulumi.runtime.config import set_all_config
from pulumi.runtime.proto import engine_pb2
from pulumi.runtime.settings import Settings
from pulumi.runtime.stack import run_in_stack

from components import facts

PROGRAM: Final = Path(__file__).parent.parent / "__main__.py"
# What stands in a recorded value of a preview for something that only exists after `pulumi up`.
UNKNOWN: Final[str] = rpc.UNKNOWN
REGION: Final = "eu-central-1"
ACCOUNT: Final = "123456789012"

Answer = Mapping[str, Any]
# An invoke's token to its answer, or to a function of its arguments that gives the answer.
Invokes = Mapping[str, Answer | Callable[[Mapping[str, Any]], Answer]]


class Refused(Exception):
    """Raised by an answer function: AWS refuses what the program asks, for this reason."""


class UnknownInvoke(LookupError):
    """The program asked AWS something that the recorder has no answer to."""


@dataclass(frozen=True)
class Recorded:
    """One registered resource: what the program said of it, and the outputs it was given.

    `parent`, `dependencies` and `property_dependencies` hold URNs; `timeouts` maps create, update and delete
    to texts such as 10m, where the program sets them. In a preview, unknown values are UNKNOWN.
    """

    type: str
    name: str
    urn: str
    id: str
    custom: bool
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    parent: str
    protect: bool
    retain_on_delete: bool
    delete_before_replace: bool
    ignore_changes: tuple[str, ...]
    replace_on_changes: tuple[str, ...]
    timeouts: dict[str, str]
    dependencies: frozenset[str]
    property_dependencies: dict[str, frozenset[str]]


@dataclass(frozen=True)
class Recording:
    """Everything that one run of the program registered, and what it exported.

    `component_outputs` maps the URN of each component that registered its outputs to them; `warnings` is what
    Pulumi would show to the user, such as the SDK's complaints about something deprecated.
    """

    resources: list[Recorded] = field(default_factory=list)
    exports: dict[str, Any] = field(default_factory=dict)
    component_outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    invokes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def of_type(self, type_: str) -> list[Recorded]:
        """The resources of a type, such as aws:ec2/instance:Instance, by name."""
        return sorted((one for one in self.resources if one.type == type_), key=lambda one: one.name)

    def one(self, type_: str, name: str | None = None) -> Recorded:
        """The only resource of a type, or the one with that name. Raises LookupError if there is no such one."""
        found = [one for one in self.of_type(type_) if name in (None, one.name)]
        if len(found) != 1:
            raise LookupError(f"expected one {type_} {name or ''}, found {[one.name for one in found]}")
        return found[0]

    def by_id(self, id_: str) -> Recorded:
        """The resource with this id. Raises LookupError if there is none."""
        for one in self.resources:
            if one.id == id_:
                return one
        raise LookupError(f"no resource has the id {id_!r}")


def run_program(
    config: Mapping[str, str],
    *,
    preview: bool = False,
    invokes: Invokes | None = None,
    stashed: Mapping[str, Any] | None = None,
    stack: str = "test",
    program: Path = PROGRAM,
) -> Recording:
    """Run the program with this configuration and return what it registered.

    Keys without a namespace are the project's own; values are text, structured ones JSON, as Pulumi hands
    them over. `invokes` adds to or replaces the answers in INVOKES; `stashed` maps the name of a Stash to what
    it has kept since an earlier run. Whatever the program raises is raised here.

    Each run has its own thread and its own context variables, where Pulumi keeps all its state; so runs
    neither see nor disturb each other or the caller's event loop.
    """
    recording = Recording()
    monitor = _Monitor(recording, {**INVOKES, **(invokes or {})}, stashed or {}, preview)
    full = {key if ":" in key else f"{facts.PROJECT}:{key}": value for key, value in config.items()}
    failure: list[BaseException] = []

    def execute() -> None:
        runpy.run_path(str(program), run_name="__main__")

    async def run() -> None:
        # When the program fails, Pulumi leaves futures that hold the same error behind; it is raised below.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        set_all_config(full)
        # Not MockSettings: it would leave this run waiting for what the previous one did not finish.
        Settings(facts.PROJECT, stack, monitor, _Engine(recording), dry_run=preview)
        await run_in_stack(execute)

    def guarded() -> None:
        try:
            contextvars.Context().run(asyncio.run, run())
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            failure.append(error)

    # An Output that ends up in a text by mistake raises where it does, instead of putting a warning into the
    # text.
    os.environ["PULUMI_ERROR_OUTPUT_STRING"] = "1"
    thread = threading.Thread(target=guarded, name="pulumi-program")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    recording.resources.sort(key=lambda one: one.urn)  # Pulumi registers in an order of its own each time
    return recording


class _Monitor(mocks.MockMonitor):
    """Pulumi's mock of its resource monitor, which also keeps what the program asked for."""

    def __init__(
        self, recording: Recording, invokes: Invokes, stashed: Mapping[str, Any], preview: bool
    ) -> None:
        super().__init__(_Mocks(recording, invokes, stashed, preview))
        self._recording = recording
        self._lock = threading.Lock()

    def RegisterResource(self, request: Any) -> Any:
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if request.type != "pulumi:pulumi:Stack":
            self._record(request, response.urn)
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        outputs = rpc.deserialize_properties(request.outputs, keep_unknowns=True)
        if request.urn.split("::")[2] == "pulumi:pulumi:Stack":
            self._recording.exports.update(_plain(outputs))
        else:
            self._recording.component_outputs[request.urn] = _plain(outputs)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]

    def _record(self, request: Any, urn: str) -> None:
        registration = self.resources[urn]
        recorded = Recorded(
            type=request.type,
            name=request.name,
            urn=urn,
            id=registration.id,
            custom=request.custom,
            inputs=_plain(rpc.deserialize_properties(request.object, keep_unknowns=True)),
            outputs=_plain(registration.state),
            parent=request.parent,
            protect=request.protect,
            retain_on_delete=request.retainOnDelete,
            delete_before_replace=request.deleteBeforeReplace,
            ignore_changes=tuple(request.ignoreChanges),
            replace_on_changes=tuple(request.replaceOnChanges),
            timeouts={field.name: value for field, value in request.customTimeouts.ListFields()},
            dependencies=frozenset(request.dependencies),
            property_dependencies={
                key: frozenset(value.urns) for key, value in request.propertyDependencies.items()
            },
        )
        with self._lock:
            if any(one.urn == urn for one in self._recording.resources):
                raise ValueError(f"the program registers {urn} twice")
            self._recording.resources.append(recorded)


class _Engine(mocks.MockEngine):
    """Pulumi's mock of its engine, which also keeps the warnings."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(None)
        self._recording = recording

    def Log(self, request: Any) -> None:
        if request.severity >= engine_pb2.WARNING:
            self._recording.warnings.append(request.message)
        super().Log(request)  # type: ignore[no-untyped-call]


class _Mocks(mocks.Mocks):
    """Makes up the outputs of resources and answers invokes."""

    def __init__(
        self, recording: Recording, invokes: Invokes, stashed: Mapping[str, Any], preview: bool
    ) -> None:
        self._recording = recording
        self._invokes = invokes
        self._stashed = stashed
        self._preview = preview

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if not args.custom:
            return "", {}
        if args.typ == "pulumi:index:Stash":  # Pulumi's own, which answers in a preview, too
            kept = self._stashed.get(args.name, args.inputs["input"])
            return "" if self._preview else args.name, {**args.inputs, "output": kept}
        if self._preview:  # AWS has made nothing yet: no id, and no output but the inputs
            return "", dict(args.inputs)
        id_ = _made_up_id(args.typ, args.name, args.inputs)
        make_up = _OUTPUTS.get(args.typ)
        return id_, {**(make_up(args, id_) if make_up else {}), **args.inputs}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        self._recording.invokes.append((args.token, dict(args.args)))
        answer = self._invokes.get(args.token)
        if answer is None:
            raise UnknownInvoke(f"the recorder has no answer to {args.token}({dict(args.args)})")
        try:
            return dict(answer(args.args) if callable(answer) else answer), []
        except Refused as reason:
            return {}, [("", str(reason))]


def _plain(value: Any) -> Any:
    """A deserialized value as plain data: no secret marks, UNKNOWN as text, and whole numbers, which the wire
    knows
    only as floats, as int."""
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Unknown):
        return UNKNOWN
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# --- made-up outputs, in AWS's forms ------------------------------------------------------------------------


def _hex(type_: str, name: str) -> str:
    return hashlib.sha256(f"{type_}::{name}".encode()).hexdigest()


_ID_PREFIXES: Final = {
    "aws:ec2/vpc:Vpc": "vpc",
    "aws:ec2/subnet:Subnet": "subnet",
    "aws:ec2/routeTable:RouteTable": "rtb",
    "aws:ec2/routeTableAssociation:RouteTableAssociation": "rtbassoc",
    "aws:ec2/internetGateway:InternetGateway": "igw",
    "aws:ec2/natGateway:NatGateway": "nat",
    "aws:ec2/eip:Eip": "eipalloc",
    "aws:ec2/vpcEndpoint:VpcEndpoint": "vpce",
    "aws:ec2/securityGroup:SecurityGroup": "sg",
    "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": "sg",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": "sgr",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": "sgr",
    "aws:ec2/networkInterface:NetworkInterface": "eni",
    "aws:ec2/instance:Instance": "i",
    "aws:ec2/launchTemplate:LaunchTemplate": "lt",
    "aws:ebs/volume:Volume": "vol",
    "aws:ec2/volumeAttachment:VolumeAttachment": "vai",
    "aws:efs/fileSystem:FileSystem": "fs",
    "aws:efs/mountTarget:MountTarget": "fsmt",
}


def _made_up_id(type_: str, name: str, inputs: Mapping[str, Any]) -> str:
    if type_ in _ID_PREFIXES:
        return f"{_ID_PREFIXES[type_]}-0{_hex(type_, name)[:16]}"
    if type_ == "aws:secretsmanager/secret:Secret":
        return _arn("secretsmanager", f"secret:{_physical_name(type_, name)}-{_hex(type_, name)[7:13]}")
    if type_.startswith("aws:s3/") and "bucket" in inputs:
        return str(inputs["bucket"])
    return _physical_name(type_, name)


def _physical_name(type_: str, name: str) -> str:
    """Pulumi's own naming: the resource's name and seven hexadecimal digits."""
    return f"{name}-{_hex(type_, name)[:7]}"


def _arn(service: str, resource: str, *, region: str = REGION, account: str = ACCOUNT) -> str:
    return f"arn:aws:{service}:{region}:{account}:{resource}"


def _dns_name(address: str) -> str:
    return f"ip-{address.replace('.', '-')}.{REGION}.compute.internal"


def _network_interface(args: mocks.MockResourceArgs, id_: str) -> dict[str, Any]:
    address = args.inputs["privateIps"][0]
    return {
        "arn": _arn("ec2", f"network-interface/{id_}"),
        "privateIp": address,
        "privateDnsName": _dns_name(address),
        "macAddress": "02:"
        + ":".join(_hex(args.typ, args.name)[number : number + 2] for number in range(0, 10, 2)),
    }


def _bucket(_args: mocks.MockResourceArgs, id_: str) -> dict[str, Any]:
    return {
        "bucket": id_,
        "arn": f"arn:aws:s3:::{id_}",
        "bucketRegionalDomainName": f"{id_}.s3.{REGION}.amazonaws.com",
    }


def _security_group_rule(_args: mocks.MockResourceArgs, id_: str) -> dict[str, Any]:
    return {"securityGroupRuleId": id_, "arn": _arn("ec2", f"security-group-rule/{id_}")}


_OUTPUTS: Final[Mapping[str, Callable[[mocks.MockResourceArgs, str], dict[str, Any]]]] = {
    "aws:ec2/vpc:Vpc": lambda _args, id_: {"arn": _arn("ec2", f"vpc/{id_}")},
    "aws:ec2/subnet:Subnet": lambda _args, id_: {"arn": _arn("ec2", f"subnet/{id_}")},
    "aws:ec2/eip:Eip": lambda _args, id_: {"allocationId": id_, "publicIp": "198.51.100.7"},
    "aws:ec2/vpcEndpoint:VpcEndpoint": lambda args, _id: (
        {"prefixListId": "pl-6ea54007"} if args.inputs["vpcEndpointType"] == "Gateway" else {}
    ),
    "aws:ec2/securityGroup:SecurityGroup": lambda args, id_: {
        "arn": _arn("ec2", f"security-group/{id_}"),
        "name": _physical_name(args.typ, args.name),
    },
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _security_group_rule,
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": _security_group_rule,
    "aws:ec2/networkInterface:NetworkInterface": _network_interface,
    "aws:ec2/instance:Instance": lambda _args, id_: {"arn": _arn("ec2", f"instance/{id_}")},
    "aws:ec2/launchTemplate:LaunchTemplate": lambda args, id_: {
        "arn": _arn("ec2", f"launch-template/{id_}"),
        "name": _physical_name(args.typ, args.name),
        "latestVersion": 1,
        "defaultVersion": 1,
    },
    "aws:autoscaling/group:Group": lambda _args, id_: {
        "name": id_,
        "arn": _arn("autoscaling", f"autoScalingGroup:{id_}:autoScalingGroupName/{id_}"),
    },
    "aws:autoscaling/policy:Policy": lambda args, id_: {
        "name": id_,
        "arn": _arn(
            "autoscaling",
            f"scalingPolicy:{id_}:autoScalingGroupName/{args.inputs['autoscalingGroupName']}:policyName/{id_}",
        ),
    },
    "aws:cloudwatch/metricAlarm:MetricAlarm": lambda _args, id_: {
        "name": id_,
        "arn": _arn("cloudwatch", f"alarm:{id_}"),
    },
    "aws:ebs/volume:Volume": lambda _args, id_: {"arn": _arn("ec2", f"volume/{id_}")},
    "aws:efs/fileSystem:FileSystem": lambda _args, id_: {
        "arn": _arn("elasticfilesystem", f"file-system/{id_}"),
        "dnsName": f"{id_}.efs.{REGION}.amazonaws.com",
    },
    "aws:s3/bucket:Bucket": _bucket,
    "aws:secretsmanager/secret:Secret": lambda args, id_: {
        "arn": id_,
        "name": _physical_name(args.typ, args.name),
    },
    "aws:iam/role:Role": lambda _args, id_: {"name": id_, "arn": _arn("iam", f"role/{id_}", region="")},
    "aws:iam/instanceProfile:InstanceProfile": lambda _args, id_: {
        "name": id_,
        "arn": _arn("iam", f"instance-profile/{id_}", region=""),
    },
    "command:local:Command": lambda _args, _id: {"stdout": "ready", "stderr": ""},
}


# --- answers to invokes -------------------------------------------------------------------------------------

# Virtual CPUs of the current sizes, and memory per virtual CPU of the usual families.
_VCPUS: Final = {"medium": 1, "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32}
_GIB_PER_VCPU: Final = {"c": 2, "m": 4, "t": 4, "r": 8}


def instance_type_answer(
    name: str, vcpus: int, memory_mb: int, architecture: str = "x86_64"
) -> dict[str, Any]:
    """The answer to getInstanceType, as far as the program reads it."""
    return {
        "id": name,
        "instanceType": name,
        "defaultVcpus": vcpus,
        "memorySize": memory_mb,
        "supportedArchitectures": [architecture],
    }


def _instance_type(args: Mapping[str, Any]) -> dict[str, Any]:
    name = args["instanceType"]
    family, size = name.split(".")
    vcpus = _VCPUS[size]
    architecture = "arm64" if "g" in family[2:] else "x86_64"
    return instance_type_answer(name, vcpus, vcpus * _GIB_PER_VCPU[family[0]] * 1024, architecture)


def _offerings(args: Mapping[str, Any]) -> dict[str, Any]:
    """Every type that is asked for, in every zone that is asked for."""
    asked = {one["name"]: one["values"] for one in args["filters"]}
    offers = [(kind, zone) for kind in asked["instance-type"] for zone in asked["location"]]
    return {
        "id": REGION,
        "locationType": args["locationType"],
        "instanceTypes": [kind for kind, _ in offers],
        "locations": [zone for _, zone in offers],
        "locationTypes": [args["locationType"]] * len(offers),
    }


_IMAGES: Final = {"x86_64": "ami-0d3b1a4a7e0c5f6b8", "arm64": "ami-0a9f8e7d6c5b4a392"}


def _parameter(args: Mapping[str, Any]) -> dict[str, Any]:
    architecture = {"amd64": "x86_64", "arm64": "arm64"}[args["name"].rsplit("/", 1)[1]]
    return {
        "id": args["name"],
        "name": args["name"],
        "type": "String",
        "value": _IMAGES[architecture],
        "insecureValue": _IMAGES[architecture],
    }


def _ami(args: Mapping[str, Any]) -> dict[str, Any]:
    (asked,) = (one["values"][0] for one in args["filters"] if one["name"] == "image-id")
    architecture = "arm64" if asked == _IMAGES["arm64"] else "x86_64"
    return ami_answer(asked, architecture)


def ami_answer(
    image: str, architecture: str = "x86_64", root_device: str = "/dev/xvda", root_gb: int = 8
) -> dict[str, Any]:
    """AWS's answer about a machine image, as far as the program reads it."""
    return {
        "id": image,
        "imageId": image,
        "architecture": architecture,
        "rootDeviceName": root_device,
        "blockDeviceMappings": [
            {
                "deviceName": root_device,
                "ebs": {"volume_size": str(root_gb)},
                "noDevice": "",
                "virtualName": "",
            },
            {"deviceName": "/dev/sdz", "ebs": {"volume_size": "500"}, "noDevice": "", "virtualName": ""},
        ],
    }


INVOKES: Final[Invokes] = {
    "aws:index/getRegion:getRegion": {"id": REGION, "region": REGION},
    "aws:index/getPartition:getPartition": {"id": "aws", "partition": "aws", "dnsSuffix": "amazonaws.com"},
    "aws:index/getAvailabilityZones:getAvailabilityZones": {
        "id": REGION,
        "names": [f"{REGION}{letter}" for letter in "abc"],
        "zoneIds": ["euc1-az2", "euc1-az3", "euc1-az1"],
    },
    "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": _offerings,
    "aws:ec2/getInstanceType:getInstanceType": _instance_type,
    "aws:ssm/getParameter:getParameter": _parameter,
    "aws:ec2/getAmi:getAmi": _ami,
}
