"""A connection's bytes → one request, read in the one way that HTTP/1.1 allows, or not at all. No I/O.

llhttp (httptools) reads the head and a chunked body, with all its leniencies off; a body with a length is cut off here. A reader takes
its own request and not a byte more, so that what follows waits unread for its turn: a body with a length ends where that says, a head
and a chunked body can only end where an empty line does. Each request has a reader of its own, which costs less than a parser's `reset`
would have to be trusted for.
"""

import re
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict, CIMultiDictProxy, istr

from gateway.core.record import record
from gateway.wire.body import too_large
from gateway.wire.problem import Problem, problem

MAX_HEAD: Final = 65_536
MAX_LINE: Final = 8_190  # the request line, and each header
MAX_HEADERS: Final = 128

_END: Final = b"\r\n\r\n"
# What llhttp lets pass beside this: HTTP/0.9 and 2.0, RTSP, ICE, and more than one space.
_REQUEST_LINE: Final = re.compile(rb"([A-Z-]+) ([!-~]+) HTTP/1\.([01])\r\n")
_UNDECODABLE: Final = re.compile("[\ud800-\udfff]")  # how such bytes are kept

_names: dict[bytes, istr] = {}  # those seen before: clients send the same few
_NAMES_KEPT: Final = 512


class Unreadable(Exception):
    """These bytes are no request of ours. What follows them on their connection can't be told apart: it has to be closed."""

    def __init__(self, refusal: Problem) -> None:
        super().__init__(refusal.detail)
        self.problem = refusal


@record
class Head:
    """A request's line and headers. `length`: of its body; None if it is chunked."""

    method: str
    target: str
    http_1_0: bool
    keeps: bool  # the connection stays after the answer, as far as the client is asked
    headers: CIMultiDictProxy[str]
    length: int | None


