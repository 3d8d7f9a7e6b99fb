"""Keys of tenants: the secret once, its digest kept; an end, a revocation; what whoever holds one may do."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.registry import KeyDoc
from gateway.wire.problem import Refused

KEYS = "/v1/admin/api-keys"
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
async def acme(plane_here):
    await plane_here.tenant()


def shown(secret):
    return CIMultiDictProxy(CIMultiDict({"X-Cycles-API-Key": secret}))


async def test_a_secret_is_shown_once_and_kept_nowhere(plane_here, ledger):
    status, made = await plane_here("POST", KEYS, {"tenant_id": "acme", "name": "k"})
    assert status == 201
    secret = made["key_secret"]
    assert secret.startswith("cyc_live_")
    assert len(secret) == len("cyc_live_") + 32
    assert secret.startswith(made["key_prefix"])
    assert len(made["key_prefix"]) < 20
    async for row in ledger.dump():
        assert secret not in str(row)
    _, listed = await plane_here("GET", KEYS)
    assert secret not in str(listed)


async def test_a_key_that_names_no_rights_has_those_of_a_tenant_and_ends_after_90_days(plane_here):
    _, made = await plane_here("POST", KEYS, {"tenant_id": "acme", "name": "k"})
    assert "reservations:create" in made["permissions"]
    assert "webhooks:read" not in made["permissions"]
    assert made["expires_at"] == "2027-02-28T12:00:00.000Z"


A_KEY_THAT_CANNOT_CASES = [
    ({"tenant_id": "nobody"}, "TENANT_NOT_FOUND"),
    ({"permissions": ["reservations:destroy"]}, "INVALID_REQUEST"),
    ({"permissions": "reservations:create"}, "INVALID_REQUEST"),
    ({"expires_at": "2026-11-30T12:00:00Z"}, "INVALID_REQUEST"),
    ({"expires_at": "tomorrow"}, "INVALID_REQUEST"),
    ({"expires_at": "2027-01-01T00:00:00"}, "INVALID_REQUEST"),
    ({"scope_filter": ["team:x"]}, "INVALID_REQUEST"),
    ({"scope_filter": ["*"]}, "INVALID_REQUEST"),
    ({"name": None}, "INVALID_REQUEST"),
    ({"key_secret": "mine"}, "INVALID_REQUEST"),
]


async def test_a_key_that_cannot_be_made_says_why(plane_here):
    for body, error in A_KEY_THAT_CANNOT_CASES:
        status, told = await plane_here("POST", KEYS, {"tenant_id": "acme", "name": "k"} | body)
        assert (status, told["error"]) == (400, error), body


async def test_a_key_opens_the_door_of_every_gateway_until_it_ends(plane_here, plane_there, clock):
    _, secret = await plane_here.key(expires_at="2026-12-01T12:00:00+01:00")
    assert plane_there.identity.of_cycles(shown(secret)) is None  # it has not looked yet
    await plane_there.registry.look()
    principal = plane_there.identity.of_cycles(shown(secret))
    assert (principal.tenant, principal.admin) == ("acme", False)
    clock.now_ms += DAY_MS - 3_600_000
    assert plane_there.identity.of_cycles(shown(secret)) is None
    assert plane_there.identity.of_cycles(shown(secret), finishing=True) == principal


async def test_a_revoked_key_opens_nothing_but_may_finish_what_it_began(plane_here):
    key_id, secret = await plane_here.key()
    status, told = await plane_here("DELETE", f"{KEYS}/{key_id}?reason=leaked")
    assert (status, told["status"], told["revoked_reason"]) == (200, "REVOKED", "leaked")
    assert plane_here.identity.of_cycles(shown(secret)) is None
    assert plane_here.identity.of_cycles(shown(secret), finishing=True).key == key_id
    status, told = await plane_here("GET", "/v1/auth/introspect", key=secret)
    assert (status, told["error"]) == (401, "UNAUTHORIZED")
    assert (await plane_here("DELETE", f"{KEYS}/{key_id}"))[1]["error"] == "KEY_REVOKED"
    assert (await plane_here("PATCH", f"{KEYS}/{key_id}", {"name": "x"}))[1]["error"] == "KEY_REVOKED"


async def test_a_key_of_a_closed_tenant_is_known_so_that_it_can_be_told_why(plane_here):
    _, secret = await plane_here.key()
    await plane_here("PATCH", "/v1/admin/tenants/acme", {"status": "CLOSED"})
    assert plane_here.identity.of_cycles(shown(secret)).tenant == "acme"


async def test_an_expired_key_cannot_be_changed(plane_here, clock):
    key_id, _ = await plane_here.key(expires_at="2026-12-01T12:00:00Z")
    clock.now_ms += DAY_MS
    status, told = await plane_here("PATCH", f"{KEYS}/{key_id}", {"name": "x"})
    assert (status, told["error"]) == (409, "KEY_EXPIRED")


async def test_rights_change_without_another_secret(plane_here):
    key_id, secret = await plane_here.key(permissions=["budgets:read"])
    assert (await plane_here("GET", "/v1/admin/budgets", key=secret))[0] == 200
    changes = {"permissions": ["balances:read"], "scope_filter": ["workspace:eng"], "name": "new", "metadata": {"a": 1}}
    status, told = await plane_here("PATCH", f"{KEYS}/{key_id}", changes)
    assert status == 200
    assert {name: told[name] for name in changes} == changes
    status, told = await plane_here("GET", "/v1/admin/budgets", key=secret)
    assert (status, told["error"]) == (403, "FORBIDDEN")


async def test_there_is_no_key_of_that_id(plane_here):
    for method in ("PATCH", "DELETE"):
        status, told = await plane_here(method, f"{KEYS}/key_0", {})
        assert (status, told["error"]) == (404, "NOT_FOUND")


async def test_keys_are_listed_by_tenant_status_and_name(plane_here, clock):
    await plane_here.tenant("other")
    await plane_here.key(name="first")
    clock.now_ms += 1
    second, _ = await plane_here.key(name="second", description="d")
    await plane_here.key("other")
    await plane_here("DELETE", f"{KEYS}/{second}")

    async def listed(query):
        _, told = await plane_here("GET", f"{KEYS}?{query}")
        return [key["name"] for key in told["keys"]]

    assert await listed("tenant_id=acme") == ["second", "first"]
    assert await listed("tenant_id=acme&status=REVOKED") == ["second"]
    assert await listed("search=FIRS") == ["first"]
    assert len(await listed("")) == 3


async def test_two_made_at_once_are_two(plane_here):
    await plane_here.key()
    await plane_here.key()
    assert len(plane_here.registry.all(KeyDoc)) == 2


# -- what a key may do ------------------------------------------------------------------------------------------------------------


async def test_an_admin_may_do_everything(plane_here):
    _, told = await plane_here("GET", "/v1/auth/introspect")
    assert (told["auth_type"], told["permissions"], set(told["capabilities"].values())) == ("admin", ["*"], {True})
    assert "tenant_id" not in told


async def test_a_key_is_told_what_it_may_do(plane_here):
    _, secret = await plane_here.key(permissions=["budgets:read", "admin:write"], scope_filter=["agent:*"])
    _, told = await plane_here("GET", "/v1/auth/introspect", key=secret)
    assert (told["auth_type"], told["tenant_id"], told["scope_filter"]) == ("tenant", "acme", ["agent:*"])
    assert {name for name, has in told["capabilities"].items() if has} == {
        *("view_budgets", "manage_budgets", "manage_policies", "manage_webhooks", "manage_reservations"),
    }
    assert (await plane_here("GET", "/v1/auth/introspect", admin=False))[0] == 401


async def test_a_key_is_validated_for_whoever_is_admin(plane_here):
    key_id, secret = await plane_here.key()

    async def validated(secret):
        status, told = await plane_here("POST", "/v1/auth/validate", {"key_secret": secret})
        assert status == 200
        return told["valid"], told.get("reason")

    assert await validated(secret) == (True, None)
    assert await validated("cyc_live_nothing") == (False, "NOT_FOUND")
    await plane_here("PATCH", "/v1/admin/tenants/acme", {"status": "SUSPENDED"})
    assert await validated(secret) == (False, "TENANT_SUSPENDED")
    await plane_here("DELETE", f"{KEYS}/{key_id}")
    assert await validated(secret) == (False, "REVOKED")


# -- on model routes --------------------------------------------------------------------------------------------------------------


def bearing(secret):
    return CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {secret}"}))


async def test_with_keys_it_is_a_callers_key_until_it_is_revoked(plane_here, plane_there):
    key_id, secret = await plane_here.key()
    principal = await plane_there.identity.admitted(bearing(secret))  # made a moment ago, elsewhere
    assert (principal.tenant, principal.key) == ("acme", key_id)
    await plane_here("DELETE", f"{KEYS}/{key_id}")
    with pytest.raises(Refused, match="invalid_key"):
        plane_here.identity.principal(bearing(secret), model_route=True)


async def test_in_passthrough_it_is_never_taken_for_a_providers(plane_here, ledger, clock, tmp_path):
    _, secret = await plane_here.key()
    passing = type(plane_here)(ledger, clock, tmp_path, auth="passthrough")
    await passing.registry.look()
    with pytest.raises(Refused, match="X-Cycles-API-Key"):
        await passing.identity.admitted(bearing(secret))
    assert passing.identity.of_cycles(shown(secret)).tenant == "acme"
