"""The certificate of the WebUI and its private key: made here, or the user's own out of Secrets Manager.

Two files in one directory: `pair.pem`, which only root can read and systemd hands to nginx, and `certificate.pem`,
which is public. A third one, `problem`, says why they are not what they should be.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

OWN = "self"
"""Instead of the ARN of a secret: a certificate that this machine makes."""
PAIR, CERTIFICATE, PROBLEM = "pair.pem", "certificate.pem", "problem"
UNIT = "openquake-certificate"
# Apple's systems take no certificate of a longer life: https://support.apple.com/en-us/103769
LIFE_DAYS = 825
RENEW_DAYS = 90  # before its end
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\n?", re.DOTALL)
_CONNECT_SECONDS = 5
_REMEDY = (
    "; put what is right into the secret (aws secretsmanager put-secret-value --secret-id {0} --secret-string "
    f"file://both.pem), then on the master: sudo systemctl restart {UNIT}"
)


class CertificateError(Exception):
    """What is wrong with a certificate or its key, and what to do about it."""


class _LaterError(CertificateError):
    """It is not known, since AWS does not answer now."""


def renew(source: str, names: Sequence[str], directory: Path, kept: Path) -> None:
    """Put the certificate that a source has, and its key, into a directory.

    What is wrong with them goes into the file `problem`. Then the former ones stay, if there are any. They also stay,
    and nothing is wrong, while AWS does not answer: the next look is by night.

    Args:
        source: OWN, or the ARN of a secret.
        names: DNS names and addresses for which a certificate of our own has to be good.
        directory: where the WebUI and nginx find them.
        kept: the file that keeps a certificate of our own beyond this machine.

    Raises:
        CertificateError: there are no former ones.
    """
    directory.mkdir(parents=True, exist_ok=True)
    problem = directory / PROBLEM
    try:
        pair = own(names, kept) if source == OWN else checked(_from_secret(source))  # own makes no such error
    except CertificateError as error:
        if isinstance(error, _LaterError) and (directory / PAIR).exists():
            print(f"{source}: {error}: the former certificate stays")
            return
        words = f"{source}: {error}{_REMEDY.format(source)}"
        problem.write_text(f"{words}\n")
        if not (directory / PAIR).exists():
            raise CertificateError(words) from error
        return
    _write(directory / PAIR, pair, 0o600)
    _write(directory / CERTIFICATE, "".join(_blocks(pair, "CERTIFICATE")), 0o644)
    problem.unlink(missing_ok=True)


def prepared(directory: Path) -> str:
    """The certificates and the key that nginx is handed when it starts; nothing where there are none yet."""
    pair = directory / PAIR
    return pair.read_text() if pair.exists() else ""


def problems(directory: Path, host: str, port: int) -> list[str]:
    """Why nobody can be sure, or soon cannot, that what answers on a port is the WebUI; empty when all is well."""
    problem = directory / PROBLEM
    if problem.exists():
        return [f"the WebUI's certificate: {problem.read_text().strip()}"]
    try:
        context = trusting(directory / CERTIFICATE)
        with (
            socket.create_connection((host, port), _CONNECT_SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            return []
    except OSError as error:  # ssl.SSLError is one
        return [
            f"the WebUI's certificate: {_reason(error)} (after the certificate is renewed: "
            f"sudo systemctl restart {UNIT})"
        ]


def names_of(certificate: Path) -> list[str]:
    """The DNS names and addresses that a certificate is good for; those with an asterisk begin with a dot."""
    printed = _openssl("x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName")
    found = re.findall(r"(?:DNS|IP Address):([^\s,]+)", printed)
    return [name.removeprefix("*") for name in found]


def own(names: Sequence[str], kept: Path) -> str:
    """The certificate, with its key, that is kept in a file; a new one where there is none, or it ends soon.

    It signs itself and is no authority: who trusts it trusts nothing else.
    """
    if kept.exists():
        lasting = _succeeds("x509", "-in", str(kept), "-noout", "-checkend", str(RENEW_DAYS * 86400))
        if lasting and {*names} <= {*_spelt(names_of(kept))}:
            return kept.read_text()
    pair = _made(names)
    kept.parent.mkdir(parents=True, exist_ok=True)
    _write(kept, pair, 0o600)
    return pair


def _made(names: Sequence[str]) -> str:
    alternatives = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    with tempfile.TemporaryDirectory() as directory:  # which only its owner can enter
        key, certificate = Path(directory, "key"), Path(directory, "certificate")
        _openssl(
            "req", "-x509", "-config", "/dev/null", "-days", str(LIFE_DAYS), "-subj", "/CN=OpenQuake WebUI",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
            "-addext", f"subjectAltName={alternatives}", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=serverAuth",
            "-keyout", str(key), "-out", str(certificate),
        )  # fmt: skip
        return certificate.read_text() + key.read_text()


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def _spelt(names: Sequence[str]) -> list[str]:
    """Addresses as Python spells them; OpenSSL writes those of IPv6 otherwise."""
    return [str(ip_address(name)) if _is_address(name) else name for name in names]


def _from_secret(arn: str) -> str:
    """The value of a secret.

    Raises:
        CertificateError: AWS does not hand it over.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("secretsmanager", region_name=arn.split(":")[3])
        value = client.get_secret_value(SecretId=arn)
    except BotoCoreError as error:
        raise _LaterError(f"it cannot be read: {error}") from error
    except ClientError as error:
        answered = error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
        kind = CertificateError if answered and "Throttling" not in str(error) else _LaterError
        raise kind(f"it cannot be read: {error}") from error
    return str(value.get("SecretString", ""))


