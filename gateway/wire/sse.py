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
_SHORT: Final = 4_096  # bytes left over that may be copied with every piece that comes


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
        self.rest = bytearray()  # of an event that is unfinished
        self._scanned = 0  # bytes of `rest` in which no event ends
        self._past_bom = False  # none can come any more
        self.mid_event = False  # a piece of a too large event was given out, and its end was not

    def feed(self, data: bytes) -> list[Event]:
        # The fast path: plain line ends, and not much left over.
        rest = self.rest
        if not self._past_bom and not rest:
            self._past_bom = not _BOM.startswith(data[:1])
        if not self._past_bom or self.mid_event or len(rest) > _SHORT or b"\r" in data or len(data) >= self._max_event:
            return self._feed_slowly(data)
        if rest:
            data = bytes(rest) + data
            if b"\r" in rest or len(data) > self._max_event:
                return self._feed_slowly(data[len(rest) :])
            rest.clear()
        parts = data.split(b"\n\n")
        rest += parts.pop()
        self._scanned = len(rest)
        return [Event(part + b"\n\n", _plain_data(part)) for part in parts]

    def finish(self) -> Event | None:
        """What was left at the end of the stream, read as if an empty line had followed."""
        if not self.rest:
            return None
        event = self._event(bytes(self.rest))
        self.rest.clear()
        self._scanned = 0
        return event

    def _feed_slowly(self, data: bytes) -> list[Event]:
        rest = self.rest
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
        data = _data(raw if self._past_bom else raw.removeprefix(_BOM))
        self._past_bom = True
        return Event(raw, data)


def _plain_data(text: bytes) -> bytes:
    """Of an event without its end, and without a CR. Nearly every one is a line of data, maybe with the event's name before it."""
    line = text.partition(b"\n")[2] if text.startswith(b"event: ") else text
    return line[6:] if line.startswith(b"data: ") and b"\n" not in line else _data(text)


def _data(raw: bytes) -> bytes:
    lines = []
    for line in raw.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)
