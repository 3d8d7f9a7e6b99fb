"""Which accounts a caller's calls count in, under which terms."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.core.ceilings import RUN_LIMIT, Ceilings, exceeds, fits, strictest, wait_ms
from gateway.core.policy import Limit, Margin, Missing, ModelPolicy, Override, RunsPolicy, Share, Terms
from gateway.core.scopes import OF_CALLS, Account, Caller, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Directives, Mode, RunTerms
from gateway.core.windows import LIFETIME, WindowKind, rolling, window_at
from tests.support.clock import NOW_MS
from tests.support.records import USD, caller, run_account
from tests.support.rulebooks import BIG, RUN_CEILING, SMALL, budget, call, decide, keys, model, policy, refuse, rulebook

ISSUED = Caller("default", "key_a", "run_77", "untagged/key_a/2026-11-30", run_issued=True)
PER_CALL = Caller("default", "key_a", "run_77", "run_77", run_issued=True)


def charged(*budgets, who=None, directives=Directives(), at_ms=NOW_MS):
    """The accounts of a call, by key."""
    return keys(decide(rulebook(policy(*budgets)), call(who=who, directives=directives), at_ms=at_ms).ladder[0])


def charges(*budgets, who=None, directives=Directives(), **sections):
    """The charges of a call's first plan, by the budget's name. Of ancestors' budgets: `name@run`."""
    (plan, *_) = decide(rulebook(policy(*budgets, **sections)), call(who=who, directives=directives)).ladder
    own = (who or caller()).run_scope
    return {
        account.name + next((f"@{value}" for name, value in account.scope if name == "run" and value != own), ""): charge
        for charge in plan.charges
        for account in [charge.ceiling.account]
    }


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


def test_an_account_of_a_rolling_window_is_always_the_same():
    rules = rulebook(policy(budget("rate", "run", window=WindowKind.ROLLING, span_ms=600_000, timezone=ZoneInfo("Asia/Tokyo"))))
    now, later = (decide(rules, at_ms=at_ms).ladder[0].charges for at_ms in (NOW_MS, NOW_MS + 7 * 86_400_000))
    assert now[0].ceiling.account.key == "rate|run=r1|rolling@600000|usd"
    assert now is later


def test_two_rolling_windows_keep_their_own_lengths():
    both = [budget(f"in-{span}", window=WindowKind.ROLLING, span_ms=span) for span in (60_000, 3_600_000)]
    assert charged(*both)[:2] == ["in-60000||rolling@60000|usd", "in-3600000||rolling@3600000|usd"]


# -- shares -----------------------------------------------------------------------------------------------------------------------


def share(name: str, *scope: str, of: str = "month", ppm: int = 500_000, unit: Unit = Unit.USD, **more):
    terms = Terms(Share(unit, ppm, of), more.pop("mode", Mode.HARD_GATE), more.pop("margin", Margin()))
    return replace(budget(name, *scope, **more), terms=terms)


MONTH = budget("month", window=WindowKind.MONTH, limit=100 * USD)


@pytest.mark.parametrize("budgets", [(MONTH, share("part", "run")), (share("part", "run"), MONTH)], ids=["after", "before"])
def test_a_share_has_no_limit_but_names_the_account_that_it_is_a_part_of(budgets):
    met = charges(*budgets)
    part, month = met["part"].ceiling, met["month"].ceiling
    assert (part.limit, part.pinned_ppm, part.pinned_to) == (None, 500_000, month.account.key)
    assert (month.limit, month.pinned_ppm, month.pinned_to) == (100 * USD, 0, "")


def test_a_share_is_a_part_of_the_callers_own_account():
    team = budget("team", "team", limit=50, unit=Unit.CALLS)
    met = charges(share("part", "agent", of="team", unit=Unit.CALLS), team, who=caller(team="x y", agent="a"))
    assert met["part"].ceiling.account.key == "part|agent=a|lifetime|calls"
    assert met["part"].ceiling.pinned_to == met["team"].ceiling.account.key == "team|team=x%20y|lifetime|calls"
    assert (
        charges(share("part", "agent", of="team", unit=Unit.CALLS), team)["part"].ceiling.pinned_to
        == "team|team=-|lifetime|calls"
    )


