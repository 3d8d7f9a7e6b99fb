"""The real `anthropic` SDK, unmodified but for its base URL: answers are Anthropic's own, a refusal is one POST and its text is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx
import pytest

from gateway.demo.bill import Price
from gateway.demo.replies import Script, Writer
from tests.support.config import Setup, listed, policy, run_ceiling
from tests.support.gateway import GatewayProcess
from tests.support.load import microcents
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider

CLAUDE: Final = "claude-haiku-4-5"
PRICE: Final = Price.parse("1:5:0.10")
KEY: Final = "sk-ant-caller"
HELLO: Final[Any] = [{"role": "user", "content": "Where does the water go?"}]
SEARCH: Final[Any] = {
    "name": "search",
    "description": "Looks things up.",
    "input_schema": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
}


@pytest.fixture(scope="module")
def provider_process(writer: Writer) -> Iterator[FaultProvider]:
    with FaultProvider(writer, {CLAUDE: PRICE}) as running:
        yield running


@pytest.fixture
def provider(provider_process: FaultProvider) -> FaultProvider:
    provider_process.forget()
    return provider_process


@pytest.fixture(scope="module")
def gateway(folder: Path, provider_process: FaultProvider) -> Iterator[GatewayProcess]:
    """The provider is Anthropic's by its name alone, as in the example config: its models, prices, scheme and profile are known."""
    anthropics = {"base_url": provider_process.base_url.removesuffix("/v1"), "accepts_caller_keys": True}
    extra = {"providers": {"anthropic": anthropics}, "models": {}}
    with GatewayProcess(Setup(folder, "", policy=policy(run_ceiling("$1.00")), extra=extra)) as running:
        yield running
        assert running.troubles == []


