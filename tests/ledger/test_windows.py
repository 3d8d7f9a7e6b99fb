"""Windows over real holds: calendars in three timezones walked hour by hour through their clock changes, and rolling windows."""

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from gateway.core.scopes import Account, Unit
from gateway.core.windows import BUCKETS, Window, WindowKind, rolling, window_at
from gateway.ledger.contract import Ledger, Stale
from tests.ledger.asking import balance, hold, look, refuse, settle, spend
from tests.ledger.builders import DAY_MS, LEASE_MS, START_MS, TENANT, account, charge, day_of, decision, plan, settlement
from tests.support.clock import Clock

HOUR_MS = 3_600_000


def ms(zone: ZoneInfo, year: int, month: int, day: int, hour: int = 0, minute: int = 0, fold: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=zone, fold=fold).timestamp()) * 1000


# -- calendars ----------------------------------------------------------------------------------------------------------------

# Where each walk begins (local), how long it is, and how many windows of which kind it meets: a change of the clocks in both
# directions, the end of a short and of a long month, a leap day, the end of a year.
WALKS = [
    ("Europe/Berlin", (2027, 3, 27, 12), 48, WindowKind.DAY, [24, 23, 24]),
    ("Europe/Berlin", (2027, 10, 30, 12), 48, WindowKind.DAY, [24, 25, 24]),
    ("America/New_York", (2027, 3, 13, 12), 48, WindowKind.DAY, [24, 23, 24]),
    ("America/New_York", (2027, 11, 6, 12), 48, WindowKind.DAY, [24, 25, 24]),
    ("Australia/Lord_Howe", (2027, 4, 3, 12), 48, WindowKind.DAY, [24, 24.5, 24]),
    ("Australia/Lord_Howe", (2027, 10, 2, 12), 48, WindowKind.DAY, [24, 23.5, 24]),
    ("Europe/Berlin", (2028, 2, 28, 12), 48, WindowKind.DAY, [24, 24, 24]),
    ("Europe/Berlin", (2028, 2, 28, 12), 96, WindowKind.MONTH, [29 * 24, 31 * 24 - 1]),
    ("America/New_York", (2027, 2, 27, 12), 96, WindowKind.MONTH, [28 * 24, 31 * 24 - 1]),
    ("Australia/Lord_Howe", (2027, 12, 30, 12), 96, WindowKind.MONTH, [31 * 24, 31 * 24]),
    ("America/New_York", (2027, 3, 11, 12), 120, WindowKind.WEEK, [7 * 24 - 1, 7 * 24]),
    ("Australia/Lord_Howe", (2027, 4, 4, 0), 4, WindowKind.HOUR, [1, 1, 0.5, 1, 1]),
]


