"""Tenants: made once, suspended and opened again, closed for good with all that is theirs."""

import pytest

from gateway.core.decide import Unservable
from gateway.core.scopes import Amounts, Caller
from gateway.registry import KeyDoc
from tests.support.clock import NOW_MS
from tests.support.rulebooks import call

TENANTS = "/v1/admin/tenants"
ACME = {"tenant_id": "acme", "name": "Acme"}


async def test_a_tenant_is_made_once_and_shown_to_whoever_asks_again(plane_here, plane_there):
    status, made = await plane_here("POST", TENANTS, ACME)
    assert (status, made["status"], made["created_at"]) == (201, "ACTIVE", "2026-11-30T12:00:00.000Z")
    status, again = await plane_there("POST", TENANTS, ACME)
    assert (status, again) == (200, made)
    assert await plane_here("GET", f"{TENANTS}/acme") == (200, made)


async def test_another_name_for_the_same_id_is_a_conflict(plane_here):
    await plane_here("POST", TENANTS, ACME)
    status, told = await plane_here("POST", TENANTS, {**ACME, "name": "Other"})
    assert (status, told["error"]) == (409, "DUPLICATE_RESOURCE")


async def test_it_tells_what_it_was_made_with(plane_here):
    settings = {
        "default_commit_overage_policy": "REJECT",
        "default_reservation_ttl_ms": 1_000,
        "max_reservation_ttl_ms": 2_000,
        "max_reservation_extensions": 0,
        "metadata": {"plan": "pro"},
        "reservation_expiry_policy": "GRACE_ONLY",
    }
    status, made = await plane_here("POST", TENANTS, ACME | settings)
    assert status == 201
    assert {name: made[name] for name in settings} == settings


WHAT_THE_SPECIFICATION_DOES_CASES = [
    {},
    {"tenant_id": "acme"},
    {"name": "Acme"},
    {"tenant_id": "Acme", "name": "A"},
    {"tenant_id": "ab", "name": "A"},
    {"tenant_id": "-cycles-", "name": "A"},
    {"tenant_id": "a" * 65, "name": "A"},
    ACME | {"colour": "red"},
    ACME | {"name": None},
    ACME | {"max_reservation_ttl_ms": 999},
    ACME | {"max_reservation_ttl_ms": True},
    ACME | {"metadata": {"a": 1}},
    ACME | {"parent_tenant_id": "nobody"},
    ACME | {"default_commit_overage_policy": "MAYBE"},
    [],
    b"{",
]


async def test_what_the_specification_does_not_allow_is_refused(plane_here):
    for body in WHAT_THE_SPECIFICATION_DOES_CASES:
        status, told = await plane_here("POST", TENANTS, body)
        assert (status, told["error"]) == (400, "INVALID_REQUEST"), body


async def test_only_the_admin_may_ask(plane_here):
    await plane_here.tenant()
    _, secret = await plane_here.key(permissions=["admin:write", "admin:read"])
    for more in ({"admin": False}, {"key": secret}, {"admin": False, "X_Admin_API_Key": "wrong"}):
        status, told = await plane_here("GET", TENANTS, **more)
        assert (status, told["error"]) == (401, "UNAUTHORIZED")


async def test_there_is_nothing_to_show_of_who_is_not_there(plane_here):
    status, told = await plane_here("GET", f"{TENANTS}/nobody")
    assert (status, told["error"]) == (404, "TENANT_NOT_FOUND")


async def test_a_list_is_filtered_sorted_and_paged(plane_here, clock):
    for number in range(5):
        clock.now_ms += 1
        await plane_here("POST", TENANTS, {"tenant_id": f"t-{number}", "name": f"Name {4 - number}"})
    await plane_here("PATCH", f"{TENANTS}/t-3", {"status": "SUSPENDED"})

    async def listed(query):
        status, told = await plane_here("GET", f"{TENANTS}?{query}")
        assert status == 200
        return [tenant["tenant_id"] for tenant in told["tenants"]], told.get("next_cursor")

    assert (await listed(""))[0] == ["t-4", "t-3", "t-2", "t-1", "t-0"]
    assert (await listed("status=SUSPENDED"))[0] == ["t-3"]
    assert (await listed("search=NAME 1"))[0] == ["t-3"]
    assert (await listed("sort_by=name&sort_dir=asc"))[0] == ["t-4", "t-3", "t-2", "t-1", "t-0"]
    seen, cursor = await listed("sort_by=tenant_id&sort_dir=asc&limit=2")
    while cursor is not None:
        page, cursor = await listed(f"sort_by=tenant_id&sort_dir=asc&limit=2&cursor={cursor}")
        seen += page
    assert seen == ["t-0", "t-1", "t-2", "t-3", "t-4"]


A_QUERY_THAT_MEANS_CASES = ["limit=0", "limit=101", "limit=x", "sort_by=colour", "cursor=abc", "search=" + "a" * 129, "status=X"]


async def test_a_query_that_means_nothing_is_refused(plane_here):
    for query in A_QUERY_THAT_MEANS_CASES:
        assert (await plane_here("GET", f"{TENANTS}?{query}"))[0] == 400, query


