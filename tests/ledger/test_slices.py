"""Slices: what a hold takes of each account, how it grows, and what each end gives back there."""

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Balance, Charge, Decision, Ending, Hold
from gateway.core.windows import rolling
from gateway.ledger.contract import HoldState, Keep, Ledger, Refusal
from gateway.ledger.verify import verify_ledger
from tests.ledger.asking import balance, hold, look, refuse, settle, view
from tests.ledger.builders import LEASE_MS, TENANT, account, caller, charge, decision, plan
from tests.support.clock import Clock

RUN = account("run-ceiling", run="r1")
MONTH = account("month")
TOKENS = account("tokens", Unit.TOKENS, run="r1")
FIRST = Amounts(10, 5)


def sliced(limit: int | None = 100) -> Charge:
    return charge(RUN, limit, sliced=True)


def of_both(limit: int = 100, month: int = 1_000) -> Decision:
    """$40 at most, $10 at first in the run's account; $40 in the month's."""
    return decision(plan(sliced(limit), charge(MONTH, month), usd=40, tokens=20, first=FIRST), of=caller())


async def standing(ledger: Ledger) -> tuple[tuple[int, int, int], ...]:
    """committed, reserved and unconfirmed of the run's account, of the month's, and of the run."""
    seen = await view(ledger)
    accounts = [await balance(ledger, RUN), await balance(ledger, MONTH)]
    return (*map(_figures, accounts), (seen.committed, seen.reserved, seen.unconfirmed))


def _figures(of: Balance) -> tuple[int, int, int]:
    return of.committed, of.reserved, of.unconfirmed


async def test_each_account_holds_what_its_budget_asks_for(ledger: Ledger) -> None:
    held = await hold(ledger, of_both())
    assert [each.reserved for each in held.balances] == [10, 40]
    assert await standing(ledger) == ((0, 10, 0), (0, 40, 0), (0, 40, 0))
    found = await ledger.record(TENANT, held.decision.id)
    assert found is not None
    assert (found.held, found.lines) == (Amounts(40, 20), ((RUN.key, 10), (MONTH.key, 40)))


async def test_many_slices_fit_where_few_worst_cases_do(ledger: Ledger) -> None:
    for _ in range(10):
        await hold(ledger, of_both())
    refusal = await refuse(ledger, of_both())
    assert refusal.blocking[0].account == RUN


async def test_the_worst_case_blocks_in_the_account_that_holds_it(ledger: Ledger) -> None:
    await hold(ledger, of_both(month=79))
    refusal = await refuse(ledger, of_both(month=79))
    assert refusal.blocking[0].account == MONTH


async def test_an_extension_grows_only_the_slice(ledger: Ledger) -> None:
    held = await hold(ledger, of_both())
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(35, 14))
    assert await standing(ledger) == ((0, 35, 0), (0, 40, 0), (0, 40, 0))


async def test_beyond_the_worst_case_it_grows_everywhere(ledger: Ledger) -> None:
    held = await hold(ledger, of_both())
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(45, 21), Amounts(45, 21))
    assert await standing(ledger) == ((0, 45, 0), (0, 45, 0), (0, 45, 0))


async def test_an_extension_that_one_account_has_no_room_for_changes_nothing(ledger: Ledger) -> None:
    held = await hold(ledger, of_both(limit=30))
    before = await standing(ledger)
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(31, 5))
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(1_001, 20), Amounts(30, 5))
    assert await standing(ledger) == before
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(30, 5))


async def test_a_slice_does_not_grow_for_a_call_that_has_ended(ledger: Ledger) -> None:
    held = await hold(ledger, of_both())
    await settle(ledger, held, 12)
    assert not await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(11, 6))
    assert await standing(ledger) == ((12, 0, 0), (12, 0, 0), (12, 0, 0))


async def test_a_release_gives_back_what_each_account_holds(ledger: Ledger) -> None:
    held = await hold(ledger, of_both())
    await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(17, 5))
    await ledger.release(TENANT, held.id, Ending.NOT_SENT)
    assert await standing(ledger) == ((0, 0, 0), (0, 0, 0), (0, 0, 0))


