"""The path of an Anthropic call: disconnects and cuts at each stage, refusals in its shape, what thinking and caching make of it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.catalog import Rates
from gateway.core.policy import ModelPolicy, OutputPolicy
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.values import Usage, UsageSource
from gateway.wire.messages import DIALECT as MESSAGES
from tests.support import anthropic_answers
from tests.support.flow import Client, World, model_of, world
from tests.support.pricing import BIG, SMALL
from tests.support.provider import Behaviour, Cut, FaultProvider, Script, UsageReport
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

COUNT = Profile("test", "max_tokens", stream_options=True, on_disconnect=OnDisconnect.COUNT)
LADDER = ModelPolicy(downgrade=(("big-model", ("small-model",)),))
THINKS = model_of(BIG, reasoning=True)


def messages(text: str = "tell me about rivers", model: str = "big-model", **fields: Any) -> bytes:
    return orjson.dumps({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields})


def events_of(client: Client) -> list[tuple[str, Any]]:
    events = [event.split(b"\ndata: ") for event in client.body.split(b"\n\n") if event.startswith(b"event: ")]
    return [(name.removeprefix(b"event: ").decode(), orjson.loads(data)) for name, data in events]


async def asked(here: World, body: bytes, client: Client | None = None, **more: str) -> Client:
    return await here.ask(body, client=client, dialect=MESSAGES, **more)


async def nothing_left(here: World) -> None:
    assert (await here.run()).reserved == 0
    assert await here.live_holds("r1") == []


# -- the good path ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_charged_what_the_provider_bills(stream: bool, tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=9, cached_tokens=5)))
    async with world(tmp_path, provider.base_url) as here:
        got = await here.ask(messages(stream=stream), dialect=MESSAGES, query="beta=true")
        assert (got.status, got.whole) == (200, True)
        assert (await here.run()).committed == provider.bill.microcents > 0
        [sent] = provider.requests
        assert sent.target == "/v1/messages?beta=true"
        assert sent.json == orjson.loads(messages(stream=stream))
        assert (await here.record()).usage.source is UsageSource.PROVIDER
        if stream:
            assert [name for name, _ in events_of(got)][-1] == "message_stop"
        await nothing_left(here)


async def test_a_cap_is_written_where_the_client_named_none(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(output=OutputPolicy(default_by_model=(("*", 33),)))) as here:
        got = await asked(here, messages(max_tokens=None))
        assert got.status == 200
        assert provider.requests[0].json["max_tokens"] == 33


async def test_a_cache_that_is_not_asked_for_is_not_held(tmp_path: Path, provider: FaultProvider) -> None:
    rates = Rates(input=USD, output=USD, cached_input=USD // 10, cache_write=2 * USD, cache_write_long=4 * USD)
    model = replace(model_of(BIG), tiers=(rates,))
    held = []
    for caching in ({}, {"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral", "ttl": "1h"}}):
        folder = tmp_path / str(len(held))
        folder.mkdir()
        async with world(folder, provider.base_url, models=[model]) as here:
            got = await asked(here, messages("river " * 1000, max_tokens=1, **caching))
            assert got.status == 200
            record = await here.record()
            held.append(record.held.usd)
    plain, short, long = held
    assert (short, long) == (pytest.approx(2 * plain, rel=0.01), pytest.approx(4 * plain, rel=0.01))


async def test_a_call_that_only_fills_the_cache_is_held_and_charged_its_input(tmp_path: Path, provider: FaultProvider) -> None:
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 0, "output_tokens": 0}
    whole = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": "max_tokens", "usage": usage}
    provider.next(Behaviour(body=orjson.dumps(whole)))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, messages("river " * 2000, max_tokens=0, cache_control={"type": "ephemeral"}))
        assert got.status == 200
        assert provider.requests[0].json["max_tokens"] == 0
        record = await here.record()
        assert record.usage == Usage(UsageSource.PROVIDER, 3, 0, 2000)
        assert (await here.run()).committed == 2003 * 250  # BIG's input, written to a cache or not
        assert record.held.usd < 2100 * 250


async def test_searches_are_held_at_their_bound_and_charged_as_reported(tmp_path: Path, provider: FaultProvider) -> None:
    cent = USD // 100
    searching = replace(model_of(BIG), fees=(("web_searches", cent * 1_000_000),))
    usage = {"input_tokens": 5000, "output_tokens": 10, "server_tool_use": {"web_search_requests": 2}}
    provider.next(Behaviour(usage_override=usage))
    tools = [{"type": "web_search_20260318", "name": "web_search", "max_uses": 5}]
    async with world(tmp_path, provider.base_url, models=[searching]) as here:
        assert (await asked(here, messages(tools=tools))).status == 200
        record = await here.record()
        assert (await here.run()).committed == 5000 * 250 + 10 * 1000 + 2 * cent
        assert record.usage.others == (("web_searches", 2),)
        # Five searches, and the input six times: each time with half of the 50,000 tokens that they may bring.
        assert 5 * cent + 6 * 25_000 * 250 < record.held.usd < 5 * cent + 6 * 25_700 * 250


# -- refusals ---------------------------------------------------------------------------------------------------------------------


def in_anthropics_shape(got: Client, kind: str) -> Any:
    assert got.headers["x-should-retry"] == "false"
    assert got.json["type"] == "error"
    assert got.json["error"] == {"type": kind, "message": got.json["detail"]}
    return got.json


async def test_a_refusal_is_an_error_of_anthropics_with_the_facts_beside_it(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=10_000))) as here:
        got = await asked(here, messages())
        told = in_anthropics_shape(got, "billing_error")
        assert (got.status, told["code"], told["budget"]["name"]) == (402, "call_exceeds_limit", "run-ceiling")
        assert told["alternatives"][0]["model"] == "small-model"
        assert provider.requests == []


@pytest.mark.parametrize(
    ("fields", "status", "code", "kind"),
    [
        ({"model": "nobody-knows"}, 400, "model_not_priced", "invalid_request_error"),
        ({"max_tokens": "many"}, 400, "ambiguous_request", "invalid_request_error"),
        ({"tools": [{"type": "code_execution_20260521", "name": "c"}]}, 400, "not_estimable", "invalid_request_error"),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, 400, "output_cap_conflict", "invalid_request_error"),
    ],
)
async def test_a_request_at_fault_is_refused_in_the_same_shape(
    fields: dict[str, Any], status: int, code: str, kind: str, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, messages(**fields))
        assert (got.status, in_anthropics_shape(got, kind)["code"]) == (status, code)
        assert provider.requests == []


async def test_the_policys_cap_must_leave_room_for_the_thinking_too(tmp_path: Path, provider: FaultProvider) -> None:
    """The client's own numbers agree; with our lower cap the provider would refuse the request."""
    capped = policy(output=OutputPolicy(max_tokens=1500))
    async with world(tmp_path, provider.base_url, capped) as here:
        body = messages(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000})
        told = in_anthropics_shape(await asked(here, body), "invalid_request_error")
        assert told["code"] == "output_cap_conflict"
        assert "budget_tokens (2000)" in told["detail"]
        assert "1500" in told["detail"]
        assert provider.requests == []
        assert (await asked(here, messages(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 1499}))).status == 200


