"""Fifty agents at once on one run of $5, each asking for 32,000 tokens: their worst cases would fill it twenty-five times over.

Held slice by slice, they all make progress; and neither what is held and spent, nor what the provider bills, ever passes the $5.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.demo.replies import Script, Writer
from tests.support.config import Setup, listed, opened_by, policy, run_ceiling
from tests.support.gateway import GatewayProcess, started
from tests.support.load import caller, chat, microcents, statuses
from tests.support.pricing import TestModel, price_table
from tests.support.provider import Behaviour, FaultProvider, Received
from tests.support.valkey import Server

KEY: Final = "pk-fleet-3c1d"
AGENTS: Final = 50
CAP: Final = 32_000
CEILING: Final = 500_000_000  # $5.00, in microcents
DEAR: Final = TestModel("dear-model", "2.50", "80", max_output=CAP)  # its first slice is 8 cents, its worst case $2.56
SLICED: Final = {
    **policy(run_ceiling("$5.00", reservation={"basis": "sliced"}), {"name": "month", "scope": "tenant", "limit": "$500"}),
}
Gateways = Sequence[GatewayProcess]


@pytest.fixture(scope="module")
def shared(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table(DEAR)) as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "valkey"])
def gateways(request: pytest.FixtureRequest, folder: Path, shared: FaultProvider) -> Iterator[Gateways]:
    """Two, over one store."""
    facts: dict[str, Any] = {"policy": SLICED, "models": [DEAR], **opened_by(listed("fleet", KEY))}
    if request.param == "sqlite":
        first = Setup(folder / "sliced", shared.base_url, **facts)
        with started(GatewayProcess(first), GatewayProcess(first.twin())) as running:
            yield running
    else:
        with Server(folder / "sliced-valkey") as server:
            setup = Setup(folder / "sliced-on-valkey", shared.base_url, ledger=server.url, **facts)
            with started(*(GatewayProcess(setup.elsewhere(f"host-{number}")) for number in range(2))) as running:
                yield running


@pytest.fixture
def provider(shared: FaultProvider) -> Iterator[FaultProvider]:
    shared.forget()
    yield shared
    shared.choose = None


def slow(tokens: int, pace_s: float = 0.025) -> Behaviour:
    """As a provider writes: what comes at once is billed before anybody can hold it."""
    return Behaviour(script=Script(tokens=tokens), tokens_per_event=8, pace_s=pace_s)


async def most_exposed(gateway: GatewayProcess, run: str, done: asyncio.Event) -> int:
    """The most that was held and spent together, as often as it can be asked."""
    most = 0
    while not done.is_set():
        with contextlib.suppress(AssertionError):  # nobody knows the run yet
            told = await asyncio.to_thread(gateway.run, run, KEY)
            [account] = [each for each in told["accounts"] if each["name"] == "run-ceiling"]
            most = max(most, microcents(account["committed"]) + microcents(account["reserved"]))
        await asyncio.sleep(0.1)
    return most


@pytest.mark.parametrize("number", [1, 2])
async def test_agents_that_a_worst_case_would_starve_share_the_ceiling(
    gateways: Gateways, provider: FaultProvider, run: str, number: int
) -> None:
    provider.default = slow(700)
    done = asyncio.Event()
    watching = asyncio.create_task(most_exposed(gateways[0], run, done))
    async with caller(gateways[0].url, KEY) as send:
        seen = await asyncio.gather(
            *[
                send(
                    chat(f"agent {agent}", "dear-model", max_completion_tokens=CAP, stream=True),
                    run,
                    gateways[agent % number].url,
                )
                for agent in range(AGENTS)
            ]
        )
    done.set()
    assert statuses(seen) == {200: AGENTS}
    assert all(each.finished for each in seen)
    assert provider.bill.microcents < await watching <= CEILING
    told = gateways[-1].run(run, KEY)
    assert told["reserved_usd"] == told["unconfirmed_usd"] == "0.00"
    assert microcents(told["committed_usd"]) == provider.bill.microcents


@pytest.mark.deep  # on a machine that is too busy for the gateways to read, the provider is ahead of what they could hold
async def test_where_all_of_them_write_more_than_there_is_each_ends_whole_and_nothing_passes_the_ceiling(
    gateways: Gateways, provider: FaultProvider, run: str
) -> None:
    """Every third agent writes as much as it may, the others what they like: 5 dollars are not enough."""

    def choose(received: Received) -> Behaviour:
        agent = int(received.json["messages"][0]["content"].split()[1])
        return slow(4_000 if agent % 3 == 0 else 300, pace_s=0.05)

    provider.choose = choose
    done = asyncio.Event()
    watching = asyncio.create_task(most_exposed(gateways[0], run, done))
    async with caller(gateways[0].url, KEY) as send:
        seen = await asyncio.gather(
            *[
                send(chat(f"agent {agent}", "dear-model", max_completion_tokens=CAP, stream=True), run, gateways[agent % 2].url)
                for agent in range(AGENTS)
            ]
        )
    done.set()
    assert statuses(seen) == {200: AGENTS}
    cut = [each for each in seen if b'"finish_reason":"length"' in each.body and b'"budget_exceeded"' in each.body]
    assert len(cut) + sum(each.finished for each in seen if each not in cut) == AGENTS
    assert cut
    assert await watching <= CEILING
    told = gateways[-1].run(run, KEY)
    assert told["reserved_usd"] == told["unconfirmed_usd"] == "0.00"
    assert CEILING * 3 // 5 < microcents(told["committed_usd"]) <= CEILING
    assert provider.bill.microcents <= CEILING
