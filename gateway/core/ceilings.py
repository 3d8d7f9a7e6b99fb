"""Which accounts a caller's calls count in, and the ceiling each sets. Pure: same policy, caller and instant, the same charges.

Most of it is the same for every call of a run, so it is worked out once (a `Standing`) and kept for as long as its windows last. Only
budgets whose scope names `model` or `provider` wait for the plan.
"""

from collections.abc import Collection, Sequence
from dataclasses import field, replace
from typing import Final

from gateway.core.grants import NO_GRANTS, Grant, Grants, GrantStatus
from gateway.core.policy import Budget, Limit, Missing, Policy, Share, Terms
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, OF_CALLS, Account, Caller, Unit
from gateway.core.values import Balance, Basis, Call, Ceiling, Charge, Mode
from gateway.core.windows import END_OF_TIME_MS, LIFETIME, Window, WindowKind, rolling, window_at

WHOLE: Final = 1_000_000  # a share of all, in ppm
RUN_LIMIT: Final = "run-limit"  # the budget behind a run's own limit where the policy sets no hard ceiling per run
PLAN_DIMENSIONS: Final = frozenset({"model", "provider"})

STRICTEST_FIRST: Final = (Mode.HARD_GATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY, Mode.ADVISORY_ESTIMATE)

_STANDINGS_AT_MOST: Final = 10_000
_SHORTEST_WAIT_MS: Final = 1_000
_BASIS: Final = {
    Mode.HARD_GATE: Basis.RESERVED_AND_COMMITTED,
    Mode.SOFT_GATE: Basis.RESERVED_AND_COMMITTED,
    Mode.ACTUALS_ONLY: Basis.COMMITTED,
    Mode.ADVISORY_ESTIMATE: Basis.NONE,
}


@record
class DimensionRequired:
    """A budget with `missing: refuse` counts over a dimension that the call does not have."""

    budget: str
    dimension: str


@record
class Shut:
    """The operator has shut what the call counts in. `what`: a grant's scope, or a tenant; `how`: frozen, closed, suspended."""

    what: str
    how: str


@record
class _Met:
    """A budget as a caller meets it. `values` are those of its scope: None where the plan's model or provider goes."""

    budget: Budget
    terms: Terms
    window: Window
    values: tuple[str | None, ...]
    own: bool
    kept_ppm: int  # for calls that wrap up; 0 for these themselves
    pinned_to: str  # the account that a share is a part of; "" for an amount

    @property
    def gates(self) -> bool:
        """What is held here stands in other calls' way."""
        return _BASIS[self.terms.mode] is Basis.RESERVED_AND_COMMITTED

    @property
    def sliced(self) -> bool:
        """Of calls that can be metered as they come, a slice is held. Where holds do not count, the worst case stays for a reader."""
        return self.budget.sliced and self.gates

    def account(self, tenant: str, model: str = "", provider: str = "") -> Account:
        """Without model and provider: where no value is None."""
        budget, values = self.budget, self.values
        if None in values:
            plan = {"model": model, "provider": provider}
            values = tuple([plan.get(name) if value is None else value for name, value in zip(budget.scope, values, strict=True)])
        scope = tuple([(name, value or NO_VALUE) for name, value in zip(budget.scope, values, strict=True)])
        shown = "" if budget.renamed_from is None else budget.name
        return Account(tenant, budget.identity, scope, self.window, self.terms.limit.unit, shown)

    def charges(self, account: Account) -> tuple[Charge, Charge]:
        """As plans meet it that have no cheaper model after them, and as the others do."""
        ceiling = self._ceiling(account)
        whole = Charge(ceiling, WHOLE - self.kept_ppm)
        below_ppm = self.terms.downgrade_below_ppm
        return whole, Charge(ceiling, WHOLE - below_ppm) if below_ppm > self.kept_ppm else whole

    def _ceiling(self, account: Account) -> Ceiling:
        terms = self.terms
        limit, margin, pinned_ppm = None, terms.margin.amount, 0
        if isinstance(terms.limit, Share):
            pinned_ppm = terms.limit.ppm
        else:
            limit = terms.limit.amount
            margin = terms.margin.above(limit)
        return Ceiling(
            account,
            limit,
            terms.mode,
            _BASIS[terms.mode],
            margin,
            self.own,
            self.budget.alerts_ppm,
            pinned_ppm,
            self.pinned_to,
            terms.pause,
            terms.wait_for_raise_ms,
            terms.outage_allow,
        )


