"""Funding: what each operation makes of a budget, once for each key, with nothing lost where many fund at once."""

import asyncio

import pytest

from gateway.asks import Ask
from gateway.core.scopes import Unit
from tests.cycles.governance.conftest import DOLLAR

USD = "USD_MICROCENTS"


@pytest.fixture(autouse=True)
async def budget(plane_here):
    await plane_here.tenant()
    await plane_here.budget(overdraft_limit={"unit": USD, "amount": 1_000})


async def standing(plane):
    told = await plane.look()
    return {name: told[name]["amount"] for name in ("allocated", "remaining", "spent", "debt")}


def of(told, when):
    return tuple(told[f"{when}_{name}"]["amount"] for name in ("allocated", "remaining", "spent", "debt"))


@pytest.mark.parametrize(
    ("operation", "amount", "spent_before", "allocated", "remaining", "spent", "debt"),
    [
        ("CREDIT", 50, 100, DOLLAR + 50, DOLLAR - 50, 100, 0),
        ("DEBIT", 50, 100, DOLLAR - 50, DOLLAR - 150, 100, 0),
        ("DEBIT", DOLLAR - 100, 100, 100, 0, 100, 0),
        ("RESET", 500, 100, 500, 400, 100, 0),
        ("RESET", 60, 100, 60, -40, 60, 40),
        ("RESET_SPENT", 500, 100, 500, 500, 0, 0),
        ("REPAY_DEBT", 500, 100, DOLLAR, DOLLAR - 100, 100, 0),
        # Of what is owed, paying in pays that first; and a new period forgives none of it.
        ("CREDIT", 10, DOLLAR + 30, DOLLAR + 10, -20, DOLLAR + 10, 20),
        ("CREDIT", 50, DOLLAR + 30, DOLLAR + 50, 20, DOLLAR + 30, 0),
        ("REPAY_DEBT", 10, DOLLAR + 30, DOLLAR + 10, -20, DOLLAR + 10, 20),
        ("REPAY_DEBT", 90, DOLLAR + 30, DOLLAR + 30, 0, DOLLAR + 30, 0),
        ("RESET_SPENT", 500, DOLLAR + 30, 500, 470, 30, 0),
    ],
)
async def test_what_an_operation_makes_of_a_budget(
    plane_here, operation, amount, spent_before, allocated, remaining, spent, debt
):
    await plane_here.spend(spent_before)
    before = await standing(plane_here)
    status, told = await plane_here.fund(operation, amount, idempotency_key="f1")
    assert status == 200
    assert of(told, "previous") == (before["allocated"], before["remaining"], before["spent"], before["debt"])
    assert of(told, "new") == (allocated, remaining, spent, debt)
    assert await standing(plane_here) == {"allocated": allocated, "remaining": remaining, "spent": spent, "debt": debt}


async def test_a_new_period_begins_however_much_is_owed(plane_here):
    for _ in range(2):
        await plane_here.spend(2**53 - 1)
        plane_here.clock.now_ms += 1
    status, told = await plane_here.fund("RESET_SPENT", 500, idempotency_key="f1")
    assert status == 200
    assert told["new_debt"]["amount"] == 2**53 - 1 - 500  # as much of it as can be counted


async def test_a_new_period_may_begin_with_something_spent(plane_here):
    _, told = await plane_here.fund("RESET_SPENT", 500, spent={"unit": USD, "amount": 700}, idempotency_key="f1")
    assert of(told, "new") == (500, -200, 500, 200)


async def test_no_more_is_taken_away_than_is_left(plane_here):
    await plane_here.spend(100)
    status, told = await plane_here.fund("DEBIT", DOLLAR - 99)
    assert (status, told["error"]) == (409, "BUDGET_EXCEEDED")
    assert (await standing(plane_here))["allocated"] == DOLLAR


# -- once -------------------------------------------------------------------------------------------------------------------------


async def test_the_same_funding_again_tells_what_it_told(plane_here, plane_there, clock):
    status, told = await plane_here.fund("CREDIT", 50, idempotency_key="f1")
    await plane_here.fund("CREDIT", 7, idempotency_key="f2")
    clock.now_ms += 5_000
    assert await plane_there.fund("CREDIT", 50, idempotency_key="f1") == (status, told)
    assert (await standing(plane_here))["allocated"] == DOLLAR + 57


async def test_the_same_key_for_something_else_is_a_conflict(plane_here):
    await plane_here.fund("CREDIT", 50, idempotency_key="f1")
    for operation, amount in (("CREDIT", 51), ("DEBIT", 50)):
        status, told = await plane_here.fund(operation, amount, idempotency_key="f1")
        assert (status, told["error"]) == (409, "IDEMPOTENCY_MISMATCH")
    assert (await standing(plane_here))["allocated"] == DOLLAR + 50


async def test_the_same_funding_many_times_at_once_counts_once(plane_here, plane_there):
    answers = await asyncio.gather(*[plane.fund("CREDIT", 50, idempotency_key="f1") for plane in [plane_here, plane_there] * 5])
    assert {status for status, _ in answers} == {200}
    assert (await standing(plane_here))["allocated"] == DOLLAR + 50