async def test_an_expired_hold_charges_each_account_what_it_held_there(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_both())
    await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(17, 5))
    clock.now_ms += LEASE_MS
    (expired,) = await ledger.expire()
    assert expired.charged == Amounts(40, 20)
    assert await standing(ledger) == ((17, 0, 17), (40, 0, 40), (40, 0, 40))
    assert (await verify_ledger(ledger.dump())).differences == ()


async def test_whoever_knows_what_it_cost_corrects_every_account_alike(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_both())
    clock.now_ms += LEASE_MS
    await ledger.expire()
    settled = await settle(ledger, held, 23)
    assert (settled.state, settled.changed) == (HoldState.COMMITTED, True)
    assert await standing(ledger) == ((23, 0, 0), (23, 0, 0), (23, 0, 0))


async def test_what_a_retired_expired_hold_charged_is_carried_account_by_account(ledger: Ledger, clock: Clock) -> None:
    held = await hold(ledger, of_both())
    clock.now_ms += LEASE_MS
    await ledger.expire()
    assert await ledger.retire(TENANT, [held.decision.id], Keep(0, LEASE_MS)) == 1
    assert [(await look(ledger, each)).carried for each in (RUN, MONTH)] == [10, 40]
    assert await standing(ledger) == ((10, 0, 0), (40, 0, 0), (40, 0, 0))
    assert (await verify_ledger(ledger.dump())).differences == ()


async def test_a_run_whose_every_budget_is_sliced_counts_slices(ledger: Ledger, clock: Clock) -> None:
    everywhere = plan(sliced(), charge(TOKENS, 1_000, sliced=True), usd=40, tokens=20, first=FIRST)
    held = await hold(ledger, decision(everywhere, of=caller()))
    assert (await view(ledger)).reserved == 10
    assert (await balance(ledger, TOKENS)).reserved == 5
    assert await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(20, 10))
    assert (await view(ledger)).reserved == (await balance(ledger, RUN)).reserved == 20
    clock.now_ms += LEASE_MS
    assert [each.charged for each in await ledger.expire()] == [Amounts(20, 10)]


async def test_asking_again_for_a_hold_tells_its_slices_as_they_have_grown(ledger: Ledger) -> None:
    asked = of_both()
    held = await hold(ledger, asked)
    await ledger.extend(TENANT, held.id, LEASE_MS, Amounts(40, 20), Amounts(17, 5))
    again = await ledger.reserve(asked, LEASE_MS)
    assert isinstance(again, Hold)
    assert [each.reserved for each in again.balances] == [17, 40]


async def test_a_slice_in_a_rolling_window_expires_into_its_bucket(ledger: Ledger, clock: Clock) -> None:
    rate = account("rate", window=rolling(10 * LEASE_MS), run="r1")
    ask = decision(plan(charge(rate, 50, sliced=True), charge(MONTH, None), usd=40, tokens=20, first=FIRST), of=caller())
    held = await hold(ledger, ask)
    clock.now_ms += LEASE_MS
    await ledger.expire()
    assert _figures(await balance(ledger, rate)) == (10, 0, 10)
    await settle(ledger, held, 3)
    assert _figures(await balance(ledger, rate)) == (3, 0, 0)
    assert (await verify_ledger(ledger.dump())).differences == ()


async def test_a_cheaper_plan_is_held_where_the_slice_of_the_first_does_not_fit(ledger: Ledger) -> None:
    dear = plan(sliced(15), usd=90, tokens=20, first=Amounts(16, 5))
    cheap = plan(sliced(15), usd=60, tokens=20, model="small", first=Amounts(15, 5))
    answer = await ledger.reserve(decision(dear, cheap, of=caller()), LEASE_MS)
    assert not isinstance(answer, Refusal)
    assert isinstance(answer, Hold)
    assert answer.plan is cheap
