"""Images are bounded by size and quality, in JSON and in forms; what they used is what the provider says."""

import base64
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from multidict import CIMultiDict

from gateway.core.measures import IMAGE_INPUT, IMAGE_OUTPUT
from gateway.core.profiles import Profile
from gateway.core.scopes import Amounts
from gateway.core.values import Image, Output, Part, Plan, Usage
from gateway.wire.headers import NO_HEADERS
from gateway.wire.images import DIALECT, EDITS, PARTIAL_IMAGE_TOKENS, PROMPT_OVERHEAD, VARIATIONS, image_tokens, read_answer
from gateway.wire.problem import Refused
from gateway.wire.request import Request
from tests.support.recorder import Recorder, chunkings, provider

STREAMS = Path(__file__).parent / "streams" / "images"
SMALL: dict[str, Any] = {"model": "gpt-image-1.5", "prompt": "a river"}
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
PROFILE = Profile("openai", "max_completion_tokens", stream_options=True)


def asked(**fields: Any) -> Request:
    return DIALECT.read(orjson.dumps(SMALL | fields), NO_HEADERS)


def form(files: Any, **texts: Any) -> tuple[bytes, CIMultiDict[str]]:
    request = httpx.Request("POST", "http://h", data=SMALL | texts, files=files)
    return request.read(), CIMultiDict({"Content-Type": request.headers["Content-Type"]})


# -- how many tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "quality", "size", "count"),
    [
        ("gpt-image-1", "low", "1024x1024", 272),
        ("gpt-image-1-mini", "medium", "1024x1536", 1_584),
        ("gpt-image-1.5", "high", "1536x1024", 6_208),
        ("gpt-image-1.5", "high", "1024x1024", 4_160),
        ("openai/gpt-image-1.5", "auto", "1024x1024", 4_160),
        ("gpt-image-1.5", None, None, 6_240),
        ("gpt-image-1.5", "low", "auto", 408),
        ("gpt-image-2", "high", "1024x1024", 7_024),
        ("gpt-image-2", "high", "1536x1024", 5_488),
        ("gpt-image-2", "high", "3584x2048", 12_329),
        ("gpt-image-2-2026-04-21", None, None, 7_024),
        ("some-other", "standard", "1024x1024", 1_756),
        ("some-other", "hd", "1024x1024", 7_024),
        ("gpt-image-2.5-sunburst", "max", "1024x1024", None),
        ("gpt-image-2", "high", "9000x9000", None),
        ("gpt-image-2", "high", "large", None),
    ],
)
def test_an_image_has_the_tokens_of_the_published_rule(
    model: str, quality: str | None, size: str | None, count: int | None
) -> None:
    assert image_tokens(model, quality, size) == count


# -- the request ------------------------------------------------------------------------------------------------------------------


def test_images_are_bounded_by_what_is_asked_for() -> None:
    request = asked(n=2, quality="low", size="1024x1024", stream=True, partial_images=3)
    assert (request.choices, request.client_cap, request.output) == (2, 272 + 3 * PARTIAL_IMAGE_TOKENS, Output.FIXED)
    assert (request.pieces, request.stream, request.unpriced) == ((("images/low/1024x1024", 2),), True, ())
    assert request.parts == (Part("prompt", ("a river",), PROMPT_OVERHEAD),)
    assert asked().pieces == (("images/standard/1024x1024", 1),)


def test_the_request_goes_on_as_it_came() -> None:
    body = SMALL | {"n": 2, "background": "transparent", "output_compression": 50, "user": "u"}
    sent = asked(**body).encode(Plan("gpt-image-1.5", "openai", 5, 1, Amounts(1, 1), ()), PROFILE)
    assert orjson.loads(sent) == body


@pytest.mark.parametrize(
    ("fields", "unpriced"),
    [
        ({"quality": "max", "model": "gpt-image-2.5-flare"}, ("quality",)), ({"size": "huge"}, ("size",)), ({"frame_count": 4, "output_format": "gif"}, ("frame_count", "output_format")),
        ({"output_format": "svg", "svg": {"model": "gpt-5"}}, ("svg", "output_format")), ({"complexity": "high"}, ("complexity",)), ({"models": ["a"]}, ("models",)),
        ({"output_format": "webp"}, ()),
    ],
)  # fmt: skip
def test_what_makes_more_of_it_has_no_price(fields: dict[str, Any], unpriced: tuple[str, ...]) -> None:
    assert asked(**fields).unpriced == unpriced


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 0}, "n"), ({"n": 11}, "n"), ({"n": "2"}, "n"), ({"N": 2}, "n"), ({"partial_images": 11}, "partial_images"), ({"partial_images": -1}, "partial_images"),
     ({"partial_images": True}, "partial_images"), ({"stream": "true"}, "stream"), ({"quality": 1}, "quality"), ({"size": [1]}, "size"), ({"model": None}, "model"),
     ({"image": 5}, "image"), ({"images": [{"x": 1}]}, "images"), ({"images": ["a"] * 65}, "images"), ({"prompt": ["a"]}, "prompt")],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        asked(**fields)
    assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", param)


