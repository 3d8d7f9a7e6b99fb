"""A responses request is read strictly where it costs money, bounded where its input is elsewhere, and forwarded as it was parsed."""

from typing import Any

import orjson
import pytest

from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import ADDRESS, ELSEWHERE, SAME_MODEL, Attachment, Caching, Directives, Image, Plan
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused
from gateway.wire.responses import BUILT_IN_OVERHEAD, ITEM_OVERHEAD, TOOL_OVERHEAD, TOOLS_OVERHEAD, ResponsesRequest, read

OPENAI = Profile("openai", "max_completion_tokens", stream_options=True)
SMALL: dict[str, Any] = {"model": "gpt-5", "input": "hi"}
FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def asked(**fields: Any) -> ResponsesRequest:
    return read(orjson.dumps(SMALL | fields), NO_HEADERS)


def with_item(**item: Any) -> ResponsesRequest:
    return asked(input=[item])


def with_content(*parts: Any) -> ResponsesRequest:
    return with_item(role="user", content=list(parts))


def with_tool(kind: str, **fields: Any) -> ResponsesRequest:
    calls = {"max_tool_calls": fields.pop("max_tool_calls")} if "max_tool_calls" in fields else {}
    return asked(tools=[{"type": kind, **fields}], **calls)


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(Refused) as raised:
        asked(**fields)
    said = raised.value.problem
    assert said.status == 400
    return said.code, said.param


def sent(request: ResponsesRequest, model: str = "gpt-5", cap: int = 100) -> dict[str, Any]:
    body = orjson.loads(request.encode(Plan(model, "openai", cap, 10, Amounts(1, 1), ()), OPENAI))
    assert type(body) is dict
    return body


# -- what is forwarded --------------------------------------------------------------------------------------------------------


def test_everything_but_model_and_cap_is_forwarded_as_it_was_sent_in_the_same_order() -> None:
    raw = (
        b'{"temperature":0.1,"model":"gpt-5","stream":true,"x":{"b":[1,2.50,null],"a":18446744073709551615},"max_output_tokens":500,'
        b'"input":[{"role":"user","content":"\\u00e9"}],"metadata":{"a":"b"},"stream_options":{"include_obfuscation":false}}'
    )
    body = orjson.loads(read(raw, NO_HEADERS).encode(Plan("gpt-5-mini", "openai", 64, 1, Amounts(1, 1), ()), OPENAI))
    assert list(body) == ["temperature", "model", "stream", "x", "max_output_tokens", "input", "metadata", "stream_options"]
    assert body == orjson.loads(raw) | {"model": "gpt-5-mini", "max_output_tokens": 64}


@pytest.mark.parametrize("given", [{}, {"max_output_tokens": None}, {"max_output_tokens": 500}])
def test_the_cap_is_always_written(given: dict[str, Any]) -> None:
    request = asked(**given)
    assert sent(request, cap=64) == SMALL | {"max_output_tokens": 64}
    assert request.client_cap == given.get("max_output_tokens")
    assert request.clamped(Plan("gpt-5", "openai", 64, 1, Amounts(1, 1), ())) is (given.get("max_output_tokens") == 500)


def test_a_background_request_carries_the_mark_of_its_hold_beside_the_callers_own_metadata() -> None:
    request = asked(background=True, metadata={"a": "b"})
    assert request.background
    assert sent(request)["metadata"] == {"a": "b"}
    request.mark = "rsv_1.abc"
    assert sent(request)["metadata"] == {"a": "b", "penstock_hold": "rsv_1.abc"}
    bare = asked(background=True)
    bare.mark = "rsv_1.abc"
    assert sent(bare)["metadata"] == {"penstock_hold": "rsv_1.abc"}


@pytest.mark.parametrize("key", ["penstock_hold", "Penstock_Hold"])
@pytest.mark.parametrize("background", [True, False])
def test_nobody_else_can_write_that_mark(key: str, background: bool) -> None:
    assert refused(background=background, metadata={key: "rsv_1"}) == ("ambiguous_request", "metadata.penstock_hold")


