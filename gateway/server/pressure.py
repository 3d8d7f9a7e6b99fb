"""Whether this process has more to do than it gets done: told by how late the event loop's own timer is. Pure."""

from typing import Final

TICK_S: Final = 0.25
LATE_S: Final = 0.25  # a tick that is so much later than it should be is late
LATE_TICKS: Final = 4  # in a row, before calls are shed
TIMELY_TICKS: Final = 2  # in a row, before they are taken again


class Pressure:
    """`tick` is due every `TICK_S`."""

    def __init__(self) -> None:
        self._due: float | None = None
        self._against = 0  # ticks in a row that speak against `high` as it is
        self.high = False

    def tick(self, now: float) -> None:
        late = self._due is not None and now - self._due > LATE_S
        self._due = now + TICK_S
        self._against = self._against + 1 if late is not self.high else 0
        if self._against >= (TIMELY_TICKS if self.high else LATE_TICKS):
            self.high, self._against = late, 0
