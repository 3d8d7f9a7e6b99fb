"""The ledger as its callers meet it: many at once, gone while they wait, out of time, with a faulty step among them."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import apsw
import apsw.ext
import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Balance, Decision, Ending, Hold, RunTerms
from gateway.ledger.contract import Barred, Ended, HoldState, LedgerUnavailable, Refusal, SetLimit, Settled
from gateway.ledger.sqlite import steps
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.asking import hold
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
from tests.support.clock import Clock


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteLedger]:
    """Of all stores, SQLite only."""
    running = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await running.start()
    yield running
    await running.close()


async def balance_of(ledger: SqliteLedger) -> Balance:
    (balance,) = await ledger.balances(TENANT, [account()])
    return balance


async def until_quiet(ledger: SqliteLedger) -> None:
    """Steps that nobody waits for any more have been answered, and what they gave back is given back."""
    for _ in range(3):
        await ledger.release(TENANT, "rsv_to-wait-for", Ending.NOT_SENT)


def plan_of(connection: apsw.Connection, sql: str) -> list[str]:
    number = apsw.ext.query_info(connection, sql).bindings_count
    return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * number)]


class Lock:
    """Another process in the middle of a long transaction."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


# -- many at once -------------------------------------------------------------------------------------------------------------


async def test_of_200_parallel_reserves_on_a_new_run_exactly_those_that_fit_are_held(ledger: SqliteLedger) -> None:
    asked = [decision(plan(own_run_charge(limit=100), usd=10), of=caller("new")) for _ in range(200)]
    answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
    assert sum(isinstance(answer, Hold) for answer in answers) == 10
    assert sum(isinstance(answer, Refusal) for answer in answers) == 190
    view = await ledger.run(TENANT, "new")
    assert view is not None
    assert (view.reserved, view.calls) == (100, 10)


async def test_steps_take_effect_in_the_order_in_which_they_were_asked(ledger: SqliteLedger) -> None:
    first, second = decision(plan(charge(), usd=100)), decision(plan(charge(), usd=100))
    waiting = (
        ledger.reserve(first, LEASE_MS),
        ledger.release(TENANT, first.hold_id, Ending.NOT_SENT),
        ledger.reserve(second, LEASE_MS),
    )
    held, released, held_too = await asyncio.gather(*waiting)
    assert isinstance(held, Hold)
    assert (released.state, released.changed) == (HoldState.RELEASED, True)
    assert isinstance(held_too, Hold)


async def test_twenty_reserves_of_one_id_are_one_hold(ledger: SqliteLedger) -> None:
    decided = decision()
    answers = await asyncio.gather(*(ledger.reserve(decided, LEASE_MS) for _ in range(20)))
    assert answers[1:] == answers[:-1]
    assert (await balance_of(ledger)).reserved == 10


async def test_an_id_that_ended_long_ago_is_found_among_new_ones(ledger: SqliteLedger) -> None:
    old = [decision() for _ in range(3)]
    for each in old[:2]:
        await ledger.reserve(each, LEASE_MS)
    await ledger.commit(TENANT, old[0].hold_id, settlement(4))
    await ledger.release(TENANT, old[1].hold_id, Ending.NOT_SENT)
    await ledger.release(TENANT, old[2].hold_id, Ending.NOT_SENT)
    asked = [decision(), old[0], decision(), old[1], old[2], decision(plan(charge(limit=1)), decision_id=old[0].id)]
    answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
    assert [type(answer) for answer in answers] == [Hold, Ended, Hold, Ended, Ended, Ended]
    assert (await balance_of(ledger)).reserved == 20


