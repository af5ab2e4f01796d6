"""Whether people get the WebUI's pages: that its port is open says that nginx runs, and no more."""

from __future__ import annotations

import http.client
import ssl

AGENT = "oq-node status"
"""By this the WebUI knows that nobody asks but the master itself, which does not stay on for that."""
_PAGE = "/engine/"  # people's first; where they log in, it sends them there, without the limit that passwords have
_SECONDS = 30  # of silence; the WebUI's threads may be at work on uploads and exports


def problems(host: str, port: int, context: ssl.SSLContext | None) -> list[str]:
    """Why people get no page; empty when all is well.

    Args:
        host: where people come in.
        port: of nginx.
        context: for HTTPS; plain HTTP without.
    """
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
        if context
        else http.client.HTTPConnection(host, port, timeout=_SECONDS)
    )
    try:
        connection.request("GET", _PAGE, headers={"User-Agent": AGENT})
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return [f"the WebUI does not answer: {error}"]
    finally:
        connection.close()
    if answer.status < http.client.BAD_REQUEST:
        return []
    return [
        f"the WebUI answers {answer.status} {answer.reason} instead of a page (sudo journalctl -u openquake-webui)"
    ]
