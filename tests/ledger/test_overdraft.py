"""An extension that may pass an account's limit by so much, and one that leaves the lease as it is."""

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Hold
from gateway.ledger.contract import Ledger
from tests.ledger.asking import balance, hold, refuse
from tests.ledger.builders import ACTUALS, LEASE_MS, TENANT, account, charge, decision, plan, settlement
from tests.support.clock import Clock

RUN, MONTH = account("run-ceiling", run="r1"), account("month")
CREDITS = account("credits", Unit.CREDITS)


async def held_of(ledger: Ledger, run: int = 20, month: int = 50) -> Hold:
    return await hold(ledger, decision(plan(charge(RUN, run), charge(MONTH, month))))


async def reserved(ledger: Ledger) -> list[int]:
    return [(await balance(ledger, each)).reserved for each in (RUN, MONTH)]


async def test_an_account_may_be_passed_by_so_much_and_no_more(ledger: Ledger) -> None:
    held = await held_of(ledger)
    for over in ({}, {RUN.key: 4}, {MONTH.key: 100}, {"never|seen|lifetime|usd": 100}):
        assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(25, 5), over=over)
        assert await reserved(ledger) == [10, 10]
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(25, 5), over={RUN.key: 5})
    assert await reserved(ledger) == [25, 25]
    refusal = await refuse(ledger, decision(plan(charge(RUN, 20), charge(MONTH, 50), usd=1)))
    assert refusal.blocking[0].account == RUN


async def test_each_account_has_an_overdraft_of_its_own(ledger: Ledger) -> None:
    held = await held_of(ledger)
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(60, 5), over={RUN.key: 40})
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(60, 5), over={MONTH.key: 10})
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(60, 5), over={RUN.key: 40, MONTH.key: 10})
    assert await reserved(ledger) == [60, 60]


async def test_asked_again_it_holds_no_more_and_needs_no_more_room(ledger: Ledger) -> None:
    held = await held_of(ledger)
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(25, 5), over={RUN.key: 5})
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(25, 5))
    assert await reserved(ledger) == [25, 25]


async def test_what_others_hold_is_within_the_overdraft_too(ledger: Ledger) -> None:
    one, _ = await held_of(ledger), await held_of(ledger)
    assert not await ledger.extend(TENANT, one.id, LEASE_MS, Amounts(14, 5), over={RUN.key: 3})
    assert await ledger.extend(TENANT, one.id, LEASE_MS, Amounts(13, 5), over={RUN.key: 3})


async def test_an_overdraft_in_credits_is_counted_in_credits(ledger: Ledger) -> None:
    held = await hold(ledger, decision(plan(charge(CREDITS, 5), usd=0, tokens=0, credits=5)))
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(0, 0, 1, 9), over={CREDITS.key: 3})
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(0, 0, 1, 9), over={CREDITS.key: 4})
    settled = await ledger.commit(TENANT, held.id, settlement(0, 0, credits=9))
    assert settled is not None
    assert settled.charged.credits == 9
    assert (await balance(ledger, CREDITS)).committed == 9


async def test_where_only_what_is_settled_counts_the_overdraft_does_too(ledger: Ledger) -> None:
    spent = await hold(ledger, decision(plan(charge(RUN, 20, ACTUALS))))
    other = await hold(ledger, decision(plan(charge(RUN, 20, ACTUALS))))
    await ledger.commit(TENANT, spent.id, settlement(20))
    assert not await ledger.extend(TENANT, other.id, LEASE_MS, Amounts(11, 5))
    assert await ledger.extend(TENANT, other.id, LEASE_MS, Amounts(11, 5), over={RUN.key: 1})


async def test_a_rule_may_be_passed_also_in_a_slice(ledger: Ledger) -> None:
    sliced = decision(plan(charge(RUN, 20, sliced=True), charge(MONTH, 50), usd=40, first=Amounts(10, 5)))
    held = await hold(ledger, sliced)
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 5), Amounts(25, 5))
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 5), Amounts(25, 5), {RUN.key: 5})
    assert await reserved(ledger) == [25, 40]


@pytest.mark.parametrize("more", [Amounts(15, 5), None])
async def test_a_lease_may_stay_as_it_is(ledger: Ledger, clock: Clock, more: Amounts | None) -> None:
    held = await held_of(ledger)
    clock.now_ms += LEASE_MS // 2
    assert await ledger.extend(TENANT, held.id, None, more)
    found = await ledger.record(TENANT, held.decision.id)
    assert found is not None
    assert found.lease_until_ms == held.lease_until_ms
    assert await reserved(ledger) == ([15, 15] if more else [10, 10])
    clock.now_ms += LEASE_MS // 2
    assert [each.hold_id for each in await ledger.expire()] == [held.id]
    assert not await ledger.extend(TENANT, held.id, None, more)
