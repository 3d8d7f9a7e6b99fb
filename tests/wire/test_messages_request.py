"""A messages request is read strictly where it costs money, and forwarded as it was parsed."""

import base64
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Caching, Directives, Image, Output, Part, Plan
from gateway.wire.headers import NO_HEADERS
from gateway.wire.messages import read
from gateway.wire.problem import Refused
from gateway.wire.request import Request

ANTHROPIC = Profile("anthropic", "max_tokens", stream_options=True)
SMALL: dict[str, Any] = {"model": "claude-opus-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TOOL: dict[str, Any] = {"name": "f", "description": "does it", "input_schema": {"type": "object"}}
CACHED = {"type": "ephemeral"}
FOR_AN_HOUR = {"type": "ephemeral", "ttl": "1h"}


def asked(headers: dict[str, str] | None = None, **fields: Any) -> Request:
    body = {name: value for name, value in (SMALL | fields).items() if value is not ...}
    return read(orjson.dumps(body), CIMultiDict(headers) if headers else NO_HEADERS)


def with_blocks(*blocks: Any) -> Request:
    return asked(messages=[{"role": "user", "content": list(blocks)}])


def refused(headers: dict[str, str] | None = None, **fields: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        asked(headers, **fields)
    return raised.value


def sent(request: Request, cap: int = 64, model: str = "claude-haiku-4-5") -> dict[str, Any]:
    plan = Plan(model, "anthropic", cap, 10, Amounts(1, 1), ())
    body = orjson.loads(request.encode(plan, ANTHROPIC))
    assert type(body) is dict
    return body


def text_of(request: Request) -> str:
    return "|".join(text for part in request.parts for text in part.texts)


# -- what is forwarded --------------------------------------------------------------------------------------------------------


def test_everything_but_model_and_cap_is_forwarded_as_it_was_sent_in_the_same_order() -> None:
    raw = (
        b'{"top_k":5,"model":"claude-opus-5","stream":true,"x":{"b":[1,2.50,null],"a":18446744073709551615},"max_tokens":500,'
        b'"system":[{"type":"text","text":"\\u00e9","cache_control":{"type":"ephemeral"}}],"metadata":{"user_id":"u"},'
        b'"messages":[{"role":"user","content":"\\n\xf0\x9f\x8c\x8d"}]}'
    )
    body = sent(read(raw, NO_HEADERS))
    assert list(body) == list(orjson.loads(raw))
    assert body == orjson.loads(raw) | {"model": "claude-haiku-4-5", "max_tokens": 64}


def test_a_cap_is_always_written() -> None:
    request = asked(max_tokens=...)
    assert request.client_cap is None
    assert sent(request, cap=4096)["max_tokens"] == 4096


def test_a_cap_of_zero_fills_the_cache_and_stays_what_it_is() -> None:
    request = asked(max_tokens=0, cache_control=CACHED)
    assert (request.output, request.client_cap, request.caching) == (Output.NONE, 0, Caching.SHORT)
    assert sent(request, cap=0)["max_tokens"] == 0


def test_what_is_asked_for_reaches_the_call() -> None:
    request = asked(stream=True, service_tier="standard_only", temperature=0.5, top_k=3, thinking={"type": "disabled"})
    call = request.call(Caller("default", "key", "r1", "r1"), Directives())
    assert (call.dialect, call.model, call.stream, call.client_cap) == ("messages", "claude-opus-5", True, 100)
    assert (call.service_tier, call.reasons, call.caching) == ("standard_only", False, Caching.OFF)
    assert call.parameters == {"temperature", "top_p", "reasoning_effort", "service_tier"}
    assert call.unpriced == ()


def test_the_same_question_has_one_fingerprint_however_its_answer_travels() -> None:
    assert asked(stream=True, metadata={"user_id": "a"}).fingerprint() == asked().fingerprint()
    assert asked(system="be kind").fingerprint() != asked().fingerprint()


# -- strictness ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"MAX_TOKENS": 5}, "max_tokens"),
        ({"ſtream": True}, "stream"),
        ({"Thinking": {}}, "thinking"),
        ({"thinking": "enabled"}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": "2000"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "Budget_Tokens": 50}}, "thinking.budget_tokens"),
        ({"thinking": {"type": 1}}, "thinking.type"),
        ({"model": ["claude"]}, "model"),
        ({"model": ""}, "model"),
        ({"model": ...}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ...}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.content"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"], "text": "hi"}]}]}, "messages.content.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.content.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": "x"}]}]}, "messages.content.source"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": 5}}]}]}, "messages.content.source.data"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]}, "messages.content.content"),
        ({"system": 5}, "system"),
        ({"system": ["be kind"]}, "system"),
        ({"tools": {"name": "f"}}, "tools"),
        ({"tools": [{"type": 5}]}, "tools.type"),
        ({"tools": [{"type": "web_search_20260318", "max_uses": "3"}]}, "tools.max_uses"),
        ({"tools": [{"type": "web_search_20260318", "max_uses": 0}]}, "tools.max_uses"),
        ({"service_tier": 1}, "service_tier"),
        ({"speed": True}, "speed"),
        ({"inference_geo": ["us"]}, "inference_geo"),
        ({"metadata": "me"}, "metadata"),
        ({"cache_control": "ephemeral"}, "cache_control"),
        ({"mcp_servers": {}}, "mcp_servers"),
        ({"thread": {"previous_message_id": 5}}, "thread.previous_message_id"),
    ],
)
def test_what_decides_the_cost_is_read_in_one_way_or_refused(fields: dict[str, Any], param: str) -> None:
    said = refused(**fields).problem
    assert (said.status, said.code, said.param) == (400, "ambiguous_request", param)


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(("system", "tools", "thinking", "stream", "speed", "mcp_servers", "cache_control", "container"))
    request = asked(**nothing)
    assert (request.stream, request.caching, request.unpriced, request.reasons) == (False, Caching.OFF, (), True)


