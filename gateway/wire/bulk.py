"""Answers whose bulk nobody here reads: vectors, images. It is cut out before the rest is parsed, since parsing holds the interpreter for some
2 ms a MB of text and 4 of numbers; finding its end takes a tenth of that at most.

Where a key is written with its quotes and its colon, its value follows: inside a string the quotes would be escaped. A string ends at the next
quote, a list of numbers at the next bracket; where it does not, all is parsed.
"""

from typing import Any, Final

import orjson

_WHOLE_BELOW: Final = 65_536  # bytes; less is parsed in no time
_CLOSING: Final = {b'"': b'"', b"[": b"]"}
_ESCAPE: Final = b"\\"


def parsed_without(name: str, body: bytes) -> Any:
    """The JSON, with what stands under `name` emptied where it is long. Raises orjson.JSONDecodeError."""
    if len(body) >= _WHOLE_BELOW and (rest := _without(b'"%b":' % name.encode(), body)) is not None:
        try:
            return orjson.loads(rest)
        except orjson.JSONDecodeError:
            pass  # it is no list of numbers, or no JSON
    return orjson.loads(body)


def _without(key: bytes, body: bytes) -> bytes | None:
    """None: it is not as it should be."""
    pieces: list[bytes] = []
    done = 0
    while (found := body.find(key, done)) >= 0:
        start = found + len(key)
        start += body[start : start + 1] == b" "
        closing = _CLOSING.get(body[start : start + 1])
        end = start if closing is None else body.find(closing, start + 1)
        if end < 0 or (closing == b'"' and body[end - 1 : end] == _ESCAPE):
            return None
        pieces.append(body[done : start + (closing is not None)])
        done = end
    pieces.append(body[done:])
    return b"".join(pieces)
