"""What `/budget/estimate` says is what a call then holds, to the microcent, in every dialect; and it holds nothing itself."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalog import Model, Rates
from gateway.core.decide import Rulebook
from gateway.core.measures import AUDIO_SECONDS, CHARACTERS
from gateway.core.money import format_usd
from gateway.core.policy import ModelPolicy, Policy, RunOwner, RunsPolicy, Source
from gateway.core.scopes import Unit
from gateway.server.estimate_api import EstimateApi
from gateway.server.external import External
from gateway.upstream import NotSent, Upstream, UpstreamRequest
from gateway.wire import chat, completions, embeddings, images, messages, moderations, responses, speech, transcriptions
from gateway.wire.dialect import Dialect
from tests.support.flow import KEY, World, world
from tests.support.pages import Asking
from tests.support.provider import FaultProvider
from tests.support.records import USD
from tests.support.rulebooks import budget, policy
from tests.support.sound import wav

CENT = USD // 100
ABLE = frozenset({"tools", "vision", "json_schema"})


def priced(name: str, input_usd: int, output_usd: int, **facts: Any) -> Model:
    """Cents per million tokens."""
    rates = Rates(input_usd * CENT, output_usd * CENT, input_usd * CENT // 10, input_usd * CENT * 5 // 4)
    defaults: dict[str, Any] = {"context": 32_000, "max_output": 8_192, "capabilities": ABLE, "encoding": "o200k_base"}
    return Model(name, "test", (rates,), **{**defaults, **facts})


MODELS = [
    priced("big", 250, 1_000),
    priced("medium", 33, 133),
    priced("small", 7, 29),
    priced("thinker", 110, 440, reasoning=True),
    priced("foreign", 300, 1_500, encoding=None),
    priced("asked-as-messages", 300, 1_500, encoding=None, dialects=frozenset({"messages"})),
    Model("house", "test", (), context=8_192, max_output=2_048, free=True, encoding="cl100k_base"),
    priced("old", 1, 1, retired=True),
    priced("embed", 2, 0, encoding="cl100k_base"),
    priced("gpt-image-1.5", 500, 0, capabilities=frozenset({"vision"})),
    Model(
        "tts",
        "test",
        (Rates(0, 0, 0, 0),),
        8_192,
        4_096,
        fees=((CHARACTERS, 15 * USD),),
        capabilities=frozenset({"audio_output"}),
    ),
    Model(
        "ears", "test", (Rates(0, 0, 0, 0),), 8_192, 4_096, fees=((AUDIO_SECONDS, USD),), capabilities=frozenset({"audio_input"})
    ),
]
LADDER = ModelPolicy(downgrade=(("big", ("medium", "small")), ("thinker", ("small",))))
RULES = policy(
    budget("run-ceiling", "run", limit=40 * CENT, downgrade_below_ppm=250_000),
    budget("slow", "run", limit=USD, sliced=True),
    budget("tokens", "agent", limit=400_000, unit=Unit.TOKENS),
    budget("by-model", "model", limit=20 * CENT),
    budget("steps", "run", limit=9, unit=Unit.CALLS),
    models=LADDER,
)


class Away:
    """A provider that nobody reaches: what was held for it is given back, and on record."""

    async def open(self, request: UpstreamRequest) -> Any:
        raise NotSent("it is away")

    async def close(self) -> None: ...


class Page:
    """The page before a flow, as a caller asks it."""

    def __init__(self, here: World) -> None:
        self.here = here
        external = External(here.ledger, here.identity, lambda: here.flow.rulebook, lambda _: None, here.clock)
        self.asks = Asking(EstimateApi(here.flow, external, here.shared.large).routes())

    async def __call__(
        self, body: Any, query: str = "", run: str = "r1", as_: str = KEY, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        return await self.asks("POST", f"/budget/estimate{query}", body, as_, X_Run_Id=run, **headers)


@asynccontextmanager
async def before_nobody(folder: Path, rules: Policy = RULES, **more: Any) -> AsyncIterator[Page]:
    def away(real: Upstream) -> Upstream:
        return Away()

    async with world(folder, "http://127.0.0.1:1", rules, MODELS, wrap=away, provider={"retries": 0}, **more) as here:
        yield Page(here)


# -- what is said is what is held -------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["Hi.", "Tell me about rivers. " * 40, "ﾊﾞｲﾄ列の長さ", "x" * 3_000, "4711 " * 500])
NAMES = st.sampled_from(["big", "medium", "thinker", "foreign", "house", "mystery"])
CAPS = st.sampled_from([None, 1, 300, 5_000, 40_000])
TOOL = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def _with(cap: str, tokens: int | None, **body: Any) -> dict[str, Any]:
    return {name: value for name, value in {**body, cap: tokens}.items() if value is not None}


@st.composite
def chats(draw: st.DrawFn) -> tuple[Dialect, Any]:
    content: Any = draw(TEXTS)
    if draw(st.booleans()):
        content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    body = _with("max_tokens", draw(CAPS), model=draw(NAMES), messages=[{"role": "user", "content": content}])
    more: list[dict[str, Any]] = [
        {"tools": [{"type": "function", "function": TOOL}]},
        {"n": 3},
        {"stream": True},
        {"service_tier": "priority"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"web_search_options": {}},
    ]
    for each in draw(st.lists(st.sampled_from(more), max_size=2)):
        body |= each
    return chat.DIALECT, body


@st.composite
def anthropics(draw: st.DrawFn) -> tuple[Dialect, Any]:
    body = _with("max_tokens", draw(CAPS) or 500, model=draw(NAMES), messages=[{"role": "user", "content": draw(TEXTS)}])
    more: list[dict[str, Any]] = [
        {"system": "Be brief."},
        {"tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}]},
        {"stream": True},
        {"thinking": {"type": "enabled", "budget_tokens": 1_024}},
        {"system": [{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    ]
    for each in draw(st.lists(st.sampled_from(more), max_size=2)):
        body |= each
    return messages.DIALECT, body


@st.composite
def answers(draw: st.DrawFn) -> tuple[Dialect, Any]:
    body = _with("max_output_tokens", draw(CAPS), model=draw(NAMES), input=draw(TEXTS))
    more: list[dict[str, Any]] = [
        {"instructions": "Be brief."},
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}], "max_tool_calls": 2},
        {"stream": True},
        {"background": True},
    ]
    for each in draw(st.lists(st.sampled_from(more), max_size=2)):
        body |= each
    return responses.DIALECT, body


def form(**texts: str) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://h", data=texts, files={"file": ("a.wav", wav(2.5), "audio/wav")})
    return request.read(), request.headers["Content-Type"]


OTHERS: Sequence[tuple[Dialect, Any]] = (
    (completions.DIALECT, {"model": "medium", "prompt": ["a", "b"], "n": 2, "best_of": 3, "max_tokens": 10}),
    (embeddings.DIALECT, {"model": "embed", "input": ["hello there", "you"]}),
    (moderations.DIALECT, {"model": "house", "input": "hello"}),
    (images.DIALECT, {"model": "gpt-image-1.5", "prompt": "a mill", "n": 2, "size": "1024x1024", "quality": "low"}),
    (speech.DIALECT, {"model": "tts", "input": "hello there", "voice": "coral"}),
    (transcriptions.DIALECT, form(model="ears")),
)
BODIES = st.one_of(chats(), anthropics(), answers(), st.sampled_from(OTHERS))


def sent(body: Any) -> tuple[bytes, Mapping[str, str]]:
    if isinstance(body, tuple):
        return body[0], {"Content_Type": body[1]}
    return orjson.dumps(body), {}


async def said_and_done(page: Page, dialect: Dialect, body: Any, run: str) -> None:
    """Asks what a call would hold, makes it, and compares."""
    here = page.here
    raw, headers = sent(body)
    status, told = await page(raw, f"?route={dialect.path}", run, **headers)
    view = await here.ledger.run("default", run)
    assert await here.ledger.holds("default", run, 1) == []
    calls_before = 0 if view is None else view.calls
    client = await here.ask(raw, run, dialect=dialect, **headers)
    if status != 200:
        assert (client.status, client.json["code"]) == (status, told["code"])
        return
    record = await here.record(run)
    if told["decision"] == "block":
        assert (client.status, record.state) == (402, None), told
        return
    assert record.state is not None, (told, client.json)
    assert told["decision"] == record.outcome
    plan = next(each for each in told["ladder"] if each["fits"])
    assert (told["selected_model"], plan["provider"]) == (record.selected_model, record.provider)
    assert plan["held_usd"] == format_usd(record.held.usd)
    assert (plan["max_output_tokens"], plan["input_tokens"]) == (
        record.inputs["effective_max_output_tokens"],
        record.inputs["input_tokens"],
    )
    worst = {each["model"]: each["cost_max_usd"] for each in told["ladder"]}
    assert [format_usd(each["cost_max_usd"]) for each in record.inputs["ladder"]] == list(worst.values())  # type: ignore[attr-defined]
    after = await here.ledger.run("default", run)
    assert after is not None
    assert after.calls == calls_before  # given back: what was estimated counts nowhere


async def compared(folder: Path, bodies: Sequence[tuple[Dialect, Any]], spent: int) -> None:
    async with before_nobody(folder) as page:
        if spent:
            await page.here.ask(orjson.dumps({"model": "big", "messages": [{"role": "user", "content": "Hi"}]}), "r1")
            key = "run-ceiling|run=r1|lifetime|usd"
            await page.here.ledger.adjust("default", key, spent * CENT, "act_1", "admin", "")
        for dialect, body in bodies:
            await said_and_done(page, dialect, body, "r1")


SPENT = st.sampled_from([0, 25, 35, 40])


@settings(max_examples=5)
@given(bodies=st.lists(BODIES, min_size=4, max_size=8), spent=SPENT)
def test_the_estimate_is_what_a_call_then_holds(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[tuple[Dialect, Any]], spent: int
) -> None:
    asyncio.run(compared(tmp_path_factory.mktemp("estimate"), bodies, spent))


@pytest.mark.deep
@settings(max_examples=200)
@given(bodies=st.lists(BODIES, min_size=4, max_size=8), spent=SPENT)
def test_the_estimate_is_what_a_call_then_holds_whatever_is_asked(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[tuple[Dialect, Any]], spent: int
) -> None:
    asyncio.run(compared(tmp_path_factory.mktemp("estimate"), bodies, spent))


@pytest.mark.parametrize(("dialect", "body"), OTHERS, ids=lambda value: value.name if isinstance(value, Dialect) else "")
async def test_so_it_is_on_the_smaller_routes(tmp_path: Path, dialect: Dialect, body: Any) -> None:
    async with before_nobody(tmp_path) as page:
        await said_and_done(page, dialect, body, "r1")


async def test_what_was_learned_from_earlier_calls_counts_in_both(tmp_path: Path, provider: FaultProvider) -> None:
    asked = [{"role": "user", "content": "tell me about rivers " * 50}]
    async with world(tmp_path, provider.base_url) as here:
        page = Page(here)
        first = await here.ask(orjson.dumps({"model": "big-model", "messages": asked, "max_tokens": 20}))
        longer = [*asked, {"role": "assistant", "content": first.text}, {"role": "user", "content": "go on"}]
        body = orjson.dumps({"model": "big-model", "messages": longer, "max_tokens": 20})
        _, told = await page(body)
        assert told["ladder"][0]["input_basis"] == "anchored"
        await here.ask(body)
        assert told["ladder"][0]["held_usd"] == format_usd((await here.record()).held.usd)


# -- how it is asked --------------------------------------------------------------------------------------------------------------

ASKED = {"model": "big", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1_000}


async def test_an_answer_names_plans_budgets_and_what_is_left(tmp_path: Path) -> None:
    rules = policy(budget("run-ceiling", "run", limit=5 * CENT), budget("team-day", "team", limit=USD), models=LADDER)
    async with before_nobody(tmp_path, rules) as page:
        status, told = await page(ASKED, X_Team_Id="research")
    assert status == 200
    assert {name: told[name] for name in ("run_id", "state", "decision", "reason", "requested_model", "selected_model")} == {
        "run_id": "r1",
        "state": None,
        "decision": "allow",
        "reason": None,
        "requested_model": "big",
        "selected_model": "big",
    }
    assert told["ladder"][0] == {
        "model": "big",
        "provider": "test",
        "input_tokens": 9,
        "input_basis": "counted",
        "max_output_tokens": 1_000,
        "cost_max_usd": "0.01002815",
        "cost_max_tokens": 1_009,
        "held_usd": "0.01002815",
        "fits": True,
        "blocked_by": [],
    }
    assert [each["model"] for each in told["ladder"]] == ["big", "medium", "small"]
    assert (told["remaining_usd"], told["others"], told["others_left_out"]) == ("0.05", [], 0)
    assert [(each["name"], each["scope_values"], each["limit"], each["remaining"]) for each in told["budgets"]] == [
        ("run-ceiling", {"run": "r1"}, "0.05", "0.05"),
        ("team-day", {"team": "research"}, "1.00", "1.00"),
    ]


async def test_what_stands_in_the_way_says_what_is_needed_and_what_room_there_is(tmp_path: Path) -> None:
    async with before_nobody(tmp_path, policy(budget("run-ceiling", "run", limit=CENT), models=LADDER)) as page:
        _, told = await page(ASKED)
        assert (told["decision"], told["selected_model"]) == ("downgrade", "medium")
        assert told["reason"] == "run-ceiling has no room for it: it needs $0.01002815, and $0.01 is left"
        assert told["ladder"][0]["blocked_by"] == [
            {
                "name": "run-ceiling",
                "scope": "run",
                "account": "run-ceiling|run=r1|lifetime|usd",
                "unit": "usd",
                "needs": "0.01002815",
                "room": "0.01",
            }
        ]
        assert (await page(ASKED, X_Budget_Downgrade="never"))[1]["decision"] == "block"
        assert (await page(ASKED, X_Run_Limit="$0.001"))[1]["remaining_usd"] == "0.001"


async def test_a_run_that_takes_no_calls_is_told_of(tmp_path: Path) -> None:
    async with before_nobody(tmp_path) as page:
        await page.here.ask(orjson.dumps(ASKED))
        await page.here.ledger.stop("default", "r1", "admin", "enough")
        _, told = await page(ASKED)
        assert (told["state"], told["decision"], told["reason"]) == ("stopped", "block", "the run r1 was stopped")
        _, told = await page({})
        assert (told["decision"], told["reason"], told["ladder"]) == (None, "the run r1 was stopped", [])


async def test_the_size_of_a_call_is_enough(tmp_path: Path) -> None:
    size = {"model": "big", "input_tokens": 9, "max_output_tokens": 1_000}
    async with before_nobody(tmp_path) as page:
        _, told = await page(size)
        assert told["ladder"] == (await page(ASKED))[1]["ladder"]
        _, told = await page({**size, "model": "foreign"})  # whatever tokenizer it has
        assert [(each["model"], each["input_tokens"]) for each in told["ladder"]] == [("foreign", 9)]
        status, told = await page({**size, "input_tokens": 40_000})
        assert (status, told["code"]) == (400, "not_estimable")


async def test_a_model_that_is_asked_in_one_way_only_is_estimated_that_way(tmp_path: Path) -> None:
    async with before_nobody(tmp_path) as page:
        rules = page.here.flow.rulebook
        catalog = replace(rules.catalog, spoken={"test": frozenset({messages.NAME})})
        page.here.flow.rulebook = Rulebook(rules.policy, catalog, rules.counter, rules.learned)
        for body in (ASKED, {"model": "big", "input_tokens": 9}):
            assert (await page(body))[1]["decision"] == "allow"
            status, told = await page(body, f"?route={chat.DIALECT.path}")
            assert (status, told["code"]) == (404, "model_not_served")


async def test_every_model_that_could_serve_the_call_is_listed_on_request_what_fits_first(tmp_path: Path) -> None:
    rules = policy(budget("run-ceiling", "run", limit=CENT), models=ModelPolicy(allow=("*",), downgrade=(("big", ("small",)),)))
    size = {"input_tokens": 900, "max_output_tokens": 1_000, "needs": ["tools"]}
    async with before_nobody(tmp_path, rules) as page:
        _, told = await page(size, "?models=all")
        assert (told["decision"], told["ladder"], told["requested_model"]) == (None, [], None)
        assert [(each["model"], each["fits"]) for each in told["others"]] == [
            ("thinker", True),
            ("medium", True),
            ("small", True),
            ("asked-as-messages", False),
            ("foreign", False),
            ("big", False),
        ]
        _, told = await page({**size, "model": "big"}, "?models=all&limit=2")
        assert [each["model"] for each in told["ladder"]] == ["big", "small"]
        assert ([each["model"] for each in told["others"]], told["others_left_out"]) == (["thinker", "medium"], 2)
        _, by_body = await page(ASKED, "?models=all")
        assert "house" in {each["model"] for each in by_body["others"]}
        # What it says of a model is what a call that names it is told.
        for each in by_body["others"]:
            if each["model"] != "asked-as-messages":
                _, alone = await page({**ASKED, "model": each["model"]}, X_Budget_Downgrade="never")
                assert alone["ladder"] == [each]


async def test_a_cost_and_no_cost_at_all_can_be_asked_about(tmp_path: Path) -> None:
    async with before_nobody(tmp_path, policy(budget("run-ceiling", "run", limit=CENT))) as page:
        _, told = await page({"cost_usd": "0.02"})
        assert (told["decision"], told["ladder"][0]["cost_max_usd"]) == ("block", "0.02")
        assert (await page({"cost_usd": "0.01"}))[1]["decision"] == "allow"
        _, told = await page(None)
        assert (told["decision"], told["reason"], told["remaining_usd"]) == (None, None, "0.01")
        assert [each["name"] for each in told["budgets"]] == ["run-ceiling"]


async def test_the_run_can_be_named_where_the_policy_looks_for_none(tmp_path: Path) -> None:
    rules = policy(budget("run-ceiling", "run"), runs=RunsPolicy(id_from=(Source("header", "session-id"),)))
    async with before_nobody(tmp_path, rules) as page:
        assert (await page({}, run="r7"))[1]["run_id"] != "r7"
        assert (await page({}, "?run_id=r7", run="r7"))[1]["run_id"] == "r7"
        assert (await page(ASKED, "?run_id=r7", run="r7"))[1]["run_id"] == "r7"
    async with before_nobody(tmp_path / "other") as page:
        status, told = await page({}, "?run_id=r7", run="r8")
        assert (status, told["code"]) == (400, "ambiguous_request")


async def test_another_keys_run_is_not_told_of(tmp_path: Path) -> None:
    async with before_nobody(tmp_path) as page:
        await page.here.ask(orjson.dumps(ASKED))
        for body in (ASKED, {}, {"cost_usd": "0.01"}):
            status, told = await page(body, as_="Bearer sk-other")
            assert (status, told["code"]) == (403, "run_owned_by_another")
    sharing = replace(RULES, runs=RunsPolicy(owner=RunOwner.TENANT))
    async with before_nobody(tmp_path / "shared", sharing) as page:
        await page.here.ask(orjson.dumps(ASKED))
        assert (await page(ASKED, as_="Bearer sk-other"))[1]["state"] == "active"


@pytest.mark.parametrize(
    ("body", "query", "code", "param"),
    [
        ({"model": "mystery", "input_tokens": 1}, "", "model_not_priced", "model"),
        ({"model": "big", "input_tokens": -1}, "", "bad_request", "input_tokens"),
        ({"model": "big", "input_tokens": 1, "max_output_tokens": 0}, "", "bad_request", "max_output_tokens"),
        ({"model": "big", "input_tokens": 1, "max_tokens": 5}, "", "bad_request", "max_tokens"),
        ({"model": "big", "input_tokens": 1, "needs": ["wings"]}, "", "bad_request", "needs"),
        ({"input_tokens": 1}, "", "ambiguous_request", "model"),
        ({"model": "big"}, "", "bad_request", None),
        ({"cost_usd": 1}, "", "bad_request", "cost_usd"),
        (b"{", "", "ambiguous_request", None),
        (ASKED, "?route=/v1/nowhere", "bad_request", "route"),
        (ASKED, "?models=some", "bad_request", "models"),
        (ASKED, "?limit=0", "bad_request", "limit"),
        (ASKED, "?modles=all", "bad_request", "modles"),
        (ASKED, "?run_id=a%20b", "run_id_invalid", "X-Run-Id"),
    ],
)
async def test_what_cannot_be_read_is_refused(tmp_path: Path, body: Any, query: str, code: str, param: str | None) -> None:
    async with before_nobody(tmp_path) as page:
        status, told = await page(body, query)
    assert (status, told["code"], told["error"]["param"]) == (400, code, param)
