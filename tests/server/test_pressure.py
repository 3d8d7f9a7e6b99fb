"""When the event loop is late for long enough, calls are shed; when it is in time again, they are not."""

from gateway.server.pressure import LATE_FOR_S, LATE_S, TICK_S, TIMELY_TICKS, Pressure


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


LATE = LATE_S + 0.01


def test_a_loop_that_is_in_time_or_a_little_late_sheds_nothing() -> None:
    assert not any(Loop().ticks(100) + Loop().ticks(100, LATE_S * 0.9))


def test_one_long_stall_sheds_nothing() -> None:
    loop = Loop()
    for _ in range(5):
        assert not any(loop.ticks(1, 30.0) + loop.ticks(1))


def test_a_loop_that_stays_late_sheds_until_it_has_been_in_time_for_a_moment() -> None:
    loop = Loop()
    spent = LATE_FOR_S / (TICK_S + LATE)
    assert loop.ticks(int(spent) + 1, LATE) == [False] * (int(spent) + 1)
    assert loop.ticks(1, LATE) == [True]
    assert loop.ticks(TIMELY_TICKS - 1) == [True] * (TIMELY_TICKS - 1)
    assert loop.ticks(10, LATE) == [True] * 10
    assert loop.ticks(TIMELY_TICKS) == [True] * (TIMELY_TICKS - 1) + [False]
    assert loop.ticks(int(spent) + 2, LATE)[-1]


def test_a_loop_that_is_very_late_sheds_at_its_second_late_tick() -> None:
    assert Loop().ticks(2, 2.0) == [False, True]
