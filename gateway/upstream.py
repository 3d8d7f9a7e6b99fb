"""The provider's side of one call: opens it, hands over what arrives, and says honestly what is known when it fails.

Two failures matter to money. `NotSent`: the connection was never made, so nothing can be billed. `Unknown`: the request was (or may have
been) written, then nothing more is certain. Whoever calls releases the hold for the first and leaves it to its lease for the second;
everything that aiohttp can raise is one of the two.

`Upstream` and `Answer` are the port; the aiohttp client behind it is the part of this gateway that costs most CPU, and replaceable.
"""

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, Protocol

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.core.record import record
from gateway.wire.status import may_be_sent_again


class NotSent(Exception):
    """The connection was never made: provably not billed. Release the hold, or try again under it."""


class Unknown(Exception):
    """The request was written, or may have been, and the answer is missing or incomplete: nobody can say what was billed."""


class TooLarge(Exception):
    """The answer is longer than the caller was ready to hold. Its connection is closed."""


@record
class Endpoint:
    """How one provider is reached.

    `keepalive_s` is short on purpose. A POST written to a connection that the server is just closing is ambiguous (`Unknown`: its hold is
    charged), while a fresh connection costs a round trip or two. Common servers close idle connections after 5 s (uvicorn, Node, llama.cpp),
    so an idle connection is kept for less than that.
    """

    connect_timeout_s: float = 10.0  # name look-up, TCP and TLS together
    idle_timeout_s: float = 600.0  # silence between two reads: a model may think for minutes before its first byte
    keepalive_s: float = 4.0
    max_connections: int = 0  # 0: as many as there are calls
    proxy: str | None = None  # an HTTP proxy's URL; the environment's is never used


@record
class UpstreamRequest:
    """A request as it should be sent. The client adds Host, Content-Length and Accept-Encoding, and ignores these among `headers`."""

    url: str  # percent-encoded already; sent as it is
    method: str
    headers: list[tuple[str, str]]
    body: bytes


class Answer(Protocol):
    """A provider's answer whose head has arrived. Exactly one of `read` and `chunks` is used; then `release` or `close`, each idempotent."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Without Content-Encoding and Content-Length where the body was decoded."""

    async def read(self, limit: int) -> bytes:
        """The whole body. TooLarge past `limit` bytes (decoded); Unknown when it breaks off."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never empty pieces. Unknown when it breaks off, after all that had arrived. A cancelled wait loses nothing:
        the iterator can be asked again."""

    def close(self) -> None:
        """Closes the connection: the provider sees that nobody reads on."""

    def release(self) -> None:
        """Done with it: the connection is kept if the body was read to its end, else closed."""


class Upstream(Protocol):
    async def open(self, request: UpstreamRequest) -> Answer:
        """Sends the request and waits for the answer's head, of any status; a redirect is an answer too. NotSent, Unknown. Cancelled, it
        closes the connection."""

    async def close(self) -> None:
        """Closes every connection."""


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


# -- sending again --------------------------------------------------------------------------------------------------------------


@record
class Failure:
    """Why a call did not succeed, as far as sending it again is concerned. `status` None: it was not sent."""

    status: int | None
    retry_after_s: float | None = None
    final: bool = False  # the provider itself said not to try again

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], now_s: float) -> "Failure":
        """Reads `retry-after-ms`, `Retry-After` (seconds or a date) and `x-should-retry`. `now_s`: seconds since the epoch."""
        final = headers.get("x-should-retry", "").strip().lower() == "false"
        return cls(status, _retry_after_s(headers, now_s), final)


NOT_SENT: Final = Failure(None)


@record
class RetryPolicy:
    """When to send a call again under the same hold: only what was provably not billed, and never for long. Pure."""

    retries: int = 2
    total_wait_s: float = 8.0
    first_wait_s: float = 0.5

    def wait_s(self, failure: Failure, attempt: int, waited_s: float, jitter: float) -> float | None:
        """How long to wait before sending again; None: pass the failure on.

        `attempt` counts from 1; `waited_s` is the sum of earlier waits; `jitter` in [0, 1) spreads callers apart. A Retry-After that does
        not fit into what is left of `total_wait_s` is the client's to wait for, not ours.
        """
        if attempt > self.retries or failure.final:
            return None
        if failure.status is not None and not may_be_sent_again(failure.status):
            return None
        backoff_s = self.first_wait_s * 2 ** (attempt - 1) * (0.5 + jitter / 2)
        wait_s = backoff_s if failure.retry_after_s is None else failure.retry_after_s + backoff_s * jitter / 2
        return wait_s if waited_s + wait_s <= self.total_wait_s else None


def _retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if text.isascii() and text.replace(".", "", 1).isdigit():
            return float(text) / per_second
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s)
