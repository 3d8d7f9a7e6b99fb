"""What operators do to accounts and holds by hand, and the record of who did it, when and why."""

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Ending, Usage, UsageSource
from gateway.ledger.contract import Act, Adjusting, HoldState, Ledger, SetLimit
from tests.ledger.asking import hold, look, of_run, refuse, settle, spend, view
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement
from tests.support.clock import Clock

ALL = account()
MILLIONS = 49_000_000 * 100_000_000  # $49M


async def adjust(ledger: Ledger, amount: int, act_id: str = "act_1", key: str = ALL.key) -> tuple[Adjusting, int]:
    done = await ledger.adjust(TENANT, key, amount, act_id, "op", "the provider's bill")
    assert done is not None
    return done[0], done[1].balance.committed


# -- limits -------------------------------------------------------------------------------------------------------------------


async def test_a_stored_limit_replaces_the_policys_in_both_directions(ledger: Ledger) -> None:
    await spend(ledger, decision(), 10)
    raised = await ledger.set_account_limit(TENANT, ALL.key, 200, "op", "a big day")
    assert raised is not None
    assert (raised.balance.limit, raised.balance.committed) == (200, 10)
    assert (await hold(ledger, decision(plan(charge(limit=100), usd=150)))).balances[0].limit == 200
    await ledger.set_account_limit(TENANT, ALL.key, 20, "op", "enough")
    assert (await refuse(ledger, decision(plan(charge(limit=100), usd=11)))).blocking[0].limit == 20
    await ledger.set_account_limit(TENANT, ALL.key, None, "op", "as the policy says")
    assert (await refuse(ledger, decision(plan(charge(limit=160), usd=11)))).blocking[0].limit == 160


async def test_a_stored_limit_binds_a_hold_that_wants_to_grow(ledger: Ledger) -> None:
    held = await hold(ledger, decision())
    await ledger.set_account_limit(TENANT, ALL.key, 15, "op", "")
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(16, 0))
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(15, 0))


async def test_a_runs_own_limit_tightens_the_stored_one_and_the_admins_passes_it(ledger: Ledger) -> None:
    await hold(ledger, of_run(10, run_limit=50))
    key = account("run-ceiling", run="r1").key
    await ledger.set_account_limit(TENANT, key, 500, "op", "")
    assert (await hold(ledger, of_run(10))).balances[0].limit == 50
    await ledger.set_account_limit(TENANT, key, 40, "op", "")
    assert (await hold(ledger, of_run(10))).balances[0].limit == 40
    await ledger.set_limit(TENANT, "r1", "", SetLimit(600, by_admin=True, who="admin"))
    assert (await view(ledger)).accounts[0].limit == 600


async def test_alerts_measure_the_stored_limit(ledger: Ledger) -> None:
    asked = decision(plan(charge(alerts=(500_000,)), usd=10))
    held = await hold(ledger, asked)
    await ledger.set_account_limit(TENANT, ALL.key, 20, "op", "")
    assert [(alert.limit, alert.committed) for alert in (await settle(ledger, held, 10)).alerts] == [(20, 10)]


# -- adjusting ----------------------------------------------------------------------------------------------------------------


async def test_an_adjustment_is_part_of_what_is_committed(ledger: Ledger) -> None:
    await spend(ledger, decision(), 10)
    assert await adjust(ledger, 60) == (Adjusting.DONE, 70)
    await refuse(ledger, decision(plan(charge(), usd=31)))
    assert await adjust(ledger, -70, "act_2") == (Adjusting.DONE, 0)
    found = await look(ledger, ALL)
    assert (found.adjusted, found.carried, found.balance.committed) == (-10, 0, 0)
    await hold(ledger, decision(plan(charge(), usd=100)))


async def test_the_same_act_counts_once(ledger: Ledger) -> None:
    await spend(ledger, decision(), 10)
    assert await adjust(ledger, 5) == (Adjusting.DONE, 15)
    assert await adjust(ledger, 5) == (Adjusting.REPLAYED, 15)
    assert await adjust(ledger, 7) == (Adjusting.REPLAYED, 15)
    assert len(await ledger.acts(TENANT, 10)) == 1


