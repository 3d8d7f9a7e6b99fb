"""Credits and risk points: held, charged, refused and told like money, beside it; and in no way of what takes none."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Basis, Ending, Mode
from gateway.core.windows import rolling
from gateway.ledger.contract import Alert, Debiting, HoldState, Keep, Ledger, Refusal, SpendRow
from gateway.ledger.verify import verify_ledger
from tests.ledger.asking import balance, debit, hold, look, refuse, view
from tests.ledger.builders import ACTUALS, LEASE_MS, TENANT, account, charge, decision, plan, settlement
from tests.support.clock import Clock
from tests.support.stores import STORES, Store, new_store, opened

MONEY = account("money")
CREDITS = account("credits", Unit.CREDITS, run="r1")
RISK = account("risk", Unit.RISK_POINTS, team="red")
UNITS = (MONEY, CREDITS, RISK)


def of_both(credits_: int = 5, risk_points: int = 7, usd: int = 0, limit: int | None = 20, **more: Any) -> Any:
    charges = (charge(MONEY, 100), charge(CREDITS, limit, alerts=(500_000,)), charge(RISK, 50))
    return decision(plan(*charges, usd=usd, tokens=0, credits=credits_, risk_points=risk_points), **more)


async def figures(ledger: Ledger) -> list[tuple[int, int, int]]:
    """committed, reserved and unconfirmed, of the accounts in each unit."""
    found = [await balance(ledger, each) for each in UNITS]
    return [(each.committed, each.reserved, each.unconfirmed) for each in found]


async def test_a_hold_takes_of_each_account_what_it_counts(ledger: Ledger) -> None:
    held = await hold(ledger, of_both(usd=3))
    assert [each.remaining for each in held.balances] == [97, 15, 43]
    assert await figures(ledger) == [(0, 3, 0), (0, 5, 0), (0, 7, 0)]
    settled = await ledger.commit(TENANT, held.id, settlement(2, 0, credits=11, risk_points=1))
    assert settled is not None
    assert settled.charged == Amounts(2, 0, 1, 11, 1)
    assert settled.alerts == (Alert(CREDITS, 500_000, 20, 11),)
    assert await figures(ledger) == [(2, 0, 0), (11, 0, 0), (1, 0, 0)]
    again = await ledger.commit(TENANT, held.id, settlement(9, 0, credits=9))
    assert again is not None
    assert (again.changed, again.charged) == (False, settled.charged)


async def test_a_call_that_asks_for_too_many_credits_is_refused_and_told_which_account(ledger: Ledger) -> None:
    for _ in range(4):
        await hold(ledger, of_both())
    refused = of_both()
    refusal = await refuse(ledger, refused)
    assert (refusal.blocking[0].account, refusal.blocking[0].limit, refusal.blocking[0].remaining) == (CREDITS, 20, 0)
    found = await ledger.record(TENANT, refused.id)
    assert found is not None
    assert (found.outcome, found.held) == ("block", Amounts(0, 0, 1, 5, 7))


async def test_a_call_of_a_model_is_in_the_way_of_no_budget_in_credits(ledger: Ledger) -> None:
    over = await hold(ledger, of_both(20))
    await ledger.commit(TENANT, over.id, settlement(0, 0, credits=25, risk_points=60))
    held = await hold(ledger, of_both(0, 0, usd=40))
    assert [each.reserved for each in held.balances] == [40, 0, 0]
    assert isinstance(await ledger.reserve(of_both(1, 0), LEASE_MS), Refusal)
    settled = await ledger.commit(TENANT, held.id, settlement(30))
    assert settled is not None
    assert settled.alerts == ()
    assert await figures(ledger) == [(30, 0, 0), (25, 0, 0), (60, 0, 0)]


async def test_what_is_held_of_credits_grows_and_goes_back(ledger: Ledger) -> None:
    held = await hold(ledger, of_both(5, 7, limit=12))
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(0, 0, 0, 13, 7))
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(0, 0, 0, 12, 3))
    assert await figures(ledger) == [(0, 0, 0), (0, 12, 0), (0, 7, 0)]
    found = await ledger.record(TENANT, held.decision.id)
    assert found is not None
    assert found.held == Amounts(0, 0, 1, 12, 7)
    assert dict(found.lines) == {MONEY.key: 0, CREDITS.key: 12, RISK.key: 7}
    await ledger.release(TENANT, held.id, Ending.NOT_SENT)
    assert await figures(ledger) == [(0, 0, 0)] * 3


async def test_credits_of_a_hold_in_slices_are_held_in_full(ledger: Ledger) -> None:
    charges = (charge(MONEY, 100, sliced=True), charge(CREDITS, 20, sliced=True))
    held = await hold(ledger, decision(plan(*charges, usd=40, credits=6, first=Amounts(4, 2, 1, 6))))
    assert [each.reserved for each in held.balances] == [4, 6]
    assert held.plan.held == Amounts(4, 2, 1, 6)
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 5, 1, 9), Amounts(8, 3, 1, 6))
    assert (await figures(ledger))[:2] == [(0, 8, 0), (0, 9, 0)]
    await ledger.release(TENANT, held.id, Ending.NOT_SENT)
    assert (await figures(ledger))[:2] == [(0, 0, 0)] * 2


async def test_an_expired_hold_is_charged_its_credits_and_corrected_once(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_both(usd=3))
    clock.now_ms += LEASE_MS
    (expired,) = await ledger.expire()
    assert expired.charged == Amounts(3, 0, 1, 5, 7)
    assert await figures(ledger) == [(3, 0, 3), (5, 0, 5), (7, 0, 7)]
    settled = await ledger.commit(TENANT, held.id, settlement(1, 0, credits=6, risk_points=2))
    assert settled is not None
    assert settled.changed
    assert await figures(ledger) == [(1, 0, 0), (6, 0, 0), (2, 0, 0)]


async def test_an_operators_settlement_names_dollars_and_charges_all_else_as_held(ledger: Ledger) -> None:
    held = await hold(ledger, of_both(usd=3))
    settled = await ledger.settle(TENANT, held.id, 1, "op", "the bill")
    assert settled is not None
    assert settled.charged == Amounts(1, 0, 1, 5, 7)
    assert await figures(ledger) == [(1, 0, 0), (5, 0, 0), (7, 0, 0)]


async def test_credits_are_debited_once_whoever_asks_again(ledger: Ledger) -> None:
    decided = of_both(5, 7)
    for changed in (True, False):
        told = await debit(ledger, decided, settlement(0, 0, credits=5, risk_points=7))
        assert (told.changed, told.charged) == (changed, Amounts(0, 0, 1, 5, 7))
    assert isinstance(await ledger.debit(of_both(16), settlement(credits=16), Debiting.ASK), Refusal)
    assert (await debit(ledger, of_both(16), settlement(0, 0, credits=16), Debiting.ALWAYS)).charged.credits == 16
    assert (await figures(ledger))[1:] == [(21, 0, 0), (7, 0, 0)]


async def test_a_rolling_window_forgets_risk_points_as_it_does_dollars(ledger: Ledger, clock: Clock) -> None:
    speed = account("speed", Unit.RISK_POINTS, window=rolling(60_000))
    held = await hold(ledger, decision(plan(charge(speed, 10), risk_points=8)))
    await ledger.commit(TENANT, held.id, settlement(0, 0, risk_points=8))
    refusal = await refuse(ledger, decision(plan(charge(speed, 10), risk_points=3)))
    assert [amount for _, amount in refusal.blocking[0].aging] == [8]
    clock.now_ms += 61_000
    await hold(ledger, decision(plan(charge(speed, 10), risk_points=3)))


async def test_a_budget_in_credits_may_gate_what_is_settled_or_only_warn(ledger: Ledger) -> None:
    settled = charge(account("settled", Unit.CREDITS), 10, ACTUALS)
    warns = charge(account("warns", Unit.CREDITS), 10, (Mode.ADVISORY_ESTIMATE, Basis.NONE))
    held = await hold(ledger, decision(plan(settled, warns, credits=30)))
    assert [each.account.budget for each in held.warnings] == ["warns"]
    await ledger.commit(TENANT, held.id, settlement(credits=10))
    refusal = await refuse(ledger, decision(plan(settled, warns, credits=1)))
    assert refusal.blocking[0].account.budget == "settled"


async def test_operators_change_accounts_in_credits_like_any_other(ledger: Ledger) -> None:
    await debit(ledger, of_both(5), settlement(0, 0, credits=5))
    assert (await ledger.set_account_limit(TENANT, CREDITS.key, 6, "op", "less")) is not None
    assert isinstance(await ledger.reserve(of_both(2), LEASE_MS), Refusal)
    await ledger.adjust(TENANT, CREDITS.key, -1, "act_1", "op", "a refund")
    await hold(ledger, of_both(2))
    await ledger.reset(TENANT, CREDITS.key, "op", "a new start")
    found = await look(ledger, CREDITS)
    assert (found.balance.limit, found.balance.committed, found.balance.reserved, found.adjusted) == (6, 0, 2, -5)


async def test_what_an_account_in_credits_counts_is_carried_forward(ledger: Ledger, clock: Clock) -> None:
    kept = await hold(ledger, of_both(usd=3))
    await ledger.commit(TENANT, kept.id, settlement(2, 0, credits=4, risk_points=1))
    expiring = await hold(ledger, of_both())
    clock.now_ms += LEASE_MS
    await ledger.expire()
    clock.now_ms += LEASE_MS
    keep = Keep(LEASE_MS, LEASE_MS)
    assert await ledger.retire(TENANT, [kept.decision.id, expiring.decision.id], keep) == 2
    assert await figures(ledger) == [(2, 0, 0), (9, 0, 0), (8, 0, 0)]
    assert (await look(ledger, CREDITS)).carried == 9
    assert (await verify_ledger(ledger.dump())).differences == ()


async def of_all_kinds(ledger: Ledger, clock: Clock) -> list[str]:
    """Calls with credits in every state; their decision ids."""
    committed, released, expired = [await hold(ledger, of_both(usd=1)) for _ in range(3)]
    await ledger.commit(TENANT, committed.id, settlement(1, 0, credits=2, risk_points=3))
    await ledger.release(TENANT, released.id, Ending.NOT_SENT)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    live, lapsing = await hold(ledger, of_both(usd=1)), await hold(ledger, of_both(usd=1, lapses=True))
    refused = of_both(21)
    await refuse(ledger, refused)
    debited = of_both(1)
    await debit(ledger, debited, settlement(0, 0, credits=1))
    held = (committed, released, expired, live, lapsing)
    return [*[each.decision.id for each in held], refused.id, debited.id]


@pytest.mark.parametrize("to", STORES)
async def test_all_of_it_moves_to_any_store(ledger: Ledger, store: Store, clock: Clock, tmp_path: Any, to: str) -> None:
    del store
    ids = await of_all_kinds(ledger, clock)
    rows = [row async for row in ledger.dump()]
    records = [await ledger.record(TENANT, each) for each in ids]
    before = ([await balance(ledger, each) for each in UNITS], (await view(ledger)).accounts)
    folder = tmp_path / "other"
    folder.mkdir()

    async def again() -> AsyncIterator[Mapping[str, object]]:
        for row in rows:
            yield row

    async with opened(new_store(to, folder), clock) as other:
        assert await other.load(again()) == len(rows)
        assert [await other.record(TENANT, each) for each in ids] == records
        assert ([await balance(other, each) for each in UNITS], (await view(other)).accounts) == before
        assert (await verify_ledger(other.dump())).differences == ()
        clock.now_ms += LEASE_MS
        charged = {each.hold_id: each.charged for each in await other.expire()}
    assert list(charged.values()).count(Amounts(0, 0, 0)) == 1
    assert sorted(each.credits for each in charged.values()) == [0, 5]
    found = records[0]
    assert found is not None
    assert (found.state, found.held, found.charged) == (HoldState.COMMITTED, Amounts(1, 0, 1, 5, 7), Amounts(1, 0, 1, 2, 3))


async def test_reports_tell_who_spent_credits(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_both())
    await ledger.commit(TENANT, held.id, settlement(0, 0, 0, credits=5, risk_points=2))
    plain = await hold(ledger, of_both(0, 0, usd=3))
    await ledger.commit(TENANT, plain.id, settlement(3, 4))
    expiring = await hold(ledger, of_both())
    clock.now_ms += LEASE_MS
    await ledger.expire()
    await ledger.release(TENANT, expiring.id, Ending.NOT_SENT)
    assert await ledger.spend(TENANT, ("run",), 0, clock.now_ms, None) == [SpendRow(("r1",), 3, 4, 1, 5, 2)]
