"""What a caller sees of its own calls, runs and spend; what it may change; and that another key's are as if they were not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.asks import Asks
from gateway.core.scopes import Amounts
from gateway.core.values import Ending, Hold, Usage, UsageSource
from gateway.identity import Principal
from gateway.ledger.archive import Archive
from gateway.ledger.contract import Barred, Barrier, Keep, LedgerLost, Refusal, RunView, Settlement
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.server.budget_api import BudgetApi
from tests.support.clock import Clock
from tests.support.pages import Asking, principal_of
from tests.support.records import USD, caller, decision

LEASE_MS = 600_000
DAY_MS = 86_400_000
CEILING = 5 * USD


class Stopped:
    """The flow's part: which runs it was told to end."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, str]] = []

    def __call__(self, tenant: str, run: str) -> None:
        self.runs.append((tenant, run))


@pytest.fixture
def stopped() -> Stopped:
    return Stopped()


@pytest.fixture
def ask(ledger: SqliteLedger, clock: Clock, stopped: Stopped) -> Asking:
    def run_ceiling(principal: Principal, run: str) -> int | None:
        return CEILING

    return Asking(
        BudgetApi(ledger, principal_of, lambda: False, run_ceiling, stopped, clock, Asks(ledger, lambda *_: None)).routes()
    )


async def call(ledger: SqliteLedger, clock: Clock, number: int, key: str = "a", run: str = "r1", **more: Any) -> Hold:
    """Reserves $0.10 under the $5 ceiling."""
    dimensions = more.pop("dimensions", {})
    who = caller(run, f"key_{key}", **dimensions)
    reserved = await ledger.reserve(decision(f"bdg_{number}", who, limit=CEILING, at_ms=clock.now_ms, **more), LEASE_MS)
    assert isinstance(reserved, Hold), reserved
    return reserved


async def settle(ledger: SqliteLedger, held: Hold, usd: int) -> None:
    usage = Usage(UsageSource.PROVIDER, input_tokens=600, cached_tokens=200, output_tokens=40)
    settled = await ledger.commit("default", held.id, Settlement(Amounts(usd, usage.total_tokens), usage, Ending.COMPLETED))
    assert settled is not None
    assert settled.changed


# -- decisions ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("its_id", ["bdg_1", "rsv_1"])
async def test_a_decision_is_found_by_its_own_id_and_by_its_holds(
    ask: Asking, ledger: SqliteLedger, clock: Clock, its_id: str
) -> None:
    held = await call(ledger, clock, 1, dimensions={"team": "research"})
    await settle(ledger, held, 3_141_592)
    status, shown = await ask("GET", f"/budget/decisions/{its_id}")
    assert status == 200
    inputs = shown.pop("inputs")
    assert shown == {
        "decision_id": "bdg_1",
        "reservation_id": "rsv_1",
        "run_id": "r1",
        "key": "key_a",
        "at": "2026-11-30T12:00:00.000Z",
        "outcome": "allow",
        "state": "committed",
        "requested_model": "gpt-5-mini",
        "selected_model": "gpt-5-mini",
        "provider": "openai",
        "held_usd": "0.10",
        "held_tokens": 1924,
        "charged_usd": "0.03141592",
        "charged_tokens": 840,
        "usage": {
            "source": "provider",
            "input_tokens": 600,
            "cached_tokens": 200,
            "cache_write_tokens": 0,
            "output_tokens": 40,
            "others": {},
        },
        "ending": "completed",
        "expires_at": None,
        "dimensions": {"team": "research"},
        "lines": [{"account": "run-ceiling|run=r1|lifetime|usd", "unit": "usd", "held": "0.10"}],
    }
    assert inputs["price_table_version"] == "2026-11-01+abc"
    assert inputs["ladder"][0]["cost_max_usd"] == "0.10"
    assert inputs["accounts"][0]["limit"] == "5.00"


async def test_a_live_hold_shows_what_is_held_and_nothing_charged(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1)
    _, shown = await ask("GET", "/budget/decisions/bdg_1")
    assert (shown["state"], shown["held_usd"], shown["charged_usd"], shown["usage"]) == ("live", "0.10", None, None)