async def test_what_no_index_holds_is_never_searched(ledger: SqliteLedger, tmp_path: Path) -> None:
    """What a call asks of the file, and what lists it, walks an index: it costs no more with a million runs."""
    seen: list[str] = []
    store = ledger._store._connection
    reader = ledger._reader
    assert store is not None
    assert reader is not None
    for connection in (store, reader):
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))  # type: ignore[arg-type,return-value]
    decided = replace(decision(of=caller("new")), terms=RunTerms(max_active=5))
    held = await ledger.reserve(decided, LEASE_MS)
    assert isinstance(held, Hold)
    await ledger.commit(TENANT, held.id, settlement(4))
    await ledger.reserve(decision(plan(charge(limit=1))), LEASE_MS)
    await ledger.expire()
    for owner in (None, "k1"):
        await ledger.runs(TENANT, owner, 10)
        await ledger.runs(TENANT, owner, 10, "new")
    await ledger.halted(TENANT, [caller()])
    for before in (None, "act"):
        await ledger.acts(TENANT, 10, before)
    other = apsw.Connection(str(tmp_path / "ledger.db"))
    asked = {sql for sql in seen if sql.startswith(("SELECT", "UPDATE", "DELETE", "INSERT INTO refusals"))}
    plans = {sql: plan_of(other, sql) for sql in asked}
    assert len(asked) > 12
    # Of one row; of what was asked for; of what an index already has in order.
    may_scan = ("SCAN meta", "SCAN json_each", "SCAN (subquery", "FOR LAST 2 TERMS")
    steps = [(step, sql) for sql, steps in plans.items() for step in steps if not any(word in step for word in may_scan)]
    assert [each for each in steps if "SCAN" in each[0] or "TEMP B-TREE" in each[0]] == []
    assert {step for step, _ in steps if step.endswith("(tenant=?)")} == {  # in order, and to be cut off; or few
        "SEARCH runs USING INDEX runs_by_use (tenant=?)",
        "SEARCH acts USING INDEX acts_of_tenant (tenant=?)",
        "SEARCH frozen USING PRIMARY KEY (tenant=?)",
        "SEARCH tenants USING PRIMARY KEY (tenant=?)",
    }


async def test_active_runs_are_counted_again_only_where_they_may_be_too_many(ledger: SqliteLedger) -> None:
    """To count them for each new run would cost the more, the more there are."""
    seen: list[str] = []
    store = ledger._store._connection
    assert store is not None
    store.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))  # type: ignore[arg-type,return-value]

    async def answer_of_new_runs(first: int, last: int, max_active: int) -> set[type]:
        terms = RunTerms(max_active=max_active)
        runs = [decision(plan(charge(limit=None)), of=caller(f"new-{number}")) for number in range(first, last)]
        return {type(await ledger.reserve(replace(each, terms=terms), LEASE_MS)) for each in runs}

    assert await answer_of_new_runs(0, 100, 1_000) == {Hold}
    assert sum("count(*)" in sql for sql in seen) == 1
    assert await answer_of_new_runs(100, 110, 110) == {Hold}
    assert await answer_of_new_runs(110, 112, 110) == {Barred}
    assert await answer_of_new_runs(112, 113, 111) == {Hold}


# -- gone while they wait -----------------------------------------------------------------------------------------------------


async def test_a_hold_whose_caller_was_cancelled_is_given_back(ledger: SqliteLedger, tmp_path: Path) -> None:
    with Lock(tmp_path / "ledger.db"):  # so that the reserve can't have been answered yet
        waiting = asyncio.ensure_future(ledger.reserve(decision(), LEASE_MS))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.sleep(0)
    assert waiting.cancelled()
    await until_quiet(ledger)
    assert (await balance_of(ledger)).reserved == 0


async def test_a_hold_whose_caller_is_cancelled_in_the_tick_of_the_answer_is_given_back(ledger: SqliteLedger) -> None:
    answer = ledger.reserve(decision(), LEASE_MS)
    future = answer._future  # type: ignore[attr-defined]

    async def wait() -> None:
        await answer

    waiting = asyncio.ensure_future(wait())
    future.add_done_callback(lambda _: waiting.cancel())  # the answer is there, the waiter has not run yet
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert isinstance(future.result(), Hold)
    await until_quiet(ledger)
    assert (await balance_of(ledger)).reserved == 0


async def test_cancelled_at_any_moment_reserved_returns_to_zero(ledger: SqliteLedger) -> None:
    chance = random.Random(7)
    wide = plan(charge(limit=None), usd=10)

    async def call() -> None:
        held = await ledger.reserve(decision(wide), LEASE_MS)
        assert isinstance(held, Hold)
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            ledger.commit(TENANT, held.id, settlement(1))

    for _ in range(20):
        tasks = [asyncio.ensure_future(call()) for _ in range(15)]
        for task in tasks:
            asyncio.get_running_loop().call_later(chance.random() * 0.004, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
    await until_quiet(ledger)
    balance = await balance_of(ledger)
    assert balance.reserved == 0
    rows = await ledger.spend(TENANT, (), START_MS, START_MS + 1, None)
    assert balance.committed == sum(row.calls for row in rows)


async def test_a_commit_whose_caller_was_cancelled_is_committed(ledger: SqliteLedger) -> None:
    held = await ledger.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    waiting = asyncio.ensure_future(ledger.commit(TENANT, held.id, settlement(4)))
    waiting.cancel()
    await until_quiet(ledger)
    assert (await balance_of(ledger)).committed == 4


# -- out of time, out of room -------------------------------------------------------------------------------------------------


@pytest.fixture
async def hasty(tmp_path: Path, clock: Clock) -> SqliteLedger:
    running = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock, timeout_ms=50)
    await running.start()
    return running