def client(gateway: GatewayProcess, run: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{gateway.url}/run/{run}", api_key=KEY, **options)


def spent(gateway: GatewayProcess, run: str) -> int:
    told = httpx.get(f"{gateway.url}/budget/runs/{run}", headers={"x-api-key": KEY}, **LOOPBACK).json()
    assert told["reserved_usd"] == "0.00"
    return microcents(told["committed_usd"])


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# -- answers ----------------------------------------------------------------------------------------------------------------------


def test_a_message(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    message = client(gateway, run).messages.create(model=CLAUDE, max_tokens=30, system="Be brief.", messages=HELLO)
    assert text_of(message)
    assert message.usage.output_tokens <= 30
    assert spent(gateway, run) == provider.bill.microcents > 0
    [sent] = provider.requests
    assert (sent.path, sent.header("authorization"), sent.header("x-run-id")) == ("/v1/messages", f"Bearer {KEY}", None)
    assert sent.header("anthropic-version")


def test_a_key_in_the_older_header_goes_on_in_that(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    body = {"model": CLAUDE, "max_tokens": 5, "messages": HELLO}
    got = httpx.post(f"{gateway.url}/run/{run}/v1/messages", json=body, headers={"x-api-key": KEY}, **LOOPBACK)
    assert got.status_code == 200
    [sent] = provider.requests
    assert (sent.header("x-api-key"), sent.header("authorization")) == (KEY, None)


def test_a_streamed_message(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    with client(gateway, run).messages.stream(model=CLAUDE, max_tokens=30, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == text_of(message) != ""
    assert message.stop_reason == "max_tokens"
    assert spent(gateway, run) == provider.bill.microcents > 0


def test_raw_events_are_those_that_the_provider_sent(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    events = list(client(gateway, run).messages.create(model=CLAUDE, max_tokens=5, messages=HELLO, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_a_tool_and_its_result(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    claude = client(gateway, run)
    asked: Any = {"model": CLAUDE, "max_tokens": 100, "tools": [SEARCH], "messages": HELLO}
    first = claude.messages.create(**asked, tool_choice={"type": "any"})
    [use] = [block for block in first.content if block.type == "tool_use"]
    assert (use.name, set(use.input)) == ("search", {"query"})
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "To the sea."}]}]
    turns = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    assert text_of(claude.messages.create(**{**asked, "messages": turns}))
    with claude.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
        assert stream.get_final_message().content[0].type == "tool_use"
    assert spent(gateway, run) == provider.bill.microcents


def test_beta_requests_keep_their_header(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    message = client(gateway, run).beta.messages.create(
        model=CLAUDE, max_tokens=5, messages=HELLO, betas=["interleaved-thinking-2025-05-14"]
    )
    assert message.usage.output_tokens == 5
    [sent] = provider.requests
    assert sent.path == "/v1/messages"
    assert sent.header("anthropic-beta") == "interleaved-thinking-2025-05-14"


def test_a_query_passes(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    """Claude Code asks for `?beta=true`."""
    client(gateway, run).messages.create(model=CLAUDE, max_tokens=5, messages=HELLO, extra_query={"beta": "true"})
    assert [sent.target for sent in provider.requests] == ["/v1/messages?beta=true"]


def test_tokens_are_counted_for_nothing_and_without_a_hold(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    claude = client(gateway, run)
    counted = claude.messages.count_tokens(model=CLAUDE, messages=HELLO, tools=[SEARCH])
    assert counted.input_tokens > 0
    [sent] = provider.requests
    assert (sent.path, sent.header("authorization")) == ("/v1/messages/count_tokens", f"Bearer {KEY}")
    assert sent.header("x-run-id") is None
    unseen = httpx.get(f"{gateway.url}/budget/runs/{run}", headers={"x-api-key": KEY}, **LOOPBACK)
    assert unseen.status_code == 404


def test_the_models_are_listed_in_the_callers_shape(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    claude = client(gateway, run)
    listed = [model.id for model in claude.models.list(limit=3)]  # page by page
    assert CLAUDE in listed
    assert len(listed) == len(set(listed)) > 10
    first = claude.models.list(limit=3)
    assert (len(first.data), first.has_more, first.last_id) == (3, True, first.data[-1].id)
    before = claude.models.list(limit=2, before_id=first.data[2].id)
    assert [model.id for model in before.data] == [model.id for model in first.data[:2]]
    one = claude.models.retrieve(CLAUDE)
    assert (one.id, one.type, one.max_tokens) == (CLAUDE, "model", 64_000)
    with pytest.raises(anthropic.NotFoundError, match="no such model"):
        claude.models.retrieve("nobody-knows")
    plain = httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": KEY}, **LOOPBACK).json()
    assert {model["id"] for model in plain["data"]} >= set(listed)
    assert plain["object"] == "list"
    one_plain = httpx.get(f"{gateway.url}/v1/models/{CLAUDE}", headers={"x-api-key": KEY}, **LOOPBACK)
    assert one_plain.json() == {"id": CLAUDE, "object": "model", "created": 0, "owned_by": "anthropic"}
    unknown = httpx.get(f"{gateway.url}/v1/models/a%2Fb", headers={"x-api-key": KEY}, **LOOPBACK)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert provider.requests == []


def test_with_keys_of_the_gateways_own_the_providers_key_is_sent(writer: Writer, provider: FaultProvider, tmp_path: Path) -> None:
    house = {"base_url": provider.base_url.removesuffix("/v1"), "api_key_env": "HOUSE_KEY"}
    extra = {"auth": "keys", "keys": [listed("ci", "pk-ci")], "providers": {"anthropic": house}, "models": {}}
    with GatewayProcess(Setup(tmp_path, "", extra=extra), env={"HOUSE_KEY": "sk-ant-house"}) as keyed:
        asked: Any = {"model": CLAUDE, "max_tokens": 5, "messages": HELLO}
        for claude in (
            anthropic.Anthropic(base_url=keyed.url, api_key="pk-ci"),
            anthropic.Anthropic(base_url=keyed.url, auth_token="pk-ci"),
            anthropic.Anthropic(base_url=keyed.url, auth_token=None, api_key=None, default_headers={"x-api-key": "pk-ci"}),
        ):
            assert claude.messages.create(**asked).usage.output_tokens == 5
            assert claude.messages.count_tokens(model=CLAUDE, messages=HELLO).input_tokens > 0
        sent = {(each.header("x-api-key"), each.header("authorization")) for each in provider.requests}
        assert sent == {("sk-ant-house", None)}
        stranger = anthropic.Anthropic(base_url=keyed.url, api_key="pk-nobody")
        for ask in (stranger.messages.create, stranger.models.list):
            with pytest.raises(anthropic.AuthenticationError, match="knows no such key"):
                ask(**(asked if ask == stranger.messages.create else {}))
        about = httpx.get(keyed.url, **LOOPBACK).json()
        assert (about["name"], "version" in about) == ("penstock", False)


# -- refusals ---------------------------------------------------------------------------------------------------------------------


def test_a_refused_call_is_one_request_and_tells_the_way_out(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    with pytest.raises(anthropic.APIStatusError) as raised:
        client(gateway, run, default_headers={"X-Run-Limit": "$0.00001"}).messages.create(
            model=CLAUDE, max_tokens=1000, messages=HELLO
        )
    assert raised.value.status_code == 402
    assert f"Run {run}: this call could use up to" in str(raised.value)
    assert raised.value.body["error"]["type"] == "billing_error"  # type: ignore[index]
    provider.wait_for(lambda: refused_lines(gateway, run) > 0)
    assert (provider.requests, refused_lines(gateway, run)) == ([], 1)


def test_a_refused_stream_is_refused_before_it_begins(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    refused = client(gateway, run, default_headers={"X-Run-Limit": "$0.00001"})
    with (
        pytest.raises(anthropic.APIStatusError, match="To go on"),
        refused.messages.stream(model=CLAUDE, max_tokens=1000, messages=HELLO),
    ):
        pass
    provider.wait_for(lambda: refused_lines(gateway, run) > 0)
    assert (provider.requests, refused_lines(gateway, run)) == ([], 1)


def refused_lines(gateway: GatewayProcess, run: str) -> int:
    """As many as there were requests."""
    return sum(f'"run":"{run}"' in line and '"code":"' in line for line in gateway.log.splitlines())


def test_a_cap_below_the_thinking_is_named(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 2048}
    with pytest.raises(anthropic.BadRequestError, match=r"max_tokens \(2000\).*thinking.budget_tokens \(2048\)"):
        client(gateway, run).messages.create(model=CLAUDE, max_tokens=2000, thinking=thinking, messages=HELLO)
    assert provider.requests == []


def test_a_stream_that_breaks_raises(gateway: GatewayProcess, provider: FaultProvider, run: str) -> None:
    provider.next(Behaviour(script=Script(tokens=20), cut_after_events=8))
    with (
        pytest.raises(anthropic.APIStatusError, match="broke off"),
        client(gateway, run).messages.stream(model=CLAUDE, max_tokens=30, messages=HELLO) as stream,
    ):
        list(stream)
    assert len(provider.requests) == 1


def test_a_stream_that_is_cut_at_its_ceiling_raises_with_the_reason(
    gateway: GatewayProcess, provider: FaultProvider, run: str
) -> None:
    behaviour = Behaviour(script=Script(tokens=3_000, ignores_cap=True), tokens_per_event=20, stall_after_events=100)
    provider.next(behaviour)
    limited = client(gateway, run, default_headers={"X-Run-Limit": "$0.002"})
    with (
        pytest.raises(anthropic.APIStatusError, match="no budget is left"),
        limited.messages.stream(model=CLAUDE, max_tokens=30, messages=HELLO) as stream,
    ):
        list(stream)
    assert len(provider.requests) == 1
    assert spent(gateway, run) > 0


# -- whatever the edge refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/run/r1"])
@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "kind"),
    [
        ("GET", "/v1/messages", b"", {}, 405, "invalid_request_error"),
        ("DELETE", "/v1/messages/count_tokens", b"", {}, 405, "invalid_request_error"),
        ("POST", "/v1/messages/", b"{}", {}, 404, "not_found_error"),
        ("POST", "/v1/messages/batches", b"{}", {}, 404, "not_found_error"),
        ("POST", "/v1/files", b"{}", {"anthropic-version": "2023-06-01"}, 404, "not_found_error"),
        ("POST", "/v1/messages", b"{", {}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", b"{", {}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", b'{"model":"nobody-knows"}', {}, 404, "not_found_error"),
        ("POST", "/v1/messages", b"x", {"Content-Encoding": "br"}, 415, "invalid_request_error"),
        ("POST", "/v1/messages", b"x" * (21 << 20), {}, 413, "request_too_large"),
        ("POST", "/v1/messages", b"{}", {"Host": "evil.example"}, 403, "permission_error"),
        ("POST", "/v1/messages", b"{}", {"Origin": "https://evil.example"}, 403, "permission_error"),
    ],
)
def test_every_refusal_on_these_routes_has_anthropics_shape(
    prefix: str,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    kind: str,
    gateway: GatewayProcess,
    provider: FaultProvider,
) -> None:
    got = httpx.request(method, gateway.url + prefix + path, content=content, headers={"x-api-key": KEY, **headers}, **LOOPBACK)
    told = got.json()
    assert (got.status_code, told["type"], told["error"]["type"], told["error"]["message"]) == (
        status,
        "error",
        kind,
        told["detail"],
    )
    assert got.headers["x-should-retry"] == "false"
    assert provider.requests == []


@pytest.mark.parametrize("path", ["/", "/run/r1", "/run/r1/"])
def test_whoever_looks_at_the_base_url_first_finds_somebody_there(path: str, gateway: GatewayProcess) -> None:
    """Claude Code sends `HEAD` there."""
    assert httpx.head(gateway.url + path, **LOOPBACK).status_code == 200
    got = httpx.get(gateway.url + path, **LOOPBACK)
    assert (got.status_code, got.json()["name"]) == (200, "penstock")
    assert httpx.post(gateway.url + path, **LOOPBACK).status_code == 405
