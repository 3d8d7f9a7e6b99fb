"""Budgets that operators make at run time: what they are for, whom they apply to, and how calls meet them."""

from dataclasses import replace

import pytest

from gateway.core.decide import Reach, Rulebook, Unservable
from gateway.core.grants import (
    NO_GRANTS,
    Grant,
    Grants,
    GrantStatus,
    NoScope,
    Unread,
    filters,
    levels_of,
    pattern_of,
    scope_for,
    scope_of,
    text_of,
)
from gateway.core.policy import ModelPolicy, Policy
from gateway.core.scopes import Amounts, Caller, Unit
from gateway.core.values import Basis, Directives, Mode
from tests.support.clock import NOW_MS
from tests.support.records import caller
from tests.support.rulebooks import RUN_CEILING, budget, call, keys, policy, rulebook

EMPTY = Policy("policy-1", ())
SERVED = Reach(frozenset({"openai"}))


def granted(*grants: Grant, of=None, halted=None) -> Rulebook:
    return rulebook(of or policy(RUN_CEILING)).beside(Grants(grants, halted))


def decided(rules, who=None, **facts):
    return rules.decide(call(who=who, **facts), SERVED, NOW_MS, "bdg_1")


def charged(rules, who=None):
    return keys(decided(rules, who).ladder[0])


def grant(scope="tenant:default", unit=Unit.USD, **facts):
    return Grant("default", scope_of(scope), unit, **facts)


# -- scopes -----------------------------------------------------------------------------------------------------------------------


def test_a_scope_is_read_in_lower_case_and_told_again():
    scope = scope_of("tenant:acme/workspace:Eng/agent:Bot-1.x")
    assert scope == (("tenant", "acme"), ("workspace", "eng"), ("agent", "bot-1.x"))
    assert text_of(scope) == "tenant:acme/workspace:eng/agent:bot-1.x"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no part of a scope"),
        ("acme", "no part of a scope"),
        ("tenant:", "has to be"),
        ("tenant:a b", "has to be"),
        ("tenant:" + "a" * 129, "has to be"),
        ("tenant:*", "has to be"),
        ("team:a", "no part of a scope"),
        ("workspace:eng", "begins with its tenant"),
        ("tenant:a/agent:b/workspace:c", "in the order"),
        ("tenant:a/tenant:b", "in the order"),
        ("tenant:a/", "no part of a scope"),
        ("tenant:a//agent:b", "no part of a scope"),
    ],
)
def test_what_is_no_scope_is_refused_and_says_why(text, why):
    with pytest.raises(NoScope, match=why):
        scope_of(text)


def test_a_callers_levels_are_its_dimensions_and_its_run_is_its_workflow():
    who = caller(agent="Bot", workspace="Eng", team="x")
    assert levels_of(who) == {"tenant": "default", "agent": "bot", "workspace": "eng", "workflow": "r1"}
    assert scope_for(who) == (("tenant", "default"), ("workspace", "eng"), ("workflow", "r1"), ("agent", "bot"))


def test_a_named_workflow_goes_before_the_run_and_an_issued_run_is_none():
    assert levels_of(caller(workflow="w"))["workflow"] == "w"
    assert "workflow" not in levels_of(Caller("default", "k", "run_1", "run_1", run_issued=True))


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("tenant:acme", ["tenant:acme", "tenant:acme/agent:a"], ["tenant:other"]),
        ("tenant:acme/*", ["tenant:acme/agent:a", "tenant:acme/workspace:w"], ["tenant:acme", "tenant:b/agent:a"]),
        ("agent:*", ["tenant:acme/agent:a"], ["tenant:acme", "tenant:acme/toolset:t"]),
        ("*/agent:summarizer", ["tenant:a/workspace:b/agent:summarizer"], ["tenant:a/agent:other"]),
        ("tenant:a/workspace:*", ["tenant:a/workspace:b/agent:c"], ["tenant:a/agent:c"]),
        ("tenant:a/workspace:ENG/*", ["tenant:a/workspace:eng/agent:c"], ["tenant:a/workspace:eng"]),
        ("workspace:eng", ["tenant:a/workspace:eng"], ["tenant:a/workspace:sales"]),
    ],
)
def test_a_pattern_takes_whoever_has_all_its_values(pattern, takes, leaves):
    read = pattern_of(pattern)
    assert all(read.takes(dict(scope_of(text))) for text in takes)
    assert not any(read.takes(dict(scope_of(text))) for text in leaves)


