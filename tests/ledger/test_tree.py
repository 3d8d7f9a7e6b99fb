"""A run below another: its calls draw on every ancestor, and its place is fixed once."""

import asyncio
from dataclasses import replace

import pytest

from gateway.core.values import Decision, Hold
from gateway.ledger.contract import DEPTH, Barred, Barrier, Debiting, Ledger, SetLimit, Stale
from tests.ledger.asking import balance, bar, debit, hold, look, refuse, settle, spend, view
from tests.ledger.builders import (
    LEASE_MS,
    START_MS,
    TENANT,
    account,
    caller,
    charge,
    decision,
    own_run_charge,
    plan,
    settlement,
)


def of_tree(*names: str, usd: int = 10, limit: int | None = 100, named: bool = True, key: str = "k1") -> Decision:
    """A call of the first run, whose ancestors are the others, its parent first; with a ceiling for each of them."""
    run, *above = names
    parent = above[0] if above and named else None
    charges = [own_run_charge(name, limit) for name in names]
    return decision(plan(*charges, usd=usd), of=caller(run, key, parent=parent, above=above))


async def test_a_childs_call_draws_on_its_parent_and_its_parents_parent(ledger: Ledger) -> None:
    await hold(ledger, of_tree("top"))
    await hold(ledger, of_tree("mid", "top", usd=5))
    held = await hold(ledger, of_tree("low", "mid", "top", usd=7))
    assert [each.reserved for each in held.balances] == [7, 12, 22]
    await settle(ledger, held, 3)
    reserved = [await balance(ledger, account("run-ceiling", run=run)) for run in ("low", "mid", "top")]
    assert [(each.committed, each.reserved) for each in reserved] == [(3, 0), (3, 5), (3, 15)]
    assert [(await view(ledger, run)).committed for run in ("low", "mid", "top")] == [3, 0, 0]  # each run shows its own calls
    refusal = await refuse(ledger, of_tree("low", "mid", "top", usd=83))
    assert [each.account.scope for each in refusal.blocking] == [(("run", "top"),)]


async def test_an_account_that_is_reached_through_two_ancestors_is_drawn_on_once(ledger: Ledger) -> None:
    await hold(ledger, of_tree("mid", "top"))
    team = account("team", team="t1")
    charges = [own_run_charge("low"), charge(team), own_run_charge("mid"), charge(team), own_run_charge("top"), charge(team)]
    held = await hold(ledger, decision(plan(*charges, usd=10), of=caller("low", parent="mid", above=("mid", "top"))))
    assert [(each.account.budget, each.reserved) for each in held.balances] == [
        ("run-ceiling", 10),
        ("team", 10),
        ("run-ceiling", 20),
        ("run-ceiling", 20),
    ]
    settled = await settle(ledger, held, 4)
    assert [each.committed for each in settled.balances] == [4, 4, 4, 4]
    assert (await balance(ledger, team)).reserved == 0


async def test_a_parent_that_nobody_has_seen_becomes_a_run_of_the_caller(ledger: Ledger) -> None:
    await hold(ledger, of_tree("low", "top"))
    top = await view(ledger, "top")
    assert (top.owner, top.calls, top.ancestry, top.first_ms) == ("k1", 0, (), START_MS)
    assert (await view(ledger, "low")).ancestry == ("top",)
    assert await bar(ledger, of_tree("top", "elsewhere")) == (Barrier.PARENT_CHANGED, "elsewhere")


async def test_later_calls_may_leave_the_parent_out(ledger: Ledger) -> None:
    await hold(ledger, of_tree("low", "top"))
    assert isinstance(await ledger.reserve(of_tree("low", "top", named=False), LEASE_MS), Hold)
    assert await ledger.reserve(of_tree("low"), LEASE_MS) == Stale(START_MS, "k1", ("top",))


async def test_a_gateway_that_knows_other_ancestors_is_told_those_of_the_ledger(ledger: Ledger) -> None:
    await hold(ledger, of_tree("mid", "top"))
    assert await ledger.reserve(of_tree("low", "mid"), LEASE_MS) == Stale(START_MS, "k1", ("mid", "top"))
    assert await ledger.run(TENANT, "low") is None
    assert await ledger.reserve(of_tree("top", "ghost", named=False), LEASE_MS) == Stale(START_MS, "k1", ())


async def test_a_refused_call_places_its_run_too(ledger: Ledger) -> None:
    await refuse(ledger, of_tree("low", "top", usd=101))
    assert (await view(ledger, "low")).ancestry == ("top",)
    assert (await view(ledger, "top")).owner == "k1"
    assert await bar(ledger, of_tree("low", "other")) == (Barrier.PARENT_CHANGED, "other")


async def test_a_run_that_only_had_a_limit_set_still_chooses_its_parent(ledger: Ledger) -> None:
    await ledger.set_limit(TENANT, "low", "k1", SetLimit(50, by_admin=False, who="k1"))
    assert (await hold(ledger, of_tree("low", "top"))).balances[0].limit == 50
    assert (await view(ledger, "low")).ancestry == ("top",)


async def test_a_run_that_is_named_as_a_parent_has_chosen_to_be_a_root(ledger: Ledger) -> None:
    await ledger.set_limit(TENANT, "top", "", SetLimit(50, by_admin=True, who="admin"))
    await hold(ledger, of_tree("low", "top"))
    assert (await view(ledger, "top")).owner == "k1"
    assert await bar(ledger, of_tree("top", "low")) == (Barrier.PARENT_CHANGED, "low")


