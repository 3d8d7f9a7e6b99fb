"""Budget windows: lifetime, a calendar minute … month in a timezone, or a rolling duration. Pure: the instant is an argument, in ms
since the epoch.

A rolling window is kept in buckets. What is committed lands in the bucket of that instant and counts until the whole bucket is older
than the window: never forgotten early, and at most one bucket (a 59th of the window) late.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

END_OF_TIME_MS: Final = 2**53
_SPANS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
BUCKETS: Final = 60  # of a rolling window, the one that fills included


class WindowKind(StrEnum):
    LIFETIME = "lifetime"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    ROLLING = "rolling"


@dataclass(frozen=True, slots=True)
class Window:
    """One concrete window, `[start_ms, end_ms)`. A rolling one is always the same: `[0, END_OF_TIME_MS)`, with its `span_ms`."""

    kind: WindowKind
    timezone: str
    start_ms: int
    end_ms: int
    span_ms: int = 0  # of a rolling window
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind is WindowKind.LIFETIME:
            key = self.kind.value
        elif self.kind is WindowKind.ROLLING:
            key = f"{self.kind.value}@{self.span_ms}"
        else:
            key = f"{self.kind.value}@{self.timezone}:{self.start_ms}"
        object.__setattr__(self, "key", key)

    def holds(self, at_ms: int) -> bool:
        return self.start_ms <= at_ms < self.end_ms

    @property
    def name(self) -> str:
        """As the policy writes it: `day`, `rolling 10m`."""
        return window_name(self.kind, self.span_ms)

    @property
    def bucket_ms(self) -> int:
        """The length of a rolling window's buckets; bucket `i` is `[i * bucket_ms, (i + 1) * bucket_ms)`. 0 for other windows."""
        return -(-self.span_ms // (BUCKETS - 1))

    def oldest_bucket(self, at_ms: int) -> int:
        """The index of the oldest bucket that still counts at the instant."""
        return at_ms // self.bucket_ms - BUCKETS + 1


LIFETIME: Final = Window(WindowKind.LIFETIME, "UTC", 0, END_OF_TIME_MS)


def rolling(span_ms: int) -> Window:
    return Window(WindowKind.ROLLING, "UTC", 0, END_OF_TIME_MS, span_ms)


def window_name(kind: WindowKind, span_ms: int) -> str:
    if kind is not WindowKind.ROLLING:
        return kind.value
    unit, length_ms = next((unit, length_ms) for unit, length_ms in _SPANS if span_ms % length_ms == 0)
    return f"{kind.value} {span_ms // length_ms}{unit}"


def window_at(kind: WindowKind, timezone: ZoneInfo, at_ms: int) -> Window:
    """The lifetime, or the calendar's window of that kind which holds the instant. A calendar day has 23 or 25 hours where the clock changes."""
    if kind is WindowKind.LIFETIME:
        return LIFETIME
    if kind is WindowKind.MINUTE or kind is WindowKind.HOUR:
        return _fixed(kind, timezone, at_ms)
    midnight = _local(at_ms, timezone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if kind is WindowKind.DAY:
        first, last = midnight, midnight + timedelta(days=1)
    elif kind is WindowKind.WEEK:
        first = midnight - timedelta(days=midnight.weekday())
        last = first + timedelta(days=7)
    else:
        assert kind is WindowKind.MONTH, kind
        first = midnight.replace(day=1)
        last = (first + timedelta(days=32)).replace(day=1)
    return Window(kind, timezone.key, _instant(first), _instant(last))


def _fixed(kind: WindowKind, timezone: ZoneInfo, at_ms: int) -> Window:
    """Minutes and hours are counted from the local full hour, on the absolute time line: zones off UTC by 30 or 45 minutes
    keep their own hours, and the hour that a clock change repeats is two windows."""
    length_ms = 60_000 if kind is WindowKind.MINUTE else 3_600_000
    offset_ms = _offset(at_ms, timezone)
    start_ms = (at_ms + offset_ms) // length_ms * length_ms - offset_ms
    end_ms = start_ms + length_ms
    # A clock change that is no whole number of windows (Lord Howe Island: half an hour) cuts the window it falls into, or two
    # windows would hold the same instant.
    if (_offset(start_ms, timezone) - offset_ms) % length_ms:
        start_ms = _change(start_ms, at_ms, timezone)
    if (_offset(end_ms - 1, timezone) - offset_ms) % length_ms:
        end_ms = _change(at_ms, end_ms - 1, timezone)
    return Window(kind, timezone.key, start_ms, end_ms)


def _offset(at_ms: int, timezone: ZoneInfo) -> int:
    offset = _local(at_ms, timezone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds() * 1000)


def _change(before_ms: int, after_ms: int, timezone: ZoneInfo) -> int:
    """The first instant with the offset of `after_ms`, which the offset of `before_ms` is not."""
    offset_ms = _offset(after_ms, timezone)
    while after_ms - before_ms > 1:
        middle_ms = (before_ms + after_ms) // 2
        if _offset(middle_ms, timezone) == offset_ms:
            after_ms = middle_ms
        else:
            before_ms = middle_ms
    return after_ms


def _local(at_ms: int, timezone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, timezone)


def _instant(local: datetime) -> int:
    """A local wall time → ms. `datetime` arithmetic within one zone is wall-clock arithmetic, which is what a calendar needs."""
    return int(local.timestamp()) * 1000
