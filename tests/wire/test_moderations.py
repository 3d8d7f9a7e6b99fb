"""A moderations request: texts and images are counted, nothing is written."""

from typing import Any

import orjson
import pytest

from gateway.core.values import Image, Output, Part
from gateway.wire.headers import NO_HEADERS
from gateway.wire.moderations import DEFAULT_MODEL, read
from gateway.wire.problem import Refused
from gateway.wire.request import Request


def asked(**fields: Any) -> Request:
    return read(orjson.dumps({"model": "omni-moderation-latest", "input": "hello", **fields}), NO_HEADERS)


def test_texts_and_images_are_counted() -> None:
    assert asked().parts == (Part("input", ("hello",)),)
    assert asked(input=["a", "b"]).parts == (Part("input", ("a", "b")),)
    mixed = asked(input=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://h/x.png"}}])
    assert mixed.parts == (Part("input", ("a",), 0, (Image("auto"),)),)
    assert (mixed.needs, mixed.output, mixed.inputs, mixed.replaceable) == (frozenset({"vision"}), Output.NONE, 2, False)


def test_a_request_without_a_model_names_the_default_one() -> None:
    request = read(b'{"input": "hello"}', NO_HEADERS)
    assert (request.model, request.body["model"]) == (DEFAULT_MODEL, DEFAULT_MODEL)


@pytest.mark.parametrize(
    "value",
    [None, [], 5, [5], [[1]], [{"type": "video"}], [{"type": "text", "text": 5}], [{"type": "image_url", "image_url": "u"}]],
)
def test_any_other_input_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        asked(input=value)
    assert refused.value.problem.code == "ambiguous_request"
