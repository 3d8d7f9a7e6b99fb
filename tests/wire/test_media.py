"""Sizes, lengths and pages are read from the first bytes of what is sent; what can't be read is not known."""

import base64
import binascii
import random
import struct

import pytest

from gateway.core.values import Attachment, Image
from gateway.wire import media


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def frame(width: int, height: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, 3) + bytes(9))


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + bytes(40)
GIF = b"GIF89a" + struct.pack("<HH", 640, 480) + bytes(40)
BMP = b"BM" + bytes(12) + struct.pack("<Iii", 40, 640, -480) + bytes(40)
WEBP_LOSSY = b"RIFF" + bytes(4) + b"WEBPVP8 " + bytes(7) + b"\x9d\x01\x2a" + struct.pack("<HH", 640 | 0x4000, 480) + bytes(9)
WEBP_LOSSLESS = b"RIFF" + bytes(4) + b"WEBPVP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 639 | 479 << 14) + bytes(9)
WEBP_EXTENDED = b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + struct.pack("<I", 639)[:3] + struct.pack("<I", 479)[:3] + bytes(9)
JPEG = b"\xff\xd8" + segment(0xE0, b"JFIF" + bytes(10)) + segment(0xDB, bytes(65)) + frame(640, 480) + bytes(20)
# A preview in the metadata has a frame of its own, which is not the image's.
PHOTO = (
    b"\xff\xd8"
    + segment(0xE1, b"Exif\0\0" + b"\xff\xd8" + frame(160, 120) + bytes(60_000))
    + segment(0xC4, bytes(90))
    + b"\xff"
    + frame(640, 480, 0xC2)
)


@pytest.mark.parametrize("data", [PNG, GIF, BMP, WEBP_LOSSY, WEBP_LOSSLESS, WEBP_EXTENDED, JPEG, PHOTO])
def test_the_size_of_an_image_is_read_from_its_head(data: bytes) -> None:
    assert media.image(url(data), "high") == Image("high", 640, 480)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://example.com/a.png",
        "data:image/png;base64",
        "data:image/png," + "x" * 99,
        "data:image/png;base64,???" + "x" * 99,
        "data:image/png;base64,größe",
        url(PNG[:20]),
        url(b"\x89PNG\r\n\x1a\n" + bytes(60)),
        url(b"\xff\xd8" + segment(0xE0, bytes(30))),
        url(b"\xff\xd8\xff\xe0\xff\xff" + bytes(60)),
        url(PHOTO[:30_000]),
        url(b"\xff\xd8" + segment(0xE1, bytes(60_000)) * 9 + frame(640, 480)),  # further on than anybody looks
        url(b"GIF89a" + bytes(60)),
        url(b"RIFF" + bytes(4) + b"WEBPALPH" + bytes(60)),
        url(b"<svg xmlns='http://www.w3.org/2000/svg' width='640' height='480'/>"),
    ],
)
def test_an_image_that_does_not_show_its_size_has_none(text: str) -> None:
    assert media.image(text, "auto") == Image("auto")


def test_only_the_head_of_an_image_is_looked_at() -> None:
    text = url(PNG + bytes(3_000_000))
    assert media.image(text[:6_000] + "?" * 1_000_000, "low") == Image("low", 640, 480)


def test_sound_has_the_length_that_its_head_says() -> None:
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", 64_000)
    wav = base64.b64encode(b"RIFF" + bytes(4) + head + bytes(64_000)).decode()
    assert media.sound(wav) == Attachment("audio", media.decoded_size(wav), duration_ms=2_000)
    assert media.sound("") == Attachment("audio", 0)


def pdf(*objects: bytes) -> bytes:
    return b"%PDF-1.4\n" + b"\n".join(b"%d 0 obj\n%b\nendobj" % (number, each) for number, each in enumerate(objects, 1))


TREE = b"<< /Type /Pages /Kids [2 0 R 3 0 R] /Count 2 >>"
PAGE = b"<< /Type /Page /Parent 1 0 R >>"


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        (pdf(TREE, PAGE, PAGE), 2),
        (pdf(TREE, b"<</Type/Page>>", b"<</Type\n/Page/Parent 1 0 R>>"), 2),
        (pdf(TREE, PAGE, PAGE, PAGE), 3),  # of an older revision
        (pdf(TREE, PAGE), 0),
        (pdf(PAGE, PAGE), 0),
        (pdf(TREE, PAGE, PAGE, b"<< /Type /ObjStm >>"), 0),
        (pdf(TREE, PAGE, PAGE, b"<< /Type /P#61ge >>"), 0),
        (pdf(TREE, PAGE, PAGE, b"<< /Type 9 0 R >>"), 0),
        (pdf(TREE, PAGE, PAGE, b"<< /Type % well\n /Page >>"), 0),
    ],
)
def test_pages_are_counted_where_they_show_and_never_low(data: bytes, pages: int) -> None:
    text = base64.b64encode(data).decode()
    assert media.file(text) == Attachment("pdf", media.decoded_size(text), pages=pages)
    assert media.file(f"data:application/pdf;base64,{text}").pages == pages


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(99), b"plain text, as long as it is"])
def test_any_other_file_has_a_size_and_nothing_else(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert media.file(text) == Attachment("file", media.decoded_size(text))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("every", [0, 76, 65_536])
def test_what_is_decoded_in_pieces_is_what_would_be_decoded_at_once(cut: int, every: int) -> None:
    raw = random.Random(cut).randbytes(900_000 + cut)
    text = base64.b64encode(raw).decode()
    if every:
        text = "\n".join(text[at : at + every] for at in range(0, len(text), every))
    assert media._decoded(text) == raw


@pytest.mark.parametrize("odd", ["AAAA=AAA", "AA==AAAA", "A", "é"])
def test_oddities_in_a_long_text_are_decoded_as_they_are_at_once(odd: str) -> None:
    for text in ("A" * 300_000 + odd + "A" * 300_000, odd + "A" * 600_000, "A" * 600_000 + odd):
        try:
            expected = binascii.a2b_base64(text)
        except ValueError:
            expected = b""
        assert media._decoded(text) == expected
