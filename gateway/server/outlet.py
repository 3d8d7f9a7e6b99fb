"""An answer on its way to the client: written straight to the transport, framed here and nowhere else.

What HTTP/1.1 asks of this side is short enough to read:

    whole answer                Content-Length
    stream, HTTP/1.1            chunked; `finish` writes the last chunk, `abort` closes without it
    stream, HTTP/1.0            ends with the connection; `abort` resets it, since a mere close would look like the end
    HEAD, 204, 304              no body, whatever the handler writes
"""

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, Protocol

from gateway.wire.exchange import ClientGone, Headers

FLUSH_S: Final = 5.0  # an aborted connection may hand over for this long what was written before

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
# Framing and the connection are this file's, the request id is the edge's: none of them is taken from a handler, let alone a provider.
_OURS: Final = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id"})
_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_JOIN_BELOW: Final = 65536  # head and body go out in one piece if that copies less than this
_WITHOUT_BODY: Final = frozenset({204, 304})
_NAMES_KEPT: Final = 512


class Line(Protocol):
    """The connection, as the outlet needs it."""

    transport: asyncio.Transport | None

    @property
    def writing_paused(self) -> bool: ...

    @property
    def closing(self) -> bool:
        """The gateway is shutting down: no further request is taken on this connection."""

    async def room(self) -> None:
        """Returns when the client has taken enough of what was written. ClientGone."""


class _Stage(Enum):
    NEW = auto()
    STREAMING = auto()
    ENDED = auto()
    BROKEN = auto()  # aborted, or the client left


