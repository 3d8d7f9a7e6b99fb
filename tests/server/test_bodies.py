"""How much of large request bodies the edge takes in at once, and that what it counted is given back however an exchange ends."""

import asyncio
import gzip
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.server.connection import Timeouts
from gateway.server.edge import Edge, Limits
from gateway.server.guards import Guards
from gateway.server.routes import Routes
from gateway.wire.exchange import Inbound, Outlet
from gateway.wire.problem import Refused, problem

CHAT = "/v1/chat/completions"
LARGEST, ALL = 400_000, 1_000_000


class Here:
    """An edge whose handler answers with the body's length, once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.shed: list[str] = []
        self.arrived = 0
        self.edge = Edge(
            Routes({("POST", CHAT): self.answer}, []),
            Limits(LARGEST, Timeouts(body_s=1.0), max_bodies=ALL),
            Guards(),
            lambda what, failure: None,
            self.shed.append,
        )

    async def answer(self, inbound: Inbound, outlet: Outlet) -> None:
        self.arrived += 1
        size = len(inbound.body)
        inbound.body = b""
        await self.go.wait()
        if inbound.query == "bug":
            raise RuntimeError("a bug")
        if inbound.query == "refused":
            raise Refused(problem("overloaded", "no"))
        await outlet.answer(200, [], b"%d" % size)

    @property
    def kept(self) -> int:
        return self.edge._bodies.held

    async def until(self, arrived: int) -> None:
        async with asyncio.timeout(30):
            while self.arrived < arrived:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.005)

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with suppress(ConnectionError):
                writer.write(raw)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                return int(head[9:12]), await reader.readexactly(length)
            return 0, b""
        finally:
            writer.close()

    port = 0


@asynccontextmanager
async def here() -> AsyncIterator[Here]:
    running = Here()
    running.port = await running.edge.listen("127.0.0.1", 0)
    try:
        yield running
    finally:
        await running.edge.drain(0, lambda: None)
    assert running.kept == 0


def post(body: bytes, *headers: str, query: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    framing = [] if "Transfer-Encoding: chunked" in headers else [f"Content-Length: {size}"]
    return "\r\n".join([f"POST {CHAT}?{query} HTTP/1.1", "Host: localhost", *framing, *headers]).encode() + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


async def test_large_bodies_are_counted_until_their_exchange_has_ended_and_small_ones_are_not() -> None:
    async with here() as running:
        running.go.clear()
        asked = [asyncio.create_task(running.ask(post(b"x" * size))) for size in (65_536, 65_537, 300_000)]
        await running.until(3)
        assert running.kept == 65_537 + 300_000
        running.go.set()
        assert [body for _, body in await asyncio.gather(*asked)] == [b"65536", b"65537", b"300000"]


async def test_beyond_what_is_kept_at_once_a_large_request_is_refused_by_its_head_and_a_small_one_passes() -> None:
    async with here() as running:
        running.go.clear()
        asked = [asyncio.create_task(running.ask(post(b"x" * 400_000))) for _ in range(2)]
        await running.until(2)
        status, body = await running.ask(post(b"", length=300_000))  # none of it was sent
        assert (status, b'"overloaded"' in body, running.shed) == (503, True, ["bodies"])
        assert (await running.ask(post(b"", length=LARGEST + 1)))[0] == 413, "which has nothing to do with room"
        small = asyncio.create_task(running.ask(post(b"x" * 1_000)))
        await running.until(3)
        running.go.set()
        assert [status for status, _ in await asyncio.gather(*asked, small)] == [200] * 3
        assert (await running.ask(post(b"x" * 400_000)))[0] == 200


@pytest.mark.parametrize("framed", ["by its length", "in chunks"])
async def test_a_body_is_counted_as_it_comes(framed: str) -> None:
    async with here() as running:
        running.go.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        raw = post(b"x" * 200_000)
        if framed == "in chunks":
            raw = post(chunked(b"x" * 200_000), "Transfer-Encoding: chunked")
        writer.write(raw[:100_000])
        async with asyncio.timeout(30):
            while running.kept < 90_000:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.005)
        assert running.kept <= 100_000
        writer.write(raw[100_000:])
        await running.until(1)
        assert running.kept == 200_000
        running.go.set()
        await reader.readuntil(b"\r\n\r\n200000")
        writer.close()


async def test_whoever_announces_large_bodies_and_does_not_send_them_keeps_nobody_out() -> None:
    async with here() as running:
        announced = [post(b"", length=LARGEST), post(b"5\r\nxxxxx\r\n", "Transfer-Encoding: chunked")] * 10
        idle = [await asyncio.open_connection("127.0.0.1", running.port) for _ in announced]
        for (_, writer), raw in zip(idle, announced, strict=True):
            writer.write(raw)
        async with asyncio.timeout(30):
            while running.edge.live < len(idle):  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.005)
        assert (await running.ask(post(b"x" * 400_000)))[0] == 200
        assert running.shed == []
        for _, writer in idle:
            writer.close()


async def test_a_body_that_grows_beyond_the_room_there_is_is_refused_while_it_comes() -> None:
    async with here() as running:
        running.go.clear()
        asked = [asyncio.create_task(running.ask(post(b"x" * 400_000))) for _ in range(2)]
        await running.until(2)
        half = post(b"%x\r\n" % 400_000 + b"x" * 300_000, "Transfer-Encoding: chunked")
        status, body = await running.ask(half)
        assert (status, b'"overloaded"' in body, running.shed, running.kept) == (503, True, ["bodies"], 800_000)
        running.go.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 2


async def test_an_encoded_body_is_counted_as_it_was_inflated() -> None:
    async with here() as running:
        running.go.clear()
        asked = [
            asyncio.create_task(running.ask(post(gzip.compress(b"x" * 390_000), "Content-Encoding: gzip"))) for _ in range(3)
        ]
        await running.until(2)
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert ([task.result()[0] for task in done], running.shed, running.kept) == ([503], ["bodies"], 780_000)
        running.go.set()
        assert sorted(status for status, _ in await asyncio.gather(*asked)) == [200, 200, 503]


@pytest.mark.parametrize("seed", range(3))
async def test_however_hundreds_of_exchanges_end_nothing_is_counted_in_the_end(seed: int) -> None:
    """Answered, refused, failed, too large, never whole, badly framed, left at any moment."""
    draw = random.Random(seed)
    async with here() as running:

        async def exchange() -> None:
            body = b"x" * draw.choice((10, 66_000, 150_000, 399_000, 500_000))
            query = draw.choice(("", "", "bug", "refused"))
            coding = draw.choice(("length", "length", "chunked", "gzip", "broken"))
            if coding == "chunked":
                raw = post(chunked(body), "Transfer-Encoding: chunked", query=query)
            elif coding == "gzip":
                raw = post(gzip.compress(body), "Content-Encoding: gzip", query=query)
            elif coding == "broken":
                raw = post(b"1000\r\n" + body, "Transfer-Encoding: chunked", query=query)
            else:
                raw = post(body, query=query)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(draw.choice((0.01, 0.05, 1))):
                    writer.write(raw[: draw.choice((len(raw), len(raw), len(raw) // 2))])
                    await writer.drain()
                    await reader.read(draw.choice((1, 1_000)))
            writer.transport.abort() if draw.random() < 0.5 else writer.close()

        for _ in range(4):
            await asyncio.gather(*[exchange() for _ in range(40)])
        async with asyncio.timeout(30):
            while running.edge.live:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.01)
        assert running.kept == 0
        assert not running.edge._kept
        assert "bodies" in running.shed
        assert (await running.ask(post(b"x" * 400_000)))[0] == 200


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_body_is_gone_as_soon_as_its_handler_lets_go_of_it(pieces: int) -> None:
    """The answer may take minutes, and nobody else holds it meanwhile."""
    held: list[int] = []

    async def answer(inbound: Inbound, outlet: Outlet) -> None:
        body, inbound.body = inbound.body, b""
        await asyncio.sleep(0.01)  # until what handed it over has returned
        held.append(sys.getrefcount(body))
        await outlet.answer(200, [], b"")

    edge = Edge(Routes({("POST", CHAT): answer}, []), Limits(), Guards(), lambda what, failure: None)
    port = await edge.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = post(b"x" * 200_000)
    for start in range(0, len(raw), -(-len(raw) // pieces)):
        writer.write(raw[start : start - (-len(raw) // pieces)])
        await asyncio.sleep(0.01)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await edge.drain(0, lambda: None)
    assert held == [2], "its variable here, and the question"
