"""One connection to a provider, and the answer that is being read from it.

Whatever arrives is parsed in the connection's own callback. A task is woken once per call for a small answer, and once per wait for a long
one; a body that is poured wakes nobody until it ends. An answer that has ended gives its connection back at once, whether or not its body
has been read.
"""

import asyncio
import select
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, cast

from multidict import CIMultiDictProxy

from gateway.upstream.parsing import AnswerParser, Malformed
from gateway.upstream.port import TooLarge, Unknown

READ_AT_ONCE: Final = 65_536  # bytes
KEPT_MAX: Final = 65_536  # of a body that nobody asks for; a read that was under way comes on top
_JOIN_BELOW: Final = 65_536  # head and body are written in one piece if that copies less than this
_AT_THE_END: Final = sys.maxsize


class Owner(Protocol):
    """Whoever keeps the connections."""

    buffer: memoryview  # what is read lands here; one for all, as it is parsed before anything else is read

    def free(self, connection: "Connection", *, keeps: bool) -> None:
        """Its answer has ended, or broken off. `keeps`: it can serve another request."""

    def lost(self, connection: "Connection") -> None:
        """It is no more."""


class Connection(asyncio.BufferedProtocol):
    """`heard_s`: by the loop's clock, when something last passed."""

    __slots__ = ("_answer", "_loop", "_owner", "_poll", "dead", "heard_s", "paused", "transport")

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._answer: HttpAnswer | None = None
        self._poll = select.poll()
        self.transport: asyncio.Transport | None = None
        self.dead = False
        self.paused = False
        self.heard_s = loop.time()

    async def ask(self, head: bytes, body: bytes, *, head_only: bool) -> "HttpAnswer":
        """Unknown. Cancelled, it closes the connection."""
        assert self.transport is not None
        assert self._answer is None
        answer = self._answer = HttpAnswer(self, self._loop, head_only=head_only)
        self.heard_s = self._loop.time()
        try:
            if len(body) < _JOIN_BELOW:
                self.transport.write(head + body)
            else:
                self.transport.write(head)
                self.transport.write(body)
            await answer.opened()
        except BaseException:
            answer.close()
            raise
        return answer

    def stirred(self) -> bool:
        """Whether something came that the loop has not handed over yet. On an idle connection that can only be its end."""
        return bool(self._poll.poll(0))

    def silent_since(self, when_s: float) -> bool:
        """While there is somebody to be answered, and it is not us who don't listen."""
        return self._answer is not None and not self.paused and self.heard_s < when_s

    def fail(self, why: str) -> None:
        if self._answer is not None:
            self._answer.fail(why)

    def abort(self) -> None:
        self.dead = True
        if self.transport is not None:
            self.transport.abort()

    # -- the answer's side ----------------------------------------------------------------------------------------------------

    def let_go(self, *, keeps: bool) -> None:
        """The answer needs it no more. One that still has to write the request's rest serves nobody else."""
        assert self.transport is not None
        self._answer = None
        keeps = keeps and not self.dead and not self.transport.get_write_buffer_size()
        if keeps:
            self.resume()
        else:
            self.abort()
        self._owner.free(self, keeps=keeps)

    def pause(self) -> None:
        assert self.transport is not None
        if not self.paused and not self.dead and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        assert self.transport is not None
        if self.paused and not self.dead and not self.transport.is_closing():
            self.paused = False
            self.heard_s = self._loop.time()
            self.transport.resume_reading()

    # -- asyncio's calls ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        raw: socket.socket = transport.get_extra_info("socket")
        self._poll.register(raw.fileno(), select.POLLIN)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._owner.buffer

    def buffer_updated(self, nbytes: int) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # nobody asked
            return
        self.heard_s = self._loop.time()
        answer.received(self._owner.buffer[:nbytes])

    def eof_received(self) -> None:
        self._end(None)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.dead = True
        self._end(exc)
        self._owner.lost(self)

    def _end(self, failure: Exception | None) -> None:
        if self._answer is not None:
            self._answer.cut(failure)


