"""What operators made while the gateways run: tenants, keys, grants and policies of the Cycles admin plane (contract: `Registry`).

They stand as documents in the ledger, so that all gateways on it share them. Each gateway keeps them in memory, looks every second
whether they changed, and at once after a write of its own, or before it says that it knows no such key or budget. A call never waits
for that.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol, TypeVar

import orjson

from gateway.core.grants import (
    Grant,
    Grants,
    GrantStatus,
    Pattern,
    Scope,
    Unread,
    filters,
    levels_of,
    pattern_of,
    scope_of,
)
from gateway.core.scopes import BOOKKEEPING, Caller, Unit
from gateway.ledger.contract import Ledger, LedgerLost, LedgerUnavailable, Unfit
from gateway.wire.problem import Refused, problem

KEY_MARK: Final = "cyc_live_"  # what a key's secret begins with
TENANT_CLOSED: Final = "tenant_closed"  # why a key was revoked whose tenant was closed

_LOOK_EVERY_S: Final = 1.0
_UNREAD_LOOK_EVERY_S: Final = 0.2  # no call is served before
_DEEDS: Final = 32  # that a document tells of
_ATTEMPTS: Final = 50  # to change a document that others change meanwhile

D = TypeVar("D", bound="Document")


class TenantStatus(StrEnum):
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Deed:
    """One change of a document, as it is told to an auditor: who did what by which request, and why. `ids`: of the request and its trace."""

    at_ms: int
    who: str  # "admin", or a key's id
    operation: str
    why: str = ""
    ids: Sequence[str] = ("", "")


@dataclass(frozen=True, slots=True)
class Document:
    """One text in the ledger. Times in ms; 0: not yet. What a newer gateway adds to it is read over. `history`: its deeds as lists, the
    first and the latest of them, so that a change and what is told of it are one."""

    KIND: ClassVar = ""

    history: Sequence[Sequence[Any]] = field(default=(), kw_only=True)

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def deeds(self) -> Sequence[Deed]:
        return [Deed(*each) for each in self.history]


@dataclass(frozen=True, slots=True)
class TenantDoc(Document):
    """The overage policy and the expiry policy are the wire's words."""

    KIND: ClassVar = "tenant"

    id: str
    title: str
    status: str = TenantStatus.ACTIVE.value
    parent: str | None = None
    overage: str | None = None
    ttl_ms: int | None = None
    max_ttl_ms: int | None = None
    max_extensions: int | None = None
    expiry: str | None = None
    metadata: Mapping[str, str] | None = None
    created_ms: int = 0
    updated_ms: int = 0
    suspended_ms: int = 0
    closed_ms: int = 0

    @property
    def name(self) -> str:
        return f"tenant {self.id}"


@dataclass(frozen=True, slots=True)
class KeyDoc(Document):
    """`sha256`: of the secret, which nobody keeps."""

    KIND: ClassVar = "key"

    id: str
    tenant: str
    sha256: str
    prefix: str
    title: str = ""
    description: str | None = None
    permissions: Sequence[str] = ()
    scope_filter: Sequence[str] = ()
    metadata: Mapping[str, object] | None = None
    created_ms: int = 0
    expires_ms: int = 0
    revoked_ms: int = 0
    revoked_reason: str | None = None

    @property
    def name(self) -> str:
        return f"key {self.id}"

    def status(self, at_ms: int) -> str:
        if self.revoked_ms:
            return "REVOKED"
        return "EXPIRED" if self.expires_ms <= at_ms else "ACTIVE"

    def permits(self, permission: str) -> bool:
        """`admin:write` stands for every right to write, `admin:read` for every right to read."""
        held = self.permissions
        if permission in held:
            return True
        _, _, verb = permission.rpartition(":")
        return verb in ("read", "write") and f"admin:{verb}" in held


