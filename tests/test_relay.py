"""One held call at the provider, however it ends: what the ledger records, what the client gets, what is told."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.meter import Meter
from gateway.core.money import price_of
from gateway.core.profiles import OnDisconnect, Profile
from gateway.demo.replies import Script
from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.settings import Drain
from gateway.wire.chat import DIALECT as CHAT
from gateway.wire.chat import read_answer
from tests.support.config import free_port
from tests.support.flow import TENANT, Broken, Client, World, chat, model_of, quick_retries, world
from tests.support.pricing import BIG
from tests.support.provider import Behaviour, Cut, FaultProvider, UsageReport
from tests.support.rulebooks import budget, policy

INPUT_TOKENS = 11  # of `chat()`
COUNT = Profile("count", "max_tokens", stream_options=True, on_disconnect=OnDisconnect.COUNT)
FULL_HOLD = Profile("full", "max_tokens", stream_options=True, on_disconnect=OnDisconnect.FULL_HOLD)
SLOW = Behaviour(pace_s=0.005)
LONG = Behaviour(script=Script(tokens=2000, ignores_cap=True))


def cost(output_tokens: int) -> int:
    """Of a call with `chat()`'s input, at big-model's prices."""
    return price_of(INPUT_TOKENS, 250_000_000) + price_of(output_tokens, 1_000_000_000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_retries(monkeypatch)


async def settled(here: World, run: str = "r1", state: str = "committed") -> Any:
    """The run's only record, once nothing of it is reserved any more."""
    view, record = await here.run(run), await here.record(run)
    assert (view.reserved, record.state) == (0, state)
    return record


# -- answered ---------------------------------------------------------------------------------------------------------------------


async def test_a_json_answer_is_charged_by_the_providers_usage(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        got = await here.ask(chat())
        record = await settled(here)
        assert (got.status, got.whole, got.json["usage"]["completion_tokens"]) == (200, True, 20)
        assert (record.charged.usd, record.usage.source, record.ending) == (provider.bill.microcents, "provider", "completed")
        assert got.headers["X-Budget-Remaining-USD"] == "4.9997725", "the real cost, not the hold"
        assert here.told.calls[0].status == 200
        assert here.reports_ending("completed")


async def test_a_stream_is_relayed_byte_for_byte_less_the_usage_chunk_nobody_asked_for(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        hidden = await here.ask(chat(stream=True), run="r1")
        shown = await here.ask(chat(stream=True, stream_options={"include_usage": True}), run="r2")
        assert hidden.events[-1] == shown.events[-1] == "[DONE]"
        assert all(event["choices"] for event in hidden.events[:-1])
        assert next(event for event in shown.events[:-1] if not event["choices"])["usage"]["completion_tokens"] == 20
        assert (await settled(here, "r1")).usage == (await settled(here, "r2")).usage
        assert (await here.run("r1")).committed * 2 == provider.bill.microcents


async def test_the_last_bytes_wait_for_the_commit_so_that_the_next_call_sees_the_refund(
    tmp_path: Path, provider: FaultProvider
) -> None:
    """The ceiling fits one worst case at a time."""
    rules = policy(budget("run-ceiling", "run", limit=cost(20) * 2))
    async with world(tmp_path, provider.base_url, rules) as here:
        provider.default = Behaviour(script=Script(tokens=2))
        for stream in (True, False, True, False, True):
            assert (await here.ask(chat(stream=stream))).status == 200
        assert (await here.run()).committed == cost(2) * 5


@pytest.mark.parametrize("stream", [True, False])
async def test_a_commit_that_hangs_delays_the_client_by_the_commit_wait_only(
    stream: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    hung: list[asyncio.Future[None]] = []

    def commit(*_: object, **__: object) -> "asyncio.Future[None]":
        hung.append(asyncio.get_running_loop().create_future())
        return hung[-1]

    def faulty(real: SqliteLedger) -> Any:
        return Broken(real, {"commit": commit})

    async with world(tmp_path, provider.base_url, ledger=faulty, commit_wait_ms=60) as here:
        began = asyncio.get_running_loop().time()
        got = await here.ask(chat(stream=stream))
        took = asyncio.get_running_loop().time() - began
        assert got.whole
        assert len(got.text.split()) == 20
        assert 0.06 <= took < 1
        hung[0].set_result(None)


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), LedgerLost("older")])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_goes_out_whole_though_the_ledger_does_not_take_the_commit(
    stream: bool, at_once: bool, failure: Exception, tmp_path: Path, provider: FaultProvider
) -> None:
    def commit(*_: object, **__: object) -> "asyncio.Future[None]":
        if at_once:
            raise failure
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(failure)
        return failed

    async with world(tmp_path, provider.base_url, ledger=lambda real: Broken(real, {"commit": commit})) as here:
        got = await here.ask(chat(stream=stream))
        assert got.whole
        assert len(got.text.split()) == 20
        [(event, fields)] = here.told.warnings
        assert (event, fields["ending"]) == ("unsettled", "completed")
        assert len(here.told.calls) == 1
        assert len(await here.live_holds("r1")) == 1, "its lease ends it"


