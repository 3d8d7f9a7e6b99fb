"""A store that fails anywhere: what a call cost is charged once, nothing stays held, and nobody waits for what does not answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, Hold
from gateway.ledger import resilient
from gateway.ledger.contract import (
    Alert,
    Debiting,
    Ended,
    Fund,
    Funding,
    HoldState,
    Ledger,
    LedgerLost,
    LedgerUnavailable,
    OutcomeUnknown,
    Refusal,
    Settled,
)
from gateway.ledger.entries import Commit, Debit
from gateway.ledger.journal import Journal, JournalFull
from gateway.ledger.resilient import ResilientLedger
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, caller, charge, decision, own_run_charge, plan, settlement
from tests.support.clock import Clock
from tests.support.faults import AFTER, BEFORE, BUG, HELD_UP, LOST, Faults, Faulty

SOON_MS = 20  # a commit's wait, where the test is about it
PATIENT_MS = 60_000


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resilient, "_TEND_S", 0.01)


@dataclass
class Told:
    """The listener."""

    alerts: list[Alert] = field(default_factory=list)
    serving: list[str | None] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)

    def alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def ledger_serves(self, why_not: str | None) -> None:
        self.serving.append(why_not)

    def journalled(self, step: str) -> None:
        self.steps.append(step)

    def kept_aside(self, what: str, why: str) -> None:
        self.aside.append((what, why))

    def problem(self, where: str, error: BaseException) -> None:
        self.problems.append(error)


@dataclass
class Here:
    ledger: ResilientLedger
    journal: Journal
    faults: Faults
    told: Told
    clock: Clock
    folder: Path

    async def hold(self, decided: Decision | None = None) -> Hold:
        held = await self.ledger.reserve(decided or decision(plan(own_run_charge())), LEASE_MS)
        assert isinstance(held, Hold), held
        return held

    async def run(self) -> tuple[int, int, int]:
        """(committed, reserved, calls) of r1, once everything that waits has been replayed."""
        await until(lambda: idle(self.journal))
        view = await self.ledger.run(TENANT, "r1")
        assert view is not None
        [balance] = view.accounts
        assert (balance.committed, balance.reserved) == (view.committed, view.reserved)
        return view.committed, view.reserved, view.calls


def idle(journal: Journal) -> bool:
    """Nothing waits for the ledger, nor is on its way to wait."""
    return journal.waiting == 0 and journal._putting == 0


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


@asynccontextmanager
async def gateway(
    folder: Path, clock: Clock | None = None, wait_ms: int = PATIENT_MS, at_most: int = 1_000
) -> AsyncIterator[Here]:
    faults, told, clock = Faults(), Told(), clock or Clock(START_MS)

    def make() -> Ledger:
        real = SqliteLedger(str(folder / "ledger.db"), Witness(folder / "witness.json"), clock)
        return Faulty(real, faults)  # type: ignore[return-value]

    journal = Journal(folder / "journal", at_most)
    ledger = ResilientLedger(make, journal, wait_ms, told)
    await ledger.start()
    try:
        yield Here(ledger, journal, faults, told, clock, folder)
        assert told.problems == []
    finally:
        await ledger.close()


# -- ends of a hold, with the store failing before and after ------------------------------------------------------------------------

Step = Callable[[Ledger, Hold], Awaitable[Any]]


def commit(ledger: Ledger, hold: Hold, usd: int = 4) -> Awaitable[Settled | None]:
    return ledger.commit(TENANT, hold.id, settlement(usd))


def release(ledger: Ledger, hold: Hold) -> Awaitable[Settled]:
    return ledger.release(TENANT, hold.id, Ending.NOT_SENT)


ENDS: Sequence[tuple[str, Step, tuple[int, int, int]]] = [("commit", commit, (4, 0, 1)), ("release", release, (0, 0, 0))]


@pytest.mark.parametrize("fault", [BEFORE, AFTER, LOST])
@pytest.mark.parametrize(("step", "end", "expected"), ENDS, ids=[step for step, _, _ in ENDS])
async def test_an_end_that_failed_is_taken_once_when_the_store_is_back(
    step: str, end: Step, expected: tuple[int, int, int], fault: str, tmp_path: Path
) -> None:
    async with gateway(tmp_path) as here:
        hold = await here.hold()
        here.faults.of[step] = fault
        here.faults.start = LedgerLost("the store is behind") if fault == LOST else None
        answered = await end(here.ledger, hold)
        assert answered == Settled(
            HoldState.COMMITTED if expected[2] else HoldState.RELEASED,
            True,
            Amounts(4, 3, 1) if expected[2] else Amounts(0, 0, 0),
        )
        assert (here.told.steps, here.journal.waiting) == ([step], 1)
        here.faults.of.clear()
        here.faults.start = None
        assert await here.run() == expected
        assert here.told.aside == []


@pytest.mark.parametrize(("step", "end", "expected"), ENDS, ids=[step for step, _, _ in ENDS])
async def test_an_end_that_is_slow_is_journalled_meanwhile_and_taken_once(
    step: str, end: Step, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    async with gateway(tmp_path, wait_ms=SOON_MS) as here:
        hold = await here.hold()
        here.faults.of[step] = HELD_UP
        assert isinstance(await end(here.ledger, hold), Settled)
        assert here.journal.waiting == 1
        here.faults.go.set()
        assert await here.run() == expected
        assert here.faults.asked.count(step) == 1, "it was under way all the time"


async def test_a_slow_end_that_fails_at_last_is_replayed(tmp_path: Path) -> None:
    async with gateway(tmp_path, wait_ms=SOON_MS) as here:
        hold = await here.hold()
        here.faults.of["commit"] = HELD_UP
        await commit(here.ledger, hold)
        here.faults.of["commit"] = BEFORE
        task = asyncio.ensure_future(commit(here.ledger, hold))
        await task
        here.faults.of.clear()
        here.faults.go.set()
        assert await here.run() == (4, 0, 1)


async def test_nobody_waits_for_an_end_while_the_breaker_is_open(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        holds = [await here.hold() for _ in range(5)]
        here.faults.everywhere(BEFORE)
        with pytest.raises(LedgerUnavailable):
            await here.ledger.reserve(decision(), LEASE_MS)
        here.faults.of["commit"] = HELD_UP
        for hold in holds:
            await commit(here.ledger, hold)  # would wait for a minute
        assert here.journal.waiting == 5
        here.faults.of.clear()
        here.faults.go.set()
        assert await here.run() == (20, 0, 5)


async def test_a_hold_that_expired_meanwhile_is_corrected_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        hold = await here.hold()
        here.faults.everywhere(BEFORE)
        await commit(here.ledger, hold)
        here.clock.now_ms += LEASE_MS + 1
        [expired] = await here.ledger.expire(10)
        assert (expired.hold_id, expired.charged.usd) == (hold.id, 10)
        here.faults.of.clear()
        assert await here.run() == (4, 0, 1)


async def test_alerts_of_a_replayed_commit_are_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        hold = await here.hold(decision(plan(own_run_charge(alerts=(30_000,)))))
        here.faults.of["commit"] = BEFORE
        await commit(here.ledger, hold)
        assert here.told.alerts == []
        here.faults.of.clear()
        assert await here.run() == (4, 0, 1)
        assert [alert.threshold_ppm for alert in here.told.alerts] == [30_000]


async def test_an_end_of_a_hold_that_the_ledger_lost_is_kept_aside_and_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        assert await here.ledger.commit(TENANT, "rsv_unknown", settlement()) is None
        here.faults.of["commit"] = BEFORE
        assert isinstance(await here.ledger.commit(TENANT, "rsv_unknown", settlement()), Settled)
        here.faults.of.clear()
        await until(lambda: idle(here.journal))
        assert here.told.aside == [("rsv_unknown", "the ledger knows no such hold")]
        assert here.ledger.health()["journal"] == {"waiting": 0, "kept_aside": 1}


async def test_an_entry_that_the_ledger_chokes_on_holds_up_no_other(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        hold = await here.hold()
        here.faults.everywhere(BEFORE)
        await release(here.ledger, hold)
        await commit(here.ledger, hold)
        here.faults.of = {"commit": BUG}
        await until(lambda: idle(here.journal))
        assert [why for _, why in here.told.aside] == ["the ledger failed at it: ZeroDivisionError"]
        view = await here.ledger.run(TENANT, "r1")
        assert view is not None
        assert view.reserved == 0


async def test_a_bug_in_a_step_is_the_callers_to_hear(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        hold = await here.hold()
        here.faults.of["commit"] = BUG
        with pytest.raises(ZeroDivisionError):
            await commit(here.ledger, hold)


async def test_where_neither_ledger_nor_journal_takes_it_the_caller_hears_of_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, at_most=1) as here:
        one, other = await here.hold(), await here.hold()
        here.faults.everywhere(BEFORE)
        await commit(here.ledger, one)
        with pytest.raises(JournalFull):
            await commit(here.ledger, other)
        with pytest.raises(JournalFull):
            await here.ledger.reserve(decision(), LEASE_MS)  # not even a call that its budgets would let through goes out now
        here.faults.of.clear()
        assert await here.run() == (4, 10, 2)  # the other is left to its lease


async def test_what_waits_for_a_tenant_that_is_away_delays_no_other_tenant_and_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient, "_AT_ONCE", 4)
    async with gateway(tmp_path) as here:
        theirs = [await here.hold() for _ in range(8)]
        plans = plan(charge(account(tenant="other")))
        ours = [await here.hold(decision(plans, of=caller(f"r{each}", tenant="other"))) for each in range(3)]
        here.faults.everywhere(BEFORE)
        for hold in theirs:
            await commit(here.ledger, hold)
        for hold in ours:
            await here.ledger.commit("other", hold.id, settlement(4))
        here.faults.of, here.faults.away, here.faults.asked = {}, TENANT, []
        await until(lambda: here.journal.waiting == 8)  # the other's
        # Nobody waited for what could not be had. A batch may have been on its way when the other came back.
        assert here.faults.asked.count("commit") <= 3 + 4
        assert here.ledger.health()["ok"] is True
        here.faults.away, here.faults.taken = None, []
        await until(lambda: idle(here.journal))
        assert here.faults.taken == [hold.id for hold in theirs]


async def test_of_more_tenants_that_are_away_than_are_asked_about_at_once_each_gets_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilient, "_AT_ONCE", 1)
    async with gateway(tmp_path) as here:
        here.faults.everywhere(BEFORE)
        for tenant in (TENANT, "other"):
            with pytest.raises(LedgerUnavailable):
                await here.ledger.reserve(decision(plan(charge(account(tenant=tenant))), of=caller(tenant=tenant)), LEASE_MS)
        here.faults.of, here.faults.away = {}, TENANT
        await until(lambda: here.ledger.health()["ok"] is True)
        other = plan(charge(account(tenant="other")))
        assert isinstance(await here.ledger.reserve(decision(other, of=caller(tenant="other")), LEASE_MS), Hold)


# -- reserve ----------------------------------------------------------------------------------------------------------------------


async def test_after_a_failure_calls_are_refused_without_asking_until_a_probe_gets_through(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        here.faults.everywhere(BEFORE)
        with pytest.raises(LedgerUnavailable):
            await here.ledger.reserve(decision(), LEASE_MS)
        asked = here.faults.asked.count("reserve")
        for _ in range(10):
            with pytest.raises(LedgerUnavailable, match="away"):
                await here.ledger.reserve(decision(), LEASE_MS)
        assert here.faults.asked.count("reserve") == asked == 1
        assert here.ledger.health()["ok"] is False
        assert "away" in str(here.ledger.health()["why"])
        here.faults.of.clear()
        await until(lambda: here.ledger.health()["ok"] is True)
        assert isinstance(await here.ledger.reserve(decision(), LEASE_MS), Hold)
        assert here.told.serving == ["the store is away", None]


async def test_one_tenants_breaker_is_not_anothers(tmp_path: Path) -> None:
    other = plan(charge(account(tenant="other")))
    async with gateway(tmp_path) as here:
        here.faults.of["reserve"] = here.faults.of["extend"] = BEFORE
        with pytest.raises(LedgerUnavailable):
            await here.ledger.reserve(decision(), LEASE_MS)
        del here.faults.of["reserve"]  # the probes fail on
        assert isinstance(await here.ledger.reserve(decision(other, of=caller(tenant="other")), LEASE_MS), Hold)
        assert here.ledger.health()["ok"] is True
        with pytest.raises(LedgerUnavailable):
            await here.ledger.reserve(decision(), LEASE_MS)


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_a_reserve_of_unknown_outcome_leaves_nothing_held_and_its_id_unusable(fault: str, tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        await here.hold()
        decided = decision(plan(own_run_charge()))
        here.faults.of["reserve"] = fault
        with pytest.raises(OutcomeUnknown if fault == AFTER else LedgerUnavailable):
            await here.ledger.reserve(decided, LEASE_MS)
        here.faults.of.clear()
        assert await here.run() == (0, 10, 1)
        if fault == AFTER:
            await until(lambda: here.ledger.health()["ok"] is True)
            assert isinstance(await here.ledger.reserve(decided, LEASE_MS), Ended)


async def test_a_reserve_whose_caller_asks_again_by_its_id_stays_held_where_its_answer_was_lost(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        decided = replace(decision(plan(own_run_charge())), repeatable=True)
        here.faults.of["reserve"] = AFTER
        with pytest.raises(OutcomeUnknown):
            await here.ledger.reserve(decided, LEASE_MS)
        here.faults.of.clear()
        await until(lambda: here.ledger.health()["ok"] is True)
        assert isinstance(await here.ledger.reserve(decided, LEASE_MS), Hold)
        assert await here.run() == (0, 10, 1)


async def test_a_refusal_is_no_failure(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        refused = await here.ledger.reserve(decision(plan(charge(limit=1))), LEASE_MS)
        assert isinstance(refused, Refusal)
        assert here.ledger.health()["ok"] is True


async def test_a_reserve_whose_caller_is_gone_holds_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        await here.hold()

        async def ask() -> object:
            return await here.ledger.reserve(decision(plan(own_run_charge())), LEASE_MS)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(3):
            await here.ledger.expire(0)
        assert await here.run() == (0, 10, 1)


# -- debits -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, BEFORE, AFTER])
async def test_a_debit_that_must_be_recorded_is_recorded_once(fault: str | None, tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        if fault is not None:
            here.faults.of["debit"] = fault
        paid = decision(plan(own_run_charge()))
        assert isinstance(await here.ledger.debit(paid, settlement(7), Debiting.REPLAY), Settled)
        here.faults.of.clear()
        assert await here.run() == (7, 0, 1)
        record = await here.ledger.record(TENANT, paid.id)
        assert record is not None
        assert (record.state, record.ending) == (HoldState.COMMITTED, "completed")


async def test_a_debit_that_may_be_refused_is_refused_while_the_store_is_away(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        here.faults.of["debit"] = here.faults.of["extend"] = BEFORE
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await here.ledger.debit(decision(), settlement(7), Debiting.ASK)
        assert (here.faults.asked.count("debit"), here.journal.waiting) == (1, 0)


# -- a store that is away at the start, or lost -------------------------------------------------------------------------------------


async def test_a_store_that_is_away_at_the_start_is_served_when_it_comes(tmp_path: Path) -> None:
    faults, told = Faults(start=LedgerUnavailable("nobody listens there")), Told()

    def make() -> Ledger:
        real = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"), Clock(START_MS))
        return Faulty(real, faults)  # type: ignore[return-value]

    ledger = ResilientLedger(make, Journal(tmp_path / "journal"), PATIENT_MS, told)
    await ledger.start()
    assert ledger.health()["why"] == "nobody listens there"
    with pytest.raises(LedgerUnavailable):
        await ledger.reserve(decision(), LEASE_MS)
    with pytest.raises(LedgerUnavailable):
        await ledger.runs(TENANT, None, 1)
    faults.start = None
    await until(lambda: ledger.health()["ok"] is True)
    assert isinstance(await ledger.reserve(decision(), LEASE_MS), Hold)
    assert told.serving == ["nobody listens there", None]
    await ledger.close()


def deleted(folder: Path) -> None:
    for path in folder.glob("ledger.db*"):
        path.unlink()


async def test_a_lost_ledger_refuses_until_it_is_adopted_and_needs_no_restart(tmp_path: Path) -> None:
    from gateway.ledger.sqlite.ledger import adopt

    async with gateway(tmp_path) as here:
        hold = await here.hold()
        deleted(tmp_path)
        here.ledger._inner._real._store._looked_at = 0.0  # type: ignore[union-attr]  # it looks once a second
        for _ in range(3):
            with pytest.raises(LedgerLost):
                await here.ledger.reserve(decision(), LEASE_MS)
        assert str(here.ledger.health()["why"]).startswith("ledger_lost: ")
        assert await here.ledger.expire() == ()
        await commit(here.ledger, hold)
        adopt(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"))
        await until(lambda: here.ledger.health()["ok"] is True)
        assert isinstance(await here.ledger.reserve(decision(), LEASE_MS), Hold)
        await until(lambda: idle(here.journal))
        assert [what for what, _ in here.told.aside] == [hold.id], "the adopted ledger knows nothing of it"


async def test_a_ledger_that_was_lost_is_not_merely_away(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        here.faults.of["reserve"] = LOST
        here.faults.start = LedgerUnavailable("and now it is away too")
        with pytest.raises(LedgerLost):
            await here.ledger.reserve(decision(), LEASE_MS)
        await until(lambda: here.faults.closed >= 1)
        await asyncio.sleep(0.05)
        with pytest.raises(LedgerLost):
            await here.ledger.reserve(decision(), LEASE_MS)


# -- journals of the dead -----------------------------------------------------------------------------------------------------------


async def test_what_a_dead_gateway_could_not_tell_the_ledger_its_successor_does(tmp_path: Path) -> None:
    clock = Clock(START_MS)
    async with gateway(tmp_path, clock) as here:
        hold = await here.hold()
        dead = Journal(tmp_path / "journal")
        await dead.open()
        await dead.put(Commit(TENANT, hold.id, settlement()))
        assert dead._own is not None
        dead._own.let_go()
    async with gateway(tmp_path, clock) as here:
        await until(lambda: here.faults.asked.count("commit") == 1)
        assert await here.run() == (4, 0, 1)
    assert list((tmp_path / "journal").glob("*.journal")) == []


async def test_what_was_replayed_just_before_a_crash_is_known_by_its_id(tmp_path: Path) -> None:
    clock = Clock(START_MS)
    async with gateway(tmp_path, clock) as here:
        hold, paid = await here.hold(), decision(plan(own_run_charge()))
        dead = Journal(tmp_path / "journal")
        await dead.open()
        for entry in (Commit(TENANT, hold.id, settlement()), Debit(paid, settlement(7))):
            await dead.put(entry)
        assert dead._own is not None
        dead._own.let_go()
        await commit(here.ledger, hold)  # the ledger had them; nobody came to say so in the journal
        await here.ledger.debit(paid, settlement(7), Debiting.REPLAY)
    async with gateway(tmp_path, clock) as here:
        await until(lambda: here.faults.asked.count("debit") == here.faults.asked.count("commit") == 1)
        assert await here.run() == (11, 0, 2)


async def test_what_is_asked_for_at_the_very_end_is_journalled(tmp_path: Path) -> None:
    clock = Clock(START_MS)
    async with gateway(tmp_path, clock) as here:
        hold = await here.hold()
        here.faults.of["commit"] = here.faults.of["extend"] = BEFORE
        pending = commit(here.ledger, hold)
        await here.ledger.close()
        assert isinstance(await pending, Settled)
    async with gateway(tmp_path, clock) as here:
        await until(lambda: here.faults.asked.count("commit") == 1)
        assert await here.run() == (4, 0, 1)


async def test_what_operators_do_by_hand_is_refused_while_the_store_is_away_and_nothing_of_it_waits(tmp_path: Path) -> None:
    async with gateway(tmp_path) as here:
        here.faults.everywhere(BEFORE)
        for ask in (
            lambda: here.ledger.fund(account(), Fund(by=5), "act_1", "op", ""),
            lambda: here.ledger.put_document(TENANT, "a", "one", None),
            lambda: here.ledger.remember(TENANT, "n", "one", LEASE_MS),
            lambda: here.ledger.documents(TENANT),
        ):
            with pytest.raises(LedgerUnavailable):
                await ask()
        here.faults.of.clear()
        assert here.journal.waiting == 0
        assert await here.ledger.documents(TENANT) is None
        assert await here.ledger.recall(TENANT, "n") is None
        here.faults.of["fund"] = AFTER
        with pytest.raises(OutcomeUnknown):
            await here.ledger.fund(account(), Fund(by=5), "act_1", "op", "")
        here.faults.of.clear()
        again = await here.ledger.fund(account(), Fund(by=5), "act_1", "op", "")
        assert (again.outcome, again.after.balance.limit) == (Funding.REPLAYED, 5)
