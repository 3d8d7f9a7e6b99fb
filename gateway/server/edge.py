"""The HTTP edge: from a request's bytes to an `Inbound` and an `Outlet`, and nothing else. Every answer leaves in our shape.

    guards → route → body within its limit, inflated → handler → what the handler left undone

Refused before the body is read: foreign hosts and origins, unknown routes, declared lengths above the limit. A handler is not cancelled
when its client leaves: it is told (`Outlet.on_gone`), because it may hold money that has to be settled.
"""

import asyncio
import itertools
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from gateway.server.connection import CLOSED, KEPT, Connection, Listener, Report, Timeouts
from gateway.server.guards import Guards
from gateway.server.outlet import HttpOutlet
from gateway.server.routes import Metered, Miss, Routes, Visit
from gateway.wire.body import inflate
from gateway.wire.dialects import shape_for
from gateway.wire.exchange import ClientGone, Headers, Inbound
from gateway.wire.problem import Problem, Refused, Shape, bad_request, problem

BACKLOG: Final = 2048
SETTLE_S: Final = 10.0  # after `settle`: how long exchanges may take to end by themselves
CANCEL_S: Final = 2.0  # after their connections were aborted, and again after they were cancelled

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_UNDECODABLE: Final = re.compile("[\ud800-\udfff]")  # how such bytes are kept
_PROCESS: Final = secrets.token_hex(4)
_serial = itertools.count(1)
_INFLATE_HERE: Final = 32768  # compressed bytes; more are inflated in a thread


@dataclass(frozen=True, slots=True)
class Limits:
    max_request: int = 20 * 1024 * 1024  # bytes of a body, as sent and as inflated
    timeouts: Timeouts = field(default_factory=Timeouts)


