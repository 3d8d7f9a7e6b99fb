"""The other dialects against a real model: llama.cpp speaks them all, and what it says it used is what is charged."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import anthropic
import openai
import pytest

from gateway.demo import local_model
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.pricing import TestModel

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not local_model.installed(), reason=local_model.MISSING)]

MODEL = TestModel("gemma", "2500", "10000", context=4096, max_output=2048, capabilities=(), encoding=None)
QUESTION = "Tell how a river begins, in one sentence."
Used = tuple[int, int, int]  # input that was not cached, cached, output


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder: Path = tmp_path_factory.mktemp("dialects")
    with local_model.running() as model:
        setup = Setup(
            folder, model.base_url, policy=policy(run_ceiling("$1.00")), models=(MODEL,), provider={"profile": "llama.cpp"}
        )
        with GatewayProcess(setup) as running:
            yield running


def _openai(gateway: GatewayProcess, run: str) -> openai.OpenAI:
    return gateway.client(run)


def _anthropic(gateway: GatewayProcess, run: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{gateway.url}/run/{run}", auth_token=CALLER_KEY, max_retries=0)


def _response(gateway: GatewayProcess, run: str) -> Used:
    answer = _openai(gateway, run).responses.create(model=MODEL.name, input=QUESTION, max_output_tokens=16)
    assert answer.usage is not None
    return _of_response(answer.usage)


def _response_stream(gateway: GatewayProcess, run: str) -> Used:
    # Not the SDK's own accumulator: this server's events lack an index that it needs.
    stream = _openai(gateway, run).responses.create(model=MODEL.name, input=QUESTION, max_output_tokens=16, stream=True)
    [usage] = [event.response.usage for event in stream if event.type in ("response.completed", "response.incomplete")]
    assert usage is not None
    return _of_response(usage)


def _of_response(usage: openai.types.responses.ResponseUsage) -> Used:
    cached = usage.input_tokens_details.cached_tokens if usage.input_tokens_details else 0
    return usage.input_tokens - cached, cached, usage.output_tokens


def _completion(gateway: GatewayProcess, run: str) -> Used:
    answer = _openai(gateway, run).completions.create(model=MODEL.name, prompt="A river begins", max_tokens=16)
    assert answer.usage is not None
    return answer.usage.prompt_tokens, 0, answer.usage.completion_tokens


def _message(gateway: GatewayProcess, run: str) -> Used:
    answer = _anthropic(gateway, run).messages.create(
        model=MODEL.name, max_tokens=16, messages=[{"role": "user", "content": QUESTION}]
    )
    return answer.usage.input_tokens, answer.usage.cache_read_input_tokens or 0, answer.usage.output_tokens


def _message_stream(gateway: GatewayProcess, run: str) -> Used:
    client = _anthropic(gateway, run)
    with client.messages.stream(model=MODEL.name, max_tokens=16, messages=[{"role": "user", "content": QUESTION}]) as stream:
        answer = stream.get_final_message()
    return answer.usage.input_tokens, answer.usage.cache_read_input_tokens or 0, answer.usage.output_tokens


@pytest.mark.parametrize("ask", [_response, _response_stream, _completion, _message, _message_stream])
def test_a_call_is_charged_what_the_server_says_it_used(
    ask: Callable[[GatewayProcess, str], Used], gateway: GatewayProcess
) -> None:
    run = ask.__name__.strip("_")
    fresh, cached, output = ask(gateway, run)
    assert output > 0
    told = gateway.run(run)
    assert Decimal(told["committed_usd"]) * 100_000_000 == MODEL.price.microcents(fresh + cached, cached, output)
    assert told["reserved_usd"] == "0.00"
