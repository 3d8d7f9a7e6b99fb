"""How a gateway ends: live streams may finish, what does not is ended and settled, and clients that leave leave nothing held."""

import asyncio
import signal
from typing import Any

import orjson
import pytest

from gateway.demo.replies import Script
from tests.support.gateway import CALLER_KEY, GatewayProcess, left_behind
from tests.support.load import caller, chat, microcents, until
from tests.support.provider import Behaviour, FaultProvider


async def ended(gateway: GatewayProcess, within_s: float) -> int:
    process = gateway.process
    assert process is not None
    code = await asyncio.to_thread(process.wait, within_s)
    gateway.process = None
    return code


async def test_sigterm_lets_live_streams_finish_and_charges_what_they_cost(
    start_gateway: Any, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=30), pace_s=0.05)  # 1.5 s
    gateway = start_gateway(extra={"shutdown": {"grace": "20s"}})
    async with caller(gateway.url) as send:
        live = [asyncio.ensure_future(send(chat(str(number), max_tokens=50, stream=number > 0), run)) for number in range(6)]
        await until(lambda: len(provider.calls) == 6, 10)
        gateway.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        late = await send(chat(max_tokens=50), run)
        seen = await asyncio.gather(*live)
    assert all(each.finished for each in seen)
    assert late.status in (0, 503)  # no new work
    assert await ended(gateway, 10) == 0
    assert gateway.troubles == []
    told = await left_behind(gateway.setup, run)
    assert (told.reserved, told.calls) == (0, 6)
    assert told.committed == provider.bill.microcents


async def test_what_is_live_after_the_grace_is_ended_and_settled(start_gateway: Any, provider: FaultProvider, run: str) -> None:
    provider.default = Behaviour(script=Script(tokens=2_000), pace_s=0.05)  # 100 s
    gateway = start_gateway(extra={"shutdown": {"grace": "300ms"}})
    async with caller(gateway.url) as send:
        live = [asyncio.ensure_future(send(chat(str(number), max_tokens=2_000, stream=number > 0), run)) for number in range(6)]
        await until(lambda: len(provider.calls) == 6, 10)
        await asyncio.sleep(0.5)
        gateway.send_signal(signal.SIGTERM)
        assert await ended(gateway, 10) == 0
        seen = await asyncio.gather(*live)
    waiting, *streams = seen
    assert (waiting.status, waiting.code) == (503, "overloaded")
    for stream in streams:  # never a clean end that looks like a whole answer
        assert stream.status == 200
        assert b"[DONE]" not in stream.body
        last = stream.body.rstrip().rpartition(b"data: ")[2]
        assert orjson.loads(last)["error"]["code"] == "overloaded"
    assert gateway.troubles == []
    told = await left_behind(gateway.setup, run)
    assert (told.reserved, told.unconfirmed, told.calls) == (0, 0, 6)
    assert told.committed > 0


async def test_a_second_sigterm_ends_the_gateway_at_once(start_gateway: Any, provider: FaultProvider, run: str) -> None:
    provider.default = Behaviour(script=Script(tokens=2_000), pace_s=0.05)
    gateway = start_gateway(extra={"shutdown": {"grace": "1h"}})
    async with caller(gateway.url) as send:
        live = asyncio.ensure_future(send(chat(max_tokens=2_000, stream=True), run))
        await until(lambda: provider.calls, 10)
        gateway.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert gateway.process is not None
        assert gateway.process.poll() is None
        gateway.send_signal(signal.SIGTERM)
        assert await ended(gateway, 3) != 0
        assert not (await live).finished


@pytest.mark.parametrize("on_disconnect", ["drain", pytest.param("count", marks=pytest.mark.deep)])
async def test_300_clients_that_leave_at_once_leave_nothing_held(
    start_gateway: Any, provider: FaultProvider, run: str, on_disconnect: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=100), pace_s=0.02)  # 2 s
    gateway = start_gateway(
        policy={"version": 1, "budgets": [{"name": "run-ceiling", "scope": "run", "limit": "$100"}]},
        provider={"on_disconnect": on_disconnect},
    )
    body = orjson.dumps(chat(max_tokens=200, stream=True))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {CALLER_KEY}\r\nX-Run-Id: {run}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    clients = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", gateway.setup.port) for _ in range(300)))
    for _, writer in clients:
        writer.write(head.encode() + body)
    # Some leave before the first byte, some in mid-stream.
    await asyncio.gather(*(reader.readuntil(b"data: ") for reader, _ in clients[:200]))
    for _, writer in clients:
        writer.transport.abort()
    await until(lambda: gateway.run(run)["reserved_usd"] == "0.00" and gateway.run(run)["calls"] > 0, 20)
    told = gateway.run(run)
    assert told["unconfirmed_usd"] == "0.00"
    assert microcents(told["committed_usd"]) > 0
    await until(lambda: len(provider.left) + len(provider.bill.calls) >= len(provider.calls), 5)
    assert gateway.troubles == []
