"""AWS's API for the nodes: moto over TLS, asked only what the caller's role allows.

It runs in the `aws` namespace, on the addresses of the endpoints; the VPC's rules decide who gets there. It also
answers on the port of the EFS mount targets, at theirs.
Run as `python -m lab.services.aws_api CONFIGURATION`, a JSON file that `configuration` makes.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from components.facts import HTTPS_PORT, NFS_PORT
from lab.aws import iam
from lab.aws.cloud import Plan

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


IAM_PREFIXES = {"monitoring": "cloudwatch"}
"""The prefix of a service's actions in IAM, where it is not the name that requests are signed for."""
CBOR_OPERATION = "/service/GraniteServiceVersion20100801/operation/"
"""What CloudWatch's requests are sent to in the protocol that boto3 uses for it (Smithy RPC v2 CBOR)."""
RELOAD_SECONDS = 0.2
"""Between two looks at the configuration."""
OWN_SECRETS = "own_secrets.json"
"""Beside the configuration: the values of secrets that people of the account have made, by ARN."""
METRICS = "metrics.jsonl"
GROUP = "group.json"
COMPLETED = "completed"
THROTTLED = "throttled"
"""A file among the events: while it is there the API refuses every request, as AWS does those that come too often."""


def host_names(region: str) -> list[str]:
    """The DNS names that the API's certificate has to be good for."""
    return [
        f"*.{region}.amazonaws.com", f"*.s3.{region}.amazonaws.com", "*.amazonaws.com", "*.s3.amazonaws.com",
    ]  # fmt: skip


def configuration(plan: Plan, certificates: Path, events: Path, mount_targets: bool = True) -> dict[str, Any]:
    """What the server needs of the plan, as JSON values.

    Args:
        mount_targets: whether it answers on their ports; not where an NFS server does
        events: the directory where it writes down what the lab wants to know, see `Events`
    """
    return {
        "region": plan.region,
        "account": plan.account,
        "certificates": str(certificates),
        "events": str(events),
        "groups": {group.aws_name: group.arn for group in plan.groups},
        "secrets": [{"name": secret.name, "arn": secret.arn} for secret in plan.secrets],
        "objects": [
            {"bucket": item.bucket, "key": item.key, "content": base64.b64encode(item.content).decode()}
            for item in plan.objects
        ],
        "roles": {name: list(statements) for name, statements in plan.roles.items()},
        "s3_endpoint": list(plan.s3_policy),
        "buckets": {name: list(statements) for name, statements in plan.bucket_policies.items()},
        "endpoints": {endpoint.name: list(endpoint.policy) for endpoint in plan.endpoints},
        "mount_targets": [str(target.address) for target in plan.mount_targets if mount_targets],
    }


def give_secret(directory: Path, arn: str, value: str) -> None:
    """Do what somebody of the account does with `aws secretsmanager create-secret` or `put-secret-value`.

    Args:
        directory: that of the configuration
    """
    file = directory / OWN_SECRETS
    values = json.loads(file.read_text()) if file.exists() else {}
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(values | {arn: value}))
    new.replace(file)


def request_of(environ: Mapping[str, Any], body: bytes, arns: Mapping[str, str]) -> tuple[str, str, str]:
    """Who asks for what: the access key's id, the IAM action, the resource's ARN (`*` where none is known).

    Args:
        arns: the ARN of a secret or an Auto Scaling group by its name
    """
    authorization = environ.get("HTTP_AUTHORIZATION", "")
    _, _, scope = authorization.partition("Credential=")
    key, _, _, signed = ([*scope.split(",")[0].split("/"), "", "", "", ""])[:4]
    service = IAM_PREFIXES.get(signed, signed)
    if CBOR_OPERATION in environ.get("PATH_INFO", ""):
        return key, f"{service}:{environ['PATH_INFO'].rpartition('/')[2]}", "*"
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        action = f"{service}:{target.rpartition('.')[2]}"
        identifier = json.loads(body or b"{}").get("SecretId", "")
        return key, action, arns.get(identifier, identifier) or "*"
    host = environ.get("HTTP_HOST", "").partition(":")[0]
    if service == "s3" or ".s3." in host or host.startswith("s3."):
        bucket, dot, _ = host.partition(".s3.")
        path = environ["PATH_INFO"].lstrip("/")
        verb = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
        action = verb.get(environ["REQUEST_METHOD"], environ["REQUEST_METHOD"])
        return key, f"s3:{action}", f"arn:aws:s3:::{f'{bucket}/{path}' if dot else path}"
    form = parse_qs(body.decode(errors="replace"))
    (action,), (group,) = form.get("Action", ["?"]), form.get("AutoScalingGroupName", [""])
    # Of what only describes, AWS's policies cannot name the resource.
    resource = "" if action.startswith("Describe") else arns.get(group, group)
    return key, f"{service}:{action}", resource or "*"


