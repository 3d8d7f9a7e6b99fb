"""Servers made of raw bytes, for the lean client's tests."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway.upstream import Answer, Endpoint, LeanUpstream, UpstreamRequest

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Runs `talk` on each connection."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.port = 0
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def server(talk: Talk, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    serving = Server(talk)
    listening = await asyncio.start_server(serving, host, 0, ssl=tls)
    serving.port = listening.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        listening.close()


@asynccontextmanager
async def lean(endpoint: Endpoint | None = None) -> AsyncIterator[LeanUpstream]:
    upstream = LeanUpstream(endpoint or Endpoint(connect_timeout_s=5, idle_timeout_s=10))
    try:
        yield upstream
    finally:
        await upstream.close()


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


def answers(*written: bytes) -> Talk:
    """One after the other, each to a request; after the last it listens."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in written:
            await request_of(reader)
            writer.write(each)
        await reader.read()

    return talk


async def always_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await request_of(reader)
        writer.write(OK)


def post(port: int, body: bytes = b"{}", *, host: str = "127.0.0.1", scheme: str = "http") -> UpstreamRequest:
    return UpstreamRequest(f"{scheme}://{host}:{port}/v1/x", "POST", [("content-type", "application/json")], body)


async def whole(upstream: LeanUpstream, request: UpstreamRequest) -> bytes:
    answer = await upstream.open(request)
    try:
        return await answer.read(1 << 26)
    finally:
        answer.release()


async def poured(answer: Answer) -> bytes:
    pieces: list[bytes] = []
    assert await answer.pour(lambda piece: pieces.append(piece) is None)
    assert b"" not in pieces
    return b"".join(pieces)
