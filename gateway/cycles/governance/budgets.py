"""`/v1/admin/budgets`: a grant over a scope in a unit. The document says what it is for; what it may spend, and has, only its account says.

A budget is made in two steps: its document, then its account at the limit that the document opens with. Whoever finds the one without the
other takes the second step, which counts once. Until then the limit is 0 and lets nothing through.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.asks import Asks
from gateway.core.grants import Grant, GrantStatus, Scope, text_of
from gateway.core.scopes import Unit
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.pages import Asked, Json, Paged, page
from gateway.cycles.governance.reading import Members, Query, date_time, needed, page_of, scope_named
from gateway.cycles.reading import OVERAGES, UNITS
from gateway.cycles.telling import WORDS, Standing
from gateway.identity import Principal
from gateway.ledger.contract import MOST, AccountView, Fund, Funded, Funding, Ledger
from gateway.registry import BudgetDoc, TenantStatus, after, budget_name

OPERATIONS: Final = ("CREDIT", "DEBIT", "RESET", "REPAY_DEBT", "RESET_SPENT")
STATUSES: Final = ("ACTIVE", "FROZEN", "CLOSED")
OPENING: Final = "open_"  # what the id of the act begins with by which an account is made; the document tells of it

_CREATE: Final = (
    *("tenant_id", "scope", "unit", "allocated", "overdraft_limit", "commit_overage_policy"),
    *("rollover_policy", "period_start", "period_end", "metadata"),
)
_ROLLOVERS: Final = ("NONE", "CARRY_FORWARD", "CAP_AT_ALLOCATED")
_UPDATE: Final = ("overdraft_limit", "commit_overage_policy", "metadata")
_FUND: Final = ("operation", "amount", "spent", "reason", "idempotency_key", "metadata")
_KEEP_MS: Final = 30 * 86_400_000  # of what a funding was answered, for whoever asks again
_AT_ONCE: Final = 32
_HEARD_S: Final = (0.01, 0.05, 0.2)  # how long the first of two equal fundings may take to write down its answer


@dataclass(frozen=True, slots=True)
class Budgets:
    door: Door
    ledger: Ledger
    asks: Asks
    now_ms: Callable[[], int]

    def pages(self) -> Sequence[Paged]:
        return (
            page("POST", "/v1/admin/budgets", self.create),
            page("GET", "/v1/admin/budgets", self.listed),
            page("PATCH", "/v1/admin/budgets", self.update),
            page("GET", "/v1/admin/budgets/lookup", self.lookup),
            page("POST", "/v1/admin/budgets/fund", self.fund),
            page("POST", "/v1/admin/budgets/freeze", self.freeze),
            page("POST", "/v1/admin/budgets/unfreeze", self.unfreeze),
        )

    # -- made -----------------------------------------------------------------------------------------------------------------

    async def create(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.either(asked.inbound.headers, "budgets:write")
        body = Members.read(asked.inbound.body, _CREATE)
        scope = scope_named(needed(body.text("scope", 1_024), "scope"))
        self._check_tenant(principal, body, scope)
        self.door.check(principal, "budgets:write", scope)
        unit = UNITS[needed(body.word("unit", UNITS), "unit")]
        opening = needed(body.amount("allocated", unit), "allocated")
        for name in ("period_start", "period_end"):
            body.instant(name)
        at_ms = self.now_ms()
        made = BudgetDoc(
            f"ldg_{secrets.token_hex(8)}",
            scope[0][1],
            text_of(scope),
            unit.value,
            opening,
            overdraft=body.amount("overdraft_limit", unit) or 0,
            overage=body.word("commit_overage_policy", OVERAGES),
            rollover=body.word("rollover_policy", _ROLLOVERS),
            period_start=body.text("period_start", 64),
            period_end=body.text("period_end", 64),
            metadata=body.object("metadata"),
            created_ms=at_ms,
            updated_ms=at_ms,
        )
        made = after(made, asked.deed(principal, "createBudget", at_ms))
        found = await self.door.registry.change(BudgetDoc, made.name, lambda before: before or made)
        view = await self._account(found, principal.key)
        if found is not made:
            raise Fault(
                "DUPLICATE_RESOURCE",
                f"There is a budget for {found.scope} in {WORDS[unit]}.",
                {"ledger_id": found.id},
                status=409,
            )
        return 201, ledger_json(found, view)

    def _check_tenant(self, principal: Principal, body: Members, scope: Scope) -> None:
        named = body.text("tenant_id", 64)
        if principal.admin:
            tenant = needed(named, "tenant_id")
        elif named is not None:
            raise invalid("tenant_id", "it not to be there: a key says whose tenant it is")
        else:
            tenant = principal.tenant
        if scope[0][1] != tenant:
            if not principal.admin:
                raise Fault("FORBIDDEN", f"This key is of the tenant {tenant}.")
            raise invalid("scope", f"a scope of the tenant {tenant}")
        if self.door.open_tenant(tenant, status=400).status == TenantStatus.SUSPENDED.value:
            raise Fault("TENANT_SUSPENDED", f"The tenant {tenant} is suspended: nothing new is made for it.", status=403)

    # -- changed --------------------------------------------------------------------------------------------------------------

    async def update(self, asked: Asked) -> tuple[int, Json]:
        """Also of a frozen budget."""
        principal = await self.door.admin(asked.inbound.headers)
        found = self._found(asked.query)
        body = Members.read(asked.inbound.body, _UPDATE)
        told = {
            "overdraft": body.amount("overdraft_limit", Unit(found.unit)),
            "overage": body.word("commit_overage_policy", OVERAGES),
            "metadata": body.object("metadata"),
        }
        changes = {name: value for name, value in told.items() if value is not None}
        return await self._changed(asked, principal, found, "updateBudget", "", changes, None)

    async def freeze(self, asked: Asked) -> tuple[int, Json]:
        """Nothing new may be reserved there, by any door; what is reserved may end. In other gateways within a second."""
        return await self._turn(asked, "freezeBudget", GrantStatus.ACTIVE, GrantStatus.FROZEN)

    async def unfreeze(self, asked: Asked) -> tuple[int, Json]:
        return await self._turn(asked, "unfreezeBudget", GrantStatus.FROZEN, GrantStatus.ACTIVE)

    async def _turn(self, asked: Asked, operation: str, of: GrantStatus, to: GrantStatus) -> tuple[int, Json]:
        principal = await self.door.admin(asked.inbound.headers)
        found = self._found(asked.query)
        body = Members.read(asked.inbound.body, ("reason", "metadata"), may_be_empty=True)
        body.object("metadata")
        reason = body.text("reason", 512) or ""
        return await self._changed(asked, principal, found, operation, reason, {"status": to.value}, of)

    async def _changed(
        self,
        asked: Asked,
        principal: Principal,
        found: BudgetDoc,
        operation: str,
        reason: str,
        changes: dict[str, Any],
        only: GrantStatus | None,
    ) -> tuple[int, Json]:
        """`only`: the one status in which it may be."""
        self.door.open_tenant(found.tenant)
        at_ms = self.now_ms()
        deed = asked.deed(principal, operation, at_ms, reason)

        def changed(before: BudgetDoc | None) -> BudgetDoc:
            assert before is not None, found.id
            if before.status == GrantStatus.CLOSED.value:
                raise Fault("BUDGET_CLOSED", f"The budget {before.scope} is closed, for good.")
            if only is not None and before.status != only.value:
                code = "BUDGET_FROZEN" if before.status == GrantStatus.FROZEN.value else "INVALID_REQUEST"
                raise Fault(code, f"The budget {before.scope} is {before.status} already.", status=409)
            return after(before, deed, updated_ms=at_ms, **changes)

        now = await self.door.registry.change(BudgetDoc, found.name, changed)
        return 200, ledger_json(now, await self._account(now, principal.key))

    # -- read -----------------------------------------------------------------------------------------------------------------

    async def lookup(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.either(asked.inbound.headers, "budgets:read")
        scope, _ = _named(asked.query)
        self.door.check(principal, "budgets:read", scope)
        found = self._found(asked.query)
        return 200, ledger_json(found, await self._account(found, principal.key))

    async def listed(self, asked: Asked) -> tuple[int, Json]:
        """What a filter or an order asks of accounts is asked of all of them; else only of those that are shown."""
        principal = await self.door.either(asked.inbound.headers, "budgets:read")
        query = asked.query
        tenant = query.text("tenant_id") if principal.admin else principal.tenant
        prefix, search = query.text("scope_prefix"), query.search()
        unit, status = query.word("unit", UNITS), query.word("status", STATUSES)
        over, debt = query.flag("over_limit"), query.flag("has_debt")
        least, most = query.fraction("utilization_min"), query.fraction("utilization_max")
        if least is not None and most is not None and least > most:
            raise invalid("utilization_min", "not above utilization_max")
        found = [
            budget
            for budget in self.door.registry.all(BudgetDoc)
            if (tenant is None or budget.tenant == tenant)
            and self._sees(principal, budget)
            and (prefix is None or budget.scope.startswith(prefix.lower()))
            and (unit is None or UNITS[unit].value == budget.unit)
            and (status is None or status == budget.status.upper())
            and (search is None or search in budget.scope)
        ]
        by = query.of.get("sort_by", "scope")
        filters = (over, debt, least, most)
        if by in ("utilization", "debt") or any(each is not None for each in filters):
            rows = [_Row(budget, view) for budget, view in zip(found, await self.views(found, principal.key), strict=True)]
            rows = [row for row in rows if row.passes(*filters)]
            shown, told = page_of(query, rows, _SORTS, "scope", lambda row: row.id)
        else:
            shown, told = page_of(query, [_Row(budget, None) for budget in found], _SORTS, "scope", lambda row: row.id)
            budgets = [row.budget for row in shown]
            shown = [_Row(budget, view) for budget, view in zip(budgets, await self.views(budgets, principal.key), strict=True)]
        return 200, {"ledgers": [ledger_json(row.budget, needed(row.view, "view")) for row in shown], **told}

    def _sees(self, principal: Principal, budget: BudgetDoc) -> bool:
        try:
            self.door.check(principal, "budgets:read", budget.grant.scope)
        except Fault:
            return False
        return True

    def _found(self, query: Query) -> BudgetDoc:
        scope, unit = _named(query)
        found = self.door.registry.document(BudgetDoc, budget_name(text_of(scope), unit.value))
        if found is None:
            raise Fault("BUDGET_NOT_FOUND", f"There is no budget for {text_of(scope)} in {WORDS[unit]}.", status=404)
        return found

    async def views(self, budgets: Sequence[BudgetDoc], who: str) -> list[AccountView]:
        views: list[AccountView] = []
        for first in range(0, len(budgets), _AT_ONCE):
            views += await asyncio.gather(*[self._account(budget, who) for budget in budgets[first : first + _AT_ONCE]])
        return views

    async def _account(self, budget: BudgetDoc, who: str) -> AccountView:
        """As it stands; opened, where whoever made the budget did not come so far. A call that counted there before made an account without
        a limit."""
        account = budget.grant.account
        view = await self.ledger.account(account.tenant, account.key)
        if view is None or view.balance.limit is None:
            funded = await self.ledger.fund(account, Fund(to=budget.opening), OPENING + budget.id, who, "createBudget")
            view = funded.after
        return view

    # -- funded ---------------------------------------------------------------------------------------------------------------

    async def fund(self, asked: Asked) -> tuple[int, Json]:
        """Once for each idempotency key: asked again, it tells what it told. What is paid in pays debt first, as debt is what was spent
        above the limit."""
        scope, unit = _named(asked.query)
        principal = await self.door.either(asked.inbound.headers, "budgets:write", scope)
        if principal.admin and needed(asked.query.text("tenant_id"), "tenant_id") != scope[0][1]:
            raise invalid("tenant_id", f"the tenant of {text_of(scope)}")
        found = self._found(asked.query)
        body = Members.read(asked.inbound.body, _FUND)
        order = _Order(
            needed(body.word("operation", OPERATIONS), "operation"),
            needed(body.amount("amount", unit), "amount"),
            body.amount("spent", unit),
        )
        reason, key = body.text("reason", 512) or "", body.text("idempotency_key", 256, least=1)
        body.object("metadata")
        if key is None:
            self._check_funded(found)
            return 200, await self._funded(found, order, f"fund_{secrets.token_hex(16)}", principal.key, reason)
        note = f"cyf_{_digest([found.tenant, key])}"
        print_ = _digest([found.id, order.operation, order.amount, order.spent])
        before = await self._asked_before(found.tenant, note, print_)
        if before is not None:
            return 200, before
        self._check_funded(found)
        first = await self.ledger.remember(found.tenant, f"{note}?", print_, _KEEP_MS)
        if first not in (None, print_):
            raise _mismatch()
        told = await self._funded(found, order, note, principal.key, reason, tells_again=note)
        await self.ledger.remember(found.tenant, note, orjson.dumps(told).decode(), _KEEP_MS)
        return 200, told

    async def _asked_before(self, tenant: str, note: str, print_: str) -> Json | None:
        """What was answered then; None: nothing, as far as was written down. Fault IDEMPOTENCY_MISMATCH."""
        asked = await self.ledger.recall(tenant, f"{note}?")
        if asked is None:
            return None
        if asked != print_:
            raise _mismatch()
        told = await self.ledger.recall(tenant, note)
        return None if told is None else orjson.loads(told)

    def _check_funded(self, budget: BudgetDoc) -> None:
        self.door.open_tenant(budget.tenant)
        if budget.status != GrantStatus.ACTIVE.value:
            raise Fault(f"BUDGET_{budget.status.upper()}", f"The budget {budget.scope} is {budget.status}: it is not funded.")

    async def _funded(
        self, budget: BudgetDoc, order: "_Order", act_id: str, who: str, reason: str, tells_again: str | None = None
    ) -> Json:
        standing = _standing(budget, await self._account(budget, who))
        account = budget.grant.account
        funded = await self.ledger.fund(account, order.change(standing), act_id, who, reason)
        if funded.outcome is Funding.TOO_LITTLE:
            raise Fault("BUDGET_EXCEEDED", f"{order.amount:,} cannot be taken from {budget.scope}: not so much is left there.")
        if funded.outcome is Funding.TOO_MUCH:
            raise invalid("amount", "no more than a budget can count")
        if funded.outcome is Funding.REPLAYED and tells_again is not None:
            # Somebody with the same key got there first, and is about to write down what it was told.
            for seconds in _HEARD_S:
                told = await self.ledger.recall(budget.tenant, tells_again)
                if told is not None:
                    found: Json = orjson.loads(told)
                    return found
                await asyncio.sleep(seconds)
        if funded.outcome is Funding.DONE:
            funded = await self._set_right(budget, order, standing, funded, act_id, who)
            if funded.before is not None and _room(funded.after) > _room(funded.before):
                await self.asks.given_room(budget.tenant, account.key)
        return _funding_json(budget, order, funded, self.now_ms())

    async def _set_right(
        self, budget: BudgetDoc, order: "_Order", assumed: Standing, funded: Funded, act_id: str, who: str
    ) -> Funded:
        """A funding that depends on the debt was asked for by the debt as it had been read. Where others changed it meanwhile, what was
        too much or too little is put right by what it really was."""
        if order.operation not in ("REPAY_DEBT", "RESET_SPENT") or funded.before is None:
            return funded
        was = _standing(budget, funded.before).debt
        if order.operation == "REPAY_DEBT":
            more = min(order.amount, was) - min(order.amount, assumed.debt)
            if more:
                again = await self.ledger.fund(budget.grant.account, Fund(by=more), f"{act_id}_debt", who, "debt")
                return Funded(funded.outcome, funded.before, again.after)
        elif was != assumed.debt:
            key = budget.grant.account.key
            adjusted = await self.ledger.adjust(budget.tenant, key, was - assumed.debt, f"{act_id}_debt", who, "debt")
            if adjusted is not None:
                return Funded(funded.outcome, funded.before, adjusted[1])
        return funded


@dataclass(frozen=True, slots=True)
class _Order:
    """What a funding asks for, in the budget's unit."""

    operation: str
    amount: int
    spent: int | None

    def change(self, standing: Standing) -> Fund:
        match self.operation:
            case "CREDIT":
                return Fund(by=self.amount)
            case "DEBIT":
                return Fund(by=-self.amount, at_least_free=True)
            case "RESET":
                return Fund(to=self.amount)
            case "REPAY_DEBT":
                return Fund(by=min(self.amount, standing.debt))
        # A new period forgives no debt, but for what cannot be counted.
        return Fund(to=self.amount, committed=min(MOST, (self.spent or 0) + standing.debt))


