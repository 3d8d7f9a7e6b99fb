"""Streams of events that each say their type, as sound and images are streamed: relayed as they come, the last one kept back."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from gateway.core.meter import Meter
from gateway.wire.chat import error_event
from gateway.wire.problem import Problem
from gateway.wire.sse import Events

MAX_EVENT: Final = 32 * 1024 * 1024  # an image is one event


class TypedStream:
    """`last`: the types of the events that end it, once there were `endings` of them. `read_event` meters one."""

    def __init__(
        self, meter: Meter, last: frozenset[str], read_event: Callable[[Mapping[str, Any], Meter], None], endings: int = 1
    ) -> None:
        self._meter = meter
        self._last = last
        self._read_event = read_event
        self._endings = endings
        self._events = Events(MAX_EVENT)
        self._tail: list[bytes] = []
        self.done = False  # some send [DONE] behind the last event, some don't: the connection's end says it
        self.error_seen = False

    @property
    def finished(self) -> bool:
        return self._endings <= 0

    @property
    def cut(self) -> bool:
        return not self.finished

    def feed(self, data: bytes) -> bytes:
        relayed: list[bytes] = []
        for event in self._events.feed(data):
            self._take(event.data)
            (self._tail if self.finished else relayed).append(event.raw)
        return b"".join(relayed)

    def finish(self) -> bytes:
        event = self._events.finish()
        if event is not None:
            self._take(event.data)
            if not self.cut:
                self._tail.append(event.raw)
        tail, self._tail = b"".join(self._tail), []
        return tail

    def length_ending(self, problem: Problem) -> bytes:
        return self.error_ending(problem)

    def error_ending(self, problem: Problem) -> bytes:
        """Nothing where the provider has sent an error of its own: SDKs raise at the first."""
        if self.error_seen:
            return b""
        return (b"\n\n" if self._events.mid_event else b"") + error_event(problem)

    def _take(self, data: bytes | None) -> None:
        if not data:
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if type(event) is not dict:
            return
        if event.get("error") or event.get("type") == "error":
            self.error_seen = True
        self._read_event(event, self._meter)
        if event.get("type") in self._last:
            self._endings -= 1
