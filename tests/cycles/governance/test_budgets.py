"""Budgets of the admin plane: made once for a scope and unit, frozen and opened again, and what they say of themselves."""

import asyncio

import pytest

from gateway.core.decide import Unservable
from gateway.core.scopes import Amounts, Caller, Unit
from gateway.core.values import Ending, Usage, UsageSource
from gateway.ledger.contract import Debiting, LedgerUnavailable, Settlement
from tests.cycles.governance.conftest import DOLLAR
from tests.support.clock import NOW_MS
from tests.support.rulebooks import call

BUDGETS = "/v1/admin/budgets"
USD = "USD_MICROCENTS"
PLACE = f"scope=tenant:acme&unit={USD}"


@pytest.fixture(autouse=True)
async def acme(plane_here):
    await plane_here.tenant()


def money(amount, unit=USD):
    return {"unit": unit, "amount": amount}


def body(**members):
    return {"tenant_id": "acme", "scope": "tenant:acme", "unit": USD, "allocated": money(DOLLAR)} | members


async def test_a_budget_is_there_at_once_with_all_that_it_may_spend(plane_here):
    made = await plane_here.budget()
    assert {name: made[name]["amount"] for name in ("allocated", "remaining", "reserved", "spent")} == {
        "allocated": DOLLAR,
        "remaining": DOLLAR,
        "reserved": 0,
        "spent": 0,
    }
    assert (made["scope"], made["tenant_id"], made["status"], made["is_over_limit"]) == ("tenant:acme", "acme", "ACTIVE", False)
    assert "debt" not in made
    assert await plane_here.look() == made


async def test_it_stands_in_the_way_of_every_call_of_whoever_it_is_for(plane_here, plane_there):
    await plane_here.budget("tenant:acme/agent:Bot")
    await plane_there.registry.look()
    decision = plane_there.rules().for_cost(
        call(who=Caller("acme", "k", "r", "r", dimensions=(("agent", "bot"),))), Amounts(1, 0), NOW_MS, "bdg_1"
    )
    assert "cycles|tenant=acme,agent=bot|lifetime|usd" in [charge.ceiling.account.key for charge in decision.ladder[0].charges]


@pytest.mark.parametrize("unit", [USD, "TOKENS", "CREDITS", "RISK_POINTS"])
async def test_there_is_one_for_each_unit_of_a_scope_and_not_two(plane_here, plane_there, unit):
    first = await plane_here.budget(unit=unit, amount=7)
    status, told = await plane_there("POST", BUDGETS, body(unit=unit, allocated=money(9, unit)))
    assert (status, told["error"], told["details"]["ledger_id"]) == (409, "DUPLICATE_RESOURCE", first["ledger_id"])
    assert (await plane_here.look(unit=unit))["allocated"] == money(7, unit)


async def test_of_many_made_at_once_one_counts(plane_here, plane_there):
    planes = [plane_here, plane_there] * 5
    answers = await asyncio.gather(
        *[plane("POST", BUDGETS, body(allocated=money(number + 1))) for number, plane in enumerate(planes)]
    )
    made = [told for status, told in answers if status == 201]
    assert [status for status, _ in answers].count(409) == 9
    assert len(made) == 1
    assert (await plane_here.look())["allocated"] == made[0]["allocated"]


async def test_one_whose_making_was_cut_short_lets_nothing_through_and_is_finished_by_whoever_finds_it(plane_here, monkeypatch):
    async def away(*_):
        raise LedgerUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(plane_here.ledger, "account", away)
        status, _ = await plane_here("POST", BUDGETS, body())
        assert status == 503
    found = plane_here.registry.budget("tenant:acme", Unit.USD)
    assert found.grant.charge.ceiling.limit == 0
    assert await plane_here.ledger.account("acme", found.grant.account.key) is None
    assert (await plane_here("POST", BUDGETS, body()))[0] == 409
    assert (await plane_here.look())["allocated"] == money(DOLLAR)


async def test_a_cost_that_comes_before_its_account_is_open_takes_nothing_of_the_opening(plane_here, monkeypatch):
    async def away(*_):
        raise LedgerUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(plane_here.ledger, "account", away)
        await plane_here("POST", BUDGETS, body())
    caller = Caller("acme", "k", "r", "r", dimensions=())
    decision = plane_here.rules().for_cost(call(who=caller), Amounts(30, 0), NOW_MS, "bdg_1", spent=True)
    settlement = Settlement(Amounts(30, 0), Usage(UsageSource.COUNTED), Ending.DEBITED)
    settled = await plane_here.ledger.debit(decision, settlement, Debiting.ALWAYS)  # which makes the account
    assert settled.changed
    told = await plane_here.look()
    assert (told["allocated"], told["spent"], told["remaining"]) == (money(DOLLAR), money(30), money(DOLLAR - 30))


