"""A stream between real sockets: no task wakes for an event, and a client that reads nothing keeps little here and stops its provider."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from gateway.relay import Relay
from gateway.server.connection import BEHIND, Timeouts
from gateway.server.edge import Edge, Limits
from gateway.server.guards import Guards
from gateway.server.routes import Routes
from gateway.settings import Drain
from gateway.wire.chat import DIALECT as CHAT
from tests.support.flow import Client, World, chat, world
from tests.support.load import until
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

MB: Final = 2**20
SENT: Final = 50 * MB
# What the four sockets between the two may hold, by Linux's defaults: 6 MB to read and 4 MB to write each.
IN_THE_KERNEL: Final = 24 * MB
EVENT: Final = b": %b\n\n" % (b"a comment " * 600)  # which is relayed, and is no output that a cap would end


class Hose:
    """A provider that writes as fast as it is read."""

    def __init__(self) -> None:
        self.sent = 0
        self.left = asyncio.Event()  # nobody reads any more

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        try:
            while self.sent < SENT:
                writer.write(EVENT)
                await writer.drain()
                self.sent += len(EVENT)
        except OSError:
            pass
        self.left.set()
        writer.close()


@asynccontextmanager
async def stuck(folder: Path, stall_s: float, **settings: object) -> AsyncIterator[tuple[World, Hose]]:
    """A client has asked for a stream, and reads nothing of it."""
    hose = Hose()
    provider = await asyncio.start_server(hose.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/v1"
    async with provider, world(folder, url, policy(budget("run-ceiling", "run", limit=10_000 * USD)), **settings) as here:  # type: ignore[arg-type]
        reported: list[tuple[str, BaseException]] = []
        routes = Routes({("POST", CHAT.path): partial(here.flow.serve, CHAT)})
        limits = Limits(timeouts=Timeouts(stall_s=stall_s))
        edge = Edge(routes, limits, Guards(), lambda where, failure: reported.append((where, failure)))
        port = await edge.listen("127.0.0.1", 0)
        body = chat(stream=True, max_tokens=1_000_000)
        client = socket.create_connection(("127.0.0.1", port))
        head = f"POST {CHAT.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nX-Run-Id: r1\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        try:
            yield here, hose
        finally:
            client.close()
            await edge.drain(0, here.flow.shut_down)
        assert not reported


async def test_a_client_that_reads_nothing_stops_its_provider_and_has_left_after_a_while(tmp_path: Path) -> None:
    async with stuck(tmp_path, stall_s=1.0, drain=Drain(60_000, MB, 1)) as (here, hose):
        buffers = here.shared.buffers
        await until(lambda: buffers.held > 0, 20)
        assert buffers.held <= BEHIND + 128 * 1024, "what was written of one read comes on top"
        before = hose.sent
        assert before < IN_THE_KERNEL
        await asyncio.wait_for(hose.left.wait(), 20)
        assert hose.sent <= before + MB + IN_THE_KERNEL, "it is read on for its usage, and no further than `drain.bytes` says"
        await until(lambda: bool(here.told.calls), 20)
        record = await here.record()
        assert (record.state, record.ending, record.usage.source) == ("committed", "client_left", "counted")
        assert buffers.held == 0


async def test_a_client_that_reads_nothing_while_others_leave_too_much_has_left_at_once(tmp_path: Path) -> None:
    async with stuck(tmp_path, stall_s=60, max_buffered=4 * MB, drain=Drain(60_000, MB, 1)) as (here, hose):
        assert here.shared.buffers.take(4 * MB - BEHIND), "what others left"
        await asyncio.wait_for(hose.left.wait(), 20)
        await until(lambda: bool(here.told.calls), 20)
        assert (await here.record()).ending == "client_left"
        assert here.shared.buffers.held == 4 * MB - BEHIND


async def test_a_slow_client_gets_all_of_it_in_the_end(tmp_path: Path, provider: FaultProvider) -> None:
    """It takes each piece a turn late, and is never written to before it has."""
    waiting: list[int] = []

    async def takes(_: bytes) -> None:
        waiting.append(here.shared.buffers.held)
        await asyncio.sleep(0.001)

    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(pace_s=0.001))
        got = await here.ask(chat(stream=True), client=Client(on_write=takes))
        assert len(got.text.split()) == 20
        assert got.whole
        assert max(waiting) > 0
        assert here.shared.buffers.held == 0


async def test_no_task_wakes_for_an_event(tmp_path: Path, provider: FaultProvider) -> None:
    wakes = 0

    def counting(work: Awaitable[object]) -> Awaitable[object]:
        class Counted(Awaitable[object]):
            def __await__(self):  # type: ignore[no-untyped-def]
                nonlocal wakes
                inner = work.__await__()
                value = None
                while True:
                    try:
                        waits_for = inner.send(value)
                    except StopIteration as stop:
                        return stop.value
                    wakes += 1
                    value = yield waits_for

        return Counted()

    async with world(tmp_path, provider.base_url) as here:
        for events in (5, 100):
            provider.next(Behaviour(pace_s=0.002, tokens_per_event=100 // events, script=provider.default.script))
            wakes = 0
            client = Client()
            await counting(here.flow.serve(CHAT, here.inbound(chat(stream=True, max_tokens=100)), client))
            assert client.whole
            assert wakes < 20, f"{wakes} for {len(client.events)} events"


async def test_a_stream_that_is_over_leaves_nothing_that_only_the_garbage_collector_frees(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        await here.ask(chat(stream=True))
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(each, Relay) for each in gc.get_objects())  # earlier tests may keep some
            await here.ask(chat(stream=True))
            await here.quiet()
            assert sum(isinstance(each, Relay) for each in gc.get_objects()) <= before
        finally:
            gc.enable()
