"""Another project's scripted provider behind the gateway: it has its own idea of an answer, breaks on demand, and judges its client.

It counts a token per four characters, ignores the output cap, and reports the tokens of one choice for n = 2.
"""

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from llmock.testing import LLMockServer

from tests.support.config import Setup
from tests.support.gateway import GatewayProcess
from tests.support.loopback import LOOPBACK
from tests.support.pricing import BIG

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with LLMockServer() as running:
        yield running.base_url("openai")


@pytest.fixture(scope="module")
def gateway(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    timeouts = {"upstream": {"timeouts": {"idle": "2s"}}}
    with GatewayProcess(Setup(tmp_path_factory.mktemp("llmock"), server, extra=timeouts)) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def control(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.removesuffix("/v1"), **LOOPBACK) as client:
        client.post("/_llmock/reset").raise_for_status()
        yield client


def script(control: httpx.Client, *behaviours: dict[str, Any]) -> None:
    control.post("/_llmock/scenario", json={"behaviors": behaviours}).raise_for_status()


def posts(control: httpx.Client) -> int:
    count: int = control.get("/_llmock/requests").json()["count"]
    return count


def findings(control: httpx.Client) -> set[str]:
    return {finding["code"] for finding in control.get("/_llmock/verdict").json()["findings"]}


def test_what_is_charged_is_the_usage_it_reports(gateway: GatewayProcess, control: httpx.Client) -> None:
    answer = gateway.client("whole").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100)
    assert answer.usage is not None
    assert gateway.committed("whole") == BIG.price.microcents(answer.usage.prompt_tokens, 0, answer.usage.completion_tokens)
    chunks = list(
        gateway.client("stream").chat.completions.create(
            model=BIG.name, messages=HELLO, max_tokens=100, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks[-1].usage
    assert usage is not None
    assert gateway.committed("stream") == BIG.price.microcents(usage.prompt_tokens, 0, usage.completion_tokens)


def test_vectors_cost_what_it_says_they_read(gateway: GatewayProcess, control: httpx.Client) -> None:
    for run, packing in (("floats", {"encoding_format": "float"}), ("packed", {})):
        answer = gateway.client(run).embeddings.create(model=BIG.name, input=["hello there", "you"], **packing)
        assert len(answer.data) == 2
        assert all(type(number) is float for number in answer.data[0].embedding)
        assert gateway.committed(run) == BIG.price.microcents(answer.usage.prompt_tokens, 0, 0) > 0


def test_a_rate_limit_is_waited_out_under_the_same_hold(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "fail", "status": 429, "retry_after": 0.2})
    answer = gateway.client("limited").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100)
    assert answer.choices[0].message.content
    assert posts(control) == 2
    assert findings(control) == set()
    assert gateway.run("limited")["calls"] == 1


def test_a_refusal_that_is_final_costs_nothing_and_is_not_repeated(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "fail", "status": 400})
    with pytest.raises(openai.BadRequestError):
        gateway.client("bad").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100)
    assert posts(control) == 1
    assert gateway.committed("bad") == 0


@pytest.mark.parametrize("kind", ["disconnect", "truncate"])
def test_a_stream_that_ends_early_never_looks_complete(gateway: GatewayProcess, control: httpx.Client, kind: str) -> None:
    # Its verdict is not asked here: it wants such a stream to be made again, which would be paid for twice.
    script(control, {"type": "stream_fault", "kind": kind, "after_chunks": 3})
    stream = gateway.client(f"early-{kind}").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100, stream=True)
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(stream)
    assert posts(control) == 1
    assert gateway.committed(f"early-{kind}") > 0


def test_a_slow_answer_is_waited_for(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "delay", "seconds": 0.5})
    answer = gateway.client("slow").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100)
    assert answer.choices[0].message.content
    assert posts(control) == 1


def test_an_answer_that_does_not_come_is_not_asked_for_again_and_stays_held(
    gateway: GatewayProcess, control: httpx.Client
) -> None:
    script(control, {"type": "delay", "seconds": 4})
    with pytest.raises(openai.InternalServerError) as raised:
        gateway.client("late").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100)
    assert (raised.value.status_code, raised.value.code) == (504, "provider_timeout")
    deadline = time.monotonic() + 30
    while posts(control) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)  # on a busy machine it lists the request only after the gateway has given up
    assert posts(control) == 1
    told = gateway.run("late")
    assert (Decimal(told["reserved_usd"]) > 0, told["committed_usd"]) == (True, "0.00")  # it may have been billed: nobody knows


def test_a_stream_that_stalls_ends_with_an_error_and_is_charged(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 10})
    stream = gateway.client("stall").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    assert posts(control) == 1
    assert gateway.committed("stall") > 0


def test_a_malformed_chunk_reaches_the_client_as_it_came_and_the_call_is_charged(
    gateway: GatewayProcess, control: httpx.Client
) -> None:
    script(control, {"type": "stream_fault", "kind": "malformed", "after_chunks": 3})
    stream = gateway.client("malformed").chat.completions.create(model=BIG.name, messages=HELLO, max_tokens=100, stream=True)
    with pytest.raises(ValueError, match=r"(?i)expect|invalid|unterminated|delimiter"):
        list(stream)
    assert gateway.committed("malformed") > 0
