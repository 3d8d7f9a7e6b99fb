"""Work beside the proxy holds money under the same ceilings: each hold ends once, is its own key's alone, and is no proxied call's."""

import asyncio
from typing import Any

import pytest

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Decision, Ending, Hold
from gateway.ledger.contract import LedgerUnavailable
from tests.server.conftest import ADMIN_TOKEN, Spending
from tests.support.clock import Clock
from tests.support.records import USD, caller, decision
from tests.support.rulebooks import budget

RENDER = {"run_id": "r1", "estimate_usd": "0.50", "ttl": "5m", "name": "render", "idempotency_key": "k1"}


async def reserve(spending: Spending, body: object = RENDER, as_: str = "a") -> tuple[int, dict[str, Any]]:
    return await spending.ask("POST", "/budget/reservations", body, as_)


async def held(spending: Spending, **change: object) -> str:
    status, shown = await reserve(spending, {**RENDER, **change})
    assert status == 201, shown
    return f"/budget/reservations/{shown['reservation_id']}"


# -- holding ----------------------------------------------------------------------------------------------------------------------


async def test_a_hold_takes_its_room_until_it_ends(spending: Spending) -> None:
    status, shown = await reserve(spending)
    assert status == 201
    assert shown == {
        "decision_id": shown["decision_id"],
        "run_id": "r1",
        "name": "render",
        "state": "live",
        "at": "2026-11-30T12:00:00.000Z",
        "reservation_id": shown["decision_id"].replace("bdg_", "rsv_"),
        "held_usd": "0.50",
        "held_tokens": 0,
        "held_calls": 1,
        "expires_at": "2026-11-30T12:05:00.000Z",
        "charged_usd": None,
        "charged_tokens": None,
        "charged_calls": None,
        "remaining_usd": "0.50",
        "replayed": False,
    }
    assert await spending.balance() == (0, USD // 2)
    status, refused = await reserve(spending, {**RENDER, "idempotency_key": "k2", "estimate_usd": "0.51"})
    assert (status, refused["code"], refused["budget"]["remaining_usd"]) == (402, "run_ceiling_reached", "0.50")
    assert (await spending.ask("GET", f"/budget/reservations/{shown['reservation_id']}"))[1] == shown


async def test_what_names_no_ttl_lives_as_long_as_a_calls_hold(spending: Spending) -> None:
    _, shown = await reserve(spending, {"run_id": "r1", "tokens": 50, "idempotency_key": "k1"})
    assert (shown["expires_at"], shown["held_usd"], shown["held_tokens"]) == ("2026-11-30T12:10:00.000Z", "0.00", 50)


async def test_the_same_key_and_payload_shows_the_same_hold_as_it_stands(spending: Spending) -> None:
    _, first = await reserve(spending)
    assert await reserve(spending) == (201, {**first, "replayed": True})
    await spending.ask("POST", f"/budget/reservations/{first['reservation_id']}/commit", {"cost_usd": "0.30"})
    status, again = await reserve(spending)
    assert (status, again["reservation_id"], again["state"]) == (201, first["reservation_id"], "committed")
    assert (again["charged_usd"], again["replayed"], again["remaining_usd"]) == ("0.30", True, "0.70")
    assert await spending.balance() == (30 * USD // 100, 0)


@pytest.mark.parametrize("change", [{"estimate_usd": "0.51"}, {"ttl": "6m"}, {"run_id": "r2"}, {"name": "other"}])
async def test_the_same_key_with_another_payload_is_a_conflict(spending: Spending, change: dict[str, object]) -> None:
    await held(spending)
    status, shown = await reserve(spending, {**RENDER, **change})
    assert (status, shown["code"]) == (409, "idempotency_conflict")
    assert await spending.balance() == (0, USD // 2)


async def test_of_many_that_ask_at_once_with_one_key_there_is_one_hold(spending: Spending) -> None:
    same = [reserve(spending) for _ in range(8)]
    others = [reserve(spending, {**RENDER, "estimate_usd": f"0.0{number}"}) for number in range(1, 5)]
    answers = await asyncio.gather(*same, *others)
    assert len({shown["reservation_id"] for status, shown in answers if status == 201}) == 1
    assert {(status, shown["code"]) for status, shown in answers if status != 201} == {(409, "idempotency_conflict")}
    assert [status for status, _ in answers].count(201) in (8, 1)
    run = await spending.ledger.run("default", "r1")
    assert run is not None
    assert run.calls == 1


async def test_a_hold_that_was_given_back_unheard_of_is_taken_again_by_the_same_key(
    spending: Spending, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve_there = spending.ledger.reserve

    async def unheard(asked: Decision, lease_ms: int) -> Any:
        taken = await reserve_there(asked, lease_ms)
        assert isinstance(taken, Hold)
        await spending.ledger.release("default", taken.id, Ending.NOT_SENT)  # as a ledger does for a caller that is gone
        raise LedgerUnavailable("too late")

    async def buried(asked: Decision, lease_ms: int) -> Any:
        await spending.ledger.release("default", asked.hold_id, Ending.NOT_SENT)
        raise LedgerUnavailable("too late")

    for failing in (unheard, buried):
        monkeypatch.setattr(spending.ledger, "reserve", failing)
        assert (await reserve(spending))[1]["code"] == "ledger_unavailable"
    monkeypatch.setattr(spending.ledger, "reserve", reserve_there)
    status, shown = await reserve(spending)
    assert (status, shown["state"], shown["replayed"]) == (201, "live", False)
    assert await reserve(spending) == (201, {**shown, "replayed": True})
    assert await spending.balance() == (0, USD // 2)
    path = f"/budget/reservations/{shown['reservation_id']}"
    assert (await spending.ask("POST", f"{path}/release"))[1]["state"] == "released"
    assert (await reserve(spending))[1]["state"] == "released"  # by its owner: that is the answer from now on


# -- ending -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["0.31", "0.00", "0.90"])
async def test_a_commit_charges_what_it_cost_also_above_the_hold_and_once(spending: Spending, cost: str) -> None:
    path = await held(spending)
    status, shown = await spending.ask("POST", f"{path}/commit", {"cost_usd": cost})
    assert (status, shown["state"], shown["charged_usd"], shown["charged_calls"]) == (200, "committed", cost, 1)
    assert (shown["replayed"], shown["expires_at"]) == (False, None)
    again = await spending.ask("POST", f"{path}/commit", {"cost_usd": cost})
    assert again == (200, {**shown, "replayed": True})
    status, refused = await spending.ask("POST", f"{path}/commit", {"cost_usd": "0.77"})
    assert (status, refused["code"]) == (409, "idempotency_conflict")
    assert f"${cost}" in refused["detail"]
    assert (await spending.balance())[1] == 0
    _, spend = await spending.ask("GET", "/budget/spend?by=model")
    assert spend["total"]["usd"] == cost


async def test_what_a_commit_leaves_out_is_charged_as_held(spending: Spending) -> None:
    path = await held(spending, tokens=70)
    _, shown = await spending.ask("POST", f"{path}/commit", {"tokens": 20})
    assert (shown["charged_usd"], shown["charged_tokens"], shown["charged_calls"]) == ("0.50", 20, 1)
    assert (await spending.ask("POST", f"{path}/commit", {}))[0] == 400


async def test_a_release_gives_it_back_once_and_then_nothing_can_be_charged(spending: Spending) -> None:
    path = await held(spending)
    status, shown = await spending.ask("POST", f"{path}/release")
    assert (status, shown["state"], shown["remaining_usd"], shown["replayed"]) == (200, "released", "1.00", False)
    assert (await spending.ask("POST", f"{path}/release", {}))[1]["replayed"] is True
    status, refused = await spending.ask("POST", f"{path}/commit", {"cost_usd": "0.10"})
    assert (status, refused["code"]) == (409, "idempotency_conflict")
    assert "was released" in refused["detail"]
    assert await spending.balance() == (0, 0)


async def test_what_was_committed_cannot_be_released(spending: Spending) -> None:
    path = await held(spending)
    await spending.ask("POST", f"{path}/commit", {"cost_usd": "0.10"})
    status, shown = await spending.ask("POST", f"{path}/release")
    assert (status, shown["code"]) == (409, "idempotency_conflict")
    assert await spending.balance() == (USD // 10, 0)


@pytest.mark.parametrize(("verb", "body", "charged"), [("commit", {"cost_usd": "0.20"}, 20 * USD // 100), ("release", None, 0)])
async def test_a_hold_that_ran_out_is_charged_in_full_and_corrected_once(
    spending: Spending, clock: Clock, verb: str, body: object, charged: int
) -> None:
    path = await held(spending)
    clock.now_ms += 300_001
    assert len(await spending.ledger.expire()) == 1
    _, shown = await spending.ask("GET", path)
    assert (shown["state"], shown["charged_usd"], shown["expires_at"]) == ("expired", "0.50", None)
    assert (await spending.ask("POST", f"{path}/extend", {}))[0] == 409
    assert (await spending.ask("POST", f"{path}/{verb}", body))[0] == 200
    assert await spending.balance() == (charged, 0)


# -- extending --------------------------------------------------------------------------------------------------------------------


async def test_a_hold_is_extended_in_time_and_in_amount_once(spending: Spending, clock: Clock) -> None:
    path = await held(spending)
    clock.now_ms += 60_000
    status, shown = await spending.ask("POST", f"{path}/extend", {"ttl": "10m"})
    assert (status, shown["expires_at"], shown["held_usd"]) == (200, "2026-11-30T12:11:00.000Z", "0.50")
    for _ in range(2):
        _, shown = await spending.ask("POST", f"{path}/extend", {"estimate_usd": "0.80"})
        assert (shown["held_usd"], shown["remaining_usd"]) == ("0.80", "0.20")
    assert await spending.balance() == (0, 80 * USD // 100)


async def test_credits_are_held_extended_and_charged(spending: Spending) -> None:
    spending.under(budget("credits", "run", limit=10, unit=Unit.CREDITS))
    path = await held(spending, credits=4, risk_points=7)
    _, shown = await spending.ask("POST", f"{path}/extend", {"credits": 9})
    assert (shown["held_credits"], shown["held_risk_points"], shown["charged_usd"]) == (9, 7, None)
    status, refused = await spending.ask("POST", f"{path}/extend", {"credits": 11})
    assert (status, refused["code"], refused["budget"]["estimate"]) == (402, "run_ceiling_reached", 2)
    assert "has no room to hold 2 credits more: 1 credit of 10 credits are left" in refused["detail"]
    _, record = await spending.ask("GET", path.replace("reservations/rsv_", "decisions/bdg_"))
    assert (record["held_credits"], record["held_risk_points"]) == (9, 7)
    status, shown = await spending.ask("POST", f"{path}/commit", {"credits": 12})
    assert (status, shown["charged_usd"], shown["charged_credits"], shown["charged_risk_points"]) == (200, "0.50", 12, 7)
    _, again = await spending.ask("POST", f"{path}/commit", {"credits": 1})
    assert "at $0.50, 0 tokens, 1 call, 12 credits and 7 risk points" in again["detail"]


async def test_an_extension_without_room_is_refused_and_leaves_the_hold(spending: Spending) -> None:
    path = await held(spending)
    status, shown = await spending.ask("POST", f"{path}/extend", {"estimate_usd": "1.20", "ttl": "20m"})
    assert (status, shown["code"], shown["error"]["code"]) == (402, "run_ceiling_reached", "budget_exceeded")
    assert (shown["budget"]["estimate_usd"], shown["budget"]["remaining_usd"]) == ("0.70", "0.50")
    _, shown = await spending.ask("GET", path)
    assert (shown["held_usd"], shown["expires_at"]) == ("0.50", "2026-11-30T12:05:00.000Z")


# -- whose ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run_stopped", "scope_frozen"])
async def test_where_a_live_call_would_be_ended_a_hold_is_not_extended_but_can_be_committed(
    spending: Spending, what: str
) -> None:
    path = await held(spending)
    if what == "run_stopped":
        await spending.ledger.stop("default", "r1", "admin", "enough")
    else:
        await spending.ledger.freeze("default", (("run", "r1"),), "admin", "a look")
    for body in ({"ttl": "10m"}, {"estimate_usd": "0.80"}):
        status, refused = await spending.ask("POST", f"{path}/extend", body)
        assert (status, refused["code"]) == (402, what)
    assert await spending.balance() == (0, USD // 2)
    assert (await spending.ask("POST", f"{path}/commit", {"cost_usd": "0.30"}))[0] == 200
    assert (await spending.ask("POST", f"{path}/extend", {"ttl": "10m"}))[0] == 409


@pytest.mark.parametrize(("method", "verb"), [("GET", ""), ("POST", "/commit"), ("POST", "/release"), ("POST", "/extend")])
async def test_another_keys_reservation_and_one_that_never_was_are_not_found(spending: Spending, method: str, verb: str) -> None:
    path = await held(spending)
    body = {"cost_usd": "0.1"} if verb == "/commit" else None
    for target in (path, "/budget/reservations/rsv_ext_" + "0" * 32, "/budget/reservations/x"):
        status, shown = await spending.ask(method, target + verb, body, "b")
        assert (status, shown["code"]) == (404, "not_found")
    assert (await spending.ask(method, path + verb, body, f"Bearer {ADMIN_TOKEN}"))[0] == 401
    assert await spending.balance() == (0, USD // 2)


async def test_what_is_held_for_a_proxied_call_or_was_debited_is_no_reservation(spending: Spending, clock: Clock) -> None:
    await spending.ask("POST", "/budget/events", {"run_id": "r1", "cost_usd": "0.12", "idempotency_key": "k1"})
    run = await spending.ledger.run("default", "r1")
    assert run is not None
    asked = decision("bdg_1", caller(key=run.owner), usd=USD // 10, at_ms=clock.now_ms)
    assert isinstance(await spending.ledger.reserve(asked, 600_000), Hold)
    _, event = await spending.ask("POST", "/budget/events", {"run_id": "r1", "cost_usd": "0.12", "idempotency_key": "k1"})
    for hold in ("rsv_1", event["decision_id"].replace("bdg_", "rsv_")):
        for verb, body in (("release", None), ("commit", {"cost_usd": "0"}), ("extend", {})):
            assert (await spending.ask("POST", f"/budget/reservations/{hold}/{verb}", body))[0] == 404
    assert await spending.balance() == (12 * USD // 100, USD // 10)


# -- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", ["0s", "25h", "5", 300, None, "soon"])
async def test_a_ttl_that_is_none_is_refused(spending: Spending, ttl: object) -> None:
    status, shown = await reserve(spending, {**RENDER, "ttl": ttl})
    assert (status, shown["error"]["param"]) == (400, "ttl")
    path = await held(spending)
    assert (await spending.ask("POST", f"{path}/extend", {"ttl": ttl}))[0] == 400


@pytest.mark.parametrize("left_out", ["estimate_usd", "idempotency_key"])
async def test_what_is_missing_is_named(spending: Spending, left_out: str) -> None:
    status, shown = await reserve(spending, {name: value for name, value in RENDER.items() if name != left_out})
    assert (status, shown["code"]) == (400, "bad_request")


async def test_a_hold_of_calls_alone_counts_no_money(spending: Spending) -> None:
    spending.under(budget("steps", "run", limit=2, unit=Unit.CALLS))
    assert (await reserve(spending, {"run_id": "r1", "calls": 2, "idempotency_key": "k1"}))[0] == 201
    assert (await reserve(spending, {"run_id": "r1", "calls": 1, "idempotency_key": "k2"}))[1]["budget"]["name"] == "steps"
    (record,) = await spending.ledger.holds("default", "r1", 10)
    assert record.held == Amounts(0, 0, 2)


async def test_each_end_of_a_hold_is_a_receipt_once(spending: Spending) -> None:
    committed, released = await held(spending), await held(spending, idempotency_key="k2", estimate_usd="0.10")
    for _ in range(2):
        await spending.ask("POST", f"{committed}/commit", {"cost_usd": "0.60"})
        await spending.ask("POST", f"{released}/release")
    told = [(receipt.ending.value, receipt.held, receipt.charged) for receipt in spending.receipts]
    assert [(ending, of and of.usd, charged and charged.usd) for ending, of, charged in told] == [
        ("completed", USD // 2, 6 * USD // 10),
        ("completed", USD // 10, None),
    ]