def test_a_number_beyond_64_bits_is_refused() -> None:
    raw = orjson.dumps(SMALL).replace(b'"max_tokens":100', b'"max_tokens":100000000000000000000')
    with pytest.raises(Refused, match="64 bits"):
        read(raw, NO_HEADERS)


# -- caps and thinking --------------------------------------------------------------------------------------------------------


def test_a_cap_that_thinking_would_use_up_is_refused_naming_both() -> None:
    said = refused(max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 2000}).problem
    assert (said.status, said.code, said.param) == (400, "output_cap_conflict", "max_tokens")
    assert "max_tokens (2000)" in said.detail
    assert "thinking.budget_tokens (2000)" in said.detail


@pytest.mark.parametrize(
    ("thinking", "reasons", "least_cap"),
    [
        (None, True, 0),
        ({"type": "disabled"}, False, 0),
        ({"type": "disabled", "budget_tokens": 5000}, False, 0),
        ({"type": "adaptive"}, True, 0),
        ({"type": "between_tools"}, True, 0),
        ({"type": "enabled", "budget_tokens": 1024}, True, 1025),
    ],
)
def test_thinking_says_whether_the_model_reasons_and_how_small_the_cap_may_be(
    thinking: object, reasons: bool, least_cap: int
) -> None:
    request = asked(max_tokens=2000, thinking=thinking)
    assert (request.reasons, request.least_cap) == (reasons, least_cap)


def test_a_budget_of_interleaved_thinking_is_for_a_whole_turn() -> None:
    beta = {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14"}
    thinking = {"type": "enabled", "budget_tokens": 5000}
    assert asked(beta, thinking=thinking, tools=[TOOL]).least_cap == 0
    assert refused(beta, thinking=thinking).problem.code == "output_cap_conflict"  # nothing to interleave with
    assert refused(thinking=thinking, tools=[TOOL]).problem.code == "output_cap_conflict"


# -- caching ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        lambda wish: {"cache_control": wish},
        lambda wish: {"system": [{"type": "text", "text": "s", "cache_control": wish}]},
        lambda wish: {"tools": [{**TOOL, "cache_control": wish}]},
        lambda wish: {"messages": [{"role": "user", "content": [{"type": "text", "text": "t", "cache_control": wish}]}]},
        lambda wish: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "text", "text": "t", "cache_control": wish}],
                        }
                    ],
                }
            ]
        },
    ],
    ids=["top", "system", "tool", "message", "nested"],
)
def test_a_wish_to_cache_counts_wherever_it_stands(place: Any) -> None:
    assert asked(**place(None)).caching is Caching.OFF
    assert asked(**place(CACHED)).caching is Caching.SHORT
    assert asked(**place({"ttl": "5m", "type": "ephemeral"})).caching is Caching.SHORT
    assert asked(**place(FOR_AN_HOUR)).caching is Caching.LONG
    assert asked(**place({"ttl": "24h", "type": "ephemeral"})).caching is Caching.LONG  # unheard of: the dearest


