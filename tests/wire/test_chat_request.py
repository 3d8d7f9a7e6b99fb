"""A chat request is read strictly where it costs money, and forwarded as it was parsed."""

import json
import string
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Attachment, Caching, Directives, Image, Part, Plan
from gateway.wire.chat import ChatRequest, read
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused

OPENAI = Profile("openai", "max_completion_tokens", stream_options=True)
LOCAL = Profile("llama.cpp", "max_tokens", stream_options=True)
PLAIN = Profile("plain", "max_tokens", stream_options=False)

SMALL: dict[str, Any] = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def plan(model: str = "gpt-5", cap: int = 100) -> Plan:
    return Plan(model, "openai", cap, 10, Amounts(1, 1), ())


def asked(**fields: Any) -> ChatRequest:
    return read(orjson.dumps(SMALL | fields), NO_HEADERS)


def with_content(*parts: Any) -> ChatRequest:
    return asked(messages=[{"role": "user", "content": list(parts)}])


def sent(request: ChatRequest, profile: Profile = OPENAI, model: str = "gpt-5", cap: int = 100) -> dict[str, Any]:
    body = orjson.loads(request.encode(plan(model, cap), profile))
    assert type(body) is dict
    return body


# -- what is forwarded --------------------------------------------------------------------------------------------------------


def test_everything_but_model_cap_and_usage_is_forwarded_as_it_was_sent_in_the_same_order() -> None:
    raw = (
        b'{"temperature":0.1,"model":"gpt-5","stream":true,"x":{"b":[1,2.50,null],"a":18446744073709551615},'
        b'"max_tokens":500,"messages":[{"role":"user","content":"\\u00e9\\n\xf0\x9f\x8c\x8d"}],"stream_options":{"y":1}}'
    )
    body = orjson.loads(read(raw, NO_HEADERS).encode(plan("gpt-5-mini", 64), OPENAI))
    assert list(body) == ["temperature", "model", "stream", "x", "max_tokens", "messages", "stream_options"]
    assert body == orjson.loads(raw) | {
        "model": "gpt-5-mini",
        "max_tokens": 64,
        "stream_options": {"y": 1, "include_usage": True},
    }


def test_the_cap_is_written_into_the_field_the_client_used_else_into_the_providers() -> None:
    assert sent(asked(max_tokens=500)) == SMALL | {"max_tokens": 100}
    assert sent(asked(max_completion_tokens=500), LOCAL) == SMALL | {"max_completion_tokens": 100}
    assert sent(asked()) == SMALL | {"max_completion_tokens": 100}
    assert sent(asked(), LOCAL) == SMALL | {"max_tokens": 100}
    # Many clients send null for what they do not set.
    assert sent(asked(max_tokens=None), LOCAL) == SMALL | {"max_tokens": 100}
    assert sent(asked(max_tokens=None, max_completion_tokens=7), LOCAL) == SMALL | {
        "max_tokens": None,
        "max_completion_tokens": 100,
    }


def test_usage_is_asked_for_in_streams_where_the_provider_takes_that() -> None:
    usage = {"stream_options": {"include_usage": True}}
    cap = {"max_completion_tokens": 100}
    assert sent(asked(stream=True)) == SMALL | {"stream": True} | cap | usage
    assert sent(asked(stream=True, stream_options=None)) == SMALL | {"stream": True} | cap | usage
    assert sent(asked(stream=True, stream_options={"include_usage": False})) == SMALL | {"stream": True} | cap | usage
    assert "stream_options" not in sent(asked(stream=True), PLAIN)
    assert "stream_options" not in sent(asked(stream=False))
    assert sent(asked(stream=None))["stream"] is None


def test_of_duplicate_keys_the_last_counts_and_only_it_is_forwarded() -> None:
    request = read(b'{"model":"a","max_tokens":9,"model":"b","messages":[],"max_tokens":5}', NO_HEADERS)
    assert (request.model, request.client_cap) == ("b", 5)
    assert request.encode(plan("b", 5), OPENAI) == b'{"model":"b","max_tokens":5,"messages":[]}'


