"""The runtime plane over a real ledger, without HTTP, and what operators would have made: tenants, keys, budgets, policies. Every answer is
held against the specification.

world = World(ledger, clock); await world.look()
await world.budget("tenant:acme", 1_000)
status, body = await world.reserve(amount=100)
"""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.catalog import Catalog
from gateway.core.grants import Grants
from gateway.core.policy import Policy
from gateway.core.scopes import Unit
from gateway.cycles.answering import PREFIX, Answering
from gateway.cycles.ground import Ground
from gateway.cycles.plane import Plane
from gateway.events import Events
from gateway.identity import Identity
from gateway.ledger.contract import Fund, Ledger
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.registry import BudgetDoc, KeyDoc, PolicyDoc, Registry, TenantDoc
from gateway.server.routes import Route, Routes, Visit
from gateway.settings import Settings, SqliteSettings, StaticKey
from gateway.wire.exchange import Inbound, Reply
from tests.cycles import specification
from tests.support.clock import Clock
from tests.support.rulebooks import policy, rulebook

ADMIN_TOKEN: Final = "admin-token-0123456789"
TENANT: Final = "acme"
USD: Final = "USD_MICROCENTS"
ALL_RIGHTS: Final = (
    *("reservations:create", "reservations:commit", "reservations:release", "reservations:extend", "reservations:list"),
    "balances:read",
)
_numbers = itertools.count()


def fresh_key() -> str:
    return f"key-{next(_numbers)}"