def test_a_share_of_a_renamed_budget_is_a_part_of_the_account_that_it_keeps():
    met = charges(share("part", "run"), replace(MONTH, renamed_from="old"))
    assert met["part"].ceiling.pinned_to == met["month"].ceiling.account.key
    assert met["part"].ceiling.pinned_to.startswith("old||month@")


def test_each_model_can_have_a_share_of_the_same_budget():
    rules = rulebook(policy(share("part", "model"), MONTH, models=ModelPolicy(downgrade=(("big", ("small",)),))))
    first, second = (plan.charges for plan in decide(rules).ladder)
    assert [each[0].ceiling.account.key for each in (first, second)] == [
        "part|model=big|lifetime|usd",
        "part|model=small|lifetime|usd",
    ]
    assert first[0].ceiling.pinned_to == second[0].ceiling.pinned_to == first[1].ceiling.account.key


def test_a_shares_margin_is_an_amount_and_an_override_may_give_an_amount_instead():
    amount = Override((("agent", "a"),), Terms(Limit(Unit.USD, 3 * USD), Mode.SOFT_GATE, Margin(ppm=100_000)))
    part = share("part", "run", mode=Mode.SOFT_GATE, margin=Margin(amount=7), overrides=(amount,))
    plain, overridden = (charges(part, MONTH, who=who)["part"].ceiling for who in (caller(), caller(agent="a")))
    assert (plain.limit, plain.margin, plain.pinned_ppm) == (None, 7, 500_000)
    assert (overridden.limit, overridden.margin, overridden.pinned_ppm, overridden.pinned_to) == (3 * USD, 3 * USD // 10, 0, "")


def test_a_share_can_be_the_ceiling_that_the_runs_own_limit_tightens():
    part = share("part", "run")
    assert charges(part, MONTH)["part"].ceiling.own
    assert rulebook(policy(part, MONTH)).run_ceiling(caller()) is None  # what it comes to, the ledger alone knows


# -- what is kept back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "below", "wraps_up", "first", "last"),
    [
        (0, 0, False, 1_000_000, 1_000_000),
        (50_000, 0, False, 950_000, 950_000),
        (50_000, 0, True, 1_000_000, 1_000_000),
        (50_000, 250_000, False, 750_000, 950_000),
        (50_000, 250_000, True, 750_000, 1_000_000),
        (250_000, 50_000, False, 750_000, 750_000),
        (250_000, 50_000, True, 950_000, 1_000_000),
        (1_000_000, 0, False, 0, 0),
    ],
)
@pytest.mark.parametrize("scope", ["run", "model"])
def test_a_share_is_kept_for_calls_that_wrap_up_and_another_for_cheaper_plans(scope, kept, below, wraps_up, first, last):
    keeping = budget("b", scope, keep_for_wrap_up_ppm=kept, downgrade_below_ppm=below)
    rules = rulebook(policy(keeping, models=ModelPolicy(downgrade=(("big", ("medium", "small")),))))
    ladder = decide(rules, call(directives=Directives(wrap_up=wraps_up))).ladder
    assert [plan.charges[0].share_ppm for plan in ladder] == [first, first, last]


def test_calls_that_wrap_up_and_calls_that_do_not_are_told_apart_in_one_run():
    rules = rulebook(policy(budget("b", "run", keep_for_wrap_up_ppm=50_000)))
    wrapping, plain = call(directives=Directives(wrap_up=True)), call()
    shares = [decide(rules, asked).ladder[0].charges[0].share_ppm for asked in (plain, wrapping, plain, wrapping)]
    assert shares == [950_000, 1_000_000, 950_000, 1_000_000]


# -- pauses and outages -----------------------------------------------------------------------------------------------------------