async def test_usage_that_never_comes_is_counted(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.default = Behaviour(usage=UsageReport.NEVER)
        for run, stream in (("r1", True), ("r2", False)):
            await here.ask(chat(stream=stream), run=run)
            record = await settled(here, run)
            assert (record.usage.source, record.charged.usd, record.ending) == ("counted", cost(20), "completed")


async def test_a_stream_without_done_ends_well_where_every_choice_is_finished(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(done=False))
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        assert (got.whole, got.errors, record.ending, record.charged.usd) == (True, [], "completed", provider.bill.microcents)


@pytest.mark.parametrize(("padding", "here_too"), [(0, True), (3_000_000, False)])
async def test_a_large_json_answer_is_read_beside_the_loop(
    padding: int, here_too: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    threads: list[int] = []

    def read(body: bytes, meter: Meter) -> None:
        threads.append(threading.get_ident())
        read_answer(body, meter)

    dialect = replace(CHAT, read_answer=read)
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(padding=padding))
        assert len((await here.ask(chat(), dialect=dialect)).body) > padding
        assert (await settled(here)).charged.usd == provider.bill.microcents
        assert [thread == threading.get_ident() for thread in threads] == [here_too]


async def test_a_stream_in_answer_to_a_json_request_and_the_reverse_are_metered_as_what_they_are(
    tmp_path: Path, provider: FaultProvider
) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": None}
    usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
    sse = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in (chunk, usage)) + b"data: [DONE]\n\n"
    whole = orjson.dumps({"choices": [{"message": {"content": "hi"}}], "usage": usage["usage"]})
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(body=sse, content_type="text/event-stream"), Behaviour(body=whole))
        streamed, json = await here.ask(chat(), run="r1"), await here.ask(chat(stream=True), run="r2")
        assert streamed.events == [chunk, "[DONE]"]
        assert json.body == whole
        assert (await settled(here, "r1")).charged.usd == (await settled(here, "r2")).charged.usd == cost(7)


