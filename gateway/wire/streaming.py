"""What the streams of all dialects share: events are metered as they pass, and the last is kept back until its call is settled."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core.meter import Meter
from gateway.wire.alike import Alike, alike
from gateway.wire.problem import Problem
from gateway.wire.sse import MAX_EVENT, Event, Events

_TRIES: Final = 4  # in a row to find what events have in common, before it is given up


class EventStream(ABC):
    """A streamed answer on its way to the client. What `feed` and `finish` return is, in all, the bytes that came, without the events
    that `_take_event` hides.

    The last event, and whatever follows it, is kept back until `finish`: a client that has it may start its next call, which should see
    this one settled. `done` says that the last event has come, so there is no need to wait for the end of the connection.
    """

    def __init__(self, meter: Meter, max_event: int = MAX_EVENT) -> None:
        self._meter = meter
        self._events = Events(max_event)
        self._tail: list[bytes] = []
        self._alike: Alike | None = None  # the event before, if nothing but its text is its own
        self._tries = _TRIES
        self.done = False
        self.error_seen = False  # the provider sent an error of its own

    # -- a dialect's own ------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All output was seen; the usage, and the last event, may still come."""
        return self.done

    @abstractmethod
    def _take_event(self, event: Mapping[str, Any]) -> bool:
        """Meters one event; whether it is to be hidden."""

    def _text_alone(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
        """Where an event has the only text that it meters, if another like it, right after it, would tell nothing but its own text: the
        object that has it, and the member's name."""
        del event
        return None

    @abstractmethod
    def _failure(self, problem: Problem) -> bytes:
        """The events that tell the client of it."""

    def _take_unread(self, text: bytes) -> None:
        """What is no JSON object, or a piece of an event too large to be read: the client may make sense of it."""
        self._meter.text(text.decode(errors="replace"))

    # -- what they share ------------------------------------------------------------------------------------------------------

    @property
    def cut(self) -> bool:
        """At the end of the stream: the provider broke off. Some never send their last event, so all output is enough."""
        return not self.done and not self.finished

    def feed(self, data: bytes) -> bytes:
        """What may be relayed now."""
        if self._alike is not None and not self._events.rest:
            text = self._alike.text_of(data)
            if text is not None:
                self._meter.text(text)
                self._tries = _TRIES
                return data
        relayed: list[bytes] = []
        events = self._events.feed(data)
        read = None
        for event in events:
            read = _object(event)
            hidden = self._take(event, read)
            if not hidden:
                (self._tail if self._keeps_back else relayed).append(event.raw)
        self._alike = None
        if read is not None and self._tries and len(events) == 1 and not self._keeps_back:
            self._alike = self._likeness(events[0], read)
        return b"".join(relayed)

    def _likeness(self, event: Event, read: dict[str, Any]) -> Alike | None:
        place = self._text_alone(read)
        if place is None:
            return None
        self._tries -= 1
        return alike(event, read, *place)

    def finish(self) -> bytes:
        """The provider's stream has ended, or nothing more of it is wanted: what is still to be relayed. Half an event of a stream
        that was cut is not: the client would read it together with the error that follows."""
        event = self._events.finish()
        if event is not None:
            hidden = self._take(event, _object(event))
            if not hidden and not self.cut:
                self._tail.append(event.raw)
        tail, self._tail = b"".join(self._tail), []
        return tail

    def error_ending(self, problem: Problem) -> bytes:
        """Ends a stream that has failed. Nothing where the provider has sent an error of its own: SDKs raise at the first."""
        return b"" if self.error_seen else self._event_end() + self._failure(problem)

    @property
    def _keeps_back(self) -> bool:
        return self.done

    def _event_end(self) -> bytes:
        """A piece of an event too large to be kept may have been relayed: what follows must not be read as its rest."""
        return b"\n\n" if self._events.mid_event else b""

    def _take(self, event: Event, read: dict[str, Any] | None) -> bool:
        if read is not None:
            return self._take_event(read)
        if event.data is None:
            self._take_unread(event.raw)
        elif event.data.strip() == b"[DONE]":
            self.done = True
        elif event.data:
            self._take_unread(event.data)
        return False


def _object(event: Event) -> dict[str, Any] | None:
    """Its data as JSON; None: it is no object, or there is none."""
    try:
        read = orjson.loads(event.data) if event.data else None
    except orjson.JSONDecodeError:
        return None
    return read if type(read) is dict else None
