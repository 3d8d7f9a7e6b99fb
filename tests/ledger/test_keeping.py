"""What is old goes, and every balance stays what it was."""

from dataclasses import replace

import pytest

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Ending, Hold
from gateway.core.windows import rolling
from gateway.ledger.contract import Debiting, HoldState, Keep, Ledger, Settled
from gateway.ledger.verify import Verdict, verify_ledger
from tests.ledger.builders import (
    DAY_MS,
    LEASE_MS,
    START_MS,
    TENANT,
    account,
    caller,
    charge,
    day_of,
    decision,
    own_run_charge,
    plan,
    settlement,
)
from tests.support.clock import Clock

KEEP = Keep(records_ms=2 * DAY_MS, runs_ms=30 * DAY_MS)


async def held(ledger: Ledger, *accounts: Account, run: str = "r1", usd: int = 10) -> Hold:
    charges = [charge(each, None) for each in accounts or (account(),)]
    answer = await ledger.reserve(decision(plan(*charges, usd=usd), of=caller(run)), LEASE_MS)
    assert isinstance(answer, Hold)
    return answer


async def settled(ledger: Ledger, *accounts: Account, run: str = "r1", usd: int = 4) -> Hold:
    hold = await held(ledger, *accounts, run=run)
    await ledger.commit(TENANT, hold.id, settlement(usd))
    return hold


async def retired(ledger: Ledger, keep: Keep = KEEP) -> int:
    aged = await ledger.aged(keep, 1_000)
    return await ledger.retire(TENANT, [each.decision_id for each in aged], keep)


async def swept(ledger: Ledger, keep: Keep = KEEP) -> int:
    gone = 0
    while done := await ledger.sweep(keep, 2):
        gone += done
    return gone


async def verdict(ledger: Ledger) -> Verdict:
    found = await verify_ledger(ledger.dump())
    assert found.differences == ()
    return found


async def figures(ledger: Ledger, key: str) -> tuple[int, int, int, int]:
    """committed, reserved, unconfirmed, carried"""
    view = await ledger.account(TENANT, key)
    assert view is not None
    return view.balance.committed, view.balance.reserved, view.balance.unconfirmed, view.carried


async def test_a_retired_call_is_gone_and_its_charge_is_carried_forward(ledger: Ledger, clock: Clock) -> None:
    hold = await settled(ledger)
    clock.now_ms += 2 * DAY_MS - 1
    assert (await ledger.aged(KEEP, 10), await retired(ledger)) == ([], 0)
    clock.now_ms += 1
    (record,) = await ledger.aged(KEEP, 10)
    assert (record.decision_id, record.charged, record.state) == (hold.decision.id, Amounts(4, 3, 1), HoldState.COMMITTED)
    assert await ledger.retire(TENANT, [record.decision_id, record.decision_id], KEEP) == 1
    assert await ledger.record(TENANT, hold.decision.id) is None
    assert await figures(ledger, account().key) == (4, 0, 0, 4)
    assert (await verdict(ledger)).calls == 0
    assert await ledger.retire(TENANT, [record.decision_id], KEEP) == 0
    run = await ledger.run(TENANT, "r1")
    assert run is not None
    assert (run.committed, run.calls) == (4, 1)


async def test_a_live_hold_is_never_retired(ledger: Ledger, clock: Clock) -> None:
    hold = await held(ledger)
    clock.now_ms += 100 * DAY_MS
    assert await ledger.aged(KEEP, 10) == []
    assert await ledger.retire(TENANT, [hold.decision.id], KEEP) == 0
    assert await swept(ledger) == 0
    assert await figures(ledger, account().key) == (0, 10, 0, 0)
    answer = await ledger.commit(TENANT, hold.id, settlement(4))
    assert answer is not None
    assert answer.changed


