"""When the event loop is late for long enough, calls are shed; when it is in time again, they are not."""

from gateway.server.pressure import LATE_S, LATE_TICKS, TICK_S, TIMELY_TICKS, Pressure


class Loop:
    """Its ticks come as late as each is told to."""

    def __init__(self) -> None:
        self.pressure = Pressure()
        self._now = 100.0
        self.pressure.tick(self._now)

    def ticks(self, number: int, late_s: float = 0.0) -> list[bool]:
        high = []
        for _ in range(number):
            self._now += TICK_S + late_s
            self.pressure.tick(self._now)
            high.append(self.pressure.high)
        return high


LATE = 2 * LATE_S


def test_a_loop_that_is_in_time_or_a_little_late_sheds_nothing() -> None:
    assert not any(Loop().ticks(100) + Loop().ticks(100, LATE_S * 0.9))


def test_one_long_stall_sheds_nothing() -> None:
    loop = Loop()
    assert not any(loop.ticks(1, 30.0) + loop.ticks(1) + loop.ticks(LATE_TICKS - 1, LATE) + loop.ticks(1, 0.0))


def test_a_loop_that_stays_late_sheds_until_it_has_been_in_time_for_a_moment() -> None:
    loop = Loop()
    assert loop.ticks(LATE_TICKS, LATE) == [False] * (LATE_TICKS - 1) + [True]
    assert loop.ticks(TIMELY_TICKS - 1) == [True] * (TIMELY_TICKS - 1)
    assert loop.ticks(10, LATE) == [True] * 10
    assert loop.ticks(TIMELY_TICKS) == [True] * (TIMELY_TICKS - 1) + [False]
    assert loop.ticks(LATE_TICKS, LATE)[-1]