def test_an_edit_counts_its_images_in_a_form_and_in_json() -> None:
    files = [("image[]", ("a.png", PNG)), ("image[]", ("b.png", b"2")), ("mask", ("m.png", PNG))]
    request = EDITS.read(*form(files, n="2", quality="low", size="1024x1024", background="auto"))
    assert (request.dialect, request.choices, request.client_cap) == ("image_edits", 2, 272)
    shown, unseen = Image("high", 1, 1), Image("high")
    assert request.parts == (Part("prompt", ("a river",), PROMPT_OVERHEAD, (shown, unseen, shown)),)
    assert request.needs == frozenset({"vision"})
    linked = EDITS.read(
        orjson.dumps(SMALL | {"images": [{"image_url": "https://h/a.png"}, {"file_id": "f"}, {"image_url": DATA}]}), NO_HEADERS
    )
    # What can't be seen is told apart by its name.
    assert linked.parts == (Part("prompt", ("a river", "https://h/a.png", "f"), PROMPT_OVERHEAD, (unseen, unseen, shown)),)
    assert VARIATIONS.read(*form([("image", ("a.png", PNG))])).parts[0].images == (shown,)


@pytest.mark.parametrize(
    ("files", "texts"),
    [([("image", ("a", b"1")), ("x", ("b", b"2"))], {}), ([("image", (None, b"1"))], {}), ([("image", ("a", b"1"))], {"n": "two"}), ([("image", ("a", b"1"))], {"n": "11"}),
     ([("image", ("a", b"1"))], {"stream": "1"}), ([("image", ("a", b"1"))], {"size[]": ["a"]}), ([("image", ("a", b"1")), ("image", ("b", b"2"))], {})],
)  # fmt: skip
def test_a_form_that_could_be_read_in_two_ways_is_refused(files: Any, texts: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        EDITS.read(*form(files, **texts))
    assert refused.value.problem.code == "ambiguous_request"


def test_another_model_s_drawing_has_no_price_in_a_form_either() -> None:
    assert EDITS.read(*form([("image", ("a", b"1"))], **{"svg[model]": "gpt-5"})).unpriced == ("svg",)


# -- the answer -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}, "output_tokens": 4160, "total_tokens": 4210},
            provider(10, 0, others=((IMAGE_INPUT, 40), (IMAGE_OUTPUT, 4160))),
        ),
        (
            {"input_tokens": 10, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}, "output_tokens": 300,
             "output_tokens_details": {"image_tokens": 272, "text_tokens": 28}, "total_tokens": 310},
            provider(10, 28, others=((IMAGE_OUTPUT, 272),)),
        ),
        ({"input_tokens": 10, "output_tokens": 272}, provider(0, 0, others=((IMAGE_INPUT, 10), (IMAGE_OUTPUT, 272)))),
        ({"input_tokens": 10, "output_tokens": 0}, None),
        (None, None),
    ],
)  # fmt: skip
def test_what_was_used_is_what_the_provider_says(usage: Any, expected: Usage | None) -> None:
    meter = Recorder()
    read_answer(orjson.dumps({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": usage}), meter)
    assert (meter.last, meter.texts, meter.pieces) == (expected, [], {})


CORPUS: dict[str, tuple[Usage | None, int, bool]] = {  # usage, images, cut
    "generation": (provider(10, 0, others=((IMAGE_INPUT, 40), (IMAGE_OUTPUT, 472))), 1, False),
    "edit": (provider(10, 0, others=((IMAGE_INPUT, 40), (IMAGE_OUTPUT, 272))), 1, False),
    "two": (provider(20, 0, others=((IMAGE_INPUT, 80), (IMAGE_OUTPUT, 544))), 2, False),
    "truncated": (None, 1, True),
}


def test_every_recorded_stream_is_replayed() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == CORPUS.keys()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_passes_as_it_came_wherever_it_is_cut(name: str) -> None:
    stream = (STREAMS / f"{name}.sse").read_bytes()
    usage, n, cut = CORPUS[name]
    request = asked(stream=True, n=n)
    for chunks in chunkings(stream):
        meter = Recorder()
        relayed = DIALECT.stream(meter, request)
        assert b"".join(map(relayed.feed, chunks)) + relayed.finish() == stream[: stream.rindex(b"\n\n") + 2]
        assert (meter.last, relayed.cut) == (usage, cut)
