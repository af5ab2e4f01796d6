"""What the lab makes of a recording, without booting: no root needed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import boto3
import botocore.parsers
import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse, HeadersDict
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.retries.standard import ThrottledRetryableChecker

from benchmarks import nodes
from components import facts
from lab.aws import autoscaling, iam
from lab.aws.cloud import Interface, Template
from lab.aws.plan import make_plan
from lab.aws.recording import Recording
from lab.base import LabError
from lab.cluster import cluster
from lab.cluster.program import read_config, record
from lab.linux import network
from lab.services import aws_api, imds

BUCKET_POLICY = "aws:s3/bucketPolicy:BucketPolicy"
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:one-AbCdEf"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(read_config("dev", []))


def test_what_the_program_registers_becomes_a_plan(recording: Recording) -> None:
    plan = make_plan(recording)
    (master,) = plan.instances
    (workers,) = plan.groups
    assert len(master.volumes) == 3
    assert (master.name, workers.name, workers.desired) == ("master", "worker", 2)
    assert plan.subnets[master.subnet].nat
    assert not any(plan.subnets[subnet].nat or plan.subnets[subnet].s3 for subnet in workers.subnets)


def test_a_changed_worker_count_and_volume_size_reach_the_plan() -> None:
    plan = make_plan(record(read_config("dev", ["workerDesired=3", "homeVolumeGb=7"])))
    assert plan.groups[0].desired == 3
    assert 7 in {volume.size for volume in plan.instances[0].volumes}


@pytest.mark.parametrize("storage", ["nfs", "diskless"])
def test_the_program_takes_the_configurations_of_the_benchmarks(storage: str) -> None:
    """What `make bench` boots; it takes half an hour to come there."""
    plan = make_plan(record(nodes.configuration(workerStorage=storage, workerDesired=0)))
    assert (plan.groups[0].desired, plan.groups[0].maximum) == (0, 2)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [(["readyTimeoutMinutes=7"], 420), (["waitForReady=false"], cluster.READY_SECONDS)],
)
def test_the_lab_waits_for_its_nodes_as_long_as_the_program_says(
    settings: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    time = SimpleNamespace(monotonic=lambda: now, time=lambda: now, sleep=sleep)
    monkeypatch.setattr(cluster, "time", time)
    monkeypatch.setattr(cluster, "console_tail", lambda *_: "")
    monkeypatch.setattr(cluster, "state", lambda *_: cluster.State(ready=False, problems=("still booting",)))
    node = SimpleNamespace(name="master", ready_after=None, powered_on=0.0)
    lab = SimpleNamespace(plan=make_plan(record(read_config("dev", settings))), nodes={"master": node})
    with pytest.raises(LabError, match="still booting"):
        cluster.wait_until_ready(cast(cluster.Lab, lab), lambda _: None)
    assert seconds < now < 1.1 * seconds


def test_a_command_that_is_not_the_wait_is_refused_by_name(recording: Recording) -> None:
    changed = [
        replace(one, inputs={**one.inputs, "interpreter": ["/bin/sh", "-c"]})
        if one.type == "command:local:Command"
        else one
        for one in recording.resources
    ]
    with pytest.raises(LabError, match="the lab does not know the command /bin/sh -c"):
        make_plan(replace(recording, resources=changed))


def test_an_image_of_the_users_own_is_not_taken_for_debians() -> None:
    own = make_plan(record(read_config("dev", ["amiId=ami-0123456789abcdef0"])))
    assert not own.official_image
    assert make_plan(record(read_config("dev", []))).official_image


def test_an_unknown_resource_type_is_refused_by_name(recording: Recording) -> None:
    strange = replace(recording.resources[-1], type="aws:sqs/queue:Queue", name="backlog", custom=True)
    with pytest.raises(LabError, match="aws:sqs/queue:Queue backlog"):
        make_plan(replace(recording, resources=[*recording.resources, strange]))


def test_an_unknown_argument_is_refused_by_name(recording: Recording) -> None:
    changed = [
        replace(one, inputs={**one.inputs, "keyName": "mine"}) if one.type.endswith(":Instance") else one
        for one in recording.resources
    ]
    with pytest.raises(LabError, match="keyName"):
        make_plan(replace(recording, resources=changed))


def changed(
    recording: Recording, type_: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Recording:
    """With other arguments of the resources of a type."""
    assert recording.of_type(type_)
    resources = [
        replace(one, inputs=change(dict(one.inputs))) if one.type == type_ else one
        for one in recording.resources
    ]
    return replace(recording, resources=resources)


@pytest.mark.parametrize("value", ["true", True])
def test_a_worker_with_a_public_address_is_refused_by_name(recording: Recording, value: object) -> None:
    """The lab's internet gets to no node, so a boot would not show it."""

    def public(inputs: dict[str, Any]) -> dict[str, Any]:
        (interface,) = inputs["networkInterfaces"]
        return inputs | {"networkInterfaces": [{**interface, "associatePublicIpAddress": value}]}

    with pytest.raises(LabError, match=r"LaunchTemplate \S+: associatePublicIpAddress"):
        make_plan(changed(recording, "aws:ec2/launchTemplate:LaunchTemplate", public))


