"""A key of the customer's own: what is encrypted with it, who may use it, and that it cannot change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pytest

from components import facts
from lab.aws.answers import Refused, key_answer, network_answers
from lab.aws.plan import make_plan
from lab.aws.recorder import run_program
from lab.aws.recording import Recording
from lab.aws.resources import ACCOUNT, REGION
from tests.unit.conftest import Record
from tests.unit.test_program import EFS, INSTANCE, ROLE_POLICY, SECRET, TEMPLATE, VOLUME, statements, walk

KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/01234567-89ab-cdef-0123-456789abcdef"
OTHER = KEY.replace("01234567", "76543210")
VPC = "aws:ec2/vpc:Vpc"
GET_KEY = "aws:kms/getKey:getKey"
BUCKET_ENCRYPTION = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"


def with_key(record: Record, **settings: str) -> Recording:
    return record(kmsKeyId=KEY, alarmEmail="seismology@example.org", **settings)


def rights(recording: Recording, name: str) -> list[dict[str, Any]]:
    """What a role may do with keys."""
    (policy,) = [one for one in recording.of_type(ROLE_POLICY) if one.name == name]
    return [one for one in statements(policy.inputs["policy"]) if one["Action"][0].startswith("kms:")]


def used(recording: Recording) -> dict[str, list[str]]:
    """By resource, the keys that its arguments name."""
    found = {}
    for one in recording.resources:
        names = ("kmsKeyId", "kmsMasterKeyId")
        keys = [
            part[name]
            for part in walk(one.inputs)
            if isinstance(part, dict)
            for name in names
            if name in part
        ]
        if keys:
            found[one.name] = keys
    return found


def test_everything_that_the_program_encrypts_has_it_and_the_mails_have_the_key_that_they_have_anyway(
    record: Record,
) -> None:
    recording = with_key(record)
    mails = recording.one("aws:kms/key:Key").outputs["arn"]
    encrypted = [
        one.name for type_ in (VOLUME, EFS, SECRET, INSTANCE, TEMPLATE) for one in recording.of_type(type_)
    ]
    assert len(encrypted) == 8
    bucket = recording.one(BUCKET_ENCRYPTION).name
    assert used(recording) == {name: [KEY] for name in (*encrypted, bucket)} | {"alarms-topic": [mails]}
    (rule,) = recording.one(BUCKET_ENCRYPTION).inputs["rules"]
    assert rule["applyServerSideEncryptionByDefault"]["sseAlgorithm"] == "aws:kms"
    assert rule["bucketKeyEnabled"]


def test_without_one_no_key_and_no_right_to_use_one_is_named(each_mode: Recording) -> None:
    assert used(each_mode) == {}
    assert "kms:" not in json.dumps([one.inputs["policy"] for one in each_mode.of_type(ROLE_POLICY)])
    assert "workerKeyGrantCommand" not in each_mode.exports
    assert facts.KEY_TAG not in each_mode.one(VPC).inputs["tags"]


def test_roles_use_it_through_the_services_alone_whose_data_they_may_read(record: Record) -> None:
    recording = with_key(record)

    def through(service: str, *actions: str) -> dict[str, Any]:
        condition = {"StringEquals": {"kms:ViaService": f"{service}.{REGION}.amazonaws.com"}}
        return {"Effect": "Allow", "Action": list(actions), "Resource": KEY, "Condition": condition}

    assert rights(recording, "master-rights") == [
        through("secretsmanager", "kms:Decrypt", "kms:GenerateDataKey"),
        through("s3", "kms:Decrypt"),
    ]
    assert rights(recording, "workers-rights") == [through("secretsmanager", "kms:Decrypt")]
    snapshots = rights(recording, "snapshots-rights")
    assert {one["Resource"] for one in snapshots} == {KEY}
    (grants,) = [one for one in snapshots if "kms:CreateGrant" in one["Action"]]
    assert grants["Action"] == ["kms:CreateGrant"]
    assert grants["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}


def test_an_output_lets_the_autoscaling_group_use_it(record: Record) -> None:
    command = with_key(record).exports["workerKeyGrantCommand"]
    role = "aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    assert f"--key-id {KEY} --grantee-principal arn:aws:iam::{ACCOUNT}:role/{role} --operations " in command
    assert f"aws kms create-grant --region {REGION} " in command
    assert " CreateGrant" in command


def test_an_alias_stands_for_the_key_that_it_has_now(record: Record) -> None:
    recording = record(kmsKeyId="alias/openquake")
    assert {key for keys in used(recording).values() for key in keys} == {KEY}
    assert recording.one(VPC).inputs["tags"][facts.KEY_TAG] == KEY


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        ({"keyState": "PendingDeletion"}, "enable it, or name another one; it is PendingDeletion"),
        ({"keyUsage": "SIGN_VERIFY", "keySpec": "ECC_NIST_P256"}, "symmetric keys for encryption only"),
    ],
)
def test_a_key_that_cannot_encrypt_is_refused_before_anything_is_made(
    answer: dict[str, str], remedy: str
) -> None:
    invokes = {GET_KEY: lambda args: key_answer(args, **answer)}
    with pytest.raises(pulumi.RunError, match=f"kmsKeyId = {KEY}: .*{remedy}"):
        run_program({"kmsKeyId": KEY}, invokes=invokes)


def test_a_key_that_is_not_there_or_of_another_region_is_refused_beside_what_else_is_wrong() -> None:
    def refuse(_args: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Refused("NotFoundException")

    with pytest.raises(pulumi.RunError) as error:
        run_program({"kmsKeyId": KEY, "zones": f'["{REGION}a", "{REGION}x"]'}, invokes={GET_KEY: refuse})
    assert "kms:DescribeKey" in str(error.value)
    assert "NotFoundException" in str(error.value)
    assert "zones" in str(error.value)
    elsewhere = KEY.replace(REGION, "us-east-1")
    with pytest.raises(
        pulumi.RunError, match=f"name a key of {REGION}, where the cluster is, and not of us-east-1"
    ):
        run_program({"kmsKeyId": elsewhere}, invokes={GET_KEY: refuse})


@pytest.mark.parametrize(
    ("present", "wanted", "shown"), [("", KEY, "empty, for AWS's keys"), (KEY, "", KEY), (KEY, OTHER, KEY)]
)
def test_the_key_of_a_cluster_that_exists_cannot_change(
    record: Record, present: str, wanted: str, shown: str
) -> None:
    """AWS would make other disks, and blank ones: the provider replaces volumes and file system for another key."""
    recording = record(kmsKeyId=present)
    vpc = recording.one(VPC)
    subnets = {one.id: one.inputs for one in recording.of_type("aws:ec2/subnet:Subnet")}
    answers = network_answers(vpc.id, vpc.inputs["cidrBlock"], subnets, vpc.inputs["tags"])
    assert run_program({"kmsKeyId": present}, invokes=answers).of_type(VOLUME)
    with pytest.raises(pulumi.RunError) as error:
        run_program({"kmsKeyId": wanted}, invokes=answers)
    (line,) = str(error.value).splitlines()[1:]
    assert f"it is {shown}; it cannot change once the cluster exists" in line


def test_it_is_no_part_of_user_data(record: Record) -> None:
    """A machine finds nothing of it: AWS decrypts before it sees anything."""
    plain, encrypted = record(), record(kmsKeyId=KEY)
    assert plain.one(INSTANCE).inputs["userDataBase64"] == encrypted.one(INSTANCE).inputs["userDataBase64"]
    assert plain.one(TEMPLATE).inputs["userData"] == encrypted.one(TEMPLATE).inputs["userData"]


def test_the_lab_makes_the_same_of_it(record: Record) -> None:
    assert make_plan(record(kmsKeyId=KEY)).instances == make_plan(record()).instances
