"""`/v1/admin/tenants`: made once, suspended and opened again, closed for good. Closing a tenant closes what is its own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.grants import GrantStatus
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.pages import Asked, Json, Paged, page
from gateway.cycles.governance.reading import Members, date_time, needed, page_of
from gateway.cycles.reading import IF_AVAILABLE, OVERAGES
from gateway.ledger.contract import HoldState, Ledger
from gateway.registry import TENANT_CLOSED, BudgetDoc, Deed, KeyDoc, TenantDoc, TenantStatus, after

STATUSES: Final = tuple(status.value for status in TenantStatus)

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{2,63}", re.ASCII)
_EXPIRIES: Final = ("AUTO_RELEASE", "MANUAL_CLEANUP", "GRACE_ONLY")
_SETTINGS: Final = (
    *("name", "metadata", "default_commit_overage_policy"),
    *("default_reservation_ttl_ms", "max_reservation_ttl_ms", "max_reservation_extensions"),
)
_CREATE: Final = ("tenant_id", "parent_tenant_id", "reservation_expiry_policy", *_SETTINGS)
_HOLDS_AT_MOST: Final = 100_000
_RESERVED: Final = "bdg_cyc_"  # what a reservation's decision id begins with


@dataclass(frozen=True, slots=True)
class Tenants:
    door: Door
    ledger: Ledger
    now_ms: Callable[[], int]

    def pages(self) -> Sequence[Paged]:
        return (
            page("POST", "/v1/admin/tenants", self.create),
            page("GET", "/v1/admin/tenants", self.listed),
            page("GET", "/v1/admin/tenants/{tenant_id}", self.get),
            page("PATCH", "/v1/admin/tenants/{tenant_id}", self.update),
        )

    async def create(self, asked: Asked) -> tuple[int, Json]:
        """Asked again with the same name, it shows the one that there is."""
        principal = await self.door.admin(asked.inbound.headers)
        body = Members.read(asked.inbound.body, _CREATE)
        tenant_id = needed(body.text("tenant_id", 64), "tenant_id")
        if _ID.fullmatch(tenant_id) is None:
            raise invalid("tenant_id", "3 to 64 of the characters a-z 0-9 -, not a dash first")
        title, parent = needed(body.text("name", 256), "name"), body.text("parent_tenant_id", 64)
        if parent is not None and self.door.registry.tenant(parent) is None:
            raise invalid("parent_tenant_id", "a tenant that there is")
        at_ms = self.now_ms()
        made = TenantDoc(
            tenant_id,
            title,
            parent=parent,
            expiry=body.word("reservation_expiry_policy", _EXPIRIES),
            created_ms=at_ms,
            updated_ms=at_ms,
            **_settings(body),
        )
        made = after(made, asked.deed(principal, "createTenant", at_ms))
        found = await self.door.registry.change(TenantDoc, made.name, lambda before: before or made)
        if found is made:
            return 201, tenant_json(made)
        if found.title != title:
            raise Fault("DUPLICATE_RESOURCE", f"The tenant {tenant_id} has another name.", status=409)
        return 200, tenant_json(found)

    async def get(self, asked: Asked) -> tuple[int, Json]:
        await self.door.admin(asked.inbound.headers)
        return 200, tenant_json(self._tenant(asked))

    async def listed(self, asked: Asked) -> tuple[int, Json]:
        await self.door.admin(asked.inbound.headers)
        query = asked.query
        status, parent, search = query.word("status", STATUSES), query.text("parent_tenant_id"), query.search()
        rows = [
            tenant
            for tenant in self.door.registry.all(TenantDoc)
            if (status is None or tenant.status == status)
            and (parent is None or tenant.parent == parent)
            and (search is None or search in tenant.id.lower() or search in tenant.title.lower())
        ]
        sorts: dict[str, Callable[[TenantDoc], str | int | float]] = {
            "tenant_id": lambda tenant: tenant.id,
            "name": lambda tenant: tenant.title,
            "status": lambda tenant: tenant.status,
            "created_at": lambda tenant: tenant.created_ms,
        }
        query.whole("limit", 1, 100)
        shown, told = page_of(query, rows, sorts, "created_at", lambda tenant: tenant.id)
        return 200, {"tenants": [tenant_json(tenant) for tenant in shown], **told}

    async def update(self, asked: Asked) -> tuple[int, Json]:
        """Suspended: nothing new starts, what is reserved may end. Closed: for good; asked again, it closes what was left open."""
        principal = await self.door.admin(asked.inbound.headers)
        body = Members.read(asked.inbound.body, (*_SETTINGS, "status"))
        status, title, settings = body.word("status", STATUSES), body.text("name", 256), _settings(body)
        tenant, at_ms = self._tenant(asked), self.now_ms()
        closed = TenantStatus.CLOSED.value
        deed = asked.deed(principal, "updateTenant", at_ms)

        def changed(before: TenantDoc | None) -> TenantDoc:
            assert before is not None, tenant.id
            if before.status == closed:
                if status == closed and not settings and title is None:
                    return before
                raise Fault("TENANT_CLOSED", f"The tenant {before.id} is closed, for good.")
            changes: dict[str, Any] = {**settings, "updated_ms": at_ms}
            if title is not None:
                changes["title"] = title
            if status is not None and status != before.status:
                changes["status"] = status
                changes |= {"suspended_ms": at_ms} if status == TenantStatus.SUSPENDED.value else {}
                changes |= {"closed_ms": at_ms} if status == closed else {}
            return after(before, deed, **changes)

        found = await self.door.registry.change(TenantDoc, tenant.name, changed)
        if found.status == closed:
            await self._close(found, deed)
        return 200, tenant_json(found)

    def _tenant(self, asked: Asked) -> TenantDoc:
        tenant = self.door.registry.tenant(asked.path["tenant_id"])
        if tenant is None:
            raise Fault("TENANT_NOT_FOUND", f"There is no tenant {asked.path['tenant_id'][:80]}.", status=404)
        return tenant

    async def _close(self, tenant: TenantDoc, deed: Deed) -> None:
        """What the tenant owns: from the moment that it is closed nothing of it can be changed, so this may end halfway and be asked for
        again. Live reservations are given back; calls that run end as they would."""
        for record in await self.ledger.holds(tenant.id, None, _HOLDS_AT_MOST):
            if record.state is HoldState.LIVE and record.decision_id.startswith(_RESERVED):
                await self.ledger.settle(tenant.id, record.hold_id, None, deed.who, TENANT_CLOSED)
        registry = self.door.registry
        for budget in registry.all(BudgetDoc):
            if budget.tenant == tenant.id:
                await registry.change(BudgetDoc, budget.name, lambda each: _closed_budget(each, deed))
        for key in registry.all(KeyDoc):
            if key.tenant == tenant.id:
                await registry.change(KeyDoc, key.name, lambda each: _closed_key(each, deed))


def _closed_budget(budget: BudgetDoc | None, deed: Deed) -> BudgetDoc:
    assert budget is not None
    if budget.status == GrantStatus.CLOSED.value:
        return budget
    told = Deed(deed.at_ms, deed.who, "budget.closed_via_tenant_cascade", TENANT_CLOSED, deed.ids)
    return after(budget, told, status=GrantStatus.CLOSED.value, updated_ms=deed.at_ms)


def _closed_key(key: KeyDoc | None, deed: Deed) -> KeyDoc:
    assert key is not None
    if key.revoked_ms:
        return key
    told = Deed(deed.at_ms, deed.who, "api_key.revoked_via_tenant_cascade", TENANT_CLOSED, deed.ids)
    return after(key, told, revoked_ms=deed.at_ms, revoked_reason=TENANT_CLOSED)


def _settings(body: Members) -> dict[str, Any]:
    """What may be set of a tenant, but for its name; only what was sent."""
    metadata = body.object("metadata")
    if metadata is not None and (len(metadata) > 32 or not all(isinstance(value, str) for value in metadata.values())):
        raise invalid("metadata", "at most 32 members, each a text")
    told: Mapping[str, object] = {
        "metadata": metadata,
        "overage": body.word("default_commit_overage_policy", OVERAGES),
        "ttl_ms": body.whole("default_reservation_ttl_ms", 1_000, 86_400_000),
        "max_ttl_ms": body.whole("max_reservation_ttl_ms", 1_000, 86_400_000),
        "max_extensions": body.whole("max_reservation_extensions", 0, 2**31),
    }
    return {name: value for name, value in told.items() if value is not None}


def tenant_json(tenant: TenantDoc) -> Json:
    told: Json = {
        "tenant_id": tenant.id,
        "name": tenant.title,
        "status": tenant.status,
        "default_commit_overage_policy": tenant.overage or IF_AVAILABLE,
        "default_reservation_ttl_ms": 60_000 if tenant.ttl_ms is None else tenant.ttl_ms,
        "max_reservation_ttl_ms": 3_600_000 if tenant.max_ttl_ms is None else tenant.max_ttl_ms,
        "max_reservation_extensions": 10 if tenant.max_extensions is None else tenant.max_extensions,
        "reservation_expiry_policy": tenant.expiry or _EXPIRIES[0],
        "created_at": date_time(tenant.created_ms),
        "updated_at": date_time(tenant.updated_ms),
    }
    if tenant.parent is not None:
        told["parent_tenant_id"] = tenant.parent
    if tenant.metadata is not None:
        told["metadata"] = tenant.metadata
    for name, at_ms in (("suspended_at", tenant.suspended_ms), ("closed_at", tenant.closed_ms)):
        if at_ms:
            told[name] = date_time(at_ms)
    return told
