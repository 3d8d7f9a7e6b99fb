"""The path of a call: what is refused before anything is forwarded, what the provider reads, what is told."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.policy import ModelPolicy, OutputPolicy, RunsPolicy, Untagged
from gateway.core.scopes import Unit
from gateway.core.tokens import Tally, TokenCounter
from gateway.core.values import Mode, Usage, UsageSource
from gateway.core.windows import WindowKind
from gateway.ledger.contract import LedgerLost, LedgerUnavailable, SetLimit
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.wire import chat as wire_chat
from gateway.wire.headers import RequestHeaders
from tests.support.config import Setup
from tests.support.config import policy as policy_file
from tests.support.flow import TENANT, Broken, Client, World, chat, model_of, world
from tests.support.gateway import gateway_here
from tests.support.pricing import BIG, SMALL
from tests.support.provider import Behaviour, FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import UTC, budget, policy

DAY_MS = 86_400_000
LADDER = ModelPolicy(downgrade=(("big-model", ("small-model",)),))


async def nothing_happened(here: World, provider: FaultProvider, got: Client, run: str = "r1") -> None:
    """A refusal in our shape, told once; nothing was held, nothing went out."""
    assert got.headers["content-type"] == "application/problem+json"
    assert got.headers["x-should-retry"] == "false"
    assert got.headers["X-Budget-Decision"] == "block"
    assert got.json["status"] == got.status
    assert got.json["error"]["message"] == got.json["detail"]
    assert provider.requests == []
    await here.quiet()
    event = here.told.calls[-1]
    assert [event.request_id for event in here.told.calls].count(event.request_id) == 1
    assert (event.code, event.status, event.ending, event.charged) == (got.json["code"], got.status, None, None)
    assert got.headers.get("X-Run-Id", "") == event.caller.run
    view = await here.ledger.run(TENANT, run)
    assert view is None or (view.reserved, view.committed) == (0, 0)


# -- refused ----------------------------------------------------------------------------------------------------------------------


async def test_a_call_over_its_ceiling_is_told_what_blocked_it_and_the_way_out(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, policy(budget("run-ceiling", "run", limit=10_000))) as here:
        got = await here.ask(chat())
        await nothing_happened(here, provider, got)
        assert (got.status, got.json["code"], got.json["error"]["code"]) == (402, "call_exceeds_limit", "budget_exceeded")
        assert (got.headers["X-Budget-Decision"], got.headers["X-Budget-Blocking-Scope"]) == ("block", "run")
        assert [each["model"] for each in got.json["alternatives"]] == ["small-model"]
        assert got.json["alternatives"][0]["fits_budget"] is True
        record = await here.record()
        assert (record.state, record.outcome) == (None, "block")


REQUESTS: dict[str, tuple[bytes, Mapping[str, str], str | None, int, str]] = {
    "no JSON": (b"{", {}, "r1", 400, "ambiguous_request"),
    "two caps": (chat(max_completion_tokens=3), {}, "r1", 400, "output_cap_conflict"),
    "an unknown model": (chat(model="nobody-knows"), {}, "r1", 400, "model_not_priced"),
    "a field with a price": (chat(web_search_options={}), {}, "r1", 400, "not_estimable"),
    "a bad run id": (chat(), {}, "r 1", 400, "run_id_invalid"),
    "a bad limit": (chat(), {"X-Run-Limit": "lots"}, "r1", 400, "ambiguous_request"),
    "no credential": (chat(), {"Authorization": ""}, "r1", 404, "model_not_served"),
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_a_request_at_fault_is_refused_before_anything_is_held(what: str, tmp_path: Path, provider: FaultProvider) -> None:
    body, headers, run, status, code = REQUESTS[what]
    async with world(tmp_path, provider.base_url) as here:
        got = await here.ask(body, run, **headers)
        assert (got.status, got.json["code"]) == (status, code)
        await nothing_happened(here, provider, got)


async def test_a_flat_reserve_lets_a_field_pass_that_nothing_models_and_is_charged(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, flat={"search_parameters": USD // 4}) as here:
        assert (await here.ask(chat())).status == 200
        await here.quiet()
        plain = (await here.run()).committed
        assert (await here.ask(chat(search_parameters={"mode": "on"}))).status == 200
        await here.quiet()
        assert (await here.run()).committed == 2 * plain + USD // 4
        assert (await here.ask(chat(route="fallback"))).json["code"] == "not_estimable"


async def test_every_class_that_a_provider_bills_is_charged_recorded_and_told(tmp_path: Path, provider: FaultProvider) -> None:
    """Of two kinds of sound, one has a price here."""
    plain = model_of(BIG, capabilities=frozenset({"audio_input"}))
    hears = replace(plain, tiers=(replace(plain.tiers[0], others=(("audio_input", 40 * USD),)),))
    details = {"prompt_tokens_details": {"audio_tokens": 50}, "completion_tokens_details": {"audio_tokens": 2}, "scent_tokens": 1}
    provider.next(Behaviour(usage_override={"prompt_tokens": 60, "completion_tokens": 5, "total_tokens": 65, **details}))
    async with world(tmp_path, provider.base_url, models=[hears]) as here:
        sound = {"type": "input_audio", "input_audio": {"data": "A" * 4_000, "format": "wav"}}
        got = await here.ask(chat(messages=[{"role": "user", "content": [sound]}]))
        assert got.status == 200
        await here.quiet()
        cost = (10 * 5 * USD // 2 + 50 * 40 * USD + 5 * 10 * USD) // 1_000_000
        record = await here.record()
        assert record.usage == Usage(UsageSource.PROVIDER, 10, output_tokens=3, others=(("audio_input", 50), ("audio_output", 2)))
        assert (record.charged.usd, (await here.run()).committed) == (cost, cost)
        told = [fields["what"] for name, fields in here.told.warnings if name == "unpriced_usage"]
        assert told == ["audio_output", "usage.scent_tokens"]
        assert here.told.calls[-1].usage == record.usage


async def test_a_run_that_was_stopped_takes_no_calls(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        await here.ledger.set_limit(TENANT, "r1", "", SetLimit(USD, by_admin=True, who="admin"))
        await here.ledger.stop(TENANT, "r1", "admin", "enough")
        got = await here.ask(chat())
        assert (got.status, got.json["code"], got.json["error"]["code"]) == (402, "run_stopped", "budget_exceeded")
        assert got.headers["X-Run-Id"] == "r1"
        await nothing_happened(here, provider, got)


async def test_a_run_belongs_to_the_key_that_used_it_first(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        assert (await here.ask(chat())).status == 200
        before = await here.run()
        provider.forget()
        got = await here.ask(chat(), Authorization="Bearer another")
        assert (got.status, got.json["code"], provider.requests) == (403, "run_owned_by_another", [])
        assert await here.run() == before


def failing(failure: Exception, at_once: bool) -> Callable[[SqliteLedger], Any]:
    def reserve(*_: object) -> "asyncio.Future[None]":
        if at_once:
            raise failure
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(failure)
        return failed

    return lambda real: Broken(real, {"reserve": reserve})


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("failure", "code"), [(LedgerUnavailable("away"), "ledger_unavailable"), (LedgerLost("older"), "ledger_lost")]
)
async def test_without_its_ledger_no_call_is_let_through(
    failure: Exception, code: str, at_once: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, ledger=failing(failure, at_once)) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"]) == (503, code)
        await nothing_happened(here, provider, got)


async def test_a_bug_in_the_ledger_is_told_and_not_answered_here(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, ledger=failing(AssertionError("a bug"), at_once=False)) as here:
        with pytest.raises(AssertionError):
            await here.ask(chat())
        assert [(event.status, event.ending) for event in here.told.calls] == [(500, None)]
        assert provider.requests == []


async def test_a_client_that_is_gone_is_not_told_of_its_refusal(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        await here.ask(b"{", client=Client(gone=True))
        assert [(event.status, event.code) for event in here.told.calls] == [(400, "ambiguous_request")]


# -- decided again ----------------------------------------------------------------------------------------------------------------


def late(days: int) -> Callable[[SqliteLedger], Any]:
    """A ledger whose first `days` reserves find that a day has passed since the decision."""
    left = [days]

    def before(real: SqliteLedger) -> Any:
        def reserve(decision: Any, lease_ms: int) -> Any:
            if left[0]:
                left[0] -= 1
                real._clock_ms.now_ms += DAY_MS  # type: ignore[attr-defined]
            return real.reserve(decision, lease_ms)

        return Broken(real, {"reserve": reserve})

    return before


DAILY = policy(budget("run-day", "run", window=WindowKind.DAY, timezone=UTC))


@pytest.mark.parametrize("days", [1, 3])
async def test_a_window_that_rolls_over_before_the_reserve_is_decided_again(
    days: int, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url, DAILY, ledger=late(days)) as here:
        assert (await here.ask(chat())).status == 200
        view = await here.run()
        [account] = [each for each in view.accounts if each.account.budget == "run-day"]
        assert account.account.window.holds(here.clock.now_ms)
        assert view.committed == provider.bill.microcents


async def test_a_fourth_stale_decision_is_given_up(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url, DAILY, ledger=late(4)) as here:
        got = await here.ask(chat())
        assert (got.status, got.json["code"]) == (503, "ledger_unavailable")
        await nothing_happened(here, provider, got)


async def test_a_decision_id_that_was_used_before_is_not_used_again(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        ids = iter(["bdg_1", "bdg_1", "bdg_2"])
        here.flow._reserving.new_id = lambda: next(ids)
        for _ in range(2):
            assert (await here.ask(chat())).status == 200
        assert (await here.run()).committed == provider.bill.microcents


# -- between the hold and the provider ----------------------------------------------------------------------------------------------


async def test_a_bug_between_the_hold_and_the_provider_gives_the_hold_back(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gateway.journey.forwardable", broken)
    async with world(tmp_path, provider.base_url) as here:
        with pytest.raises(ZeroDivisionError):
            await here.ask(chat())
        view = await here.run()
        assert (view.reserved, view.committed, provider.requests) == (0, 0, [])
        assert [(event.status, event.ending) for event in here.told.calls] == [(500, "not_sent")]


# -- what the provider reads ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    target: str


async def sent(here: World, provider: FaultProvider, body: bytes, **more: Any) -> Sent:
    provider.forget()
    await here.ask(body, **more)
    [request] = provider.calls
    return Sent(request.json, {name.lower(): value for name, value in request.headers}, request.target)


EVERYTHING: dict[str, Any] = {
    "temperature": 0.3,
    "messages": [
        {"role": "system", "content": "é \U0001f30d \n", "name": "s"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:,"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "metadata": {"a": {"b": [1, 2.5, None, True]}},
    "unknown_to_us": {"deep": [[{"x": 18446744073709551615}]]},
    "user": "u1",
    "seed": 7,
    "stop": ["\n\n"],
}


async def test_the_provider_reads_what_the_client_sent_but_for_cap_and_usage(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        named = orjson.loads(chat(**EVERYTHING))
        assert (await sent(here, provider, orjson.dumps(named))).body == named
        bare = {name: value for name, value in named.items() if name != "max_tokens"}
        assert (await sent(here, provider, orjson.dumps(bare))).body == {**bare, "max_completion_tokens": 8192}
        streamed = {**named, "stream": True, "stream_options": {"include_usage": False, "other": 1}}
        assert (await sent(here, provider, orjson.dumps(streamed))).body == {
            **streamed,
            "stream_options": {"include_usage": True, "other": 1},
        }


async def test_a_cap_beyond_the_policys_is_lowered_and_the_client_told(tmp_path: Path, provider: FaultProvider) -> None:
    rules = policy(budget("run-ceiling", "run"), output=OutputPolicy(max_tokens=12))
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await here.ask(chat())
        assert (provider.calls[0].json["max_tokens"], got.headers["X-Budget-Output-Clamped"]) == (12, "true")


async def test_the_query_is_kept_as_it_was_sent(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        assert (await sent(here, provider, chat(), query="api-version=1&x=%2F%20a+b")).target == (
            "/v1/chat/completions?api-version=1&x=%2F%20a+b"
        )
        assert (await sent(here, provider, chat())).target == "/v1/chat/completions"


async def test_headers_go_upstream_but_for_those_that_are_ours_or_the_connections(
    tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        asked = {
            "User-Agent": "agent/1",
            "OpenAI-Beta": "x=v2",
            "Idempotency-Key": "k1",
            "X-Other": "kept",
            "X-Run-Id": "r1",
            "X-Run-Limit": "$1",
            "X-Budget-Wrap-Up": "true",
            "X-Team-Id": "red",
            "X-User-Id": "u",
            "Cookie": "c=1",
            "Connection": "X-Hop",
            "X-Hop": "1",
            "TE": "trailers",
            "Accept-Encoding": "gzip, br",
        }
        headers = (await sent(here, provider, chat(), **asked)).headers
        assert headers.pop("host").startswith("127.0.0.1:")
        assert int(headers.pop("content-length")) > 0
        assert headers == {
            "user-agent": "agent/1",
            "openai-beta": "x=v2",
            "idempotency-key": "k1",
            "x-other": "kept",
            "authorization": "Bearer sk-test",
            "content-type": "application/json",
            "accept-encoding": "identity",
        }


@pytest.mark.parametrize("stream", [True, False])
async def test_headers_come_back_but_for_those_that_are_ours_or_the_connections(
    stream: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    async with world(tmp_path, provider.base_url) as here:
        theirs = (
            *(("X-Budget-Remaining-USD", "1000000"), ("X-Budget-Odd", "1"), ("X-Run-Id", "theirs"), ("Set-Cookie", "c=1")),
            *(("Alt-Svc", "h3"), ("Keep-Alive", "9"), ("openai-processing-ms", "12"), ("x-request-id", "theirs")),
        )
        provider.next(Behaviour(headers=theirs, gzip=True))
        got = await here.ask(chat(stream=stream))
        assert len(got.text.split()) == 20, "decoded"
        assert not {"Set-Cookie", "Alt-Svc", "Keep-Alive", "X-Budget-Odd", "Content-Encoding", "Content-Length"} & set(
            got.headers
        )
        assert got.headers.getall("X-Run-Id") == ["r1"]
        assert [float(value) < 5 for value in got.headers.getall("X-Budget-Remaining-USD")] == [True]
        assert got.headers["openai-processing-ms"] == "12"
        assert got.headers["X-Budget-Enforcement-Mode"] == "hard_gate"
        assert got.headers["X-Budget-Reservation-Id"] == "rsv_" + got.headers["X-Budget-Decision-Id"].removeprefix("bdg_")


# -- downgraded -------------------------------------------------------------------------------------------------------------------


async def test_a_call_that_fits_only_the_cheaper_plan_is_served_by_it(tmp_path: Path, provider: FaultProvider) -> None:
    rules = policy(budget("run-ceiling", "run", limit=10_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await here.ask(chat())
        assert (got.status, provider.calls[0].json["model"]) == (200, "small-model")
        assert got.headers["X-Budget-Decision"] == "downgrade"
        assert (got.headers["X-Budget-Requested-Model"], got.headers["X-Budget-Selected-Model"]) == ("big-model", "small-model")
        assert (await here.run()).committed == provider.bill.microcents


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        (frozenset({"max_completion_tokens"}), "max_completion_tokens"),
        (frozenset({"max_completion_tokens", "max_tokens"}), "max_tokens"),
        (frozenset({"temperature"}), "max_tokens"),
        (None, "max_tokens"),
    ],
)
async def test_the_cap_of_a_downgraded_call_goes_in_a_field_that_the_cheaper_model_takes(
    parameters: frozenset[str] | None, field: str, tmp_path: Path, provider: FaultProvider
) -> None:
    rules = policy(budget("run-ceiling", "run", limit=10_000), models=LADDER)
    models = [model_of(BIG), model_of(SMALL, parameters=parameters)]
    async with world(tmp_path, provider.base_url, rules, models=models) as here:
        body = (await sent(here, provider, chat())).body
        assert {name: body.get(name) for name in ("max_tokens", "max_completion_tokens") if name in body} == {field: 20}


async def test_a_requested_model_is_sent_the_field_that_its_client_chose(tmp_path: Path, provider: FaultProvider) -> None:
    models = [model_of(BIG, parameters=frozenset({"max_completion_tokens"}))]
    async with world(tmp_path, provider.base_url, models=models) as here:
        assert (await sent(here, provider, chat())).body["max_tokens"] == 20


async def test_where_only_a_share_kept_the_first_plan_out_the_refusal_speaks_of_the_last(
    tmp_path: Path, provider: FaultProvider
) -> None:
    """The dearer plan would fit the limit, but a quarter of it is for cheaper ones; and those are out of calls."""
    usd = budget("run-ceiling", "run", limit=25_000, downgrade_below_ppm=250_000)
    rules = policy(usd, budget("calls", "model", limit=0, unit=Unit.CALLS), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await here.ask(chat())
        await nothing_happened(here, provider, got)
        assert got.json["budget"]["name"] == "calls"
        assert got.headers["X-Budget-Blocking-Scope"] == "model"


async def test_where_the_whole_limit_is_too_little_the_refusal_speaks_of_the_requested_model(
    tmp_path: Path, provider: FaultProvider
) -> None:
    rules = policy(budget("run-ceiling", "run", limit=1_000, downgrade_below_ppm=250_000), models=LADDER)
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await here.ask(chat())
        assert got.json["budget"]["estimate_usd"] == "0.0002275", "big-model's"


async def test_an_alternative_fits_by_the_rule_of_the_account_it_meets(tmp_path: Path, provider: FaultProvider) -> None:
    """`actuals_only` compares what is settled, not what the call may cost: a limit just above what was spent lets one more in."""
    actual = budget("spent", "run", limit=100, mode=Mode.ACTUALS_ONLY)
    rules = policy(actual, budget("dear", "model", limit=10_000), models=ModelPolicy())
    async with world(tmp_path, provider.base_url, rules) as here:
        got = await here.ask(chat())
        assert got.status == 402
        assert [(each["model"], each["fits_budget"]) for each in got.json["alternatives"]] == [("small-model", True)]


# -- without a run id -------------------------------------------------------------------------------------------------------------


async def test_untagged_calls_have_a_run_of_their_own_and_share_one_account(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        first, second = await here.ask(chat(), run=None), await here.ask(chat(), run=None)
        runs = {first.headers["X-Run-Id"], second.headers["X-Run-Id"]}
        assert len(runs) == 2
        assert float(second.headers["X-Budget-Remaining-USD"]) < float(first.headers["X-Budget-Remaining-USD"])
        assert {(await here.run(run)).committed for run in runs} == {provider.bill.microcents // 2}


async def test_untagged_calls_may_count_alone_or_be_refused(tmp_path: Path, provider: FaultProvider) -> None:
    for untagged, status in ((Untagged.PER_CALL, 200), (Untagged.REFUSE, 400)):
        rules = policy(budget("run-ceiling", "run"), runs=RunsPolicy(untagged=untagged))
        async with world(tmp_path / untagged.value, provider.base_url, rules) as here:
            first, second = await here.ask(chat(), run=None), await here.ask(chat(), run=None)
            assert (first.status, second.status) == (status, status)
            assert first.headers.get("X-Budget-Remaining-USD") == second.headers.get("X-Budget-Remaining-USD")


# -- live calls -------------------------------------------------------------------------------------------------------------------


async def test_a_run_stopped_elsewhere_ends_here_too_and_no_other_does(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watching._WATCH_S", 0.02)
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(stall_after_events=4), Behaviour(stall_after_events=4))
        asking = {run: here.asking(chat(stream=True), run) for run in ("r1", "r2")}
        watching = asyncio.create_task(here.flow.watch())
        await asyncio.to_thread(provider.wait_for, lambda: all(client.text for _, client in asking.values()))
        await here.ledger.stop(TENANT, "r1", "admin", "enough")
        await asyncio.wait_for(asking["r1"][0], 1)
        assert [error["code"] for error in asking["r1"][1].errors] == ["budget_exceeded"]
        assert not asking["r2"][0].done()
        here.flow.shut_down()
        await asking["r2"][0]
        watching.cancel()


async def test_the_watch_goes_on_after_a_failure(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watching._WATCH_S", 0.01)
    failures: list[Exception] = [LedgerUnavailable("away"), ZeroDivisionError()]

    def faulty(real: SqliteLedger) -> Any:
        async def halted(tenant: str, callers: Any) -> Any:
            if failures:
                raise failures.pop(0)
            return await real.halted(tenant, callers)

        return Broken(real, {"halted": halted})

    async with world(tmp_path, provider.base_url, ledger=faulty) as here:
        provider.next(Behaviour(stall_after_events=4))
        asking, client = here.asking(chat(stream=True))
        watching = asyncio.create_task(here.flow.watch())
        await asyncio.to_thread(provider.wait_for, lambda: bool(client.text) and not failures)
        await here.ledger.stop(TENANT, "r1", "admin", "enough")
        await asyncio.wait_for(asking, 1)
        assert [type(failure) for _, failure in here.told.problems] == [ZeroDivisionError]
        watching.cancel()


async def test_a_reload_does_not_touch_calls_under_way(tmp_path: Path, provider: FaultProvider) -> None:
    async with world(tmp_path, provider.base_url) as here:
        provider.next(Behaviour(first_byte_s=0.05))
        asking, client = here.asking(chat())
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        now = here.flow.rulebook
        here.flow.rulebook = type(now)(policy(budget("other", "run", limit=1)), now.catalog, now.counter)
        await asking
        assert client.status == 200
        assert (await here.run()).committed == provider.bill.microcents
        assert (await here.ask(chat())).status == 402


@pytest.mark.parametrize(("messages", "here_too"), [(1, True), (1_500, False)])
async def test_a_large_request_is_read_beside_the_loop(
    messages: int, here_too: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    threads: list[int] = []

    def reading(raw: bytes, headers: RequestHeaders) -> wire_chat.ChatRequest:
        threads.append(threading.get_ident())
        return wire_chat.read(raw, headers)

    dialect = replace(wire_chat.DIALECT, read=reading)
    async with world(tmp_path, provider.base_url) as here:
        body = chat(model="small-model", messages=[{"role": "user", "content": "x" * 200}] * messages)
        assert (await here.ask(body, dialect=dialect)).status == 200
        assert [thread == threading.get_ident() for thread in threads] == [here_too]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_call_of_a_conversation_is_estimated_from_the_usage_of_the_first(
    stream: bool, tmp_path: Path, provider: FaultProvider
) -> None:
    first: list[Mapping[str, str]] = [{"role": "user", "content": "hello"}]
    longer = [*first, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "tell me about rivers"}]
    reported = {"prompt_tokens": 1_000, "completion_tokens": 5, "total_tokens": 1_005}
    provider.next(Behaviour(usage_override=reported))
    async with world(tmp_path, provider.base_url) as here:
        assert (await here.ask(chat(messages=first, stream=stream))).status == 200
        await here.ask(chat(messages=longer))
        # The provider's 1,000, and two messages of four and seven tokens with three around each.
        assert (await here.record()).inputs["input_tokens"] == 1_000 + (3 + 3) + (5 + 3)
        await here.ask(chat(messages=longer), run="r2", Authorization="Bearer sk-other")
        assert (await here.record("r2")).inputs["input_tokens"] < 30


async def test_of_a_large_conversation_only_what_is_new_is_counted_beside_the_loop(
    tmp_path: Path, provider: FaultProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    finish = TokenCounter.finish

    def finishing(counter: TokenCounter, tally: Tally) -> int:
        if threading.current_thread() is not threading.main_thread():
            counted.append(len(tally.pending))
        return finish(counter, tally)

    monkeypatch.setattr(TokenCounter, "finish", finishing)
    history = [{"role": "user", "content": f"{number} " + "word " * 4_000} for number in range(3)]
    async with world(tmp_path, provider.base_url) as here:
        assert (await here.ask(chat(messages=history))).status == 200
        # As if it were forgotten: what is not asked for need not be known.
        here.flow.rulebook.counter._young.clear()
        assert (await here.ask(chat(messages=[*history, {"role": "user", "content": "more " * 4_000}]))).status == 200
    assert counted == [3, 1]


# -- over real connections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_client_that_hangs_up_on_a_stream_is_charged_what_the_provider_billed(
    after: int, tmp_path: Path, provider: FaultProvider
) -> None:
    """Before the answer, at its head, in the middle of it."""
    provider.default = Behaviour(pace_s=0.005, first_byte_s=0.05)
    async with gateway_here(Setup(tmp_path, provider.base_url, policy_file())) as url:
        port = int(url.rsplit(":", 1)[1])
        body = chat(stream=True)
        head = f"POST /run/r1/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.calls) == 1)
        for _ in range(after):
            await reader.read(1000)
        writer.transport.abort()
        await asyncio.to_thread(provider.wait_for, lambda: len(provider.bill.calls) == 1)
        for _ in range(100):
            view = await _page(port, "/budget/runs/r1")
            if float(view["reserved_usd"]) == 0:
                break
            await asyncio.sleep(0.01)
        assert float(view["reserved_usd"]) == 0
        assert round(float(view["committed_usd"]) * 100_000_000) == provider.bill.microcents > 0


async def _page(port: int, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return orjson.loads(answer.partition(b"\r\n\r\n")[2])
