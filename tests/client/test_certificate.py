"""A WebUI with HTTPS: the client takes the certificate that the master has, and no other."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from oq_cluster.certificate import ON_THE_MASTER
from oq_cluster.errors import ClientError

from components import facts
from tests.certificates import certificate, key, private
from tests.client.conftest import OUTPUTS, World
from tests.client.stand_ins import served

AUTHORITY, KEY = key(), key()
CAT = f"cat {facts.WEBUI_CERTIFICATE}"


@dataclass
class Https:
    """A cluster whose WebUI speaks HTTPS."""

    world: World
    context: ssl.SSLContext

    def show(self, pem: str) -> None:
        """Show a certificate and its key to who connects from now on."""
        file = self.world.path / "pair.pem"
        file.write_text(pem)
        self.context.load_cert_chain(file)

    def asked_master(self) -> int:
        """How often the master was asked for its certificate."""
        lines = [request["Parameters"]["commands"] for request in self.world.aws.requests("SendCommand")]
        return lines.count([CAT])


@pytest.fixture
def https(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Https]:
    found = Https(world, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    leaf = certificate(KEY, AUTHORITY)
    found.show(leaf + private(KEY))
    # With an authority behind it, as a user's certificate has.
    world.aws.answers[CAT] = (0, leaf + certificate(AUTHORITY, AUTHORITY, ca=True))
    world.webui.login = False
    with served(world.webui, found.context) as port:
        monkeypatch.setenv("STAND_IN_PORT", str(port))
        outputs = world.path / "https.json"
        outputs.write_text(json.dumps(OUTPUTS | {"webUiUrl": "https://10.20.0.10:8800"}))
        world.oq("use", "--outputs", outputs)
        yield found


def test_the_certificate_is_where_the_master_has_it() -> None:
    assert ON_THE_MASTER == facts.WEBUI_CERTIFICATE


def test_the_master_is_asked_for_its_certificate_once_and_the_name_in_it_does_not_matter(
    https: Https,
) -> None:
    """The port forward ends at localhost, and the certificate is openquake.example.org's."""
    https.world.oq("list")
    https.world.oq("list")
    assert https.asked_master() == 1


def test_a_new_certificate_of_the_masters_is_taken_for_the_old_one(https: Https) -> None:
    https.world.oq("list")
    new = key()
    leaf = certificate(new, AUTHORITY)
    https.show(leaf + private(new))
    https.world.aws.answers[CAT] = (0, leaf)
    https.world.oq("list")
    assert https.asked_master() == 2


@pytest.mark.parametrize("known", [True, False])
def test_another_certificate_is_refused_before_anything_is_sent(https: Https, known: bool) -> None:
    """Also one of the same authority, for the same name."""
    if known:
        https.world.oq("list")
    other = key()
    https.show(certificate(other, AUTHORITY) + private(other))
    https.world.webui.asked.clear()
    https.world.oq("list", status=1)
    assert "what answers is not this cluster's WebUI" in https.world.errors
    assert "certificate" in https.world.errors
    assert https.world.webui.asked == []


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_certificate_that_has_expired_is_refused_though_it_is_the_masters(
    https: Https, line_end: str
) -> None:
    leaf = certificate(KEY, AUTHORITY, begins=-9, days=8)
    https.show(leaf + private(KEY))
    https.world.aws.answers[CAT] = (0, leaf.replace("\n", line_end))
    https.world.oq("list", status=1)
    assert "certificate has expired" in https.world.errors
    assert "oq-node status" in https.world.errors


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])  # that of Windows PowerShell 5
def test_who_may_not_ask_the_master_is_given_the_certificate_as_a_file(
    https: Https, tmp_path: Path, encoding: str
) -> None:
    printed = https.world.oq("certificate")
    assert printed.count("BEGIN CERTIFICATE") == 1  # the server's own
    file = tmp_path / "webui.pem"
    file.write_text(printed, encoding)
    for kept in (tmp_path / "config/oq-cluster").glob("*.pem"):
        kept.unlink()
    https.world.aws.answers[CAT] = (1, "")
    https.world.oq("list", status=1)
    assert "no certificate for its WebUI yet" in https.world.errors
    https.world.oq("use", "--outputs", tmp_path / "https.json", "--certificate", file)
    https.world.oq("list")


def test_a_user_without_run_command_is_told_where_a_certificate_comes_from(
    https: Https, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise ClientError("your AWS identity may not do this")

    monkeypatch.setattr("oq_cluster.session_manager.SessionManager.run", denied)
    https.world.oq("list", status=1)
    assert "your AWS identity may not do this" in https.world.errors
    assert "oq-cluster certificate > webui.pem" in https.world.errors
    assert "--certificate webui.pem" in https.world.errors


@pytest.mark.parametrize("text", ["", "a private key", None])
def test_a_file_without_a_certificate_is_refused(https: Https, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "webui.pem"
    if text is not None:
        file.write_text(text)
    https.world.oq("use", "--outputs", tmp_path / "https.json", "--certificate", file, status=2)
    assert str(file) in https.world.errors


def test_a_connection_that_breaks_is_no_reason_to_ask_for_the_certificate_again(https: Https) -> None:
    https.world.oq("list")
    before = https.asked_master()
    breaks = [True, True]
    https.world.webui.faults.append(lambda _method, _path: bool(breaks) and breaks.pop())
    https.world.oq("list")
    assert "trying again" in https.world.errors
    assert https.asked_master() == before


def test_a_cluster_with_plain_http_has_no_certificate_to_print(world: World) -> None:
    world.oq("certificate", status=1)
    assert "webuiCertificate" in world.errors