def test_one_request_is_encoded_for_several_plans_without_a_trace_of_the_first() -> None:
    request = asked(stream=True, stream_options={"include_usage": False})
    first = request.encode(plan("a", 1), LOCAL)
    assert sent(request, PLAIN, "b", 2) == SMALL | {
        "model": "b",
        "stream": True,
        "max_tokens": 2,
        "stream_options": {"include_usage": False},
    }
    assert request.encode(plan("a", 1), LOCAL) == first


def test_clamped_means_lower_than_the_client_asked_for() -> None:
    assert asked(max_tokens=500).clamped(plan(cap=499))
    assert not asked(max_tokens=500).clamped(plan(cap=500))
    assert not asked().clamped(plan(cap=1))


# -- what is read -------------------------------------------------------------------------------------------------------------


def test_a_request_becomes_a_call() -> None:
    caller, directives = Caller("default", "key_a", "r1", "r1"), Directives(wrap_up=True)
    request = asked(stream=True, n=3, max_tokens=50, temperature=0, seed=None, service_tier="flex", tools=[TOOL], user="u")
    call = request.call(caller, directives)
    assert (call.caller, call.dialect, call.model, call.stream, call.choices) == (caller, "chat", "gpt-5", True, 3)
    assert (call.client_cap, call.service_tier, call.directives) == (50, "flex", directives)
    assert call.needs == {"tools"}
    assert call.parameters == {"temperature", "n", "service_tier", "tools"}
    assert call.unpriced == ()


def test_messages_are_counted_with_all_their_text_and_openais_overhead() -> None:
    request = asked(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi", "name": "ann"},
            {"role": "assistant", "content": None, "refusal": "no"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "x"}}],
            },
        ]
    )
    assert request.parts == (
        Part("system", ("system", "be brief"), 3),
        Part("user", ("user", "hi", "ann"), 4),
        Part("assistant", ("assistant", "no"), 3),
        Part("user", ("user", "a", "b"), 3),
        Part("reply", (), 3),
    )


def test_tool_calls_and_their_results_are_counted() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    odd = {"id": "call_2", "function": {"name": "g"}, "extra": "text"}
    request = asked(
        messages=[
            {"role": "assistant", "content": "", "tool_calls": [call, odd]},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ]
    )
    first, second, _ = request.parts
    assert first == Part("assistant", ("assistant", "", "call_1", "f", '{"a":1}', orjson.dumps(odd).decode()), 3 + 2 * 8)
    assert second.texts == ("tool", "call_1", "42")
    assert request.needs == {"tools"}


def test_fields_of_a_message_that_nobody_knows_are_counted_as_text() -> None:
    request = asked(messages=[{"role": "user", "Content": "shouted", "reasoning_content": "hm", "x": {"y": [1]}}])
    assert request.parts[0].texts == ("user", "shouted", "hm", '{"y":[1]}')


def test_tools_and_a_schema_are_counted_as_their_json() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    request = asked(tools=[TOOL, TOOL], response_format=schema)
    _, tools, wanted, _ = request.parts
    assert tools == Part("tools", (orjson.dumps([TOOL, TOOL]).decode(),), 32 + 16)
    assert wanted == Part("response_format", (orjson.dumps(schema).decode(),), 16)
    assert request.needs == {"tools", "json_schema"}
    assert asked(response_format={"type": "json_object"}).needs == frozenset()
    assert asked(functions=[{"name": "f"}]).parts[1].role == "functions"
    assert asked(tools=[]).needs == frozenset()


def test_images_audio_and_files_are_told_apart() -> None:
    request = with_content(
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": "https://example.org/a.png"},
        {"type": "input_audio", "input_audio": {"data": "A" * 400, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "A" * 401}},
    )
    assert request.parts[0] == Part(
        "user",
        ("user",),
        3,
        (Image("low"), Image("auto"), Image("auto")),
        (Attachment("audio", 300, duration_ms=400), Attachment("file", 301)),
    )
    assert request.needs == {"vision", "audio_input", "files"}
    assert request.unpriced == ()


