"""The real `openai` SDK on /v1/responses: everything as directly, and a refusal, or an answer that is cut, is read as what it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from pydantic import BaseModel

from gateway.demo.replies import Script, Writer
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import microcents
from tests.support.pricing import price_table
from tests.support.provider import Behaviour, FaultProvider, UsageReport

QUESTION: Final = "Where does the water go?"
SEARCH: Final[Any] = {
    "type": "function",
    "name": "search",
    "description": "Looks things up.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
        "additionalProperties": False,
    },
}


class Solution(BaseModel):
    steps: list[str]
    answer: int


@pytest.fixture(scope="module")
def provider_process(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, price_table()) as running:
        yield running


@pytest.fixture
def provider(provider_process: FaultProvider) -> FaultProvider:
    provider_process.forget()
    provider_process.default = Behaviour()
    return provider_process


@pytest.fixture(scope="module")
def gateway(folder: Path, provider_process: FaultProvider) -> Iterator[GatewayProcess]:
    setup = Setup(folder, provider_process.base_url, policy=policy(run_ceiling("$1.00")), extra={"background": "allow"})
    with GatewayProcess(setup, workers=2) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def direct(provider: FaultProvider) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url, api_key=CALLER_KEY)


def plain(value: BaseModel) -> dict[str, Any]:
    """Without ids, which differ from answer to answer."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: bare(each) for name, each in value.items() if not name.endswith("id")}
        return [bare(each) for each in value] if isinstance(value, list) else value

    told: dict[str, Any] = bare(value.model_dump(warnings=False))
    return told


def spent(gateway: GatewayProcess, run: str) -> int:
    told = gateway.run(run)
    assert told["reserved_usd"] == "0.00"
    return microcents(told["committed_usd"])


REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "a question": {"input": QUESTION, "instructions": "Be brief."},
    "a short answer": {"input": QUESTION, "max_output_tokens": 16, "temperature": 0.3, "store": False},
    "a tool it must use": {"input": QUESTION, "tools": [SEARCH], "tool_choice": "required"},
    "a tool's answer": {
        "input": [
            {"role": "user", "content": QUESTION},
            {"type": "function_call", "call_id": "call_1", "name": "search", "arguments": '{"query":"x"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "It goes to the mill."},
        ],
        "tools": [SEARCH],
    },
}


@pytest.mark.parametrize("what", REQUESTS)
def test_an_answer_is_as_directly_and_charged_as_billed(
    gateway: GatewayProcess, direct: openai.OpenAI, provider: FaultProvider, run: str, what: str
) -> None:
    expected = plain(direct.responses.create(model="big-model", **REQUESTS[what]))
    provider.bill.calls.clear()
    assert plain(gateway.client(run).responses.create(model="big-model", **REQUESTS[what])) == expected
    assert spent(gateway, run) == provider.bill.microcents > 0


@pytest.mark.parametrize("what", REQUESTS)
def test_a_stream_is_as_directly_and_charged_as_billed(
    gateway: GatewayProcess, direct: openai.OpenAI, provider: FaultProvider, run: str, what: str
) -> None:
    expected = [plain(event) for event in direct.responses.create(model="big-model", stream=True, **REQUESTS[what])]
    provider.bill.calls.clear()
    events = [plain(event) for event in gateway.client(run).responses.create(model="big-model", stream=True, **REQUESTS[what])]
    assert events == expected
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert spent(gateway, run) == provider.bill.microcents > 0


def test_a_structured_output_is_parsed_into_its_class(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    answer = gateway.client(run).responses.parse(model="big-model", input=QUESTION, text_format=Solution)
    assert isinstance(answer.output_parsed, Solution)
    with gateway.client(run).responses.stream(model="big-model", input=QUESTION, text_format=Solution) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed
    assert spent(gateway, run) == provider.bill.microcents


def test_a_conversation_goes_on_by_its_last_answer(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    client = gateway.client(run)
    first = client.responses.create(model="big-model", input=QUESTION)
    second = client.responses.create(model="big-model", input="And then?", previous_response_id=first.id)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert spent(gateway, run) == provider.bill.microcents


def test_what_the_provider_keeps_is_read_and_deleted_for_nothing(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    client = gateway.client(run)
    made = client.responses.create(model="big-model", input=QUESTION)
    charged = spent(gateway, run)
    assert client.responses.retrieve(made.id) == made
    assert list(client.responses.input_items.list(made.id)) == []
    assert client.responses.input_tokens.count(model="big-model", input=QUESTION).input_tokens > 0
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    assert spent(gateway, run) == charged == provider.bill.microcents


def test_a_background_answer_is_polled_whichever_worker_is_asked(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.kept.finished = False
    made = gateway.client(run).responses.create(model="big-model", input=QUESTION, background=True, max_output_tokens=500)
    assert made.status == "queued"
    assert gateway.client(run).responses.retrieve(made.id).status == "in_progress"
    assert microcents(gateway.run(run)["reserved_usd"]) > 0
    provider.kept.finished = True
    for _ in range(8):  # a connection of its own each: any worker
        assert gateway.client(run).responses.retrieve(made.id).status == "completed"
    assert spent(gateway, run) == provider.bill.microcents > 0


# -- refusals and cuts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_one_post_and_says_run_limit_and_the_way_out(
    gateway: GatewayProcess, provider: FaultProvider, run: str, stream: bool
) -> None:
    client = gateway.client(run, **{"X-Run-Limit": "$0.0001"})
    with pytest.raises(openai.APIStatusError) as refused:
        client.responses.create(model="big-model", input=QUESTION, max_output_tokens=200, stream=stream)
    assert (refused.value.status_code, refused.value.code) == (402, "budget_exceeded")
    assert f"Run {run}" in str(refused.value)
    assert "limit of $0.0001" in str(refused.value)
    assert provider.requests == []
    provider.wait_for(lambda: refused_lines(gateway, run) > 0)
    assert refused_lines(gateway, run) == 1  # it raises only when it has done with trying


def refused_lines(gateway: GatewayProcess, run: str) -> int:
    return sum('"status":402' in line for line in gateway.log.splitlines() if f'"run":"{run}"' in line)


def test_a_stream_that_breaks_off_raises_with_our_words(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.next(Behaviour(script=Script(tokens=30), cut_after_events=8))
    seen: list[Any] = []
    stream = gateway.client(run).responses.create(model="big-model", input=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        seen.extend(stream)
    assert seen[-1].type == "response.failed"
    assert spent(gateway, run) > 0
    assert len(provider.requests) == 1


def test_the_helper_for_streams_raises_them_too(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.next(Behaviour(script=Script(tokens=30), cut_after_events=8))
    with (
        pytest.raises(openai.APIError, match="broke off"),
        gateway.client(run).responses.stream(model="big-model", input=QUESTION) as stream,
    ):
        stream.until_done()


def test_an_answer_that_passes_its_cap_is_incomplete_and_then_raises(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    provider.next(
        Behaviour(
            script=Script(tokens=5_000, ignores_cap=True), tokens_per_event=20, stall_after_events=150, usage=UsageReport.NEVER
        )
    )
    client = gateway.client(run, **{"X-Run-Limit": "$0.0015"})
    seen: list[Any] = []
    stream = client.responses.create(model="big-model", input=QUESTION, max_output_tokens=50, stream=True)
    with pytest.raises(openai.APIError, match="wrote more than the 50 tokens") as raised:
        seen.extend(stream)
    assert raised.value.code == "budget_exceeded"
    assert seen[-1].type == "response.incomplete"
    assert seen[-1].response.incomplete_details.reason == "max_output_tokens"
