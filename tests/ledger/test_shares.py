"""`limit: 50% of NAME`: what is left there when the first call is held, and from then on that."""

import asyncio

from gateway.core.scopes import Account
from gateway.core.values import Decision, Hold, Plan
from gateway.ledger.contract import Ledger, SetLimit
from tests.ledger.asking import debit, hold, look, refuse, settle, spend, view
from tests.ledger.builders import LEASE_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement, share_of

WHOLE = account("tenant-month")


def part(run: str) -> Account:
    return account("run-share", run=run)


def of_share(run: str, usd: int, part_ppm: int = 500_000, limit: int | None = 1_000) -> Decision:
    return decision(_plan(run, usd, part_ppm, limit), of=caller(run))


def _plan(run: str, usd: int, part_ppm: int = 500_000, limit: int | None = 1_000) -> Plan:
    return plan(share_of(WHOLE, part_ppm, part(run)), charge(WHOLE, limit), usd=usd)


async def test_a_share_is_a_part_of_what_is_left_when_the_first_call_is_held(ledger: Ledger) -> None:
    assert (await hold(ledger, of_share("r1", 100))).balances[0].limit == 500
    assert (await hold(ledger, of_share("r2", 100))).balances[0].limit == 450
    assert (await hold(ledger, of_share("r1", 100))).balances[0].limit == 500
    assert (await look(ledger, part("r1"))).balance.limit == 500


async def test_a_share_is_rounded_down_and_never_below_zero(ledger: Ledger) -> None:
    assert (await hold(ledger, of_share("r1", 1, 333_333, limit=10))).balances[0].limit == 3
    await spend(ledger, decision(plan(charge(WHOLE, None), usd=1)), 90)
    refusal = await refuse(ledger, of_share("r2", 1, limit=10))
    assert [each.limit for each in refusal.blocking] == [0]


async def test_a_refused_call_pins_nothing(ledger: Ledger) -> None:
    refusal = await refuse(ledger, of_share("r1", 501))
    assert [(each.account, each.limit) for each in refusal.blocking] == [(part("r1"), 500)]
    assert await ledger.account(TENANT, part("r1").key) is None
    await settle(ledger, await hold(ledger, decision(plan(charge(WHOLE, None), usd=1))), 400)
    assert (await hold(ledger, of_share("r1", 300))).balances[0].limit == 300


async def test_without_a_limit_there_is_no_share_until_there_is_one(ledger: Ledger) -> None:
    assert (await hold(ledger, of_share("r1", 100, limit=None))).balances[0].limit is None
    assert (await hold(ledger, of_share("r1", 100))).balances[0].limit == 450  # half of the 900 that the first hold left


async def test_a_share_follows_the_stored_limit_of_the_whole(ledger: Ledger) -> None:
    await hold(ledger, of_share("r1", 0))
    await ledger.set_account_limit(TENANT, WHOLE.key, 300, "op", "a bad month")
    assert (await hold(ledger, of_share("r2", 10))).balances[0].limit == 150


async def test_an_operator_changes_a_share_or_has_it_pinned_anew(ledger: Ledger) -> None:
    await settle(ledger, await hold(ledger, of_share("r1", 100)), 100)
    await ledger.set_account_limit(TENANT, part("r1").key, 700, "op", "worth it")
    assert (await hold(ledger, of_share("r1", 400))).balances[0].limit == 700
    await ledger.set_account_limit(TENANT, part("r1").key, None, "op", "as the policy says")
    assert (await look(ledger, part("r1"))).balance.limit is None
    assert (await view(ledger, "r1")).accounts[0].limit is None
    refusal = await refuse(ledger, of_share("r1", 1))
    assert [(each.limit, each.committed, each.reserved) for each in refusal.blocking] == [(250, 100, 400)]


async def test_the_runs_own_limit_tightens_its_share_and_the_admins_replaces_it(ledger: Ledger) -> None:
    def own(usd: int) -> Decision:
        share = charge(account("run-ceiling", run="r1"), None, own=True, pinned_ppm=500_000, pinned_to=WHOLE.key)
        return decision(plan(share, charge(WHOLE, 1_000), usd=usd), run_limit=60)

    assert (await hold(ledger, own(10))).balances[0].limit == 60
    assert (await look(ledger, account("run-ceiling", run="r1"))).balance.limit == 500
    await ledger.set_limit(TENANT, "r1", "", SetLimit(800, by_admin=True, who="admin"))
    assert (await hold(ledger, own(10))).balances[0].limit == 800


async def test_the_plan_that_is_held_is_the_one_that_pins(ledger: Ledger) -> None:
    blocked = plan(share_of(WHOLE, 100_000, part("r1")), charge(WHOLE, 1_000), usd=101)
    cheaper = plan(share_of(WHOLE, 100_000, part("r1")), charge(WHOLE, 1_000), usd=100, model="small")
    held = await hold(ledger, decision(blocked, cheaper))
    assert (held.plan.model, held.balances[0].limit) == ("small", 100)


async def test_a_debit_pins_a_share_before_it_is_charged(ledger: Ledger) -> None:
    settled = await debit(ledger, of_share("r1", 100), settlement(100))
    assert [(each.limit, each.committed) for each in settled.balances] == [(500, 100), (1_000, 100)]


async def test_of_many_first_calls_at_once_each_run_pins_one_share(ledger: Ledger) -> None:
    asked = [of_share(f"r{number % 4}", 10, limit=1_000) for number in range(40)]
    answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
    limits: dict[str, set[int | None]] = {}
    for answer in answers:
        assert isinstance(answer, Hold)
        limits.setdefault(answer.decision.call.caller.run, set()).add(answer.balances[0].limit)
    assert [len(each) for each in limits.values()] == [1, 1, 1, 1]
    assert limits["r0"] == {500}


async def test_a_plain_run_ceiling_has_no_stored_limit(ledger: Ledger) -> None:
    await hold(ledger, decision(plan(own_run_charge(), usd=10)))
    assert (await look(ledger, account("run-ceiling", run="r1"))).balance.limit is None