A_BUDGET_THAT_CANNOT_CASES = [
    ({"tenant_id": "nobody", "scope": "tenant:nobody"}, "TENANT_NOT_FOUND"),
    ({"tenant_id": "other"}, "INVALID_REQUEST"),
    ({"scope": "workspace:eng"}, "INVALID_REQUEST"),
    ({"scope": "tenant:acme/team:x"}, "INVALID_REQUEST"),
    ({"scope": "tenant:acme/agent:*"}, "INVALID_REQUEST"),
    ({"unit": "EUR"}, "INVALID_REQUEST"),
    ({"allocated": money(1, "TOKENS")}, "UNIT_MISMATCH"),
    ({"allocated": money(-1)}, "INVALID_REQUEST"),
    ({"allocated": money(1.5)}, "INVALID_REQUEST"),
    ({"allocated": money(2**53)}, "INVALID_REQUEST"),
    ({"allocated": 5}, "INVALID_REQUEST"),
    ({"overdraft_limit": money(1, "TOKENS")}, "UNIT_MISMATCH"),
    ({"commit_overage_policy": "MAYBE"}, "INVALID_REQUEST"),
    ({"period_start": "monday"}, "INVALID_REQUEST"),
    ({"limit": 5}, "INVALID_REQUEST"),
]


async def test_a_budget_that_cannot_be_made_says_why(plane_here):
    for members, error in A_BUDGET_THAT_CANNOT_CASES:
        status, told = await plane_here("POST", BUDGETS, body(**members))
        assert (status, told["error"]) == (400, error), members


async def test_none_is_made_for_a_suspended_tenant(plane_here):
    await plane_here("PATCH", "/v1/admin/tenants/acme", {"status": "SUSPENDED"})
    status, told = await plane_here("POST", BUDGETS, body())
    assert (status, told["error"]) == (403, "TENANT_SUSPENDED")


# -- by a tenant's own key --------------------------------------------------------------------------------------------------------


def own(**members):
    return {name: value for name, value in body(**members).items() if name != "tenant_id"}


async def test_a_tenant_makes_and_reads_its_own(plane_here):
    _, secret = await plane_here.key()
    assert (await plane_here("POST", BUDGETS, own(), key=secret))[0] == 201
    status, told = await plane_here("GET", f"{BUDGETS}/lookup?{PLACE}", key=secret)
    assert (status, told["allocated"]) == (200, money(DOLLAR))


async def test_a_key_names_no_tenant_and_reaches_no_others(plane_here):
    await plane_here.tenant("other")
    await plane_here.budget("tenant:other")
    _, secret = await plane_here.key()
    assert (await plane_here("POST", BUDGETS, body(), key=secret))[0] == 400
    other = f"scope=tenant:other&unit={USD}"
    for method, target, sent in (
        ("POST", BUDGETS, own(scope="tenant:other")),
        ("GET", f"{BUDGETS}/lookup?{other}", None),
        ("POST", f"{BUDGETS}/fund?{other}", {"operation": "CREDIT", "amount": money(1)}),
    ):
        status, told = await plane_here(method, target, sent, key=secret)
        assert (status, told["error"]) == (403, "FORBIDDEN")
    assert (await plane_here("GET", f"{BUDGETS}?tenant_id=other", key=secret))[1]["ledgers"] == []


@pytest.mark.parametrize(
    ("permissions", "reads", "writes"),
    [
        (["budgets:read"], True, False),
        (["budgets:write"], False, True),
        (["admin:write"], False, True),
        (["admin:read"], True, False),
        (["reservations:create"], False, False),
    ],
)
async def test_a_key_does_what_it_has_the_permission_for(plane_here, permissions, reads, writes):
    _, secret = await plane_here.key(permissions=permissions)
    answers = [
        await plane_here("POST", BUDGETS, own(), key=secret),
        await plane_here.fund("CREDIT", 1, key=secret),
        await plane_here("GET", BUDGETS, key=secret),
        await plane_here("GET", f"{BUDGETS}/lookup?{PLACE}", key=secret),
    ]
    allowed = [told.get("error") != "FORBIDDEN" for _, told in answers]
    assert allowed == [writes, writes, reads, reads]