def bucket_of(resource: str) -> str:
    """The bucket in the ARN of an object or a bucket."""
    return resource.removeprefix("arn:aws:s3:::").partition("/")[0]


def condition_keys(
    environ: Mapping[str, Any], action: str, body: bytes, account: str | None
) -> dict[str, str]:
    """What a request has of `lab.aws.iam.KEYS`.

    Args:
        account: of whoever asks; None for nobody in particular
    """
    keys = {"aws:SecureTransport": "true"}  # nothing else is served
    if account is not None:
        keys["aws:PrincipalAccount"] = account
    if action == "cloudwatch:PutMetricData":
        from botocore.parsers import (
            RpcV2CBORParser,
        )  # most of what the lab's commands would load with this module

        if CBOR_OPERATION in environ.get("PATH_INFO", ""):
            parser = RpcV2CBORParser()
            keys["cloudwatch:namespace"] = parser.parse_data_item(
                parser.get_peekable_stream_from_bytes(body)
            )["Namespace"]
        elif "HTTP_X_AMZ_TARGET" in environ:
            keys["cloudwatch:namespace"] = json.loads(body)["Namespace"]
        else:
            (keys["cloudwatch:namespace"],) = parse_qs(body.decode())["Namespace"]
    return keys


class Events:
    """WSGI middleware that writes down what the lab wants to know of its nodes.

    Metrics that they publish go to a file of JSON lines, besides to moto. CompleteLifecycleAction, which moto
    does not know, is answered here and leaves a file named after the instance. The Auto Scaling group is described by
    a file that the lab writes.
    """

    def __init__(self, application: Wsgi, directory: Path, metrics: list[Any]) -> None:
        """`metrics` is the list that moto's CloudWatch appends to, a MetricDatum each; emptied here."""
        self.application = application
        self.directory = directory
        self.metrics = metrics
        (directory / COMPLETED).mkdir(parents=True, exist_ok=True)

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        _, action, _ = request_of(environ, body, {})
        if action == "autoscaling:CompleteLifecycleAction":
            (instance,) = parse_qs(body.decode())["InstanceId"]
            (self.directory / COMPLETED / instance).touch()
            return answer_of(respond, "CompleteLifecycleAction", {})
        if action in ("autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"):
            file, name = self.directory / GROUP, action.partition(":")[2]
            groups = [json.loads(file.read_text())] if file.exists() else []
            return answer_of(respond, name, description(name, parse_qs(body.decode()), groups))
        answered = self.application(environ, respond)
        if action == "cloudwatch:PutMetricData":
            self._write_metrics()
        return answered

    def _write_metrics(self) -> None:
        with (self.directory / METRICS).open("a") as file:
            while self.metrics:
                datum = self.metrics.pop(0)
                line = {
                    "time": time.time(),
                    "namespace": datum.namespace,
                    "name": datum.name,
                    "dimensions": {one.name: one.value for one in datum.dimensions},
                    "value": datum.value,
                }
                file.write(json.dumps(line) + "\n")


