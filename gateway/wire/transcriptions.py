"""OpenAI transcriptions and translations: a sound file comes in as a form, text goes out, streamed or not.

Some models bill the length of the sound, others its tokens and those of the text: the request says how much of both there may be.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import orjson

from gateway.core.measures import AUDIO_INPUT, AUDIO_SECONDS
from gateway.core.meter import Meter
from gateway.core.values import Attachment, Output, Part, Usage, UsageSource
from gateway.wire import multipart
from gateway.wire.dialect import Dialect
from gateway.wire.form import FormRequest, files_of, switch, texts_of
from gateway.wire.headers import RequestHeaders
from gateway.wire.multipart import boundary_for
from gateway.wire.problem import bad_request
from gateway.wire.reading import fields_of, model_name, not_a, note_unknown, tokens
from gateway.wire.request import Request
from gateway.wire.sound import duration_ms
from gateway.wire.typed import TypedStream

# The text of the fastest speech; and what is written for silence.
TOKENS_PER_SECOND: Final = 10
LEAST_TOKENS: Final = 64

# Where the file is fetched from, which shows nothing of it; and prompts in sound, which are not read here.
_UNPRICED: Final = frozenset({"url", "known_speaker_references"})
_READ: Final = _UNPRICED | {"file", "model", "stream", "prompt", "user", "language", "response_format"}
_NOT_MEANT: Final = frozenset({"stream", "user"})
_PROMPTS: Final = ("prompt", "keywords", "keywords[]", "hotwords")
_LONGEST_S: Final = 10**6


def _read(dialect: str, raw: bytes, headers: RequestHeaders) -> Request:
    """A form → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    fields = multipart.parse(raw, headers)
    texts = texts_of(fields, _READ)
    files = files_of(fields, "file")
    if len(files) + ("url" in texts) != 1:
        raise not_a("file", "one sound file")
    if any(each.filename is not None and each.name != "file" for each in fields):
        raise bad_request("ambiguous_request", "The form holds a file that nothing here knows the meaning of.")
    lasts_ms = sum(duration_ms(each.value) for each in files)
    seconds = max(1, -(-lasts_ms // 1_000))
    if seconds > _LONGEST_S:
        raise not_a("file", "a sound file of less than a million seconds")
    sounds = tuple(Attachment("audio", len(each.value), duration_ms=lasts_ms) for each in files)
    prompts = tuple(each.text for each in fields if each.name in _PROMPTS and each.filename is None)
    return FormRequest(
        dialect=dialect,
        model=model_name(texts),
        stream=switch(texts, "stream"),
        client_cap=LEAST_TOKENS + TOKENS_PER_SECOND * seconds,
        parts=(Part("sound", prompts, 0, (), sounds),),
        needs=frozenset({"audio_input"}),
        unpriced=tuple(sorted(texts.keys() & _UNPRICED)),
        output=Output.FIXED,
        replaceable=False,
        reasons=False,
        pieces=((AUDIO_SECONDS, seconds),),
        body=texts,
        known=_READ,
        not_meant=_NOT_MEANT,
        fields=fields,
        boundary=boundary_for(fields),
    )


_USAGE: Final = frozenset(["type", "input_tokens", "output_tokens", "total_tokens", "input_token_details", "seconds"])


def read_usage(usage: Any) -> Usage | None:
    """Of tokens; None where it reports none that can be true."""
    fields = fields_of(usage)
    given, written = tokens(fields, "input_tokens"), tokens(fields, "output_tokens")
    if not given or written is None:
        return None
    details = fields_of(fields.get("input_token_details"))
    # Sound is never cheaper than text: what is not told apart is sound.
    text = min(tokens(details, "text_tokens") or 0, given)
    return Usage(UsageSource.PROVIDER, text, 0, 0, written, ((AUDIO_INPUT, given - text),))


def _take_usage(answer: Mapping[str, Any], meter: Meter) -> None:
    reported = fields_of(answer.get("usage"))
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
    note_unknown(meter, reported, _USAGE)
    seconds = reported.get("seconds") if usage is None else None
    if seconds is None:
        seconds = answer.get("duration")  # of verbose_json: the sound's length
    if isinstance(seconds, int | float) and seconds is not True and 0 < seconds <= _LONGEST_S:
        meter.pieces[AUDIO_SECONDS] = max(1, -int(-seconds // 1))


def read_answer(body: bytes, meter: Meter) -> None:
    """Plain text, subtitles, or JSON. What says nothing of its cost has cost what was bounded."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if type(answer) is dict:
        _take_usage(answer, meter)


def _read_event(event: Mapping[str, Any], meter: Meter) -> None:
    if event.get("type") == _DONE:
        _take_usage(event, meter)


_DONE: Final = "transcript.text.done"


def _stream(meter: Meter, request: Request) -> TypedStream:
    del request
    return TypedStream(meter, frozenset({_DONE}), _read_event)


DIALECT: Final = Dialect("transcriptions", "/v1/audio/transcriptions", partial(_read, "transcriptions"), read_answer, _stream)
TRANSLATIONS: Final = Dialect("translations", "/v1/audio/translations", partial(_read, "translations"), read_answer, _stream)
