"""Clients of AWS's services that have credentials."""

from __future__ import annotations

from typing import Any


def client(service: str, region: str) -> Any:
    """boto3's client of a service, with the credentials of this machine.

    boto3 asks the metadata service for them when a client is made, once and for a second. A client that got none never
    asks again: all of its calls fail for as long as its process lives.

    Raises:
        ConnectionError: there are no credentials now; there may be some later.
    """
    import boto3

    session = boto3.Session(region_name=region)
    if session.get_credentials() is None:
        raise ConnectionError("the metadata service of this machine gives no credentials for AWS")
    return session.client(service)
