"""One client's connection: its requests one after the other, each handed on when it is whole, and the limits of time and number.

    head ── begin ──▶ body ── serve ──▶ the handler's task ── served ──▶ the next head, or the end

There is no task before a request is whole, and no timer of its own: one tick a quarter of a second looks at every connection's deadline.
What a client sends ahead waits unread, up to `AHEAD` bytes, then in the kernel. A client that was refused before it had sent everything
gets to see the answer: what it still sends is read away for a while before its connection is closed.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol, cast

from gateway.server.outlet import HttpOutlet
from gateway.server.pressure import TICK_S
from gateway.server.reader import Head, RequestReader, Unreadable
from gateway.wire.exchange import ClientGone
from gateway.wire.problem import Problem, problem

Report = Callable[[str, BaseException], None]  # what went wrong, and with what: for one log line with its traceback

LINGER_S: Final = 5.0  # how long a refused request's body is read away, so that its sender gets to see the answer
AHEAD: Final = 65_536  # bytes that a client may send ahead of an answer; beyond them it is not read from
BEHIND: Final = 65_536  # bytes that a client may have yet to take; beyond them nothing more is written before it has

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`idle_s`: between two requests, and for a request's head. `body_s`: for a request's body. `stall_s`: for a client to take more of its
    answer, however little. None of them bounds how long an answer may take to come. Each is noticed at the next tick."""

    idle_s: float = 75.0  # longer than common clients and load balancers keep their side, so that they close first
    body_s: float = 120.0
    stall_s: float = 60.0


class Exchange(Protocol):
    """One request and its answer, from the request's head on."""

    outlet: HttpOutlet

    def serve(self, body: bytes) -> bool:
        """The request is whole. True: its handler is at work, and `Connection.served` is due. False: it is answered already."""

    def grown(self, size: int) -> None:
        """So many bytes of the body have come, and there are more to come. May answer at once."""

    def refuse(self, refusal: Problem) -> None:
        """Answers at once."""

    def forget(self) -> None:
        """The client left before its request was whole."""


class Handler(Protocol):
    """What answers requests."""

    def begin(self, connection: "Connection", head: Head, whole: bool) -> Exchange:
        """A request's head came, and all of its body if `whole`. May answer at once."""

    def turned_away(self) -> None:
        """A connection was one too many."""

    def tick(self, now: float) -> None:
        """Every `TICK_S`, as far as the event loop gets round to it."""