def test_one_hour_anywhere_is_an_hour_for_all() -> None:
    system = [{"type": "text", "text": "s", "cache_control": CACHED}]
    assert asked(system=system, tools=[{**TOOL, "cache_control": FOR_AN_HOUR}]).caching is Caching.LONG


def test_a_text_that_speaks_of_caching_asks_for_none() -> None:
    assert with_blocks({"type": "text", "text": '"cache_control":{"type":"ephemeral","ttl":"1h"}'}).caching is Caching.OFF


def test_an_escaped_key_is_the_same_key() -> None:
    raw = orjson.dumps(SMALL | {"cache_control": FOR_AN_HOUR}).replace(b'"cache_control"', b'"cache\\u005fcontrol"')
    assert read(raw, NO_HEADERS).caching is Caching.LONG


# -- input --------------------------------------------------------------------------------------------------------------------


def test_a_plain_message_is_one_part_and_the_system_prompt_another() -> None:
    request = asked(system="be kind")
    assert request.parts == (Part("system", ("system", "be kind"), 3), Part("user", ("user", "hi"), 3), Part("reply", (), 3))


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "seen"},
        {"type": "text", "text": "a", "citations": [{"cited_text": "seen"}]},
        {"type": "tool_use", "id": "t1", "name": "seen", "input": {}},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": ["seen"]}},
        {"type": "tool_result", "tool_use_id": "t1", "content": "seen"},
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "seen"}]},
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "search_result", "title": "seen", "content": []}]},
        {"type": "thinking", "thinking": "seen", "signature": "c2VhbGVk"},
        {"type": "search_result", "source": "a", "title": "b", "content": [{"type": "text", "text": "seen"}]},
        {"type": "document", "title": "seen", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
        {"type": "document", "context": "seen", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "seen"}},
        {"type": "document", "source": {"type": "content", "content": "seen"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "seen"}]}},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "seen"}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"title": "seen", "encrypted_content": "x" * 40}]},
        {
            "type": "web_fetch_tool_result",
            "content": {
                "type": "web_fetch_result",
                "content": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "seen"}},
            },
        },
        {"type": "code_execution_tool_result", "content": {"stdout": "seen", "return_code": 0}},
        {"type": "bash_code_execution_tool_result", "content": {"stdout": "seen"}},
        {"type": "mcp_tool_use", "name": "f", "server_name": "s", "input": {"a": "seen"}},
        {"type": "mcp_tool_result", "content": [{"type": "text", "text": "seen"}]},
        {"type": "container_upload", "file_id": "seen"},
        {"type": "compaction", "content": "seen", "encrypted_content": "x" * 40},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {**TOOL, "description": "seen"}}},
    ],
)
def test_all_that_the_model_reads_of_a_block_is_counted(block: dict[str, Any]) -> None:
    request = with_blocks(block)
    assert "seen" in text_of(request)
    assert "xxxx" not in text_of(request)
    assert request.unpriced == ()


@pytest.mark.parametrize("name", ["cache_control", "signature", "encrypted_content", "type"])
def test_what_a_tool_is_called_with_is_read_whatever_its_names_are(name: str) -> None:
    request = with_blocks({"type": "tool_use", "id": "t1", "name": "f", "input": {name: "seen", "deeper": {name: ["seen"]}}})
    assert text_of(request).count("seen") == 2


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "", "signature": "x" * 4000},
        {"type": "redacted_thinking", "data": "x" * 4000},
        {"type": "web_search_tool_result", "content": [{"encrypted_content": "x" * 4000}]},
        {"type": "code_execution_tool_result", "content": {"encrypted_stdout": "x" * 4000}},
        {"type": "compaction", "content": None, "encrypted_content": "x" * 4000},
    ],
)
def test_what_only_anthropic_can_read_is_bounded_by_its_length(block: dict[str, Any]) -> None:
    [message, _] = with_blocks(block).parts
    assert 1000 <= message.overhead_tokens <= 1000 + 3 + 3 + 8
    assert "xxxx" not in "".join(message.texts)