async def test_different_fundings_with_one_key_at_once_are_one_and_conflicts(plane_here, plane_there):
    planes = [plane_here, plane_there] * 3
    answers = await asyncio.gather(*[plane.fund("CREDIT", n + 1, idempotency_key="f1") for n, plane in enumerate(planes)])
    done = [n + 1 for n, (status, _) in enumerate(answers) if status == 200]
    assert len(done) == 1
    assert {told["error"] for status, told in answers if status != 200} == {"IDEMPOTENCY_MISMATCH"}
    assert (await standing(plane_here))["allocated"] == DOLLAR + done[0]


async def test_all_of_many_fundings_at_once_count(plane_here, plane_there):
    planes = [plane_here, plane_there] * 20
    answers = await asyncio.gather(*[plane.fund("CREDIT", 3, idempotency_key=f"f{n}") for n, plane in enumerate(planes)])
    assert {status for status, _ in answers} == {200}
    assert (await standing(plane_here))["allocated"] == DOLLAR + 120


async def test_of_many_who_repay_a_debt_at_once_it_is_repaid_once(plane_here, plane_there):
    await plane_here.spend(DOLLAR + 30)
    planes = [plane_here, plane_there] * 5
    await asyncio.gather(*[plane.fund("REPAY_DEBT", 30, idempotency_key=f"f{n}") for n, plane in enumerate(planes)])
    assert await standing(plane_here) == {"allocated": DOLLAR + 30, "remaining": 0, "spent": DOLLAR + 30, "debt": 0}


async def test_a_funding_that_was_refused_may_succeed_later_with_the_same_key(plane_here):
    await plane_here.spend(DOLLAR)
    assert (await plane_here.fund("DEBIT", 5, idempotency_key="f1"))[0] == 409
    await plane_here.fund("CREDIT", 10)
    assert (await plane_here.fund("DEBIT", 5, idempotency_key="f1"))[0] == 200


async def test_without_a_key_each_counts(plane_here):
    await plane_here.fund("CREDIT", 1)
    await plane_here.fund("CREDIT", 1)
    assert (await standing(plane_here))["allocated"] == DOLLAR + 2


# -- who and what -----------------------------------------------------------------------------------------------------------------


async def test_a_tenant_funds_its_own_with_its_key(plane_here):
    _, secret = await plane_here.key()
    status, told = await plane_here.fund("CREDIT", 5, key=secret, idempotency_key="f1")
    assert (status, told["new_allocated"]["amount"]) == (200, DOLLAR + 5)


async def test_the_admin_names_the_tenant(plane_here):
    body = {"operation": "CREDIT", "amount": {"unit": USD, "amount": 1}}
    for query in (f"scope=tenant:acme&unit={USD}", f"scope=tenant:acme&unit={USD}&tenant_id=other"):
        status, told = await plane_here("POST", f"/v1/admin/budgets/fund?{query}", body)
        assert (status, told["error"]) == (400, "INVALID_REQUEST")


WHAT_IS_NOT_UNDERSTOOD_CASES = [
    ({"operation": "GIVE"}, "INVALID_REQUEST"),
    ({"amount": {"unit": "TOKENS", "amount": 1}}, "UNIT_MISMATCH"),
    ({"amount": {"unit": USD, "amount": -1}}, "INVALID_REQUEST"),
    ({"amount": None}, "INVALID_REQUEST"),
    ({"spent": {"unit": "TOKENS", "amount": 1}}, "UNIT_MISMATCH"),
    ({"idempotency_key": ""}, "INVALID_REQUEST"),
    ({"idempotency_key": "x" * 257}, "INVALID_REQUEST"),
    ({"reason": "x" * 513}, "INVALID_REQUEST"),
    ({"note": "x"}, "INVALID_REQUEST"),
]


async def test_what_is_not_understood_is_refused(plane_here):
    for members, error in WHAT_IS_NOT_UNDERSTOOD_CASES:
        body = {"operation": "CREDIT", "amount": {"unit": USD, "amount": 1}} | members
        status, told = await plane_here("POST", f"/v1/admin/budgets/fund?scope=tenant:acme&unit={USD}&tenant_id=acme", body)
        assert (status, told["error"]) == (400, error), members


async def test_it_stays_with_whoever_did_it_and_why(plane_here, ledger):
    await plane_here.fund("CREDIT", 5, reason="top-up")
    act = (await ledger.acts("acme", 1))[0]
    assert (act.who, act.act, act.why) == ("admin", "fund", "top-up")


async def test_a_funding_that_gives_room_answers_the_ask_of_a_run_that_it_stands_in_the_way_of(plane_here, clock):
    found = plane_here.registry.budget("tenant:acme", Unit.USD)
    key = found.grant.account.key
    await plane_here.asks.put("acme", Ask("r1", "key_a", Unit.USD, DOLLAR, "two chapters are left", clock(), key, DOLLAR))
    await plane_here.asks.put("acme", Ask("r2", "key_a", Unit.USD, DOLLAR, "one is", clock(), "another|||usd", DOLLAR))
    await plane_here.fund("DEBIT", DOLLAR // 2)
    assert list(await plane_here.asks.open("acme", clock())) == ["r1", "r2"]
    await plane_here.fund("CREDIT", DOLLAR)
    assert list(await plane_here.asks.open("acme", clock())) == ["r2"]
