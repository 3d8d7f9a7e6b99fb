"""Gateways that share a ledger are one gateway: for the ceiling, for stops, for freezes. On Valkey, a Valkey cluster, and SQLite."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.demo.replies import Script
from tests.support.config import Setup, listed, opened_by
from tests.support.gateway import GatewayProcess, started
from tests.support.load import caller, chat, microcents, until
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider
from tests.support.rush import CEILING, FULL_LENGTH, assert_exactly_ten_were_served, rush
from tests.support.valkey import Server, cluster

KEY: Final = "pk-fleet-3c1d"
GATEWAYS: Final = 4
Fleet = Sequence[GatewayProcess]


@contextmanager
def fleet(folder: Path, url: str, upstream: str) -> Iterator[Fleet]:
    """Gateways on machines of their own: they share nothing but the store."""
    setup = Setup(folder, upstream, policy=CEILING, ledger=url, **opened_by(listed("fleet", KEY)))
    with started(*(GatewayProcess(setup.elsewhere(f"host-{number}")) for number in range(GATEWAYS))) as running:
        yield running
        assert [gateway.troubles for gateway in running] == [[]] * GATEWAYS


@pytest.fixture(scope="module")
def on_valkey(folder: Path, shared_provider: FaultProvider) -> Iterator[Fleet]:
    with (
        Server(folder / "valkey") as server,
        fleet(folder / "on-valkey", server.url, shared_provider.base_url) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def on_cluster(folder: Path, shared_provider: FaultProvider) -> Iterator[Fleet]:
    with (
        cluster(folder / "cluster") as nodes,
        fleet(folder / "on-cluster", cluster_url(nodes), shared_provider.base_url) as running,
    ):
        yield running


def cluster_url(nodes: Sequence[Server]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = FULL_LENGTH
    return shared_provider


# -- the ceiling ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gateways", [1, GATEWAYS])
async def test_of_200_parallel_calls_on_a_new_run_exactly_the_ten_that_fit_reach_the_provider(
    on_valkey: Fleet, provider: FaultProvider, run: str, gateways: int
) -> None:
    seen = await rush(on_valkey[:gateways], run, KEY)
    assert_exactly_ten_were_served(seen, on_valkey[-1], provider, run, KEY)


@pytest.mark.parametrize("gateways", [1, GATEWAYS])
@pytest.mark.deep
async def test_as_many_pass_where_the_store_is_a_cluster(
    on_cluster: Fleet, provider: FaultProvider, run: str, gateways: int
) -> None:
    seen = await rush(on_cluster[:gateways], run, KEY)
    assert_exactly_ten_were_served(seen, on_cluster[-1], provider, run, KEY)


@pytest.mark.parametrize("store", ["sqlite", "valkey", "cluster"])
@pytest.mark.deep
async def test_as_many_pass_through_four_workers(tmp_path: Path, provider: FaultProvider, run: str, store: str) -> None:
    with store_of(store, tmp_path) as url:
        setup = Setup(tmp_path / "gateway", provider.base_url, policy=CEILING, ledger=url)
        with GatewayProcess(setup, workers=4) as gateway:
            seen = await rush([gateway], run)
            assert_exactly_ten_were_served(seen, gateway, provider, run)


@contextmanager
def store_of(kind: str, folder: Path) -> Iterator[str | None]:
    """Its URL; None: the gateway's own file."""
    match kind:
        case "valkey":
            with Server(folder / "valkey") as server:
                yield server.url
        case "cluster":
            with cluster(folder / "cluster") as nodes:
                yield cluster_url(nodes)
        case _:
            yield None


# -- what one gateway is told, all of them know ----------------------------------------------------------------------------------

HALF_A_MINUTE: Final = Behaviour(script=Script(tokens=1_500), pace_s=0.02)


def stream(number: int) -> dict[str, Any]:
    return chat(f"call {number}", max_tokens=1_500, stream=True)


async def stop(gateway: GatewayProcess, run: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{gateway.url}/budget/runs/{run}/stop"
    answer = await asyncio.to_thread(httpx.post, url, headers=headers, **LOOPBACK)
    assert answer.json()["state"] == "stopped"


async def test_a_stop_through_one_gateway_ends_the_live_calls_of_the_run_and_its_children_in_another(
    on_valkey: Fleet, provider: FaultProvider, run: str
) -> None:
    here, there = on_valkey[:2]
    provider.default = HALF_A_MINUTE
    async with caller(there.url, KEY) as send:
        live = [asyncio.ensure_future(send(stream(number), run)) for number in range(3)]
        await until(lambda: len(provider.calls) == 3, 10)
        live.append(asyncio.ensure_future(send(stream(3), f"{run}.child", X_Parent_Run_Id=run)))
        bystander = asyncio.ensure_future(send(stream(4), f"{run}.other"))
        await until(lambda: len(provider.calls) == 5, 10)
        await stop(here, run)
        seen = await asyncio.wait_for(asyncio.gather(*live), 10)
        assert all(b"[DONE]" not in each.body for each in seen)
        assert not bystander.done()
        await stop(here, f"{run}.other")
        await bystander
        refused = [await send(chat(), name, gateway.url) for name in (run, f"{run}.child") for gateway in on_valkey]
        assert {(each.status, each.code) for each in refused} == {(402, "run_stopped")}
    await until(lambda: {there.run(name, KEY)["reserved_usd"] for name in (run, f"{run}.child")} == {"0.00"}, 10)
    assert len(provider.calls) == 5


async def test_a_freeze_through_one_gateway_ends_the_scopes_live_calls_in_another(
    on_valkey: Fleet, provider: FaultProvider, run: str
) -> None:
    here, there = on_valkey[2:]
    provider.default = HALF_A_MINUTE
    async with caller(there.url, KEY) as send:
        live = [asyncio.ensure_future(send(stream(number), f"{run}.{number}", X_Team_Id=run)) for number in range(3)]
        bystander = asyncio.ensure_future(send(stream(3), f"{run}.other", X_Team_Id=f"{run}.other"))
        await until(lambda: len(provider.calls) == 4, 10)
        scope = {"scope": {"team": run}}
        assert (await asyncio.to_thread(here.admin, "POST", "/admin/freeze", scope)).json()["changed"]
        seen = await asyncio.wait_for(asyncio.gather(*live), 10)
        assert all(b"[DONE]" not in each.body for each in seen)
        assert not bystander.done()
        await stop(here, f"{run}.other")
        await bystander
        refused = [await send(chat(), f"{run}.new", gateway.url, X_Team_Id=run) for gateway in on_valkey]
        assert {(each.status, each.code) for each in refused} == {(402, "scope_frozen")}
        assert (await asyncio.to_thread(there.admin, "POST", "/admin/thaw", scope)).json()["changed"]
        provider.default = Behaviour()
        assert (await send(chat(max_tokens=5), f"{run}.new", here.url, X_Team_Id=run)).status == 200


async def test_what_one_gateway_charged_another_tells(on_valkey: Fleet, provider: FaultProvider, run: str) -> None:
    provider.default = Behaviour()
    async with caller(on_valkey[0].url, KEY) as send:
        answers = [await send(chat(max_tokens=10), run, gateway.url) for gateway in on_valkey]
    assert [each.status for each in answers] == [200] * GATEWAYS
    views = [gateway.run(run, KEY) for gateway in on_valkey]
    assert all(view == views[0] for view in views)
    assert microcents(views[0]["committed_usd"]) == provider.bill.microcents
    last = answers[-1].headers["X-Budget-Decision-Id"]
    assert {gateway.get(f"/budget/decisions/{last}", KEY)["state"] for gateway in on_valkey} == {"committed"}
