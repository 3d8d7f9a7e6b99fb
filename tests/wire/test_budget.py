"""The `X-Budget-*` headers: what each says, and when it is there."""

from dataclasses import replace

import pytest

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Hold, Mode, Plan
from gateway.core.windows import LIFETIME
from gateway.wire.budget import decision_headers, refusal_headers, undecided_headers
from tests.support.records import USD, decision, hold, run_account

AGENT = Account("default", "agent-ceiling", (("team", "t"), ("agent", "a1")), LIFETIME, Unit.USD)
STEPS = run_account(budget="steps", unit=Unit.CALLS)


def headers(of: Hold, clamped: bool = False) -> dict[str, str]:
    pairs = decision_headers(of, of.balances, clamped)
    assert len(dict(pairs)) == len(pairs), "a header came twice"
    return dict(pairs)


def charge(account: Account, limit: int | None, mode: Mode = Mode.HARD_GATE, share_ppm: int = 1_000_000) -> Charge:
    basis = Basis.NONE if mode is Mode.ADVISORY_ESTIMATE else Basis.RESERVED_AND_COMMITTED
    return Charge(Ceiling(account, limit, mode, basis), share_ppm)


def plan(model: str, usd: int, *charges: Charge, cap: int = 1000) -> Plan:
    return Plan(model, "openai", cap, 10, Amounts(usd, 1010), charges)


def held(place: int, *ladder: Plan, committed: int = 0, limit: int | None = None) -> Hold:
    """The plan at `place`, its accounts at `committed` with this hold counted, under `limit` where given."""
    decided = replace(decision(model=ladder[0].model), ladder=ladder)
    chosen = ladder[place]
    balances = tuple(
        Balance(
            each.ceiling.account,
            each.ceiling.limit if limit is None else limit,
            committed,
            chosen.cost_max.of(each.ceiling.account.unit),
            mode=each.ceiling.mode,
        )
        for each in chosen.charges
    )
    return Hold(decided, chosen, balances, 0)


def test_every_answer_says_what_was_decided_and_under_which_id() -> None:
    assert headers(hold()) == {
        "X-Budget-Decision": "allow",
        "X-Budget-Decision-Id": "bdg_1",
        "X-Budget-Reservation-Id": "rsv_1",
        "X-Budget-Price-Table-Version": "2026-11-01+abc",
        "X-Budget-Enforcement-Mode": "hard_gate",
        "X-Budget-Remaining-USD": "4.90",
        "X-Run-Id": "r1",
    }


def test_what_remains_is_that_of_the_tightest_account_in_usd() -> None:
    balances = (
        Balance(run_account(), 5 * USD, 0, 0),
        Balance(AGENT, 2 * USD, USD // 2, USD // 4),
        Balance(STEPS, 60, 59, 1),
        Balance(run_account(budget="run-limit"), None, 0, 0),
    )
    assert dict(decision_headers(hold(), balances, False))["X-Budget-Remaining-USD"] == "1.25"


def test_where_nothing_limits_usd_nothing_is_said_to_remain() -> None:
    assert "X-Budget-Remaining-USD" not in headers(held(0, plan("big", USD, charge(STEPS, 60), charge(run_account(), None))))


def test_an_overdrawn_account_has_nothing_left() -> None:
    assert headers(held(0, plan("big", 0, charge(run_account(), USD)), committed=2 * USD))["X-Budget-Remaining-USD"] == "0.00"


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([Mode.ADVISORY_ESTIMATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY], "soft_gate"),
        ([Mode.ADVISORY_ESTIMATE], "advisory_estimate"),
        ([], "advisory_estimate"),
    ],
)
def test_the_mode_is_the_strictest_that_applies(modes: list[Mode], expected: str) -> None:
    charges = [charge(run_account(budget=f"b{place}"), USD, mode) for place, mode in enumerate(modes)]
    assert headers(held(0, plan("big", 1, *charges)))["X-Budget-Enforcement-Mode"] == expected