async def test_a_restricted_key_sees_and_makes_only_what_is_in_its_scopes(plane_here):
    await plane_here.budget()
    await plane_here.budget("tenant:acme/workspace:eng")
    _, secret = await plane_here.key(scope_filter=["workspace:eng"])
    _, told = await plane_here("GET", BUDGETS, key=secret)
    assert [each["scope"] for each in told["ledgers"]] == ["tenant:acme/workspace:eng"]
    assert (await plane_here("GET", f"{BUDGETS}/lookup?{PLACE}", key=secret))[0] == 403
    assert (await plane_here("POST", BUDGETS, own(scope="tenant:acme/agent:a"), key=secret))[0] == 403
    assert (await plane_here("POST", BUDGETS, own(scope="tenant:acme/workspace:eng/agent:a"), key=secret))[0] == 201


async def test_what_is_the_admins_is_no_tenants(plane_here):
    await plane_here.budget()
    _, secret = await plane_here.key(permissions=["admin:write", "admin:read"])
    for method, target in (("PATCH", BUDGETS), ("POST", f"{BUDGETS}/freeze"), ("POST", f"{BUDGETS}/unfreeze")):
        assert (await plane_here(method, f"{target}?{PLACE}", {}, key=secret))[0] == 401


# -- frozen -----------------------------------------------------------------------------------------------------------------------


async def test_a_frozen_budget_refuses_calls_here_at_once_and_elsewhere_after_a_look(plane_here, plane_there):
    await plane_here.budget()
    await plane_there.registry.look()
    asked = call(who=Caller("acme", "k", "r", "r"))

    def refuses(plane):
        return isinstance(plane.rules().for_cost(asked, Amounts(1, 0), NOW_MS, "bdg_1"), Unservable)

    status, told = await plane_here("POST", f"{BUDGETS}/freeze?{PLACE}", {"reason": "runaway"})
    assert (status, told["status"]) == (200, "FROZEN")
    assert refuses(plane_here)
    assert not refuses(plane_there)
    await plane_there.registry.look()
    assert refuses(plane_there)
    assert (await plane_here("POST", f"{BUDGETS}/unfreeze?{PLACE}"))[1]["status"] == "ACTIVE"
    assert not refuses(plane_here)


async def test_a_budget_is_frozen_once_and_opened_once(plane_here, plane_there):
    await plane_here.budget()
    assert (await plane_here("POST", f"{BUDGETS}/unfreeze?{PLACE}"))[0] == 409
    answers = await asyncio.gather(*[plane("POST", f"{BUDGETS}/freeze?{PLACE}") for plane in (plane_here, plane_there)])
    assert sorted(status for status, _ in answers) == [200, 409]
    assert {told.get("error") for _, told in answers} == {None, "BUDGET_FROZEN"}


async def test_a_frozen_budget_is_not_funded_but_its_terms_may_change(plane_here):
    await plane_here.budget()
    await plane_here("POST", f"{BUDGETS}/freeze?{PLACE}")
    status, told = await plane_here.fund("CREDIT", 1)
    assert (status, told["error"]) == (409, "BUDGET_FROZEN")
    assert (await plane_here("PATCH", f"{BUDGETS}?{PLACE}", {"overdraft_limit": money(5)}))[0] == 200


A_FREEZE_THAT_IS_CASES = [{"reason": 5}, {"reason": "x" * 513}, {"why": "x"}, {"metadata": []}]


async def test_a_freeze_that_is_not_understood_is_refused(plane_here):
    await plane_here.budget()
    for sent in A_FREEZE_THAT_IS_CASES:
        assert (await plane_here("POST", f"{BUDGETS}/freeze?{PLACE}", sent))[0] == 400, sent


# -- changed and read -------------------------------------------------------------------------------------------------------------


