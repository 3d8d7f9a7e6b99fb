"""OpenAI images: made from a text, edited, varied. JSON or a form in; the images as JSON, or streamed, out.

Some models bill by the image, others by the token. No field takes a cap: how many tokens an image has follows from its size and quality, by
the published tables for the models that have one, and by the dearest of these rules for any other.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import orjson

from gateway.core.measures import IMAGE_INPUT, IMAGE_OUTPUT, IMAGES
from gateway.core.meter import Meter
from gateway.core.values import Image, Output, Part, Usage, UsageSource
from gateway.wire import media, multipart
from gateway.wire.body import parse_object
from gateway.wire.bulk import parsed_without
from gateway.wire.dialect import Dialect
from gateway.wire.form import FormRequest, files_of, switch, texts_of, whole, word
from gateway.wire.headers import RequestHeaders
from gateway.wire.multipart import boundary_for
from gateway.wire.problem import bad_request
from gateway.wire.reading import (
    A_SWITCH,
    A_TEXT,
    ROUTED,
    encoded,
    fields_of,
    model_name,
    not_a,
    note_unknown,
    other_texts,
    refuse_other_kinds,
    refuse_variants,
    tokens,
)
from gateway.wire.request import Request
from gateway.wire.typed import TypedStream

MAX_IMAGES: Final = 10
MAX_PARTIAL_IMAGES: Final = 10
PARTIAL_IMAGE_TOKENS: Final = 100
MAX_GIVEN: Final = 64
MAX_ADDRESS_CHARS: Final = 2_048
PROMPT_OVERHEAD: Final = 16  # what the format adds to a prompt: nobody publishes it

# What makes more of it than size and quality say: planning, another model's drawing, frames.
_UNPRICED: Final = ROUTED | {"complexity", "svg", "frame_count", "prompt_rewriter"}
_N: Final = (int, f"an integer from 1 to {MAX_IMAGES}")
_KINDS: Final = {
    "stream": A_SWITCH,
    "n": _N,
    "prompt": A_TEXT,
    "quality": A_TEXT,
    "size": A_TEXT,
    "output_format": A_TEXT,
    "response_format": A_TEXT,
}
_READ: Final = _UNPRICED | _KINDS.keys() | {"model", "image", "images", "mask", "partial_images", "user", "input_fidelity"}
_NOT_INPUT: Final = _READ | {"background", "style", "moderation", "safety_identifier"}
_NOT_MEANT: Final = frozenset({"stream", "partial_images", "user", "safety_identifier", "response_format"})
_GIVEN: Final = ("image", "images", "mask")
_SVG_FIELD: Final = re.compile(r"svg\[", re.ASCII)

# Output tokens by quality: of a square of 1024 pixels, of 1024 × 1536 upright, of the same lying. As of 2026-11.
_SQUARE, _UPRIGHT, _LYING = (1024, 1024), (1024, 1536), (1536, 1024)
_STANDARD: Final = (_SQUARE, _UPRIGHT, _LYING)
_TABLE: Final[Mapping[str, Mapping[tuple[int, int], int]]] = {
    "low": {_SQUARE: 272, _UPRIGHT: 408, _LYING: 400},
    "medium": {_SQUARE: 1_056, _UPRIGHT: 1_584, _LYING: 1_568},
    "high": {_SQUARE: 4_160, _UPRIGHT: 6_240, _LYING: 6_208},
}
_BY_TABLE: Final = ("*gpt-image-1", "*gpt-image-1-*", "*gpt-image-1.5*")
# From GPT Image 2 on: the tokens of the longer side by quality; the area counts on top of 2,000,000 pixels.
_LONGER_SIDE: Final = {"low": 16, "medium": 48, "high": 96}
_SIZE: Final = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", re.ASCII)
_LARGEST: Final = (3_840, 2_160)


def image_tokens(model: str, quality: str | None, size: str | None) -> int | None:
    """Of one image, at most; `auto`, and what is not said, may be the dearest. None: by no known rule."""
    qualities = ("low", "medium", "high") if quality in (None, "auto") else (quality,)
    # Other words for the same, of models without tokens.
    words = tuple({"standard": "medium", "hd": "high"}.get(each or "", each or "") for each in qualities)
    match = None if size in (None, "auto") else _SIZE.fullmatch(size or "")
    if size not in (None, "auto") and match is None:
        return None
    sizes = _STANDARD if match is None else ((int(match[1]), int(match[2])),)
    rule = _by_table if any(fnmatchcase(model, glob) for glob in _BY_TABLE) else _by_area
    counts = [rule(each, *pixels) for each in words for pixels in sizes]
    return None if None in counts else max(count for count in counts if count is not None)


def _by_table(quality: str, width: int, height: int) -> int | None:
    by_size = _TABLE.get(quality)
    return None if by_size is None else by_size.get((width, height), max(by_size.values()))


def _by_area(quality: str, width: int, height: int) -> int | None:
    longer = _LONGER_SIDE.get(quality)
    if longer is None or width * height > _LARGEST[0] * _LARGEST[1]:
        return None
    long, short = max(width, height), min(width, height)
    shorter = (2 * longer * short + long) // (2 * long)
    return -(-longer * shorter * (2_000_000 + width * height) // 4_000_000)


# -- the request ------------------------------------------------------------------------------------------------------------------


def _read(dialect: str, raw: bytes, headers: RequestHeaders) -> Request:
    """JSON or a form → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    return _read_form(dialect, raw, headers) if multipart.is_form(headers) else _read_json(dialect, raw)


