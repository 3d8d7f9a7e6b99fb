"""Which connection serves a call, how many there may be, who waits for one, and what becomes of those that are silent."""

import asyncio

import pytest

from gateway.upstream import Endpoint, NotSent, Unknown
from tests.upstream.servers import OK, always_ok, answers, lean, post, request_of, server, whole

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def until(met: object, what: str) -> None:
    """`met` is asked until it holds."""
    for _ in range(400):
        if met():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"in vain: {what}")


async def test_the_connection_that_was_used_last_is_used_first() -> None:
    served: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            served.append(writer)
            writer.write(OK)

    async with server(talk) as serving, lean() as upstream:
        await asyncio.gather(*(whole(upstream, post(serving.port)) for _ in range(5)))
        assert len(set(served)) == 5
        for _ in range(10):
            await whole(upstream, post(serving.port))
        assert len(set(served[5:])) == 1


async def test_an_answer_gives_its_connection_back_when_it_has_ended_and_not_when_it_was_read() -> None:
    async with server(always_ok) as serving, lean() as upstream:
        unread = await upstream.open(post(serving.port))
        assert await whole(upstream, post(serving.port)) == b"{}"
        assert serving.connections == 1
        assert await unread.read(10) == b"{}"


@pytest.mark.parametrize("last", [OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), OK + b"surplus", OK + OK])
async def test_a_connection_that_can_not_be_trusted_is_not_used_again(last: bytes) -> None:
    async with server(answers(last)) as serving, lean() as upstream:
        for _ in range(3):
            assert await whole(upstream, post(serving.port)) == b"{}"
        assert serving.connections == 3


async def test_a_connection_that_ended_while_it_was_idle_fails_no_call() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)

    async with server(once) as serving, lean() as upstream:
        for turn in range(20):
            assert await whole(upstream, post(serving.port)) == b"{}"
            await asyncio.sleep(0.01 if turn % 2 else 0.002)
        assert serving.connections == 20


async def test_a_connection_whose_end_the_loop_has_not_seen_yet_fails_no_call() -> None:
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)
        await ended.wait()
        writer.transport.abort()

    async with server(once) as serving, lean() as upstream:
        assert await whole(upstream, post(serving.port)) == b"{}"
        (connection,) = upstream._pool._connections
        ended.set()
        while (
            not connection.stirred()
        ):  # the loop turns for the server, and sees the connection's end no earlier than its next select
            await asyncio.sleep(0)
            assert not connection.dead, "then this test sees nothing"
        assert await whole(upstream, post(serving.port)) == b"{}"


async def test_idle_connections_are_closed_though_no_call_comes() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)
        assert await reader.read() == b""
        left.set()

    async with server(talk) as serving, lean(Endpoint(keepalive_s=0.05)) as upstream:
        await whole(upstream, post(serving.port))
        await asyncio.wait_for(left.wait(), 5)
        await until(lambda: not upstream._pool._connections, "no connection is left")
        await until(lambda: upstream._pool._looking is None, "nothing is left to look after")
        assert not upstream._pool._idle
        assert await whole(upstream, post(serving.port)) == b"{}"


async def test_of_many_calls_no_more_are_under_way_than_may_be_connected_and_they_come_in_their_order() -> None:
    under_way, most, order = 0, 0, []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        while True:
            _, body = await request_of(reader)
            under_way += 1
            most = max(most, under_way)
            order.append(int(body))
            await asyncio.sleep(0.002)
            under_way -= 1
            writer.write(OK)

    async with server(talk) as serving, lean(Endpoint(max_connections=1)) as upstream:
        await asyncio.gather(*(whole(upstream, post(serving.port, b"%d" % call)) for call in range(30)))
        assert (most, serving.connections) == (1, 1)
        assert order == list(range(30))
    under_way = most = 0
    async with server(talk) as serving, lean(Endpoint(max_connections=4)) as upstream:
        await asyncio.gather(*(whole(upstream, post(serving.port, b"%d" % call)) for call in range(40)))
        assert most == 4
        assert serving.connections == 4


async def test_who_waits_too_long_for_a_place_was_not_sent_and_places_come_back_however_a_call_ends() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(CHUNKED if serving.connections < 3 else b"")
        await reader.read()

    async with server(talk) as serving, lean(Endpoint(max_connections=1, connect_timeout_s=0.1)) as upstream:
        answer = await upstream.open(post(serving.port))
        with pytest.raises(NotSent, match="free"):
            await upstream.open(post(serving.port))
        answer.close()
        for _ in range(3):
            with pytest.raises(NotSent):
                await upstream.open(post(1))  # nobody listens there
        second = await upstream.open(post(serving.port))
        second.release()
        opening = asyncio.ensure_future(upstream.open(post(serving.port)))
        await until(lambda: serving.connections == 3, "the third connection is made")
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert opening.cancelled()
        assert upstream._pool._places is not None
        assert not upstream._pool._places.locked()


async def test_an_idle_connection_to_one_host_makes_room_for_another() -> None:
    async with server(always_ok) as one, server(always_ok) as other, lean(Endpoint(max_connections=2)) as upstream:
        await asyncio.gather(whole(upstream, post(one.port)), whole(upstream, post(one.port)))
        assert await whole(upstream, post(other.port)) == b"{}"
        await until(lambda: len(upstream._pool._connections) == 2, "one was closed")


async def test_silence_counts_from_the_last_byte() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(CHUNKED)
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(b"1\r\nx\r\n")
        writer.write(b"0\r\n\r\n")

    async with server(talk) as serving, lean(Endpoint(idle_timeout_s=0.4)) as upstream:
        assert await whole(upstream, post(serving.port)) == b"x" * 8


async def test_who_does_not_listen_can_not_say_that_the_provider_is_silent() -> None:
    async with server(answers(CHUNKED + b"1\r\na\r\n")) as serving, lean(Endpoint(idle_timeout_s=0.1)) as upstream:
        answer = await upstream.open(post(serving.port))
        assert not await answer.pour(lambda _: False)
        await asyncio.sleep(0.4)  # paused for longer than the provider may be silent
        reading = asyncio.ensure_future(anext(answer.chunks()))
        await asyncio.sleep(0.01)
        assert not reading.done()
        with pytest.raises(Unknown, match="nothing came"):
            await asyncio.wait_for(reading, 5)


async def test_when_the_client_is_closed_calls_end_and_none_begins() -> None:
    async with server(answers(CHUNKED)) as serving, lean() as upstream:
        answer = await upstream.open(post(serving.port))
        reading = asyncio.ensure_future(answer.read(10))
        await asyncio.sleep(0)
        await upstream.close()
        with pytest.raises(Unknown):
            await reading
        with pytest.raises(NotSent):
            await upstream.open(post(serving.port))
        await upstream.close()
