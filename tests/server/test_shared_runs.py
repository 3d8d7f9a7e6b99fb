"""`runs: {owner: tenant}`: every key of a tenant sees, uses and changes its runs; to another tenant they are as if they were not."""

import pytest

from gateway.core.policy import RunOwner, RunsPolicy
from gateway.core.values import RunTerms
from tests.server.conftest import ADMIN_TOKEN, Spending
from tests.support.records import USD
from tests.support.rulebooks import budget

SHARED = RunsPolicy(owner=RunOwner.TENANT)
BODY = {"run_id": "r1", "estimate_usd": "0.50", "ttl": "5m", "idempotency_key": "k1"}


@pytest.fixture
def shared(spending: Spending) -> Spending:
    spending.under(budget("run-ceiling", "run", limit=USD), runs=SHARED)
    return spending


async def debit(spending: Spending, as_: str, cost: str = "0.10", key: str = "e1", **more: str) -> tuple[int, dict[str, object]]:
    return await spending.ask("POST", "/budget/events", {"run_id": "r1", "cost_usd": cost, "idempotency_key": key}, as_, **more)


async def test_three_keys_spend_from_one_run_and_no_more_than_it_has(shared: Spending) -> None:
    for as_ in ("a", "b", "c"):
        status, shown = await debit(shared, as_, "0.30")
        assert (status, shown["replayed"]) == (200, False)  # each key has idempotency keys of its own
    assert await shared.balance() == (90_000_000, 0)
    status, refused = await debit(shared, "b", "0.11", "e2")
    assert (status, refused["code"]) == (402, "run_ceiling_reached")
    _, spent = await shared.ask("GET", "/budget/spend?by=key,run", None, "c")
    keys = {row["key"]: row["usd"] for row in spent["rows"]}
    assert (len(keys), set(keys.values()), spent["total"]["usd"]) == (3, {"0.30"}, "0.90")
    [run] = (await shared.ask("GET", "/budget/runs", None, "c"))[1]["runs"]
    assert (run["run_id"], run["committed_usd"], run["calls"]) == ("r1", "0.90", 3)


async def test_what_one_key_holds_another_one_sees_extends_and_ends(shared: Spending) -> None:
    _, shown = await shared.ask("POST", "/budget/reservations", BODY, "a")
    at = f"/budget/reservations/{shown['reservation_id']}"
    assert (await shared.ask("GET", at, None, "b"))[0] == 200
    assert (await shared.ask("GET", f"/budget/decisions/{shown['decision_id']}", None, "b"))[0] == 200
    assert (await shared.ask("POST", f"{at}/extend", {"ttl": "9m", "estimate_usd": "0.60"}, "b"))[0] == 200
    status, ended = await shared.ask("POST", f"{at}/commit", {"cost_usd": "0.31"}, "c")
    assert (status, ended["charged_usd"]) == (200, "0.31")
    assert await shared.balance() == (31_000_000, 0)


async def test_every_key_tightens_stops_and_pauses_the_run(shared: Spending) -> None:
    await debit(shared, "a")
    assert (await shared.ask("PUT", "/budget/runs/r1", {"limit": "0.50"}, "b"))[1]["limit_usd"] == "0.50"
    assert (await shared.ask("PUT", "/budget/runs/r1", {"limit": "0.60"}, "c"))[1]["code"] == "admin_required"
    assert (await shared.ask("POST", "/budget/runs/r1/pause", {}, "b"))[1]["state"] == "paused"
    assert (await debit(shared, "a", key="e2"))[1]["code"] == "run_paused"
    assert (await shared.ask("POST", "/budget/runs/r1/stop", {}, "c"))[1]["state"] == "stopped"


async def test_a_run_that_is_limited_before_its_first_call_belongs_to_whoever_opens_it(shared: Spending) -> None:
    await shared.ask("PUT", "/budget/runs/r1", {"limit": "0.15"}, "a")
    assert (await debit(shared, "b"))[0] == 200
    assert (await debit(shared, "c"))[1]["code"] == "run_ceiling_reached"
    view = await shared.ledger.run("default", "r1")
    assert view is not None
    [by_b] = [row["key"] for row in (await shared.ask("GET", "/budget/spend?by=key", None, "a"))[1]["rows"]]
    assert view.owner == by_b
    assert (await shared.ask("PUT", "/budget/runs/r1", {"limit": "0.12"}, "c"))[1]["limit_usd"] == "0.12"


async def test_a_child_is_opened_under_another_keys_run_and_draws_on_it(shared: Spending) -> None:
    await debit(shared, "a", "0.70")
    child = {"run_id": "child", "cost_usd": "0.20", "idempotency_key": "c1"}
    assert (await shared.ask("POST", "/budget/events", child, "b", X_Parent_Run_Id="r1"))[0] == 200
    more = {**child, "idempotency_key": "c2"}
    status, refused = await shared.ask("POST", "/budget/events", more, "c", X_Parent_Run_Id="r1")
    assert (status, refused["code"]) == (402, "run_ceiling_reached")
    view = await shared.ledger.run("default", "child")
    parent = await shared.ledger.run("default", "r1")
    assert view is not None
    assert parent is not None
    assert (view.ancestry, view.owner) == (("r1",), parent.owner)


async def test_runs_count_for_the_key_that_opened_them(spending: Spending) -> None:
    one = RunsPolicy(owner=RunOwner.TENANT, terms=RunTerms(max_active=1))
    spending.under(budget("run-ceiling", "run", limit=USD), runs=one)
    assert (await debit(spending, "a"))[0] == 200
    assert (await debit(spending, "b"))[0] == 200  # uses the run of a, which is active
    other = {"run_id": "r2", "cost_usd": "0.10", "idempotency_key": "e2"}
    assert (await spending.ask("POST", "/budget/events", other, "a"))[1]["code"] == "too_many_runs"
    assert (await spending.ask("POST", "/budget/events", other, "b"))[0] == 200


async def test_the_policy_may_change_and_runs_go_on(spending: Spending) -> None:
    await debit(spending, "a")
    assert (await debit(spending, "b"))[1]["code"] == "run_owned_by_another"
    spending.under(budget("run-ceiling", "run", limit=USD), runs=SHARED)
    assert (await debit(spending, "b"))[0] == 200
    spending.under(budget("run-ceiling", "run", limit=USD))
    assert (await debit(spending, "b", key="e2"))[1]["code"] == "run_owned_by_another"
    assert (await debit(spending, "a", key="e2"))[0] == 200
    assert (await spending.ask("GET", "/budget/runs/r1", None, "b"))[0] == 404


async def test_the_admin_token_still_opens_nothing_of_it(shared: Spending) -> None:
    assert (await debit(shared, ADMIN_TOKEN))[0] == 401
