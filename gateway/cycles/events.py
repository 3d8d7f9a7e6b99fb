"""Events: a cost that is known already, recorded once, whatever the budgets say, unless the event's own overage policy says otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.core.decide import Rulebook
from gateway.core.grants import Grant
from gateway.core.scopes import Unit
from gateway.core.values import Basis, Charge, Decision, Ending, Outcome
from gateway.cycles import barring, telling
from gateway.cycles.asking import EVENT, Order
from gateway.cycles.faults import Fault, of_problem
from gateway.cycles.ground import Ground, mismatch
from gateway.cycles.kept import Held, held_of
from gateway.cycles.reading import IF_AVAILABLE, OVERDRAFT, REJECT, UNITS, Event
from gateway.cycles.telling import Json
from gateway.identity import Principal
from gateway.ledger.contract import Barred, CallRecord, Debiting, Refusal, Settled, Settlement, Stale
from gateway.observer import Outside
from gateway.wire.budget import remaining
from gateway.wire.problem import Refused


@dataclass(frozen=True, slots=True)
class Events:
    ground: Ground

    async def record(self, principal: Principal, request: Event, request_id: str, headers: list[tuple[str, str]]) -> Json:
        """`headers`: of the answer; what is left is told there."""
        ground, asked = self.ground, request.asked
        began_s = ground.observer.clock_s()
        order = ground.asking.order(principal, asked, EVENT, ground.rulebook(), ground.now_ms())
        try:
            ground.check_tenant_open(principal.tenant)
            ground.registry.require(principal, "reservations:create", ground.scope_of(order.call.caller))
            answer, settled = await self._record(order, request)
        except (Fault, Refused) as failure:
            found = await ground.recorded(principal.tenant, order.decision_id)
            if found is None:
                ground.refused(order, failure if isinstance(failure, Fault) else of_problem(failure.problem), request_id)
                raise
            return _again(found, order)
        if settled is not None:
            headers += remaining(settled.balances)
            self._receipt(order, request, request_id, began_s, settled)
        return answer

    async def _record(self, order: Order, request: Event) -> tuple[Json, Settled | None]:
        """The answer; and what the ledger says, where it is new."""
        ground, asked = self.ground, request.asked
        unit, actual = asked.amount.unit, asked.amount.amount
        caller = order.call.caller
        overage = request.overage or ground.registry.governed(caller).overage or IF_AVAILABLE
        always = overage == IF_AVAILABLE  # never rejects, so nothing that is frozen or closed does
        rulebook, _ = await ground.with_budgets(order, asked.amount, spent=always)
        grants = [grant for grant in rulebook.grants.of((caller,)) if grant.unit is UNITS[unit]]
        over = {grant.account.key: grant.overdraft for grant in grants if grant.overdraft} if overage == OVERDRAFT else {}
        held = Held(
            asked.key, order.digest, asked.subject.json, asked.action.json, unit, actual, overage=overage, metadata=asked.metadata
        )
        answer = await self._debit(rulebook, order, request, held, Debiting.ASK, over, spent=always)
        if isinstance(answer, Refusal):
            for grant in _short(answer, grants, over, actual):
                deep = f"it would put the scope {grant.text} further into debt than its overdraft limit allows"
                raise Fault("OVERDRAFT_LIMIT_EXCEEDED", deep, {"scope": grant.text})
            if overage == REJECT:
                raise barring.refusal_fault(answer, grants, UNITS[unit], actual, spent=True)
            held = replace(held, charged=min(actual, _left(answer, UNITS[unit])))
        elif isinstance(answer, Barred) and not always:
            raise barring.barred_fault(answer)
        if not isinstance(answer, Settled):
            # What was spent is a fact: it is recorded in full, and told as far as there was room for it.
            answer = await self._debit(rulebook, order, request, held, Debiting.ALWAYS, {}, spent=True)
        if isinstance(answer, Barred):
            raise barring.barred_fault(answer)
        assert isinstance(answer, Settled), answer
        if not answer.changed:
            found = await ground.recorded(caller.tenant, order.decision_id)
            if found is not None:
                return _again(found, order), None
        return telling.applied(_event_id(order.decision_id), unit, held.charged), answer

    def _receipt(self, order: Order, request: Event, request_id: str, began_s: float, settled: Settled) -> None:
        ground = self.ground
        ground.told(settled)
        ground.observer.outside(
            Outside(
                request_id=request_id,
                caller=order.call.caller,
                decision_id=order.decision_id,
                outcome=Outcome.ALLOW,
                name=order.call.model,
                status=201,
                ending=Ending.DEBITED,
                held=None,
                charged=settled.charged,
                usage=request.usage,
                began_s=began_s,
            )
        )

    async def _debit(
        self,
        rulebook: Rulebook,
        order: Order,
        request: Event,
        held: Held,
        how: Debiting,
        over: dict[str, int],
        *,
        spent: bool,
    ) -> Settled | Refusal | Barred:
        ledger, cost = self.ground.ledger, request.asked.amount.held
        settlement = Settlement(cost, request.usage, Ending.DEBITED)
        note = held.text

        def made(decision: Decision) -> Decision:
            [plan] = decision.ladder
            return replace(decision, note=note, ladder=(replace(plan, charges=_over(plan.charges, over)),))

        async def ask(decision: Decision) -> Settled | Refusal | Barred | Stale:
            return await ledger.debit(decision, settlement, how)

        return await self.ground.asked(rulebook, order, cost, ask, made, spent=spent)


def _over(charges: tuple[Charge, ...], over: dict[str, int]) -> tuple[Charge, ...]:
    """Those that may go into debt have that much room more."""
    if not over:
        return charges
    return tuple(
        [
            replace(charge, ceiling=replace(charge.ceiling, margin=over[charge.ceiling.account.key]))
            if charge.ceiling.account.key in over
            else charge
            for charge in charges
        ]
    )


def _short(refusal: Refusal, grants: Sequence[Grant], over: dict[str, int], actual: int) -> Sequence[Grant]:
    """The scopes that could go into debt, but not so far."""
    there = {balance.account.key: balance for balance in refusal.balances}
    found = []
    for grant in grants:
        key = grant.account.key
        if key in over and key in there:
            balance = there[key]
            if (balance.limit or 0) + over[key] - balance.committed - balance.reserved < actual:
                found.append(grant)
    return found


def _left(refusal: Refusal, unit: Unit) -> int:
    """What there is room for in the tightest of the accounts."""
    [plan] = refusal.decision.ladder
    gates = {charge.ceiling.account.key for charge in plan.charges if charge.ceiling.basis is Basis.RESERVED_AND_COMMITTED}
    left = [
        balance.remaining
        for balance in refusal.balances
        if balance.account.unit is unit and balance.remaining is not None and balance.account.key in gates
    ]
    return min(left, default=0)


def _event_id(decision_id: str) -> str:
    return "evt_" + decision_id.removeprefix("bdg_")


def _again(found: CallRecord, order: Order) -> Json:
    held = held_of(found.note)
    if held.digest != order.digest:
        raise mismatch()
    return telling.applied(_event_id(order.decision_id), held.unit, held.charged)