@pytest.mark.parametrize("again", [False, True])
async def test_a_run_below_itself_is_a_cycle(ledger: Ledger, again: bool) -> None:
    if again:
        await hold(ledger, of_tree("low"))
    expected = Barrier.PARENT_CHANGED if again else Barrier.CYCLE
    assert await bar(ledger, of_tree("low", "low")) == (expected, "low")
    assert (await ledger.run(TENANT, "low") is None) is not again


async def test_nobody_draws_on_a_run_of_another_key(ledger: Ledger) -> None:
    await hold(ledger, of_tree("theirs", key="k2"))
    assert await bar(ledger, of_tree("mine", "theirs")) == (Barrier.FOREIGN_PARENT, "theirs")
    assert await ledger.run(TENANT, "mine") is None


async def test_a_caller_in_the_owners_name_uses_its_runs_and_pays_under_its_own(ledger: Ledger) -> None:
    await hold(ledger, of_tree("theirs", key="k2"))
    foreign = await ledger.reserve(of_tree("mine", "theirs"), LEASE_MS)
    assert isinstance(foreign, Barred)
    assert foreign.owner == "k2"
    in_its_name = replace(caller("mine", "k1", parent="theirs"), owned_by="k2")
    decided = of_tree("mine", "theirs", usd=7)
    held = await hold(ledger, replace(decided, call=replace(decided.call, caller=in_its_name)))
    await settle(ledger, held, 7)
    child, record = await view(ledger, "mine"), await ledger.record(TENANT, held.decision.id)
    assert record is not None
    assert (child.owner, record.owner) == ("k2", "k1")
    assert [run.run for run in await ledger.runs(TENANT, "k2", 10)] == ["theirs", "mine"]
    assert not await ledger.runs(TENANT, "k1", 10)
    [spent] = await ledger.spend(TENANT, ("key",), 0, 2**50, None)
    assert (spent.group, spent.usd) == (("k1",), 7)


async def test_a_tree_has_a_greatest_depth(ledger: Ledger) -> None:
    names = [f"r{number}" for number in range(DEPTH + 2)]
    for depth in range(DEPTH + 1):
        await hold(ledger, of_tree(*reversed(names[: depth + 1]), usd=1))
    assert len((await view(ledger, names[DEPTH])).ancestry) == DEPTH
    assert await bar(ledger, of_tree(*reversed(names), usd=1)) == (Barrier.TOO_DEEP, names[DEPTH])
    assert await ledger.run(TENANT, names[DEPTH + 1]) is None


async def test_an_ancestors_own_limit_binds_its_descendants(ledger: Ledger) -> None:
    await hold(ledger, of_tree("top"))
    await ledger.set_limit(TENANT, "top", "k1", SetLimit(25, by_admin=False, who="k1"))
    assert [each.limit for each in (await refuse(ledger, of_tree("low", "top", usd=16))).balances] == [100, 25]
    await ledger.set_limit(TENANT, "top", "", SetLimit(500, by_admin=True, who="admin"))
    assert [each.limit for each in (await hold(ledger, of_tree("low", "top", usd=90))).balances] == [100, 500]


async def test_a_stop_and_a_pause_reach_every_descendant_and_nobody_else(ledger: Ledger) -> None:
    await hold(ledger, of_tree("mid", "top"))
    await hold(ledger, of_tree("low", "mid", "top"))
    await hold(ledger, of_tree("beside", "top"))
    await ledger.pause(TENANT, "mid", "op", "looking")
    low = of_tree("low", "mid", "top")
    assert await bar(ledger, low) == (Barrier.PAUSED, "mid")
    assert isinstance(await ledger.reserve(of_tree("beside", "top"), LEASE_MS), Hold)
    await ledger.stop(TENANT, "top", "op", "enough")
    assert await bar(ledger, low) == (Barrier.PAUSED, "mid")  # the nearest is named
    assert await bar(ledger, of_tree("beside", "top")) == (Barrier.STOPPED, "top")
    assert await bar(ledger, of_tree("newcomer", "top")) == (Barrier.STOPPED, "top")
    assert await ledger.run(TENANT, "newcomer") is None
    callers = [of_tree(*names).call.caller for names in (("low", "mid", "top"), ("beside", "top"), ("elsewhere",))]
    assert list(await ledger.halted(TENANT, callers)) == [Barrier.STOPPED, Barrier.STOPPED, None]


async def test_a_call_keeps_its_ancestors_in_use(ledger: Ledger) -> None:
    await hold(ledger, of_tree("top"))
    await hold(ledger, of_tree("other"))
    await hold(ledger, of_tree("low", "top"))
    runs = await ledger.runs(TENANT, None, 10)
    assert {run.run: run.last_ms for run in runs} == dict.fromkeys(("low", "other", "top"), START_MS)


async def test_200_parallel_first_calls_of_children_share_what_their_parent_has(ledger: Ledger) -> None:
    asked = [of_tree(f"child-{number % 20}", "top") for number in range(200)]
    answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
    assert sum(isinstance(answer, Hold) for answer in answers) == 10
    assert (await balance(ledger, account("run-ceiling", run="top"))).reserved == 100


async def test_a_debit_of_a_child_is_charged_to_its_ancestors(ledger: Ledger) -> None:
    await spend(ledger, of_tree("top"), 1)
    settled = await debit(ledger, of_tree("low", "top", usd=30), settlement(30), Debiting.ALWAYS)
    assert [each.committed for each in settled.balances] == [30, 31]
    assert (await look(ledger, account("run-ceiling", run="top"))).balance.committed == 31