@dataclass(frozen=True, slots=True)
class BudgetDoc(Document):
    """A grant, and what the admin plane tells of it. `opening`: the limit that its account is made with, in its unit."""

    KIND: ClassVar = "budget"

    id: str
    tenant: str
    scope: str
    unit: str  # the ledger's word
    opening: int
    overdraft: int = 0
    overage: str | None = None
    status: str = GrantStatus.ACTIVE.value
    rollover: str | None = None
    period_start: str | None = None
    period_end: str | None = None
    metadata: Mapping[str, object] | None = None
    created_ms: int = 0
    updated_ms: int = 0

    @property
    def name(self) -> str:
        return budget_name(self.scope, self.unit)

    @property
    def grant(self) -> Grant:
        return Grant(self.tenant, scope_of(self.scope), Unit(self.unit), self.overdraft, GrantStatus(self.status), self.overage)


def budget_name(scope: str, unit: str) -> str:
    """A scope begins with its tenant, so the pair is unique."""
    return f"budget {scope} {unit}"


@dataclass(frozen=True, slots=True)
class PolicyDoc(Document):
    """`caps` as they go over the wire. Of several that match, the one with the highest priority has the say, then the one with the longest
    pattern, then the newest."""

    KIND: ClassVar = "policy"

    id: str
    tenant: str
    title: str
    pattern: str
    priority: int = 0
    description: str | None = None
    caps: Mapping[str, object] | None = None
    overage: str | None = None
    ttl: Mapping[str, int] | None = None
    rate_limits: Mapping[str, int] | None = None
    status: str = "ACTIVE"
    from_ms: int | None = None
    until_ms: int | None = None
    created_ms: int = 0
    updated_ms: int = 0

    @property
    def name(self) -> str:
        return f"policy {self.id}"

    def holds(self, at_ms: int) -> bool:
        begun = self.from_ms is None or self.from_ms <= at_ms
        return self.status == "ACTIVE" and begun and (self.until_ms is None or at_ms < self.until_ms)


@dataclass(frozen=True, slots=True)
class Governed:
    """What the policies and the tenant say of a caller's lifecycles, where the request itself says nothing. `caps`: as they go over the
    wire; None: none. `overage` does not look at budgets, whose word stands between a policy's and the tenant's: see `Registry.overage`."""

    caps: Mapping[str, object] | None
    overage: str | None
    ttl_ms: int
    max_ttl_ms: int
    max_extensions: int


def after(document: D, deed: Deed, **changes: Any) -> D:
    """The document with these changes, and the deed in its history."""
    history = [list(each) for each in document.history]
    if len(history) >= _DEEDS:
        del history[1]  # how it came about stays known
    told = [deed.at_ms, deed.who, deed.operation, deed.why, list(deed.ids)]
    return replace(document, history=[*history, told], **changes)


KINDS: Final[tuple[type[Document], ...]] = (TenantDoc, KeyDoc, BudgetDoc, PolicyDoc)
_BY_KIND: Final = {kind.KIND: kind for kind in KINDS}
_GOVERNING: Final = (f"{TenantDoc.KIND} ", f"{BudgetDoc.KIND} ")


class Holder(Protocol):
    """Whoever shows a key: see `identity.Principal`."""

    @property
    def registered(self) -> KeyDoc | None: ...