@pytest.mark.parametrize(
    ("type_", "argument", "value"),
    [
        ("aws:ec2/instance:Instance", "associatePublicIpAddress", True),
        ("aws:ec2/subnet:Subnet", "mapPublicIpOnLaunch", True),
        ("aws:ec2/eip:Eip", "instance", "i-0123456789abcdef0"),
        ("aws:ec2/eip:Eip", "networkInterface", "eni-0123456789abcdef0"),
    ],
)
def test_a_public_address_of_another_kind_is_refused_by_name(
    recording: Recording, type_: str, argument: str, value: object
) -> None:
    with pytest.raises(LabError, match=argument):
        make_plan(changed(recording, type_, lambda inputs: inputs | {argument: value}))


def test_an_elastic_address_waits_for_its_gateway_and_is_given_to_nothing_else(recording: Recording) -> None:
    one = replace(recording.one("aws:ec2/eip:Eip"), name="for the master", id="eipalloc-1")
    make_plan(replace(recording, resources=[*recording.resources, one]))  # as in the middle of a `pulumi up`
    association = replace(one, type="aws:ec2/eipAssociation:EipAssociation")
    with pytest.raises(LabError, match="EipAssociation for the master"):
        make_plan(replace(recording, resources=[*recording.resources, association]))


@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("varVolumeId=vol-0123456789abcdef0", "master-var: volumeId vol-0123456789abcdef0 exists already"),
        ("varVolumeId=snap-0123456789abcdef0", "storage-var: there is no snapshot snap-0123456789abcdef0"),
        ("fileSystemId=fs-0123456789abcdef0", "fileSystemId fs-0123456789abcdef0 exists already"),
    ],
)
def test_data_that_exist_on_aws_are_refused_by_name(setting: str, refused: str) -> None:
    with pytest.raises(LabError, match=refused):
        make_plan(record(read_config("dev", ["varVolumeGb=20", setting])))


def test_every_rule_of_the_program_is_a_line_of_the_routers_rules(recording: Recording) -> None:
    plan = make_plan(recording)
    master = Interface(plan.instances[0].address, plan.instances[0].template.groups)
    lines = network.ruleset(plan, [master]).splitlines()
    registered = [one for one in recording.resources if "SecurityGroupIngressRule" in one.type]
    registered += [one for one in recording.resources if "SecurityGroupEgressRule" in one.type]
    assert sum(line.endswith(" return") for line in lines) == len(registered) > 0


def test_metadata_is_answered_as_names_or_values() -> None:
    template = Template("ami-1", "c6i.large", (), "a-role", b"\x1f\x8b data")
    tree = imds.metadata(
        template, IPv4Address("10.0.0.5"), ("subnet-1", "10.0.0.0/24"), "i-1", "eu-central-1b"
    )
    assert imds.lookup(tree, "/latest/meta-data/placement/availability-zone") == b"eu-central-1b"
    assert imds.lookup(tree, "/latest/user-data") == b"\x1f\x8b data"
    assert b"placement/" in (imds.lookup(tree, "/latest/meta-data/") or b"").split()
    assert imds.lookup(tree, "/latest/meta-data/spot/instance-action") is None


