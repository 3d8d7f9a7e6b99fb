"""One connection to one Redis or Valkey server, shared by everybody who asks.

What is asked for in one turn of the event loop goes out in one write; replies are matched in order, late ones too. The connection is
made again whenever it is lost. Whoever asks hears, within the deadline, one of: the reply; ServerError (the server said no);
LedgerUnavailable (never sent); OutcomeUnknown (sent, and nobody knows).
"""

import asyncio
import random
import re
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import hiredis

from gateway.ledger.contract import LedgerUnavailable, OutcomeUnknown, Unfit
from gateway.store_url import Address, StoreUrl, Tls, shown

Argument: TypeAlias = str | bytes | int
Command: TypeAlias = tuple[Argument, ...] | bytes

_PAUSE_FIRST_S: Final = 0.01  # before the connection is made again, doubled up to the last
_PAUSE_LAST_S: Final = 1.0
_PACED_AFTER_S: Final = 1.0  # a connection that lived for less was none: the pause goes on growing
_PARTIAL: Final = object()  # the reader has no whole reply yet
# Redis 6.2 puts the word of a failed call inside a script behind this.
_IN_A_SCRIPT = re.compile(r"-([A-Z]+) ")
IMPOSSIBLE: Final = "IMPOSSIBLE"  # the word for a script that ended itself (lua/lines.lua)

# Its own type hint means a tuple of one.
_packed: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)


class ServerError(LedgerUnavailable):
    """The server refused the command; nothing of it was done, but for a script that fails of itself. `code` is its word: NOSCRIPT, MOVED,
    OOM, READONLY …"""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        code = message.partition(" ")[0]
        if "impossible: " in message:
            code = IMPOSSIBLE
        elif code == "ERR" and (inner := _IN_A_SCRIPT.search(message)):
            code = inner[1]
        self.code = code


def bulk(*args: Argument) -> bytes:
    """Arguments as the protocol has them: a command, where its own number of them stands before."""
    return _packed(args).partition(b"\r\n")[2]


def _bytes_of(command: Command) -> bytes:
    return command if isinstance(command, bytes) else _packed(command)


class Asked:
    """One command under way, and who waits for its reply. `args`: bytes where it was packed before."""

    __slots__ = ("args", "deadline", "future")

    def __init__(self, args: Command, future: "asyncio.Future[Any]", deadline: float) -> None:
        self.args = args
        self.future = future
        self.deadline = deadline  # by the loop's clock

    def answered(self, reply: object) -> None:
        if not self.future.done():  # cancelled, or out of time
            self.future.set_result(reply)

    def failed(self, error: LedgerUnavailable, where: Address) -> None:  # noqa: ARG002 - whoever follows a redirection needs it
        self.gave_up(error)

    def gave_up(self, error: LedgerUnavailable) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Told(Asked):
    """A command for another's sake; what the server says to it does not matter."""

    __slots__ = ()

    def __init__(self, args: tuple[Argument, ...]) -> None:
        self.args = args
        self.deadline = float("inf")

    def answered(self, reply: object) -> None: ...

    def failed(self, error: LedgerUnavailable, where: Address) -> None: ...


class _Held(Asked):
    """A step whose answer waits until replicas have it."""

    __slots__ = ("asked", "group")

    def __init__(self, asked: Asked, group: "_Replicas") -> None:
        self.args = asked.args
        self.deadline = asked.deadline
        self.asked = asked
        self.group = group

    def answered(self, reply: object) -> None:
        self.group.answers.append((self.asked, reply))

    def failed(self, error: LedgerUnavailable, where: Address) -> None:
        self.asked.failed(error, where)

    def gave_up(self, error: LedgerUnavailable) -> None:
        self.asked.gave_up(error)


class _Replicas(Asked):
    """The WAIT behind the steps of one write: their answers go out when so many replicas have them."""

    __slots__ = ("answers", "number")

    def __init__(self, number: int, within_ms: int, deadline: float) -> None:
        self.args: Command = ("WAIT", number, within_ms)
        self.deadline = deadline
        self.number = number
        self.answers: list[tuple[Asked, object]] = []

    def answered(self, reply: object) -> None:
        have = reply if isinstance(reply, int) else 0
        if have >= self.number:
            for asked, answer in self.answers:
                asked.answered(answer)
        else:
            self.gave_up(OutcomeUnknown(f"only {have} of {self.number} replicas have the step"))

    def failed(self, error: LedgerUnavailable, where: Address) -> None:
        unknown = OutcomeUnknown(f"replicas were not heard of: {error}")
        for asked, _ in self.answers:
            asked.failed(unknown, where)

    def gave_up(self, error: LedgerUnavailable) -> None:
        for asked, _ in self.answers:
            asked.gave_up(error)


