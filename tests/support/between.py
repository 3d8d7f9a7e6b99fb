"""What stands between a client and a Redis or Valkey server in tests: ends TLS, breaks connections at a chosen command, stalls.

with Between(server.port) as link:                  # its own thread and port: sync and async tests use it alike
    link.cut_before("EVALSHA")                      # the next one never reaches the server
    link.cut_after("EVALSHA")                       # the next one is done, and nobody hears of it
    link.stall(); …; link.flow()                    # nothing passes either way, connections stay
    link.refuse(); …; link.accept()                 # no connection lives or is made
with Between(server.port, tls=True) as link:        # rediss://localhost:PORT?ssl_ca_certs=…
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import hiredis

CERTIFICATE: Final = Path(__file__).parent / "tls" / "cert.pem"  # for `localhost`, signed by itself, for a hundred years
_KEY: Final = CERTIFICATE.with_name("key.pem")

Matches = Callable[[Sequence[bytes]], bool]


@dataclass(slots=True)
class _Cut:
    matches: Matches
    after: bool


@dataclass(eq=False, slots=True)
class _Pair:
    """One client's connection and its other half."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    asked: int = 0
    answered: int = 0
    mute_from: int | None = None  # answers from this one on stay here, and the connection ends with it
    requests: hiredis.Reader = field(default_factory=hiredis.Reader)
    replies: hiredis.Reader = field(default_factory=hiredis.Reader)

    def end(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Between:
    """Relays to a server on loopback. `seen` lists the commands that came by, as they were sent."""

    def __init__(self, server_port: int, *, tls: bool = False) -> None:
        self.seen: list[list[bytes]] = []
        self.connections = 0  # ever made
        self.port = 0
        self._server_port = server_port
        self._tls = tls
        self._cuts: list[_Cut] = []
        self._pairs: set[_Pair] = set()
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="between", daemon=True)

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.port}?ssl_ca_certs={CERTIFICATE}" if self._tls else f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener, self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults ---------------------------------------------------------------------------------------------------------------

    def cut_before(self, command: str | Matches) -> None:
        """The connection ends when the next such command arrives; neither it nor what was sent after it reaches the server."""
        self._cuts.append(_Cut(_matcher(command), after=False))

    def cut_after(self, command: str | Matches) -> None:
        """The connection ends when the server has answered the next such command; the answer does not reach the client."""
        self._cuts.append(_Cut(_matcher(command), after=True))

    def stall(self) -> None:
        """Nothing passes."""
        self._do(self._flowing.clear)

    def flow(self) -> None:
        self._do(self._flowing.set)

    def refuse(self) -> None:
        """Ends all connections, and each new one at once."""
        self._refusing = True
        self._do(self._end_all)

    def accept(self) -> None:
        self._refusing = False

    def drop(self) -> None:
        """Ends all connections; new ones are welcome."""
        self._do(self._end_all)

    def _do(self, act: Callable[[], object]) -> None:
        """In the thread, and done when it returns."""

        async def run() -> None:
            act()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _end_all(self) -> None:
        for pair in self._pairs:
            pair.end()

    # -- relaying -------------------------------------------------------------------------------------------------------------

    async def _listen(self) -> tuple[asyncio.Server, int]:
        self._flowing = asyncio.Event()
        self._flowing.set()
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE, _KEY)
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        return listener, listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._listener.close()
        self._end_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self._refusing:
                raise ConnectionRefusedError
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            to_client.transport.abort()
            return
        pair = _Pair(to_client, to_server)
        self._pairs.add(pair)
        back = asyncio.ensure_future(self._relay_replies(pair, from_server))
        try:
            await self._relay_commands(pair, from_client)
        finally:
            pair.end()
            self._pairs.discard(pair)
            await asyncio.gather(back, return_exceptions=True)

    async def _relay_commands(self, pair: _Pair, from_client: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await from_client.read(65_536):
                await self._flowing.wait()
                pair.requests.feed(received)
                passed: list[bytes] = []
                while (command := pair.requests.gets()) is not False:
                    self.seen.append(command)
                    cut = next((cut for cut in self._cuts if cut.matches(command)), None)
                    if cut is not None:
                        self._cuts.remove(cut)
                        if not cut.after:
                            pair.server.write(b"".join(passed))
                            return
                        pair.mute_from = pair.asked
                    pair.asked += 1
                    passed.append(hiredis.pack_command(tuple(command)))
                pair.server.write(b"".join(passed))
                await pair.server.drain()

    async def _relay_replies(self, pair: _Pair, from_server: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await from_server.read(65_536):
                await self._flowing.wait()
                pair.replies.feed(received)
                while pair.replies.gets() is not False:
                    pair.answered += 1
                if pair.mute_from is None:
                    pair.client.write(received)
                    await pair.client.drain()
                elif pair.answered > pair.mute_from:
                    break
        pair.end()


def _matcher(command: str | Matches) -> Matches:
    if not isinstance(command, str):
        return command
    name = command.upper().encode()
    return lambda args: args[0].upper() == name