def test_a_ceiling_says_whether_its_refusal_pauses_the_run_and_what_an_outage_does():
    terms = Terms(Limit(Unit.USD, USD), Mode.HARD_GATE, pause=True, wait_for_raise_ms=60_000, outage_allow=True)
    waiting = replace(budget("b", "run"), overrides=(Override((("agent", "a"),), terms),))
    plain, overridden = (charges(waiting, who=who)["b"].ceiling for who in (caller(), caller(agent="a")))
    assert (plain.pause, plain.wait_for_raise_ms, plain.outage_allow) == (False, 0, False)
    assert (overridden.pause, overridden.wait_for_raise_ms, overridden.outage_allow) == (True, 60_000, True)


def letting(name: str, *scope: str, allow: bool = True):
    of = budget(name, *scope, mode=Mode.ADVISORY_ESTIMATE)
    return replace(of, terms=replace(of.terms, outage_allow=allow))


@pytest.mark.parametrize(
    ("budgets", "directives", "allowed"),
    [
        ([letting("a", "agent"), letting("m", "model")], Directives(), True),
        ([letting("a", "agent"), letting("m", "model", allow=False)], Directives(), False),
        ([letting("a", "agent", allow=False), letting("m", "model")], Directives(), False),
        ([letting("a", "agent")], Directives(run_limit=USD), False),
    ],
    ids=["all allow", "the plan's does not", "the caller's does not", "the call brings a limit"],
)
def test_in_an_outage_a_runs_own_limit_stands_in_the_way_only_where_something_else_does(budgets, directives, allowed):
    rules = rulebook(policy(*budgets))
    for _ in range(2):  # the other way about in between, so that nothing remembered is mixed up
        ceiling = decide(rules, call(directives=directives)).ladder[0].charges[-1].ceiling
        assert (ceiling.account.budget, ceiling.outage_allow) == (RUN_LIMIT, allowed)
        decide(rules, call(directives=Directives() if directives.run_limit else Directives(run_limit=USD)))


# -- the run tree -----------------------------------------------------------------------------------------------------------------

CHILD = replace(caller("child", agent="a"), parent="mother", ancestry=("mother", "grandmother"))


def test_a_childs_calls_count_in_every_ancestors_budgets_too_the_nearest_first():
    budgets = [
        budget("agents", "agent"),
        budget("steps", "run", unit=Unit.CALLS, limit=60),
        RUN_CEILING,
        budget("both", "agent", "run"),
    ]
    assert charged(*budgets, who=CHILD) == [
        "agents|agent=a|lifetime|usd",
        "steps|run=child|lifetime|calls",
        "run-ceiling|run=child|lifetime|usd",
        "both|agent=a,run=child|lifetime|usd",
        "steps|run=mother|lifetime|calls",
        "run-ceiling|run=mother|lifetime|usd",
        "both|agent=a,run=mother|lifetime|usd",
        "steps|run=grandmother|lifetime|calls",
        "run-ceiling|run=grandmother|lifetime|usd",
        "both|agent=a,run=grandmother|lifetime|usd",
    ]


def test_an_ancestors_own_limit_holds_for_its_childrens_calls():
    met = charges(RUN_CEILING, who=CHILD)
    assert [charge.ceiling.own_run for charge in met.values()] == ["child", "mother", "grandmother"]
    assert charged(budget("agents", "agent"), who=CHILD) == [
        "agents|agent=a|lifetime|usd",
        "run-limit|run=child|lifetime|usd",
        "run-limit|run=mother|lifetime|usd",
        "run-limit|run=grandmother|lifetime|usd",
    ]
    assert all(charge.ceiling.own for name, charge in charges(budget("agents", "agent"), who=CHILD).items() if name != "agents")


def test_a_plans_own_budgets_count_for_the_ancestors_too_in_their_place():
    assert charged(budget("of-model", "run", "model"), RUN_CEILING, who=replace(CHILD, ancestry=("mother",))) == [
        "of-model|run=child,model=big|lifetime|usd",
        "run-ceiling|run=child|lifetime|usd",
        "of-model|run=mother,model=big|lifetime|usd",
        "run-ceiling|run=mother|lifetime|usd",
    ]


