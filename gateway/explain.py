"""What the gateway would do with a request, and why: budgets, estimate, ladder, decision. No call is made, nothing is held."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.core import estimate
from gateway.core.decide import Rulebook
from gateway.core.money import format_usd
from gateway.core.scopes import Unit
from gateway.core.values import Balance, Basis, Charge, Decision, Plan
from gateway.ledger.contract import RunView


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
            yield f"not in the ladder: {passed.model} {passed.reason}"
        yield ""
        yield self._outcome()

    def _budgets(self) -> Iterator[str]:
        caller = self.decision.call.caller
        yield f"caller    tenant {caller.tenant}, key {caller.key}, run {caller.run}" + "".join(f", {n} {v}" for n, v in caller.dimensions)
        yield "budgets   that apply to the requested model"
        for charge in self.decision.ladder[0].charges:
            ceiling, unit = charge.ceiling, charge.ceiling.account.unit
            balance = self._balance(charge)
            effective = self._limit(charge)
            limit = "no limit" if effective is None else _amount(effective, unit)
            spent = f"committed {_amount(balance.committed, unit)}, reserved {_amount(balance.reserved, unit)}"
            yield f"  {ceiling.account.budget:<18} {ceiling.account.scope_name} · {ceiling.account.window.key} · {limit} · {ceiling.mode.value} · {spent}"

    def _plan(self, place: int, plan: Plan) -> Iterator[str]:
        call = self.decision.call
        model = self.rulebook.catalog.models[plan.model]
        yield f"plan {place}    {plan.model} at {plan.provider}, at most {plan.output_cap} output tokens: up to ${format_usd(plan.cost_max.usd)}"
        for line in estimate.explain(call, model, self.rulebook.counter, plan.output_cap):
            yield f"  {line.what:<32} {line.tokens:>9,} tokens  ${format_usd(line.usd)}"
        blocking = self._blocking(plan)
        yield "  fits" if blocking is None else f"  does not fit {blocking.ceiling.account.budget}{_share(blocking)}"

    def _outcome(self) -> str:
        for plan in self.decision.ladder:
            if self._blocking(plan) is None:
                outcome = "allow" if plan.model == self.decision.ladder[0].model else "downgrade"
                return f"decision  {outcome}: {plan.model} would be called"
        return "decision  block: no plan fits"

    def _blocking(self, plan: Plan) -> Charge | None:
        """As the ledger would judge it with these balances (`ledger.contract` has the rule)."""
        for charge in plan.charges:
            ceiling, balance, limit = charge.ceiling, self._balance(charge), self._limit(charge)
            if limit is None or ceiling.basis is Basis.NONE:
                continue
            room = limit * charge.share_ppm // 1_000_000 + ceiling.margin
            amount = plan.cost_max.of(ceiling.account.unit)
            if ceiling.basis is Basis.COMMITTED:
                if balance.committed >= room:
                    return charge
            elif amount and balance.committed + balance.reserved + amount > room:
                return charge
        return None

    def _limit(self, charge: Charge) -> int | None:
        """The effective limit: the run's own replaces the policy's, or only tightens it unless the admin set it."""
        ceiling, run = charge.ceiling, self.run
        if not ceiling.own or run is None or run.limit is None:
            return ceiling.limit
        return run.limit if run.raised or ceiling.limit is None else min(run.limit, ceiling.limit)

    def _balance(self, charge: Charge) -> Balance:
        account = charge.ceiling.account
        return self.balances.get(account.key) or Balance(account, charge.ceiling.limit, 0, 0)


def _amount(amount: int, unit: Unit) -> str:
    return f"${format_usd(amount)}" if unit is Unit.USD else f"{amount:,} {unit.value}"


def _share(charge: Charge) -> str:
    return "" if charge.share_ppm == 1_000_000 else f" (this plan may use {charge.share_ppm / 10_000:g}% of it: the rest is for cheaper ones)"
