"""`/v1/admin/api-keys` and `/v1/auth`: keys of tenants. A secret is shown once, and its SHA-256 is what is kept."""

import hashlib
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.core.grants import NoScope, pattern_of
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.pages import Asked, Json, Paged, page
from gateway.cycles.governance.reading import Members, date_time, needed, page_of
from gateway.registry import KEY_MARK, KeyDoc, TenantStatus, after

DEFAULT_PERMISSIONS: Final = (
    *("reservations:create", "reservations:commit", "reservations:release", "reservations:extend", "reservations:list"),
    *("balances:read", "budgets:read", "budgets:write", "policies:read", "policies:write"),
)
PERMISSIONS: Final = (
    *DEFAULT_PERMISSIONS,
    *("webhooks:read", "webhooks:write", "events:read", "admin:read", "admin:write"),
    *("admin:tenants:read", "admin:tenants:write", "admin:budgets:read", "admin:budgets:write"),
    *("admin:policies:read", "admin:policies:write", "admin:apikeys:read", "admin:apikeys:write"),
    *("admin:webhooks:read", "admin:webhooks:write", "admin:events:read", "admin:audit:read"),
)
# A capability is there where one of these permissions is. Those that are missing are the admin's alone.
_CAPABILITIES: Final = {
    "view_budgets": ("budgets:read", "admin:read", "admin:budgets:read"),
    "view_policies": ("policies:read", "admin:read", "admin:policies:read"),
    "view_webhooks": ("webhooks:read", "admin:read", "admin:webhooks:read"),
    "view_events": ("events:read", "admin:read", "admin:events:read"),
    "view_reservations": (*DEFAULT_PERMISSIONS[:5], "admin:read"),
    "manage_budgets": ("budgets:write", "admin:write", "admin:budgets:write"),
    "manage_policies": ("policies:write", "admin:write", "admin:policies:write"),
    "manage_webhooks": ("webhooks:write", "admin:write", "admin:webhooks:write"),
    "manage_reservations": (*DEFAULT_PERMISSIONS[:4], "admin:write"),
}
_OF_ADMINS: Final = ("view_tenants", "view_api_keys", "view_audit", "view_overview", "manage_tenants", "manage_api_keys")

_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_CHARS: Final = 32
_SHOWN_CHARS: Final = 15
_LIFE_MS: Final = 90 * 86_400_000  # of a key that names no end
_UPDATE: Final = ("name", "description", "permissions", "scope_filter", "metadata")
_STATUSES: Final = ("ACTIVE", "REVOKED", "EXPIRED")


