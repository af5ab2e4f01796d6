"""Django's middleware by which `oq-idle` knows of requests, and lets none begin when the master goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oq_idle.gate import Gate

from oq_webui import answers

SECONDS = 10.0  # between two notes: pages ask every second


class Activity:
    """Takes each request through the gate in the unit's runtime directory; does nothing where there is none."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        directory = os.environ.get("RUNTIME_DIRECTORY")  # systemd's
        self._gate = Gate(Path(directory)) if directory else None
        self._noted = -SECONDS
        if self._gate:
            self._gate.make()

    def __call__(self, request: Any) -> Any:
        """Answer, and hold the gate open until the answer is sent."""
        if not self._gate or request.headers.get("User-Agent") == answers.AGENT:
            return self._get_response(request)
        place = self._gate.enter()
        if place is None:
            return _refusal()
        self._note(self._gate)
        try:
            response = self._get_response(request)
        except BaseException:
            place.close()
            raise
        gate, upstream_close = self._gate, response.close

        def close() -> None:
            upstream_close()
            self._note(gate)
            place.close()

        response.close = close  # which the server calls when all is sent
        return response

    def _note(self, gate: Gate) -> None:
        """Write down that somebody asks."""
        if time.monotonic() - self._noted >= SECONDS:
            self._noted = time.monotonic()
            gate.make()


def _refusal() -> Any:
    from django.http import HttpResponse

    text = "The master stops. Start it (oq-cluster wake), then try again."
    return HttpResponse(text, status=503, content_type="text/plain")
