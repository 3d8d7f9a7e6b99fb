"""Server-sent events, cut out of a byte stream: each with its original bytes, so that what is relayed is what was received.

A line ends with LF, CRLF or CR; an event ends with an empty line. Chunks may be cut anywhere, inside a CRLF or a character too.
"""

import re
from typing import Final

from gateway.core.record import record

MAX_EVENT: Final = 8 * 1024 * 1024  # bytes of one event that are kept together

_BOM: Final = b"\xef\xbb\xbf"
# Two line ends in a row. The group is atomic: a CRLF must never count as a CR and an LF.
_END: Final = re.compile(rb"(?>\r\n|\n|\r){2}")
_LONGEST_END: Final = 4


@record
class Event:
    """`raw` is everything up to the end of the empty line. `data` is the event's data; empty for comments and the like; None
    where the event is unfinished or too large to be kept, and `raw` is a piece of it."""

    raw: bytes
    data: bytes | None


class Events:
    """Feed it bytes, get events. An event is given out once its last byte has come (a CR at the very end: once the next byte
    has shown that no LF belongs to it)."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max_event = max_event
        self._rest = bytearray()
        self._scanned = 0  # bytes of `_rest` in which no event ends
        self._started = False  # a first event was given out, so no BOM can come any more
        self.mid_event = False  # a piece of a too large event was given out, and its end was not

    def feed(self, data: bytes) -> list[Event]:
        # The fast path: nothing is left over, and what came is whole events with plain line ends.
        if self._started and not self._rest and not self.mid_event and data.endswith(b"\n\n") and b"\r" not in data:
            return [Event(raw, _data(raw)) for raw in (part + b"\n\n" for part in data.split(b"\n\n")[:-1])]
        return self._feed_slowly(data)

    def finish(self) -> Event | None:
        """What was left at the end of the stream, read as if an empty line had followed."""
        if not self._rest:
            return None
        event = self._event(bytes(self._rest))
        self._rest.clear()
        self._scanned = 0
        return event

    def _feed_slowly(self, data: bytes) -> list[Event]:
        rest = self._rest
        rest += data
        events = []
        start, search_from = 0, max(0, self._scanned - _LONGEST_END)
        while (match := _END.search(rest, search_from)) is not None:
            end = match.end()
            if end == len(rest) and rest.endswith(b"\r"):
                break
            events.append(self._event(bytes(rest[start:end])))
            start = search_from = end
        del rest[:start]
        if len(rest) > self._max_event:
            # The last bytes stay: they may be the first of the end.
            events.append(Event(bytes(rest[:-_LONGEST_END]), None))
            del rest[:-_LONGEST_END]
            self.mid_event = True
        self._scanned = len(rest)
        return events

    def _event(self, raw: bytes) -> Event:
        if self.mid_event:
            self.mid_event = False
            return Event(raw, None)
        data = _data(raw if self._started else raw.removeprefix(_BOM))
        self._started = True
        return Event(raw, data)


def _data(raw: bytes) -> bytes:
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return raw[6:-2]
    lines = []
    for line in raw.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)
