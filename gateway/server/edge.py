"""The HTTP edge: from a request to an `Inbound` and an `Outlet`, and nothing else. Every answer leaves in our shape.

    guards → route → is there room for a call → body within its limit, inflated → handler → what the handler left undone

Refused before the body is waited for: foreign hosts and origins, unknown routes, declared lengths above the limit, and calls that there is
no room for. A handler is not cancelled when its client leaves: it is told (`Outlet.on_gone`), because it may hold money that has to be
settled.
"""

import asyncio
import itertools
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from multidict import CIMultiDictProxy

from gateway.buffers import Buffers
from gateway.large import SMALL_BYTES
from gateway.server.accepting import Acceptor, bound
from gateway.server.connection import Bounds, Connection, Listener, Report, Timeouts
from gateway.server.guards import Guards
from gateway.server.outlet import HttpOutlet
from gateway.server.pressure import Pressure
from gateway.server.reader import Head
from gateway.server.routes import Metered, Miss, Routes, Visit
from gateway.wire.body import inflate
from gateway.wire.dialects import shape_for
from gateway.wire.exchange import ClientGone, Headers, Inbound, Reply
from gateway.wire.problem import Problem, Refused, problem

SETTLE_S: Final = 10.0  # after `settle`: how long exchanges may take to end by themselves
CANCEL_S: Final = 2.0  # after their connections were aborted, and again after they were cancelled

