"""Streams of events that each say their type, as sound and images are streamed: relayed as they come, the last one kept back."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core.meter import Meter
from gateway.wire.chat import error_event
from gateway.wire.problem import Problem
from gateway.wire.streaming import EventStream

MAX_EVENT: Final = 32 * 1024 * 1024  # an image is one event


class TypedStream(EventStream):
    """`last`: the types of the events that end it, once there were `endings` of them. `read_event` meters one. Some send `[DONE]` behind
    the last event, some don't: the connection's end says that it is done."""

    def __init__(
        self, meter: Meter, last: frozenset[str], read_event: Callable[[Mapping[str, Any], Meter], None], endings: int = 1
    ) -> None:
        super().__init__(meter, MAX_EVENT)
        self._last = last
        self._read_event = read_event
        self._endings = endings

    @property
    def finished(self) -> bool:
        return self._endings <= 0

    @property
    def cut(self) -> bool:
        return not self.finished

    @property
    def _keeps_back(self) -> bool:
        return self.finished

    def length_ending(self, problem: Problem) -> bytes:
        return self.error_ending(problem)

    def _failure(self, problem: Problem) -> bytes:
        return error_event(problem)

    def _take_unread(self, text: bytes) -> None:
        """Sound or a picture in letters: no text that was written."""

    def _take_event(self, event: Mapping[str, Any]) -> bool:
        if event.get("error") or event.get("type") == "error":
            self.error_seen = True
        self._read_event(event, self._meter)
        if event.get("type") in self._last:
            self._endings -= 1
        return False
