"""gunicorn with the WebUI in it. Django has to be set up when this is imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from typing import Any

from django.db import connections
from gunicorn.app.base import BaseApplication
from oq_celery import turn

from oq_webui.settings import DATA_UPLOAD_MAX_NUMBER_FILES

# Like upstream's own server a thread for each request, so that one which exports or uploads for minutes stops no other.
# Two processes, because one that computes in Python holds its threads up.
PROCESSES = 2
THREADS = 16
OPEN_FILES = THREADS * DATA_UPLOAD_MAX_NUMBER_FILES + 1024


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The WebUI on a Unix socket."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        # Each file of an upload is an open file until all have come.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings."""
        for name, value in {
            "bind": f"unix:{self.socket}",
            # Nobody else of this machine passes by nginx, whose group the unit gives it.
            "umask": 0o117,
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
            # nginx alone says by whom and how a request has come.
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

    def read(self, size: int = -1) -> bytes:
        """So much, or all; gunicorn gives less at the end alone."""
        return self._took(self._stream.read(size), self._left if size < 0 else min(size, self._left))

    def readline(self, size: int = -1) -> bytes:
        """A line, or so much of it."""
        return self._took(self._stream.readline(size), min(1, self._left) if size else 0)

    def _took(self, data: bytes, least: int) -> bytes:
        self._left -= len(data)
        if len(data) < least:
            raise OSError(f"the upload broke off {self._left} bytes before its end")
        return data


def _reap_calculations(_worker: Any, _request: Any, _environ: Any, _response: Any) -> None:
    """Ask for the exit status of calculations that have ended, or each stays as a zombie until another one begins."""
    multiprocessing.active_children()
    turn.reap()


def _leave_the_calculations(_arbiter: Any, _worker: Any) -> None:
    """End this process at once. Python would wait for its children first, which are people's calculations."""
    os._exit(0)
