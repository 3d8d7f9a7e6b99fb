"""A clock that stands still until a test moves it."""

from dataclasses import dataclass

NOW_MS = 1_796_040_000_000  # 2026-11-30T12:00:00Z


@dataclass
class Clock:
    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms
