"""`/v1/admin/policies`: what lifecycles of whoever matches a pattern are told (caps), and how long and with what overage they may run."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from gateway.core.grants import ANY, LEVELS, NoScope, Pattern, Scope, pattern_of
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.pages import Asked, Json, Paged, page
from gateway.cycles.governance.reading import Members, date_time, needed, page_of
from gateway.cycles.reading import OVERAGES
from gateway.registry import PolicyDoc, TenantStatus, after

_CHANGES: Final = (
    *("name", "description", "priority", "caps", "commit_overage_policy"),
    *("reservation_ttl_override", "rate_limits", "effective_from", "effective_until"),
)
_CREATE: Final = ("tenant_id", "scope_pattern", *_CHANGES)
_UPDATE: Final = (*_CHANGES, "status")
_STATUSES: Final = ("ACTIVE", "DISABLED")
_WHOLE_CAPS: Final = ("max_tokens", "max_steps_remaining", "cooldown_ms")
_TOOLS: Final = ("tool_allowlist", "tool_denylist")
_MOST: Final = 2**53 - 1
_IDS: Final = 100


@dataclass(frozen=True, slots=True)
class Policies:
    door: Door
    now_ms: Callable[[], int]

    def pages(self) -> Sequence[Paged]:
        return (
            page("POST", "/v1/admin/policies", self.create),
            page("GET", "/v1/admin/policies", self.listed),
            page("PATCH", "/v1/admin/policies/{policy_id}", self.update),
        )

    async def create(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.either(asked.inbound.headers, "policies:write")
        body = Members.read(asked.inbound.body, _CREATE)
        named = body.text("tenant_id", 64)
        if principal.admin:
            tenant = needed(named, "tenant_id")
        elif named is not None:
            raise invalid("tenant_id", "it not to be there: a key says whose tenant it is")
        else:
            tenant = principal.tenant
        text = needed(body.text("scope_pattern", 1_024), "scope_pattern")
        try:
            pattern = pattern_of(text)
        except NoScope as error:
            raise Fault("INVALID_REQUEST", f"scope_pattern: {error}", {"field": "scope_pattern"}) from None
        if any(level == LEVELS[0] and value not in (tenant, ANY) for level, value in pattern.values):
            raise invalid("scope_pattern", f"a pattern of the tenant {tenant}")
        self.door.check(principal, "policies:write", _scope(tenant, pattern))
        if self.door.open_tenant(tenant, status=400).status == TenantStatus.SUSPENDED.value:
            raise Fault("TENANT_SUSPENDED", f"The tenant {tenant} is suspended: nothing new is made for it.", status=403)
        title, at_ms = needed(body.text("name", 256, least=1), "name"), self.now_ms()
        changes = _changes(body)
        self._check_name(tenant, title, None)
        deed = asked.deed(principal, "createPolicy", at_ms)
        # The id hangs on the name, so that two of a name that are made at once are one. A name may have been given to another since.
        for attempt in range(_IDS):
            policy_id = "pol_" + hashlib.sha256(orjson.dumps([tenant, title, attempt])).hexdigest()[:16]
            made = PolicyDoc(policy_id, tenant, pattern=text, created_ms=at_ms, updated_ms=at_ms, **{"title": title, **changes})
            made = after(made, deed)
            found = await self.door.registry.change(PolicyDoc, made.name, partial(_first, made))
            if found is made:
                return 201, policy_json(made)
            self._check_name(tenant, title, None)
        raise _duplicate(title)

    async def listed(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.either(asked.inbound.headers, "policies:read")
        query = asked.query
        tenant = needed(query.text("tenant_id"), "tenant_id") if principal.admin else principal.tenant
        pattern, status = query.text("scope_pattern", 1_024), query.word("status", _STATUSES)
        rows = [
            policy
            for policy in self.door.registry.all(PolicyDoc)
            if policy.tenant == tenant
            and self._sees(principal.admin, asked, policy)
            and (pattern is None or policy.pattern == pattern)
            and (status is None or policy.status == status)
        ]
        sorts: dict[str, Callable[[PolicyDoc], str | int | float]] = {"created_at": lambda policy: policy.created_ms}
        shown, told = page_of(query, rows, sorts, "created_at", lambda policy: policy.id)
        return 200, {"policies": [policy_json(policy) for policy in shown], **told}

    async def update(self, asked: Asked) -> tuple[int, Json]:
        principal = await self.door.either(asked.inbound.headers, "policies:write")
        found = self.door.registry.document(PolicyDoc, f"policy {asked.path['policy_id']}")
        if found is None or (not principal.admin and found.tenant != principal.tenant):
            raise Fault("NOT_FOUND", f"There is no policy {asked.path['policy_id'][:80]}.")
        self.door.check(principal, "policies:write", _scope(found.tenant, pattern_of(found.pattern)))
        self.door.open_tenant(found.tenant)
        body = Members.read(asked.inbound.body, _UPDATE)
        changes, at_ms = _changes(body), self.now_ms()
        status = body.word("status", _STATUSES)
        if status is not None:
            changes["status"] = status
        if "title" in changes:
            self._check_name(found.tenant, changes["title"], found.id)
        deed = asked.deed(principal, "updatePolicy", at_ms)

        def changed(before: PolicyDoc | None) -> PolicyDoc:
            assert before is not None, found.id
            now = after(before, deed, updated_ms=at_ms, **changes)
            _check_times(now.from_ms, now.until_ms)
            return now

        return 200, policy_json(await self.door.registry.change(PolicyDoc, found.name, changed))

    def _sees(self, admin: bool, asked: Asked, policy: PolicyDoc) -> bool:
        if admin:
            return True
        principal = self.door.identity.of_cycles(asked.inbound.headers)
        try:
            assert principal is not None
            self.door.check(principal, "policies:read", _scope(policy.tenant, pattern_of(policy.pattern)))
        except Fault:
            return False
        return True

    def _check_name(self, tenant: str, title: str, but: str | None) -> None:
        for policy in self.door.registry.all(PolicyDoc):
            if (policy.tenant, policy.title) == (tenant, title) and policy.id != but:
                raise _duplicate(title)


def _first(made: PolicyDoc, before: PolicyDoc | None) -> PolicyDoc:
    return before or made


def _duplicate(title: str) -> Fault:
    return Fault("DUPLICATE_RESOURCE", f"There is a policy named {title!a}.", status=409)


def _scope(tenant: str, pattern: Pattern) -> Scope:
    """What a key must be allowed to act on to change such a policy."""
    return ((LEVELS[0], tenant), *[(level, value) for level, value in pattern.values if level != LEVELS[0]])


def _changes(body: Members) -> dict[str, Any]:
    """What may be set of a policy; only what was sent."""
    from_ms, until_ms = body.instant("effective_from"), body.instant("effective_until")
    _check_times(from_ms, until_ms)
    told = {
        "title": body.text("name", 256, least=1),
        "description": body.text("description", 1_024),
        "priority": body.whole("priority", 0, 2**31),
        "caps": _caps(body),
        "overage": body.word("commit_overage_policy", OVERAGES),
        "ttl": _wholes(
            body,
            "reservation_ttl_override",
            {"default_ttl_ms": (1_000, 86_400_000), "max_ttl_ms": (1_000, 86_400_000), "max_extensions": (0, 2**31)},
        ),
        "rate_limits": _wholes(
            body, "rate_limits", {"max_reservations_per_minute": (1, 2**31), "max_commits_per_minute": (1, 2**31)}
        ),
        "from_ms": from_ms,
        "until_ms": until_ms,
    }
    return {name: value for name, value in told.items() if value is not None}


def _check_times(from_ms: int | None, until_ms: int | None) -> None:
    if from_ms is not None and until_ms is not None and from_ms >= until_ms:
        raise invalid("effective_until", "a date-time after effective_from")


def _caps(body: Members) -> dict[str, object] | None:
    part = body.part("caps", (*_WHOLE_CAPS, *_TOOLS))
    if part is None:
        return None
    told: dict[str, object] = {name: part.whole(name, 0, _MOST) for name in _WHOLE_CAPS if name in part}
    return told | {name: part.texts(name, 256) for name in _TOOLS if name in part}


def _wholes(body: Members, name: str, bounds: dict[str, tuple[int, int]]) -> dict[str, int] | None:
    part = body.part(name, bounds)
    if part is None:
        return None
    told = {each: part.whole(each, *bounds[each]) for each in bounds}
    return {each: value for each, value in told.items() if value is not None}


def policy_json(policy: PolicyDoc) -> Json:
    told: Json = {
        "policy_id": policy.id,
        "name": policy.title,
        "scope_pattern": policy.pattern,
        "priority": policy.priority,
        "status": policy.status,
        "created_at": date_time(policy.created_ms),
        "updated_at": date_time(policy.updated_ms),
    }
    optional = {
        "description": policy.description,
        "caps": policy.caps,
        "commit_overage_policy": policy.overage,
        "reservation_ttl_override": policy.ttl,
        "rate_limits": policy.rate_limits,
        "effective_from": None if policy.from_ms is None else date_time(policy.from_ms),
        "effective_until": None if policy.until_ms is None else date_time(policy.until_ms),
    }
    return told | {name: value for name, value in optional.items() if value is not None}