async def test_nothing_is_taken_away_that_is_not_confirmed(ledger: Ledger, clock: Clock) -> None:
    await spend(ledger, decision(), 10)
    await hold(ledger, decision(plan(charge(), usd=30)))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    assert await adjust(ledger, -11) == (Adjusting.BELOW_ZERO, 40)
    assert await adjust(ledger, -10) == (Adjusting.DONE, 30)  # what was not done may be done under its id
    assert await ledger.adjust(TENANT, "never|", 1, "act_2", "op", "") is None


async def test_tokens_and_calls_are_adjusted_in_their_unit(ledger: Ledger) -> None:
    tokens = account("tokens", Unit.TOKENS)
    await spend(ledger, decision(plan(charge(tokens, 100))), 10)
    assert await adjust(ledger, 40, key=tokens.key) == (Adjusting.DONE, 43)


async def test_millions_are_adjusted_exactly(ledger: Ledger) -> None:
    await spend(ledger, decision(plan(charge(limit=MILLIONS), usd=1)), 1)
    assert await adjust(ledger, MILLIONS - 2) == (Adjusting.DONE, MILLIONS - 1)
    await refuse(ledger, decision(plan(charge(limit=MILLIONS), usd=2)))
    assert await adjust(ledger, -MILLIONS + 2, "act_2") == (Adjusting.DONE, 1)


# -- starting anew ------------------------------------------------------------------------------------------------------------


async def test_a_reset_forgets_what_is_confirmed_and_lets_alerts_fire_again(ledger: Ledger, clock: Clock) -> None:
    late = await hold(ledger, decision(plan(charge(), usd=30)))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    half = charge(alerts=(500_000,))
    assert len((await spend(ledger, decision(plan(half, usd=0)), 40)).alerts) == 1
    found = await ledger.reset(TENANT, ALL.key, "op", "a new start")
    assert found is not None
    assert (found.balance.committed, found.balance.unconfirmed, found.adjusted) == (30, 30, -40)
    assert (await settle(ledger, late, 12)).balances[0].committed == 12
    assert len((await spend(ledger, decision(plan(half, usd=0)), 40)).alerts) == 1
    assert await ledger.reset(TENANT, "never|", "op", "") is None


async def test_a_reset_leaves_what_is_held_and_what_the_run_has_spent(ledger: Ledger) -> None:
    await spend(ledger, of_run(), 10)
    await hold(ledger, of_run(20))
    await ledger.reset(TENANT, account("run-ceiling", run="r1").key, "op", "")
    found = await view(ledger)
    assert (found.committed, found.reserved) == (10, 20)
    assert (found.accounts[0].committed, found.accounts[0].reserved) == (0, 20)


# -- settling -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expired", [False, True])
async def test_an_operator_says_what_a_hold_cost_and_tokens_and_calls_are_charged_as_held(
    ledger: Ledger, clock: Clock, expired: bool
) -> None:
    tokens, calls = account("tokens", Unit.TOKENS), account("steps", Unit.CALLS)
    held = await hold(ledger, decision(plan(charge(), charge(tokens, 100), charge(calls, 100), usd=30, tokens=20)))
    if expired:
        clock.now_ms += LEASE_MS
        await ledger.expire()
    settled = await ledger.settle(TENANT, held.id, 12, "op", "the bill")
    assert settled is not None
    assert (settled.state, settled.changed, settled.charged) == (HoldState.COMMITTED, True, Amounts(12, 20, 1))
    assert [(each.committed, each.reserved, each.unconfirmed) for each in settled.balances] == [(12, 0, 0), (20, 0, 0), (1, 0, 0)]
    record = await ledger.record(TENANT, held.decision.id)
    assert record is not None
    assert (record.usage, record.state) == (Usage(UsageSource.HELD), HoldState.COMMITTED)
    again = await ledger.settle(TENANT, held.id, None, "op", "again")
    assert again is not None
    assert not again.changed
    assert [act.act for act in await ledger.acts(TENANT, 10)] == ["settle"]


# -- the record of it ---------------------------------------------------------------------------------------------------------


