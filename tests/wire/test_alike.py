"""Events that say the same as the one before but for their text are not read again, and nothing comes out otherwise for that."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway import bundled
from gateway.core.meter import Meter
from gateway.core.tokens import TokenCounter
from gateway.wire import chat, completions, messages, responses
from gateway.wire.alike import Alike, alike
from gateway.wire.problem import problem
from gateway.wire.sse import Event, Events
from gateway.wire.streaming import EventStream

COUNTER = TokenCounter(bundled.load_tokenizer)
TEXTS = [
    "a",
    " river",
    "",
    '"',
    "\\",
    "\n",
    "é",
    "\u2028",
    "\x7f",
    "data: x",
    '","finish_reason":"stop',
    "any other text",
    "c1",
    "\U0001f600",
    "0",
]
Make = Callable[[Meter], Any]


def chunk(text: Any, name: str = "content", **more: Any) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": 0, "delta": {name: text}, "finish_reason": None}], **more}


def block(text: str, name: str = "text", index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": f"{name}_delta", name: text}}


def completion_of(meter: Meter) -> EventStream:
    raw = orjson.dumps({"model": "m", "prompt": "p", "stream": True})
    return completions.CompletionStream(meter, completions.read(raw, CIMultiDict()))


def written(text: str) -> list[dict[str, Any]]:
    """Events of all dialects that hold the text, in all the ways that are nearly alike."""
    return [
        chunk(text),
        chunk(text, "reasoning_content"),
        chunk(text, "function_call"),
        chunk(None, content_filter_results={"text": text}),
        chunk(text, usage={"prompt_tokens": 5, "completion_tokens": 7}),
        chunk(text, service_tier="flex"),
        {"id": text, "choices": [{"index": 0, "delta": {"content": text, "reasoning": text}}]},
        {"choices": [{"index": 1, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {"content": text}}, {"index": 1, "delta": {"content": text}}]},
        {"choices": [{"index": 0, "text": text, "logprobs": None}]},
        {"error": {"message": text}, "choices": [{"delta": {"content": text}}]},
        block(text),
        block(text, index=1),
        block(text, "thinking"),
        {"type": "message_delta", "delta": {"stop_reason": text}, "usage": {"input_tokens": 3, "output_tokens": 9}},
        {"type": "response.output_text.delta", "sequence_number": 3, "output_index": 0, "delta": text},
    ]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Of few kinds of event, so that many stand beside their like."""
    kinds = draw(st.lists(st.integers(0, len(written("")) - 1), min_size=1, max_size=2))
    events = []
    for _ in range(draw(st.integers(1, 12))):
        told = written(draw(st.sampled_from(TEXTS)))[draw(st.sampled_from(kinds))]
        spelled = orjson.dumps(told)
        if draw(st.integers(0, 9)) == 0:
            spelled = draw(
                st.sampled_from([b"[DONE]", b"{", b'{"a":"\xff"}', spelled.replace(b'"a"', b'"\\u0061"'), b" " + spelled])
            )
        events.append(draw(st.sampled_from([b"", b"", b"event: x\n", b": y\n"])) + b"data: " + spelled + b"\n\n")
    return events


def met(make: Make, pieces: list[bytes]) -> tuple[Any, ...]:
    """All that a stream tells of what it was fed."""
    meter = Meter(COUNTER, "o200k_base")
    stream = make(meter)
    relayed = b"".join(stream.feed(piece) for piece in pieces)
    told = (stream.done, stream.finished, stream.error_seen, relayed, stream.finish(), stream.cut)
    counted = (meter.relayed_bytes, meter.usage(11), meter.service_tier, meter.pieces, meter.answer_id, meter.unseen)
    return told, counted, stream.length_ending(problem("run_ceiling_reached", "no more"))


MAKES: list[Make] = [
    lambda meter: chat.ChatStream(meter, hide_usage=True),
    messages.MessagesStream,
    responses.ResponsesStream,
    completion_of,
]


@given(streams(), st.sampled_from(MAKES))
def test_a_stream_tells_the_same_whether_its_events_come_one_by_one_or_all_at_once(stream: list[bytes], make: Make) -> None:
    assert met(make, stream) == met(make, [b"".join(stream)])


