"""Who may spend what: the ladder, the ceilings, the run's own limit, owners, windows, stops, alerts."""

import asyncio

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Hold, Outcome
from gateway.ledger.contract import Barred, Barrier, Ledger, Refusal, RunState, SetLimit, Stale
from tests.ledger.asking import hold, of_run, refuse, spend
from tests.ledger.builders import (
    ACTUALS,
    ADVISORY,
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

# -- the ladder ---------------------------------------------------------------------------------------------------------------


async def test_a_call_that_fits_only_the_cheaper_plan_is_downgraded(ledger: Ledger) -> None:
    ladder = (plan(charge(limit=50), usd=60), plan(charge(limit=50), usd=40, model="small"))
    held = await hold(ledger, decision(*ladder))
    assert (held.plan, held.outcome) == (ladder[1], Outcome.DOWNGRADE)
    assert [balance.reserved for balance in held.balances] == [40]


async def test_a_share_keeps_the_rest_for_cheaper_plans(ledger: Ledger) -> None:
    await spend(ledger, decision(plan(charge())), 70)
    ladder = (plan(charge(share_ppm=750_000), usd=6), plan(charge(), usd=6, model="small"))
    assert (await hold(ledger, decision(*ladder))).plan.model == "small"


async def test_all_accounts_of_a_plan_or_none(ledger: Ledger) -> None:
    wide, narrow = account("wide"), account("narrow")
    refusal = await refuse(ledger, decision(plan(charge(wide, 100), charge(narrow, 5), usd=10)))
    assert [balance.account for balance in refusal.blocking] == [narrow]
    assert [(balance.account, balance.limit, balance.reserved) for balance in refusal.balances] == [
        (wide, 100, 0),
        (narrow, 5, 0),
    ]
    assert [balance.reserved for balance in await ledger.balances(TENANT, [wide, narrow])] == [0, 0]


async def test_a_refusal_names_what_blocked_each_plan_and_every_account_once(ledger: Ledger) -> None:
    big, small, all_ = account("big"), account("small"), account("all")
    ladder = (plan(charge(big, 5), charge(all_, 100)), plan(charge(small, 100), charge(all_, 9), model="small"))
    refusal = await refuse(ledger, decision(*ladder))
    assert [(balance.account, balance.limit) for balance in refusal.blocking] == [(big, 5), (all_, 9)]
    assert [balance.account for balance in refusal.balances] == [big, all_, small]


async def test_an_account_reached_twice_is_counted_once_and_both_rules_bind(ledger: Ledger) -> None:
    twice = plan(charge(limit=100), charge(limit=30), usd=15)
    held = await hold(ledger, decision(twice))
    assert [(balance.limit, balance.reserved) for balance in held.balances] == [(100, 15)]
    await hold(ledger, decision(twice))
    refusal = await refuse(ledger, decision(twice))
    assert [balance.limit for balance in refusal.blocking] == [30]
    settled = await ledger.commit(TENANT, held.id, settlement(7))
    assert settled is not None
    assert [(balance.committed, balance.reserved) for balance in settled.balances] == [(7, 15)]


async def test_each_unit_counts_its_own(ledger: Ledger) -> None:
    tokens, calls = account("tokens", Unit.TOKENS), account("steps", Unit.CALLS)
    charges = (charge(limit=1_000), charge(tokens, 12), charge(calls, 3))
    held = await hold(ledger, decision(plan(*charges, usd=10, tokens=5)))
    assert [balance.reserved for balance in held.balances] == [10, 5, 1]
    await hold(ledger, decision(plan(*charges, usd=10, tokens=5)))
    assert (await refuse(ledger, decision(plan(*charges, usd=10, tokens=5)))).blocking[0].account == tokens
    settled = await ledger.commit(TENANT, held.id, settlement(4, tokens=2))
    assert settled is not None
    assert [(balance.committed, balance.reserved) for balance in settled.balances] == [(4, 10), (2, 5), (1, 1)]


# -- ceilings -----------------------------------------------------------------------------------------------------------------


async def test_a_soft_gate_lets_a_call_start_within_its_margin(ledger: Ledger) -> None:
    await spend(ledger, decision(), 95)
    await refuse(ledger, decision(plan(charge(margin=4), usd=10)))
    await hold(ledger, decision(plan(charge(margin=5), usd=10)))


async def test_actuals_only_looks_at_what_is_settled(ledger: Ledger) -> None:
    big = decision(plan(charge(rule=ACTUALS), usd=1_000))
    held = await hold(ledger, big)
    await hold(ledger, decision(plan(charge(rule=ACTUALS), usd=1_000)))
    await ledger.commit(TENANT, held.id, settlement(99))
    held = await hold(ledger, decision(plan(charge(rule=ACTUALS), usd=1_000)))
    await ledger.commit(TENANT, held.id, settlement(1))
    await refuse(ledger, decision(plan(charge(rule=ACTUALS), usd=1)))


async def test_advisory_never_blocks_but_says_when_it_would_have(ledger: Ledger) -> None:
    held = await hold(ledger, decision(plan(charge(rule=ADVISORY), usd=100)))
    assert (held.outcome, held.warnings) == (Outcome.ALLOW, ())
    held = await hold(ledger, decision(plan(charge(rule=ADVISORY), usd=1)))
    assert held.outcome is Outcome.ADVISORY_WARN
    assert [(balance.limit, balance.reserved) for balance in held.warnings] == [(100, 101)]


@pytest.mark.parametrize("limit", [0, 5])
async def test_a_free_plan_passes_at_nothing_left(ledger: Ledger, limit: int) -> None:
    await spend(ledger, decision(), 10)
    held = await hold(ledger, decision(plan(charge(limit=limit), usd=0)))
    assert (held.balances[0].committed, held.balances[0].remaining) == (10, 0)


async def test_without_a_limit_everything_fits(ledger: Ledger) -> None:
    held = await hold(ledger, decision(plan(charge(limit=None), usd=10**15)))
    assert (held.balances[0].limit, held.balances[0].remaining) == (None, None)


async def test_fifty_million_dollars_are_counted_exactly(ledger: Ledger) -> None:
    limit = 50_000_000 * 100_000_000
    await spend(ledger, decision(plan(charge(limit=limit), usd=limit - 1)), limit - 1)
    await refuse(ledger, decision(plan(charge(limit=limit), usd=2)))
    held = await hold(ledger, decision(plan(charge(limit=limit), usd=1)))
    assert held.balances[0].committed + held.balances[0].reserved == limit


# -- the run's own limit ------------------------------------------------------------------------------------------------------


async def test_x_run_limit_tightens_the_runs_ceiling_and_nothing_else(ledger: Ledger) -> None:
    decided = decision(plan(own_run_charge(limit=100), charge(limit=100), usd=10), run_limit=25)
    assert [balance.limit for balance in (await hold(ledger, decided)).balances] == [25, 100]


async def test_x_run_limit_stays_and_never_loosens(ledger: Ledger) -> None:
    await hold(ledger, of_run(10, run_limit=25))
    assert (await hold(ledger, of_run(10, run_limit=60))).balances[0].limit == 25
    assert (await refuse(ledger, of_run(10))).blocking[0].limit == 25


async def test_x_run_limit_counts_even_when_the_call_is_refused(ledger: Ledger) -> None:
    await refuse(ledger, of_run(10, run_limit=5))
    view = await ledger.run(TENANT, "r1")
    assert view is not None
    assert (view.limit, view.calls, view.owner) == (5, 0, "k1")


async def test_x_run_limit_of_a_stranger_or_for_a_stopped_run_changes_nothing(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    assert await ledger.reserve(of_run(key="k2", run_limit=1), LEASE_MS) == Stale(START_MS, "k1")
    await ledger.stop(TENANT, "r1", "op", "enough")
    assert isinstance(await ledger.reserve(of_run(run_limit=1), LEASE_MS), Barred)
    view = await ledger.run(TENANT, "r1")
    assert view is not None
    assert view.limit is None


async def test_the_policys_limit_still_binds_a_run_with_a_wider_one_of_its_own(ledger: Ledger) -> None:
    assert (await hold(ledger, of_run(limit=100, run_limit=500))).balances[0].limit == 100


async def test_only_the_admin_raises_a_run_above_its_policy(ledger: Ledger) -> None:
    await spend(ledger, of_run(), 95)
    view = await ledger.set_limit(TENANT, "r1", "k1", SetLimit(200, by_admin=False, who="k1"))
    assert view is not None
    await refuse(ledger, of_run(10))
    raised = await ledger.set_limit(TENANT, "r1", "", SetLimit(200, by_admin=True, who="admin"))
    assert raised is not None
    assert (raised.limit, raised.raised, raised.owner) == (200, True, "k1")
    assert (await hold(ledger, of_run(100))).balances[0].limit == 200


async def test_what_the_admin_raised_is_not_undone_by_the_header_that_every_call_repeats(ledger: Ledger) -> None:
    await refuse(ledger, of_run(30, run_limit=25))
    await ledger.set_limit(TENANT, "r1", "", SetLimit(200, by_admin=True, who="admin"))
    assert (await hold(ledger, of_run(30, run_limit=25))).balances[0].limit == 200
    assert (await hold(ledger, of_run(30, run_limit=90))).balances[0].limit == 90


async def test_a_caller_only_tightens_what_the_admin_raised(ledger: Ledger) -> None:
    await ledger.set_limit(TENANT, "r1", "", SetLimit(200, by_admin=True, who="admin"))
    for limit, stands in ((300, 200), (150, 150), (180, 150)):
        view = await ledger.set_limit(TENANT, "r1", "k1", SetLimit(limit, by_admin=False, who="k1"))
        assert view is not None
        assert view.limit == stands
    assert (await hold(ledger, of_run(120, limit=100))).balances[0].limit == 150


async def test_a_limit_may_be_set_before_the_first_call(ledger: Ledger) -> None:
    await ledger.set_limit(TENANT, "mine", "k1", SetLimit(5, by_admin=False, who="k1"))
    assert await ledger.set_limit(TENANT, "mine", "k2", SetLimit(1, by_admin=False, who="k2")) is None
    assert await ledger.reserve(of_run(run="mine", key="k2"), LEASE_MS) == Stale(START_MS, "k1")
    await refuse(ledger, of_run(run="mine"))
    await ledger.set_limit(TENANT, "anyones", "", SetLimit(50, by_admin=True, who="admin"))
    assert (await hold(ledger, of_run(run="anyones", key="k2"))).balances[0].limit == 50
    assert await ledger.reserve(of_run(run="anyones"), LEASE_MS) == Stale(START_MS, "k2")


async def test_of_200_calls_at_once_on_a_brand_new_run_that_fits_10_exactly_10_are_held(ledger: Ledger) -> None:
    answers = await asyncio.gather(*(ledger.reserve(of_run(10, run="new"), LEASE_MS) for _ in range(200)))
    assert sum(isinstance(answer, Hold) for answer in answers) == 10
    assert sum(isinstance(answer, Refusal) for answer in answers) == 190
    view = await ledger.run(TENANT, "new")
    assert view is not None
    assert (view.reserved, view.calls) == (100, 10)


# -- owners, windows, stops ---------------------------------------------------------------------------------------------------


async def test_a_run_belongs_to_the_key_that_used_it_first(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    assert await ledger.reserve(of_run(key="k2"), LEASE_MS) == Stale(START_MS, "k1")
    other_tenant = decision(of=caller(key="k2", tenant="other"))
    assert isinstance(await ledger.reserve(other_tenant, LEASE_MS), Hold)


@pytest.mark.parametrize("off_ms", [-DAY_MS, DAY_MS])
async def test_a_window_that_does_not_hold_now_is_stale_whichever_plan_it_is_in(ledger: Ledger, off_ms: int) -> None:
    wrong = plan(charge(account(window=day_of(START_MS + off_ms))), model="small")
    decided = decision(plan(charge()), wrong, run_limit=3)
    assert await ledger.reserve(decided, LEASE_MS) == Stale(START_MS, "k1")
    assert await ledger.run(TENANT, "r1") is None
    right = plan(charge(account(window=day_of(START_MS))), model="small")
    rebuilt = decision(plan(charge()), right, decision_id=decided.id)
    assert isinstance(await ledger.reserve(rebuilt, LEASE_MS), Hold)


async def test_a_hold_that_straddles_midnight_settles_in_its_own_window(ledger: Ledger, clock: Clock) -> None:
    today = account(window=day_of(START_MS))
    held = await hold(ledger, decision(plan(charge(today))))
    clock.now_ms += DAY_MS
    await ledger.commit(TENANT, held.id, settlement(4))
    tomorrow = account(window=day_of(clock.now_ms))
    assert [balance.committed for balance in await ledger.balances(TENANT, [today, tomorrow])] == [4, 0]
    assert [row.usd for row in await ledger.spend(TENANT, ("day",), START_MS, START_MS + 1, None)] == [4]
    assert await ledger.spend(TENANT, ("day",), clock.now_ms, clock.now_ms + 1, None) == []


async def test_a_stopped_run_takes_no_calls_but_settles_those_it_has(ledger: Ledger) -> None:
    held = await hold(ledger, of_run())
    view = await ledger.stop(TENANT, "r1", "op", "looping")
    assert view is not None
    assert view.state is RunState.STOPPED
    decided = of_run()
    assert await ledger.reserve(decided, LEASE_MS) == Barred(decided, Barrier.STOPPED, "r1")
    settled = await ledger.commit(TENANT, held.id, settlement(4))
    assert settled is not None
    assert settled.balances[0].committed == 4
    assert await ledger.halted(TENANT, [caller("r1"), caller("r2")]) == [Barrier.STOPPED, None]
    assert await ledger.stop(TENANT, "never", "op", "") is None


# -- alerts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ((49, 1, 0, 45, 5, 20), [[], [500_000], [], [800_000], [1_000_000], []]),
        ((85, 1, 20), [[500_000, 800_000], [], [1_000_000]]),
    ],
    ids=["one by one", "two at once"],
)
async def test_each_threshold_fires_once_and_in_order(ledger: Ledger, costs: tuple[int, ...], expected: list[list[int]]) -> None:
    fired = []
    for usd in costs:
        held = await hold(ledger, decision(plan(charge(alerts=(500_000, 800_000, 1_000_000)), usd=0)))
        settled = await ledger.commit(TENANT, held.id, settlement(usd))
        assert settled is not None
        fired.append([alert.threshold_ppm for alert in settled.alerts])
    assert fired == expected


async def test_a_charge_that_is_only_provisional_alerts_too(ledger: Ledger, clock: Clock) -> None:
    await hold(ledger, decision(plan(charge(alerts=(500_000,)), usd=60)))
    clock.now_ms += LEASE_MS
    (expired,) = await ledger.expire()
    assert [(alert.account, alert.threshold_ppm, alert.limit, alert.committed) for alert in expired.alerts] == [
        (account(), 500_000, 100, 60)
    ]


async def test_alerts_measure_the_runs_own_limit(ledger: Ledger) -> None:
    decided = decision(plan(own_run_charge(limit=100, alerts=(500_000,)), usd=10), run_limit=20)
    held = await hold(ledger, decided)
    settled = await ledger.commit(TENANT, held.id, settlement(10))
    assert settled is not None
    assert [alert.limit for alert in settled.alerts] == [20]


# -- growing ------------------------------------------------------------------------------------------------------------------


async def test_a_hold_grows_in_all_its_accounts_or_in_none(ledger: Ledger) -> None:
    tokens = account("tokens", Unit.TOKENS)
    held = await hold(ledger, decision(plan(charge(), charge(tokens, 8), usd=10, tokens=5)))
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(20, 9))
    assert [balance.reserved for balance in await ledger.balances(TENANT, [account(), tokens])] == [10, 5]
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(20, 8))
    assert [balance.reserved for balance in await ledger.balances(TENANT, [account(), tokens])] == [20, 8]
