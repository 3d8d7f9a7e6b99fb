"""`/v1/admin/overview` and `/v1/admin/audit/logs`: how things stand, and who did what. The log is what documents tell of themselves and what
the ledger keeps of operators' acts; nothing is written for it."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.grants import BUDGET
from gateway.core.record import record
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.governance.budgets import OPENING, Budgets, standing_of
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.pages import Asked, Json, Paged, page
from gateway.cycles.governance.reading import Query, date_time, page_of
from gateway.cycles.reading import UNITS
from gateway.cycles.telling import WORDS
from gateway.ledger.contract import Act, Ledger
from gateway.registry import BudgetDoc, Deed, Document, KeyDoc, PolicyDoc, TenantDoc, TenantStatus

_WINDOW_S: Final = 3_600
_TOP: Final = 10
_ACTS_PAGE: Final = 500
_ACTS_AT_MOST: Final = 5_000  # of a tenant, that one query looks through: the newest
_AT_ONCE: Final = 16
_TYPES: Final = {TenantDoc: "tenant", KeyDoc: "api_key", BudgetDoc: "budget", PolicyDoc: "policy"}
_CREATES: Final = "create"
# What the protocol calls an act of the ledger; the others keep their names.
_OF_ACTS: Final = {("fund", False): "fundBudget", ("settle", False): "commitReservation", ("settle", True): "releaseReservation"}
_NOTHING: Final = "none"  # what a hold is settled at that is given back


@record
class _Entry:
    """One line of the log."""

    id: str
    at_ms: int
    tenant: str
    key: str  # "" where it was the admin
    operation: str
    kind: str
    resource: str
    ids: tuple[str, str]
    why: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> int:
        return 201 if self.operation.startswith(_CREATES) else 200

    @property
    def json(self) -> Json:
        told: Json = {
            "log_id": self.id,
            "timestamp": date_time(self.at_ms),
            "tenant_id": self.tenant,
            "operation": self.operation,
            "resource_type": self.kind,
            "resource_id": self.resource,
            "status": self.status,
            "metadata": {
                "actor_type": "api_key" if self.key else "admin",
                **({"reason": self.why} if self.why else {}),
                **dict(self.more),
            },
        }
        if self.key:
            told["key_id"] = self.key
        request_id, trace_id = self.ids
        return told | ({"request_id": request_id} if request_id else {}) | ({"trace_id": trace_id} if trace_id else {})


@dataclass(frozen=True, slots=True)
class Insight:
    """`version` is not told: who asks for it asks /readyz."""

    door: Door
    ledger: Ledger
    budgets: Budgets
    now_ms: Callable[[], int]

    def pages(self) -> Sequence[Paged]:
        return (
            page("GET", "/v1/admin/overview", self.overview),
            page("GET", "/v1/admin/audit/logs", self.audit),
        )

    # -- how things stand -----------------------------------------------------------------------------------------------------

    async def overview(self, asked: Asked) -> tuple[int, Json]:
        """Webhooks and the protocol's own events are not served: there are none."""
        principal = await self.door.admin(asked.inbound.headers)
        registry = self.door.registry
        tenants = Counter(tenant.status for tenant in registry.all(TenantDoc))
        budgets = registry.all(BudgetDoc)
        views = await self.budgets.views(budgets, principal.key)
        standings = [standing_of(budget.grant, view) for budget, view in zip(budgets, views, strict=True)]
        over = sorted((each for each in standings if each.over_limit), key=lambda each: each.remaining)
        debts = sorted((each for each in standings if each.debt), key=lambda each: -each.debt)
        statuses = Counter(budget.status for budget in budgets)
        units = Counter(WORDS[each.grant.unit] for each in standings)
        return 200, {
            "as_of": date_time(self.now_ms()),
            "event_window_seconds": _WINDOW_S,
            "tenant_counts": {
                "total": tenants.total(),
                **{status.value.lower(): tenants[status.value] for status in TenantStatus},
            },
            "budget_counts": {
                "total": len(budgets),
                "active": statuses["active"],
                "frozen": statuses["frozen"],
                "closed": statuses["closed"],
                "over_limit": len(over),
                "with_debt": len(debts),
                "by_unit": {unit: units[unit] for unit in UNITS if units[unit]},
            },
            "over_limit_scopes": [
                {
                    "scope": each.grant.text,
                    "unit": WORDS[each.grant.unit],
                    "allocated": each.limit,
                    "remaining": each.remaining,
                    "debt": each.debt,
                }
                for each in over[:_TOP]
            ],
            "debt_scopes": [
                {
                    "scope": each.grant.text,
                    "unit": WORDS[each.grant.unit],
                    "debt": each.debt,
                    "overdraft_limit": each.grant.overdraft,
                }
                for each in debts[:_TOP]
            ],
            "webhook_counts": {"total": 0, "active": 0, "disabled": 0, "with_failures": 0},
            "failing_webhooks": [],
            "event_counts": {"total_recent": 0, "by_category": {}},
            "recent_denials": [],
            "recent_expiries": [],
        }

    # -- who did what ---------------------------------------------------------------------------------------------------------

    async def audit(self, asked: Asked) -> tuple[int, Json]:
        await self.door.admin(asked.inbound.headers)
        query = asked.query
        wanted = _wanted(query)
        tenant = query.text("tenant_id")
        entries = [entry for entry in self._of_documents(tenant) if wanted(entry)]
        tenants = [tenant] if tenant is not None else sorted({each.tenant for each in self._all() if each.tenant})
        for first in range(0, len(tenants), _AT_ONCE):
            acts = await asyncio.gather(*[self._acts(each) for each in tenants[first : first + _AT_ONCE]])
            entries += [entry for found in acts for entry in found if wanted(entry)]
        sorts: dict[str, Callable[[_Entry], str | int | float]] = {
            "timestamp": lambda entry: entry.at_ms,
            "operation": lambda entry: entry.operation,
            "resource_type": lambda entry: entry.kind,
            "tenant_id": lambda entry: entry.tenant,
            "key_id": lambda entry: entry.key,
            "status": lambda entry: entry.status,
        }
        shown, told = page_of(query, entries, sorts, "timestamp", lambda entry: entry.id)
        return 200, {"logs": [entry.json for entry in shown], **told}

    def _all(self) -> Iterator["_Owned"]:
        registry = self.door.registry
        for tenant in registry.all(TenantDoc):
            yield _Owned(tenant, tenant.id, tenant.id)
        for key in registry.all(KeyDoc):
            yield _Owned(key, key.tenant, key.id)
        for budget in registry.all(BudgetDoc):
            yield _Owned(budget, budget.tenant, budget.id)
        for policy in registry.all(PolicyDoc):
            yield _Owned(policy, policy.tenant, policy.id)

    def _of_documents(self, tenant: str | None) -> Iterator[_Entry]:
        for owned in self._all():
            if tenant is None or owned.tenant == tenant:
                for deed in owned.document.deeds:
                    yield _of_deed(owned, deed)

    async def _acts(self, tenant: str) -> list[_Entry]:
        ledgers = {budget.grant.account.key: budget.id for budget in self.door.registry.all(BudgetDoc) if budget.tenant == tenant}
        entries: list[_Entry] = []
        before: str | None = None
        while len(entries) < _ACTS_AT_MOST:
            acts = await self.ledger.acts(tenant, _ACTS_PAGE, before)
            entries += [_of_act(tenant, act, ledgers) for act in acts if not act.id.startswith(OPENING)]
            if len(acts) < _ACTS_PAGE:
                break
            before = acts[-1].id
        return entries