async def test_a_store_that_is_busy_for_too_long_is_unavailable_and_serves_again_after(
    hasty: SqliteLedger, tmp_path: Path
) -> None:
    with Lock(tmp_path / "ledger.db"):
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await hasty.reserve(decision(), LEASE_MS)
        assert (await hasty.balances(TENANT, [account()]))[0].reserved == 0  # readers are not in the way
    held = await hasty.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    assert [balance.reserved for balance in held.balances] == [10]
    await hasty.close()


async def test_a_hold_that_comes_too_late_is_given_back(hasty: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    store = hasty._store
    transact, slow = store.transact, threading.Event()

    def late(*arguments: object) -> list[object]:
        answers = transact(*arguments)  # type: ignore[arg-type]
        slow.wait(0.1)
        return answers

    monkeypatch.setattr(store, "transact", late)
    with pytest.raises(LedgerUnavailable, match=r"did not answer within 0\.05 s"):
        await hasty.reserve(decision(), LEASE_MS)
    slow.set()
    await until_quiet(hasty)
    assert (await balance_of(hasty)).reserved == 0
    await hasty.close()


async def test_a_full_disk_is_unavailable_and_loses_nothing(ledger: SqliteLedger) -> None:
    held = await ledger.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    connection = ledger._store._connection
    assert connection is not None
    connection.pragma("max_page_count", 1)
    big = [decision(plan(charge(), usd=0, model="m" * 4000)) for _ in range(200)]
    answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in big), return_exceptions=True)
    assert any(isinstance(answer, LedgerUnavailable) for answer in answers)
    connection.pragma("max_page_count", 1_000_000)
    settled = await ledger.commit(TENANT, held.id, settlement(4))
    assert settled is not None
    assert settled.balances[0].committed == 4


# -- a faulty step ------------------------------------------------------------------------------------------------------------


async def test_a_step_that_fails_does_not_hurt_those_beside_it(ledger: SqliteLedger) -> None:
    beyond_sqlite = decision(plan(charge(account("huge"), limit=None), usd=2**63))
    waiting = [ledger.reserve(decision() if number % 10 else beyond_sqlite, LEASE_MS) for number in range(30)]
    negative = ledger.commit(TENANT, decision().hold_id, settlement(-1))
    answers = await asyncio.gather(*waiting, negative, return_exceptions=True)
    assert [isinstance(answer, Exception) for answer in answers] == [*(number % 10 == 0 for number in range(30)), True]
    assert not any(isinstance(answer, LedgerUnavailable) for answer in answers)
    balance = await balance_of(ledger)
    assert balance.reserved == 10 * sum(isinstance(answer, Hold) for answer in answers) == 100


async def test_after_a_faulty_step_what_is_known_of_the_store_is_still_true(ledger: SqliteLedger) -> None:
    held = await ledger.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    with pytest.raises(OverflowError):  # when it is written: its accounts have moved in memory by then
        await ledger.reserve(decision(plan(charge(limit=None), usd=2**63)), LEASE_MS)
    settled = await ledger.commit(TENANT, held.id, settlement(4))
    assert settled is not None
    assert [(balance.committed, balance.reserved) for balance in settled.balances] == [(4, 0)]


async def test_a_batch_that_fails_takes_back_what_its_steps_did_to_an_account_that_they_share(ledger: SqliteLedger) -> None:
    """The accounts are known from before, and moved in memory by the steps ahead of the faulty one and by those behind it."""
    before = await hold(ledger, decision())
    faulty = decision(plan(charge(limit=None), usd=2**63))
    asked = [decision(), faulty, decision(), decision()]
    ended = ledger.commit(TENANT, before.id, settlement(7))
    answers = await asyncio.gather(ended, *(ledger.reserve(each, LEASE_MS) for each in asked), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Settled, Hold, OverflowError, Hold, Hold]
    last = await hold(ledger, decision())
    assert [(each.committed, each.reserved) for each in last.balances] == [(7, 40)]
    assert [(each.committed, each.reserved) for each in [await balance_of(ledger)]] == [(7, 40)]


