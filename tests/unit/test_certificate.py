"""The certificate of the WebUI, as the master prepares it; that nginx shows it is shown by the lab's tests."""

from __future__ import annotations

import importlib
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import boto3
import pytest
from botocore.stub import Stubber
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from components import facts
from components.settings import OWN_CERTIFICATE
from tests.certificates import certificate, key, private

ENGINE = Path(__file__).parent.parent.parent / "engine"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:webui-AbC123"
NAMES = ["localhost", "127.0.0.1", "::1", "10.20.0.10", "ip-10-20-0-10.eu-central-1.compute.internal"]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ENGINE)
    return importlib.import_module("oq_webui.certificate")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The directory of what is served, and the file that keeps a certificate of our own."""
    return tmp_path / "tls", tmp_path / "opt" / "pair.pem"


KEY, AUTHORITY = key(), key()
INTERMEDIATE = certificate(AUTHORITY, key(), "an authority", ca=True)
GOOD = certificate(KEY, AUTHORITY) + INTERMEDIATE + private(KEY)
OTHER = certificate(KEY, AUTHORITY) + INTERMEDIATE + private(KEY)  # as an authority gives it in its place


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_certificate_of_our_own_is_good_for_the_masters_names_and_nobody_elses_authority(
    module: ModuleType, places: tuple[Path, Path]
) -> None:
    directory, kept = places
    module.renew(module.OWN, NAMES, directory, kept)
    found = x509.load_pem_x509_certificate((directory / "certificate.pem").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAMES[0], NAMES[4]]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == NAMES[1:4]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.not_valid_after_utc - datetime.now(UTC) < timedelta(days=module.LIFE_DAYS)
    assert {*module._spelt(module.names_of(directory / "certificate.pem"))} == {*NAMES}


def test_only_root_can_read_the_private_key_and_everybody_the_certificate(
    module: ModuleType, places: tuple[Path, Path]
) -> None:
    directory, kept = places
    for source in (module.OWN, module.OWN):  # the second time over what is there
        module.renew(source, NAMES, directory, kept)
        assert mode(directory / "pair.pem") == mode(kept) == 0o600
        assert mode(directory / "certificate.pem") == 0o644
        assert "PRIVATE KEY" in (directory / "pair.pem").read_text()
        assert "PRIVATE KEY" not in (directory / "certificate.pem").read_text()
    assert {file.name for file in directory.iterdir()} == {"pair.pem", "certificate.pem"}


def test_a_certificate_of_our_own_outlives_the_machine_until_it_ends_soon_or_the_names_are_others(
    module: ModuleType, places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, kept = places
    module.renew(module.OWN, NAMES, directory, kept)
    first = kept.read_text()
    module.renew(module.OWN, NAMES, tmp_path / "next master", kept)
    assert (tmp_path / "next master/pair.pem").read_text() == kept.read_text() == first
    module.renew(module.OWN, [*NAMES, "10.20.0.11"], directory, kept)
    assert (second := kept.read_text()) != first
    monkeypatch.setattr(module, "RENEW_DAYS", module.LIFE_DAYS + 1)
    module.renew(module.OWN, NAMES, directory, kept)
    assert kept.read_text() not in (first, second)


def test_what_is_kept_and_damaged_is_made_anew(module: ModuleType, places: tuple[Path, Path]) -> None:
    directory, kept = places
    kept.parent.mkdir()
    kept.write_text("half a certif")
    module.renew(module.OWN, NAMES, directory, kept)
    assert module.checked(kept.read_text()) == kept.read_text()


def test_a_users_certificate_is_put_in_order_for_nginx(module: ModuleType) -> None:
    leaf = certificate(KEY, AUTHORITY)
    unordered = f"Bag Attributes\n  friendlyName: x\n{private(KEY)}\nsubject=x\n{leaf}{INTERMEDIATE}"
    assert module.checked(unordered) == leaf + INTERMEDIATE + private(KEY)


def test_its_names_are_those_by_which_the_webui_may_be_asked(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_text(GOOD)
    # Django's way to write a name with anything before it.
    assert module.names_of(tmp_path / "certificate.pem") == ["openquake.example.org", ".x.org", "10.20.0.10"]


SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505  too short, as it is meant
BAD = {
    "nothing": ("", "holds 0 certificates and 0 private keys in PEM"),
    "no PEM": ("MIIBszCCAVmgAwIBAgIUdpxj", "holds 0 certificates and 0 private keys"),
    "no key": (certificate(KEY, AUTHORITY), "holds 1 certificates and 0 private keys"),
    "two keys": (GOOD + private(key()), "holds 2 certificates and 2 private keys"),
    "no certificate": (private(KEY), "holds 0 certificates and 1 private keys"),
    "another key": (certificate(KEY, AUTHORITY) + private(key()), "not that of the first certificate"),
    "the authority first": (INTERMEDIATE + GOOD, "not that of the first certificate"),
    "a passphrase": (certificate(KEY, AUTHORITY) + private(KEY, b"x"), "passphrase: openssl pkey"),
    "expired": (certificate(KEY, AUTHORITY, begins=-9, days=8) + private(KEY), "certificate has expired"),
    "too early": (certificate(KEY, AUTHORITY, begins=2) + private(KEY), "certificate is not yet valid"),
    "damaged": (GOOD.replace("MII", "XXX", 1), "OpenSSL cannot use it"),
    "a short key": (
        certificate(SMALL, AUTHORITY) + private(SMALL),
        "OpenSSL cannot use it: ee key too small",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_certificate_is_said_with_the_remedy_and_the_former_one_stays(
    module: ModuleType, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    directory, kept = places
    pem, words = BAD[bad]
    monkeypatch.setattr(module, "_from_secret", lambda _arn: pem)
    with pytest.raises(module.CertificateError, match=words):
        module.renew(ARN, NAMES, directory, kept)
    assert not (directory / "pair.pem").exists()  # nothing else is served in its place
    (problem,) = module.problems(directory, "localhost", 1)
    assert words in problem
    assert f"put-secret-value --secret-id {ARN} " in problem
    assert "sudo systemctl restart openquake-certificate" in problem
    assert "PRIVATE KEY" not in problem
    monkeypatch.setattr(module, "_from_secret", lambda _arn: GOOD)
    module.renew(ARN, NAMES, directory, kept)
    assert (directory / "pair.pem").read_text() == GOOD
    assert words not in module.problems(directory, "localhost", 1)[0]  # where nothing listens
    monkeypatch.setattr(module, "_from_secret", lambda _arn: pem)
    module.renew(ARN, NAMES, directory, kept)
    assert (directory / "pair.pem").read_text() == GOOD
    assert words in module.problems(directory, "localhost", 1)[0]
    assert not kept.exists()  # a user's key is in no volume


@pytest.fixture
def secrets_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    client = boto3.client("secretsmanager", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
    monkeypatch.setattr(boto3, "client", lambda _service, **_options: client)
    with Stubber(client) as stubber:
        yield stubber


def test_a_users_certificate_comes_out_of_the_secret(
    module: ModuleType, places: tuple[Path, Path], secrets_manager: Stubber
) -> None:
    secrets_manager.add_response("get_secret_value", {"SecretString": GOOD}, {"SecretId": ARN})
    module.renew(ARN, NAMES, *places)
    assert (places[0] / "pair.pem").read_text() == GOOD


def test_while_aws_does_not_answer_the_former_certificate_stays_and_nothing_is_wrong(
    module: ModuleType, places: tuple[Path, Path], secrets_manager: Stubber
) -> None:
    secrets_manager.add_client_error("get_secret_value", "InternalServiceError", http_status_code=500)
    with pytest.raises(module.CertificateError):  # there is none
        module.renew(ARN, NAMES, *places)
    secrets_manager.add_response("get_secret_value", {"SecretString": GOOD}, {"SecretId": ARN})
    module.renew(ARN, NAMES, *places)
    for code, status in (("InternalServiceError", 500), ("ThrottlingException", 400)):
        secrets_manager.add_client_error("get_secret_value", code, http_status_code=status)
        module.renew(ARN, NAMES, *places)
        assert module.prepared(places[0]) == GOOD
        assert not (places[0] / "problem").exists()
    secrets_manager.add_client_error("get_secret_value", "AccessDeniedException", http_status_code=400)
    module.renew(ARN, NAMES, *places)
    assert "AccessDenied" in (places[0] / "problem").read_text()


def test_a_secret_that_cannot_be_read_or_holds_no_text_is_said(
    module: ModuleType, places: tuple[Path, Path], secrets_manager: Stubber
) -> None:
    secrets_manager.add_client_error(
        "get_secret_value", "ResourceNotFoundException", "no value for AWSCURRENT"
    )
    with pytest.raises(module.CertificateError, match=f"{ARN}: it cannot be read: .*no value for AWSCURRENT"):
        module.renew(ARN, NAMES, *places)
    secrets_manager.add_response("get_secret_value", {"SecretBinary": b"x"}, {"SecretId": ARN})
    with pytest.raises(module.CertificateError, match="holds 0 certificates"):
        module.renew(ARN, NAMES, *places)


@pytest.fixture
def port(places: tuple[Path, Path], module: ModuleType) -> Iterator[int]:
    """Where a server shows the certificate that has been renewed."""
    module.renew(module.OWN, NAMES, *places)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(places[0] / "pair.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_what_is_shown_on_the_port_is_compared_with_what_was_prepared(
    module: ModuleType, places: tuple[Path, Path], port: int
) -> None:
    directory, _ = places
    assert module.problems(directory, "127.0.0.1", port) == []
    (directory / "certificate.pem").write_text(GOOD)
    (problem,) = module.problems(directory, "127.0.0.1", port)
    assert "sudo systemctl restart openquake-certificate" in problem


def test_a_port_that_does_not_answer_by_tls_is_a_problem(
    module: ModuleType, places: tuple[Path, Path]
) -> None:
    module.renew(module.OWN, NAMES, *places)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # so that nobody else listens there meanwhile
        (problem,) = module.problems(places[0], "127.0.0.1", closed.getsockname()[1])
    assert "Connection refused" in problem


def test_the_command_of_the_unit_prepares_what_nginx_and_the_webui_are_given(
    module: ModuleType, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, kept = places
    words = ["renew-certificate", "--source", module.OWN, "--directory", str(directory), "--kept", str(kept)]
    monkeypatch.setattr(sys, "argv", ["oq-webui", *words, "10.20.0.10"])
    importlib.import_module("oq_webui.cli").main()
    given = {Path(path).name for path in (facts.WEBUI_PAIR, facts.WEBUI_CERTIFICATE)}
    assert {file.name for file in directory.iterdir()} == given
    shown = str(directory / Path(facts.WEBUI_CERTIFICATE).name)
    for kind, name in (("hostname", "localhost"), ("ip", "127.0.0.1"), ("ip", "10.20.0.10")):
        verify = ["openssl", "verify", "-x509_strict", "-CAfile", shown, f"-verify_{kind}", name, shown]
        subprocess.run(verify, check=True)


def test_a_timer_restarts_the_webui_for_another_certificate_and_for_no_other_reason(
    module: ModuleType, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, kept = places
    words = ["renew-certificate", "--source", ARN, "--directory", str(directory), "--kept", str(kept)]
    monkeypatch.setattr(sys, "argv", ["oq-webui", *words, "--restart", "10.20.0.10"])
    cli = importlib.import_module("oq_webui.cli")
    restarted: list[list[str]] = []
    # openssl, which subprocess runs too, is not asked about a user's own.
    monkeypatch.setattr(subprocess, "run", lambda command, **_: restarted.append(command))
    restart = [["systemctl", "restart", module.UNIT]]
    for secret, restarts in ((GOOD, restart), (GOOD, []), (OTHER, restart), ("no PEM", []), (OTHER, [])):
        monkeypatch.setattr(module, "_from_secret", lambda _, secret=secret: secret)
        cli.main()
        assert restarted == restarts, secret[:40]
        restarted.clear()
        assert (directory / "problem").exists() == (secret == "no PEM")
    assert module.prepared(directory) == module.checked(OTHER)


def test_the_program_and_the_engines_package_mean_the_same_by_their_words(module: ModuleType) -> None:
    """Neither may import the other."""
    assert module.OWN == OWN_CERTIFICATE
    assert f"{module.UNIT}.service" == facts.CERTIFICATE_UNIT
