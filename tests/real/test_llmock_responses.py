"""Another project's scripted /v1/responses behind the gateway: it breaks on demand, and the real SDK in front judges what comes of it."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from llmock.testing import LLMockServer

from tests.support.config import Setup
from tests.support.gateway import GatewayProcess
from tests.support.loopback import LOOPBACK
from tests.support.pricing import BIG

HELLO = "hello there"


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


def test_what_is_charged_is_the_usage_it_reports(gateway: GatewayProcess, control: httpx.Client) -> None:
    answer = gateway.client("whole").responses.create(model=BIG.name, input=HELLO, max_output_tokens=100)
    assert answer.usage is not None
    assert gateway.committed("whole") == BIG.price.microcents(answer.usage.input_tokens, 0, answer.usage.output_tokens)
    with gateway.client("stream").responses.stream(model=BIG.name, input=HELLO, max_output_tokens=100) as stream:
        usage = stream.get_final_response().usage
    assert usage is not None
    assert gateway.committed("stream") == BIG.price.microcents(usage.input_tokens, 0, usage.output_tokens)


def test_a_rate_limit_is_waited_out_under_the_same_hold(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "fail", "status": 429, "retry_after": 0.2})
    assert gateway.client("limited").responses.create(model=BIG.name, input=HELLO, max_output_tokens=100).output_text
    assert posts(control) == 2
    assert gateway.run("limited")["calls"] == 1


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "stall"])
def test_a_stream_that_ends_early_fails_in_words(gateway: GatewayProcess, control: httpx.Client, kind: str) -> None:
    script(control, {"type": "stream_fault", "kind": kind, "after_chunks": 5, "stall_seconds": 10})
    stream = gateway.client(kind).responses.create(model=BIG.name, input=HELLO, max_output_tokens=100, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    assert posts(control) == 1
    assert gateway.committed(kind) > 0


def test_a_refusal_is_no_post_at_all(gateway: GatewayProcess, control: httpx.Client) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        gateway.client("poor", **{"X-Run-Limit": "$0.000001"}).responses.create(model=BIG.name, input=HELLO)
    assert (refused.value.status_code, refused.value.code) == (402, "budget_exceeded")
    assert posts(control) == 0
