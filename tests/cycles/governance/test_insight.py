"""How things stand, and who did what: from documents and the ledger's acts alone."""

import pytest

from tests.cycles.governance.conftest import DOLLAR, TRACE
from tests.ledger.builders import caller, decision

AUDIT = "/v1/admin/audit/logs"
USD = "USD_MICROCENTS"


@pytest.fixture(autouse=True)
async def acme(plane_here, clock):
    await plane_here.tenant()
    clock.now_ms += 1_000
    await plane_here.budget()


async def test_an_overview_counts_what_there_is(plane_here):
    await plane_here.tenant("other")
    await plane_here("PATCH", "/v1/admin/tenants/other", {"status": "SUSPENDED"})
    await plane_here.budget("tenant:acme/agent:a", overdraft_limit={"unit": USD, "amount": 10})
    await plane_here.budget(unit="TOKENS", amount=5)
    await plane_here("POST", "/v1/admin/budgets/freeze?scope=tenant:acme&unit=TOKENS")
    await plane_here.spend(DOLLAR + 7)
    await plane_here.spend(DOLLAR + 5, "tenant:acme/agent:a")
    status, told = await plane_here("GET", "/v1/admin/overview")
    assert status == 200
    assert told["tenant_counts"] == {"total": 2, "active": 1, "suspended": 1, "closed": 0}
    assert told["budget_counts"] == {
        "total": 3,
        "active": 2,
        "frozen": 1,
        "closed": 0,
        "over_limit": 1,
        "with_debt": 1,
        "by_unit": {USD: 2, "TOKENS": 1},
    }
    assert [each["remaining"] for each in told["over_limit_scopes"]] == [-7]
    assert told["debt_scopes"] == [{"scope": "tenant:acme/agent:a", "unit": USD, "debt": 5, "overdraft_limit": 10}]


async def test_every_change_is_told_with_who_made_it_by_which_request(plane_here, clock):
    clock.now_ms += 1_000  # entries of one moment come in any order
    key_id, secret = await plane_here.key()
    place = f"scope=tenant:acme&unit={USD}"
    for method, target, body in (
        ("PATCH", "/v1/admin/tenants/acme", {"name": "New"}),
        ("POST", f"/v1/admin/budgets/freeze?{place}", {"reason": "runaway"}),
        ("POST", f"/v1/admin/budgets/unfreeze?{place}", None),
        ("PATCH", f"/v1/admin/budgets?{place}", {"overdraft_limit": {"unit": USD, "amount": 1}}),
        ("PATCH", f"/v1/admin/api-keys/{key_id}", {"name": "n"}),
        ("POST", "/v1/admin/policies", {"tenant_id": "acme", "name": "p", "scope_pattern": "tenant:acme"}),
    ):
        clock.now_ms += 1_000
        assert (await plane_here(method, target, body))[0] in (200, 201)
    clock.now_ms += 1_000
    await plane_here.fund("CREDIT", 5, key=secret, reason="top-up")
    clock.now_ms += 1_000
    await plane_here("DELETE", f"/v1/admin/api-keys/{key_id}?reason=leaked")
    status, told = await plane_here("GET", AUDIT)
    assert status == 200
    entries = told["logs"]
    assert [entry["operation"] for entry in entries][:9] == [
        *("revokeApiKey", "fundBudget", "createPolicy", "updateApiKey", "updateBudget", "unfreezeBudget", "freezeBudget"),
        *("updateTenant", "createApiKey"),
    ]
    assert {entry["tenant_id"] for entry in entries} == {"acme"}
    freeze = next(entry for entry in entries if entry["operation"] == "freezeBudget")
    assert (freeze["request_id"], freeze["trace_id"], freeze["metadata"]["reason"]) == ("req_1", TRACE, "runaway")
    funded = next(entry for entry in entries if entry["operation"] == "fundBudget")
    assert (funded["key_id"], funded["metadata"]["change"], funded["metadata"]["reason"]) == (key_id, "+5", "top-up")
    assert funded["resource_id"] == freeze["resource_id"]
    assert len({entry["log_id"] for entry in entries}) == len(entries)


async def test_what_the_gateways_own_admin_does_is_told_too(plane_here, ledger):
    await ledger.freeze("acme", [("team", "x")], "admin", "why")
    _, told = await plane_here("GET", f"{AUDIT}?operation=freeze")
    assert [(entry["resource_id"], entry["resource_type"]) for entry in told["logs"]] == [("team=x", "config")]


async def test_a_hold_that_the_admin_ended_is_told_as_a_reservation(plane_here, ledger, clock):
    for cost in (None, 5):
        clock.now_ms += 1_000
        hold = await ledger.reserve(decision(of=caller(tenant="acme")), 60_000)
        await ledger.settle("acme", hold.id, cost, "admin", "stuck")
    _, told = await plane_here("GET", f"{AUDIT}?resource_type=reservation&sort_dir=asc")
    assert [(entry["operation"], entry["metadata"].get("change")) for entry in told["logs"]] == [
        ("releaseReservation", None),
        ("commitReservation", "5"),
    ]


async def test_a_log_is_filtered_and_paged(plane_here, clock):
    await plane_here.tenant("other")
    clock.now_ms += 10_000
    await plane_here.key("other")

    async def listed(query):
        status, told = await plane_here("GET", f"{AUDIT}?sort_dir=asc&{query}")
        assert status == 200, told
        return [entry["operation"] for entry in told["logs"]]

    assert await listed("tenant_id=other") == ["createTenant", "createApiKey"]
    assert await listed("resource_type=api_key,policy") == ["createApiKey"]
    assert await listed("operation=createApiKey&status=201&request_id=req_1") == ["createApiKey"]
    assert await listed("from=2026-11-30T12:00:05Z") == ["createApiKey"]
    assert await listed("to=2026-11-30T12:00:00Z&tenant_id=acme") == ["createTenant"]
    assert await listed("search=CREATEAPI") == ["createApiKey"]
    assert await listed("status_min=300") == []
    assert await listed("error_code=FORBIDDEN") == []
    assert len(await listed("error_code_exclude=FORBIDDEN")) == 4
    assert await listed(f"trace_id={'0' * 32}") == []
    assert await listed("resource_id=acme") == ["createTenant"]
    _, told = await plane_here("GET", f"{AUDIT}?limit=2")
    _, rest = await plane_here("GET", f"{AUDIT}?limit=3&cursor={told['next_cursor']}")
    assert (len(told["logs"]), len(rest["logs"]), rest["has_more"]) == (2, 2, False)


A_FILTER_THAT_MEANS_CASES = [
    "status=200&status_min=100",
    "status_min=99",
    "status_min=300&status_max=200",
    "operation=" + ",".join("abcdefghijklmnopqrstuvwxyz"),
    "from=2026-12-01T00:00:00Z&to=2026-11-01T00:00:00Z",
    "from=yesterday",
    "search=" + "x" * 129,
]


async def test_a_filter_that_means_nothing_is_refused(plane_here):
    for query in A_FILTER_THAT_MEANS_CASES:
        assert (await plane_here("GET", f"{AUDIT}?{query}"))[0] == 400, query


async def test_a_document_tells_how_it_came_about_and_what_was_done_of_late(plane_here):
    place = f"scope=tenant:acme&unit={USD}"
    for number in range(40):
        await plane_here("PATCH", f"/v1/admin/budgets?{place}", {"metadata": {"n": number}})
    _, told = await plane_here("GET", f"{AUDIT}?resource_type=budget&limit=100")
    operations = [entry["operation"] for entry in told["logs"]]
    assert operations.count("createBudget") == 1
    assert operations.count("updateBudget") == 31