def _read_json(dialect: str, raw: bytes) -> Request:
    body = parse_object(raw)
    refuse_variants(body, _READ)
    refuse_other_kinds(body, _KINDS)
    n, partial_images = body.get("n") or 1, body.get("partial_images") or 0
    if n > MAX_IMAGES:
        raise not_a("n", _N[1])
    if type(partial_images) is not int or not 0 <= partial_images <= MAX_PARTIAL_IMAGES:
        raise not_a("partial_images", f"an integer from 0 to {MAX_PARTIAL_IMAGES}")
    fragments = encoded(body)
    texts = tuple(text for text in (body.get("prompt"), *other_texts(body, fragments, _NOT_INPUT)) if text)
    given, addresses = _listed(body)
    present = {name for name, value in body.items() if value is not None}
    return Request(
        **_facts(dialect, body, n, partial_images, (*texts, *addresses), given),
        stream=body.get("stream") or False,
        unpriced=_unpriced(body, present, n),
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
    )


def _read_form(dialect: str, raw: bytes, headers: RequestHeaders) -> Request:
    fields = multipart.parse(raw, headers)
    body = texts_of(fields, _READ)
    files = [*files_of(fields, "image"), *files_of(fields, "mask")]
    if len(files) != sum(each.filename is not None for each in fields):
        raise bad_request("ambiguous_request", "The form holds a file that nothing here knows the meaning of.")
    for name in _KINDS:
        word(body, name)
    n, partial_images = whole(body, "n", MAX_IMAGES) or 1, whole(body, "partial_images", MAX_PARTIAL_IMAGES, 0) or 0
    present = {"svg" if _SVG_FIELD.match(name) else name for name in body}
    texts = tuple(each.text for each in fields if each.filename is None and each.name not in _NOT_INPUT - {"prompt"})
    return FormRequest(
        **_facts(dialect, body, n, partial_images, texts, tuple(media.picture(each.value, "high") for each in files)),
        stream=switch(body, "stream"),
        unpriced=_unpriced(body, present, n),
        body=body,
        fields=fields,
        boundary=boundary_for(fields),
    )


def _facts(
    dialect: str, body: Mapping[str, Any], n: int, partial_images: int, texts: tuple[str, ...], given: tuple[Image, ...]
) -> dict[str, Any]:
    """What JSON and forms have in common."""
    model, quality, size = model_name(body), body.get("quality"), body.get("size")
    each = image_tokens(model, quality, size) or 0
    return {
        "dialect": dialect,
        "model": model,
        "choices": n,
        "client_cap": each + PARTIAL_IMAGE_TOKENS * partial_images,
        "parts": (Part("prompt", texts, PROMPT_OVERHEAD, given),),
        "needs": frozenset({"vision"}) if given else frozenset(),
        "output": Output.FIXED,
        "replaceable": False,
        "reasons": False,
        "pieces": ((f"{IMAGES}/{_kind(quality, 'standard')}/{_kind(size, '1024x1024')}", n),),
        "known": _READ,
        "not_meant": _NOT_MEANT,
    }