@record
class _Owned:
    document: Document
    tenant: str
    id: str


def _of_deed(owned: _Owned, deed: Deed) -> _Entry:
    kind = _TYPES[type(owned.document)]
    told = hashlib.sha256(f"{owned.document.name} {deed.at_ms} {deed.operation} {deed.ids}".encode()).hexdigest()
    key = "" if deed.who == "admin" else deed.who
    return _Entry(
        f"log_{told[:24]}", deed.at_ms, owned.tenant, key, deed.operation, kind, owned.id, (deed.ids[0], deed.ids[1]), deed.why
    )


def _of_act(tenant: str, act: Act, ledgers: dict[str, str]) -> _Entry:
    what, _, change = act.what.partition(" ")
    kind = "budget" if what.startswith(f"{BUDGET}|") else "reservation" if what.startswith("rsv_") else "config"
    key = "" if act.who == "admin" else act.who
    given_back = change == _NOTHING
    more = (("change", change),) if change and not given_back else ()
    operation = _OF_ACTS.get((act.act, given_back), act.act)
    return _Entry(f"log_{act.id}", act.at_ms, tenant, key, operation, kind, ledgers.get(what, what), ("", ""), act.why, more)


def _wanted(query: Query) -> Callable[[_Entry], bool]:
    operations, kinds = query.words("operation"), query.words("resource_type")
    codes = query.words("error_code")
    query.words("error_code_exclude")  # what is kept here are changes that were made: none has an error code
    key, resource = query.text("key_id"), query.text("resource_id")
    request_id, trace_id, search = query.text("request_id"), query.text("trace_id"), query.search()
    status, least, most = (query.whole(name, 100, 599) for name in ("status", "status_min", "status_max"))
    first, last = query.instant("from"), query.instant("to")
    if status is not None and (least is not None or most is not None):
        raise invalid("status", "it not to be sent beside status_min or status_max")
    if least is not None and most is not None and least > most:
        raise invalid("status_min", "not above status_max")
    if first is not None and last is not None and first > last:
        raise Fault("INVALID_REQUEST", "from: expected a date-time that is not after `to`", {"field": "from"})

    def wanted(entry: _Entry) -> bool:
        found = entry.id.lower(), entry.operation.lower(), entry.resource.lower()
        return (
            (operations is None or entry.operation in operations)
            and (kinds is None or entry.kind in kinds)
            and codes is None
            and (key is None or entry.key == key)
            and (resource is None or entry.resource == resource)
            and (request_id is None or entry.ids[0] == request_id)
            and (trace_id is None or entry.ids[1] == trace_id)
            and (search is None or any(search in each for each in found))
            and (status is None or entry.status == status)
            and (least is None or entry.status >= least)
            and (most is None or entry.status <= most)
            and (first is None or entry.at_ms >= first)
            and (last is None or entry.at_ms <= last)
        )

    return wanted