def test_what_is_announced_to_an_instance_is_in_its_metadata_from_then_on(
    recording: Recording, tmp_path: Path
) -> None:
    (group,) = make_plan(recording).groups
    address = IPv4Address("10.0.0.5")
    tree = imds.metadata(group.template, address, ("subnet-1", "10.0.0.0/24"), "i-1", "eu-central-1b")
    found = imds.lookup(tree, "/latest/meta-data/tags/instance/aws:autoscaling:groupName")
    assert found == group.aws_name.encode()
    imds.publish(tmp_path, address, tree)
    imds.announce(tmp_path, address, imds.LIFECYCLE_STATE, "Terminated")
    announced = json.loads((tmp_path / f"{address}.json").read_text())
    assert imds.lookup(announced, f"/latest/meta-data/{imds.LIFECYCLE_STATE}") == b"Terminated"
    assert imds.lookup(announced, "/latest/meta-data/instance-id") == b"i-1"


def test_a_worker_may_complete_the_hook_of_its_own_group_only(recording: Recording) -> None:
    plan = make_plan(recording)
    (group,) = plan.groups
    statements = plan.roles[group.template.role]
    signed = {
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a-role/20260101/r/autoscaling/aws4_request, x"
    }
    form = "Action=CompleteLifecycleAction&AutoScalingGroupName="
    asked = aws_api.request_of(signed, (form + group.aws_name).encode(), {group.aws_name: group.arn})
    assert asked == ("a-role", "autoscaling:CompleteLifecycleAction", group.arn)
    assert iam.allowed(statements, *asked[1:])
    other = aws_api.request_of(signed, (form + "other").encode(), {group.aws_name: group.arn})
    assert not iam.allowed(statements, *other[1:])


def test_the_master_alone_may_publish_metrics(recording: Recording) -> None:
    plan = make_plan(recording)
    signed = {
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a-role/20260101/r/monitoring/aws4_request, x",
        "PATH_INFO": "/service/GraniteServiceVersion20100801/operation/PutMetricData",
    }
    _, action, resource = aws_api.request_of(signed, b"", {})
    assert action == "cloudwatch:PutMetricData"
    own = {"cloudwatch:namespace": facts.METRICS_NAMESPACE}
    assert iam.allowed(plan.roles[plan.instances[0].template.role], action, resource, own)
    assert not iam.allowed(
        plan.roles[plan.instances[0].template.role], action, resource, {"cloudwatch:namespace": "AWS/EC2"}
    )
    assert not iam.allowed(plan.roles[plan.groups[0].template.role], action, resource, own)


def parsed(action: str, answer: dict[str, Any]) -> Any:
    """What boto3 makes of the lab's answer."""
    sent: list[bytes] = []
    sent += aws_api.answer_of(lambda _status, _headers: None, action, answer)
    shape = (
        botocore.session.get_session().get_service_model("autoscaling").operation_model(action).output_shape
    )
    response = {"status_code": 200, "headers": {}, "body": b"".join(sent)}
    return botocore.parsers.create_parser("query").parse(response, shape)


