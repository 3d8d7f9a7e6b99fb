"""The trace that a request belongs to: the caller's, by W3C's header or by Cycles' own, else a new one. A header that is no trace id is
taken as absent, never refused. Pure but for a new id, which whoever asks brings."""

import re
from collections.abc import Callable
from typing import Final

from multidict import CIMultiDictProxy

HEADER: Final = "X-Cycles-Trace-Id"

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
_TRACE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


def trace_of(headers: CIMultiDictProxy[str], new: Callable[[], str]) -> str:
    """32 lower-case hex digits, never all zero. `new` gives any 32."""
    parents = headers.getall("traceparent", ())
    if len(parents) == 1:
        match = _TRACEPARENT.fullmatch(parents[0])
        if match and match[1] != _NO_TRACE and match[2] != _NO_SPAN:
            return match[1]
    told = headers.getall(HEADER, ())
    if len(told) == 1 and _TRACE.fullmatch(told[0]) and told[0] != _NO_TRACE:
        return told[0]
    made = new()
    while made == _NO_TRACE:
        made = new()
    return made
