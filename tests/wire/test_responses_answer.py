"""Answers of /v1/responses pass as they came, and are metered on the way; ours end as the API's own do, with words that SDKs raise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.values import Usage
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import problem
from gateway.wire.responses import DIALECT, ResponsesStream, hold_mark, read, read_answer, read_usage, response_of
from tests.support.recorder import Recorder, chunkings, provider

STREAMS = Path(__file__).parent / "streams" / "responses"
NO_PIECES = {"web_searches": 0, "file_searches": 0, "code_sessions": 0}


@dataclass(frozen=True)
class Recorded:
    """What must come of one recorded stream."""

    text: str
    usage: Usage | None = None
    done: bool = True
    error_seen: bool = False
    unfinished: bool = False  # it ends inside an event, which is not relayed
    service_tier: str | None = "default"
    answer_id: str | None = "resp_A1"
    conversation_id: str | None = None
    pieces: tuple[tuple[str, int], ...] | None = None  # None: those of an answer without hosted tools, once it is whole
    last: bytes = b"event: response.completed"  # how what is kept back begins


OPENAI = Recorded("Hello wörld 🌍", provider(176, 7, cached=1024))

CORPUS = {
    "openai": OPENAI,
    "crlf": OPENAI,
    "cr": OPENAI,
    "bom": OPENAI,
    "multi_line": OPENAI,
    "comments": OPENAI,
    "no_blank_end": OPENAI,
    "done_after": OPENAI,
    "truncated": Recorded("Hello", done=False, unfinished=True, service_tier="auto"),
    "truncated_between_events": Recorded("Hello wörld 🌍", done=False, service_tier="auto"),
    "usage_less": Recorded("Hello wörld 🌍"),
    "usage_zero": Recorded("Hello wörld 🌍"),
    "no_deltas": Recorded("Hello wörld 🌍"),
    "only_the_end": Recorded("Hello wörld 🌍"),
    "tools": Recorded('get_weather{"city":"Berlin"}patch*** Begin', provider(70, 31, written=20)),
    "reasoning": Recorded("Think42", provider(20, 103, cached=6)),
    "incomplete": Recorded("Hello", provider(9, 16), last=b"event: response.incomplete"),
    "failed": Recorded("Hello", error_seen=True, last=b"event: response.failed"),
    "error": Recorded("Hello", done=False, error_seen=True, service_tier="auto"),
    "error_object": Recorded("", done=False, error_seen=True, service_tier="auto"),
    "malformed": Recorded('Hello{"type":"response.output_text.delta","del[1] wörld 🌍', provider(176, 7, cached=1024)),
    "hosted_tools": Recorded(
        '{"type":"search","query":"rivers"}{"type":"open_page","url":"https://x"}1+11+1["mills"]It turns.',
        provider(20_180, 310, written=200, others=(("cache_write_long", 100),)),
        pieces=(("code_sessions/4g", 1), ("file_searches", 1), ("web_searches", 1)),
    ),
    "flex": Recorded("Hi", provider(10, 2), service_tier="flex", conversation_id="conv_1"),
}


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_passes_as_it_came_and_is_metered_alike_wherever_it_is_cut(name: str) -> None:
    stream, expected = (STREAMS / f"{name}.sse").read_bytes(), CORPUS[name]
    wanted, text = stream, expected.text
    if expected.unfinished:
        wanted, rest = stream[: stream.rindex(b"\n\n") + 2], stream[stream.rindex(b"\n\n") + 2 :]
        text += rest.partition(b"data: ")[2].decode()  # what is left of the broken event was paid for too: all of it counts
    pieces = {} if not expected.done else NO_PIECES if expected.pieces is None else dict(expected.pieces)
    for chunks in chunkings(stream):
        meter = Recorder()
        answer = ResponsesStream(meter)
        before_the_end = b"".join(answer.feed(chunk) for chunk in chunks)
        kept_back = answer.finish()
        assert before_the_end + kept_back == wanted
        assert (meter.written, meter.last) == (text, expected.usage)
        assert (answer.done, answer.finished, answer.cut) == (expected.done, expected.done, not expected.done)
        assert answer.error_seen == expected.error_seen
        assert (meter.service_tier, meter.answer_id) == (expected.service_tier, expected.answer_id)
        assert meter.conversation_id == expected.conversation_id
        assert meter.pieces == pieces
        assert not expected.done or kept_back.startswith(expected.last)


def test_an_event_is_relayed_as_soon_as_it_is_whole_but_the_last_waits_for_the_finish() -> None:
    answer = ResponsesStream(Recorder())
    *events, last = [event + b"\n\n" for event in (STREAMS / "openai.sse").read_bytes().split(b"\n\n")[:-1]]
    for event in events:
        assert answer.feed(event) == event
    assert not answer.done
    assert answer.feed(last) == b""
    assert answer.done
    assert answer.finish() == last
    assert answer.finish() == b""


def test_an_event_of_many_megabytes_passes_and_its_text_counts() -> None:
    meter = Recorder()
    answer = ResponsesStream(meter)
    event = b'data: {"type":"response.output_text.delta","delta":"' + b"x" * 9_000_000 + b'"}\n\n'
    chunks = [event[start : start + 1_000_000] for start in range(0, len(event), 1_000_000)]
    assert b"".join(answer.feed(chunk) for chunk in chunks) + answer.finish() == event
    assert len(meter.written) >= 9_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"type":5,"error":0}',
        b'{"type":"response.created","response":null}',
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":{"output":{},"usage":[],"metadata":5,"tools":[{"type":5}],"status":"completed"}}',
        b'{"type":"response.completed","response":{"output":[null,{"type":5},{"type":"message","content":5}],"status":"completed"}}',
        b'{"type":"response.output_text.delta","delta":{"a":1},"output_index":"0"}',
        b'{"type":"response.output_item.done","item":[],"output_index":null}',
        b'{"type":"response.output_item.added","item":{"type":"function_call","name":{"a":1}}}',
        b'{"type":"response.completed","response":{"status":"completed","tool_usage":{"web_search":5},"tools":[{"type":[]}]}}',
        b'{"type":"response.completed","response":{"status":[],"output":[{"type":[]}]}}',
        b'{"type":"response.completed","response":{"status":"failed","tools":[{"type":"code_interpreter","container":{"memory_limit":4}}]}}',
        b'{"type":"response.output_item.added","item":{"type":[]}}',
        b'{"type":"response.output_item.done","item":{"type":[],"content":5}}',
        b'{"type":"response.output_text.delta","sequence_number":"5"}',
        b"\xff\xfe",
        b"[DONE",
    ],
)
def test_whatever_a_provider_sends_passes_and_breaks_nothing(data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    answer = ResponsesStream(Recorder())
    assert answer.feed(event) + answer.finish() == event


def test_sound_and_what_a_tool_said_is_not_the_models_text() -> None:
    meter = Recorder()
    answer = ResponsesStream(meter)
    for kind in ("response.audio.delta", "response.shell_call_output_content.delta", "response.audio.transcript.delta"):
        answer.feed(b"data: " + orjson.dumps({"type": kind, "delta": kind}) + b"\n\n")
    assert meter.texts == ["response.audio.transcript.delta"]


# -- our own endings ----------------------------------------------------------------------------------------------------------


def events_of(stream: bytes) -> list[tuple[str, Any]]:
    pairs = [event.split(b"\n") for event in stream.split(b"\n\n")[:-1]]
    return [(name.removeprefix(b"event: ").decode(), orjson.loads(data.removeprefix(b"data: "))) for name, data in pairs]


def begun() -> ResponsesStream:
    answer = ResponsesStream(Recorder())
    answer.feed((STREAMS / "truncated_between_events.sse").read_bytes())
    return answer


def test_an_answer_that_is_ended_for_its_length_is_incomplete_as_the_api_says_it_and_then_raises() -> None:
    (first, incomplete), (second, error) = events_of(begun().length_ending(problem("run_ceiling_reached", "too long")))
    assert (first, second) == ("response.incomplete", "error")
    assert (incomplete["type"], error["type"]) == ("response.incomplete", "error")
    assert (incomplete["sequence_number"], error["sequence_number"]) == (7, 8)
    response = incomplete["response"]
    assert (response["id"], response["status"], response["incomplete_details"]) == (
        "resp_A1",
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert (error["code"], error["message"], error["param"]) == ("budget_exceeded", "too long", None)
    assert error["error"] == {"message": "too long", "type": "insufficient_quota", "code": "budget_exceeded", "param": None}


@pytest.mark.parametrize(("code", "shown"), [("run_stopped", "invalid_prompt"), ("provider_cut", "server_error")])
def test_an_answer_that_failed_says_so_to_codex_and_to_the_sdks(code: str, shown: str) -> None:
    (first, failed), (second, error) = events_of(begun().error_ending(problem(code, "what happened")))
    assert (first, second) == ("response.failed", "error")
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": shown, "message": "what happened"}
    assert error["error"]["message"] == "what happened"


def test_an_answer_that_had_not_begun_is_ended_from_its_first_number() -> None:
    (_, failed), _ = events_of(ResponsesStream(Recorder()).error_ending(problem("run_stopped", "stopped")))
    assert (failed["sequence_number"], failed["response"]["object"]) == (0, "response")


def test_no_error_follows_the_providers_own() -> None:
    answer = ResponsesStream(Recorder())
    answer.feed((STREAMS / "error.sse").read_bytes())
    assert answer.error_ending(problem("provider_cut", "cut")) == b""


def test_an_ending_is_not_read_as_the_rest_of_an_event_that_was_too_large_to_keep() -> None:
    answer = ResponsesStream(Recorder())
    answer.feed(b'data: {"type":"x","y":"' + b"x" * 9_000_000)
    assert answer.error_ending(problem("provider_cut", "cut")).startswith(b"\n\nevent: ")
    assert answer.length_ending(problem("provider_cut", "cut")).startswith(b"\n\nevent: ")


# -- usage --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}, provider(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5}, provider(10, 5)),
        ({"input_tokens": 10, "output_tokens": 0}, provider(10, 0)),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}, provider(6, 5, cached=4)),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 99}}, provider(0, 5, cached=10)),
        (
            {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 5}},
            provider(0, 5, cached=8, written=2),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "input_tokens_details": {"cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_12h_tokens": 9}},
            },
            provider(5, 5, others=(("cache_write_long", 5),)),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": None}, provider(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 4}}, provider(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "total_tokens": 115}, provider(10, 105)),
        ({"input_tokens": 10, "output_tokens": 5, "total_tokens": 3}, provider(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "cost": 99.0}, provider(10, 5)),
        (None, None),
        ({}, None),
        ("x", None),
        ({"input_tokens": 0, "output_tokens": 0}, None),
        ({"input_tokens": 10}, None),
        ({"output_tokens": 5}, None),
        ({"input_tokens": -1, "output_tokens": 5}, None),
        ({"input_tokens": 10, "output_tokens": -5}, None),
        ({"input_tokens": 10.0, "output_tokens": 5}, None),
        ({"input_tokens": True, "output_tokens": 5}, None),
        ({"input_tokens": 10, "output_tokens": 10**15}, None),
        ({"prompt_tokens": 10, "completion_tokens": 5}, None),
    ],
)
def test_usage_is_read_into_disjoint_classes_or_not_at_all(usage: object, expected: Usage | None) -> None:
    assert read_usage(usage) == expected


def answered(**fields: Any) -> Recorder:
    meter = Recorder()
    read_answer(orjson.dumps({"id": "resp_1", "object": "response", "status": "completed", **fields}), meter)
    return meter


def test_a_whole_answer_is_metered() -> None:
    meter = answered(
        service_tier="priority",
        usage={"input_tokens": 10, "output_tokens": 5},
        output=[
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "gAAAA"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "No"}],
            },
            {"type": "function_call", "name": "f", "arguments": "{}"},
            {"type": "image_generation_call", "result": "AAAA", "revised_prompt": "a mill"},
            {"type": "mcp_call", "name": "g", "arguments": "{}", "output": "what the tool said"},
            {"type": "something_new", "x": 1},
        ],
    )
    assert (meter.service_tier, meter.answer_id, meter.last) == ("priority", "resp_1", provider(10, 5))
    assert meter.written == 'HmHiNof{}a millg{}{"type":"something_new","x":1}'
    assert meter.pieces == NO_PIECES


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_answer_that_is_not_final_says_nothing_of_what_it_used(status: str) -> None:
    meter = answered(status=status, usage=None, output=[])
    assert (meter.last, meter.written, meter.pieces) == (None, "", {})


def test_searches_are_counted_as_the_provider_counts_them_where_it_does() -> None:
    searches = [{"type": "web_search_call", "action": {"type": "search"}}] * 3
    assert answered(output=searches).pieces["web_searches"] == 3
    assert answered(output=searches, tool_usage={"web_search": {"num_requests": 2}}).pieces["web_searches"] == 2
    assert answered(output=[{"type": "web_search_call"}]).pieces["web_searches"] == 1


def test_what_images_cost_is_not_known_here_and_does_not_pass_silently() -> None:
    assert answered(tool_usage={"image_gen": {"total_tokens": 0}}).unknown == set()
    assert answered(tool_usage={"image_gen": {"total_tokens": 272}}).unknown == {"tool_usage.image_gen"}


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1,2]", b'{"output":[{"mess', b"\xff"])
def test_an_answer_that_cannot_be_read_counts_as_text(body: bytes) -> None:
    meter = Recorder()
    read_answer(body, meter)
    assert (meter.reports, meter.written) == ([], body.decode(errors="replace"))
    assert response_of(body) is None


def test_the_mark_of_a_hold_is_found_where_it_was_left() -> None:
    assert hold_mark({"metadata": {"penstock_hold": "rsv_1.abc"}}) == "rsv_1.abc"
    assert [hold_mark(answer) for answer in ({}, {"metadata": None}, {"metadata": {"penstock_hold": 5}})] == [None] * 3


def test_the_dialect_makes_streams_of_its_own() -> None:
    request = read(b'{"model":"gpt-5","input":"hi"}', NO_HEADERS)
    assert isinstance(DIALECT.stream(Recorder(), request), ResponsesStream)