def test_a_group_is_described_by_its_tags_with_what_it_has_failed_to_start(recording: Recording) -> None:
    (group,) = make_plan(recording).groups
    failure = {
        "time": "2026-11-26T12:00:00+00:00",
        "status": "Failed",
        "text": autoscaling.no_capacity(group),
    }
    now = {
        "name": group.aws_name,
        "tags": dict(group.tags),
        "minimum": 0,
        "desired": 3,
        "maximum": 4,
        "instances": [{"id": "worker-1", "state": "InService"}],
        "activities": [failure],
    }

    def form(**tags: str) -> dict[str, list[str]]:
        found = {"Action": ["DescribeAutoScalingGroups"], "Version": ["2011-01-01"]}
        for number, (key, value) in enumerate(tags.items(), 1):
            found[f"Filters.member.{number}.Name"] = [f"tag:{key}"]
            found[f"Filters.member.{number}.Values.member.1"] = [value]
        return found

    def found(**tags: str) -> Any:
        action = "DescribeAutoScalingGroups"
        return parsed(action, aws_api.description(action, form(**tags), [now]))["AutoScalingGroups"]

    (described,) = found(Project=facts.PROJECT, Stack=group.tags["Stack"])
    assert described["DesiredCapacity"] == 3
    assert [one["LifecycleState"] for one in described["Instances"]] == ["InService"]
    assert found(Project=facts.PROJECT, Stack="another") == []
    with pytest.raises(ValueError, match="by their tags"):
        aws_api.description("DescribeAutoScalingGroups", {"MaxRecords": ["5"]}, [now])

    action = "DescribeScalingActivities"
    asked = {"AutoScalingGroupName": [described["AutoScalingGroupName"]]}
    (activity,) = parsed(action, aws_api.description(action, asked, [now]))["Activities"]
    assert activity["StatusMessage"] == failure["text"]
    assert activity["StartTime"].isoformat() == failure["time"]


def test_the_master_alone_may_ask_why_no_worker_starts(recording: Recording) -> None:
    plan = make_plan(recording)
    (group,) = plan.groups
    signed = {
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a-role/20260101/r/autoscaling/aws4_request, x"
    }
    form = f"Action=DescribeScalingActivities&AutoScalingGroupName={group.aws_name}".encode()
    _, action, resource = aws_api.request_of(signed, form, {group.aws_name: group.arn})
    assert (action, resource) == ("autoscaling:DescribeScalingActivities", "*")
    assert iam.allowed(plan.roles[plan.instances[0].template.role], action, resource)
    assert not iam.allowed(plan.roles[group.template.role], action, resource)


@pytest.mark.parametrize(
    ("environ", "body"),
    [
        ({}, b"Action=PutMetricData&Namespace=A%2FB&Version=2010-08-01"),
        ({"HTTP_X_AMZ_TARGET": "GraniteServiceVersion20100801.PutMetricData"}, b'{"Namespace": "A/B"}'),
        # CBOR: a map of one pair of texts
        ({"PATH_INFO": f"{aws_api.CBOR_OPERATION}PutMetricData"}, b"\xa1\x69Namespace\x63A/B"),
    ],
    ids=["query", "JSON", "CBOR"],
)
def test_the_namespace_of_metrics_is_read_in_all_of_cloudwatchs_protocols(
    environ: dict[str, str], body: bytes
) -> None:
    keys = aws_api.condition_keys(environ, "cloudwatch:PutMetricData", body, None)
    assert keys["cloudwatch:namespace"] == "A/B"


@pytest.mark.parametrize(
    ("account", "status"), [("123456789012", "200 OK"), ("210987654321", "400 Bad Request")]
)
def test_an_endpoint_lets_through_what_its_policy_allows(account: str, status: str) -> None:
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    own = {**allow, "Condition": {"StringEquals": {"aws:PrincipalAccount": "123456789012"}}}
    host = "secretsmanager.eu-central-1.amazonaws.com"
    settings = {
        "account": account,
        "roles": {"a-role": [allow]},
        "secrets": [],
        "groups": {},
        "s3_endpoint": [],
        "buckets": {},
    }
    answered = []

    def application(_environ: object, respond: Callable[..., object]) -> list[bytes]:
        respond("200 OK", [])
        return []

    guard = aws_api.Guard(application, {**settings, "endpoints": {host: [own]}})
    signed = "AWS4-HMAC-SHA256 Credential=a-role/20260101/eu-central-1/secretsmanager/aws4_request, x"
    target = "secretsmanager.GetSecretValue"
    environ = {
        "HTTP_AUTHORIZATION": signed,
        "HTTP_X_AMZ_TARGET": target,
        "HTTP_HOST": host,
        "wsgi.input": BytesIO(),
    }
    guard(environ, lambda status, _headers: answered.append(status))
    assert answered == [status]


