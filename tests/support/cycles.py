"""The Cycles layer of a gateway from outside: what an operator makes by the admin plane, and clients that the real package makes.

plane = Plane(f"{gateway.url}/cycles", ADMIN_TOKEN)
own = plane.opened(1_000_000)                 # a tenant of its own with a budget and a key
own.client()                                  # runcycles.CyclesClient
plane.balance(own, "tenant:" + own.tenant)    # the wire's balance of a scope
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

USD: Final = "USD_MICROCENTS"
CENT: Final = 1_000_000  # microcents
_numbers = itertools.count()


def new_tenant() -> str:
    """An id that nobody has had in this store."""
    return f"t-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class Plane:
    """The admin plane under `url`, by the admin token. What it refuses is an AssertionError with its answer."""

    url: str
    admin_token: str

    def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        answer = self.asked(method, path, body, **query)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def asked(self, method: str, path: str, body: object = None, **query: str) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.url}/v1/admin{path}",
            headers={"X-Admin-API-Key": self.admin_token},
            json=body,
            params=query,
            trust_env=False,
            timeout=30,
        )

    def tenant(self, tenant: str, **more: object) -> str:
        self.ask("POST", "/tenants", {"tenant_id": tenant, "name": f"Tenant {tenant}", **more})
        return tenant

    def key(self, tenant: str, **more: object) -> str:
        """The secret of a new key."""
        return str(self.ask("POST", "/api-keys", {"tenant_id": tenant, "name": "test key", **more})["key_secret"])

    def budget(self, scope: str, allocated: int, unit: str = USD, overdraft: int = 0) -> None:
        body = {"scope": scope, "unit": unit, "allocated": amount(allocated, unit), "tenant_id": tenant_of(scope)}
        self.ask("POST", "/budgets", body | ({"overdraft_limit": amount(overdraft, unit)} if overdraft else {}))

    def fund(self, scope: str, operation: str, by: int, unit: str = USD, **more: object) -> Any:
        body = {"operation": operation, "amount": amount(by, unit), "idempotency_key": f"fund-{next(_numbers)}", **more}
        return self.ask("POST", "/budgets/fund", body, scope=scope, unit=unit, tenant_id=tenant_of(scope))

    def freeze(self, scope: str, unit: str = USD) -> None:
        self.ask("POST", "/budgets/freeze", {"reason": "a test"}, scope=scope, unit=unit, tenant_id=tenant_of(scope))

    def policy(self, tenant: str, scope_pattern: str, **caps: object) -> None:
        self.ask("POST", "/policies", {"tenant_id": tenant, "name": "caps", "scope_pattern": scope_pattern, "caps": caps})

    def opened(self, allocated: int, unit: str = USD, **tenant: object) -> "Opened":
        """A new tenant with one budget and a key."""
        name = new_tenant()
        self.tenant(name, **tenant)
        self.budget(f"tenant:{name}", allocated, unit)
        return Opened(self.url, name, self.key(name))


@dataclass(frozen=True, slots=True)
class Opened:
    """A tenant and a key of it."""

    url: str
    tenant: str
    key: str
    more: Mapping[str, Any] = field(default_factory=dict)  # of the client's config

    @property
    def scope(self) -> str:
        return f"tenant:{self.tenant}"

    def config(self, journal: Path | None = None, **more: Any) -> Any:
        """For the real client. It keeps its own retries and time-outs, and no journal unless there is a folder for one."""
        from runcycles import CyclesConfig

        told = {"base_url": self.url, "api_key": self.key, "tenant": self.tenant, "journal_enabled": journal is not None}
        if journal is not None:
            told["journal_dir"] = str(journal)
        return CyclesConfig(**{**told, **self.more, **more})

    def ask(self, method: str, path: str, body: object = None, **query: str) -> httpx.Response:
        headers = {"X-Cycles-API-Key": self.key}
        return httpx.request(method, self.url + path, headers=headers, json=body, params=query, trust_env=False, timeout=30)

    def balances(self, unit: str = USD) -> Mapping[str, Mapping[str, int]]:
        """By scope path: `remaining`, `reserved`, `spent`, `allocated` and whatever else has an amount, as plain numbers."""
        answer = self.ask("GET", "/v1/balances", tenant=self.tenant, include_children="true")
        assert answer.status_code == 200, answer.text
        told: dict[str, dict[str, int]] = {}
        for balance in answer.json()["balances"]:
            if balance["remaining"]["unit"] == unit:
                told[balance["scope_path"]] = {name: of["amount"] for name, of in balance.items() if isinstance(of, dict)}
        return told

    def balance(self, unit: str = USD) -> Mapping[str, int]:
        """Of the tenant's own budget."""
        return self.balances(unit)[self.scope]


def amount(of: int, unit: str = USD) -> dict[str, object]:
    return {"unit": unit, "amount": of}


def tenant_of(scope: str) -> str:
    return scope.split("/", maxsplit=1)[0].removeprefix("tenant:")


def lines_of(log: Sequence[Any], run: str) -> Sequence[Any]:
    """The receipts of a run, of a gateway's log."""
    return [line for line in log if line.get("run") == run and "status" in line]