@record
class Standing:
    """What a caller's calls meet, valid in `[from_ms, until_ms)`. `slices`: the places of the charges that may be sliced."""

    tenant: str
    from_ms: int
    until_ms: int
    hard: bool  # some hard gate of the policy applies to what calls of models take
    whole: tuple[Charge, ...]  # as plans meet it that have no cheaper model after them
    shared: tuple[Charge, ...]  # as the others do: `downgrade_below` leaves the rest of a limit to the cheaper models
    open: tuple[tuple[int, _Met], ...]  # (place among the charges, budget), in their order
    slices: frozenset[int] = frozenset()
    shut: Shut | None = None  # nothing new may start here
    _by_plan: dict[tuple[str, str, bool, bool], tuple[Charge, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def outage_allow(self) -> bool:
        """Whether some budget of the policy applies, and all that do would let calls through while the ledger is away."""
        terms = [each.terms.outage_allow for _, each in self.open]
        terms += [each.ceiling.outage_allow for each in self.whole if each.ceiling.account.budget != RUN_LIMIT]
        return bool(terms) and all(terms)

    def charges(self, model: str, provider: str, has_cheaper: bool, sliced: bool = False) -> tuple[Charge, ...]:
        """The charges of a plan: the caller's in the policy's order, then the ancestors'. Each names an account of its own. `sliced`:
        the plan holds slices where the budgets ask for them. Equal charges are one tuple, which whoever keeps them is found by."""
        known = self.shared if has_cheaper else self.whole
        sliced = sliced and bool(self.slices)
        if not self.open and not sliced:
            return known
        plan = (model, provider, has_cheaper, sliced) if self.open else ("", "", has_cheaper, sliced)
        charges = self._by_plan.get(plan)
        if charges is None:
            filled = list(known)
            for place, budget in self.open:
                filled.insert(place, budget.charges(budget.account(self.tenant, model, provider))[has_cheaper])
            if sliced:
                filled = [replace(charge, sliced=place in self.slices) for place, charge in enumerate(filled)]
            charges = self._by_plan[plan] = tuple(filled)
        return charges


class Ceilings:
    """The budgets of a policy and the grants beside it, ready to be applied. What it keeps is only a hint: it can be made anew at any
    time."""

    def __init__(self, policy: Policy, grants: Grants = NO_GRANTS) -> None:
        self._grants = grants
        self._budgets = policy.budgets
        self._by_name = {budget.name: budget for budget in policy.budgets}
        self._keeps = any(budget.keep_for_wrap_up_ppm for budget in policy.budgets)
        self._windows: dict[tuple[WindowKind, str, int], Window] = {}
        self._standings: dict[object, Standing] = {}

    def standing(self, call: Call, at_ms: int) -> Standing | DimensionRequired:
        caller, directives = call.caller, call.directives
        limited = directives.run_limit is not None
        wraps_up = self._keeps and directives.wrap_up
        # Nobody comes back to an issued run: it gets an account for its own limit only if it asks for a limit.
        limited_run = None if caller.run_issued and not limited else caller.run
        key = (
            *(caller.tenant, caller.key, caller.run_scope, limited_run, caller.dimensions),
            *(caller.ancestry, limited, wraps_up),
        )
        standing = self._standings.get(key)
        if standing is None or not standing.from_ms <= at_ms < standing.until_ms:
            made = self._standing(caller, limited_run, limited, wraps_up, at_ms)
            if isinstance(made, DimensionRequired):
                return made
            if len(self._standings) >= _STANDINGS_AT_MOST:
                self._standings.clear()
            standing = self._standings[key] = made
        return standing

    def run_ceiling(self, caller: Caller) -> int | None:
        """The policy's own limit for the caller's run, in microcents; None where it sets none, or a share, which the ledger pins."""
        budget = self._own_budget(caller)
        limit = None if budget is None else budget.terms_for(caller).limit
        return limit.amount if isinstance(limit, Limit) else None

    def _own_budget(self, caller: Caller) -> Budget | None:
        """The budget that the run's own limit replaces: the first hard ceiling in USD on the run's whole life."""
        if caller.run_scope != caller.run:
            return None  # counted on a shared account, whose limit is not this run's to change
        for budget in self._budgets:
            if budget.scope == ("run",) and budget.window is WindowKind.LIFETIME:
                terms = budget.terms_for(caller)
                if terms.mode is Mode.HARD_GATE and terms.limit.unit is Unit.USD:
                    return budget
        return None

    def _standing(
        self, caller: Caller, limited_run: str | None, limited: bool, wraps_up: bool, at_ms: int
    ) -> Standing | DimensionRequired:
        budgets: list[Budget] = []
        for budget in self._budgets:
            missing = next((name for name in budget.scope if name not in PLAN_DIMENSIONS and caller.value(name) is None), None)
            if missing is not None and budget.missing is Missing.REFUSE:
                return DimensionRequired(budget.name, missing)
            if missing is None or budget.missing is not Missing.SKIP:
                budgets.append(budget)
        # In the policy's order; a run's id stands for the account of its own limit, where no budget is that.
        met: list[_Met | str] = []
        counted_as = (caller, *_ancestors(caller))
        for who in counted_as:
            own = self._own_budget(who)
            counted = budgets if who is caller else [budget for budget in budgets if "run" in budget.scope]
            met += [self._met(budget, who, budget is own, wraps_up, at_ms) for budget in counted]
            run = limited_run if who is caller else who.run
            if own is None and run is not None:
                met.append(run)
        standing = _applied(caller.tenant, met, limited)
        grants = self._grants.of(counted_as)
        halted = self._grants.halted.get(caller.tenant)
        return standing if halted is None and not grants else _granted(standing, grants, halted)

    def _met(self, budget: Budget, who: Caller, own: bool, wraps_up: bool, at_ms: int) -> _Met:
        terms = budget.terms_for(who)
        pinned_to = ""
        if isinstance(terms.limit, Share):  # of a budget that is none itself, and whose account no plan changes
            pinned_to = self._met(self._by_name[terms.limit.budget], who, False, wraps_up, at_ms).account(who.tenant).key
        values = tuple([None if name in PLAN_DIMENSIONS else who.value(name) or NO_VALUE for name in budget.scope])
        kept_ppm = 0 if wraps_up else budget.keep_for_wrap_up_ppm
        return _Met(budget, terms, self._window(budget, at_ms), values, own, kept_ppm, pinned_to)

    def _window(self, budget: Budget, at_ms: int) -> Window:
        key = (budget.window, budget.timezone.key, budget.span_ms)
        window = self._windows.get(key)
        if window is None or not window.holds(at_ms):
            if budget.window is WindowKind.ROLLING:
                window = rolling(budget.span_ms)
            else:
                window = window_at(budget.window, budget.timezone, at_ms)
            self._windows[key] = window
        return window


def _ancestors(caller: Caller) -> list[Caller]:
    """The caller as each of the run's ancestors, the nearest first: whatever else is asked of a budget's scope is the caller's own."""
    runs = dict.fromkeys(caller.ancestry)
    runs.pop(caller.run, None)  # a cycle, which the ledger refuses: here it must not count an account twice
    return [replace(caller, run=run, run_scope=run) for run in runs]


def _applied(tenant: str, met: Sequence[_Met | str], limited: bool) -> Standing:
    budgets = [each for each in met if isinstance(each, _Met)]
    # In an outage a run's own limit is not known: it stands in nobody's way whom nothing else would stop, and who brings none.
    outage_allow = not limited and all(each.terms.outage_allow for each in budgets)
    # A run's own limit, where no budget is that, is held as every budget is that stands in a call's way.
    gates = [each for each in budgets if each.gates]
    all_sliced = bool(gates) and all(each.sliced for each in gates)
    whole: list[Charge] = []
    shared: list[Charge] = []
    opened: list[tuple[int, _Met]] = []
    for place, each in enumerate(met):
        if isinstance(each, str):
            account = Account(tenant, RUN_LIMIT, (("run", each),), LIFETIME, Unit.USD)
            basis = Basis.RESERVED_AND_COMMITTED
            whole.append(Charge(Ceiling(account, None, Mode.HARD_GATE, basis, own=True, outage_allow=outage_allow)))
            shared.append(whole[-1])
        elif None in each.values:
            opened.append((place, each))
        else:
            as_last, with_cheaper = each.charges(each.account(tenant))
            whole.append(as_last)
            shared.append(with_cheaper)
    return Standing(
        tenant,
        max((each.window.start_ms for each in budgets), default=0),
        min((each.window.end_ms for each in budgets), default=END_OF_TIME_MS),
        any(each.terms.mode is Mode.HARD_GATE and each.terms.limit.unit in OF_CALLS for each in budgets),
        tuple(whole),
        tuple(shared),
        tuple(opened),
        frozenset(place for place, each in enumerate(met) if (all_sliced if isinstance(each, str) else each.sliced)),
    )


def _granted(standing: Standing, grants: Sequence[Grant], halted: str | None) -> Standing:
    """With what the grants add: a hard gate each, after the policy's."""
    charges = tuple([grant.charge for grant in grants])
    shut = None if halted is None else Shut(standing.tenant, halted)
    for grant in grants:
        if grant.status is not GrantStatus.ACTIVE:
            shut = shut or Shut(grant.text, grant.status.value)
    return replace(
        standing,
        hard=standing.hard or any(grant.unit in OF_CALLS for grant in grants),
        whole=standing.whole + charges,
        shared=standing.shared + charges,
        shut=shut,
    )


def fits(charge: Charge, amount: int, limit: int | None, committed: int, reserved: int) -> bool:
    """Whether a plan that takes `amount` fits under the charge: the rule of `Ceiling`. `limit` is the effective one. For readers of
    balances; what a call may really do, the ledger alone says."""
    ceiling = charge.ceiling
    if limit is None or amount == 0 or ceiling.basis is Basis.NONE:
        return True
    return not exceeds(charge, amount, limit, committed, reserved)


def exceeds(charge: Charge, amount: int, limit: int, committed: int, reserved: int) -> bool:
    """As `fits`, but also for an advisory ceiling, which only warns."""
    room = limit * charge.share_ppm // WHOLE + charge.ceiling.margin
    if charge.ceiling.basis is Basis.COMMITTED:
        return committed >= room
    return reserved + committed + amount > room


def wait_ms(charge: Charge, amount: int, balance: Balance, at_ms: int) -> int | None:
    """How long until `amount` would fit under the charge, if nothing else were committed and every hold returned; at least a second.
    None: waiting is not what it takes. Only rolling windows and calendar minutes pass soon enough to be waited for."""
    limit, window = balance.limit, balance.account.window
    basis = charge.ceiling.basis
    # What the account must stand below, or may stand at, for the call to fit.
    at_most = 0 if limit is None else limit * charge.share_ppm // WHOLE + charge.ceiling.margin
    at_most -= 1 if basis is Basis.COMMITTED else amount
    if limit is None or basis is Basis.NONE or at_most < 0:
        return None
    if window.kind is WindowKind.MINUTE:
        return max(_SHORTEST_WAIT_MS, window.end_ms - at_ms)
    if window.kind is not WindowKind.ROLLING:
        return None
    committed, free_ms = balance.committed, at_ms
    for falls_out_ms, aged in balance.aging:
        if committed <= at_most:
            break
        committed, free_ms = committed - aged, falls_out_ms
    return max(_SHORTEST_WAIT_MS, free_ms - at_ms) if committed <= at_most else None


def strictest(modes: Collection[Mode]) -> Mode:
    """The strictest of the modes; where nothing applies, the one that blocks nothing."""
    return next((mode for mode in STRICTEST_FIRST if mode in modes), Mode.ADVISORY_ESTIMATE)
