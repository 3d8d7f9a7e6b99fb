"""The real `openai` SDK, unmodified but for its base URL: through the gateway everything is as it is directly, and a refusal is read."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from pydantic import BaseModel

from gateway.demo.replies import Script, Writer
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess, base_url
from tests.support.load import microcents
from tests.support.pricing import TestModel, price_table
from tests.support.provider import Behaviour, FaultProvider

FREE: Final = TestModel("house-model", "1", "1")
KNOWN: Final = TestModel("gpt-5", "1.25", "10", "0.125")
MESSAGES: Final[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does the water go?"}]
SEARCH: Final[Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Looks things up.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["query", "limit"],
            "additionalProperties": False,
        },
    },
}
PICTURE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Step(BaseModel):
    explanation: str
    output: str


class Solution(BaseModel):
    steps: list[Step]
    answer: int
    sure: bool


@pytest.fixture(scope="module")
def provider_process(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, {**price_table(), **price_table(FREE, KNOWN)}) as running:
        yield running


@pytest.fixture
def provider(provider_process: FaultProvider) -> FaultProvider:
    provider_process.forget()
    return provider_process


@pytest.fixture(scope="module")
def gateway(folder: Path, provider_process: FaultProvider) -> Iterator[GatewayProcess]:
    """`openai` is a provider that the catalog knows; its models need no words in the config."""
    url = provider_process.base_url
    models = {model.name: model.as_config("test") for model in Setup(folder, url).models}
    extra = {
        "providers": {
            "test": {"base_url": url, "accepts_caller_keys": True},
            "openai": {"base_url": url, "api_key_env": "HOUSE_KEY"},
            "house": {"base_url": url},
        },
        "models": {**models, FREE.name: {"provider": "house", "free": True, "context": 32_768, "max_output": 4_096}},
    }
    with GatewayProcess(
        Setup(folder, url, policy=policy(run_ceiling("$1.00")), extra=extra), env={"HOUSE_KEY": "sk-house"}
    ) as running:
        yield running


@pytest.fixture
def direct(provider: FaultProvider) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url, api_key=CALLER_KEY)


def plain(value: BaseModel) -> dict[str, Any]:
    """Without what differs from answer to answer."""
    told = value.model_dump()
    told["id"] = told["created"] = None
    return told


# -- as directly ------------------------------------------------------------------------------------------------------------------

REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "a question": {"messages": MESSAGES},
    "a short answer": {"messages": MESSAGES, "max_tokens": 9, "temperature": 0.3, "seed": 4, "user": "u-1"},
    "two choices": {"messages": MESSAGES, "n": 2, "max_completion_tokens": 30},
    "a tool it must use": {"messages": MESSAGES, "tools": [SEARCH], "tool_choice": "required"},
    "a tool's answer": {
        "messages": [
            *MESSAGES,
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "search", "arguments": '{"query": "x", "limit": 3}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "It goes to the mill."},
        ],
        "tools": [SEARCH],
    },
    "a picture": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
                ],
            }
        ]
    },
    "JSON": {"messages": MESSAGES, "response_format": {"type": "json_object"}},
    "words beyond ASCII": {"messages": [{"role": "user", "content": "Größe – 水力発電 🌊 \u2028\x7f"}]},
}


@pytest.mark.parametrize("what", REQUESTS)
def test_an_answer_is_as_it_is_directly(
    gateway: GatewayProcess, direct: openai.OpenAI, provider: FaultProvider, run: str, what: str
) -> None:
    request = {"model": "big-model", **REQUESTS[what]}
    expected = direct.chat.completions.create(**request)
    provider.bill.calls.clear()
    answer = gateway.client(run).chat.completions.create(**request)
    assert plain(answer) == plain(expected)
    assert microcents(gateway.run(run)["committed_usd"]) == provider.bill.microcents > 0


@pytest.mark.parametrize("usage", [None, {"include_usage": True}, {"include_usage": False}])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_stream_is_as_it_is_directly_chunk_by_chunk(
    gateway: GatewayProcess, direct: openai.OpenAI, provider: FaultProvider, run: str, what: str, usage: dict[str, bool] | None
) -> None:
    request: dict[str, Any] = {"model": "big-model", "stream": True, **REQUESTS[what]} | (
        {} if usage is None else {"stream_options": usage}
    )
    expected = [plain(chunk) for chunk in direct.chat.completions.create(**request)]
    provider.bill.calls.clear()
    chunks = [plain(chunk) for chunk in gateway.client(run).chat.completions.create(**request)]
    assert chunks == expected
    assert microcents(gateway.run(run)["committed_usd"]) == provider.bill.microcents > 0


def test_a_structured_output_is_parsed_into_its_class(
    gateway: GatewayProcess, direct: openai.OpenAI, provider: FaultProvider, run: str
) -> None:
    request: dict[str, Any] = {"model": "big-model", "messages": MESSAGES, "response_format": Solution}
    answer = gateway.client(run).chat.completions.parse(**request)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Solution)
    assert parsed == direct.chat.completions.parse(**request).choices[0].message.parsed
    with gateway.client(run).chat.completions.stream(**request) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.parsed == parsed


async def test_the_async_client_streams_and_parses_as_directly(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    async def chunks(client: openai.AsyncOpenAI) -> Sequence[dict[str, Any]]:
        stream: AsyncIterator[Any] = await client.chat.completions.create(model="big-model", messages=MESSAGES, stream=True, n=2)
        return [plain(chunk) async for chunk in stream]

    direct = openai.AsyncOpenAI(base_url=provider.base_url, api_key=CALLER_KEY)
    async with gateway.async_client(run) as client, direct:
        assert await chunks(client) == await chunks(direct)
        parsed = await client.chat.completions.parse(model="big-model", messages=MESSAGES, response_format=Solution)
        assert isinstance(parsed.choices[0].message.parsed, Solution)


def test_the_providers_own_refusal_reaches_the_client_and_costs_nothing(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.next(Behaviour(status=422))
    with pytest.raises(openai.UnprocessableEntityError, match="scripted 422"):
        gateway.client(run).chat.completions.create(model="big-model", messages=MESSAGES)
    told = gateway.run(run)
    assert (told["committed_usd"], told["reserved_usd"]) == ("0.00", "0.00")


def test_models_are_listed(gateway: GatewayProcess, run: str) -> None:
    listed = {model.id for model in gateway.client(run).models.list()}
    assert {"big-model", "small-model", "house-model", "gpt-5", "gpt-5-mini"} <= listed
    assert "claude-sonnet-4-5" not in listed  # no provider for it here
    assert {model.id for model in gateway.client().models.list()} == listed


# -- refusals ---------------------------------------------------------------------------------------------------------------------


def exhausted(gateway: GatewayProcess, run: str, model: str = "big-model") -> openai.OpenAI:
    """A client whose run has spent what it may."""
    client = gateway.client(run, **{"X-Run-Limit": "$0.002"})
    client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=150)
    return client


def refused_lines(gateway: GatewayProcess, run: str) -> int:
    return sum('"status":402' in line for line in gateway.log.splitlines() if f'"run":"{run}"' in line)


def assert_understood(refusal: openai.APIStatusError, run: str) -> None:
    assert refusal.status_code == 402
    assert refusal.code == "budget_exceeded"
    assert refusal.type == "insufficient_quota"
    for needed in (f"Run {run}", "limit $0.002", "spent $0.00", "To go on: ", "raise the limit", "lower max_tokens"):
        assert needed in str(refusal), refusal
    headers = refusal.response.headers
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert headers["X-Budget-Decision"] == "block"
    assert headers["X-Budget-Blocking-Scope"] == "run"
    assert headers["X-Run-Id"] == run
    problem = refusal.response.json()
    assert problem["code"] == "run_ceiling_reached"
    assert problem["budget"]["limit_usd"] == "0.002"
    assert {"model", "estimate_usd", "fits_budget"} <= problem["alternatives"][0].keys()


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_one_post_and_says_run_limit_spent_and_the_way_out(
    gateway: GatewayProcess, provider: FaultProvider, run: str, stream: bool
) -> None:
    provider.default = Behaviour(script=Script(tokens=150))
    client = exhausted(gateway, run)
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="big-model", messages=MESSAGES, max_tokens=150, stream=stream)
    assert_understood(refused.value, run)
    assert len(provider.calls) == 1
    provider.wait_for(lambda: refused_lines(gateway, run) > 0)
    assert refused_lines(gateway, run) == 1


async def test_the_async_client_reads_a_refusal_alike_and_makes_one_post(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=150))
    exhausted(gateway, run)
    async with gateway.async_client(run) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="big-model", messages=MESSAGES, max_tokens=150)
    assert_understood(refused.value, run)
    await asyncio.to_thread(provider.wait_for, lambda: refused_lines(gateway, run) > 0)
    assert refused_lines(gateway, run) == 1


def test_a_refusal_is_found_again_by_its_decision_id(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.default = Behaviour(script=Script(tokens=150))
    with pytest.raises(openai.APIStatusError) as refused:
        exhausted(gateway, run).chat.completions.create(model="big-model", messages=MESSAGES, max_tokens=150)
    told = gateway.get(f"/budget/decisions/{refused.value.response.headers['X-Budget-Decision-Id']}")
    assert (told["state"], told["outcome"], told["run_id"]) == ("refused", "block", run)


def test_a_header_tightens_the_run_and_never_loosens_it(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        gateway.client(run, **{"X-Run-Limit": "$0.0001"}).chat.completions.create(model="big-model", messages=MESSAGES)
    assert refused.value.status_code == 402
    with pytest.raises(openai.APIStatusError):  # it stays, whatever a later call says or leaves out
        gateway.client(run).chat.completions.create(model="big-model", messages=MESSAGES)
    with pytest.raises(openai.APIStatusError):
        gateway.client(run, **{"X-Run-Limit": "$5"}).chat.completions.create(model="big-model", messages=MESSAGES)
    assert provider.calls == []
    assert gateway.run(run)["limit_usd"] == "0.0001"


def test_a_run_may_stand_in_the_path_or_in_a_header(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    header = openai.OpenAI(base_url=base_url(gateway.url, None), api_key=CALLER_KEY, default_headers={"X-Run-Id": run})
    for client in (header, gateway.client(run)):
        answer = client.chat.completions.with_raw_response.create(model="small-model", messages=MESSAGES)
        assert answer.headers["X-Run-Id"] == run
    assert gateway.run(run)["calls"] == 2
    assert [call.target for call in provider.calls] == ["/v1/chat/completions"] * 2


def test_a_call_without_a_run_id_is_told_which_it_was_given(gateway: GatewayProcess, provider: FaultProvider) -> None:
    answer = gateway.client().chat.completions.with_raw_response.create(model="small-model", messages=MESSAGES)
    given = answer.headers["X-Run-Id"]
    assert given.startswith("run_")
    assert microcents(gateway.run(given)["committed_usd"]) == provider.bill.microcents


# -- prices -----------------------------------------------------------------------------------------------------------------------


def test_an_unknown_price_refuses_and_says_what_to_do(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    with pytest.raises(openai.BadRequestError, match="free: true") as refused:
        gateway.client(run).chat.completions.create(model="someones-finetune", messages=MESSAGES)
    assert refused.value.code == "model_not_priced"
    assert provider.calls == []


def test_a_free_model_passes_when_nothing_is_left(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    gateway.admin("PUT", f"/budget/runs/{run}", {"limit": "$0"})
    with pytest.raises(openai.APIStatusError):
        gateway.client(run).chat.completions.create(model="small-model", messages=MESSAGES)
    answer = gateway.client(run).chat.completions.create(model=FREE.name, messages=MESSAGES)
    assert answer.choices[0].message.content
    assert gateway.run(run)["committed_usd"] == "0.00"


def test_the_catalog_prices_a_current_model_as_its_provider_does(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.default = Behaviour(script=Script(tokens=37, cached_tokens=8))
    answer = gateway.client(run).chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 37
    assert microcents(gateway.run(run)["committed_usd"]) == provider.bill.microcents
    assert "max_completion_tokens" in provider.calls[0].json
    assert provider.calls[0].header("Authorization") == "Bearer sk-house"