async def test_every_act_is_on_record_with_who_when_and_why_the_newest_first(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_run())
    other = await hold(ledger, of_run())
    key = account("run-ceiling", run="r1").key
    await ledger.set_limit(TENANT, "r1", "k1", SetLimit(50, by_admin=False, who="k1"))
    clock.now_ms += 1
    await ledger.set_limit(TENANT, "r1", "", SetLimit(500, by_admin=True, who="admin"))
    await ledger.pause(TENANT, "r1", "op", "one")
    await ledger.resume(TENANT, "r1", "op", "two")
    await ledger.set_account_limit(TENANT, key, 70, "op", "three")
    await ledger.set_account_limit(TENANT, key, None, "op", "four")
    await ledger.adjust(TENANT, key, 5, "act_mine", "op", "five")
    await ledger.reset(TENANT, key, "op", "six")
    await ledger.settle(TENANT, held.id, 7, "op", "seven")
    await ledger.settle(TENANT, other.id, None, "op", "eight")
    await ledger.freeze(TENANT, (("team", "t1"), ("agent", "a b")), "op", "nine")
    await ledger.thaw(TENANT, (("team", "t1"), ("agent", "a b")), "op", "ten")
    await ledger.stop(TENANT, "r1", "op", "eleven")
    acts = list(await ledger.acts(TENANT, 100))
    expected = [
        (START_MS, "k1", "set_limit", "r1 50", ""),
        (START_MS + 1, "admin", "set_limit", "r1 500", ""),
        (START_MS + 1, "op", "pause", "r1", "one"),
        (START_MS + 1, "op", "resume", "r1", "two"),
        (START_MS + 1, "op", "set_account_limit", f"{key} 70", "three"),
        (START_MS + 1, "op", "set_account_limit", f"{key} none", "four"),
        (START_MS + 1, "op", "adjust", f"{key} 5", "five"),
        (START_MS + 1, "op", "reset", key, "six"),
        (START_MS + 1, "op", "settle", f"{held.id} 7", "seven"),
        (START_MS + 1, "op", "settle", f"{other.id} none", "eight"),
        (START_MS + 1, "op", "freeze", "agent=a%20b,team=t1", "nine"),
        (START_MS + 1, "op", "thaw", "agent=a%20b,team=t1", "ten"),
        (START_MS + 1, "op", "stop", "r1", "eleven"),
    ]
    assert [(act.at_ms, act.who, act.act, act.what, act.why) for act in reversed(acts)] == expected
    assert [act.id for act in acts if act.act == "adjust"] == ["act_mine"]
    assert len({act.id for act in acts}) == len(acts)
    pages: list[Act] = []
    while page := await ledger.acts(TENANT, 4, pages[-1].id if pages else None):
        pages += page
    assert pages == acts
    assert list(await ledger.acts("other", 10)) == []


async def test_what_changes_nothing_is_not_on_record(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    key = account("run-ceiling", run="r1").key
    await ledger.resume(TENANT, "r1", "op", "it was not paused")
    await ledger.set_limit(TENANT, "r1", "", SetLimit(50, by_admin=True, who="admin"))
    await ledger.set_limit(TENANT, "r1", "", SetLimit(50, by_admin=True, who="admin"))
    await ledger.set_limit(TENANT, "r1", "k1", SetLimit(60, by_admin=False, who="k1"))
    await ledger.set_account_limit(TENANT, key, None, "op", "there was none")
    await ledger.reset(TENANT, key, "op", "nothing was spent")
    await ledger.thaw(TENANT, (), "op", "it was not frozen")
    await ledger.pause(TENANT, "r1", "op", "")
    await ledger.pause(TENANT, "r1", "op", "again")
    await ledger.stop(TENANT, "r1", "op", "")
    await ledger.stop(TENANT, "r1", "op", "")
    assert [act.act for act in await ledger.acts(TENANT, 10)] == ["stop", "pause", "set_limit"]


async def test_an_account_that_was_only_refused_does_not_exist(ledger: Ledger) -> None:
    await refuse(ledger, decision(plan(charge(limit=5), usd=10)))
    assert await ledger.account(TENANT, ALL.key) is None
    assert await ledger.set_account_limit(TENANT, ALL.key, 50, "op", "") is None
    held = await hold(ledger, decision(plan(charge(limit=50), usd=10), of=caller("r2")))
    await ledger.release(TENANT, held.id, Ending.NOT_SENT)
    found = await look(ledger, ALL)
    assert (found.balance.committed, found.balance.reserved, found.balance.account) == (0, 0, ALL)


async def test_an_overrun_of_an_own_run_is_seen_in_its_view(ledger: Ledger) -> None:
    held = await hold(ledger, decision(plan(own_run_charge(limit=50), usd=10)))
    await ledger.commit(TENANT, held.id, settlement(90))
    found = await view(ledger)
    assert (found.committed, found.accounts[0].remaining) == (90, 0)
