"""The provider that tests rely on misbehaves exactly as told, as the real SDK sees it; and a gateway before it survives kill -9."""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from gateway.demo.replies import Script
from tests.support.gateway import GatewayProcess
from tests.support.provider import Behaviour, Cut, FaultProvider, UsageReport

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(provider: FaultProvider) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0)


def streamed(client: openai.OpenAI, **keys: Any) -> list[openai.types.chat.ChatCompletionChunk]:
    options: Any = {"stream_options": {"include_usage": True}, "max_tokens": 20, **keys}
    return list(client.chat.completions.create(model="big-model", messages=HELLO, stream=True, **options))


@pytest.mark.parametrize(
    "fault",
    [
        Behaviour(status=500),
        Behaviour(reset=True),
        Behaviour(close_before_reading=True),
        Behaviour(cut_after_events=0),
        Behaviour(cut_after_events=3, cut=Cut.RST),
        Behaviour(cut_at_byte=700),
        Behaviour(error_after_events=4),
    ],
)
def test_each_fault_is_an_error_to_the_client(client: openai.OpenAI, provider: FaultProvider, fault: Behaviour) -> None:
    provider.next(fault)
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        streamed(client)
    assert streamed(client)[-1].usage is not None  # the next one is served


@pytest.mark.parametrize(
    ("behaviour", "completion_tokens"),
    [
        (Behaviour(), 20),
        (Behaviour(usage=UsageReport.NEVER), None),
        (Behaviour(usage=UsageReport.ZEROS), 0),
        (Behaviour(usage=UsageReport.ON_FINISH_EVENT), 20),
        (Behaviour(usage_override={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}), 2),
        (Behaviour(script=Script(tokens=50, ignores_cap=True)), 50),
        (Behaviour(gzip=True), 20),
        (Behaviour(done=False), 20),
        (Behaviour(extra_events=(b": ping\n\n",)), 20),
    ],
)
def test_usage_is_reported_as_told(
    client: openai.OpenAI, provider: FaultProvider, behaviour: Behaviour, completion_tokens: int | None
) -> None:
    provider.next(behaviour)
    usage = next((chunk.usage for chunk in reversed(streamed(client)) if chunk.usage), None)
    assert (
        (usage and usage.completion_tokens) == completion_tokens if completion_tokens else usage is None or not usage.total_tokens
    )


def test_a_client_that_leaves_is_noticed_and_billed_for_what_was_made(client: openai.OpenAI, provider: FaultProvider) -> None:
    provider.next(Behaviour(pace_s=0.05), Behaviour(silent=True))
    stream = client.chat.completions.create(model="big-model", messages=HELLO, stream=True)
    next(stream)
    stream.close()
    provider.wait_for(lambda: len(provider.left) == 1 and len(provider.bill.calls) == 1)
    assert provider.bill.calls[0].ended == "cut"
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(model="big-model", messages=HELLO)
    provider.wait_for(lambda: len(provider.left) == 2)
    assert len(provider.bill.calls) == 1


def test_what_it_received_is_recorded_to_the_byte(provider: FaultProvider) -> None:
    body = b'{"model": "big-model",  "messages":[{"role":"user","content":"h\xc3\xa9"}]}'
    httpx.post(f"{provider.base_url}/chat/completions?a=b", content=body, headers={"X-Odd-CASE": "1"})
    received = provider.calls[0]
    assert received.body == body
    assert received.request_line == "POST /v1/chat/completions?a=b HTTP/1.1"
    assert ("X-Odd-CASE", "1") in received.headers


def test_a_gateway_that_was_killed_comes_back_on_its_state(
    provider: FaultProvider, start_gateway: Callable[..., GatewayProcess]
) -> None:
    gateway = start_gateway()
    gateway.client("r1").chat.completions.create(model="big-model", messages=HELLO, max_tokens=20)
    before = gateway.run("r1")["committed_usd"]
    gateway.kill()
    gateway.start()
    assert gateway.run("r1")["committed_usd"] == before == provider.bill.as_object()["usd"].rstrip("0")  # type: ignore[attr-defined]
    assert gateway.admin("PUT", "/budget/runs/r1", {"limit": "$3"}).status_code == 200
    assert gateway.stop() == 0
    gateway.start()
