"""Every error code that the runtime plane can give, each provoked, and each with the status that the specification gives it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.core.policy import RunsPolicy
from gateway.core.scopes import Unit
from gateway.core.values import RunTerms
from gateway.cycles.faults import STATUSES
from gateway.ledger.contract import Ledger, LedgerUnavailable
from tests.cycles.specification import ERROR_CODES
from tests.cycles.world import ADMIN_TOKEN, TENANT, World, fresh_key, reservation
from tests.support.clock import Clock
from tests.support.rulebooks import budget, policy

Answer = tuple[int, dict[str, Any]]
Provoke = Callable[[World], Awaitable[Answer]]
PROVOKED: dict[str, list[Provoke]] = {}


def gives(code: str) -> Callable[[Provoke], Provoke]:
    def kept(provoke: Provoke) -> Provoke:
        PROVOKED.setdefault(code, []).append(provoke)
        return provoke

    return kept


@gives("INVALID_REQUEST")
async def an_unknown_member(world: World) -> Answer:
    return await world.reserve(extra=1)


@gives("UNAUTHORIZED")
async def no_key(world: World) -> Answer:
    return await world.ask("POST", "/v1/decide", reservation(), headers={})


@gives("UNAUTHORIZED")
async def an_unknown_key(world: World) -> Answer:
    world.secret = "cyc_live_nobody"
    return await world.reserve()


@gives("UNAUTHORIZED")
async def the_admin_reserves(world: World) -> Answer:
    return await world.ask("POST", "/v1/reservations", reservation(), headers={"X-Admin-API-Key": ADMIN_TOKEN})


@gives("FORBIDDEN")
async def another_tenants_subject(world: World) -> Answer:
    return await world.reserve(subject={"tenant": "other"})


@gives("FORBIDDEN")
async def another_tenants_balances(world: World) -> Answer:
    return await world.ask("GET", "/v1/balances?tenant=other")


@gives("FORBIDDEN")
async def another_tenants_list(world: World) -> Answer:
    return await world.ask("GET", "/v1/reservations?tenant=other")


@gives("FORBIDDEN")
async def a_key_without_the_right(world: World) -> Answer:
    world.secret = await world.key(permissions=("balances:read",))
    return await world.reserve()


@gives("FORBIDDEN")
async def a_key_for_another_scope(world: World) -> Answer:
    world.secret = await world.key(scope_filter=("workspace:eng",))
    return await world.reserve()


@gives("FORBIDDEN")
async def a_suspended_tenant(world: World) -> Answer:
    of = await world.reserved()
    await world.tenant(status="SUSPENDED")
    assert (await world.commit(of, 1))[0] == 200
    assert (await world.decide())[1]["reason_code"] == "TENANT_SUSPENDED"
    return await world.reserve()


@gives("NOT_FOUND")
async def no_such_reservation(world: World) -> Answer:
    return await world.get("rsv_nobody")


@gives("NOT_FOUND")
async def an_event_is_no_reservation(world: World) -> Answer:
    _, body = await world.event()
    return await world.get("rsv_" + body["event_id"].removeprefix("evt_"))


@gives("BUDGET_EXCEEDED")
async def too_little_is_left(world: World) -> Answer:
    return await world.reserve(1_001)


@gives("BUDGET_EXCEEDED")
async def an_event_that_may_be_rejected(world: World) -> Answer:
    return await world.event(1_001, overage_policy="REJECT")


@gives("BUDGET_FROZEN")
async def a_frozen_budget(world: World) -> Answer:
    await world.budget(f"tenant:{TENANT}", 1_000, status="frozen")
    return await world.reserve()


@gives("BUDGET_FROZEN")
async def a_frozen_scope(world: World) -> Answer:
    await world.ledger.freeze(TENANT, (("run", "r1"),), "admin", "")
    return await world.reserve()


@gives("BUDGET_FROZEN")
async def a_frozen_budget_and_an_event_that_may_be_rejected(world: World) -> Answer:
    await world.budget(f"tenant:{TENANT}", 1_000, status="frozen")
    return await world.event(overage_policy="REJECT")


@gives("BUDGET_CLOSED")
async def a_closed_budget(world: World) -> Answer:
    await world.budget(f"tenant:{TENANT}", 1_000, status="closed")
    return await world.reserve()


@gives("BUDGET_CLOSED")
async def a_stopped_run(world: World) -> Answer:
    await world.reserved()
    await world.ledger.stop(TENANT, "r1", "admin", "")
    return await world.reserve()


@gives("RESERVATION_EXPIRED")
async def too_late(world: World) -> Answer:
    of = await world.reserved()
    world.clock.now_ms += 65_000
    return await world.commit(of, 1)


@gives("RESERVATION_FINALIZED")
async def ended_before(world: World) -> Answer:
    of = await world.reserved()
    await world.release(of)
    return await world.commit(of, 1)


@gives("IDEMPOTENCY_MISMATCH")
async def one_key_two_requests(world: World) -> Answer:
    key = fresh_key()
    await world.reserve(1, key=key)
    return await world.reserve(2, key=key)


@gives("IDEMPOTENCY_MISMATCH")
async def one_key_two_events(world: World) -> Answer:
    key = fresh_key()
    await world.event(1, key=key)
    return await world.event(2, key=key)


@gives("IDEMPOTENCY_MISMATCH")
async def one_key_two_decisions(world: World) -> Answer:
    key = fresh_key()
    await world.decide(1, key=key)
    return await world.decide(2, key=key)


@gives("UNIT_MISMATCH")
async def a_unit_without_a_budget(world: World) -> Answer:
    status, body = await world.reserve(unit="TOKENS")
    assert body["details"] == {
        "scope": "tenant:acme/workflow:r1",
        "requested_unit": "TOKENS",
        "expected_units": ["USD_MICROCENTS"],
    }
    return status, body


@gives("UNIT_MISMATCH")
async def a_decision_in_a_unit_without_a_budget(world: World) -> Answer:
    return await world.decide(unit="CREDITS")


@gives("UNIT_MISMATCH")
async def an_event_in_a_unit_without_a_budget(world: World) -> Answer:
    return await world.event(unit="RISK_POINTS")


@gives("OVERDRAFT_LIMIT_EXCEEDED")
async def a_scope_over_its_limit(world: World) -> Answer:
    await world.event(1_001)
    return await world.reserve()


@gives("OVERDRAFT_LIMIT_EXCEEDED")
async def an_event_too_deep_into_debt(world: World) -> Answer:
    await world.budget(f"tenant:{TENANT}", 1_000, overdraft=10)
    assert (await world.event(1_010, overage_policy="ALLOW_WITH_OVERDRAFT"))[0] == 201
    return await world.event(1, overage_policy="ALLOW_WITH_OVERDRAFT")


@gives("DEBT_OUTSTANDING")
async def a_debt(world: World) -> Answer:
    await world.budget(f"tenant:{TENANT}", 1_000, overdraft=10)
    await world.event(1_005, overage_policy="ALLOW_WITH_OVERDRAFT")
    return await world.reserve()


@gives("MAX_EXTENSIONS_EXCEEDED")
async def one_extension_too_many(world: World) -> Answer:
    await world.tenant(max_extensions=0)
    return await world.extend(await world.reserved())


@gives("LIMIT_EXCEEDED")
async def one_run_too_many(world: World) -> Answer:
    world.rulebook = type(world.rulebook)(
        policy(budget("run-ceiling", "run"), runs=RunsPolicy(terms=RunTerms(max_active=1))),
        world.rulebook.catalog,
        world.rulebook.counter,
        grants=world.rulebook.grants,
    )
    await world.reserved()
    return await world.reserve(subject={"workflow": "r2"})


@gives("TENANT_CLOSED")
async def a_closed_tenant_reserves(world: World) -> Answer:
    await world.tenant(status="CLOSED")
    return await world.reserve()


@gives("TENANT_CLOSED")
async def a_closed_tenant_commits(world: World) -> Answer:
    of = await world.reserved()
    world.clock.now_ms += 65_000  # which outranks that it has expired
    await world.tenant(status="CLOSED")
    assert (await world.release(of))[1]["error"] == "TENANT_CLOSED"
    assert (await world.extend(of))[1]["error"] == "TENANT_CLOSED"
    assert (await world.event())[1]["error"] == "TENANT_CLOSED"
    return await world.commit(of, 1)


@gives("INTERNAL_ERROR")
async def the_ledger_is_away(world: World) -> Answer:
    def away(*_: object) -> None:
        raise LedgerUnavailable("the store does not answer")

    world.ledger.reserve = away  # type: ignore[method-assign,assignment]
    return await world.reserve()


PASSING = {"the_ledger_is_away": 503}


@pytest.mark.parametrize(
    ("code", "provoke"),
    [(code, each) for code, provoke in PROVOKED.items() for each in provoke],
    ids=lambda it: getattr(it, "__name__", it),
)
async def test_each_error_has_its_code_and_status(world: World, code: str, provoke: Provoke) -> None:
    status, body = await provoke(world)
    assert (status, body["error"]) == (PASSING.get(provoke.__name__, STATUSES[code]), code), body
    assert body["request_id"] == "req_1"
    assert "trace_id" not in body


def test_each_code_of_the_specification_is_provoked_and_has_a_status() -> None:
    assert set(PROVOKED) == set(ERROR_CODES) == set(STATUSES)


async def test_without_any_budget_there_is_none_to_be_found(ledger: Ledger, clock: Clock) -> None:
    world = await World(ledger, clock, rules=policy(budget("steps", "run", limit=5, unit=Unit.CALLS))).open()
    status, body = await world.reserve()
    assert (status, body["error"]) == (404, "NOT_FOUND")
    assert body["message"] == "Budget not found for provided scope: tenant:acme/workflow:r1"
    assert (await world.event())[0] == 404
    assert (await world.decide())[1]["reason_code"] == "BUDGET_NOT_FOUND"
    assert (await world.reserve(dry_run=True))[1]["reason_code"] == "BUDGET_NOT_FOUND"


# -- decisions, which deny instead ------------------------------------------------------------------------------------------------

DENIALS: dict[str, Callable[[World], Awaitable[Any]]] = {
    "BUDGET_FROZEN": lambda world: world.budget(f"tenant:{TENANT}", 1_000, status="frozen"),
    "BUDGET_CLOSED": lambda world: world.budget(f"tenant:{TENANT}", 1_000, status="closed"),
    "TENANT_CLOSED": lambda world: world.tenant(status="CLOSED"),
    "BUDGET_EXCEEDED": lambda world: world.budget(f"tenant:{TENANT}", 99),
    "OVERDRAFT_LIMIT_EXCEEDED": lambda world: world.event(1_001),
}


@pytest.mark.parametrize("reason", DENIALS)
async def test_a_decision_denies_what_a_reservation_would_be_refused_for(world: World, reason: str) -> None:
    key = fresh_key()
    before = await world.decide(key=key)
    await DENIALS[reason](world)
    denied = {"decision": "DENY", "reason_code": reason, "affected_scopes": ["tenant:acme", "tenant:acme/workflow:r1"]}
    assert await world.decide() == (200, denied)
    assert await world.reserve(dry_run=True) == (200, denied)
    assert (await world.reserve())[1]["error"] == reason
    assert before[1]["decision"] == "ALLOW"
    assert await world.decide(key=key) == before
