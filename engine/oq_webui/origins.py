"""Requests that the page of another site, or of another program on the same computer, makes through a browser.

A browser sends the session with them: to it, all ports of a name are one site. Upstream takes what it does to
calculations without a token, tags even by GET, and lets every page read its API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from django.http import HttpResponseForbidden

_LOOKS = ("GET", "HEAD", "OPTIONS")
_CHANGES_BY_GET = re.compile(r"/v1/calc/(\d+/)?(create|delete|add|remove|(un)?set)_(\w+_)?tag/")
_OWN_PAGES = ("same-origin", "none")  # none: somebody has typed the address


class OwnPages:
    """Django middleware that answers no other pages than the WebUI's own. Programs, which are no pages, say nothing."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        """Answer one request."""
        if _of_another_page(request):
            return HttpResponseForbidden("This is for the WebUI's own pages.", content_type="text/plain")
        return self.get_response(request)


def _of_another_page(request: Any) -> bool:
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"{request.scheme}://{request.get_host()}":
        return True
    # A link that leads here from elsewhere is one to look at. Over plain HTTP to another machine, browsers do not say.
    looks = request.method in _LOOKS and not _CHANGES_BY_GET.match(request.path_info)
    return not looks and request.headers.get("Sec-Fetch-Site", "none") not in _OWN_PAGES