def test_an_unknown_block_is_counted_and_named() -> None:
    request = with_blocks({"type": "hologram", "text": "seen"})
    assert "seen" in text_of(request)
    assert request.unpriced == ("messages.content.type",)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()},
        {"type": "url", "url": "https://example.com/a.png"},
        {"type": "file", "file_id": "file_1"},
    ],
)
def test_an_image_is_bounded_wherever_it_comes_from(source: dict[str, Any]) -> None:
    request = with_blocks({"type": "image", "source": source})
    [message, _] = request.parts
    assert [type(image) for image in message.images] == [Image]
    assert (request.needs, request.unpriced) == ({"vision"}, ())


def test_an_image_in_a_tools_result_is_one_too() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    [message, _] = with_blocks({"type": "tool_result", "tool_use_id": "t", "content": [image, image]}).parts
    assert len(message.images) == 2


def test_a_document_in_the_body_is_an_attachment_and_one_elsewhere_has_no_bound() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(b"%PDF-1.4 ...").decode()}
    request = with_blocks({"type": "document", "source": pdf})
    [message, _] = request.parts
    assert (len(message.attachments), request.needs, request.unpriced) == (1, {"files"}, ())
    for source in ({"type": "url", "url": "https://example.com/a.pdf"}, {"type": "file", "file_id": "file_1"}):
        document = {"type": "document", "source": source}
        for block in (document, {"type": "tool_result", "tool_use_id": "t", "content": [document]}):
            assert with_blocks(block).unpriced == ("messages.content.source",)


def test_what_is_not_known_is_counted_as_if_a_model_read_it() -> None:
    assert "secret plan" in text_of(asked(briefing={"text": "secret plan"}))
    assert "seen" in text_of(asked(messages=[{"role": "user", "content": "hi", "note": "seen"}]))
    assert "never" not in text_of(asked(metadata={"user_id": "never"}, stop_sequences=["never"], thread={"type": "never"}))


def test_a_schema_of_the_answer_is_input() -> None:
    schema = {"type": "json_schema", "schema": {"type": "object", "properties": {"seen": {}}}}
    for fields in ({"output_format": schema}, {"output_config": {"format": schema}}):
        request = asked(**fields)
        assert request.needs == {"json_schema"}
        assert '"seen"' in text_of(request)
    assert asked(output_config={"effort": "high"}).needs == frozenset()


def test_a_thread_is_continued() -> None:
    assert asked(thread={"type": "continue", "previous_message_id": "msg_1"}).continues == "msg_1"
    assert asked(thread={"type": "create"}).continues is None


# -- tools --------------------------------------------------------------------------------------------------------------------


def tools_of(*tools: dict[str, Any], **fields: Any) -> Request:
    return asked(tools=list(tools), **fields)


def test_a_clients_tools_are_counted_as_they_are() -> None:
    request = tools_of(TOOL, {**TOOL, "type": "custom"})
    assert (request.needs, request.unpriced, request.readings, request.pieces) == ({"tools"}, (), 1, ())
    [tools] = [part for part in request.parts if part.role == "tools"]
    assert tools.overhead_tokens == 32 + 2 * 8
    assert "does it" in tools.texts[0]


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("bash_20250124", 245),
        ("text_editor_20250728", 700),
        ("computer_20251124", 1234),
        ("computer_toolset_20260801", 4000),
        ("browser_toolset_20260801", 6000),
        ("memory_20250818", 1000),
    ],
)
def test_a_tool_whose_schema_is_anthropics_takes_what_it_publishes(kind: str, tokens: int) -> None:
    request = tools_of({"type": kind, "name": "t"})
    [tools] = [part for part in request.parts if part.role == "tools"]
    assert tools.overhead_tokens == 32 + 8 + tokens
    assert request.unpriced == ()


def test_searches_are_bounded_by_their_number_and_read_the_input_again() -> None:
    request = tools_of({"type": "web_search_20260318", "name": "web_search", "max_uses": 3})
    assert (request.pieces, request.readings, request.unpriced) == ((("web_searches", 3),), 4, ())
    [results] = [part for part in request.parts if part.role == "tool_results"]
    assert results.overhead_tokens == 3 * 10_000 // 2 + 100

    # Not more often than Anthropic's loop goes round: then 41 results come at once, and one each time after.
    many = tools_of({"type": "web_search_20260318", "name": "web_search", "max_uses": 50})
    assert (many.pieces, many.readings) == ((("web_searches", 50),), 11)


