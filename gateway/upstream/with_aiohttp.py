"""The client on aiohttp: every feature, most of the CPU."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.upstream.dialing import keep_alive
from gateway.upstream.heads import fits_a_header, is_ours
from gateway.upstream.port import Answer, Endpoint, NotSent, TooLarge, Unknown, UpstreamRequest

_NOT_ADDED: Final = ("Accept", "Content-Type", "User-Agent")  # aiohttp would make these up
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
        headers = CIMultiDict([header for header in request.headers if not is_ours(header[0])])
        if not fits_a_header("".join(itertools.chain.from_iterable(headers.items()))):
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
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    keep_alive(made)
    return made


def _said(failure: BaseException) -> str:
    # aiohttp repeats what caused it, with a status (`<TransferEncodingError: 400, …>`) that nobody answered.
    text = str(failure).partition(": <")[0]
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__
