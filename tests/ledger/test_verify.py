"""Every balance of a real history is what its records say; change any figure, and the difference is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pytest

from gateway.core.values import Ending, Hold
from gateway.core.windows import rolling
from gateway.ledger import verify as verifying
from gateway.ledger.contract import Keep, Ledger
from gateway.ledger.rows import Damaged
from gateway.ledger.verify import verify, verify_ledger
from tests.ledger.builders import DAY_MS, LEASE_MS, START_MS, TENANT, account, caller, charge, day_of, decision, plan, settlement
from tests.support.clock import Clock

Rows: TypeAlias = list[dict[str, Any]]
LIFETIME, DAY, BURN = account(), account("day", window=day_of(START_MS)), account("burn", window=rolling(DAY_MS))


@pytest.fixture
async def dumped(ledger: Ledger, clock: Clock) -> Rows:
    """A committed, a released, an expired and a live call, a tombstone, a refusal, an adjustment, a retired call."""
    charges = [charge(each, None) for each in (LIFETIME, DAY, BURN)]

    async def hold(run: str) -> Hold:
        answer = await ledger.reserve(decision(plan(*charges), of=caller(run, team="t")), LEASE_MS)
        assert isinstance(answer, Hold)
        return answer

    old = await hold("r0")
    await ledger.commit(TENANT, old.id, settlement(2))
    clock.now_ms += 1_000
    await ledger.retire(TENANT, [old.decision.id], Keep(1_000, 1_000))
    committed, released, _ = await hold("r1"), await hold("r1"), await hold("r2")
    await ledger.commit(TENANT, committed.id, settlement(4))
    await ledger.release(TENANT, released.id, Ending.NOT_SENT)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    await hold("r2")
    await ledger.release(TENANT, "rsv_gone", Ending.NOT_SENT)
    await ledger.reserve(decision(plan(charge(limit=1)), of=caller("r1")), LEASE_MS)
    await ledger.adjust(TENANT, LIFETIME.key, 5, "act_1", "me", "why")
    await ledger.freeze(TENANT, (("team", "x"),), "me", "why")
    return [dict(row) async for row in ledger.dump()]


def row(rows: Rows, kind: str, **having: object) -> dict[str, Any]:
    (found,) = [each for each in rows if each["kind"] == kind and all(each[name] == value for name, value in having.items())]
    return found


def told(rows: Rows) -> Sequence[str]:
    return [str(each) for each in verify(rows).differences]


async def test_a_real_history_has_no_difference(dumped: Rows) -> None:
    verdict = verify(dumped)
    assert (verdict.differences, verdict.different) == ((), 0)
    assert verdict.counts == "1 tenants, 3 accounts, 3 runs, 5 calls, 1 live holds"
    assert row(dumped, "account", key=LIFETIME.key)["carried"] == 2
    assert verdict.sums == (2 + 4 + 10 + 5 + 2 + 4 + 10, 20)


CHANGES: Mapping[str, tuple[str, Mapping[str, object], str, Any, str]] = {
    "committed": (
        "account",
        {"key": LIFETIME.key},
        "committed",
        20,
        "committed = receipts + carried + adjusted: expected 21, found 20",
    ),
    "carried": (
        "account",
        {"key": LIFETIME.key},
        "carried",
        3,
        "committed = receipts + carried + adjusted: expected 22, found 21",
    ),
    "adjusted": (
        "account",
        {"key": LIFETIME.key},
        "adjusted",
        0,
        "committed = receipts + carried + adjusted: expected 16, found 21",
    ),
    "reserved": ("account", {"key": DAY.key}, "reserved", 0, "reserved = live holds: expected 10, found 0"),
    "unconfirmed": ("account", {"key": DAY.key}, "unconfirmed", 0, "unconfirmed = expired holds: expected 10, found 0"),
    "rolling": ("account", {"key": BURN.key}, "committed", 17, "committed = its buckets: expected 16, found 17"),
    "run reserved": ("run", {"run": "r2"}, "reserved", 11, "run r2: reserved = live holds: expected 10, found 11"),
    "run unconfirmed": ("run", {"run": "r2"}, "unconfirmed", 9, "run r2: unconfirmed = expired holds: expected 10, found 9"),
    "run committed": ("run", {"run": "r1"}, "committed", 3, "run r1: committed >= receipts: expected 4, found 3"),
    "run calls": ("run", {"run": "r1"}, "calls", 0, "run r1: calls >= its calls: expected 1, found 0"),
    "spend": ("spend", {"run": "r1"}, "usd", 1, "usd: expected what its receipts say, at least, found 1 less"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_figure_that_was_changed_is_told(dumped: Rows, change: str) -> None:
    kind, having, field, value, expected = CHANGES[change]
    row(dumped, kind, **having)[field] = value
    (difference,) = told(dumped)
    assert difference.startswith(f"{TENANT}: ")
    assert difference.endswith(expected)


async def test_a_bucket_that_was_changed_is_told(dumped: Rows) -> None:
    rolling_row = row(dumped, "account", key=BURN.key)
    (index, committed, unconfirmed, carried), *rest = rolling_row["buckets"]
    rolling_row["buckets"] = [[index, committed, unconfirmed, carried - 1], *rest]
    (difference,) = told(dumped)
    assert difference.endswith(f"bucket {index}: committed = receipts + carried: expected {committed - 1}, found {committed}")
    rolling_row["buckets"] = []
    assert any(f"bucket {index}: committed = receipts" in each for each in told(dumped))


def _without(kind: str, **having: object) -> Callable[[Rows], None]:
    def remove(rows: Rows) -> None:
        rows.remove(row(rows, kind, **having))
        rows[-1]["rows"] -= 1

    return remove


def _below_zero(rows: Rows) -> None:
    row(rows, "account", key=LIFETIME.key)["reserved"] = -1


def _more_unconfirmed(rows: Rows) -> None:
    row(rows, "account", key=LIFETIME.key)["unconfirmed"] = 22


def _lost_record(rows: Rows) -> None:
    row(rows, "call", state="committed")["record"] = None


def _lost_closing(rows: Rows) -> None:
    row(rows, "call", state="committed")["closing"] = None


def _twice(rows: Rows) -> None:
    rows.insert(rows.index(row(rows, "account", key=DAY.key)), row(rows, "account", key=DAY.key))
    rows[-1]["rows"] += 1


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_without("account", key=DAY.key), f"its account: expected {DAY.key}, found no such account"),
        (_without("account", key=BURN.key), f"its account: expected {BURN.key}, found no such account"),
        (_without("run", run="r2"), "its run: expected r2, found no such run"),
        (_without("call", state="live"), "reserved = live holds: expected 0, found 10"),
        (_without("call", state="committed"), "committed = receipts + carried + adjusted: expected 17, found 21"),
        (_without("spend", run="r1"), "usd: expected what its receipts say, at least, found 2 less"),
        (_below_zero, "reserved: expected nothing below 0, found -1"),
        (_more_unconfirmed, "unconfirmed <= committed: expected at most 21, found 22"),
        (_lost_record, "its record: expected one, found none"),
        (_lost_closing, "the closing of a call that is committed: expected one, found none"),
        (_twice, f"{DAY.key}: rows: expected 1, found 2"),
    ],
)
async def test_what_is_missing_or_makes_no_sense_is_told(dumped: Rows, damage: Callable[[Rows], None], expected: str) -> None:
    damage(dumped)
    assert any(each.endswith(expected) for each in told(dumped)), told(dumped)


async def test_a_record_that_cannot_be_read_is_named(dumped: Rows) -> None:
    call = row(dumped, "call", state="live")
    call["record"] = [1, 2]
    with pytest.raises(Damaged, match=f"hold rsv_{call['tail']} of {TENANT}: its record can't be read"):
        verify(dumped)


async def test_of_a_great_many_differences_the_first_are_told_and_all_are_counted(
    dumped: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_TOLD", 2)
    for each in dumped:
        if each["kind"] == "account":
            each["reserved"] = 7
    verdict = verify(dumped)
    assert (len(verdict.differences), verdict.different) == (2, 3)


async def test_tenants_are_told_apart(ledger: Ledger) -> None:
    for tenant in ("a", "b"):
        of = caller(tenant=tenant)
        await ledger.reserve(decision(plan(charge(account(tenant=tenant))), of=of), LEASE_MS)
    rows = [dict(each) async for each in ledger.dump()]
    row(rows, "account", tenant="b")["reserved"] = 0
    assert [each.partition(":")[0] for each in told(rows)] == ["b"]
    assert (await verify_ledger(ledger.dump())).tenants == 2
