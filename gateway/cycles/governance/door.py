"""Who may do what on the admin plane: the admin by `X-Admin-API-Key`, which is the gateway's admin token; a tenant by its own key, where the
specification lets it. What is known of tenants, keys and budgets is looked up anew for each request, so every gateway answers alike."""

from dataclasses import dataclass

from multidict import CIMultiDictProxy

from gateway.core.grants import Scope
from gateway.cycles.faults import Fault, of_problem
from gateway.identity import Identity, Principal
from gateway.registry import Registry, TenantDoc, TenantStatus
from gateway.wire.problem import Refused


@dataclass(frozen=True, slots=True)
class Door:
    identity: Identity
    registry: Registry

    async def admin(self, headers: CIMultiDictProxy[str]) -> Principal:
        """Fault UNAUTHORIZED."""
        principal = self.identity.of_admin(headers)
        if principal is None:
            raise Fault("UNAUTHORIZED", self.identity.no_admin())
        await self.registry.look()
        return principal

    async def tenant(
        self, headers: CIMultiDictProxy[str], permission: str | None = None, scope: Scope | None = None
    ) -> Principal:
        """Fault UNAUTHORIZED, FORBIDDEN."""
        await self.registry.look()
        principal = self.identity.of_cycles(headers)
        if principal is None:
            raise Fault("UNAUTHORIZED", "There is no such key, or it has expired or was revoked (X-Cycles-API-Key).")
        if permission is not None:
            self.check(principal, permission, scope)
        return principal

    async def either(self, headers: CIMultiDictProxy[str], permission: str, scope: Scope | None = None) -> Principal:
        """The admin, or a tenant with the permission for a scope of its own."""
        if "X-Admin-API-Key" in headers:
            return await self.admin(headers)
        return await self.tenant(headers, permission, scope)

    def check(self, principal: Principal, permission: str, scope: Scope | None) -> None:
        """Fault FORBIDDEN where a tenant's key lacks the right, or the scope is another tenant's."""
        if principal.admin:
            return
        if scope is not None and scope[0][1] != principal.tenant:
            raise Fault("FORBIDDEN", f"This key is of the tenant {principal.tenant}.")
        try:
            self.registry.require(principal, permission, scope)
        except Refused as refused:
            raise of_problem(refused.problem) from None

    def open_tenant(self, tenant: str, status: int = 404) -> TenantDoc:
        """One that may be changed: Fault TENANT_CLOSED; TENANT_NOT_FOUND with this status."""
        found = self.registry.tenant(tenant)
        if found is None:
            raise Fault("TENANT_NOT_FOUND", f"There is no tenant {tenant[:80]}.", status=status)
        if found.status == TenantStatus.CLOSED.value:
            raise Fault("TENANT_CLOSED", f"The tenant {tenant} is closed, for good.")
        return found