def description(
    action: str, form: Mapping[str, Sequence[str]], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The answer to DescribeAutoScalingGroups, by tags, or DescribeScalingActivities, of one group.

    Args:
        form: the request
        groups: as `lab.cluster.fleet.described` has them, with name and tags

    Raises:
        ValueError: for a filter that it does not know
    """
    if action == "DescribeScalingActivities":
        (name,) = form["AutoScalingGroupName"]
        activities = [
            {
                "ActivityId": f"{name}-{number}",
                "AutoScalingGroupName": name,
                "Description": f"Launching a new EC2 instance.  Status Reason: {activity['text']}",
                "Cause": "an instance was started in response to a difference between desired and actual capacity.",
                "StartTime": activity["time"],
                "StatusCode": activity["status"],
                "StatusMessage": activity["text"],
            }
            for group in groups
            if group["name"] == name
            for number, activity in enumerate(group["activities"])
        ]
        return {"Activities": activities[: int(form.get("MaxRecords", ["100"])[0])]}
    wanted: dict[str, str] = {}
    for key, (value,) in form.items():
        if key in ("Action", "Version"):
            continue
        number = key.split(".")[2] if key.startswith("Filters.member.") else ""
        (named,) = form.get(f"Filters.member.{number}.Name", [""])
        if not named.startswith("tag:"):
            raise ValueError(f"the lab describes groups by their tags, not by {key}")
        if key == f"Filters.member.{number}.Values.member.1":
            wanted[named.removeprefix("tag:")] = value
    return {
        "AutoScalingGroups": [
            {
                "AutoScalingGroupName": group["name"],
                "MinSize": group["minimum"],
                "MaxSize": group["maximum"],
                "DesiredCapacity": group["desired"],
                "Instances": [
                    {"InstanceId": instance["id"], "LifecycleState": instance["state"]}
                    for instance in group["instances"]
                ],
            }
            for group in groups
            if wanted.items() <= group["tags"].items()
        ]
    }


def answer_of(respond: Callable[..., Any], action: str, result: Mapping[str, Any]) -> Iterable[bytes]:
    """An answer of EC2 Auto Scaling, in the protocol that AWS calls query."""
    namespace = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
    body = f"<{action}Result>{as_xml(result)}</{action}Result>"
    answer = f'<{action}Response xmlns="{namespace}">{body}</{action}Response>'.encode()
    respond("200 OK", [("Content-Type", "text/xml"), ("Content-Length", str(len(answer)))])
    return [answer]


def as_xml(value: Any) -> str:
    """Mappings, lists and texts as AWS writes them."""
    if isinstance(value, Mapping):
        return "".join(f"<{key}>{as_xml(item)}</{key}>" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"<member>{as_xml(item)}</member>" for item in value)
    return escape(str(value))


class Guard:
    """WSGI middleware that refuses what the IAM policies do not allow.

    Attributes:
        settings: those of `configuration`; whoever changes them gives it others
    """

    def __init__(self, application: Wsgi, settings: Mapping[str, Any]) -> None:
        self.application = application
        self.settings = settings

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        settings = self.settings
        arns = {secret["name"]: secret["arn"] for secret in settings["secrets"]} | settings["groups"]
        key, action, resource = request_of(environ, body, arns)
        keys = condition_keys(environ, action, body, settings["account"] if key else None)
        way = settings["endpoints"].get(environ.get("HTTP_HOST", "").partition(":")[0])
        own = settings["roles"].get(key, [])
        if action.startswith("s3:"):
            way = settings["s3_endpoint"]
            # In one account either the role or the bucket allows it, and neither may forbid it.
            own = [*own, *settings["buckets"].get(bucket_of(resource), [])]
        # And so has the policy of the endpoint by which the request comes, if it comes by one.
        permitted = all(
            iam.allowed(statements, action, resource, keys)
            for statements in (own, way)
            if statements is not None
        )
        print(f"{key or 'nobody'} {action} {resource}: {'allowed' if permitted else 'DENIED'}", flush=True)
        if permitted:
            return self.application(environ, respond)
        message = f"{key or 'nobody'} is not authorized to perform: {action} on resource: {resource}"
        if action.startswith("s3:"):
            content, kind = (
                f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>",
                "text/xml",
            )
        else:
            content = json.dumps({"__type": "AccessDeniedException", "message": message})
            kind = "application/x-amz-json-1.1"
        status = "403 Forbidden" if action.startswith("s3:") else "400 Bad Request"
        respond(status, [("Content-Type", kind), ("Content-Length", str(len(content.encode())))])
        return [content.encode()]


class Throttle:
    """WSGI middleware that refuses everything while a file is there, in the words of each protocol that AWS uses."""

    def __init__(self, application: Wsgi, file: Path) -> None:
        self.application = application
        self.file = file

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if not self.file.exists():
            return self.application(environ, respond)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        key, action, resource = request_of(environ, body, {})
        print(f"{key or 'nobody'} {action} {resource}: throttled", flush=True)
        status, kind, content = _too_often(environ, action)
        respond(status, [("Content-Type", kind), ("Content-Length", str(len(content)))])
        return [content]


def _too_often(environ: Mapping[str, Any], action: str) -> tuple[str, str, bytes]:
    """AWS's refusal of a request that comes too often: status, type of content, content."""
    error = {"__type": "ThrottlingException", "message": "Rate exceeded"}
    if action.startswith("s3:"):
        content = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        return "503 Slow Down", "text/xml", content.encode()
    if CBOR_OPERATION in environ.get("PATH_INFO", ""):
        texts = [text.encode() for pair in error.items() for text in pair]
        # A map of two pairs of texts that are shorter than 24 bytes each.
        return (
            "400 Bad Request",
            "application/cbor",
            b"\xa2" + b"".join(bytes([0x60 + len(text)]) + text for text in texts),
        )
    if "HTTP_X_AMZ_TARGET" in environ:
        return "400 Bad Request", "application/x-amz-json-1.1", json.dumps(error).encode()
    content = (
        "<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code>"
        f"<Message>{error['message']}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
    )
    return "400 Bad Request", "text/xml", content.encode()


class Region:
    """What moto holds of what the program has made, brought up to its configuration file's words."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from moto.backends import get_backend

        account, region = settings["account"], settings["region"]
        self.secrets = get_backend("secretsmanager")[account][region]
        self.s3 = get_backend("s3")[account]["aws"]
        self.metrics = get_backend("cloudwatch")[account][region].metric_data
        self.region = region
        self.present: Mapping[str, Any] = {"secrets": [], "objects": []}
        self.served: list[str] = []  # nobody gets to one that is gone: its address is

    def become(self, settings: Mapping[str, Any]) -> None:
        """Make and delete secrets, buckets, objects and mount targets as the settings differ from the former ones."""
        before, self.present = self.present, settings
        for secret in _only_in(before["secrets"], settings["secrets"]):
            self.secrets.secrets.pop(secret["name"])
        for secret in _only_in(settings["secrets"], before["secrets"]):
            self._make(secret["name"], secret["arn"], None)
        for item in _only_in(before["objects"], settings["objects"]):
            self.s3.delete_object(item["bucket"], item["key"])
        for item in _only_in(settings["objects"], before["objects"]):
            if item["bucket"] not in self.s3.buckets:
                self.s3.create_bucket(item["bucket"], self.region)
            self.s3.put_object(item["bucket"], item["key"], base64.b64decode(item["content"]))
        for address in _only_in(settings["mount_targets"], self.served):
            self.served.append(address)
            threading.Thread(target=_accept, args=(address,), daemon=True).start()

    def give(self, values: Mapping[str, str]) -> None:
        """Make the account's own secrets those of these ARNs, with these values."""
        for arn, value in values.items():
            # AWS puts six more characters behind a secret's name.
            name = arn.rpartition(":secret:")[2].rpartition("-")[0]
            self.secrets.secrets.pop(name)
            self._make(name, arn, value)

    def _make(self, name: str, arn: str, value: str | None) -> None:
        self.secrets.create_secret(
            name=name, secret_string=value, secret_binary=None, description=None, tags=[],
            kms_key_id=None, client_request_token=None, replica_regions=[], force_overwrite=False,
        )  # fmt: skip
        self.secrets.secrets[name].arn = arn


def _only_in(some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    return [one for one in some if one not in others]


def serve(file: Path) -> None:
    """Serve for ever, always by the configuration that the file holds at the moment."""
    settings = json.loads(file.read_text())
    os.environ["MOTO_ACCOUNT_ID"] = settings["account"]  # read when moto is imported
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import run_simple

    region = Region(settings)
    certificates = Path(settings["certificates"])
    moto = DomainDispatcherApplication(create_backend_app)
    events = Path(settings["events"])
    guard = Guard(Events(moto, events, region.metrics), settings)
    threading.Thread(target=_follow, args=(file, region, guard), daemon=True).start()
    run_simple(
        "0.0.0.0",  # noqa: S104  every address of this namespace is one of AWS's
        HTTPS_PORT,
        Throttle(guard, events / THROTTLED),
        threaded=True,
        ssl_context=(str(certificates / "api.pem"), str(certificates / "api.key")),
        request_handler=MotoRequestHandler,
    )


def _follow(file: Path, region: Region, guard: Guard) -> None:
    """Read the configuration, and the account's own secrets, again whenever that is another file: whoever changes one
    renames the new one over it.
    """

    def configure(settings: Mapping[str, Any]) -> None:
        region.become(settings)
        guard.settings = settings

    seen: dict[Path, int] = {}  # whoever read them first may have read older ones
    while True:
        for path, use in ((file, configure), (file.with_name(OWN_SECRETS), region.give)):
            if path.exists() and (now := path.stat().st_mtime_ns) != seen.get(path):
                seen[path] = now
                use(json.loads(path.read_text()))
        time.sleep(RELOAD_SECONDS)


def _accept(address: str) -> None:
    """A mount target's port: that it answers is all that the image's mount.nfs4 wants to know."""
    with socket.create_server((address, NFS_PORT)) as server:
        while True:
            server.accept()[0].close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
