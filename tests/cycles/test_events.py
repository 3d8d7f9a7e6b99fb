"""Events: what was spent is recorded once, as far as their own overage policy lets it; and one list of receipts."""

import pytest

from gateway.core.scopes import Unit
from tests.cycles.world import TENANT, USD, World, fresh_key
from tests.support.rulebooks import budget, policy


async def test_an_event_is_charged_once(world: World) -> None:
    key = fresh_key()
    first = await world.event(300, key=key, metrics={"tokens_input": 5}, client_time_ms=1)
    assert (first[0], first[1]) == (201, {"status": "APPLIED", "event_id": first[1]["event_id"]})
    assert await world.event(300, key=key, metrics={"tokens_input": 5}, client_time_ms=1) == first
    assert await world.balance() == {"remaining": 700, "reserved": 0, "spent": 300, "allocated": 1_000}


async def test_an_event_above_what_is_left_is_recorded_in_full_and_told_as_covered(world: World) -> None:
    key = fresh_key()
    await world.reserved(800)
    first = await world.event(500, key=key)
    assert (first[0], first[1]["charged"]) == (201, {"unit": USD, "amount": 200})
    assert await world.event(500, key=key) == first
    assert (await world.balance())["spent"] == 500


@pytest.mark.parametrize("status", ["frozen", "closed"])
async def test_a_scope_that_takes_nothing_more_still_takes_what_has_happened(world: World, status: str) -> None:
    await world.budget(f"tenant:{TENANT}", 1_000, status=status)
    assert (await world.event(300))[0] == 201
    assert (await world.balance())["spent"] == 300


async def test_an_event_may_go_into_debt_as_far_as_the_budget_allows(world: World) -> None:
    await world.budget(f"tenant:{TENANT}", 1_000, overdraft=50)
    assert (await world.event(1_050, overage_policy="ALLOW_WITH_OVERDRAFT"))[0] == 201
    assert (await world.balance())["debt"] == 50


async def test_a_replay_of_an_event_outranks_the_closed_tenant(world: World) -> None:
    key = fresh_key()
    first = await world.event(300, key=key)
    await world.tenant(status="CLOSED")
    assert await world.event(300, key=key) == first


@pytest.mark.parametrize("unit", ["TOKENS", "CREDITS", "RISK_POINTS"])
async def test_each_unit_has_its_own_budget(world: World, unit: str) -> None:
    await world.budget(f"tenant:{TENANT}", 100, unit)
    of = await world.reserved(60, unit=unit)
    assert (await world.reserve(41, unit=unit))[1]["error"] == "BUDGET_EXCEEDED"
    status, body = await world.commit(of, 50, unit=unit)
    assert (status, body["charged"]) == (200, {"unit": unit, "amount": 50})
    assert (await world.event(50, unit=unit))[0] == 201
    assert (await world.balance(unit=unit))["remaining"] == 0
    assert (await world.balance())["remaining"] == 1_000


async def test_the_policys_budgets_count_for_a_subject_as_for_any_caller(world: World) -> None:
    rules = policy(budget("run-ceiling", "run", limit=150), budget("searches", "agent", limit=2, unit=Unit.CALLS))
    world.rulebook = type(world.rulebook)(rules, world.rulebook.catalog, world.rulebook.counter, grants=world.rulebook.grants)
    await world.reserved(100)
    status, body = await world.reserve(100)
    assert (status, body["error"], body["details"]["scope"]) == (409, "BUDGET_EXCEEDED", "run-ceiling/run")
    by_dimension = {"agent": "a", "workflow": "other", "dimensions": {"run_id": "r1"}}
    assert (await world.reserve(100, subject=by_dimension))[1]["error"] == "BUDGET_EXCEEDED"
    await world.event(1, subject={"agent": "a", "workflow": "r2"})
    await world.event(1, subject={"agent": "a", "workflow": "r3"})
    assert (await world.reserve(1, subject={"agent": "a", "workflow": "r4"}))[1]["error"] == "BUDGET_EXCEEDED"


async def test_commits_releases_and_events_are_receipts_in_the_log_and_the_metrics(world: World) -> None:
    committed, released = await world.reserved(400), await world.reserved(400)
    await world.commit(committed, 150, metrics={"tokens_input": 7, "tokens_output": 3})
    await world.release(released)
    await world.event(20)
    await world.commit(committed, 150)  # refused: no receipt
    lines = world.told()
    assert [(line["ending"], line["held_usd"], line["charged_usd"], line["status"]) for line in lines] == [
        ("completed", "0.000004", "0.0000015", 200),
        ("completed", "0.000004", None, 200),
        ("debited", None, "0.0000002", 201),
    ]
    assert {(line["event"], line["tenant"], line["run"], line["provider"], line["requested_model"]) for line in lines} == {
        ("call", TENANT, "r1", "-", "web.search")
    }
    assert lines[0]["decision_id"] == "bdg_" + committed.removeprefix("rsv_")
    assert lines[0]["input_tokens"] == 7
    world.metrics.flush()
    assert b'penstock_calls_total{ending="completed"} 2.0' in world.metrics.exposition()
    assert b'penstock_calls_total{ending="debited"} 1.0' in world.metrics.exposition()


async def test_what_is_refused_is_told_too(world: World) -> None:
    await world.reserve(1_000_000)
    await world.event(1, unit="CREDITS")
    lines = [(line["outcome"], line["code"], line["status"], line["run"], line["held_usd"]) for line in world.told()]
    assert lines == [("block", "BUDGET_EXCEEDED", 409, "r1", None), ("block", "UNIT_MISMATCH", 400, "r1", None)]
    world.metrics.flush()
    assert b'penstock_decisions_total{code="BUDGET_EXCEEDED",outcome="block"} 1.0' in world.metrics.exposition()


async def test_an_overrun_is_told(world: World) -> None:
    of = await world.reserved(1_000)
    await world.commit(of, 1_300)
    world.events.close()
    [overrun] = [line for line in world.lines if line["event"] == "overrun"]
    assert (overrun["held_usd"], overrun["charged_usd"], overrun["cause"]) == ("0.00001", "0.000013", "outside")