async def test_a_connection_serves_another_call_after_done(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        for stream in (True, False, True, True):
            await here.ask(chat(stream=stream))
        assert provider.connections == 1


async def test_a_service_tier_that_the_provider_names_is_charged_at_its_own_rates(
    tmp_path: Path, provider: FaultProvider
) -> None:
    [rates] = model_of(BIG).tiers
    double = type(rates)(rates.input * 2, rates.output * 2, rates.cached_input * 2, rates.cache_write * 2)
    model = model_of(BIG, service_tiers=(("priority", (double,)),))
    chunk = {
        "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5},
        "service_tier": "priority",
    }
    async with world(tmp_path, provider.base_url, models=[model]) as here:
        provider.next(Behaviour(body=b"data: " + orjson.dumps(chunk) + b"\n\n", content_type="text/event-stream"))
        await here.ask(chat(stream=True))
        assert (await settled(here)).charged.usd == cost(5) * 2


# -- not answered -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 400, 401, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_providers_own_refusal_goes_out_as_it_came_and_costs_nothing(
    stream: bool, status: int, tmp_path: Path, provider: FaultProvider, quick: None
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.default = Behaviour(status=status, body=b'{"error": {"message": "no"}}', headers=(("X-Why", "so"),))
        got = await here.ask(chat(stream=stream))
        record = await settled(here, state="released")
        assert (got.status, got.body, got.headers["X-Why"]) == (status, b'{"error": {"message": "no"}}', "so")
        assert (record.ending, (await here.run()).committed) == ("provider_refused", 0)
        assert got.headers["X-Budget-Remaining-USD"] == "5.00", "what was held is free again"
        assert len(provider.calls) == (3 if status in (429, 500, 503) else 1)
        assert here.reports_ending("provider_refused")


async def test_what_was_refused_for_now_is_tried_again_under_the_same_hold(
    tmp_path: Path, provider: FaultProvider, quick: None
) -> None:
    rules = policy(budget("run-ceiling", "run", limit=cost(20)))
    async with world(tmp_path, provider.base_url, rules) as here:
        provider.next(Behaviour(status=429), Behaviour(status=503))
        got = await here.ask(chat(stream=True))
        assert (got.status, len(provider.calls)) == (200, 3)
        assert len({request.body for request in provider.calls}) == 1
        assert (await settled(here)).charged.usd == provider.bill.microcents == cost(20)


async def test_a_retry_after_that_is_too_long_is_the_clients_to_wait_for(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(status=429, headers=(("Retry-After", "60"),)))
        got = await here.ask(chat())
        assert (got.status, got.headers["Retry-After"], len(provider.calls)) == (429, "60", 1)


async def test_a_provider_that_cannot_be_reached_costs_nothing(tmp_path: Path, quick: None) -> None:
    async with world(tmp_path, f"http://127.0.0.1:{free_port()}/v1") as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"], got.headers["X-Budget-Remaining-USD"]) == (502, "provider_unreachable", "5.00")
        assert (await settled(here, state="released")).ending == "not_sent"
        assert here.reports_ending("not_sent")


UNKNOWN = {
    "502": (Behaviour(status=502), 502),
    "504": (Behaviour(status=504), 504),
    "520": (Behaviour(status=520), 520),
    "a reset": (Behaviour(reset=True), 504),
    "silence": (Behaviour(silent=True), 504),
    "half a JSON answer": (Behaviour(cut_at_byte=40), 502),
    "half a JSON answer, reset": (Behaviour(cut_at_byte=40, cut=Cut.RST), 502),
}


@pytest.mark.parametrize("how", UNKNOWN)
async def test_where_nobody_can_say_whether_it_was_billed_the_hold_stays_to_its_lease(
    how: str, tmp_path: Path, provider: FaultProvider
) -> None:
    behaviour, status = UNKNOWN[how]
    async with world(tmp_path, provider.base_url, provider={"idle_timeout_ms": 300}) as here:
        provider.next(behaviour)
        got = await here.ask(chat())
        assert (got.status, len(provider.calls)) == (status, 1), "never sent again"
        assert (await here.run()).reserved == cost(20)
        assert here.reports_ending("unknown")
        here.clock.now_ms += here.settings.lease_ms
        assert len(await here.ledger.expire(10)) == 1
        view = await here.run()
        assert (view.reserved, view.committed, view.unconfirmed) == (0, cost(20), cost(20))


async def test_a_json_answer_too_large_to_hold_is_charged_in_full(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, max_response=2_000) as here:
        provider.next(Behaviour(padding=5_000))
        got = await here.ask(chat())
        record = await settled(here)
        assert (got.status, got.json["code"]) == (502, "provider_cut")
        assert (record.charged.usd, record.usage.source) == (cost(20), "held")


# -- broken off by the provider -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [Cut.FIN, Cut.RST])
async def test_a_stream_that_the_provider_cuts_is_counted_and_never_ends_cleanly(
    cut: Cut, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(cut_after_events=6, cut=cut, pace_s=0.002))
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        [error] = got.errors
        assert error["code"] == "provider_cut"
        assert "[DONE]" not in got.events
        assert (record.usage.source, record.charged.usd, record.ending) == (
            "counted",
            cost(len(got.text.split())),
            "provider_cut",
        )
        assert here.reports_ending("provider_cut")


async def test_half_an_event_of_a_cut_stream_is_not_relayed_before_the_error(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(cut_at_byte=700))
        got = await here.ask(chat(stream=True))
        assert got.events[-1] == {"error": got.errors[0]}
        assert (await settled(here)).ending == "provider_cut"


async def test_after_the_providers_own_error_event_comes_no_second_one(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(error_after_events=4))
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        assert [error["message"] for error in got.errors] == ["scripted"]
        assert (record.ending, record.charged.usd) == ("provider_cut", cost(len(got.text.split())))


# -- left by the client -----------------------------------------------------------------------------------------------------------


def leaving(after_words: int) -> Client:
    client = Client()

    async def leave(_: bytes) -> None:
        if len(client.text.split()) >= after_words:
            client.leave()

    client.on_write = leave
    return client


async def test_a_stream_whose_client_left_is_read_on_for_the_real_usage(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(SLOW)
        got = await here.ask(chat(stream=True), client=leaving(3))
        record = await settled(here)
        assert len(got.text.split()) < 20
        assert (record.charged.usd, record.usage.source, record.ending) == (cost(20), "provider", "client_left")
        assert provider.bill.microcents == cost(20)
        assert here.reports_ending("client_left")


async def test_a_json_call_whose_client_left_is_read_on_for_the_real_usage(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(first_byte_s=0.05, script=Script(tokens=3)))
        asking, client = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        client.leave()
        await asking
        assert (await settled(here)).charged.usd == cost(3)
        assert here.told.calls[0].status == 0


async def test_a_client_that_left_before_the_provider_was_called_costs_nothing(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        client = Client()
        client.leave()
        await here.ask(chat(), client=client)
        assert (await settled(here, state="released")).ending == "not_sent"
        assert provider.calls == []


async def test_a_client_that_leaves_on_the_last_bytes_is_charged_what_it_cost(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        client = Client()

        async def leave(data: bytes) -> None:
            if b"[DONE]" in data:
                client.leave()

        client.on_write = leave
        await here.ask(chat(stream=True), client=client)
        record = await settled(here)
        assert (record.charged.usd, record.ending) == (provider.bill.microcents, "completed")


async def test_nobody_tries_again_for_a_client_that_left(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.default = Behaviour(status=429, first_byte_s=0.05)
        asking, client = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        client.leave()
        await asyncio.wait_for(asking, 0.2)
        await settled(here, state="released")
        assert len(provider.calls) == 1


BOUNDS: dict[str, tuple[Drain, Behaviour]] = {
    "in time": (Drain(time_ms=50), Behaviour(stall_after_events=6)),
    "in bytes": (Drain(bytes=300), Behaviour(pace_s=0.005)),
    "in number": (Drain(number=0), Behaviour(pace_s=0.005)),
}


@pytest.mark.parametrize("bound", BOUNDS)
async def test_reading_on_is_bounded_then_what_was_seen_is_counted(bound: str, tmp_path: Path, provider: FaultProvider) -> None:
    drain, behaviour = BOUNDS[bound]
    async with world(tmp_path, provider.base_url, drain=drain) as here:
        provider.next(behaviour)
        got = await asyncio.wait_for(here.ask(chat(stream=True), client=leaving(3)), 5)
        record = await settled(here)
        assert (record.usage.source, record.ending) == ("counted", "client_left")
        assert cost(len(got.text.split())) <= record.charged.usd < cost(20)
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.left) == 1)


async def test_a_client_that_leaves_a_silent_provider_is_noticed_and_its_wait_bounded(
    tmp_path: Path, provider: FaultProvider
) -> None:
    """Nothing is written, so no write could fail."""
    async with world(tmp_path, provider.base_url, drain=Drain(time_ms=50)) as here:
        for run, stream, behaviour in (
            ("r1", True, Behaviour(stall_after_events=4)),
            ("r2", True, Behaviour(silent=True)),
            ("r3", False, Behaviour(silent=True)),
        ):
            provider.next(behaviour)
            asking, client = here.asking(chat(stream=stream), run)
            await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
            await asyncio.sleep(0.02)
            client.leave()
            await asyncio.wait_for(asking, 2)
            record = await settled(here, run)
            assert record.ending == "client_left"
            assert record.usage.source == ("counted" if client.text or client.started else "held")
            provider.forget()


async def test_places_for_reading_on_are_given_back(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, drain=Drain(number=1)) as here:
        for number in range(3):
            provider.next(SLOW)
            await here.ask(chat(stream=True), run=f"r{number}", client=leaving(3))
            assert (await settled(here, f"r{number}")).usage.source == "provider"


async def test_a_model_that_may_reason_unseen_is_charged_in_full_where_its_usage_did_not_come(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, models=[model_of(BIG, reasoning=True)], drain=Drain(time_ms=50)) as here:
        provider.next(Behaviour(stall_after_events=6))
        await here.ask(chat(stream=True), client=leaving(3))
        record = await settled(here)
        assert (record.usage.source, record.charged.usd) == ("held", cost(20))


@pytest.mark.parametrize(("profile", "source"), [(COUNT, "counted"), (FULL_HOLD, "held")])
async def test_profiles_that_do_not_read_on_close_at_once(
    profile: Profile, source: str, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, profile=profile) as here:
        provider.next(Behaviour(stall_after_events=6))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 4)
        client.leave()
        await asyncio.wait_for(asking, 1)
        record = await settled(here)
        assert (record.usage.source, record.ending) == (source, "client_left")
        assert record.charged.usd == (cost(20) if source == "held" else cost(len(client.text.split())))
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.left) == 1)


