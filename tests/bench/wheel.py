"""A timing wheel: thousands of things that come due, in slots of half a millisecond; adding and taking one costs the same however many wait."""

import math
from typing import Final, Generic, TypeVar

T = TypeVar("T")
TICK_S: Final = 0.0005


class Wheel(Generic[T]):
    """Times are seconds of one clock. Things come in the order of their slots, never before their time, and a tick late at most."""

    def __init__(self, now_s: float) -> None:
        self._slots: dict[int, list[T]] = {}
        self._next = int(now_s / TICK_S)  # the first slot that was not taken yet

    def add(self, due_s: float, thing: T) -> None:
        slot = max(math.ceil(due_s / TICK_S), self._next)
        waiting = self._slots.get(slot)
        if waiting is None:
            self._slots[slot] = [thing]
        else:
            waiting.append(thing)

    def take(self, now_s: float) -> list[T]:
        """All that is due."""
        upto = int(now_s / TICK_S)
        slots = self._slots
        taken: list[T] = []
        if slots:
            for slot in range(self._next, upto + 1):
                if slot in slots:
                    taken += slots.pop(slot)
        self._next = max(self._next, upto + 1)
        return taken

    def wait_s(self, now_s: float) -> float | None:
        """Until the next thing is due; None: nothing waits."""
        if not self._slots:
            return None
        slot = self._next
        while slot not in self._slots:
            slot += 1
        return max(0.0, slot * TICK_S - now_s)
