"""AWS's answers to what the program asks before it makes anything, as far as the program reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, Final

from lab.aws.resources import REGION, arn

Answer = Mapping[str, Any]
# An invoke's token to its answer, or to a function of its arguments that gives the answer.
Invokes = Mapping[str, Answer | Callable[[Mapping[str, Any]], Answer]]


class Refused(Exception):
    """Raised by an answer function: AWS refuses what the program asks, for this reason."""


def answer(invokes: Invokes, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an invoke. Raises UnknownInvoke where there is none, Refused where AWS refuses."""
    found = invokes.get(token)
    if found is None:
        raise UnknownInvoke(f"there is no answer to {token}({dict(arguments)})")
    return dict(found(arguments) if callable(found) else found)


class UnknownInvoke(LookupError):
    """The program asked AWS something to which there is no answer here."""


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


DEBIAN_IMAGES: Final = {"x86_64": "ami-0d3b1a4a7e0c5f6b8", "arm64": "ami-0a9f8e7d6c5b4a392"}
"""The images that Debian publishes, by architecture; another one is somebody's own."""


def _parameter(args: Mapping[str, Any]) -> dict[str, Any]:
    architecture = {"amd64": "x86_64", "arm64": "arm64"}[args["name"].rsplit("/", 1)[1]]
    return {
        "id": args["name"],
        "name": args["name"],
        "type": "String",
        "value": DEBIAN_IMAGES[architecture],
        "insecureValue": DEBIAN_IMAGES[architecture],
    }


def _ami(args: Mapping[str, Any]) -> dict[str, Any]:
    image = asked(args, "image-id")
    architecture = "arm64" if image == DEBIAN_IMAGES["arm64"] else "x86_64"
    return ami_answer(image, architecture)


def network_answers(
    vpc_id: str,
    cidr: str,
    subnets: Mapping[str, Mapping[str, Any]],
    tags: Mapping[str, str] | None = None,
    volumes: Mapping[str, Mapping[str, Any]] | None = None,
    file_systems: Mapping[str, Mapping[str, Any]] | None = None,
) -> Invokes:
    """AWS's answers about the network, the volumes and the file systems of a cluster that exists.

    Args:
        subnets: by their ids, with `availabilityZone` and `tags`
        tags: of the VPC
        volumes: by their ids, with `size` and `tags`; the master has all of them
        file_systems: by their ids, with `tags`; all have a mount target in the VPC

    The stack's state has the VPC.
    """
    disks = volumes or {}
    its_disks: Invokes = {
        "aws:ebs/getEbsVolumes:getEbsVolumes": lambda args: _ids_of(disks, args),
        "aws:ebs/getVolume:getVolume": lambda args: volume_answer(
            asked(args, "volume-id"), **disks.get(asked(args, "volume-id"), {})
        ),
        "aws:ec2/getInstances:getInstances": lambda args: {
            "id": REGION,
            "ids": ["i-0123456789abcdef0"] if asked(args, "block-device-mapping.volume-id") in disks else [],
        },
    }
    shared = file_systems or {}
    its_files: Invokes = {
        "aws:efs/getFileSystem:getFileSystem": lambda args: file_system_answer(
            args["fileSystemId"], **shared.get(args["fileSystemId"], {})
        ),
        "aws:ec2/getNetworkInterfaces:getNetworkInterfaces": lambda args: {
            "id": REGION,
            "ids": [f"eni-{id_}" for id_ in shared if fnmatch(mount_target(id_), asked(args, "description"))],
        },
        "aws:ec2/getNetworkInterface:getNetworkInterface": lambda args: {
            "id": args["id"],
            "description": mount_target(args["id"].removeprefix("eni-")),
        },
    }
    return {
        READ_STATE: state_answer(vpc_id),
        "aws:ec2/getVpcs:getVpcs": {"id": REGION, "ids": [vpc_id]},
        "aws:ec2/getVpc:getVpc": {"id": vpc_id, "cidrBlock": cidr, "tags": tags or {}},
        "aws:ec2/getSubnets:getSubnets": lambda args: _ids_of(subnets, args),
        "aws:ec2/getSubnet:getSubnet": lambda args: subnets[args["id"]],
        **(its_disks if disks else {}),
        **(its_files if shared else {}),
    }


