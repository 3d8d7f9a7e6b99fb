"""Which accounts a caller's calls count in, under which terms."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.core.ceilings import RUN_LIMIT, Ceilings, exceeds, fits, strictest
from gateway.core.policy import Limit, Margin, Missing, ModelPolicy, Override, Terms
from gateway.core.scopes import Caller, Unit
from gateway.core.values import Basis, Ceiling, Charge, Directives, Mode
from gateway.core.windows import WindowKind
from tests.support.clock import NOW_MS
from tests.support.records import USD, caller, run_account
from tests.support.rulebooks import BIG, RUN_CEILING, SMALL, budget, call, decide, keys, model, policy, refuse, rulebook

ISSUED = Caller("default", "key_a", "run_77", "untagged/key_a/2026-11-30", run_issued=True)
PER_CALL = Caller("default", "key_a", "run_77", "run_77", run_issued=True)


def charged(*budgets, who=None, directives=Directives(), at_ms=NOW_MS):
    """The accounts of a call, by key."""
    return keys(decide(rulebook(policy(*budgets)), call(who=who, directives=directives), at_ms=at_ms).ladder[0])


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# -- scopes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "key"),
    [
        ((), "b||lifetime|usd"),
        (("run",), "b|run=r1|lifetime|usd"),
        (("key",), "b|key=key_a|lifetime|usd"),
        (("team", "agent"), "b|team=research,agent=a%2F1|lifetime|usd"),
        (("model",), "b|model=big|lifetime|usd"),
        (("provider", "agent"), "b|provider=openai,agent=a%2F1|lifetime|usd"),
    ],
    ids=lambda value: "+".join(value) or "tenant" if isinstance(value, tuple) else "",
)
def test_an_account_is_the_budget_with_the_callers_values_and_the_plans(scope, key):
    assert key in charged(budget("b", *scope), who=caller(agent="a/1", team="research"))


def test_each_plan_counts_under_its_own_model():
    of_models = [RUN_CEILING, budget("per-model", "model"), budget("everything")]
    rules = rulebook(policy(*of_models, models=ModelPolicy(downgrade=(("big", ("small",)),))))
    first, second = decide(rules).ladder
    assert keys(first) == ["run-ceiling|run=r1|lifetime|usd", "per-model|model=big|lifetime|usd", "everything||lifetime|usd"]
    assert keys(second) == ["run-ceiling|run=r1|lifetime|usd", "per-model|model=small|lifetime|usd", "everything||lifetime|usd"]


@pytest.mark.parametrize(
    ("missing", "expected"), [(Missing.SHARE, ["b|agent=-|lifetime|usd"]), (Missing.SKIP, [])], ids=["share", "skip"]
)
def test_a_call_without_a_dimension_counts_where_the_budget_says(missing, expected):
    assert charged(RUN_CEILING, budget("b", "agent", missing=missing))[1:] == expected


def test_a_call_without_a_dimension_is_refused_where_the_budget_says():
    refusal = refuse(rulebook(policy(budget("b", "team", "agent", missing=Missing.REFUSE))), call(who=caller(team="t")))
    assert (refusal.code, refusal.param) == ("dimension_required", "agent")
    assert "'b'" in refusal.message


@pytest.mark.parametrize("missing", list(Missing))
def test_no_call_lacks_a_model_or_a_provider(missing):
    assert "b|model=big|lifetime|usd" in charged(budget("b", "model", missing=missing))


# -- overrides --------------------------------------------------------------------------------------------------------------------


def test_the_first_override_that_matches_wins():
    def of(dollars: int) -> Terms:
        return Terms(Limit(Unit.USD, dollars * USD), Mode.HARD_GATE)

    nightly = Override((("team", "research"), ("agent", "nightly-*")), of(20))
    research = Override((("team", "research"),), of(10))
    rules = rulebook(policy(budget("run-ceiling", "run", limit=5 * USD, overrides=(nightly, research))))

    def limit(**dimensions: str) -> int | None:
        return decide(rules, call(who=caller(**dimensions))).ladder[0].charges[0].ceiling.limit

    assert limit(team="research", agent="nightly-3") == 20 * USD
    assert limit(team="research", agent="daily") == 10 * USD
    assert limit(team="research") == 10 * USD
    assert limit(agent="nightly-3") == 5 * USD
    assert limit() == 5 * USD


def test_an_override_changes_the_terms_and_never_the_account():
    override = Override((("agent", "a*"),), Terms(Limit(Unit.USD, USD), Mode.SOFT_GATE, Margin(ppm=100_000)))
    rules = rulebook(policy(budget("run-ceiling", "run", overrides=(override,))))
    plain, overridden = (decide(rules, call(who=who)).ladder[0].charges[0].ceiling for who in (caller(), caller(agent="a1")))
    assert plain.account == overridden.account
    assert (plain.mode, plain.margin) == (Mode.HARD_GATE, 0)
    assert (overridden.mode, overridden.margin, overridden.limit) == (Mode.SOFT_GATE, USD // 10, USD)


# -- windows ----------------------------------------------------------------------------------------------------------------------


def test_an_account_of_a_calendar_window_is_another_after_its_end():
    daily = budget("day", "agent", window=WindowKind.DAY, timezone=ZoneInfo("Europe/Berlin"))
    rules = rulebook(policy(RUN_CEILING, daily))
    asked = call(who=caller(agent="a1"))
    spans = []
    for instant in ("2026-11-30T22:59:59", "2026-11-30T23:00:00", "2026-12-01T22:59:59", "2026-12-01T23:00:00"):
        at_ms = at(instant)
        window = decide(rules, asked, at_ms=at_ms).ladder[0].charges[1].ceiling.account.window
        assert window.start_ms <= at_ms < window.end_ms
        spans.append(window.start_ms)
    assert spans[0] < spans[1] == spans[2] < spans[3]


def test_a_decision_can_be_asked_for_an_earlier_instant_again():
    """The ledger's clock may be behind ours: `Stale` brings its own."""
    rules = rulebook(policy(budget("minute", window=WindowKind.MINUTE)))
    later, earlier = (
        decide(rules, at_ms=at_ms).ladder[0].charges[0].ceiling.account.window for at_ms in (NOW_MS, NOW_MS - 60_000)
    )
    assert earlier.end_ms == later.start_ms