@pytest.mark.parametrize(
    ("service", "call"),
    [
        ("secretsmanager", lambda client: client.get_secret_value(SecretId="one")),
        ("cloudwatch", lambda client: client.put_metric_data(Namespace="A/B", MetricData=[])),
        ("s3", lambda client: client.get_object(Bucket="one", Key="two")),
        (
            "autoscaling",
            lambda client: client.complete_lifecycle_action(
                AutoScalingGroupName="one", LifecycleHookName="two", LifecycleActionResult="CONTINUE"
            ),
        ),
    ],
)
def test_what_aws_throttles_is_what_boto3_takes_for_it(
    service: str, call: Callable[[Any], object], tmp_path: Path
) -> None:
    """Of each protocol, and only while the file is there. How often boto3 asks again is its own."""
    file = tmp_path / aws_api.THROTTLED
    throttle = aws_api.Throttle(lambda _environ, _respond: pytest.fail("was let through"), file)
    client: Any = boto3.session.Session().client(
        service,
        region_name="eu-central-1",
        aws_access_key_id="a-role",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}),
    )
    client.meta.events.register("before-send", lambda request, **_: answered_by(throttle, request))
    file.touch()
    with pytest.raises(ClientError) as error:
        call(client)
    assert error.value.response["Error"]["Code"] in ThrottledRetryableChecker._THROTTLED_ERROR_CODES
    file.unlink()
    with pytest.raises(pytest.fail.Exception, match="was let through"):
        call(client)


def answered_by(application: aws_api.Wsgi, request: AWSPreparedRequest) -> AWSResponse:
    """A WSGI application's answer to a request of boto3's."""
    host, _, path = request.url.removeprefix("https://").partition("/")
    body = request.body.encode() if isinstance(request.body, str) else request.body or b""
    environ = {
        "HTTP_HOST": host,
        "PATH_INFO": f"/{path}",
        "REQUEST_METHOD": request.method,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
        **{f"HTTP_{name.upper().replace('-', '_')}": text(value) for name, value in request.headers.items()},
    }
    begun: list[tuple[str, list[tuple[str, str]]]] = []
    content = b"".join(application(environ, lambda status, headers: begun.append((status, headers))))
    ((status, headers),) = begun
    raw = SimpleNamespace(stream=lambda: iter([content]), read=lambda: content)
    return AWSResponse(request.url, int(status.split()[0]), HeadersDict(headers), raw)


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def test_a_condition_holds_only_for_the_value_that_it_names() -> None:
    read = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    secured = {**read, "Condition": {"Bool": {"aws:SecureTransport": "true"}}}
    assert iam.allowed([secured], "s3:GetObject", "x", {"aws:SecureTransport": "true"})
    assert not iam.allowed([secured], "s3:GetObject", "x", {"aws:SecureTransport": "false"})
    assert not iam.allowed([secured], "s3:GetObject", "x")
    deny = {**secured, "Effect": "Deny"}
    assert not iam.allowed([read, deny], "s3:GetObject", "x", {"aws:SecureTransport": "true"})
    assert iam.allowed([read, deny], "s3:GetObject", "x", {"aws:SecureTransport": "false"})


def test_a_condition_that_is_not_evaluated_is_refused_by_name(recording: Recording) -> None:
    changed = [
        replace(
            one, inputs={**one.inputs, "policy": one.inputs["policy"].replace("StringEquals", "StringLike")}
        )
        if one.type == "aws:iam/rolePolicy:RolePolicy"
        else one
        for one in recording.resources
    ]
    with pytest.raises(LabError, match="the condition StringLike on cloudwatch:namespace"):
        make_plan(replace(recording, resources=changed))


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ({"NotAction": "s3:*", "Resource": "*"}, "the element NotAction"),
        (
            {"Action": "s3:*", "Resource": "*", "Principal": {"AWS": "arn:x"}},
            "the principal {'AWS': 'arn:x'}",
        ),
    ],
)
def test_what_a_bucket_says_of_whom_and_what_in_other_words_is_refused_by_name(
    statement: dict[str, object], refused: str, recording: Recording
) -> None:
    policy = json.dumps({"Statement": [{"Effect": "Deny", **statement}]})
    changed = [
        replace(one, inputs={**one.inputs, "policy": policy}) if one.type == BUCKET_POLICY else one
        for one in recording.resources
    ]
    with pytest.raises(LabError, match=re.escape(refused)):
        make_plan(replace(recording, resources=changed))


