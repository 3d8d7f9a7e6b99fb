"""What the scripts keep and are sent: numbers, as doubles, and texts one after the other, as Lua's struct and cmsgpack read and write them.

Numbers are integers, exact to 2^53. Texts go in as str or bytes and come back as bytes.
"""

import struct
from collections.abc import Sequence
from typing import Final

NUMBER_SIZE: Final = 8
_TEXTS: Final = ((0xD9, 1), (0xDA, 2), (0xDB, 4))  # by the byte in front: bytes of the length. MessagePack's, above 31
_SIZES: Final = dict(_TEXTS)
_SHORT: Final = 0xA0


def _head(size: int) -> bytes:
    if size < 32:
        return bytes((_SHORT | size,))
    mark, width = next((mark, width) for mark, width in _TEXTS if size < 1 << 8 * width)
    return bytes((mark,)) + size.to_bytes(width, "big")


_HEADS: Final = tuple([_head(size) for size in range(1_024)])


def packed_numbers(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpacked_numbers(data: bytes) -> list[int]:
    return [int(number) for number in struct.unpack(f"<{len(data) // NUMBER_SIZE}d", data)]


def packed_texts(*texts: str | bytes) -> bytes:
    return b"".join([packed_text(each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each) for each in texts])


def packed_text(text: bytes) -> bytes:
    size = len(text)
    return (_HEADS[size] if size < len(_HEADS) else _head(size)) + text


def unpacked_texts(data: bytes) -> Sequence[bytes]:
    """All of them. ValueError where it is none of what is written here."""
    texts = []
    at = 0
    while at < len(data):
        mark = data[at]
        at += 1
        if mark in _SIZES:
            start = at + _SIZES[mark]
            size = int.from_bytes(data[at:start], "big")
        elif mark & 0xE0 == _SHORT:
            start, size = at, mark & 0x1F
        else:
            raise ValueError(f"no text begins with {mark:#x}")
        at = start + size
        texts.append(data[start:at])
    if at > len(data):
        raise ValueError("the last text was cut off")
    return texts
