"""The admin plane over a real ledger, without HTTP: every answer is held against the specification."""

from typing import Any

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.asks import Asks
from gateway.core.catalog import Catalog
from gateway.core.decide import Rulebook
from gateway.core.policy import Policy
from gateway.core.scopes import Unit
from gateway.cycles.governance import plane
from gateway.identity import Identity
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from gateway.registry import Registry
from gateway.server.routes import Route, Routes, Visit
from gateway.settings import Settings, SqliteSettings
from gateway.wire.exchange import Inbound
from tests.cycles.governance import judge
from tests.support.clock import Clock
from tests.support.rulebooks import rulebook

TOKEN = "admin-token-0123456789"
DOLLAR = 100_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
_NOBODY = Policy("policy-1", ())


class Plane:
    """One gateway's admin plane. `await plane("POST", "/v1/admin/tenants", {...})` asks as the admin → (status, body)."""

    def __init__(self, ledger: SqliteLedger, clock: Clock, folder: Any, auth: str = "keys") -> None:
        settings = Settings(
            *("127.0.0.1", 0, folder / "policy.yaml", SqliteSettings(folder / "ledger.db"), folder, {}, Catalog("prices-1", {})),
            admin_token=TOKEN,
            auth=auth,
        )
        self.ledger, self.clock = ledger, clock
        self.registry = Registry(ledger, clock, lambda _: None, lambda _: None)
        self.identity = Identity(settings, b"secret", iter(f"run_{n}" for n in range(1_000)).__next__, self.registry)
        self.asks = Asks(ledger, lambda *_: None)
        self._routes = Routes({}, [Route(*page) for page in plane.pages(ledger, self.identity, self.registry, self.asks, clock)])

    async def __call__(
        self, method: str, target: str, body: object = None, key: str | None = None, admin: bool | None = None, **headers: str
    ) -> tuple[int, Any]:
        """`key`: asks as a tenant."""
        path, _, query = target.partition("?")
        given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
        given["X-Cycles-Trace-Id"] = TRACE
        if key is not None:
            given["X-Cycles-API-Key"] = key
        if admin if admin is not None else key is None:
            given["X-Admin-API-Key"] = TOKEN
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        inbound = Inbound(method, f"/cycles{path}", query, None, CIMultiDictProxy(given), raw, "req_1")
        found = self._routes.find(method, f"/cycles{path}")
        assert isinstance(found, Visit), found
        reply = await found.page(inbound, found.parameters)
        told = orjson.loads(reply.body)
        judge.check(method, path, reply.status, told, {name.lower(): value for name, value in reply.headers})
        return reply.status, told

    async def tenant(self, name: str = "acme") -> None:
        status, _ = await self("POST", "/v1/admin/tenants", {"tenant_id": name, "name": name.title()})
        assert status == 201

    async def key(self, tenant: str = "acme", **members: Any) -> tuple[str, str]:
        """(its id, its secret)."""
        status, told = await self("POST", "/v1/admin/api-keys", {"tenant_id": tenant, "name": "k", **members})
        assert status == 201, told
        return told["key_id"], told["key_secret"]

    async def budget(self, scope: str = "tenant:acme", amount: int = DOLLAR, unit: str = "USD_MICROCENTS", **members: Any) -> Any:
        body = {
            "tenant_id": scope.split("/", maxsplit=1)[0][7:],
            "scope": scope,
            "unit": unit,
            "allocated": {"unit": unit, "amount": amount},
        }
        status, told = await self("POST", "/v1/admin/budgets", body | members)
        assert status == 201, told
        return told

    async def fund(
        self,
        operation: str,
        amount: int,
        scope: str = "tenant:acme",
        unit: str = "USD_MICROCENTS",
        key: str | None = None,
        **members: Any,
    ) -> tuple[int, Any]:
        query = f"scope={scope}&unit={unit}" + ("" if key else f"&tenant_id={scope.split('/', maxsplit=1)[0][7:]}")
        body = {"operation": operation, "amount": {"unit": unit, "amount": amount}, **members}
        return await self("POST", f"/v1/admin/budgets/fund?{query}", body, key)

    async def look(self, scope: str = "tenant:acme", unit: str = "USD_MICROCENTS") -> Any:
        status, told = await self("GET", f"/v1/admin/budgets/lookup?scope={scope}&unit={unit}")
        assert status == 200, told
        return told

    def rules(self) -> Rulebook:
        """What calls are decided by."""
        return Rulebook(_NOBODY, rulebook().catalog, rulebook().counter, grants=self.registry.grants)

    async def spend(self, amount: int, scope: str = "tenant:acme") -> None:
        """As if that had been committed there."""
        found = self.registry.budget(scope, Unit.USD)
        assert found is not None
        account = found.grant.account
        adjusted = await self.ledger.adjust(account.tenant, account.key, amount, f"act-{self.clock()}-{amount}", "test", "spent")
        assert adjusted is not None
        assert adjusted[0].value == "done"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(tmp_path, clock):
    opened = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"), clock)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def plane_here(ledger, clock, tmp_path):
    return Plane(ledger, clock, tmp_path)


@pytest.fixture
def plane_there(ledger, clock, tmp_path):
    """Another gateway on the same ledger."""
    return Plane(ledger, clock, tmp_path)
