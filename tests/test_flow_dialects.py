"""The path of a call in each of the smaller dialects: held, relayed, charged by what the provider said, given back where it refused."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.catalog import Model, Rates
from gateway.core.money import format_usd
from gateway.ledger.contract import CallRecord
from gateway.wire import completions, embeddings, moderations
from gateway.wire.dialect import Dialect
from tests.support.flow import Client, World, world
from tests.support.provider import Behaviour, FaultProvider

DOLLAR = 100_000_000


def priced(name: str, input_usd: float, output_usd: float = 0, **facts: Any) -> Model:
    """Dollars per million tokens."""
    given, written = int(input_usd * DOLLAR), int(output_usd * DOLLAR)
    defaults: dict[str, Any] = {"context": 8_192, "max_output": 4_096, "encoding": "cl100k_base"}
    return Model(name, "test", (Rates(given, written, given, given),), **{**defaults, **facts})


MODELS = [
    priced("embed", 0.02),
    priced("instruct", 1.5, 2),
    Model("moderate", "test", (), context=32_768, max_output=0, free=True),
]


def charged(record: CallRecord) -> str:
    assert record.charged is not None
    return format_usd(record.charged.usd)


async def asked(here: World, dialect: Dialect, run: str = "r1", client: Client | None = None, **body: Any) -> Client:
    return await here.ask(orjson.dumps(body), run, client, dialect)


# -- embeddings -------------------------------------------------------------------------------------------------------------------


async def test_vectors_are_charged_by_the_provider_s_count(tmp_path: Path, provider: FaultProvider) -> None:
    answer = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    provider.next(Behaviour(body=orjson.dumps(answer)))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, embeddings.DIALECT, model="embed", input=["hello there", "you"])
        record = await here.record()
    assert (got.status, got.json) == (200, answer)
    assert provider.requests[0].target == "/v1/embeddings"
    assert provider.requests[0].json == {"model": "embed", "input": ["hello there", "you"]}
    assert charged(record) == "0.0000001"  # 5 × $0.02 / 1,000,000
    assert record.usage is not None
    assert (record.usage.input_tokens, record.usage.output_tokens) == (5, 0)
    assert record.held.tokens == 3 + 2 * embeddings.INPUT_OVERHEAD


async def test_more_inputs_than_one_context_holds_are_no_reason_to_refuse(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"usage": {"prompt_tokens": 16000, "total_tokens": 16000}}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        assert (await asked(here, embeddings.DIALECT, model="embed", input=["word " * 2_000] * 8)).status == 200
        assert charged(await here.record()) == "0.00032"


async def test_vectors_without_a_count_are_charged_by_ours(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"data": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, embeddings.DIALECT, model="embed", input=[1, 2, 3])
        record = await here.record()
    assert record.usage is not None
    assert (record.usage.source, record.usage.input_tokens) == ("counted", 3 + embeddings.INPUT_OVERHEAD)
    assert record.charged == record.held


# -- completions ------------------------------------------------------------------------------------------------------------------


async def test_every_prompt_s_answers_are_held(tmp_path: Path, provider: FaultProvider) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 30, "total_tokens": 32}
    provider.next(Behaviour(body=orjson.dumps({"choices": [], "usage": usage})))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, completions.DIALECT, model="instruct", prompt=["a", "b"], n=2, best_of=3, max_tokens=10)
        record = await here.record()
    assert provider.requests[0].target == "/v1/completions"
    assert record.held.tokens == 2 * (1 + completions.PROMPT_OVERHEAD) + 2 * 3 * 10
    assert charged(record) == "0.000063"  # 2 × $1.50 + 30 × $2 a million


async def test_a_completion_without_a_cap_gets_the_policy_s(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"choices": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        await asked(here, completions.DIALECT, model="instruct", prompt="a")
    assert provider.requests[0].json["max_tokens"] == 4_096


async def test_a_streamed_completion_is_relayed_and_its_usage_taken_out(tmp_path: Path, provider: FaultProvider) -> None:
    stream = (Path(__file__).parent / "wire/streams/completions/openai.sse").read_bytes()
    provider.next(Behaviour(body=stream, content_type="text/event-stream"))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, completions.DIALECT, model="instruct", prompt="a", max_tokens=20, stream=True)
        record = await here.record()
    assert provider.requests[0].json["stream_options"] == {"include_usage": True}
    assert b'"usage"' not in got.body
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert charged(record) == "0.0000215"  # 5 × $1.50 + 7 × $2 a million


# -- moderations ------------------------------------------------------------------------------------------------------------------


async def test_a_free_moderation_passes_with_nothing_left(tmp_path: Path, provider: FaultProvider) -> None:
    provider.next(Behaviour(body=b'{"id": "modr-1", "results": []}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await here.ask(b'{"model": "moderate", "input": "hi"}', dialect=moderations.DIALECT, **{"X-Run-Limit": "$0"})
        assert (got.status, charged(await here.record())) == (200, "0.00")


# -- all of them ------------------------------------------------------------------------------------------------------------------

REQUESTS: list[tuple[Dialect, dict[str, Any]]] = [
    (embeddings.DIALECT, {"model": "embed", "input": "a"}),
    (completions.DIALECT, {"model": "instruct", "prompt": "a"}),
    (moderations.DIALECT, {"model": "moderate", "input": "a"}),
]


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_what_the_provider_refuses_is_given_back(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(Behaviour(status=400, body=b'{"error": {"message": "no"}}'))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, dialect, **body)
        view = await here.run()
    assert (got.status, got.body) == (400, b'{"error": {"message": "no"}}')
    assert (view.reserved, view.committed) == (0, 0)


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_an_answer_that_never_came_is_charged_at_most(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(Behaviour(body=b'{"data": [' + b" " * 2_000 + b"]}", cut_at_byte=1_000))
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        got = await asked(here, dialect, **body)
        assert (got.status, got.json["code"]) == (502, "provider_cut")
        held = await here.live_holds("r1")
        assert [hold.requested_model for hold in held] == [body["model"]]  # until its lease ends: nobody can say what was billed


@pytest.mark.parametrize(("dialect", "body"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
async def test_a_client_that_leaves_settles_the_call(
    tmp_path: Path, provider: FaultProvider, dialect: Dialect, body: dict[str, Any]
) -> None:
    provider.next(
        Behaviour(body=b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}', first_byte_s=0.05)
    )
    async with world(tmp_path, provider.base_url, models=MODELS) as here:
        client = Client()
        client.leave()
        await asked(here, dialect, client=client, **body)
        view = await here.run()
    assert view.reserved == 0
    assert client.status == 0
