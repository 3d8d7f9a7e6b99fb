"""What a ledger should answer, written as naively as possible: every balance is a sum over every call there ever was.

Shares nothing with the implementations but the contract and the records of core. One instance is all tenants.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from gateway.core.scopes import NO_VALUE, Account, Amounts, Caller, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Ending, Hold, Mode, Outcome, Plan, Usage, UsageSource
from gateway.core.windows import BUCKETS, WindowKind
from gateway.ledger.contract import (
    DEPTH,
    MOST,
    AccountView,
    Act,
    Adjusting,
    Alert,
    Barred,
    Barrier,
    CallRecord,
    Debiting,
    Ended,
    Expired,
    Frozen,
    Fund,
    Funded,
    Funding,
    HoldState,
    Keep,
    Refusal,
    Reserved,
    RunState,
    RunView,
    SetLimit,
    Settled,
    Settlement,
    SpendRow,
    Stale,
    scope_text,
)

NOTHING = Amounts(0, 0, 0)
IN_PARTS = (Unit.USD, Unit.TOKENS, Unit.CALLS)  # what a slice is a part of
RING = 32
DAY_MS = 24 * 60 * 60 * 1000
RINGED = (Barrier.STOPPED, Barrier.PAUSED, Barrier.FROZEN, Barrier.LOOP)


def plus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(*[one.of(unit) + other.of(unit) for unit in Unit])


def beyond(wanted: Amounts, held: Amounts) -> Amounts:
    return Amounts(*[max(0, wanted.of(unit) - held.of(unit)) for unit in Unit])


def is_sliced(plan: Plan, account: Account) -> bool:
    sliced = next(charge.sliced for charge in plan.charges if charge.ceiling.account == account)
    return sliced and account.unit in IN_PARTS


def slice_of(plan: Plan) -> Amounts:
    return plan.slice.cost if plan.slice else plan.cost_max


def most_of(plan: Plan) -> Amounts:
    """The most that the plan holds in any account."""
    everywhere = all(charge.sliced for charge in plan.charges)
    return slice_of(plan) if everywhere else plan.cost_max


def is_rolling(account: Account) -> bool:
    return account.window.kind is WindowKind.ROLLING


@dataclass
class _Run:
    owner: str
    first_ms: int
    last_ms: int
    stopped: bool = False
    paused_by: str | None = None  # an operator's pause
    paused_no: int | None = None  # one that a refusal set: how often something had been raised by then
    limit: int | None = None
    raised: bool = False
    asked: int | None = None
    latest: "_Call | None" = None
    placed: bool = False
    ancestry: tuple[str, ...] = ()
    issued: bool = False
    recent: "list[_Call]" = field(default_factory=list)  # its last holds, where the policy looks for loops


@dataclass
class _Call:
    decision: Decision
    plan: Plan
    outcome: Outcome
    row: _Run
    at_ms: int
    lease_ms: int
    held: Amounts  # where the worst case is held; of the run's, whatever is held most
    slices: Amounts  # where a slice is
    state: HoldState = HoldState.LIVE
    charged: Amounts = NOTHING
    ended_ms: int = 0
    usage: Usage | None = None
    ending: str | None = None
    end_note: str = ""
    retired: bool = False
    forgotten: set[Account] = field(default_factory=set)  # swept, or a rolling one reset: what was charged there is gone
    accounts: dict[Account, None] = field(init=False)

    def __post_init__(self) -> None:
        self.accounts = dict.fromkeys(charge.ceiling.account for charge in self.plan.charges)

    def held_at(self, account: Account) -> int:
        return (self.slices if is_sliced(self.plan, account) else self.held).of(account.unit)

    def charged_at(self, account: Account) -> int:
        if self.state is HoldState.EXPIRED and not self.decision.lapses:
            return self.held_at(account)
        return self.charged.of(account.unit)

    @property
    def caller(self) -> Caller:
        return self.decision.call.caller

    @property
    def run(self) -> str:
        return self.caller.run

    @property
    def unconfirmed(self) -> bool:
        return self.state is HoldState.EXPIRED and not self.retired


@dataclass
class Model:
    now_ms: int
    history: list[_Call] = field(default_factory=list)  # every call there ever was
    calls: dict[tuple[str, str], _Call] = field(default_factory=dict)  # those whose records are kept
    tombstones: dict[tuple[str, str], int] = field(default_factory=dict)
    runs_by_id: dict[tuple[str, str], _Run] = field(default_factory=dict)
    rings: dict[tuple[str, str], list[tuple[str, Decision, int]]] = field(default_factory=dict)
    known: dict[Account, None] = field(default_factory=dict)
    stored: dict[Account, int] = field(default_factory=dict)
    adjustments: list[tuple[Account, int]] = field(default_factory=list)
    fired: dict[Account, int] = field(default_factory=dict)
    raises: dict[str, int] = field(default_factory=dict)
    frozen_by_text: dict[tuple[str, str], Frozen] = field(default_factory=dict)
    acts: list[tuple[str, Act]] = field(default_factory=list)  # of an act whose id the ledger made up, the id is ""
    funded: dict[Account, None] = field(default_factory=dict)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # documents
    memos: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)  # with the time when each is over

    def copy(self) -> "Model":
        shared = [each for call in self.history for each in (call.decision, call.plan, *call.accounts)]
        shared += [each[1] for ring in self.rings.values() for each in ring]
        return deepcopy(self, {id(each): each for each in shared})

    # -- sums -----------------------------------------------------------------------------------------------------------------

    def charges_of(self, account: Account) -> list[tuple[_Call, int]]:
        """What was charged there and still counts, call by call."""
        counted = []
        for call in self.history:
            if account in call.accounts and account not in call.forgotten and call.state is not HoldState.LIVE:
                window = account.window
                if not is_rolling(account) or call.ended_ms // window.bucket_ms >= window.oldest_bucket(self.now_ms):
                    counted.append((call, call.charged_at(account)))
        return counted

    def reserved(self, account: Account) -> int:
        return sum(call.held_at(account) for call in self.history if call.state is HoldState.LIVE and account in call.accounts)

    def adjusted(self, account: Account) -> int:
        return sum(amount for each, amount in self.adjustments if each == account)

    def carried(self, account: Account) -> int:
        return 0 if is_rolling(account) else sum(amount for call, amount in self.charges_of(account) if call.retired)

    def sums(self, account: Account) -> tuple[int, int, int]:
        """committed, reserved, unconfirmed"""
        charged = self.charges_of(account)
        committed = sum(amount for _, amount in charged) + self.adjusted(account)
        return committed, self.reserved(account), sum(amount for call, amount in charged if call.unconfirmed)

    def aging(self, account: Account) -> tuple[tuple[int, int], ...]:
        if not is_rolling(account):
            return ()
        buckets: dict[int, int] = {}
        length_ms = account.window.bucket_ms
        for call, amount in self.charges_of(account):
            index = call.ended_ms // length_ms
            buckets[index] = buckets.get(index, 0) + amount
        return tuple(((index + BUCKETS) * length_ms, amount) for index, amount in sorted(buckets.items()) if amount)

    def accounts(self) -> list[Account]:
        return list(self.known)

    def ever(self) -> list[Account]:
        """Those that are gone included."""
        return list(dict.fromkeys([*self.funded, *(account for call in self.history for account in call.accounts)]))

    # -- limits and balances --------------------------------------------------------------------------------------------------

    def own_limit(self, ceiling: Ceiling, caller: Caller) -> _Run | None:
        if not ceiling.own:
            return None
        run = caller.run if ceiling.own_run == caller.run_scope else ceiling.own_run
        found = self.runs_by_id.get((caller.tenant, str(run)))
        return None if found is None or found.limit is None else found

    def limit(self, charge: Charge, plan: Plan, caller: Caller, *, pinning: bool = False) -> int | None:
        ceiling = charge.ceiling
        of_account = self.stored.get(ceiling.account, ceiling.limit)
        if ceiling.pinned_ppm and pinning and ceiling.account not in self.stored:
            of_account = self.pinned(ceiling, plan, caller)
        run = self.own_limit(ceiling, caller)
        if run is None:
            return of_account
        return run.limit if run.raised or of_account is None else min(of_account, run.limit or 0)

    def pinned(self, ceiling: Ceiling, plan: Plan, caller: Caller) -> int | None:
        whole = next(each for each in plan.charges if each.ceiling.account.key == ceiling.pinned_to)
        limit = self.limit(whole, plan, caller, pinning=True)
        if limit is None:
            return None
        committed, reserved, _ = self.sums(whole.ceiling.account)
        return max(0, limit - committed - reserved) * ceiling.pinned_ppm // 1_000_000

    def balance(self, charge: Charge, plan: Plan, caller: Caller, *, refusing: bool = False) -> Balance:
        account = charge.ceiling.account
        aging = self.aging(account) if refusing else ()
        limit = self.limit(charge, plan, caller, pinning=refusing)
        return Balance(account, limit, *self.sums(account), mode=charge.ceiling.mode, aging=aging)

    def balances_of(self, plan: Plan, caller: Caller, *, refusing: bool = False) -> tuple[Balance, ...]:
        found: dict[Account, Balance] = {}
        for charge in plan.charges:
            if charge.ceiling.account not in found:
                found[charge.ceiling.account] = self.balance(charge, plan, caller, refusing=refusing)
        return tuple(found.values())

    def room(self, charge: Charge, amount: int, limit: int | None, over: int = 0) -> bool:
        if limit is None or amount == 0:
            return True
        committed, reserved, _ = self.sums(charge.ceiling.account)
        ceiling = limit * charge.share_ppm // 1_000_000 + charge.ceiling.margin + over
        if charge.ceiling.basis is Basis.COMMITTED:
            return committed < ceiling
        return reserved + committed + amount <= ceiling

    def fits(
        self, charge: Charge, plan: Plan, most: Amounts, slices: Amounts, caller: Caller, *, pinning: bool, over: int = 0
    ) -> bool:
        """Where the worst case is held, or a slice."""
        if charge.ceiling.basis is Basis.NONE:
            return True
        limit, account = self.limit(charge, plan, caller, pinning=pinning), charge.ceiling.account
        return self.room(charge, (slices if is_sliced(plan, account) else most).of(account.unit), limit, over)

    # -- what bars a call -----------------------------------------------------------------------------------------------------

    def state(self, tenant: str, run: _Run) -> RunState:
        if run.stopped:
            return RunState.STOPPED
        waiting = run.paused_no is not None and run.paused_no == self.raises.get(tenant, 0)
        return RunState.PAUSED if run.paused_by is not None or waiting else RunState.ACTIVE

    def place(self, caller: Caller) -> tuple[str, ...] | Barrier:
        """The run's ancestry, if this call is let in."""
        run = self.runs_by_id.get((caller.tenant, caller.run))
        if run and run.placed:
            if caller.parent is not None and run.ancestry[:1] != (caller.parent,):
                return Barrier.PARENT_CHANGED
            return run.ancestry
        if caller.parent is None:
            return ()
        parent = self.runs_by_id.get((caller.tenant, caller.parent))
        ancestry = (caller.parent, *(parent.ancestry if parent else ()))
        if caller.run in ancestry:
            return Barrier.CYCLE
        if parent and parent.owner not in ("", caller.owner):
            return Barrier.FOREIGN_PARENT
        return Barrier.TOO_DEEP if len(ancestry) > DEPTH else ancestry

    def obstacle(self, decision: Decision, how: Debiting) -> Barred | Stale | None:
        if how is Debiting.REPLAY:
            return None
        caller = decision.call.caller
        run = self.runs_by_id.get((caller.tenant, caller.run))
        if run and run.owner not in ("", caller.owner):
            return Stale(self.now_ms, run.owner)
        place = self.place(caller)
        if isinstance(place, Barrier):
            whose = self.runs_by_id[caller.tenant, str(caller.parent)].owner if place is Barrier.FOREIGN_PARENT else ""
            return Barred(decision, place, str(caller.parent), whose)
        windows = [charge.ceiling.account.window for plan in decision.ladder for charge in plan.charges]
        if place != caller.ancestry or not all(window.start_ms <= self.now_ms < window.end_ms for window in windows):
            return Stale(self.now_ms, caller.owner, place)
        if how is Debiting.ALWAYS:
            return None
        barred = self.barrier(decision, place)
        if barred and barred.barrier in RINGED and run:
            self.ring(decision)
        return barred

    def barrier(self, decision: Decision, ancestry: tuple[str, ...]) -> Barred | None:
        caller, terms = decision.call.caller, decision.terms
        for name in (caller.run, *ancestry):
            run = self.runs_by_id.get((caller.tenant, name))
            state = self.state(caller.tenant, run) if run else RunState.ACTIVE
            if state is not RunState.ACTIVE:
                return Barred(decision, Barrier.STOPPED if state is RunState.STOPPED else Barrier.PAUSED, name)
        frozen = self.freezing(caller)
        if frozen:
            return Barred(decision, Barrier.FROZEN, frozen[0].text)
        if terms.max_active is not None and not caller.run_issued:
            active = self.active(caller.tenant, caller.owner, terms.idle_ms)
            if caller.run not in active and len(active) >= terms.max_active:
                return Barred(decision, Barrier.TOO_MANY_RUNS, str(terms.max_active))
        run = self.runs_by_id.get((caller.tenant, caller.run))
        if terms.same_request and decision.call.fingerprint and run:
            last = run.recent[-(terms.within_calls - 1) :] if terms.within_calls > 1 else []
            same = sum(call.decision.call.fingerprint == decision.call.fingerprint for call in last)
            if same >= terms.same_request:
                return Barred(decision, Barrier.LOOP, str(same))
        return None

    def freezing(self, caller: Caller) -> list[Frozen]:
        return [
            frozen
            for (tenant, _), frozen in sorted(self.frozen_by_text.items(), key=lambda item: item[0])
            if tenant == caller.tenant and all(caller.value(name) == value for name, value in frozen.scope)
        ]

    def active(self, tenant: str, key: str, idle_ms: int) -> set[str]:
        return {
            name
            for (where, name), run in self.runs_by_id.items()
            if where == tenant and run.owner == key and run.placed and not run.stopped and not run.issued
            if self.now_ms - run.last_ms < idle_ms
        }

    def ring(self, decision: Decision) -> None:
        caller = decision.call.caller
        ring = self.rings.setdefault((caller.tenant, caller.run_scope), [])
        ring.append((decision.id, decision, self.now_ms))
        del ring[:-RING]

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Reserved:
        caller = decision.call.caller
        where = (caller.tenant, decision.id.removeprefix("bdg_"))
        if where in self.tombstones:
            return Ended(HoldState.RELEASED)
        if where in self.calls:
            call = self.calls[where]
            if call.state is not HoldState.LIVE or call.decision.call.fingerprint != decision.call.fingerprint:
                return Ended(call.state)
            warnings = self.warnings(call.plan, call.held, call.slices, call.caller, already=True)
            return Hold(decision, call.plan, self.balances_of(call.plan, call.caller), call.lease_ms, warnings)
        return self.obstacle(decision, Debiting.ASK) or self.ladder(decision, lease_ms, Debiting.ASK)

    def debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Settled | Refusal | Barred | Stale:
        tenant, tail = decision.call.caller.tenant, decision.id.removeprefix("bdg_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        if (tenant, tail) in self.calls:
            call = self.calls[tenant, tail]
            return Settled(call.state, False, call.charged, self.balances_of(call.plan, call.caller))
        answer = self.obstacle(decision, how) or self.ladder(decision, 0, how)
        if not isinstance(answer, Hold):
            return answer
        ended = self.end(tenant, tail, HoldState.COMMITTED, settlement.cost, settlement.usage, settlement.ending)
        self.calls[tenant, tail].end_note = settlement.note
        return ended

    def ladder(self, decision: Decision, lease_ms: int, how: Debiting) -> Hold | Refusal:
        caller = decision.call.caller
        where = (caller.tenant, caller.run)
        is_new = where not in self.runs_by_id
        run = self.runs_by_id.setdefault(where, _Run(caller.owner, self.now_ms, self.now_ms))
        before = replace(run)
        asked = decision.call.directives.run_limit
        if asked is not None and asked != run.asked and run.owner in ("", caller.owner):
            run.limit = asked if run.limit is None else min(run.limit, asked)
            run.asked = asked
        blocking: list[tuple[Plan, Charge]] = []
        for plan in decision.ladder:
            amounts = (plan.cost_max, slice_of(plan))
            full = [charge for charge in plan.charges if not self.fits(charge, plan, *amounts, caller, pinning=True)]
            if not full or how is not Debiting.ASK:
                return self.hold(decision, plan, run, lease_ms)
            blocking.append((plan, full[0]))
        self.ring(decision)
        balances: dict[Account, Balance] = {}
        for plan in decision.ladder:
            for balance in self.balances_of(plan, caller, refusing=True):
                balances.setdefault(balance.account, balance)
        named = tuple(self.balance(charge, plan, caller, refusing=True) for plan, charge in blocking)
        if caller.run_issued:
            if is_new:
                del self.runs_by_id[where]
            else:
                vars(run).update(vars(before))
            return Refusal(decision, named, tuple(balances.values()), self.now_ms)
        self.use(run, caller)
        paused = any(charge.ceiling.pause for _, charge in blocking)
        if paused:
            run.paused_no, run.paused_by = self.raises.get(caller.tenant, 0), None
        return Refusal(decision, named, tuple(balances.values()), self.now_ms, paused)

    def use(self, run: _Run, caller: Caller) -> None:
        """The call was let in: the run has an owner and a place now, and was used, as its ancestors were."""
        place = self.place(caller) if run.owner in ("", caller.owner) else Barrier.FOREIGN_PARENT
        run.owner = run.owner or caller.owner
        if not run.placed and not isinstance(place, Barrier):
            run.placed, run.ancestry = True, place
            if place:
                fresh = _Run(caller.owner, self.now_ms, self.now_ms)
                parent = self.runs_by_id.setdefault((caller.tenant, place[0]), fresh)
                parent.placed = True
                parent.owner = parent.owner or caller.owner
        run.issued = caller.run_issued
        run.last_ms = self.now_ms
        for name in run.ancestry:
            if (caller.tenant, name) in self.runs_by_id:
                self.runs_by_id[caller.tenant, name].last_ms = self.now_ms

    def hold(self, decision: Decision, plan: Plan, run: _Run, lease_ms: int) -> Hold:
        caller = decision.call.caller
        warnings = self.warnings(plan, plan.cost_max, slice_of(plan), caller, already=False)
        pins = {
            charge.ceiling.account: self.pinned(charge.ceiling, plan, caller)
            for charge in reversed(plan.charges)  # the first charge of an account says what is pinned
            if charge.ceiling.pinned_ppm and charge.ceiling.account not in self.stored
        }
        self.use(run, caller)
        self.stored.update((account, limit) for account, limit in pins.items() if limit is not None)
        until = self.now_ms + lease_ms
        call = _Call(decision, plan, Outcome.ALLOW, run, self.now_ms, until, most_of(plan), slice_of(plan))
        self.calls[caller.tenant, decision.id.removeprefix("bdg_")] = call
        self.history.append(call)
        self.known.update(dict.fromkeys(call.accounts))
        run.latest = call
        if decision.terms.same_request:
            run.recent = [*run.recent, call][-decision.terms.within_calls :]
        now_so = {balance.account: balance for balance in self.balances_of(plan, caller)}
        # a warning shows the account with this hold counted, under the limit that it would have passed
        counted = tuple(replace(now_so[warned.account], limit=warned.limit, mode=warned.mode) for warned in warnings)
        hold = Hold(decision, plan, tuple(now_so.values()), until, counted)
        call.outcome = hold.outcome
        return hold

    def warnings(self, plan: Plan, held: Amounts, slices: Amounts, caller: Caller, *, already: bool) -> tuple[Balance, ...]:
        """What would have blocked. `already`: the hold is among the calls, and does not count twice."""
        warned = []
        for charge in plan.charges:
            account = charge.ceiling.account
            amount = (slices if is_sliced(plan, account) else held).of(account.unit)
            limit = self.limit(charge, plan, caller, pinning=not already)
            if charge.ceiling.basis is Basis.NONE and limit is not None and amount:
                committed, reserved, _ = self.sums(charge.ceiling.account)
                others = committed + reserved - (amount if already else 0)
                if others + amount > limit * charge.share_ppm // 1_000_000 + charge.ceiling.margin:
                    warned.append(replace(self.balance(charge, plan, caller), limit=limit))
        return tuple(warned)

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Settled | None:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        if (tenant, tail) not in self.calls:
            return None
        ended = self.end(tenant, tail, HoldState.COMMITTED, settlement.cost, settlement.usage, settlement.ending)
        if ended.changed:
            self.calls[tenant, tail].end_note = settlement.note
        return ended

    def release(self, tenant: str, hold_id: str, ending: Ending, note: str = "") -> Settled:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        if (tenant, tail) not in self.calls:
            self.tombstones[tenant, tail] = self.now_ms
            return Settled(HoldState.RELEASED, True, NOTHING)
        ended = self.end(tenant, tail, HoldState.RELEASED, NOTHING, None, ending)
        if ended.changed:
            self.calls[tenant, tail].end_note = note
        return ended

    def end(self, tenant: str, tail: str, state: HoldState, charged: Amounts, usage: Usage | None, ending: Ending) -> Settled:
        call = self.calls[tenant, tail]
        if call.state in (HoldState.COMMITTED, HoldState.RELEASED):
            return Settled(call.state, False, call.charged, self.balances_of(call.plan, call.caller))
        call.state, call.charged, call.usage, call.ending, call.ended_ms = state, charged, usage, ending.value, self.now_ms
        call.forgotten.clear()
        if state is HoldState.RELEASED:
            call.row.recent = [each for each in call.row.recent if each is not call]
        self.known.update(dict.fromkeys(call.accounts))
        alerts = []
        thresholds: dict[Account, tuple[int, ...]] = {}
        for charge in call.plan.charges:
            thresholds.setdefault(charge.ceiling.account, charge.ceiling.alerts)
        for balance in self.balances_of(call.plan, call.caller):
            for threshold in thresholds[balance.account]:
                reached = balance.limit is not None and balance.committed * 1_000_000 >= balance.limit * threshold
                if reached and balance.committed > 0 and threshold > self.fired.get(balance.account, 0):
                    assert balance.limit is not None
                    alerts.append(Alert(balance.account, threshold, balance.limit, balance.committed))
                    self.fired[balance.account] = threshold
        return Settled(state, True, charged, self.balances_of(call.plan, call.caller), tuple(alerts))

    def extend(
        self,
        tenant: str,
        hold_id: str,
        lease_ms: int | None,
        held: Amounts | None,
        slices: Amounts | None = None,
        over: Mapping[str, int] | None = None,
    ) -> bool:
        call = self.calls.get((tenant, hold_id.removeprefix("rsv_")))
        if call is None or call.state is not HoldState.LIVE:
            return False
        if held is not None:
            most, sliced = beyond(held, call.held), beyond(held if slices is None else slices, call.slices)
            for charge in call.plan.charges:
                extra = (over or {}).get(charge.ceiling.account.key, 0)
                if not self.fits(charge, call.plan, most, sliced, call.caller, pinning=False, over=extra):
                    return False
            call.held, call.slices = plus(call.held, most), plus(call.slices, sliced)
        if lease_ms is not None:
            call.lease_ms = self.now_ms + lease_ms
        return True

    # -- beside the path ------------------------------------------------------------------------------------------------------

    def due(self) -> list[str]:
        """The ids of the holds whose lease ran out."""
        return [
            call.decision.hold_id for call in self.calls.values() if call.state is HoldState.LIVE and call.lease_ms <= self.now_ms
        ]

    def expire(self, hold_id: str) -> Expired:
        """One that is due; which come first is nobody's promise."""
        tail = hold_id.removeprefix("rsv_")
        ((tenant, call),) = [(tenant, call) for (tenant, each), call in self.calls.items() if each == tail]
        charged = NOTHING if call.decision.lapses else call.held
        settled = self.end(tenant, tail, HoldState.EXPIRED, charged, Usage(UsageSource.HELD), Ending.UNKNOWN)
        return Expired(hold_id, call.run, charged, settled.alerts, call.decision.lapses)

    def halted(self, tenant: str, callers: Sequence[Caller]) -> list[Barrier | None]:
        def of(caller: Caller) -> Barrier | None:
            runs = [self.runs_by_id.get((tenant, name)) for name in (caller.run, *caller.ancestry)]
            if any(run and run.stopped for run in runs):
                return Barrier.STOPPED
            return Barrier.FROZEN if self.freezing(caller) else None

        return [of(caller) for caller in callers]

    def act(self, tenant: str, who: str, act: str, what: str, why: str, act_id: str = "") -> None:
        self.acts.append((tenant, Act(act_id, self.now_ms, who, act, what, why)))

    def was_raised(self, tenant: str) -> None:
        self.raises[tenant] = self.raises.get(tenant, 0) + 1

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
            self.act(tenant, change.who, "set_limit", f"{run_id} {change.limit}", "")
            if change.by_admin:
                self.was_raised(tenant)
        return self.run(tenant, run_id)

    def stop(self, tenant: str, run_id: str, who: str, why: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run and not run.stopped:
            run.stopped = True
            self.act(tenant, who, "stop", run_id, why)
        return self.run(tenant, run_id)

    def pause(self, tenant: str, run_id: str, who: str, why: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run and not run.stopped and run.paused_by != who:
            run.paused_by, run.paused_no = who, None
            self.act(tenant, who, "pause", run_id, why)
        return self.run(tenant, run_id)

    def resume(self, tenant: str, run_id: str, who: str, why: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run and self.state(tenant, run) is RunState.PAUSED:
            run.paused_by = run.paused_no = None
            self.act(tenant, who, "resume", run_id, why)
        return self.run(tenant, run_id)

    def freeze(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        text = scope_text(scope)
        if (tenant, text) in self.frozen_by_text:
            return False
        self.frozen_by_text[tenant, text] = Frozen(tuple(sorted(scope)), self.now_ms, who, why)
        self.act(tenant, who, "freeze", text, why)
        return True

    def thaw(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        text = scope_text(scope)
        if self.frozen_by_text.pop((tenant, text), None) is None:
            return False
        self.act(tenant, who, "thaw", text, why)
        return True

    def find(self, tenant: str, key: str) -> Account | None:
        return next((each for each in self.known if (each.tenant, each.key) == (tenant, key)), None)

    def set_account_limit(self, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
        account = self.find(tenant, key)
        if account is not None and self.stored.get(account) != limit:
            if limit is None:
                del self.stored[account]
            else:
                self.stored[account] = limit
            self.act(tenant, who, "set_account_limit", f"{key} {'none' if limit is None else limit}", why)
            self.was_raised(tenant)
        return self.account(tenant, key)

    def adjust(self, tenant: str, key: str, amount: int, act_id: str, who: str, why: str) -> tuple[Adjusting, AccountView] | None:
        account, view = self.find(tenant, key), self.account(tenant, key)
        if account is None or view is None:
            return None
        if any(where == tenant and act.id == act_id for where, act in self.acts):
            return Adjusting.REPLAYED, view
        if is_rolling(account):
            return Adjusting.ROLLING, view
        committed, _, unconfirmed = self.sums(account)
        if committed + amount < unconfirmed:
            return Adjusting.BELOW_ZERO, view
        self.adjustments.append((account, amount))
        self.act(tenant, who, "adjust", f"{key} {amount}", why, act_id)
        self.was_raised(tenant)
        after = self.account(tenant, key)
        assert after is not None
        return Adjusting.DONE, after

    def reset(self, tenant: str, key: str, who: str, why: str) -> AccountView | None:
        account = self.find(tenant, key)
        if account is None:
            return None
        committed, _, unconfirmed = self.sums(account)
        if committed != unconfirmed or self.fired.get(account):
            if is_rolling(account):
                for call, _ in self.charges_of(account):
                    if not call.unconfirmed:
                        call.forgotten.add(account)
            else:
                self.adjustments.append((account, unconfirmed - committed))
            self.fired.pop(account, None)
            self.act(tenant, who, "reset", key, why)
            self.was_raised(tenant)
        return self.account(tenant, key)

    def fund(self, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
        tenant, before = account.tenant, self.account(account.tenant, account.key)

        def told(outcome: Funding) -> Funded:
            after = self.account(tenant, account.key)
            return Funded(outcome, before, after or AccountView(self.plain_balance(account), 0, 0))

        if any(where == tenant and act.id == act_id for where, act in self.acts):
            return told(Funding.REPLAYED)
        committed, reserved, unconfirmed = self.sums(account)
        limit = change.to if change.to is not None else self.stored.get(account, 0) + change.by
        spent = committed if change.committed is None else unconfirmed + change.committed
        if limit < 0:
            return told(Funding.TOO_LITTLE)
        if limit > MOST or (change.committed is not None and spent + reserved > MOST):
            return told(Funding.TOO_MUCH)
        if change.at_least_free and limit - spent - reserved < 0:
            return told(Funding.TOO_LITTLE)
        if account not in self.stored or limit - spent > self.stored[account] - committed:
            self.was_raised(tenant)
        if change.committed is not None:
            self.adjustments.append((account, spent - committed))
            self.fired.pop(account, None)
        self.stored[account] = limit
        self.known[account] = self.funded[account] = None
        self.act(tenant, who, "fund", f"{account.key} {change.text}", why, act_id)
        return told(Funding.DONE)

    def put_document(self, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        if self.texts.get((tenant, name)) != expected:
            return False
        self.texts.pop((tenant, name), None)
        if text is not None:
            self.texts[tenant, name] = text
        return True

    def documents(self, tenant: str) -> dict[str, str]:
        return {name: text for (where, name), text in self.texts.items() if where == tenant}

    def remember(self, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
        known = self.recall(tenant, name)
        if known is None:
            self.memos[tenant, name] = (text, self.now_ms + keep_ms)
        return known

    def recall(self, tenant: str, name: str) -> str | None:
        text, until_ms = self.memos.get((tenant, name), ("", 0))
        return text if until_ms > self.now_ms else None

    def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        tail = hold_id.removeprefix("rsv_")
        if (tenant, tail) in self.tombstones:
            return Settled(HoldState.RELEASED, False, NOTHING)
        call = self.calls.get((tenant, tail))
        if call is None:
            return None
        if cost_usd is None:
            settled = self.end(tenant, tail, HoldState.RELEASED, NOTHING, None, Ending.UNKNOWN)
        else:
            cost = replace(call.held, usd=cost_usd)
            settled = self.end(tenant, tail, HoldState.COMMITTED, cost, Usage(UsageSource.HELD), Ending.UNKNOWN)
        if settled.changed:
            self.act(tenant, who, "settle", f"{hold_id} {'none' if cost_usd is None else cost_usd}", why)
        return settled

    # -- reading --------------------------------------------------------------------------------------------------------------

    def run(self, tenant: str, run_id: str) -> RunView | None:
        run = self.runs_by_id.get((tenant, run_id))
        if run is None:
            return None
        mine = [call for call in self.history if call.row is run]
        state = self.state(tenant, run)
        shown = run.latest is not None and not run.latest.retired
        return RunView(
            tenant,
            run_id,
            run.owner,
            state,
            run.limit,
            run.raised,
            committed=sum(call.charged.usd for call in mine),
            reserved=sum(call.held.usd for call in mine if call.state is HoldState.LIVE),
            unconfirmed=sum(call.charged.usd for call in mine if call.unconfirmed),
            calls=sum(call.state is not HoldState.RELEASED for call in mine),
            first_ms=run.first_ms,
            last_ms=run.last_ms,
            accounts=self.balances_of(run.latest.plan, run.latest.caller) if run.latest and shown else (),
            ancestry=run.ancestry,
            paused_by=run.paused_by or "" if state is RunState.PAUSED else "",
        )

    def runs(self, tenant: str, owner: str | None) -> list[RunView]:
        mine = [
            (run.last_ms // 1_000, name)
            for (where, name), run in self.runs_by_id.items()
            if where == tenant and owner in (None, run.owner)
        ]
        views = [self.run(tenant, name) for _, name in sorted(mine, reverse=True)]
        return [replace(view, accounts=()) for view in views if view]

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
                tuple((account.key, call.held_at(account)) for account in call.accounts),
                lease_until_ms=call.lease_ms if call.state is HoldState.LIVE else 0,
                lapses=call.decision.lapses,
                ended_ms=0 if call.state is HoldState.LIVE else call.ended_ms,
                note=call.decision.note,
                end_note=call.end_note,
            )
        refused = self.refused(tenant, decision_id)
        if refused is None:
            return None
        decision, at_ms = refused
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
            most_of(first),
            None,
            None,
            None,
            asked.caller.dimensions,
            (),
            note=decision.note,
        )

    def refused(self, tenant: str, decision_id: str) -> tuple[Decision, int] | None:
        for (where, _), ring in self.rings.items():
            for refused, decision, at_ms in reversed(ring):
                if (where, refused) == (tenant, decision_id):
                    return decision, at_ms
        return None

    def fingerprint(self, tenant: str, decision_id: str) -> str:
        call, refused = self.calls.get((tenant, decision_id.removeprefix("bdg_"))), self.refused(tenant, decision_id)
        decision = call.decision if call else refused[0] if refused else None
        return decision.call.fingerprint if decision else ""

    def holds(self, tenant: str, run_id: str | None) -> list[str]:
        found = [
            (call.at_ms, call.decision.id)
            for (where, _), call in self.calls.items()
            if where == tenant and run_id in (None, call.run) and call.state in (HoldState.LIVE, HoldState.EXPIRED)
        ]
        return [decision_id for _, decision_id in sorted(found)]

    def leases(self, tenant: str) -> list[str]:
        found = [
            (call.at_ms, call.decision.id) for (where, _), call in self.calls.items() if where == tenant and call.decision.lapses
        ]
        return [decision_id for _, decision_id in sorted(found, reverse=True)]

    def plain_balance(self, account: Account) -> Balance:
        return Balance(account, None, *self.sums(account), mode=Mode.HARD_GATE)

    def account(self, tenant: str, key: str) -> AccountView | None:
        account = self.find(tenant, key)
        if account is None:
            return None
        balance = replace(self.plain_balance(account), limit=self.stored.get(account))
        return AccountView(balance, self.carried(account), self.adjusted(account))

    def frozen(self, tenant: str) -> list[Frozen]:
        return [frozen for (where, _), frozen in sorted(self.frozen_by_text.items(), key=lambda item: item[0]) if where == tenant]

    def acts_of(self, tenant: str) -> list[Act]:
        """Newest first."""
        return [act for where, act in reversed(self.acts) if where == tenant]

    def spend(self, tenant: str, by: tuple[str, ...], from_ms: int, to_ms: int, owner: str | None) -> list[SpendRow]:
        groups: dict[tuple[str, ...], Amounts] = {}
        for call in self.history:
            caller = call.caller
            day = call.at_ms // DAY_MS
            in_range = from_ms // DAY_MS <= day <= (to_ms - 1) // DAY_MS
            if caller.tenant == tenant and in_range and owner in (None, caller.key) and call.charged != NOTHING:
                own = {"run": caller.run, "key": caller.key, "model": call.plan.model, "provider": call.plan.provider}
                own["day"] = _day_name(day)
                values = dict(caller.dimensions) | own
                group = tuple(values.get(word, NO_VALUE) for word in by)
                groups[group] = plus(groups.get(group, NOTHING), call.charged)
        rows = [SpendRow(group, *[total.of(unit) for unit in Unit]) for group, total in groups.items()]
        return sorted(rows, key=lambda row: (-row.usd, -row.tokens, row.group))

    # -- keeping --------------------------------------------------------------------------------------------------------------

    def aged(self, keep: Keep) -> list[tuple[str, str]]:
        """(tenant, decision id)"""
        return [
            (tenant, call.decision.id)
            for (tenant, _), call in self.calls.items()
            if call.state is not HoldState.LIVE and call.ended_ms + keep.records_ms <= self.now_ms
        ]

    def retire(self, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
        may_go = [each for each in self.aged(keep) if each[0] == tenant and each[1] in decision_ids]
        for _, decision_id in may_go:
            self.calls.pop((tenant, decision_id.removeprefix("bdg_"))).retired = True
        return len(may_go)

    def sweep(self, keep: Keep) -> None:
        """All of it."""

        def long_ago(at_ms: int, keep_ms: int) -> bool:
            return at_ms + keep_ms <= self.now_ms

        self.tombstones = {where: at_ms for where, at_ms in self.tombstones.items() if not long_ago(at_ms, keep.records_ms)}
        for where, ring in self.rings.items():
            self.rings[where] = [each for each in ring if not long_ago(each[2], keep.records_ms)]
        for account in self.accounts():
            if long_ago(account.window.end_ms, keep.records_ms) and self.is_clear(account):
                self.forget(account)
        for (tenant, name), run in list(self.runs_by_id.items()):
            accounts = [each for each in self.known if each.tenant == tenant and ("run", name) in each.scope]
            open_calls = [call for call in self.history if call.row is run and (call.unconfirmed or call.state is HoldState.LIVE)]
            unused = long_ago(run.last_ms, max(keep.runs_ms, keep.records_ms))
            if unused and not open_calls and all(self.is_clear(each) for each in accounts):
                del self.runs_by_id[tenant, name]
                for account in accounts:
                    self.forget(account)

    def is_clear(self, account: Account) -> bool:
        """Nothing on record counts there any more."""
        return not self.reserved(account) and not any(amount for call, amount in self.charges_of(account) if not call.retired)

    def forget(self, account: Account) -> None:
        for call in self.history:
            if account in call.accounts:
                call.forgotten.add(account)
        self.adjustments = [each for each in self.adjustments if each[0] != account]
        self.known.pop(account)
        self.stored.pop(account, None)
        self.fired.pop(account, None)


def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