class HttpAnswer:
    """An `Answer`. Only one at a time may wait for it."""

    __slots__ = ("_connection", "_failure", "_loop", "_parser", "_raised", "_take", "_waiter", "_wakes_above")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, *, head_only: bool) -> None:
        self._connection = connection
        self._loop = loop
        self._parser = AnswerParser(head_only=head_only)
        self._failure: str | None = None  # why it is not whole and never will be
        self._waiter: asyncio.Future[None] | None = None
        self._wakes_above = 0  # bytes of the body that whoever waits wants to see; the end wakes them anyway
        self._take: Callable[[bytes], bool] | None = None
        self._raised: BaseException | None = None  # by `take`

    @property
    def status(self) -> int:
        return self._parser.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self._parser.headers

    async def opened(self) -> None:
        """The head has arrived. Unknown."""
        while not self._parser.status:
            if self._failure is not None:
                raise Unknown(self._failure)
            await self._wait(-1)

    async def read(self, limit: int) -> bytes:
        parser = self._parser
        while not self._is_over() and parser.size <= limit:
            await self._wait(limit)
        if parser.size > limit:
            self.close()
            raise TooLarge(f"the provider's answer is longer than {limit} bytes")
        if self._failure is not None:
            raise Unknown(self._failure)
        return parser.taken()

    def chunks(self) -> AsyncIterator[bytes]:
        return _Chunks(self)

    async def chunk(self) -> bytes:
        """What has arrived since the last, empty at the end. Unknown."""
        parser = self._parser
        while not parser.size:
            if self._failure is not None:
                raise Unknown(self._failure)
            if parser.ended:
                return b""
            await self._wait(0)
        return parser.taken()

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        parser = self._parser
        self._raised = None  # of a wait that was cancelled
        stopped = parser.size > 0 and not self._poured(take)
        while not stopped and not self._is_over():
            self._take = take
            try:
                await self._wait(_AT_THE_END)
                stopped = self._take is None
            finally:
                self._take = None
        if self._raised is not None:
            raise self._raised
        if not stopped and self._failure is not None:
            raise Unknown(self._failure)
        return not stopped

    def close(self) -> None:
        if not self._is_over():
            self.fail("the answer was closed here before its end")

    def release(self) -> None:
        self.close()  # with its end it let go of its connection

    # -- the connection's side ------------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        parser = self._parser
        try:
            parser.feed(data)
        except Malformed as failure:
            self._break_off(str(failure))
        if parser.ended:
            self._connection.let_go(keeps=parser.keeps and not parser.surplus)
        self._wake()
        if parser.size > KEPT_MAX and parser.size > self._wakes_above and not self._is_over():
            self._connection.pause()

    def cut(self, failure: Exception | None) -> None:
        """The connection has ended: with a failure, or as a body without a length does."""
        try:
            if failure is not None:
                raise Malformed(f"{type(failure).__name__}: {failure}")
            self._parser.close()
        except Malformed as why:
            self._break_off(str(why))
        else:
            self._connection.let_go(keeps=False)
        self._wake()

    def fail(self, why: str) -> None:
        self._break_off(why)
        self._wake()

    def _break_off(self, why: str) -> None:
        self._failure = why
        self._parser.stop()
        self._connection.let_go(keeps=False)

    def _is_over(self) -> bool:
        return self._parser.ended or self._failure is not None

    def _wake(self) -> None:
        """Hands over what there is to whoever waits for it."""
        stopped = self._take is not None and self._parser.size > 0 and not self._poured(self._take)
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if stopped or self._is_over() or (self._parser.status and self._parser.size > self._wakes_above):
            waiter.set_result(None)

    def _poured(self, take: Callable[[bytes], bool]) -> bool:
        """Whether it takes more."""
        try:
            goes_on = take(self._parser.taken())
        except BaseException as failure:  # noqa: BLE001 - it is raised again where it was asked for
            self._raised, goes_on = failure, False
        if not goes_on:
            self._take = None
            if not self._is_over():
                self._connection.pause()
        return goes_on

    async def _wait(self, wakes_above: int) -> None:
        assert self._waiter is None, "one waits at a time"
        self._wakes_above = wakes_above
        self._waiter = waiter = self._loop.create_future()
        self._connection.resume()
        try:
            await waiter
        finally:
            self._waiter = None
            self._wakes_above = 0


class _Chunks:
    """Not a generator: a generator that is cancelled once has ended, and ends cleanly when it is asked again."""

    __slots__ = ("_answer",)

    def __init__(self, answer: HttpAnswer) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._answer.chunk()
        if not piece:
            raise StopAsyncIteration
        return piece
