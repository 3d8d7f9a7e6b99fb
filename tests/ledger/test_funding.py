"""Accounts whose limit operators move by hand: made, topped up, taken from, set anew; each act once, and never below what is covered."""

import pytest

from gateway.core.scopes import Account, Unit
from gateway.core.values import Decision
from gateway.core.windows import rolling
from gateway.ledger.contract import MOST, Barrier, Fund, Funded, Funding, Keep, Ledger, RunState
from gateway.ledger.verify import verify_ledger
from tests.ledger.asking import bar, hold, look, refuse, settle, spend, view
from tests.ledger.builders import DAY_MS, LEASE_MS, START_MS, TENANT, account, caller, charge, day_of, decision, plan
from tests.support.clock import Clock

GRANT = account("cycles", agent="bot")


async def fund(ledger: Ledger, change: Fund, act_id: str, of: Account = GRANT) -> Funded:
    return await ledger.fund(of, change, act_id, "op", "because")


def of_grant(usd: int = 10, *, alerts: tuple[int, ...] = (), pause: bool = False) -> Decision:
    return decision(plan(charge(GRANT, None, alerts=alerts, pause=pause), usd=usd))


async def test_an_account_is_made_with_what_is_given_to_it(ledger: Ledger) -> None:
    made = await fund(ledger, Fund(by=100), "act_1")
    assert (made.outcome, made.before) == (Funding.DONE, None)
    balance = made.after.balance
    assert (balance.account, balance.limit, balance.committed, balance.reserved) == (GRANT, 100, 0, 0)
    assert await look(ledger, GRANT) == made.after
    [act] = await ledger.acts(TENANT, 10)
    assert (act.id, act.at_ms, act.who, act.act, act.what, act.why) == (
        *("act_1", START_MS, "op", "fund"),
        *(f"{GRANT.key} +100", "because"),
    )


async def test_the_limit_of_the_account_is_what_calls_have_to_fit(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=25), "act_1")
    await spend(ledger, of_grant(), 10)
    await hold(ledger, of_grant())
    refused = await refuse(ledger, of_grant())
    assert (refused.blocking[0].limit, refused.blocking[0].remaining) == (25, 5)
    more = await fund(ledger, Fund(by=5), "act_2")
    assert more.before is not None
    assert (more.before.balance.limit, more.after.balance.limit, more.after.balance.remaining) == (25, 30, 10)
    await hold(ledger, of_grant())


