"""How records read as JSON, where the budget API's own tests do not reach: other windows, other units, shared and advisory accounts."""

from dataclasses import replace
from zoneinfo import ZoneInfo

from gateway.core.scopes import Account, Unit
from gateway.core.values import Balance, Mode
from gateway.core.windows import LIFETIME, WindowKind, rolling, window_at
from gateway.ledger.contract import RunState, RunView
from gateway.server.views import account_json, ceiling_of, inputs_json, run_json, tightest_usd
from tests.support.clock import NOW_MS
from tests.support.records import USD, run_account

VIEW = RunView("default", "r1", "key_a", RunState.ACTIVE, None, False, USD, 0, 0, 1, NOW_MS, NOW_MS)


def test_an_account_of_a_day_says_when_its_day_starts_and_ends() -> None:
    day = window_at(WindowKind.DAY, ZoneInfo("Europe/Berlin"), NOW_MS)
    account = Account("default", "agent-day", (("team", "research"), ("agent", "a1")), day, Unit.TOKENS)
    assert account_json(Balance(account, 200_000, 1_500, 500, mode=Mode.SOFT_GATE)) == {
        "account": "agent-day|team=research,agent=a1|day@Europe/Berlin:1795993200000|tokens",
        "name": "agent-day",
        "scope": "team+agent",
        "scope_values": {"team": "research", "agent": "a1"},
        "window": "day",
        "timezone": "Europe/Berlin",
        "window_starts": "2026-11-29T23:00:00.000Z",
        "window_ends": "2026-11-30T23:00:00.000Z",
        "unit": "tokens",
        "limit": 200_000,
        "committed": 1_500,
        "reserved": 500,
        "remaining": 198_000,
        "unconfirmed": 0,
        "mode": "soft_gate",
    }


def test_a_rolling_window_is_named_as_in_the_policy_and_has_no_beginning() -> None:
    account = Account("default", "burn-rate", (("run", "r1"),), rolling(600_000), Unit.USD)
    shown = account_json(Balance(account, USD, 0, 0))
    assert (shown["window"], shown["window_starts"], shown["window_ends"]) == ("rolling 10m", None, None)


def test_the_tightest_account_is_the_one_with_the_least_left_in_usd() -> None:
    calls = Balance(Account("default", "steps", (), LIFETIME, Unit.CALLS), 1, 1, 0)
    wide, tight = Balance(run_account(), 5 * USD, USD, 0), Balance(run_account(budget="b"), 3 * USD, USD, USD // 2)
    assert tightest_usd((calls, wide, tight, Balance(run_account(budget="c"), None, USD, 0))) == "1.50"
    assert tightest_usd((calls,)) is None


def test_of_several_enforced_ceilings_the_tightest_is_the_runs() -> None:
    wide, tight = Balance(run_account(), 5 * USD, USD, 0), Balance(run_account(budget="b"), 3 * USD, USD, 0)
    assert ceiling_of(replace(VIEW, accounts=(wide, tight))) is tight


def test_an_advisory_account_is_not_the_runs_ceiling() -> None:
    advisory = Balance(run_account(), USD, USD, 0, mode=Mode.ADVISORY_ESTIMATE)
    shown = run_json(replace(VIEW, accounts=(advisory,)))
    assert (shown["limit_usd"], shown["remaining_usd"]) == (None, None)


def test_tokens_and_calls_are_not_the_runs_ceiling_in_usd() -> None:
    steps = Balance(run_account(unit=Unit.CALLS), 60, 1, 0)
    assert ceiling_of(replace(VIEW, accounts=(steps,))) is None


def test_a_call_without_a_run_id_shows_the_shared_account_it_draws_on() -> None:
    shared = Balance(run_account("untagged/key_a/2026-11-30"), 5 * USD, 4 * USD, 0)
    shown = run_json(replace(VIEW, accounts=(shared,)))
    assert (shown["limit_usd"], shown["committed_usd"], shown["remaining_usd"]) == ("5.00", "1.00", "1.00")


def test_a_limit_below_what_is_spent_leaves_nothing_and_never_less() -> None:
    shown = run_json(replace(VIEW, limit=USD // 2))
    assert (shown["limit_usd"], shown["remaining_usd"]) == ("0.50", "0.00")


def test_inputs_show_usd_as_everywhere_else_and_leave_other_numbers_alone() -> None:
    shown = inputs_json(
        {
            "input_tokens": 900,
            "run_limit": 2 * USD,
            "ladder": [{"model": "m", "cost_max_usd": USD, "cost_max_tokens": 5}],
            "accounts": [
                {"account": "b|run=r1|lifetime|usd", "held": USD, "limit": None, "share_ppm": 1_000_000},
                {"account": "b|run=r1|lifetime|calls", "held": 1, "limit": 60, "own": False},
            ],
        }
    )
    assert shown == {
        "input_tokens": 900,
        "run_limit": "2.00",
        "ladder": [{"model": "m", "cost_max_usd": "1.00", "cost_max_tokens": 5}],
        "accounts": [
            {"account": "b|run=r1|lifetime|usd", "held": "1.00", "limit": None, "share_ppm": 1_000_000},
            {"account": "b|run=r1|lifetime|calls", "held": 1, "limit": 60, "own": False},
        ],
    }
