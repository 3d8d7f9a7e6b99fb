"""A cost that is known already counts once, in the budgets that apply to its caller; it is refused like a call, or recorded always."""

from typing import Any

import orjson
import pytest

from gateway.core.policy import RunsPolicy, Source, Untagged
from gateway.core.scopes import Unit
from gateway.core.values import Mode
from gateway.core.windows import WindowKind
from gateway.ledger.contract import RunState
from tests.server.conftest import ADMIN_TOKEN, Spending
from tests.support.clock import Clock
from tests.support.records import USD
from tests.support.rulebooks import budget

SEARCH = {"run_id": "r1", "cost_usd": "0.12", "name": "web_search", "idempotency_key": "k1"}


async def post(spending: Spending, body: object = SEARCH, as_: str = "a", **headers: str) -> tuple[int, dict[str, Any]]:
    return await spending.ask("POST", "/budget/events", body, as_, **headers)


# -- what is charged --------------------------------------------------------------------------------------------------------------


async def test_a_known_cost_is_charged_to_the_run_and_shows_in_its_spend(spending: Spending) -> None:
    reply = await spending.ask.reply("POST", "/budget/events", SEARCH)
    shown = orjson.loads(reply.body)
    assert reply.status == 200
    assert shown == {
        "decision_id": shown["decision_id"],
        "run_id": "r1",
        "name": "web_search",
        "state": "committed",
        "at": "2026-11-30T12:00:00.000Z",
        "charged_usd": "0.12",
        "charged_tokens": 0,
        "charged_calls": 0,
        "remaining_usd": "0.88",
        "replayed": False,
    }
    assert dict(reply.headers) == {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Budget-Decision": "allow",
        "X-Budget-Decision-Id": shown["decision_id"],
        "X-Run-Id": "r1",
        "X-Budget-Remaining-USD": "0.88",
    }
    assert await spending.balance() == (12 * USD // 100, 0)
    _, spend = await spending.ask("GET", "/budget/spend?by=model,run")
    assert spend["rows"] == [{"model": "web_search", "run": "r1", "usd": "0.12", "tokens": 0, "calls": 0}]
    _, record = await spending.ask("GET", f"/budget/decisions/{shown['decision_id']}")
    assert (record["state"], record["ending"], record["charged_usd"]) == ("committed", "debited", "0.12")


async def test_tokens_and_calls_count_in_the_budgets_that_count_them(spending: Spending) -> None:
    spending.under(
        budget("tokens", "run", limit=1_000, unit=Unit.TOKENS),
        budget("steps", "run", limit=3, unit=Unit.CALLS),
        budget("by-model", "model", limit=1),
    )
    body = {"run_id": "r1", "tokens": 400, "calls": 2, "idempotency_key": "k1"}
    status, shown = await post(spending, body)
    assert (status, shown["charged_usd"], shown["charged_tokens"], shown["charged_calls"]) == (200, "0.00", 400, 2)
    assert (shown["name"], shown["remaining_usd"]) == ("external", None)
    status, shown = await post(spending, {**body, "idempotency_key": "k2"})
    assert (status, shown["code"], shown["budget"]["name"]) == (402, "run_ceiling_reached", "steps")
    _, run = await spending.ask("GET", "/budget/runs/r1")
    assert {each["name"]: each["committed"] for each in run["accounts"]} == {"tokens": 400, "steps": 2, "run-limit": "0.00"}


async def test_credits_and_risk_points_count_in_the_budgets_that_count_them(spending: Spending) -> None:
    spending.under(
        budget("credits", "run", limit=5, unit=Unit.CREDITS),
        budget("risk", "run", limit=100, unit=Unit.RISK_POINTS),
    )
    body = {"run_id": "r1", "name": "send_mail", "credits": 3, "risk_points": 40, "idempotency_key": "k1"}
    status, shown = await post(spending, body)
    assert (status, shown["charged_usd"], shown["charged_credits"], shown["charged_risk_points"]) == (200, "0.00", 3, 40)
    assert await post(spending, body) == (200, {**shown, "replayed": True})
    status, refused = await post(spending, {**body, "idempotency_key": "k2"})
    assert (status, refused["code"], refused["budget"]["name"]) == (402, "run_ceiling_reached", "credits")
    assert (refused["budget"]["unit"], refused["budget"]["remaining"], refused["budget"]["estimate"]) == ("credits", 2, 3)
    assert "limit 5 credits" in refused["detail"]
    status, shown = await post(spending, {**body, "idempotency_key": "k3", "record_always": True})
    assert (status, shown["charged_credits"]) == (200, 3)
    _, run = await spending.ask("GET", "/budget/runs/r1")
    told = {each["name"]: (each["unit"], each["limit"], each["committed"], each["remaining"]) for each in run["accounts"]}
    assert (told["credits"], told["risk"]) == (("credits", 5, 6, 0), ("risk_points", 100, 80, 20))
    _, spent = await spending.ask("GET", "/budget/spend?by=model")
    row = {"usd": "0.00", "tokens": 0, "calls": 0, "credits": 6, "risk_points": 80}
    assert (spent["rows"], spent["total"]) == ([{"model": "send_mail", **row}], row)


@pytest.mark.parametrize("member", ["credits", "risk_points"])
@pytest.mark.parametrize("value", [-1, 1.5, "3", True, None, 10**15 + 1])
async def test_an_amount_that_is_no_count_is_refused(spending: Spending, member: str, value: object) -> None:
    status, shown = await post(spending, {"run_id": "r1", member: value, "idempotency_key": "k1"})
    assert (status, shown["error"]["param"]) == (400, member)


async def test_dimensions_come_from_headers_as_they_do_for_calls(spending: Spending) -> None:
    spending.under(budget("team-month", "team", limit=USD))
    assert (await post(spending, X_Team_Id="research"))[0] == 200
    _, spend = await spending.ask("GET", "/budget/spend?by=team")
    assert [row["team"] for row in spend["rows"]] == ["research"]


async def test_the_run_may_be_named_by_the_header(spending: Spending) -> None:
    body = {"cost_usd": "0.12", "idempotency_key": "k1"}
    assert (await post(spending, body, X_Run_Id="r7"))[1]["run_id"] == "r7"
    status, shown = await post(spending, {**SEARCH, "idempotency_key": "k2"}, X_Run_Id="r7")
    assert (status, shown["code"]) == (400, "ambiguous_request")


async def test_without_a_run_the_policy_decides_and_asking_again_is_the_same_run(spending: Spending) -> None:
    body = {"cost_usd": "0.12", "idempotency_key": "k1"}
    _, first = await post(spending, body)
    _, again = await post(spending, body)
    assert (again["run_id"], again["replayed"]) == (first["run_id"], True)
    assert await spending.balance(first["run_id"]) == (12 * USD // 100, 0)
    spending.under(budget("run-ceiling", "run"), runs=RunsPolicy(untagged=Untagged.REFUSE))
    status, shown = await post(spending, {**body, "idempotency_key": "k2"})
    assert (status, shown["code"]) == (400, "run_id_required")


async def test_a_run_that_is_named_counts_whatever_the_policy_looks_at_in_calls(spending: Spending) -> None:
    spending.under(budget("run-ceiling", "run"), runs=RunsPolicy(id_from=(Source("claude-code"), Source("header", "session-id"))))
    assert (await post(spending, {**SEARCH, "idempotency_key": "k1"}, Session_Id="s1"))[1]["run_id"] == SEARCH["run_id"]
    body = {"cost_usd": "0.12", "idempotency_key": "k2"}
    assert (await post(spending, body, Session_Id="s1"))[1]["run_id"] == "s1"


async def test_an_alert_that_a_debit_sets_off_is_told(spending: Spending) -> None:
    spending.under(budget("run-ceiling", "run", limit=USD, alerts_ppm=(100_000,)))
    await post(spending)
    assert [alert.threshold_ppm for alert in spending.alerts] == [100_000]
    await post(spending)
    assert len(spending.alerts) == 1


# -- once -------------------------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_payload_is_the_same_answer_and_counts_once(spending: Spending) -> None:
    _, first = await post(spending)
    reply = await spending.ask.reply("POST", "/budget/events", SEARCH)
    assert reply.status == 200
    assert orjson.loads(reply.body) == {**first, "replayed": True}
    assert dict(reply.headers)["Idempotent-Replayed"] == "true"
    assert await spending.balance() == (12 * USD // 100, 0)


async def test_the_key_may_come_as_a_header(spending: Spending) -> None:
    body = {name: value for name, value in SEARCH.items() if name != "idempotency_key"}
    _, first = await post(spending, body, Idempotency_Key="k1")
    assert (await post(spending))[1] == {**first, "replayed": True}
    status, shown = await post(spending, Idempotency_Key="k2")
    assert (status, shown["code"]) == (400, "ambiguous_request")


@pytest.mark.parametrize(
    "change", [{"cost_usd": "0.13"}, {"name": "other"}, {"run_id": "r2"}, {"tokens": 1}, {"record_always": True}]
)
async def test_the_same_key_with_another_payload_is_a_conflict_and_changes_nothing(
    spending: Spending, change: dict[str, object]
) -> None:
    await post(spending)
    status, shown = await post(spending, {**SEARCH, **change})
    assert (status, shown["code"]) == (409, "idempotency_conflict")
    assert await spending.balance() == (12 * USD // 100, 0)
    assert await spending.balance("r2") == (0, 0)


async def test_two_callers_may_use_one_key(spending: Spending) -> None:
    await post(spending)
    status, shown = await post(spending, {**SEARCH, "run_id": "hers"}, as_="b")
    assert (status, shown["replayed"]) == (200, False)


async def test_a_refusal_is_no_answer_to_be_kept(spending: Spending) -> None:
    spending.under(budget("run-ceiling", "run", limit=USD // 10))
    assert (await post(spending))[0] == 402
    spending.under(budget("run-ceiling", "run", limit=USD))
    status, shown = await post(spending)
    assert (status, shown["replayed"]) == (200, False)


# -- refused ----------------------------------------------------------------------------------------------------------------------


async def test_a_cost_that_does_not_fit_is_refused_as_a_call_is(spending: Spending) -> None:
    reply = await spending.ask.reply("POST", "/budget/events", {**SEARCH, "cost_usd": "1.01"})
    shown = orjson.loads(reply.body)
    assert (reply.status, shown["code"], shown["error"]["code"]) == (402, "call_exceeds_limit", "budget_exceeded")
    assert (shown["budget"]["name"], shown["budget"]["estimate_usd"]) == ("run-ceiling", "1.01")
    assert "max_tokens" not in shown["detail"]
    headers = dict(reply.headers)
    assert (headers["X-Budget-Decision"], headers["X-Budget-Blocking-Scope"], headers["X-Run-Id"]) == ("block", "run", "r1")
    assert await spending.balance() == (0, 0)
    [(_, caller, decision_id, name, code, status)] = spending.refusals
    assert (caller.run, decision_id, name) == ("r1", headers["X-Budget-Decision-Id"], "web_search")
    assert (code, status) == ("call_exceeds_limit", 402)


async def test_what_has_been_spent_already_can_be_recorded_always(spending: Spending) -> None:
    await post(spending, {**SEARCH, "cost_usd": "0.95"})
    over = {**SEARCH, "idempotency_key": "k2", "record_always": True}
    assert (await post(spending, over))[1]["remaining_usd"] == "0.00"
    await spending.ledger.stop("default", "r1", "admin", "enough")
    assert (await post(spending, {**SEARCH, "idempotency_key": "k3"}))[1]["code"] == "run_stopped"
    assert (await post(spending, {**over, "idempotency_key": "k4"}))[0] == 200
    assert await spending.balance() == (119 * USD // 100, 0)


async def test_an_advisory_budget_warns_and_lets_it_pass(spending: Spending) -> None:
    spending.under(budget("advice", "run", limit=USD // 100, mode=Mode.ADVISORY_ESTIMATE))
    reply = await spending.ask.reply("POST", "/budget/events", SEARCH)
    assert (reply.status, dict(reply.headers)["X-Budget-Decision"]) == (200, "advisory_warn")


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.PAUSED])
async def test_a_run_that_takes_no_calls_takes_no_costs(spending: Spending, state: RunState) -> None:
    await post(spending)
    await (spending.ledger.stop if state is RunState.STOPPED else spending.ledger.pause)("default", "r1", "admin", "")
    status, shown = await post(spending, {**SEARCH, "idempotency_key": "k2"})
    assert (status, shown["code"]) == (402, f"run_{state.value}")


async def test_a_frozen_scope_takes_no_costs(spending: Spending) -> None:
    await spending.ledger.freeze("default", (("team", "research"),), "admin", "")
    status, shown = await post(spending, X_Team_Id="research")
    assert (status, shown["code"]) == (402, "scope_frozen")


async def test_another_keys_run_cannot_be_charged_nor_by_the_admin(spending: Spending) -> None:
    await post(spending)
    body = {**SEARCH, "idempotency_key": "k2"}
    assert (await post(spending, body, as_="b"))[1]["code"] == "run_owned_by_another"
    assert (await post(spending, body, as_=f"Bearer {ADMIN_TOKEN}"))[0] == 401
    assert await spending.balance() == (12 * USD // 100, 0)


async def test_windows_that_ended_while_it_was_decided_are_decided_again(
    spending: Spending, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spending.under(budget("minute", "run", limit=USD, window=WindowKind.MINUTE))
    debit, asked = spending.ledger.debit, []

    def later(*arguments: Any) -> Any:
        if not asked:
            clock.now_ms += 60_000
        asked.append(arguments)
        return debit(*arguments)

    monkeypatch.setattr(spending.ledger, "debit", later)
    assert (await post(spending))[0] == 200
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"cost_usd": 0.12}, "cost_usd"),
        ({"cost_usd": "-1"}, "cost_usd"),
        ({"cost_usd": None}, "cost_usd"),
        ({"tokens": 1.5}, "tokens"),
        ({"tokens": -1}, "tokens"),
        ({"calls": True}, "calls"),
        ({"calls": 1_000_001}, "calls"),
        ({"record_always": "yes"}, "record_always"),
        ({"run_id": 5}, "run_id"),
        ({"run_id": "a b"}, "X-Run-Id"),
        ({"name": "two words"}, "name"),
        ({"name": ""}, "name"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 201}, "idempotency_key"),
        ({"idempotency_key": 5}, "idempotency_key"),
        ({"cost": "0.12"}, "cost"),
    ],
)
async def test_a_body_that_cannot_be_read_names_the_member(spending: Spending, change: dict[str, object], param: str) -> None:
    status, shown = await post(spending, {**SEARCH, **change})
    assert (status, shown["error"]["param"]) == (400, param)
    assert await spending.balance() == (0, 0)


@pytest.mark.parametrize(
    ("left_out", "words"),
    [("idempotency_key", "Idempotency-Key"), ("cost_usd", "cost_usd, tokens, calls, credits or risk_points")],
)
async def test_what_is_missing_is_named(spending: Spending, left_out: str, words: str) -> None:
    status, shown = await post(spending, {name: value for name, value in SEARCH.items() if name != left_out})
    assert (status, shown["code"]) == (400, "bad_request")
    assert words in shown["detail"]


async def test_a_known_cost_is_a_receipt_once(spending: Spending) -> None:
    await post(spending)
    await post(spending)
    [receipt] = spending.receipts
    assert (receipt.ending.value, receipt.held, receipt.caller.run, receipt.name) == ("debited", None, "r1", "web_search")
    assert receipt.charged is not None
    assert receipt.charged.usd == 12 * USD // 100