async def test_what_expired_and_was_never_confirmed_counts_as_confirmed_once_it_is_retired(ledger: Ledger, clock: Clock) -> None:
    hold = await held(ledger)
    clock.now_ms += LEASE_MS
    assert len(await ledger.expire()) == 1
    assert await figures(ledger, account().key) == (10, 0, 10, 0)
    clock.now_ms += 2 * DAY_MS
    assert await retired(ledger) == 1
    assert await figures(ledger, account().key) == (10, 0, 0, 10)
    run = await ledger.run(TENANT, "r1")
    assert run is not None
    assert (run.committed, run.unconfirmed) == (10, 0)
    assert await ledger.commit(TENANT, hold.id, settlement(4)) is None
    await verdict(ledger)


async def test_the_longest_ended_are_retired_first_and_no_more_than_asked_for(ledger: Ledger, clock: Clock) -> None:
    first = await held(ledger)
    second = await settled(ledger)
    clock.now_ms += 1
    released = await held(ledger)
    await ledger.release(TENANT, released.id, Ending.NOT_SENT)
    clock.now_ms += 1
    await ledger.commit(TENANT, first.id, settlement())
    clock.now_ms += 3 * DAY_MS
    ids = [each.decision.id for each in (second, released, first)]
    assert [each.decision_id for each in await ledger.aged(KEEP, 10)] == ids
    assert [each.decision_id for each in await ledger.aged(KEEP, 2)] == ids[:2]


async def test_an_account_that_two_rules_name_is_carried_forward_once(ledger: Ledger, clock: Clock) -> None:
    await settled(ledger, account(), account())
    clock.now_ms += 3 * DAY_MS
    assert await retired(ledger) == 1
    assert await figures(ledger, account().key) == (4, 0, 0, 4)
    await verdict(ledger)


async def test_a_rolling_account_carries_forward_within_the_bucket(ledger: Ledger, clock: Clock) -> None:
    month = account("month", window=rolling(30 * DAY_MS))
    await settled(ledger, month)
    expiring = await held(ledger, month)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    clock.now_ms += 2 * DAY_MS
    assert await retired(ledger) == 2
    (balance,) = await ledger.balances(TENANT, [month])
    assert (balance.committed, balance.unconfirmed) == (14, 0)
    await verdict(ledger)
    await settled(ledger, month)
    clock.now_ms += 29 * DAY_MS
    (balance,) = await ledger.balances(TENANT, [month])
    assert balance.committed == 4
    await verdict(ledger)
    assert await ledger.commit(TENANT, expiring.id, settlement()) is None


async def test_a_call_is_retired_after_its_bucket_no_longer_counts(ledger: Ledger, clock: Clock) -> None:
    minute = account("burn", window=rolling(60_000))
    await settled(ledger, minute)
    clock.now_ms += 3 * DAY_MS
    assert await retired(ledger) == 1
    (balance,) = await ledger.balances(TENANT, [minute])
    assert (balance.committed, balance.unconfirmed) == (0, 0)
    await verdict(ledger)


async def test_an_adjusted_and_a_reset_account_stay_right_when_their_calls_are_retired(ledger: Ledger, clock: Clock) -> None:
    adjusted, reset = account("one"), account("two")
    await settled(ledger, adjusted, reset)
    await ledger.adjust(TENANT, adjusted.key, 7, "act_1", "me", "why")
    await ledger.reset(TENANT, reset.key, "me", "why")
    await verdict(ledger)
    clock.now_ms += 3 * DAY_MS
    await retired(ledger)
    assert (await figures(ledger, adjusted.key))[0] == 11
    assert (await figures(ledger, reset.key))[0] == 0
    await verdict(ledger)


async def test_an_account_goes_once_its_window_has_ended_long_ago_and_nothing_on_record_counts_there(
    ledger: Ledger, clock: Clock
) -> None:
    day = account("day", window=day_of(START_MS))
    await settled(ledger, day, account())
    clock.now_ms += 4 * DAY_MS
    assert await swept(ledger) == 0  # its receipt is still on record
    await retired(ledger)
    assert await swept(ledger) == 1
    assert await ledger.account(TENANT, day.key) is None
    assert await ledger.account(TENANT, account().key) is not None
    await verdict(ledger)