@dataclass(frozen=True, slots=True)
class Keys:
    door: Door
    now_ms: Callable[[], int]

    def pages(self) -> Sequence[Paged]:
        return (
            page("POST", "/v1/admin/api-keys", self.create),
            page("GET", "/v1/admin/api-keys", self.listed),
            page("PATCH", "/v1/admin/api-keys/{key_id}", self.update),
            page("DELETE", "/v1/admin/api-keys/{key_id}", self.revoke),
            page("POST", "/v1/auth/validate", self.validate),
            page("GET", "/v1/auth/introspect", self.introspect),
        )

    async def create(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.admin(asked.inbound.headers)
        body = Members.read(asked.inbound.body, ("tenant_id", "expires_at", *_UPDATE))
        tenant = self.door.open_tenant(needed(body.text("tenant_id", 64), "tenant_id"), status=400)
        at_ms = self.now_ms()
        expires_ms = body.instant("expires_at")
        if expires_ms is not None and expires_ms <= at_ms:
            raise invalid("expires_at", "a date-time to come")
        needed(body.text("name", 256), "name")
        changes = _changes(body)
        secret = KEY_MARK + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARS))
        made = KeyDoc(
            f"key_{secrets.token_hex(8)}",
            tenant.id,
            hashlib.sha256(secret.encode()).hexdigest(),
            secret[:_SHOWN_CHARS],
            **{"permissions": list(DEFAULT_PERMISSIONS), **changes},
            created_ms=at_ms,
            expires_ms=at_ms + _LIFE_MS if expires_ms is None else expires_ms,
        )
        made = after(made, asked.deed(principal, "createApiKey", at_ms))
        await self.door.registry.change(KeyDoc, made.name, lambda before: before or made)
        return 201, {
            "key_id": made.id,
            "key_secret": secret,
            "key_prefix": made.prefix,
            "tenant_id": made.tenant,
            "permissions": made.permissions,
            "created_at": date_time(made.created_ms),
            "expires_at": date_time(made.expires_ms),
        }

    async def listed(self, asked: Asked) -> tuple[int, Json]:
        await self.door.admin(asked.inbound.headers)
        query, at_ms = asked.query, self.now_ms()
        tenant, status, search = query.text("tenant_id"), query.word("status", _STATUSES), query.search()
        rows = [
            key
            for key in self.door.registry.all(KeyDoc)
            if (tenant is None or key.tenant == tenant)
            and (status is None or key.status(at_ms) == status)
            and (search is None or search in key.id or search in key.title.lower())
        ]
        sorts: dict[str, Callable[[KeyDoc], str | int | float]] = {
            "key_id": lambda key: key.id,
            "name": lambda key: key.title,
            "tenant_id": lambda key: key.tenant,
            "status": lambda key: key.status(at_ms),
            "created_at": lambda key: key.created_ms,
            "expires_at": lambda key: key.expires_ms,
        }
        shown, told = page_of(query, rows, sorts, "created_at", lambda key: key.id)
        return 200, {"keys": [key_json(key, at_ms) for key in shown], **told}

    async def update(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.admin(asked.inbound.headers)
        body = Members.read(asked.inbound.body, _UPDATE)
        key, changes, at_ms = self._key(asked), _changes(body), self.now_ms()
        self.door.open_tenant(key.tenant)
        deed = asked.deed(principal, "updateApiKey", at_ms)

        def changed(before: KeyDoc | None) -> KeyDoc:
            assert before is not None, key.id
            status = before.status(at_ms)
            if status != "ACTIVE":
                raise Fault(f"KEY_{status}", f"The key {before.id} is {status.lower()}: make another.", status=409)
            return after(before, deed, **changes)

        return 200, key_json(await self.door.registry.change(KeyDoc, key.name, changed), at_ms)

    async def revoke(self, asked: Asked) -> tuple[int, Json]:
        """For good. What was reserved with it may still be committed or released with it."""
        principal = await self.door.admin(asked.inbound.headers)
        key, reason, at_ms = self._key(asked), asked.query.text("reason"), self.now_ms()
        self.door.open_tenant(key.tenant)
        deed = asked.deed(principal, "revokeApiKey", at_ms, reason)

        def changed(before: KeyDoc | None) -> KeyDoc:
            assert before is not None, key.id
            if before.revoked_ms:
                raise Fault("KEY_REVOKED", f"The key {before.id} was revoked before.", status=409)
            return after(before, deed, revoked_ms=at_ms, revoked_reason=reason)

        return 200, key_json(await self.door.registry.change(KeyDoc, key.name, changed), at_ms)

    async def validate(self, asked: Asked) -> tuple[int, Json]:
        await self.door.admin(asked.inbound.headers)
        body = Members.read(asked.inbound.body, ("key_secret",))
        key = self.door.registry.key(needed(body.text("key_secret", 512), "key_secret"))
        if key is None:
            return 200, {"valid": False, "tenant_id": "", "reason": "NOT_FOUND"}
        status, tenant = key.status(self.now_ms()), self.door.registry.tenant(key.tenant)
        reason = status if status != "ACTIVE" else None
        if reason is None and tenant is not None and tenant.status != TenantStatus.ACTIVE.value:
            reason = f"TENANT_{tenant.status}"
        told: Json = {
            "valid": reason is None,
            "tenant_id": key.tenant,
            "key_id": key.id,
            "permissions": key.permissions,
            "scope_filter": key.scope_filter,
            "expires_at": date_time(key.expires_ms),
        }
        return 200, told if reason is None else {**told, "reason": reason}

    async def introspect(self, asked: Asked) -> tuple[int, Json]:
        """What whoever asks may do here, for a page that shows only that."""
        if "X-Admin-API-Key" in asked.inbound.headers:
            await self.door.admin(asked.inbound.headers)
            everything = dict.fromkeys((*_CAPABILITIES, *_OF_ADMINS), True)
            return 200, {"authenticated": True, "auth_type": "admin", "permissions": ["*"], "capabilities": everything}
        principal = await self.door.tenant(asked.inbound.headers)
        key = principal.registered
        held = DEFAULT_PERMISSIONS if key is None else key.permissions
        capabilities = {name: any(each in held for each in of) for name, of in _CAPABILITIES.items()}
        told: Json = {
            "authenticated": True,
            "auth_type": "tenant",
            "permissions": list(held),
            "capabilities": {**capabilities, **dict.fromkeys(_OF_ADMINS, False)},
            "tenant_id": principal.tenant,
        }
        return 200, {**told, "scope_filter": key.scope_filter} if key is not None and key.scope_filter else told

    def _key(self, asked: Asked) -> KeyDoc:
        key = self.door.registry.document(KeyDoc, f"key {asked.path['key_id']}")
        if key is None:
            raise Fault("NOT_FOUND", f"There is no key {asked.path['key_id'][:80]}.")
        return key


def _changes(body: Members) -> dict[str, Any]:
    """What may be set of a key; only what was sent."""
    permissions, scopes = body.texts("permissions", 64), body.texts("scope_filter", 1_024)
    unknown = next((each for each in permissions or () if each not in PERMISSIONS), None)
    if unknown is not None:
        raise invalid("permissions", f"some of {', '.join(PERMISSIONS)}; found {unknown!a}")
    for scope in scopes or ():
        try:
            pattern_of(scope)
        except NoScope as error:
            raise Fault("INVALID_REQUEST", f"scope_filter: {error}", {"field": "scope_filter"}) from None
    told = {
        "title": body.text("name", 256),
        "description": body.text("description", 1_024),
        "permissions": permissions,
        "scope_filter": scopes,
        "metadata": body.object("metadata"),
    }
    return {name: value for name, value in told.items() if value is not None}


def key_json(key: KeyDoc, at_ms: int) -> Json:
    told: Json = {
        "key_id": key.id,
        "tenant_id": key.tenant,
        "key_prefix": key.prefix,
        "name": key.title,
        "permissions": key.permissions,
        "status": key.status(at_ms),
        "created_at": date_time(key.created_ms),
        "expires_at": date_time(key.expires_ms),
    }
    if key.description is not None:
        told["description"] = key.description
    if key.scope_filter:
        told["scope_filter"] = key.scope_filter
    if key.metadata is not None:
        told["metadata"] = key.metadata
    if key.revoked_ms:
        told["revoked_at"] = date_time(key.revoked_ms)
        if key.revoked_reason is not None:
            told["revoked_reason"] = key.revoked_reason
    return told