async def test_what_a_newer_client_asks_besides_is_passed_over(plane_here):
    assert (await plane_here("GET", f"{TENANTS}?observe_mode=SHADOW&status="))[0] == 200


async def test_a_suspended_tenant_takes_no_calls_until_it_is_active_again(plane_here):
    await plane_here.tenant()
    status, told = await plane_here("PATCH", f"{TENANTS}/acme", {"status": "SUSPENDED"})
    assert (status, told["status"]) == (200, "SUSPENDED")
    assert "suspended_at" in told
    asked = call(who=Caller("acme", "k", "r", "r"))
    assert isinstance(plane_here.rules().for_cost(asked, Amounts(1, 0), NOW_MS, "bdg_1"), Unservable)
    await plane_here("PATCH", f"{TENANTS}/acme", {"status": "ACTIVE"})
    assert not isinstance(plane_here.rules().for_cost(asked, Amounts(1, 0), NOW_MS, "bdg_1"), Unservable)


async def test_closing_a_tenant_closes_its_budgets_and_revokes_its_keys(plane_here):
    for name in ("acme", "other"):
        await plane_here.tenant(name)
        await plane_here.key(name)
        await plane_here.budget(f"tenant:{name}")
    status, told = await plane_here("PATCH", f"{TENANTS}/acme", {"status": "CLOSED"})
    assert (status, told["status"]) == (200, "CLOSED")
    assert (await plane_here.look())["status"] == "CLOSED"
    assert (await plane_here.look("tenant:other"))["status"] == "ACTIVE"
    _, keys = await plane_here("GET", "/v1/admin/api-keys")
    assert {key["tenant_id"]: key["status"] for key in keys["keys"]} == {"acme": "REVOKED", "other": "ACTIVE"}
    assert {key.revoked_reason for key in plane_here.registry.all(KeyDoc)} == {"tenant_closed", None}


async def test_nothing_of_a_closed_tenant_can_be_changed_any_more_but_all_of_it_read(plane_here):
    await plane_here.tenant()
    key_id, _ = await plane_here.key()
    await plane_here.budget()
    _, policy = await plane_here("POST", "/v1/admin/policies", {"tenant_id": "acme", "name": "p", "scope_pattern": "tenant:acme"})
    await plane_here("PATCH", f"{TENANTS}/acme", {"status": "CLOSED"})
    place = "scope=tenant:acme&unit=USD_MICROCENTS"
    money = {"unit": "USD_MICROCENTS", "amount": 1}
    for method, target, body in (
        ("PATCH", f"{TENANTS}/acme", {"status": "ACTIVE"}),
        ("PATCH", f"{TENANTS}/acme", {"name": "New"}),
        ("POST", "/v1/admin/api-keys", {"tenant_id": "acme", "name": "k"}),
        ("PATCH", f"/v1/admin/api-keys/{key_id}", {"name": "k"}),
        ("DELETE", f"/v1/admin/api-keys/{key_id}", None),
        (
            "POST",
            "/v1/admin/budgets",
            {"tenant_id": "acme", "scope": "tenant:acme/agent:a", "unit": "TOKENS", "allocated": {"unit": "TOKENS", "amount": 1}},
        ),
        ("PATCH", f"/v1/admin/budgets?{place}", {"overdraft_limit": money}),
        ("POST", f"/v1/admin/budgets/freeze?{place}", None),
        ("POST", f"/v1/admin/budgets/unfreeze?{place}", None),
        ("POST", f"/v1/admin/budgets/fund?{place}&tenant_id=acme", {"operation": "CREDIT", "amount": money}),
        ("PATCH", f"/v1/admin/policies/{policy['policy_id']}", {"name": "q"}),
        ("POST", "/v1/admin/policies", {"tenant_id": "acme", "name": "r", "scope_pattern": "tenant:acme"}),
    ):
        status, told = await plane_here(method, target, body)
        assert (status, told["error"]) == (409, "TENANT_CLOSED"), target
    for target in (f"{TENANTS}/acme", f"/v1/admin/budgets/lookup?{place}", "/v1/admin/policies?tenant_id=acme"):
        assert (await plane_here("GET", target))[0] == 200
    assert (await plane_here("PATCH", f"{TENANTS}/acme", {"status": "CLOSED"}))[0] == 200  # asked again, it is as it was


async def test_closing_again_finishes_what_was_left_open(plane_here, monkeypatch):
    await plane_here.tenant()
    await plane_here.budget()
    await plane_here.key()
    real, failing = plane_here.registry.change, True

    async def change(kind, name, change_):
        if failing and kind is KeyDoc:
            raise ConnectionError("killed")
        return await real(kind, name, change_)

    monkeypatch.setattr(plane_here.registry, "change", change)
    with pytest.raises(ConnectionError):
        await plane_here("PATCH", f"{TENANTS}/acme", {"status": "CLOSED"})
    failing = False
    await plane_here("PATCH", f"{TENANTS}/acme", {"status": "CLOSED"})
    assert all(key.revoked_ms for key in plane_here.registry.all(KeyDoc))
