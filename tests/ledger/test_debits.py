"""A known cost without a hold: asked for, always recorded, or told again after an outage."""

import asyncio

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, UsageSource
from gateway.ledger.contract import Barred, Barrier, Debiting, HoldState, Ledger, Refusal, RunState, SetLimit, Settled, Stale
from tests.ledger.asking import balance, debit, hold, of_run, refuse, settle, spend, view
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

FEE = settlement(30, 0, ending=Ending.DEBITED)


def fee(usd: int = 30, *, limit: int | None = 100, run: str = "r1", key: str = "k1") -> Decision:
    return decision(plan(own_run_charge(run, limit), usd=usd, tokens=0), of=caller(run, key))


async def test_a_debit_is_charged_at_once_and_is_a_call_on_record(ledger: Ledger) -> None:
    asked = fee()
    settled = await debit(ledger, asked, FEE)
    assert (settled.state, settled.changed, settled.charged) == (HoldState.COMMITTED, True, Amounts(30, 0, 1))
    assert [(each.committed, each.reserved) for each in settled.balances] == [(30, 0)]
    found = await view(ledger)
    assert (found.committed, found.calls, found.owner) == (30, 1, "k1")
    record = await ledger.record(TENANT, asked.id)
    assert record is not None
    assert (record.state, record.outcome, record.ending, record.charged) == (
        HoldState.COMMITTED,
        "allow",
        "debited",
        Amounts(30, 0, 1),
    )
    assert record.usage is not None
    assert record.usage.source is UsageSource.PROVIDER
    assert [row.usd for row in await ledger.spend(TENANT, ("run",), START_MS, START_MS + 1, None)] == [30]


@pytest.mark.parametrize("how", Debiting)
async def test_the_same_debit_counts_once_however_it_is_told_again(ledger: Ledger, how: Debiting) -> None:
    asked = fee()
    await debit(ledger, asked, FEE)
    again = await debit(ledger, asked, settlement(99), how)
    assert (again.state, again.changed, again.charged.usd) == (HoldState.COMMITTED, False, 30)
    assert (await view(ledger)).committed == 30


async def test_of_many_tellings_at_once_one_counts(ledger: Ledger) -> None:
    asked = fee()
    answers = await asyncio.gather(*(ledger.debit(asked, FEE, Debiting.REPLAY) for _ in range(20)))
    assert sum(isinstance(answer, Settled) and answer.changed for answer in answers) == 1
    assert (await view(ledger)).committed == 30


async def test_what_must_fit_is_the_decisions_and_what_is_charged_the_settlements(ledger: Ledger) -> None:
    await debit(ledger, fee(100), settlement(130))
    assert (await view(ledger)).committed == 130
    assert isinstance(await ledger.debit(fee(1), settlement(0), Debiting.ASK), Refusal)


async def test_a_debit_that_does_not_fit_is_refused_like_a_call(ledger: Ledger) -> None:
    asked = decision(plan(own_run_charge(pause=True), usd=101))
    answer = await ledger.debit(asked, FEE, Debiting.ASK)
    assert isinstance(answer, Refusal)
    assert answer.paused
    assert (await view(ledger)).state is RunState.PAUSED
    record = await ledger.record(TENANT, asked.id)
    assert record is not None
    assert record.state is None
    barred = await ledger.debit(fee(), FEE, Debiting.ASK)
    assert isinstance(barred, Barred)
    assert (barred.barrier, barred.what) == (Barrier.PAUSED, "r1")


async def test_what_was_spent_anyway_is_recorded_though_it_does_not_fit(ledger: Ledger) -> None:
    settled = await debit(ledger, fee(130), settlement(130), Debiting.ALWAYS)
    assert [(each.limit, each.committed) for each in settled.balances] == [(100, 130)]
    assert (await view(ledger)).state is RunState.ACTIVE
    await refuse(ledger, of_run(1))


@pytest.mark.parametrize("act", ["stop", "pause", "freeze"])
async def test_what_was_spent_anyway_is_recorded_though_the_run_takes_no_calls(ledger: Ledger, act: str) -> None:
    await spend(ledger, of_run(), 10)
    if act == "freeze":
        await ledger.freeze(TENANT, (), "op", "")
    else:
        await getattr(ledger, act)(TENANT, "r1", "op", "")
    assert isinstance(await ledger.debit(fee(), FEE, Debiting.ASK), Barred)
    for how in (Debiting.ALWAYS, Debiting.REPLAY):
        await debit(ledger, fee(), FEE, how)
    assert (await view(ledger)).committed == 70