def test_a_background_request_leaves_one_key_of_metadata_to_the_gateway() -> None:
    full = {str(number): "x" for number in range(16)}
    assert refused(background=True, metadata=full) == ("ambiguous_request", "metadata")
    assert asked(metadata=full).model == "gpt-5"


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"input": 5}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"type": 5}]}, "input.type"),
        ({"input": [{"role": 5, "content": "x"}]}, "input.role"),
        ({"input": [{"role": "user", "content": 5}]}, "input.content"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input.content.text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {}}]}]}, "input.content.image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "detail": 5}]}]}, "input.content.detail"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_data": 5}]}]}, "input.content.file_data"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": 5}]}]}, "input.content.input_audio"),
        ({"input": [{"type": "reasoning", "encrypted_content": 5}]}, "input.encrypted_content"),
        ({"instructions": 5}, "instructions"),
        ({"stream": "true"}, "stream"),
        ({"background": "true"}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"max_tool_calls": -1}, "max_tool_calls"),
        ({"max_tool_calls": 1_001}, "max_tool_calls"),
        ({"max_tool_calls": "5"}, "max_tool_calls"),
        ({"max_tool_calls": True}, "max_tool_calls"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "input.content.type"),
        ({"conversation": 5}, "conversation"),
        ({"conversation": ""}, "conversation"),
        ({"conversation": {"ID": "conv_1"}}, "conversation.id"),
        ({"conversation": {}}, "conversation"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools"),
        ({"tools": [{"type": 5}]}, "tools.type"),
        ({"tools": [{"type": "namespace", "tools": 5}]}, "tools"),
        ({"tools": [{"type": "code_interpreter", "container": {"memory_limit": 4}}]}, "tools.container.memory_limit"),
        ({"text": "x"}, "text"),
        ({"text": {"format": "x"}}, "text.format"),
        ({"text": {"Format": {"type": "json_schema"}}}, "text.format"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"service_tier": 5}, "service_tier"),
        ({"metadata": "x"}, "metadata"),
        ({"include": "x"}, "include"),
        ({"prompt_cache_options": {"ttl": 5}}, "prompt_cache_options.ttl"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields) == ("ambiguous_request", param)


@pytest.mark.parametrize(
    "name", ["Model", "INPUT", "Max_Output_Tokens", "\u017ftream", "Previous_Response_Id", "Tools", "Background", "Service_Tier"]
)
def test_a_field_that_differs_only_in_case_is_refused(name: str) -> None:
    assert refused(**{name: 1}) == ("ambiguous_request", name.casefold())


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(
        [
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "previous_response_id",
            "conversation",
            "tools",
            "text",
            "metadata",
        ]
    )
    request, plain = asked(**nothing), asked()
    assert (request.parts, request.needs, request.unpriced, request.parameters) == (plain.parts, plain.needs, (), frozenset())


# -- input --------------------------------------------------------------------------------------------------------------------


def test_text_of_every_kind_of_item_is_counted() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "one"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "two"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "three", "annotations": [{"x": "never shown"}], "logprobs": []},
                {"type": "refusal", "refusal": "four"},
            ],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "five",
            "arguments": '{"a":1}',
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "six"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "seven"}]},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "eight", "input": "nine"},
        {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "ten", "stderr": "", "outcome": {"type": "exit"}}]},
        {"type": "mcp_call", "id": "m", "name": "eleven", "arguments": "{}", "output": "twelve", "server_label": "s"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "thirteen"}]},
    ]
    request = asked(instructions="zero", input=items)
    texts = [text for part in request.parts for text in part.texts]
    for wanted in (
        *(
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            '{"a":1}',
            "six",
            "seven",
            "eight",
            "nine",
            "eleven",
            "twelve",
            "thirteen",
        ),
        *('{"type":"exec","command":["ls"]}', '{"stdout":"ten","stderr":"","outcome":{"type":"exit"}}', "call_1"),
    ):
        assert wanted in texts, wanted
    assert not any("never shown" in text for text in texts)
    assert request.unpriced == ()
    assert [part.role for part in request.parts[:4]] == ["instructions", "user", "developer", "assistant"]