async def test_a_step_that_fails_half_way_leaves_nothing_to_the_batches_behind_it(ledger: SqliteLedger) -> None:
    def half(books: Books, decided: Decision) -> None:
        steps.reserve(books, decided, LEASE_MS)
        raise ZeroDivisionError

    held = await hold(ledger, decision())
    with pytest.raises(ZeroDivisionError):
        await ledger._ask(half, decision())
    await hold(ledger, decision(plan(charge(account("another"))), of=caller("r2")))
    view, balance = await ledger.run(TENANT, "r1"), await balance_of(ledger)
    assert view is not None
    assert (view.reserved, view.calls, view.accounts, balance.reserved) == (10, 1, held.balances, 10)
    assert [each.run for each in await ledger.holds(TENANT, None, 10)] == ["r1", "r2"]


async def test_each_of_many_runs_in_one_batch_has_its_own_sums(ledger: SqliteLedger, tmp_path: Path, clock: Clock) -> None:
    """New ones and known ones, more than one statement takes, and in no power of two."""
    runs = [f"r{number}" for number in range(77)]
    for asked in (runs[:30], runs):
        decided = [decision(plan(own_run_charge(run, 10_000), usd=int(run[1:])), of=caller(run)) for run in asked]
        assert {type(each) for each in await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in decided))} == {Hold}
    await ledger.close()
    again = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await again.start()
    for number, run in enumerate(runs):
        times = 2 if number < 30 else 1
        view = await again.run(TENANT, run)
        assert view is not None
        assert (view.reserved, view.calls, [each.reserved for each in view.accounts]) == (number * times, times, [number * times])
    await again.close()


# -- what is known from batch to batch ----------------------------------------------------------------------------------------


@pytest.fixture
async def other(tmp_path: Path, ledger: SqliteLedger, clock: Clock) -> AsyncIterator[SqliteLedger]:
    """Another gateway's, on the same file."""
    running = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await running.start()
    yield running
    await running.close()


async def test_two_gateways_that_take_turns_see_each_others_every_step(ledger: SqliteLedger, other: SqliteLedger) -> None:
    holds = []
    for number in range(9):
        held = await (ledger, other)[number % 2].reserve(decision(), LEASE_MS)
        assert isinstance(held, Hold)
        assert [each.reserved for each in held.balances] == [10 * (number + 1)]
        holds.append(held)
    for number, held in enumerate(holds):
        settled = await (other, ledger)[number % 2].commit(TENANT, held.id, settlement(1))
        assert settled is not None
        assert [(each.committed, each.reserved) for each in settled.balances] == [(number + 1, 80 - 10 * number)]


async def test_a_limit_that_another_gateway_set_counts_for_the_next_call(ledger: SqliteLedger, other: SqliteLedger) -> None:
    of_run = own_run_charge(limit=1_000)
    await hold(ledger, decision(plan(of_run, charge(limit=1_000))))
    await other.set_limit(TENANT, "r1", "k1", SetLimit(15, by_admin=True, who="ann"))
    assert isinstance(await ledger.reserve(decision(plan(of_run, charge(limit=1_000))), LEASE_MS), Refusal)
    await other.set_limit(TENANT, "r1", "k1", SetLimit(500, by_admin=True, who="ann"))
    await hold(ledger, decision(plan(of_run, charge(limit=1_000))))
    await other.set_account_limit(TENANT, account().key, 25, "ann", "")
    assert isinstance(await ledger.reserve(decision(plan(of_run, charge(limit=1_000))), LEASE_MS), Refusal)
    await other.set_account_limit(TENANT, account().key, None, "ann", "")
    await hold(ledger, decision(plan(of_run, charge(limit=1_000))))


async def test_a_limit_that_is_set_counts_for_the_next_call_over_the_same_charges(ledger: SqliteLedger) -> None:
    asked = plan(own_run_charge(limit=1_000), charge(limit=1_000))
    await hold(ledger, decision(asked))
    await ledger.set_account_limit(TENANT, account().key, 15, "ann", "")
    assert isinstance(await ledger.reserve(decision(asked), LEASE_MS), Refusal)
    await ledger.set_account_limit(TENANT, account().key, None, "ann", "")
    await hold(ledger, decision(asked))
    assert isinstance(await ledger.reserve(decision(asked, run_limit=25), LEASE_MS), Refusal)
    await ledger.set_limit(TENANT, "r1", "k1", SetLimit(1_000, by_admin=True, who="ann"))
    await hold(ledger, decision(asked, run_limit=25))


# -- what readers see ---------------------------------------------------------------------------------------------------------


