"""Where the next page of a list begins. A cursor belongs to the question that it came with: with another it is refused. Pure."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.cycles.faults import invalid
from gateway.cycles.kept import digest

_EXPECTED = "the next_cursor of the page before, with the same filters and order"


def mark(*question: object) -> str:
    """Equal for equal questions."""
    return digest(question)[:16]


def write(question: str, last: Sequence[object]) -> str:
    """`last`: what the page's last row is ordered by."""
    return base64.urlsafe_b64encode(orjson.dumps([question, last])).decode().rstrip("=")


def read(cursor: str | None, question: str, *kinds: type) -> Sequence[Any] | None:
    """None: the first page. `kinds`: of what the rows are ordered by. Fault INVALID_REQUEST."""
    if cursor is None:
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        asked, last = found
    except (ValueError, TypeError, binascii.Error):
        raise invalid("cursor", _EXPECTED) from None
    if asked != question or type(last) is not list or tuple(map(type, last)) != kinds:
        raise invalid("cursor", _EXPECTED)
    return last