def test_other_fields_are_counted_if_a_model_could_read_them() -> None:
    request = asked(
        documents=[{"text": "long"}], system="be brief", stop=["x"], metadata={"k": "v"}, reasoning_effort="low", seed=1
    )
    assert request.parts[1] == Part("other", ('[{"text":"long"}]', "be brief"))


def test_a_request_that_is_read_only_in_part_has_other_parts_than_one_that_is_read_whole() -> None:
    whole, cut, shorter = asked().parts, asked(truncate_prompt_tokens=4000).parts, asked(truncate_prompt_tokens=100).parts
    assert len({whole, cut, shorter}) == 3


@pytest.mark.parametrize(
    ("fields", "unpriced"),
    [
        ({"search_parameters": {"mode": "on"}, "enable_search": True}, ("enable_search", "search_parameters")),
        ({"models": ["a", "b"], "route": "fallback"}, ("models", "route")),
        ({"provider": {"order": ["x"]}, "plugins": [], "transforms": []}, ("plugins", "provider", "transforms")),
        ({"n_predict": 100_000}, ("n_predict",)),
        ({"modalities": ["text", "audio"], "audio": {"voice": "x"}}, ()),
        ({"modalities": ["text"]}, ()),
        ({"prediction": {"type": "content", "content": "x"}, "web_search_options": {}}, ()),
        ({"web_search_options": None, "prediction": None, "modalities": None}, ()),
        ({"tools": [{"type": "web_search"}]}, ("tools.type",)),
        ({"tools": [{"google_search": {}}]}, ("tools.type",)),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}, {"function": {"name": "f"}}]}, ()),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, ("messages.audio",)),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, ("messages.content.file",)),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]}, ("messages.content.type",)),
        ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]}, ()),
    ],
)
def test_what_moves_the_price_unseen_is_named(fields: dict[str, Any], unpriced: tuple[str, ...]) -> None:
    assert asked(**fields).unpriced == unpriced


def test_sound_that_is_asked_for_is_a_need() -> None:
    assert asked(modalities=["text", "audio"], audio={"voice": "x"}).needs == {"audio_output"}
    assert asked(messages=[{"role": "assistant", "audio": {"id": "audio_1"}}]).needs == {"audio_input"}


def test_a_search_is_a_piece_by_its_size() -> None:
    assert asked(web_search_options={}).pieces == (("web_searches", 1),)
    assert asked(web_search_options={"search_context_size": "high", "user_location": None}).pieces == (("web_searches/high", 1),)
    assert asked(web_search_options={"search_context_size": "endless"}).pieces == (("web_searches", 1),)
    assert asked().pieces == ()


def test_what_may_not_come_true_of_a_prediction_is_bounded_by_its_bytes() -> None:
    assert asked(prediction={"type": "content", "content": "grün"}).predicted == 5
    parts = [{"type": "text", "text": "a b c"}]
    assert asked(prediction={"type": "content", "content": parts}).predicted == len(orjson.dumps(parts))
    call = asked(prediction={"type": "content", "content": "xyz"}).call(Caller("default", "k", "r", "r"), Directives())
    assert call.predicted == 3


def test_beside_a_prediction_the_cap_goes_where_it_is_taken() -> None:
    prediction = {"type": "content", "content": "x"}
    assert orjson.loads(asked(prediction=prediction).encode(plan(cap=9), OPENAI))["max_tokens"] == 9
    assert (
        orjson.loads(asked(prediction=prediction, max_completion_tokens=20).encode(plan(cap=9), OPENAI))["max_completion_tokens"]
        == 9
    )


def test_a_request_that_turns_reasoning_off_says_so() -> None:
    assert not asked(reasoning_effort="none").reasons
    assert asked(reasoning_effort="minimal").reasons
    assert asked().reasons


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_retention": "24h"},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"messages": [{"role": "user", "content": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
            ]
        },
    ],
)
def test_a_cache_that_lives_longer_is_asked_for(fields: dict[str, Any]) -> None:
    assert asked(**fields).caching is Caching.LONG
    assert asked(prompt_cache_retention="in_memory").caching is Caching.AUTOMATIC


def test_best_of_multiplies_like_n() -> None:
    assert asked(n=2, best_of=5).choices == 5
    assert asked(n=None).choices == 1


