"""The same random history through the naive model and through SQLite: every answer and every balance agrees, step by step.

Two ledgers share the file, as two gateways would. Steps are sent alone or several at once, so that batches of all mixtures occur.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gateway.core.scopes import Amounts, Caller, Unit
from gateway.core.values import Charge, Decision, Ending, Hold, Plan
from gateway.ledger.contract import SetLimit
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.builders import ACTUALS, ADVISORY, HARD, LEASE_MS, START_MS, account, charge, day_of, decision, settlement
from tests.ledger.model import DAY_MS, Model
from tests.support.clock import Clock

TENANTS = ("acme", "other")
RUNS = ("r1", "r2")
MODELS = ("big", "small")
BYS: tuple[tuple[str, ...], ...] = ((), ("run",), ("agent", "day"), ("model", "provider", "key"), ("team", "run", "agent"))

amounts = st.integers(0, 40)
limits = st.none() | st.integers(0, 150)
callers = st.builds(
    lambda tenant, run, key, issued, agent: Caller(
        tenant, key, f"{run}-issued" if issued else run, "shared" if issued else run, issued, (("agent", agent),) if agent else ()
    ),
    st.sampled_from(TENANTS),
    st.sampled_from(RUNS),
    st.sampled_from(("k1",) * 9 + ("k2",)),
    st.booleans(),
    st.sampled_from(("a", "b", None)),
)


@st.composite
def charges(draw: st.DrawFn, who: Caller, day_at_ms: int) -> Charge:
    kind = draw(st.sampled_from(("own", "own", "all", "day", "tokens", "calls", "model")))
    rule_ = draw(st.sampled_from((HARD, HARD, HARD, ACTUALS, ADVISORY)))
    share_ppm = draw(st.sampled_from((1_000_000, 1_000_000, 750_000, 333_333)))
    margin = draw(st.sampled_from((0, 0, 7)))
    alerts = draw(st.sampled_from(((), (500_000, 1_000_000), (800_000,))))
    of = {
        "own": account("run-ceiling", tenant=who.tenant, run=who.run_scope),
        "all": account("all", tenant=who.tenant),
        "day": account("agent-day", window=day_of(day_at_ms), tenant=who.tenant, agent=who.value("agent") or "-"),
        "tokens": account("tokens", Unit.TOKENS, tenant=who.tenant, run=who.run_scope),
        "calls": account("steps", Unit.CALLS, tenant=who.tenant, run=who.run_scope),
        "model": account("odd name", tenant=who.tenant, model="a/b,c|=%d"),
    }[kind]
    return charge(of, draw(limits), rule_, margin=margin, own=kind == "own", share_ppm=share_ppm, alerts=alerts)


@st.composite
def decisions(draw: st.DrawFn, now_ms: int) -> Decision:
    who = draw(callers)
    day_at_ms = now_ms - DAY_MS * (draw(st.integers(0, 9)) == 9)
    ladder = []
    for place in range(draw(st.integers(1, 3))):
        charged = tuple(draw(st.lists(charges(who, day_at_ms), min_size=1, max_size=4)))
        cost = Amounts(draw(amounts), draw(amounts), draw(st.sampled_from((1, 1, 1, 0))))
        ladder.append(Plan(MODELS[min(place, 1)], "lab", 256, 100, cost, charged))
    run_limit = draw(st.sampled_from((None, None, None, 30, 60, 120)))
    return decision(*ladder, of=who, run_limit=run_limit)


class Machine(RuleBasedStateMachine):
    holds = Bundle("holds")  # decisions that were sent to reserve, whatever came of them

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(START_MS)
        self.model = Model(START_MS)
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-ledger-"))
        self.ledgers = [self.open(), self.open()]
        self.waiting: list[tuple[Callable[[SqliteLedger], Awaitable[Any]], Any]] = []
        self.at = 0

    def open(self) -> SqliteLedger:
        ledger = SqliteLedger(str(self.folder / "ledger.db"), Witness(self.folder / "witness"), self.clock)
        self.runner.run(ledger.start())
        return ledger

    def teardown(self) -> None:
        self.flush()
        for ledger in self.ledgers:
            self.runner.run(ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def step(self, ask: Callable[[SqliteLedger], Awaitable[Any]], expected: Any, alone: bool = True) -> None:
        self.waiting.append((ask, expected))
        if alone:
            self.flush()

    def flush(self) -> None:
        """Sends what waits, all at once and in order, and compares the answers."""

        async def send() -> list[Any]:
            tasks = []
            for ask, _ in self.waiting:
                tasks.append(asyncio.ensure_future(ask(self.ledgers[self.at])))
                await asyncio.sleep(0)
            return await asyncio.gather(*tasks)

        for answer, (_, expected) in zip(self.runner.run(send()), self.waiting, strict=True):
            assert answer == expected
        self.waiting = []

    def read(self, ask: Callable[[SqliteLedger], Awaitable[Any]]) -> Any:
        async def send() -> Any:
            return await ask(self.ledgers[self.at])

        return self.runner.run(send())

    # -- the world ------------------------------------------------------------------------------------------------------------

    @rule(by_ms=st.sampled_from((1, LEASE_MS // 2, LEASE_MS, LEASE_MS * 3, DAY_MS)))
    def time_passes(self, by_ms: int) -> None:
        self.flush()
        self.clock.now_ms += by_ms
        self.model.now_ms += by_ms

    @rule(restart=st.sampled_from((False, False, False, True)))
    def another_gateway_is_asked(self, restart: bool) -> None:
        self.flush()
        if restart:
            self.runner.run(self.ledgers[self.at].close())
            self.ledgers[self.at] = self.open()
        self.at = 1 - self.at

    # -- steps ----------------------------------------------------------------------------------------------------------------

    @initialize(target=holds, data=st.data())
    def a_first_burst(self, data: st.DataObject) -> MultipleResults[Decision]:
        return self.reserve(data, 3, alone=False)

    @rule(target=holds, data=st.data(), number=st.integers(1, 4), alone=st.booleans())
    def a_burst(self, data: st.DataObject, number: int, alone: bool) -> MultipleResults[Decision]:
        return self.reserve(data, number, alone)

    def reserve(self, data: st.DataObject, number: int, alone: bool) -> MultipleResults[Decision]:
        decided = data.draw(st.lists(decisions(self.clock.now_ms), min_size=number, max_size=number))
        for each in decided:
            if data.draw(st.integers(0, 19)) == 19:
                self.release(each, alone)
            self.reserve_one(each, data.draw(st.sampled_from((LEASE_MS, LEASE_MS, LEASE_MS, 0))), alone)
        return multiple(*decided)

    def release(self, decided: Decision, alone: bool) -> None:
        tenant, hold_id, ending = decided.call.caller.tenant, decided.hold_id, Ending.PROVIDER_REFUSED
        self.step(lambda ledger: ledger.release(tenant, hold_id, ending), self.model.release(tenant, hold_id, ending), alone)

    def reserve_one(self, decided: Decision, lease_ms: int, alone: bool) -> None:
        known = (decided.call.caller.tenant, decided.id.removeprefix("bdg_")) in self.model.calls
        expected = self.model.reserve(decided, lease_ms)
        if isinstance(expected, Hold) and not known:
            self.check_hard_gates(expected)
        self.step(lambda ledger: ledger.reserve(decided, lease_ms), expected, alone)

    def check_hard_gates(self, hold: Hold) -> None:
        run = self.model.runs_by_id[hold.decision.call.caller.tenant, hold.decision.call.caller.run]
        for each in hold.plan.charges:
            limit = self.model.limit(each, run)
            amount = hold.plan.cost_max.of(each.ceiling.account.unit)
            if (each.ceiling.mode, each.ceiling.basis) == HARD and limit is not None and amount:
                committed, reserved, _ = self.model.sums(each.ceiling.account)
                assert committed + reserved <= limit * each.share_ppm // 1_000_000 + each.ceiling.margin

    @rule(
        decided=holds,
        kind=st.sampled_from(("reserve", "commit", "commit", "commit", "release", "extend", "extend", "settle")),
        usd=st.none() | amounts,
        tokens=amounts,
        alone=st.booleans(),
        twice=st.sampled_from((False, False, True)),
    )
    def touch_a_hold(self, decided: Decision, kind: str, usd: int | None, tokens: int, alone: bool, twice: bool) -> None:
        tenant, hold_id = decided.call.caller.tenant, decided.hold_id
        what = settlement(usd or 0, tokens)
        more = None if usd is None else Amounts(usd, tokens, 0)
        for _ in range(1 + twice):
            if kind == "reserve":
                self.reserve_one(decided, LEASE_MS, alone)
            elif kind == "commit":
                committed = self.model.commit(tenant, hold_id, what)
                self.step(lambda ledger: ledger.commit(tenant, hold_id, what), committed, alone)
            elif kind == "release":
                self.release(decided, alone)
            elif kind == "extend":
                done = self.model.extend(tenant, hold_id, LEASE_MS, more)
                self.step(lambda ledger: ledger.extend(tenant, hold_id, LEASE_MS, more), done, alone)
            else:
                settled = self.model.settle(tenant, hold_id, usd, "op", "said so")
                self.step(lambda ledger: ledger.settle(tenant, hold_id, usd, "op", "said so"), settled, alone)

    @rule(at_most=st.sampled_from((1, 3, 100)), alone=st.booleans())
    def expire(self, at_most: int, alone: bool) -> None:
        self.step(lambda ledger: ledger.expire(at_most), self.model.expire(at_most), alone)

    @rule(
        tenant=st.sampled_from(TENANTS),
        run=st.sampled_from(RUNS),
        owner=st.sampled_from(("k1", "k2", "")),
        limit=st.integers(0, 150),
        by_admin=st.booleans(),
    )
    def set_limit(self, tenant: str, run: str, owner: str, limit: int, by_admin: bool) -> None:
        self.flush()
        change = SetLimit(limit, by_admin, "someone")
        owner = owner if by_admin else owner or "k1"
        expected = self.model.set_limit(tenant, run, owner, change)
        self.step(lambda ledger: ledger.set_limit(tenant, run, owner, change), expected)

    @rule(tenant=st.sampled_from(TENANTS), run=st.sampled_from(RUNS), really=st.sampled_from((True, False, False)))
    def stop(self, tenant: str, run: str, really: bool) -> None:
        self.flush()
        if really:
            self.step(
                lambda ledger: ledger.stop(tenant, run, "someone", "enough"), self.model.stop(tenant, run, "someone", "enough")
            )
        stopped = frozenset(name for name in RUNS if (row := self.model.runs_by_id.get((tenant, name))) and row.stopped)
        assert self.read(lambda ledger: ledger.stopped(tenant, (*RUNS, "never seen"))) == stopped

    # -- reading --------------------------------------------------------------------------------------------------------------

    @rule(decided=holds)
    def read_a_record(self, decided: Decision) -> None:
        self.flush()
        tenant = decided.call.caller.tenant
        found = self.read(lambda ledger: ledger.record(tenant, decided.id))
        assert (replace(found, inputs={}) if found else None) == self.model.record(tenant, decided.id)

    @rule(tenant=st.sampled_from(TENANTS), owner=st.sampled_from((None, "k1", "k2")), run=st.sampled_from((None, *RUNS)))
    def read_lists(self, tenant: str, owner: str | None, run: str | None) -> None:
        self.flush()
        names = [view.run for view in self.read(lambda ledger: ledger.runs(tenant, owner, 100))]
        assert names == self.model.runs(tenant, owner)
        assert self.in_pages(tenant, owner) == names
        found = self.read(lambda ledger: ledger.holds(tenant, run, 100))
        assert [record.decision_id for record in found] == self.model.holds(tenant, run)

    def in_pages(self, tenant: str, owner: str | None) -> list[str]:
        async def read(ledger: SqliteLedger) -> list[str]:
            names: list[str] = []
            while page := await ledger.runs(tenant, owner, 2, names[-1] if names else None):
                names += [view.run for view in page]
            return names

        return list(self.read(read))

    @rule(
        tenant=st.sampled_from(TENANTS),
        by=st.sampled_from(BYS),
        days=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        owner=st.sampled_from((None, "k1")),
    )
    def read_spend(self, tenant: str, by: tuple[str, ...], days: tuple[int, int], owner: str | None) -> None:
        self.flush()
        from_ms, to_ms = START_MS + min(days) * DAY_MS, START_MS + (max(days) + 1) * DAY_MS
        found = self.read(lambda ledger: ledger.spend(tenant, by, from_ms, to_ms, owner))
        assert found == self.model.spend(tenant, by, from_ms, to_ms, owner)

    # -- always ---------------------------------------------------------------------------------------------------------------

    @invariant()
    def balances_agree(self) -> None:
        if self.waiting:
            return

        async def read(ledger: SqliteLedger) -> None:
            for tenant in TENANTS:
                known = [each for each in self.model.accounts() if each.tenant == tenant]
                found = await ledger.balances(tenant, known)
                assert list(found) == [self.model.plain_balance(each) for each in known]
            for tenant, run in self.model.runs_by_id:
                assert await ledger.run(tenant, run) == self.model.run(tenant, run)

        self.read(read)


def run_machine(examples: int, steps: int, phases: Collection[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )


def test_model_and_sqlite_agree_on_random_histories() -> None:
    run_machine(examples=60, steps=25, phases=(Phase.reuse, Phase.generate))  # shrinking takes minutes: the deep test's


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_model_and_sqlite_agree_on_many_long_random_histories() -> None:
    run_machine(examples=1500, steps=60)
