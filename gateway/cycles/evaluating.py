"""What a reservation would be answered, where nothing is held: a decision, or a dry run. By balances as they were read."""

from dataclasses import dataclass, replace
from typing import Final

from gateway.core.scopes import Amounts
from gateway.core.values import Decision, Ending, Usage, UsageSource
from gateway.cycles import barring, telling
from gateway.cycles.asking import RESERVATION, Order
from gateway.cycles.faults import Fault
from gateway.cycles.ground import Ground, mismatch
from gateway.cycles.kept import Answered, Held, answered_of, held_of
from gateway.cycles.reading import UNITS, Asked, Create
from gateway.cycles.telling import Json
from gateway.identity import Principal
from gateway.ledger.contract import CallRecord, Debiting, RunState, Settlement
from gateway.outlook import Known, Outlook, known

KEEP_MS: Final = 86_400_000  # decisions
DECISIONS: Final = "cyd"  # what the names of their notes begin with

_NOTHING: Final = Amounts(0, 0, 0)
# Errors of a live request that an evaluation denies instead.
_DENIED: Final = frozenset({"BUDGET_FROZEN", "BUDGET_CLOSED", "LIMIT_EXCEEDED"})


@dataclass(frozen=True, slots=True)
class Evaluating:
    ground: Ground

    async def decide(self, principal: Principal, asked: Asked) -> Json:
        """The same key again gets the same answer for a day: it says how things stood then."""
        ground, ledger = self.ground, self.ground.ledger
        order = ground.asking.order(principal, asked, DECISIONS, ground.rulebook(), ground.now_ms())
        name, tenant = order.decision_id, principal.tenant
        ground.registry.require(principal, "reservations:create", ground.scope_of(order.call.caller))
        try:
            answer = await self._evaluated(order, asked)
        except Fault:
            before = await ledger.recall(tenant, name)
            if before is None:
                raise
            return _again(before, order)
        before = await ledger.remember(tenant, name, Answered(order.digest, answer).text, KEEP_MS)
        return answer if before is None else _again(before, order)

    async def dry_run(self, principal: Principal, request: Create) -> Json:
        """Its answer is kept as a debit of nothing, by a run of its own, under the id that a live reservation with its key would have: so
        whichever of the two comes second is found to be another request."""
        ground, asked = self.ground, request.asked
        order = ground.asking.order(principal, asked, RESERVATION, ground.rulebook(), ground.now_ms())
        ground.registry.require(principal, "reservations:create", ground.scope_of(order.call.caller))
        before = await ground.recorded(principal.tenant, order.decision_id)
        if before is not None:
            return _same(before, order)
        answer = await self._evaluated(order, asked)
        unit, amount = asked.amount.unit, asked.amount.amount
        held = Held(asked.key, order.digest, asked.subject.json, asked.action.json, unit, amount, answer=answer)
        run = f"run_{order.decision_id.removeprefix('bdg_')}"
        nobody = replace(order.call.caller, run=run, run_scope=run, run_issued=True, ancestry=())
        plan = ground.plan_of_nothing(order.call.model)
        nothing = Decision(order.decision_id, replace(order.call, caller=nobody), (plan,), order.at_ms, "", note=held.text)
        settlement = Settlement(_NOTHING, Usage(UsageSource.COUNTED), Ending.DEBITED)
        settled = await ground.ledger.debit(nothing, settlement, Debiting.REPLAY)
        if not getattr(settled, "changed", True):  # another request with this key was there first
            before = await ground.recorded(principal.tenant, order.decision_id)
            if before is not None:
                return _same(before, order)
        return answer

    async def _evaluated(self, order: Order, asked: Asked) -> Json:
        caller = order.call.caller
        reason = await self._denied(order, asked)
        caps = self.ground.registry.governed(caller).caps if reason is None else None
        return telling.evaluated(reason, caps, order.scopes)

    async def _denied(self, order: Order, asked: Asked) -> str | None:
        """Why a live reservation would be refused. Fault, where the request itself is at fault: a wrong unit."""
        ground, amount = self.ground, asked.amount
        bar = ground.tenant_bar(order.call.caller.tenant)
        if bar is not None:
            return bar.code if bar.code == "TENANT_CLOSED" else "TENANT_SUSPENDED"
        try:
            rulebook, decision = await ground.with_budgets(order, amount)
        except Fault as fault:
            if fault.code == "NOT_FOUND":
                return "BUDGET_NOT_FOUND"
            if fault.code in _DENIED:
                return fault.code
            raise
        outlook = Outlook(decision, await known(ground.ledger, decision))
        barred = _barred(outlook.known, decision)
        if barred is not None:
            return barred
        [plan] = decision.ladder
        grants = rulebook.grants.of((order.call.caller,))
        balances = {charge.ceiling.account.key: outlook.effective(charge, plan) for charge in plan.charges}
        bar = barring.of_balances(grants, balances, UNITS[amount.unit], amount.amount)
        if bar is not None:
            return bar.code
        return None if outlook.blocking(plan) is None else "BUDGET_EXCEEDED"


def _barred(there: Known, decision: Decision) -> str | None:
    """A run that was stopped, or waits; a scope that was frozen."""
    caller = decision.call.caller
    view = there.runs.get(caller.run)
    if view is not None and view.state is RunState.STOPPED:
        return "BUDGET_CLOSED"
    if view is not None and view.state is RunState.PAUSED:
        return "BUDGET_FROZEN"
    return "BUDGET_FROZEN" if any(frozen.takes(caller) for frozen in there.frozen) else None


def _again(text: str, order: Order) -> Json:
    before = answered_of(text)
    if before.digest != order.digest:
        raise mismatch()
    return dict(before.answer)


def _same(found: CallRecord, order: Order) -> Json:
    held = held_of(found.note)
    if held.digest != order.digest or held.answer is None:
        raise mismatch()
    return dict(held.answer)
