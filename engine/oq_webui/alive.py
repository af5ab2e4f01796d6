"""The address by which `oq-node status` knows that the WebUI answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ADDRESS = "/alive"


def alive(application: Callable[..., Any]) -> Callable[..., Any]:
    """A WSGI application that says by itself that one of its threads was free.

    Django would take it for somebody's request: `oq_webui.activity` keeps the master up for those.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != ADDRESS:
            return application(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    return answer