async def test_a_cheaper_model_that_could_not_think_so_much_is_passed_over(tmp_path: Path, provider: FaultProvider) -> None:
    narrow = replace(model_of(SMALL), max_output=1000)
    rules = policy(budget("run-ceiling", "run", limit=1_000_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules, models=[model_of(BIG), narrow]) as here:
        body = messages(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000})
        assert (await asked(here, body)).status == 402  # and no downgrade
        record = await here.record()
        assert "thinking.budget_tokens" in str(record.inputs["passed_over"])


async def test_near_its_ceiling_the_cheaper_model_answers(tmp_path: Path, provider: FaultProvider) -> None:
    rules = policy(budget("run-ceiling", "run", limit=20_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, messages(temperature=0.5, stop_sequences=["."]))
        assert (got.status, got.headers["X-Budget-Decision"]) == (200, "downgrade")
        assert provider.requests[0].json["model"] == "small-model"


# -- clients that leave -------------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_is_charged_what_the_provider_says_at_the_end(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=12), pace_s=0.005))
    async with world(tmp_path, provider.base_url) as here:
        client = Client()

        async def leave(data: bytes) -> None:
            if b"content_block_delta" in data:
                client.leave()

        client.on_write = leave
        await asked(here, messages(stream=True), client)
        record = await here.record()
        assert (record.ending, record.usage.source) == ("client_left", UsageSource.PROVIDER)
        assert (await here.run()).committed == provider.bill.microcents
        await nothing_left(here)


async def left_at(here: World, provider: FaultProvider, behaviour: Behaviour, events: int) -> Any:
    """The record of a call whose client left when it had so many events."""
    provider.next(behaviour)
    client = Client()

    async def leave(_: bytes) -> None:
        if client.body.count(b"event: ") == events:
            client.leave()

    client.on_write = leave
    await asked(here, messages(stream=True), client)
    assert client.gone
    await nothing_left(here)
    return await here.record()


async def test_where_nothing_more_is_read_the_input_is_the_providers_and_the_output_counted(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        record = await left_at(
            here, provider, Behaviour(script=Script(tokens=12, cached_tokens=5), stall_after_events=8), events=8
        )
        assert record.usage.source is UsageSource.COUNTED
        assert record.usage.cached_tokens == 5  # only the provider could know
        assert record.usage.output_tokens == 5
        assert 0 < (await here.run()).committed < record.held.usd


async def test_a_model_that_can_reason_is_charged_what_was_seen_as_long_as_it_shows_no_reasoning(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, models=[THINKS], profile=COUNT) as here:
        record = await left_at(here, provider, Behaviour(script=Script(tokens=12), stall_after_events=8), events=8)
        assert (record.usage.source, record.usage.output_tokens) == (UsageSource.COUNTED, 5)


async def test_reasoning_that_began_may_be_more_than_was_shown(tmp_path: Path, provider: FaultProvider) -> None:
    """Of thinking a summary is shown, or nothing."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    begun = (
        anthropic_answers.sse("message_start", message={"id": "msg_1", "usage": usage}),
        anthropic_answers.sse("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    )
    async with world(tmp_path, provider.base_url, models=[THINKS], profile=COUNT) as here:
        record = await left_at(here, provider, Behaviour(extra_events=begun, stall_after_events=2), events=2)
        assert record.usage.source is UsageSource.HELD
        assert (await here.run()).committed == record.held.usd


async def test_a_client_that_leaves_before_the_first_byte_pays_the_worst_case(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(silent=True))
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        client = Client()
        call = asyncio.create_task(asked(here, messages(stream=True), client))
        await asyncio.to_thread(provider.wait_for, lambda: bool(provider.requests))
        client.leave()
        await call
        record = await here.record()
        assert record.usage.source is UsageSource.HELD
        assert (await here.run()).committed == record.held.usd
        await nothing_left(here)


async def test_a_client_that_leaves_after_the_usage_pays_that(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        # message_start, block, ping, 12 deltas, block's end, message_delta: all but message_stop
        record = await left_at(here, provider, Behaviour(script=Script(tokens=12), done=False), events=17)
        assert record.usage.source is UsageSource.PROVIDER
        assert (await here.run()).committed == provider.bill.microcents


# -- providers that break off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("after", [0, 1, 2, 5, 8])
async def test_a_stream_that_breaks_off_is_charged_what_was_seen_and_ends_with_an_error(
    after: int, cut: Cut, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=12, cached_tokens=5), cut_after_events=after, cut=cut))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, messages(stream=True))
        name, said = events_of(got)[-1]
        assert (name, said["type"], said["error"]["type"]) == ("error", "error", "api_error")
        assert "broke off" in said["error"]["message"]
        record = await here.record()
        assert record.ending == "provider_cut"
        assert record.usage.output_tokens == max(0, after - 3)
        if after:
            assert record.usage.cached_tokens == 5
        await nothing_left(here)


async def test_an_error_of_the_providers_own_is_the_last_word(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=12), error_after_events=5))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, messages(stream=True))
        assert [said["error"]["type"] for name, said in events_of(got) if name == "error"] == ["overloaded_error"]
        await nothing_left(here)


@pytest.mark.parametrize("report", [UsageReport.NEVER, UsageReport.ZEROS])
@pytest.mark.parametrize("stream", [False, True])
async def test_without_usage_what_was_seen_is_counted(
    stream: bool, report: UsageReport, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=12), usage=report))
    async with world(tmp_path, provider.base_url) as here:
        assert (await asked(here, messages(stream=stream))).status == 200
        record = await here.record()
        assert (record.usage.source, record.usage.output_tokens) == (UsageSource.COUNTED, 12)


async def test_a_provider_that_ignores_its_cap_is_cut_where_nothing_more_can_be_held(
    tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=3_000, ignores_cap=True), tokens_per_event=20, stall_after_events=60))
    rules = policy(budget("run-ceiling", "run", limit=100_000))
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, messages(stream=True))
        names = [name for name, _ in events_of(got)]
        assert names[-3:] == ["content_block_stop", "message_delta", "error"]
        ending = dict(events_of(got)[-2:])
        assert ending["message_delta"]["delta"]["stop_reason"] == "max_tokens"
        assert ending["error"]["error"]["type"] == "billing_error"
        assert "run-ceiling" in ending["error"]["error"]["message"]
        assert (await here.record()).ending == "output_exceeded"
        await nothing_left(here)


async def test_what_the_provider_refuses_costs_nothing_and_passes_as_it_came(tmp_path: Path, provider: FaultProvider) -> None:
    body = orjson.dumps(anthropic_answers.error("invalid_request_error", "max_tokens: too many"))
    provider.next(Behaviour(status=400, body=body))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, messages())
        assert (got.status, got.body) == (400, body)
        assert (await here.run()).committed == 0
        await nothing_left(here)


async def test_a_stream_for_which_no_more_can_be_held_ends_with_its_blocks_closed_and_an_error(
    tmp_path: Path, provider: FaultProvider
) -> None:
    rules = policy(budget("run-ceiling", "run", limit=2 * USD // 100, sliced=True))  # 1,997 tokens of output
    provider.next(Behaviour(script=Script(tokens=6_000), tokens_per_event=10, pace_s=0.002))
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, messages(stream=True, max_tokens=8_000))
        record = await here.record()
        told = events_of(got)
        assert [name for name, _ in told][-3:] == ["content_block_stop", "message_delta", "error"]
        assert told[-2][1]["delta"]["stop_reason"] == "max_tokens"
        assert "run-ceiling" in told[-1][1]["error"]["message"]
        assert (record.ending, record.usage.source) == ("output_exceeded", UsageSource.COUNTED)
        assert USD // 100 < record.charged.usd <= 2 * USD // 100
        await nothing_left(here)