def test_what_is_remembered_of_a_run_ends_with_the_shortest_of_its_windows():
    ceilings = Ceilings(policy(RUN_CEILING, budget("minute", window=WindowKind.MINUTE), budget("month", window=WindowKind.MONTH)))
    standing = ceilings.standing(call(), NOW_MS)
    assert (standing.from_ms, standing.until_ms) == (NOW_MS, NOW_MS + 60_000)
    assert ceilings.standing(call(), NOW_MS + 59_999) is standing
    assert ceilings.standing(call(), NOW_MS + 60_000) is not standing


def test_callers_without_end_are_not_remembered_without_end():
    ceilings = Ceilings(policy())
    for number in range(10_001):
        ceilings.standing(call(who=caller(f"r{number}")), NOW_MS)
    assert len(ceilings._standings) == 1


# -- the run's own limit ----------------------------------------------------------------------------------------------------------


def own(*budgets, who=None, directives=Directives()):
    """(budget, limit) of the charge that the run's own limit replaces."""
    (plan,) = decide(rulebook(policy(*budgets)), call(who=who, directives=directives)).ladder
    return [(charge.ceiling.account.budget, charge.ceiling.limit) for charge in plan.charges if charge.ceiling.own]


def test_the_runs_own_limit_replaces_the_first_hard_ceiling_in_usd_on_its_whole_life():
    assert own(
        budget("watch", "run", mode=Mode.ADVISORY_ESTIMATE),
        budget("steps", "run", unit=Unit.CALLS, limit=60),
        budget("daily", "run", window=WindowKind.DAY),
        budget("with-agent", "run", "agent"),
        budget("run-ceiling", "run", limit=3 * USD),
        budget("second", "run", limit=USD),
    ) == [("run-ceiling", 3 * USD)]


@pytest.mark.parametrize(
    "soft",
    [
        budget("watch", "run", mode=Mode.ADVISORY_ESTIMATE),
        budget("steps", "run", unit=Unit.CALLS, limit=60),
        budget("daily", "run", window=WindowKind.DAY),
        budget("agents", "agent"),
    ],
    ids=["advisory", "calls", "daily", "another scope"],
)
def test_where_there_is_none_the_run_has_an_account_without_a_limit_of_the_policys(soft):
    assert own(soft) == [(RUN_LIMIT, None)]
    assert charged(soft)[-1] == "run-limit|run=r1|lifetime|usd"


def test_an_override_that_turns_the_ceiling_soft_leaves_the_run_an_account_of_its_own():
    soft = Override((("agent", "*"),), Terms(Limit(Unit.USD, USD), Mode.ADVISORY_ESTIMATE))
    assert own(budget("run-ceiling", "run", overrides=(soft,)), who=caller(agent="a1")) == [(RUN_LIMIT, None)]