async def test_a_debit_into_another_window_is_stale_unless_it_is_of_that_time(ledger: Ledger, clock: Clock) -> None:
    yesterday = account("day", window=day_of(START_MS - DAY_MS))
    asked = decision(plan(charge(yesterday), usd=30))
    for how in (Debiting.ASK, Debiting.ALWAYS):
        assert await ledger.debit(asked, FEE, how) == Stale(START_MS, "k1")
    await debit(ledger, asked, FEE, Debiting.REPLAY)
    assert (await balance(ledger, yesterday)).committed == 30


async def test_a_debit_for_the_run_of_another_key_is_stale_unless_it_happened_before_that_was_known(ledger: Ledger) -> None:
    await spend(ledger, of_run(key="k2"), 10)
    for how in (Debiting.ASK, Debiting.ALWAYS):
        assert await ledger.debit(fee(), FEE, how) == Stale(START_MS, "k2")
    await debit(ledger, fee(), FEE, Debiting.REPLAY)
    found = await view(ledger)
    assert (found.committed, found.owner) == (40, "k2")


async def test_what_is_told_after_an_outage_places_its_run_where_the_tree_allows_it(ledger: Ledger) -> None:
    child = decision(plan(own_run_charge("low"), own_run_charge("top"), usd=30), of=caller("low", parent="top"))
    await debit(ledger, child, FEE, Debiting.REPLAY)
    assert (await view(ledger, "low")).ancestry == ("top",)
    assert (await view(ledger, "top")).owner == "k1"
    circle = decision(plan(own_run_charge("self"), usd=30), of=caller("self", parent="self"))
    await debit(ledger, circle, FEE, Debiting.REPLAY)
    assert (await view(ledger, "self")).ancestry == ()
    assert isinstance(await ledger.debit(circle, FEE, Debiting.ALWAYS), Settled)  # known by its id
    other = decision(plan(own_run_charge("self"), usd=30), of=caller("self", parent="self"))
    answer = await ledger.debit(other, FEE, Debiting.ALWAYS)
    assert isinstance(answer, Barred)
    assert answer.barrier is Barrier.CYCLE


async def test_a_debit_with_the_id_of_a_hold_is_told_how_that_stands(ledger: Ledger) -> None:
    held = await hold(ledger, fee())
    answer = await debit(ledger, held.decision, FEE, Debiting.ALWAYS)
    assert (answer.state, answer.changed) == (HoldState.LIVE, False)
    await settle(ledger, held, 12)
    answer = await debit(ledger, held.decision, FEE, Debiting.REPLAY)
    assert (answer.state, answer.changed, answer.charged.usd) == (HoldState.COMMITTED, False, 12)


async def test_a_debit_that_was_released_before_it_was_told_is_never_charged(ledger: Ledger) -> None:
    asked = fee()
    await ledger.release(TENANT, asked.hold_id, Ending.NOT_SENT)
    answer = await debit(ledger, asked, FEE, Debiting.REPLAY)
    assert (answer.state, answer.changed, answer.charged) == (HoldState.RELEASED, False, Amounts(0, 0, 0))
    assert await ledger.run(TENANT, "r1") is None


async def test_a_debit_makes_alerts_fire_once(ledger: Ledger) -> None:
    half = plan(charge(alerts=(500_000,)), usd=50)
    assert len((await debit(ledger, decision(half), settlement(50))).alerts) == 1
    assert (await debit(ledger, decision(half), settlement(10), Debiting.ALWAYS)).alerts == ()


async def test_a_debit_never_expires(ledger: Ledger, clock: Clock) -> None:
    await debit(ledger, fee(), FEE)
    clock.now_ms += 10 * LEASE_MS
    assert list(await ledger.expire()) == []


async def test_an_x_run_limit_is_the_owners_word_also_in_what_is_told_late(ledger: Ledger) -> None:
    await ledger.set_limit(TENANT, "r1", "k2", SetLimit(80, by_admin=False, who="k2"))
    asked = decision(plan(own_run_charge(), usd=30), run_limit=20)
    await debit(ledger, asked, FEE, Debiting.REPLAY)
    assert (await view(ledger)).limit == 80
    mine = decision(plan(own_run_charge("r2"), usd=30), of=caller("r2"), run_limit=20)
    await debit(ledger, mine, FEE, Debiting.REPLAY)
    assert (await view(ledger, "r2")).limit == 20
