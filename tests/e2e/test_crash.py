"""The gateway is killed, or sleeps through a lease: no hold outlives its lease, nothing billed is forgotten, one correction is taken."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.replies import Script
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import GatewayProcess, started
from tests.support.load import Send, caller, chat, microcents, until
from tests.support.provider import Behaviour, FaultProvider

LEASE_S = 1
CONFIG: dict[str, Any] = {"reservation": {"lease": f"{LEASE_S}s"}}
POLICY = policy(run_ceiling("$1000"))
WITHIN_S = LEASE_S + 9.0  # the reaper looks every second; the rest is for a busy machine


@pytest.fixture(scope="module")
def pair(folder: Path, shared_provider: FaultProvider) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two over one ledger."""
    setup = Setup(folder, shared_provider.base_url, policy=POLICY, extra=CONFIG)
    with started(GatewayProcess(setup), GatewayProcess(setup.twin())) as (one, other):
        yield one, other


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    return shared_provider


async def killed_under_load(gateway: GatewayProcess, run: str, after_s: float, calls_at_once: int = 24) -> None:
    """Calls of both kinds, one after the other on each line, until the gateway is no more."""
    over = asyncio.Event()

    async def line(send: Send, number: int) -> None:
        while not over.is_set():
            seen = await send(chat(f"line {number}", max_tokens=400, stream=number % 2 == 0), run)
            if seen.status == 0:
                return

    async with caller(gateway.url) as send:
        lines = [asyncio.ensure_future(line(send, number)) for number in range(calls_at_once)]
        await asyncio.sleep(after_s)
        await asyncio.to_thread(gateway.kill)
        over.set()
        await asyncio.gather(*lines)


async def survives_kills(gateway: GatewayProcess, provider: FaultProvider, run: str, moments: list[float]) -> None:
    """Each time: killed, started again on what it left, and no hold is left once its lease is over."""
    provider.default = Behaviour(script=Script(tokens=60), pace_s=0.005)
    for moment in moments:
        await killed_under_load(gateway, run, moment)
        await asyncio.to_thread(gateway.start)
        await until(lambda: gateway.run(run)["reserved_usd"] == "0.00", WITHIN_S)
        assert microcents(gateway.run(run)["committed_usd"]) >= provider.bill.microcents > 0


async def test_after_a_kill_no_hold_outlives_its_lease_and_all_that_was_billed_is_charged(
    start_gateway: Any, provider: FaultProvider, run: str
) -> None:
    gateway = start_gateway(policy=POLICY, extra=CONFIG)
    await survives_kills(gateway, provider, run, [random.uniform(0.2, 1.2)])

    # What the dead gateway held is charged in full, and says so; the operator knows better, once.
    told = gateway.run(run)
    assert microcents(told["unconfirmed_usd"]) > 0
    expired = gateway.admin("GET", f"/admin/holds?run={run}").json()["holds"][0]
    assert (expired["state"], expired["charged_usd"]) == ("expired", expired["held_usd"])
    settle = f"/admin/holds/{expired['reservation_id']}/settle"
    first = gateway.admin("POST", settle, {"cost_usd": "0.0001", "reason": "the provider's invoice"}).json()
    assert first["changed"] is True
    corrected = gateway.run(run)
    held = microcents(expired["held_usd"])
    assert microcents(corrected["committed_usd"]) == microcents(told["committed_usd"]) - held + 10_000
    assert microcents(corrected["unconfirmed_usd"]) == microcents(told["unconfirmed_usd"]) - held
    for again in ({"cost_usd": "5.00"}, {"release": True}):
        assert gateway.admin("POST", settle, again).json()["changed"] is False
    assert gateway.run(run) == corrected


@pytest.mark.deep
async def test_after_many_kills_at_random_points_nothing_is_held_and_nothing_billed_is_forgotten(
    start_gateway: Any, provider: FaultProvider, run: str
) -> None:
    gateway = start_gateway(policy=POLICY, extra=CONFIG)
    await survives_kills(gateway, provider, run, [random.uniform(0.02, 1.5) for _ in range(20)])


async def test_a_call_that_outlasts_its_lease_keeps_its_hold(
    pair: tuple[GatewayProcess, GatewayProcess], provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=45), pace_s=0.1)  # 4.5 leases
    async with caller(pair[0].url) as send:
        seen = await send(chat(max_tokens=100, stream=True), run)
    assert seen.finished
    told = pair[1].run(run)
    assert told["unconfirmed_usd"] == told["reserved_usd"] == "0.00"
    assert microcents(told["committed_usd"]) == provider.bill.microcents


async def test_the_late_commit_of_a_gateway_that_slept_replaces_the_provisional_charge(
    pair: tuple[GatewayProcess, GatewayProcess], provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=20), pace_s=0.05)
    sleeper, other = pair
    async with caller(sleeper.url) as send:
        call = asyncio.ensure_future(send(chat(max_tokens=500, stream=True), run))
        await until(lambda: provider.calls, 10)
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            await until(lambda: microcents(other.run(run)["unconfirmed_usd"]) > 0, WITHIN_S)
            assert microcents(other.run(run)["committed_usd"]) > 500 * 1_000  # the whole hold
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        assert (await call).finished
    await until(lambda: other.run(run)["unconfirmed_usd"] == "0.00", 5)
    told = other.run(run)
    assert microcents(told["committed_usd"]) == provider.bill.microcents
    assert (told["reserved_usd"], told["calls"]) == ("0.00", 1)