def test_a_call_without_a_run_counts_on_the_shared_account_whose_limit_is_not_its_own_to_change():
    assert charged(RUN_CEILING, who=ISSUED) == ["run-ceiling|run=untagged%2Fkey_a%2F2026-11-30|lifetime|usd"]
    assert own(RUN_CEILING, who=ISSUED) == []


def test_a_call_without_a_run_that_brings_a_limit_gets_an_account_for_it():
    limited = Directives(run_limit=USD)
    assert own(RUN_CEILING, who=ISSUED, directives=limited) == [(RUN_LIMIT, None)]
    assert charged(RUN_CEILING, who=ISSUED, directives=limited)[-1] == "run-limit|run=run_77|lifetime|usd"


def test_a_call_without_a_run_on_its_own_account_has_the_policys_ceiling_for_its_own():
    assert own(RUN_CEILING, who=PER_CALL) == [("run-ceiling", 5 * USD)]
    assert own(budget("agents", "agent"), who=PER_CALL) == []


def test_the_policys_ceiling_of_a_run_is_told():
    big = Override((("team", "research"),), Terms(Limit(Unit.USD, 20 * USD), Mode.HARD_GATE))
    rules = rulebook(policy(budget("run-ceiling", "run", overrides=(big,))))
    assert rules.run_ceiling(caller()) == 5 * USD
    assert rules.run_ceiling(caller(team="research")) == 20 * USD
    assert rulebook(policy(budget("agents", "agent"))).run_ceiling(caller()) is None


# -- terms as rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "basis"),
    [
        (Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED),
        (Mode.SOFT_GATE, Basis.RESERVED_AND_COMMITTED),
        (Mode.ACTUALS_ONLY, Basis.COMMITTED),
        (Mode.ADVISORY_ESTIMATE, Basis.NONE),
    ],
)
def test_a_mode_says_what_is_compared_with_the_limit(mode, basis):
    (plan,) = decide(rulebook(policy(budget("b", mode=mode, alerts_ppm=(500_000,))))).ladder
    assert (plan.charges[0].ceiling.basis, plan.charges[0].ceiling.alerts) == (basis, (500_000,))


def charge(basis=Basis.RESERVED_AND_COMMITTED, limit=100, margin=0, share_ppm=1_000_000):
    return Charge(Ceiling(run_account(), limit, Mode.HARD_GATE, basis, margin), share_ppm)


@pytest.mark.parametrize(
    ("rule", "amount", "limit", "committed", "reserved", "fit"),
    [
        (charge(), 30, 100, 40, 30, True),
        (charge(), 31, 100, 40, 30, False),
        (charge(margin=1), 31, 100, 40, 30, True),
        (charge(share_ppm=750_000), 6, 100, 40, 30, False),
        (charge(share_ppm=750_000), 5, 100, 40, 30, True),
        (charge(share_ppm=333_333), 1, 100, 33, 0, False),
        (charge(Basis.COMMITTED), 1_000, 100, 99, 1_000, True),
        (charge(Basis.COMMITTED), 1, 100, 100, 0, False),
        (charge(Basis.NONE), 1_000, 100, 1_000, 0, True),
        (charge(), 1_000, None, 1_000, 0, True),
        (charge(), 0, 100, 200, 0, True),
        (charge(Basis.COMMITTED), 0, 100, 200, 0, True),
    ],
    ids=[
        *("just", "over", "margin", "share over", "share just", "share rounds down", "actuals", "actuals spent", "advisory"),
        *("no limit", "free after an overrun", "free, actuals"),
    ],
)
def test_a_plan_fits_by_the_rule_of_its_ceiling(rule, amount, limit, committed, reserved, fit):
    assert fits(rule, amount, limit, committed, reserved) is fit


def test_an_advisory_ceiling_never_blocks_and_still_knows_when_it_is_passed():
    assert exceeds(charge(Basis.NONE), 31, 100, 40, 30)
    assert not exceeds(charge(Basis.NONE), 30, 100, 40, 30)


def test_the_strictest_mode_of_several_is_told():
    assert strictest([Mode.ADVISORY_ESTIMATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY]) is Mode.SOFT_GATE
    assert strictest([]) is Mode.ADVISORY_ESTIMATE


def test_a_deep_copy_of_a_caller_meets_the_same_charges():
    """What is remembered goes by value: a second call of the run, however it came, finds the same accounts."""
    rules = rulebook(policy(RUN_CEILING, budget("agents", "agent")), [BIG, SMALL, model("m")])
    asked = call(who=caller(agent="a1"))
    again = replace(asked, caller=replace(asked.caller, run_ignored="r9"))
    assert decide(rules, asked).ladder[0].charges is decide(rules, again).ladder[0].charges
