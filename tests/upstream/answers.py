"""Answers as providers write them, and as they should not; and a plain reading of HTTP/1.1 to hold a client against."""

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STREAMS: Final = Path(__file__).parents[1] / "wire" / "streams"


@dataclass(frozen=True)
class Read:
    """What is to be read: `body` None where the answer breaks off or is none."""

    status: int
    body: bytes | None


@dataclass(frozen=True)
class Raw:
    """What a server writes before it falls silent or, `closes`, ends the connection."""

    written: bytes
    read: Read
    closes: bool = False
    reused: bool = True  # the connection serves another request
    method: str = "POST"


def chunked(body: bytes, sizes: tuple[int, ...] = (7, 1, 300, 2), end: bytes = b"0\r\n\r\n") -> bytes:
    """The body in chunks of these sizes, over and over."""
    written, at, turn = [], 0, 0
    while at < len(body):
        piece = body[at : at + sizes[turn % len(sizes)]]
        written.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at, turn = at + len(piece), turn + 1
    return b"".join(written) + end


def _with_length(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, b"".join(h + b"\r\n" for h in headers), len(body), body)


_JSON: Final = b'{"id": "chatcmpl-1", "choices": [{"message": {"content": "h\xc3\xa9llo"}}], "usage": {"total_tokens": 9}}'
_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_NOTHING: Final = Read(0, None)


def _streams() -> dict[str, Raw]:
    """The recorded streams, in chunks that end in the middle of everything."""
    found = sorted(STREAMS.glob("*.sse"))
    assert len(found) > 10
    return {f"stream {path.stem}": Raw(_CHUNKED + chunked(path.read_bytes()), Read(200, path.read_bytes())) for path in found}


