"""OpenAI speech: text in, sound out, relayed as it comes.

Some models bill the characters, others the tokens of the text and of the sound. No field takes a cap, so the sound's tokens are bounded by the
text's length. That is an assumption, not a rule of the provider: instructions may have a text spoken more slowly than anybody speaks.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.measures import AUDIO_OUTPUT, CHARACTERS
from gateway.core.meter import Meter
from gateway.core.values import Output, Part, Usage, UsageSource
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect, Stream
from gateway.wire.headers import RequestHeaders
from gateway.wire.passed import PassedStream
from gateway.wire.reading import (
    A_TEXT,
    ROUTED,
    encoded,
    fields_of,
    model_name,
    not_a,
    other_texts,
    refuse_other_kinds,
    refuse_variants,
    tokens,
)
from gateway.wire.request import Request
from gateway.wire.typed import TypedStream

NAME: Final = "speech"

# Tokens of sound for a character: measured are 1.3 for English. A figure or an ideograph is a word, or several.
TOKENS_PER_LETTER: Final = 2.5
TOKENS_PER_SIGN: Final = 8
LEAST_TOKENS: Final = 64
SLOWEST: Final = 0.25  # of `speed`, by the API
FASTEST: Final = 4

_KINDS: Final = {"input": A_TEXT, "instructions": A_TEXT, "response_format": A_TEXT, "stream_format": A_TEXT}
_READ: Final = ROUTED | _KINDS.keys() | {"model", "voice", "speed", "user"}
_NOT_INPUT: Final = _READ - {"instructions"}
_NOT_MEANT: Final = frozenset({"user", "stream_format"})
_DIGITS: Final = str.maketrans("", "", "0123456789")
_DONE: Final = "speech.audio.done"


def read(raw: bytes, headers: RequestHeaders) -> Request:
    """A request body → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    fragments = encoded(body)
    text = body.get("input")
    if text is None:
        raise not_a("input", "a string")
    speed = _speed(body)
    present = {name for name, value in body.items() if value is not None}
    return Request(
        dialect=NAME,
        model=model_name(body),
        stream=body.get("stream_format") == "sse",
        client_cap=sound_tokens(text) * 100 // min(100, speed),
        parts=(Part("input", (text, *other_texts(body, fragments, _NOT_INPUT))),),
        needs=frozenset({"audio_output"}),
        unpriced=tuple(sorted(present & ROUTED)),
        output=Output.FIXED,
        replaceable=False,
        reasons=False,
        pieces=((CHARACTERS, len(text)),),
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=_NOT_MEANT,
    )


def _speed(body: Mapping[str, Any]) -> int:
    """In hundredths, rounded down: what is spoken slowly is longer."""
    speed = body.get("speed")
    if speed is None:
        return 100
    if type(speed) not in (int, float) or not SLOWEST <= speed <= FASTEST:
        raise not_a("speed", f"a number from {SLOWEST} to {FASTEST}")
    return int(speed * 100)


def sound_tokens(text: str) -> int:
    """Of the sound of the text, at most."""
    plain = text.translate(_DIGITS)
    letters = len(plain.encode("ascii", "ignore"))
    return LEAST_TOKENS + int(TOKENS_PER_LETTER * letters) + TOKENS_PER_SIGN * (len(text) - letters)


def _read_answer(body: bytes, meter: Meter) -> None:
    """JSON where sound was asked for: some servers answer so. It tells what an event would."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    _take_usage(fields_of(answer), meter)


def _read_event(event: Mapping[str, Any], meter: Meter) -> None:
    if event.get("type") == _DONE:
        _take_usage(event, meter)


def _take_usage(answer: Mapping[str, Any], meter: Meter) -> None:
    usage = fields_of(answer.get("usage"))
    given, written = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
    if given and written:
        meter.report(Usage(UsageSource.PROVIDER, given, others=((AUDIO_OUTPUT, written),)))


def _stream(meter: Meter, request: Request) -> Stream:
    if request.stream:
        return TypedStream(meter, frozenset({_DONE}), _read_event)
    return PassedStream()


DIALECT: Final = Dialect(
    NAME,
    "/v1/audio/speech",
    read,
    _read_answer,
    _stream,
    streamed_types=("text/event-stream", "audio/", "application/octet-stream"),
)
