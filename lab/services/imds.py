"""Instance metadata, version 2, at 169.254.169.254 for every instance of the lab.

One server in the router's namespace answers them all and knows them by their addresses. What it serves is a
file per instance, read anew for each request, so that metadata can change while an instance runs. Run as
`python -m lab.services.imds DIRECTORY`.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab.aws.cloud import Template
from lab.linux.network import IMDS, mac_address

TOKEN_PATH = "/latest/api/token"  # noqa: S105  the path, not a token


LIFECYCLE_STATE = "autoscaling/target-lifecycle-state"
SPOT_ACTION = "spot/instance-action"


def metadata(
    template: Template, address: IPv4Address, subnet: tuple[str, str], instance_id: str, zone: str
) -> dict[str, Any]:
    """The tree below a version of the metadata service, in AWS's names, for one instance.

    What comes and goes while it runs is not there yet: see `announce`.

    Args:
        subnet: its id and its CIDR
    """
    region = zone[:-1]
    hostname = f"ip-{str(address).replace('.', '-')}.{region}.compute.internal"
    mac = mac_address(address)
    now = datetime.now(UTC)
    credentials = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        # The key's id is how the lab's AWS API knows the role; signatures are not verified there.
        "AccessKeyId": template.role,
        "SecretAccessKey": secrets.token_hex(20),
        "Token": secrets.token_hex(32),
        "Expiration": f"{now + timedelta(days=365):%Y-%m-%dT%H:%M:%SZ}",
    }
    return {
        "meta-data": {
            "ami-id": template.image_id,
            "ami-launch-index": "0",
            "hostname": hostname,
            "iam": {
                "info": json.dumps({"Code": "Success", "InstanceProfileArn": template.role}),
                "security-credentials": {template.role: json.dumps(credentials)},
            },
            "instance-id": instance_id,
            "instance-life-cycle": "on-demand",
            "instance-type": template.instance_type,
            "local-hostname": hostname,
            "local-ipv4": str(address),
            "mac": mac,
            "network": {
                "interfaces": {
                    "macs": {
                        mac: {
                            "device-number": "0",
                            "local-hostname": hostname,
                            "local-ipv4s": str(address),
                            "mac": mac,
                            "subnet-id": subnet[0],
                            "subnet-ipv4-cidr-block": subnet[1],
                        }
                    }
                }
            },
            "placement": {"availability-zone": zone, "region": region},
            "services": {"domain": "amazonaws.com", "partition": "aws"},
            **({"tags": {"instance": dict(template.metadata_tags)}} if template.metadata_tags else {}),
        },
        "dynamic": {
            "instance-identity": {
                "document": json.dumps(
                    {
                        "availabilityZone": zone,
                        "imageId": template.image_id,
                        "instanceId": instance_id,
                        "instanceType": template.instance_type,
                        "privateIp": str(address),
                        "region": region,
                    }
                )
            }
        },
        "user-data": base64.b64encode(template.user_data).decode(),
    }


def publish(directory: Path, address: IPv4Address, tree: Mapping[str, Any]) -> None:
    """Let the server answer the instance at `address` with this tree."""
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / f"{address}.new"
    written.write_text(json.dumps(tree))
    written.rename(directory / f"{address}.json")


def announce(directory: Path, address: IPv4Address, path: str, value: str) -> None:
    """Let the instance at `address` find a value at a path below its meta-data from now on."""
    tree = json.loads((directory / f"{address}.json").read_text())
    *above, name = path.split("/")
    place = tree["meta-data"]
    for word in above:
        place = place.setdefault(word, {})
    place[name] = value
    publish(directory, address, tree)


def lookup(tree: Mapping[str, Any], path: str) -> bytes | None:
    """What AWS answers for a path such as `latest/meta-data/placement/`; None if there is nothing.

    A node of the tree is answered with the names below it, those that have more below them ending in a slash.
    """
    words = [word for word in path.split("/") if word][1:]
    if words == ["user-data"]:
        return base64.b64decode(tree["user-data"])
    found: Any = tree
    for word in words:
        if not isinstance(found, dict) or word not in found:
            return None
        found = found[word]
    if isinstance(found, str):
        return found.encode()
    return "\n".join(name + "/" * isinstance(below, dict) for name, below in found.items()).encode()


class Handler(BaseHTTPRequestHandler):
    """GET with a token that a PUT has given out; nothing without, as where IMDSv2 is required."""

    directory: Path
    tokens: set[str]

    def do_PUT(self) -> None:
        """Give out a token."""
        if self.path != TOKEN_PATH:
            return self._answer(404)
        if "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return self._answer(400)
        token = secrets.token_urlsafe(40)
        self.tokens.add(token)
        return self._answer(200, token.encode())

    def do_GET(self) -> None:
        """Answer one path of the tree of the instance that asks."""
        if self.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return self._answer(401)
        source = self.directory / f"{self.client_address[0]}.json"
        body = lookup(json.loads(source.read_text()), self.path) if source.exists() else None
        return self._answer(404) if body is None else self._answer(200, body)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(body)


def serve(directory: Path) -> None:
    """Serve for ever."""
    Handler.directory, Handler.tokens = directory, set()
    ThreadingHTTPServer((str(IMDS), 80), Handler).serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
