"""A connection without a socket: whatever bytes come, cut anywhere, no exception escapes and each request has one answer."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.server.connection import AHEAD, Bounds, Connection, Listener, Timeouts
from gateway.server.edge import Edge, Limits, fresh_id
from gateway.server.guards import Guards
from gateway.server.routes import Route, Routes
from gateway.wire.exchange import Inbound, Outlet, Reply
from tests.server.test_reader import BOUNDED, CUTS, GET, MAX_BODY, POST, REQUESTS, SMUGGLED, cut, mutated, ours

TURNS: Final = 6  # of the event loop, in which a handler that waits for nothing ends


class Pipe(asyncio.Transport):
    """The other side: keeps what is written to it, as if somebody took it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False  # closed, or its writing side was
        self.reads = True
        self.protocol: Connection | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.protocol is None

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It takes whatever is written."""

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        protocol, self.protocol, self.ended = self.protocol, None, True
        if protocol is not None:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)


class Served:
    """An edge, and a way to send it bytes."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.reports: list[Any] = []
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        routes = Routes(
            {("POST", "/v1/chat/completions"): self._echo, ("GET", "/v1/models"): self._echo}, [Route("GET", "/", self._page)]
        )
        self.edge = Edge(routes, Limits(MAX_BODY), Guards(), lambda *what: self.reports.append(what))
        self.listener = Listener(self.edge, Bounds(MAX_BODY, 10, timeouts or Timeouts()), fresh_id)

    async def _echo(self, inbound: Inbound, outlet: Outlet) -> None:
        self.bodies.append(inbound.body)
        await self.go_on.wait()
        await outlet.answer(200, [], inbound.body)

    async def _page(self, inbound: Inbound, parameters: Mapping[str, str]) -> Reply:
        return Reply(200, inbound.body)

    def connect(self) -> Pipe:
        pipe = Pipe()
        pipe.protocol = self.listener()
        pipe.protocol.connection_made(pipe)
        return pipe

    async def send(self, pipe: Pipe, *pieces: bytes) -> None:
        """As a transport does: not while it was told not to read, and not after the end."""
        for piece in pieces:
            for _ in range(TURNS * 100):
                if pipe.reads or pipe.protocol is None:
                    break
                await asyncio.sleep(0)
            if pipe.protocol is not None:
                pipe.protocol.data_received(piece)
        for _ in range(TURNS * 4):
            await asyncio.sleep(0)

    def end(self) -> None:
        self.listener._timer.cancel()