class Connection(asyncio.Protocol):
    """`transport` is None once the client is gone."""

    __slots__ = (
        *("_ahead", "_behind", "_exchange", "_lingers", "_listener", "_more_room", "_reader", "_serving", "_unread"),
        *("deadline", "transport", "writing_paused"),
    )

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._reader: RequestReader | None = None  # of the request that is on its way here
        self._exchange: Exchange | None = None
        self._serving = False  # a handler is at work on it
        self._ahead = bytearray()  # while there is something in it, somebody will `_go_on`
        self._behind = 0  # bytes that the client had yet to take when that was last looked at
        self._unread = False  # the transport was told not to read
        self._lingers = False  # whatever still comes is read away
        self._more_room: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.writing_paused = False
        self.deadline = inf

    # -- the outlet's line ----------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._listener.draining

    async def room(self) -> None:
        while self.writing_paused:
            if self.transport is None:
                raise ClientGone
            self._more_room = self._listener.loop.create_future()
            await self._more_room

    def _wake(self) -> None:
        if self._more_room is not None and not self._more_room.done():
            self._more_room.set_result(None)

    # -- asyncio's calls ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=BEHIND)
        self.deadline = self._listener.at(self._listener.timeouts.idle_s)
        if not self._listener.take_in(self):
            full = "The gateway has as many connections as it takes (limits.max_connections): try again in a moment."
            self._answer_unasked(problem("overloaded", full, retry_after=1))
        elif self._listener.draining:  # it was on its way when the listening socket was closed
            self.close()

    def data_received(self, data: bytes) -> None:
        if self._ahead:
            self._keep(data)
        elif not self._lingers:
            self._read(data)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._await_taking()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._wake()
        if self._lingers or self.transport is None or self.transport.is_closing():
            return
        self._behind = 0
        if self._serving:
            self.deadline = inf
        else:
            self.deadline = self._listener.at(self._listener.timeouts.idle_s)
            self._go_on()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.transport = None
        self._listener.let_go(self)
        self._reader = None
        self._ahead.clear()
        self._wake()
        exchange = self._exchange
        if exchange is not None:
            exchange.outlet.lost()
            if not self._serving:
                self._exchange = None
                exchange.forget()

    # -- requests, one after the other ----------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        if self._serving or self.writing_paused:
            self._keep(data)
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = RequestReader(self._listener.max_body)
        refusal: Problem | None = None
        try:
            data = reader.take(data)
        except Unreadable as unreadable:
            refusal = unreadable.problem
        if reader.head is None:
            if refusal is not None:
                self._answer_unasked(refusal)
            return
        whole = reader.whole and refusal is None
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = self._listener.handler.begin(self, reader.head, whole)
            if not whole and refusal is None and not exchange.outlet.over:
                self._await_body(reader.head)
        if not exchange.outlet.over:
            if refusal is not None:
                exchange.refuse(refusal)
            elif not whole:
                exchange.grown(reader.size)
            elif exchange.serve(reader.body):
                self._reader = None
                self._serving = True
                self.deadline = inf
                self._keep(data)
        if exchange.outlet.over:
            self._reader = self._exchange = None
            if self._stays(exchange.outlet, all_read=whole and not data) and data:
                # Others have their turn before the next: thousands that are refused at once fit into one read.
                self._keep(data)
                self._listener.loop.call_soon(self._go_on)

    def _await_body(self, head: Head) -> None:
        self.deadline = self._listener.at(self._listener.timeouts.body_s)
        if not head.http_1_0 and head.headers.get("Expect", "").lower() == "100-continue" and self.transport is not None:
            self.transport.write(_CONTINUE)

    def served(self) -> None:
        """The handler has ended."""
        exchange, self._exchange, self._serving = self._exchange, None, False
        if exchange is not None and self._stays(exchange.outlet, all_read=not self._ahead):
            self._go_on()

    def _stays(self, outlet: HttpOutlet, *, all_read: bool) -> bool:
        """After an answer: whether another request may follow it. `all_read`: its sender has nothing under way that we know of."""
        if self.transport is None:
            return False
        if outlet.keeps and not self._listener.draining:
            if not self.writing_paused:
                self.deadline = self._listener.at(self._listener.timeouts.idle_s)
            return True
        if all_read or self.transport.is_closing():
            self.close()
        else:
            self._linger()
        return False

    # -- what was sent ahead --------------------------------------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        self._ahead += data
        if len(self._ahead) > AHEAD and not self._unread and self.transport is not None:
            self._unread = True
            self.transport.pause_reading()

    def _go_on(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return  # whoever asked will see no answer
        self._read_again()
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), bytearray()
            self._read(ahead)

    def _read_again(self) -> None:
        if self._unread and self.transport is not None and not self.transport.is_closing():
            self._unread = False
            self.transport.resume_reading()

    # -- ends -----------------------------------------------------------------------------------------------------------------

    def _answer_unasked(self, refusal: Problem) -> None:
        """To bytes that are no request, or to none at all."""
        outlet = HttpOutlet(self, self._listener.fresh_id(), keeps=False)
        with suppress(ClientGone):
            outlet.put_answer(refusal.status, refusal.headers(), refusal.body())
        self._reader = None
        self._stays(outlet, all_read=False)

    def _linger(self) -> None:
        """A close while something is unread would be a reset, which may overtake the answer."""
        self._lingers = True
        self._ahead.clear()
        self._read_again()
        self.deadline = self._listener.at(LINGER_S)
        if self.transport is not None:
            self.transport.write_eof()

    def close(self) -> None:
        """What was written is handed over, while the client takes it."""
        if self.transport is not None:
            self._await_taking()
            self.transport.close()

    def _await_taking(self) -> None:
        if self.transport is not None:
            self._behind = self.transport.get_write_buffer_size()
            self.deadline = self._listener.at(self._listener.timeouts.stall_s)

    def close_if_idle(self) -> None:
        if self._exchange is None and not self._lingers:
            self.close()

    def overdue(self) -> None:
        """The deadline has passed."""
        exchange, transport = self._exchange, self.transport
        if transport is None:
            return
        if exchange is not None and not self._serving and not exchange.outlet.over:
            self._reader = self._exchange = None
            seconds = self._listener.timeouts.body_s
            exchange.refuse(problem("bad_request", f"The request's body did not arrive within {seconds:g} s."))
            self._stays(exchange.outlet, all_read=False)
        elif transport.get_write_buffer_size() < self._behind:
            self._await_taking()
        elif self.writing_paused or self._lingers or transport.is_closing():
            transport.abort()
        else:  # between two requests, or within a head
            self.close()


@dataclass(frozen=True, slots=True)
class Bounds:
    """`max_body`: bytes of a request's body, as sent and as inflated. `max_connections`, at once."""

    max_body: int
    max_connections: int
    timeouts: Timeouts


class Listener:
    """Makes a `Connection` of every accepted socket, and looks after all of them."""

    def __init__(self, handler: Handler, bounds: Bounds, fresh_id: Callable[[], str]) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler = handler
        self.timeouts = bounds.timeouts
        self.max_body = bounds.max_body
        self.fresh_id = fresh_id
        self.draining = False
        self.connections: set[Connection] = set()
        self._max_connections = bounds.max_connections
        self._turned_away: set[Connection] = set()
        self._none_left: asyncio.Event | None = None  # only while shutting
        self._timer = self.loop.call_later(TICK_S, self._tick)

    def __call__(self) -> Connection:
        return Connection(self)

    def at(self, seconds: float) -> float:
        """When that many seconds will have passed."""
        return self.loop.time() + seconds

    def take_in(self, connection: Connection) -> bool:
        """False: there are too many already."""
        self.connections.add(connection)
        if len(self.connections) - len(self._turned_away) <= self._max_connections:
            return True
        self._turned_away.add(connection)
        self.handler.turned_away()
        return False

    def let_go(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._turned_away.discard(connection)
        if self._none_left is not None and not self.connections:
            self._none_left.set()

    async def shut(self, within_s: float) -> None:
        """Every connection is closed; those that don't take what was written, by force."""
        for connection in tuple(self.connections):
            connection.close()
        self._none_left = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s if self.connections else 0):
                await self._none_left.wait()
        for connection in tuple(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick)
        now = self.loop.time()
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.overdue()
        self.handler.tick(now)