def checked(pem: str) -> str:
    """A certificate, the certificates between it and its authority, and its key, in this order.

    Raises:
        CertificateError: nginx could not show them, or nobody would believe it.
    """
    certificates, keys = _blocks(pem, "CERTIFICATE"), _blocks(pem, "PRIVATE KEY")
    if not certificates or len(keys) != 1:
        raise CertificateError(
            f"it holds {len(certificates)} certificates and {len(keys)} private keys in PEM, not a chain and one key: "
            "cat fullchain.pem privkey.pem > both.pem"
        )
    pair = "".join([*certificates, *keys])
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, PAIR)
        _write(file, pair, 0o600)
        _try(file)
    return pair


def _try(pair: Path) -> None:
    """Let a server with this pair speak to a client that trusts it, in memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(pair, password=_no_password)
    except _PasswordWanted:
        raise CertificateError(
            "its private key has a passphrase: openssl pkey -in privkey.pem -out plain.pem takes it away"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(
                "the private key is not that of the first certificate: the server's own certificate comes before those "
                "of its authorities, and its key last"
            ) from None
        raise CertificateError(f"OpenSSL cannot use it: {_reason(error)}") from None
    try:
        _shake_hands(server, trusting(pair))
    except ssl.SSLError as error:
        raise CertificateError(f"on {datetime.now(UTC):%Y-%m-%d} {_reason(error)}") from None


class _PasswordWanted(Exception):
    """The key is encrypted."""


def _no_password() -> str:
    raise _PasswordWanted


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[Any] = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:  # more than TLS 1.3 takes
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def trusting(certificate: Path) -> ssl.SSLContext:
    """A client that trusts the first certificate of a file, whatever name it has, for as long as it is valid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # though an authority has signed it
    context.load_verify_locations(cadata=_blocks(certificate.read_text(), "CERTIFICATE")[0])
    return context


def _blocks(pem: str, kind: str) -> list[str]:
    """The PEM blocks whose label ends in a word, such as CERTIFICATE or PRIVATE KEY, each with its line's end."""
    return [found[0].rstrip("\n") + "\n" for found in _BLOCK.finditer(pem) if found[1].endswith(kind)]


def _reason(error: OSError) -> str:
    """An error of TLS in words, without Python's line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one step, never readable to more than its mode says."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def _openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=True).stdout


def _succeeds(*words: str) -> bool:
    return subprocess.run(["openssl", *words], capture_output=True, check=False).returncode == 0