async def test_a_refused_call_shows_why_it_was_refused_and_holds_nothing(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    refused = await ledger.reserve(decision("bdg_1", usd=6 * USD, limit=CEILING, at_ms=clock.now_ms), LEASE_MS)
    assert isinstance(refused, Refusal)
    _, shown = await ask("GET", "/budget/decisions/bdg_1")
    assert (shown["outcome"], shown["state"], shown["reservation_id"], shown["held_usd"]) == ("block", "refused", None, None)
    assert shown["inputs"]["blocking"][0]["limit"] == "5.00"


@pytest.mark.parametrize("its_id", ["bdg_2", "rsv_2", "1", "bdg_", "bdg_%2F", "bdg_1' OR 1=1"])
async def test_an_unknown_decision_is_not_found(ask: Asking, ledger: SqliteLedger, clock: Clock, its_id: str) -> None:
    await call(ledger, clock, 1)
    status, shown = await ask("GET", f"/budget/decisions/{its_id}")
    assert (status, shown["code"]) == (404, "not_found")


async def test_a_decision_that_the_ledger_has_retired_is_found_in_the_archive(
    ledger: SqliteLedger, clock: Clock, tmp_path: Path
) -> None:
    archive = Archive(tmp_path / "records.db")
    api = BudgetApi(
        ledger, principal_of, lambda: False, lambda *_: None, lambda *_: None, clock, Asks(ledger, lambda *_: None), archive.find
    )
    ask = Asking(api.routes())
    await settle(ledger, await call(ledger, clock, 1), 3_141_592)
    before = await ask("GET", "/budget/decisions/bdg_1")
    keep = Keep(0, 0)
    aged = await ledger.aged(keep, 10)
    await archive.keep(aged)
    await ledger.retire("default", [each.decision_id for each in aged], keep)
    assert await ledger.record("default", "bdg_1") is None
    assert await ask("GET", "/budget/decisions/bdg_1") == before
    assert before[0] == 200
    assert (await ask("GET", "/budget/decisions/bdg_1", as_="b"))[0] == 404
    assert (await ask("GET", "/budget/decisions/bdg_2"))[0] == 404
    await archive.close()


async def test_another_keys_decision_answers_exactly_as_one_that_never_was(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    await call(ledger, clock, 1)
    other = await ask("GET", "/budget/decisions/bdg_1", as_="b")
    never = await ask("GET", "/budget/decisions/bdg_9", as_="b")
    assert other == never
    assert other[0] == 404
    assert (await ask("GET", "/budget/decisions/bdg_1", as_="admin"))[0] == 200


# -- runs -----------------------------------------------------------------------------------------------------------------------


async def test_a_run_shows_its_balance_in_decimal_strings_and_every_account(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    await settle(ledger, await call(ledger, clock, 1), USD // 4)
    await call(ledger, clock, 2)
    status, shown = await ask("GET", "/budget/runs/r1")
    assert status == 200
    assert shown == {
        "run_id": "r1",
        "key": "key_a",
        "state": "active",
        "paused_by": None,
        "parent": None,
        "ancestry": [],
        "limit_usd": "5.00",
        "committed_usd": "0.25",
        "reserved_usd": "0.10",
        "remaining_usd": "4.65",
        "unconfirmed_usd": "0.00",
        "calls": 2,
        "first_at": "2026-11-30T12:00:00.000Z",
        "last_at": "2026-11-30T12:00:00.000Z",
        "accounts": [
            {
                "account": "run-ceiling|run=r1|lifetime|usd",
                "name": "run-ceiling",
                "scope": "run",
                "scope_values": {"run": "r1"},
                "window": "lifetime",
                "timezone": None,
                "window_starts": None,
                "window_ends": None,
                "unit": "usd",
                "limit": "5.00",
                "committed": "0.25",
                "reserved": "0.10",
                "remaining": "4.65",
                "unconfirmed": "0.00",
                "mode": "hard_gate",
            }
        ],
        "ask": None,
    }


async def test_a_hold_whose_lease_ran_out_shows_as_unconfirmed(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1)
    clock.now_ms += LEASE_MS + 1
    assert len(await ledger.expire()) == 1
    _, shown = await ask("GET", "/budget/runs/r1")
    assert (shown["committed_usd"], shown["reserved_usd"], shown["unconfirmed_usd"]) == ("0.10", "0.00", "0.10")


async def test_a_caller_lists_its_own_runs_page_by_page_newest_first(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    for number, (key, run) in enumerate([("a", "r1"), ("b", "hers"), ("a", "r2"), ("a", "r3")]):
        clock.now_ms += 1_000
        await call(ledger, clock, number, key, run)
    _, first = await ask("GET", "/budget/runs?limit=2")
    assert [run["run_id"] for run in first["runs"]] == ["r3", "r2"]
    assert first["runs"][0]["limit_usd"] == "5.00"
    assert first["next"] == "r2"
    _, second = await ask("GET", f"/budget/runs?limit=2&before={first['next']}")
    assert [run["run_id"] for run in second["runs"]] == ["r1"]
    assert second["next"] is None


async def test_the_admin_lists_everyones_runs(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1, "a", "r1")
    await call(ledger, clock, 2, "b", "r2")
    _, shown = await ask("GET", "/budget/runs", as_="admin")
    assert {(run["run_id"], run["key"]) for run in shown["runs"]} == {("r1", "key_a"), ("r2", "key_b")}


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=", "limit=²", "limit=1&limit=2", "befor=r1"])
async def test_a_listing_that_is_asked_for_wrongly_is_refused(ask: Asking, query: str) -> None:
    status, shown = await ask("GET", f"/budget/runs?{query}")
    assert (status, shown["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/budget/runs/r1", None), ("PUT", "/budget/runs/r1", {"limit": "$1"}), ("POST", "/budget/runs/r1/stop", None)],
)
async def test_another_keys_run_can_be_neither_seen_nor_limited_nor_stopped(
    ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped, method: str, path: str, body: object
) -> None:
    await call(ledger, clock, 1)
    status, shown = await ask(method, path, body, as_="b")
    assert (status, shown["code"]) == (404, "not_found")
    _, run = await ask("GET", "/budget/runs/r1")
    assert (run["state"], run["limit_usd"]) == ("active", "5.00")
    assert stopped.runs == []


@pytest.mark.parametrize("run", ["a%2Fb", "a%20b", "x" * 129, "%ff"])
async def test_a_run_id_that_is_none_is_refused(ask: Asking, run: str) -> None:
    status, shown = await ask("GET", f"/budget/runs/{run}")
    assert (status, shown["code"]) == (400, "run_id_invalid")


async def test_without_a_key_nothing_is_told(ask: Asking) -> None:
    for path in ("/budget/decisions/bdg_1", "/budget/runs", "/budget/runs/r1", "/budget/spend"):
        assert (await ask("GET", path, as_=None))[0] == 401


async def test_while_the_ledger_does_not_serve_every_page_says_so(ask: Asking, ledger: SqliteLedger) -> None:
    await ledger.close()
    for method, path in (("GET", "/budget/runs"), ("POST", "/budget/runs/r1/stop"), ("GET", "/budget/spend")):
        status, shown = await ask(method, path)
        assert (status, shown["code"]) == (503, "ledger_unavailable")


async def test_a_ledger_that_lost_something_is_told_apart(
    ask: Asking, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(tenant: str, run: str) -> None:
        raise LedgerLost("sequence 7 is behind 9")

    monkeypatch.setattr(ledger, "run", lost)
    status, shown = await ask("GET", "/budget/runs/r1")
    assert (status, shown["code"]) == (503, "ledger_lost")


# -- limits ---------------------------------------------------------------------------------------------------------------------


async def test_a_caller_tightens_its_run_and_the_next_call_meets_the_limit(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    await call(ledger, clock, 1)
    status, shown = await ask("PUT", "/budget/runs/r1", {"limit": "$0.15"})
    assert (status, shown["limit_usd"], shown["remaining_usd"]) == (200, "0.15", "0.05")
    refused = await ledger.reserve(decision("bdg_2", limit=CEILING, at_ms=clock.now_ms), LEASE_MS)
    assert isinstance(refused, Refusal)


async def test_a_limit_set_before_the_first_call_shows_and_holds(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    status, shown = await ask("PUT", "/budget/runs/new", {"limit": "2.00"})
    assert status == 200
    assert (shown["limit_usd"], shown["remaining_usd"], shown["calls"], shown["key"]) == ("2.00", "2.00", 0, "key_a")
    assert (await ask("GET", "/budget/runs/new"))[1] == shown
    assert (await ask("GET", "/budget/runs/new", as_="b"))[0] == 404
    refused = await ledger.reserve(decision("bdg_1", caller("new"), usd=3 * USD, limit=CEILING, at_ms=clock.now_ms), LEASE_MS)
    assert isinstance(refused, Refusal)


@pytest.mark.parametrize("steps", [["$5.01"], ["$2.00", "$2.00000001"], ["$1", "$5"]])
async def test_a_caller_cannot_loosen(ask: Asking, steps: list[str]) -> None:
    *before, last = steps
    for limit in before:
        assert (await ask("PUT", "/budget/runs/r1", {"limit": limit}))[0] == 200
    status, shown = await ask("PUT", "/budget/runs/r1", {"limit": last})
    assert (status, shown["code"]) == (403, "admin_required")
    assert "admin token" in shown["error"]["message"]


async def test_the_same_limit_again_is_no_loosening(ask: Asking) -> None:
    assert (await ask("PUT", "/budget/runs/r1", {"limit": "$2"}))[0] == 200
    assert (await ask("PUT", "/budget/runs/r1", {"limit": "$2"}))[0] == 200


async def test_the_admin_raises_above_the_policy_and_the_caller_may_tighten_below_that(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    await call(ledger, clock, 1)
    status, shown = await ask("PUT", "/budget/runs/r1", {"limit": "$20"}, as_="admin")
    assert (status, shown["limit_usd"], shown["key"]) == (200, "20.00", "key_a")
    await call(ledger, clock, 2, usd=8 * USD)
    status, shown = await ask("PUT", "/budget/runs/r1", {"limit": "$10"})
    assert (status, shown["limit_usd"]) == (200, "10.00")
    assert (await ask("PUT", "/budget/runs/r1", {"limit": "$11"}))[0] == 403


@pytest.mark.parametrize(("first", "limit"), [("admin", "20.00"), ("anonymous", "1.00")])
async def test_a_run_that_is_limited_without_a_key_belongs_to_who_uses_it_first(
    ask: Asking, ledger: SqliteLedger, clock: Clock, first: str, limit: str
) -> None:
    assert (await ask("PUT", "/budget/runs/new", {"limit": f"${limit}"}, as_=first))[0] == 200
    assert (await ask("GET", "/budget/runs/new"))[0] == 404
    await call(ledger, clock, 1, "a", "new", usd=USD // 2)
    _, shown = await ask("GET", "/budget/runs/new")
    assert (shown["key"], shown["limit_usd"]) == ("key_a", limit)
    assert (await ask("PUT", "/budget/runs/new", {"limit": "$0.60"}, as_="anonymous"))[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"$2"',
        {},
        {"limit": 2},
        {"limit": None},
        {"limit": "-1"},
        {"limit": "$2.000000001"},
        {"limit": "$50000001"},
        {"limit": "2e3"},
        {"limit": "٢"},
        {"limit": "$2", "raise": True},
        {"Limit": "$2"},
        b"[" * 20_000,
    ],
)
async def test_a_limit_that_cannot_be_read_is_refused_and_changes_nothing(ask: Asking, body: object) -> None:
    status, shown = await ask("PUT", "/budget/runs/r1", body)
    assert status == 400
    assert shown["error"]["message"]
    assert (await ask("GET", "/budget/runs/r1"))[0] == 404


# -- stop -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"reason": "it loops"}])
async def test_a_stopped_run_takes_no_calls_and_the_flow_is_told(
    ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped, body: object
) -> None:
    await call(ledger, clock, 1)
    status, shown = await ask("POST", "/budget/runs/r1/stop", body)
    assert (status, shown["state"]) == (200, "stopped")
    assert stopped.runs == [("default", "r1")]
    assert await barrier(ledger, clock) is Barrier.STOPPED


async def test_the_admin_stops_anyones_run(ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped) -> None:
    await call(ledger, clock, 1)
    assert (await ask("POST", "/budget/runs/r1/stop", as_="admin"))[0] == 200
    assert stopped.runs == [("default", "r1")]


@pytest.mark.parametrize("body", [{"reason": 5}, {"reason": "x" * 501}, {"why": "x"}, b"nope"])
async def test_a_stop_with_a_body_that_cannot_be_read_stops_nothing(
    ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped, body: object
) -> None:
    await call(ledger, clock, 1)
    assert (await ask("POST", "/budget/runs/r1/stop", body))[0] == 400
    assert stopped.runs == []


async def test_a_run_that_never_was_cannot_be_stopped(ask: Asking) -> None:
    assert (await ask("POST", "/budget/runs/ghost/stop", as_="admin"))[0] == 404


# -- pause ----------------------------------------------------------------------------------------------------------------------


async def barrier(ledger: SqliteLedger, clock: Clock, number: int = 2) -> Barrier | None:
    """What keeps r1 from a call; None: it was let through."""
    answer = await ledger.reserve(decision(f"bdg_{number}", limit=CEILING, at_ms=clock.now_ms), LEASE_MS)
    assert isinstance(answer, Barred | Hold)
    return answer.barrier if isinstance(answer, Barred) else None


async def test_a_paused_run_takes_no_calls_until_it_is_resumed_and_its_live_ones_go_on(
    ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped
) -> None:
    held = await call(ledger, clock, 1)
    status, shown = await ask("POST", "/budget/runs/r1/pause", {"reason": "a look"})
    assert (status, shown["state"], shown["paused_by"]) == (200, "paused", "key_a")
    assert await barrier(ledger, clock) is Barrier.PAUSED
    await settle(ledger, held, USD // 20)
    assert stopped.runs == []
    status, shown = await ask("POST", "/budget/runs/r1/resume")
    assert (status, shown["state"], shown["paused_by"]) == (200, "active", None)
    assert await barrier(ledger, clock, 3) is None


async def test_an_owner_cannot_end_the_admins_pause_nor_make_it_its_own(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1)
    assert (await ask("POST", "/budget/runs/r1/pause", as_="admin"))[1]["paused_by"] == "admin"
    status, shown = await ask("POST", "/budget/runs/r1/pause")
    assert (status, shown["paused_by"]) == (200, "admin")
    status, shown = await ask("POST", "/budget/runs/r1/resume")
    assert (status, shown["code"]) == (403, "admin_required")
    assert await barrier(ledger, clock) is Barrier.PAUSED
    assert (await ask("POST", "/budget/runs/r1/resume", as_="admin"))[1]["state"] == "active"


async def test_an_owner_that_keeps_resuming_does_not_end_a_pause_that_the_admin_sets_meanwhile(
    ask: Asking, ledger: SqliteLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await call(ledger, clock, 1)
    look = ledger.run

    async def and_then_the_admin_pauses(tenant: str, run: str) -> RunView | None:
        view = await look(tenant, run)
        monkeypatch.setattr(ledger, "run", look)
        await ledger.pause(tenant, run, "admin", "a look")
        return view

    monkeypatch.setattr(ledger, "run", and_then_the_admin_pauses)
    assert (await ask("POST", "/budget/runs/r1/resume"))[0] == 200
    assert await barrier(ledger, clock) is Barrier.PAUSED


async def test_the_admin_takes_over_an_owners_pause(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1)
    await ask("POST", "/budget/runs/r1/pause")
    assert (await ask("POST", "/budget/runs/r1/pause", as_="admin"))[1]["paused_by"] == "admin"
    assert (await ask("POST", "/budget/runs/r1/resume"))[0] == 403


async def test_a_run_that_a_budget_paused_waits_for_the_admin_or_for_a_raise(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    async def exhausted(number: int) -> None:
        asked = decision(f"bdg_{number}", usd=6 * USD, limit=CEILING, at_ms=clock.now_ms)
        (plan,) = asked.ladder
        charges = tuple(replace(charge, ceiling=replace(charge.ceiling, pause=True)) for charge in plan.charges)
        refused = await ledger.reserve(replace(asked, ladder=(replace(plan, charges=charges),)), LEASE_MS)
        assert isinstance(refused, Refusal)
        assert refused.paused

    await exhausted(1)
    shown = (await ask("GET", "/budget/runs/r1"))[1]
    assert (shown["state"], shown["paused_by"]) == ("paused", "budget")
    assert (await ask("POST", "/budget/runs/r1/resume"))[0] == 403
    assert (await ask("POST", "/budget/runs/r1/resume", as_="admin"))[1]["state"] == "active"
    await exhausted(2)
    assert (await ask("PUT", "/budget/runs/r1", {"limit": "$10"}, as_="admin"))[1]["state"] == "active"


async def test_a_stopped_run_cannot_be_resumed(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await call(ledger, clock, 1)
    await ask("POST", "/budget/runs/r1/stop")
    for verb in ("pause", "resume"):
        assert (await ask("POST", f"/budget/runs/r1/{verb}", as_="admin"))[1]["state"] == "stopped"


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_another_keys_run_and_one_that_never_was_can_be_neither_paused_nor_resumed(
    ask: Asking, ledger: SqliteLedger, clock: Clock, verb: str
) -> None:
    await call(ledger, clock, 1)
    assert (await ask("POST", f"/budget/runs/r1/{verb}", as_="b"))[0] == 404
    assert (await ask("POST", f"/budget/runs/ghost/{verb}", as_="admin"))[0] == 404
    assert (await ask("POST", f"/budget/runs/r1/{verb}", {"why": "x"}))[0] == 400
    assert await barrier(ledger, clock) is None


async def test_a_child_shows_where_it_comes_from(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    child = decision("bdg_1", replace(caller("r2"), parent="r1", ancestry=("r1",)), at_ms=clock.now_ms)
    assert isinstance(await ledger.reserve(child, LEASE_MS), Hold)
    shown = (await ask("GET", "/budget/runs/r2"))[1]
    assert (shown["parent"], shown["ancestry"]) == ("r1", ["r1"])
    assert (await ask("GET", "/budget/runs/r1"))[1]["parent"] is None


# -- spend ----------------------------------------------------------------------------------------------------------------------


async def spent(ledger: SqliteLedger, clock: Clock) -> None:
    """Two days, two keys, two teams, two models."""
    rows = [
        (1, "a", "r1", "research", "gpt-5", USD // 20),
        (2, "a", "r2", "research", "gpt-5-mini", USD // 50),
        (3, "a", "r2", "sales", "gpt-5-mini", USD // 100),
        (4, "b", "r3", "sales", "gpt-5", USD // 10),
    ]
    for number, key, run, team, model, usd in rows:
        if number == 3:
            clock.now_ms += DAY_MS
        await settle(ledger, await call(ledger, clock, number, key, run, dimensions={"team": team}, model=model), usd)


async def test_spend_is_grouped_by_any_dimension_and_model_dearest_first(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await spent(ledger, clock)
    status, shown = await ask("GET", "/budget/spend?by=team,model")
    assert status == 200
    assert shown["rows"] == [
        {"team": "research", "model": "gpt-5", "usd": "0.05", "tokens": 840, "calls": 1},
        {"team": "research", "model": "gpt-5-mini", "usd": "0.02", "tokens": 840, "calls": 1},
        {"team": "sales", "model": "gpt-5-mini", "usd": "0.01", "tokens": 840, "calls": 1},
    ]
    assert shown["total"] == {"usd": "0.08", "tokens": 2520, "calls": 3}
    assert (shown["from"], shown["to"], shown["rows_left_out"]) == ("2026-11-02", "2026-12-01", 0)


async def test_spend_may_be_of_one_run(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    for number, run in enumerate(("r1", "r2", "r1")):
        await settle(ledger, await call(ledger, clock, number, run=run), 2 * USD // 100)
    status, shown = await ask("GET", "/budget/spend?by=model,day&run=r1")
    assert (status, shown["by"], shown["total"]["usd"], shown["total"]["calls"]) == (200, ["model", "day"], "0.04", 2)
    [row] = shown["rows"]
    assert row.keys() == {"model", "day", "usd", "tokens", "calls"}
    assert (await ask("GET", "/budget/spend?run=r3"))[1]["rows"] == []
    assert (await ask("GET", "/budget/spend?run=r1", as_="b"))[1]["rows"] == []
    assert (await ask("GET", "/budget/spend?run=a/b"))[1]["code"] == "run_id_invalid"


async def test_the_admin_sees_the_tenants_spend_by_key(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await spent(ledger, clock)
    _, shown = await ask("GET", "/budget/spend?by=key", as_="admin")
    assert [(row["key"], row["usd"]) for row in shown["rows"]] == [("key_b", "0.10"), ("key_a", "0.08")]


@pytest.mark.parametrize(
    ("query", "usd"),
    [
        ("from=2026-11-30&to=2026-11-30", "0.07"),
        ("from=2026-12-01", "0.01"),
        ("from=2026-11-30&to=2026-12-01", "0.08"),
        ("from=2026-11-30T00:00:00Z&to=2026-12-01T00:00:00Z", "0.07"),
        ("from=2026-12-01T01:00:00%2B02:00&to=2026-12-01", "0.08"),  # 2026-11-30T23:00Z
        ("from=2026-12-01T01:00:00+02:00&to=2026-12-01", "0.08"),  # "+" unescaped
        ("from=2026-01-01&to=2026-01-31", "0.00"),
    ],
)
async def test_spend_counts_the_utc_days_that_were_named(
    ask: Asking, ledger: SqliteLedger, clock: Clock, query: str, usd: str
) -> None:
    await spent(ledger, clock)
    status, shown = await ask("GET", f"/budget/spend?by=day&{query}")
    assert (status, shown["total"]["usd"]) == (200, usd)


async def test_a_dimension_that_no_call_had_is_one_group(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await spent(ledger, clock)
    _, shown = await ask("GET", "/budget/spend?by=planet")
    assert [row["planet"] for row in shown["rows"]] == ["-"]


async def test_rows_beyond_the_limit_are_counted_and_stay_in_the_total(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await spent(ledger, clock)
    _, shown = await ask("GET", "/budget/spend?by=team,model&limit=1")
    assert (len(shown["rows"]), shown["rows_left_out"], shown["total"]["usd"]) == (1, 2, "0.08")


@pytest.mark.parametrize(
    "query",
    [
        *("by=", "by=team,", "by=team,team", "by=Team", "by=a%20b", "by=usd", "by=a,b,c,d,e,f,g", "by=x;drop"),
        *("from=yesterday", "from=2026-11-31", "from=2026-11-30T12:00:00", "to=", "from=2026-12-05&to=2026-12-01"),
        *("form=2026-11-30", "from=2026-11-30&from=2026-11-29", "from=0001-01-01T00:00:00%2B10:00"),
    ],
)
async def test_a_spend_question_that_cannot_be_read_is_refused(ask: Asking, query: str) -> None:
    status, shown = await ask("GET", f"/budget/spend?{query}")
    assert (status, shown["code"]) == (400, "bad_request")


# -- tenants --------------------------------------------------------------------------------------------------------------------


async def test_the_admin_sees_and_changes_the_runs_of_the_tenant_that_it_names(
    ask: Asking, ledger: SqliteLedger, clock: Clock, stopped: Stopped
) -> None:
    theirs = decision("bdg_1", replace(caller("r1"), tenant="acme"), limit=CEILING, at_ms=clock.now_ms)
    assert isinstance(await ledger.reserve(theirs, LEASE_MS), Hold)
    _, shown = await ask("PUT", "/budget/runs/r1?tenant=acme", {"limit": "$7"}, as_="admin")
    assert shown["limit_usd"] == "7.00"
    assert (await ask("POST", "/budget/runs/r1/pause?tenant=acme", as_="admin"))[1]["state"] == "paused"
    assert (await ask("POST", "/budget/runs/r1/resume?tenant=acme", as_="admin"))[1]["state"] == "active"
    assert (await ask("POST", "/budget/runs/r1/stop?tenant=acme", as_="admin"))[1]["state"] == "stopped"
    assert stopped.runs == [("acme", "r1")]
    assert (await ask("GET", "/budget/runs/r1?tenant=acme", as_="admin"))[1]["state"] == "stopped"
    assert (await ask("GET", "/budget/decisions/bdg_1?tenant=acme", as_="admin"))[0] == 200
    assert [run["run_id"] for run in (await ask("GET", "/budget/runs?tenant=acme", as_="admin"))[1]["runs"]] == ["r1"]
    assert (await ask("GET", "/budget/runs", as_="admin"))[1]["runs"] == []
    assert (await ask("GET", "/budget/spend?tenant=acme", as_="admin"))[0] == 200


@pytest.mark.parametrize("tenant", ["acme", "default"])
async def test_a_caller_names_no_tenant(ask: Asking, ledger: SqliteLedger, clock: Clock, tenant: str) -> None:
    await call(ledger, clock, 1)
    for method, path in (
        ("GET", "/budget/decisions/bdg_1"),
        ("GET", "/budget/runs"),
        ("GET", "/budget/runs/r1"),
        ("GET", "/budget/spend"),
        ("POST", "/budget/runs/r1/stop"),
        ("POST", "/budget/runs/r1/pause"),
        ("POST", "/budget/runs/r1/resume"),
        ("PUT", "/budget/runs/r1"),
    ):
        status, shown = await ask(method, f"{path}?tenant={tenant}", {"limit": "$1"} if method == "PUT" else None)
        assert (status, shown["code"]) == (400, "bad_request"), path
        assert "tenant" in shown["detail"]
    assert (await ask("GET", "/budget/runs/r1"))[1]["state"] == "active"
