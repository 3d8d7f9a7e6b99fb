"""Text becomes sound: its characters are exact, its tokens bounded by its length, the sound passes as it comes."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.measures import AUDIO_OUTPUT, CHARACTERS
from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts
from gateway.core.values import Output, Part, Plan, Usage
from gateway.wire.headers import NO_HEADERS
from gateway.wire.problem import Refused, problem
from gateway.wire.request import Request
from gateway.wire.speech import DIALECT, LEAST_TOKENS, read, sound_tokens
from tests.support.recorder import Recorder, chunkings, provider

STREAMS = Path(__file__).parent / "streams" / "speech"
SMALL: dict[str, Any] = {"model": "gpt-4o-mini-tts", "input": "Grüße, 1 2", "voice": "coral"}
PROFILE = Profile("openai", "max_completion_tokens", stream_options=True)


def asked(**fields: Any) -> Request:
    return read(orjson.dumps(SMALL | fields), NO_HEADERS)


def test_characters_are_counted_and_the_rest_goes_on_as_it_came() -> None:
    request = asked(instructions="Speak softly.", speed=1.5, voice={"id": "voice_1"})
    assert request.pieces == ((CHARACTERS, 10),)
    assert request.parts == (Part("input", ("Grüße, 1 2", "Speak softly.")),)
    assert (request.output, request.client_cap, request.replaceable) == (Output.FIXED, sound_tokens("Grüße, 1 2"), False)
    sent = request.encode(Plan("gpt-4o-mini-tts", "openai", 5, 1, Amounts(1, 1), ()), PROFILE)
    assert orjson.loads(sent) == SMALL | {"instructions": "Speak softly.", "speed": 1.5, "voice": {"id": "voice_1"}}


@pytest.mark.parametrize(("speed", "times"), [(None, 1), (4, 1), (1, 1), (0.5, 2), (0.25, 4)])
def test_what_is_spoken_slowly_is_longer(speed: float | None, times: int) -> None:
    assert asked(speed=speed).client_cap == sound_tokens("Grüße, 1 2") * times


@pytest.mark.parametrize(("text", "more"), [("", 0), ("abcd", 10), ("a 12", 5 + 16), ("你好", 16), ("é", 8)])
def test_the_sound_is_bounded_by_the_text(text: str, more: int) -> None:
    assert sound_tokens(text) == LEAST_TOKENS + more


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": None}, "input"), ({"input": ["a"]}, "input"), ({"Input": "b"}, "input"), ({"instructions": 1}, "instructions"), ({"model": 1}, "model"),
     ({"stream_format": True}, "stream_format"), ({"speed": "0.25"}, "speed"), ({"speed": 0.01}, "speed"), ({"speed": True}, "speed")],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", param)


def test_sound_passes_unread_and_is_cut_where_it_breaks_off() -> None:
    relayed = DIALECT.stream(Recorder(), asked())
    assert relayed.feed(b"\xff\xfb\x00data: ") + relayed.finish() == b"\xff\xfb\x00data: "
    assert (relayed.done, relayed.cut, relayed.error_ending(problem("provider_cut", "cut"))) == (False, False, b"")
    assert "audio/mpeg".startswith(DIALECT.streamed_types)


CORPUS: dict[str, tuple[Usage | None, bool]] = {
    "openai": (provider(14, others=((AUDIO_OUTPUT, 101),)), False),
    "no_usage": (None, False),
    "truncated": (None, True),
}


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_of_events_passes_as_it_came_wherever_it_is_cut(name: str) -> None:
    stream = (STREAMS / f"{name}.sse").read_bytes()
    usage, cut = CORPUS[name]
    for chunks in chunkings(stream):
        meter = Recorder()
        relayed = DIALECT.stream(meter, asked(stream_format="sse"))
        assert b"".join(map(relayed.feed, chunks)) + relayed.finish() == stream[: stream.rindex(b"\n\n") + 2]
        assert (meter.last, relayed.cut) == (usage, cut)


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()
