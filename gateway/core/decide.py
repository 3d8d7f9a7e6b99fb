"""Which plans may serve a call, and the ceilings each has to fit under. Pure: same call, policy, prices, the same ladder.

Nothing here knows a balance. The ladder goes to the ledger, which holds the first plan that fits: a downgrade is data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core import estimate
from gateway.core.catalog import Catalog, Model
from gateway.core.policy import Budget, Missing, Policy
from gateway.core.scopes import NO_VALUE, Account, Amounts, Caller, Unit
from gateway.core.tokens import TokenCounter
from gateway.core.values import Basis, Call, Ceiling, Charge, Decision, Mode, Passed, Plan
from gateway.core.windows import LIFETIME, Window, WindowKind, window_at

WHOLE: Final = 1_000_000  # a share of all, in ppm
SMALLEST_CLAMP: Final = 256  # output tokens
CLAMPS: Final = (2, 4, 8)
RUN_LIMIT: Final = "run-limit"  # the budget behind a run's own limit where the policy sets no hard ceiling per run
PLAN_DIMENSIONS: Final = frozenset({"model", "provider"})
STRICTEST_FIRST: Final = (Mode.HARD_GATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY, Mode.ADVISORY_ESTIMATE)

_BASIS: Final = {
    Mode.HARD_GATE: Basis.RESERVED_AND_COMMITTED,
    Mode.SOFT_GATE: Basis.RESERVED_AND_COMMITTED,
    Mode.ACTUALS_ONLY: Basis.COMMITTED,
    Mode.ADVISORY_ESTIMATE: Basis.NONE,
}


@dataclass(frozen=True, slots=True)
class Unservable:
    """No plan at all, whatever the balances: the requested model is unknown, unpriced, not allowed, not able or too small."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    """A model as one call would use it."""

    model: Model
    provider: str
    cap: int
    input_tokens: int
    cost_max: Amounts


class Rulebook:
    """A policy and a catalog, ready to decide. Made once per policy; its caches hold nothing that a restart would miss."""

    def __init__(self, policy: Policy, catalog: Catalog, counter: TokenCounter) -> None:
        self.policy = policy
        self.catalog = catalog
        self.counter = counter
        # Headers that say who is calling: they never go upstream.
        self.identity_headers = frozenset(
            source.name for _, sources in policy.identity for source in sources if source.kind == "header"
        ) | ({policy.runs.id_header} if policy.runs.id_header else frozenset())
        self._windows: dict[tuple[WindowKind, str], Window] = {}
        self._accounts: dict[tuple[str, str, tuple[str, ...], int], Account] = {}

    # -- the decision ---------------------------------------------------------------------------------------------------------

    def decide(self, call: Call, served: frozenset[str], at_ms: int, decision_id: str) -> Decision | Unservable:
        """`served` names the providers that this caller can reach: those with a credential."""
        first = self._rung(call, call.model, served)
        if isinstance(first, Unservable):
            return first
        ceilings = self._ceilings(call, first, at_ms)
        if isinstance(ceilings, Unservable):
            return ceilings
        rungs, passed_over = [first], []
        for name in self._cheaper_names(call, first):
            rung = self._rung(call, name, served)
            reason = rung.message if isinstance(rung, Unservable) else _unfit(call, rung, first)
            if reason is not None:
                passed_over.append(Passed(name, reason))
            elif not isinstance(rung, Unservable):
                rungs.append(rung)
        if self.policy.output.clamp_to_budget:
            rungs.extend(self._clamped(call, rungs[-1]))
        return Decision(
            decision_id, call, self._ladder(call, rungs, at_ms), at_ms, self.catalog.version, tuple(passed_over)
        )

    def alternatives(self, decision: Decision, served: frozenset[str], at_most: int = 5) -> Sequence[tuple[Model, Plan]]:
        """What a refused call could ask for instead: the rest of its ladder, then cheaper models of the same provider."""
        call = decision.call
        first = self._rung(call, call.model, served)
        if isinstance(first, Unservable):
            return ()
        names = list(dict.fromkeys([*self.policy.models.ladder_for(call.model), *self._same_provider(first)]))
        rungs = []
        for name in names:
            rung = self._rung(call, name, served)
            if not isinstance(rung, Unservable) and _unfit(call, rung, first) is None:
                rungs.append(rung)
            if len(rungs) == at_most:
                break
        return [(rung.model, self._ladder(call, [rung], decision.at_ms)[0]) for rung in rungs]

    def encodings(self, call: Call) -> frozenset[str | None]:
        """The encodings that deciding this call counts with, so that large new text can be counted beforehand elsewhere."""
        names = (call.model, *self.policy.models.ladder_for(call.model))
        return frozenset(model.encoding for name in names if (model := self.catalog.find(name)) is not None)

    # -- rungs ----------------------------------------------------------------------------------------------------------------

    def _rung(self, call: Call, name: str, served: frozenset[str]) -> Rung | Unservable:
        """What the model would cost for this call, or why it can't serve it."""
        provider = self.catalog.provider_of(name)
        model = self.catalog.find(name)
        if not self.policy.models.allows(name):
            return Unservable("model_not_served", f"the policy does not allow the model {name!r} (models.allow)", "model")
        if model is None or not model.priced:
            return Unservable(
                "model_not_priced",
                f"the price of the model {name!r} is not known, so its cost cannot be bounded: add it to `models` in the "
                "config, with its price or with `free: true`",
                "model",
            )
        if provider is None or provider not in served:
            return Unservable(
                "model_not_served",
                f"the model {name!r} is served by {provider or 'no provider'}, for which there is no credential here",
                "model",
            )
        input_tokens = estimate.input_tokens(call, model, self.counter)
        cap = estimate.output_cap(call, model, input_tokens, self.policy.output)
        if cap < 1:
            return Unservable(
                "not_estimable",
                f"the input, about {input_tokens} tokens, leaves no room for output in the {model.context} tokens of {name}",
                "messages",
            )
        return Rung(model, provider, cap, input_tokens, estimate.worst_case(call, model, input_tokens, cap))

    def _cheaper_names(self, call: Call, first: Rung) -> Iterable[str]:
        if not call.directives.downgrade:
            return ()
        if self.policy.models.auto:
            return self._same_provider(first)
        return self.policy.models.ladder_for(call.model)

    def _same_provider(self, first: Rung) -> Sequence[str]:
        """Names of the provider's cheaper models, dearest first. By list price of output: the call's own cost is checked later."""
        if not first.model.tiers:
            return ()
        ceiling = first.model.tiers[0].output
        cheaper = [
            (model.tiers[0].output, model.name)
            for model in self.catalog.of_provider(first.provider)
            if model.tiers and model.tiers[0].output < ceiling
        ]
        return [name for _, name in sorted(cheaper, key=lambda pair: (-pair[0], pair[1]))]

    def _clamped(self, call: Call, last: Rung) -> Iterable[Rung]:
        """The cheapest model once more, with less and less output."""
        for divisor in CLAMPS:
            cap = last.cap // divisor
            if cap < SMALLEST_CLAMP:
                return
            yield replace(last, cap=cap, cost_max=estimate.worst_case(call, last.model, last.input_tokens, cap))

    def _ladder(self, call: Call, rungs: Sequence[Rung], at_ms: int) -> tuple[Plan, ...]:
        plans = []
        for rung in rungs:
            ceilings = self._ceilings(call, rung, at_ms)
            assert not isinstance(ceilings, Unservable)  # the first rung's were not, and only the plan's own dimensions differ
            has_cheaper = rung.model is not rungs[-1].model
            charges = tuple(Charge(c, WHOLE - below if has_cheaper else WHOLE) for c, below in ceilings)
            plans.append(Plan(rung.model.name, rung.provider, rung.cap, rung.input_tokens, rung.cost_max, charges))
        return tuple(plans)

    # -- ceilings -------------------------------------------------------------------------------------------------------------

    def run_ceiling(self, caller: Caller) -> int | None:
        """The policy's own limit for the caller's run, in microcents; None where it sets none."""
        budget = self._own_budget(caller)
        return None if budget is None else budget.terms_for(caller).limit.amount

    def _own_budget(self, caller: Caller) -> Budget | None:
        """The budget that the run's own limit replaces: the first hard ceiling in USD on the run's whole life."""
        if caller.run_scope != caller.run:
            return None  # counted on a shared account, whose limit is not this run's to change
        for budget in self.policy.budgets:
            if budget.scope == ("run",) and budget.window is WindowKind.LIFETIME:
                terms = budget.terms_for(caller)
                if terms.mode is Mode.HARD_GATE and terms.limit.unit is Unit.USD:
                    return budget
        return None

    def _ceilings(self, call: Call, rung: Rung, at_ms: int) -> Sequence[tuple[Ceiling, int]] | Unservable:
        """(ceiling, downgrade_below_ppm) of each budget that applies."""
        caller = call.caller
        own = self._own_budget(caller)
        ceilings: list[tuple[Ceiling, int]] = []
        for budget in self.policy.budgets:
            values = tuple(_value(name, caller, rung) for name in budget.scope)
            if None in values:
                if budget.missing is Missing.SKIP:
                    continue
                if budget.missing is Missing.REFUSE:
                    name = budget.scope[values.index(None)]
                    return Unservable("dimension_required", f"the budget {budget.name!r} needs each call to name its {name}", name)
            terms = budget.terms_for(caller)
            account = self._account(budget, caller.tenant, tuple(v or NO_VALUE for v in values), terms.limit.unit, at_ms)
            limit = terms.limit.amount
            ceiling = Ceiling(
                account, limit, terms.mode, _BASIS[terms.mode], terms.margin.above(limit), budget is own, budget.alerts_ppm
            )
            ceilings.append((ceiling, terms.downgrade_below_ppm))
        if own is None and (not caller.run_issued or call.directives.run_limit is not None):
            account = Account(caller.tenant, RUN_LIMIT, (("run", caller.run),), LIFETIME, Unit.USD)
            ceilings.append((Ceiling(account, None, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED, own=True), 0))
        unpriced = call.unpriced[0] if call.unpriced else None
        if unpriced is None and not estimate.service_tier_priced(rung.model, call.service_tier):
            unpriced = "service_tier"
        if unpriced is not None and any(ceiling.mode is Mode.HARD_GATE for ceiling, _ in ceilings):
            return Unservable(
                "not_estimable", f"the field {unpriced!r} changes the price in a way that cannot be bounded: leave it out", unpriced
            )
        return ceilings

    def _account(self, budget: Budget, tenant: str, values: tuple[str, ...], unit: Unit, at_ms: int) -> Account:
        window = self._window(budget, at_ms)
        key = (budget.name, tenant, values, window.start_ms)
        account = self._accounts.get(key)
        if account is None or account.unit is not unit:
            if len(self._accounts) >= 20_000:
                self._accounts.clear()
            account = Account(tenant, budget.name, tuple(zip(budget.scope, values, strict=True)), window, unit)
            self._accounts[key] = account
        return account

    def _window(self, budget: Budget, at_ms: int) -> Window:
        key = (budget.window, budget.timezone.key)
        window = self._windows.get(key)
        if window is None or not window.holds(at_ms):
            window = self._windows[key] = window_at(budget.window, budget.timezone, at_ms)
        return window


