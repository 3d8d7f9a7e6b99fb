"""What the streams of all dialects share: events are metered as they pass, and the last is kept back until its call is settled."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.core.meter import Meter
from gateway.wire.problem import Problem
from gateway.wire.sse import MAX_EVENT, Event, Events


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
        relayed: list[bytes] = []
        for event in self._events.feed(data):
            hidden = self._take(event)
            if not hidden:
                (self._tail if self._keeps_back else relayed).append(event.raw)
        return b"".join(relayed)

    def finish(self) -> bytes:
        """The provider's stream has ended, or nothing more of it is wanted: what is still to be relayed. Half an event of a stream
        that was cut is not: the client would read it together with the error that follows."""
        event = self._events.finish()
        if event is not None:
            hidden = self._take(event)
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

    def _take(self, event: Event) -> bool:
        data = event.data
        if not data:
            if data is None:
                self._take_unread(event.raw)
            return False
        try:
            read = orjson.loads(data)
        except orjson.JSONDecodeError:
            read = None
        if type(read) is dict:
            return self._take_event(read)
        if data.strip() == b"[DONE]":
            self.done = True
        else:
            self._take_unread(data)
        return False