@dataclass(frozen=True, slots=True)
class _Row:
    budget: BudgetDoc
    view: AccountView | None

    @property
    def id(self) -> str:
        return self.budget.id

    @property
    def standing(self) -> Standing:
        assert self.view is not None, self.budget.id
        return _standing(self.budget, self.view)

    @property
    def utilization(self) -> float:
        standing = self.standing
        return (standing.committed - standing.debt) / standing.limit if standing.limit else 0.0

    def passes(self, over: bool | None, debt: bool | None, least: float | None, most: float | None) -> bool:
        standing = self.standing
        return (
            (over is None or standing.over_limit == over)
            and (debt is None or (standing.debt > 0) == debt)
            and (least is None or self.utilization >= least)
            and (most is None or self.utilization <= most)
        )


_SORTS: Final[dict[str, Callable[[_Row], str | int | float]]] = {
    "scope": lambda row: row.budget.scope,
    "tenant_id": lambda row: row.budget.tenant,
    "unit": lambda row: WORDS[Unit(row.budget.unit)],
    "status": lambda row: row.budget.status,
    "commit_overage_policy": lambda row: row.budget.overage or "",
    "utilization": lambda row: row.utilization,
    "debt": lambda row: row.standing.debt,
}


def _named(query: Query) -> tuple[Scope, Unit]:
    scope = scope_named(needed(query.text("scope", 1_024), "scope"))
    return scope, UNITS[needed(query.word("unit", UNITS), "unit")]


