"""Which plans may serve a call: the requested model first, then cheaper ones that can do the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalog import Catalog, Rates, Route
from gateway.core.decide import Reach, Rulebook, Unservable
from gateway.core.money import Microcents
from gateway.core.policy import Missing, ModelPolicy, OutputPolicy
from gateway.core.scopes import Amounts, Unit
from gateway.core.tokens import TokenCounter
from gateway.core.values import Decision, Directives, Image, Mode, Output, Part, Usage, UsageSource
from tests.support.clock import NOW_MS
from tests.support.records import USD, caller
from tests.support.rulebooks import (
    BIG,
    MEDIUM,
    RUN_CEILING,
    SMALL,
    Words,
    budget,
    call,
    catalog,
    decide,
    keys,
    model,
    names,
    policy,
    refuse,
    rulebook,
)

LADDER = ModelPolicy(downgrade=(("big", ("medium", "small")),))
AUTO = ModelPolicy(auto=True)


def passed_over(rules, asked=None, served=("openai",)):
    return {passed.model: passed.reason for passed in decide(rules, asked, served).passed_over}


# -- the requested model ----------------------------------------------------------------------------------------------------------


def test_without_a_ladder_there_is_one_plan_with_what_the_call_can_cost_at_most():
    decision = decide(rulebook(), call(client_cap=1000))
    (plan,) = decision.ladder
    assert (plan.model, plan.provider, plan.output_cap, plan.input_tokens) == ("big", "openai", 1000, 3)
    assert plan.cost_max.usd == (3 * 3 * USD + 1000 * 30 * USD) // 1_000_000
    assert (plan.cost_max.tokens, plan.cost_max.calls) == (1003, 1)
    assert (decision.id, decision.hold_id, decision.at_ms, decision.price_table_version) == ("bdg_1", "rsv_1", NOW_MS, "prices-1")


@pytest.mark.parametrize(
    ("asked", "rules", "code", "words"),
    [
        (call("unheard-of"), rulebook(), "model_not_priced", "unheard-of"),
        (call("bare"), rulebook(models=[replace(BIG, name="bare", tiers=())]), "model_not_priced", "free: true"),
        (call("big"), rulebook(policy(models=ModelPolicy(allow=("small", "med*")))), "model_not_served", "models.allow"),
        (call("claude"), rulebook(models=[model("claude", provider="anthropic")]), "model_not_served", "anthropic"),
        (call(text="word " * 100), rulebook(models=[model("big", context=90)]), "not_estimable", "leaves no room"),
    ],
    ids=["unknown", "unpriced", "not allowed", "no credential", "too long"],
)
def test_a_model_that_cannot_serve_the_call_is_refused_with_the_reason(asked, rules, code, words):
    refusal = refuse(rules, asked)
    assert refusal.code == code
    assert words in refusal.message


def test_names_that_callers_make_up_are_not_remembered():
    rules = rulebook()
    for number in range(50):
        refuse(rules, call(f"made-up-{number}"))
    decide(rules)
    assert len(rules._offers) == 1


def test_a_free_model_costs_nothing_and_still_counts_its_tokens_and_its_call():
    (plan,) = decide(rulebook(models=[model("house", 0)]), call("house", client_cap=100)).ladder
    assert (plan.cost_max.usd, plan.cost_max.tokens, plan.cost_max.calls) == (0, 103, 1)


# -- the ladder -------------------------------------------------------------------------------------------------------------------


def test_the_ladder_is_the_requested_model_and_then_the_policys_cheaper_ones_in_order():
    assert names(decide(rulebook(policy(models=LADDER)))) == ["big", "medium", "small"]


def test_a_ladder_that_names_the_model_itself_or_one_twice_has_each_once():
    downgrade = ModelPolicy(downgrade=(("*", ("big", "small", "small")),))
    decision = decide(rulebook(policy(models=downgrade)))
    assert names(decision) == ["big", "small"]
    assert decision.passed_over == ()


def test_the_first_ladder_whose_pattern_matches_counts():
    downgrade = ModelPolicy(downgrade=(("b*", ("medium",)), ("big", ("small",))))
    assert names(decide(rulebook(policy(models=downgrade)))) == ["big", "medium"]


@pytest.mark.parametrize(
    ("other", "asked", "reason"),
    [
        (model("other", 1, capabilities=frozenset()), call(needs=frozenset({"tools", "vision"})), "lacks tools, vision"),
        (model("other", 1, parameters=frozenset({"top_p"})), call(parameters=frozenset({"seed"})), "does not take seed"),
        (model("other", 1, max_output=512), call(client_cap=1000), "can write only 512 tokens here"),
        (model("other", 1, max_output=128), call(), "can write only 128 tokens here"),
        (model("other", 30), call(), "is not cheaper for this call"),
        (model("other", 1, context=2), call(), "leaves no room for output"),
        (model("other", 1, provider="anthropic"), call(), "no credential"),
        (replace(SMALL, name="other", tiers=()), call(), "is not known"),
    ],
    ids=["capability", "parameter", "client's cap", "too little output", "price", "context", "credential", "no price"],
)
def test_a_cheaper_model_that_cannot_stand_in_is_passed_over_with_the_reason(other, asked, reason):
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("other", "small")),))), [BIG, other, SMALL])
    decision = decide(rules, asked)
    assert names(decision) == ["big", "small"]
    assert reason in {passed.model: passed.reason for passed in decision.passed_over}["other"]


def test_a_model_that_the_policy_does_not_allow_is_no_downgrade_either():
    rules = rulebook(policy(models=replace(LADDER, allow=("big", "small"))))
    assert "models.allow" in passed_over(rules)["medium"]


def test_a_model_that_costs_more_than_the_one_before_it_is_passed_over():
    """Or `downgrade_below`, which keeps a share for what comes later, would keep it for the dearer one."""
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("small", "medium")),))))
    assert names(decide(rules)) == ["big", "small"]
    assert passed_over(rules) == {"medium": "is not cheaper for this call than small"}


def test_what_is_cheaper_is_said_by_this_call_not_by_the_price_list():
    """A cheap rate per token, on a model without a public tokenizer whose input is reckoned much larger."""
    long = call(text="word " * 50_000, client_cap=10)
    wordy = replace(model("wordy", 20), encoding=None)
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("wordy",)),))), [BIG, wordy])
    assert passed_over(rules, long) == {"wordy": "is not cheaper for this call"}


def test_a_caller_who_says_never_gets_the_model_it_asked_for_or_nothing():
    rules = rulebook(policy(models=LADDER, output=OutputPolicy(clamp_to_budget=True)))
    assert names(decide(rules, call(directives=Directives(downgrade=False)))) == ["big"]


def test_a_free_model_ends_every_ladder_that_names_it():
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("house",)),))), [BIG, model("house", 0)])
    assert names(decide(rules)) == ["big", "house"]


# -- downgrade: auto --------------------------------------------------------------------------------------------------------------


def test_auto_takes_the_providers_cheaper_models_dearest_first():
    models = [SMALL, BIG, MEDIUM, model("other-house", 5, provider="anthropic"), model("house", 0), model("dearer", 60)]
    decision = decide(rulebook(policy(models=AUTO), models), served=("openai", "anthropic"))
    assert names(decision) == ["big", "medium", "small", "house"]


def test_auto_and_alternatives_name_no_base_of_fine_tuned_models_which_nobody_could_call():
    own = "ft:medium:acme::id"
    base, tuned = replace(MEDIUM, name="ft:medium"), replace(MEDIUM, name=own, max_output=4_096)
    rules = rulebook(policy(models=AUTO), [BIG, base, tuned, SMALL])
    decision = decide(rules)
    assert [plan.model for plan in decision.ladder] == ["big", own, "small"]
    found = rules.alternatives(decision, Reach(frozenset({"openai"})))
    assert [each.name for each, _ in found] == [own, "small"]


@pytest.mark.parametrize(
    "made_for", [{"capabilities": BIG.capabilities | {"audio_output"}}, {"fees": (("requests", 25_000_000),)}]
)
def test_auto_chooses_no_model_that_is_made_for_other_work(made_for):
    other = replace(MEDIUM, **made_for)
    assert [plan.model for plan in decide(rulebook(policy(models=AUTO), [BIG, other, SMALL])).ladder] == ["big", "small"]
    alike = replace(BIG, **made_for)
    assert [plan.model for plan in decide(rulebook(policy(models=AUTO), [alike, other])).ladder] == ["big", "medium"]


def test_auto_chooses_no_model_that_its_provider_has_retired_but_serves_it_to_who_asks():
    rules = rulebook(policy(models=AUTO), [BIG, replace(MEDIUM, retired=True), SMALL])
    assert names(decide(rules)) == ["big", "small"]
    assert names(decide(rules, call("medium"))) == ["medium", "small"]


def test_auto_tries_one_of_a_models_names():
    rules = rulebook(policy(models=AUTO), [BIG, replace(SMALL, name="small-2026-01-01"), SMALL])
    decision = decide(rules)
    assert names(decision) == ["big", "small"]
    assert decision.passed_over == ()


def test_auto_orders_by_what_this_call_costs():
    """`chatty` has the lower list price of output, and the higher one of input: for a long question it is the dearer."""
    chatty = replace(model("chatty"), tiers=(Rates(9 * USD, 9 * USD, 9 * USD, 9 * USD),))
    rules = rulebook(policy(models=AUTO), [BIG, MEDIUM, chatty])
    assert names(decide(rules, call(text="word " * 20_000, client_cap=100))) == ["big", "medium"]
    assert passed_over(rules, call(text="word " * 20_000, client_cap=100)) == {"chatty": "is not cheaper for this call"}
    less_so = replace(chatty, tiers=(Rates(2 * USD, 9 * USD, 2 * USD, 2 * USD),))
    rules = rulebook(policy(models=AUTO), [BIG, MEDIUM, less_so])
    assert names(decide(rules, call(text="word " * 20_000, client_cap=100))) == ["big", "chatty", "medium"]


# -- clamping ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "caps"),
    [(8192, [8192, 4096, 2048, 1024]), (2048, [2048, 1024, 512, 256]), (2047, [2047, 1023, 511]), (511, [511])],
)
def test_clamping_adds_the_last_model_at_a_half_a_quarter_and_an_eighth_never_below_256(cap, caps):
    rules = rulebook(policy(models=LADDER, output=OutputPolicy(clamp_to_budget=True)))
    ladder = decide(rules, call(client_cap=cap)).ladder
    assert [(plan.model, plan.output_cap) for plan in ladder] == [("big", cap), ("medium", cap), *(("small", c) for c in caps)]


def test_a_cap_that_the_provider_would_refuse_is_no_plan():
    rules = rulebook(policy(models=LADDER, output=OutputPolicy(max_tokens=4096, clamp_to_budget=True)))
    assert [plan.output_cap for plan in decide(rules, call("small", client_cap=4096, least_cap=1025)).ladder] == [4096, 2048]
    refusal = refuse(rules, call(client_cap=8192, least_cap=4097))
    assert (refusal.code, refusal.param) == ("output_cap_conflict", "thinking.budget_tokens")
    assert "(4096)" in refusal.message


def test_output_is_not_clamped_unless_the_policy_says_so():
    assert [plan.output_cap for plan in decide(rulebook(), call(client_cap=4096)).ladder] == [4096]


def test_a_share_is_kept_for_cheaper_models_only_not_for_the_same_with_less_output():
    saving = budget("run-ceiling", "run", downgrade_below_ppm=250_000)
    rules = rulebook(policy(saving, models=LADDER, output=OutputPolicy(clamp_to_budget=True)))
    shares = [(plan.model, plan.charges[0].share_ppm) for plan in decide(rules, call(client_cap=1024)).ladder]
    assert shares == [("big", 750_000), ("medium", 750_000), *[("small", 1_000_000)] * 3]


def test_the_only_plan_has_the_whole_limit():
    rules = rulebook(policy(budget("run-ceiling", "run", downgrade_below_ppm=250_000)))
    assert [charge.share_ppm for charge in decide(rules).ladder[0].charges] == [1_000_000]


def test_where_no_cheaper_model_can_serve_the_call_the_first_has_the_whole_limit():
    saving = budget("run-ceiling", "run", downgrade_below_ppm=250_000)
    rules = rulebook(policy(saving, models=ModelPolicy(downgrade=(("big", ("small",)),))), [BIG, replace(SMALL, max_output=64)])
    assert [charge.share_ppm for charge in decide(rules).ladder[0].charges] == [1_000_000]


# -- what nobody can price --------------------------------------------------------------------------------------------------------


def test_a_fine_tuned_name_is_served_under_its_own_name_at_the_price_of_its_base_and_is_not_remembered():
    rules = rulebook(models=[replace(BIG, name="ft:big")])
    for number in range(20):
        [plan] = decide(rules, call(f"ft:big:acme::{number}")).ladder
        assert (plan.model, plan.cost_max) == (f"ft:big:acme::{number}", decide(rules, call("ft:big")).ladder[0].cost_max)
    assert len(rules._offers) == 1


def with_flat(**flat):
    return replace(catalog(), flat={name.replace("__", "."): Microcents(usd) for name, usd in flat.items()})


def test_what_nothing_models_is_refused_with_the_config_key_that_would_set_an_amount_aside():
    refusal = refuse(rulebook(), call(unpriced=("tools.web_search",)))
    assert (refusal.code, refusal.param) == ("not_estimable", "tools.web_search")
    assert "reservation.flat: {tools.web_search: $0.25}" in refusal.message


def test_a_flat_reserve_lets_the_call_through_and_is_held_in_every_plan():
    rules = Rulebook(policy(models=LADDER), with_flat(tools__web_search=25, prediction=5, images=99), rulebook().counter)
    asked = call(unpriced=("tools.web_search", "prediction"))
    decision = decide(rules, asked)
    assert decision.call.flat == (("tools.web_search", 25), ("prediction", 5))
    without = decide(rulebook(policy(models=LADDER)))
    held = [plan.cost_max.usd - other.cost_max.usd for plan, other in zip(decision.ladder, without.ladder, strict=True)]
    assert held == [30, 30, 30]
    assert refuse(rules, call(unpriced=("prediction", "route"))).param == "route"
    assert decide(rules).call.flat == ()


def test_pieces_need_a_fee_or_a_flat_reserve():
    asked = call(pieces=(("web_searches/low", 2),))
    refusal = refuse(rulebook(), asked)
    assert (refusal.code, refusal.param) == ("not_estimable", "web_searches")
    assert "'big'" in refusal.message
    searching = replace(BIG, fees=(("web_searches", 10 * USD),))
    plain, priced = decide(rulebook()).ladder[0].cost_max.usd, decide(rulebook(models=[searching]), asked).ladder[0].cost_max.usd
    assert priced - plain == 20 * USD // 1_000_000
    rules = Rulebook(policy(), with_flat(web_searches=25), rulebook().counter)
    assert decide(rules, asked).ladder[0].cost_max.usd - plain == 25
    soft = rulebook(policy(budget(mode=Mode.ACTUALS_ONLY)))
    assert decide(soft, asked).ladder[0].cost_max.usd == plain


def test_a_model_without_a_price_for_such_calls_is_as_good_as_unpriced_and_no_downgrade():
    embedding = replace(SMALL, name="embed", tiers=(Rates(2 * USD, 0, 2 * USD, 2 * USD),))
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("embed", "small")),))), [BIG, SMALL, embedding])
    assert refuse(rules, call("embed")).code == "model_not_priced"
    assert names(decide(rules)) == ["big", "small"]
    assert names(decide(rules, call("embed", output=Output.NONE))) == ["embed"]


def test_a_model_that_cannot_be_asked_on_the_route_is_no_downgrade():
    completions = replace(SMALL, dialects=frozenset({"completions"}))
    rules = rulebook(policy(models=LADDER), [BIG, MEDIUM, completions])
    assert names(decide(rules)) == ["big", "medium"]
    assert passed_over(rules) == {"small": "cannot be asked on this route"}
    assert names(decide(rules, call("small"))) == ["small"]  # asked for, it is the provider's to say


@pytest.mark.parametrize("asked", [call(unpriced=("web_search_options",)), call(service_tier="priority")], ids=["field", "tier"])
@pytest.mark.parametrize("mode", list(Mode))
def test_what_moves_the_price_unbounded_is_refused_under_a_hard_gate_only(asked, mode):
    rules = rulebook(policy(budget("run-ceiling", "run", mode=mode)))
    if mode is Mode.HARD_GATE:
        refusal = refuse(rules, asked)
        assert (refusal.code, refusal.param) == ("not_estimable", asked.unpriced[0] if asked.unpriced else "service_tier")
    else:
        assert names(decide(rules, asked)) == ["big"]


@pytest.mark.parametrize("kind", ["vision", "audio_input"])
def test_input_that_may_cost_more_than_text_is_refused_where_the_catalog_withholds_it(kind):
    deaf = model("deaf", capabilities=frozenset({"tools"}))
    asked = call("deaf", needs=frozenset({kind}))
    refusal = refuse(rulebook(models=[deaf]), asked)
    assert (refusal.code, kind in refusal.message) == ("not_estimable", True)
    decide(rulebook(policy(budget(mode=Mode.ADVISORY_ESTIMATE)), models=[deaf]), asked)
    decide(rulebook(models=[replace(deaf, capabilities=frozenset({kind}))]), asked)


def test_a_limit_that_comes_with_the_call_is_a_hard_gate_too():
    rules = rulebook(policy(budget("watch", "run", mode=Mode.ADVISORY_ESTIMATE)))
    asked = call(unpriced=("prediction",), directives=Directives(run_limit=USD))
    assert refuse(rules, asked).code == "not_estimable"


def test_a_cheaper_model_without_the_service_tier_is_passed_over():
    with_tier = replace(BIG, service_tiers=(("priority", BIG.tiers),))
    rules = rulebook(policy(models=LADDER), [with_tier, MEDIUM, replace(SMALL, service_tiers=(("priority", SMALL.tiers),))])
    assert names(decide(rules, call(service_tier="priority"))) == ["big", "small"]
    assert "service_tier" in passed_over(rules, call(service_tier="priority"))["medium"]


# -- alternatives -----------------------------------------------------------------------------------------------------------------


def test_alternatives_are_the_ladder_and_then_the_providers_cheaper_models():
    rules = rulebook(policy(models=ModelPolicy(downgrade=(("big", ("small",)),))))
    found = rules.alternatives(decide(rules), Reach(frozenset({"openai"})))
    assert [(of.name, plan.model) for of, plan in found] == [("small", "small"), ("medium", "medium")]
    assert all(charge.share_ppm == 1_000_000 for _, plan in found for charge in plan.charges)


def test_alternatives_that_fit_come_first():
    models = [BIG, *(model(f"m{price}", price) for price in range(1, 10))]
    rules = rulebook(models=models)
    most = decide(rules, call("m3")).ladder[0].cost_max.usd
    found = rules.alternatives(decide(rules), Reach(frozenset({"openai"})), lambda plan: plan.cost_max.usd <= most)
    assert [of.name for of, _ in found] == ["m3", "m2", "m1", "m9", "m8"]


def test_alternatives_can_do_what_the_call_needs():
    rules = rulebook(models=[BIG, replace(MEDIUM, capabilities=frozenset()), SMALL])
    found = rules.alternatives(decide(rules, call(needs=frozenset({"tools"}))), Reach(frozenset({"openai"})))
    assert [of.name for of, _ in found] == ["small"]


# -- counting beforehand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [LADDER, AUTO], ids=["ladder", "auto"])
def test_what_was_counted_beforehand_for_the_models_of_a_ladder_is_not_counted_by_the_decision(models):
    rules = rulebook(policy(models=models), [BIG, replace(MEDIUM, encoding=None), SMALL])
    asked = call()
    counts = rules.counts(asked)
    assert rules.uncounted_chars(asked, counts) == len("".join(asked.parts[0].texts)) > 0
    rules.count(asked, counts)
    assert rules.uncounted_chars(asked, rules.counts(asked)) == 0
    rules.counter.finish = None  # type: ignore[assignment]
    decided = rules.decide(asked, Reach(frozenset({"openai"})), NOW_MS, "bdg_1", counts)
    assert isinstance(decided, Decision)
    assert len(decided.ladder) == 3
    unknown = call("unheard-of")
    rules.count(unknown, rules.counts(unknown))
    assert rules.uncounted_chars(unknown, rules.counts(unknown)) == 0


def test_what_naming_the_alternatives_counts_can_be_counted_beforehand_too():
    rules = rulebook(policy(), [BIG, replace(MEDIUM, encoding="cl100k_base"), SMALL])
    asked = call()
    counts = rules.counts(asked)
    decided = decide(rules, asked)
    assert rules.uncounted_chars(asked, counts) == 0
    assert rules.uncounted_chars(asked, counts, beside=True) > 0
    rules.count(asked, counts, beside=True)
    rules.counter.finish = None  # type: ignore[assignment]
    found = rules.alternatives(decided, Reach(frozenset({"openai"})), counts=counts)
    assert [of.name for of, _ in found] == ["medium", "small"]


def test_given_an_anchor_only_what_is_new_is_counted_beforehand():
    rules = rulebook()
    first, new = call(), Part("user", ("four five",))
    plan = decide(rules, first).ladder[0]
    rules.learned.settled(first, BIG, plan, Usage(UsageSource.PROVIDER, 40, output_tokens=2), None)
    longer = replace(first, parts=(*first.parts, new))
    assert rules.uncounted_chars(longer, rules.counts(longer)) == len("four five")
    after = decide(rules, longer).ladder[0]
    assert (after.input_tokens, after.input_basis) == (42, "anchored")


def test_the_texts_of_a_call_are_counted_once_for_each_encoding():
    rules = rulebook(policy(models=LADDER), [BIG, MEDIUM, replace(SMALL, encoding="cl100k_base")])
    counted = []
    count = rules.counter.count_parts
    rules.counter.count_parts = lambda parts, encoding: counted.append(encoding) or count(parts, encoding)
    assert names(decide(rules)) == ["big", "medium", "small"]
    assert counted == ["o200k_base", "cl100k_base"]


def test_headers_that_say_who_is_calling_are_known_to_the_rulebook():
    assert rulebook().identity_headers == {"x-run-id", "x-agent-id", "x-feature", "x-team-id", "x-user-id"}


# -- always -----------------------------------------------------------------------------------------------------------------------

PRICES = st.integers(0, 50)
MODELS = st.lists(
    st.builds(
        lambda price, context, out, able, public: {
            "output_usd": price,
            "context": context,
            "max_output": out,
            "capabilities": frozenset({"tools"} if able else ()),
            "encoding": "o200k_base" if public else None,
        },
        PRICES,
        st.integers(100, 20_000),
        st.integers(1, 9_000),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)
BUDGETS = st.lists(
    st.tuples(
        st.sampled_from([("run",), ("agent",), (), ("model",), ("team", "provider"), ("agent", "model")]),
        st.sampled_from(list(Mode)),
        st.sampled_from(list(Unit)),
        st.integers(0, 1_000_000),
    ),
    max_size=5,
)
CALLS = st.builds(
    call,
    st.just("m0"),
    st.just(caller(agent="a1")),
    st.text("ab ", max_size=400),
    client_cap=st.none() | st.integers(1, 10_000),
    choices=st.integers(1, 4),
    needs=st.sampled_from([frozenset(), frozenset({"tools"})]),
    unpriced=st.sampled_from([(), ("models",)]),
    directives=st.builds(Directives, st.none() | st.just(USD), st.booleans(), st.booleans()),
)


@given(MODELS, BUDGETS, CALLS, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_ladder_holds_the_requested_model_then_ever_cheaper_plans_on_distinct_accounts(models, budgets, asked, auto, clamp):
    made = [model(f"m{place}", **facts) for place, facts in enumerate(models)]
    ladder = ModelPolicy(auto=True) if auto else ModelPolicy(downgrade=(("m0", tuple(each.name for each in made)),))
    listed = [
        budget(f"b{place}", *scope, mode=mode, unit=unit, downgrade_below_ppm=below)
        for place, (scope, mode, unit, below) in enumerate(budgets)
    ]
    rules = rulebook(replace(policy(models=ladder, output=OutputPolicy(clamp_to_budget=clamp)), budgets=tuple(listed)), made)
    answers = [rules.decide(asked, Reach(frozenset({"openai"})), NOW_MS, "bdg_1") for _ in range(2)]
    assert answers[0] == answers[1]  # whatever the rulebook remembers
    if not hasattr(answers[0], "ladder"):
        return
    plans = answers[0].ladder
    assert plans[0].model == "m0"
    assert asked.directives.downgrade or len(plans) == 1
    for plan, later in pairwise(plans):
        assert (later.cost_max.usd, later.cost_max.tokens) < (plan.cost_max.usd, plan.cost_max.tokens) or plan.cost_max.usd == 0
        assert later.cost_max.usd < plan.cost_max.usd or plan.model == later.model
    last = plans[-1].model
    for plan in plans:
        assert len(set(keys(plan))) == len(plan.charges)
        assert sum(charge.ceiling.own for charge in plan.charges) == 1
        assert plan.model != last or all(charge.share_ppm == 1_000_000 for charge in plan.charges)


def test_images_and_text_both_count():
    plain, pictured = call(), replace(call(), parts=(Part("user", ("one two three",), images=(Image("low"),)),))
    rules = rulebook(policy(RUN_CEILING))
    assert decide(rules, pictured).ladder[0].cost_max.usd > decide(rules, plain).ladder[0].cost_max.usd


# -- known costs ------------------------------------------------------------------------------------------------------------------


def test_a_known_cost_is_one_plan_that_counts_in_every_budget_but_those_over_models():
    rules = rulebook(policy(RUN_CEILING, budget("by-model", "model"), budget("tenant-month", "tenant")))
    decision = rules.for_cost(call("web_search"), Amounts(7, 0, 0), NOW_MS, "bdg_evt_1")
    assert isinstance(decision, Decision)
    (plan,) = decision.ladder
    assert (plan.model, plan.provider, plan.output_cap, plan.cost_max) == ("web_search", "-", 0, Amounts(7, 0, 0))
    assert [charge.ceiling.account.budget for charge in plan.charges] == ["run-ceiling", "tenant-month"]


def test_a_known_cost_without_a_dimension_that_a_budget_needs_is_refused():
    rules = rulebook(policy(budget("agent-day", "agent", missing=Missing.REFUSE)))
    refusal = rules.for_cost(call("web_search"), Amounts(7, 0, 0), NOW_MS, "bdg_evt_1")
    assert isinstance(refusal, Unservable)
    assert refusal.code == "dimension_required"


# -- output that no cap bounds ----------------------------------------------------------------------------------------------------


def test_a_call_that_writes_nothing_is_held_for_its_input_alone() -> None:
    asked = call(output=Output.NONE, directives=Directives(downgrade=False))
    plan = decide(rulebook(), asked).ladder[0]
    assert (plan.output_cap, plan.cost_max.tokens, plan.cost_max.usd) == (0, 3, 3 * 3 * USD // 1_000_000)


def test_inputs_of_one_request_each_have_the_context_to_themselves() -> None:
    small = model("small-context", context=10, max_output=8)
    asked = call("small-context", text="one " * 40, client_cap=4, inputs=8, choices=8)
    plan = decide(rulebook(models=[small]), asked).ladder[0]
    assert (plan.input_tokens, plan.output_cap, plan.cost_max.tokens) == (40, 4, 40 + 8 * 4)
    assert refuse(rulebook(models=[small]), replace(asked, inputs=1, choices=1)).code == "not_estimable"


def test_output_that_the_request_fixes_is_held_whole_or_refused() -> None:
    asked = call(output=Output.FIXED, client_cap=20_000, choices=2)
    plan = decide(rulebook(), asked).ladder[0]  # whatever text the model can write at most
    assert (plan.output_cap, plan.cost_max.tokens) == (20_000, 3 + 40_000)
    refused = refuse(rulebook(policy(output=OutputPolicy(max_tokens=19_999))), asked)
    assert refused.code == "not_estimable"
    assert "20000 output tokens" in refused.message
    assert "output.max_tokens" in refused.message


def test_a_plans_route_is_its_providers_as_the_rulebook_that_made_it_prices_it() -> None:
    there = Route("elsewhere", model("big-there", 20, provider="elsewhere"))

    def priced(output_usd: int) -> Rulebook:
        here = model("big", output_usd)
        known = Catalog("prices-1", {"big": here}, routes={"big": (Route("openai", here), there)})
        return Rulebook(policy(), known, TokenCounter(lambda _: Words()))

    cheap, dear = priced(30), priced(90)
    for rules, output_usd in ((cheap, 30), (dear, 90), (cheap, 30)):
        assert rules.route(decide(rules).ladder[0]).model.tiers[0].output == output_usd * USD
        assert rules.route(decide(rules, served=["elsewhere"]).ladder[0]) is there
