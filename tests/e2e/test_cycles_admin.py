"""What operators make by the Cycles admin plane, through a real gateway: it holds for every door at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.support.config import Setup, listed
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.load import chat
from tests.support.provider import FaultProvider

USD: Final = "USD_MICROCENTS"
CENT: Final = 1_000_000


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    setup = Setup(
        folder,
        shared_provider.base_url,
        policy={"version": 1, "budgets": [], "identity": {"workspace": "header:X-Workspace-Id"}},
        provider={"accepts_caller_keys": False, "api_key_env": "HOUSE_KEY"},
        extra={"auth": "keys", "keys": [listed("ci", "pk-ci-4b1f")]},
    )
    with GatewayProcess(setup, env={"HOUSE_KEY": "sk-house"}) as running:
        yield running
        assert running.troubles == []


def ask(gateway: GatewayProcess, method: str, path: str, body: object = None, key: str | None = None) -> httpx.Response:
    """As the admin, or as a tenant."""
    shown = {"X-Admin-API-Key": ADMIN_TOKEN} if key is None else {"X-Cycles-API-Key": key}
    url = f"{gateway.url}/cycles/v1{path}"
    content = b"" if body is None else orjson.dumps(body)
    return httpx.request(method, url, content=content, headers=shown, trust_env=False, timeout=30)


def provisioned(gateway: GatewayProcess, tenant: str, amount: int, *scopes: str, **members: Any) -> str:
    """As the public demo's script does: the tenant, a key, and with it a budget at each scope. The key's secret."""
    assert ask(gateway, "POST", "/admin/tenants", {"tenant_id": tenant, "name": "Demo Tenant"}).status_code == 201
    rights = [
        "reservations:create",
        "reservations:commit",
        "reservations:release",
        "reservations:extend",
        "balances:read",
        "admin:write",
    ]
    made = ask(gateway, "POST", "/admin/api-keys", {"tenant_id": tenant, "name": "demo-key", "permissions": rights, **members})
    secret: str = made.text.partition('"key_secret":"')[2].partition('"')[0]  # as grep and cut find it
    assert secret.startswith("cyc_live_")
    for scope in scopes or (f"tenant:{tenant}",):
        sent = {"scope": scope, "unit": USD, "allocated": {"amount": amount, "unit": USD}}
        assert ask(gateway, "POST", "/admin/budgets", sent, secret).status_code == 201
        assert ask(gateway, "POST", "/admin/budgets", sent, secret).status_code == 409
    return secret


def spend(gateway: GatewayProcess, secret: str, number: int, amount: int, **subject: str) -> httpx.Response:
    money = {"unit": USD, "amount": amount}
    reserve = {
        "idempotency_key": f"r{number}",
        "subject": subject,
        "action": {"kind": "llm.completion", "name": "draft"},
        "estimate": money,
    }
    reserved = ask(gateway, "POST", "/reservations", reserve, secret)
    if reserved.status_code != 200:
        return reserved
    one = f"/reservations/{reserved.json()['reservation_id']}"
    return ask(gateway, "POST", f"{one}/commit", {"idempotency_key": f"c{number}", "actual": money}, secret)


def call(gateway: GatewayProcess, secret: str, run: str = "r1", **headers: str) -> httpx.Response:
    """One call of a model."""
    sent = {"Authorization": f"Bearer {secret}", "X-Run-Id": run} | {
        name.replace("_", "-"): each for name, each in headers.items()
    }
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(max_tokens=5), headers=sent, trust_env=False, timeout=30)


def looked_up(gateway: GatewayProcess, scope: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(gateway, "GET", f"/admin/budgets/lookup?scope={scope}&unit={USD}").json()
    return found


def test_what_the_public_demo_provisions_stops_its_loop_at_the_cent(gateway: GatewayProcess) -> None:
    root = "tenant:demo-tenant"
    workflow = f"{root}/workspace:default/app:default/workflow:default"
    scopes = (
        root,
        f"{root}/workspace:default",
        f"{root}/workspace:default/app:default",
        workflow,
        f"{workflow}/agent:support-bot",
    )
    secret = provisioned(gateway, "demo-tenant", 10 * CENT, *scopes)
    subject = {
        "tenant": "demo-tenant",
        "workspace": "default",
        "app": "default",
        "workflow": "default",
        "agent": "support-bot",
    }
    statuses = [spend(gateway, secret, number, CENT, **subject).status_code for number in range(12)]
    assert statuses == [200] * 10 + [409] * 2
    for scope in scopes:
        told = looked_up(gateway, scope)
        assert (told["spent"]["amount"], told["remaining"]["amount"], told["reserved"]["amount"]) == (10 * CENT, 0, 0)


def test_a_tools_reservations_and_calls_of_models_spend_one_budget(
    gateway: GatewayProcess, shared_provider: FaultProvider
) -> None:
    shared_provider.forget()
    secret = provisioned(gateway, "one-budget", 10 * CENT)
    assert spend(gateway, secret, 1, 4 * CENT, tenant="one-budget").status_code == 200
    answer = call(gateway, secret)
    assert answer.status_code == 200
    told = looked_up(gateway, "tenant:one-budget")
    spent = told["spent"]["amount"] - 4 * CENT
    assert 0 < spent < CENT
    assert spend(gateway, secret, 2, told["remaining"]["amount"], tenant="one-budget").status_code == 200
    refused = call(gateway, secret)
    assert (refused.status_code, refused.json()["code"]) == (402, "tenant_ceiling_reached")
    credit = {"operation": "CREDIT", "amount": {"unit": USD, "amount": 5 * CENT}, "idempotency_key": "f1"}
    assert ask(gateway, "POST", f"/admin/budgets/fund?scope=tenant:one-budget&unit={USD}", credit, secret).status_code == 200
    assert call(gateway, secret).status_code == 200


def test_a_frozen_budget_refuses_calls_of_models_from_the_next_on(
    gateway: GatewayProcess, shared_provider: FaultProvider
) -> None:
    shared_provider.forget()
    secret = provisioned(gateway, "frozen-one", 10 * CENT)
    place = f"scope=tenant:frozen-one&unit={USD}"
    assert call(gateway, secret).status_code == 200
    assert ask(gateway, "POST", f"/admin/budgets/freeze?{place}", {"reason": "look first"}).status_code == 200
    refused = call(gateway, secret)
    assert (refused.status_code, refused.json()["code"]) == (402, "scope_frozen")
    assert spend(gateway, secret, 1, CENT, tenant="frozen-one").json()["error"] == "BUDGET_FROZEN"
    assert ask(gateway, "POST", f"/admin/budgets/unfreeze?{place}").status_code == 200
    assert call(gateway, secret).status_code == 200


def test_a_key_does_what_it_may_and_nothing_once_it_is_revoked(gateway: GatewayProcess, shared_provider: FaultProvider) -> None:
    shared_provider.forget()
    provisioned(gateway, "some-rights", 10 * CENT)

    def key(**members: Any) -> tuple[str, str]:
        made = ask(gateway, "POST", "/admin/api-keys", {"tenant_id": "some-rights", "name": "k", **members}).json()
        return made["key_id"], made["key_secret"]

    _, reads = key(permissions=["balances:read"])
    refused = call(gateway, reads)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    assert spend(gateway, reads, 1, CENT, tenant="some-rights").status_code == 403
    _, eng = key(scope_filter=["workspace:eng"])
    assert call(gateway, eng, "r2").status_code == 403
    assert call(gateway, eng, "r2", X_Workspace_Id="eng").status_code == 200
    assert spend(gateway, eng, 2, CENT, tenant="some-rights", workspace="sales").status_code == 403
    assert spend(gateway, eng, 3, CENT, tenant="some-rights", workspace="eng").status_code == 200
    key_id, any_ = key()
    assert call(gateway, any_, "r3").status_code == 200
    money, subject = {"unit": USD, "amount": CENT}, {"tenant": "some-rights"}
    asked = {"idempotency_key": "r9", "subject": subject, "action": {"kind": "tool", "name": "search"}}
    reserved = ask(gateway, "POST", "/reservations", {**asked, "estimate": money}, any_).json()
    one = f"/reservations/{reserved['reservation_id']}"
    assert ask(gateway, "DELETE", f"/admin/api-keys/{key_id}").status_code == 200
    assert call(gateway, any_, "r3").status_code == 401
    assert ask(gateway, "POST", "/events", {**asked, "actual": money}, any_).status_code == 401
    assert ask(gateway, "POST", f"{one}/extend", {"idempotency_key": "x9", "extend_by_ms": 5}, any_).status_code == 401
    # What it began it may end, so that no spend is lost.
    assert ask(gateway, "POST", f"{one}/commit", {"idempotency_key": "c9", "actual": money}, any_).status_code == 200


def test_what_was_made_is_there_after_a_kill(gateway: GatewayProcess) -> None:
    secret = provisioned(gateway, "kept", 3 * CENT)
    assert spend(gateway, secret, 1, 2 * CENT, tenant="kept").status_code == 200
    gateway.kill()
    gateway.start()
    assert spend(gateway, secret, 2, 2 * CENT, tenant="kept").status_code == 409
    assert spend(gateway, secret, 3, CENT, tenant="kept").status_code == 200