class World:
    def __init__(self, ledger: Ledger, clock: Clock, *keys: StaticKey, rules: Policy | None = None, **answering: bool) -> None:
        self.ledger = ledger
        self.clock = clock
        self.lines: list[dict[str, Any]] = []
        self.rulebook = rulebook(rules or policy())
        self.registry = Registry(ledger, clock, self._granted, self._failed)
        settings = Settings(
            *("127.0.0.1", 0, Path("policy.yaml"), SqliteSettings(Path("ledger.db")), Path(), {}, Catalog("prices-1", {})),
            auth="keys" if keys else "passthrough",
            admin_token=ADMIN_TOKEN,
            keys=keys,
        )
        self.identity = Identity(settings, b"secret", lambda: "run_made", self.registry)
        self.events = Events(self._write)
        self.metrics = Metrics({})
        self.observer = Observer(self.events, self.metrics, lambda: clock() / 1000)
        tenants = ("default", *(key.tenant for key in keys))
        ground = Ground(ledger, self.identity, self.registry, lambda: self.rulebook, self.observer, clock, tenants)
        newer = answering.pop("newer_members", False)
        self.plane = Plane.over(ground, Answering(answering.pop("trace_in_body", False)), newer_members=newer)
        self.routes = Routes({}, [Route(*page) for page in self.plane.pages()])
        self.secret = ""

    def _granted(self, grants: Grants) -> None:
        self.rulebook = self.rulebook.beside(grants)

    def _failed(self, failure: Exception) -> None:
        raise failure

    def _write(self, data: bytes) -> None:
        self.lines += [orjson.loads(line) for line in data.splitlines()]

    def told(self) -> list[dict[str, Any]]:
        """The log's lines of calls."""
        self.events.close()
        return [line for line in self.lines if line["event"] == "call"]

    # -- what operators make --------------------------------------------------------------------------------------------------

    async def open(self, allocated: int | None = None, unit: str = USD) -> "World":
        """A key of the tenant, and a budget over all of it."""
        await self.registry.look()
        self.secret = await self.key()
        if allocated is not None:
            await self.budget(f"tenant:{TENANT}", allocated, unit)
        return self

    async def key(
        self, tenant: str = TENANT, permissions: tuple[str, ...] = ALL_RIGHTS, scope_filter: tuple[str, ...] = ()
    ) -> str:
        number = next(_numbers)
        secret = f"cyc_live_{number:032}"
        digest = hashlib.sha256(secret.encode()).hexdigest()
        doc = KeyDoc(
            f"key_{number}", tenant, digest, secret[:13], permissions=permissions, scope_filter=scope_filter, expires_ms=2**50
        )
        await self.registry.change(KeyDoc, doc.name, lambda _: doc)
        return secret

    async def tenant(self, tenant: str = TENANT, **facts: Any) -> None:
        await self.registry.change(TenantDoc, f"tenant {tenant}", lambda _: TenantDoc(tenant, tenant, **facts))

    async def budget(self, scope: str, allocated: int, unit: str = USD, **facts: Any) -> None:
        """Made, or changed where it is there."""
        tenant = scope.split("/", maxsplit=1)[0].partition(":")[2]
        doc = BudgetDoc(f"bud {scope} {unit}", tenant, scope, _UNITS[unit].value, allocated, **facts)
        await self.registry.change(BudgetDoc, doc.name, lambda _: doc)
        await self.ledger.fund(doc.grant.account, Fund(to=allocated), fresh_key(), "admin", "")

    async def fund(self, scope: str, by: int, unit: str = USD) -> None:
        doc = self.registry.budget(scope, _UNITS[unit])
        assert doc is not None
        await self.ledger.fund(doc.grant.account, Fund(by=by), fresh_key(), "admin", "")

    async def caps(self, pattern: str, **caps: Any) -> None:
        number = next(_numbers)
        doc = PolicyDoc(f"pol_{number}", TENANT, "caps", pattern, caps=caps)
        await self.registry.change(PolicyDoc, doc.name, lambda _: doc)

    # -- what clients ask -----------------------------------------------------------------------------------------------------

    async def reply(self, method: str, target: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        path, _, query = target.partition("?")
        told = CIMultiDict({"X-Cycles-API-Key": self.secret} if headers is None else headers)
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        inbound = Inbound(method, PREFIX + path, query, None, CIMultiDictProxy(told), raw, "req_1")
        found = self.routes.find(method, PREFIX + path)
        assert isinstance(found, Visit), target
        reply = await found.page(inbound, found.parameters)
        specification.check(method, path, reply.status, orjson.loads(reply.body))
        return reply

    async def ask(
        self, method: str, target: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        reply = await self.reply(method, target, body, headers)
        return reply.status, orjson.loads(reply.body)

    async def reserve(self, amount: int = 100, *, key: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", "/v1/reservations", reservation(amount, key, **more))

    async def reserved(self, amount: int = 100, **more: Any) -> str:
        """The id of a reservation that is held."""
        status, body = await self.reserve(amount, **more)
        assert status == 200, body
        return str(body["reservation_id"])

    async def commit(
        self, of: str, amount: int, *, key: str | None = None, unit: str = USD, **more: Any
    ) -> tuple[int, dict[str, Any]]:
        body = {"idempotency_key": key or fresh_key(), "actual": {"unit": unit, "amount": amount}, **more}
        return await self.ask("POST", f"/v1/reservations/{of}/commit", body)

    async def release(self, of: str, *, key: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", f"/v1/reservations/{of}/release", {"idempotency_key": key or fresh_key(), **more})

    async def extend(self, of: str, by_ms: int = 60_000, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
        return await self.ask(
            "POST", f"/v1/reservations/{of}/extend", {"idempotency_key": key or fresh_key(), "extend_by_ms": by_ms}
        )

    async def event(self, amount: int = 100, *, key: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        body = reservation(amount, key, **more)
        body["actual"] = body.pop("estimate")
        return await self.ask("POST", "/v1/events", body)

    async def decide(self, amount: int = 100, *, key: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", "/v1/decide", reservation(amount, key, **more))

    async def get(self, of: str) -> tuple[int, dict[str, Any]]:
        return await self.ask("GET", f"/v1/reservations/{of}")

    async def balance(self, scope: str = f"tenant:{TENANT}", unit: str = USD) -> dict[str, int]:
        """Its amounts as plain numbers."""
        tenant = scope.split("/", maxsplit=1)[0].partition(":")[2]
        status, body = await self.ask("GET", f"/v1/balances?tenant={tenant}")
        assert status == 200, body
        for balance in body["balances"]:
            if balance["scope_path"] == scope and balance["remaining"]["unit"] == unit:
                return {name: of["amount"] for name, of in balance.items() if isinstance(of, dict)}
        raise AssertionError(f"no balance of {scope} in {unit}: {body}")


_UNITS: Final = {
    USD: Unit.USD,
    "TOKENS": Unit.TOKENS,
    "CREDITS": Unit.CREDITS,
    "RISK_POINTS": Unit.RISK_POINTS,
}


def reservation(amount: int = 100, key: str | None = None, *, unit: str = USD, **more: Any) -> dict[str, Any]:
    return {
        "idempotency_key": key or fresh_key(),
        "subject": {"tenant": TENANT, "workflow": "r1"},
        "action": {"kind": "tool.search", "name": "web.search"},
        "estimate": {"unit": unit, "amount": amount},
        **more,
    }


def without_ttl(body: dict[str, Any]) -> dict[str, Any]:
    """An answer, but for what is observed anew each time."""
    return {name: value for name, value in body.items() if name != "remaining_ttl_ms"}
