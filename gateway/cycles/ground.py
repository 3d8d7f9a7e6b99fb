"""What every endpoint of the plane stands on: who asks, what was recorded before, what the budgets say of it."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from gateway.admitting import admit
from gateway.core.decide import Rulebook, Unservable
from gateway.core.grants import Grant, Scope, filters, scope_for
from gateway.core.scopes import NO_VALUE, Amounts, Caller
from gateway.core.values import Call, Decision, Ending, Plan
from gateway.cycles import barring
from gateway.cycles.asking import RESERVATION, Asking, Order, units_of
from gateway.cycles.barring import Bar
from gateway.cycles.faults import Fault
from gateway.cycles.kept import Held, held_of, tenant_mark
from gateway.cycles.reading import Amount
from gateway.identity import Identity, Principal
from gateway.ledger.contract import Barred, CallRecord, HoldState, Ledger, LedgerLost, LedgerUnavailable, Refusal, Settled, Stale
from gateway.observer import Observer
from gateway.registry import KeyDoc, Registry, TenantDoc

T = TypeVar("T")

HOLD: Final = f"rsv_{RESERVATION}_"
MAX_ID_CHARS: Final = 128
ATTEMPTS: Final = 10  # under ids of their own, where what was reserved was given back before anybody heard of it
MISMATCH: Final = "this idempotency key was used before, for another request"


@dataclass(frozen=True, slots=True)
class Ground:
    """`rulebook`: the policy in force, and the grants beside it. `tenants`: those that the config names. `asking`: made from the others."""

    ledger: Ledger
    identity: Identity
    registry: Registry
    rulebook: Callable[[], Rulebook]
    observer: Observer
    now_ms: Callable[[], int]
    tenants: Sequence[str]
    asking: Asking = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "asking", Asking(self.identity))

    def refused(self, order: Order, fault: Fault, request_id: str) -> None:
        """Tells operators of it, in the protocol's words."""
        call = order.call
        self.observer.refused_outside(request_id, call.caller, order.decision_id, call.model, fault.code, fault.http_status)

    # -- what may be asked ----------------------------------------------------------------------------------------------------

    def tenant_bar(self, tenant: str) -> Bar | None:
        return barring.of_tenant(self.registry.tenant(tenant))

    def check_tenant_open(self, tenant: str) -> None:
        """Fault TENANT_CLOSED. What was begun may be ended where the tenant is only suspended."""
        bar = self.tenant_bar(tenant)
        if bar is not None and bar.code == "TENANT_CLOSED":
            raise Fault(bar.code, bar.message)

    async def with_budgets(self, order: Order, amount: Amount, *, spent: bool = False) -> tuple[Rulebook, Decision]:
        """The rulebook and what it decides. Fault where no budget applies in the unit, after another look at those that there are:
        NOT_FOUND, UNIT_MISMATCH."""
        rulebook = self.rulebook()
        if not rulebook.grants.known:
            await self.registry.look()
            rulebook = self.rulebook()
        decision = self.decided(rulebook, order, amount, spent=spent)
        units = units_of(decision.ladder[0].charges)
        if amount.unit not in units:
            await self.registry.look()
            rulebook = self.rulebook()
            decision = self.decided(rulebook, order, amount, spent=spent)
            units = units_of(decision.ladder[0].charges)
            if amount.unit not in units:
                raise barring.no_budget(order.scopes[-1], amount.unit, units)
        return rulebook, decision

    def decided(self, rulebook: Rulebook, order: Order, amount: Amount, *, spent: bool = False) -> Decision:
        decision = rulebook.for_cost(order.call, amount.held, order.at_ms, order.decision_id, spent=spent)
        if isinstance(decision, Unservable):
            bar = barring.of_status(rulebook.grants.of((order.call.caller,)))
            if bar is not None:
                raise bar.fault(amount.unit, amount.amount)
            raise Fault("INVALID_REQUEST", decision.message, None if decision.param is None else {"field": decision.param})
        return decision

    async def asked(
        self,
        rulebook: Rulebook,
        order: Order,
        amount: Amounts,
        ask: Callable[[Decision], Awaitable[T | Refusal | Barred | Stale]],
        make: Callable[[Decision], Decision],
        *,
        spent: bool = False,
    ) -> T | Refusal | Barred:
        """What the ledger says. `make`: what goes with the decision. Fault FORBIDDEN: the run is another's."""

        def decide(call: Call, at_ms: int) -> Decision | Unservable:
            decision = rulebook.for_cost(call, amount, at_ms, order.decision_id, spent=spent)
            return decision if isinstance(decision, Unservable) else make(decision)

        answer: T | Refusal | Barred = await admit(order.call, order.at_ms, decide, ask)
        return answer

    @staticmethod
    def scope_of(caller: Caller) -> Scope:
        return scope_for(caller)

    def check_scope(self, principal: Principal, caller: Caller) -> None:
        """Fault FORBIDDEN: what is asked about was made for another scope than the key is restricted to."""
        key = principal.registered
        if key is not None and key.scope_filter and not filters(key.scope_filter, scope_for(caller)):
            raise Fault("FORBIDDEN", f"this key is restricted to the scopes {', '.join(key.scope_filter)}")

    @staticmethod
    def plan_of_nothing(model: str) -> Plan:
        """It counts in no account."""
        return Plan(model, NO_VALUE, 0, 0, Amounts(0, 0, 0), ())

    def grants_of(self, caller: Caller) -> Sequence[Grant]:
        return self.rulebook().grants.of((caller,))

    def told(self, settled: Settled) -> None:
        for alert in settled.alerts:
            self.observer.alert(alert)

    # -- what was recorded ----------------------------------------------------------------------------------------------------

    async def recorded(self, tenant: str, decision_id: str) -> CallRecord | None:
        """What the plane recorded under the id; None: nothing, or a refusal, or what was given back before anybody heard of it."""
        found = await self.ledger.record(tenant, decision_id)
        return None if found is None or found.state is None or not found.note or given_back(found) else found

    async def found_again(self, tenant: str, decision_id: str) -> CallRecord | None:
        """The same, also where a first attempt was given back and the next one holds."""
        for attempt in range(ATTEMPTS):
            found = await self.ledger.record(tenant, f"{decision_id}_{attempt}" if attempt else decision_id)
            if found is None or not given_back(found):
                return None if found is None or found.state is None or not found.note else found
        return None

    async def own(self, principal: Principal, hold_id: str) -> tuple[CallRecord, Held]:
        """The reservation. Fault NOT_FOUND: there never was one; FORBIDDEN: it is another tenant's, or of a scope that the key may not act
        on."""
        tenant = principal.tenant if self.is_own(principal, hold_id) else self._owner_of(hold_id)
        if tenant is None:
            raise not_found(hold_id)
        if principal.admin or tenant == principal.tenant:
            found = await self.recorded(tenant, f"bdg_{hold_id.removeprefix('rsv_')}")
            held = None if found is None else held_of(found.note)
            if found is None or held is None or held.answer is not None:
                raise not_found(hold_id)
            self.check_scope(principal, caller_of(found))
            return found, held
        if await self.ledger.record(tenant, f"bdg_{hold_id.removeprefix('rsv_')}") is None:
            raise not_found(hold_id)
        raise Fault("FORBIDDEN", f"the reservation {hold_id} belongs to another tenant")

    def is_own(self, principal: Principal, hold_id: str) -> bool:
        return hold_id.startswith(f"{HOLD}{tenant_mark(principal.tenant)}_")

    def _owner_of(self, hold_id: str) -> str | None:
        """By the mark that its id carries; None: no tenant here has that."""
        if len(hold_id) > MAX_ID_CHARS:
            raise Fault(
                "INVALID_REQUEST", f"reservation_id: expected at most {MAX_ID_CHARS} characters", {"field": "reservation_id"}
            )
        if not hold_id.startswith(HOLD):
            return None
        mark = hold_id[len(HOLD) :].partition("_")[0]
        return next((tenant for tenant in self._all_tenants() if tenant_mark(tenant) == mark), None)

    def _all_tenants(self) -> Sequence[str]:
        registry = self.registry
        return [
            *self.tenants,
            *[tenant.id for tenant in registry.all(TenantDoc)],
            *[key.tenant for key in registry.all(KeyDoc)],  # also of a tenant that has no record of its own
        ]

    async def look_again(self) -> None:
        """Of what operators made, as of now; what is known stays where the ledger does not answer."""
        with suppress(LedgerUnavailable, LedgerLost):
            await self.registry.look()


def caller_of(record: CallRecord) -> Caller:
    """As grants ask for it."""
    tail = record.decision_id.removeprefix("bdg_")
    issued = record.run in (f"run_{tail}", f"run_{tail.rpartition('_')[0]}")  # see `Order.again`
    return Caller(record.tenant, record.owner, record.run, record.run, issued, dimensions=record.dimensions)


def given_back(record: CallRecord) -> bool:
    """By the gateway itself, which did not hear the ledger's answer in time: whoever asked was told that there is no hold."""
    return record.state is HoldState.RELEASED and record.ending == Ending.NOT_SENT.value


def not_found(hold_id: str) -> Fault:
    return Fault("NOT_FOUND", f"there is no reservation {hold_id[:MAX_ID_CHARS]}")


def mismatch() -> Fault:
    return Fault("IDEMPOTENCY_MISMATCH", MISMATCH, {"field": "idempotency_key"})