def _kind(value: str | None, otherwise: str) -> str:
    """As the price table names it."""
    return otherwise if value in (None, "auto") else value[:32]


def _unpriced(body: Mapping[str, Any], present: set[str], n: int) -> tuple[str, ...]:
    del n
    unpriced = sorted(present & _UNPRICED)
    if body.get("output_format") not in (None, "png", "jpeg", "webp"):
        unpriced.append("output_format")
    if image_tokens(model_name(body), body.get("quality"), body.get("size")) is None:
        unpriced.append("size" if image_tokens(model_name(body), body.get("quality"), None) is not None else "quality")
    return tuple(unpriced)


def _listed(body: Mapping[str, Any]) -> tuple[tuple[Image, ...], tuple[str, ...]]:
    """The images that are given, as data, by address or as the provider's file; and of those that show nothing what tells them apart,
    which counts as text."""
    images: list[Image] = []
    named: list[str] = []
    for name in _GIVEN:
        value = body.get(name)
        for each in value if type(value) is list else [] if value is None else [value]:
            where = each.get("image_url") or each.get("file_id") if type(each) is dict else each
            if type(where) is not str or len(images) == MAX_GIVEN:
                raise not_a(name, f"an image, or a list of at most {MAX_GIVEN}, each by image_url or file_id")
            images.append(media.image(where, "high"))
            if not images[-1].width:
                named.append(where[:MAX_ADDRESS_CHARS])
    return tuple(images), tuple(named)


# -- the answer -------------------------------------------------------------------------------------------------------------------


def read_usage(usage: Any) -> Usage | None:
    """None where it reports none that can be true."""
    fields = fields_of(usage)
    given, written = tokens(fields, "input_tokens"), tokens(fields, "output_tokens")
    if not given or not written:
        return None
    # Images are never cheaper than text: what is not told apart is images.
    text = min(tokens(fields_of(fields.get("input_tokens_details")), "text_tokens") or 0, given)
    written_text = min(tokens(fields_of(fields.get("output_tokens_details")), "text_tokens") or 0, written)
    others = ((IMAGE_INPUT, given - text), (IMAGE_OUTPUT, written - written_text))
    return Usage(UsageSource.PROVIDER, text, 0, 0, written_text, tuple(each for each in others if each[1]))


def read_answer(body: bytes, meter: Meter) -> None:
    try:
        answer = parsed_without("b64_json", body)
    except orjson.JSONDecodeError:
        return
    reported = fields_of(fields_of(answer).get("usage"))
    usage = read_usage(reported)
    if usage is not None:
        meter.report(usage)
        note_unknown(meter, reported, _USAGE)


class _Sum:
    """Each image of a stream reports its own usage."""

    def __init__(self) -> None:
        self._so_far: Usage | None = None

    def read_event(self, event: Mapping[str, Any], meter: Meter) -> None:
        if event.get("type") not in _LAST or (usage := read_usage(event.get("usage"))) is None:
            return
        if self._so_far is not None:
            others = dict(self._so_far.others)
            for measure, number in usage.others:
                others[measure] = others.get(measure, 0) + number
            text, written = self._so_far.input_tokens + usage.input_tokens, self._so_far.output_tokens + usage.output_tokens
            usage = Usage(UsageSource.PROVIDER, text, 0, 0, written, tuple(sorted(others.items())))
        self._so_far = usage
        meter.report(usage)


_USAGE: Final = frozenset(
    ["input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details", "cost"]
)
_LAST: Final = frozenset({"image_generation.completed", "image_edit.completed"})


def _stream(meter: Meter, request: Request) -> TypedStream:
    return TypedStream(meter, _LAST, _Sum().read_event, request.choices)


def _dialect(name: str, path: str) -> Dialect:
    return Dialect(name, path, partial(_read, name), read_answer, _stream)


DIALECT: Final = _dialect("images", "/v1/images/generations")
EDITS: Final = _dialect("image_edits", "/v1/images/edits")
VARIATIONS: Final = _dialect("image_variations", "/v1/images/variations")