def test_pictures_sound_and_files_in_the_body_are_seen_as_what_they_are() -> None:
    request = with_content(
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    )
    [part] = request.parts[:1]
    assert part.images == (Image("low"), Image("auto"))
    assert [attachment.kind for attachment in part.attachments] == ["audio"]
    assert request.needs == {"vision", "audio_input"}
    screen = with_item(type="computer_call_output", call_id="c", output={"type": "computer_screenshot", "image_url": "data:,x"})
    assert len(screen.parts[0].images) == 1
    shown = with_item(type="image_generation_call", id="ig_1", result="AAAA", status="completed")
    assert (len(shown.parts[0].images), "AAAA" in shown.parts[0].texts) == (1, False)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "input_file", "file_id": "file_1"}, {"type": "input_file", "file_id": "file_2"}],
        [{"type": "input_image", "image_url": "https://x/1"}, {"type": "input_image", "image_url": "https://x/2"}],
        [{"type": "input_image", "file_id": "file_1"}, {"type": "input_image", "file_id": "file_2"}],
    ],
)
def test_what_is_known_only_by_where_it_is_is_told_apart(parts: list[dict[str, str]]) -> None:
    one, same, other = (with_content(part).parts[0] for part in (parts[0], parts[0], parts[1]))
    assert repr(one) == repr(same) != repr(other)


def test_encrypted_reasoning_of_one_length_is_told_apart() -> None:
    one, other = (with_item(type="reasoning", summary=[], encrypted_content=text).parts[0] for text in ("AAAA", "BBBB"))
    assert one == other
    assert one.mark != other.mark


@pytest.mark.parametrize("where", [{"file_id": "file_1"}, {"file_url": "https://x/y.pdf"}, {}])
def test_a_file_that_is_elsewhere_is_bounded_by_the_context(where: dict[str, Any]) -> None:
    request = with_content({"type": "input_file", "filename": "a.pdf", **where})
    assert request.parts[0].attachments == (ELSEWHERE if "file_id" in where else ADDRESS,)
    assert "a.pdf" in request.parts[0].texts
    assert request.unpriced == ()


def test_a_file_in_the_body_is_bounded_by_itself() -> None:
    [attachment] = with_content({"type": "input_file", "file_data": "AAAA", "filename": "a.txt"}).parts[0].attachments
    assert attachment != ELSEWHERE
    assert isinstance(attachment, Attachment)


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}, {"type": None, "id": "msg_1"}])
def test_an_item_that_is_only_named_is_bounded_by_the_context(item: dict[str, Any]) -> None:
    request = asked(input=[item])
    assert request.parts[0].attachments == (ELSEWHERE,)
    assert SAME_MODEL in request.needs


def test_encrypted_reasoning_is_bounded_by_its_length_and_stays_with_its_model() -> None:
    request = with_item(type="reasoning", id="rs_1", summary=[], encrypted_content="A" * 4_000)
    assert request.parts[0].overhead_tokens == ITEM_OVERHEAD + 1_500  # 3,000 bytes
    assert request.parts[0].texts == ()
    assert SAME_MODEL in request.needs


@pytest.mark.parametrize(
    ("fields", "continues"),
    [
        ({}, None),
        ({"previous_response_id": "resp_1"}, "resp_1"),
        ({"previous_response_id": ""}, None),
        ({"conversation": "conv_1"}, "conv_1"),
        ({"conversation": {"id": "conv_1"}}, "conv_1"),
    ],
)
def test_what_a_request_goes_on_with_is_named(fields: dict[str, Any], continues: str | None) -> None:
    request = asked(**fields)
    assert request.continues == continues
    assert (SAME_MODEL in request.needs) is (continues is not None)


def test_a_conversation_needs_no_input() -> None:
    request = read(b'{"model":"gpt-5","conversation":"conv_1"}', NO_HEADERS)
    assert [part.role for part in request.parts] == ["reply"]


