"""A model that several providers serve: which failure of one moves a call on to the next, and under which hold."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.catalog import Model, Rates, Route
from gateway.core.money import price_of
from gateway.demo.replies import Script, Writer
from tests.support.config import free_port
from tests.support.flow import Client, chat, model_of, world
from tests.support.pricing import BIG, price_table
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

HELD_MODEL = model_of(BIG)
DOWN = Behaviour(status=503)
INPUT_TOKENS, OUTPUT_TOKENS = 11, 20


def priced(times: int) -> Model:
    """big-model, at so many times its price."""
    rates = HELD_MODEL.tiers[0]
    dearer = Rates(rates.input * times, rates.output * times, rates.cached_input * times, rates.cache_write * times)
    return replace(HELD_MODEL, tiers=(dearer,))


def cost(times: int = 1) -> int:
    return times * (price_of(INPUT_TOKENS, 250_000_000) + price_of(OUTPUT_TOKENS, 1_000_000_000))


@pytest.fixture
def second(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as provider:
        yield provider


def two(first: str, second: str, there: Model = HELD_MODEL) -> dict[str, Any]:
    """big-model at both, the second at the price of `there`."""
    return {"others": {"second": second}, "routes": {"big-model": (Route("test", HELD_MODEL), Route("second", there))}}


@pytest.mark.parametrize("failure", [Behaviour(status=503), Behaviour(status=429), Behaviour(status=404)])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unbilled_failure_moves_on_at_once_under_the_same_hold(
    failure: Behaviour, stream: bool, tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = failure
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        got = await here.ask(chat(stream=stream))
        record, view = await here.record(), await here.run()
        assert (got.status, got.whole) == (200, True)
        assert (record.state, record.charged.usd, view.reserved, view.committed) == ("committed", cost(), 0, cost())
        assert (len(provider.requests), len(second.requests)) == (1, 1)
        assert second.bill.microcents == cost()
        assert [event.provider for event in here.told.calls] == ["second"]


async def test_a_provider_that_cannot_be_reached_is_passed_by(tmp_path: Path, second: FaultProvider) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    async with world(tmp_path, nowhere, **two(nowhere, second.base_url)) as here:
        got = await here.ask(chat())
        assert (got.status, (await here.run()).committed) == (200, cost())


async def test_the_provider_is_asked_for_the_name_that_the_model_has_there(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = DOWN
    there = replace(HELD_MODEL, name="small-model")
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url, there)) as here:
        await here.ask(chat())
        assert b'"model":"small-model"' in second.requests[0].body
        assert (await here.record()).selected_model == "big-model"


@pytest.mark.parametrize("failure", [Behaviour(status=400), Behaviour(status=401), Behaviour(status=403)])
async def test_a_failure_of_the_request_itself_goes_to_the_client(
    failure: Behaviour, tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = failure
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        got = await here.ask(chat())
        assert (got.status, second.requests, (await here.run()).reserved) == (failure.status, [], 0)


async def test_a_dearer_route_goes_under_a_hold_of_its_own(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = DOWN
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url, priced(3))) as here:
        got = await here.ask(chat())
        record, view = await here.record(), await here.run()
        assert (got.status, got.headers["X-Budget-Reservation-Id"]) == (200, f"rsv_{record.decision_id.removeprefix('bdg_')}")
        assert (record.provider, record.charged.usd, view.committed, view.reserved) == ("second", cost(3), cost(3), 0)


async def test_without_room_for_the_dearer_route_the_first_ones_failure_is_the_answer(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = DOWN
    tight = policy(budget("run-ceiling", "run", limit=2 * cost() + USD // 100))
    routes = two(provider.base_url, second.base_url, priced(1000))
    async with world(tmp_path, provider.base_url, tight, **routes) as here:
        got = await here.ask(chat(max_tokens=OUTPUT_TOKENS))
        view = await here.run()
        assert (got.status, second.requests, view.reserved, view.committed) == (503, [], 0, 0)


@pytest.mark.parametrize("failure", [Behaviour(reset=True), Behaviour(status=502), Behaviour(status=504)])
async def test_a_failure_that_may_have_been_billed_keeps_its_hold_and_the_next_route_has_another(
    failure: Behaviour, tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = failure
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        got = await here.ask(chat())
        view = await here.run()
        [left] = await here.live_holds("r1")
        assert (got.status, view.committed, view.reserved) == (200, cost(), left.held.usd)
        assert (left.provider, len(provider.requests), len(second.requests)) == ("test", 1, 1)


async def test_once_the_first_byte_has_come_nothing_moves_on(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = Behaviour(cut_after_events=3)
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        got = await here.ask(chat(stream=True))
        assert (got.errors[0]["code"], second.requests) == ("provider_cut", [])


async def test_a_free_models_paid_fallback_reserves(tmp_path: Path, provider: FaultProvider, second: FaultProvider) -> None:
    free = replace(HELD_MODEL, tiers=(), free=True)
    routes = {"others": {"second": second.base_url}, "routes": {"big-model": (Route("test", free), Route("second", HELD_MODEL))}}
    broke = policy(budget("run-ceiling", "run", limit=cost() // 2))
    provider.default = DOWN
    async with world(tmp_path, provider.base_url, broke, [free], **routes) as here:
        got = await here.ask(chat(max_tokens=OUTPUT_TOKENS))
        assert (got.status, second.requests) == (503, []), "no room for the paid one"
    async with world(tmp_path / "rich", provider.base_url, None, [free], **routes) as here:
        got = await here.ask(chat(max_tokens=OUTPUT_TOKENS))
        assert (got.status, (await here.run()).committed) == (200, cost())


async def test_the_last_route_is_tried_again_and_its_failure_is_the_answer(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = DOWN
    second.next(DOWN, DOWN)
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        got = await here.ask(chat())
        assert (got.status, len(provider.requests), len(second.requests)) == (200, 1, 3)


async def test_a_provider_that_keeps_failing_rests_and_is_tried_again_later(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = DOWN
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        for _ in range(8):
            assert (await here.ask(chat())).status == 200
        assert (len(provider.requests), len(second.requests)) == (5, 8)
        assert here.shared.breakers.resting() == {"test"}
        record = await here.record()
        assert record.provider == "second", "decided for the second from the start"


async def test_a_client_that_leaves_between_two_routes_is_not_served_by_the_second(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.default = Behaviour(reset=True)
    async with world(tmp_path, provider.base_url, **two(provider.base_url, second.base_url)) as here:
        client = Client()
        real = here.ledger.reserve

        async def reserve(*arguments: Any) -> Any:
            if provider.requests:
                client.leave()
            return await real(*arguments)

        here.ledger.reserve = reserve  # type: ignore[method-assign]
        await here.ask(chat(), client=client)
        view = await here.run()
        [left] = await here.live_holds("r1")
        assert (second.requests, view.committed, view.reserved) == ([], 0, left.held.usd)


async def test_a_stream_moves_on_under_its_slice_where_the_price_fits_it_and_grows_at_the_other_providers_price(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    rules = policy(budget("run-ceiling", "run", sliced=True), budget("month"))
    for times in (1, 2):  # under the same hold, or one of its own
        provider.default, second.default = DOWN, Behaviour(script=Script(tokens=1_500), tokens_per_event=10, pace_s=0.002)
        routes = two(provider.base_url, second.base_url, priced(times))
        async with world(tmp_path / str(times), provider.base_url, rules, **routes) as here:
            got = await here.ask(chat(stream=True, max_tokens=4_000))
            view = await here.run()
            assert len(got.text.split()) == 1_500
            charged = times * (price_of(INPUT_TOKENS, 250_000_000) + price_of(1_500, 1_000_000_000))
            assert (view.reserved, view.committed) == (0, charged)
            assert [each.reserved for each in view.accounts] == [0, 0]
            assert (view.calls, here.told.calls[-1].provider) == (1, "second")