class RequestReader:
    """Takes bytes as they come. `head` is None until it is complete; `body` is complete when `whole`."""

    __slots__ = ("_early", "_framing", "_keeps", "_left", "_limit", "_pairs", "_parser", "_parts", "body", "head", "whole")

    def __init__(self, max_body: int) -> None:
        self._limit = max_body
        self._parser: HttpRequestParser | None = HttpRequestParser(self)  # while there is something for it to read
        self._pairs: list[tuple[str, str]] = []
        # What came before and may be part of the end that is looked for: of a head all, of chunks the last bytes.
        self._early = b""
        self._parts = bytearray()  # of a body that comes in several pieces
        self._left = 0  # of a body that has a length
        self._keeps = False
        self._framing = 0  # bytes of chunked framing since the last byte of content
        self.head: Head | None = None
        self.body = b""
        self.whole = False

    @property
    def size(self) -> int:
        """Bytes of the body that have come, until it is whole."""
        return len(self._parts)

    def take(self, data: bytes) -> bytes:
        """Reads on; returns what is left once the request is `whole`. Unreadable: with a `head`, it is the body that is at fault."""
        try:
            if self.head is None:
                data = self._take_head(data)
                if self.head is None:
                    return b""
            if self.whole:
                return data
            if self.head.length is None:
                return self._take_chunks(data)
        except HttpParserError:
            what = "This is not an HTTP/1.1 request that can be read in only one way."
            body = "The request's body is not framed as its headers say."
            raise Unreadable(problem("bad_request", what if self.head is None else body)) from None
        return self._take_length(data, self.head.length)

    # -- the head -------------------------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> bytes:
        early = len(self._early)
        if not early and data[0] in b"\r\n":
            data = data.lstrip(b"\r\n")  # empty lines before a request are no part of it (RFC 9112, 2.2)
            if not data:
                return b""
        head = self._early + data if early else data
        end = head.find(_END, max(0, early - 3)) + 4
        if (len(head) if end < 4 else end) > MAX_HEAD:
            raise _too_long()
        assert self._parser is not None
        if end < 4:
            self._early = head
            self._parser.feed_data(data)  # what can be no head is refused now, and not when its end comes
            return b""
        rest = head[end:]
        head = head[:end]
        upgrade = False
        try:
            self._parser.feed_data(head[early:])
        except HttpParserUpgrade:
            upgrade = True  # is asked for. We stay with HTTP/1.1: the body, if there is one, is what the headers say
        self._read_head(head, upgrade)
        return rest

    def _read_head(self, head: bytes, upgrade: bool) -> None:
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise Unreadable(problem("bad_request", "This gateway speaks HTTP/1.1."))
        if len(head) > MAX_LINE:
            _check_lines(head)
        method, target, minor = line.groups()
        http_1_0 = minor == b"0"
        pairs = self._pairs
        if len(pairs) > MAX_HEADERS:
            raise Unreadable(problem("bad_request", f"The request has more than {MAX_HEADERS} headers."))
        headers = CIMultiDictProxy(CIMultiDict(pairs))
        if len(headers.getall("Host", ())) != 1 and not (http_1_0 and "Host" not in headers):
            raise Unreadable(problem("bad_request", "A request has one Host header."))
        if len(headers.getall("Content-Type", ())) > 1:
            raise Unreadable(problem("bad_request", "A request has one Content-Type."))
        codings = headers.getall("Transfer-Encoding", ())
        if codings and (http_1_0 or len(codings) > 1 or codings[0].lower() != "chunked"):
            raise Unreadable(
                problem("bad_request", "A request's body is framed by its length, or it is chunked and nothing else.")
            )
        length = None if codings else int(headers.get("Content-Length", "0"))
        keeps = self._keeps and not upgrade
        self._early = b""
        if length is not None:
            self._parser = None  # it knows this reader, and this reader it: neither would be freed at once
            self._left = length
            self.whole = length == 0
        elif upgrade:  # llhttp would leave the body to whoever upgrades (Java's HttpClient asks for h2c with every request)
            self._parser = HttpRequestParser(self)
            self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.head = Head(method.decode(), target.decode(), http_1_0, keeps, headers, length)
        if not head.isascii():
            _check_decodable(pairs)

    # -- the body -------------------------------------------------------------------------------------------------------------

    def _take_length(self, data: bytes, length: int) -> bytes:
        if length > self._limit:
            raise Unreadable(too_large(self._limit))
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            self._parts += data
            return b""
        if left == length:  # all of it in one piece
            self.body = data[:left]
        else:
            self._parts += memoryview(data)[:left]
            self.body = bytes(self._parts)
        self.whole = True
        return data[left:]

    def _take_chunks(self, data: bytes) -> bytes:
        start = len(self._early)
        data = self._early + data
        assert self._parser is not None
        while start < len(data) and not self.whole:
            end = data.find(_END, max(0, start - 3)) + 4
            if end < 4:
                end = len(data)
            content = len(self._parts)
            self._parser.feed_data(data[start:end])
            self._framing = self._framing + end - start if len(self._parts) == content else 0
            if len(self._parts) > self._limit:
                raise Unreadable(too_large(self._limit))
            if self._framing > MAX_HEAD:
                raise _too_long()
            start = end
        self._early = data[-3:]
        if self.whole:
            self._parser = None
            self.body = bytes(self._parts)
        return data[start:]

    # -- what llhttp tells ----------------------------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._keeps = self._parser.should_keep_alive()  # where the request ends with its head, llhttp forgets it after that

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also a trailer, after the body: those are forgotten."""
        self._pairs.append((_names.get(name) or _named(name), value.rstrip(b" \t").decode("utf-8", "surrogateescape")))

    def on_body(self, content: bytes) -> None:
        self._parts += content

    def on_message_complete(self) -> None:
        # llhttp is told nothing of a body with a length, so here it can only be at the end of chunks, or of a head without a body.
        self.whole = self.head is not None


def _named(raw: bytes) -> istr:
    name = istr(raw.decode("ascii"))
    if len(_names) < _NAMES_KEPT:
        _names[raw] = name
    return name


def _check_lines(head: bytes) -> None:
    if any(len(line) > MAX_LINE for line in head.split(b"\r\n")):
        raise _too_long()


def _check_decodable(pairs: list[tuple[str, str]]) -> None:
    """Bytes that are not UTF-8: no provider would take them."""
    for name, value in pairs:
        if not value.isascii() and _UNDECODABLE.search(value):
            raise Unreadable(problem("ambiguous_request", f"The header {name} holds bytes that are not UTF-8.", str(name)))


def _too_long() -> Unreadable:
    return Unreadable(problem("headers_too_large", "The request line or a header is longer than this gateway reads."))
