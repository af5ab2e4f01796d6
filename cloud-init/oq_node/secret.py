"""One of the cluster's secrets: `get` prints it, `ensure` makes it first where it has no value yet.

    secret.py get|ensure REGION SECRET [NAME=BYTES…]

A program of its own because it needs boto3: the master runs it with Debian's python3-boto3, a worker with the
engine's. The value is printed to a pipe of oq-node's and is never an argument, a file or a log line.
"""

from __future__ import annotations

import json
import secrets
import sys
from typing import Any


def read(client: Any, secret_id: str) -> str | None:
    """The secret's value; None while it has none."""
    try:
        return str(client.get_secret_value(SecretId=secret_id)["SecretString"])
    except client.exceptions.ResourceNotFoundException:
        return None


def main() -> None:
    """Print the secret's JSON; exit code 3 when it has no value (yet)."""
    import boto3

    command, region, secret_id, *names = sys.argv[1:]
    client = boto3.client("secretsmanager", region_name=region)
    value = read(client, secret_id)
    if value is None and command == "ensure":
        # Letters and digits only, so that they need no quoting in a configuration file or a URL.
        sizes = dict(name.split("=") for name in names)
        value = json.dumps({name: secrets.token_hex(int(size)) for name, size in sizes.items()})
        client.put_secret_value(SecretId=secret_id, SecretString=value)
    if value is None:
        raise SystemExit(3)
    print(value)


main()
