"""A budget's whole life over each store: two gateways make, fund, freeze and close at once, and agree."""

import asyncio

import pytest

from tests.cycles.governance.conftest import DOLLAR, Plane
from tests.support.stores import STORES, new_store, opened

PLACE = "scope=tenant:acme&unit=USD_MICROCENTS"


@pytest.mark.parametrize("kind", STORES)
async def test_two_gateways_on_one_ledger_agree(kind, clock, tmp_path):
    async with opened(new_store(kind, tmp_path), clock) as ledger:
        here, there = Plane(ledger, clock, tmp_path), Plane(ledger, clock, tmp_path)
        tenants = await asyncio.gather(
            *[plane("POST", "/v1/admin/tenants", {"tenant_id": "acme", "name": "A"}) for plane in (here, there)]
        )
        assert sorted(status for status, _ in tenants) == [200, 201]
        body = {
            "tenant_id": "acme",
            "scope": "tenant:acme",
            "unit": "USD_MICROCENTS",
            "allocated": {"unit": "USD_MICROCENTS", "amount": DOLLAR},
            "overdraft_limit": {"unit": "USD_MICROCENTS", "amount": 50},
        }
        made = await asyncio.gather(*[plane("POST", "/v1/admin/budgets", body) for plane in (here, there, here, there)])
        assert sorted(status for status, _ in made) == [201, 409, 409, 409]
        funded = [plane.fund("CREDIT", 3, idempotency_key=f"f{n // 2}") for n, plane in enumerate([here, there] * 10)]
        assert {status for status, _ in await asyncio.gather(*funded)} == {200}
        assert (await there.look())["allocated"]["amount"] == DOLLAR + 30
        await there.spend(DOLLAR + 50)
        repaid = [plane.fund("REPAY_DEBT", 20, idempotency_key=f"r{n}") for n, plane in enumerate([here, there] * 2)]
        assert {status for status, _ in await asyncio.gather(*repaid)} == {200}
        told = await here.look()
        assert (told["debt"]["amount"], told["remaining"]["amount"], told["allocated"]["amount"]) == (0, 0, DOLLAR + 50)
        frozen = await asyncio.gather(*[plane("POST", f"/v1/admin/budgets/freeze?{PLACE}") for plane in (here, there)])
        assert sorted(status for status, _ in frozen) == [200, 409]
        assert (await there("PATCH", "/v1/admin/tenants/acme", {"status": "CLOSED"}))[0] == 200
        assert (await here.look())["status"] == "CLOSED"
        _, log = await here("GET", "/v1/admin/audit/logs?tenant_id=acme&limit=100")
        assert sum(entry["operation"] == "fundBudget" for entry in log["logs"]) >= 14
