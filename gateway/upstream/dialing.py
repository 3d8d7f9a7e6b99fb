"""How a connection is made: name, address, perhaps a proxy, TLS. All of it is before anything of a request is sent.

Several addresses are tried as RFC 8305 says: the next one when the one before it failed, or has not answered for a moment.
"""

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gateway.core.record import record
from gateway.upstream.connection import Connection
from gateway.upstream.heads import Origin

_ADDRESSES_KEPT_S: Final = 10.0
_NEXT_ADDRESS_AFTER_S: Final = 0.25
_PROXY_HEAD_MAX: Final = 16_384
_TUNNEL_STANDS: Final = re.compile(rb"HTTP/1\.[01] 2[0-9]{2}[ \r]")

_Address = tuple[socket.AddressFamily, Any]  # with what `connect` wants


class ProxyRefused(OSError):
    """It did not answer CONNECT as it should."""


@record
class Proxy:
    """An HTTP proxy. `headers`: what it is told along with each request."""

    host: str
    port: int
    headers: str

    @classmethod
    def of(cls, url: str) -> "Proxy":
        """ValueError."""
        split = urlsplit(url)
        if split.scheme != "http" or not split.hostname:
            raise ValueError("a proxy is reached by an http URL")
        headers = ""
        if split.username is not None:
            credentials = f"{unquote(split.username)}:{unquote(split.password or '')}"
            headers = f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
        return cls(split.hostname, split.port or 80, headers)


class Dialer:
    """Makes connections, one provider's. Remembers addresses for a few seconds, and reads the certificates that are trusted once."""

    def __init__(self, proxy: Proxy | None, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop
        self._tls: ssl.SSLContext | None = None
        self._lookups: dict[tuple[str, int], tuple[float, asyncio.Task[list[_Address]]]] = {}

    async def dial(self, origin: Origin, protocol: Callable[[], Connection]) -> Connection:
        """OSError; UnicodeError for a name that none can have. Cancelled, it leaves nothing open."""
        proxy = self._proxy
        made = await self._connected(*((proxy.host, proxy.port) if proxy is not None else (origin.host, origin.port)))
        try:
            secure: dict[str, Any] = {}
            if origin.scheme == "https":
                if proxy is not None:
                    await self._tunnel(made, origin, proxy)
                secure = {"ssl": await self._trusted(), "server_hostname": origin.host.rstrip(".")}
            _, connection = await self._loop.create_connection(protocol, sock=made, **secure)
        except BaseException:
            made.close()
            raise
        return connection

    # -- addresses ------------------------------------------------------------------------------------------------------------

    async def _addresses(self, host: str, port: int) -> list[_Address]:
        """Everybody who asks at once waits for the same answer."""
        known = self._lookups.get((host, port))
        if known is None or known[0] < self._loop.time():
            known = self._loop.time() + _ADDRESSES_KEPT_S, self._loop.create_task(self._look_up(host, port))
            self._lookups[host, port] = known
            known[1].add_done_callback(lambda looked_up: self._forget_a_failure((host, port), looked_up))
        return await asyncio.shield(known[1])

    def _forget_a_failure(self, name: tuple[str, int], looked_up: asyncio.Task[list[_Address]]) -> None:
        if looked_up.cancelled() or looked_up.exception() is not None:
            self._lookups.pop(name, None)

    async def _look_up(self, host: str, port: int) -> list[_Address]:
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        addresses = [(socket.AddressFamily(family), address) for family, _, _, _, address in found]
        # As they are preferred, but the families by turns: a network that drops all of one costs one wait.
        first = [each for each in addresses if each[0] == addresses[0][0]]
        others = [each for each in addresses if each[0] != addresses[0][0]]
        for place, other in enumerate(others):
            first.insert(2 * place + 1, other)
        return first

    async def _connected(self, host: str, port: int) -> socket.socket:
        literal = _literal(host)
        addresses = await self._addresses(host, port) if literal is None else [(literal, (host, port))]
        if len(addresses) == 1:
            return await self._connect(addresses[0])
        return await self._race(addresses)

    async def _race(self, addresses: Sequence[_Address]) -> socket.socket:
        tries: list[asyncio.Task[socket.socket]] = []
        winner: asyncio.Task[socket.socket] | None = None
        failure: BaseException | None = None
        waiting = iter(addresses)
        try:
            under_way: set[asyncio.Task[socket.socket]] = set()
            while True:
                address = next(waiting, None)
                if address is not None:
                    tries.append(self._loop.create_task(self._connect(address)))
                    under_way.add(tries[-1])
                elif not under_way:
                    assert failure is not None
                    raise failure
                patience = None if address is None else _NEXT_ADDRESS_AFTER_S
                done, under_way = await asyncio.wait(under_way, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    failure = each.exception()
                    if failure is None:
                        winner = each
                        return each.result()
        finally:
            for each in tries:
                if each is not winner:
                    each.cancel()
                    each.add_done_callback(_close)

    async def _connect(self, address: _Address) -> socket.socket:
        family, where = address
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(made)
            await self._loop.sock_connect(made, where)
        except BaseException:
            made.close()
            raise
        return made

    # -- what stands on it ----------------------------------------------------------------------------------------------------

    async def _tunnel(self, made: socket.socket, origin: Origin, proxy: Proxy) -> None:
        """ProxyRefused, OSError."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        asked = f"CONNECT {host}:{origin.port} HTTP/1.1\r\nHost: {host}:{origin.port}\r\n{proxy.headers}\r\n"
        await self._loop.sock_sendall(made, asked.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):  # nothing follows it: in TLS, it is for us to begin
            received = await self._loop.sock_recv(made, 4096)
            head += received
            if not received or len(head) > _PROXY_HEAD_MAX:
                raise ProxyRefused("the proxy did not answer CONNECT as a proxy does")
        if _TUNNEL_STANDS.match(head) is None:
            raise ProxyRefused(f"the proxy refused CONNECT: {head[:100].decode('ascii', 'replace').splitlines()[0]}")

    async def _trusted(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await asyncio.to_thread(_tls_context)  # some 30 ms of reading files
        return self._tls


def keep_alive(made: socket.socket) -> None:
    """A provider may be silent for minutes while it thinks; NATs on the way forget connections that are."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30)):  # Linux, macOS, both
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _literal(host: str) -> socket.AddressFamily | None:
    """The family of a host that is no name: nobody has to be asked for it, and a resolver may say that the machine has no such network."""
    try:
        return socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    except ValueError:
        return None


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _close(tried: asyncio.Task[socket.socket]) -> None:
    """One that won as well, a moment too late."""
    if not tried.cancelled() and tried.exception() is None:
        tried.result().close()
