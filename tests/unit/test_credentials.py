"""Clients of AWS's services on a node."""

from __future__ import annotations

import pytest
from oq_celery import credentials

NONE = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in NONE.items():
        monkeypatch.setenv(name, value)


def test_no_client_is_made_that_has_no_credentials_and_asks_for_none_again() -> None:
    with pytest.raises(ConnectionError, match="gives no credentials"):
        credentials.client("cloudwatch", "eu-central-1")


def test_a_client_has_the_credentials_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    client = credentials.client("cloudwatch", "eu-central-1")
    assert client.meta.region_name == "eu-central-1"
    assert client._request_signer._credentials.access_key == "x"