class _Wire(asyncio.Protocol):
    """One TCP connection, from its making to its end."""

    def __init__(self, address: Address, timeout_s: float, wait_replicas: int) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending: deque[Asked] = deque()  # sent, or to be sent in this turn; in the order of their replies
        self.closing = False  # takes nothing more
        self._address = address
        self._timeout_s = timeout_s
        self._wait_replicas = wait_replicas
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ServerError, notEnoughData=_PARTIAL)
        self._out: list[bytes] = []  # asked for in this turn of the loop
        self._replicas: _Replicas | None = None  # of this turn
        self._transport: asyncio.Transport | None = None
        self._heard_at = 0.0  # or, where nothing was under way, asked at
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def send(self, asked: Asked) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(_bytes_of(asked.args))
        if not self.pending:
            self._heard_at = self._loop.time()
        self.pending.append(asked)
        if self._timer is None or asked.deadline < self._timer_at:
            self._look_at(asked.deadline)

    def send_and_wait(self, asked: Asked) -> None:
        """Its answer comes when enough replicas have it."""
        if not self._wait_replicas:
            self.send(asked)
            return
        group = self._replicas
        if group is None:
            # Half the time: whoever asked must hear of replicas that are away before the whole connection counts as dead.
            group = self._replicas = _Replicas(self._wait_replicas, int(self._timeout_s * 500), asked.deadline)
        group.deadline = max(group.deadline, asked.deadline)
        self.send(_Held(asked, group))

    def ask(self, *args: Argument) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(Asked(args, future, self._loop.time() + self._timeout_s))
        return future

    def _flush(self) -> None:
        if self._replicas is not None:
            self._out.append(_bytes_of(self._replicas.args))
            self.pending.append(self._replicas)
            self._replicas = None
        out, self._out = self._out, []
        if self._transport is not None and not self.closing:
            self._transport.write(b"".join(out))

    # -- answers --------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._heard_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        pending = self.pending
        try:
            while (reply := self._reader.gets()) is not _PARTIAL:
                asked = pending.popleft()
                if type(reply) is ServerError:
                    asked.failed(reply, self._address)
                else:
                    asked.answered(reply)
        except (hiredis.ProtocolError, IndexError):  # no RESP, or a reply to nothing: what follows can't be trusted
            self.abort()

    def eof_received(self) -> None:
        self.closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.lost.set_result(None)
        unknown = OutcomeUnknown(f"{shown(self._address)} went away before it answered{f' ({exc})' if exc else ''}")
        unsent = LedgerUnavailable(f"{shown(self._address)} went away before it was asked")
        pending, self.pending = self.pending, deque()
        first_unsent = len(pending) - len(self._out)
        for place, asked in enumerate(pending):
            asked.failed(unknown if place < first_unsent else unsent, self._address)

    def abort(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def never_made(self) -> None:
        """Given up while it was made: the event loop closes the socket, and may not tell (uvloop does not), so nobody waits for that."""
        self._transport = None

    async def ended(self) -> None:
        """The socket is closed when this returns, if there ever was one."""
        if self._transport is not None:
            self.abort()
            await asyncio.shield(self.lost)

    # -- time -----------------------------------------------------------------------------------------------------------------

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._out_of_time)

    def _out_of_time(self) -> None:
        """Ends the wait for commands whose time is up; their late replies find nobody. One timer, for the next deadline."""
        self._timer = None
        now = self._loop.time()
        soonest = float("inf")
        for asked in self.pending:
            if asked.deadline <= now:
                asked.gave_up(OutcomeUnknown(f"{shown(self._address)} did not answer in time"))
            elif asked.deadline < soonest:
                soonest = asked.deadline
        if not self.pending:
            return
        silent_from = self._heard_at + self._timeout_s
        if silent_from <= now and self.pending[0].deadline <= now:
            self.abort()  # half open, or stopped: what is asked from now on deserves a connection that answers
        else:
            self._look_at(min(soonest, max(silent_from, now + 0.01)))


