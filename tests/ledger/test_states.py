"""What makes a run or a scope take no calls, whoever asks and whatever it costs; what ends that; and who is told."""

import pytest

from gateway.core.values import Decision, Ending, Hold, RunTerms
from gateway.ledger.contract import Barrier, Ledger, Refusal, RunState, SetLimit, scope_text
from tests.ledger.asking import bar, hold, of_run, refuse, settle, view
from tests.ledger.builders import DAY_MS, LEASE_MS, START_MS, TENANT, account, caller, charge, decision, own_run_charge, plan
from tests.support.clock import Clock


def pausing(usd: int = 10, run: str = "r1", limit: int = 100, *, issued: bool = False) -> Decision:
    return decision(plan(own_run_charge(run, limit, pause=True), usd=usd), of=caller(run, issued=issued))


def of(run: str, terms: RunTerms, fingerprint: str = "", *, issued: bool = False, key: str = "k1") -> Decision:
    return decision(plan(charge(limit=None)), of=caller(run, key, issued=issued), terms=terms, fingerprint=fingerprint)


# -- pausing ------------------------------------------------------------------------------------------------------------------


async def test_a_run_that_runs_out_waits_where_the_budget_says_so(ledger: Ledger) -> None:
    refusal = await refuse(ledger, pausing(101))
    assert refusal.paused
    assert refusal.at_ms == START_MS
    found = await view(ledger)
    assert (found.state, found.paused_by) == (RunState.PAUSED, "")
    assert await bar(ledger, pausing(1)) == (Barrier.PAUSED, "r1")


async def test_only_the_budget_that_blocked_pauses(ledger: Ledger) -> None:
    waits, blocks = charge(account("waits"), 50, pause=True), charge(account("blocks"), 5)
    assert not (await refuse(ledger, decision(plan(blocks, waits, usd=10)))).paused
    cheaper = plan(waits, usd=60, model="small")
    assert (await refuse(ledger, decision(plan(blocks, usd=10), cheaper))).paused


async def test_a_call_without_a_run_pauses_nothing(ledger: Ledger) -> None:
    assert not (await refuse(ledger, pausing(101, issued=True))).paused
    assert await ledger.run(TENANT, "r1") is None


@pytest.mark.parametrize("act", ["set_limit", "set_account_limit", "adjust", "reset", "resume"])
async def test_a_raise_ends_a_pause_that_running_out_had_set(ledger: Ledger, act: str) -> None:
    await settle(ledger, await hold(ledger, pausing(90)), 90)
    await refuse(ledger, pausing(20))
    key = account("run-ceiling", run="r1").key
    if act == "set_limit":
        await ledger.set_limit(TENANT, "r1", "", SetLimit(500, by_admin=True, who="admin"))
    elif act == "set_account_limit":
        await ledger.set_account_limit(TENANT, key, 500, "op", "more")
    elif act == "adjust":
        await ledger.adjust(TENANT, key, -50, "act_1", "op", "a refund")
    elif act == "reset":
        await ledger.reset(TENANT, key, "op", "a new start")
    else:
        await ledger.resume(TENANT, "r1", "op", "go on")
    assert (await view(ledger)).state is RunState.ACTIVE
    answer = await ledger.reserve(pausing(20), LEASE_MS)
    assert isinstance(answer, Refusal if act == "resume" else Hold)
    assert (await view(ledger)).state is (RunState.PAUSED if act == "resume" else RunState.ACTIVE)


async def test_what_raises_nothing_ends_no_pause(ledger: Ledger) -> None:
    await settle(ledger, await hold(ledger, pausing(90)), 90)
    await ledger.set_limit(TENANT, "other", "", SetLimit(5, by_admin=True, who="admin"))
    await refuse(ledger, pausing(20))
    key = account("run-ceiling", run="r1").key
    await ledger.set_limit(TENANT, "r1", "k1", SetLimit(50, by_admin=False, who="k1"))
    await ledger.set_limit(TENANT, "other", "", SetLimit(5, by_admin=True, who="admin"))
    await ledger.adjust(TENANT, key, -91, "act_1", "op", "more than there is")
    await ledger.set_account_limit(TENANT, key, None, "op", "none was stored")
    assert (await view(ledger)).state is RunState.PAUSED


async def test_an_operators_pause_waits_for_the_operator(ledger: Ledger) -> None:
    held = await hold(ledger, of_run())
    paused = await ledger.pause(TENANT, "r1", "op", "looking into it")
    assert paused is not None
    assert (paused.state, paused.paused_by) == (RunState.PAUSED, "op")
    await ledger.set_limit(TENANT, "r1", "", SetLimit(500, by_admin=True, who="admin"))
    assert await bar(ledger, of_run()) == (Barrier.PAUSED, "r1")
    assert (await settle(ledger, held, 4)).changed  # those that are under way finish
    resumed = await ledger.resume(TENANT, "r1", "op", "all well")
    assert resumed is not None
    assert (resumed.state, resumed.paused_by) == (RunState.ACTIVE, "")
    await hold(ledger, of_run())


