"""The path of a call of /v1/responses: what it is charged however it ends, what its input elsewhere holds, and answers in the background."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.catalog import Rates, Route
from gateway.core.policy import ModelPolicy, OutputPolicy
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.values import UsageSource
from gateway.demo.replies import Writer
from gateway.ledger.contract import LedgerUnavailable
from gateway.wire.responses import DIALECT as RESPONSES
from tests.support.flow import Broken, Client, World, model_of, world
from tests.support.pricing import BIG, price_table
from tests.support.provider import Behaviour, Cut, FaultProvider, Script, UsageReport
from tests.support.records import USD
from tests.support.rulebooks import budget, policy

COUNT = Profile("test", "max_completion_tokens", stream_options=True, on_disconnect=OnDisconnect.COUNT)
LADDER = ModelPolicy(downgrade=(("big-model", ("small-model",)),))
ALLOW = {"background": True}
# created, in_progress, item, part: what a stream sends before its first delta
BEFORE_TEXT = 4


def responses(text: str = "tell me about rivers", model: str = "big-model", **fields: Any) -> bytes:
    return orjson.dumps({"model": model, "input": text, "max_output_tokens": 20, **fields})


def events_of(client: Client) -> list[tuple[str, Any]]:
    events = [event.split(b"\ndata: ") for event in client.body.split(b"\n\n") if event.startswith(b"event: ")]
    return [(name.removeprefix(b"event: ").decode(), orjson.loads(data)) for name, data in events]


async def asked(here: World, body: bytes, client: Client | None = None, **more: str) -> Client:
    return await here.ask(body, client=client, dialect=RESPONSES, **more)


async def nothing_left(here: World) -> None:
    assert (await here.run()).reserved == 0
    assert await here.live_holds("r1") == []


# -- the good path ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_charged_what_the_provider_bills(stream: bool, tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=9, cached_tokens=5)))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, responses(stream=stream), query="x=1")
        assert (got.status, got.whole) == (200, True)
        assert (await here.run()).committed == provider.bill.microcents > 0
        [sent] = provider.requests
        assert sent.target == "/v1/responses?x=1"
        assert sent.json == orjson.loads(responses(stream=stream))
        assert (await here.record()).usage.source is UsageSource.PROVIDER
        if stream:
            assert [name for name, _ in events_of(got)][-1] == "response.completed"
        await nothing_left(here)


async def test_the_final_event_comes_only_when_the_call_is_settled(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        client, committed = Client(), []

        async def look(data: bytes) -> None:
            if b"response.completed" in data or b"response.incomplete" in data:
                view = await here.ledger.run("default", "r1")
                assert view is not None
                committed.append((view.committed, view.reserved))

        client.on_write = look
        await asked(here, responses(stream=True), client)
        assert committed == [(provider.bill.microcents, 0)]


async def test_a_cap_is_written_where_the_client_named_none(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(output=OutputPolicy(default_by_model=(("*", 33),)))) as here:
        assert (await asked(here, responses(max_output_tokens=None))).status == 200
        assert provider.requests[0].json["max_output_tokens"] == 33


async def test_near_its_ceiling_the_cheaper_model_answers(tmp_path: Path, provider: FaultProvider) -> None:
    rules = policy(budget("run-ceiling", "run", limit=20_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, responses(temperature=0.5, store=False))
        assert (got.status, got.headers["X-Budget-Decision"]) == (200, "downgrade")
        assert provider.requests[0].json["model"] == "small-model"


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "AAAA"}]},
    ],
)
async def test_no_other_model_goes_on_with_what_one_began(
    fields: dict[str, Any], tmp_path: Path, provider: FaultProvider
) -> None:
    rules = policy(budget("run-ceiling", "run", limit=20_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, responses(**fields))
        assert got.status == 402
        assert provider.requests == []
        assert "what another model began" in str((await here.record()).inputs["passed_over"])


# -- input that is elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"conversation": "conv_1"}, {"input": [{"id": "msg_1"}]}, {"previous_response_id": "resp_0"}])
async def test_input_that_nobody_here_has_seen_is_held_as_a_whole_context(
    fields: dict[str, Any], tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        assert (await asked(here, responses(**fields))).status == 200
        assert (await here.record()).inputs["input_tokens"] == model_of(BIG).context


async def test_an_answer_that_was_seen_here_is_gone_on_with_at_what_it_cost(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        first = await asked(here, responses())
        assert (await asked(here, responses("and of mills?", previous_response_id=first.json["id"]))).status == 200
        record = await here.record()
        assert record.usage.total_input_tokens > first.json["usage"]["total_tokens"]
        assert record.usage.total_input_tokens <= record.inputs["input_tokens"] < 200


async def test_a_tool_of_the_providers_holds_its_pieces_and_a_context_for_each_call_and_pays_what_was_used(
    tmp_path: Path, provider: FaultProvider
) -> None:
    model = model_of(BIG, fees=(("web_searches", 10_000 * USD),))  # $10 per thousand
    usage = {"input_tokens": 9_000, "output_tokens": 5, "total_tokens": 9_005}
    search = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
    answer = {"id": "resp_1", "object": "response", "status": "completed", "output": [search], "usage": usage}
    provider.next(Behaviour(body=orjson.dumps(answer)))
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=50 * USD)), models=[model]) as here:
        got = await asked(here, responses(tools=[{"type": "web_search"}], max_tool_calls=2))
        assert got.status == 200
        record = await here.record()
        assert record.inputs["input_tokens"] == 3 * model.context
        tokens = BIG.price.microcents(3 * model.context, 0, 20)
        assert record.held.usd == tokens + 2 * USD // 100
        assert record.charged is not None
        assert record.charged.usd == BIG.price.microcents(9_000, 0, 5) + USD // 100


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"type": "web_search"}]}, {"tools": [{"type": "mcp", "server_url": "https://x"}]}, {"prompt": {"id": "pmpt_1"}}],
)
async def test_what_nothing_bounds_is_refused(fields: dict[str, Any], tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, responses(**fields))
        assert (got.status, got.json["code"]) == (400, "not_estimable")
        assert provider.requests == []


# -- clients that leave -------------------------------------------------------------------------------------------------------------


async def left_at(here: World, provider: FaultProvider, behaviour: Behaviour, events: int) -> Any:
    """The record of a call whose client left when it had so many events."""
    provider.next(behaviour)
    client = Client()

    async def leave(_: bytes) -> None:
        if client.body.count(b"event: ") == events:
            client.leave()

    client.on_write = leave
    await asked(here, responses(stream=True), client)
    assert client.gone
    await nothing_left(here)
    return await here.record()


async def test_a_client_that_leaves_is_charged_what_the_provider_says_at_the_end(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        record = await left_at(here, provider, Behaviour(script=Script(tokens=12), pace_s=0.005), BEFORE_TEXT + 2)
        assert (record.ending, record.usage.source) == ("client_left", UsageSource.PROVIDER)
        assert (await here.run()).committed == provider.bill.microcents


async def test_where_nothing_more_is_read_what_was_seen_is_counted(tmp_path: Path, provider: FaultProvider) -> None:
    stalled = Behaviour(script=Script(tokens=12), stall_after_events=BEFORE_TEXT + 5)
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        record = await left_at(here, provider, stalled, BEFORE_TEXT + 5)
        assert (record.usage.source, record.usage.output_tokens) == (UsageSource.COUNTED, 5)
        assert 0 < (await here.run()).committed < record.held.usd


async def test_a_model_that_may_have_reasoned_unseen_is_charged_in_full(tmp_path: Path, provider: FaultProvider) -> None:
    stalled = Behaviour(script=Script(tokens=12), stall_after_events=BEFORE_TEXT)
    async with world(tmp_path, provider.base_url, models=[model_of(BIG, reasoning=True)], profile=COUNT) as here:
        record = await left_at(here, provider, stalled, BEFORE_TEXT)
        assert record.usage.source is UsageSource.HELD
        assert (await here.run()).committed == record.held.usd


async def test_a_client_that_leaves_before_the_first_byte_pays_the_worst_case(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(silent=True))
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        client = Client()
        call = asyncio.create_task(asked(here, responses(stream=True), client))
        await asyncio.to_thread(provider.wait_for, lambda: bool(provider.requests))
        client.leave()
        await call
        record = await here.record()
        assert record.usage.source is UsageSource.HELD
        assert (await here.run()).committed == record.held.usd
        await nothing_left(here)


async def test_a_client_that_leaves_while_the_usage_is_kept_back_pays_that(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=12)))
    async with world(tmp_path, provider.base_url, profile=COUNT) as here:
        client = Client()

        async def leave(data: bytes) -> None:
            if b"event: response.completed" in data:
                client.leave()

        client.on_write = leave
        await asked(here, responses(stream=True), client)
        assert (await here.record()).usage.source is UsageSource.PROVIDER
        assert (await here.run()).committed == provider.bill.microcents


# -- providers that break off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("after", [0, 1, BEFORE_TEXT, BEFORE_TEXT + 3])
async def test_a_stream_that_breaks_off_is_charged_what_was_seen_and_fails_in_words(
    after: int, cut: Cut, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=12), cut_after_events=after, cut=cut))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, responses(stream=True))
        (name, failed), (last, error) = events_of(got)[-2:]
        assert (name, last) == ("response.failed", "error")
        assert "broke off" in failed["response"]["error"]["message"]
        assert error["error"]["code"] == "provider_cut"
        assert [event["sequence_number"] for _, event in events_of(got)] == list(range(after + 2))
        record = await here.record()
        assert record.ending == "provider_cut"
        assert record.usage.output_tokens == max(0, after - BEFORE_TEXT)
        await nothing_left(here)


async def test_an_error_of_the_providers_own_is_the_last_word(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(script=Script(tokens=12), error_after_events=5))
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, responses(stream=True))
        assert [said["message"] for name, said in events_of(got) if name in ("error", "response.failed")] == ["scripted"]
        await nothing_left(here)


@pytest.mark.parametrize("report", [UsageReport.NEVER, UsageReport.ZEROS])
@pytest.mark.parametrize("stream", [False, True])
async def test_without_usage_what_was_seen_is_counted(
    stream: bool, report: UsageReport, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=12), usage=report))
    async with world(tmp_path, provider.base_url) as here:
        assert (await asked(here, responses(stream=stream))).status == 200
        record = await here.record()
        assert (record.usage.source, record.usage.output_tokens) == (UsageSource.COUNTED, 12)


async def test_a_provider_that_ignores_its_cap_is_cut_where_nothing_more_can_be_held(
    tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=3_000, ignores_cap=True), tokens_per_event=20, stall_after_events=60))
    rules = policy(budget("run-ceiling", "run", limit=100_000))
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await asked(here, responses(stream=True))
        (first, incomplete), (second, error) = events_of(got)[-2:]
        assert (first, second) == ("response.incomplete", "error")
        assert incomplete["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert error["error"]["code"] == "budget_exceeded"
        assert "run-ceiling" in error["message"]
        assert (await here.record()).ending == "output_exceeded"
        await nothing_left(here)


async def test_a_refusal_names_the_run_and_is_what_sdks_read(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=10_000))) as here:
        got = await asked(here, responses())
        assert (got.status, got.headers["x-should-retry"]) == (402, "false")
        assert (got.json["error"]["code"], got.json["code"]) == ("budget_exceeded", "call_exceeds_limit")
        assert "lower max_output_tokens (now 20)" in got.json["detail"]
        assert provider.requests == []


# -- in the background --------------------------------------------------------------------------------------------------------------


async def poll(
    here: World, path: str, method: str = "GET", query: str = "", client: Client | None = None, **headers: str
) -> Client:
    client = client or Client()
    made = here.inbound(b"", None, query, RESPONSES, **headers)
    answer_id = path.removeprefix("/v1/responses/").partition("/")[0]
    await here.stored.serve(replace(made, method=method, path=path, parameters={"id": answer_id}), client)
    return client


async def begun(here: World, provider: FaultProvider, **fields: Any) -> str:
    """The id of an answer that is being made."""
    got = await asked(here, responses(background=True, **fields))
    assert (got.status, got.json["status"]) == (200, "queued")
    answer_id: str = got.json["id"]
    return answer_id


async def test_a_background_answer_is_refused_unless_the_config_allows_it(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        got = await asked(here, responses(background=True))
        assert (got.status, got.json["code"], got.json["error"]["param"]) == (400, "not_estimable", "background")
        assert "background: allow" in got.json["detail"]
        assert provider.requests == []


async def test_a_background_call_stays_held_until_somebody_asks_for_its_answer(tmp_path: Path, provider: FaultProvider) -> None:
    provider.kept.finished = False
    provider.next(Behaviour(script=Script(tokens=9)))
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        answer_id = await begun(here, provider)
        [hold] = await here.live_holds("r1")
        assert hold.lease_until_ms == here.clock() + 3_600_000
        assert (await here.run()).committed == 0
        assert here.reports_ending("background")
        here.clock.now_ms += 1_800_000
        early = await poll(here, f"/v1/responses/{answer_id}")
        assert (early.status, early.json["status"]) == (200, "in_progress")
        [hold] = await here.live_holds("r1")
        assert hold.lease_until_ms == here.clock() + 3_600_000  # asking keeps it
        provider.kept.finished = True
        for _ in range(2):  # the second time there is nothing left to be settled
            got = await poll(here, f"/v1/responses/{answer_id}")
            assert (got.status, got.json["status"], got.json["id"]) == (200, "completed", answer_id)
            assert (await here.run()).committed == provider.bill.microcents > 0
        await nothing_left(here)
        assert (await here.record()).usage.source is UsageSource.PROVIDER
        assert (await here.run()).calls == 1


async def test_an_answer_that_is_asked_for_as_a_stream_settles_too(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        answer_id = await begun(here, provider)
        got = await poll(here, f"/v1/responses/{answer_id}", query="stream=true")
        assert [name for name, _ in events_of(got)] == ["response.created", "response.completed"]
        assert got.whole
        assert (await here.run()).committed == provider.bill.microcents
        assert provider.requests[-1].target == f"/v1/responses/{answer_id}?stream=true"


async def test_a_stream_of_it_that_breaks_off_settles_nothing_and_does_not_look_whole(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        answer_id = await begun(here, provider)
        provider.next(Behaviour(cut_after_events=1))
        got = await poll(here, f"/v1/responses/{answer_id}", query="stream=true")
        assert (got.whole, got.aborted) == (False, True)
        assert len(await here.live_holds("r1")) == 1


async def test_a_hold_that_ran_out_is_charged_in_full_and_corrected_by_whoever_asks_later(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        answer_id = await begun(here, provider)
        held = (await here.record()).held.usd
        here.clock.now_ms += 3_600_001
        await here.ledger.expire(10)
        run = await here.run()
        assert (run.committed, run.unconfirmed) == (held, held)
        await poll(here, f"/v1/responses/{answer_id}")
        run = await here.run()
        assert (run.committed, run.unconfirmed) == (provider.bill.microcents, 0)


async def test_a_cancelled_answer_settles_where_it_says_what_was_used_else_its_lease_does(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        provider.kept.finished = False
        answer_id = await begun(here, provider)
        got = await poll(here, f"/v1/responses/{answer_id}/cancel", "POST")
        assert (got.json["status"], got.json["usage"]) == ("cancelled", None)
        assert len(await here.live_holds("r1")) == 1
        provider.kept.finished = True
        other = await begun(here, provider)
        assert (await poll(here, f"/v1/responses/{other}/cancel", "POST")).json["status"] == "cancelled"
        assert len(await here.live_holds("r1")) == 1
        assert (await here.run()).committed > 0


async def test_what_is_reserved_flat_for_a_background_call_is_charged_with_it(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, flat={"tools.mcp": USD // 4}, **ALLOW) as here:
        answer_id = await begun(here, provider, tools=[{"type": "mcp", "server_url": "https://x"}])
        await poll(here, f"/v1/responses/{answer_id}")
        assert (await here.run()).committed == provider.bill.microcents + USD // 4


async def test_a_mark_that_was_not_made_here_settles_nothing(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        answer_id = await begun(here, provider)
        answer = provider.kept.answers[answer_id]
        genuine = answer["metadata"]["penstock_hold"]
        hold_id, flat, signature = genuine.split(".")
        for mark in (f"{hold_id}.0.{'0' * 32}", f"{hold_id}.1.{signature}", f"rsv_x.{flat}.{signature}", hold_id, "", "é.0.x", 5):
            answer["metadata"]["penstock_hold"] = mark
            assert (await poll(here, f"/v1/responses/{answer_id}")).status == 200
            assert len(await here.live_holds("r1")) == 1
        answer["metadata"]["penstock_hold"] = genuine
        await poll(here, f"/v1/responses/{answer_id}")
        await nothing_left(here)


async def test_a_background_stream_that_is_seen_to_its_end_is_settled_by_its_usage(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        got = await asked(here, responses(background=True, stream=True))
        assert got.whole
        assert (await here.run()).committed == provider.bill.microcents
        await nothing_left(here)


@pytest.mark.parametrize(
    ("stream", "behaviour"),
    [
        (True, Behaviour(cut_after_events=0)),
        (True, Behaviour(body=b"", content_type="text/event-stream")),
        (False, Behaviour(body=b"{half a")),
    ],
)
async def test_a_background_call_whose_answer_says_nothing_stays_held(
    stream: bool, behaviour: Behaviour, tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(behaviour)
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        await asked(here, responses(background=True, stream=stream))
        assert len(await here.live_holds("r1")) == 1
        assert (await here.run()).committed == 0


@pytest.mark.parametrize("how", ["cut", "left", "left before the answer"])
async def test_a_background_stream_that_nobody_sees_to_its_end_stays_held(
    how: str, tmp_path: Path, provider: FaultProvider
) -> None:
    silent = how == "left before the answer"
    provider.next(
        Behaviour(script=Script(tokens=12), cut_after_events=6)
        if how == "cut"
        else Behaviour(stall_after_events=6, silent=silent)
    )
    async with world(tmp_path, provider.base_url, profile=COUNT, **ALLOW) as here:
        client = Client()

        async def leave(_: bytes) -> None:
            if how == "left":
                client.leave()

        client.on_write = leave
        call = asyncio.create_task(asked(here, responses(background=True, stream=True), client))
        if silent:
            await asyncio.to_thread(provider.wait_for, lambda: bool(provider.requests))
            client.leave()
        await call
        [hold] = await here.live_holds("r1")
        assert hold.state == "live"
        assert (await here.run()).committed == 0


async def test_a_background_call_that_the_provider_refuses_is_released(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(status=400))
    async with world(tmp_path, provider.base_url, **ALLOW) as here:
        assert (await asked(here, responses(background=True))).status == 400
        await nothing_left(here)


async def test_a_background_call_that_nothing_holds_is_charged_its_worst_case_at_once(
    tmp_path: Path, provider: FaultProvider
) -> None:
    provider.next(Behaviour(script=Script(tokens=9)))
    ceiling = budget("run-ceiling", "run")
    rules = policy(replace(ceiling, terms=replace(ceiling.terms, outage_allow=True)))

    def away(*_: object) -> Any:
        raise LedgerUnavailable("away")

    async with world(tmp_path, provider.base_url, rules, ledger=lambda real: Broken(real, {"reserve": away}), **ALLOW) as here:
        answer_id = await begun(here, provider)
        charged = (await here.run()).committed
        assert charged > provider.bill.microcents
        await poll(here, f"/v1/responses/{answer_id}")
        assert (await here.run()).committed == charged  # what was charged once is charged


# -- what the provider keeps --------------------------------------------------------------------------------------------------------


async def test_reading_and_deleting_an_answer_costs_nothing_and_passes_as_it_is(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        made = await asked(here, responses())
        committed = (await here.run()).committed
        path = f"/v1/responses/{made.json['id']}"
        assert (await poll(here, path)).body == made.body
        assert (await poll(here, f"{path}/input_items", query="limit=5")).json["object"] == "list"
        assert provider.requests[-1].target.endswith("/input_items?limit=5")
        assert (await poll(here, path, "DELETE")).json["deleted"] is True
        missing = await poll(here, path)
        assert (missing.status, missing.json["error"]["message"]) == (404, f"Response with id '{made.json['id']}' not found.")
        assert provider.requests[-1].header("Authorization") == "Bearer sk-test"
        assert (await here.run()).committed == committed


async def test_without_a_credential_for_any_provider_nothing_is_asked(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        got = await poll(here, "/v1/responses/resp_1", Authorization="")
        assert (got.status, got.json["code"]) == (404, "model_not_served")
        assert provider.requests == []


async def test_a_provider_that_is_away_is_named(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(reset=True), Behaviour(reset=True))  # the client asks again by itself: it costs nothing
    async with world(tmp_path, provider.base_url) as here:
        got = await poll(here, "/v1/responses/resp_1")
        assert (got.status, got.json["code"]) == (502, "provider_unreachable")


async def test_a_client_that_leaves_while_it_polls_ends_the_providers_stream(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(silent=True))
    async with world(tmp_path, provider.base_url) as here:
        client = Client()
        call = asyncio.create_task(poll(here, "/v1/responses/resp_1", client=client))
        await asyncio.to_thread(provider.wait_for, lambda: bool(provider.requests))
        client.leave()
        await call
        assert client.body == b""


# -- several providers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def second(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


def two(second: FaultProvider) -> dict[str, Any]:
    """big-model at both, dearer at the second."""
    model = model_of(BIG)
    rates = model.tiers[0]
    doubled = Rates(2 * rates.input, 2 * rates.output, 2 * rates.cached_input, 2 * rates.cache_write)
    there = replace(model, tiers=(doubled,))
    return {"others": {"second": second.base_url}, "routes": {"big-model": (Route("test", model), Route("second", there))}}


async def test_an_answer_is_gone_on_with_and_read_where_it_was_made(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, **two(second)) as here:
        provider.next(Behaviour(status=503))
        first = await asked(here, responses())
        assert len(second.requests) == 1  # it moved on
        await asked(here, responses("and then?", previous_response_id=first.json["id"]))
        await poll(here, f"/v1/responses/{first.json['id']}")
        assert [request.method for request in second.requests] == ["POST", "POST", "GET"]
        await poll(here, "/v1/responses/resp_unknown")
        assert provider.requests[-1].target == "/v1/responses/resp_unknown"  # the first in the config


async def test_a_call_that_goes_on_with_an_answer_is_not_taken_to_a_provider_that_knows_nothing_of_it(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, provider={"retries": 0}, **two(second)) as here:
        first = await asked(here, responses())
        provider.next(Behaviour(status=503))
        got = await asked(here, responses("and then?", previous_response_id=first.json["id"]))
        assert (got.status, second.requests) == (503, [])
        await nothing_left(here)


async def test_a_background_call_that_moved_on_is_charged_what_its_provider_takes(
    tmp_path: Path, provider: FaultProvider, second: FaultProvider
) -> None:
    provider.next(Behaviour(status=503))
    async with world(tmp_path, provider.base_url, **two(second), **ALLOW) as here:
        answer_id = await begun(here, provider)
        await poll(here, f"/v1/responses/{answer_id}")
        assert (await here.run()).committed == 2 * second.bill.microcents > 0
        assert [event for event, _ in here.told.infos] == ["background_settled"]
