"""A TCP proxy between one client and the broker that can cut, refuse, stall and delay; it knows nothing of AMQP."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

CHUNK: Final = 1 << 16
# What TCP makes of a silent peer is a broken connection after TCP_USER_TIMEOUT (oq_celery.broker.SOCKET_OPTIONS); here
# TCP ends at the proxy, which therefore has to break it itself.
SILENCE_SECONDS: Final = 20.0


class Loop:
    """An event loop in a thread of its own, for all proxies."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something there and wait for its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def soon(self, call: Callable[[], None]) -> None:
        """Call something there, without waiting."""
        self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        """End it and all that runs there."""
        self.run(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @staticmethod
    async def _cancel() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Proxy:
    """Listens on a port of its own and carries connections to the broker's.

    Attributes:
        port: of the loopback.
        sent: bytes that clients have sent to the broker.
    """

    def __init__(self, loop: Loop, broker_port: int) -> None:
        self._loop = loop
        self._broker_port = broker_port
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._delay = 0.0
        self._cut_at: int | None = None
        self._was_cut = threading.Event()
        self.sent = 0
        server: asyncio.Server = loop.run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]

    def cut(self, refuse_seconds: float = 0.0) -> int:
        """Break all connections with a reset, and refuse new ones for some time; how many there were."""
        number: int = self._loop.run(self._cut())
        if refuse_seconds:
            self._refusing = True
            time.sleep(refuse_seconds)
            self._refusing = False
        return number

    def cut_after(self, count: int, wanted: Callable[[], bool]) -> bool:
        """Break the connection that carries the client's next byte number `count`, behind this byte.

        Args:
            count: of bytes from now on, of all connections.
            wanted: whether it is still worth waiting for that byte.

        Returns:
            Whether it came to it.
        """
        self._was_cut.clear()
        self._cut_at = self.sent + count
        while not self._was_cut.wait(0.1) and wanted():
            pass
        self._cut_at = None
        return self._was_cut.is_set()

    def stall(self, seconds: float) -> None:
        """Carry nothing, without a word, for some time: a partition."""
        self._loop.soon(self._flowing.clear)
        try:
            time.sleep(min(seconds, SILENCE_SECONDS))
            if seconds > SILENCE_SECONDS:
                self._loop.run(self._cut())
                time.sleep(seconds - SILENCE_SECONDS)
        finally:
            self._loop.soon(self._flowing.set)

    def slow(self, delay: float, seconds: float) -> None:
        """Carry everything late for some time."""
        self._delay = delay
        time.sleep(seconds)
        self._delay = 0.0

    async def _cut(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            for writer in pair:
                _reset(writer)
        return len(pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        await self._flowing.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            _reset(writer)
            return
        for stream in (writer, up_writer):
            stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (writer, up_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._carry(reader, up_writer, upwards=True), self._carry(up_reader, writer, upwards=False)
            )
            for stream in pair:
                stream.close()
        except (OSError, asyncio.CancelledError):
            for stream in pair:
                _reset(stream)
        finally:
            self._pairs.discard(pair)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        """Carry one direction to its end."""
        while data := await reader.read(CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            if upwards:
                if self._cut_at is not None and self.sent + len(data) >= self._cut_at:
                    writer.write(data[: max(0, self._cut_at - self.sent)])
                    self.sent, self._cut_at = self._cut_at, None
                    self._was_cut.set()
                    await writer.drain()
                    raise ConnectionResetError
                self.sent += len(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a lost peer's kernel answers."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
