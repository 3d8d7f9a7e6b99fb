"""The client on aiohttp: every feature, most of the CPU."""

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.upstream.port import Answer, Endpoint, NotSent, TooLarge, Unknown, UpstreamRequest

# Framing and negotiation are this client's; what a caller says about them would contradict what is sent.
_OURS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "accept-encoding",
    }
)
_NOT_ADDED: Final = ("Accept", "Content-Type", "User-Agent")  # aiohttp would make these up
_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # control characters but tab; bytes that were not UTF-8
_DECODED: Final = frozenset({"gzip", "deflate", "br", "zstd"})  # what aiohttp decodes, if sent in spite of `identity`

# What aiohttp raises before a connection stands; whatever else it raises, the request may be under way.
_NEVER_CONNECTED: Final = (
    aiohttp.ClientConnectorError,  # TCP refused or unreachable, DNS, TLS, a proxy that can't be reached
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientHttpProxyError,  # the proxy answered CONNECT with a refusal
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
)
_BROKEN: Final = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, asyncio.TimeoutError, ValueError)


class AiohttpUpstream:
    """One provider's connections. No redirects, no cookies, no environment; a POST is never repeated."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._proxy = endpoint.proxy
        connector = aiohttp.TCPConnector(
            limit=endpoint.max_connections, keepalive_timeout=endpoint.keepalive_s, socket_factory=_kept_alive_socket
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
            # No total: a stream may last as long as it moves. `connect` also bounds the wait for a free connection.
            timeout=aiohttp.ClientTimeout(total=None, connect=endpoint.connect_timeout_s, sock_read=endpoint.idle_timeout_s),
            trust_env=False,
        )

    async def open(self, request: UpstreamRequest) -> Answer:
        headers = CIMultiDict([header for header in request.headers if not _is_ours(header[0])])
        if not _fits_a_header("".join(itertools.chain.from_iterable(headers.items()))):
            raise NotSent("a header holds a character that HTTP can't carry")
        headers["Accept-Encoding"] = "identity"
        try:
            url = URL(request.url, encoded=True)
        except ValueError as failure:
            raise NotSent(_said(failure)) from failure
        try:
            response = await self._session.request(
                request.method, url, headers=headers, data=request.body or None, allow_redirects=False, proxy=self._proxy
            )
        except _NEVER_CONNECTED as failure:
            raise NotSent(_said(failure)) from failure
        except _BROKEN as failure:
            raise Unknown(_said(failure)) from failure
        return _AiohttpAnswer(response)

    async def close(self) -> None:
        await self._session.close()


class _AiohttpAnswer:
    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers
        if response.headers.get("Content-Encoding", "").lower() in _DECODED:
            headers = response.headers.copy()
            del headers["Content-Encoding"]
            headers.popall("Content-Length", None)
            self.headers = CIMultiDictProxy(headers)

    async def read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in self.chunks():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise TooLarge(f"the provider's answer is longer than {limit} bytes")
        return b"".join(pieces)

    def chunks(self) -> AsyncIterator[bytes]:
        return _Chunks(self._response.content)

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        async for piece in self.chunks():
            if not take(piece):
                return False
        return True

    def close(self) -> None:
        self._response.close()

    def release(self) -> None:
        self._response.release()


class _Chunks:
    """Not a generator: a generator that is cancelled once has ended, and ends cleanly when it is asked again."""

    __slots__ = ("_content",)

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content = self._content
        try:
            piece = await content.readany()
        except _BROKEN as failure:
            # aiohttp raises at once, also when more had arrived before the break. That may hold the provider's usage.
            rest = content._read_nowait(-1)
            if rest:
                return rest
            raise Unknown(_said(failure)) from failure
        except RuntimeError as failure:  # "Connection closed.": `close()` came first
            raise Unknown(_said(failure)) from failure
        if not piece:
            raise StopAsyncIteration
        return piece


def _kept_alive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A provider may be silent for minutes while it thinks; NATs on the way forget connections that are."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30)):  # Linux, macOS, both
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return made


@lru_cache(maxsize=1024)  # every call has the same few names
def _is_ours(name: str) -> bool:
    return name.lower() in _OURS


def _fits_a_header(text: str) -> bool:
    return text.isprintable() or _UNFIT.search(text) is None


def _said(failure: BaseException) -> str:
    # aiohttp repeats what caused it, with a status (`<TransferEncodingError: 400, …>`) that nobody answered.
    text = str(failure).partition(": <")[0]
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__