def results_of(*tools: dict[str, Any]) -> int:
    """What is held for results, over all readings."""
    request = tools_of(*tools, max_tokens=1)
    [results] = [part for part in request.parts if part.role == "tool_results"]
    return (results.overhead_tokens - 1) * request.readings


def test_results_are_bounded_however_they_come() -> None:
    def fetching(uses: int, most: int) -> dict[str, Any]:
        return {"type": "web_fetch_20260318", "name": "web_fetch", "max_uses": uses, "max_content_tokens": most}

    def at_most(*sizes: int, rounds: int) -> int:
        """By trying: as many at once as don't come one by one, the largest first."""
        ordered = sorted(sizes, reverse=True)
        at_once = len(ordered) - rounds + 1
        return sum(sum(ordered[: at_once + number]) for number in range(rounds))

    for tools, sizes, rounds in (
        ([fetching(1, 500)], [500], 1),
        ([fetching(3, 500)], [500] * 3, 3),
        ([fetching(2, 90_000), fetching(3, 100)], [90_000] * 2 + [100] * 3, 5),
        ([fetching(50, 1_000)], [1_000] * 50, 10),
        ([fetching(4, 1_000), {"type": "tool_search_tool_bm25_20251119", "name": "s"}], [1_000] * 4 + [0] * 10, 10),
    ):
        exact = at_most(*sizes, rounds=rounds)
        assert exact <= results_of(*tools) <= exact + rounds + 1


def test_fetches_are_bounded_by_number_and_length_together() -> None:
    request = tools_of({"type": "web_fetch_20260318", "name": "web_fetch", "max_uses": 2, "max_content_tokens": 5000})
    assert (request.pieces, request.readings, request.unpriced) == ((), 3, ())
    [results] = [part for part in request.parts if part.role == "tool_results"]
    assert results.overhead_tokens == 5000 + 100


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "tools.web_search"),
        ({"type": "web_search_20250305", "name": "web_search", "max_uses": None}, "tools.web_search"),
        ({"type": "web_fetch_20260318", "name": "web_fetch", "max_uses": 2}, "tools.web_fetch"),
        ({"type": "web_fetch_20260318", "name": "web_fetch", "max_content_tokens": 100}, "tools.web_fetch"),
        ({"type": "code_execution_20260521", "name": "code_execution"}, "tools.code_execution"),
        ({"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5"}, "tools.type"),
        ({"type": "mcp_toolset", "mcp_server_name": "s"}, "tools.type"),
    ],
)
def test_a_tool_that_nothing_bounds_is_named(tool: dict[str, Any], name: str) -> None:
    assert tools_of(tool).unpriced == (name,)
    addition = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}}
    assert with_blocks(addition).unpriced == (name,)


# -- what moves the price -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"fallbacks": "default"}, "fallbacks"),
        ({"fallbacks": [{"model": "claude-sonnet-5"}]}, "fallbacks"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "s"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits"),
        ({"container": {"skills": [{"skill_id": "xlsx"}]}}, "container.skills"),
    ],
)
def test_a_field_that_moves_the_price_is_named(fields: dict[str, Any], name: str) -> None:
    assert asked(**fields).unpriced == (name,)


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": "standard"},
        {"inference_geo": "global"},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015"}]}},
        {"container": "container_1"},
        {"service_tier": "auto"},
        {"fallback_credit_token": "t"},
        {"diagnostics": {"previous_message_id": "msg_1"}},
        {"stop_sequences": ["a"], "top_k": 5, "top_p": 0.5, "tool_choice": {"type": "auto"}},
    ],
)
def test_a_field_that_does_not_is_not(fields: dict[str, Any]) -> None:
    assert asked(**fields).unpriced == ()


def test_a_beta_moves_no_price_by_itself() -> None:
    claude_code = (
        "claude-code-20250219,context-1m-2025-08-07,extended-cache-ttl-2025-04-11,fast-mode-2026-02-01,never-heard-of-2027"
    )
    request = asked({"anthropic-beta": claude_code})
    assert (request.unpriced, request.caching) == ((), Caching.OFF)