PASTED = [
    b'"',
    b"\\",
    b"\\u0061",
    b"\\n",
    b"\x01",
    b"\t",
    b"\r",
    b"\xff",
    b"\xe2\x80\xa8",
    b'","x":"',
    b'"}}],"error":{"a":"b"},"y":[{"z":{"k":"',
    b"\n\n",
    b"",
]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("kind", range(len(written(""))))
def test_whatever_stands_in_the_place_of_the_text_a_stream_tells_what_it_tells_when_every_event_is_read(
    kind: int, make: Make
) -> None:
    first = b"data: " + orjson.dumps(written("first")[kind]) + b"\n\n"
    for pasted in [*PASTED, *(orjson.dumps(text)[1:-1] for text in TEXTS)]:
        stream = [first, first.replace(b"first", pasted), first]
        assert met(make, stream) == met(make, [b"".join(stream)]), pasted


def test_what_is_too_short_to_hold_what_stands_around_a_text_is_not_alike() -> None:
    assert Alike(b'{"a":"', b'","b":""}', 15).text_of(b'{"a":"","b":""}') == ""
    assert Alike(b'{"a":"', b'","b":""}', 15).text_of(b'{"a":","b":""}') is None


def test_a_piece_that_looks_alike_but_ends_another_event_is_read() -> None:
    stream = chat.ChatStream(Meter(COUNTER, "o200k_base"), hide_usage=True)
    event = b"data: " + orjson.dumps(chunk("word")) + b"\n\n"
    stream.feed(event)
    assert stream.feed(event + b": a comment ") == event
    assert stream.feed(event) == b": a comment " + event
    assert stream._meter.relayed_bytes == 8


def test_the_echo_of_a_prompt_is_never_taken_for_output() -> None:
    raw = orjson.dumps({"model": "m", "prompt": "a river", "echo": True, "stream": True})
    meter = Meter(COUNTER, "o200k_base")
    stream = completions.CompletionStream(meter, completions.read(raw, CIMultiDict()))
    for text in ("a", " ri", "ver", " runs"):
        stream.feed(b"data: " + orjson.dumps({"choices": [{"index": 0, "text": text}]}) + b"\n\n")
    assert meter.relayed_bytes == len(" runs")


@pytest.mark.parametrize(
    ("make", "event"),
    [(MAKES[0], chunk), (MAKES[0], lambda text: chunk(text, "reasoning")), (MAKES[1], block)],
    ids=["chat", "reasoning", "messages"],
)
def test_nearly_every_event_is_not_read_as_json(make: Make, event: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(Meter(COUNTER, "o200k_base"))
    stream.feed(b"data: " + orjson.dumps(event("first")) + b"\n\n")
    monkeypatch.setattr(type(stream), "_take_event", lambda *_: pytest.fail("it was read"))
    for text in ("a", "", "déjà vu", "data: x", "any other text"):
        sent = b"data: " + orjson.dumps(event(text)) + b"\n\n"
        assert stream.feed(sent) == sent
    assert stream._meter.relayed_bytes == sum(
        len(text.encode()) for text in ("first", "a", "déjà vu", "data: x", "any other text")
    )


def test_what_follows_the_last_event_is_kept_back_though_it_is_alike() -> None:
    stream = chat.ChatStream(Meter(COUNTER, "o200k_base"), hide_usage=True)
    event = b"data: " + orjson.dumps(chunk("a")) + b"\n\n"
    assert stream.feed(event) == stream.feed(event) == event
    assert stream.feed(b"data: [DONE]\n\n") == stream.feed(event) == b""
    assert stream.finish() == b"data: [DONE]\n\n" + event


@pytest.mark.parametrize(
    "data",
    [
        b'{"delta":{"content": "a"}}',  # spelled otherwise
        b'{"delta":{"content":"\\u0061"}}',
        b'{"id":"a","delta":{"content":"a"}}',  # twice
        b'{"x":{"content":"a"},"delta":{"content":"\\u0061"}}',  # the only such text is another's
        b'{"delta":{"content":"a","content":"a"}}',
    ],
)
def test_the_place_of_a_text_is_proven_or_not_taken(data: bytes) -> None:
    [event] = Events().feed(b"data: " + data + b"\n\n")
    read = orjson.loads(data)
    found = alike(event, read, read["delta"], "content")
    if found is not None:
        other = found.before + b"b" + found.after
        told = orjson.loads(other.removeprefix(b"data: "))
        assert told == {**read, "delta": {"content": "b"}}
    assert (found is None) is (data != b'{"delta":{"content": "a"}}')
    assert read["delta"]["content"] == "a", "what was read is as it was"


def test_data_in_several_lines_has_no_place_for_a_text() -> None:
    read = {"delta": {"content": "a"}}
    event = Event(b'data: {"delta":\ndata: {"content":"a"}}\n\n', b'{"delta":\n{"content":"a"}}')
    assert alike(event, read, read["delta"], "content") is None