async def test_an_overdraft_is_told_with_the_debt_that_it_allows(plane_here):
    await plane_here.budget()
    await plane_here.spend(DOLLAR + 30)
    told = await plane_here.look()
    assert (told["remaining"]["amount"], told["is_over_limit"], "debt" in told) == (-30, True, False)
    changes = {"overdraft_limit": money(30), "commit_overage_policy": "ALLOW_WITH_OVERDRAFT", "metadata": {"a": 1}}
    _, told = await plane_here("PATCH", f"{BUDGETS}?{PLACE}", changes)
    assert (told["debt"], told["spent"], told["remaining"]["amount"]) == (money(30), money(DOLLAR), -30)
    assert (told["is_over_limit"], told["overdraft_limit"], told["commit_overage_policy"]) == (
        False,
        money(30),
        "ALLOW_WITH_OVERDRAFT",
    )
    _, told = await plane_here("PATCH", f"{BUDGETS}?{PLACE}", {"overdraft_limit": money(29)})
    assert told["is_over_limit"] is True


A_BUDGET_IS_NAMED_CASES = ["", "scope=tenant:acme", f"unit={USD}", f"scope=x&unit={USD}", "scope=tenant:acme&unit=EUR"]


async def test_a_budget_is_named_by_its_scope_and_unit(plane_here):
    for query in A_BUDGET_IS_NAMED_CASES:
        for method, target in (("GET", f"{BUDGETS}/lookup"), ("PATCH", BUDGETS), ("POST", f"{BUDGETS}/fund")):
            assert (await plane_here(method, f"{target}?{query}", {}))[0] == 400, query


async def test_what_is_not_there_is_not_found(plane_here):
    for method, target in (
        ("GET", f"{BUDGETS}/lookup"),
        ("PATCH", BUDGETS),
        ("POST", f"{BUDGETS}/freeze"),
        ("POST", f"{BUDGETS}/unfreeze"),
        ("POST", f"{BUDGETS}/fund"),
    ):
        status, told = await plane_here(method, f"{target}?{PLACE}&tenant_id=acme", {})
        assert (status, told["error"]) == (404, "BUDGET_NOT_FOUND")


async def test_a_list_is_filtered_by_what_budgets_are_and_by_what_they_have(plane_here):
    await plane_here.tenant("other")
    for scope in ("tenant:acme", "tenant:acme/agent:a", "tenant:acme/agent:b", "tenant:other"):
        await plane_here.budget(scope)
    await plane_here.budget(unit="TOKENS", amount=0)
    await plane_here.spend(DOLLAR // 2, "tenant:acme/agent:a")
    await plane_here.spend(DOLLAR + 1, "tenant:acme/agent:b")
    await plane_here("PATCH", f"{BUDGETS}?scope=tenant:acme/agent:b&unit={USD}", {"overdraft_limit": money(5)})
    await plane_here("POST", f"{BUDGETS}/freeze?{PLACE}")

    async def listed(query):
        status, told = await plane_here("GET", f"{BUDGETS}?sort_by=scope&sort_dir=asc&{query}")
        assert status == 200, told
        return [(each["scope"][7:], each["unit"]) for each in told["ledgers"]]

    a, b = ("acme/agent:a", USD), ("acme/agent:b", USD)
    assert len(await listed("")) == 5
    assert await listed("tenant_id=other") == [("other", USD)]
    assert await listed("scope_prefix=tenant:acme/agent") == [a, b]
    assert await listed("unit=TOKENS") == [("acme", "TOKENS")]
    assert await listed("status=FROZEN") == [("acme", USD)]
    assert await listed("has_debt=true") == [b]
    assert b not in await listed("has_debt=false")
    assert await listed("over_limit=true") == []
    assert await listed("utilization_min=0.5&utilization_max=0.9") == [a]
    assert await listed("utilization_min=1") == [b]
    assert await listed("search=AGENT:B") == [b]
    _, told = await plane_here("GET", f"{BUDGETS}?sort_by=utilization&limit=2&tenant_id=acme&unit={USD}")
    assert [each["scope"] for each in told["ledgers"]] == ["tenant:acme/agent:b", "tenant:acme/agent:a"]
    _, told = await plane_here(
        "GET", f"{BUDGETS}?sort_by=utilization&limit=2&tenant_id=acme&unit={USD}&cursor={told['next_cursor']}"
    )
    assert [each["scope"] for each in told["ledgers"]] == ["tenant:acme"]


A_FILTER_THAT_MEANS_CASES = [
    "utilization_min=2",
    "utilization_min=x",
    "utilization_min=0.6&utilization_max=0.5",
    "over_limit=maybe",
    "unit=EUR",
]


async def test_a_filter_that_means_nothing_is_refused(plane_here):
    for query in A_FILTER_THAT_MEANS_CASES:
        assert (await plane_here("GET", f"{BUDGETS}?{query}"))[0] == 400, query
