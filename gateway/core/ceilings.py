"""Which accounts a caller's calls count in, and the ceiling each sets. Pure: same policy, caller and instant, the same charges.

Most of it is the same for every call of a run, so it is worked out once (a `Standing`) and kept for as long as its windows last. Only
budgets whose scope names `model` or `provider` wait for the plan.
"""

from collections.abc import Iterable
from dataclasses import field
from typing import Final

from gateway.core.policy import Budget, Missing, Policy, Terms
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, Account, Caller, Unit
from gateway.core.values import Basis, Call, Ceiling, Charge, Mode
from gateway.core.windows import END_OF_TIME_MS, LIFETIME, Window, WindowKind, window_at

WHOLE: Final = 1_000_000  # a share of all, in ppm
RUN_LIMIT: Final = "run-limit"  # the budget behind a run's own limit where the policy sets no hard ceiling per run
PLAN_DIMENSIONS: Final = frozenset({"model", "provider"})

STRICTEST_FIRST: Final = (Mode.HARD_GATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY, Mode.ADVISORY_ESTIMATE)

_STANDINGS_AT_MOST: Final = 10_000
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
class _Open:
    """A budget whose account is known only with the plan. `values` has None where the plan's model or provider goes."""

    budget: Budget
    terms: Terms
    window: Window
    values: tuple[str | None, ...]

    def charge(self, tenant: str, model: str, provider: str, has_cheaper: bool) -> Charge:
        plan = {"model": model, "provider": provider}
        scope = tuple(
            (name, plan[name] if value is None else value) for name, value in zip(self.budget.scope, self.values, strict=True)
        )
        account = Account(tenant, self.budget.name, scope, self.window, self.terms.limit.unit)
        return Charge(_ceiling(self.budget, self.terms, account), _share(self.terms) if has_cheaper else WHOLE)


@record
class Standing:
    """What a caller's calls meet, valid in `[from_ms, until_ms)`."""

    tenant: str
    from_ms: int
    until_ms: int
    hard: bool  # some hard gate of the policy applies
    whole: tuple[Charge, ...]  # as plans meet it that have no cheaper model after them
    shared: tuple[Charge, ...]  # as the others do: `downgrade_below` leaves the rest of a limit to the cheaper models
    open: tuple[tuple[int, _Open], ...]  # (place among the charges, budget), in the policy's order
    _by_plan: dict[tuple[str, str, bool], tuple[Charge, ...]] = field(default_factory=dict, compare=False, repr=False)

    def charges(self, model: str, provider: str, has_cheaper: bool) -> tuple[Charge, ...]:
        """The charges of a plan, in the policy's order; each names an account of its own."""
        known = self.shared if has_cheaper else self.whole
        if not self.open:
            return known
        plan = (model, provider, has_cheaper)
        charges = self._by_plan.get(plan)
        if charges is None:
            filled = list(known)
            for place, budget in self.open:
                filled.insert(place, budget.charge(self.tenant, model, provider, has_cheaper))
            charges = self._by_plan[plan] = tuple(filled)
        return charges


class Ceilings:
    """The budgets of a policy, ready to be applied. What it keeps is only a hint: it can be made anew at any time."""

    def __init__(self, policy: Policy) -> None:
        self._budgets = policy.budgets
        self._windows: dict[tuple[WindowKind, str], Window] = {}
        self._standings: dict[object, Standing] = {}

    def standing(self, call: Call, at_ms: int) -> Standing | DimensionRequired:
        caller = call.caller
        # Nobody comes back to an issued run: it gets an account for its own limit only if it asks for a limit.
        limited_run = None if caller.run_issued and call.directives.run_limit is None else caller.run
        key = (caller.tenant, caller.key, caller.run_scope, limited_run, caller.dimensions)
        standing = self._standings.get(key)
        if standing is None or not standing.from_ms <= at_ms < standing.until_ms:
            made = self._standing(caller, limited_run, at_ms)
            if isinstance(made, DimensionRequired):
                return made
            if len(self._standings) >= _STANDINGS_AT_MOST:
                self._standings.clear()
            standing = self._standings[key] = made
        return standing

    def run_ceiling(self, caller: Caller) -> int | None:
        """The policy's own limit for the caller's run, in microcents; None where it sets none."""
        budget = self._own_budget(caller)
        return None if budget is None else budget.terms_for(caller).limit.amount

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

    def _standing(self, caller: Caller, limited_run: str | None, at_ms: int) -> Standing | DimensionRequired:
        own = self._own_budget(caller)
        hard = False
        whole: list[Charge] = []
        shared: list[Charge] = []
        opened: list[tuple[int, _Open]] = []
        windows: list[Window] = []
        for budget in self._budgets:
            missing = next((name for name in budget.scope if name not in PLAN_DIMENSIONS and caller.value(name) is None), None)
            if missing is not None and budget.missing is Missing.SKIP:
                continue
            if missing is not None and budget.missing is Missing.REFUSE:
                return DimensionRequired(budget.name, missing)
            values = tuple(None if name in PLAN_DIMENSIONS else caller.value(name) or NO_VALUE for name in budget.scope)
            terms, window = budget.terms_for(caller), self._window(budget, at_ms)
            windows.append(window)
            hard = hard or terms.mode is Mode.HARD_GATE
            if None in values:
                opened.append((len(whole) + len(opened), _Open(budget, terms, window, values)))
                continue
            scope = tuple((name, value or NO_VALUE) for name, value in zip(budget.scope, values, strict=True))
            account = Account(caller.tenant, budget.name, scope, window, terms.limit.unit)
            ceiling = _ceiling(budget, terms, account, own=budget is own)
            whole.append(Charge(ceiling))
            shared.append(Charge(ceiling, _share(terms)) if terms.downgrade_below_ppm else whole[-1])
        if own is None and limited_run is not None:
            account = Account(caller.tenant, RUN_LIMIT, (("run", limited_run),), LIFETIME, Unit.USD)
            whole.append(Charge(Ceiling(account, None, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED, own=True)))
            shared.append(whole[-1])
        from_ms = max((window.start_ms for window in windows), default=0)
        until_ms = min((window.end_ms for window in windows), default=END_OF_TIME_MS)
        return Standing(caller.tenant, from_ms, until_ms, hard, tuple(whole), tuple(shared), tuple(opened))

    def _window(self, budget: Budget, at_ms: int) -> Window:
        key = (budget.window, budget.timezone.key)
        window = self._windows.get(key)
        if window is None or not window.holds(at_ms):
            window = self._windows[key] = window_at(budget.window, budget.timezone, at_ms)
        return window


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


def strictest(modes: Iterable[Mode]) -> Mode:
    """The strictest of the modes; where nothing applies, the one that blocks nothing."""
    return min(modes, key=STRICTEST_FIRST.index, default=Mode.ADVISORY_ESTIMATE)


def _ceiling(budget: Budget, terms: Terms, account: Account, own: bool = False) -> Ceiling:
    limit = terms.limit.amount
    return Ceiling(account, limit, terms.mode, _BASIS[terms.mode], terms.margin.above(limit), own, budget.alerts_ppm)


def _share(terms: Terms) -> int:
    return WHOLE - terms.downgrade_below_ppm