def _room(view: AccountView) -> int:
    """Below zero where more was taken than there is."""
    return (view.balance.limit or 0) - view.balance.committed - view.balance.reserved


def _mismatch() -> Fault:
    return Fault("IDEMPOTENCY_MISMATCH", "this idempotency key was used before, for another funding")


def _digest(of: object) -> str:
    return hashlib.sha256(orjson.dumps(of)).hexdigest()[:32]


def _standing(budget: BudgetDoc, view: AccountView) -> Standing:
    return standing_of(budget.grant, view)


def standing_of(grant: Grant, view: AccountView) -> Standing:
    balance = view.balance
    return Standing(grant, balance.limit or 0, balance.committed, balance.reserved)


def ledger_json(budget: BudgetDoc, view: AccountView) -> Json:
    """The wire's BudgetLedger."""
    standing = _standing(budget, view)
    told: Json = {
        "ledger_id": budget.id,
        "tenant_id": budget.tenant,
        "unit": WORDS[standing.grant.unit],
        **standing.json,
        "status": budget.status.upper(),
        "created_at": date_time(budget.created_ms),
        "updated_at": date_time(budget.updated_ms),
    }
    optional = {
        "commit_overage_policy": budget.overage,
        "rollover_policy": budget.rollover,
        "period_start": budget.period_start,
        "period_end": budget.period_end,
    }
    return told | {name: value for name, value in optional.items() if value is not None}


def _funding_json(budget: BudgetDoc, order: _Order, funded: Funded, at_ms: int) -> Json:
    unit = WORDS[Unit(budget.unit)]
    new = _standing(budget, funded.after)
    previous = new if funded.before is None else _standing(budget, funded.before)
    told: Json = {"operation": order.operation, "timestamp": date_time(at_ms)}
    for when, standing in (("previous", previous), ("new", new)):
        amounts = {
            "allocated": standing.limit,
            "remaining": standing.remaining,
            "debt": standing.debt,
            "spent": standing.committed - standing.debt,
        }
        told |= {f"{when}_{name}": {"unit": unit, "amount": amount} for name, amount in amounts.items()}
    return told
