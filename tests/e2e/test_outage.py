"""The store is away while calls go on: refused at once, nothing forgotten, each cost charged once; also over kill -9 and a restart."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from gateway.demo.replies import Script
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess, started
from tests.support.load import caller, chat, microcents, until
from tests.support.provider import Behaviour, FaultProvider

POLICY = policy(run_ceiling("$1000"))
TIMEOUT_S = 0.5


def config(folder: Path) -> dict[str, Any]:
    return {"ledger": {"url": f"sqlite:///{folder / 'ledger.db'}", "timeout": f"{TIMEOUT_S * 1000:.0f}ms"}}


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


@pytest.fixture
def gateway(tmp_path: Path, provider: FaultProvider) -> Iterator[GatewayProcess]:
    with GatewayProcess(Setup(tmp_path, provider.base_url, policy=POLICY, extra=config(tmp_path))) as running:
        yield running


@contextmanager
def away(gateway: GatewayProcess) -> Iterator[None]:
    """Nobody else can write to the store: as good as a store that does not answer."""
    connection = apsw.Connection(str(gateway.setup.folder / "ledger.db"))
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def journals(gateway: GatewayProcess) -> int:
    """Bytes that wait."""
    return sum(path.stat().st_size for path in (gateway.setup.folder / "state" / "journal").glob("*.journal"))


def ready(gateway: GatewayProcess) -> Any:
    return gateway.admin("GET", "/readyz").json()


async def test_a_store_that_is_away_refuses_at_once_and_serves_again_by_itself(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    async with caller(gateway.url) as send:
        assert (await send(chat(max_tokens=10), run)).status == 200
        with away(gateway):
            assert (await send(chat(max_tokens=10), run)).code == "ledger_unavailable"
            took_s = []
            for _ in range(10):
                began_s = time.perf_counter()
                seen = await send(chat(max_tokens=10), run)
                took_s.append(time.perf_counter() - began_s)
                assert (seen.status, seen.code, seen.headers["x-should-retry"]) == (503, "ledger_unavailable", "false")
            assert sorted(took_s)[5] < TIMEOUT_S / 2, "most are refused without asking the store"
            assert ready(gateway)["ready"] is False
        await until(lambda: ready(gateway)["ready"], 20)
        assert (await send(chat(max_tokens=10), run)).status == 200
    assert len(provider.calls) == 2
    told = gateway.run(run)
    assert (microcents(told["committed_usd"]), told["reserved_usd"]) == (provider.bill.microcents, "0.00")


async def test_what_ended_while_the_store_was_away_is_charged_once_though_the_gateway_was_killed(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=20), pace_s=0.02)
    async with caller(gateway.url) as send:
        calls = [asyncio.ensure_future(send(chat(f"call {number}", max_tokens=50, stream=True), run)) for number in range(5)]
        await until(lambda: len(provider.calls) == 5, 10)
        with away(gateway):
            answers = await asyncio.gather(*calls)
            assert all(seen.finished for seen in answers), "no client waits for the store"
            await until(lambda: ready(gateway)["ledger"]["journal"]["waiting"] == 5, 10)
            await asyncio.to_thread(gateway.kill)
            assert journals(gateway) > 0
    await asyncio.to_thread(gateway.start)
    await until(lambda: gateway.run(run)["reserved_usd"] == "0.00", 20)
    told = gateway.run(run)
    assert microcents(told["committed_usd"]) == provider.bill.microcents
    assert (told["unconfirmed_usd"], told["calls"]) == ("0.00", 5)
    await until(lambda: journals(gateway) == 0, 5)
    await asyncio.to_thread(gateway.restart)  # nothing is replayed again
    assert gateway.run(run) == told
    assert gateway.troubles == []


async def test_a_neighbour_takes_over_what_a_killed_gateway_could_not_record(
    tmp_path: Path, provider: FaultProvider, run: str
) -> None:
    setup = Setup(tmp_path, provider.base_url, policy=POLICY, extra=config(tmp_path))
    provider.default = Behaviour(script=Script(tokens=20), pace_s=0.02)
    with started(GatewayProcess(setup), GatewayProcess(setup.twin())) as (one, other):
        async with caller(one.url) as send:
            call = asyncio.ensure_future(send(chat(max_tokens=50, stream=True), run))
            await until(lambda: len(provider.calls) == 1, 10)
            with away(one):
                assert (await call).finished
                await until(lambda: ready(one)["ledger"]["journal"]["waiting"] == 1, 10)
                await asyncio.to_thread(one.kill)
        await until(lambda: other.run(run)["reserved_usd"] == "0.00", 20)
        told = other.run(run)
        assert (microcents(told["committed_usd"]), told["calls"]) == (provider.bill.microcents, 1)
        await until(lambda: journals(one) == 0, 5)


async def test_a_store_that_is_away_at_the_start_is_served_when_it_comes(
    tmp_path: Path, provider: FaultProvider, run: str
) -> None:
    gateway = GatewayProcess(Setup(tmp_path, provider.base_url, policy=POLICY, extra=config(tmp_path)))
    in_its_way = tmp_path / "ledger.db"
    in_its_way.mkdir(parents=True)
    gateway.launch()
    try:
        await until(lambda: answers(gateway), 60)
        assert ready(gateway)["ready"] is False
        async with caller(gateway.url) as send:
            assert (await send(chat(max_tokens=10), run)).code == "ledger_unavailable"
            in_its_way.rmdir()
            await until(lambda: ready(gateway)["ready"], 20)
            assert (await send(chat(max_tokens=10), run)).status == 200
    finally:
        gateway.stop()


def answers(gateway: GatewayProcess) -> bool:
    try:
        return gateway.admin("GET", "/healthz").status_code == 200
    except httpx.TransportError:
        return False


async def test_calls_of_budgets_that_allow_it_go_out_and_are_debited_when_the_store_is_back(
    tmp_path: Path, provider: FaultProvider, run: str
) -> None:
    watched = policy({**run_ceiling("$1000"), "mode": "actuals_only"})  # allows it unless told otherwise
    with GatewayProcess(Setup(tmp_path, provider.base_url, policy=watched, extra=config(tmp_path))) as gateway:
        async with caller(gateway.url) as send:
            assert (await send(chat(max_tokens=10), run)).status == 200
            with away(gateway):
                seen = await asyncio.gather(*(send(chat(max_tokens=10), run) for _ in range(5)))
                assert [(each.status, each.headers["X-Budget-Decision"]) for each in seen] == [(200, "allow")] * 5
                await until(lambda: ready(gateway)["ledger"]["journal"]["waiting"] == 5, 10)
                await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)
        await until(lambda: gateway.run(run)["calls"] == 6, 20)
        told = gateway.run(run)
        assert (microcents(told["committed_usd"]), told["reserved_usd"]) == (provider.bill.microcents, "0.00")
