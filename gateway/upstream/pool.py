"""A provider's connections: which one serves a request, how many there may be, and which have been silent for too long."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

from gateway.upstream.connection import READ_AT_ONCE, Connection
from gateway.upstream.dialing import Dialer
from gateway.upstream.heads import Origin
from gateway.upstream.port import Endpoint, NotSent

_LOOKS_EVERY_S: Final = 1.0


class Pool:
    """With `max_connections`, as many calls are under way as may be connected, and others wait in the order in which they came.

    One timer looks after all connections: to set one for every read costs more than the read.
    """

    def __init__(self, endpoint: Endpoint, dialer: Dialer, loop: asyncio.AbstractEventLoop) -> None:
        self.buffer = memoryview(bytearray(READ_AT_ONCE))
        self._endpoint = endpoint
        self._dialer = dialer
        self._loop = loop
        self._places = asyncio.Semaphore(endpoint.max_connections) if endpoint.max_connections else None
        self._connections: dict[Connection, Origin] = {}
        self._idle: dict[Origin, list[Connection]] = {}  # the last one used comes last; it is the least likely to have ended
        self._looks_every_s = max(0.01, min(_LOOKS_EVERY_S, endpoint.keepalive_s / 2, endpoint.idle_timeout_s / 4))
        self._looking: asyncio.TimerHandle | None = None
        self._closed = False

    async def connection(self, origin: Origin) -> Connection:
        """One to be used at once. NotSent."""
        if self._places is None:
            return self._used_before(origin) or await self._fresh(origin)
        try:
            async with asyncio.timeout(self._endpoint.connect_timeout_s):
                await self._places.acquire()
        except TimeoutError as failure:
            raise NotSent(f"no connection was free for {self._endpoint.connect_timeout_s:g} s") from failure
        try:
            return self._used_before(origin) or await self._fresh(origin)
        except BaseException:
            self._places.release()
            raise

    async def close(self) -> None:
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self._connections):
            connection.fail("the gateway closed its connections")
            connection.abort()
        await asyncio.sleep(0)  # asyncio closes the sockets in its next turn

    def _used_before(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        oldest_s = self._loop.time() - self._endpoint.keepalive_s
        while idle:
            connection = idle.pop()
            if not connection.dead:
                if connection.heard_s > oldest_s and not connection.stirred():
                    return connection
                connection.abort()
        return None

    async def _fresh(self, origin: Origin) -> Connection:
        if self._closed:
            raise NotSent("the gateway is shutting down")
        if self._places is not None and len(self._connections) >= self._endpoint.max_connections:
            self._close_one_that_is_idle()
        try:
            async with asyncio.timeout(self._endpoint.connect_timeout_s):
                connection = await self._dialer.dial(origin, lambda: Connection(self, self._loop))
        except TimeoutError as failure:
            raise NotSent(f"no connection within {self._endpoint.connect_timeout_s:g} s") from failure
        except (OSError, UnicodeError) as failure:
            raise NotSent(f"{type(failure).__name__}: {failure}") from failure
        if connection.dead or self._closed:
            connection.abort()
            raise NotSent("the connection was closed before anything was sent on it")
        self._connections[connection] = origin
        if self._looking is None:
            self._looking = self._loop.call_later(self._looks_every_s, self._look_after_them)
        return connection

    # -- the connections' word ------------------------------------------------------------------------------------------------

    def free(self, connection: Connection, *, keeps: bool) -> None:
        if keeps:
            self._idle.setdefault(self._connections[connection], []).append(connection)
        if self._places is not None:
            self._places.release()

    def lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    # -- now and then ---------------------------------------------------------------------------------------------------------

    def _look_after_them(self) -> None:
        now_s = self._loop.time()
        silent_since_s = now_s - self._endpoint.idle_timeout_s
        for connection in [each for each in self._connections if each.silent_since(silent_since_s)]:
            connection.fail(f"nothing came for {self._endpoint.idle_timeout_s:g} s")
        oldest_s = now_s - self._endpoint.keepalive_s
        for origin, idle in list(self._idle.items()):
            stale = [each for each in idle if each.heard_s <= oldest_s]
            self._idle[origin] = [each for each in idle if each.heard_s > oldest_s and not each.dead]
            for connection in stale:
                connection.abort()
            if not self._idle[origin]:
                del self._idle[origin]
        looks_on = self._connections and not self._closed
        self._looking = self._loop.call_later(self._looks_every_s, self._look_after_them) if looks_on else None

    def _close_one_that_is_idle(self) -> None:
        """The one that has been so for longest."""
        idle: Sequence[Connection] = [each for each in itertools.chain.from_iterable(self._idle.values()) if not each.dead]
        if idle:
            min(idle, key=lambda connection: connection.heard_s).abort()