# -- stopped ----------------------------------------------------------------------------------------------------------------------


STOPS: dict[str, tuple[Callable[[World], None], str, str]] = {
    "its run is stopped": (lambda here: here.flow.run_stopped(TENANT, "r1"), "run_stopped", "budget_exceeded"),
    "the gateway shuts down": (lambda here: here.flow.shut_down(), "gateway_stopped", "overloaded"),
}


@pytest.mark.parametrize("why", STOPS)
async def test_a_stream_ends_with_an_error_event_and_is_counted_when(why: str, tmp_path: Path, provider: FaultProvider) -> None:
    stop, ending, code = STOPS[why]
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(stall_after_events=6))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 4)
        stop(here)
        stop(here)
        await asyncio.wait({asking}, timeout=1)
        assert asking.cancelling() == 0, "whoever waits in this task later is not to be cancelled"
        await asking
        record = await settled(here)
        assert [error["code"] for error in client.errors] == [code]
        assert "[DONE]" not in client.events
        assert (record.ending, record.charged.usd) == (ending, cost(len(client.text.split())))
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.left) == 1)


@pytest.mark.parametrize("why", STOPS)
async def test_a_json_call_is_answered_and_charged_in_full_when(why: str, tmp_path: Path, provider: FaultProvider) -> None:
    stop, ending, code = STOPS[why]
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(silent=True))
        asking, client = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        stop(here)
        await asyncio.wait_for(asking, 1)
        record = await settled(here)
        assert (client.status, client.json["error"]["code"]) == (402 if code == "budget_exceeded" else 503, code)
        assert (record.ending, record.charged.usd, record.usage.source) == (ending, cost(20), "held")


