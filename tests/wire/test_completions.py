"""Completions: every form of prompt is counted, every answer to each is bounded, and a stream passes as it came."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts
from gateway.core.values import Part, Plan, Usage
from gateway.wire.completions import PROMPT_OVERHEAD, SUFFIX_OVERHEAD, CompletionRequest, CompletionStream, read, read_answer
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused, problem
from tests.support.recorder import Recorder, chunkings, provider

STREAMS = Path(__file__).parent / "streams" / "completions"
SMALL: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "Say hi: "}
OPENAI = Profile("openai", "max_completion_tokens", stream_options=True)
PLAIN = Profile("plain", "max_tokens", stream_options=False)


def asked(**fields: Any) -> CompletionRequest:
    return read(orjson.dumps(SMALL | fields), NO_HEADERS)


def sent(request: CompletionRequest, profile: Profile = OPENAI) -> Any:
    return orjson.loads(request.encode(Plan("davinci-002", "openai", 100, 10, Amounts(1, 1), ()), profile))


# -- the request ------------------------------------------------------------------------------------------------------------------


def test_the_cap_is_always_written_and_usage_asked_for_in_streams() -> None:
    to = {"model": "davinci-002", "max_tokens": 100}
    assert sent(asked()) == SMALL | to
    assert sent(asked(max_tokens=7, logprobs=3, seed=1)) == SMALL | to | {"logprobs": 3, "seed": 1}
    assert sent(asked(stream=True)) == SMALL | to | {"stream": True, "stream_options": {"include_usage": True}}
    assert sent(asked(stream=True), PLAIN) == SMALL | to | {"stream": True}
    assert sent(asked(prompt=[[1, 2]])) == SMALL | to | {"prompt": [[1, 2]]}


@pytest.mark.parametrize(
    ("fields", "choices", "inputs"),
    [
        ({}, 1, 1),
        ({"n": 3}, 3, 1),
        ({"n": 2, "best_of": 5}, 5, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6, 2),
        ({"prompt": ["a", "b", "c"], "best_of": 4, "n": 2}, 12, 3),
        ({"prompt": [1, 2, 3]}, 1, 1),
        ({"prompt": [[1], [2]], "n": 2}, 4, 2),
        ({"prompt": None}, 1, 1),
    ],
)
def test_each_prompt_is_answered_as_often_as_asked(fields: dict[str, Any], choices: int, inputs: int) -> None:
    request = asked(**fields)
    assert (request.choices, request.inputs) == (choices, inputs)


def test_prompts_and_suffix_are_counted_a_token_as_one() -> None:
    assert asked().parts == (Part("prompt", ("Say hi: ",), PROMPT_OVERHEAD),)
    assert asked(prompt=[5, 6, 7]).parts == (Part("prompt", (), 3 + PROMPT_OVERHEAD),)
    filled = asked(prompt=["a", "b"], suffix="end")
    assert filled.parts[1] == Part("suffix", ("end",), 2 * SUFFIX_OVERHEAD + len("end"))


def test_no_more_text_is_counted_than_a_request_has() -> None:
    raw = orjson.dumps({"model": "m", "prompt": ["a"] * 1_000, "suffix": "the end " * 100})
    request = read(raw, NO_HEADERS)
    assert sum(len(text) for part in request.parts for text in part.texts) < len(raw)
    assert asked(guided_regex="x+").parts[1] == Part("other", ("x+",))
    assert asked(stop=["\n"], logit_bias={"5": 1}, user="u").parts == asked().parts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": ["a", 1]}, "prompt"), ({"n": 0}, "n"), ({"n": 129}, "n"),
        ({"best_of": 129}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"), ({"best_of": "2"}, "best_of"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "true"}, "stream"), ({"echo": 1}, "echo"), ({"suffix": ["a"]}, "suffix"), ({"Max_Tokens": 5}, "max_tokens"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"), ({"model": ""}, "model"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", param)


def test_a_second_cap_and_prompts_that_are_no_text_have_no_price() -> None:
    assert asked(n_predict=5, prompt_embeds="AAAA", models=["a"]).unpriced == ("models", "n_predict", "prompt_embeds")


# -- the answer -------------------------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_metered() -> None:
    meter = Recorder()
    choices = [{"text": "ab", "index": 0, "finish_reason": "stop"}, {"text": "c", "index": 1, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    read_answer(orjson.dumps({"object": "text_completion", "choices": choices, "usage": usage}), meter)
    assert (meter.written, meter.reports) == ("abc", [provider(5, 7)])
    odd = Recorder()
    read_answer(b"no json", odd)
    assert (odd.written, odd.reports) == ("no json", [])


CORPUS: dict[str, tuple[str, Usage | None, bool, bool]] = {  # text, usage, hidden, cut
    "openai": ("Hello wörld 🌍", provider(5, 7), True, False),
    "crlf": ("Hello wörld 🌍", provider(5, 7), True, False),
    "comments": ("Hello wörld 🌍", provider(5, 7), True, False),
    "no_usage": ("Hello wörld 🌍", None, False, False),
    "usage_zero": ("Hello wörld 🌍", None, True, False),
    "two_prompts": ("ABa", provider(5, 7), True, False),
    "truncated": ('Hel{"id":"cmpl-A1","choi', None, False, True),
    "malformed": ('Hel{"choices":[{"text":"x]lo', None, False, False),
    "error": ("Hel", None, False, True),
    "usage_on_finish": ("Hi", provider(5, 7), False, False),
    "echo": ("Say hi: hi", None, False, False),
}


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_passes_as_it_came_wherever_it_is_cut(name: str) -> None:
    stream = (STREAMS / f"{name}.sse").read_bytes()
    text, usage, hidden, cut = CORPUS[name]
    for wanted in (True, False):
        expected = stream
        if name == "truncated":
            expected = stream[: stream.rindex(b"\n\n") + 2]
        elif hidden and not wanted:
            end = b"\r\n\r\n" if b"\r\n\r\n" in stream else b"\n\n"
            expected = end.join(event for event in stream.split(end) if b'"choices":[]' not in event)
        request = asked(stream=True, stream_options={"include_usage": wanted})
        for chunks in chunkings(stream):
            meter = Recorder()
            relayed = CompletionStream(meter, request)
            assert b"".join(map(relayed.feed, chunks)) + relayed.finish() == expected
            assert (meter.written, meter.last, relayed.cut) == (text, usage, cut)


def test_an_echoed_prompt_is_not_output() -> None:
    stream = (STREAMS / "echo.sse").read_bytes()
    for chunks in chunkings(stream):
        meter = Recorder()
        relayed = CompletionStream(meter, asked(stream=True, echo=True))
        assert b"".join(map(relayed.feed, chunks)) + relayed.finish() == stream
        assert meter.written == "hi"


def test_an_answer_that_is_cut_ends_every_open_choice_for_its_length() -> None:
    relayed = CompletionStream(Recorder(), asked(stream=True, n=2))
    relayed.feed(
        b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"text":"a"},{"index":1,"text":"b","finish_reason":"stop"}]}\n\n'
    )
    events = relayed.length_ending(problem("run_ceiling_reached", "no more")).split(b"\n\n")
    assert orjson.loads(events[0].removeprefix(b"data: ")) == {
        "id": "c",
        "created": 1,
        "model": "m",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    }
    assert b"no more" in events[1]
