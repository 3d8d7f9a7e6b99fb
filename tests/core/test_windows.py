"""Every instant lies in exactly one window of each kind, whatever the clocks of the timezone do."""

from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.windows import BUCKETS, END_OF_TIME_MS, LIFETIME, Window, WindowKind, rolling, window_at

BERLIN, NEW_YORK, KATHMANDU, UTC = (ZoneInfo(n) for n in ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"))
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
CALENDAR = [kind for kind in WindowKind if kind not in (WindowKind.LIFETIME, WindowKind.ROLLING)]
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",  # +05:45
    "Australia/Lord_Howe",  # its clocks change by half an hour
    "America/Havana",  # midnight happens twice
    "Africa/Cairo",  # midnight does not happen
    "America/Santiago",
    "Pacific/Chatham",  # +12:45 and +13:45
    "Pacific/Kiritimati",  # +14:00
    "America/St_Johns",
]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def span(kind: WindowKind, zone: ZoneInfo, at: str) -> tuple[str, str]:
    """A window's ends in local time with their offsets."""
    window = window_at(kind, zone, ms(at))
    return tuple(datetime.fromtimestamp(end / 1000, zone).isoformat() for end in (window.start_ms, window.end_ms))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "zone", "at", "start", "end"),
    [
        # Days: 23 hours in spring, 25 in autumn, in both the first and the second of the repeated hours.
        (WindowKind.DAY, BERLIN, "2026-03-29T12:00Z", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        (WindowKind.DAY, BERLIN, "2026-10-25T00:30Z", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),
        (WindowKind.DAY, BERLIN, "2026-10-25T01:30Z", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),
        (WindowKind.DAY, NEW_YORK, "2026-03-08T12:00Z", "2026-03-08T00:00:00-05:00", "2026-03-09T00:00:00-04:00"),
        (WindowKind.DAY, NEW_YORK, "2026-11-01T05:30Z", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"),
        # Local midnight decides, not UTC's.
        (WindowKind.DAY, BERLIN, "2026-07-01T22:00Z", "2026-07-02T00:00:00+02:00", "2026-07-03T00:00:00+02:00"),
        (WindowKind.DAY, NEW_YORK, "2026-07-02T03:59:59.999Z", "2026-07-01T00:00:00-04:00", "2026-07-02T00:00:00-04:00"),
        (WindowKind.DAY, KATHMANDU, "2026-01-01T18:15Z", "2026-01-02T00:00:00+05:45", "2026-01-03T00:00:00+05:45"),
        # Weeks start on Monday, across a clock change too.
        (WindowKind.WEEK, UTC, "2026-11-01T23:59Z", "2026-10-26T00:00:00+00:00", "2026-11-02T00:00:00+00:00"),
        (WindowKind.WEEK, BERLIN, "2026-03-29T12:00Z", "2026-03-23T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        (WindowKind.DAY, LORD_HOWE, "2026-10-03T14:00Z", "2026-10-04T00:00:00+10:30", "2026-10-05T00:00:00+11:00"),
        (WindowKind.DAY, LORD_HOWE, "2026-04-04T14:30Z", "2026-04-05T00:00:00+11:00", "2026-04-06T00:00:00+10:30"),
        (WindowKind.WEEK, LORD_HOWE, "2026-10-03T14:00Z", "2026-09-28T00:00:00+10:30", "2026-10-05T00:00:00+11:00"),
        (WindowKind.WEEK, NEW_YORK, "2028-02-29T12:00Z", "2028-02-28T00:00:00-05:00", "2028-03-06T00:00:00-05:00"),
        # Months: their own lengths, leap years, the turn of the year.
        (WindowKind.MONTH, LORD_HOWE, "2026-10-31T12:59:59Z", "2026-10-01T00:00:00+10:30", "2026-11-01T00:00:00+11:00"),
        (WindowKind.MONTH, BERLIN, "2026-10-31T23:00Z", "2026-11-01T00:00:00+01:00", "2026-12-01T00:00:00+01:00"),
        (WindowKind.MONTH, UTC, "2100-02-28T23:59Z", "2100-02-01T00:00:00+00:00", "2100-03-01T00:00:00+00:00"),
        (WindowKind.MONTH, UTC, "2026-01-31T23:59Z", "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"),
        (WindowKind.MONTH, UTC, "2028-02-29T12:00Z", "2028-02-01T00:00:00+00:00", "2028-03-01T00:00:00+00:00"),
        (WindowKind.MONTH, NEW_YORK, "2026-11-30T12:00Z", "2026-11-01T00:00:00-04:00", "2026-12-01T00:00:00-05:00"),
        (WindowKind.MONTH, BERLIN, "2026-12-31T23:00Z", "2027-01-01T00:00:00+01:00", "2027-02-01T00:00:00+01:00"),
        # Hours and minutes are local ones where a zone is off by 45 minutes.
        (WindowKind.HOUR, KATHMANDU, "2026-01-01T00:20Z", "2026-01-01T06:00:00+05:45", "2026-01-01T07:00:00+05:45"),
        (WindowKind.MINUTE, KATHMANDU, "2026-01-01T00:20:30Z", "2026-01-01T06:05:00+05:45", "2026-01-01T06:06:00+05:45"),
    ],
)
def test_a_window_starts_and_ends_by_the_local_calendar(kind: WindowKind, zone: ZoneInfo, at: str, start: str, end: str) -> None:
    assert span(kind, zone, at) == (start, end)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        (BERLIN, "2026-03-29", 23),
        (BERLIN, "2026-10-25", 25),
        (NEW_YORK, "2026-03-08", 23),
        (NEW_YORK, "2026-11-01", 25),
        (LORD_HOWE, "2026-04-05", 24.5),
        (LORD_HOWE, "2026-10-04", 23.5),
        (UTC, "2026-03-29", 24),
    ],
)
def test_a_day_on_which_the_clocks_change_is_shorter_or_longer(zone: ZoneInfo, day: str, hours: float) -> None:
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=zone)
    window = window_at(WindowKind.DAY, zone, int(noon.timestamp() * 1000))
    assert window.end_ms - window.start_ms == hours * HOUR_MS


