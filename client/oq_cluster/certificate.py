"""The certificate by which a cluster's WebUI is known here, and connections that take that one and no other.

It comes from the master itself, by Run Command, or in a file from somebody who may use that; never from whoever answers
on the WebUI's port. So it needs no authority, and the name in it does not matter: a port forward ends at localhost.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter

from oq_cluster import config
from oq_cluster.errors import ClientError, Offline, Unreachable, UsageError

# Where the master has it (components/facts.py of the program).
ON_THE_MASTER: Final = "/etc/openquake/tls/certificate.pem"
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Certificate:
    """The certificate of one cluster's WebUI, kept in a file between two commands."""

    def __init__(self, identity: str, ask: Callable[[], str]) -> None:
        """`identity` names the cluster; `ask` gives what the master says."""
        self._kept = config.directory() / f"webui-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pem"
        self._ask = ask

    def file(self) -> Path:
        """The file with it; asks the master for what is not known here.

        Raises:
            ClientError: the master does not tell this user.
        """
        if not self._kept.exists():
            self.renew()
        return self._kept

    def renew(self) -> bool:
        """Ask the master again; whether it has another one now.

        Raises:
            ClientError: as for `file`.
        """
        try:
            text = self._ask()
        except ClientError as error:
            if isinstance(error, Unreachable) and not isinstance(error, Offline):
                raise
            raise ClientError(
                f"the WebUI's certificate cannot be asked for: {error}. Get it from somebody who may use Run Command "
                "on the master (oq-cluster certificate > webui.pem), then: oq-cluster use … --certificate webui.pem"
            ) from error
        return self.keep(text, "what the master says")

    def keep(self, text: str, source: str) -> bool:
        """Keep the first certificate of a text, that of the server; whether it is another one than before.

        Those behind it are authorities, whose other certificates are not to be trusted here.

        Raises:
            UsageError: there is none.
        """
        found = _PEM.search(text)
        if found is None:
            raise UsageError(f"{source} holds no certificate (-----BEGIN CERTIFICATE-----)")
        pem = found[0].replace("\r", "")  # Windows' ends of lines, which would come back as others
        if self._kept.exists() and self._kept.read_text() == pem:
            return False
        config.replace(self._kept, pem)
        return True


class PinnedCertificateAdapter(HTTPAdapter):
    """Connections that trust the certificate in the file that the session's `verify` names, while it is valid."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Give the pool its TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # as assert_hostname alone says it to urllib3 from version 2 on
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # though an authority has signed it
        super().init_poolmanager(*arguments, ssl_context=context, assert_hostname=False, **options)


def verification_error(error: requests.RequestException) -> str:
    """Why a connection was refused for its certificate; empty when the error is about something else."""
    found: object = error
    while found is not None and not isinstance(found, ssl.SSLCertVerificationError):
        # requests' error has urllib3's as an argument, which has another one as its reason, which has ssl's.
        inner = [getattr(found, "reason", None), *getattr(found, "args", ())]
        found = next((one for one in inner if isinstance(one, Exception)), None)
    return str(found.verify_message) if found is not None else ""
