"""What a ledger should answer, written as naively as possible: every balance is a sum over every call there ever was.

Shares nothing with the implementations but the contract and the records of core. One instance is all tenants.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.core.scopes import NO_VALUE, Account, Amounts
from gateway.core.values import Balance, Basis, Charge, Decision, Ending, Hold, Mode, Outcome, Plan, Usage, UsageSource
from gateway.ledger.contract import (
    Alert,
    CallRecord,
    Ended,
    Expired,
    HoldState,
    Refusal,
    Reserved,
    RunRefusal,
    RunState,
    RunView,
    SetLimit,
    Settled,
    Settlement,
    SpendRow,
    Stale,
)

NOTHING = Amounts(0, 0, 0)
RING = 32
DAY_MS = 24 * 60 * 60 * 1000


def plus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(one.usd + other.usd, one.tokens + other.tokens, one.calls + other.calls)


@dataclass
class _Call:
    decision: Decision
    plan: Plan
    outcome: Outcome
    at_ms: int
    lease_ms: int
    held: Amounts
    state: HoldState = HoldState.LIVE
    charged: Amounts = NOTHING
    usage: Usage | None = None
    ending: str | None = None

    @property
    def accounts(self) -> list[Account]:
        return list(dict.fromkeys(charge.ceiling.account for charge in self.plan.charges))

    @property
    def run(self) -> str:
        return self.decision.call.caller.run


@dataclass
class _Run:
    owner: str
    first_ms: int
    last_ms: int
    stopped: bool = False
    limit: int | None = None
    raised: bool = False
    asked: int | None = None
    latest: _Call | None = None


@dataclass
class Model:
    now_ms: int
    calls: dict[tuple[str, str], _Call] = field(default_factory=dict)
    tombstones: set[tuple[str, str]] = field(default_factory=set)
    runs_by_id: dict[tuple[str, str], _Run] = field(default_factory=dict)
    rings: dict[tuple[str, str], list[tuple[str, Decision, int]]] = field(default_factory=dict)
    fired: dict[Account, int] = field(default_factory=dict)
    acts: list[tuple[str, str, str]] = field(default_factory=list)

    # -- sums -----------------------------------------------------------------------------------------------------------------

    def sums(self, account: Account) -> tuple[int, int, int]:
        """committed, reserved, unconfirmed"""
        committed = reserved = unconfirmed = 0
        for call in self.calls.values():
            if account in call.accounts:
                if call.state is HoldState.LIVE:
                    reserved += call.held.of(account.unit)
                committed += call.charged.of(account.unit)
                if call.state is HoldState.EXPIRED:
                    unconfirmed += call.charged.of(account.unit)
        return committed, reserved, unconfirmed

    def accounts(self) -> set[Account]:
        return {account for call in self.calls.values() for account in call.accounts}

    def limit(self, charge: Charge, run: _Run | None) -> int | None:
        policy = charge.ceiling.limit
        if not charge.ceiling.own or run is None or run.limit is None:
            return policy
        return run.limit if run.raised or policy is None else min(policy, run.limit)

    def balance(self, charge: Charge, run: _Run | None) -> Balance:
        account = charge.ceiling.account
        return Balance(account, self.limit(charge, run), *self.sums(account), mode=charge.ceiling.mode)

    def balances_of(self, plan: Plan, run: _Run | None) -> tuple[Balance, ...]:
        found: dict[Account, Balance] = {}
        for charge in plan.charges:
            found.setdefault(charge.ceiling.account, self.balance(charge, run))
        return tuple(found.values())

    def room(self, charge: Charge, amount: int, run: _Run | None) -> bool:
        limit = self.limit(charge, run)
        if limit is None or amount == 0:
            return True
        committed, reserved, _ = self.sums(charge.ceiling.account)
        ceiling = limit * charge.share_ppm // 1_000_000 + charge.ceiling.margin
        if charge.ceiling.basis is Basis.COMMITTED:
            return committed < ceiling
        return reserved + committed + amount <= ceiling

    def fits(self, charge: Charge, amount: int, run: _Run | None) -> bool:
        return charge.ceiling.basis is Basis.NONE or self.room(charge, amount, run)

    # -- steps ----------------------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Reserved:
        caller = decision.call.caller
        where = (caller.tenant, decision.id.removeprefix("bdg_"))
        if where in self.tombstones:
            return Ended(HoldState.RELEASED)
        if where in self.calls:
            call = self.calls[where]
            if call.state is not HoldState.LIVE:
                return Ended(call.state)
            warnings = self._warnings(call.plan, call.held, caller.tenant, caller.run, already=True)
            run = self.runs_by_id[caller.tenant, caller.run]
            return Hold(decision, call.plan, self.balances_of(call.plan, run), call.lease_ms, warnings)
        known = self.runs_by_id.get((caller.tenant, caller.run))
        if known and known.owner and known.owner != caller.key:
            return Stale(self.now_ms, known.owner)
        if known and known.stopped:
            self._ring(decision)
            return RunRefusal(decision, RunState.STOPPED)
        windows = [charge.ceiling.account.window for plan in decision.ladder for charge in plan.charges]
        if not all(window.start_ms <= self.now_ms < window.end_ms for window in windows):
            return Stale(self.now_ms, caller.key)
        run = known or _Run(caller.key, self.now_ms, self.now_ms)
        asked = decision.call.directives.run_limit
        before = (run.limit, run.asked, run.owner, run.last_ms)
        if asked is not None and asked != run.asked:
            run.limit = asked if run.limit is None else min(run.limit, asked)
            run.asked = asked
        run.owner = caller.key
        run.last_ms = self.now_ms
        blocking: list[Balance] = []
        for plan in decision.ladder:
            full = [c for c in plan.charges if not self.fits(c, plan.cost_max.of(c.ceiling.account.unit), run)]
            if not full:
                self.runs_by_id[caller.tenant, caller.run] = run
                return self._hold(decision, plan, run, lease_ms)
            blocking.append(self.balance(full[0], run))
        balances: dict[Account, Balance] = {}
        for plan in decision.ladder:
            for balance in self.balances_of(plan, run):
                balances.setdefault(balance.account, balance)
        self._ring(decision)
        if caller.run_issued:
            run.limit, run.asked, run.owner, run.last_ms = before
        else:
            self.runs_by_id[caller.tenant, caller.run] = run
        return Refusal(decision, tuple(blocking), tuple(balances.values()))

    def _ring(self, decision: Decision) -> None:
        caller = decision.call.caller
        ring = self.rings.setdefault((caller.tenant, caller.run_scope), [])
        ring.append((decision.id, decision, self.now_ms))
        del ring[:-RING]

    def _hold(self, decision: Decision, plan: Plan, run: _Run, lease_ms: int) -> Hold:
        caller = decision.call.caller
        until = self.now_ms + lease_ms
        warnings = self._warnings(plan, plan.cost_max, caller.tenant, caller.run, already=False)
        call = _Call(decision, plan, Outcome.ALLOW, self.now_ms, until, plan.cost_max)
        self.calls[caller.tenant, decision.id.removeprefix("bdg_")] = call
        run.latest = call
        now_so = {balance.account: balance for balance in self.balances_of(plan, run)}
        # a warning shows the account with this hold counted, under the limit that it would have passed
        counted = tuple(
            Balance(
                w.account, w.limit, now_so[w.account].committed, now_so[w.account].reserved, now_so[w.account].unconfirmed, w.mode
            )
            for w in warnings
        )
        hold = Hold(decision, plan, tuple(now_so.values()), until, counted)
        call.outcome = hold.outcome
        return hold

    def _warnings(self, plan: Plan, held: Amounts, tenant: str, run_id: str, *, already: bool) -> tuple[Balance, ...]:
        """What would have blocked. `already`: the hold is among the calls, and does not count twice."""
        run = self.runs_by_id[tenant, run_id]
        warned = []
        for charge in plan.charges:
            amount = held.of(charge.ceiling.account.unit)
            limit = self.limit(charge, run)
            if charge.ceiling.basis is Basis.NONE and limit is not None and amount:
                committed, reserved, _ = self.sums(charge.ceiling.account)
                others = committed + reserved - (amount if already else 0)
                if others + amount > limit * charge.share_ppm // 1_000_000 + charge.ceiling.margin:
                    warned.append(self.balance(charge, run))
        return tuple(warned)

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Settled | None:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        if (tenant, tail) not in self.calls:
            return None
        return self._end(tenant, tail, HoldState.COMMITTED, settlement.cost, settlement.usage, settlement.ending)

    def release(self, tenant: str, hold_id: str, ending: Ending) -> Settled:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        if (tenant, tail) not in self.calls:
            self.tombstones.add((tenant, tail))
            return Settled(HoldState.RELEASED, True, NOTHING)
        return self._end(tenant, tail, HoldState.RELEASED, NOTHING, None, ending)

    def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        call = self.calls.get((tenant, tail))
        if call is None:
            return None
        if cost_usd is None:
            settled = self._end(tenant, tail, HoldState.RELEASED, NOTHING, None, Ending.UNKNOWN)
        else:
            cost = Amounts(cost_usd, call.held.tokens, call.held.calls)
            settled = self._end(tenant, tail, HoldState.COMMITTED, cost, Usage(UsageSource.HELD), Ending.UNKNOWN)
        if settled.changed:
            self.acts.append((tenant, who, why))
        return settled

    def expire(self, at_most: int) -> list[Expired]:
        due = sorted(
            (call.lease_ms, tenant, tail)
            for (tenant, tail), call in self.calls.items()
            if call.state is HoldState.LIVE and call.lease_ms <= self.now_ms
        )
        expired = []
        for _, tenant, tail in due[:at_most]:
            call = self.calls[tenant, tail]
            settled = self._end(tenant, tail, HoldState.EXPIRED, call.held, Usage(UsageSource.HELD), Ending.UNKNOWN)
            expired.append(Expired("rsv_" + tail, call.run, call.held, settled.alerts))
        return expired

    def _end(self, tenant: str, tail: str, state: HoldState, charged: Amounts, usage: Usage | None, ending: Ending) -> Settled:
        call = self.calls[tenant, tail]
        run = self.runs_by_id[tenant, call.run]
        if call.state in (HoldState.COMMITTED, HoldState.RELEASED):
            return Settled(call.state, False, call.charged, self.balances_of(call.plan, run))
        call.state, call.charged, call.usage, call.ending = state, charged, usage, ending.value
        alerts = []
        thresholds: dict[Account, tuple[int, ...]] = {}
        for charge in call.plan.charges:
            thresholds.setdefault(charge.ceiling.account, charge.ceiling.alerts)
        for balance in self.balances_of(call.plan, run):
            for threshold in thresholds[balance.account]:
                reached = balance.limit is not None and balance.committed * 1_000_000 >= balance.limit * threshold
                if reached and balance.committed > 0 and threshold > self.fired.get(balance.account, 0):
                    assert balance.limit is not None
                    alerts.append(Alert(balance.account, threshold, balance.limit, balance.committed))
                    self.fired[balance.account] = threshold
        return Settled(state, True, charged, self.balances_of(call.plan, run), tuple(alerts))

    def extend(self, tenant: str, hold_id: str, lease_ms: int, more: Amounts | None) -> bool:
        call = self.calls.get((tenant, hold_id.removeprefix("rsv_")))
        if call is None or call.state is not HoldState.LIVE:
            return False
        run = self.runs_by_id[tenant, call.run]
        if more is not None:
            if not all(self.fits(charge, more.of(charge.ceiling.account.unit), run) for charge in call.plan.charges):
                return False
            call.held = plus(call.held, more)
        call.lease_ms = self.now_ms + lease_ms
        return True

    def set_limit(self, tenant: str, run_id: str, owner: str, change: SetLimit) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run and run.owner not in ("", owner) and not change.by_admin:
            return None
        if run is None:
            run = self.runs_by_id[tenant, run_id] = _Run(owner, self.now_ms, self.now_ms)
        before = (run.limit, run.raised)
        if change.by_admin:
            run.limit, run.raised = change.limit, True
        else:
            run.owner = owner
            run.limit = change.limit if run.limit is None else min(run.limit, change.limit)
        if (run.limit, run.raised) != before:
            self.acts.append((tenant, change.who, ""))
        return self.run(tenant, run_id)

    def stop(self, tenant: str, run_id: str, who: str, why: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run is None:
            return None
        if not run.stopped:
            self.acts.append((tenant, who, why))
        run.stopped = True
        return self.run(tenant, run_id)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def run(self, tenant: str, run_id: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run is None:
            return None
        mine = [call for (where, _), call in self.calls.items() if where == tenant and call.run == run_id]
        return RunView(
            tenant,
            run_id,
            run.owner,
            RunState.STOPPED if run.stopped else RunState.ACTIVE,
            run.limit,
            run.raised,
            committed=sum(call.charged.usd for call in mine),
            reserved=sum(call.held.usd for call in mine if call.state is HoldState.LIVE),
            unconfirmed=sum(call.charged.usd for call in mine if call.state is HoldState.EXPIRED),
            calls=sum(call.state is not HoldState.RELEASED for call in mine),
            first_ms=run.first_ms,
            last_ms=run.last_ms,
            accounts=self.balances_of(run.latest.plan, run) if run.latest else (),
        )

    def runs(self, tenant: str, owner: str | None) -> list[str]:
        mine = [
            (run.last_ms, name)
            for (where, name), run in self.runs_by_id.items()
            if where == tenant and owner in (None, run.owner)
        ]
        return [name for _, name in sorted(mine, reverse=True)]

    def record(self, tenant: str, decision_id: str) -> CallRecord | None:
        """Without `inputs`."""
        call = self.calls.get((tenant, decision_id.removeprefix("bdg_")))
        if call is not None:
            asked = call.decision.call
            return CallRecord(
                decision_id,
                tenant,
                call.run,
                asked.caller.key,
                call.at_ms,
                call.outcome.value,
                call.state,
                asked.model,
                call.plan.model,
                call.plan.provider,
                call.held,
                None if call.state is HoldState.LIVE else call.charged,
                call.usage,
                call.ending,
                asked.caller.dimensions,
                tuple((account.key, call.held.of(account.unit)) for account in call.accounts),
            )
        for (where, _), ring in self.rings.items():
            for refused, decision, at_ms in reversed(ring):
                if (where, refused) == (tenant, decision_id):
                    asked = decision.call
                    first = decision.ladder[0]
                    return CallRecord(
                        decision_id,
                        tenant,
                        asked.caller.run,
                        asked.caller.key,
                        at_ms,
                        "block",
                        None,
                        asked.model,
                        first.model,
                        first.provider,
                        first.cost_max,
                        None,
                        None,
                        None,
                        asked.caller.dimensions,
                        (),
                    )
        return None

    def holds(self, tenant: str, run_id: str | None) -> list[str]:
        found = [
            (call.at_ms, call.decision.id)
            for (where, _), call in self.calls.items()
            if where == tenant and run_id in (None, call.run) and call.state in (HoldState.LIVE, HoldState.EXPIRED)
        ]
        return [decision_id for _, decision_id in sorted(found)]

    def plain_balance(self, account: Account) -> Balance:
        return Balance(account, None, *self.sums(account), mode=Mode.HARD_GATE)

    def spend(self, tenant: str, by: tuple[str, ...], from_ms: int, to_ms: int, owner: str | None) -> list[SpendRow]:
        groups: dict[tuple[str, ...], Amounts] = {}
        for (where, _), call in self.calls.items():
            caller = call.decision.call.caller
            day = call.at_ms // DAY_MS
            in_range = from_ms // DAY_MS <= day <= (to_ms - 1) // DAY_MS
            if where == tenant and in_range and owner in (None, caller.key) and call.charged != NOTHING:
                own = {"run": caller.run, "key": caller.key, "model": call.plan.model, "provider": call.plan.provider}
                own["day"] = _day_name(day)
                values = dict(caller.dimensions) | own
                group = tuple(values.get(word, NO_VALUE) for word in by)
                groups[group] = plus(groups.get(group, NOTHING), call.charged)
        rows = [SpendRow(group, total.usd, total.tokens, total.calls) for group, total in groups.items()]
        return sorted(rows, key=lambda row: (-row.usd, -row.tokens, row.group))


def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