WHOLE: Final = {
    "json": Raw(_with_length(_JSON, b"Content-Type: application/json"), Read(200, _JSON)),
    "headers of every kind": Raw(
        _with_length(
            b"x", b"X-Empty:", b"X-Spaced:   a b\t", b"x-low: 1", b"X-Two: a", b"X-Two: b", b"X-Utf: h\xc3\xa9", b"X-Bytes: \xff"
        ),
        Read(200, b"x"),
    ),
    "nothing": Raw(_with_length(b""), Read(200, b"")),
    "no reason": Raw(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", Read(200, b"hi")),
    "an unknown status": Raw(_with_length(b"{}", status=b"599 Odd"), Read(599, b"{}")),
    "a refusal": Raw(
        _with_length(b'{"error": {}}', b"Retry-After: 1", status=b"429 Too Many Requests"), Read(429, b'{"error": {}}')
    ),
    "chunks": Raw(_CHUNKED + chunked(_JSON), Read(200, _JSON)),
    "no chunk": Raw(_CHUNKED + b"0\r\n\r\n", Read(200, b"")),
    "chunk extensions": Raw(_CHUNKED + b'3;a=b;c="d"\r\nabc\r\n0;last\r\n\r\n', Read(200, b"abc")),
    "padded chunk sizes": Raw(_CHUNKED + b"3  \r\nabc\r\n0  \r\n\r\n", Read(200, b"abc")),
    "upper-case and long chunk sizes": Raw(_CHUNKED + b"00000A\r\n0123456789\r\n0\r\n\r\n", Read(200, b"0123456789")),
    "trailers": Raw(_CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Two:  2 \r\n\r\n", Read(200, b"abc")),
    "early hints": Raw(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _with_length(_JSON), Read(200, _JSON)
    ),
    "until it closes": Raw(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n" + _JSON, Read(200, _JSON), closes=True, reused=False),
    "HTTP/1.0": Raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", Read(200, b"hi"), reused=False),
    "HTTP/1.0 that is kept": Raw(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", Read(200, b"hi")),
    "the last one": Raw(_with_length(_JSON, b"Connection: close"), Read(200, _JSON), reused=False),
    "the last one, among other words": Raw(_with_length(_JSON, b"Connection: x-a, Close"), Read(200, _JSON), reused=False),
    "no content": Raw(b"HTTP/1.1 204 No Content\r\n\r\n", Read(204, b"")),
    "not modified": Raw(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", Read(304, b""), reused=False),
    "the answer to a HEAD": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", Read(200, b""), reused=False, method="HEAD"),
    "an upgrade that was offered": Raw(_with_length(b"hi", b"Upgrade: h2c", b"Connection: Upgrade"), Read(200, b"hi")),
    "gzip": Raw(_with_length(gzip.compress(_JSON, mtime=0), b"Content-Encoding: gzip"), Read(200, _JSON)),
    "gzip in chunks": Raw(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: GZip\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(gzip.compress(_JSON * 9, mtime=0)),
        Read(200, _JSON * 9),
    ),
    "deflate": Raw(_with_length(zlib.compress(_JSON), b"Content-Encoding: deflate"), Read(200, _JSON)),
    "deflate without its frame": Raw(_with_length(zlib.compress(_JSON)[2:-4], b"Content-Encoding: deflate"), Read(200, _JSON)),
    "nothing, encoded": Raw(_with_length(b"", b"Content-Encoding: gzip"), Read(200, b"")),
    "bare line feeds": Raw(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", Read(200, b"hi")),
    **_streams(),
}

BROKEN: Final = {
    "silence that ends": Raw(b"", _NOTHING, closes=True),
    "half a head": Raw(b"HTTP/1.1 200 OK\r\nContent-Le", _NOTHING, closes=True),
    "only hints": Raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", _NOTHING, closes=True),
    "half a body": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", Read(200, None), closes=True),
    "half a chunk": Raw(_CHUNKED + b"9\r\nhalf", Read(200, None), closes=True),
    "no last chunk": Raw(_CHUNKED + b"4\r\nhalf\r\n", Read(200, None), closes=True),
    "half a trailer": Raw(_CHUNKED + b"4\r\nhalf\r\n0\r\nX-", Read(200, None), closes=True),
    "no HTTP": Raw(b"220 smtp.example.com ESMTP\r\n", _NOTHING),
    "no chunk size": Raw(_CHUNKED + b"4\r\nhalf\r\nzz\r\n", Read(200, None)),
    "a chunk longer than it says": Raw(_CHUNKED + b"3\r\nhalf\r\n", Read(200, None)),
    "a negative chunk": Raw(_CHUNKED + b"-1\r\n\r\n", Read(200, None)),
    "trailers that say how long it was": Raw(_CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 99\r\n\r\n", Read(200, None)),
    "an endless chunk": Raw(_CHUNKED + b"f" * 17 + b"\r\n", Read(200, None)),
    "two lengths": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", _NOTHING),
    "a list of lengths": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", _NOTHING),
    "a length with a sign": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab", _NOTHING),
    "a length and chunks": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", _NOTHING),
    "chunks and a length": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", _NOTHING),
    "a header of nothing": Raw(b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nhi", _NOTHING),
    "no gzip": Raw(_with_length(_JSON, b"Content-Encoding: gzip"), Read(200, None)),
}

# What aiohttp reads, in one way or another.
REFUSED_BY_LEAN: Final = {
    "another protocol": Raw(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", _NOTHING),
    "a space before the colon": Raw(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi", _NOTHING),
    "half a gzip": Raw(_with_length(gzip.compress(_JSON, mtime=0)[:-12], b"Content-Encoding: gzip"), Read(200, None)),
    "folded header": Raw(b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 2\r\n\r\nhi", _NOTHING),
    "a control character": Raw(b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 2\r\n\r\nhi", _NOTHING),
    "a coding of transfer": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", _NOTHING),
    "an endless head": Raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 9000 + b"Content-Length: 2\r\n\r\nhi", _NOTHING),
}


def plainly_read(written: bytes, *, closes: bool, head_only: bool = False) -> Read:
    """The answer as RFC 9112 has it, slowly and without a library: what is no answer has `body` None. Forgiven are empty lines and CRs
    before a head, a bare LF for a CRLF, and padding of a chunk's size."""
    lines = _Lines(written)
    try:
        while True:
            status, headers = _head(lines)
            if status == 101:
                return Read(0, None)
            if status >= 200:
                break
    except (IndexError, ValueError):
        return Read(0, None)
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if (lengths and codings) or len(lengths) > 1 or (codings and codings != [b"chunked"]):
        return Read(0, None)
    if head_only or status in (204, 304):
        return Read(status, b"")
    try:
        if codings:
            return Read(status, _chunks(lines))
        if lengths:
            length = _number(lengths[0], b"0123456789", 10)
            return Read(status, lines.exactly(length))
    except (IndexError, ValueError):
        return Read(status, None)
    return Read(status, lines.rest() if closes else None)


class _Lines:
    """IndexError: it ends too early."""

    def __init__(self, written: bytes) -> None:
        self._written, self._at = written, 0

    def line(self) -> bytes:
        end = self._written.find(b"\n", self._at)
        if end < 0:
            raise IndexError
        line, self._at = self._written[self._at : end], end + 1
        return line.removesuffix(b"\r")

    def exactly(self, length: int) -> bytes:
        piece = self._written[self._at : self._at + length]
        if len(piece) < length:
            raise IndexError
        self._at += length
        return piece

    def rest(self) -> bytes:
        return self._written[self._at :]


def _head(lines: _Lines) -> tuple[int, list[tuple[bytes, bytes]]]:
    while not (first := lines.line().lstrip(b"\r")):
        pass
    found = re.fullmatch(rb"HTTP/[0-9]\.[0-9] ([0-9]{3})(?: .*)?", first, re.DOTALL)
    if found is None:
        raise ValueError
    headers = []
    while line := lines.line():
        header = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", line, re.DOTALL)
        if header is None:
            raise ValueError
        headers.append((header[1].lower(), header[2]))
    return int(found[1]), headers


def _chunks(lines: _Lines) -> bytes:
    body = b""
    while True:
        size = _number(lines.line().partition(b";")[0].rstrip(b" \t"), b"0123456789abcdefABCDEF", 16)
        if size == 0:
            break
        body += lines.exactly(size)
        if lines.line():
            raise ValueError
    while line := lines.line():
        if b":" not in line or line.lower().startswith(b"content-length:"):
            raise ValueError
    return body


def _number(digits: bytes, among: bytes, base: int) -> int:
    if not digits or digits.strip(among):
        raise ValueError
    return int(digits, base)