def test_overrides_that_name_a_run_are_matched_for_the_ancestor():
    large = Override((("run", "mother"),), Terms(Limit(Unit.USD, 20 * USD), Mode.SOFT_GATE, Margin(amount=USD)))
    met = charges(budget("run-ceiling", "run", overrides=(large,)), who=CHILD)
    limits = {name: (charge.ceiling.limit, charge.ceiling.mode) for name, charge in met.items() if name.startswith("run-ceiling")}
    assert limits == {
        "run-ceiling": (5 * USD, Mode.HARD_GATE),
        "run-ceiling@mother": (20 * USD, Mode.SOFT_GATE),
        "run-ceiling@grandmother": (5 * USD, Mode.HARD_GATE),
    }
    assert "run-limit@mother" in met  # no hard ceiling is left that its own limit could tighten
    assert "run-limit" not in met


def test_a_share_of_a_runs_budget_is_the_ancestors_share_of_its_own():
    met = charges(share("part", "run", of="run-ceiling"), RUN_CEILING, who=CHILD)
    assert met["part@mother"].ceiling.pinned_to == met["run-ceiling@mother"].ceiling.account.key
    assert met["part"].ceiling.pinned_to == met["run-ceiling"].ceiling.account.key
    met = charges(share("part", "run"), MONTH, who=CHILD)
    assert met["part@mother"].ceiling.pinned_to == met["month"].ceiling.account.key


@pytest.mark.parametrize("ancestry", [("child",), ("mother", "child"), ("mother", "mother")], ids=str)
def test_each_account_is_named_once_whatever_the_caller_says_of_its_ancestors(ancestry):
    keys_of = charged(RUN_CEILING, budget("agents", "agent"), who=replace(CHILD, ancestry=ancestry))
    assert len(keys_of) == len(set(keys_of))


def test_what_is_remembered_of_a_run_goes_by_its_ancestors_too():
    rules = rulebook(policy(RUN_CEILING))
    alone, with_mother = (decide(rules, call(who=replace(CHILD, ancestry=line))).ladder[0] for line in ((), ("mother",)))
    assert (len(alone.charges), len(with_mother.charges)) == (1, 2)


def test_an_ancestors_hard_gate_is_one_for_the_child():
    soft = Override((("run", "child"),), Terms(Limit(Unit.USD, USD), Mode.ADVISORY_ESTIMATE))
    ceilings = Ceilings(policy(budget("run-ceiling", "run", overrides=(soft,))))
    assert not ceilings.standing(call(who=replace(CHILD, ancestry=())), NOW_MS).hard
    assert ceilings.standing(call(who=CHILD), NOW_MS).hard


@pytest.mark.parametrize("unit", list(Unit))
def test_a_hard_gate_on_what_no_call_takes_is_none_for_calls(unit):
    asked = call(unpriced=("prediction",))
    rules = rulebook(policy(budget("b", limit=0, unit=unit)))
    assert Ceilings(rules.policy).standing(asked, NOW_MS).hard is (unit in OF_CALLS)
    if unit in OF_CALLS:
        assert refuse(rules, asked).code == "not_estimable"
    else:
        assert decide(rules, asked).ladder[0].cost_max.of(unit) == 0


# -- names and rules for runs -----------------------------------------------------------------------------------------------------


def test_a_renamed_budget_keeps_its_accounts_and_is_shown_by_its_new_name():
    renamed = [replace(budget("new", scope), renamed_from="old") for scope in ("run", "model")]
    by_run, by_model, *_ = decide(rulebook(policy(*renamed))).ladder[0].charges
    assert (by_run.ceiling.account.key, by_run.ceiling.account.name) == ("old|run=r1|lifetime|usd", "new")
    assert (by_model.ceiling.account.key, by_model.ceiling.account.name) == ("old|model=big|lifetime|usd", "new")
    assert by_run.ceiling.account == decide(rulebook(policy(budget("old", "run")))).ladder[0].charges[0].ceiling.account