async def test_a_run_is_forgotten_together_with_its_accounts_and_no_others(ledger: Ledger, clock: Clock) -> None:
    own, agents, others = account(run="r1"), account("two", agent="a", run="r1"), account(run="r2")
    await settled(ledger, own, agents, account())
    clock.now_ms += 10 * DAY_MS
    await settled(ledger, others, account(), run="r2")
    clock.now_ms += 20 * DAY_MS
    await retired(ledger)
    assert await swept(ledger) == 3
    assert await ledger.run(TENANT, "r1") is None
    assert await ledger.run(TENANT, "r2") is not None
    gone = [await ledger.account(TENANT, each.key) for each in (own, agents)]
    assert gone == [None, None]
    assert (await figures(ledger, others.key))[0] == 4
    assert (await figures(ledger, account().key))[0] == 8
    await verdict(ledger)


async def test_a_run_with_a_live_hold_stays_though_it_holds_nothing(ledger: Ledger, clock: Clock) -> None:
    answer = await ledger.reserve(decision(plan(charge(account(run="r1"), None), usd=0)), 100 * DAY_MS)
    assert isinstance(answer, Hold)
    clock.now_ms += 40 * DAY_MS
    assert await swept(ledger) == 0
    assert await ledger.commit(TENANT, answer.id, settlement(3)) is not None
    await verdict(ledger)


async def test_an_audit_tells_a_run_from_the_forgotten_one_that_had_its_id(ledger: Ledger, clock: Clock) -> None:
    keep = Keep(records_ms=DAY_MS, runs_ms=DAY_MS)
    hold = await held(ledger)
    clock.now_ms += LEASE_MS // 2
    await ledger.commit(TENANT, hold.id, settlement(4))  # so its record outlives the last use of its run
    clock.now_ms += DAY_MS - 1
    await swept(ledger, keep)
    assert await ledger.run(TENANT, "r1") is None
    await settled(ledger, usd=1)
    assert (await verdict(ledger)).calls == 2


async def test_a_stopped_run_stays_stopped_until_it_is_forgotten(ledger: Ledger, clock: Clock) -> None:
    await settled(ledger, run="r1")
    await ledger.stop(TENANT, "r1", "me", "why")
    clock.now_ms += 29 * DAY_MS
    await retired(ledger)
    await swept(ledger)
    run = await ledger.run(TENANT, "r1")
    assert run is not None
    assert run.state == "stopped"
    clock.now_ms += DAY_MS
    assert await swept(ledger) == 1
    assert await ledger.run(TENANT, "r1") is None


async def test_the_shared_accounts_of_untagged_calls_go_a_month_after_their_day(ledger: Ledger, clock: Clock) -> None:
    day = "2024-10-04"  # START_MS's
    shared = account(run=f"untagged/k1/{day}")
    today = replace(caller("run_1", issued=True), run_scope=f"untagged/k1/{day}")
    answer = await ledger.reserve(decision(plan(charge(shared, None)), of=today), LEASE_MS)
    assert isinstance(answer, Hold)
    await ledger.commit(TENANT, answer.id, settlement())
    clock.now_ms += 31 * DAY_MS - 1_001
    await retired(ledger)
    await swept(ledger)
    assert await ledger.account(TENANT, shared.key) is not None
    clock.now_ms += 1
    await swept(ledger)
    assert await ledger.account(TENANT, shared.key) is None
    await verdict(ledger)


async def test_tombstones_and_refusals_go_after_the_same_time(ledger: Ledger, clock: Clock) -> None:
    await ledger.release(TENANT, "rsv_never", Ending.NOT_SENT)
    full = decision(plan(charge(limit=1)))
    await ledger.reserve(full, LEASE_MS)
    clock.now_ms += 2 * DAY_MS - 1
    assert await swept(ledger) == 0
    assert await ledger.record(TENANT, full.id) is not None
    clock.now_ms += 1
    assert await ledger.aged(KEEP, 10) == []
    assert await swept(ledger) == 2
    assert await ledger.record(TENANT, full.id) is None
    answer = await ledger.reserve(decision(decision_id="bdg_never"), LEASE_MS)
    assert isinstance(answer, Hold)


