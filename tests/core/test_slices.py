"""How much of a stream's output is held at first, which budgets ask for that, and how it grows."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import slices
from gateway.core.ceilings import RUN_LIMIT
from gateway.core.meter import Meter
from gateway.core.money import price_of
from gateway.core.policy import Limit, Override, Terms
from gateway.core.scopes import Unit
from gateway.core.slices import FIRST, ON_THE_WAY, SMALLEST
from gateway.core.tokens import TokenCounter
from gateway.core.values import Call, Directives, Mode, Output, Plan, Usage, UsageSource
from tests.support.records import USD
from tests.support.rulebooks import BIG, Words, budget, call, decide, model, policy, rulebook

SLICED = budget("run-ceiling", "run", sliced=True)
MONTH = budget("month", limit=100 * USD)
CAP = 8_000


def stream(**facts: Any) -> Call:
    return call(stream=True, client_cap=CAP, **facts)


def plan(*budgets: Any, asked: Call | None = None, models: Any = (BIG,)) -> Plan:
    return decide(rulebook(policy(*budgets), models), asked or stream()).ladder[0]


def held(of: Plan) -> dict[str, int]:
    return {charge.ceiling.account.budget: of.held_at(charge) for charge in of.charges}


def cost(output_tokens: int) -> int:
    """Of a call of `big` whose input is what `call()` has."""
    return price_of(plan().input_tokens, 3 * USD) + price_of(output_tokens, 30 * USD)


# -- what is held at first ----------------------------------------------------------------------------------------------------------


def test_a_stream_holds_its_input_and_a_first_slice_where_the_budget_says_so_and_its_worst_case_elsewhere() -> None:
    made = plan(SLICED, MONTH)
    assert held(made) == {"run-ceiling": cost(FIRST), "month": cost(CAP)}
    assert made.held == made.cost_max


def test_where_every_budget_is_sliced_a_slice_is_the_most_that_is_held() -> None:
    tokens = budget("tokens", "run", limit=100_000, unit=Unit.TOKENS, sliced=True)
    made = plan(SLICED, tokens)
    assert made.slice is not None
    assert made.held == made.slice.cost
    assert held(made) == {"run-ceiling": cost(FIRST), "tokens": made.input_tokens + FIRST}


def test_choices_have_a_slice_each() -> None:
    assert held(plan(SLICED, asked=stream(choices=3))) == {"run-ceiling": cost(3 * FIRST)}


@pytest.mark.parametrize(
    "asked",
    [
        call(client_cap=CAP),
        stream(output=Output.FIXED),
        stream(background=True),
        call(stream=True, client_cap=FIRST),
    ],
)
def test_what_does_not_show_as_it_is_written_and_what_is_short_is_held_whole(asked: Call) -> None:
    made = plan(SLICED, asked=asked)
    assert made.slice is None
    assert not any(charge.sliced for charge in made.charges)
    assert held(made) == {"run-ceiling": made.cost_max.usd}


def test_a_model_that_may_reason_unseen_is_held_whole_unless_the_request_rules_that_out() -> None:
    thinker = (model("big", 30, reasoning=True),)
    assert plan(SLICED, models=thinker).slice is None
    assert plan(SLICED, models=thinker, asked=stream(reasons=False)).slice is not None


@pytest.mark.parametrize("mode", [Mode.ACTUALS_ONLY, Mode.ADVISORY_ESTIMATE])
def test_where_holds_stand_in_no_calls_way_the_worst_case_is_told(mode: Mode) -> None:
    assert plan(budget("run-ceiling", "run", mode=mode, sliced=True)).slice is None


def test_an_override_of_the_mode_decides_whether_there_are_slices_and_nothing_else_does() -> None:
    lenient = Override((("run", "*"),), Terms(Limit(Unit.USD, 5 * USD), Mode.ADVISORY_ESTIMATE))
    dearer = Override((("run", "*"),), Terms(Limit(Unit.USD, 9 * USD), Mode.HARD_GATE))
    assert plan(replace(SLICED, overrides=(lenient,))).slice is None
    assert plan(replace(SLICED, overrides=(dearer,))).slice is not None


@pytest.mark.parametrize(
    ("budgets", "sliced"),
    [
        ((budget("month", sliced=True),), True),
        ((budget("month", sliced=True), budget("day")), False),
        ((budget("month", sliced=True), budget("watch", mode=Mode.ADVISORY_ESTIMATE)), True),
        ((budget("watch", mode=Mode.ADVISORY_ESTIMATE, sliced=True),), False),
    ],
)
def test_a_runs_own_limit_is_held_as_all_that_stands_in_its_way_is(budgets: Any, sliced: bool) -> None:
    made = plan(*budgets, asked=stream(directives=Directives(run_limit=USD)))
    [own] = [charge for charge in made.charges if charge.ceiling.account.budget == RUN_LIMIT]
    assert own.sliced is sliced


def test_a_budget_over_models_is_sliced_like_any_and_equal_charges_are_one_tuple() -> None:
    rules = rulebook(policy(budget("per-model", "model", sliced=True), SLICED, MONTH), (BIG,))
    first, second = decide(rules, stream()).ladder[0], decide(rules, stream(text="another one")).ladder[0]
    assert [charge.sliced for charge in first.charges] == [True, True, False]
    assert first.charges is second.charges
    whole = decide(rules, call(client_cap=CAP)).ladder[0]
    assert not any(charge.sliced for charge in whole.charges)
    assert whole.charges is decide(rules, call(client_cap=CAP)).ladder[0].charges


# -- how it grows -------------------------------------------------------------------------------------------------------------------

tokens = st.integers(0, 100_000)


@given(held_tokens=st.integers(1, 100_000), seen=tokens, most=st.integers(1, 100_000))
def test_the_next_slice_is_larger_by_half_of_what_was_written_and_never_beyond_the_cap(
    held_tokens: int, seen: int, most: int
) -> None:
    first, *smaller = slices.caps_after(held_tokens, seen, most)
    assert first == min(most, max(held_tokens, seen) + max(FIRST, seen // 2))
    assert smaller in ([], [min(most, max(held_tokens, seen) + SMALLEST)])


@given(held_tokens=st.integers(FIRST, 100_000), seen=tokens, most=st.integers(1, 100_000))
def test_more_is_asked_for_before_the_output_may_go_no_further(held_tokens: int, seen: int, most: int) -> None:
    sure = slices.sure_of(held_tokens, most)
    assert sure == (held_tokens if held_tokens >= most else held_tokens - ON_THE_WAY)
    assert slices.ask_from(seen, sure) <= max(seen, sure)


# -- what is seen, as it would be charged -------------------------------------------------------------------------------------------


def words(number: int, encoding: str | None = "o200k_base") -> Meter:
    made = Meter(TokenCounter(lambda _: Words()), encoding)
    for _ in range(number):
        made.text(" word")
    return made


def test_what_was_seen_is_counted_exactly_where_it_may_be_too_much() -> None:
    assert words(100).within(100)
    assert not words(101).within(100)


def test_what_is_counted_by_another_tokenizer_is_counted_as_it_is_charged() -> None:
    seen = words(100, encoding=None)
    charged = seen.usage(0).output_tokens
    assert charged > 100
    assert seen.within(charged)
    assert not seen.within(charged - 1)
    assert seen.charged_tokens == charged


def test_the_providers_running_count_is_believed_where_it_is_more() -> None:
    seen = words(10)
    seen.report(Usage(UsageSource.PROVIDER, 5, output_tokens=50))
    assert not seen.within(49)
    assert seen.within(50)
    assert seen.charged_tokens == 50
