"""Another project's scripted Anthropic behind the gateway: it breaks on demand, and the real SDK in front judges what comes of it."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from llmock.testing import LLMockServer

from gateway.demo.bill import Price
from tests.support.config import Setup
from tests.support.gateway import GatewayProcess
from tests.support.loopback import LOOPBACK

MODEL = "claude-haiku-4-5"
PRICE = Price.parse("1:5:0.10")
KEY = "sk-ant-caller"
HELLO: list[anthropic.types.MessageParam] = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LLMockServer]:
    with LLMockServer() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: LLMockServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    extra = {
        "providers": {"anthropic": {"base_url": server.base_url("anthropic"), "accepts_caller_keys": True}},
        "models": {},
        "upstream": {"timeouts": {"idle": "2s"}},
    }
    with GatewayProcess(Setup(tmp_path_factory.mktemp("llmock"), "", extra=extra)) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def control(server: LLMockServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, **LOOPBACK) as client:
        client.post("/_llmock/reset").raise_for_status()
        yield client


def script(control: httpx.Client, *behaviours: dict[str, Any]) -> None:
    control.post("/_llmock/scenario", json={"behaviors": behaviours}).raise_for_status()


def posts(control: httpx.Client) -> int:
    count: int = control.get("/_llmock/requests").json()["count"]
    return count


def client(gateway: GatewayProcess, run: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{gateway.url}/run/{run}", api_key=KEY)


def test_what_is_charged_is_the_usage_it_reports(gateway: GatewayProcess, control: httpx.Client) -> None:
    answer = client(gateway, "whole").messages.create(model=MODEL, messages=HELLO, max_tokens=100)
    assert gateway.committed("whole", KEY) == PRICE.microcents(answer.usage.input_tokens, 0, answer.usage.output_tokens)
    with client(gateway, "stream").messages.stream(model=MODEL, messages=HELLO, max_tokens=100) as stream:
        assert "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    assert gateway.committed("stream", KEY) == PRICE.microcents(usage.input_tokens, 0, usage.output_tokens)


def test_a_rate_limit_is_waited_out_under_the_same_hold(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "fail", "status": 429, "retry_after": 0.2})
    assert client(gateway, "limited").messages.create(model=MODEL, messages=HELLO, max_tokens=100).content
    assert posts(control) == 2
    assert gateway.run("limited", KEY)["calls"] == 1


def test_a_refusal_that_is_final_costs_nothing_and_is_not_repeated(gateway: GatewayProcess, control: httpx.Client) -> None:
    script(control, {"type": "fail", "status": 400})
    with pytest.raises(anthropic.BadRequestError):
        client(gateway, "bad").messages.create(model=MODEL, messages=HELLO, max_tokens=100)
    assert posts(control) == 1
    assert gateway.committed("bad", KEY) == 0


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "stall"])
def test_a_stream_that_ends_early_raises_and_is_charged(gateway: GatewayProcess, control: httpx.Client, kind: str) -> None:
    script(control, {"type": "stream_fault", "kind": kind, "after_chunks": 4, "stall_seconds": 10})
    with (
        pytest.raises(anthropic.APIStatusError, match="broke off"),
        client(gateway, f"early-{kind}").messages.stream(model=MODEL, messages=HELLO, max_tokens=100) as stream,
    ):
        list(stream)
    assert posts(control) == 1
    assert gateway.committed(f"early-{kind}", KEY) > 0
