"""The HTTP edge over real sockets: raw bytes in, raw bytes out."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from gateway.server.connection import Timeouts
from gateway.server.edge import Edge, Limits
from gateway.server.guards import Guards
from gateway.server.outlet import HttpOutlet
from gateway.server.routes import Route, Routes
from gateway.wire.exchange import ClientGone, Inbound, Outlet, Reply

Handler = Callable[[Inbound, Outlet], Awaitable[None]]
CHAT = "/v1/chat/completions"


class Running:
    def __init__(self, edge: Edge, port: int) -> None:
        self.edge = edge
        self.port = port
        self.seen: list[Inbound] = []
        self.reports: list[tuple[str, BaseException]] = []
        self.shed: list[str] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**26)

    async def send(self, raw: bytes) -> "Response":
        """One request on its own connection; what comes back, until it ends or the connection does."""
        reader, writer = await self.connect()
        try:
            writer.write(raw)
            return await asyncio.wait_for(Response.read(reader), 5)
        finally:
            writer.close()


class Response:
    def __init__(self, status: int, headers: dict[str, list[str]], body: bytes, whole: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.whole = whole

    @classmethod
    async def read(cls, reader: asyncio.StreamReader, *, head: bool = False) -> "Response":
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        assert lines[0].startswith("HTTP/1.1 ")
        headers: dict[str, list[str]] = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        status = int(lines[0].split()[1])
        body, whole = b"", True
        try:
            if head or status in (204, 304):
                pass
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"][0]))
            elif "transfer-encoding" in headers:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            else:
                body = await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            whole = False
        return cls(status, headers, body, whole)

    def code(self) -> str:
        """The problem's code; checks that it has our shape."""
        assert self.headers["content-type"] == ["application/problem+json"]
        body = json.loads(self.body)
        assert body["status"] == self.status
        assert body["error"]["message"] == body["detail"]
        assert len(self.headers["x-request-id"]) == 1
        assert isinstance(body["code"], str)
        return str(body["code"])


async def echo(inbound: Inbound, outlet: Outlet) -> None:
    await outlet.answer(200, [("Content-Type", "text/plain")], inbound.body)


async def hello(inbound: Inbound, parameters: Mapping[str, str]) -> Reply:
    return Reply(200, json.dumps(dict(parameters)).encode(), [("Content-Type", "application/json")])


@asynccontextmanager
async def serving(
    handler: Handler = echo,
    *,
    max_request: int = 100_000,
    timeouts: Timeouts | None = None,
    guards: Guards | None = None,
    max_connections: int = 1_000,
    max_calls: int = 1_000,
) -> AsyncIterator[Running]:
    async def seen(inbound: Inbound, outlet: Outlet) -> None:
        running.seen.append(inbound)
        await handler(inbound, outlet)

    routes = Routes({("POST", CHAT): seen, ("GET", "/v1/models"): seen}, [Route("GET", "/budget/runs/{id}", hello)])
    edge = Edge(
        routes,
        Limits(max_request, timeouts or Timeouts(), max_connections, max_calls),
        guards or Guards(),
        lambda what, failure: running.reports.append((what, failure)),
        lambda reason: running.shed.append(reason),  # noqa: PLW0108 - there is no `running` yet
    )
    running = Running(edge, 0)
    running.port = await edge.listen("127.0.0.1", 0)
    try:
        yield running
    finally:
        await edge.drain(0, lambda: None)


def post(body: bytes = b"{}", *headers: str, path: str = CHAT, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers]).encode() + b"\r\n\r\n"


# -- what a handler gets ----------------------------------------------------------------------------------------------------------


async def test_a_request_reaches_its_handler_as_it_was_sent() -> None:
    async with serving() as running:
        answer = await running.send(post(b'{"a": 1}', "X-Run-Id: r1", "X-Two: a", "X-Two: b", path=f"/run/r%3A1{CHAT}?q=%2F&p"))
        assert (answer.status, answer.body) == (200, b'{"a": 1}')
        (inbound,) = running.seen
        assert (inbound.method, inbound.path, inbound.query, inbound.path_run) == ("POST", CHAT, "q=%2F&p", "r%3A1")
        assert inbound.headers.getall("x-two") == ["a", "b"]
        assert inbound.body == b'{"a": 1}'


