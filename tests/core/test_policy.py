"""What a policy's rules match, and which of several wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.policy import Limit, Margin, ModelPolicy, OutputPolicy, Override, Terms
from gateway.core.scopes import Unit
from gateway.core.values import Mode
from gateway.core.windows import WindowKind
from tests.support.records import USD, caller
from tests.support.rulebooks import budget

TERMS = Terms(Limit(Unit.USD, USD), Mode.HARD_GATE)


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({"team": "research"}, True),
        ({"team": "res*"}, True),
        ({"team": "Research"}, False),
        ({"agent": "nightly-[0-9]"}, True),
        ({"team": "research", "agent": "daily-*"}, False),
        ({"user": "*"}, False),
        ({"run": "r1"}, True),
        ({"key": "key_?"}, True),
        ({"tenant": "default"}, True),
    ],
    ids=lambda value: ",".join(f"{name}={glob}" for name, glob in value.items()) if isinstance(value, dict) else "",
)
def test_an_override_matches_when_each_of_its_patterns_does(match, matches):
    assert Override(tuple(match.items()), TERMS).matches(caller(team="research", agent="nightly-7")) is matches


def test_without_a_matching_override_the_budgets_own_terms_apply():
    other = Override((("team", "x"),), TERMS)
    assert budget("b", overrides=(other,)).terms_for(caller()).limit.amount == 5 * USD
    assert budget("b", overrides=(other,)).terms_for(caller(team="x")) is TERMS


def test_a_budgets_accounts_go_by_its_former_name_and_its_window_by_its_length():
    renamed = budget("new", renamed_from="old", window=WindowKind.ROLLING, span_ms=5_400_000)
    assert (renamed.name, renamed.identity, renamed.window_name) == ("new", "old", "rolling 90m")
    assert (budget("b").identity, budget("b", window=WindowKind.DAY).window_name) == ("b", "day")


@pytest.mark.parametrize(("margin", "above"), [(Margin(), 0), (Margin(ppm=100_000), 99), (Margin(amount=7), 7)])
def test_a_margin_is_a_share_rounded_down_or_an_amount(margin, above):
    assert margin.above(999) == above


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("gpt-4o", 8192), ("o3", 32768), ("gpt-5-mini", 32768), ("gpt-5-codex", 64000), ("gpt-5-codex-mini", 32768)],
)
def test_the_longest_pattern_gives_the_default_cap(model, tokens):
    output = OutputPolicy((*OutputPolicy().default_by_model, ("gpt-5-codex", 64000)))
    assert output.default_for(model) == tokens


def test_a_model_that_no_pattern_matches_has_no_default_cap():
    assert OutputPolicy((("gpt-*", 100),)).default_for("claude") is None


def test_models_are_allowed_by_any_of_the_patterns():
    models = ModelPolicy(allow=("gpt-5*", "o3"))
    assert [models.allows(name) for name in ("gpt-5-mini", "o3", "o3-mini", "GPT-5")] == [True, True, False, False]


def test_the_first_ladder_whose_pattern_matches_is_taken():
    models = ModelPolicy(downgrade=(("gpt-5-*", ("a",)), ("gpt-*", ("b", "c"))))
    assert [models.ladder_for(name) for name in ("gpt-5-mini", "gpt-4o", "o3")] == [("a",), ("b", "c"), ()]


@given(st.integers(0, 10**15), st.integers(0, 1_000_000))
def test_a_margin_in_percent_is_never_wider_than_its_share(limit, ppm):
    assert Margin(ppm=ppm).above(limit) * 1_000_000 <= limit * ppm
