"""Images, sound and pages by the published rules; nothing that a size makes is above what an unknown size makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.media import attachment_tokens, image_tokens
from gateway.core.values import ELSEWHERE, Attachment, Image

# Worked examples of the providers' vision guides, and sizes around their limits.
EXAMPLES = [
    ("gpt-4o", "high", 1024, 1024, 765),
    ("gpt-4o", "high", 2048, 4096, 1105),
    ("gpt-4o", "auto", 512, 512, 255),
    ("gpt-4o", "high", 513, 512, 425),
    ("gpt-4o", "low", 4096, 8192, 85),
    ("gpt-4o", "high", 128, 64, 255),
    ("gpt-5", "high", 1024, 1024, 630),
    ("o1", "high", 1024, 1024, 675),
    ("gpt-4o-mini", "high", 1024, 1024, 25_501),
    ("gpt-4.1-mini", "high", 1024, 1024, 1_659),  # 1,024 patches at 1.62
    ("gpt-4.1-mini", "low", 32, 33, 4),
    ("gpt-4.1-nano", "high", 1024, 1024, 2_520),
    ("o4-mini", "auto", 1800, 2400, 2_642),
    ("gpt-5.4", "high", 1024, 1024, 1_229),
    ("gpt-5.4", "high", 4096, 4096, 3_000),
    ("gpt-5.4", "auto", 2400, 2400, 6_750),
    ("claude-3-5-sonnet-20241022", "auto", 200, 200, 68),
    ("claude-3-5-sonnet-20241022", "auto", 1000, 1000, 1_338),
    ("claude-3-5-sonnet-20241022", "auto", 1092, 1092, 1_594),
    ("claude-3-5-sonnet-20241022", "auto", 8000, 8000, 1_600),
    ("claude-opus-4-8", "auto", 1500, 1500, 3_004),
    ("claude-opus-4-8", "auto", 8000, 8000, 4_784),
    ("gemini-2.5-flash", "auto", 384, 384, 258),
    ("gemini-2.5-flash", "auto", 960, 540, 6 * 258),
    ("gemini-2.5-flash", "auto", 20_000, 400, 16 * 258),
    ("gemini-3-pro", "auto", 100, 100, 16 * 258),
    ("some-new-model", "auto", 10, 10, 16_384),
]


@pytest.mark.parametrize(("model", "detail", "width", "height", "tokens"), EXAMPLES)
def test_an_image_is_counted_by_its_size(model: str, detail: str, width: int, height: int, tokens: int) -> None:
    assert image_tokens(model, Image(detail, width, height)) == tokens


@given(
    st.sampled_from(sorted({model for model, *_ in EXAMPLES})),
    st.sampled_from(["low", "high", "auto", ""]),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
)
def test_an_image_of_a_known_size_takes_something_and_no_more_than_one_of_an_unknown(
    model: str, detail: str, width: int, height: int
) -> None:
    assert 0 < image_tokens(model, Image(detail, width, height)) <= image_tokens(model, Image(detail))


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_tiles_are_never_fewer_than_by_the_rule_in_exact_numbers(width: int, height: int) -> None:
    fit = min(1.0, 2048 / max(width, height))
    wide, high = width * fit, height * fit
    short = min(1.0, 768 / min(wide, high))
    tiles = -(-round(wide * short, 6) // 512) * -(-round(high * short, 6) // 512)
    assert image_tokens("gpt-4o", Image("high", width, height)) >= 85 + 170 * tiles


@pytest.mark.parametrize(
    ("model", "attached", "tokens"),
    [
        ("gpt-audio", Attachment("audio", 99, duration_ms=2_000), 21),
        ("gemini-2.5-flash", Attachment("audio", 99, duration_ms=2_000), 65),
        ("gpt-4o-transcribe", Attachment("audio", 99, duration_ms=60_000), 1_201),
        ("qwen-omni", Attachment("audio", 99, duration_ms=1), 1),
        ("gpt-audio", Attachment("audio", 30_000), 1_001),
        ("claude-3-5-sonnet-20241022", Attachment("pdf", 99, pages=3), 3 * 4_600),
        ("claude-opus-4-8", Attachment("pdf", 99, pages=1), 7_784),
        ("gpt-4o", Attachment("pdf", 99, pages=2), 2 * 4_445),
        ("gemini-2.5-flash", Attachment("pdf", 99, pages=2), 2 * 4_128),
        ("some-new-model", Attachment("pdf", 99, pages=2), None),
        ("gpt-4o", Attachment("pdf", 99), None),
        ("gpt-4o", Attachment("file", 99), None),
        ("gpt-4o", ELSEWHERE, None),
    ],
)
def test_sound_goes_by_its_length_and_a_pdf_by_its_pages(model: str, attached: Attachment, tokens: int | None) -> None:
    assert attachment_tokens(model, (attached,)) == tokens
    two = None if tokens is None else 2 * tokens
    assert attachment_tokens(model, (attached, attached)) == two