@pytest.mark.parametrize(("name", "begin", "hours", "kind", "lengths"), WALKS, ids=[f"{w[0]}-{w[1]}-{w[3]}" for w in WALKS])
async def test_every_hold_counts_in_the_window_of_its_instant_and_settles_there(
    ledger: Ledger, clock: Clock, name: str, begin: tuple[int, int, int, int], hours: int, kind: WindowKind, lengths: list[float]
) -> None:
    zone = ZoneInfo(name)
    start_ms = ms(zone, *begin)
    late: list[tuple[Account, str]] = []  # held in one step of the walk, settled in the next: some after their window's end
    expected: dict[str, int] = {}
    windows: list[Window] = []
    for at_ms in range(start_ms, start_ms + hours * HOUR_MS, HOUR_MS // 2 if hours <= 48 else HOUR_MS * 6):
        clock.now_ms = at_ms
        window = window_at(kind, zone, at_ms)
        if not windows or windows[-1] != window:
            if windows:  # the one before has ended, and takes nothing more
                old = decision(plan(charge(account("old", window=windows[-1]), None)))
                assert isinstance(await ledger.reserve(old, LEASE_MS), Stale)
            windows.append(window)
        of = account("calendar", window=window)
        held = await hold(ledger, decision(plan(charge(of, None), usd=7)))
        for earlier, hold_id in late:
            settled = await ledger.commit(TENANT, hold_id, settlement(3))
            assert settled is not None
            assert settled.changed
            expected[earlier.key] = expected.get(earlier.key, 0) + 3
        late = [(of, held.id)]
        for each in windows:
            found = await balance(ledger, account("calendar", window=each))
            assert found.committed == expected.get(account("calendar", window=each).key, 0)
            assert found.reserved == (7 if each == window else 0)
    assert [(each.end_ms - each.start_ms) / HOUR_MS for each in windows] == lengths
    assert all(before.end_ms == after.start_ms for before, after in pairwise(windows))


async def test_the_hour_that_a_clock_change_repeats_is_two_windows(ledger: Ledger, clock: Clock) -> None:
    zone = ZoneInfo("Europe/Berlin")
    for fold in (0, 1):
        clock.now_ms = ms(zone, 2027, 10, 31, 2, 30, fold)
        of = account("hourly", window=window_at(WindowKind.HOUR, zone, clock.now_ms))
        await hold(ledger, decision(plan(charge(of, 10), usd=10)))
        await refuse(ledger, decision(plan(charge(of, 10), usd=1)))


async def test_a_window_begins_at_its_first_millisecond_and_has_ended_at_its_last(ledger: Ledger, clock: Clock) -> None:
    zone = ZoneInfo("America/New_York")
    window = window_at(WindowKind.MONTH, zone, ms(zone, 2028, 2, 29))
    asked = [decision(plan(charge(account(window=window), None))) for _ in range(4)]
    clock.now_ms = window.start_ms - 1
    assert isinstance(await ledger.reserve(asked[0], LEASE_MS), Stale)
    clock.now_ms = window.start_ms
    await hold(ledger, asked[1])
    clock.now_ms = window.end_ms - 1
    await hold(ledger, asked[2])
    clock.now_ms = window.end_ms
    assert isinstance(await ledger.reserve(asked[3], LEASE_MS), Stale)
    assert window.end_ms == ms(zone, 2028, 3, 1)


async def test_the_window_of_every_plan_holds_the_instant_or_none_is_held(ledger: Ledger) -> None:
    lifetime, yesterday = charge(limit=1_000), charge(account("daily", window=day_of(START_MS - DAY_MS)))
    await hold(ledger, decision(plan(lifetime)))
    asked = decision(plan(lifetime), plan(yesterday, model="small"))
    assert isinstance(await ledger.reserve(asked, LEASE_MS), Stale)


# -- rolling windows ----------------------------------------------------------------------------------------------------------

TEN_MINUTES = rolling(600_000)


@pytest.mark.parametrize("span_ms", [1_000, 60_000, 61_003, 600_000, 30 * 24 * HOUR_MS])
async def test_a_rolling_window_forgets_nothing_early_and_everything_a_bucket_late(
    ledger: Ledger, clock: Clock, span_ms: int
) -> None:
    window = rolling(span_ms)
    of = account("rate", window=window)
    assert window.bucket_ms * (BUCKETS - 1) >= span_ms
    await spend(ledger, decision(plan(charge(of, None))), 4)
    spent_ms = clock.now_ms
    clock.now_ms = spent_ms + span_ms - 1
    assert (await balance(ledger, of)).committed == 4
    clock.now_ms = spent_ms + span_ms + window.bucket_ms
    assert (await balance(ledger, of)).committed == 0


async def test_what_is_held_counts_while_it_lives_and_its_cost_from_its_commit(ledger: Ledger, clock: Clock) -> None:
    of = account("rate", window=TEN_MINUTES)
    held = await hold(ledger, decision(plan(charge(of, 100), usd=60)))
    await ledger.extend(TENANT, held.id, 3_600_000)
    clock.now_ms += 1_800_000  # three windows later
    refusal = await refuse(ledger, decision(plan(charge(of, 100), usd=41)))
    assert (refusal.blocking[0].committed, refusal.blocking[0].reserved) == (0, 60)
    await settle(ledger, held, 50)
    clock.now_ms += 599_999
    assert (await balance(ledger, of)).committed == 50


async def test_a_refusal_says_when_what_was_spent_falls_out_of_the_window(ledger: Ledger, clock: Clock) -> None:
    of = account("rate", window=TEN_MINUTES)
    length_ms = TEN_MINUTES.bucket_ms
    clock.now_ms = START_MS // length_ms * length_ms
    first_ms = clock.now_ms
    for usd, wait_ms in ((10, length_ms // 2), (20, length_ms), (0, length_ms), (30, 0)):
        await spend(ledger, decision(plan(charge(of, 100), usd=usd)), usd)
        clock.now_ms += wait_ms
    refusal = await refuse(ledger, decision(plan(charge(of, 100), charge(account("all"), 100), usd=41)))
    last = (first_ms + length_ms // 2 + 2 * length_ms) // length_ms * length_ms
    aging = ((first_ms + BUCKETS * length_ms, 30), (last + BUCKETS * length_ms, 30))
    assert [each.aging for each in refusal.balances] == [aging, ()]
    assert refusal.blocking[0].aging == aging
    clock.now_ms = aging[0][0] - 1
    assert (await balance(ledger, of)).committed == 60
    clock.now_ms = aging[0][0]
    held = await hold(ledger, decision(plan(charge(of, 100), usd=41)))
    assert (held.balances[0].committed, held.balances[0].aging) == (30, ())


async def test_a_provisional_charge_is_taken_out_of_the_bucket_it_went_into(ledger: Ledger, clock: Clock) -> None:
    of = account("rate", Unit.TOKENS, TEN_MINUTES)
    held = await hold(ledger, decision(plan(charge(of, 100), tokens=60)))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    assert ((await balance(ledger, of)).committed, (await balance(ledger, of)).unconfirmed) == (60, 60)
    clock.now_ms += 300_000
    settled = await settle(ledger, held, 4, tokens=20)
    assert (settled.balances[0].committed, settled.balances[0].unconfirmed) == (20, 0)
    clock.now_ms += 599_999
    assert (await balance(ledger, of)).committed == 20


async def test_a_correction_long_after_changes_only_what_still_counts(ledger: Ledger, clock: Clock) -> None:
    of = account("rate", window=TEN_MINUTES)
    held = await hold(ledger, decision(plan(charge(of, 100), charge(account("all"), 100), usd=60)))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    clock.now_ms += 3_600_000
    await spend(ledger, decision(plan(charge(of, 100), usd=5)), 5)
    settled = await settle(ledger, held, 20)
    assert [(each.committed, each.unconfirmed) for each in settled.balances] == [(25, 0), (20, 0)]


async def test_a_rolling_account_is_reset_and_not_adjusted(ledger: Ledger, clock: Clock) -> None:
    of = account("rate", window=TEN_MINUTES)
    await spend(ledger, decision(plan(charge(of, 100), usd=30)), 30)
    late = await hold(ledger, decision(plan(charge(of, 100), usd=20)))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    done = await ledger.adjust(TENANT, of.key, -10, "act_1", "op", "a refund")
    assert done is not None
    assert (done[0], done[1].balance.committed) == ("rolling", 50)
    found = await ledger.reset(TENANT, of.key, "op", "a new start")
    assert found is not None
    assert (found.balance.committed, found.balance.unconfirmed, found.carried, found.adjusted) == (20, 20, 0, 0)
    await settle(ledger, late, 7)
    assert (await look(ledger, of)).balance.committed == 7


async def test_a_rolling_window_of_calls_counts_calls(ledger: Ledger, clock: Clock) -> None:
    of = account("steps", Unit.CALLS, rolling(60_000))
    for _ in range(3):
        await spend(ledger, decision(plan(charge(of, 3))), 1)
    await refuse(ledger, decision(plan(charge(of, 3))))
    clock.now_ms += 60_000 + of.window.bucket_ms
    await hold(ledger, decision(plan(charge(of, 3))))


async def test_millions_of_dollars_in_a_rolling_window_are_exact(ledger: Ledger, clock: Clock) -> None:
    limit = 49_000_000 * 100_000_000
    of = account("rate", window=TEN_MINUTES)
    for usd in (limit // 2, limit // 2 - 1):
        await spend(ledger, decision(plan(charge(of, limit), usd=usd)), usd)
        clock.now_ms += TEN_MINUTES.bucket_ms
    await refuse(ledger, decision(plan(charge(of, limit), usd=2)))
    held = await hold(ledger, decision(plan(charge(of, limit), usd=1)))
    assert held.balances[0].committed + held.balances[0].reserved == limit


def test_walks_begin_on_the_days_that_they_say() -> None:
    offsets = [
        [(datetime(*begin, tzinfo=ZoneInfo(name)) + timedelta(hours=hours)).utcoffset() for hours in (0, 24)]
        for name, begin, _, kind, _ in WALKS[:6]
    ]
    assert all(before != after for before, after in offsets)
