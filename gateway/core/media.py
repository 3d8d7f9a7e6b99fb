"""What images, sound and files take of a model's input, by each provider's published rule as of 2026-11. Pure.

Images whose size the body shows are counted by it, all others as the largest that the rule allows. Sizes are rounded up at every step:
providers resize to whole pixels, and don't say how. Models that are not listed get what the largest documented open ones take.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, Protocol

from gateway.core.record import record
from gateway.core.values import Attachment, Image


class _Rule(Protocol):
    """Of one family's images. Width and height 0: not known."""

    def tokens(self, width: int, height: int, detail: str) -> int: ...


@record
class _Tiles:
    """OpenAI's first: shrunk to fit 2048 × 2048, then to 768 on the shorter side, in tiles of 512; none for a low detail."""

    base: int
    tile: int

    def tokens(self, width: int, height: int, detail: str) -> int:
        if detail == "low":
            return self.base
        if not width:
            return self.base + 8 * self.tile
        longer, least, most = max(width, height), min(width, height), min(width, height)
        if longer > 2048:  # the shorter side becomes a whole number, nobody says which: each way has its longest longer side
            least, most, longer = max(1, least * 2048 // longer), -(-most * 2048 // longer), 2048
        if most > 768:
            longer, most = min(longer, -(-longer * 768 // least)), 768
        return self.base + -(-longer // 512) * -(-most // 512) * self.tile


@record
class _Patches:
    """OpenAI's second: patches of 32 pixels, at most so many, each a little more than a token."""

    most: int
    percent: int
    most_otherwise: int = 0  # where neither a low nor a high detail is asked for

    def tokens(self, width: int, height: int, detail: str) -> int:
        most = self.most if detail in ("low", "high") or not self.most_otherwise else self.most_otherwise
        patches = min(most, -(-width // 32) * -(-height // 32)) if width else most
        return -(-patches * self.percent // 100)


@record
class _Area:
    """Anthropic's: width × height ÷ 750, which is patches of 28 pixels, shrunk to what the model can see."""

    most: int

    def tokens(self, width: int, height: int, detail: str) -> int:
        del detail
        if not width:
            return self.most
        return min(self.most, max(-(-width * height // 750), -(-width // 28) * -(-height // 28)) + 4)


@record
class _Crops:
    """Gemini's: one tile up to 384 × 384; else tiles of two thirds of the shorter side, between 256 and 768; 16 at most."""

    tile: int = 258

    def tokens(self, width: int, height: int, detail: str) -> int:
        del detail
        if width and max(width, height) <= 384:
            return self.tile
        if not width:
            return 16 * self.tile
        unit = max(256, min(768, min(width, height) * 2 // 3))
        return self.tile * min(16, -(-width // unit) * -(-height // unit))


@record
class _Flat:
    most: int

    def tokens(self, width: int, height: int, detail: str) -> int:
        del width, height, detail
        return self.most


# The first match wins.
_IMAGES: Final[tuple[tuple[str, _Rule], ...]] = (
    (
        "*gpt-image-1*",
        _Flat(65 + 4 * 129 + 6_240),
    ),  # as given to be edited: tiles of a shorter side of 512, and what high fidelity adds
    ("*gpt-4o-mini*", _Tiles(2833, 5667)),
    ("*gpt-4.1-mini*", _Patches(1536, 162)),
    ("*gpt-4.1-nano*", _Patches(1536, 246)),
    ("*o4-mini*", _Patches(1536, 172)),
    ("*gpt-5*-mini*", _Patches(1536, 162)),
    ("*gpt-5*-nano*", _Patches(1536, 246)),
    ("*gpt-5.[2-9]*", _Patches(2500, 120, 10_000)),
    ("*gpt-5*", _Tiles(70, 140)),
    ("*gpt-4o*", _Tiles(85, 170)),
    ("*gpt-4.1*", _Tiles(85, 170)),
    ("*gpt-4-*", _Tiles(85, 170)),
    ("*gpt-4.5*", _Tiles(85, 170)),
    ("o[13]*", _Tiles(75, 150)),
    ("*/o[13]*", _Tiles(75, 150)),
    ("*claude-3*", _Area(1600)),
    ("*claude-sonnet-4*", _Area(1600)),
    ("*claude-haiku-4*", _Area(1600)),
    ("*claude-opus-4-[0-6]*", _Area(1600)),
    ("*claude*", _Area(4784)),
    ("*gemini-[12]*", _Crops()),
    ("*gemini*", _Flat(16 * 258)),  # later ones count by a resolution that the request names, or their own choice
    # The most that any documented open model takes (Qwen's vision models at their largest). Many enlarge small images.
    ("*", _Flat(16_384)),
)

# A page of a PDF: its text and, beside it, an image of it. Anthropic says 1,500 to 3,000 tokens of text; nobody says what others make
# of a page, but a dense one has not more than that. This is no bound: a page may be printed in letters that nobody can read.
_PAGE_TEXT_TOKENS: Final = 3_000
_PAGES: Final = (
    ("*claude*", _PAGE_TEXT_TOKENS),
    ("*gemini*", 0),
    ("*gpt-*", _PAGE_TEXT_TOKENS),
    ("o[134]*", _PAGE_TEXT_TOKENS),
    ("*/o[134]*", _PAGE_TEXT_TOKENS),
)

# Sound, tokens a second. OpenAI says one for 100 ms, and prices what its transcribing models read as if it were 17; Gemini 32, which is
# the most of all that are documented. No WAV or MP3 has fewer than 1,000 bytes for a second.
_SOUND: Final = (("*transcribe*", 20), ("*gpt-*", 10), ("*", 32))
_SOUND_BYTES_PER_TOKEN: Final = 30


@lru_cache(maxsize=1024)
def image_tokens(model: str, image: Image) -> int:
    """At most. `model` is its name."""
    for glob, rule in _IMAGES:
        if fnmatchcase(model, glob):
            known = image.width > 0 and image.height > 0
            return rule.tokens(image.width if known else 0, image.height if known else 0, image.detail)
    raise AssertionError("the last rule matches every model")


def attachment_tokens(model: str, attachments: Sequence[Attachment]) -> int | None:
    """At most, of all together. None: nothing but the context bounds them."""
    tokens = 0
    for each in attachments:
        taken = _sound_tokens(model, each) if each.kind == "audio" else _pages_tokens(model, each.pages)
        if taken is None:
            return None
        tokens += taken
    return tokens


def _sound_tokens(model: str, sound: Attachment) -> int:
    if not sound.duration_ms:
        return sound.size // _SOUND_BYTES_PER_TOKEN + 1
    rate = _first(_SOUND, model)
    assert rate is not None  # the last one matches every model
    return sound.duration_ms * rate // 1_000 + 1


def _pages_tokens(model: str, pages: int) -> int | None:
    """A file that is no PDF may be compressed text, and so may one whose pages can't be counted."""
    text = _first(_PAGES, model)
    if not pages or text is None:
        return None
    return pages * (text + image_tokens(model, Image("high")))


def _first(table: Sequence[tuple[str, int]], model: str) -> int | None:
    return next((value for glob, value in table if fnmatchcase(model, glob)), None)
