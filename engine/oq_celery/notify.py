"""Tells systemd how the worker is: the notification protocol of sd_notify(3), for `Type=notify` units."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send a state such as `READY=1` to the service manager; nothing where none is listening."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A leading @ stands for the abstract namespace.
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
