"""aiohttp's HTTP/1.1 server connection, with the answers it would write by itself replaced by ours.

aiohttp parses, keeps connections alive, and reads away what a refused client still sends. Changed here: errors take our shape, the wait
for a slow client is bounded, a body whose framing is broken fails at once, and an exchange hears that its client has left.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader

from gateway.server.outlet import HttpOutlet
from gateway.wire.exchange import ClientGone
from gateway.wire.problem import Problem, problem

Report = Callable[[str, BaseException], None]  # what went wrong, and with what: for one log line with its traceback

LINGER_S: Final = 5.0  # how long a refused request's body is read away, so that its sender gets to see the answer


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`idle_s`: between two requests, and for a request's head. `body_s`: for a request's body. `stall_s`: for a client to take more of its
    answer. None of them bounds how long an answer may take to come."""

    idle_s: float = 75.0  # longer than common clients and load balancers keep their side, so that they close first
    body_s: float = 120.0
    stall_s: float = 60.0


class Written(web.StreamResponse):
    """Tells aiohttp that the answer has been written already, and whether the connection stays."""

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002 - aiohttp's signature
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - aiohttp's signature
        return None

    @property
    def keep_alive(self) -> bool | None:
        return self._keep_alive


KEPT: Final = Written()
KEPT._keep_alive = True
CLOSED: Final = Written()
CLOSED.force_close()


class Connection(web.RequestHandler):
    """One client's connection. `outlet` and `body` are those of the exchange under way."""

    __slots__ = ("_listener", "_more_room", "body", "outlet")

    def __init__(self, listener: "Listener", **options: Any) -> None:
        super().__init__(listener, **options)
        self._listener = listener
        self._more_room: asyncio.Future[None] | None = None
        self.outlet: HttpOutlet | None = None
        self.body: StreamReader | None = None  # while it is being read

    # -- the outlet's line ----------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._listener.draining

    async def room(self) -> None:
        try:
            async with asyncio.timeout(self._listener.timeouts.stall_s):
                while self.writing_paused:
                    if self.transport is None:
                        raise ClientGone
                    self._more_room = self._loop.create_future()
                    await self._more_room
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ClientGone from None

    def _wake(self) -> None:
        if self._more_room is not None and not self._more_room.done():
            self._more_room.set_result(None)

    # -- asyncio's calls ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # While a body is incomplete, the parser can only have queued one thing: that what follows is not a body. aiohttp would answer
        # that after the exchange, which would wait for its body until it times out.
        if self.body is not None and self._messages and not self.body.is_eof():
            self.body.set_exception(web.RequestPayloadError("the request body's framing is broken"))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wake()
        if self.outlet is not None:
            self.outlet.lost()

    # -- what aiohttp would answer or log -------------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - aiohttp's signature
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Bytes that are not a request. An exchange's own failures end in the edge and don't come here."""
        outlet = HttpOutlet(self, self._listener.fresh_id(), keeps=False)
        try:
            refusal = _bad_syntax(exc)
            outlet.put_answer(refusal.status, refusal.headers(), refusal.body())
        except ClientGone:
            pass
        return CLOSED

    def log_exception(self, *args: Any, **kw: Any) -> None:
        failure = kw.get("exc_info")
        self._listener.report("the connection failed", failure if isinstance(failure, BaseException) else RuntimeError(*args))


class Listener(web.Server):
    """Makes a `Connection` of every accepted socket and hands its requests to `handler`."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        timeouts: Timeouts,
        report: Report,
        fresh_id: Callable[[], str],
    ) -> None:
        super().__init__(handler)
        self.timeouts = timeouts
        self.report = report
        self.fresh_id = fresh_id
        self.draining = False

    def __call__(self) -> Connection:
        return Connection(
            self,
            loop=self._loop,
            keepalive_timeout=self.timeouts.idle_s,
            lingering_time=LINGER_S,
            access_log=None,
            auto_decompress=False,  # the edge inflates, under its limit
        )


def _bad_syntax(failure: BaseException | None) -> Problem:
    if isinstance(failure, LineTooLong):
        return problem("headers_too_large", "The request line or a header is longer than this gateway reads.")
    return problem("bad_request", "This is not an HTTP/1.1 request that can be read in only one way.")
