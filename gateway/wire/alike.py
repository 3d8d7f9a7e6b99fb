"""Events of a stream that say the same as the one before, but for a text: nearly all of them, and the only ones that come by thousands.

    data: {"id":"c1","choices":[{"index":0,"delta":{"content":" river"},"finish_reason":null}]}
    ^------------------------- before ------------------------^  text ^--------- after --------^

Where what stands around the text is byte by byte the same, and the text is spelled without escapes, the event need not be read as JSON: it
can only say the same. Reading it is most of what a gateway does for a streamed token (ADR 20 has the figures).
"""

from typing import Any, Final

import orjson

from gateway.core.record import record
from gateway.wire.sse import Event

_PROBE: Final = "any other text"
_END: Final = b"\n\n"


@record
class Alike:
    """What stands around the text, its quotes included."""

    before: bytes
    after: bytes
    size: int  # of both

    def text_of(self, raw: bytes) -> str | None:
        """The text of an event that says the same but for it. None: it may say something else."""
        if len(raw) < self.size or not raw.startswith(self.before) or not raw.endswith(self.after):
            return None
        try:
            text = raw[len(self.before) : -len(self.after)].decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() and '"' not in text and "\\" not in text else None


def alike(event: Event, read: Any, holder: dict[str, Any], name: str) -> Alike | None:
    """Of an event as it came, and as it was read: `holder[name]` in there is its text. None: the text's place can't be told."""
    assert event.data is not None
    text = holder[name]
    lead, found, end = event.raw.partition(event.data)
    before, quoted, after = event.data.partition(b'"%b"' % text.encode())
    if not (found and quoted) or end != _END:
        return None
    before, after = before + b'"', b'"' + after
    holder[name] = _PROBE
    try:
        proven = orjson.loads(before + _PROBE.encode() + after) == read
    except orjson.JSONDecodeError:
        proven = False
    finally:
        holder[name] = text
    before, after = lead + before, after + end
    return Alike(before, after, len(before) + len(after)) if proven else None