def enforcement_mode(plan: Plan) -> Mode:
    """The strictest mode of the ceilings that apply."""
    modes = {charge.ceiling.mode for charge in plan.charges}
    return next((mode for mode in STRICTEST_FIRST if mode in modes), Mode.ADVISORY_ESTIMATE)


def _value(dimension: str, caller: Caller, rung: Rung) -> str | None:
    if dimension == "model":
        return rung.model.name
    if dimension == "provider":
        return rung.provider
    return caller.value(dimension)


def _unfit(call: Call, rung: Rung, first: Rung) -> str | None:
    """Why a cheaper model cannot stand in for the requested one, or None."""
    model = rung.model
    lacking = call.needs - model.capabilities
    if lacking:
        return f"lacks {', '.join(sorted(lacking))}"
    if model.parameters is not None and (unknown := call.parameters - model.parameters):
        return f"does not take {', '.join(sorted(unknown))}"
    # A client that named a cap gets it; one that named none gets each model's default, as long as it is worth having.
    enough = first.cap if call.client_cap is not None else min(first.cap, SMALLEST_CLAMP)
    if rung.cap < enough:
        return f"can write only {rung.cap} tokens here"
    if rung.cost_max.usd >= first.cost_max.usd:
        return "is not cheaper for this call"
    return None
