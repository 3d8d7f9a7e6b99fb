"""`penstock explain`: which budgets apply, the estimate line by line, the ladder, and what would be decided with these balances."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.admitting import over_budget
from gateway.core.policy import Limit, ModelPolicy, Share, Terms
from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Balance, Decision, Directives, Ending, Hold, Mode, Usage, UsageSource
from gateway.core.windows import WindowKind
from gateway.explain import Explanation
from gateway.ledger.contract import Barred, Debiting, Frozen, Ledger, Refusal, RunState, RunView, Settled, Settlement
from gateway.outlook import Known, known, placed
from tests.support.clock import NOW_MS, Clock
from tests.support.records import USD, caller
from tests.support.rulebooks import BIG, SMALL, budget, call, decide, model, policy, rulebook
from tests.support.stores import SqliteStore, opened

LADDER = ModelPolicy(downgrade=(("big", ("medium", "small")),))
SAVING = budget("run-ceiling", "run", limit=USD, downgrade_below_ppm=250_000)
ASKED = call(who=caller(agent="a1"), client_cap=1000)  # big: $0.030009, medium: $0.010003, small: $0.0010003


def explained(
    spent: int = 0,
    *,
    rules: Any = None,
    asked: Any = ASKED,
    run: RunView | None = None,
    budget_name: str = "run-ceiling",
    stored: int | None = None,
    **known: Any,
) -> str:
    """The explanation's text, with `spent` committed in the accounts of a budget; `stored` is a limit that is kept with them."""
    rules = rules or rulebook(policy(SAVING, models=LADDER))
    decision = decide(rules, asked)
    balances = {
        charge.ceiling.account.key: Balance(charge.ceiling.account, stored, spent, 0)
        for plan in decision.ladder
        for charge in plan.charges
        if charge.ceiling.account.name == budget_name
    }
    runs = {} if run is None else {run.run: run}
    return "\n".join(Explanation(decision, rules, Known(balances, runs, **known)).lines())


def view(limit: int | None, raised: bool = False, state: RunState = RunState.ACTIVE, run: str = "r1") -> RunView:
    return RunView("default", run, "key_a", state, limit, raised, 0, 0, 0, 1, 0, 0)


