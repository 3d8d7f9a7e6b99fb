"""Answers pass as they came, whatever the provider's habits, and are metered on the way."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.values import Usage
from gateway.wire.chat import ChatStream, error_event, read_answer, read_usage
from gateway.wire.problem import problem
from tests.support.recorder import Recorder, chunkings, provider

STREAMS = Path(__file__).parent / "streams"


@dataclass(frozen=True)
class Recorded:
    """What must come of one recorded stream."""

    text: str
    usage: Usage | None = None
    hidden: bool = False  # it has a usage-only chunk
    done: bool = True
    cut: bool = False
    error_seen: bool = False
    unfinished: bool = False  # it ends inside an event, which is not relayed
    service_tier: str | None = "default"
    reports: int | None = None


OPENAI = Recorded("Hello wörld 🌍", provider(176, 7, cached=1024), hidden=True)

CORPUS = {
    "openai": OPENAI,
    "crlf": OPENAI,
    "cr": OPENAI,
    "bom": OPENAI,
    "no_blank_end": OPENAI,
    "no_done": Recorded("Hello wörld 🌍", done=False),
    "no_done_with_usage": Recorded("Hello wörld 🌍", provider(176, 7, cached=1024), hidden=True, done=False),
    "truncated": Recorded("Hello", done=False, cut=True, unfinished=True),
    "truncated_between_events": Recorded("Hello wörld 🌍", done=False, cut=True),
    "malformed": Recorded('Hello{"id":"chatcmpl-A1","choices":[{"index":0,"delta":{"content":" br[1]'),
    "azure": Recorded("Hello", provider(176, 7, cached=1024), hidden=True),
    "llama_cpp": Recorded("Hi", provider(12, 2), hidden=True, service_tier=None),
    "usage_on_finish": Recorded("Hi", provider(9, 2), service_tier=None),
    "usage_zero": Recorded("Hi", hidden=True),
    "running_usage": Recorded("a b c", provider(9, 4), hidden=True, reports=5),
    "comments": Recorded("HmYes", provider(9, 3, cached=5, written=6)),
    "multi_line": Recorded("Hello", provider(176, 7, cached=1024), hidden=True),
    "tools": Recorded('get_weather{"city":"Berlin"}get_time{}'),
    "two_choices": Recorded("ABB2", provider(10, 3), hidden=True),
    "two_choices_cut": Recorded("AB", done=False, cut=True),
    "error": Recorded("Hello", done=False, cut=True, error_seen=True),
    "reasoning_beside": Recorded("Think42", provider(26, 103, cached=6)),
    "groq": Recorded("Hi", provider(14, 2)),
    "refusal_and_audio": Recorded("No.Hi theref{}"),
    "after_done": Recorded("Hello wörld 🌍"),
}


def recorded(name: str) -> tuple[bytes, Recorded]:
    stream, expected = (STREAMS / f"{name}.sse").read_bytes(), CORPUS[name]
    if expected.unfinished:
        # What is left of the broken event was paid for too: all of it counts as text.
        rest = stream[stream.rindex(b"\n\n") + 2 :].removeprefix(b"data: ").decode()
        expected = replace(expected, text=expected.text + rest)
    return stream, expected


def relayed_of(stream: bytes, expected: Recorded, hide_usage: bool) -> bytes:
    """The stream without what the gateway must take out, found by the plainest means: its separators."""
    if expected.unfinished:
        return stream[: stream.rindex(b"\n\n") + 2]
    if not (expected.hidden and hide_usage):
        return stream
    end = next(end for end in (b"\r\n\r\n", b"\n\n", b"\r\r") if end in stream)
    events = stream.split(end)
    kept = [event for event in events if not (b'"choices":[]' in event and b'"usage":{' in event)]
    assert len(kept) == len(events) - 1
    return end.join(kept)


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("hide_usage", [True, False], ids=["hidden", "wanted"])
def test_a_stream_passes_as_it_came_and_is_metered_alike_wherever_it_is_cut(name: str, hide_usage: bool) -> None:
    stream, expected = recorded(name)
    wanted = relayed_of(stream, expected, hide_usage)
    for chunks in chunkings(stream):
        meter = Recorder()
        chat = ChatStream(meter, hide_usage)
        before_the_end = b"".join(chat.feed(chunk) for chunk in chunks)
        assert before_the_end + chat.finish() == wanted
        assert "".join(meter.texts) == expected.text
        assert (meter.reports[-1] if meter.reports else None) == expected.usage
        assert (chat.done, chat.cut, chat.error_seen) == (expected.done, expected.cut, expected.error_seen)
        assert meter.service_tier == expected.service_tier
        assert b"[DONE]" not in before_the_end
        if expected.reports is not None:
            assert len(meter.reports) == expected.reports


def test_done_and_what_follows_it_wait_for_the_finish() -> None:
    chat = ChatStream(Recorder(), hide_usage=True)
    stream = (STREAMS / "after_done.sse").read_bytes()
    assert chat.feed(stream) == stream[: stream.index(b"data: [DONE]")]
    assert chat.done
    assert chat.finish() == b"data: [DONE]\n\n: bye\n\n"
    assert chat.finish() == b""


def test_a_chunk_is_relayed_as_soon_as_it_is_whole() -> None:
    chat = ChatStream(Recorder(), hide_usage=True)
    for event in (STREAMS / "openai.sse").read_bytes().split(b"\n\n")[:4]:
        assert chat.feed(event + b"\n\n") == event + b"\n\n"


def test_azures_first_chunk_has_no_choices_but_it_is_not_usage() -> None:
    first = (STREAMS / "azure.sse").read_bytes().split(b"\n\n")[0] + b"\n\n"
    assert b'"choices":[]' in first
    assert ChatStream(Recorder(), hide_usage=True).feed(first) == first


def test_an_event_of_many_megabytes_passes_and_its_text_counts() -> None:
    meter = Recorder()
    chat = ChatStream(meter, hide_usage=True)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 9_000_000 + b'"}}]}\n\n'
    chunks = [event[start : start + 1_000_000] for start in range(0, len(event), 1_000_000)]
    assert b"".join(chat.feed(chunk) for chunk in chunks) + chat.finish() == event
    assert sum(map(len, meter.texts)) >= 9_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"choices":null}',
        b'{"choices":{}}',
        b'{"choices":[null,1,"x"]}',
        b'{"choices":[{"index":"0","delta":null}]}',
        b'{"choices":[{"delta":{"content":{"a":1},"tool_calls":[null,{"function":null},{"function":{"arguments":5}}]}}]}',
        b'{"choices":[{"delta":{"content":[{"type":"text","text":"x"}],"audio":1,"refusal":false}}]}',
        b'{"choices":[],"usage":5,"x_groq":[]}',
        b'{"error":"text","choices":[],"usage":{}}',
        b"\xff\xfe",
        b"[DONE",
    ],
)
def test_whatever_a_provider_sends_passes_and_breaks_nothing(data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    chat = ChatStream(Recorder(), hide_usage=True)
    assert chat.feed(event) + chat.finish() == event


# -- our own endings ----------------------------------------------------------------------------------------------------------


def events_of(stream: bytes) -> list[Any]:
    return [orjson.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n")[:-1]]


def test_an_answer_that_is_ended_from_our_side_closes_each_open_choice_and_then_raises() -> None:
    chat = ChatStream(Recorder(), hide_usage=True)
    chat.feed((STREAMS / "two_choices_cut.sse").read_bytes())
    ending = chat.length_ending(problem("run_ceiling_reached", "too long"))
    length, error = events_of(ending)
    assert length == {
        "id": "chatcmpl-A1",
        "created": 1767225600,
        "model": "gpt-4o-mini-2024-07-18",
        "object": "chat.completion.chunk",
        "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}],
    }
    assert error == {"error": {"message": "too long", "type": "insufficient_quota", "code": "budget_exceeded", "param": None}}
    assert b"[DONE]" not in ending


def test_an_answer_that_had_not_begun_is_ended_as_its_first_choice() -> None:
    chat = ChatStream(Recorder(), hide_usage=True)
    length, _ = events_of(chat.length_ending(problem("run_stopped", "stopped")))
    assert length["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]


def test_an_error_event_has_no_event_name_that_would_hide_it_from_the_sdks() -> None:
    event = error_event(problem("provider_cut", "line\nbreak"))
    assert event.startswith(b'data: {"error":{"message":"line\\nbreak"')
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


# -- usage --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, provider(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5}, provider(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}, provider(10, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}, provider(6, 5, cached=4)),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}},
            provider(0, 5, cached=10),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 5}},
            provider(0, 5, cached=8, written=2),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}, provider(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -4}}, provider(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": True}}, provider(10, 5)),
        # DeepSeek's names, LiteLLM's, and the two who keep reasoning out of completion_tokens.
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 7}, provider(3, 5, cached=7)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cache_creation_input_tokens": 7}, provider(3, 5, written=7)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, provider(10, 105)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 3}, provider(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cost": 99.0}, provider(10, 5)),
        (None, None),
        ({}, None),
        ([], None),
        ("x", None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": 10}, None),
        ({"completion_tokens": 5}, None),
        ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({"prompt_tokens": -1, "completion_tokens": 5}, None),
        ({"prompt_tokens": 10, "completion_tokens": -5}, None),
        ({"prompt_tokens": 10.0, "completion_tokens": 5}, None),
        ({"prompt_tokens": "10", "completion_tokens": 5}, None),
        ({"prompt_tokens": True, "completion_tokens": 5}, None),
        ({"prompt_tokens": 10, "completion_tokens": 10**15}, None),
    ],
)
def test_usage_is_read_into_disjoint_classes_or_not_at_all(usage: object, expected: Usage | None) -> None:
    assert read_usage(usage) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "details", "told", "expected"),
    [
        (10, 5, {"audio_tokens": 4}, {"audio_tokens": 2}, provider(6, 3, others=(("audio_input", 4), ("audio_output", 2)))),
        (10, 5, {"image_tokens": 4}, {"image_tokens": 2}, provider(6, 3, others=(("image_input", 4), ("image_output", 2)))),
        # What of the sound was cached: as told, else as little as can be.
        (10, 5, {"cached_tokens": 5, "audio_tokens": 4}, {}, provider(1, 5, cached=5, others=(("audio_input", 4),))),
        (
            10,
            5,
            {"cached_tokens": 8, "audio_tokens": 4},
            {},
            provider(0, 5, cached=6, others=(("audio_input", 2), ("cached_audio", 2))),
        ),
        (
            10,
            5,
            {"cached_tokens": 8, "audio_tokens": 4, "cached_tokens_details": {"audio_tokens": 3, "text_tokens": 5}},
            {},
            provider(1, 5, cached=5, others=(("audio_input", 1), ("cached_audio", 3))),
        ),
        (10, 5, {"audio_tokens": 99}, {"audio_tokens": 99}, provider(0, 0, others=(("audio_input", 10), ("audio_output", 5)))),
        (10, 5, {"audio_tokens": 0, "image_tokens": None}, {"audio_tokens": -1}, provider(10, 5)),
    ],
)
def test_sound_and_images_are_parts_of_both_sides(
    prompt: int, completion: int, details: dict[str, Any], told: dict[str, Any], expected: Usage
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    read = read_usage({**usage, "completion_tokens_details": told})
    assert read == expected
    assert read.total_tokens == prompt + completion


@pytest.mark.parametrize(
    ("beside", "pieces", "unknown"),
    [
        ({"total_tokens": 15}, {}, set()),
        ({"num_sources_used": 0}, {"web_searches": 0}, set()),
        ({"num_sources_used": 7}, {"web_searches": 7}, set()),
        ({"server_tool_use": {"web_search_requests": 2}}, {"web_searches": 2}, set()),
        ({"search_context_size": "low"}, {"web_searches/low": 1}, set()),
        ({"search_context_size": "huge"}, {"web_searches": 1}, set()),
        ({"prompt_audio_seconds": 12}, {"audio_seconds": 12}, set()),
        ({"queue_time": 0.5, "is_byok": False, "note": "x", "later_tokens": 0, "extra": None}, {}, set()),
        ({"later_tokens": 3, "sub": {"a": 1, "b": 0.1}, "none": {"a": 0}}, {}, {"usage.later_tokens", "usage.sub"}),
        ({"completion_tokens_details": {"scent_tokens": 1}}, {}, {"usage.completion_tokens_details.scent_tokens"}),
    ],
)
def test_a_report_tells_of_pieces_and_of_counts_that_nobody_knows(
    beside: dict[str, Any], pieces: dict[str, int], unknown: set[str]
) -> None:
    meter = Recorder()
    read_answer(orjson.dumps({"usage": {"prompt_tokens": 10, "completion_tokens": 5, **beside}}), meter)
    assert meter.last == provider(10, 5)
    assert (meter.pieces, meter.unknown) == (pieces, unknown)
    in_a_stream = Recorder()
    chunk = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, **beside}}
    ChatStream(in_a_stream, hide_usage=False).feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    assert (in_a_stream.pieces, in_a_stream.unknown) == (pieces, unknown)


def test_a_whole_answer_is_metered_and_says_its_service_tier() -> None:
    meter = Recorder()
    message = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "reasoning": "Hm",
        "reasoning_content": "Hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "call_2", "type": "custom", "custom": {"name": "g", "input": "xyz"}},
        ],
    }
    answer = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}, {"index": 1, "message": {"content": "Ho"}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        "service_tier": "priority",
    }
    read_answer(orjson.dumps(answer), meter)
    assert meter.service_tier == "priority"
    assert meter.reports == [provider(10, 5)]
    assert meter.texts == ["Hi", "Hm", "f", "{}", "g", "xyz", "Ho"]


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1,2]", b'{"choices":[{"mess', b"\xff"])
def test_an_answer_that_cannot_be_read_counts_as_text(body: bytes) -> None:
    meter = Recorder()
    read_answer(body, meter)
    assert meter.service_tier is None
    assert meter.reports == []
    assert "".join(meter.texts) == body.decode(errors="replace")
