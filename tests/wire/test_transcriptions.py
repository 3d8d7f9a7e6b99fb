"""A sound file is bounded by its length, and what the answer tells of it is charged."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from multidict import CIMultiDict

from gateway.core.measures import AUDIO_INPUT, AUDIO_SECONDS
from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts
from gateway.core.values import Attachment, Output, Part, Plan, Usage
from gateway.wire.form import FormRequest
from gateway.wire.multipart import Field, parse
from gateway.wire.problem import Refused, problem
from gateway.wire.transcriptions import DIALECT, LEAST_TOKENS, TOKENS_PER_SECOND, TRANSLATIONS, read_answer
from tests.support.recorder import Recorder, chunkings, provider
from tests.support.sound import wav

STREAMS = Path(__file__).parent / "streams" / "transcriptions"
PROFILE = Profile("openai", "max_completion_tokens", stream_options=True)


def form(files: Any = None, **texts: Any) -> tuple[bytes, CIMultiDict[str]]:
    files = {"file": ("a.wav", wav(2.5), "audio/wav")} if files is None else files
    request = httpx.Request("POST", "http://h", data={"model": "whisper-1", **texts}, files=files)
    return request.read(), CIMultiDict({"Content-Type": request.headers["Content-Type"]})


def asked(files: Any = None, **texts: Any) -> FormRequest:
    request = DIALECT.read(*form(files, **texts))
    assert isinstance(request, FormRequest)
    return request


STREAMED = asked(stream="true")


# -- the request ------------------------------------------------------------------------------------------------------------------


def test_the_sound_is_bounded_by_its_length_and_so_is_its_text() -> None:
    request = asked(prompt="names: Ada", language="en", temperature="0")
    assert request.pieces == ((AUDIO_SECONDS, 3),)
    assert request.parts == (Part("sound", ("names: Ada",), 0, (), (Attachment("audio", len(wav(2.5)), duration_ms=2_500),)),)
    assert (request.output, request.client_cap) == (Output.FIXED, LEAST_TOKENS + 3 * TOKENS_PER_SECOND)
    assert (request.needs, request.replaceable, request.stream) == (frozenset({"audio_input"}), False, False)
    assert asked(stream="true").stream


def test_the_form_goes_on_as_it_was_read_with_the_plan_s_model() -> None:
    request = asked(prompt="a", **{"timestamp_granularities[]": ["word", "segment"]})
    sent = request.encode(Plan("other", "openai", 0, 1, Amounts(1, 1), ()), PROFILE)
    fields = parse(sent, CIMultiDict({"Content-Type": request.content_type}))
    assert {(field.name, field.value) for field in fields if field.filename is None} == {
        ("model", b"other"), ("prompt", b"a"), ("timestamp_granularities[]", b"word"), ("timestamp_granularities[]", b"segment")
    }  # fmt: skip
    assert [field for field in fields if field.filename] == [Field("file", wav(2.5), "a.wav", "audio/wav")]


def test_the_same_sound_is_the_same_request_however_it_is_sent() -> None:
    assert asked().fingerprint() == asked(stream="true", user="u").fingerprint()
    assert asked().fingerprint() != asked(prompt="b").fingerprint()
    assert asked().fingerprint() != asked({"file": ("a.wav", wav(2), "audio/wav")}).fingerprint()
    assert asked().fingerprint() != TRANSLATIONS.read(*form()).fingerprint()
    assert asked(user="u7").text_field("user") == "u7"


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ({}, {}), ({"file": (None, b"text")}, {}), ({"other": ("a.wav", b"1")}, {}), ({"file": ("a", b"1"), "other": ("b", b"2")}, {}),
        ([("file[]", ("a", b"1")), ("file[]", ("b", b"2"))], {}), (None, {"model": ""}), (None, {"stream": "yes"}), (None, {"Model": "b"}),
        (None, {"url": "https://h/a.wav"}), (None, {"model[]": ["a", "b"]}),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(files: Any, texts: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        asked(files, **texts)
    assert refused.value.problem.code == "ambiguous_request"


def test_json_is_no_form() -> None:
    with pytest.raises(Refused):
        DIALECT.read(b'{"model": "whisper-1"}', CIMultiDict({"Content-Type": "application/json"}))


def test_a_file_elsewhere_has_no_price() -> None:
    raw = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = raw % (b"model", b"whisper") + raw % (b"url", b"https://h/a.wav") + b"--b--\r\n"
    request = DIALECT.read(body, CIMultiDict({"Content-Type": "multipart/form-data; boundary=b"}))
    assert request.unpriced == ("url",)


@pytest.mark.parametrize("name", ["known_speaker_references", "known_speaker_references[]", "known_speaker_references[0]"])
def test_sound_of_speakers_is_told_as_unpriced_however_its_list_is_written(name: str) -> None:
    assert asked(**{name: "data:audio/wav;base64,AAAA"}).unpriced == ("known_speaker_references",)


# -- the answer -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "usage", "seconds"),
    [
        ({"text": "hi", "usage": {"type": "duration", "seconds": 3}}, None, 3),
        ({"text": "hi", "usage": {"type": "duration", "seconds": 2.1}}, None, 3),
        ({"task": "transcribe", "language": "english", "duration": 8.470000267028809, "text": "hi", "segments": []}, None, 9),
        (
            {"text": "hi", "usage": {"type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                                     "output_tokens": 45, "total_tokens": 59}},
            provider(4, 45, others=((AUDIO_INPUT, 10),)), None,
        ),
        ({"text": "hi", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 0}}, provider(0, 0, others=((AUDIO_INPUT, 14),)), None),
        ({"text": "hi", "usage": {"type": "tokens", "input_tokens": 0, "output_tokens": 3}}, None, None),
        ({"text": "hi"}, None, None),
        ({"text": "hi", "usage": {"type": "duration", "seconds": -1}}, None, None),
        ({"text": "hi", "usage": {"type": "duration", "seconds": True}, "duration": "x"}, None, None),
    ],
)  # fmt: skip
def test_tokens_or_seconds_are_what_the_answer_says(answer: Any, usage: Usage | None, seconds: int | None) -> None:
    meter = Recorder()
    read_answer(orjson.dumps(answer), meter)
    assert (meter.last, meter.pieces.get(AUDIO_SECONDS)) == (usage, seconds)


@pytest.mark.parametrize("body", [b"just text", b"WEBVTT\n\n00:00.000 --> 00:02.000\nhi\n", b"", b"[]", b"5"])
def test_text_and_subtitles_say_nothing(body: bytes) -> None:
    meter = Recorder()
    read_answer(body, meter)
    assert (meter.reports, meter.texts, meter.pieces) == ([], [], {})


CORPUS: dict[str, tuple[Usage | None, bool, bool]] = {  # usage, cut, error seen
    "openai": (provider(4, 45, others=((AUDIO_INPUT, 10),)), False, False),
    "crlf": (provider(4, 45, others=((AUDIO_INPUT, 10),)), False, False),
    "no_usage": (None, False, False),
    "truncated": (None, True, False),
    "error": (None, True, True),
}


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_passes_as_it_came_wherever_it_is_cut(name: str) -> None:
    stream = (STREAMS / f"{name}.sse").read_bytes()
    usage, cut, error_seen = CORPUS[name]
    expected = stream[: stream.rindex(b"\n\n") + 2] if name == "truncated" else stream
    for chunks in chunkings(stream):
        meter = Recorder()
        relayed = DIALECT.stream(meter, STREAMED)
        before_the_end = b"".join(map(relayed.feed, chunks))
        assert before_the_end + relayed.finish() == expected
        assert (meter.last, relayed.cut, relayed.error_seen) == (usage, cut, error_seen)
        assert b"transcript.text.done" not in before_the_end
    assert bool(relayed.error_ending(problem("provider_cut", "cut"))) is not error_seen
