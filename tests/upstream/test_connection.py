"""A connection of the lean client as its callbacks come: every cut, every way to read, every moment at which things break."""

import asyncio
import select
import socket
from collections.abc import Callable

import pytest

from gateway.upstream import TooLarge, Unknown
from gateway.upstream.connection import KEPT_MAX, READ_AT_ONCE, Connection, HttpAnswer
from gateway.upstream.decoding import decoded
from gateway.upstream.port import Answer
from tests.upstream.answers import BROKEN, REFUSED_BY_LEAN, WHOLE, Raw, Read

CORPUS = {**WHOLE, **BROKEN, **REFUSED_BY_LEAN}


class Wire:
    """Stands for the transport and the pool: what the test feeds arrives, in reads as a socket would give them."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_AT_ONCE))
        self.sent = b""
        self.unsent = 0
        self.closing = False
        self.paused = False
        self.freed: list[bool] = []
        self._ends = socket.socketpair()
        self.connection = Connection(self, asyncio.get_running_loop())
        self.connection.connection_made(self)  # type: ignore[arg-type]

    async def ask(self, *, method: str = "POST") -> "asyncio.Task[HttpAnswer]":
        opening = asyncio.ensure_future(self.connection.ask(b"head", b"body", head_only=method == "HEAD"))
        await asyncio.sleep(0)
        return opening

    def arrives(self, data: bytes) -> None:
        for at in range(0, len(data), READ_AT_ONCE):
            if not self.closing:
                piece = data[at : at + READ_AT_ONCE]
                self.connection.get_buffer(-1)[: len(piece)] = piece
                self.connection.buffer_updated(len(piece))

    def ends(self, failure: Exception | None = None) -> None:
        self.connection.connection_lost(failure)

    # -- the owner's side

    def free(self, connection: Connection, *, keeps: bool) -> None:
        self.freed.append(keeps)

    def lost(self, connection: Connection) -> None:
        self.closing = True

    # -- the transport's side

    def get_extra_info(self, name: str) -> socket.socket:
        return self._ends[0]

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


async def by_reading(answer: Answer) -> bytes:
    return await answer.read(1 << 26)


async def by_chunks(answer: Answer) -> bytes:
    return b"".join([piece async for piece in answer.chunks()])


async def by_pouring(answer: Answer) -> bytes:
    pieces: list[bytes] = []
    assert await answer.pour(lambda piece: pieces.append(piece) is None)
    return b"".join(pieces)


async def by_sips(answer: Answer) -> bytes:
    """Pours that stop after each piece, and waits that are given up."""
    pieces: list[bytes] = []
    while True:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(0)
                await answer.pour(lambda piece: pieces.append(piece) is None)
        except TimeoutError:
            pass
        if await answer.pour(lambda piece: bool(pieces.append(piece))):
            return b"".join(pieces)


WAYS = [by_reading, by_chunks, by_pouring, by_sips]


async def read(raw: Raw, pieces: list[bytes], way: Callable[[Answer], "asyncio.Future[bytes]"]) -> tuple[Read, list[bool]]:
    wire = Wire()
    opening = await wire.ask(method=raw.method)

    async def reading() -> Read:
        status = 0
        try:
            answer = decoded(await opening)
            status = answer.status
            return Read(status, await way(answer))
        except Unknown:
            return Read(status, None)

    task = asyncio.ensure_future(reading())
    for turn, piece in enumerate(pieces):
        wire.arrives(piece)
        for _ in range(turn % 3):
            await asyncio.sleep(0)
    if not wire.closing:
        wire.ends(None if raw.closes else ConnectionResetError())
    return await asyncio.wait_for(task, 5), wire.freed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CORPUS)
async def test_an_answer_is_the_same_however_it_is_cut_and_read(
    name: str, way: Callable[[Answer], "asyncio.Future[bytes]"]
) -> None:
    raw = CORPUS[name]
    for cut in range(0, len(raw.written), max(1, len(raw.written) // 60)):
        found, freed = await read(raw, [raw.written[:cut], raw.written[cut:]], way)
        assert found.body == raw.read.body, cut
        assert raw.read.body is None or found.status == raw.read.status
        assert len(freed) == 1, "its place is given back once"
        if "half a gzip" not in name and "no gzip" not in name:
            assert freed == [raw.reused and raw.read.body is not None]
    if len(raw.written) < 2000:
        found, _ = await read(raw, [raw.written[at : at + 1] for at in range(len(raw.written))], way)
        assert found.body == raw.read.body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def opened(wire: Wire, written: bytes) -> HttpAnswer:
    opening = await wire.ask()
    wire.arrives(written)
    return await opening


async def test_a_small_answer_in_one_read_wakes_its_task_once() -> None:
    wire = Wire()
    opening = await wire.ask()
    wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    answer = await opening
    reading = answer.read(10)
    with pytest.raises(StopIteration) as done:
        reading.send(None)
    assert done.value.value == b"hi"
    assert wire.freed == [True]


async def test_all_chunks_of_one_read_are_one_piece() -> None:
    wire = Wire()
    answer = await opened(wire, CHUNKED)
    pieces: list[bytes] = []
    pouring = asyncio.ensure_future(answer.pour(lambda piece: pieces.append(piece) is None))
    await asyncio.sleep(0)
    wire.arrives(b"1\r\na\r\n2\r\nbc\r\n")
    assert pieces == [b"abc"], "in the callback, with no turn of the loop between"
    wire.arrives(b"1\r\nd\r\n0\r\n\r\n")
    assert pieces == [b"abc", b"d"]
    assert await pouring


async def test_when_the_taker_has_enough_the_connection_is_paused_until_somebody_asks() -> None:
    wire = Wire()
    answer = await opened(wire, CHUNKED)
    pieces: list[bytes] = []
    pouring = asyncio.ensure_future(answer.pour(lambda piece: bool(pieces.append(piece))))
    await asyncio.sleep(0)
    wire.arrives(b"1\r\na\r\n")
    assert wire.paused
    wire.arrives(b"1\r\nb\r\n")
    assert not await pouring
    assert pieces == [b"a"]
    assert wire.paused
    assert await anext(answer.chunks()) == b"b"
    rest = asyncio.ensure_future(by_pouring(answer))
    await asyncio.sleep(0)
    assert not wire.paused
    wire.arrives(b"1\r\nc\r\n0\r\n\r\n")
    assert await rest == b"c"


async def test_what_the_taker_raises_in_the_callback_comes_out_of_pour_and_the_rest_is_kept() -> None:
    def fails(piece: bytes) -> bool:
        raise LookupError(piece)

    wire = Wire()
    answer = await opened(wire, CHUNKED)
    pouring = asyncio.ensure_future(answer.pour(fails))
    await asyncio.sleep(0)
    wire.arrives(b"1\r\na\r\n")
    assert wire.paused
    with pytest.raises(LookupError):
        await pouring
    wire.arrives(b"1\r\nb\r\n0\r\n\r\n")
    assert await by_pouring(answer) == b"b"


async def test_a_taker_may_close_the_answer() -> None:
    wire = Wire()
    answer = await opened(wire, CHUNKED)

    def closes(piece: bytes) -> bool:
        answer.close()
        return True

    pouring = asyncio.ensure_future(answer.pour(closes))
    await asyncio.sleep(0)
    wire.arrives(b"1\r\na\r\n1\r\nb\r\n")
    with pytest.raises(Unknown):
        await pouring
    assert wire.closing
    assert wire.freed == [False]


async def test_a_wait_that_was_cancelled_when_it_was_to_end_loses_nothing() -> None:
    wire = Wire()
    answer = await opened(wire, CHUNKED)
    for ask in (lambda: anext(answer.chunks()), lambda: answer.read(100), lambda: answer.pour(lambda _: False)):
        waiting = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
    reading = asyncio.ensure_future(anext(answer.chunks()))
    await asyncio.sleep(0)
    wire.arrives(b"1\r\na\r\n")
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    wire.arrives(b"1\r\nb\r\n0\r\n\r\n")
    assert await answer.read(100) == b"ab"


async def test_what_nobody_reads_is_kept_up_to_a_bound_and_then_left_to_the_provider() -> None:
    wire = Wire()
    answer = await opened(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
    kept = 0
    while not wire.paused:
        wire.arrives(b"x" * READ_AT_ONCE)
        kept += READ_AT_ONCE
    assert kept <= KEPT_MAX + READ_AT_ONCE
    assert len(await anext(answer.chunks())) == kept
    assert wire.paused, "nobody has asked for more"
    reading = asyncio.ensure_future(answer.read(1 << 30))
    await asyncio.sleep(0)
    assert not wire.paused
    wire.arrives(b"x" * (10_000_000 - kept))
    assert not wire.paused
    assert len(await reading) == 10_000_000 - kept


async def test_a_body_past_its_limit_is_not_waited_for() -> None:
    wire = Wire()
    answer = await opened(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
    reading = asyncio.ensure_future(answer.read(100))
    await asyncio.sleep(0)
    wire.arrives(b"x" * 101)
    with pytest.raises(TooLarge):
        await reading
    assert wire.closing


async def test_an_answer_that_came_before_the_request_was_out_ends_its_connection() -> None:
    wire = Wire()
    opening = await wire.ask()
    wire.unsent = 1000
    wire.arrives(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
    answer = await opening
    assert (answer.status, await answer.read(10)) == (413, b"no")
    assert wire.freed == [False]
    assert wire.closing


async def test_bytes_that_nobody_asked_for_end_a_connection() -> None:
    wire = Wire()
    wire.arrives(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert wire.closing
    assert wire.connection.dead


async def test_what_the_loop_has_not_seen_yet_is_seen_before_a_connection_is_used() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire()
    wire.get_extra_info = lambda name: ours  # type: ignore[method-assign, misc, assignment]
    connection = Connection(wire, asyncio.get_running_loop())
    connection.connection_made(wire)  # type: ignore[arg-type]
    assert not connection.stirred()
    theirs.close()
    assert select.select([ours], [], [], 2)[0]
    assert connection.stirred()
    ours.close()


@pytest.mark.parametrize("when", ["at once", "with the head", "in the body"])
async def test_cancelling_open_closes_the_connection_whenever_it_comes(when: str) -> None:
    wire = Wire()
    opening = await wire.ask()
    if when == "with the head":
        wire.arrives(b"HTTP/1.1 200 OK\r\nContent-Le")
    elif when == "in the body":
        wire.arrives(CHUNKED + b"1\r\na\r\n")  # its waiter is done, its task has not had its turn
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert wire.closing
    assert wire.freed == [False]


@pytest.mark.parametrize("failure", [None, ConnectionResetError("reset")])
async def test_a_connection_that_ends_is_told_to_whoever_waits(failure: Exception | None) -> None:
    wire = Wire()
    opening = await wire.ask()
    wire.ends(failure)
    with pytest.raises(Unknown):
        await opening
    wire = Wire()
    answer = await opened(wire, CHUNKED + b"1\r\na\r\n")
    wire.ends(failure)
    assert await anext(answer.chunks()) == b"a", "what had arrived first"
    for _ in range(2):
        with pytest.raises(Unknown):
            await anext(answer.chunks())
        with pytest.raises(Unknown):
            await answer.pour(lambda _: True)
        with pytest.raises(Unknown):
            await answer.read(10)
    assert wire.freed == [False]


async def test_half_a_close_ends_a_body_that_has_no_length_and_breaks_off_one_that_has() -> None:
    wire = Wire()
    answer = await opened(wire, b"HTTP/1.1 200 OK\r\n\r\nall")
    wire.connection.eof_received()
    assert await answer.read(10) == b"all"
    wire = Wire()
    answer = await opened(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nall")
    wire.connection.eof_received()
    with pytest.raises(Unknown):
        await answer.read(10)
    assert wire.closing


async def test_a_large_body_is_sent_behind_its_head_without_being_copied_into_it() -> None:
    written: list[bytes] = []
    wire = Wire()
    wire.write = written.append  # type: ignore[method-assign, assignment]
    body = b"x" * 100_000
    opening = asyncio.ensure_future(wire.connection.ask(b"head", body, head_only=False))
    await asyncio.sleep(0)
    assert written[0] == b"head"
    assert written[1] is body
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