def test_a_field_of_the_body_may_say_who_the_caller_is() -> None:
    assert asked(user=" ann ").text_field("user") == "ann"
    assert asked(user="").text_field("user") is None
    assert asked(user=None).text_field("user") is None
    assert asked().text_field("user") is None
    for fields in ({"project": 5}, {"Project": "p"}, {"project": "x" * 513}, {"project": "a\nb"}):
        with pytest.raises(Refused):
            asked(**fields).text_field("project")


# -- what is refused ----------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": 5}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": ["hi"]}, "messages"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.content"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.content.text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]}, "messages.content.image_url"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"detail": 5}}]}]},
        "messages.content.image_url.detail",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}]}, "messages.content.input_audio"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": 5}}]}]}, "messages.content.file_data"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.0}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"best_of": 1000}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10.0}, "max_tokens"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"max_completion_tokens": True}, "max_completion_tokens"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"Include_Usage": True}}, "stream_options.include_usage"),
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools"),
    ({"functions": "f"}, "functions"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": 5}}, "response_format.type"),
    ({"service_tier": 1}, "service_tier"),
    ({"modalities": "audio"}, "modalities"),
    ({"MAX_TOKENS": 5}, "max_tokens"),
    ({"Stream": True}, "stream"),
    ({"\u017ftream": True}, "stream"),  # a long s, which folds to s
    ({"N": 5}, "n"),
    ({"Web_Search_Options": None}, "web_search_options"),
    ({"User": "x"}, "user"),
]


@pytest.mark.parametrize(("fields", "param"), BAD)
def test_a_field_that_costs_money_must_be_what_it_looks_like(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, "ambiguous_request", param)
    assert param.rpartition(".")[2] in problem.detail


@pytest.mark.parametrize("caps", [(5, 6), (5, 5)])
def test_two_output_caps_are_a_conflict(caps: tuple[int, int]) -> None:
    with pytest.raises(Refused) as refused:
        asked(max_tokens=caps[0], max_completion_tokens=caps[1])
    assert refused.value.problem.code == "output_cap_conflict"


@pytest.mark.parametrize("depth", [260, 900, 10_000])
def test_nesting_too_deep_to_be_written_again_is_refused_before_anything_is_held(depth: int) -> None:
    raw = b'{"model":"m","messages":[],"x":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(Refused) as refused:
        read(raw, NO_HEADERS)
    assert refused.value.problem.code == "ambiguous_request"


def test_a_refusal_does_not_repeat_what_could_be_a_prompt() -> None:
    with pytest.raises(Refused) as refused:
        asked(messages=[{"role": "user", "content": [{"type": "text", "text": {"secret": "prompt"}}]}])
    assert b"secret" not in refused.value.problem.body()


# -- and anything else --------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
INNER = "role content name tool_calls function audio type text image_url url detail input_audio data file file_data include_usage"
WORDS = "user text image_url input_audio file function json_schema gpt-5 audio low x"
plausible = st.recursive(
    scalars | st.sampled_from(WORDS.split()) | st.sampled_from([1, 2, True, False]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER.split()), inner, max_size=4),
    max_leaves=12,
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
parts = st.sampled_from(
    [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": "u", "detail": "low"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "new", "x": [1]},
    ]
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": st.none() | st.text(max_size=8) | st.lists(parts, max_size=3),
        "tool_calls": st.lists(st.just(CALL) | plausible, max_size=2),
        "x": anything,
    },
)
wholesome: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.booleans() | st.none(),
    "stream_options": st.none() | st.sampled_from([{}, {"include_usage": True}, {"include_usage": None, "y": 1}]),
    "n": st.none() | st.integers(1, 128),
    "max_tokens": st.none() | st.integers(1, 2**64 - 1),
    "tools": st.none() | st.lists(st.just(TOOL) | st.just({"type": "x"}), max_size=2),
    "response_format": st.none() | st.sampled_from([{"type": "text"}, {"type": "json_schema", "json_schema": {}}]),
    "modalities": st.none() | st.just(["text", "audio"]),
    "temperature": st.floats(allow_nan=False, allow_infinity=False),
    "documents": anything,
}
bodies = st.fixed_dictionaries({"model": st.just("gpt-5"), "messages": st.lists(messages, max_size=3)}, optional=wholesome)
FIELDS = [
    *wholesome,
    "model",
    "messages",
    "max_completion_tokens",
    "functions",
    "service_tier",
    "MAX_TOKENS",
    "Stream",
    "prediction",
]
spoilt = st.tuples(bodies, st.dictionaries(st.sampled_from(FIELDS), plausible, max_size=2)).map(lambda both: both[0] | both[1])


