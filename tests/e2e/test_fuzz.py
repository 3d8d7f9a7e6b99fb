"""Real requests, mutated without end: each is refused as ours, or reaches the provider meaning what the client sent."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat
from tests.support.provider import Behaviour, FaultProvider

ANSWER: Final = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "big-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}

SEARCH: Final = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Looks things up.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
# What agents send: the shapes that the mutations start from.
REAL: Final[list[dict[str, Any]]] = [
    chat(max_tokens=50),
    chat(max_completion_tokens=50, stream=True, stream_options={"include_usage": True}, temperature=0.2, top_p=1, seed=7),
    {
        "model": "big-model",
        "messages": [
            {"role": "system", "content": "You are a careful agent.", "name": "sys"},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "text", "text": "And this?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        ],
        "tools": [SEARCH],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_tokens": 100,
        "n": 2,
        "user": "u-1",
    },
    {
        "model": "small-model",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Describe."},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
                ],
            }
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
            },
        },
        "logit_bias": {"50256": -100},
        "stop": ["\n\n"],
        "metadata": {"trace": "t-1"},
        "modalities": ["text"],
        "service_tier": "auto",
        "reasoning_effort": "low",
    },
]

ODD: Final = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["", "auto", "true", "\u0000", "\ud800", "ﬁ", "big-model", "text", "image_url", "function", "priority", "x" * 5000]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=8,
)
NAMES: Final = st.sampled_from(
    [
        *{name for body in REAL for name in body},
        "best_of",
        "functions",
        "function_call",
        "audio",
        "store",
        "web_search_options",
        "thinking",
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real body after one to three changes of its structure, then perhaps of its bytes."""
    body = orjson.loads(orjson.dumps(draw(st.sampled_from(REAL))))
    doubled = ""
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(body)))
        match draw(st.sampled_from(["replace", "remove", "add", "rename", "double", "wrap"])):
            case "replace":
                holder[key] = draw(ODD)
            case "remove":
                del holder[key]
            case "add":
                body[draw(NAMES)] = draw(ODD)
            case "rename" if isinstance(key, str):
                holder[draw(st.sampled_from([key.upper(), key.title(), key + " ", f"\u200b{key}", key.replace("s", "ſ")]))] = (
                    holder[key]
                )
            case "double" if holder is body:
                doubled = f", {json.dumps(key)}: {json.dumps(draw(ODD))}"
            case _:
                holder[key] = draw(st.sampled_from([[holder[key]], {"value": holder[key]}]))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    raw = (text[:-1] + doubled + "}").encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=4)) + raw[at + draw(st.integers(0, 4)) :]
    return raw


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if isinstance(value, dict):
        return [place for key in value for place in [(value, key), *_places(value[key])]]
    if isinstance(value, list):
        return [place for key in range(len(value)) for place in [(value, key), *_places(value[key])]]
    return []


HEADERS: Final = st.dictionaries(
    st.sampled_from(
        [
            *(
                "X-Run-Limit",
                "X-Budget-Downgrade",
                "X-Budget-Wrap-Up",
                "X-Agent-Id",
                "X-Team-Id",
                "X-Request-Id",
                "Idempotency-Key",
            ),
            *("OpenAI-Organization", "Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Connection", "Expect"),
            *("Cookie", "Te", "X-Odd"),
        ]
    ),
    st.one_of(
        st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40).map(str.strip),
        st.sampled_from(["$1", "never", "true", "gzip", "identity", "close", "100-continue", "keep-alive, X-Run-Id", "a" * 600]),
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    shared_provider.default = Behaviour(body=orjson.dumps(ANSWER))
    ceilings = policy(run_ceiling("$1000000"), output={"max_tokens": 1000, "default_max_tokens": 100})
    with GatewayProcess(Setup(folder, shared_provider.base_url, policy=ceilings)) as running:
        yield running
        assert running.troubles == []
        assert running.admin("GET", "/admin/holds").json() == {"holds": []}


class Line:
    """One connection, opened again where the gateway closed it."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.setup.port, timeout=30)

    def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        sent = {"Authorization": f"Bearer {CALLER_KEY}", "X-Run-Id": "fuzz", **headers}
        for attempt in (1, 2):
            try:
                self._connection.request("POST", "/v1/chat/completions", body, sent)
                answer = self._connection.getresponse()
                return answer.status, answer.getheader("Content-Type", ""), answer.read()
            except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
                self._connection.close()
                if attempt == 2:
                    raise
        raise AssertionError


def assert_refused_or_forwarded_as_sent(provider: FaultProvider, line: Line, body: bytes, headers: dict[str, str]) -> None:
    before = len(provider.requests)
    status, content_type, told = line.post(body, headers)
    if status == 200:
        [received] = provider.requests[before:]
        forwarded, sent = orjson.loads(received.body), json.loads(body)
        cap = next((name for name in ("max_tokens", "max_completion_tokens") if sent.get(name) is not None), "max_tokens")
        for one in (forwarded, sent):
            one.pop(cap, None)
            if sent.get("stream"):
                one.pop("stream_options", None)
        assert forwarded == sent
        assert len(received.headers) == len({name.lower() for name, _ in received.headers})
    else:
        assert (400 <= status < 500, content_type) == (True, "application/problem+json"), told
        refusal = orjson.loads(told)
        assert refusal["status"] == status
        assert refusal["error"]["message"]
        assert len(provider.requests) == before


BOUNDED: Final = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, report_multiple_bugs=False
)


def test_mutated_bodies_are_refused_or_mean_the_same_to_the_provider(
    gateway: GatewayProcess, shared_provider: FaultProvider
) -> None:
    _fuzz_bodies(gateway, shared_provider, BOUNDED)


@pytest.mark.deep
def test_many_mutated_bodies_are_refused_or_mean_the_same_to_the_provider(
    gateway: GatewayProcess, shared_provider: FaultProvider
) -> None:
    _fuzz_bodies(gateway, shared_provider, settings(BOUNDED, max_examples=5_000))


def _fuzz_bodies(gateway: GatewayProcess, provider: FaultProvider, how: settings) -> None:
    provider.default = Behaviour(body=orjson.dumps(ANSWER))
    line = Line(gateway)

    @how
    @given(mutated())
    @example(b"[" * 100_000)
    @example(b'{"model": "big-model", "messages": [{"role": "user", "content": "hi"}], "seed": 1e400}')
    def each(body: bytes) -> None:
        assert_refused_or_forwarded_as_sent(provider, line, body, {"Content-Type": "application/json"})

    each()


def test_odd_headers_are_refused_or_leave_the_call_as_it_was(gateway: GatewayProcess, shared_provider: FaultProvider) -> None:
    shared_provider.default = Behaviour(body=orjson.dumps(ANSWER))
    line = Line(gateway)

    @settings(BOUNDED, max_examples=100)
    @given(HEADERS)
    def each(headers: dict[str, str]) -> None:
        assert_refused_or_forwarded_as_sent(shared_provider, line, orjson.dumps(chat(max_tokens=5)), headers)

    each()