def test_an_account_that_nobody_set_a_limit_on_enforces_nothing() -> None:
    """The account of the run's own limit is in every plan, and hard once there is a limit."""
    only_watched = plan("big", 1, charge(AGENT, USD, Mode.ADVISORY_ESTIMATE), charge(run_account(budget="run-limit"), None))
    assert headers(held(0, only_watched))["X-Budget-Enforcement-Mode"] == "advisory_estimate"
    assert headers(held(0, only_watched, limit=USD))["X-Budget-Enforcement-Mode"] == "hard_gate"


def test_a_downgrade_names_both_models_and_what_stood_in_the_way() -> None:
    charges = (charge(run_account(), 10 * USD), charge(AGENT, USD))
    said = headers(held(1, plan("big", 2 * USD, *charges), plan("small", USD // 2, *charges)))
    assert said["X-Budget-Decision"] == "downgrade"
    assert (said["X-Budget-Requested-Model"], said["X-Budget-Selected-Model"]) == ("big", "small")
    assert said["X-Budget-Blocking-Scope"] == "team+agent"


def test_a_downgrade_to_save_the_rest_names_the_account_that_is_low() -> None:
    saving = plan("big", USD, charge(AGENT, 100 * USD), charge(run_account(), 4 * USD, share_ppm=750_000))
    cheap = plan("small", USD // 2, charge(AGENT, 100 * USD), charge(run_account(), 4 * USD))
    assert headers(held(1, saving, cheap, committed=5 * USD // 2))["X-Budget-Blocking-Scope"] == "run"


def test_a_downgrade_because_of_the_models_own_budget_says_so() -> None:
    def of(model: str) -> Charge:
        return charge(Account("default", "per-model", (("model", model),), LIFETIME, Unit.USD), USD)

    shared = charge(run_account(), 10 * USD)
    said = headers(held(1, plan("big", USD, of("big"), shared), plan("small", 1, of("small"), shared)))
    assert said["X-Budget-Blocking-Scope"] == "model"


def test_a_call_above_an_advisory_budget_is_warned_and_let_through() -> None:
    warned = replace(hold(), warnings=(Balance(AGENT, USD, 2 * USD, 0, mode=Mode.ADVISORY_ESTIMATE),))
    said = headers(warned)
    assert (said["X-Budget-Decision"], said["X-Budget-Blocking-Scope"]) == ("advisory_warn", "team+agent")


def test_a_clamped_output_is_told_whoever_lowered_it() -> None:
    ladder = (plan("big", 4, charge(run_account(), 3)), plan("big", 2, charge(run_account(), 3), cap=500))
    assert "X-Budget-Output-Clamped" not in headers(held(0, *ladder))
    assert headers(held(0, *ladder), clamped=True)["X-Budget-Output-Clamped"] == "true"
    said = headers(held(1, *ladder))
    assert (said["X-Budget-Output-Clamped"], said["X-Budget-Decision"], said["X-Budget-Blocking-Scope"]) == (
        "true",
        "allow",
        "run",
    )


def test_a_refusal_speaks_of_the_account_that_refused() -> None:
    blocking = Balance(AGENT, USD, USD, 0, mode=Mode.SOFT_GATE)
    said = dict(refusal_headers(decision(), blocking, (Balance(run_account(), 5 * USD, USD, 0), blocking)))
    assert said["X-Budget-Decision"] == "block"
    assert (said["X-Budget-Enforcement-Mode"], said["X-Budget-Blocking-Scope"]) == ("soft_gate", "team+agent")
    assert said["X-Budget-Remaining-USD"] == "0.00"
    assert "X-Budget-Reservation-Id" not in said


def test_a_stopped_run_is_refused_by_no_account() -> None:
    decided: Decision = decision()
    said = dict(refusal_headers(decided, None, ()))
    assert (said["X-Budget-Decision"], said["X-Budget-Enforcement-Mode"]) == ("block", "hard_gate")
    assert "X-Budget-Blocking-Scope" not in said
    assert "X-Budget-Remaining-USD" not in said


def test_a_call_refused_before_its_decision_was_blocked_too_in_the_run_that_it_named() -> None:
    assert undecided_headers("r1") == [("X-Budget-Decision", "block"), ("X-Run-Id", "r1")]
    assert undecided_headers("") == [("X-Budget-Decision", "block")]
