"""A hold that lapses: of work that may never begin. Its lease ends without a charge, and what it cost after all counts once."""

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Ending
from gateway.core.windows import rolling
from gateway.ledger.contract import Debiting, HoldState, Keep, Ledger
from gateway.ledger.verify import verify_ledger
from tests.ledger.asking import balance, hold, look, view
from tests.ledger.builders import (
    ADVISORY,
    DAY_MS,
    LEASE_MS,
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

NOTHING = Amounts(0, 0, 0)
TOKENS = account("tokens", Unit.TOKENS)
BURN = account("burn", window=rolling(60_000))
ACCOUNTS = (account("run-ceiling", run="r1"), TOKENS, BURN)


async def lapsing(ledger: Ledger, **more: object) -> str:
    charges = (own_run_charge(), charge(TOKENS), charge(BURN, 100))
    return (await hold(ledger, decision(plan(*charges), lapses=True, **more))).id  # type: ignore[arg-type]


async def figures(ledger: Ledger) -> list[tuple[int, int, int]]:
    """committed, reserved and unconfirmed: of the run, then of its accounts."""
    seen = await view(ledger)
    found = [seen, *[await balance(ledger, each) for each in ACCOUNTS]]
    return [(each.committed, each.reserved, each.unconfirmed) for each in found]


async def lapsed(ledger: Ledger, clock: Clock) -> str:
    hold_id = await lapsing(ledger)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    return hold_id


async def test_a_lease_ends_without_a_charge(ledger: Ledger, clock: Clock) -> None:
    hold_id = await lapsing(ledger)
    assert await figures(ledger) == [(0, 10, 0), (0, 10, 0), (0, 5, 0), (0, 10, 0)]
    clock.now_ms += LEASE_MS
    (expired,) = await ledger.expire()
    assert (expired.hold_id, expired.charged, expired.alerts, expired.lapsed) == (hold_id, NOTHING, (), True)
    assert await figures(ledger) == [(0, 0, 0)] * 4
    found = await ledger.record(TENANT, hold_id.replace("rsv_", "bdg_"))
    assert found is not None
    assert (found.state, found.held, found.charged, found.lapses) == (HoldState.EXPIRED, Amounts(10, 5, 1), NOTHING, True)
    assert await ledger.spend(TENANT, (), 0, clock.now_ms, None) == []
    assert (await verify_ledger(ledger.dump())).differences == ()


async def test_of_two_leases_each_ends_its_own_way(ledger: Ledger, clock: Clock) -> None:
    await lapsing(ledger)
    call = await hold(ledger, decision(plan(own_run_charge())))
    clock.now_ms += LEASE_MS
    expired = {each.hold_id: each.charged.usd for each in await ledger.expire()}
    assert expired.pop(call.id) == 10
    assert list(expired.values()) == [0]
    assert (await view(ledger)).unconfirmed == 10
    found = await ledger.record(TENANT, call.decision.id)
    assert found is not None
    assert not found.lapses


@pytest.mark.parametrize("end", ["commit", "settle"])
async def test_what_it_cost_after_all_is_charged_once(ledger: Ledger, clock: Clock, end: str) -> None:
    hold_id = await lapsed(ledger, clock)
    if end == "commit":
        settled = await ledger.commit(TENANT, hold_id, settlement(4, 3))
    else:
        settled = await ledger.settle(TENANT, hold_id, 4, "op", "the bill")
    assert settled is not None
    tokens = 3 if end == "commit" else 5
    assert (settled.state, settled.changed, settled.charged) == (HoldState.COMMITTED, True, Amounts(4, tokens, 1))
    assert await figures(ledger) == [(4, 0, 0), (4, 0, 0), (tokens, 0, 0), (4, 0, 0)]
    again = await ledger.commit(TENANT, hold_id, settlement(40))
    assert again is not None
    assert (again.changed, again.charged) == (False, settled.charged)
    (spent,) = await ledger.spend(TENANT, (), 0, clock.now_ms, None)
    assert (spent.usd, spent.tokens, spent.calls) == (4, tokens, 1)
    assert (await verify_ledger(ledger.dump())).differences == ()


@pytest.mark.parametrize("end", ["release", "settle"])
async def test_one_that_has_lapsed_can_be_given_back_for_good(ledger: Ledger, clock: Clock, end: str) -> None:
    hold_id = await lapsed(ledger, clock)
    if end == "release":
        await ledger.release(TENANT, hold_id, Ending.COMPLETED)
    else:
        await ledger.settle(TENANT, hold_id, None, "op", "never began")
    assert await figures(ledger) == [(0, 0, 0)] * 4
    settled = await ledger.commit(TENANT, hold_id, settlement(4))
    assert settled is not None
    assert (settled.state, settled.changed) == (HoldState.RELEASED, False)
    assert (await view(ledger)).calls == 0


async def test_in_time_it_is_a_hold_like_any_other(ledger: Ledger, clock: Clock) -> None:
    one, other = await lapsing(ledger), await lapsing(ledger)
    assert await ledger.extend(TENANT, one, LEASE_MS * 2, Amounts(20, 5, 1))
    clock.now_ms += LEASE_MS
    assert [each.hold_id for each in await ledger.expire()] == [other]
    assert (await figures(ledger))[0] == (0, 20, 0)
    assert not await ledger.extend(TENANT, other, LEASE_MS)
    settled = await ledger.commit(TENANT, one, settlement(19))
    assert settled is not None
    assert (settled.charged.usd, settled.changed) == (19, True)
    assert (await figures(ledger))[0] == (19, 0, 0)


async def test_asked_for_again_it_is_the_same_hold(ledger: Ledger) -> None:
    decided = decision(plan(own_run_charge()), lapses=True)
    first = await hold(ledger, decided)
    again = await hold(ledger, decided)
    assert (again.id, again.balances, again.lease_until_ms) == (first.id, first.balances, first.lease_until_ms)


async def test_a_slice_of_it_goes_back_too(ledger: Ledger, clock: Clock) -> None:
    charges = (charge(account("run-ceiling", run="r1"), sliced=True), charge(TOKENS), charge(BURN, 5, ADVISORY))
    await hold(ledger, decision(plan(*charges, usd=40, first=Amounts(10, 5)), lapses=True))
    assert await figures(ledger) == [(0, 40, 0), (0, 10, 0), (0, 5, 0), (0, 40, 0)]
    clock.now_ms += LEASE_MS
    await ledger.expire()
    assert await figures(ledger) == [(0, 0, 0)] * 4


async def test_one_that_has_lapsed_leaves_nothing_when_it_is_retired(ledger: Ledger, clock: Clock) -> None:
    hold_id = await lapsed(ledger, clock)
    clock.now_ms += LEASE_MS
    keep = Keep(LEASE_MS, LEASE_MS)
    (aged,) = await ledger.aged(keep, 10)
    assert (aged.state, aged.charged, aged.lapses) == (HoldState.EXPIRED, NOTHING, True)
    assert await ledger.retire(TENANT, [hold_id.replace("rsv_", "bdg_")], keep) == 1
    assert await figures(ledger) == [(0, 0, 0)] * 4
    assert (await look(ledger, TOKENS)).carried == 0
    assert (await verify_ledger(ledger.dump())).differences == ()


@pytest.mark.parametrize("end", ["commit", "release"])
async def test_what_one_that_has_lapsed_cost_after_all_counts_where_the_account_was_forgotten_meanwhile(
    ledger: Ledger, clock: Clock, end: str
) -> None:
    of, above = caller("child", parent="top"), account("run-ceiling", run="top")
    day = account("day", window=day_of(clock.now_ms))
    held = await hold(ledger, decision(plan(own_run_charge("top"), charge(day)), of=of, lapses=True))
    clock.now_ms += DAY_MS
    await ledger.expire()
    clock.now_ms += 2 * LEASE_MS
    while await ledger.sweep(Keep(2 * DAY_MS, LEASE_MS), 10):  # its record stays
        pass
    while await ledger.sweep(Keep(LEASE_MS, LEASE_MS), 10):
        pass
    assert await ledger.account(TENANT, above.key) is None
    assert await ledger.account(TENANT, day.key) is None
    if end == "commit":
        await ledger.commit(TENANT, held.id, settlement(7))
    else:
        await ledger.release(TENANT, held.id, Ending.COMPLETED)
    assert (await verify_ledger(ledger.dump())).differences == ()
    for each in (above, day):
        assert (await look(ledger, each)).balance.committed == (7 if end == "commit" else 0)
    assert {row["key"] async for row in ledger.dump() if row["kind"] == "account"} == {above.key, day.key}


# -- listing ------------------------------------------------------------------------------------------------------------------


async def listed(ledger: Ledger, limit: int = 100, before: str | None = None) -> list[str]:
    return [record.decision_id for record in await ledger.leases(TENANT, limit, before)]


async def test_what_lapses_is_listed_in_every_state_the_latest_first(ledger: Ledger, clock: Clock) -> None:
    ids = [(await lapsing(ledger, decision_id=f"bdg_{name}")).replace("rsv_", "bdg_") for name in ("c", "a", "b")]
    await hold(ledger, decision(plan(charge())))  # a call's own is no lease
    await ledger.commit(TENANT, "rsv_a", settlement())
    await ledger.release(TENANT, "rsv_b", Ending.COMPLETED)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    late = await lapsing(ledger, decision_id="bdg_0")
    assert await listed(ledger) == [late.replace("rsv_", "bdg_"), *sorted(ids, reverse=True)]
    states = [record.state for record in await ledger.leases(TENANT, 100)]
    assert states == [HoldState.LIVE, HoldState.EXPIRED, HoldState.RELEASED, HoldState.COMMITTED]
    assert not await ledger.leases("other", 100)


async def test_the_list_goes_on_where_a_page_ended(ledger: Ledger, clock: Clock) -> None:
    for number in range(5):
        await lapsing(ledger, decision_id=f"bdg_{number % 3}{number}")
        clock.now_ms += number % 2
    everything = await listed(ledger)
    assert len(everything) == 5
    pages: list[str] = []
    while page := await listed(ledger, 2, pages[-1] if pages else None):
        pages += page
        clock.now_ms += 1
        await lapsing(ledger)  # one that comes meanwhile stands before it
    assert pages == everything
    other = await hold(ledger, decision(plan(charge())))
    assert await listed(ledger, 2, other.decision.id) == []
    assert await listed(ledger, 2, "bdg_never") == []


async def test_it_leaves_the_list_with_its_record(ledger: Ledger, clock: Clock) -> None:
    ended, live = await lapsing(ledger), await lapsing(ledger)
    await ledger.commit(TENANT, ended, settlement())
    clock.now_ms += LEASE_MS
    keep = Keep(LEASE_MS, LEASE_MS)
    assert await ledger.retire(TENANT, [ended.replace("rsv_", "bdg_")], keep) == 1
    assert await listed(ledger) == [live.replace("rsv_", "bdg_")]


async def test_one_whose_first_plan_does_not_fit_is_listed_too(ledger: Ledger) -> None:
    cheaper = plan(charge(limit=20), usd=5, model="small")
    held = await hold(ledger, decision(plan(charge(limit=20), usd=30), cheaper, lapses=True))
    assert held.plan == cheaper
    assert await listed(ledger) == [held.decision.id]
    with pytest.raises(AssertionError):
        await ledger.debit(decision(cheaper, lapses=True), settlement(), Debiting.ASK)