@contextmanager
def served(timeouts: Timeouts | None = None) -> Iterator[Served]:
    here = Served(timeouts)
    try:
        yield here
    finally:
        here.end()


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of each, but for `100 Continue`."""
    found = []
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, "half a head"
        line, *lines = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 ")
        status = int(line.split(b" ")[1])
        if status == 100:
            continue
        headers = [each.split(b": ", 1) for each in lines]
        (length,) = (int(value) for name, value in headers if name == b"Content-Length")
        assert len([name for name, _ in headers if name == b"X-Request-Id"]) == 1
        found.append((status, written[:length]))
        assert len(found[-1][1]) == length
        written = written[length:]
    return found


async def check(raw: bytes, *pieces: bytes) -> list[tuple[int, bytes]]:
    """Sends the pieces. As many answers as requests, unless a refusal ends the connection, which may come before a body is whole."""
    seen = ours(raw)
    with served() as here:
        pipe = here.connect()
        await here.send(pipe, *pieces)
        told = answers(pipe.written)
        assert len(told) <= len(seen.requests) + 1
        if not pipe.ended or told[-1][0] < 400:
            assert (len(told), False) == (len(seen.requests), seen.refused)
        assert all(status in (200, 400, 403, 404, 405, 413, 415, 426, 431) for status, _ in told)
        for (_, _, _, body), (status, answered) in zip(seen.requests, told, strict=False):
            assert status != 200 or answered == body
        assert here.reports == []
        pipe.abort()
        await asyncio.sleep(0)
        assert here.listener.connections == set()
        assert here.edge.live == 0
        assert here.edge._calls == 0
    return told


@pytest.mark.parametrize("what", [*REQUESTS, *SMUGGLED])
async def test_a_request_has_one_answer_wherever_it_is_cut(what: str) -> None:
    raw = REQUESTS.get(what) or SMUGGLED[what]
    told = await check(raw, raw)
    for at in range(1, len(raw)):
        assert [status for status, _ in await check(raw, raw[:at], raw[at:])] == [status for status, _ in told]


def _fuzz(how: settings) -> None:
    with asyncio.Runner() as runner:

        @how
        @given(mutated(), CUTS)
        def each(raw: bytes, places: list[int]) -> None:
            runner.run(check(raw, *cut(raw, places)))

        each()


def test_mutated_requests_have_one_answer_each_and_raise_nothing() -> None:
    _fuzz(settings(BOUNDED, max_examples=300))


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_many_mutated_requests_have_one_answer_each_and_raise_nothing() -> None:
    _fuzz(settings(BOUNDED, max_examples=5_000))


def test_noise_ends_in_a_refusal_or_in_waiting() -> None:
    with asyncio.Runner() as runner:

        @settings(BOUNDED, max_examples=200)
        @given(st.binary(max_size=300), CUTS)
        def each(raw: bytes, places: list[int]) -> None:
            runner.run(check(raw, *cut(raw, places)))

        each()


# -- what is sent ahead -----------------------------------------------------------------------------------------------------------


async def test_requests_sent_ahead_wait_for_their_turn_and_are_answered_in_order() -> None:
    with served() as here:
        here.go_on.clear()
        pipe = here.connect()
        bodies = [b"%d" % number for number in range(10, 30)]
        await here.send(pipe, b"".join(POST + b"Content-Length: 2\r\n\r\n" + body for body in bodies))
        assert here.bodies == bodies[:1], "one at a time"
        assert pipe.written == b""
        here.go_on.set()
        await here.send(pipe)
        assert [body for _, body in answers(pipe.written)] == bodies


async def test_what_is_sent_ahead_is_bounded() -> None:
    with served() as here:
        here.go_on.clear()
        pipe = here.connect()
        request = GET + b"\r\n"
        assert pipe.protocol is not None
        pipe.protocol.data_received(request)
        sent = 1
        while pipe.reads:
            pipe.protocol.data_received(request * 100)
            sent += 100
        assert len(request) * sent < AHEAD + len(request) * 102
        here.go_on.set()
        for _ in range(sent * TURNS):
            await asyncio.sleep(0)
        assert pipe.reads
        assert len(answers(pipe.written)) == sent


async def test_a_client_that_asks_and_does_not_read_is_not_answered_without_bound() -> None:
    with served() as here:
        pipe = here.connect()
        assert pipe.protocol is not None
        pipe.protocol.pause_writing()
        pipe.protocol.data_received(b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert pipe.written == b""
        pipe.protocol.resume_writing()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(answers(pipe.written)) == 100


async def test_a_connection_that_is_made_while_the_gateway_shuts_down_is_closed() -> None:
    with served() as here:
        here.listener.draining = True
        pipe = here.connect()
        assert (pipe.ended, pipe.written) == (True, b"")


# -- time ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [(b"", []), (GET[:20], []), (GET + b"\r\n", [200]), (POST + b"Content-Length: 8\r\n\r\nhalf", [400])],
)
async def test_what_is_overdue_ends_once(sent: bytes, statuses: list[int]) -> None:
    with served(Timeouts(-1, -1, -1)) as here:
        pipe = here.connect()
        await here.send(pipe, *([sent] if sent else []))
        here.listener._timer.cancel()
        here.listener._tick()
        assert [status for status, _ in answers(pipe.written)] == statuses
        assert pipe.ended
        await here.send(pipe, b"more")
        assert len(answers(pipe.written)) == len(statuses)


async def test_a_handler_at_work_is_never_overdue_while_its_client_takes_what_it_writes() -> None:
    with served(Timeouts(-1, -1, -1)) as here:
        here.go_on.clear()
        pipe = here.connect()
        await here.send(pipe, GET + b"\r\n")
        here.listener._timer.cancel()
        here.listener._tick()
        assert pipe.protocol is not None
        pipe.protocol.pause_writing()
        here.listener._timer.cancel()
        here.listener._tick()
        assert pipe.protocol is None
        here.go_on.set()
        await here.send(pipe)
        assert here.reports == []
        assert here.edge.live == 0


class Slow(Pipe):
    """Its other side takes what is written only by `behind`."""

    behind = 0

    def get_write_buffer_size(self) -> int:
        return self.behind


async def test_a_client_that_takes_little_is_not_cut_off_and_one_that_takes_nothing_is() -> None:
    with served(Timeouts(stall_s=0.0)) as here:
        pipe = Slow()
        line = pipe.protocol = here.listener()
        line.connection_made(pipe)
        pipe.behind = 300_000
        line.pause_writing()
        for behind in (200_000, 199_999):
            pipe.behind = behind
            line.overdue()
            assert not pipe.ended, "it takes what it can"
        line.overdue()
        assert pipe.ended


async def test_what_was_sent_ahead_is_not_served_once_the_connection_is_closed() -> None:
    with served() as here:
        pipe = Pipe()
        line = pipe.protocol = here.listener()
        line.connection_made(pipe)
        line.pause_writing()  # the client has yet to take the answer before
        await here.send(pipe, POST + b"Content-Length: 2\r\n\r\n{}")
        line.close_if_idle()  # and then takes it
        line.resume_writing()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert (here.bodies, here.edge.live) == ([], 0)


async def test_requests_that_are_refused_at_once_leave_turns_to_others() -> None:
    with served() as here:
        pipe = here.connect()
        assert pipe.protocol is not None
        unknown = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
        pipe.protocol.data_received(unknown * 50)
        pipe.protocol.data_received(GET + b"\r\n")
        assert len(answers(pipe.written)) == 1
        for _ in range(50 + TURNS):
            await asyncio.sleep(0)
        assert [status for status, _ in answers(pipe.written)] == [404] * 50 + [200]