# -- whatever comes -----------------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TEXTS = st.text(max_size=5)
COUNTS = st.none() | st.integers(1, 5)
CACHE = st.sampled_from([None, CACHED, FOR_AN_HOUR])
TEXT_BLOCK = st.fixed_dictionaries(
    {"type": st.just("text"), "text": TEXTS}, optional={"cache_control": CACHE, "citations": VALUES}
)
SOURCE = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "file", "text"])}, optional={"data": TEXTS, "url": TEXTS, "media_type": VALUES}
)
OTHER_KINDS = ["tool_use", "thinking", "redacted_thinking", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result"]
OTHER_KINDS += ["search_result", "container_upload", "compaction", "tool_addition", "hologram"]
BLOCK = st.recursive(
    TEXT_BLOCK
    | st.fixed_dictionaries({"type": st.sampled_from(["image", "document"]), "source": SOURCE}, optional={"title": VALUES})
    | st.fixed_dictionaries(
        {"type": st.sampled_from(OTHER_KINDS)},
        optional=dict.fromkeys(("content", "input", "name", "id", "thinking", "signature", "data", "tool"), VALUES),
    ),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("tool_result"), "content": TEXTS | st.lists(inner, max_size=2)}, optional={"tool_use_id": TEXTS}
        )
        | st.fixed_dictionaries(
            {
                "type": st.just("document"),
                "source": st.fixed_dictionaries({"type": st.just("content"), "content": st.lists(inner)}),
            }
        )
    ),
    max_leaves=4,
)
KINDS_OF_TOOLS = [
    "custom",
    "bash_20250124",
    "web_search_20260318",
    "web_fetch_20260318",
    "tool_search_tool_bm25_20251119",
    "mcp_toolset",
]
A_TOOL = st.fixed_dictionaries(
    {},
    optional={"type": st.none() | st.sampled_from(KINDS_OF_TOOLS), "max_uses": COUNTS, "max_content_tokens": COUNTS, "x": VALUES},
)
WHOLESOME: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.none() | st.integers(0, 50),
    "stream": st.none() | st.booleans(),
    "system": TEXTS | st.lists(TEXT_BLOCK, max_size=2),
    "tools": st.none() | st.lists(A_TOOL, max_size=2),
    "thinking": st.fixed_dictionaries(
        {"type": st.sampled_from(["enabled", "disabled", "adaptive"])}, optional={"budget_tokens": COUNTS}
    ),
    "cache_control": CACHE,
    "context_management": st.fixed_dictionaries({"edits": VALUES}),
    "output_config": st.fixed_dictionaries({}, optional={"format": st.dictionaries(TEXTS, VALUES, max_size=2), "effort": VALUES}),
    "container": VALUES,
    "fallbacks": VALUES,
    "speed": st.sampled_from([None, "standard", "fast"]),
    "whatever": VALUES,
}
SPOILT = st.dictionaries(
    st.sampled_from([*WHOLESOME, "messages", "thread", "mcp_servers", "inference_geo", "Stream"]), VALUES, max_size=1
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS | st.lists(BLOCK, max_size=2)}),
    max_size=2,
)
BODIES = st.tuples(
    st.fixed_dictionaries({"model": st.just("claude-opus-5"), "messages": MESSAGES}, optional=WHOLESOME), SPOILT
).map(lambda both: both[0] | both[1])


@given(BODIES)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_refused_in_our_shape_or_forwarded_as_it_is(body: dict[str, Any]) -> None:
    try:
        request = read(orjson.dumps(body), CIMultiDict({"anthropic-beta": "interleaved-thinking-2025-05-14"}))
    except Refused as refusal:
        said = refusal.problem
    else:
        said = None
    if said is not None:
        assert (said.status, bool(said.detail)) == (400, True)
        return
    forwarded = sent(request)
    assert forwarded == body | {"model": "claude-haiku-4-5", "max_tokens": 0 if request.output is Output.NONE else 64}
    assert all(part.overhead_tokens >= 0 and all(type(text) is str for text in part.texts) for part in request.parts)
    assert request.call(Caller("default", "key", "r1", "r1"), Directives()).readings >= 1


def test_what_has_earlier_messages_left_out_is_told_apart() -> None:
    """An anchor that was made with it would be too low without it."""
    plain, cleared, silent = (
        asked(**fields).parts
        for fields in (
            {},
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            {"thinking": {"type": "disabled"}},
        )
    )
    assert len({repr(parts) for parts in (plain, cleared, silent)}) == 3
    assert sum(len(part.texts) + part.overhead_tokens for part in cleared) == sum(
        len(part.texts) + part.overhead_tokens for part in plain
    )
