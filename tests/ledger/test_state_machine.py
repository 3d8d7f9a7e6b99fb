"""The same random history through the naive model and through each store: every answer and every balance agrees, step by step.

Two ledgers share the store, as two gateways would. Steps are sent alone or several at once, so that batches of all mixtures occur. Of
several at once the answers must be those of some order: the one in which they were asked, where the store promises that.
Somewhere in a history everything may move to an empty store, of any kind, and the history goes on there.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.values import Charge, Decision, Ending, Hold, Plan, RunTerms, Slice
from gateway.core.windows import rolling
from gateway.ledger.contract import NO_MORE, Barrier, Debiting, Fund, Keep, Ledger, SetLimit
from gateway.ledger.verify import verify_ledger
from tests.ledger.builders import (
    ACTUALS,
    ADVISORY,
    HARD,
    LEASE_MS,
    START_MS,
    account,
    caller,
    charge,
    day_of,
    decision,
    plan,
    settlement,
    share_of,
)
from tests.ledger.compare import agree
from tests.ledger.model import DAY_MS, Model
from tests.support.clock import Clock
from tests.support.stores import STORES, new_store

TENANTS = ("acme", "other")
RUNS = ("r1", "r2", "r3", "top")
MODELS = ("big", "small")
BYS: tuple[tuple[str, ...], ...] = ((), ("run",), ("agent", "day"), ("model", "provider", "key"), ("team", "run", "agent"))
SCOPES: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (("run", "r2"),),
    (("key", "k1"), ("agent", "a")),
    (("agent", "b"),),
    (("agent", "a,b=c/%"),),
)
TERMS = (
    RunTerms(),
    RunTerms(),
    RunTerms(max_active=2, idle_ms=LEASE_MS),
    RunTerms(same_request=1, within_calls=3),
    RunTerms(max_active=3, same_request=2, within_calls=4),
)
KEEPS = (Keep(LEASE_MS, LEASE_MS), Keep(LEASE_MS, DAY_MS), Keep(DAY_MS, 2 * DAY_MS))
SPAN_MS = 5 * LEASE_MS

KINDS = ("own", "own", "above", "all", "day", "tokens", "calls", "model", "rolling", "speed", "credits", "risk")  # of accounts
# In the accounts of some kinds only, so that one call holds its slice here and its worst case there.
SOME_SLICED = (("own",), ("own", "day", "tokens", "credits"), ("all", "rolling", "calls"), ("model", "speed", "share"))

# What is drawn must not depend on the model: where steps go side by side, the same draws may leave it in another state.
anything = st.integers(0, 999)
amounts = st.integers(0, 40)
limits = st.none() | st.integers(0, 150)


@st.composite
def callers(draw: st.DrawFn, model: Model) -> Caller:
    """Mostly what a gateway would send: the ancestry that the ledger knows."""
    tenant, key = draw(st.sampled_from(TENANTS)), draw(st.sampled_from(("k1",) * 9 + ("k2",)))
    agent = draw(st.sampled_from(("a", "b", "a,b=c/%", None)))
    run = draw(st.sampled_from(RUNS))
    issued = draw(st.sampled_from((False, False, False, True)))
    known = model.runs_by_id.get((tenant, run))
    often = known is None or not known.placed
    named, another = draw(st.integers(1, 20)), draw(st.sampled_from(RUNS))
    parent = another if named > (13 if often else 19) else None
    of = Caller(
        tenant,
        key,
        f"{run}-issued" if issued else run,
        "shared" if issued else run,
        issued,
        (("agent", agent),) if agent else (),
        parent=parent,
        owned_by=draw(st.sampled_from(("",) * 6 + ("k1", "k2"))),
    )
    place = model.place(of)
    wrong = draw(st.integers(0, 19)) == 19
    if wrong or isinstance(place, Barrier):
        return replace(of, ancestry=(parent,) if parent else ())
    return replace(of, ancestry=place)


@st.composite
def charges(draw: st.DrawFn, who: Caller, day_at_ms: int, slicing: Collection[str]) -> tuple[Charge, ...]:
    """`slicing`: the kinds of accounts where a slice is held."""
    kind = draw(st.sampled_from((*KINDS, "share")))
    rule_ = draw(st.sampled_from((HARD, HARD, HARD, ACTUALS, ADVISORY)))
    share_ppm = draw(st.sampled_from((1_000_000, 1_000_000, 750_000, 333_333)))
    margin = draw(st.sampled_from((0, 0, 7)))
    alerts = draw(st.sampled_from(((), (500_000, 1_000_000), (800_000,))))
    pause = draw(st.sampled_from((False, False, True)))
    tenant, run = who.tenant, who.run_scope
    whole = account("all", tenant=tenant)
    if kind == "share":
        part = share_of(whole, draw(st.sampled_from((500_000, 333_333, 1_000_000))), account("part", tenant=tenant, run=run))
        return (replace(part, sliced="share" in slicing), charge(whole, draw(limits), sliced="all" in slicing))
    nth = draw(anything)
    above = who.ancestry[nth % len(who.ancestry)] if kind == "above" and who.ancestry else run
    of = {
        "own": account("run-ceiling", tenant=tenant, run=run),
        "above": account("run-ceiling", tenant=tenant, run=above),
        "all": whole,
        "day": account("agent-day", window=day_of(day_at_ms), tenant=tenant, agent=who.value("agent") or "-"),
        "tokens": account("tokens", Unit.TOKENS, tenant=tenant, run=run),
        "calls": account("steps", Unit.CALLS, tenant=tenant, run=run),
        "model": account("odd name", tenant=tenant, model="a/b,c|=%d"),
        "rolling": account("rate", window=rolling(SPAN_MS), tenant=tenant, run=run),
        "speed": account("speed", Unit.TOKENS, window=rolling(61_003), tenant=tenant),
        "credits": account("credits", Unit.CREDITS, tenant=tenant, run=run),
        "risk": account("risk", Unit.RISK_POINTS, window=rolling(SPAN_MS), tenant=tenant),
    }[kind]
    own = kind in ("own", "above")
    pause = pause and rule_ is not ADVISORY
    limit, sliced = draw(limits), ("own" if own else kind) in slicing
    one = charge(of, limit, rule_, margin=margin, own=own, share_ppm=share_ppm, alerts=alerts, pause=pause, sliced=sliced)
    return (one,)


def own_runs(charged: Collection[Charge]) -> set[str]:
    return {each.ceiling.own_run for each in charged if each.ceiling.own_run is not None}


@st.composite
def decisions(draw: st.DrawFn, now_ms: int, model: Model, plans: int = 3) -> Decision:
    who = draw(callers(model))
    day_at_ms = now_ms - DAY_MS * (draw(st.integers(0, 9)) == 9)
    ladder = []
    slicing = draw(st.sampled_from(((), (*KINDS, "share"), *SOME_SLICED)))
    # The calls of one caller share their charges, and what a store knows of those; not where the run was forgotten and stands elsewhere now.
    others = [(call.decision.call.caller, call.plan.charges) for call in model.history]
    mine = [charged for other, charged in others if (other.tenant, other.run) == (who.tenant, who.run)]
    earlier = [charged for charged in mine if own_runs(charged) <= {who.run, who.run_scope, *who.ancestry}]
    for place in range(draw(st.integers(1, plans))):
        shared, nth = draw(st.integers(0, 2)) == 2, draw(anything)
        some = draw(st.lists(charges(who, day_at_ms, slicing), min_size=1, max_size=4))
        charged = earlier[nth % len(earlier)] if earlier and shared else tuple(one for each in some for one in each)
        more = draw(st.sampled_from(((), (), (), (7, 0), (0, 11), (30, 40))))
        cost = Amounts(draw(amounts), draw(amounts), draw(st.sampled_from((1, 1, 1, 0))), *more)
        first = Slice(64, Amounts(draw(st.integers(0, cost.usd)), draw(st.integers(0, cost.tokens)), cost.calls, *more))
        has_slice = any(each.sliced for each in charged)
        ladder.append(Plan(MODELS[min(place, 1)], "lab", 256, 100, cost, charged, first if has_slice else None))
    run_limit = draw(st.sampled_from((None, None, None, 30, 60, 120)))
    fingerprint, lapses = draw(st.sampled_from(("", "f", "f", "g"))), draw(st.sampled_from((False, False, True)))
    return decision(
        *ladder, of=who, run_limit=run_limit, terms=draw(st.sampled_from(TERMS)), fingerprint=fingerprint, lapses=lapses
    )


def more_of(usd: int, tokens: int) -> tuple[int, int]:
    """Credits and risk points; mostly none, as where the calls of models are settled."""
    return (usd, tokens // 3) if tokens % 3 == 0 else (0, 0)


def check_hard_gates(model: Model, hold: Hold) -> None:
    caller = hold.decision.call.caller
    for each in hold.plan.charges:
        limit = model.limit(each, hold.plan, caller)
        amount = hold.plan.held_at(each)
        if (each.ceiling.mode, each.ceiling.basis) == HARD and limit is not None and amount:
            committed, reserved, _ = model.sums(each.ceiling.account)
            assert committed + reserved <= limit * each.share_ppm // 1_000_000 + each.ceiling.margin


AT_ONCE = 5  # so many orders can be tried
Ask = Callable[[Ledger], Awaitable[Any]]
Tell = Callable[[Model], Any]


def in_some_order(model: Model, rest: list[tuple[Any, Tell]]) -> Iterator[Model]:
    """The model after all of it, in each order that gives these answers; the order given first."""

    if not rest:
        yield model
    for place, (answer, tell) in enumerate(rest):
        after = model.copy()
        if tell(after) == answer:
            yield from in_some_order(after, rest[:place] + rest[place + 1 :])


class Machine(RuleBasedStateMachine):
    kind = "sqlite"
    holds = Bundle("holds")  # decisions that were sent to reserve or debit, whatever came of them

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(START_MS)
        self.model = Model(START_MS)
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-ledger-"))
        self.settle_in(self.kind)
        self.waiting: list[tuple[Ask, Tell]] = []
        self.at = 0
        self.moved = False
        self.asked = 0
        self.acts = 0

    def settle_in(self, kind: str) -> None:
        folder = self.folder / f"{kind}-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        self.store = new_store(kind, folder)
        self.ledgers = [self.open(), self.open()]

    def open(self) -> Ledger:
        ledger = self.store.ledger(self.clock)
        self.runner.run(ledger.start())
        return ledger

    def teardown(self) -> None:
        self.flush()
        assert self.read(lambda ledger: verify_ledger(ledger.dump())).differences == ()
        for ledger in self.ledgers:
            self.runner.run(ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def step(self, ask: Ask, tell: Tell, alone: bool = True) -> None:
        """`ask` goes to the store, `tell` to the model. `alone`: answered before the next one."""
        self.waiting.append((ask, tell))
        if alone or (len(self.waiting) == AT_ONCE and not self.store.ordered):
            self.flush()

    def flush(self) -> None:
        """Sends what waits, all at once and in order, and compares the answers."""
        waiting, self.waiting = self.waiting, []

        async def send() -> list[Any]:
            tasks = []
            for ask, _ in waiting:
                tasks.append(asyncio.ensure_future(ask(self.ledgers[self.at])))
                await asyncio.sleep(0)
            return await asyncio.gather(*tasks)

        if not waiting:
            return
        told = list(zip(self.runner.run(send()), [tell for _, tell in waiting], strict=True))
        if not self.store.ordered and len(told) > 1:
            for after in in_some_order(self.model, told):
                self.model = after
                if self.stands_where_the_store_does():  # answers alone may fit several orders
                    return
            raise AssertionError("no order of these steps gives these answers and balances")
        for answer, tell in told:
            agree(answer, tell(self.model))

    def stands_where_the_store_does(self) -> bool:
        try:
            self.balances_agree()
        except AssertionError:
            return False
        return True

    def read(self, ask: Callable[[Ledger], Awaitable[Any]]) -> Any:
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

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    @initialize(target=holds, data=st.data())
    def a_first_burst(self, data: st.DataObject) -> MultipleResults[Decision]:
        return self.reserve(data, 3, alone=False)

    # Rules are drawn evenly: what matters most stands here more than once.

    @rule(target=holds, data=st.data(), number=st.integers(1, 4))
    def some_calls(self, data: st.DataObject, number: int) -> MultipleResults[Decision]:
        return self.reserve(data, number, alone=True)

    @rule(target=holds, data=st.data(), number=st.integers(2, 6))
    def a_burst(self, data: st.DataObject, number: int) -> MultipleResults[Decision]:
        return self.reserve(data, number, alone=False)

    @rule(target=holds, data=st.data(), number=st.integers(2, 6))
    def another_burst(self, data: st.DataObject, number: int) -> MultipleResults[Decision]:
        return self.reserve(data, number, alone=False)

    def reserve(self, data: st.DataObject, number: int, alone: bool) -> MultipleResults[Decision]:
        decided = []
        for _ in range(number):
            each = data.draw(decisions(self.clock.now_ms, self.model))
            if data.draw(st.integers(0, 19)) == 19:
                self.release(each, alone)
            self.reserve_one(each, data.draw(st.sampled_from((LEASE_MS, LEASE_MS, LEASE_MS, 0))), alone)
            decided.append(each)
        return multiple(*decided)

    def release(self, decided: Decision, alone: bool) -> None:
        tenant, hold_id, ending = decided.call.caller.tenant, decided.hold_id, Ending.PROVIDER_REFUSED
        self.step(
            lambda ledger: ledger.release(tenant, hold_id, ending), lambda model: model.release(tenant, hold_id, ending), alone
        )

    def reserve_one(self, decided: Decision, lease_ms: int, alone: bool) -> None:
        def tell(model: Model) -> Any:
            known = (decided.call.caller.tenant, decided.id.removeprefix("bdg_")) in model.calls
            expected = model.reserve(decided, lease_ms)
            if isinstance(expected, Hold) and not known:
                check_hard_gates(model, expected)
            return expected

        self.asked += 1
        self.step(lambda ledger: ledger.reserve(decided, lease_ms), tell, alone)

    @rule(
        target=holds,
        data=st.data(),
        how=st.sampled_from(Debiting),
        usd=amounts,
        tokens=amounts,
        alone=st.booleans(),
        twice=st.sampled_from((False, False, True)),
    )
    def debit(self, data: st.DataObject, how: Debiting, usd: int, tokens: int, alone: bool, twice: bool) -> Decision:
        decided = data.draw(decisions(self.clock.now_ms, self.model, plans=1))
        for _ in range(1 + twice):
            self.debit_one(decided, usd, tokens, how, alone)
        return decided

    def debit_one(self, decided: Decision, usd: int, tokens: int, how: Debiting, alone: bool) -> None:
        credits_, risk_points = more_of(usd, tokens)
        what = settlement(usd, tokens, ending=Ending.DEBITED, credits=credits_, risk_points=risk_points)
        decided = replace(decided, lapses=False)
        self.step(lambda ledger: ledger.debit(decided, what, how), lambda model: model.debit(decided, what, how), alone)

    @rule(decided=holds, alone=st.booleans(), usd=amounts, tokens=amounts)
    def commit(self, decided: Decision, alone: bool, usd: int, tokens: int) -> None:
        self.touch(decided, "commit", usd, tokens, alone)

    @rule(
        decided=holds,
        other=holds,
        kind=st.sampled_from(("reserve", "commit", "commit", "release", "release", "extend", "extend", "settle", "debit")),
        usd=st.none() | amounts,
        tokens=amounts,
        alone=st.booleans(),
        twice=st.sampled_from((False, False, True)),
        changed=st.sampled_from((False, False, False, True)),
        sliced=st.none() | st.builds(Amounts, amounts, amounts, st.just(0)),
    )
    def touch_holds(
        self,
        decided: Decision,
        other: Decision,
        kind: str,
        usd: int | None,
        tokens: int,
        alone: bool,
        twice: bool,
        changed: bool,
        sliced: Amounts | None,
    ) -> None:
        for each in (decided, other):
            for _ in range(1 + twice):
                self.touch(each, kind, usd, tokens, alone, changed, sliced)

    def touch(
        self,
        decided: Decision,
        kind: str,
        usd: int | None,
        tokens: int,
        alone: bool,
        changed: bool = False,
        sliced: Amounts | None = None,
    ) -> None:
        tenant, hold_id = decided.call.caller.tenant, decided.hold_id
        more = more_of(usd or 0, tokens)
        what = settlement(usd or 0, tokens, credits=more[0], risk_points=more[1])
        held = None if usd is None else Amounts(usd, tokens, 0, *more)
        if kind == "reserve":
            asked = replace(decided, call=replace(decided.call, fingerprint="another")) if changed else decided
            self.reserve_one(asked, LEASE_MS, alone)
        elif kind == "commit":
            self.step(
                lambda ledger: ledger.commit(tenant, hold_id, what), lambda model: model.commit(tenant, hold_id, what), alone
            )
        elif kind == "release":
            self.release(decided, alone)
        elif kind == "extend":
            lease_ms = None if tokens % 4 == 0 else LEASE_MS
            first = decided.ladder[0].charges[tokens % len(decided.ladder[0].charges)].ceiling.account
            over = {first.key: tokens, "never|seen|lifetime|usd": 5} if tokens % 2 else NO_MORE
            self.step(
                lambda ledger: ledger.extend(tenant, hold_id, lease_ms, held, sliced, over),
                lambda model: model.extend(tenant, hold_id, lease_ms, held, sliced, over),
                alone,
            )
        elif kind == "settle":
            self.flush()
            self.step(
                lambda ledger: ledger.settle(tenant, hold_id, usd, "op", "said so"),
                lambda model: model.settle(tenant, hold_id, usd, "op", "said so"),
            )
        elif len(decided.ladder) == 1:
            self.debit_one(decided, usd or 0, tokens, Debiting.ASK, alone)

    @rule(at_most=st.sampled_from((1, 3, 100)))
    def expire(self, at_most: int) -> None:
        self.flush()
        due = self.model.due()
        expired = self.read(lambda ledger: ledger.expire(at_most))
        assert len(expired) == min(at_most, len(due))
        assert {each.hold_id for each in expired} <= set(due)
        agree(list(expired), [self.model.expire(each.hold_id) for each in expired])

    @rule(decided=holds, other=holds, kind=st.sampled_from(("commit", "release", "settle")), usd=amounts, tokens=amounts)
    def its_gateway_is_killed(self, decided: Decision, other: Decision, kind: str, usd: int, tokens: int) -> None:
        """Its holds expire; somebody knows afterwards what some of them cost."""
        self.time_passes(LEASE_MS)
        self.expire(100)
        for each in (decided, other):
            self.touch(each, kind, usd, tokens, alone=True)

    # -- operators ------------------------------------------------------------------------------------------------------------

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
        self.step(
            lambda ledger: ledger.set_limit(tenant, run, owner, change), lambda model: model.set_limit(tenant, run, owner, change)
        )

    @rule(
        tenant=st.sampled_from(TENANTS),
        run=st.sampled_from((*RUNS, "r1-issued", "never seen")),
        what=st.sampled_from(("stop", "pause", "pause", "resume", "resume")),
        who=st.sampled_from(("op", "other op")),
    )
    def rule_a_run(self, tenant: str, run: str, what: str, who: str) -> None:
        self.flush()
        self.step(
            lambda ledger: getattr(ledger, what)(tenant, run, who, "enough"),
            lambda model: getattr(model, what)(tenant, run, who, "enough"),
        )

    @rule(tenant=st.sampled_from(TENANTS), scope=st.sampled_from(SCOPES), what=st.sampled_from(("freeze", "thaw", "thaw")))
    def rule_a_scope(self, tenant: str, scope: tuple[tuple[str, str], ...], what: str) -> None:
        self.flush()
        self.step(
            lambda ledger: getattr(ledger, what)(tenant, scope, "op", "a leak"),
            lambda model: getattr(model, what)(tenant, scope, "op", "a leak"),
        )
        assert self.read(lambda ledger: ledger.frozen(tenant)) == self.model.frozen(tenant)

    def an_account(self, data: st.DataObject) -> tuple[str, str]:
        never = account("never", tenant=data.draw(st.sampled_from(TENANTS)))
        accounts = [*self.model.accounts(), never]
        of: Account = accounts[data.draw(anything) % len(accounts)]
        return of.tenant, of.key

    @rule(
        data=st.data(),
        what=st.sampled_from(("limit", "adjust", "adjust", "reset")),
        amount=st.integers(-60, 60).filter(bool),
        limit=limits,
        same_id=st.sampled_from((False, False, True)),
    )
    def rule_an_account(self, data: st.DataObject, what: str, amount: int, limit: int | None, same_id: bool) -> None:
        self.flush()
        tenant, key = self.an_account(data)
        if what == "limit":
            self.step(
                lambda ledger: ledger.set_account_limit(tenant, key, limit, "op", "asked for"),
                lambda model: model.set_account_limit(tenant, key, limit, "op", "asked for"),
            )
        elif what == "reset":
            self.step(
                lambda ledger: ledger.reset(tenant, key, "op", "a new start"),
                lambda model: model.reset(tenant, key, "op", "a new start"),
            )
        else:
            self.acts += not same_id
            act_id = f"act-{self.acts}"
            self.step(
                lambda ledger: ledger.adjust(tenant, key, amount, act_id, "op", "the bill"),
                lambda model: model.adjust(tenant, key, amount, act_id, "op", "the bill"),
            )

    @rule(
        data=st.data(),
        fresh=st.booleans(),
        by=st.integers(-60, 120),
        to=st.none() | st.integers(0, 150),
        spent=st.sampled_from((None, None, 0, 30)),
        at_least_free=st.booleans(),
        same_id=st.sampled_from((False, False, True)),
        alone=st.booleans(),
    )
    def fund(
        self,
        data: st.DataObject,
        fresh: bool,
        by: int,
        to: int | None,
        spent: int | None,
        at_least_free: bool,
        same_id: bool,
        alone: bool,
    ) -> None:
        known = [each for each in self.model.accounts() if not each.window.span_ms]
        tenant, nth = data.draw(st.sampled_from(TENANTS)), data.draw(anything)
        of = account("all" if nth % 2 else "made", tenant=tenant) if fresh or not known else known[nth % len(known)]
        change = Fund(0 if to is not None else by, to, spent, at_least_free)
        self.acts += not same_id
        act_id = f"act-{self.acts}"
        self.step(
            lambda ledger: ledger.fund(of, change, act_id, "op", "a grant"),
            lambda model: model.fund(of, change, act_id, "op", "a grant"),
            alone,
        )

    @rule(
        tenant=st.sampled_from(TENANTS),
        name=st.sampled_from(("a", "b/ü")),
        text=st.sampled_from((None, "1", "2")),
        expected=st.sampled_from((None, "1", "2")),
        keep_ms=st.sampled_from((0, LEASE_MS)),
        alone=st.booleans(),
    )
    def write_down(self, tenant: str, name: str, text: str | None, expected: str | None, keep_ms: int, alone: bool) -> None:
        before = None if self.waiting else self.read(lambda ledger: ledger.documents(tenant, -1))
        self.step(
            lambda ledger: ledger.put_document(tenant, name, text, expected),
            lambda model: model.put_document(tenant, name, text, expected),
            alone,
        )
        told = text or "nothing"
        self.step(
            lambda ledger: ledger.remember(tenant, name, told, keep_ms),
            lambda model: model.remember(tenant, name, told, keep_ms),
            alone,
        )
        if not self.waiting:
            now = self.read(lambda ledger: ledger.documents(tenant, -1))
            assert now.texts == self.model.documents(tenant)
            assert self.read(lambda ledger: ledger.documents(tenant, now.number)) is None
            assert before is None or (before.number == now.number) == (before.texts == now.texts)
            assert self.read(lambda ledger: ledger.recall(tenant, name)) == self.model.recall(tenant, name)

    # -- reading --------------------------------------------------------------------------------------------------------------

    @rule(
        decided=holds,
        what=st.sampled_from(("record", "record", "lists", "accounts and acts", "spend")),
        run=st.sampled_from((None, *RUNS)),
        by=st.sampled_from(BYS),
        days=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        owner=st.sampled_from((None, "k1", "k2")),
    )
    def read_something(
        self, decided: Decision, what: str, run: str | None, by: tuple[str, ...], days: tuple[int, int], owner: str | None
    ) -> None:
        self.flush()
        tenant = decided.call.caller.tenant
        if what == "record":
            self.read_a_record(decided)
        elif what == "lists":
            self.read_lists(tenant, owner, run)
        elif what == "spend":
            self.read_spend(tenant, by, days, owner)
        else:
            self.read_accounts_and_acts(tenant)

    def read_a_record(self, decided: Decision) -> None:
        tenant = decided.call.caller.tenant
        found = self.read(lambda ledger: ledger.record(tenant, decided.id))
        agree(replace(found, inputs={}) if found else None, self.model.record(tenant, decided.id))
        if found is not None:
            assert found.inputs.get("fingerprint", "") == self.model.fingerprint(tenant, decided.id)

    def read_lists(self, tenant: str, owner: str | None, run: str | None) -> None:
        views = self.read(lambda ledger: ledger.runs(tenant, owner, 100))
        agree(list(views), self.model.runs(tenant, owner))
        assert self.in_pages(tenant, owner) == [view.run for view in views]
        found = self.read(lambda ledger: ledger.holds(tenant, run, 100))
        assert [record.decision_id for record in found] == self.model.holds(tenant, run)
        expected = self.model.leases(tenant)
        leases = self.read(lambda ledger: ledger.leases(tenant, 100))
        assert [record.decision_id for record in leases] == expected
        agree([replace(record, inputs={}) for record in leases], [self.model.record(tenant, each) for each in expected])
        for at, each in enumerate(expected[:2]):
            page = self.read(lambda ledger, each=each: ledger.leases(tenant, 2, each))
            assert [record.decision_id for record in page] == expected[at + 1 : at + 3]
        callers = [decided.call.caller for decided in (call.decision for call in self.model.calls.values())]
        mine = [caller for caller in callers if caller.tenant == tenant]
        assert list(self.read(lambda ledger: ledger.halted(tenant, mine))) == self.model.halted(tenant, mine)

    def in_pages(self, tenant: str, owner: str | None) -> list[str]:
        async def read(ledger: Ledger) -> list[str]:
            names: list[str] = []
            while page := await ledger.runs(tenant, owner, 2, names[-1] if names else None):
                names += [view.run for view in page]
            return names

        return list(self.read(read))

    def read_accounts_and_acts(self, tenant: str) -> None:
        for each in self.model.ever():
            if each.tenant == tenant:
                key = each.key
                agree(self.read(lambda ledger, key=key: ledger.account(tenant, key)), self.model.account(tenant, key))
        acts = self.read(lambda ledger: ledger.acts(tenant, 1_000))
        expected = self.model.acts_of(tenant)
        agree([replace(act, id="") for act in acts], [replace(act, id="") for act in expected])
        assert all(act.id == known.id for act, known in zip(acts, expected, strict=True) if known.id)
        assert len({act.id for act in acts}) == len(acts)
        if len(acts) > 1:
            assert list(self.read(lambda ledger: ledger.acts(tenant, 1_000, acts[0].id))) == list(acts[1:])

    def read_spend(self, tenant: str, by: tuple[str, ...], days: tuple[int, int], owner: str | None) -> None:
        from_ms, to_ms = START_MS + min(days) * DAY_MS, START_MS + (max(days) + 1) * DAY_MS
        found = self.read(lambda ledger: ledger.spend(tenant, by, from_ms, to_ms, owner))
        agree(list(found), self.model.spend(tenant, by, from_ms, to_ms, owner))

    # -- keeping --------------------------------------------------------------------------------------------------------------

    @rule(keep=st.sampled_from(KEEPS), at_most=st.sampled_from((2, 1_000)), sweep=st.booleans())
    def keep_house(self, keep: Keep, at_most: int, sweep: bool) -> None:
        self.flush()
        may_go = self.model.aged(keep)
        aged = self.read(lambda ledger: ledger.aged(keep, at_most))
        found = [(record.tenant, record.decision_id) for record in aged]
        assert len(found) == min(at_most, len(may_go))
        assert set(found) <= set(may_go)
        agree([replace(record, inputs={}) for record in aged], [self.model.record(*where) for where in found])
        for tenant in TENANTS:
            kept = [call.decision.id for (where, _), call in self.model.calls.items() if where == tenant][:2]
            ids = [decision_id for where, decision_id in found if where == tenant] + kept
            number = self.model.retire(tenant, ids, keep)
            assert self.read(lambda ledger, tenant=tenant, ids=ids: ledger.retire(tenant, ids, keep)) == number
        if sweep:
            self.sweep(keep)

    def sweep(self, keep: Keep) -> None:
        async def all_of_it(ledger: Ledger) -> None:
            for _ in range(1_000):
                if not await ledger.sweep(keep, 10):
                    return
            raise AssertionError("there is always more to remove")

        self.read(all_of_it)
        self.model.sweep(keep)

    @precondition(lambda self: not self.moved and self.asked > 8)
    @rule(kind=st.sampled_from(STORES), really=st.sampled_from((False, True)))
    def move_house(self, kind: str, really: bool) -> None:
        self.flush()
        if not really:
            return
        before = self.ledgers
        self.moved = True
        rows = self.read(lambda ledger: _all(ledger.dump()))
        for ledger in before:
            self.runner.run(ledger.close())
        self.settle_in(kind)
        assert self.read(lambda ledger: ledger.load(_each(rows))) == len(rows)

    # -- always ---------------------------------------------------------------------------------------------------------------

    @invariant()
    def balances_agree(self) -> None:
        if self.waiting:
            return

        async def read(ledger: Ledger) -> None:
            for tenant in TENANTS:
                known = [each for each in self.model.ever() if each.tenant == tenant]
                found = await ledger.balances(tenant, known)
                agree(list(found), [self.model.plain_balance(each) for each in known])
            views = await asyncio.gather(*(ledger.run(*where) for where in self.model.runs_by_id))
            agree(views, [self.model.run(*where) for where in self.model.runs_by_id])

        self.read(read)


async def _all(rows: Any) -> list[Any]:
    return [row async for row in rows]


async def _each(rows: list[Any]) -> Any:
    for row in rows:
        yield row


def run_machine(
    kind: str, examples: int, steps: int, phases: Collection[Phase] = tuple(Phase), machine: type[Machine] = Machine
) -> None:
    run_state_machine_as_test(
        type(f"{machine.__name__}Over{kind.title()}", (machine,), {"kind": kind}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_no_ceiling_is_drawn_as_the_own_of_a_run_that_the_caller_is_not_below(data: st.DataObject) -> None:
    model = Model(START_MS)
    for tenant, run in itertools.product(TENANTS, RUNS[:-1]):
        below_top = caller(run, tenant=tenant, parent="top")
        charged = [charge(account("run-ceiling", tenant=tenant, run=name), own=True) for name in (run, "top")]
        assert isinstance(model.reserve(decision(plan(*charged), of=below_top), LEASE_MS), Hold)
    model.runs_by_id.clear()  # forgotten: each may begin anew, as a root or below another
    decided = data.draw(decisions(START_MS, model))
    who = decided.call.caller
    for each in decided.ladder:
        assert own_runs(each.charges) <= {who.run, who.run_scope, *who.ancestry}


@pytest.mark.parametrize("kind", STORES)
def test_model_and_store_agree_on_random_histories(kind: str) -> None:
    run_machine(kind, examples=25, steps=25, phases=(Phase.reuse, Phase.generate))  # shrinking takes minutes: the deep test's


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", STORES)
def test_model_and_store_agree_on_many_long_random_histories(kind: str) -> None:
    run_machine(kind, examples=2_000, steps=25)