class Registry:
    """`on_change` is told of the grants whenever something changed; `on_trouble` of each look that failed. `now_ms` is a gateway's clock:
    keys expire by it."""

    def __init__(
        self,
        ledger: Ledger,
        now_ms: Callable[[], int],
        on_change: Callable[[Grants], None],
        on_trouble: Callable[[Exception], None],
    ) -> None:
        self._ledger = ledger
        self._now_ms = now_ms
        self._on_change = on_change
        self._on_trouble = on_trouble
        self._number = 0
        self._texts: Mapping[str, str] = {}
        self._governing: Mapping[str, str] | None = None  # those texts that grants are made of
        self._documents: dict[str, Document] = {}
        self._made: dict[str, Grant] = {}  # of those documents that are budgets: there may be one for each of thousands of runs
        self._keys: dict[str, KeyDoc] = {}  # by digest
        self._policies: dict[str, list[tuple[Pattern, PolicyDoc]]] = {}  # by tenant, the one with the say first
        self.grants = Grants(unread=Unread("ledger_unavailable", "the ledger has yet to be asked"))
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None

    # -- reading --------------------------------------------------------------------------------------------------------------

    def tenant(self, tenant: str) -> TenantDoc | None:
        return self.document(TenantDoc, f"tenant {tenant}")

    def budget(self, scope: str, unit: Unit) -> BudgetDoc | None:
        return self.document(BudgetDoc, budget_name(scope, unit.value))

    def document(self, kind: type[D], name: str) -> D | None:
        found = self._documents.get(name)
        return found if isinstance(found, kind) else None

    def all(self, kind: type[D]) -> list[D]:
        """In no order that means anything."""
        return [document for document in self._documents.values() if isinstance(document, kind)]

    def key(self, secret: str) -> KeyDoc | None:
        """Also one that has expired or was revoked. Looked up by digest, so nothing can be learned from how long the answer takes."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = self._keys.get(digest)
        return found if found is not None and hmac.compare_digest(found.sha256, digest) else None

    def status(self, key: KeyDoc) -> str:
        """ACTIVE, EXPIRED or REVOKED, as of now."""
        return key.status(self._now_ms())

    def grants_for(self, caller: Caller) -> Sequence[Grant]:
        """Those that the caller's calls count in, its run's ancestors left out. Every unit, every status."""
        return self.grants.of((caller,))

    def caps_for(self, caller: Caller) -> Mapping[str, object] | None:
        """The caps of the policy that has the say, as they go over the wire."""
        return self.governed(caller).caps

    def governed(self, caller: Caller) -> Governed:
        matching = self._matching(caller)
        tenant = self.tenant(caller.tenant)
        ttl = next((policy.ttl for policy in matching if policy.ttl), {})
        told = {
            "default_ttl_ms": None if tenant is None else tenant.ttl_ms,
            "max_ttl_ms": None if tenant is None else tenant.max_ttl_ms,
            "max_extensions": None if tenant is None else tenant.max_extensions,
        }
        told |= ttl
        default, most, extensions = told["default_ttl_ms"], told["max_ttl_ms"], told["max_extensions"]
        return Governed(
            next((policy.caps for policy in matching if policy.caps), None),
            self._overage(caller, matching, tenant),
            60_000 if default is None else default,
            3_600_000 if most is None else most,
            10 if extensions is None else extensions,
        )

    def _overage(self, caller: Caller, matching: Sequence[PolicyDoc], tenant: TenantDoc | None) -> str | None:
        """A policy's, else that of the narrowest budget that has one, else the tenant's."""
        by_policy = next((policy.overage for policy in matching if policy.overage), None)
        if by_policy is not None:
            return by_policy
        of_caller = self.grants_for(caller) if self.grants.overages else ()
        by_budget = [grant for grant in of_caller if grant.overage is not None]
        if by_budget:
            return max(by_budget, key=lambda grant: len(grant.scope)).overage
        return None if tenant is None else tenant.overage

    def _matching(self, caller: Caller) -> list[PolicyDoc]:
        policies = self._policies.get(caller.tenant)
        if not policies:
            return []
        values, at_ms = levels_of(caller), self._now_ms()
        return [policy for pattern, policy in policies if policy.holds(at_ms) and pattern.takes(values)]

    # -- rights ---------------------------------------------------------------------------------------------------------------

    def require(self, principal: Holder, permission: str, scope: Scope | None = None) -> None:
        """Refused 403 `not_permitted` where the key lacks the right, or may not act on the scope (of a caller: `scope_for`). A key of the
        config may do everything that callers may."""
        key = principal.registered
        if key is None:
            return
        if not key.permits(permission):
            raise Refused(problem("not_permitted", f"This key lacks the permission {permission}."))
        if scope is not None and not filters(key.scope_filter, scope):
            raise Refused(problem("not_permitted", f"This key is restricted to the scopes {', '.join(key.scope_filter)}."))

    # -- looking --------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks every second, for as long as the gateway lives."""
        while True:
            try:
                await self.look()
            except Exception as failure:  # noqa: BLE001 - the loop outlives whatever a look meets
                self._on_trouble(failure)
            await asyncio.sleep(_LOOK_EVERY_S if self.grants.unread is None else _UNREAD_LOOK_EVERY_S)

    async def look(self) -> None:
        """What was written before this was asked for is known when it returns. LedgerUnavailable, LedgerLost. Those who ask while a look
        has yet to begin share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._look())
            self._next.add_done_callback(_seen)
        await asyncio.shield(self._next)

    async def _look(self) -> None:
        """A document that is not understood must not be ignored, as it may be a budget: what was read before stays, and a gateway that has
        read nothing yet lets no call through."""
        try:
            async with self._looking:
                self._next = None  # whoever asks from here on may ask for what this one no longer sees
                found = await self._ledger.documents(BOOKKEEPING, self._number)
                if found is not None:
                    self._take(found.texts)
                    self._number = found.number
                elif self.grants.unread is not None:
                    self._take({})
        except LedgerUnavailable as failure:
            self._stay_unread(Unread("ledger_unavailable", str(failure)))
            raise
        except LedgerLost as failure:
            self._stay_unread(Unread("ledger_lost", str(failure)))
            raise
        finally:
            if self._next is asyncio.current_task():
                self._next = None

    def _stay_unread(self, why: Unread) -> None:
        if self.grants.unread not in (None, why):
            self.grants = Grants(unread=why)
            self._on_change(self.grants)

    def _take(self, texts: Mapping[str, str]) -> None:
        documents: dict[str, Document] = {}
        governing = {name: text for name, text in texts.items() if name.startswith(_GOVERNING)}
        try:
            for name, text in texts.items():
                known = self._documents.get(name)
                if known is not None and self._texts.get(name) == text:
                    documents[name] = known
                elif (read := _read(name, text)) is not None:
                    documents[name] = read
            made = {name: self._grant(name, each) for name, each in documents.items() if isinstance(each, BudgetDoc)}
            grants = self.grants if governing == self._governing else Grants(made.values(), _halted(documents.values()))
            policies = _in_order(documents.values())
        except (ValueError, TypeError, AttributeError, KeyError) as failure:
            raise Unfit(f"a document of the Cycles admin plane cannot be read: {failure}") from failure
        self._texts, self._documents, self._made, self._governing, self._policies = texts, documents, made, governing, policies
        self._keys = {key.sha256: key for key in self.all(KeyDoc)}
        if grants is not self.grants:
            self.grants = grants
            self._on_change(grants)

    def _grant(self, name: str, budget: BudgetDoc) -> Grant:
        """Made once for each text: a change of one budget must not hold up calls for as long as making all of them takes."""
        return self._made[name] if self._documents.get(name) is budget else budget.grant

    # -- writing --------------------------------------------------------------------------------------------------------------

    async def change(self, kind: type[D], name: str, change: Callable[[D | None], D]) -> D:
        """Writes what `change` makes of the document as it stands, which may be asked several times, as others write too; whatever it
        raises is raised. Known here when this returns."""
        for _ in range(_ATTEMPTS):
            before = self.document(kind, name)
            after = change(before)
            if after == before:
                return after
            text = orjson.dumps(asdict(after)).decode()
            written = await self._ledger.put_document(BOOKKEEPING, name, text, self._texts.get(name))
            await self.look()
            if written:
                return after
        raise LedgerUnavailable(f"others keep changing {name}")


def _read(name: str, text: str) -> Document | None:
    """None: of a kind that is not known here."""
    kind = _BY_KIND.get(name.partition(" ")[0])
    if kind is None:
        return None
    members = {each.name for each in fields(kind)}
    return kind(**{member: value for member, value in orjson.loads(text).items() if member in members})


def _halted(documents: Iterable[Document]) -> dict[str, str]:
    tenants = [document for document in documents if isinstance(document, TenantDoc)]
    return {tenant.id: tenant.status.lower() for tenant in tenants if tenant.status != TenantStatus.ACTIVE.value}


def _in_order(documents: Iterable[Document]) -> dict[str, list[tuple[Pattern, PolicyDoc]]]:
    by_tenant: dict[str, list[tuple[Pattern, PolicyDoc]]] = {}
    policies = [document for document in documents if isinstance(document, PolicyDoc)]
    for policy in sorted(policies, key=lambda each: (-each.priority, -len(each.pattern), -each.created_ms, each.id)):
        by_tenant.setdefault(policy.tenant, []).append((pattern_of(policy.pattern), policy))
    return by_tenant


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever asked for it may have gone."""
    if not task.cancelled():
        task.exception()