def test_it_names_the_caller_the_budgets_the_ladder_and_the_decision() -> None:
    text = explained(USD // 10)
    assert "caller    tenant default, key key_a, run r1, agent a1" in text
    assert "run-ceiling        run r1 · lifetime · $1.00 · hard_gate · committed $0.10, reserved $0.00" in text
    assert "plan 1    big at openai, at most 1000 output tokens: up to $0.030009" in text
    assert "plan 3    small at openai" in text
    assert text.splitlines()[-1] == "decision  allow: big would be called"


def test_the_lines_of_the_estimate_add_up_to_what_the_plan_holds() -> None:
    lines = explained(rules=rulebook(policy(SAVING))).splitlines()
    assert [line.split() for line in lines if " tokens  $" in line] == [
        ["input:", "1", "message", "3", "tokens", "$0.000009"],
        ["output:", "1000", "tokens", "1,000", "tokens", "$0.03"],
    ]


def test_a_plan_says_what_it_holds_at_first_and_where() -> None:
    rules = rulebook(policy(budget("run-ceiling", "run", sliced=True), budget("month", limit=100 * USD)))
    lines = explained(rules=rules, asked=call(stream=True, client_cap=8_000)).splitlines()
    assert "  held at first in run-ceiling: $0.030729, the input and 1,024 tokens of output" in lines
    assert not any("held at first" in line for line in explained(rules=rules).splitlines())


@pytest.mark.parametrize(
    ("spent", "decision"),
    [
        (0.71, "allow: big would be called"),
        (0.73, "downgrade: medium would be called"),
        (0.745, "downgrade: small would be called"),
        (0.9989997, "downgrade: small would be called"),
        (0.9989998, "block: no plan fits"),
    ],
)
def test_the_decision_is_that_of_the_balances(spent: float, decision: str) -> None:
    assert explained(round(spent * USD)).splitlines()[-1] == f"decision  {decision}"


def test_a_plan_that_does_not_fit_says_what_it_does_not_fit_and_why() -> None:
    assert "does not fit run-ceiling (this plan may use 75% of it: the rest is for cheaper ones)" in explained(USD * 3 // 4)
    assert "does not fit run-ceiling\n" in explained(USD)


@pytest.mark.parametrize("scope", ["run", "model"])
def test_what_is_kept_for_wrapping_up_is_told_from_what_is_kept_for_cheaper_plans(scope: str) -> None:
    keeping = budget("b", scope, limit=USD, downgrade_below_ppm=250_000, keep_for_wrap_up_ppm=50_000)
    lines = explained(USD, rules=rulebook(policy(keeping, models=LADDER)), budget_name="b").splitlines()
    assert [line.strip() for line in lines if "does not fit" in line] == [
        "does not fit b (this plan may use 75% of it: the rest is for cheaper ones)",
        "does not fit b (this plan may use 75% of it: the rest is for cheaper ones)",
        "does not fit b (this plan may use 95% of it: the rest is kept for calls that wrap up)",
    ]
    wrapping = replace(ASKED, directives=Directives(wrap_up=True))
    text = explained(USD * 96 // 100, rules=rulebook(policy(keeping, models=LADDER)), budget_name="b", asked=wrapping)
    assert text.endswith("downgrade: small would be called")


def test_a_model_that_is_passed_over_says_why() -> None:
    rules = rulebook(policy(models=LADDER), [BIG, replace(SMALL, name="medium", capabilities=frozenset()), SMALL])
    assert "not in the ladder: medium: lacks tools" in explained(rules=rules, asked=call(needs=frozenset({"tools"})))


def test_an_advisory_budget_that_would_be_passed_is_a_warning() -> None:
    rules = rulebook(policy(budget("watch", "agent", limit=USD, mode=Mode.ADVISORY_ESTIMATE)))
    assert explained(0, rules=rules, budget_name="watch").endswith("decision  allow: big would be called")
    text = explained(USD, rules=rules, budget_name="watch")
    assert text.endswith("decision  advisory_warn: big would be called, above what watch advises")


def test_what_only_counts_actuals_blocks_once_they_are_spent() -> None:
    rules = rulebook(policy(budget("run-ceiling", "run", limit=USD, mode=Mode.ACTUALS_ONLY)))
    assert explained(USD - 1, rules=rules).endswith("allow: big would be called")
    assert explained(USD, rules=rules).endswith("block: no plan fits")


def test_a_free_model_passes_with_nothing_left() -> None:
    rules = rulebook(models=[model("house", 0)])
    assert explained(50 * USD, rules=rules, asked=call("house")).endswith("allow: house would be called")


@pytest.mark.parametrize(
    ("run", "asked_limit", "shown"),
    [
        (None, None, "$1.00"),
        (view(USD // 2), None, "$0.50"),
        (view(2 * USD), None, "$1.00"),
        (view(2 * USD, raised=True), None, "$2.00"),
        (None, USD // 4, "$0.25"),
        (view(USD // 2), USD // 4, "$0.25"),
        (None, 3 * USD, "$1.00"),
    ],
    ids=["policy", "tightened", "no looser", "raised by the admin", "with the call", "both", "no looser with the call"],
)
def test_the_runs_own_limit_is_reckoned_with(run: RunView | None, asked_limit: int | None, shown: str) -> None:
    asked = replace(ASKED, directives=Directives(run_limit=asked_limit))  # type: ignore[arg-type]
    assert f"· lifetime · {shown} · hard_gate" in explained(run=run, asked=asked)


def test_a_limit_that_is_kept_with_an_account_counts_instead_of_the_policys() -> None:
    assert "· lifetime · $3.00 · hard_gate" in explained(stored=3 * USD)
    assert "· lifetime · $0.50 · hard_gate" in explained(stored=3 * USD, run=view(USD // 2))


PART = replace(budget("part", "run", limit=0), terms=Terms(Share(Unit.USD, 250_000, "month"), Mode.HARD_GATE))
SHARING = policy(PART, replace(budget("month", limit=100 * USD), renamed_from="old"))


def test_a_share_is_shown_as_what_its_first_call_would_pin_and_then_as_what_it_pinned() -> None:
    text = explained(90 * USD, rules=rulebook(SHARING), budget_name="month")
    assert "part               run r1 · lifetime · $2.50 (25% of month) · hard_gate" in text
    assert "· lifetime · $7.00 (25% of month) · hard_gate" in explained(
        0, rules=rulebook(SHARING), budget_name="part", stored=7 * USD
    )
    assert explained(100 * USD, rules=rulebook(SHARING), budget_name="month").endswith("block: no plan fits")


@pytest.mark.parametrize("run", ["r1", "mother"])
@pytest.mark.parametrize(("state", "words"), [(RunState.STOPPED, "was stopped"), (RunState.PAUSED, "is paused")])
def test_a_run_that_is_halted_or_an_ancestor_that_is_takes_no_call(run: str, state: RunState, words: str) -> None:
    asked = replace(ASKED, caller=replace(ASKED.caller, ancestry=("mother",)))
    assert explained(asked=asked, run=view(None, state=state, run=run)).endswith(f"decision  block: the run {run} {words}")


def test_an_ancestors_budgets_and_its_own_limit_are_shown() -> None:
    asked = replace(ASKED, caller=replace(ASKED.caller, ancestry=("mother",)), directives=Directives(run_limit=USD // 4))
    text = explained(asked=asked, run=view(USD // 2, run="mother"))
    assert "run r1 · lifetime · $0.25 " in text
    assert "run mother · lifetime · $0.50 " in text


@pytest.mark.parametrize(
    ("scope", "decision"),
    [
        ((), "block: tenant is frozen"),
        ((("agent", "a1"),), "block: agent=a1 is frozen"),
        ((("agent", "a2"),), "allow: big would be called"),
    ],
)
def test_a_frozen_scope_takes_no_call(scope: Any, decision: str) -> None:
    assert explained(frozen=(Frozen(scope, 0, "me", "why"),)).endswith(f"decision  {decision}")


def test_a_rolling_window_reads_as_the_policy_writes_it() -> None:
    rate = replace(
        budget("rate", "run", window=WindowKind.ROLLING, span_ms=600_000), terms=Terms(Limit(Unit.CALLS, 9), Mode.HARD_GATE)
    )
    assert "rate               run r1 · rolling 10m · 9 calls" in explained(rules=rulebook(policy(rate)))


def test_a_budget_for_everyone_and_one_in_calls_read_as_such() -> None:
    text = explained(rules=rulebook(policy(budget("everything"), budget("steps", "run", unit=Unit.CALLS, limit=1_200))))
    assert "everything         tenant · lifetime · $5.00" in text
    assert "steps              run r1 · lifetime · 1,200 calls" in text
    assert "run-limit          run r1 · lifetime · no limit" in text


def test_a_budget_in_credits_reads_as_such_and_is_in_no_models_way() -> None:
    ceilings = (
        budget("credits", "run", unit=Unit.CREDITS, limit=0),
        budget("risk", unit=Unit.RISK_POINTS, limit=1_200, downgrade_below_ppm=500_000),
    )
    text = explained(rules=rulebook(policy(*ceilings)))
    assert "credits            run r1 · lifetime · 0 credits · hard_gate · committed 0 credits, reserved 0 credits" in text
    assert "risk               tenant · lifetime · 1,200 risk points" in text
    assert text.endswith("allow: big would be called")


# -- what is said is what the ledger then does ------------------------------------------------------------------------------------


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with opened(SqliteStore(tmp_path), Clock()) as ledger:
        yield ledger


CHILD = replace(caller("child"), parent="r1")
WRAP_UP = Directives(wrap_up=True)
CENT = USD // 100
# Who asks, for calls of some 3 cents, and how many of them pass before one is refused.
IN_FORCE = {
    "a ceiling": ([budget("b", "run", limit=10 * CENT)], [(caller(), Directives(), 3)]),
    "a share": ([replace(PART, name="a"), budget("month", limit=40 * CENT)], [(caller(), Directives(), 3), (caller("r2"), Directives(), 2)]),
    "a share that came second": ([budget("month", limit=40 * CENT), PART], [(caller(), Directives(), 3), (caller("r2"), Directives(), 2)]),
    "wrapping up": ([budget("b", "run", limit=10 * CENT, keep_for_wrap_up_ppm=500_000)], [(caller(), Directives(), 1), (caller(), WRAP_UP, 2)]),
    "a rolling window": ([budget("b", "run", limit=10 * CENT, window=WindowKind.ROLLING, span_ms=60_000)], [(caller(), Directives(), 3)]),
    "the run's own limit": ([budget("b", "agent", limit=10 * CENT)], [(caller(), Directives(run_limit=7 * CENT), 2), (caller("r2"), Directives(), 1)]),
    "a child": ([budget("b", "run", limit=10 * CENT)], [(CHILD, Directives(), 3), (caller(), Directives(), 0), (caller("r2"), Directives(), 3)]),
    "a child of a limited run": ([], [(caller(), Directives(run_limit=7 * CENT), 2), (CHILD, Directives(), 0)]),
    "a pause": ([replace(budget("b", "run"), terms=Terms(Limit(Unit.USD, 4 * CENT), Mode.HARD_GATE, pause=True))], [(caller(), Directives(), 1)]),
    "steps": ([budget("b", "run", limit=2, unit=Unit.CALLS)], [(caller(), Directives(), 2)]),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_FORCE)
async def test_what_explain_says_is_what_the_ledger_then_does(ledger: Ledger, case: str) -> None:
    budgets, turns = IN_FORCE[case]
    rules = rulebook(policy(*budgets) if budgets else replace(policy(), budgets=()))
    number = 0
    for who, directives, expected in turns:
        passed = -1
        told = "allow"
        while told.startswith("allow"):
            number, passed = number + 1, passed + 1
            asked = call(who=await placed(ledger, who), client_cap=1000, directives=directives)
            decision = replace(decide(rules, asked), id=f"bdg_{number}")
            told = "\n".join(Explanation(decision, rules, await known(ledger, decision)).lines()).rpartition("decision  ")[2]
            answer = await ledger.reserve(decision, 60_000)
            if isinstance(answer, Hold):
                assert told == f"allow: {answer.plan.model} would be called"
                usage = Usage(UsageSource.PROVIDER, 3, output_tokens=1000)
                await ledger.commit("default", answer.id, Settlement(answer.plan.cost_max, usage, Ending.COMPLETED))
            else:
                assert isinstance(answer, Refusal | Barred), answer
                assert told.startswith("block"), told
        assert passed == expected


async def test_a_call_of_a_model_passes_a_ceiling_in_credits_that_is_used_up(ledger: Ledger) -> None:
    rules = rulebook(policy(budget("credits", limit=3, unit=Unit.CREDITS), budget("b", "run", limit=10 * CENT)))
    spent = rules.for_cost(call(), Amounts(0, 0, 1, 3), NOW_MS, "bdg_spent")
    assert isinstance(spent, Decision)
    answer = await ledger.debit(spent, Settlement(Amounts(0, 0, 1, 3), Usage(UsageSource.COUNTED), Ending.DEBITED), Debiting.ASK)
    assert isinstance(answer, Settled)
    more = rules.for_cost(call(), Amounts(0, 0, 1, 1), NOW_MS, "bdg_more")
    assert isinstance(more, Decision)
    refusal = await ledger.reserve(more, 60_000)
    assert isinstance(refusal, Refusal)
    assert "limit 3 credits" in over_budget(refusal).problem.detail
    held = await ledger.reserve(decide(rules, call(client_cap=1000)), 60_000)
    assert isinstance(held, Hold)
    assert {each.account.budget: each.reserved for each in held.balances}["credits"] == 0


async def test_a_run_that_waits_for_a_raise_is_said_to_be_paused(ledger: Ledger) -> None:
    budgets, _ = IN_FORCE["a pause"]
    rules = rulebook(policy(*budgets))
    for number in range(2):
        await ledger.reserve(replace(decide(rules, call(client_cap=1000), at_ms=NOW_MS), id=f"bdg_{number}"), 60_000)
    decision = decide(rules)
    lines = list(Explanation(decision, rules, await known(ledger, decision)).lines())
    assert lines[-1] == "decision  block: the run r1 is paused"