READ_STATE: Final = "pulumi:pulumi:readStackResourceOutputs"
"""By which a program asks Pulumi for what a stack's state has. Pulumi's own engine answers this itself."""


def state_answer(*vpc_ids: str) -> dict[str, Any]:
    """Pulumi's answer where a stack's state has these VPCs."""
    type_ = "aws:ec2/vpc:Vpc"
    return {
        "outputs": {
            f"urn:pulumi:test::test::{type_}::{id_}": {
                "type": type_,
                "outputs": {"arn": arn("ec2", f"vpc/{id_}")},
            }
            for id_ in vpc_ids
        }
    }


def mount_target(file_system: str) -> str:
    """What EFS writes beside the network interface of a file system's mount target."""
    return f"EFS mount target for {file_system} (fsmt-0123456789abcdef0)"


def _ids_of(these: Mapping[str, Mapping[str, Any]], args: Mapping[str, Any]) -> dict[str, Any]:
    """Which of these have the tags that are asked for."""
    wanted = (args.get("tags") or {}).items()
    return {"id": REGION, "ids": [id_ for id_, one in these.items() if wanted <= one["tags"].items()]}


def asked(args: Mapping[str, Any], name: str) -> str:
    """The one value that a filter asks for."""
    (value,) = (one["values"][0] for one in args["filters"] if one["name"] == name)
    return str(value)


def volume_answer(volume: str, **differently: Any) -> dict[str, Any]:
    """AWS's answer about a volume that fits the master."""
    fitting = {
        "availabilityZone": f"{REGION}a",
        "encrypted": True,
        "size": 100,
        "snapshotId": "",
        "tags": {},
    }
    return {"id": volume, "volumeId": volume, **fitting, **differently}


def snapshot_answer(snapshot: str, **differently: Any) -> dict[str, Any]:
    """AWS's answer about a snapshot that fits the smallest of the default volumes."""
    fitting = {
        "state": "completed",
        "storageTier": "standard",
        "volumeSize": 20,
        "encrypted": True,
        "tags": {},
    }
    return {"id": snapshot, "snapshotId": snapshot, **fitting, **differently}


def file_system_answer(file_system: str, **differently: Any) -> dict[str, Any]:
    """AWS's answer about a file system that fits the cluster."""
    fitting = {"encrypted": True, "availabilityZoneName": "", "tags": {}}
    return {"id": file_system, "fileSystemId": file_system, **fitting, **differently}


def key_answer(args: Mapping[str, Any], **differently: Any) -> dict[str, Any]:
    """AWS's answer about a key that encrypts what it is asked to; an alias is one of the same key each time."""
    asked_for = args["keyId"]
    number = "01234567-89ab-cdef-0123-456789abcdef"
    arn_of_key = arn("kms", f"key/{number}") if asked_for.startswith("alias/") else asked_for
    fitting = {
        "keyState": "Enabled",
        "keyManager": "CUSTOMER",
        "keySpec": "SYMMETRIC_DEFAULT",
        "keyUsage": "ENCRYPT_DECRYPT",
    }
    return {"id": number, "keyId": asked_for, "arn": arn_of_key, **fitting, **differently}


def secret_answer(secret: str, **differently: Any) -> dict[str, Any]:
    """AWS's answer about a secret that has AWS's own key."""
    return {"id": secret, "arn": secret, "kmsKeyId": "", **differently}


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
    READ_STATE: state_answer(),
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
    "aws:ebs/getVolume:getVolume": lambda args: volume_answer(asked(args, "volume-id")),
    "aws:ebs/getSnapshot:getSnapshot": lambda args: snapshot_answer(args["snapshotIds"][0]),
    "aws:efs/getFileSystem:getFileSystem": lambda args: file_system_answer(args["fileSystemId"]),
    "aws:kms/getKey:getKey": key_answer,
    "aws:secretsmanager/getSecret:getSecret": lambda args: secret_answer(args["arn"]),
    # Nothing that exists is in use.
    "aws:ec2/getInstances:getInstances": {"id": REGION, "ids": []},
    "aws:ec2/getVpcs:getVpcs": {"id": REGION, "ids": []},
    "aws:ebs/getEbsVolumes:getEbsVolumes": {"id": REGION, "ids": []},
    "aws:ec2/getNetworkInterfaces:getNetworkInterfaces": {"id": REGION, "ids": []},
}