@pytest.mark.parametrize("text", ["", "*", "*/*", "team:a", "agent:a/workspace:b", "agent:a b"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(NoScope):
        pattern_of(text)


def test_a_keys_filter_allows_scopes_that_one_of_its_entries_is_in():
    eng = scope_of("tenant:a/workspace:eng/agent:x")
    assert filters([], eng)
    assert filters(["workspace:eng"], eng)
    assert filters(["workspace:sales", "agent:*"], eng)
    assert filters(["tenant:a/workspace:eng"], eng)
    assert not filters(["workspace:sales"], eng)
    assert not filters(["agent:*"], scope_of("tenant:a/workspace:eng"))
    assert not filters(["what is this"], eng)


# -- whom a grant applies to ------------------------------------------------------------------------------------------------------


def test_a_grant_is_a_hard_gate_of_every_caller_who_has_its_values():
    rules = granted(grant(), grant("tenant:default/agent:bot"), grant("tenant:default/workspace:eng/agent:bot"))
    assert charged(rules, caller(agent="Bot")) == [
        "run-ceiling|run=r1|lifetime|usd",
        "cycles|tenant=default|lifetime|usd",
        "cycles|tenant=default,agent=bot|lifetime|usd",
    ]
    assert charged(rules, caller(agent="other"))[1:] == ["cycles|tenant=default|lifetime|usd"]


def test_a_grant_has_no_limit_but_the_one_stored_with_its_account():
    ceiling = grant().charge.ceiling
    assert (ceiling.limit, ceiling.mode, ceiling.basis) == (0, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED)
    assert not ceiling.outage_allow


def test_a_grant_over_a_workflow_is_met_by_the_run_of_that_name():
    rules = granted(grant("tenant:default/workflow:r1"))
    assert "cycles|tenant=default,workflow=r1|lifetime|usd" in charged(rules, caller())
    assert len(charged(rules, Caller("default", "key_a", "r2", "r2"))) == 1


def test_a_child_draws_on_its_ancestors_grants_and_once_on_one_that_both_have():
    rules = granted(grant(), grant("tenant:default/workflow:r0"), of=EMPTY)
    child = replace(caller(), ancestry=("r0",))
    assert [key for key in charged(rules, child) if key.startswith("cycles|")] == [
        "cycles|tenant=default|lifetime|usd",
        "cycles|tenant=default,workflow=r0|lifetime|usd",
    ]


def test_another_tenants_grants_stand_in_nobodys_way():
    assert charged(granted(Grant("acme", scope_of("tenant:acme"), Unit.USD))) == ["run-ceiling|run=r1|lifetime|usd"]


def test_each_plan_of_a_ladder_meets_it_beside_the_budgets_over_models():
    of = policy(budget("per-model", "model"), RUN_CEILING, models=ModelPolicy(downgrade=(("big", ("small",)),)))
    first, second = decided(granted(grant(), of=of)).ladder
    assert keys(first) == [
        "per-model|model=big|lifetime|usd",
        "run-ceiling|run=r1|lifetime|usd",
        "cycles|tenant=default|lifetime|usd",
    ]
    assert keys(second)[0] == "per-model|model=small|lifetime|usd"
    assert keys(second)[1:] == keys(first)[1:]


def test_with_a_grant_what_cannot_be_priced_is_refused():
    unpriced = {"unpriced": ("web_search_options",)}
    assert not isinstance(decided(rulebook(EMPTY), **unpriced), Unservable)
    refused = decided(granted(grant(), of=EMPTY), **unpriced)
    assert isinstance(refused, Unservable)
    assert refused.code == "not_estimable"


def test_it_is_met_by_what_is_spent_beside_the_proxy_too():
    decision = granted(grant()).for_cost(call(), Amounts(5, 0), NOW_MS, "bdg_1")
    assert "cycles|tenant=default|lifetime|usd" in keys(decision.ladder[0])


def test_other_grants_take_the_place_of_these_from_the_next_call_on():
    rules = granted(grant())
    assert len(charged(rules)) == 2
    assert len(charged(rules.beside(NO_GRANTS))) == 1
    assert len(charged(rules.beside(Grants([grant(), grant(unit=Unit.TOKENS)])))) == 3


# -- frozen, closed, suspended ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [GrantStatus.FROZEN, GrantStatus.CLOSED])
def test_a_frozen_or_closed_grant_refuses_whoever_counts_in_it(status):
    rules = granted(grant("tenant:default/agent:bot", status=status))
    refused = decided(rules, caller(agent="bot"))
    assert isinstance(refused, Unservable)
    assert refused.code == "scope_frozen"
    assert f"tenant:default/agent:bot is {status}" in refused.message
    assert not isinstance(decided(rules, caller(agent="other")), Unservable)


def test_what_has_been_spent_already_is_recorded_there_all_the_same():
    rules = granted(grant(status=GrantStatus.FROZEN))
    assert isinstance(rules.for_cost(call(), Amounts(5, 0), NOW_MS, "bdg_1"), Unservable)
    spent = rules.for_cost(call(), Amounts(5, 0), NOW_MS, "bdg_1", spent=True)
    assert "cycles|tenant=default|lifetime|usd" in keys(spent.ladder[0])


def test_a_suspended_tenant_takes_no_calls_of_any_door():
    rules = granted(halted={"default": "suspended"})
    refused = decided(rules, directives=Directives())
    assert isinstance(refused, Unservable)
    assert (refused.code, "default is suspended" in refused.message) == ("scope_frozen", True)


def test_a_wide_grant_is_found_among_thousands_of_narrow_ones_at_once():
    many = [grant(f"tenant:default/workflow:run-{number}") for number in range(5_000)]
    rules = granted(grant(), *many)
    assert charged(rules, Caller("default", "key_a", "run-17", "run-17"))[1:] == [
        "cycles|tenant=default|lifetime|usd",
        "cycles|tenant=default,workflow=run-17|lifetime|usd",
    ]


# -- as long as nobody could read them --------------------------------------------------------------------------------------------


UNREAD = Grants(unread=Unread("ledger_lost", "another store"))


def test_while_nobody_knows_which_grants_there_are_no_call_is_let_through():
    for of in (policy(RUN_CEILING), EMPTY):
        refused = decided(rulebook(of).beside(UNREAD))
        assert isinstance(refused, Unservable)
        assert (refused.code, "another store" in refused.message) == ("ledger_lost", True)
        assert isinstance(rulebook(of).beside(UNREAD).for_cost(call(), Amounts(5, 0), NOW_MS, "bdg_1", spent=True), Unservable)


def test_unless_every_budget_would_let_it_through_in_an_outage():
    open_budget = replace(RUN_CEILING, terms=replace(RUN_CEILING.terms, outage_allow=True))
    assert not isinstance(decided(rulebook(policy(open_budget)).beside(UNREAD)), Unservable)
    assert isinstance(decided(rulebook(policy(open_budget, budget("other", "agent"))).beside(UNREAD)), Unservable)