Shedding: TypeAlias = Literal[
    "calls", "bodies", "lag"
]  # why calls are refused: as many as may be are under way, or the event loop is late

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_PROCESS: Final = secrets.token_hex(4)
_serial = itertools.count(1)
_INFLATE_HERE: Final = 1024  # compressed bytes, which can be a megabyte; more are inflated in a thread


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_request`: bytes of a body, as sent and as inflated; `max_bodies`: of all large ones together. `max_connections`, `max_calls`: at
    once; a call is one of a model route."""

    max_request: int = 20 * 1024 * 1024
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: int = 10_000
    max_calls: int = 5_000
    max_bodies: int = 512 * 1024 * 1024


# What a path's clients read of a refusal, where that is neither shape of `wire.problem`: from path, problem, request headers, request id and
# the headers that go with it. None: another path.
Translate: TypeAlias = Callable[[str, Problem, CIMultiDictProxy[str], str, Headers], Reply | None]


def _nobody(reason: str) -> None:
    """Is told why something was shed."""


def _as_it_is(path: str, problem: Problem, asked: CIMultiDictProxy[str], request_id: str, headers: Headers) -> None:
    """No path is of another protocol."""


class Edge:
    """Listens, dispatches, sheds, drains. `report` gets what no handler planned for, with its exception; `on_shed` gets why a call or a
    connection was refused for want of room: `connections`, `calls`, `bodies`, `lag`."""

    def __init__(
        self,
        routes: Routes,
        limits: Limits,
        guards: Guards,
        report: Report,
        on_shed: Callable[[str], None] = _nobody,
        translate: Translate = _as_it_is,
    ) -> None:
        self.translate = translate
        self._routes = routes
        self._limits = limits
        self._guards = guards
        self._report = report
        self._on_shed = on_shed
        self._pressure = Pressure()
        self._calls = 0  # handlers of model routes at work
        self._shed = 0
        self._bodies = Buffers(max(limits.max_bodies, limits.max_request))
        self._kept: dict[HttpOutlet, int] = {}  # bytes of large bodies, each until its exchange has ended
        self._listener: Listener | None = None
        self._acceptors: list[Acceptor] = []
        self._live: dict[HttpOutlet, asyncio.Task[None] | None] = {}
        self._none_live: asyncio.Event | None = None  # only while draining

    @property
    def live(self) -> int:
        """Exchanges under way."""
        return len(self._live)

    @property
    def shedding(self) -> Shedding | None:
        """Why new calls are refused at this moment."""
        if self._pressure.high:
            return "lag"
        return "calls" if self._calls >= self._limits.max_calls else None

    def turned_away(self) -> None:
        self._on_shed("connections")

    def tick(self, now: float) -> None:
        self._pressure.tick(now)

    async def listen(self, host: str, port: int) -> int:
        """Accepts connections; returns the port (for port 0). OSError if the address can't be had."""
        return self._accept_on(await bound(host, port))

    async def listen_on(self, listening: socket.socket) -> int:
        """The same on a socket that is bound already, which worker processes share."""
        return self._accept_on([listening])

    async def drain(self, grace_s: float, settle: Callable[[], None]) -> None:
        """Stops accepting and closes idle connections at once; exchanges may go on for `grace_s`; then `settle` tells their handlers to end
        them, and whoever has not ended `SETTLE_S` later loses its connection."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        if self._listener is None:
            return
        self._listener.draining = True
        for connection in tuple(self._listener.connections):
            connection.close_if_idle()
        if not await self._ends_within(grace_s):
            settle()
            if not await self._ends_within(SETTLE_S):
                await self._end_by_force()
        await self._listener.shut(CANCEL_S)

    async def _end_by_force(self) -> None:
        """First the client's side, which handlers hear of; then, for those that do not listen, the task itself."""
        for outlet in tuple(self._live):
            outlet.abort()
        if not await self._ends_within(CANCEL_S):
            for task in self._live.values():
                if task is not None:
                    task.cancel()
            await self._ends_within(CANCEL_S)

    def _ready(self) -> Listener:
        if self._listener is None:
            limits = self._limits
            bounds = Bounds(limits.max_request, limits.max_connections, limits.timeouts)
            self._listener = Listener(self, bounds, fresh_id)
        return self._listener

    def _accept_on(self, sockets: Sequence[socket.socket]) -> int:
        listener = self._ready()
        port: int = sockets[0].getsockname()[1]
        self._acceptors += [Acceptor(each, listener, self._report) for each in sockets]
        return port

    async def _ends_within(self, seconds: float) -> bool:
        if self._live:
            self._none_live = asyncio.Event()
            try:
                async with asyncio.timeout(seconds):
                    await self._none_live.wait()
            except TimeoutError:
                return False
            finally:
                self._none_live = None
        return True

    # -- one exchange ---------------------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, head: Head, whole: bool) -> "_Exchange":
        """Refuses before the body is waited for what the head alone is enough to refuse."""
        exchange = _Exchange(self, connection, head, whole)
        outlet = exchange.outlet
        self._live[outlet] = None
        try:
            self._guards.check(head.headers)
            found = self._routes.find(head.method, exchange.path)
            if isinstance(found, Miss):
                if found.problem.code == "method_not_allowed" and _asks_for_websocket(head):
                    raise Refused(_NO_WEBSOCKETS, [("Upgrade", "HTTP/1.1")])
                raise Refused(found.problem, found.headers)
            if isinstance(found, Metered):
                self.check_load()
            length, limit = head.length, self._limits.max_request
            # Counted is what has come: who announces much and sends nothing keeps nobody out. Above the limit, it is refused for that.
            if length is not None and SMALL_BYTES < length <= limit and not self._bodies.has_room(length):
                raise self._overloaded("bodies")
            exchange.found = found
        except Refused as refused:
            exchange.refuse(refused.problem, refused.headers)
        except Exception as failure:  # noqa: BLE001 - as in `_run`
            self._failed(exchange, failure)
            self.ended(outlet)
        return exchange

    def check_load(self) -> None:
        """Refused 503 `overloaded`, before anything was read of the call or held for it."""
        reason = self.shedding
        if reason is not None:
            raise self._overloaded(reason)

    def _overloaded(self, reason: Shedding) -> Refused:
        self._shed += 1
        self._on_shed(reason)
        # Spread, so that those who were sent away together do not come back together.
        return Refused(problem("overloaded", _OVERLOADED[reason], retry_after=1 + self._shed % 3))

    def keep(self, outlet: HttpOutlet, size: int) -> None:
        """The exchange's body has so many bytes by now. Refused where all large ones together would be too many."""
        more = (size if size > SMALL_BYTES else 0) - self._kept.get(outlet, 0)
        if more < 0:
            self._bodies.give(-more)
        elif not self._bodies.take(more):
            raise self._overloaded("bodies")
        self._kept[outlet] = self._kept.get(outlet, 0) + more

    def start(self, exchange: "_Exchange", body: bytes) -> None:
        """The request is whole: its handler goes to work in a task of its own."""
        self._calls += exchange.metered
        exchange.body = body
        self._live[exchange.outlet] = asyncio.get_running_loop().create_task(self._run(exchange))

    def ended(self, outlet: HttpOutlet) -> None:
        """Answered, or left."""
        self._live.pop(outlet, None)
        if self._kept:
            self._bodies.give(self._kept.pop(outlet, 0))
        if self._none_live is not None and not self._live:
            self._none_live.set()

    async def _run(self, exchange: "_Exchange") -> None:
        outlet = exchange.outlet
        try:
            await self._serve(exchange)
            if not outlet.ended:
                outlet.abort()
        except ClientGone:
            outlet.abort()
        except asyncio.CancelledError:
            outlet.abort()
            raise
        except Exception as failure:  # noqa: BLE001 - the outermost handler: whatever nobody planned for
            self._failed(exchange, failure)
        finally:
            self._calls -= exchange.metered
            self.ended(outlet)
            exchange.connection.served()

    async def _serve(self, exchange: "_Exchange") -> None:
        head, outlet, found = exchange.head, exchange.outlet, exchange.found
        body, exchange.body = exchange.body, b""
        try:
            coding = head.headers.get("Content-Encoding")
            if coding is not None:
                limit = self._limits.max_request
                inflating = len(body) > _INFLATE_HERE
                body = await asyncio.to_thread(inflate, body, coding, limit) if inflating else inflate(body, coding, limit)
            if outlet in self._kept or len(body) > SMALL_BYTES:
                self.keep(outlet, len(body))  # as large as it turned out to be
            inbound = Inbound(
                method=head.method,
                path=found.path if isinstance(found, Metered) else exchange.path,
                query=exchange.query,
                path_run=found.path_run if isinstance(found, Metered) else None,
                headers=head.headers,
                body=body,
                request_id=outlet.request_id,
                parameters=found.parameters,
            )
            del body  # `inbound` may let go of it
            if isinstance(found, Visit):
                reply = await found.page(inbound, found.parameters)
                await outlet.answer(reply.status, reply.headers, reply.body)
                return
            await found.proxy(inbound, outlet)
            if not outlet.started:
                raise RuntimeError("the handler ended without an answer")
        except Refused as refused:
            if outlet.started:
                raise
            await outlet.answer(*exchange.refusal(refused.problem, refused.headers))

    def _failed(self, exchange: "_Exchange", failure: Exception) -> None:
        """A stream that has begun can't be turned into an error: it is cut. Else the client learns that it was our fault, and no more."""
        outlet = exchange.outlet
        self._report(f"request {outlet.request_id} failed", failure)
        outlet.keeps = False
        if outlet.started:
            outlet.abort()
            return
        refusal = problem("internal_error", f"The gateway failed; request {outlet.request_id} is in its log.")
        try:
            outlet.put_answer(*exchange.refusal(refusal))
        except ClientGone:
            outlet.abort()


class _Exchange:
    """One request and its answer. `found` is what serves it, once it is known to be served."""

    __slots__ = ("_edge", "_waited", "body", "connection", "found", "head", "outlet", "path", "query")

    found: Metered | Visit

    def __init__(self, edge: Edge, connection: Connection, head: Head, whole: bool) -> None:
        self._edge = edge
        self._waited = not whole
        self.connection = connection
        self.body = b""  # from when it is whole until it is served
        self.head = head
        self.path, _, self.query = head.target.partition("?")
        # While a body is still to come, the answer can only be a refusal, and then what is left of the body is not worth waiting for.
        self.outlet = HttpOutlet(
            connection,
            _request_id(head.headers),
            head_only=head.method == "HEAD",
            http_1_0=head.http_1_0,
            keeps=head.keeps and whole,
        )

    @property
    def metered(self) -> bool:
        return isinstance(self.found, Metered)

    def serve(self, body: bytes) -> bool:
        if self._waited:
            self.outlet.keeps = self.head.keeps
            try:
                if self.metered:  # what was free when it began may be taken now
                    self._edge.check_load()
            except Refused as refused:
                self.refuse(refused.problem)
                return False
        self._edge.start(self, body)
        return True

    def grown(self, size: int) -> None:
        if size > SMALL_BYTES:
            try:
                self._edge.keep(self.outlet, size)
            except Refused as refused:
                self.refuse(refused.problem, refused.headers)

    def refuse(self, refusal: Problem, headers: Headers = ()) -> None:
        with suppress(ClientGone):
            self.outlet.put_answer(*self.refusal(refusal, headers))
        self.forget()

    def forget(self) -> None:
        self._edge.ended(self.outlet)

    def refusal(self, refusal: Problem, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        """In the shape that those who ask for this path read."""
        translated = self._edge.translate(self.path, refusal, self.head.headers, self.outlet.request_id, headers)
        if translated is not None:
            return translated.status, translated.headers, translated.body
        return refusal.status, [*refusal.headers(), *headers], refusal.body(shape_for(self.path, self.head.headers))


def _asks_for_websocket(head: Head) -> bool:
    return head.headers.get("Upgrade", "").lower() == "websocket"


# Codex asks for a WebSocket first. After any other status it tries that seven times before it turns to HTTP.
_NO_WEBSOCKETS: Final = problem("upgrade_refused", "This path takes POST: what passes through a WebSocket would not be metered.")

_OVERLOADED: Final[dict[Shedding, str]] = {
    "calls": "The gateway has as many calls under way as it takes (limits.max_calls). Nothing was sent to the provider: try again in a moment.",
    "bodies": "The large requests under way leave no room for this one (limits.max_bodies). Nothing was sent to the provider: try again in a moment.",
    "lag": "The gateway has more work than it keeps up with. Nothing was sent to the provider: try again in a moment.",
}


def fresh_id() -> str:
    """One no other request of this or another process has; it need not be a secret, and a system call each would cost more."""
    return f"req_{_PROCESS}{next(_serial):08x}"


def _request_id(headers: CIMultiDictProxy[str]) -> str:
    """The client's own id, if it sent one that is safe to log and to send back."""
    given = headers.getall("X-Request-Id", ())
    return given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else fresh_id()
