"""What the gateway would do with a request, and why: budgets, estimate, ladder, decision. No call is made, nothing is held."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway.core import estimate
from gateway.core.ceilings import WHOLE, exceeds, fits
from gateway.core.decide import Rulebook
from gateway.core.money import format_usd
from gateway.core.scopes import Account, Unit
from gateway.core.values import Balance, Basis, Charge, Decision, Plan
from gateway.core.windows import Window, WindowKind
from gateway.ledger.contract import RunState, RunView


@dataclass(frozen=True, slots=True)
class Explanation:
    """`balances` by account key: what the ledger holds by now; an account that it does not know has none."""

    decision: Decision
    rulebook: Rulebook
    balances: Mapping[str, Balance]
    run: RunView | None  # None: the ledger does not know the run yet

    def lines(self) -> Iterator[str]:
        """The explanation as text, for a terminal."""
        yield from self._budgets()
        for place, plan in enumerate(self.decision.ladder, start=1):
            yield ""
            yield from self._plan(place, plan)
        for passed in self.decision.passed_over:
            yield f"not in the ladder: {passed.model}: {passed.reason}"
        yield ""
        yield self._outcome()

    def _budgets(self) -> Iterator[str]:
        caller = self.decision.call.caller
        dimensions = "".join(f", {name} {value}" for name, value in caller.dimensions)
        yield f"caller    tenant {caller.tenant}, key {caller.key}, run {caller.run}{dimensions}"
        charges = self.decision.ladder[0].charges
        yield "budgets   that apply to the requested model" if charges else "budgets   none applies: nothing limits this call"
        for charge in charges:
            account, balance, limit = charge.ceiling.account, self._balance(charge), self._limit(charge)
            words = (
                f"{account.budget:<18} {_scope(account)}",
                _window(account.window),
                "no limit" if limit is None else _amount(limit, account.unit),
                charge.ceiling.mode.value,
                f"committed {_amount(balance.committed, account.unit)}, reserved {_amount(balance.reserved, account.unit)}",
            )
            yield "  " + " · ".join(words)

    def _plan(self, place: int, plan: Plan) -> Iterator[str]:
        call = self.decision.call
        model = self.rulebook.catalog.models[plan.model]
        cost = format_usd(plan.cost_max.usd)
        yield f"plan {place}    {plan.model} at {plan.provider}, at most {plan.output_cap} output tokens: up to ${cost}"
        for line in estimate.explain(call, model, self.rulebook.counter, plan.output_cap):
            yield f"  {line.what:<32} {line.tokens:>9,} tokens  ${format_usd(line.usd)}"
        blocking = self._blocking(plan)
        yield "  fits" if blocking is None else f"  does not fit {blocking.ceiling.account.budget}{_share(blocking)}"

    def _outcome(self) -> str:
        ladder, run = self.decision.ladder, self.run
        if run is not None and run.state is RunState.STOPPED:
            return f"decision  block: the run {run.run} was stopped"
        plan = next((plan for plan in ladder if self._blocking(plan) is None), None)
        if plan is None:
            return "decision  block: no plan fits"
        if plan.model != ladder[0].model:
            return f"decision  downgrade: {plan.model} would be called"
        warned = self._warned(plan)
        if warned is not None:
            return f"decision  advisory_warn: {plan.model} would be called, above what {warned.ceiling.account.budget} advises"
        return f"decision  allow: {plan.model} would be called"

    def _blocking(self, plan: Plan) -> Charge | None:
        """As the ledger would judge it with these balances."""
        for charge in plan.charges:
            balance, amount = self._balance(charge), plan.cost_max.of(charge.ceiling.account.unit)
            if not fits(charge, amount, self._limit(charge), balance.committed, balance.reserved):
                return charge
        return None

    def _warned(self, plan: Plan) -> Charge | None:
        """The advisory charge that the plan would exceed, if any."""
        for charge in plan.charges:
            if charge.ceiling.basis is not Basis.NONE:
                continue
            balance, limit, amount = self._balance(charge), self._limit(charge), plan.cost_max.of(charge.ceiling.account.unit)
            if limit is not None and amount and exceeds(charge, amount, limit, balance.committed, balance.reserved):
                return charge
        return None

    def _limit(self, charge: Charge) -> int | None:
        """The effective limit. The run's own tightens the policy's, or replaces it where the admin set it; a limit that comes with
        the call tightens the run's. (Unless the run has heard it before and the admin has raised it since: that only the ledger knows.)"""
        ceiling, run = charge.ceiling, self.run
        if not ceiling.own:
            return ceiling.limit
        own = None if run is None else run.limit
        if run is not None and run.raised and own is not None:
            return own
        known = [limit for limit in (ceiling.limit, own, self.decision.call.directives.run_limit) if limit is not None]
        return min(known, default=None)

    def _balance(self, charge: Charge) -> Balance:
        account = charge.ceiling.account
        return self.balances.get(account.key) or Balance(account, charge.ceiling.limit, 0, 0)


def _scope(account: Account) -> str:
    return ", ".join(f"{name} {value}" for name, value in account.scope) or account.scope_name


def _window(window: Window) -> str:
    """`lifetime`, `day from 2026-11-22 00:00 (Europe/Berlin)`."""
    if window.kind is WindowKind.LIFETIME:
        return window.kind.value
    start = datetime.fromtimestamp(window.start_ms / 1000, ZoneInfo(window.timezone))
    return f"{window.kind.value} from {start:%Y-%m-%d %H:%M} ({window.timezone})"


def _amount(amount: int, unit: Unit) -> str:
    return f"${format_usd(amount)}" if unit is Unit.USD else f"{amount:,} {unit.value}"


def _share(charge: Charge) -> str:
    if charge.share_ppm == WHOLE:
        return ""
    return f" (this plan may use {charge.share_ppm / 10_000:g}% of it: the rest is for cheaper ones)"
