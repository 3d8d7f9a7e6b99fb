"""One HTTP exchange of the server whose hooks we are: what it is answered when the call is refused, the `X-Budget-*` headers of every answer,
and its end, whatever the server's own code does in between. An ASGI application around the server's.
"""

import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

from gateway.core.values import Ending
from gateway.integrations.attempts import Session
from gateway.wire.refusing import Answer

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_FRAMING: Final = frozenset({b"content-length", b"content-type", b"transfer-encoding", b"retry-after", b"x-should-retry"})


class Exchange:
    """What is known of it. The hooks, in whatever task they run, find it by `CURRENT`."""

    __slots__ = ("_whole", "answer", "free", "mark", "over", "replaced", "session", "status")

    def __init__(self) -> None:
        self.session: Session | None = None
        self.mark: object = None  # by which the server's hooks know the request from others that are made in its course
        self.free = False  # it asks no model for anything
        self.answer: Answer | None = None  # the latest refusal: in place of whatever else the server would say went wrong
        self.status = 0
        self.replaced = False
        self._whole = False
        self.over = False

    def sending(self, send: Send) -> Send:
        async def to_client(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._start(message, send)
            elif not self.replaced:
                self._whole = not message.get("more_body", False)
                await send(message)

        return to_client

    async def _start(self, message: Message, send: Send) -> None:
        answer, headers = self.answer, list(message.get("headers", ()))
        if answer is not None and message["status"] >= 400:
            self.replaced = True
            headers = [pair for pair in headers if pair[0].lower() not in _FRAMING]
            headers += [*map(_raw, answer.headers), (b"content-length", b"%d" % len(answer.body))]
            message["status"] = answer.status
        if self.session is not None:
            headers = [pair for pair in headers if not _is_ours(pair[0].lower())]
            headers += map(_raw, self.session.headers())
        message["headers"], self.status = headers, message["status"]
        await send(message)
        if answer is not None and self.replaced:
            self._whole = True
            await send({"type": "http.response.body", "body": answer.body})

    def end(self) -> None:
        self.over = True
        if self.session is not None:
            self.session.over(self.status, Ending.UNKNOWN if self._whole else Ending.CLIENT_LEFT)


CURRENT: Final[ContextVar[Exchange | None]] = ContextVar("penstock_exchange", default=None)


class Exchanges:
    """Around `app`."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange()
        token = CURRENT.set(exchange)
        try:
            await self.app(scope, receive, exchange.sending(send))
        finally:
            with contextlib.suppress(ValueError):  # the server's own code may have left it in another context
                CURRENT.reset(token)
            exchange.end()


def _is_ours(name: bytes) -> bool:
    return name.startswith(b"x-budget-") or name == b"x-run-id"


def _raw(header: tuple[str, str]) -> tuple[bytes, bytes]:
    return header[0].lower().encode("latin-1"), header[1].encode("latin-1", "replace")