def test_the_hour_that_a_clock_change_repeats_is_two_windows() -> None:
    first, second = (window_at(WindowKind.HOUR, BERLIN, ms(f"2026-10-25T{hour}:30Z")) for hour in ("00", "01"))
    assert first.end_ms == second.start_ms
    assert first.key != second.key


def test_a_clock_change_of_half_an_hour_cuts_the_hour_it_falls_into() -> None:
    assert span(WindowKind.HOUR, LORD_HOWE, "2026-10-03T15:40Z") == ("2026-10-04T02:30:00+11:00", "2026-10-04T03:00:00+11:00")


def test_a_leap_day_is_a_day() -> None:
    assert span(WindowKind.DAY, UTC, "2028-02-29T00:00Z") == ("2028-02-29T00:00:00+00:00", "2028-03-01T00:00:00+00:00")


def test_a_lifetime_never_ends() -> None:
    assert window_at(WindowKind.LIFETIME, BERLIN, ms("2026-01-01T00:00Z")) is LIFETIME
    assert LIFETIME.holds(0)
    assert LIFETIME.holds(END_OF_TIME_MS - 1)
    assert LIFETIME.key == "lifetime"


def test_a_window_holds_its_first_instant_and_not_its_end() -> None:
    window = Window(WindowKind.DAY, "UTC", 1000, 2000)
    assert [window.holds(at) for at in (999, 1000, 1999, 2000)] == [False, True, True, False]


def test_the_key_names_kind_timezone_and_start() -> None:
    assert window_at(WindowKind.DAY, UTC, ms("2026-01-01T09:00Z")).key == "day@UTC:1767225600000"
    assert (
        window_at(WindowKind.MONTH, BERLIN, ms("2026-01-01T09:00Z")).key == f"month@Europe/Berlin:{ms('2026-01-01T00:00+01:00')}"
    )


@pytest.mark.parametrize("zone", [UTC, BERLIN, NEW_YORK, LORD_HOWE], ids=str)
@pytest.mark.parametrize(
    ("first", "days"),
    [("2026-03-01", 40), ("2026-10-01", 40), ("2026-12-20", 20), ("2028-02-20", 20)],
    ids=["spring", "autumn", "the turn of the year", "a leap day"],
)
def test_a_clock_that_walks_on_meets_every_window_once_and_each_starts_where_the_calendar_says(zone, first, days) -> None:
    """Ten minutes a step: what the gateway sees of its windows over weeks in which the clocks or the months change."""
    began_ms = ms(f"{first}T00:00Z")
    for kind in (WindowKind.HOUR, WindowKind.DAY, WindowKind.WEEK, WindowKind.MONTH):
        window = window_at(kind, zone, began_ms)
        for at_ms in range(began_ms, began_ms + days * 24 * HOUR_MS, 10 * MINUTE_MS):
            if window.holds(at_ms):
                continue
            before, window = window, window_at(kind, zone, at_ms)
            assert window.start_ms == before.end_ms <= at_ms
            local = datetime.fromtimestamp(window.start_ms / 1000, zone)
            if kind is not WindowKind.HOUR:
                assert (local.hour, local.minute, local.second) == (0, 0, 0)
            if kind is WindowKind.WEEK:
                assert local.weekday() == 0
            if kind is WindowKind.MONTH:
                assert local.day == 1


