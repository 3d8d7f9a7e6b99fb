"""Request bodies: inflated within a limit, then parsed once. What can be read in two ways is refused.

The provider reads what we read: the body goes upstream encoded again from what was parsed here. orjson already refuses NaN, lone
surrogates, a BOM, bytes that are not UTF-8 and deep nesting, and keeps the last of duplicate keys. The one thing it lets pass
changed is an integer beyond 64 bits, which it makes a float.
"""

import json
import re
import zlib
from typing import Any, Final

import orjson

from gateway.wire.problem import Problem, Refused, bad_request, problem

# More digits than this may leave 64 bits. One byte stands for every digit, because searching for a run of it is 15 times faster
# than a regular expression over the whole body.
SUSPICIOUS_DIGITS: Final = b"0" * 19
ANY_DIGIT: Final = bytes.maketrans(b"123456789", b"0" * 9)
_RUN: Final = re.compile(rb"0*")
# What may stand around the integer part of a JSON number. Ids and timestamps of 19 digits are common in text, and mostly stand otherwise.
_BEFORE_NUMBER: Final = b" \t\n\r:,[-"
_AFTER_NUMBER: Final = b" \t\n\r,]}.eE"

MAX_CODINGS: Final = 4  # of one body, one around the other
MAX_MEMBERS: Final = 16  # of one gzip body: each costs a copy of what follows it


def inflate(raw: bytes, content_encoding: str | None, limit: int) -> bytes:
    """The body as the client meant it, never more than `limit` bytes. `content_encoding` is the header, or None.
    Refused: 415 unsupported_encoding, 413 request_too_large, 400 ambiguous_request (cut short or damaged)."""
    if len(raw) > limit:
        raise Refused(too_large(limit))
    if content_encoding is None:
        return raw
    codings = [coding for each in content_encoding.split(",") if (coding := each.strip().lower()) not in ("", "identity")]
    if len(codings) > MAX_CODINGS:
        raise bad_request("unsupported_encoding", f"Content-Encoding names more than {MAX_CODINGS} codings.", "Content-Encoding")
    for coding in reversed(codings):  # they are listed in the order in which they were applied
        if coding in ("gzip", "x-gzip"):
            raw = _gunzip(raw, limit)
        elif coding == "deflate":
            raw = _undeflate(raw, limit)
        else:
            raise bad_request(
                "unsupported_encoding",
                f"Content-Encoding {coding[:40]!r} is not supported: send gzip, deflate, or the body as it is.",
                "Content-Encoding",
            )
    return raw


def _gunzip(raw: bytes, limit: int) -> bytes:
    """One gzip member after the other, as the format allows."""
    content = b""
    for _ in range(MAX_MEMBERS):
        member, raw = _decompress(raw, 16 + zlib.MAX_WBITS, limit - len(content))
        if len(member) > limit - len(content):
            raise Refused(too_large(limit))
        content += member
        if not raw:
            return content
    raise bad_request("ambiguous_request", f"The compressed request body has more than {MAX_MEMBERS} gzip members.")


def _undeflate(raw: bytes, limit: int) -> bytes:
    """RFC 9110 means the zlib format; some clients send bare deflate data. A zlib header is known by its checksum."""
    wrapped = len(raw) >= 2 and raw[0] & 0x0F == 8 and int.from_bytes(raw[:2]) % 31 == 0
    content, rest = _decompress(raw, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS, limit)
    if len(content) > limit:
        raise Refused(too_large(limit))
    if rest:
        raise bad_request("ambiguous_request", "The compressed request body is followed by something else.")
    return content


def _decompress(raw: bytes, wbits: int, room: int) -> tuple[bytes, bytes]:
    """One compressed stream → its content and what follows it. Stops at one byte more than `room`: a small body can hold a huge one."""
    stream = zlib.decompressobj(wbits)
    try:
        content = stream.decompress(raw, room + 1)
    except zlib.error:
        raise bad_request("ambiguous_request", "The compressed request body is damaged.") from None
    if not stream.eof and len(content) <= room:
        raise bad_request("ambiguous_request", "The compressed request body is cut short.")
    return content, stream.unused_data


def too_large(limit: int) -> Problem:
    return problem(
        "request_too_large", f"The request body is larger than {limit:,} bytes: send less, or raise limits.max_request."
    )


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object, or Refused 400 `ambiguous_request` saying what was wrong."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if not raw:
            raise bad_request("ambiguous_request", "The request body is empty; a JSON object was expected.") from None
        raise bad_request("ambiguous_request", f"The request body is not valid JSON: {error}.") from None
    if type(body) is not dict:
        raise bad_request("ambiguous_request", "The request body is JSON, but not an object.")
    if _may_hold_a_long_number(raw.translate(ANY_DIGIT)):
        _refuse_integers_beyond_64_bits(raw)
    return body


def _may_hold_a_long_number(zeros: bytes) -> bool:
    """`zeros`: JSON with every digit a 0. False is sure; True may also be a string that looks so."""
    start = zeros.find(SUSPICIOUS_DIGITS)
    while start >= 0:
        run = _RUN.match(zeros, start)
        assert run is not None
        end = run.end()
        if zeros[start - 1] in _BEFORE_NUMBER and zeros[end] in _AFTER_NUMBER:  # an object's braces stand around everything
            return True
        start = zeros.find(SUSPICIOUS_DIGITS, end)
    return False


def _refuse_integers_beyond_64_bits(raw: bytes) -> None:
    """Slow and exact. Digits inside strings are fine, and so are those of a fraction."""
    try:
        json.loads(raw, parse_int=_integer_within_64_bits)
    except RecursionError:
        raise too_deep() from None


def _integer_within_64_bits(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise bad_request("ambiguous_request", "The request body has an integer beyond 64 bits.")
    return 0  # the value is orjson's business


def too_deep() -> Refused:
    return bad_request("ambiguous_request", "The request body is nested too deeply.")