def check_that_nothing_but_three_fields_changes(raw: bytes) -> None:
    try:
        request = read(raw, NO_HEADERS)
    except Refused as refusal:
        said = refusal.problem
    else:
        said = None
    if said is not None:
        assert said.status == 400
        assert orjson.loads(said.body())["error"]["message"]
        return
    received = orjson.loads(raw)
    for profile in (OPENAI, LOCAL, PLAIN):
        forwarded = sent(request, profile, "other", 77)
        cap_field = request.cap_field or ("max_tokens" if request.predicted else profile.output_cap_field)
        assert forwarded.pop("model") == "other"
        assert forwarded.pop(cap_field) == 77
        usage = (forwarded.pop("stream_options", None) or {}).pop("include_usage", None)
        assert usage is True or not (request.stream and profile.stream_options)
        kept = {name: value for name, value in received.items() if name not in ("model", cap_field, "stream_options")}
        assert forwarded == kept
    assert received == orjson.loads(raw)
    caller = Caller("default", "key_a", "r1", "r1")
    call = request.call(caller, Directives())
    assert call.choices >= 1
    for part in call.parts:
        assert all(type(text) is str for text in part.texts)
        assert part.overhead_tokens >= 0
        assert all(attachment.size >= 0 for attachment in part.attachments)


@given(bodies | spoilt | anything)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_refused_in_our_shape_or_forwarded_as_it_is(body: Any) -> None:
    try:
        raw = orjson.dumps(body)
    except TypeError:  # integers beyond 64 bits, lone surrogates: the standard library writes them
        raw = json.dumps(body).encode()
    check_that_nothing_but_three_fields_changes(raw)


REAL = orjson.dumps(
    {
        "model": "gpt-5",
        "stream": True,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [TOOL],
        "stream_options": {"include_usage": True},
    }
)


@given(st.data())
@settings(max_examples=400)
def test_a_real_body_with_bytes_changed_is_refused_in_our_shape_or_forwarded_as_it_is(data: st.DataObject) -> None:
    raw = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(raw) - 1))
        with_what = data.draw(
            st.sampled_from([*(char.encode() for char in string.printable), b"", b"null", b"[[", b"\xff", b'"":'])
        )
        raw[where : where + data.draw(st.integers(0, 3))] = with_what
    check_that_nothing_but_three_fields_changes(bytes(raw))


# -- fingerprints -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"metadata": {"step": "7"}, "user": "u1", "safety_identifier": "u1"},
        {"prompt_cache_key": "session-2", "store": True},
    ],
    ids=",".join,
)
def test_how_an_answer_travels_and_what_is_noted_with_it_make_no_other_request(same: dict[str, Any]) -> None:
    assert asked(**same).fingerprint() == asked().fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt-5-mini"},
        {"messages": [{"role": "user", "content": "hi!"}]},
        {"tools": [TOOL]},
        {"temperature": 0.5},
        {"max_tokens": 5},
        {"stop": None},
    ],
    ids=",".join,
)
def test_what_a_model_is_asked_makes_another_request(other: dict[str, Any]) -> None:
    assert asked(**other).fingerprint() != asked().fingerprint()


def test_the_order_of_fields_makes_no_other_request() -> None:
    turned = read(orjson.dumps(dict(reversed(SMALL.items()))), NO_HEADERS)
    assert turned.fingerprint() == asked().fingerprint()


def test_a_field_is_not_mistaken_for_the_end_of_another() -> None:
    assert asked(a="1", b="2").fingerprint() != asked(a='1"b":"2').fingerprint()