# -- rolling ----------------------------------------------------------------------------------------------------------------------


def test_a_rolling_window_is_the_same_at_every_instant_and_names_its_length() -> None:
    window = rolling(10 * MINUTE_MS)
    assert (window.start_ms, window.end_ms, window.key) == (0, END_OF_TIME_MS, "rolling@600000")
    assert window != rolling(MINUTE_MS)


@pytest.mark.parametrize("span_ms", [1_000, MINUTE_MS, 10 * MINUTE_MS, 31 * 24 * HOUR_MS, 1_234_567])
@pytest.mark.parametrize("offset", [0, 1, 17, 999])
def test_what_is_committed_counts_for_the_whole_length_and_at_most_a_bucket_longer(span_ms: int, offset: int) -> None:
    window = rolling(span_ms)
    committed_ms = ms("2026-11-30T00:00Z") + offset
    bucket = committed_ms // window.bucket_ms
    assert bucket >= window.oldest_bucket(committed_ms + span_ms)
    assert bucket < window.oldest_bucket(committed_ms + span_ms + window.bucket_ms + BUCKETS)


@pytest.mark.parametrize(
    ("span_ms", "name"),
    [
        (1_000, "rolling 1s"),
        (90_000, "rolling 90s"),
        (600_000, "rolling 10m"),
        (5_400_000, "rolling 90m"),
        (HOUR_MS, "rolling 1h"),
        (31 * 24 * HOUR_MS, "rolling 31d"),
        (1_500, "rolling 1500ms"),
    ],
)
def test_a_windows_name_is_what_the_policy_says(span_ms: int, name: str) -> None:
    assert rolling(span_ms).name == name
    assert (LIFETIME.name, window_at(WindowKind.DAY, BERLIN, 0).name) == ("lifetime", "day")


instants = st.integers(ms("2024-01-01T00:00Z"), ms("2037-12-31T00:00Z"))


@given(st.sampled_from(CALENDAR), st.sampled_from(ZONES), instants)
def test_an_instant_lies_in_its_window_and_windows_abut(kind: WindowKind, zone: str, at_ms: int) -> None:
    assert_in_order(kind, ZoneInfo(zone), at_ms)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("kind", CALENDAR)
def test_windows_abut_around_every_clock_change_of_three_years(kind: WindowKind, zone: str) -> None:
    here = ZoneInfo(zone)
    for change_ms in clock_changes(here, 2026, 2029):
        for around in (-2 * HOUR_MS, -HOUR_MS, -1, 0, 1, HOUR_MS // 2, HOUR_MS, 24 * HOUR_MS):
            assert_in_order(kind, here, change_ms + around)


def assert_in_order(kind: WindowKind, zone: ZoneInfo, at_ms: int) -> None:
    window = window_at(kind, zone, at_ms)
    assert window.holds(at_ms)
    assert window_at(kind, zone, window.start_ms) == window == window_at(kind, zone, window.end_ms - 1)
    assert window_at(kind, zone, window.end_ms).start_ms == window.end_ms
    assert window_at(kind, zone, window.start_ms - 1).end_ms == window.start_ms


@cache
def clock_changes(zone: ZoneInfo, first_year: int, last_year: int) -> list[int]:
    """Instants, to the minute, at which the zone's offset changes. Zones change at full or half hours."""
    step = timedelta(minutes=30)
    at, changes = datetime(first_year, 1, 1, tzinfo=UTC), []
    offset = at.astimezone(zone).utcoffset()
    while at.year < last_year:
        at += step
        if (now := at.astimezone(zone).utcoffset()) != offset:
            offset = now
            changes.append(int(at.timestamp() * 1000))
    return changes
