"""OpenAI moderations: free at OpenAI, priced by the token elsewhere. Nothing is written that is billed."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.values import Image, Output, Part
from gateway.wire import embeddings, media
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect
from gateway.wire.headers import RequestHeaders
from gateway.wire.inputs import MAX_INPUTS
from gateway.wire.passed import passed
from gateway.wire.reading import (
    ROUTED,
    encoded,
    model_name,
    not_a,
    other_texts,
    refuse_variants,
    typed,
)
from gateway.wire.request import Request

NAME: Final = "moderations"
DEFAULT_MODEL: Final = "omni-moderation-latest"  # OpenAI's own, where the request names none

_READ: Final = ROUTED | {"model", "input", "user"}
_FORMS: Final = f"a text, or a list of 1 to {MAX_INPUTS:,} texts, or of texts and images as objects"


def read(raw: bytes, headers: RequestHeaders) -> Request:
    """A request body → what it asks for. Refused 400 `ambiguous_request`, with the field at fault."""
    del headers
    body = parse_object(raw)
    refuse_variants(body, _READ)
    if body.get("model") is None:
        body["model"] = DEFAULT_MODEL
    fragments = encoded(body)
    texts, images = _input(body.get("input"))
    others = other_texts(body, fragments, _READ)
    present = {name for name, value in body.items() if value is not None}
    return Request(
        dialect=NAME,
        model=model_name(body),
        parts=(Part("input", (*texts, *others), 0, images),),
        needs=frozenset({"vision"}) if images else frozenset(),
        unpriced=tuple(sorted(present & ROUTED)),
        output=Output.NONE,
        inputs=max(1, len(texts) + len(images)),
        replaceable=False,
        reasons=False,
        body=body,
        fragments={name: orjson.Fragment(text) for name, text in fragments.items()},
        known=_READ,
        not_meant=frozenset({"user"}),
    )


def _input(value: Any) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    if type(value) is str:
        return (value,), ()
    if type(value) is not list or not 0 < len(value) <= MAX_INPUTS:
        raise not_a("input", _FORMS)
    texts: list[str] = []
    images: list[Image] = []
    for each in value:
        if type(each) is str:
            texts.append(each)
        elif type(each) is dict and each.get("type") == "text":
            texts.append(typed(each, "text", str, "a string", "input.") or "")
        elif type(each) is dict and each.get("type") == "image_url":
            images.append(_image(each))
        else:
            raise not_a("input", _FORMS)
    return tuple(texts), tuple(images)


def _image(part: Mapping[str, Any]) -> Image:
    image = typed(part, "image_url", dict, "an object", "input.") or {}
    return media.image(typed(image, "url", str, "a string", "input.image_url.") or "", "auto")


DIALECT: Final = Dialect(NAME, "/v1/moderations", read, embeddings.read_answer, passed, streamed_types=())
