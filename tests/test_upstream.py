"""The provider client against servers made of raw bytes: what it sends, what it hands over, and what it says when things break."""

import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from gateway.upstream import (
    NOT_SENT,
    AiohttpUpstream,
    Answer,
    Endpoint,
    Failure,
    LeanUpstream,
    NotSent,
    RetryPolicy,
    TooLarge,
    Unknown,
    Upstream,
    UpstreamRequest,
)

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """Runs `script` once per request, after the request's head and body were read into `requests`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.closed = asyncio.Event()  # a client closed its side
        self.asked = asyncio.Event()
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append((head, await reader.readexactly(length)))
                self.asked.set()
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def provider(script: Script) -> AsyncIterator[Provider]:
    serving = Provider(script)
    server = await asyncio.start_server(serving, "127.0.0.1", 0)
    serving.port = server.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        server.close()


Client = Callable[..., AbstractAsyncContextManager[Upstream]]


@pytest.fixture(params=[LeanUpstream, AiohttpUpstream], ids=["lean", "aiohttp"])
def client(request: pytest.FixtureRequest) -> Client:
    """Makes one, closed when the block ends."""

    @asynccontextmanager
    async def made(endpoint: Endpoint | None = None) -> AsyncIterator[Upstream]:
        upstream: Upstream = request.param(endpoint or Endpoint())
        try:
            yield upstream
        finally:
            await upstream.close()

    return made


def says(raw: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return script


def says_then_closes(raw: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    return script


def reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def post(
    port: int, *, headers: list[tuple[str, str]] | None = None, body: bytes = b"{}", path: str = "/v1/chat/completions"
) -> UpstreamRequest:
    return UpstreamRequest(f"http://127.0.0.1:{port}{path}", "POST", headers or [("Content-Type", "application/json")], body)


async def all_of(answer: Answer) -> list[bytes]:
    return [piece async for piece in answer.chunks()]


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


# -- what is sent ---------------------------------------------------------------------------------------------------------------


async def test_the_provider_reads_exactly_the_headers_and_the_body_it_was_given(client: Client) -> None:
    async with provider(says(OK)) as serving, client() as upstream:
        request = post(
            serving.port,
            headers=[("Content-Type", "application/json"), ("Authorization", "Bearer sk-1"), ("X-Two", "a"), ("X-Two", "b")],
            body=b'{"model": "m"}',
            path="/v1/chat/completions?a=%2F&b=%20c",
        )
        answer = await upstream.open(request)
        assert (answer.status, await answer.read(100)) == (200, b"{}")
        answer.release()
        head, body = serving.requests[0]
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /v1/chat/completions?a=%2F&b=%20c HTTP/1.1"
        assert body == b'{"model": "m"}'
        assert sorted(lines[1:-2]) == sorted(
            [
                f"Host: 127.0.0.1:{serving.port}",
                "Content-Type: application/json",
                "Authorization: Bearer sk-1",
                "X-Two: a",
                "X-Two: b",
                "Accept-Encoding: identity",
                "Content-Length: 14",
            ]
        )


async def test_headers_that_frame_the_request_are_the_clients_own(client: Client) -> None:
    async with provider(says(OK)) as serving, client() as upstream:
        stray = [
            ("Host", "elsewhere"), ("Content-Length", "999"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
            ("Expect", "100-continue"), ("Accept-Encoding", "br"),
        ]  # fmt: skip
        answer = await upstream.open(post(serving.port, headers=stray))
        await answer.read(10)
        head = serving.requests[0][0].decode().lower()
        assert "elsewhere" not in head
        assert "content-length: 999" not in head
        assert "chunked" not in head
        assert "close" not in head
        assert "100-continue" not in head
        assert head.count("accept-encoding: identity\r\n") == 1
        assert "br" not in head.split("accept-encoding")[1]


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "a\x7f", "a\udcff"])
async def test_a_header_that_would_inject_another_is_not_sent(client: Client, value: str) -> None:
    async with provider(says(OK)) as serving, client() as upstream:
        with pytest.raises(NotSent):
            await upstream.open(post(serving.port, headers=[("X-A", value)]))
        assert serving.connections == 0


async def test_a_header_beyond_ascii_passes(client: Client) -> None:
    async with provider(says(OK)) as serving, client() as upstream:
        await (await upstream.open(post(serving.port, headers=[("X-A", "é\tz")]))).read(10)
        assert "X-A: é\tz".encode() in serving.requests[0][0]


async def test_the_environments_proxy_is_not_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with provider(says(OK)) as serving, client() as upstream:
        assert (await upstream.open(post(serving.port))).status == 200


async def test_a_configured_proxy_is_used(client: Client) -> None:
    async with provider(says(OK)) as proxy, client(Endpoint(proxy=f"http://127.0.0.1:{proxy.port}")) as upstream:
        answer = await upstream.open(UpstreamRequest("http://provider.invalid/v1/models", "GET", [], b""))
        assert answer.status == 200
        assert proxy.requests[0][0].startswith(b"GET http://provider.invalid/v1/models HTTP/1.1\r\n")


# -- what is handed over --------------------------------------------------------------------------------------------------------


async def test_chunks_arrive_as_the_provider_sends_them(client: Client) -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    async with provider(script) as serving, client() as upstream:
        chunks = (await upstream.open(post(serving.port))).chunks()
        assert await anext(chunks) == b"first"
        go_on.set()
        assert [piece async for piece in chunks] == [b"second"]


async def test_a_wait_that_was_cancelled_can_be_repeated_and_loses_nothing(client: Client) -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await go_on.wait()
        writer.write(b"4\r\nlate\r\n0\r\n\r\n")

    async with provider(script) as serving, client() as upstream:
        chunks = (await upstream.open(post(serving.port))).chunks()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(chunks), 0.02)  # type: ignore[arg-type]
        go_on.set()
        assert [piece async for piece in chunks] == [b"late"]


async def test_what_is_poured_is_the_whole_body_and_no_piece_is_empty(client: Client) -> None:
    async with provider(says(CHUNKED + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            pieces.append(piece)
            return True

        assert await answer.pour(take)
        assert b"".join(pieces) == b"onetwo"
        assert b"" not in pieces


async def test_pouring_stops_when_it_is_told_to_and_what_follows_is_kept(client: Client) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for piece in (b"one", b"two", b"three"):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    async with provider(script) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        first: list[bytes] = []
        assert not await answer.pour(lambda piece: bool(first.append(piece)))
        rest: list[bytes] = []
        assert await answer.pour(lambda piece: rest.append(piece) is None)
        assert len(first) == 1
        assert b"".join(first + rest) == b"onetwothree"


async def test_what_the_taker_raises_comes_out_of_pour(client: Client) -> None:
    def fails(piece: bytes) -> bool:
        raise ArithmeticError(piece)

    async with provider(says(CHUNKED + b"3\r\none\r\n0\r\n\r\n")) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        with pytest.raises(ArithmeticError, match="one"):
            await answer.pour(fails)


async def test_a_body_that_breaks_off_is_poured_as_far_as_it_came(client: Client) -> None:
    async with provider(says_then_closes(CHUNKED + b"3\r\none\r\n3\r\ntw")) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        pieces: list[bytes] = []
        with pytest.raises(Unknown):
            await answer.pour(lambda piece: pieces.append(piece) is None)
        assert b"".join(pieces).startswith(b"one")


async def test_a_redirect_is_an_answer_and_is_not_followed(client: Client) -> None:
    raw = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with provider(says(raw)) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        assert (answer.status, answer.headers["Location"]) == (307, "http://127.0.0.1:1/")
        assert len(serving.requests) == 1


async def test_cookies_are_not_kept(client: Client) -> None:
    raw = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1; Path=/\r\nContent-Length: 2\r\n\r\n{}"
    async with provider(says(raw)) as serving, client() as upstream:
        for _ in range(2):
            answer = await upstream.open(post(serving.port))
            await answer.read(10)
            answer.release()
        assert b"cookie" not in serving.requests[1][0].lower()


@pytest.mark.parametrize(("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_an_answer_that_is_encoded_in_spite_of_identity_is_decoded(
    client: Client, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = encode(b'{"usage": 1}')
    raw = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(body))
    async with provider(says(raw + body)) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        assert "Content-Encoding" not in answer.headers
        assert "Content-Length" not in answer.headers
        assert await answer.read(100) == b'{"usage": 1}'


async def test_an_answer_past_the_limit_is_refused_and_its_connection_closed(client: Client) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 500_000
    async with provider(says(raw)) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        with pytest.raises(TooLarge):
            await answer.read(100_000)
        await asyncio.wait_for(serving.closed.wait(), 2)


async def test_a_small_encoded_answer_that_inflates_past_the_limit_is_refused(client: Client) -> None:
    body = gzip.compress(b"\0" * 20_000_000)
    raw = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with provider(says(raw + body)) as serving, client() as upstream:
        with pytest.raises(TooLarge):
            await (await upstream.open(post(serving.port))).read(1_000_000)


async def test_a_small_answer_that_becomes_a_large_one_leaves_others_their_turn() -> None:
    body = gzip.compress(b"\0" * 5_000_000)
    raw = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    turns: list[int] = []
    size = 0

    def take(piece: bytes) -> bool:
        nonlocal size
        size += len(piece)
        asyncio.get_running_loop().call_soon(lambda: turns.append(size))
        return True

    async with provider(says(raw + body)) as serving:
        upstream = LeanUpstream(Endpoint())
        assert await (await upstream.open(post(serving.port))).pour(take)
        await upstream.close()
    assert size == 5_000_000
    assert len(set(turns)) > 10  # of some 77 pieces: others saw it grow


async def test_a_connection_is_used_again_after_a_whole_answer_and_not_after_a_part(client: Client) -> None:
    async with provider(says(OK)) as serving, client() as upstream:
        for _ in range(3):
            answer = await upstream.open(post(serving.port))
            await answer.read(10)
            answer.release()
        assert serving.connections == 1


@pytest.mark.parametrize("leave", ["close", "release"])
async def test_a_connection_whose_answer_was_not_read_to_its_end_is_closed(client: Client, leave: str) -> None:
    async with provider(says(CHUNKED + b"4\r\ndata\r\n")) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        getattr(answer, leave)()
        await asyncio.wait_for(serving.closed.wait(), 2)
        await upstream.open(post(serving.port))
        assert serving.connections == 2


async def test_a_connection_that_was_idle_for_too_long_is_not_used_again(client: Client) -> None:
    async with provider(says(OK)) as serving, client(Endpoint(keepalive_s=0.05)) as upstream:
        for _ in range(2):
            answer = await upstream.open(post(serving.port))
            await answer.read(10)
            answer.release()
            await asyncio.sleep(0.15)
        assert serving.connections == 2


async def test_a_hundred_calls_have_a_hundred_connections(client: Client) -> None:
    everybody_is_here = asyncio.Event()
    waiting = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 120:
            everybody_is_here.set()
        await everybody_is_here.wait()
        writer.write(OK)

    async with provider(script) as serving, client() as upstream:
        answers = await asyncio.wait_for(asyncio.gather(*(upstream.open(post(serving.port)) for _ in range(120))), 10)
        assert {answer.status for answer in answers} == {200}


# -- what is said when things break -----------------------------------------------------------------------------------------------


async def test_a_refused_connection_was_not_sent(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with client() as upstream:
        with pytest.raises(NotSent):
            await upstream.open(post(port))


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/v1", "ftp://127.0.0.1/", "http:///v1", "http://[::1/", "/v1"])
async def test_a_host_that_does_not_exist_was_not_sent(client: Client, url: str) -> None:
    async with client() as upstream:
        with pytest.raises(NotSent):
            await upstream.open(UpstreamRequest(url, "POST", [], b"{}"))


async def test_a_failed_tls_handshake_was_not_sent(client: Client) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client() as upstream:
        with pytest.raises(NotSent):
            await upstream.open(UpstreamRequest(f"https://127.0.0.1:{port}/v1", "POST", [], b"{}"))
    server.close()


async def test_a_connection_that_is_not_made_in_time_was_not_sent(client: Client) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # never answers the TLS greeting
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client(Endpoint(connect_timeout_s=0.1)) as upstream:
        with pytest.raises(NotSent):
            await upstream.open(UpstreamRequest(f"https://127.0.0.1:{port}/v1", "POST", [], b"{}"))
    server.close()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


@pytest.mark.parametrize(
    "script",
    [
        closes,
        resets,
        says_then_closes(b"HTTP/1.1 200"),
        says_then_closes(b"HTTP/1.1 200 OK\r\nContent-Type: appl"),
        says_then_closes(b"this is not HTTP\r\n\r\n"),
        says_then_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        says_then_closes(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n"),
    ],
)
async def test_a_request_that_was_written_and_not_answered_is_unknown(client: Client, script: Script) -> None:
    async with provider(script) as serving, client() as upstream:
        with pytest.raises(Unknown):
            await upstream.open(post(serving.port))
        assert len(serving.requests) == 1, "a POST is never repeated"


async def test_silence_before_the_answer_is_unknown(client: Client) -> None:
    async with provider(says(b"")) as serving, client(Endpoint(idle_timeout_s=0.1)) as upstream:
        with pytest.raises(Unknown):
            await upstream.open(post(serving.port))
        await asyncio.wait_for(serving.closed.wait(), 2)


async def until_it_breaks(answer: Answer) -> bytes:
    """What arrived before Unknown was raised."""
    got = b""
    try:
        async for piece in answer.chunks():
            got += piece
    except Unknown as failure:
        said = str(failure)
    else:
        pytest.fail("the body ended cleanly")
    assert "<" not in said, "what aiohttp repeats in it has a status that nobody answered"
    return got


def says_and_then(*steps: bytes, end: Callable[[asyncio.StreamWriter], None]) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in steps:
            writer.write(step)
            await asyncio.sleep(0.03)
        end(writer)

    return script


@pytest.mark.parametrize("end", [lambda writer: writer.close(), reset], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "steps",
    [
        [CHUNKED + b"4\r\ndata\r\n"],
        [CHUNKED + b"4\r\ndata\r\n8\r\n"],
        [CHUNKED + b"4\r\ndata\r\n", b"not a length\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata"],
    ],
)
async def test_a_body_that_breaks_off_hands_over_what_arrived_and_never_ends_cleanly(
    client: Client, steps: list[bytes], end: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with provider(says_and_then(*steps, end=end)) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        await asyncio.sleep(0.15)  # the break has arrived as well before anyone reads
        assert await until_it_breaks(answer) == b"data"
        assert await until_it_breaks(answer) == b"", "it stays broken"


async def test_a_body_that_falls_silent_is_unknown(client: Client) -> None:
    async with (
        provider(says(CHUNKED + b"4\r\ndata\r\n")) as serving,
        client(Endpoint(idle_timeout_s=0.1)) as upstream,
    ):
        answer = await upstream.open(post(serving.port))
        with pytest.raises(Unknown):
            await all_of(answer)


async def test_cancelling_open_closes_the_connection(client: Client) -> None:
    async with provider(says(b"")) as serving, client() as upstream:
        opening = asyncio.create_task(upstream.open(post(serving.port)))
        await asyncio.wait_for(serving.asked.wait(), 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.wait_for(serving.closed.wait(), 2)


async def test_closing_an_answer_wakes_whoever_reads_it_and_the_provider_sees_it(client: Client) -> None:
    async with provider(says(CHUNKED)) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        reading = asyncio.create_task(all_of(answer))
        await asyncio.sleep(0.02)
        answer.close()
        with pytest.raises(Unknown):
            await asyncio.wait_for(reading, 2)
        await asyncio.wait_for(serving.closed.wait(), 2)
        answer.close()
        answer.release()


async def test_a_reader_that_pauses_slows_the_provider_down(client: Client) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            sent.append(1)
        writer.write(b"0\r\n\r\n")

    sent: list[int] = []
    async with provider(script) as serving, client() as upstream:
        answer = await upstream.open(post(serving.port))
        await asyncio.sleep(0.2)
        assert len(sent) < 500
        assert sum(len(piece) for piece in await all_of(answer)) == 1000 * 65536


# -- sending again ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [NOT_SENT, Failure(429), Failure(500), Failure(503), Failure(529)])
def test_what_was_provably_not_billed_is_sent_again_at_most_twice(failure: Failure) -> None:
    policy = RetryPolicy()
    assert policy.wait_s(failure, 1, 0.0, 0.0) == 0.25
    assert policy.wait_s(failure, 2, 0.25, 0.999) == pytest.approx(1.0, abs=0.01)
    assert policy.wait_s(failure, 3, 1.0, 0.0) is None


@pytest.mark.parametrize("status", [200, 307, 400, 401, 402, 404, 408, 409, 413, 422, 501, 502, 504, 520, 524, 530])
def test_nothing_else_is_sent_again(status: int) -> None:
    assert RetryPolicy().wait_s(Failure(status), 1, 0.0, 0.0) is None


def test_retry_after_is_honoured_when_it_is_short_and_passed_on_when_it_is_long() -> None:
    policy = RetryPolicy()
    assert policy.wait_s(Failure(429, retry_after_s=3.0), 1, 0.0, 0.0) == 3.0
    assert policy.wait_s(Failure(429, retry_after_s=6.0), 2, 3.0, 0.0) is None
    assert policy.wait_s(Failure(429, retry_after_s=60.0), 1, 0.0, 0.0) is None


def test_a_provider_that_says_no_more_is_believed() -> None:
    failure = Failure.of(429, {"x-should-retry": "false"}, 0.0)
    assert RetryPolicy().wait_s(failure, 1, 0.0, 0.0) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "."}, None),
        ({"retry-after": "²"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], expected: float | None) -> None:
    assert Failure.of(429, headers, now_s=10.0).retry_after_s == expected