async def test_the_same_act_counts_once_whatever_it_says_and_is_told_as_it_stands(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    await fund(ledger, Fund(by=50), "act_2")
    again = await fund(ledger, Fund(by=50), "act_2")
    assert again.outcome is Funding.REPLAYED
    assert again.before == again.after == await look(ledger, GRANT)
    assert again.after.balance.limit == 150
    other = await fund(ledger, Fund(by=1), "act_2", account("other"))
    assert (other.outcome, other.before, other.after.balance.limit) == (Funding.REPLAYED, None, None)
    assert await ledger.account(TENANT, account("other").key) is None
    assert len(await ledger.acts(TENANT, 10)) == 2


async def test_an_act_that_moved_nothing_is_known_all_the_same(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    assert (await fund(ledger, Fund(to=100), "act_2")).outcome is Funding.DONE
    await fund(ledger, Fund(to=40), "act_3")
    assert (await fund(ledger, Fund(to=100), "act_2")).after.balance.limit == 40


async def test_no_more_is_taken_away_than_is_free_where_that_is_asked_for(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    await spend(ledger, of_grant(), 30)
    await hold(ledger, of_grant(20))
    assert (await fund(ledger, Fund(by=-51, at_least_free=True), "act_2")).outcome is Funding.TOO_LITTLE
    assert (await fund(ledger, Fund(by=-50, at_least_free=True), "act_2")).after.balance.limit == 50
    assert (await fund(ledger, Fund(by=-51), "act_3")).outcome is Funding.TOO_LITTLE
    below = await fund(ledger, Fund(to=10), "act_4")  # an operator may say so: nothing more fits until it is covered
    assert (below.outcome, below.after.balance.limit) == (Funding.DONE, 10)
    await refuse(ledger, of_grant(1))
    assert [act.what for act in await ledger.acts(TENANT, 10)] == [f"{GRANT.key} {said}" for said in ("10", "-50", "100")]


async def test_what_was_refused_makes_no_account(ledger: Ledger) -> None:
    refused = await fund(ledger, Fund(by=-1), "act_1")
    assert (refused.outcome, refused.before, refused.after.balance.limit) == (Funding.TOO_LITTLE, None, None)
    assert await ledger.account(TENANT, GRANT.key) is None
    assert not await ledger.acts(TENANT, 10)
    assert (await fund(ledger, Fund(by=1), "act_1")).outcome is Funding.DONE


async def test_more_than_can_be_counted_is_refused(ledger: Ledger) -> None:
    assert (await fund(ledger, Fund(to=MOST), "act_1")).outcome is Funding.DONE
    assert (await fund(ledger, Fund(by=1), "act_2")).outcome is Funding.TOO_MUCH
    await hold(ledger, of_grant(10))
    assert (await fund(ledger, Fund(committed=MOST - 9), "act_3")).outcome is Funding.TOO_MUCH
    exact = await fund(ledger, Fund(committed=MOST - 10), "act_3")
    assert (exact.outcome, exact.after.balance.committed, exact.after.balance.limit) == (Funding.DONE, MOST - 10, MOST)


async def test_what_was_spent_is_set_anew_and_what_is_not_confirmed_stays(ledger: Ledger, clock: Clock) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    await spend(ledger, of_grant(), 40)
    late = await hold(ledger, of_grant(30))
    clock.now_ms += LEASE_MS
    await ledger.expire()
    anew = await fund(ledger, Fund(to=200, committed=5), "act_2")
    assert anew.before is not None
    assert (anew.before.balance.committed, anew.after.balance.committed, anew.after.balance.unconfirmed) == (70, 35, 30)
    assert anew.after.adjusted == -35
    assert (await settle(ledger, late, 12)).balances[0].committed == 17
    assert (await verify_ledger(ledger.dump())).differences == ()
    [act, *_] = await ledger.acts(TENANT, 10)
    assert act.what == f"{GRANT.key} 200 spent 5"


async def test_alerts_fire_again_once_the_spend_was_set_anew_but_not_for_a_new_limit(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    half = (500_000,)
    assert len((await spend(ledger, of_grant(alerts=half), 50)).alerts) == 1
    await fund(ledger, Fund(by=20), "act_2")
    assert not (await spend(ledger, of_grant(alerts=half), 20)).alerts
    await fund(ledger, Fund(committed=0), "act_3")
    [alert] = (await spend(ledger, of_grant(alerts=half), 70)).alerts
    assert (alert.limit, alert.committed) == (120, 70)


async def test_room_wakes_the_runs_that_wait_for_a_raise_and_less_room_does_not(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=5), "act_1")
    assert (await refuse(ledger, of_grant(pause=True))).paused
    await fund(ledger, Fund(by=-1), "act_2")
    await fund(ledger, Fund(to=4), "act_3")
    assert await bar(ledger, of_grant(pause=True)) == (Barrier.PAUSED, "r1")
    await fund(ledger, Fund(by=6), "act_4")
    assert (await view(ledger)).state is RunState.ACTIVE
    await hold(ledger, of_grant(pause=True))


async def test_the_other_acts_on_accounts_and_funding_speak_of_one_limit(ledger: Ledger) -> None:
    await fund(ledger, Fund(to=100), "act_1")
    await spend(ledger, of_grant(), 30)
    await ledger.set_account_limit(TENANT, GRANT.key, 60, "op", "")
    assert (await fund(ledger, Fund(by=10), "act_2")).after.balance.limit == 70
    await ledger.reset(TENANT, GRANT.key, "op", "")
    await ledger.adjust(TENANT, GRANT.key, 7, "act_3", "op", "")
    found = await fund(ledger, Fund(by=-63, at_least_free=True), "act_4")
    assert (found.outcome, found.after.balance.limit, found.after.balance.committed) == (Funding.DONE, 7, 7)
    await ledger.set_account_limit(TENANT, GRANT.key, None, "op", "none")
    assert (await fund(ledger, Fund(by=10), "act_5")).after.balance.limit == 10


async def test_an_account_that_calls_made_is_funded_from_where_it_stands(ledger: Ledger) -> None:
    tokens = account("tokens", Unit.TOKENS)
    await spend(ledger, decision(plan(charge(tokens, None))), 10)
    funded = await fund(ledger, Fund(to=10), "act_1", tokens)
    assert funded.before is not None
    assert (funded.before.balance.limit, funded.after.balance.committed) == (None, 3)
    with pytest.raises(AssertionError):
        await fund(ledger, Fund(to=10), "act_2", account("rate", window=rolling(DAY_MS)))


async def test_what_was_funded_stays_for_good_unless_its_window_or_its_run_ends(ledger: Ledger, clock: Clock) -> None:
    keep = Keep(LEASE_MS, LEASE_MS)
    day, own = account("day", window=day_of(START_MS)), account("run-ceiling", run="r1")
    shared = account("run-ceiling", run="untagged/k1/2024-10-04")
    for number, each in enumerate((GRANT, day, own, shared)):
        await fund(ledger, Fund(to=100), f"act_{number}", each)
    held = await hold(ledger, decision(plan(charge(GRANT), charge(own)), of=caller("r1")))
    await settle(ledger, held, 10)
    clock.now_ms += 900 * DAY_MS
    await ledger.retire(TENANT, [held.decision.id], keep)
    while await ledger.sweep(keep, 10):
        pass
    found = await look(ledger, GRANT)
    assert (found.balance.limit, found.balance.committed, found.carried) == (100, 10, 10)
    for each in (day, own, shared):
        assert await ledger.account(TENANT, each.key) is None
    assert (await fund(ledger, Fund(by=1), "act_0")).after.balance.limit == 101  # its act is forgotten by now, as all acts are
