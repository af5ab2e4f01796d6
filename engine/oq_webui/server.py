"""gunicorn with the WebUI in it. Django has to be set up when this is imported."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from django.db import connections
from gunicorn.app.base import BaseApplication
from oq_celery import turn

# Like upstream's own server a thread for each request, so that one which exports or uploads for minutes stops no other.
# Two processes, because one that computes in Python holds its threads up.
PROCESSES = 2
THREADS = 16


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The WebUI on a Unix socket."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings."""
        for name, value in {
            "bind": f"unix:{self.socket}",
            "proc_name": "oq-webui",
            "worker_class": "gthread",
            "workers": PROCESSES,
            "threads": THREADS,
            "preload_app": True,
            # A process whose main thread says nothing for so long hangs.
            "timeout": 300,
            # Requests that run at a restart. Uploads and exports longer than that have to be repeated.
            "graceful_timeout": 30,
            "keepalive": 0,
            "control_socket_disable": True,
            # nginx alone reaches the socket.
            "forwarded_allow_ips": "*",
            "post_request": _reap_calculations,
            "worker_exit": _leave_the_calculations,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The application."""
        from openquake.server.wsgi import application

        connections.close_all()  # of this process, before it forks
        return whole(application)


def whole(application: Callable[..., Any]) -> Callable[..., Any]:
    """A WSGI application to which an upload that breaks off is an error, and never a smaller upload.

    nginx hands on what comes, and gunicorn gives what there is of it. Django would call the files that had arrived all
    files, and upstream compute with them.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        length = environ.get("CONTENT_LENGTH") or "0"
        environ["wsgi.input"] = _Whole(environ["wsgi.input"], int(length) if length.isdecimal() else 0)
        return application(environ, start_response)

    return answer


class _Whole:
    """A request's body, of which Django reads by these two methods: an early end is an OSError."""

    def __init__(self, stream: Any, length: int) -> None:
        self._stream = stream
        self._left = length

    def read(self, *size: int) -> bytes:
        return self._took(self._stream.read(*size), *size)

    def readline(self, *size: int) -> bytes:
        return self._took(self._stream.readline(*size), *size)

    def _took(self, data: bytes, size: int = -1) -> bytes:
        self._left -= len(data)
        if self._left > 0 and not data and size:
            raise OSError(f"the upload broke off {self._left} bytes before its end")
        return data


def _reap_calculations(_worker: Any, _request: Any, _environ: Any, _response: Any) -> None:
    """Ask for the exit status of calculations that have ended, or each stays as a zombie until another one begins."""
    multiprocessing.active_children()
    turn.reap()


def _leave_the_calculations(_arbiter: Any, _worker: Any) -> None:
    """End this process at once. Python would wait for its children first, which are people's calculations."""
    os._exit(0)