def test_what_codex_sends_is_known_to_the_last_field() -> None:
    """As version 0.169 sent it, with shorter texts."""
    passthrough = {"internal_chat_message_metadata_passthrough": {"turn_id": "t1", "create_time": 1795360577.0060656}}
    namespace = {
        "type": "namespace",
        "name": "functions",
        "description": "",
        "tools": [{"type": "custom", "name": "exec"}, FUNCTION],
    }
    items: list[dict[str, Any]] = [
        {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [namespace]},
        {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "say hi"}], **passthrough},
        {"type": "configuration_update", "reasoning": {"effort": "low"}},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "A" * 400},
    ]
    codex: dict[str, Any] = {
        "stream": True,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "context": "all_turns"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a203d3",
        "text": {"verbosity": "low"},
    }
    request = asked(input=items, client_metadata={"turn_id": "t1"}, **codex)
    assert (request.unpriced, request.pieces, request.readings) == ((), (), 1)
    assert request.needs == {"tools", SAME_MODEL}
    assert [part.role for part in request.parts] == ["developer", "user", "configuration_update", "reasoning", "reply"]
    assert request.parts[1].texts == ("user", "say hi")
    # The next call says all of it again, but for what is said of the turn.
    again = asked(input=items, client_metadata={"turn_id": "t2"}, **codex)
    assert again.parts == request.parts
    assert again.fingerprint() == request.fingerprint()


# -- tools --------------------------------------------------------------------------------------------------------------------


def test_functions_cost_tokens_only() -> None:
    request = asked(tools=[FUNCTION, FUNCTION])
    tools = next(part for part in request.parts if part.role == "tools")
    assert tools.texts == (orjson.dumps([FUNCTION, FUNCTION]).decode(),)
    assert tools.overhead_tokens == TOOLS_OVERHEAD + 2 * TOOL_OVERHEAD
    assert (request.needs, request.unpriced, request.pieces, request.readings) == ({"tools"}, (), (), 1)


@pytest.mark.parametrize(
    ("tool", "piece"),
    [
        ({"type": "web_search"}, "web_searches"),
        ({"type": "web_search_2025_08_26"}, "web_searches"),
        ({"type": "web_search_preview", "search_context_size": "high"}, "web_searches"),
        ({"type": "file_search", "vector_store_ids": ["vs_1"]}, "file_searches"),
        ({"type": "code_interpreter", "container": "cntr_1"}, "code_sessions"),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, "code_sessions"),
        ({"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}, "code_sessions/4g"),
    ],
)
def test_the_providers_own_tools_are_bounded_by_how_often_they_may_be_called(tool: dict[str, Any], piece: str) -> None:
    request = asked(tools=[tool, FUNCTION], max_tool_calls=3)
    assert (request.pieces, request.readings, request.unpriced) == (((piece, 3),), 4, ())
    assert SAME_MODEL in request.needs
    tools = next(part for part in request.parts if part.role == "tools")
    assert tools.overhead_tokens == TOOLS_OVERHEAD + 2 * TOOL_OVERHEAD + BUILT_IN_OVERHEAD
    unbounded = asked(tools=[tool])
    assert (unbounded.pieces, unbounded.readings) == ((), 1)
    [field] = unbounded.unpriced
    assert field in ("tools.web_search", "tools.file_search", "tools.code_interpreter")
    never = asked(tools=[tool], max_tool_calls=0)
    assert (never.pieces, never.readings, never.unpriced) == ((), 1, ())


def test_each_of_several_tools_may_have_all_the_calls() -> None:
    request = asked(tools=[{"type": "web_search"}, {"type": "file_search"}, {"type": "web_search"}], max_tool_calls=2)
    assert request.pieces == (("file_searches", 2), ("web_searches", 2))
    assert request.readings == 3


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ({"type": "mcp", "server_url": "https://x"}, "tools.mcp"),
        ({"type": "image_generation"}, "tools.image_generation"),
        ({"type": "shell", "environment": {"type": "container_auto"}}, "tools.shell"),
        ({"type": "shell"}, "tools.shell"),
        ({"type": "tool_search"}, "tools.tool_search"),
        ({"type": "programmatic_tool_calling"}, "tools.programmatic_tool_calling"),
        ({"type": "something_new"}, "tools.type"),
        ({}, "tools.type"),
        ({"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}, "tools.mcp"),
    ],
)
def test_a_tool_whose_cost_nothing_bounds_is_named(tool: dict[str, Any], field: str) -> None:
    assert asked(tools=[tool], max_tool_calls=3).unpriced == (field,)
    brought = asked(input=[{"type": "additional_tools", "role": "developer", "tools": [tool]}], max_tool_calls=3)
    assert brought.unpriced == (field,)


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "custom", "name": "c"},
        {"type": "apply_patch"},
        {"type": "local_shell"},
        {"type": "computer_use_preview", "display_width": 1, "display_height": 1, "environment": "browser"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "tool_search", "execution": "client"},
    ],
)
def test_a_tool_that_the_client_runs_costs_tokens_only_but_no_other_model_is_known_to_have_it(tool: dict[str, Any]) -> None:
    request = asked(tools=[tool])
    assert (request.unpriced, request.pieces, request.readings) == ((), (), 1)
    assert request.needs == {"tools", SAME_MODEL}


