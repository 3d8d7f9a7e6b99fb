"""Policies of the admin plane: stored, changed, and in force for whoever matches."""

import pytest

from gateway.core.scopes import Caller

POLICIES = "/v1/admin/policies"


@pytest.fixture(autouse=True)
async def acme(plane_here):
    await plane_here.tenant()


def body(**members):
    return {"tenant_id": "acme", "name": "p", "scope_pattern": "tenant:acme"} | members


async def made(plane, **members):
    status, told = await plane("POST", POLICIES, body(**members))
    assert status == 201, told
    return told


def agent(name="a"):
    return Caller("acme", "k", "r", "r", dimensions=(("agent", name),))


async def test_a_policy_tells_what_it_was_made_with_and_is_in_force(plane_here, plane_there):
    members = {
        "description": "d",
        "priority": 3,
        "caps": {
            "max_tokens": 5,
            "max_steps_remaining": 1,
            "tool_allowlist": ["search"],
            "tool_denylist": [],
            "cooldown_ms": 0,
        },
        "commit_overage_policy": "REJECT",
        "reservation_ttl_override": {"default_ttl_ms": 1_000, "max_extensions": 0},
        "rate_limits": {"max_reservations_per_minute": 1},
        "effective_from": "2026-11-30T12:00:00.000Z",
        "effective_until": "2026-12-30T12:00:00.000Z",
    }
    told = await made(plane_here, **members)
    assert {name: told[name] for name in members} == members
    await plane_there.registry.look()
    governed = plane_there.registry.governed(agent())
    assert (governed.caps, governed.overage, governed.ttl_ms) == (members["caps"], "REJECT", 1_000)


async def test_the_higher_priority_has_the_say_and_a_disabled_policy_none(plane_here):
    await made(plane_here, name="low", caps={"max_tokens": 1})
    high = await made(plane_here, name="high", priority=1, scope_pattern="agent:*", caps={"max_tokens": 2})
    assert plane_here.registry.caps_for(agent()) == {"max_tokens": 2}
    status, told = await plane_here("PATCH", f"{POLICIES}/{high['policy_id']}", {"status": "DISABLED"})
    assert (status, told["status"]) == (200, "DISABLED")
    assert plane_here.registry.caps_for(agent()) == {"max_tokens": 1}


WHAT_IS_NOT_UNDERSTOOD_CASES = [
    {"name": ""},
    {"scope_pattern": "team:x"},
    {"scope_pattern": "tenant:other"},
    {"scope_pattern": "*"},
    {"priority": -1},
    {"caps": {"max_tokens": -1}},
    {"caps": {"colour": 1}},
    {"caps": {"tool_allowlist": ["x" * 257]}},
    {"caps": {"tool_allowlist": "search"}},
    {"reservation_ttl_override": {"max_ttl_ms": 5}},
    {"rate_limits": {"max_commits_per_minute": 0}},
    {"effective_from": "2026-12-01T00:00:00Z", "effective_until": "2026-12-01T00:00:00Z"},
    {"status": "ACTIVE"},
    {"tenant_id": None},
]


async def test_what_is_not_understood_is_refused(plane_here):
    for members in WHAT_IS_NOT_UNDERSTOOD_CASES:
        status, told = await plane_here("POST", POLICIES, body(**members))
        assert (status, told["error"]) == (400, "INVALID_REQUEST"), members


async def test_a_name_is_given_once_in_a_tenant(plane_here, plane_there):
    first = await made(plane_here)
    status, told = await plane_there("POST", POLICIES, body())
    assert (status, told["error"]) == (409, "DUPLICATE_RESOURCE")
    other = await made(plane_here, name="q")
    status, told = await plane_here("PATCH", f"{POLICIES}/{other['policy_id']}", {"name": "p"})
    assert (status, told["error"]) == (409, "DUPLICATE_RESOURCE")
    await plane_here("PATCH", f"{POLICIES}/{first['policy_id']}", {"name": "r"})
    assert (await made(plane_here))["policy_id"] != first["policy_id"]


async def test_a_change_must_leave_times_in_their_order(plane_here):
    told = await made(plane_here, effective_from="2026-12-01T00:00:00Z")
    status, _ = await plane_here("PATCH", f"{POLICIES}/{told['policy_id']}", {"effective_until": "2026-11-01T00:00:00Z"})
    assert status == 400


async def test_policies_are_listed_by_pattern_and_status(plane_here):
    await made(plane_here, name="p")
    q = await made(plane_here, name="q", scope_pattern="agent:*")
    await plane_here("PATCH", f"{POLICIES}/{q['policy_id']}", {"status": "DISABLED"})

    async def listed(query):
        _, told = await plane_here("GET", f"{POLICIES}?{query}")
        return [policy["name"] for policy in told["policies"]]

    assert sorted(await listed("tenant_id=acme")) == ["p", "q"]
    assert await listed("tenant_id=acme&status=DISABLED&has_action_quotas=x") == ["q"]
    assert await listed("tenant_id=acme&scope_pattern=tenant:acme") == ["p"]
    assert (await plane_here("GET", POLICIES))[0] == 400


async def test_a_tenant_has_policies_of_its_own(plane_here):
    await plane_here.tenant("other")
    theirs = await made(plane_here, tenant_id="other", scope_pattern="tenant:other")
    _, secret = await plane_here.key()
    own = {name: value for name, value in body().items() if name != "tenant_id"}
    status, told = await plane_here("POST", POLICIES, own, key=secret)
    assert status == 201
    assert (await plane_here("PATCH", f"{POLICIES}/{told['policy_id']}", {"priority": 2}, key=secret))[1]["priority"] == 2
    assert [each["name"] for each in (await plane_here("GET", POLICIES, key=secret))[1]["policies"]] == ["p"]
    assert (await plane_here("PATCH", f"{POLICIES}/{theirs['policy_id']}", {}, key=secret))[0] == 404
    assert (await plane_here("POST", POLICIES, body(name="q"), key=secret))[0] == 400


async def test_a_key_needs_the_right_and_the_scope(plane_here):
    told = await made(plane_here)
    _, reads = await plane_here.key(permissions=["policies:read"])
    _, restricted = await plane_here.key(scope_filter=["workspace:eng"])
    for secret in (reads, restricted):
        status, answer = await plane_here("PATCH", f"{POLICIES}/{told['policy_id']}", {}, key=secret)
        assert (status, answer["error"]) == (403, "FORBIDDEN")
    assert (await plane_here("GET", POLICIES, key=restricted))[1]["policies"] == []
    assert (await plane_here("PATCH", f"{POLICIES}/pol_0", {}))[0] == 404
