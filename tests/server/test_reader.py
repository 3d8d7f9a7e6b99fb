"""Bytes → requests: cut anywhere they read the same, and what could be read in two ways is refused.

The other way is h11's, an independent reader in Python: whatever is taken here, it takes too, and finds the same in it.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.server.reader import MAX_HEAD, MAX_HEADERS, MAX_LINE, RequestReader, Unreadable

MAX_BODY: Final = 1_000
HOST: Final = b"Host: localhost\r\n"
GET: Final = b"GET /v1/models?a=b HTTP/1.1\r\n" + HOST
POST: Final = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"

REQUESTS: Final[dict[str, bytes]] = {
    "no body": GET + b"\r\n",
    "a body": POST + b"Content-Type: application/json\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}',
    "a body that looks like a request": POST + b"Content-Length: %d\r\n\r\n" % len(GET + b"\r\n") + GET + b"\r\n",
    "an empty body": POST + b"Content-Length: 0\r\n\r\n",
    "chunks": CHUNKED + b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n',
    "chunks of empty lines": CHUNKED + b"4\r\n\r\n\r\n\r\n6\r\n\r\n0\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
    "chunks with an extension and a trailer": CHUNKED + b"4;a=b\r\nabcd\r\n00\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n",
    "no chunks": CHUNKED + b"0\r\n\r\n",
    "empty lines before": b"\r\n\r\n" + GET + b"\r\n",
    "odd values": GET + b"X-Empty:\r\nX-Padded: \t a b \t \r\nX-Utf8: \xc3\xa9\r\nX-Two: 1\r\nx-two: 2\r\n\r\n",
    "an upgrade": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "an upgrade, chunked": POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "the last": GET + b"Connection: close\r\n\r\n",
    "an old client": b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    "an old client that stays": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
}

# What has passed one parser or another as something else than it was for the next.
SMUGGLED: Final[dict[str, bytes]] = {
    "a bare LF after the request line": b"GET / HTTP/1.1\nHost: localhost\r\n\r\n",
    "a bare LF after a header": GET + b"X: a\nContent-Length: 5\r\n\r\nhello",
    "a bare LF at the end": GET + b"\n",
    "a bare CR in a value": GET + b"X: a\rContent-Length: 5\r\n\r\nhello",
    "a folded header": GET + b"X: a\r\n Content-Length: 5\r\n\r\nhello",
    "a folded first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a space before a colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "a tab before a colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "no name": GET + b": 5\r\n\r\n",
    "no colon": GET + b"X\r\n\r\n",
    "a NUL": GET + b"X: a\x00b\r\n\r\n",
    "a control character": GET + b"X: a\x01b\r\n\r\n",
    "a name beyond ASCII": GET + b"X-\xc3\xa9: a\r\n\r\n",
    "both framings": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both framings, the other way round": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a length below nothing": POST + b"Content-Length: -5\r\n\r\nhello",
    "a length in hex": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\nhellohello",
    "a length in other digits": POST + "Content-Length: \u0665\r\n\r\nhello".encode(),
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding after chunked": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity, then chunked": POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a coding with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "no coding": POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "an old client that chunks": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk's size below nothing": CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
    "a chunk's size in 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size and a space": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a chunk's size and a bare LF": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a chunk's size beyond 64 bits": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "no chunk's size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "a chunk and a bare LF": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "a trailer that frames": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "a trailer with a bare LF": CHUNKED + b"0\r\nX: a\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts of an old client": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two types": POST + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces before the version": b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space after the version": b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n",
    "a tab in the request line": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method nobody knows": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/2 from the start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "RTSP": b"OPTIONS / RTSP/1.0\r\n" + HOST + b"\r\n",
    "ICE": b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n",
    "a target beyond ASCII": "GET /\u00e9 HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a target that is no path": b"GET v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header that is not UTF-8": GET + b"X: \xff\r\n\r\n",
}  # fmt: skip


@dataclass
class Seen:
    """What a reader makes of a connection's bytes: (method, target, headers, body) of each request, and whether it refused the rest."""

    requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    refused: bool = False


def ours(*pieces: bytes) -> Seen:
    seen = Seen()
    reader = RequestReader(MAX_BODY)
    for data in pieces:
        while data:
            try:
                data = reader.take(data)  # noqa: PLW2901 - what it left
            except Unreadable:
                seen.refused = True
                return seen
            if not reader.whole:
                assert not data
                continue
            assert reader.head is not None
            headers = [(k.lower().encode(), v.encode("utf-8", "surrogateescape")) for k, v in reader.head.headers.items()]
            seen.requests.append((reader.head.method.encode(), reader.head.target.encode(), headers, reader.body))
            if not reader.head.keeps:
                return seen
            reader = RequestReader(MAX_BODY)
    return seen