async def test_a_page_gets_its_parameters() -> None:
    async with serving() as running:
        assert json.loads((await running.send(get("/budget/runs/r%3A1"))).body) == {"id": "r:1"}


async def test_a_chunked_body_and_one_that_comes_in_pieces_are_put_together() -> None:
    async with serving() as running:
        assert (await running.send(post(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "Transfer-Encoding: chunked"))).body == b"abcde"
        reader, writer = await running.connect()
        raw = post(b"x" * 50_000)
        for start in range(0, len(raw), 10_000):
            writer.write(raw[start : start + 10_000])
            await asyncio.sleep(0.01)
        assert (await Response.read(reader)).body == b"x" * 50_000
        writer.close()


@pytest.mark.parametrize(("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)])
async def test_an_encoded_body_is_inflated(coding: str, encode: Callable[[bytes], bytes]) -> None:
    async with serving() as running:
        assert (await running.send(post(encode(b'{"a": 1}'), f"Content-Encoding: {coding}"))).body == b'{"a": 1}'


async def test_a_body_that_inflates_past_the_limit_is_413_and_another_coding_415() -> None:
    async with serving() as running:
        assert (await running.send(post(gzip.compress(b"\0" * 200_000), "Content-Encoding: gzip"))).code() == "request_too_large"
        assert (await running.send(post(b"x", "Content-Encoding: zstd"))).code() == "unsupported_encoding"
        assert (await running.send(post(b"x", "Content-Encoding: gzip"))).code() == "ambiguous_request"
        assert running.seen == []


async def test_a_body_of_twenty_megabytes_passes() -> None:
    async with serving(max_request=20 * 1024 * 1024) as running:
        body = b"x" * (20 * 1024 * 1024)
        answer = await running.send(post(body))
        assert answer.body == body


async def test_expect_100_continue_gets_its_continue() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(post(b"", "Expect: 100-continue", "Content-Length: 2"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await Response.read(reader)).body == b"{}"
        writer.close()


# -- limits -------------------------------------------------------------------------------------------------------------------------


async def test_a_declared_length_above_the_limit_is_413_without_reading() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(post(b"", "Content-Length: 100001", "Expect: 100-continue"))
        answer = await asyncio.wait_for(Response.read(reader), 2)
        assert answer.code() == "request_too_large"
        assert answer.headers["connection"] == ["close"]
        writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_sends_everything_first_still_sees_the_413(chunked: bool) -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        body = b"x" * 3_000_000
        if chunked:
            raw = post(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked")
        else:
            raw = post(body)
        for start in range(0, len(raw), 100_000):
            writer.write(raw[start : start + 100_000])
            await writer.drain()
        assert (await asyncio.wait_for(Response.read(reader), 5)).code() == "request_too_large"
        writer.close()


async def test_exactly_the_limit_passes() -> None:
    async with serving() as running:
        assert (await running.send(post(b"x" * 100_000))).status == 200
        assert (await running.send(post(b"x" * 100_001))).status == 413


async def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async with serving(timeouts=Timeouts(body_s=0.1)) as running:
        answer = await running.send(post(b"half", "Content-Length: 8"))
        assert (answer.status, answer.code()) == (400, "bad_request")
        assert running.seen == []


async def test_a_client_that_leaves_within_its_body_is_forgotten() -> None:
    async with serving() as running:
        _reader, writer = await running.connect()
        writer.write(post(b"half", "Content-Length: 8"))
        await asyncio.sleep(0.05)
        assert running.edge.live == 1
        writer.close()
        await asyncio.sleep(0.05)
        assert running.edge.live == 0
        assert running.seen == []
        assert running.reports == []


# -- errors take our shape --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (get("/nope"), 404, "not_found"),
        (get("/"), 404, "not_found"),
        (get("*", method="OPTIONS"), 404, "not_found"),
        (get("/v1/embeddings"), 404, "route_not_metered"),
        (post(b"{}", path="/v1//chat/completions"), 404, "route_not_metered"),
        (post(b"{}", path="/V1/Chat/Completions"), 404, "not_found"),
        (post(b"{}", path="http://localhost/v1/chat/completions"), 404, "not_found"),
        (get(CHAT), 405, "method_not_allowed"),
        (get(CHAT, "Connection: Upgrade", "Upgrade: WebSocket"), 426, "upgrade_refused"),
        (get("/nope", "Connection: Upgrade", "Upgrade: websocket"), 404, "not_found"),
        (get(CHAT, method="OPTIONS"), 405, "method_not_allowed"),
        (get(CHAT, method="PROPFIND"), 405, "method_not_allowed"),
        (get("localhost:443", method="CONNECT"), 404, "not_found"),
        (get(CHAT, "Origin: https://evil.example"), 403, "origin_not_allowed"),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "host_not_allowed"),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 403, "host_not_allowed"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (get("/v1/models", "X-Bad\x01: a"), 400, "bad_request"),
        (get("/v1/models", "No colon"), 400, "bad_request"),
        (get("/v1/models", "X: a\x00b"), 400, "bad_request"),
        (get("/v1/models", "X-Long: " + "x" * 20_000), 431, "headers_too_large"),
        (get("/" + "x" * 20_000), 431, "headers_too_large"),
        (get("/v1/models", *(f"X-{n}: a" for n in range(500))), 400, "bad_request"),
        (post(b"{}", "Content-Length: 2", "Content-Length: 3"), 400, "bad_request"),
        (post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"), 400, "bad_request"),
        (post(b"{}", "Content-Length: -1"), 400, "bad_request"),
        (post(b"{}", "Content-Length: 99999999999999999999999"), 400, "bad_request"),
        (post(b"not a length\r\n", "Transfer-Encoding: chunked"), 400, "bad_request"),
        (post(b"{}", "Transfer-Encoding: gzip"), 400, "bad_request"),
    ],
)  # fmt: skip
async def test_what_is_no_request_of_ours_is_a_clear_refusal(raw: bytes, status: int, code: str) -> None:
    async with serving() as running:
        answer = await running.send(raw)
        assert (answer.status, answer.code()) == (status, code)
        assert answer.headers["x-should-retry"] == ["false"]
        assert running.seen == []
        assert running.reports == []


async def test_a_chunked_body_that_breaks_later_is_refused_at_once() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(post(b"3\r\nabc\r\n", "Transfer-Encoding: chunked"))
        await asyncio.sleep(0.05)
        writer.write(b"not a length\r\n")
        assert (await asyncio.wait_for(Response.read(reader), 1)).code() == "bad_request"
        assert await asyncio.wait_for(reader.read(), 1) == b"", "the connection is closed"
        writer.close()
        assert running.seen == []


async def test_a_wrong_method_names_the_right_one() -> None:
    async with serving() as running:
        assert (await running.send(get(CHAT))).headers["allow"] == ["POST"]


async def test_a_handler_that_fails_is_500_without_details_and_one_report() -> None:
    async def fails(inbound: Inbound, outlet: Outlet) -> None:
        raise LookupError("secret sk-123")

    async with serving(fails) as running:
        answer = await running.send(post())
        assert (answer.status, answer.code()) == (500, "internal_error")
        assert b"secret" not in answer.body
        ((what, failure),) = running.reports
        assert answer.headers["x-request-id"][0] in what
        assert isinstance(failure, LookupError)


async def test_a_handler_that_fails_within_a_stream_cuts_it() -> None:
    async def fails(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        await outlet.write(b"first")
        raise LookupError

    async with serving(fails) as running:
        answer = await running.send(post())
        assert (answer.body, answer.whole) == (b"first", False)
        assert len(running.reports) == 1


async def test_a_handler_that_forgets_to_answer_or_to_finish_is_not_taken_for_complete() -> None:
    async def forgets(inbound: Inbound, outlet: Outlet) -> None:
        if inbound.body == b"stream":
            await outlet.start(200, [])
            await outlet.write(b"x")

    async with serving(forgets) as running:
        assert (await running.send(post())).code() == "internal_error"
        assert not (await running.send(post(b"stream"))).whole


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00"])
async def test_a_header_that_would_inject_another_is_never_sent(value: str) -> None:
    async def injects(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.answer(200, [("X-A", value)], b"")

    async with serving(injects) as running:
        answer = await running.send(post())
        assert answer.code() == "internal_error"
        assert "x-evil" not in answer.headers


# -- answers ----------------------------------------------------------------------------------------------------------------------------


async def test_a_stream_arrives_as_it_is_written_and_ends_cleanly() -> None:
    go_on = asyncio.Event()

    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        assert not outlet.started
        await outlet.start(200, [("Content-Type", "text/event-stream")])
        assert outlet.started
        await outlet.write(b"data: 1\n\n")
        await outlet.write(b"")
        await go_on.wait()
        await outlet.write(b"data: 2\n\n")
        await outlet.finish()

    async with serving(streams) as running:
        reader, writer = await running.connect()
        for _ in range(2):  # the second on the same connection
            go_on.clear()
            writer.write(post())
            assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"
            go_on.set()
            assert await reader.readexactly(19) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        writer.close()


async def test_an_aborted_stream_hands_over_what_was_written_and_does_not_end_cleanly() -> None:
    async def aborts(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        await outlet.write(b"part")
        await outlet.write(b"error event")
        outlet.abort()
        outlet.abort()
        with pytest.raises(ClientGone):
            await outlet.write(b"more")

    async with serving(aborts) as running:
        answer = await running.send(post())
        assert (answer.body, answer.whole) == (b"parterror event", False)
        assert running.reports == []


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection_and_a_reset_on_abort() -> None:
    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        await outlet.write(b"part")
        await asyncio.sleep(0.05)
        if inbound.body == b"abort":
            outlet.abort()
        else:
            await outlet.finish()

    async with serving(streams) as running:
        answer = await running.send(post(version="1.0"))
        assert (answer.body, answer.whole) == (b"part", True)
        assert "transfer-encoding" not in answer.headers
        assert not (await running.send(post(b"abort", version="1.0"))).whole


async def test_head_and_204_have_no_body() -> None:
    async def answers(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.answer(200 if inbound.method == "HEAD" else 204, [], b"12345")

    async with serving(answers) as running:
        reader, writer = await running.connect()
        writer.write(get("/v1/models", method="HEAD") + get("/v1/models") + get("/nope", method="HEAD") + get("/nope"))
        head = await Response.read(reader, head=True)
        assert (head.status, head.headers["content-length"]) == (200, ["5"])
        empty = await Response.read(reader)
        assert empty.status == 204
        assert "content-length" not in empty.headers
        assert (await Response.read(reader, head=True)).status == 404
        assert (await Response.read(reader)).code() == "not_found"
        writer.close()


async def test_framing_headers_of_a_handler_are_not_sent() -> None:
    async def strays(inbound: Inbound, outlet: Outlet) -> None:
        stray = [
            ("Content-Length", "999"),
            ("transfer-encoding", "chunked"),
            ("Connection", "close"),
            ("X-Request-ID", "other"),
            ("date", "d"),
        ]
        await outlet.answer(200, stray, b"ok")

    async with serving(strays) as running:
        answer = await running.send(post(b"{}", "X-Request-Id: mine"))
        assert answer.body == b"ok"
        assert answer.headers["content-length"] == ["2"]
        assert answer.headers["x-request-id"] == ["mine"]
        assert answer.headers["date"] == ["d"]
        assert "connection" not in answer.headers


@pytest.mark.parametrize("given", ["a b", "x" * 129, "é", "a,b", ""])
async def test_a_request_id_that_is_not_safe_is_replaced(given: str) -> None:
    async with serving() as running:
        answer = await running.send(post(b"{}", f"X-Request-Id: {given}"))
        (made,) = answer.headers["x-request-id"]
        assert made.startswith("req_")
        assert running.seen[0].request_id == made


async def test_a_connection_serves_many_requests_also_after_a_refusal() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        for body in (b"1", b"2"):
            writer.write(post(body))
            assert (await Response.read(reader)).body == body
        writer.write(post(b"{}", path="/nope"))
        assert (await Response.read(reader)).code() == "not_found"
        writer.write(post(b"3") + post(b"4"))  # pipelined
        assert [(await Response.read(reader)).body, (await Response.read(reader)).body] == [b"3", b"4"]
        writer.close()


@pytest.mark.parametrize(
    "raw",
    [
        post(b"5", "Connection: close"),
        post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Connection: close"),
        get("/v1/models", "Connection: close"),
        get("/v1/models", "Connection: keep-alive, close"),
        get("/nope", "Connection: close"),
        post(b"5", version="1.0"),
        post(b"", version="1.0"),
    ],
)
async def test_a_client_that_wants_its_connection_closed_gets_that(raw: bytes) -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(raw)
        assert (await Response.read(reader)).headers["connection"] == ["close"]
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()


async def test_an_old_client_may_ask_to_keep_its_connection() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        for body in (b"", b"2"):
            writer.write(post(body, "Connection: keep-alive", version="1.0"))
            answer = await Response.read(reader)
            assert (answer.body, answer.headers["connection"]) == (body, ["keep-alive"])
        writer.close()


async def test_an_idle_connection_is_closed_and_so_is_one_that_never_finishes_its_head() -> None:
    async with serving(timeouts=Timeouts(idle_s=0.1)) as running:
        for sent in (b"", post(b"{}"), post(b"{}") + b"POST /v1/ch"):
            reader, writer = await running.connect()
            writer.write(sent)
            await asyncio.wait_for(reader.read(), 2)
            writer.close()


async def test_an_upgrade_is_not_taken() -> None:
    async with serving() as running:
        answer = await running.send(get("/v1/models", "Connection: Upgrade", "Upgrade: websocket"))
        assert (answer.status, answer.headers["connection"]) == (200, ["close"])


# -- clients that leave, or do not read -----------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_is_noticed_and_the_handler_goes_on() -> None:
    told = asyncio.Event()
    told_again = asyncio.Event()
    done = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        outlet.on_gone(told.set)
        await outlet.start(200, [])
        await told.wait()
        outlet.on_gone(told_again.set)
        with pytest.raises(ClientGone):
            await outlet.write(b"x")
        with pytest.raises(ClientGone):
            await outlet.finish()
        await asyncio.sleep(0.02)  # settling
        done.set()

    async with serving(waits) as running:
        reader, writer = await running.connect()
        writer.write(post())
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await asyncio.wait_for(done.wait(), 2)
        assert told_again.is_set()
        assert running.reports == []


async def test_a_client_that_leaves_before_the_answer_is_noticed() -> None:
    told = asyncio.Event()
    gone = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        outlet.on_gone(told.set)
        await told.wait()
        try:
            await outlet.answer(200, [], b"late")
        except ClientGone:
            gone.set()
            raise

    async with serving(waits) as running:
        _, writer = await running.connect()
        writer.write(post())
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.wait_for(gone.wait(), 2)
        await asyncio.sleep(0)
        assert running.reports == []


async def test_a_handler_that_is_told_of_a_closing_connection_owes_no_answer() -> None:
    """The connection's loss is announced a turn after its end."""
    told: list[int] = []

    async def gives_up(inbound: Inbound, outlet: Outlet) -> None:
        assert isinstance(outlet, HttpOutlet)
        transport = outlet._line.transport
        assert transport is not None
        transport.close()
        outlet.on_gone(lambda: told.append(1))

    async with serving(gives_up) as running:
        _, writer = await running.connect()
        writer.write(post())
        await asyncio.sleep(0.05)
        writer.close()
        assert told == [1]
        assert running.reports == []


async def test_nobody_is_called_back_for_a_client_that_left_after_its_answer() -> None:
    calls: list[int] = []

    async def answers(inbound: Inbound, outlet: Outlet) -> None:
        outlet.on_gone(lambda: calls.append(1))
        await outlet.answer(200, [], b"ok")

    async with serving(answers) as running:
        await running.send(post())
        await asyncio.sleep(0.05)
        assert calls == []


async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing() -> None:
    written = 0

    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        nonlocal written
        await outlet.start(200, [])
        for _ in range(500):
            await outlet.write(b"x" * 65536)
            written += 1
        await outlet.finish()

    async with serving(streams) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=4096)
        writer.write(post())
        await asyncio.sleep(0.3)
        assert written < 400
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while length := int(await reader.readuntil(b"\r\n"), 16):
            size += length
            await reader.readexactly(length + 2)
        assert size == 500 * 65536
        writer.close()


async def test_a_client_that_stops_reading_loses_its_connection() -> None:
    ended = asyncio.Event()

    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        try:
            while True:
                await outlet.write(b"x" * 65536)
        except ClientGone:
            ended.set()
            raise

    async with serving(streams, timeouts=Timeouts(stall_s=0.2)) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=4096)
        writer.write(post())
        await asyncio.wait_for(ended.wait(), 5)
        writer.close()


async def test_a_write_that_was_cancelled_while_it_waited_does_not_break_the_next() -> None:
    outcome: list[str] = []

    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        for _ in range(3):
            try:
                async with asyncio.timeout(0.1):
                    while True:
                        await outlet.write(b"x" * 262_144)
            except TimeoutError:
                outcome.append("cancelled")
        await outlet.finish()

    async with serving(streams) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=4096)
        writer.write(post())
        await asyncio.sleep(0.6)
        assert (await asyncio.wait_for(Response.read(reader), 5)).whole
        assert outcome == ["cancelled"] * 3
        writer.close()


# -- too much to do -------------------------------------------------------------------------------------------------------------------------


def assert_shed(answer: Response) -> None:
    assert (answer.status, answer.code()) == (503, "overloaded")
    assert answer.headers["retry-after"][0] in "123"
    assert "x-should-retry" not in answer.headers


async def test_one_connection_too_many_is_told_so_and_closed() -> None:
    async with serving(max_connections=2) as running:
        first, second = await running.connect(), await running.connect()
        for reader, writer in (first, second):
            writer.write(post())
            assert (await Response.read(reader)).status == 200
        reader, writer = await running.connect()
        assert_shed(await asyncio.wait_for(Response.read(reader), 2))
        assert await reader.read() == b""
        writer.write(post())  # what it would have asked is read away
        writer.close()
        assert running.shed == ["connections"]
        first[1].write(post())
        assert (await Response.read(first[0])).status == 200
        first[1].close()
        await asyncio.sleep(0.05)
        assert (await running.send(post())).status == 200
        second[1].close()


async def test_one_call_too_many_is_refused_at_once_and_pages_still_answer() -> None:
    go_on = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        await go_on.wait()
        await outlet.answer(200, [], b"done")

    async with serving(waits, max_calls=2) as running:
        clients = [await running.connect() for _ in range(2)]
        for _, writer in clients:
            writer.write(post())
        await asyncio.sleep(0.05)
        assert running.edge.shedding == "calls"
        reader, writer = await running.connect()
        for body in (b"{}", b"{}"):  # the connection stays
            writer.write(post(body))
            assert_shed(await asyncio.wait_for(Response.read(reader), 2))
        assert (await running.send(get("/budget/runs/r1"))).status == 200
        assert (await running.send(get("/nope"))).status == 404
        waiting, slow = await running.connect()
        slow.write(post(b"", "Content-Length: 2", "Expect: 100-continue"))
        answer = await asyncio.wait_for(Response.read(waiting), 2)
        assert_shed(answer)
        assert answer.headers["connection"] == ["close"], "its body was not waited for"
        assert running.shed == ["calls"] * 3
        go_on.set()
        for each, _ in clients:
            assert (await Response.read(each)).body == b"done"
        assert running.edge.shedding is None
        writer.write(post())
        assert (await Response.read(reader)).status == 200
        for each in (writer, slow, *(writer for _, writer in clients)):
            each.close()


async def test_a_body_that_is_whole_when_all_places_are_taken_is_refused_too() -> None:
    go_on = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        await go_on.wait()
        await outlet.answer(200, [], b"done")

    async with serving(waits, max_calls=1) as running:
        late_reader, late = await running.connect()
        late.write(post(b"{", "Content-Length: 2"))
        await asyncio.sleep(0.05)
        reader, writer = await running.connect()
        writer.write(post())
        await asyncio.sleep(0.05)
        late.write(b"}")
        assert_shed(await asyncio.wait_for(Response.read(late_reader), 2))
        go_on.set()
        assert (await Response.read(reader)).body == b"done"
        late.write(post())
        assert (await Response.read(late_reader)).status == 200
        late.close()
        writer.close()


async def test_while_the_event_loop_is_late_new_calls_are_refused_and_those_under_way_go_on() -> None:
    go_on = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        await go_on.wait()
        await outlet.answer(200, [], b"done")

    async with serving(waits) as running:
        reader, writer = await running.connect()
        writer.write(post())
        await asyncio.sleep(0.05)
        now = asyncio.get_running_loop().time()
        for late in range(6):
            running.edge.tick(now + 10 * late)
        assert running.edge.shedding == "lag"
        assert_shed(await running.send(post()))
        assert (await running.send(get("/budget/runs/r1"))).status == 200
        assert running.shed == ["lag"]
        go_on.set()
        assert (await Response.read(reader)).body == b"done"
        writer.close()


# -- shutting down -----------------------------------------------------------------------------------------------------------------------------


async def test_draining_closes_idle_connections_at_once_and_lets_live_ones_finish() -> None:
    go_on = asyncio.Event()

    async def waits(inbound: Inbound, outlet: Outlet) -> None:
        if inbound.body == b"wait":
            await go_on.wait()
        await outlet.answer(200, [], b"done")

    async with serving(waits) as running:
        idle_reader, idle_writer = await running.connect()
        idle_writer.write(post())
        await Response.read(idle_reader)
        reader, writer = await running.connect()
        writer.write(post(b"wait"))
        half_reader, half_writer = await running.connect()
        half_writer.write(post(b"ha", "Content-Length: 4"))
        await asyncio.sleep(0.05)
        settled: list[int] = []
        draining = asyncio.create_task(running.edge.drain(5, lambda: settled.append(1)))
        assert await asyncio.wait_for(idle_reader.read(), 1) == b""
        with pytest.raises(ConnectionRefusedError):
            await running.connect()
        half_writer.write(b"lf")
        assert (await asyncio.wait_for(Response.read(half_reader), 1)).body == b"done"
        assert not draining.done()
        go_on.set()
        answer = await asyncio.wait_for(Response.read(reader), 1)
        assert (answer.body, answer.headers["connection"]) == (b"done", ["close"])
        assert await reader.read() == b""
        await asyncio.wait_for(draining, 1)
        assert settled == []
        for each in (idle_writer, writer, half_writer):
            each.close()


async def test_after_the_grace_handlers_are_told_to_settle() -> None:
    stop = asyncio.Event()

    async def streams(inbound: Inbound, outlet: Outlet) -> None:
        await outlet.start(200, [])
        await stop.wait()
        await outlet.write(b"error event")
        outlet.abort()

    async with serving(streams) as running:
        reader, writer = await running.connect()
        writer.write(post())
        reading = asyncio.create_task(Response.read(reader))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(running.edge.drain(0.05, stop.set), 2)
        answer = await reading
        assert (answer.body, answer.whole) == (b"error event", False)
        writer.close()


async def test_whoever_does_not_settle_loses_its_connection_and_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.edge.SETTLE_S", 0.05)
    monkeypatch.setattr("gateway.server.edge.CANCEL_S", 0.05)
    ends: list[str] = []

    async def hangs(inbound: Inbound, outlet: Outlet) -> None:
        outlet.on_gone(lambda: ends.append("gone"))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async with serving(hangs) as running:
        _reader, writer = await running.connect()
        writer.write(post())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(running.edge.drain(0.05, lambda: ends.append("settle")), 2)
        await asyncio.sleep(0.05)
        assert ends == ["settle", "gone", "cancelled"]
        assert running.edge.live == 0
        writer.close()
