"""The promise under load: what reaches the provider fits the ceiling, and what it billed is what was charged, to the microcent."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.replies import Script
from tests.support.config import Setup
from tests.support.gateway import GatewayProcess, started
from tests.support.load import caller, chat, microcents, statuses
from tests.support.provider import Behaviour, FaultProvider
from tests.support.rush import CEILING, FULL_LENGTH, assert_exactly_ten_were_served, rush


@pytest.fixture(scope="module")
def pair(folder: Path, shared_provider: FaultProvider) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two gateways, started apart, over one SQLite file."""
    shared_provider.default = FULL_LENGTH
    first = Setup(folder / "pair", shared_provider.base_url, policy=CEILING)
    with started(GatewayProcess(first), GatewayProcess(first.twin())) as (one, other):
        yield one, other


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = FULL_LENGTH
    return shared_provider


async def test_of_200_parallel_calls_on_a_new_run_exactly_the_ten_that_fit_reach_the_provider(
    pair: tuple[GatewayProcess, GatewayProcess], provider: FaultProvider, run: str
) -> None:
    seen = await rush(pair[:1], run)
    assert_exactly_ten_were_served(seen, pair[0], provider, run)


async def test_two_gateways_on_one_file_let_through_no_more_than_one(
    pair: tuple[GatewayProcess, GatewayProcess], provider: FaultProvider, run: str
) -> None:
    seen = await rush(pair, run)
    assert_exactly_ten_were_served(seen, pair[1], provider, run)
    assert pair[0].run(run) == pair[1].run(run)


async def test_two_workers_let_through_no_more_than_one_process(folder: Path, provider: FaultProvider, run: str) -> None:
    with GatewayProcess(Setup(folder / "workers", provider.base_url, policy=CEILING), workers=2) as gateway:
        seen = await rush([gateway], run)
        assert_exactly_ten_were_served(seen, gateway, provider, run)


async def test_a_repeated_idempotency_key_is_forwarded_and_each_call_is_held_and_charged(
    pair: tuple[GatewayProcess, GatewayProcess], provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=20), first_byte_s=0.2)
    async with caller(pair[0].url) as send:
        seen = await asyncio.gather(
            *(send(chat("the same", max_completion_tokens=20), run, Idempotency_Key="once") for _ in range(20))
        )
    assert statuses(seen) == {200: 20}
    assert len({each.headers["X-Budget-Reservation-Id"] for each in seen}) == 20
    assert [call.header("Idempotency-Key") for call in provider.calls] == ["once"] * 20
    told = pair[0].run(run)
    assert told["calls"] == 20
    assert microcents(told["committed_usd"]) == provider.bill.microcents == 20 * provider.bill.calls[0].microcents
