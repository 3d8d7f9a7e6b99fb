"""What stands between a client and a gateway in tests: loses answers, and keeps requests from arriving.

with HttpBetween(gateway.setup.port) as way:     # its own thread and port: sync and async clients use it alike
    way.lose("/commit")                          # the next such request is answered, and nobody hears of it
    way.block("/extend"); …; way.let("/extend")  # such a request never arrives: its connection ends
    way.asked("/commit")                         # the bodies of those that came by, whether or not they arrived
"""

import asyncio
import contextlib
import re
import threading
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    body: Any  # None: there was none


class HttpBetween:
    """Relays to a server on loopback, one request after the other on each connection."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._seen: list[Asked] = []
        self._to_lose: list[str] = []
        self._blocked: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-between", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lose(self, path_end: str) -> None:
        """The answer to the next request whose path ends so."""
        self._to_lose.append(path_end)

    def block(self, path_end: str) -> None:
        self._blocked.add(path_end)

    def let(self, path_end: str) -> None:
        self._blocked.discard(path_end)

    def asked(self, path_end: str) -> list[Asked]:
        return [each for each in self._seen if each.path.endswith(path_end)]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            with contextlib.suppress(
                asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
            ):  # at the end of the test
                while await self._relay(from_client, to_server, from_server, to_client):
                    pass
        finally:
            to_server.close()
            to_client.close()

    async def _relay(
        self,
        from_client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection goes on."""
        request = await _message(from_client)
        head, _, body = request.partition(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        path = target.split("?")[0]
        self._seen.append(Asked(method, path, orjson.loads(body) if body else None))
        if any(path.endswith(end) for end in self._blocked):
            return False
        to_server.write(request)
        answer = await _message(from_server)
        for end in self._to_lose:
            if path.endswith(end):
                self._to_lose.remove(end)
                return False
        to_client.write(answer)
        await to_client.drain()
        return True


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A head and the body that its length tells."""
    head = await reader.readuntil(b"\r\n\r\n")
    said = _LENGTH.search(head)
    return head + (await reader.readexactly(int(said[1])) if said else b"")