class Link:
    """The connection to one server, made and made again until it is closed. `verify` may refuse a server: it then stays away."""

    def __init__(
        self,
        address: Address,
        url: StoreUrl,
        timeout_s: float,
        verify: Callable[["Link"], Awaitable[None]] | None = None,
        changed: Callable[[], None] = lambda: None,  # it came, or it went
        wait_replicas: int = 0,
    ) -> None:
        self.address = address
        self.trouble: LedgerUnavailable | None = None  # why it is away
        self._url = url
        self._timeout_s = timeout_s
        self._verify = verify
        self._changed = changed
        self._wait_replicas = wait_replicas
        self._wire: _Wire | None = None
        self._greeting: _Wire | None = None  # connected, not verified yet
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._wire is not None and not self._wire.closing

    @property
    def under_way(self) -> int:
        return 0 if self._wire is None else len(self._wire.pending)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def close(self) -> None:
        """What is under way fails, its outcome unknown. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def reconnect(self) -> None:
        """This server is not what it was: look again."""
        if self._wire is not None:
            self._wire.abort()

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def send(self, asked: Asked, before: tuple[Argument, ...] | None = None, *, replicated: bool = False) -> bool:
        """Under way, or False where there is no connection. `before`: a command that goes right before it."""
        wire = self._wire
        if wire is None or wire.closing:
            return False
        if before is not None:
            wire.send(_Told(before))
        if replicated:
            wire.send_and_wait(asked)
        else:
            wire.send(asked)
        return True

    def tell(self, *args: Argument) -> None:
        """As `send`, for a command whose reply does not matter."""
        if self._wire is not None and not self._wire.closing:
            self._wire.send(_Told(args))

    def ask(self, *args: Argument) -> "asyncio.Future[Any]":
        """Under way when it returns. LedgerUnavailable where there is no connection."""
        wire = self._wire or self._greeting
        if wire is None or wire.closing:
            raise LedgerUnavailable(str(self.trouble or f"{shown(self.address)} is not connected"))
        return wire.ask(*args)

    async def once(self, *args: Argument) -> Any:
        """One question on a connection of its own, without `start`."""
        wire = await self._connect()
        try:
            return await wire.ask(*args)
        finally:
            await wire.ended()

    # -- connecting -----------------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _PAUSE_FIRST_S
        wire: _Wire | None = None
        try:
            while True:
                made_at = loop.time()
                try:
                    wire = await self._connect()
                except LedgerUnavailable as error:
                    self.trouble = error
                    self._changed()
                else:
                    self._wire, self.trouble = wire, None
                    self._changed()
                    await asyncio.shield(wire.lost)
                    self._wire, self.trouble = None, LedgerUnavailable(f"{shown(self.address)} went away")
                    self._changed()
                if loop.time() - made_at > _PACED_AFTER_S + self._timeout_s:
                    pause_s = _PAUSE_FIRST_S
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads gateways that lost the same server
                pause_s = min(2 * pause_s, _PAUSE_LAST_S)
        finally:
            self._wire = None
            if wire is not None:
                await wire.ended()

    async def _connect(self) -> _Wire:
        """A connection that is logged in and verified. LedgerUnavailable."""
        wire = _Wire(self.address, self._timeout_s, self._wait_replicas)
        good = False
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._open(wire)
                await self._log_in(wire)
                self._greeting = wire
                if self._verify is not None:
                    await self._verify(self)
            good = not wire.lost.done()
        except TimeoutError:
            raise LedgerUnavailable(f"{shown(self.address)} did not take the connection within {self._timeout_s:g} s") from None
        except OSError as error:  # also what TLS does not like
            raise LedgerUnavailable(f"{shown(self.address)} can't be reached: {error.strerror or error}") from None
        finally:
            self._greeting = None
            if not good:
                await wire.ended()
        if not good:
            raise LedgerUnavailable(f"{shown(self.address)} went away")
        return wire

    async def _open(self, wire: _Wire) -> None:
        try:
            await self._dial(wire)
        except BaseException:
            wire.never_made()
            raise

    async def _dial(self, wire: _Wire) -> None:
        loop = asyncio.get_running_loop()
        host, port = self.address
        if not port:
            await loop.create_unix_connection(lambda: wire, host)
            return
        context = None if self._url.tls is None else _tls_context(self._url.tls)
        transport, _ = await loop.create_connection(
            lambda: wire, host, port, ssl=context, server_hostname=host if context else None
        )
        connection = transport.get_extra_info("socket")
        if connection is not None:
            keep_alive(connection)

    async def _log_in(self, wire: _Wire) -> None:
        """In one write. Only the name may be refused: not every service lets it be set."""
        asked: list[asyncio.Future[Any]] = []
        if self._url.password:
            login = (self._url.user, self._url.password) if self._url.user else (self._url.password,)
            asked.append(wire.ask("AUTH", *login))
        if self._url.db:
            asked.append(wire.ask("SELECT", self._url.db))
        replies = await asyncio.gather(*asked, wire.ask("CLIENT", "SETNAME", "penstock"), return_exceptions=True)
        for reply in replies[:-1]:
            if isinstance(reply, ServerError):
                raise Unfit(f"{shown(self.address)} does not let us in: {reply}") from None
            if isinstance(reply, BaseException):
                raise reply


def keep_alive(connection: socket.socket) -> None:
    """A peer that vanished while nothing was asked is noticed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _tls_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_certs)
    context.check_hostname = tls.check_hostname
    if tls.certfile is not None:
        context.load_cert_chain(tls.certfile, tls.keyfile)
    return context