class Edge:
    """Listens, dispatches, drains. `report` gets what no handler planned for, with its exception."""

    def __init__(self, routes: Routes, limits: Limits, guards: Guards, report: Report) -> None:
        self._routes = routes
        self._limits = limits
        self._guards = guards
        self._report = report
        self._listener: Listener | None = None
        self._servers: list[asyncio.Server] = []
        self._live: dict[HttpOutlet, asyncio.Task[None] | None] = {}
        self._none_live: asyncio.Event | None = None  # only while draining

    @property
    def live(self) -> int:
        """Exchanges under way."""
        return len(self._live)

    async def listen(self, host: str, port: int) -> int:
        """Accepts connections; returns the port (for port 0). OSError if the address can't be had."""
        server = await asyncio.get_running_loop().create_server(self._ready(), host, port, backlog=BACKLOG)
        return self._accepting(server)

    async def listen_on(self, listening: socket.socket) -> int:
        """The same on a socket that is bound already, which worker processes share."""
        server = await asyncio.get_running_loop().create_server(self._ready(), sock=listening, backlog=BACKLOG)
        return self._accepting(server)

    async def drain(self, grace_s: float, settle: Callable[[], None]) -> None:
        """Stops accepting and closes idle connections at once; exchanges may go on for `grace_s`; then `settle` tells their handlers to end
        them, and whoever has not ended `SETTLE_S` later loses its connection."""
        for server in self._servers:
            server.close()
        if self._listener is None:
            return
        self._listener.draining = True
        for connection in self._listener.connections:
            if isinstance(connection, Connection) and connection.outlet is None:
                connection.force_close()
        if not await self._ends_within(grace_s):
            settle()
            if not await self._ends_within(SETTLE_S):
                await self._end_by_force()
        await self._listener.shutdown(CANCEL_S)

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
            self._listener = Listener(self._exchange, self._limits.timeouts, self._report, fresh_id)
        return self._listener

    def _accepting(self, server: asyncio.Server) -> int:
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
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

    async def _exchange(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        outlet = HttpOutlet(
            connection,
            _request_id(request.headers),
            head_only=request.method == "HEAD",
            http_1_0=request.version < HttpVersion11,
            keeps=request.keep_alive and not request._message.upgrade,
        )
        connection.outlet = outlet
        self._live[outlet] = asyncio.current_task()
        try:
            await self._serve(request, connection, outlet)
            if not outlet.ended:
                outlet.abort()
        except ClientGone:
            outlet.abort()
        except asyncio.CancelledError:
            outlet.abort()
            raise
        except Exception as failure:  # noqa: BLE001 - the outermost handler: whatever nobody planned for
            self._report(f"request {outlet.request_id} failed", failure)
            await _failed(outlet, request)
        finally:
            connection.outlet = None
            del self._live[outlet]
            if self._none_live is not None and not self._live:
                self._none_live.set()
        return KEPT if outlet.keeps else CLOSED

    async def _serve(self, request: web.BaseRequest, connection: Connection, outlet: HttpOutlet) -> None:
        path, _, query = request.raw_path.partition("?")
        try:
            _check_readable(request)
            self._guards.check(request.headers)
            found = self._routes.find(request.method, path)
            if isinstance(found, Miss):
                if found.problem.code == "method_not_allowed" and _asks_for_websocket(request):
                    raise Refused(_NO_WEBSOCKETS, [("Upgrade", "HTTP/1.1")])
                await _refuse(outlet, request, found.problem, found.headers)
                return
            body = await self._body(request, connection)
            inbound = Inbound(
                method=request.method,
                path=found.path if isinstance(found, Metered) else path,
                query=query,
                path_run=found.path_run if isinstance(found, Metered) else None,
                headers=request.headers,
                body=body,
                request_id=outlet.request_id,
                parameters=found.parameters,
            )
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
            await _refuse(outlet, request, refused.problem, refused.headers)

    async def _body(self, request: web.BaseRequest, connection: Connection) -> bytes:
        limit = self._limits.max_request
        content = request.content
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        if content.is_eof():
            raw = content.read_nowait()
        else:
            raw = await self._slow_body(request, connection)
        if len(raw) > limit:
            raise _too_large(limit)
        coding = request.headers.get("Content-Encoding")
        if coding is None:
            return raw
        if len(raw) <= _INFLATE_HERE:
            return inflate(raw, coding, limit)
        return await asyncio.to_thread(inflate, raw, coding, limit)

    async def _slow_body(self, request: web.BaseRequest, connection: Connection) -> bytes:
        """The body is still on its way."""
        content = request.content
        pieces: list[bytes] = []
        size = 0
        seconds = self._limits.timeouts.body_s
        if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
            if connection.transport is None:
                raise ClientGone
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.body = content
        try:
            async with asyncio.timeout(seconds):
                while piece := await content.readany():
                    pieces.append(piece)
                    size += len(piece)
                    if size > self._limits.max_request:
                        break  # the caller refuses it
        except TimeoutError:
            raise bad_request("bad_request", f"The request's body did not arrive within {seconds:g} s.") from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise bad_request("bad_request", "The request's body is not framed as its headers say.") from None
        except OSError:
            raise ClientGone from None
        finally:
            connection.body = None
        return b"".join(pieces)


def _check_readable(request: web.BaseRequest) -> None:
    """What the parser lets pass, and no provider would take: a request line without a version, header bytes that are not UTF-8."""
    if request.version < HttpVersion10:
        raise bad_request("bad_request", "This gateway speaks HTTP/1.1.")
    for name, value in request.headers.items():
        if not value.isascii() and _UNDECODABLE.search(value):
            raise bad_request("ambiguous_request", f"The header {name} holds bytes that are not UTF-8.", name)


def _asks_for_websocket(request: web.BaseRequest) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


# Codex asks for a WebSocket first. After any other status it tries that seven times before it turns to HTTP.
_NO_WEBSOCKETS: Final = problem("upgrade_refused", "This path takes POST: what passes through a WebSocket would not be metered.")


async def _refuse(outlet: HttpOutlet, request: web.BaseRequest, refusal: Problem, headers: Headers = ()) -> None:
    if not request.content.is_eof():
        outlet.keeps = False  # what is left of the body is not worth waiting for
    await outlet.answer(refusal.status, [*refusal.headers(), *headers], refusal.body(_shape(request)))


def _shape(request: web.BaseRequest) -> Shape:
    return shape_for(request.raw_path.partition("?")[0], request.headers)


async def _failed(outlet: HttpOutlet, request: web.BaseRequest) -> None:
    """A stream that has begun can't be turned into an error: it is cut. Else the client learns that it was our fault, and no more."""
    outlet.keeps = False
    if outlet.started:
        outlet.abort()
        return
    refusal = problem("internal_error", f"The gateway failed; request {outlet.request_id} is in its log.")
    try:
        await outlet.answer(refusal.status, refusal.headers(), refusal.body(_shape(request)))
    except ClientGone:
        outlet.abort()


def fresh_id() -> str:
    """One no other request of this or another process has; it need not be a secret, and a system call each would cost more."""
    return f"req_{_PROCESS}{next(_serial):08x}"


def _request_id(headers: CIMultiDictProxy[str]) -> str:
    """The client's own id, if it sent one that is safe to log and to send back."""
    given = headers.getall("X-Request-Id", ())
    return given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else fresh_id()


def _too_large(limit: int) -> Refused:
    return bad_request("request_too_large", f"The request body is larger than {limit:,} bytes.")
