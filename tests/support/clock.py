"""A clock that stands still until a test moves it."""

from collections.abc import Callable

NOW_MS = 1_796_040_000_000  # 2026-11-30T12:00:00Z


class Clock:
    def __init__(self, now_ms: int = NOW_MS) -> None:
        self._now_ms = now_ms
        self._told: list[Callable[[int], None]] = []

    def __call__(self) -> int:
        return self._now_ms

    @property
    def now_ms(self) -> int:
        return self._now_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self._now_ms = now_ms
        for tell in self._told:
            tell(now_ms)

    def tell(self, tell: Callable[[int], None]) -> None:
        """Calls it now, and whenever the clock is moved."""
        self._told.append(tell)
        tell(self._now_ms)