async def test_an_operators_pause_takes_the_place_of_one_that_a_raise_would_end(ledger: Ledger) -> None:
    await refuse(ledger, pausing(101))
    await ledger.pause(TENANT, "r1", "op", "wait for me")
    await ledger.set_limit(TENANT, "r1", "", SetLimit(500, by_admin=True, who="admin"))
    assert (await view(ledger)).paused_by == "op"


async def test_a_stop_is_for_good(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    await ledger.pause(TENANT, "r1", "op", "")
    await ledger.stop(TENANT, "r1", "op", "")
    for act in (ledger.pause, ledger.resume, ledger.stop):
        found = await act(TENANT, "r1", "op", "")
        assert found is not None
        assert found.state is RunState.STOPPED
    assert await bar(ledger, of_run()) == (Barrier.STOPPED, "r1")
    assert [act.act for act in await ledger.acts(TENANT, 10)] == ["stop", "pause"]


@pytest.mark.parametrize("act", ["pause", "resume", "stop"])
async def test_there_is_nothing_to_do_to_a_run_that_never_was(ledger: Ledger, act: str) -> None:
    assert await getattr(ledger, act)(TENANT, "never", "op", "") is None
    assert list(await ledger.acts(TENANT, 10)) == []


# -- freezing -----------------------------------------------------------------------------------------------------------------


async def test_a_frozen_scope_takes_no_calls_from_whoever_matches_all_of_it(ledger: Ledger) -> None:
    assert await ledger.freeze(TENANT, (("team", "t1"), ("agent", "a,=/1")), "op", "a leak")
    text = "agent=a%2C%3D%2F1,team=t1"
    frozen = decision(of=caller("r1", team="t1", agent="a,=/1"))
    assert await bar(ledger, frozen) == (Barrier.FROZEN, text)
    assert await ledger.run(TENANT, "r1") is None
    for others in (decision(of=caller("r2", team="t1")), decision(of=caller("r3", agent="a,=/1"))):
        await hold(ledger, others)
    assert not await ledger.freeze(TENANT, (("agent", "a,=/1"), ("team", "t1")), "op 2", "again")
    (listed,) = await ledger.frozen(TENANT)
    assert (listed.text, listed.scope, listed.at_ms, listed.who, listed.why) == (
        text,
        (("agent", "a,=/1"), ("team", "t1")),
        START_MS,
        "op",
        "a leak",
    )
    assert await ledger.thaw(TENANT, (("team", "t1"), ("agent", "a,=/1")), "op", "fixed")
    assert not await ledger.thaw(TENANT, (("team", "t1"), ("agent", "a,=/1")), "op", "fixed")
    await hold(ledger, frozen)


async def test_a_run_a_key_and_the_whole_tenant_can_be_frozen(ledger: Ledger) -> None:
    held = await hold(ledger, of_run())
    callers = [held.decision.call.caller, caller("r2"), caller("r3", "k2")]
    for scope, expected in (
        ((("run", "r1"),), [Barrier.FROZEN, None, None]),
        ((("key", "k1"),), [Barrier.FROZEN, Barrier.FROZEN, None]),
        ((), [Barrier.FROZEN] * 3),
    ):
        await ledger.freeze(TENANT, scope, "op", "")
        assert list(await ledger.halted(TENANT, callers)) == expected
        assert await bar(ledger, of_run()) == (Barrier.FROZEN, scope_text(scope))
        await ledger.thaw(TENANT, scope, "op", "")
    assert scope_text(()) == "tenant"
    assert (await settle(ledger, held, 4)).changed


async def test_of_several_frozen_scopes_the_first_by_its_text_is_named(ledger: Ledger) -> None:
    for scope in ((("run", "r1"),), (), (("key", "k1"),)):
        await ledger.freeze(TENANT, scope, "op", "")
    assert await bar(ledger, of_run()) == (Barrier.FROZEN, "key=k1")
    assert [each.text for each in await ledger.frozen(TENANT)] == ["key=k1", "run=r1", "tenant"]
    assert await ledger.frozen("other") == []


async def test_a_stop_is_told_before_a_freeze(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    await ledger.freeze(TENANT, (), "op", "")
    await ledger.stop(TENANT, "r1", "op", "")
    assert await bar(ledger, of_run()) == (Barrier.STOPPED, "r1")
    assert list(await ledger.halted(TENANT, [caller("r1"), caller("r2")])) == [Barrier.STOPPED, Barrier.FROZEN]


async def test_a_barred_call_of_a_run_is_on_record_and_of_a_run_that_never_was_is_not(ledger: Ledger) -> None:
    await hold(ledger, of_run())
    await ledger.freeze(TENANT, (), "op", "")
    known, unknown = of_run(), of_run(run="r2")
    for each in (known, unknown):
        await bar(ledger, each)
    record = await ledger.record(TENANT, known.id)
    assert record is not None
    assert (record.outcome, record.state, record.run) == ("block", None, "r1")
    assert await ledger.record(TENANT, unknown.id) is None


# -- too many runs ------------------------------------------------------------------------------------------------------------

TWO = RunTerms(max_active=2, idle_ms=DAY_MS)


async def test_a_key_has_so_many_active_runs_and_no_more(ledger: Ledger) -> None:
    await hold(ledger, of("r1", TWO))
    await hold(ledger, of("r2", TWO))
    assert await bar(ledger, of("r3", TWO)) == (Barrier.TOO_MANY_RUNS, "2")
    assert await ledger.run(TENANT, "r3") is None
    await hold(ledger, of("r1", TWO))  # one of the two
    await hold(ledger, of("r4", TWO, key="k2"))
    await hold(ledger, of("i1", TWO, issued=True))
    assert await bar(ledger, of("r3", TWO)) == (Barrier.TOO_MANY_RUNS, "2")


async def test_a_run_that_is_stopped_or_idle_makes_room_for_another(ledger: Ledger, clock: Clock) -> None:
    await hold(ledger, of("r1", TWO))
    clock.now_ms += DAY_MS - 1
    await hold(ledger, of("r2", TWO))
    assert await bar(ledger, of("r3", TWO)) == (Barrier.TOO_MANY_RUNS, "2")
    clock.now_ms += 1
    await hold(ledger, of("r3", TWO))
    assert await bar(ledger, of("r1", TWO)) == (Barrier.TOO_MANY_RUNS, "2")  # it is not one of them any more
    await ledger.stop(TENANT, "r2", "op", "")
    await hold(ledger, of("r1", TWO))


async def test_a_limit_that_is_set_before_the_first_call_makes_no_run_active(ledger: Ledger) -> None:
    await hold(ledger, of("r1", TWO))
    await hold(ledger, of("r2", TWO))
    await ledger.set_limit(TENANT, "r3", "k1", SetLimit(50, by_admin=False, who="k1"))
    assert await bar(ledger, of("r3", TWO)) == (Barrier.TOO_MANY_RUNS, "2")


async def test_a_refused_call_makes_its_run_active(ledger: Ledger) -> None:
    one = RunTerms(max_active=1)
    await refuse(ledger, decision(plan(charge(limit=1)), of=caller("r1"), terms=one))
    assert await bar(ledger, of("r2", one)) == (Barrier.TOO_MANY_RUNS, "1")


# -- loops --------------------------------------------------------------------------------------------------------------------

LOOP = RunTerms(same_request=2, within_calls=4)


async def test_the_same_request_too_often_within_so_many_calls_is_a_loop(ledger: Ledger) -> None:
    for fingerprint in ("f", "f"):
        await hold(ledger, of("r1", LOOP, fingerprint))
    assert await bar(ledger, of("r1", LOOP, "f")) == (Barrier.LOOP, "2")
    for fingerprint in ("g", "h"):
        await hold(ledger, of("r1", LOOP, fingerprint))
    for _ in range(2):  # of the last three one is the same: the earliest has passed out of sight
        await hold(ledger, of("r1", LOOP, "f"))
    assert await bar(ledger, of("r1", LOOP, "f")) == (Barrier.LOOP, "2")


async def test_released_calls_are_no_part_of_a_loop(ledger: Ledger) -> None:
    for _ in range(5):
        held = await hold(ledger, of("r1", LOOP, "f"))
        await ledger.release(TENANT, held.id, Ending.PROVIDER_REFUSED)
    held = await hold(ledger, of("r1", LOOP, "f"))
    await settle(ledger, held, 4)
    await hold(ledger, of("r1", LOOP, "f"))
    assert await bar(ledger, of("r1", LOOP, "f")) == (Barrier.LOOP, "2")


async def test_other_runs_unknown_requests_and_other_terms_make_no_loop(ledger: Ledger) -> None:
    for _ in range(4):
        await hold(ledger, of("r1", LOOP, ""))
        await hold(ledger, of("r2", RunTerms(), "f"))
    await hold(ledger, of("r1", LOOP, "f"))
    await hold(ledger, of("r2", LOOP, "f"))
