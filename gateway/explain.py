"""What the gateway would do with a request, and why: budgets, estimate, ladder, decision. No call is made, nothing is held."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway.core import estimate
from gateway.core.ceilings import WHOLE
from gateway.core.decide import Rulebook
from gateway.core.money import format_usd
from gateway.core.scopes import Account, Unit
from gateway.core.values import Charge, Decision, Outcome, Plan
from gateway.core.windows import Window, WindowKind
from gateway.outlook import Known, Outlook, pinned_to


@dataclass(frozen=True, slots=True)
class Explanation:
    """An outlook in words."""

    decision: Decision
    rulebook: Rulebook
    known: Known

    @property
    def outlook(self) -> Outlook:
        return Outlook(self.decision, self.known)

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
        plan = self.decision.ladder[0]
        charges = plan.charges
        yield "budgets   that apply to the requested model" if charges else "budgets   none applies: nothing limits this call"
        for charge in charges:
            account, balance = charge.ceiling.account, self.outlook.balance(charge)
            words = (
                f"{account.name:<18} {_scope(account)}",
                _window(account.window),
                self._limit_words(charge, plan),
                charge.ceiling.mode.value,
                f"committed {_amount(balance.committed, account.unit)}, reserved {_amount(balance.reserved, account.unit)}",
            )
            yield "  " + " · ".join(words)

    def _plan(self, place: int, plan: Plan) -> Iterator[str]:
        call = self.decision.call
        model = self.rulebook.route(plan).model
        cost = format_usd(plan.cost_max.usd)
        yield f"plan {place}    {plan.model} at {plan.provider}, at most {plan.output_cap} output tokens: up to ${cost}"
        for line in estimate.explain(call, model, self.rulebook.counter, plan.output_cap):
            yield f"  {line.what:<32} {line.tokens:>9,} tokens  ${format_usd(line.usd)}"
        if plan.slice is not None:
            names = ", ".join(charge.ceiling.account.name for charge in plan.charges if charge.sliced)
            yield (
                f"  held at first in {names}: ${format_usd(plan.slice.cost.usd)}, the input and {plan.slice.output_cap:,} tokens of output"
            )
        blocking = self.outlook.blocking(plan)
        yield "  fits" if blocking is None else f"  does not fit {blocking.ceiling.account.name}{self._share(blocking, plan)}"

    def _limit_words(self, charge: Charge, plan: Plan) -> str:
        ceiling, unit = charge.ceiling, charge.ceiling.account.unit
        limit = self.outlook.limit(charge, plan)
        if limit is None:
            return "no limit"
        if not ceiling.pinned_ppm:
            return _amount(limit, unit)
        return f"{_amount(limit, unit)} ({_percent(ceiling.pinned_ppm)} of {pinned_to(ceiling, plan).ceiling.account.name})"

    def _share(self, charge: Charge, plan: Plan) -> str:
        """Why the plan may not use the whole limit."""
        if charge.share_ppm == WHOLE:
            return ""
        as_last = self.decision.ladder[-1].charges[
            plan.charges.index(charge)
        ]  # every plan has the same budgets in the same order
        rest = "for cheaper ones" if charge.share_ppm < as_last.share_ppm else "kept for calls that wrap up"
        return f" (this plan may use {_percent(charge.share_ppm)} of it: the rest is {rest})"

    def _outcome(self) -> str:
        outlook = self.outlook
        barred, plan = outlook.barred(), outlook.chosen
        if plan is None:
            return f"decision  block: {barred or 'no plan fits'}"
        told = f"decision  {outlook.outcome}: {plan.model} would be called"
        warned = outlook.warned(plan) if outlook.outcome is Outcome.ADVISORY_WARN else None
        return told if warned is None else f"{told}, above what {warned.ceiling.account.name} advises"


def _scope(account: Account) -> str:
    return ", ".join(f"{name} {value}" for name, value in account.scope) or account.scope_name


def _window(window: Window) -> str:
    """`lifetime`, `rolling 10m`, `day from 2026-11-22 00:00 (Europe/Berlin)`."""
    if window.kind in (WindowKind.LIFETIME, WindowKind.ROLLING):
        return window.name
    start = datetime.fromtimestamp(window.start_ms / 1000, ZoneInfo(window.timezone))
    return f"{window.name} from {start:%Y-%m-%d %H:%M} ({window.timezone})"


def _amount(amount: int, unit: Unit) -> str:
    return f"${format_usd(amount)}" if unit is Unit.USD else f"{amount:,} {unit.words}"


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:g}%"
