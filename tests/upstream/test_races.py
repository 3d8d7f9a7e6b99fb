"""Servers that end at every moment. Whatever happens, a call ends as its whole answer, NotSent or Unknown, and is sent at most once."""

import asyncio
import random
import socket
import struct
from collections import Counter

import pytest

from gateway.upstream import Endpoint, NotSent, Unknown
from gateway.upstream.lean import LeanUpstream
from tests.upstream.servers import lean, post, poured, request_of, server

BODY = b'{"usage": {"total_tokens": 9}, "text": "' + b"word " * 200 + b'"}'
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (len(BODY[at : at + 100]), BODY[at : at + 100]) for at in range(0, len(BODY), 100)
)
CHUNKS += b"0\r\n\r\n"
ENDS = ["close", "reset", "half"]


def end(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "reset":
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif how == "half" and writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


class Moody:
    """Answers whole, or ends at a moment of its choice. `seen` counts the requests by their bodies."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.seen: Counter[bytes] = Counter()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = self._chance
        if chance.random() < 0.05:  # before a request
            end(writer, chance.choice(ENDS))
            return
        while True:
            if chance.random() < 0.1:
                await reader.readuntil(b"\r\n\r\n")
                end(writer, chance.choice(ENDS))  # the head was read, the body was not
                return
            _, body = await request_of(reader)
            self.seen[body[:8]] += 1
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
            written = chance.choice([LENGTH, CHUNKS])
            if chance.random() < 0.2:  # in the middle
                writer.write(written[: chance.randrange(len(written))])
                await writer.drain()
                end(writer, chance.choice(ENDS))
                return
            for piece in cut(written, chance):
                writer.write(piece)
                if chance.random() < 0.2:
                    await asyncio.sleep(0)
            await writer.drain()
            if chance.random() < 0.2:  # while the next request may be on its way
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
                end(writer, chance.choice(ENDS))
                return


def cut(written: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.sample(range(len(written)), chance.randrange(4)))
    return [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]


async def call(upstream: LeanUpstream, port: int, name: bytes, chance: random.Random) -> str:
    body = name.ljust(8) + b"x" * chance.choice([0, 10, 100_000])
    try:
        answer = await upstream.open(post(port, body))
        try:
            way = chance.randrange(3)
            if way == 0:
                got = await answer.read(1 << 20)
            elif way == 1:
                got = b"".join([piece async for piece in answer.chunks()])
            else:
                got = await poured(answer)
        finally:
            answer.release()
    except NotSent:
        return "not sent"
    except Unknown:
        return "unknown"
    assert got == BODY
    return "whole"


async def storm(seed: int, calls: int, endpoint: Endpoint) -> Counter[str]:
    """`calls` at once, some of them cancelled, in three rounds over the same connections."""
    chance, moody = random.Random(seed), Moody(seed)
    outcomes: Counter[str] = Counter()
    async with server(moody) as serving, lean(endpoint) as upstream:
        for turn in range(3):
            tasks = {}
            for number in range(calls):
                name = b"%d-%d" % (turn, number)
                tasks[name] = asyncio.ensure_future(call(upstream, serving.port, name, chance))
            for task in tasks.values():
                if chance.random() < 0.1:
                    asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
            _, waiting = await asyncio.wait(tasks.values(), timeout=20)
            assert not waiting, "a call hangs"
            for name, task in tasks.items():
                outcome = "cancelled" if task.cancelled() else task.result()
                outcomes[outcome] += 1
                assert moody.seen[name.ljust(8)] <= (0 if outcome == "not sent" else 1), "sent twice, or not unsent"
        pool = upstream._pool
        assert not any(each._answer is not None for each in pool._connections)
        if pool._places is not None:
            assert pool._places._value == endpoint.max_connections, "all places are free again"
    return outcomes


@pytest.mark.parametrize(
    "endpoint", [Endpoint(idle_timeout_s=2), Endpoint(idle_timeout_s=2, max_connections=10)], ids=["", "bounded"]
)
async def test_a_hundred_calls_at_a_moody_server_end_as_they_should(endpoint: Endpoint) -> None:
    outcomes = await storm(1, 100, endpoint)
    assert outcomes["whole"] > 50
    assert outcomes["unknown"] > 20
    assert outcomes["cancelled"] > 0


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 22))
async def test_a_hundred_calls_at_a_moody_server_end_as_they_should_often(seed: int) -> None:
    for bound in (0, 10):
        assert (await storm(seed, 100, Endpoint(idle_timeout_s=2, max_connections=bound)))["whole"] > 50


async def test_a_post_whose_connection_closes_without_a_byte_is_unknown_and_not_sent_again() -> None:
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await request_of(reader)
            requests += 1
            if requests == 2:
                return
            writer.write(LENGTH)

    async with server(talk) as serving, lean() as upstream:
        answer = await upstream.open(post(serving.port))
        assert await answer.read(1 << 20) == BODY
        with pytest.raises(Unknown, match="before an answer"):
            await upstream.open(post(serving.port))
        assert (requests, serving.connections) == (2, 1)


async def test_an_early_refusal_of_a_large_body_is_read_though_the_server_takes_no_more_of_it() -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await writer.drain()
        await asyncio.sleep(0.3)  # reads no further

    async with server(talk) as serving, lean() as upstream:
        answer = await upstream.open(post(serving.port, b"x" * 30_000_000))
        assert (answer.status, await answer.read(10)) == (413, b"{}")
        answer.release()


async def test_a_slow_server_and_a_slow_reader_lose_nothing() -> None:
    total = 3_000_000

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 2000000" in head
        left = 2_000_000
        while left:
            left -= len(await reader.read(min(left, 50_000)))
            await asyncio.sleep(0.001)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        for at in range(0, total, 100_000):
            writer.write(bytes([at // 100_000]) * 100_000)
            await writer.drain()

    async with server(talk) as serving, lean() as upstream:
        answer = await upstream.open(post(serving.port, b"x" * 2_000_000))
        size, seen = 0, b""
        async for piece in answer.chunks():
            size += len(piece)
            seen += piece[:1] + piece[-1:]
            await asyncio.sleep(0.002)
        assert size == total
        assert list(seen) == sorted(seen)
