"""Anthropic's answers pass as they came and are metered on the way: what was told at the start is kept, wherever the stream breaks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import bundled
from gateway.core.estimate import cost_of
from gateway.core.meter import Meter
from gateway.core.tokens import TokenCounter
from gateway.core.values import Usage, UsageSource
from gateway.wire.messages import DIALECT, MessagesStream, error_event, read_answer, read_usage
from gateway.wire.problem import Shape, problem

STREAMS = Path(__file__).parent / "streams" / "messages"
EVERY_BYTE_UP_TO = 4096


class Recorder(Meter):
    """Keeps what it is told."""

    needs_text = True

    def __init__(self) -> None:
        super().__init__(TokenCounter(lambda _: pytest.fail("nothing is counted here")), None)
        self.reports: list[Usage] = []
        self.texts: list[str] = []

    def report(self, usage: Usage) -> None:
        self.reports.append(usage)

    def text(self, piece: str) -> None:
        self.texts.append(piece)


def told(fresh: int, output: int, cached: int = 0, written: int = 0, long: int = 0) -> Usage:
    return Usage(UsageSource.PROVIDER, fresh, cached, written, output, (("cache_write_long", long),) if long else ())


@dataclass(frozen=True)
class Recorded:
    """What must come of one recorded stream."""

    text: str
    usage: Usage | None
    done: bool = True
    cut: bool = False
    error_seen: bool = False
    unfinished: bool = False  # it ends inside an event, which is not relayed
    unseen: bool = False
    searches: int | None = 0  # None: nothing was told


AT_THE_START = told(25, 0, 900, 100)
GOOD = Recorded("Hello wörld 🌍", told(25, 15, 900, 100))
CUT = {"done": False, "cut": True, "searches": None}

CORPUS = {
    "good": GOOD,
    "crlf": GOOD,
    "cr": GOOD,
    "bom": GOOD,
    "no_blank_end": GOOD,
    "after_stop": GOOD,
    "comments": GOOD,
    "data_only": GOOD,
    "multi_line": Recorded("Hello", told(25, 15, 900, 100)),
    "thinking": Recorded("Let me see. 42", told(25, 250, 900, 100), unseen=True),
    "tools": Recorded('get_weather{"city": "Berlin"}get_time{}', told(25, 60, 900, 100)),
    "web_search": Recorded('I look.web_search{"query": "rivers"}A river.', told(10682, 510), unseen=True, searches=1),
    "hour_cache": Recorded("Hi", told(25, 2, 900, 456, 100)),
    "input_at_end": Recorded("Hi", told(12, 2)),
    "no_usage": Recorded("Hi", None),
    "usage_zero": Recorded("Hi", None),
    "compaction": Recorded("We spoke of rivers.", told(180_025, 3_515, 900, 100), unseen=True),
    "error": Recorded("Hello", AT_THE_START, **CUT, error_seen=True),
    "error_first": Recorded("", None, **CUT, error_seen=True),
    "cut_after_start": Recorded("", AT_THE_START, **CUT),
    "cut_in_start": Recorded("", None, **CUT, unfinished=True),
    "cut_in_block": Recorded("Hello", AT_THE_START, **CUT),
    "cut_in_event": Recorded("Hello", AT_THE_START, **CUT, unfinished=True),
    "cut_after_block": Recorded("Hello wörld 🌍", AT_THE_START, **CUT),
    "cut_before_stop": Recorded("Hello wörld 🌍", told(25, 15, 900, 100), done=False),
    "cut_in_thinking": Recorded("Let me see. ", AT_THE_START, **CUT, unseen=True),
    "malformed": Recorded(
        '{"type":"content_block_delta","index":0,"delta":{"text":" br[1]Hello wörld 🌍', told(25, 15, 900, 100)
    ),
    "huge": Recorded("river " * 20_000 + "".join(f"r{n} " for n in range(300)), told(25, 21_000, 900, 100)),
}


def recorded(name: str) -> tuple[bytes, Recorded]:
    stream, expected = (STREAMS / f"{name}.sse").read_bytes(), CORPUS[name]
    if expected.unfinished:
        # What is left of the broken event was paid for too: all of it counts as text.
        rest = stream[stream.rindex(b"data: ") + len(b"data: ") :].decode()
        expected = replace(expected, text=expected.text + rest)
    return stream, expected


def chunkings(stream: bytes) -> Iterator[list[bytes]]:
    """Cut in two at every byte (at 200 random ones of a long stream), and in pieces of some odd sizes."""
    cuts: Any = range(len(stream) + 1)
    if len(stream) > EVERY_BYTE_UP_TO:
        cuts = random.Random(len(stream)).sample(cuts, 200)
    for cut in cuts:
        yield [stream[:cut], stream[cut:]]
    for size in (1, 2, 3, 7, 64, 500) if len(stream) <= EVERY_BYTE_UP_TO else (997, 4096):
        yield [stream[start : start + size] for start in range(0, len(stream), size)]


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_passes_as_it_came_and_is_metered_alike_wherever_it_is_cut(name: str) -> None:
    stream, expected = recorded(name)
    wanted = stream[: stream.rindex(b"\n\n") + 2 if b"\n\n" in stream else 0] if expected.unfinished else stream
    for chunks in chunkings(stream):
        meter = Recorder()
        messages = MessagesStream(meter)
        before_the_end = b"".join(messages.feed(chunk) for chunk in chunks)
        assert before_the_end + messages.finish() == wanted
        assert "".join(meter.texts) == expected.text
        assert (meter.reports[-1] if meter.reports else None) == expected.usage
        assert (messages.done, messages.cut, messages.error_seen) == (expected.done, expected.cut, expected.error_seen)
        assert (meter.unseen, meter.pieces.get("web_searches")) == (expected.unseen, expected.searches)
        assert b'"message_stop"' not in before_the_end
        assert meter.unknown == set()


def test_the_last_event_and_what_follows_it_wait_for_the_finish() -> None:
    messages = MessagesStream(Recorder())
    stream = (STREAMS / "after_stop.sse").read_bytes()
    assert messages.feed(stream) == stream[: stream.index(b"event: message_stop")]
    assert messages.done
    assert messages.finish() == b'event: message_stop\ndata: {"type":"message_stop"}\n\n: bye\n\n'
    assert messages.finish() == b""


def test_an_event_is_relayed_as_soon_as_it_is_whole() -> None:
    messages = MessagesStream(Recorder())
    for event in (STREAMS / "good.sse").read_bytes().split(b"\n\n")[:7]:
        assert messages.feed(event + b"\n") == b""
        assert messages.feed(b"\n") == event + b"\n\n"


def test_all_output_was_seen_once_the_reason_to_stop_has_come() -> None:
    messages = MessagesStream(Recorder())
    for event in (STREAMS / "good.sse").read_bytes().split(b"\n\n")[:-1]:
        assert messages.finished == (b"message_stop" in event)
        messages.feed(event + b"\n\n")


def test_what_was_told_at_the_start_counts_for_the_input_alone() -> None:
    """`output_tokens` of message_start is that of the first piece: no report of what follows."""
    meter = Meter(TokenCounter(bundled.load_tokenizer), None)
    messages = MessagesStream(meter)
    messages.feed((STREAMS / "cut_after_block.sse").read_bytes())
    usage = meter.usage(9999)
    assert (usage.source, usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens) == (
        UsageSource.COUNTED,
        25,
        900,
        100,
    )
    assert usage.output_tokens > 1


def test_searches_that_were_allowed_and_did_not_happen_are_told_of() -> None:
    meter = Recorder()
    messages = MessagesStream(meter, (("web_searches", 5),))
    messages.feed((STREAMS / "cut_in_block.sse").read_bytes())
    assert meter.pieces == {"web_searches": 0}


# -- endings of ours ------------------------------------------------------------------------------------------------------------


def events_of(data: bytes) -> list[tuple[str, Any]]:
    events = []
    for event in data.split(b"\n\n")[:-1]:
        name, body = event.split(b"\ndata: ")
        events.append((name.removeprefix(b"event: ").decode(), orjson.loads(body)))
    return events


TOO_MUCH = problem("run_ceiling_reached", "Run r1 is over.")


def test_a_stream_that_is_cut_for_its_length_ends_its_blocks_and_the_message_and_says_why() -> None:
    messages = MessagesStream(Recorder())
    stream = (STREAMS / "tools.sse").read_bytes()
    messages.feed(stream[: stream.index(b"content_block_stop") - len("event: ")])
    ending = events_of(messages.length_ending(TOO_MUCH))
    assert [name for name, _ in ending] == ["content_block_stop", "message_delta", "error"]
    assert ending[0][1] == {"type": "content_block_stop", "index": 0}
    assert ending[1][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert ending[1][1]["usage"] == {"output_tokens": 0}
    assert ending[2][1] == {"type": "error", "error": {"type": "billing_error", "message": "Run r1 is over."}}


def test_between_blocks_there_is_none_to_end() -> None:
    messages = MessagesStream(Recorder())
    messages.feed((STREAMS / "cut_after_block.sse").read_bytes())
    assert [name for name, _ in events_of(messages.length_ending(TOO_MUCH))] == ["message_delta", "error"]


def test_a_stream_that_has_not_begun_ends_with_the_error_alone() -> None:
    assert MessagesStream(Recorder()).length_ending(TOO_MUCH) == error_event(TOO_MUCH)


def test_an_error_of_the_providers_own_is_the_only_one() -> None:
    messages = MessagesStream(Recorder())
    messages.feed((STREAMS / "error.sse").read_bytes())
    assert messages.error_ending(TOO_MUCH) == b""
    assert MessagesStream(Recorder()).error_ending(TOO_MUCH) == error_event(TOO_MUCH)


# -- whole answers ----------------------------------------------------------------------------------------------------------------


def answer(**fields: Any) -> bytes:
    return orjson.dumps(
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hi"}], **fields}
    )


def metered(body: bytes) -> Recorder:
    meter = Recorder()
    read_answer(body, meter)
    return meter


def test_a_whole_answer_is_metered() -> None:
    meter = metered(answer(usage={"input_tokens": 10, "output_tokens": 5, "service_tier": "priority"}))
    assert meter.reports == [told(10, 5)]
    assert (meter.service_tier, meter.answer_id, meter.pieces) == ("priority", "msg_1", {"web_searches": 0})


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "text", "text": "a"}, "a"),
        ({"type": "thinking", "thinking": "b", "signature": "never"}, "b"),
        ({"type": "tool_use", "id": "t", "name": "c", "input": {"d": 1}}, 'c{"d":1}'),
        ({"type": "server_tool_use", "id": "t", "name": "c", "input": {}}, "c"),
        ({"type": "web_search_tool_result", "content": [{"title": "never"}]}, ""),
        ({"type": "code_execution_tool_result", "content": {"stdout": "never"}}, ""),
        ({"type": "redacted_thinking", "data": "never"}, ""),
    ],
)
def test_what_the_model_wrote_is_counted_where_no_usage_is_reported(block: dict[str, Any], text: str) -> None:
    meter = metered(answer(content=[block]))
    assert ("".join(meter.texts), meter.reports) == (text, [])


@pytest.mark.parametrize("odd", [[], {}, 5, None, "text"], ids=ascii)
def test_whatever_stands_where_something_else_should_is_no_crash(odd: Any) -> None:
    block = {"type": odd, "text": odd, "name": odd, "input": odd, "thinking": odd, "content": odd}
    metered(
        answer(
            id=odd, content=[block, odd], usage={"input_tokens": 5, "output_tokens": odd, "server_tool_use": odd, "speed": odd}
        )
    )
    metered(answer(content=odd, usage=odd))
    for event in (
        {"type": odd},
        {"type": "message_start", "message": odd},
        {"type": "message_start", "message": {"id": odd, "usage": odd}},
        {"type": "content_block_start", "index": odd, "content_block": block},
        {"type": "content_block_start", "index": odd, "content_block": odd},
        {"type": "content_block_delta", "index": odd, "delta": odd},
        {"type": "content_block_delta", "index": odd, "delta": block},
        {"type": "message_delta", "delta": odd, "usage": odd},
        {"type": "message_delta", "delta": {"stop_reason": odd}, "usage": {"output_tokens": odd, "iterations": [odd]}},
        {"type": "error", "error": odd},
    ):
        messages = MessagesStream(Recorder())
        raw = b"data: " + orjson.dumps(event) + b"\n\n"
        assert messages.feed(raw) + messages.finish() == raw


@pytest.mark.parametrize("body", [b"", b"oops", b"[1]", b'"text"', b"\xff"])
def test_an_answer_that_cannot_be_read_is_text(body: bytes) -> None:
    assert "".join(metered(body).texts) == body.decode(errors="replace")


def test_searches_are_what_was_reported_else_what_was_seen() -> None:
    searches = [{"type": "server_tool_use", "name": "web_search", "input": {}}] * 2
    assert metered(answer(content=searches)).pieces == {"web_searches": 2}
    reported = {"input_tokens": 5, "output_tokens": 5, "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 3}}
    assert metered(answer(content=searches, usage=reported)).pieces == {"web_searches": 1}


def test_what_the_table_does_not_model_is_named() -> None:
    usage = {
        "input_tokens": 5,
        "output_tokens": 5,
        "inference_geo": "us",
        "speed": "fast",
        "video_tokens": 7,
        "other_tokens": 0,
        "server_tool_use": {"image_requests": 2, "web_search_requests": 0},
    }
    assert metered(answer(usage=usage)).unknown == {"inference_geo", "speed", "video_tokens", "image_requests"}
    assert metered(answer(usage={**usage, "inference_geo": "global", "speed": "standard"})).unknown == {
        "video_tokens",
        "image_requests",
    }


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "5",
        {},
        {"input_tokens": 0, "output_tokens": 0},
        {"input_tokens": -1},
        {"input_tokens": "5"},
        {"input_tokens": 1e9},
    ],
)
def test_a_report_that_cannot_be_true_is_none(usage: Any) -> None:
    assert read_usage(usage) is None


# Payloads as Anthropic's documentation shows them; dollars by hand, from its price list: (model, usage, in, read, 5 m, 1 h, out).
PRICED = [
    ("claude-opus-4-8", {"input_tokens": 2095, "output_tokens": 503}, (2095, 0, 0, 0, 503), 2095 * 500 + 503 * 2500),
    (
        "claude-sonnet-4-6",
        {
            "input_tokens": 2048,
            "cache_read_input_tokens": 1800,
            "cache_creation_input_tokens": 248,
            "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 503,
        },
        (2048, 1800, 148, 100, 503),
        2048 * 300 + 1800 * 30 + 148 * 375 + 100 * 600 + 503 * 1500,
    ),
    (
        "claude-haiku-4-5",
        {"input_tokens": 21, "cache_creation_input_tokens": 188_086, "cache_read_input_tokens": 0, "output_tokens": 393},
        (21, 0, 188_086, 0, 393),
        21 * 100 + 188_086 * 125 + 393 * 500,
    ),
    (  # more than 200,000 tokens in all: the dearer tier for everything
        "claude-sonnet-4-5",
        {"input_tokens": 1_000, "cache_read_input_tokens": 200_000, "output_tokens": 100},
        (1_000, 200_000, 0, 0, 100),
        1_000 * 600 + 200_000 * 60 + 100 * 2250,
    ),
]


@pytest.mark.parametrize(("model", "reported", "counts", "microcents"), PRICED)
def test_reports_are_priced_as_anthropic_bills_them(
    model: str, reported: dict[str, Any], counts: tuple[int, ...], microcents: int
) -> None:
    usage = read_usage(reported)
    assert usage is not None
    fresh, cached, short, long, output = counts
    assert usage == told(fresh, output, cached, short, long)
    assert cost_of(bundled.load_catalog().models[model], usage, "standard").usd == microcents


def test_the_dialect_reads_refusals_in_anthropics_shape() -> None:
    assert (DIALECT.path, DIALECT.shape) == ("/v1/messages", Shape.ANTHROPIC)