@pytest.mark.parametrize(
    ("fields", "unpriced"),
    [
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"models": ["x"]}, "models"),
        ({"input": [{"type": "compaction_trigger"}]}, "input.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_video", "url": "x"}]}]}, "input.content.type"),
    ],
)
def test_what_moves_the_price_in_a_way_that_nothing_models_is_named(fields: dict[str, Any], unpriced: str) -> None:
    assert asked(**fields).unpriced == (unpriced,)


# -- what else decides --------------------------------------------------------------------------------------------------------


def test_a_schema_is_counted_and_needs_a_model_that_takes_one() -> None:
    text = {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}, "verbosity": "low"}
    request = asked(text=text)
    assert request.needs == {"json_schema"}
    assert request.parameters == {"response_format", "verbosity"}
    assert next(part for part in request.parts if part.role == "response_format").texts == (orjson.dumps(text).decode(),)
    assert asked(text={"format": {"type": "text"}}).needs == frozenset()


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort"}),
        ({"include": ["reasoning.encrypted_content"]}, {"reasoning_effort"}),
        ({"include": ["message.output_text.logprobs"]}, set()),
        ({"temperature": 0.5, "top_p": 1}, {"temperature", "top_p"}),
        ({"store": False, "truncation": "auto", "user": "u", "prompt_cache_key": "k", "metadata": {}}, set()),
        ({"something_new": 1}, {"something_new"}),
    ],
)
def test_what_another_model_must_take_goes_by_the_names_that_the_catalog_knows(
    fields: dict[str, Any], parameters: set[str]
) -> None:
    assert asked(**fields).parameters == parameters


def test_reasoning_that_is_off_is_known() -> None:
    assert asked().reasons
    assert asked(reasoning={"effort": "low"}).reasons
    assert not asked(reasoning={"effort": "none"}).reasons


@pytest.mark.parametrize(
    ("options", "caching"),
    [
        (None, Caching.AUTOMATIC),
        ({"mode": "explicit"}, Caching.AUTOMATIC),
        ({"ttl": "30m"}, Caching.AUTOMATIC),
        ({"ttl": "12h"}, Caching.LONG),
    ],
)
def test_a_cache_that_lives_long_is_reckoned_with(options: Any, caching: Caching) -> None:
    assert asked(prompt_cache_options=options).caching is caching


def test_an_unknown_field_with_text_counts_as_input() -> None:
    part = next(part for part in asked(documents=[{"a": "b"}], more="text").parts if part.role == "other")
    assert part.texts == ('[{"a":"b"}]', "text")


def test_the_call_says_what_was_asked() -> None:
    request = asked(
        stream=True,
        service_tier="flex",
        previous_response_id="resp_1",
        background=True,
        tools=[{"type": "web_search"}],
        max_tool_calls=1,
    )
    call = request.call(Caller("t", "k", "r", "r"), Directives())
    assert (call.dialect, call.model, call.stream, call.service_tier, call.continues) == (
        "responses",
        "gpt-5",
        True,
        "flex",
        "resp_1",
    )
    assert (call.background, call.readings, call.pieces) == (True, 2, (("web_searches", 1),))


def test_equal_requests_have_equal_fingerprints_however_the_answer_travels() -> None:
    assert asked(stream=True, metadata={"a": "b"}).fingerprint() == asked().fingerprint()
    assert asked(input="ho").fingerprint() != asked().fingerprint()
    assert asked(previous_response_id="resp_1").fingerprint() != asked().fingerprint()