def test_every_decision_carries_the_policys_rules_for_runs():
    terms = RunTerms(max_active=3, same_request=5, within_calls=20)
    rules = rulebook(policy(runs=RunsPolicy(terms=terms)))
    assert decide(rules).terms is decide(rules, call(who=caller("r2"))).terms is terms
    assert decide(rulebook()).terms == RunTerms(max_active=200, idle_ms=86_400_000)


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


def waiting(window, amount=30, limit=100, committed=0, reserved=0, aging=(), at_ms=NOW_MS, **rule):
    account = Account("default", "b", (), window, Unit.USD)
    limited = charge(limit=limit, **rule)
    limited = replace(limited, ceiling=replace(limited.ceiling, account=account))
    return wait_ms(limited, amount, Balance(account, limit, committed, reserved, aging=aging), at_ms)


AGING = ((NOW_MS + 5_000, 20), (NOW_MS + 9_000, 30), (NOW_MS + 40_000, 50))


@pytest.mark.parametrize(
    ("amount", "rule", "expected"),
    [
        (20, {}, 5_000),
        (21, {}, 9_000),
        (50, {}, 9_000),
        (51, {}, 40_000),
        (100, {}, 40_000),
        (101, {}, None),
        (101, {"margin": 1}, 40_000),
        (51, {"share_ppm": 500_000}, None),
        (50, {"share_ppm": 500_000}, 40_000),
        (500, {"basis": Basis.COMMITTED}, 5_000),
        (500, {"basis": Basis.COMMITTED, "share_ppm": 800_000}, 9_000),
        (1, {"basis": Basis.COMMITTED, "share_ppm": 0}, None),
        (500, {"basis": Basis.NONE}, None),
        (1, {"limit": None}, None),
    ],
)
def test_of_a_rolling_window_the_wait_lasts_until_enough_has_fallen_out_of_it(amount, rule, expected):
    assert waiting(rolling(60_000), amount, committed=100, aging=AGING, **rule) == expected


def test_where_only_holds_stand_in_the_way_a_second_may_help():
    assert waiting(rolling(60_000), 30, committed=70, reserved=30, aging=((NOW_MS + 5_000, 70),)) == 1_000
    assert waiting(rolling(60_000), 30, committed=71, aging=((NOW_MS + 10, 71),)) == 1_000


def test_of_a_calendar_minute_the_wait_lasts_until_its_end():
    minute = window_at(WindowKind.MINUTE, ZoneInfo("UTC"), NOW_MS)
    assert waiting(minute, committed=100) == minute.end_ms - NOW_MS == 60_000
    assert waiting(minute, committed=100, at_ms=minute.end_ms - 1) == 1_000
    assert waiting(minute, 101) is None


@pytest.mark.parametrize("kind", [WindowKind.HOUR, WindowKind.DAY, WindowKind.WEEK, WindowKind.MONTH])
def test_nobody_waits_for_an_hour(kind):
    assert waiting(window_at(kind, ZoneInfo("UTC"), NOW_MS), committed=100) is None
    assert waiting(LIFETIME, committed=100) is None


def test_the_strictest_mode_of_several_is_told():
    assert strictest([Mode.ADVISORY_ESTIMATE, Mode.SOFT_GATE, Mode.ACTUALS_ONLY]) is Mode.SOFT_GATE
    assert strictest([]) is Mode.ADVISORY_ESTIMATE


def test_a_deep_copy_of_a_caller_meets_the_same_charges():
    """What is remembered goes by value: a second call of the run, however it came, finds the same accounts."""
    rules = rulebook(policy(RUN_CEILING, budget("agents", "agent")), [BIG, SMALL, model("m")])
    asked = call(who=caller(agent="a1"))
    again = replace(asked, caller=replace(asked.caller, run_ignored="r9"))
    assert decide(rules, asked).ladder[0].charges is decide(rules, again).ladder[0].charges