async def test_a_call_waiting_to_try_again_is_released_when_its_run_is_stopped(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(status=429, headers=(("Retry-After", "5"),)))
        asking, client = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        await asyncio.sleep(0.05)
        here.flow.run_stopped(TENANT, "r1")
        await asyncio.wait_for(asking, 1)
        assert client.status == 402
        await settled(here, state="released")


async def test_reading_on_ends_when_the_gateway_shuts_down(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(stall_after_events=8))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 6)
        client.leave()
        await asyncio.sleep(0.02)
        assert not asking.done()
        here.flow.shut_down()
        await asyncio.wait_for(asking, 1)
        assert (await settled(here)).ending == "gateway_stopped"


async def test_a_client_that_takes_nothing_does_not_keep_a_stopped_call_alive(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.relay._GOODBYE_S", 0.05)
    async with world(tmp_path, provider.base_url) as here:
        asking, client = here.asking(chat(stream=True), client=Client(takes_nothing=True))
        await asyncio.to_thread(provider.wait_for, lambda: client.body != b"")
        here.flow.run_stopped(TENANT, "r1")
        await asyncio.wait_for(asking, 1)
        assert client.aborted
        assert (await settled(here)).ending == "run_stopped"


async def test_a_stop_while_the_commit_is_awaited_changes_nothing(tmp_path: Path, provider: FaultProvider) -> None:
    gate: list[asyncio.Future[None]] = []

    def faulty(real: SqliteLedger) -> Any:
        async def late(step: Any) -> Any:
            gate.append(asyncio.get_running_loop().create_future())
            await gate[0]
            return await step

        return Broken(real, {"commit": lambda *args: late(real.commit(*args))})

    async with world(tmp_path, provider.base_url, ledger=faulty, commit_wait_ms=2_000) as here:
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: bool(gate))
        here.flow.run_stopped(TENANT, "r1")
        here.flow.shut_down()
        await asyncio.sleep(0.01)
        gate[0].set_result(None)
        await asking
        assert client.events[-1] == "[DONE]"
        record = await settled(here)
        assert (record.ending, record.charged.usd) == ("completed", provider.bill.microcents)


# -- more output than was asked for -------------------------------------------------------------------------------------------------


async def test_a_provider_that_ignores_the_cap_is_held_for_more_while_there_is_room(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(script=Script(tokens=2000, ignores_cap=True), tokens_per_event=20, pace_s=0.002))
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        assert len(got.text.split()) == 2000
        assert (record.charged.usd, record.ending) == (cost(2000), "completed")
        assert record.held.usd >= cost(2000), "it was held before it was written"
        assert here.told.overruns == []