async def test_the_record_of_a_call_says_what_the_decision_was_made_from(ledger: SqliteLedger) -> None:
    decided = decision(plan(own_run_charge(limit=100), usd=10), of=caller(team="blue"), run_limit=50)
    await ledger.reserve(decided, LEASE_MS)
    await ledger.commit(TENANT, decided.hold_id, settlement(4, ending=Ending.CLIENT_LEFT))
    record = await ledger.record(TENANT, decided.id)
    assert record is not None
    assert (record.outcome, record.state, record.held, record.charged) == (
        "allow",
        HoldState.COMMITTED,
        Amounts(10, 5),
        Amounts(4, 3),
    )
    assert (record.ending, record.usage, record.dimensions) == ("client_left", settlement(4).usage, (("team", "blue"),))
    assert record.inputs["price_table_version"] == "prices-1"
    assert record.inputs["run_limit"] == 50
    assert record.inputs["effective_max_output_tokens"] == 256
    assert record.inputs["accounts"] == [
        {
            "account": "run-ceiling|run=r1|lifetime|usd",
            "held": 10,
            "limit": 100,
            "mode": "hard_gate",
            "basis": "reserved+committed",
            "margin": 0,
            "share_ppm": 1_000_000,
            "own": True,
        }
    ]


async def test_refusals_are_kept_in_a_bounded_ring_per_run(ledger: SqliteLedger) -> None:
    refused = [decision(plan(charge(), usd=101)) for _ in range(40)]
    for each in refused:
        assert isinstance(await ledger.reserve(each, LEASE_MS), Refusal)
    found = [await ledger.record(TENANT, each.id) for each in refused]
    assert [record is not None for record in found] == [False] * 8 + [True] * 32
    assert found[-1] is not None
    assert (found[-1].outcome, found[-1].state, found[-1].inputs["why"]) == ("block", None, "ceiling_reached")
    await ledger.stop(TENANT, "r1", "op", "enough")
    stopped = decision()
    assert isinstance(await ledger.reserve(stopped, LEASE_MS), Barred)
    record = await ledger.record(TENANT, stopped.id)
    assert record is not None
    assert record.inputs["why"] == "run_stopped"


async def test_refused_calls_without_a_run_id_share_one_ring_and_leave_no_run(ledger: SqliteLedger) -> None:
    refused = [decision(plan(charge(), usd=101), of=caller(f"issued-{number}", issued=True)) for number in range(40)]
    for each in refused:
        await ledger.reserve(each, LEASE_MS)
    assert await ledger.runs(TENANT, None, 100) == []
    found = [await ledger.record(TENANT, each.id) for each in refused]
    assert [record is not None for record in found] == [False] * 8 + [True] * 32


async def test_operators_acts_are_recorded_once_with_who_and_why(ledger: SqliteLedger, tmp_path: Path) -> None:
    held = await ledger.reserve(decision(), LEASE_MS)
    assert isinstance(held, Hold)
    for _ in range(2):
        await ledger.settle(TENANT, held.id, 3, "ann", "the bill says so")
        await ledger.stop(TENANT, "r1", "bob", "looping")
    acts = (
        apsw.Connection(str(tmp_path / "ledger.db"))
        .execute("SELECT tenant, at_ms, who, act, what, why FROM acts ORDER BY number")
        .fetchall()
    )
    assert acts == [
        (TENANT, START_MS, "ann", "settle", f"{held.id} 3", "the bill says so"),
        (TENANT, START_MS, "bob", "stop", "r1", "looping"),
    ]


# -- life ---------------------------------------------------------------------------------------------------------------------


async def test_what_was_asked_before_close_is_answered_and_nothing_after(ledger: SqliteLedger) -> None:
    waiting = asyncio.ensure_future(ledger.reserve(decision(), LEASE_MS))
    await asyncio.sleep(0)
    await ledger.close()
    assert isinstance(await waiting, Hold)
    with pytest.raises(LedgerUnavailable):
        await ledger.reserve(decision(), LEASE_MS)
    with pytest.raises(LedgerUnavailable):
        await ledger.run(TENANT, "r1")
    assert ledger.health()["ok"] is False


async def test_a_ledger_that_is_opened_again_knows_everything(ledger: SqliteLedger, tmp_path: Path, clock: Clock) -> None:
    decided: Decision = decision()
    held = await ledger.reserve(decided, LEASE_MS)
    await ledger.close()
    again = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await again.start()
    assert await again.reserve(decided, LEASE_MS) == held
    assert again.health()["ok"] is True
    await again.close()


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    ledger = SqliteLedger(str(tmp_path / "file" / "ledger.db"), Witness(tmp_path / "witness"), clock)
    with pytest.raises(LedgerUnavailable):
        await ledger.start()
