"""Whether this process has more to do than it gets done: told by how late the event loop's own timer is. Pure.

A call passes through the loop some eight times, so that each late tick means a call that takes eight times as much longer. Measured under
calls that came faster than they were served: 10 to 50 ms late, calls took half a second more and all were served; from 200 ms on, the calls
under way only grew in number, and within seconds the ticks came more than a second late. One long stall is no overload.
"""

from typing import Final

TICK_S: Final = 0.25
LATE_S: Final = 0.25  # a tick that is so much later than it should be is late
LATE_FOR_S: Final = 1.0  # with every tick late, before calls are shed
TIMELY_TICKS: Final = 2  # in a row, before they are taken again


class Pressure:
    """`tick` is due every `TICK_S`."""

    def __init__(self) -> None:
        self._due: float | None = None
        self._late_since: float | None = None  # the first of the late ticks in a row
        self._timely = 0  # ticks in a row
        self.high = False

    def tick(self, now: float) -> None:
        late = self._due is not None and now - self._due > LATE_S
        self._due = now + TICK_S
        if not late:
            self._late_since = None
            self._timely += 1
            self.high = self.high and self._timely < TIMELY_TICKS
            return
        self._timely = 0
        if self._late_since is None:
            self._late_since = now
        self.high = self.high or now - self._late_since >= LATE_FOR_S
