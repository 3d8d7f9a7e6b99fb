"""What the body shows of images, sound and files: what bounds the tokens that they take. Nothing is decoded but base64.

What can't be read is not known, and what is not known is bounded by the rule for the largest (see `core.media`). Sizes are what the file's
head says; a decoder believes the same.
"""

import binascii
import re
from typing import Final

from gateway.core.values import Attachment, Image
from gateway.wire.sound import duration_ms

_HEAD_CHARS: Final = 4_096  # of base64: 3 KB, more than any format but JPEG needs
_JPEG_CHARS: Final = 524_288  # colour profiles and previews may stand before the size
_AT_ONCE_CHARS: Final = 262_144  # of base64: whole groups of four
_PDF_STARTS_WITHIN: Final = 1_024  # bytes

_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PAGES: Final = re.compile(rb"/Count\s+(\d{1,9})")
# Pages that don't show: in compressed objects, or under a name that is written another way.
_PAGES_HIDDEN: Final = re.compile(rb"/ObjStm|/[A-Za-z]*#[0-9A-Fa-f]{2}|/Type\s*[%\d]")


def image(url: str, detail: str) -> Image:
    """`url`: a `data:` URL, or an address, which shows nothing."""
    data = _data_of(url, _HEAD_CHARS)
    width, height = _size(data)
    if data[:2] == b"\xff\xd8" and not width:
        width, height = _jpeg(_data_of(url, _JPEG_CHARS))
    return Image(detail, width, height) if width > 0 and height > 0 else Image(detail, mark=hash(url))


def picture(data: bytes, detail: str) -> Image:
    """The same of an image's bytes."""
    width, height = _size(data[:_HEAD_CHARS])
    if data[:2] == b"\xff\xd8" and not width:
        width, height = _jpeg(data[:_JPEG_CHARS])
    return Image(detail, width, height) if width > 0 and height > 0 else Image(detail)


def sound(data: str) -> Attachment:
    """`data`: base64."""
    decoded = _decoded(data)
    return Attachment("audio", decoded_size(data), duration_ms=duration_ms(decoded) if decoded else 0, mark=hash(data))


def file(data: str) -> Attachment:
    """`data`: base64, with or without `data:…,` before it."""
    size = decoded_size(data)
    head, comma, _ = data[:256].partition(",")
    decoded = _decoded(data[len(head) + 1 :] if comma and head.startswith("data:") else data)
    if b"%PDF" not in decoded[:_PDF_STARTS_WITHIN]:
        return Attachment("file", size, mark=hash(data))
    return Attachment("pdf", size, pages=_pages(decoded), mark=hash(data))


def decoded_size(data: str) -> int:
    """The bytes that base64 text stands for, rounded up (a `data:` prefix counts as data)."""
    return -(-len(data) * 3 // 4)


def _data_of(url: str, chars: int) -> bytes:
    """The first bytes of a `data:` URL in base64; none of anything else."""
    if not url.startswith("data:"):
        return b""
    start = url.find(",", 0, 256) + 1
    if start == 0 or not url[:start].lower().endswith(";base64,"):
        return b""
    return _decoded(url[start : start + chars])


def _decoded(text: str) -> bytes:
    try:
        return _in_pieces(text) or binascii.a2b_base64(text)
    except (binascii.Error, ValueError):  # not base64, or not ASCII
        return b""


def _in_pieces(text: str) -> bytes:
    """Other threads have their turn between two of them: at once, 20 MB would stop all for 80 ms. Nothing where the text is short, or may not
    be cut there: it has line ends, or padding before its end."""
    if len(text) <= _AT_ONCE_CHARS or "=" in text[:-2]:
        return b""
    try:
        return b"".join([binascii.a2b_base64(text[at : at + _AT_ONCE_CHARS]) for at in range(0, len(text), _AT_ONCE_CHARS)])
    except binascii.Error:
        return b""


# -- images ---------------------------------------------------------------------------------------------------------------------


def _size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels; zeros where the bytes don't say."""
    if len(data) < 30:
        return 0, 0
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _little(data, 6, 2), _little(data, 8, 2)
    if data[:2] == b"BM" and _little(data, 14, 4) >= 40:
        return _little(data, 18, 4), abs(int.from_bytes(data[22:26], "little", signed=True))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return _jpeg(data) if data[:2] == b"\xff\xd8" else (0, 0)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data, 24, 3) + 1, _little(data, 27, 3) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _little(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0


def _jpeg(data: bytes) -> tuple[int, int]:
    """From the first frame's head, segment by segment."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # no segment follows
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return 0, 0


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


# -- files ----------------------------------------------------------------------------------------------------------------------


def _pages(pdf: bytes) -> int:
    """At most, those of older revisions counted too; 0: not known."""
    if _PAGES_HIDDEN.search(pdf):
        return 0
    pages = sum(1 for _ in _PAGE.finditer(pdf))
    stated = max((int(number) for number in _PAGES.findall(pdf)), default=0)
    return pages if pages >= stated > 0 else 0
