"""A port of a node on this machine, as Session Manager's port forwarding gives one: what comes in here goes on from the
node itself to its own address, past no security group.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from lab.base import LabError
from lab.linux.network import enter

LOCALHOST = "127.0.0.1"
_BLOCK = 256 * 1024


def serve(namespace: Path, remote_port: int, local_port: int) -> None:
    """Forward until the process is ended. It stays in the node's namespace; the socket that it listens on does not.

    Args:
        namespace: the node's network namespace, a file
    """
    try:
        listener = socket.create_server((LOCALHOST, local_port))
    except OSError as error:
        raise LabError(f"port {local_port} of this machine: {error}") from None
    enter(namespace)
    asyncio.run(_serve(listener, remote_port))


async def _serve(listener: socket.socket, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # either side may go at any time
            there_reader, there_writer = await asyncio.open_connection(LOCALHOST, port)
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction of a connection."""
    try:
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
    finally:
        writer.close()