@pytest.mark.parametrize(
    ("secure", "role", "status"),
    [("false", True, "200 OK"), ("true", True, "403 Forbidden"), ("false", False, "403 Forbidden")],
    ids=["as it is", "a condition that holds", "no role that allows it"],
)
def test_what_a_bucket_forbids_no_role_reads(
    secure: str, role: bool, status: str, recording: Recording, tmp_path: Path
) -> None:
    """The program's bucket refuses plain HTTP, and everything comes by TLS here; so its condition is turned round."""
    changed = [
        replace(one, inputs={**one.inputs, "policy": one.inputs["policy"].replace('"false"', f'"{secure}"')})
        if one.type == BUCKET_POLICY
        else one
        for one in recording.resources
    ]
    plan = make_plan(replace(recording, resources=changed))
    answered = []

    def application(_environ: object, respond: Callable[..., object]) -> list[bytes]:
        respond("200 OK", [])
        return []

    (bundle,) = plan.objects
    key = plan.instances[0].template.role if role else "another"
    guard = aws_api.Guard(application, aws_api.configuration(plan, tmp_path, tmp_path))
    signed = f"AWS4-HMAC-SHA256 Credential={key}/20260101/{plan.region}/s3/aws4_request, x"
    environ = {
        "HTTP_AUTHORIZATION": signed,
        "HTTP_HOST": f"{bundle.bucket}.s3.{plan.region}.amazonaws.com",
        "PATH_INFO": f"/{bundle.key}",
        "REQUEST_METHOD": "GET",
        "wsgi.input": BytesIO(),
    }
    guard(environ, lambda status, _headers: answered.append(status))
    assert answered == [status]


def test_an_action_is_allowed_only_by_a_statement_that_names_it_and_its_resource() -> None:
    read = {"Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"], "Resource": SECRET}
    assert iam.allowed([read], "secretsmanager:GetSecretValue", SECRET)
    assert not iam.allowed([read], "secretsmanager:PutSecretValue", SECRET)
    assert not iam.allowed([read], "secretsmanager:GetSecretValue", SECRET + "x")
    assert not iam.allowed([], "secretsmanager:GetSecretValue", SECRET)
    deny = {"Effect": "Deny", "Action": "*", "Resource": "*"}
    assert not iam.allowed([read, deny], "secretsmanager:GetSecretValue", SECRET)


def test_requests_are_read_as_iam_reads_them() -> None:
    signed = {
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a-role/20260101/eu-central-1/secretsmanager/aws4_request, x"
    }
    target = {**signed, "HTTP_X_AMZ_TARGET": "secretsmanager.GetSecretValue"}
    body = b'{"SecretId": "one"}'
    assert aws_api.request_of(target, body, {"one": SECRET}) == (
        "a-role",
        "secretsmanager:GetSecretValue",
        SECRET,
    )
    s3 = {
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a-role/20260101/eu-central-1/s3/aws4_request, x",
        "HTTP_HOST": "bucket.s3.eu-central-1.amazonaws.com",
        "PATH_INFO": "/key/of.zip",
        "REQUEST_METHOD": "GET",
    }
    assert aws_api.request_of(s3, b"", {}) == ("a-role", "s3:GetObject", "arn:aws:s3:::bucket/key/of.zip")


def test_settings_that_are_wrong_give_one_message() -> None:
    with pytest.raises(LabError, match="workerMin"):
        record(read_config("dev", ["workerMin=9", "workerMax=2"]))
    with pytest.raises(LabError, match="key=value"):
        read_config("dev", ["workerMin"])
    with pytest.raises(LabError, match=r"Pulumi\.absent\.yaml"):
        read_config("absent", [])
