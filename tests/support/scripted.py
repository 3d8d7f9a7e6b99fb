"""A server that speaks RESP and says what the test wants; and waiting for what nobody tells."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import hiredis


@asynccontextmanager
async def scripted(answer: Callable[[list[bytes]], bytes], arrived: list[int] | None = None) -> AsyncIterator[str]:
    """A server that answers each command as it is told; its URL. `arrived` collects the sizes of what came in one piece."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests = hiredis.Reader()
        while received := await reader.read(65_536):
            requests.feed(received)
            if arrived is not None:
                arrived.append(len(received))
            while (command := requests.gets()) is not False:
                writer.write(answer(command))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)