async def test_a_stream_past_its_hold_ends_for_its_length_when_no_budget_is_left(tmp_path: Path, provider: FaultProvider) -> None:
    rules = policy(budget("run-ceiling", "run", limit=cost(600)))
    async with world(tmp_path, provider.base_url, rules) as here:
        provider.next(LONG)
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        assert got.events[-2]["choices"][0]["finish_reason"] == "length"
        [error] = got.errors
        assert error["code"] == "budget_exceeded"
        assert "run-ceiling" in error["message"]
        assert "r1" in error["message"]
        assert record.ending == "output_exceeded"
        words = len(got.text.split())
        assert words > 20
        assert record.charged.usd == cost(words)
        assert here.reports_ending("output_exceeded")


async def test_an_answer_that_is_finished_needs_no_more_room(tmp_path: Path, provider: FaultProvider) -> None:
    """It passed its cap with its last words: what it cost is an overrun, told and charged by the usage that follows; the client
    keeps its answer."""
    words = {"choices": [{"index": 0, "delta": {"content": "word " * 300}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": 300}
    rules = policy(budget("run-ceiling", "run", limit=cost(20)))
    async with world(tmp_path, provider.base_url, rules) as here:
        provider.next(Behaviour(extra_events=(b"data: " + orjson.dumps(words) + b"\n\n",), pace_s=0.005, usage_override=usage))
        got = await here.ask(chat(stream=True))
        record = await settled(here)
        assert (record.charged.usd, record.ending, got.errors) == (cost(300), "completed", [])
        assert [cause for _, cause in here.told.overruns] == ["output"]
        assert got.events[-1] == "[DONE]"


async def test_a_widened_hold_is_charged_whole_where_nobody_knows_better(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, models=[model_of(BIG, reasoning=True)]) as here:
        provider.next(Behaviour(script=Script(tokens=400, ignores_cap=True), stall_after_events=300))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 250)
        await asyncio.sleep(0.05)
        here.flow.run_stopped(TENANT, "r1")
        await asking
        record = await settled(here)
        assert record.usage.source == "held"
        assert record.held.usd == record.charged.usd >= cost(532)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_ledger_that_is_away_has_no_room_for_more(at_once: bool, tmp_path: Path, provider: FaultProvider) -> None:
    def extend(*_: object) -> "asyncio.Future[bool]":
        if at_once:
            raise LedgerUnavailable("away")
        failed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        failed.set_exception(LedgerLost("older"))
        return failed

    async with world(tmp_path, provider.base_url, ledger=lambda real: Broken(real, {"extend": extend})) as here:
        provider.next(LONG)
        got = await here.ask(chat(stream=True))
        assert len(got.errors) == 1
        assert (await settled(here)).ending == "output_exceeded"


# -- leases -----------------------------------------------------------------------------------------------------------------------


async def test_a_call_that_lasts_keeps_its_lease(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(stall_after_events=4))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 2)
        [live] = here.flow._live
        for _ in range(5):
            here.clock.now_ms += here.settings.lease_ms // 2
            live.keep_lease()
            assert await here.ledger.expire(10) == []
        here.flow.shut_down()
        await asking
        await settled(here)


async def test_a_lease_that_could_not_be_kept_is_tried_again(tmp_path: Path, provider: FaultProvider) -> None:
    asked: list[int] = []

    def faulty(real: SqliteLedger) -> Any:
        def extend(*args: Any) -> Any:
            asked.append(1)
            if len(asked) > 1:
                return real.extend(*args)
            failed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            failed.set_exception(LedgerUnavailable("away"))
            return failed

        return Broken(real, {"extend": extend})

    async with world(tmp_path, provider.base_url, ledger=faulty) as here:
        provider.next(Behaviour(stall_after_events=4))
        asking, client = here.asking(chat(stream=True))
        await asyncio.to_thread(provider.wait_for, lambda: len(client.text.split()) >= 2)
        [live] = here.flow._live
        live.keep_lease()
        assert asked == []
        here.clock.now_ms += here.settings.lease_ms // 2
        for _ in range(3):
            live.keep_lease()
            await here.quiet()
        assert len(asked) == 2
        here.flow.shut_down()
        await asking


async def test_a_hold_that_expired_under_a_call_is_corrected_by_its_commit(tmp_path: Path, provider: FaultProvider) -> None:
    """The machine slept, say."""
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(first_byte_s=0.1, script=Script(tokens=4)))
        asking, _ = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        here.clock.now_ms += here.settings.lease_ms
        assert len(await here.ledger.expire(10)) == 1
        await asking
        view = await here.run()
        assert (view.committed, view.unconfirmed, view.reserved) == (cost(4), 0, 0)