class HttpOutlet:
    """The `Outlet` of one exchange. One task writes."""

    __slots__ = ("_callbacks", "_chunked", "_http_1_0", "_line", "_no_body", "_stage", "keeps", "request_id")

    def __init__(
        self, line: Line, request_id: str, *, head_only: bool = False, http_1_0: bool = False, keeps: bool = True
    ) -> None:
        self._line = line
        self._no_body = head_only
        self._http_1_0 = http_1_0
        self._chunked = False
        self._stage = _Stage.NEW
        self._callbacks: list[Callable[[], None]] = []
        self.request_id = request_id
        self.keeps = keeps  # the connection can serve another request after this answer

    @property
    def started(self) -> bool:
        return self._stage is not _Stage.NEW

    @property
    def ended(self) -> bool:
        """Cleanly; nothing more to write."""
        return self._stage is _Stage.ENDED

    @property
    def over(self) -> bool:
        """Nothing more will be written."""
        return self._stage is _Stage.ENDED or self._stage is _Stage.BROKEN

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.put_answer(status, headers, body)
        if self._line.writing_paused:
            await self.room()

    def put_answer(self, status: int, headers: Headers, body: bytes) -> None:
        """`answer` without the wait for the client to take it."""
        self._no_body = self._no_body or status in _WITHOUT_BODY
        framing = "" if status in _WITHOUT_BODY else f"Content-Length: {len(body)}\r\n"
        head = self._head(status, headers, framing)
        if self._no_body:
            self._put(head)
        elif len(body) < _JOIN_BELOW:
            self._put(head + body)
        else:
            self._put(head)
            self._put(body)
        self._stage = _Stage.ENDED

    async def start(self, status: int, headers: Headers) -> None:
        self._no_body = self._no_body or status in _WITHOUT_BODY
        framing = ""
        if self._http_1_0:
            self.keeps = False
        elif not self._no_body:
            self._chunked = True
            framing = "Transfer-Encoding: chunked\r\n"
        head = self._head(status, headers, framing)
        self._stage = _Stage.STREAMING
        self._put(head)

    async def write(self, data: bytes) -> None:
        if not self.put(data):
            await self.room()

    def put(self, data: bytes) -> bool:
        assert self._stage is not _Stage.NEW, "start() comes first"
        assert self._stage is not _Stage.ENDED, "nothing follows the end"
        if data and not self._no_body:  # an empty chunk would end the stream
            self._put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self._line.writing_paused

    @property
    def waiting(self) -> int:
        return 0 if self._line.transport is None else self._line.transport.get_write_buffer_size()

    async def finish(self, last: bytes = b"") -> None:
        assert self._stage is not _Stage.NEW, "start() comes first"
        if self._stage is _Stage.ENDED:
            return
        if self._no_body:
            last = b""
        elif self._chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
        self._put(last)
        self._stage = _Stage.ENDED
        if self._line.writing_paused:
            await self.room()

    def abort(self) -> None:
        if self._stage is _Stage.BROKEN or (self._stage is _Stage.ENDED and not self._line.writing_paused):
            return  # what went out whole can't be mistaken
        self._stage = _Stage.BROKEN
        self.keeps = False
        transport = self._line.transport
        if transport is None:
            return
        if self._http_1_0:
            raw: socket.socket | None = transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return
        # `close` still hands over what was written (an error event, say); the missing last chunk tells the client.
        transport.close()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_S, transport.abort)

    def drop(self) -> None:
        self._stage = _Stage.BROKEN
        self.keeps = False
        if self._line.transport is not None:
            self._line.transport.abort()

    def on_gone(self, told: Callable[[], None]) -> None:
        transport = self._line.transport
        if self._stage is _Stage.BROKEN or transport is None or transport.is_closing():
            if self._stage is not _Stage.ENDED:
                self._stage = _Stage.BROKEN  # a handler that is told so owes no answer, though `lost` may come only later
            told()
        else:
            self._callbacks.append(told)

    def lost(self) -> None:
        """The connection's word: it is no more."""
        if self._stage is not _Stage.ENDED:
            self._stage = _Stage.BROKEN
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()

    def _put(self, data: bytes) -> None:
        transport = self._line.transport
        if self._stage is _Stage.BROKEN or transport is None or transport.is_closing():
            self._stage = _Stage.BROKEN
            self.keeps = False
            raise ClientGone
        if data:
            transport.write(data)

    async def room(self) -> None:
        try:
            await self._line.room()
        except ClientGone:
            self._stage = _Stage.BROKEN
            self.keeps = False
            raise

    def _head(self, status: int, headers: Headers, framing: str) -> bytes:
        assert self._stage is not _Stage.STREAMING, "one answer per request"
        assert self._stage is not _Stage.ENDED, "one answer per request"
        if self._line.closing:
            self.keeps = False
        lines = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n"]
        dated = False
        for name, value in headers:
            lead = _leads.get(name)
            if lead is None:
                lower = name.lower()
                if lower in _OURS:
                    continue
                dated = dated or lower == "date"
                lead = _lead(name, lower)
            if not value.isprintable() and _UNFIT.search(value):
                raise ValueError(f"the header {name.lower()!r} holds a control character")
            lines.append(f"{lead}{value}\r\n")
        lines.append(f"X-Request-Id: {self.request_id}\r\n")
        if not dated:
            lines.append(_date_line())
        lines.append(framing)
        if not self.keeps:
            lines.append("Connection: close\r\n\r\n")
        elif self._http_1_0:
            lines.append("Connection: keep-alive\r\n\r\n")
        else:
            lines.append("\r\n")
        return "".join(lines).encode("utf-8", "surrogateescape")


_leads: dict[str, str] = {}  # of the names that were seen to be fit, but for those that need a look each time: ours and `Date`


def _lead(name: str, lower: str) -> str:
    if _UNFIT.search(name):
        raise ValueError(f"the header {lower!r} holds a control character")
    lead = f"{name}: "
    if lower != "date" and len(_leads) < _NAMES_KEPT:
        _leads[name] = lead
    return lead


_date = (0, "")  # the last second that was formatted


def _date_line() -> str:
    global _date  # noqa: PLW0603 - a cache of one line, rebuilt each second
    second = int(time.time())
    if _date[0] != second:
        _date = (second, f"Date: {formatdate(second, usegmt=True)}\r\n")
    return _date[1]
