"""`stream_summary: comment`: a comment before a stream's last event says what the call cost and what is left, and no SDK minds it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx
import openai
import pytest

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider

CORPUS: Final = Path(__file__).parents[1] / "wire" / "streams"
HELLO: Final[Any] = [{"role": "user", "content": "Where does the water go?"}]
ASKED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "chat": ("chat/completions", {"messages": HELLO, "max_tokens": 30}),
    "chat with usage": ("chat/completions", {"messages": HELLO, "max_tokens": 30, "stream_options": {"include_usage": True}}),
    "completions": ("completions", {"prompt": "The water", "max_tokens": 30, "stream_options": {"include_usage": True}}),
    "responses": ("responses", {"input": "Where does the water go?", "max_output_tokens": 30}),
    "messages": ("messages", {"messages": HELLO, "max_tokens": 30}),
}
# Recorded streams, for dialects that the scripted provider does not speak; by part of the name of what was asked.
RECORDED: Final = {"completions": "completions/openai.sse", "responses": "responses/openai.sse"}
SUMMARY: Final = re.compile(rb": penstock cost_usd=([0-9.]+) remaining_usd=([0-9.]+) run=(\S+)\n\n")


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = Behaviour()
    return shared_provider


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    extra = {"stream_summary": "comment", "reservation": {"commit_wait": "10s"}}
    setup = Setup(folder, shared_provider.base_url, policy=policy(run_ceiling("$1.00")), extra=extra)
    with GatewayProcess(setup) as running:
        yield running
        assert running.troubles == []


def answers(provider: FaultProvider, what: str) -> None:
    if what in RECORDED:
        provider.default = Behaviour(body=(CORPUS / RECORDED[what]).read_bytes(), content_type="text/event-stream")


@pytest.mark.parametrize("what", ASKED)
def test_the_comment_stands_before_the_last_event_and_tells_what_the_ledger_says(
    gateway: GatewayProcess, provider: FaultProvider, run: str, what: str
) -> None:
    answers(provider, what)
    route, request = ASKED[what]
    asked = {"model": "big-model", "stream": True, **request}
    headers = {"Authorization": f"Bearer {CALLER_KEY}"}
    got = httpx.post(f"{gateway.url}/run/{run}/v1/{route}", json=asked, headers=headers, **LOOPBACK).content
    [(cost, left, said)] = SUMMARY.findall(got)
    told = gateway.run(run)
    assert (cost.decode(), left.decode(), said.decode()) == (told["committed_usd"], told["remaining_usd"], run)
    assert float(cost) > 0
    before, after = SUMMARY.split(got)[0], SUMMARY.split(got)[-1]
    assert before.endswith(b"\n\n")
    assert after.strip().count(b"\n\n") == 0
    assert b"data: " in after


def without_ids(events: Any) -> list[Any]:
    return [{**event.model_dump(), "id": None, "created": None} for event in events]


@pytest.mark.parametrize("usage", [False, True])
def test_the_openai_sdk_reads_the_same_chunks(gateway: GatewayProcess, provider: FaultProvider, run: str, usage: bool) -> None:
    asked: dict[str, Any] = {"model": "big-model", "messages": HELLO, "max_tokens": 30, "stream": True}
    if usage:
        asked["stream_options"] = {"include_usage": True}
    direct = openai.OpenAI(base_url=provider.base_url, api_key=CALLER_KEY).chat.completions.create(**asked)
    assert without_ids(gateway.client(run).chat.completions.create(**asked)) == without_ids(direct)


@pytest.mark.parametrize("what", ["completions", "responses"])
def test_the_openai_sdk_reads_the_same_events_of_the_other_dialects(
    gateway: GatewayProcess, provider: FaultProvider, run: str, what: str
) -> None:
    answers(provider, what)

    def events(client: openai.OpenAI) -> list[Any]:
        resource: Any = getattr(client, what)
        return [event.model_dump() for event in resource.create(model="big-model", stream=True, **ASKED[what][1])]

    assert events(gateway.client(run)) == events(openai.OpenAI(base_url=provider.base_url, api_key=CALLER_KEY))


def test_the_anthropic_sdk_reads_the_same_message(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    claude = anthropic.Anthropic(base_url=f"{gateway.url}/run/{run}", auth_token=CALLER_KEY)
    with claude.messages.stream(model="big-model", max_tokens=30, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[-1] == "message_stop"
    assert message.usage.output_tokens > 0


def test_an_answer_that_breaks_off_has_none(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.default = Behaviour(cut_after_events=3)
    headers = {"Authorization": f"Bearer {CALLER_KEY}"}
    asked = {"model": "big-model", "stream": True, **ASKED["chat"][1]}
    got = httpx.post(f"{gateway.url}/run/{run}/v1/chat/completions", json=asked, headers=headers, **LOOPBACK).content
    assert b"provider_cut" in got
    assert b": penstock" not in got