def theirs(raw: bytes) -> Seen:
    """h11's reading, a connection of its own for each request. It does not skip empty lines before one, as RFC 9112 asks."""
    seen = Seen()
    try:
        while raw := raw.lstrip(b"\r\n"):
            server = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
            server.receive_data(raw)
            request = server.next_event()
            if not isinstance(request, h11.Request):
                return seen
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return seen
            headers = [(bytes(name), bytes(value)) for name, value in request.headers]
            seen.requests.append((bytes(request.method), bytes(request.target), headers, body))
            raw = server.trailing_data[0]
    except h11.ProtocolError:
        seen.refused = True
    return seen


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_reads_the_same_cut_anywhere_and_as_another_reader_reads_it(what: str) -> None:
    raw = REQUESTS[what]
    whole = ours(raw)
    assert (len(whole.requests), whole.refused) == (1, False)
    assert whole.requests == theirs(raw).requests
    assert ours(*(raw[at : at + 1] for at in range(len(raw)))) == whole
    for at in range(len(raw)):
        assert ours(raw[:at], raw[at:]) == whole
        assert ours(raw[:at]).requests == []


def test_several_requests_read_the_same_cut_anywhere() -> None:
    order = ("chunks of empty lines", "a body that looks like a request", "chunks with an extension and a trailer", "no body")
    raw = b"".join(REQUESTS[what] for what in (*order, "odd values", "empty lines before", "no chunks", "the last"))
    whole = ours(raw)
    assert (len(whole.requests), whole.refused) == (8, False)
    assert whole.requests == theirs(raw).requests
    for at in range(len(raw)):
        assert ours(raw[:at], raw[at:]) == whole


@pytest.mark.parametrize("what", SMUGGLED)
def test_what_can_be_read_in_two_ways_is_refused_cut_anywhere(what: str) -> None:
    raw = SMUGGLED[what]
    assert ours(raw) == Seen(refused=True)
    assert ours(raw + GET + b"\r\n") == Seen(refused=True)
    for at in range(len(raw)):
        assert ours(raw[:at], raw[at:]) == Seen(refused=True)


def test_a_reader_takes_its_own_request_and_no_more() -> None:
    for raw in REQUESTS.values():
        assert RequestReader(MAX_BODY).take(raw + b"GET /next") == b"GET /next"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (GET + b"X: " + b"a" * MAX_LINE + b"\r\n\r\n", "headers_too_large"),
        (b"GET /" + b"a" * MAX_LINE + b" HTTP/1.1\r\n" + HOST + b"\r\n", "headers_too_large"),
        (GET + b"X: " + b"a" * MAX_HEAD, "headers_too_large"),
        (GET + (b"X: " + b"a" * 1_000 + b"\r\n") * 66 + b"\r\n", "headers_too_large"),
        (GET + b"X: a\r\n" * MAX_HEADERS + b"\r\n", "bad_request"),
        (POST + b"Content-Length: 1001\r\n\r\n", "request_too_large"),
        (CHUNKED + b"3e9\r\n" + b"a" * 1_001, "request_too_large"),
        (CHUNKED + b"1;" + b"a" * MAX_HEAD, "headers_too_large"),
        (CHUNKED + b"0\r\nX: " + b"a" * MAX_HEAD, "headers_too_large"),
    ],
)  # fmt: skip
def test_what_is_larger_than_its_bound_is_refused_before_its_end_comes(raw: bytes, code: str) -> None:
    for piece in (len(raw), 1_000):
        with pytest.raises(Unreadable) as refused:
            read_by(piece, raw)
        assert refused.value.problem.code == code


def read_by(piece: int, raw: bytes) -> None:
    reader = RequestReader(MAX_BODY)
    for at in range(0, len(raw), piece):
        reader.take(raw[at : at + piece])


def test_exactly_the_bounds_pass() -> None:
    assert len(ours(GET + b"X: " + b"a" * (MAX_LINE - 3) + b"\r\n\r\n").requests) == 1
    assert len(ours(GET + b"X: a\r\n" * (MAX_HEADERS - 1) + b"\r\n").requests) == 1
    assert len(ours(POST + b"Content-Length: 1000\r\n\r\n" + b"a" * 1_000).requests) == 1
    assert len(ours(CHUNKED + b"3e8\r\n" + b"a" * 1_000 + b"\r\n0\r\n\r\n").requests) == 1


PARTS: Final = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\xff", b":", b";", b",", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r\n\r\n"),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Host: b\r\n", b"X: a\r\n b\r\n"),
        *(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.0", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n"),
    ]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Requests one after the other, after some changes of their bytes."""
    raw = b"".join(draw(st.lists(st.sampled_from([*REQUESTS.values(), *SMUGGLED.values()]), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.one_of(PARTS, st.binary(max_size=3))) + raw[at + draw(st.sampled_from([0, 0, 1, 2, 8])) :]
    return raw


CUTS: Final = st.lists(st.integers(0, 400), max_size=6)
BOUNDED: Final = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place for place in places if place < len(raw))})
    return [raw[start:end] for start, end in pairwise(edges)]


def _fuzz(how: settings) -> None:
    @how
    @given(mutated(), CUTS)
    @example(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + GET + b"\r\n", [1])
    def each(raw: bytes, places: list[int]) -> None:
        seen = ours(raw)
        assert ours(*cut(raw, places)) == seen
        assert seen.requests == theirs(raw).requests[: len(seen.requests)]

    each()


def test_mutated_requests_are_refused_or_read_as_another_reader_reads_them() -> None:
    _fuzz(BOUNDED)


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_many_mutated_requests_are_refused_or_read_as_another_reader_reads_them() -> None:
    _fuzz(settings(BOUNDED, max_examples=10_000))