async def test_spend_stays_longer_than_what_it_was_spent_on(ledger: Ledger, clock: Clock) -> None:
    await settled(ledger)
    clock.now_ms += 31 * DAY_MS
    await retired(ledger)
    await swept(ledger)
    (row,) = await ledger.spend(TENANT, ["model"], START_MS, START_MS + 1, None)
    assert row.usd == 4
    clock.now_ms += 372 * DAY_MS
    assert await swept(ledger) == 1
    assert await ledger.spend(TENANT, ["model"], START_MS, START_MS + 1, None) == []


async def done_by_hand(ledger: Ledger, tenant: str = TENANT) -> list[str]:
    return [act.why for act in reversed(await ledger.acts(tenant, 100))]


async def test_acts_go_as_spend_does_the_oldest_first(ledger: Ledger, clock: Clock) -> None:
    await settled(ledger)
    for day in range(5):
        await ledger.adjust(TENANT, account().key, 1, f"act_{day}", "ann", str(day))
        await ledger.freeze("other", (("team", str(day)),), "ann", str(day))
        clock.now_ms += DAY_MS
    clock.now_ms += 395 * DAY_MS - 1
    await retired(ledger)
    await swept(ledger)
    assert await done_by_hand(ledger) == ["0", "1", "2", "3", "4"]
    clock.now_ms += DAY_MS + 1
    assert await swept(ledger) == 4
    assert await done_by_hand(ledger) == await done_by_hand(ledger, "other") == ["2", "3", "4"]
    assert len(await ledger.frozen("other")) == 5  # what was done stays done
    assert (await figures(ledger, account().key))[0] == 9
    assert await ledger.acts(TENANT, 10, "act_0") == []  # of a page that began with what is gone, nothing
    clock.now_ms += 4 * DAY_MS
    assert await swept(ledger) == 7  # six, and the spend of that day
    assert await done_by_hand(ledger) == await done_by_hand(ledger, "other") == []
    await verdict(ledger)


async def test_only_so_many_acts_of_a_tenant_are_kept(ledger: Ledger, clock: Clock) -> None:
    keep = replace(KEEP, acts_at_most=3)
    for tenant, number in ((TENANT, 8), ("other", 3)):
        for each in range(number):
            await ledger.freeze(tenant, (("team", str(each)),), "ann", str(each))
    assert await ledger.sweep(keep, 2) == 2
    assert await done_by_hand(ledger) == ["2", "3", "4", "5", "6", "7"]
    assert await swept(ledger, keep) == 3
    assert await done_by_hand(ledger) == ["5", "6", "7"]
    assert await done_by_hand(ledger, "other") == ["0", "1", "2"]
    await ledger.thaw(TENANT, (("team", "1"),), "ann", "late")
    assert await swept(ledger, keep) == 1
    assert await done_by_hand(ledger) == ["6", "7", "late"]


async def test_a_retired_id_is_a_new_one(ledger: Ledger, clock: Clock) -> None:
    """What keeps an id from being used twice is its record: docs/guarantees.md says how long."""
    hold = await settled(ledger)
    clock.now_ms += 3 * DAY_MS
    await retired(ledger)
    answer = await ledger.reserve(replace(hold.decision, at_ms=clock.now_ms), LEASE_MS)
    assert isinstance(answer, Hold)


@pytest.mark.parametrize("unit", [Unit.TOKENS, Unit.CALLS])
async def test_what_is_carried_forward_is_counted_in_the_accounts_unit(ledger: Ledger, clock: Clock, unit: Unit) -> None:
    await settled(ledger, account(unit=unit))
    clock.now_ms += 3 * DAY_MS
    await retired(ledger)
    amount = settlement().cost.of(unit)
    assert await figures(ledger, account(unit=unit).key) == (amount, 0, 0, amount)
    await verdict(ledger)


async def test_a_debit_is_retired_like_a_call(ledger: Ledger, clock: Clock) -> None:
    answer = await ledger.debit(decision(plan(own_run_charge(), usd=5)), settlement(5, ending=Ending.DEBITED), Debiting.ASK)
    assert isinstance(answer, Settled)
    clock.now_ms += 3 * DAY_MS
    assert await retired(ledger) == 1
    assert await figures(ledger, account("run-ceiling", run="r1").key) == (5, 0, 0, 5)
    await verdict(ledger)
