"""A factor starts high, rises at once, falls slowly, and nobody's texts move another's."""

import random
from collections.abc import Sequence

import pytest

from gateway.core import factors
from gateway.core.factors import Count, Factor, Factors, Kind
from gateway.core.values import Part

PROSE = (Part("user", ("the river rises in the hills and runs past the mill to the sea " * 16,), 3),)
PROSE_TOKENS = 240  # some 4.2 characters each
JAPANESE = (Part("user", ("東京は夜の七時。" * 100,), 3),)
JAPANESE_TOKENS = 800
START = 1_750


def of(tokens: int) -> Count:
    """What the reference counts, whatever it is asked."""
    return lambda parts: tokens


def taught(*ratios: int, tokens: int = 10_000) -> Factor:
    """Ratios in thousandths."""
    factor = Factor()
    for ratio in ratios:
        assert factor.learn(tokens * ratio // 1000, (Part("user", ("x" * tokens * 4,), 3),), of(tokens))
    return factor


def ratio_of(factor: Factor, tokens: int = 10_000) -> int:
    text = (Part("user", ("x" * tokens * 4,), 3),)
    return (factor.scaled(text, of(tokens)) - factors.MESSAGE_TOKENS) * 1000 // tokens


def test_it_starts_at_seven_quarters_and_rounds_up() -> None:
    assert [Factor().scaled(PROSE, of(tokens)) for tokens in (0, 1, 4, 1001)] == [0, 2, 7, 1752]


def test_one_sample_lowers_it_a_little() -> None:
    assert ratio_of(taught(1_000)) == 1_290  # 4 % and 25 %


def test_few_tokens_do_not_lower_it() -> None:
    few = Factor()
    for _ in range(2):
        assert few.learn(100, (Part("user", ("word" * 100,)),), of(100))
    assert few.scaled((Part("user", ("word" * 100,)),), of(100)) == 175 + factors.MESSAGE_TOKENS


def test_with_samples_it_is_the_largest_of_them_and_a_margin_that_narrows() -> None:
    assert ratio_of(taught(1_000, 1_100)) == 1_419  # 4 % and 25 %
    assert ratio_of(taught(*([1_000, 1_100] * 20))) == 1_189  # 4 % and 25 % / 6
    assert ratio_of(taught(*([1_100] * 500))) == 1_156  # 4 % and 25 % / 22


def test_it_rises_at_once() -> None:
    assert ratio_of(taught(*([1_000] * 100), 1_500)) > 1_560


def test_it_falls_only_after_a_thousand_samples_without_the_like() -> None:
    after = [1_000] * (factors.WINDOW - 1)
    assert ratio_of(taught(1_500, *after)) > 1_560
    assert ratio_of(taught(1_500, *after, *after)) > 1_560
    assert ratio_of(taught(1_500, *after, *after, 1_000, 1_000, 1_000)) == 1_045


@pytest.mark.parametrize("ratio", [factors.LEAST - 100, factors.MOST + 100])
def test_what_no_tokenizer_does_is_not_learned(ratio: int) -> None:
    factor = Factor()
    assert not factor.learn(10 * ratio, PROSE, of(10_000))
    assert factor.scaled(PROSE, of(1_000)) == START


def test_short_text_teaches_nothing() -> None:
    factor = Factor()
    for _ in range(5_000):
        assert factor.learn(9, (Part("user", ("short text",)),), of(10))
    assert factor.scaled(PROSE, of(1_000)) == START


def test_a_flood_of_one_kind_of_text_says_nothing_about_another() -> None:
    factor = Factor()
    for _ in range(5_000):
        factor.learn(JAPANESE_TOKENS // 2, JAPANESE, of(JAPANESE_TOKENS))
    assert factor.scaled(JAPANESE, of(JAPANESE_TOKENS)) < JAPANESE_TOKENS * 6 // 10
    assert factor.scaled(PROSE, of(PROSE_TOKENS)) >= PROSE_TOKENS * START // 1000


def test_another_density_in_a_script_that_was_seen_gets_a_quarter_more() -> None:
    factor = Factor()
    for _ in range(1_000):
        factor.learn(PROSE_TOKENS, PROSE, of(PROSE_TOKENS))
    dense = (Part("user", ('{"a":[1,2,3],"b":{"c":"d"}}' * 40,)),)
    assert factor.scaled(dense, of(1_000)) == 1_310 + factors.MESSAGE_TOKENS  # 1.048 × 1.25


def test_what_was_seen_once_of_a_kind_is_not_undercut_by_the_others() -> None:
    factor = Factor()
    for _ in range(1_000):
        factor.learn(PROSE_TOKENS, PROSE, of(PROSE_TOKENS))
    dense = (Part("user", ('{"a":[1,2,3],"b":{"c":"d"}}' * 40,)),)
    factor.learn(1_600, dense, of(1_000))
    assert factor.scaled(dense, of(1_000)) >= 1_600


def test_text_in_another_script_beside_it_takes_what_that_has_taken() -> None:
    factor = Factor()

    def count(parts: Sequence[Part]) -> int:
        return sum(PROSE_TOKENS if part is PROSE[0] else JAPANESE_TOKENS for part in parts)

    for _ in range(1_000):
        factor.learn(PROSE_TOKENS * 13 // 10, PROSE, of(PROSE_TOKENS))
        # Of which the English text takes 1.3 times the reference's tokens, and the Japanese half of them.
        factor.learn(PROSE_TOKENS * 13 // 10 + JAPANESE_TOKENS // 2, (*PROSE, *JAPANESE), count)
    whole = (PROSE_TOKENS * 13 // 10 + JAPANESE_TOKENS // 2) / (PROSE_TOKENS + JAPANESE_TOKENS)
    assert factor.scaled(PROSE, of(PROSE_TOKENS)) >= PROSE_TOKENS * 13 // 10
    assert 0.5 <= factor.scaled(JAPANESE, of(JAPANESE_TOKENS)) / JAPANESE_TOKENS <= whole * 1.07
    assert factor.scaled((*PROSE, *JAPANESE), count) >= PROSE_TOKENS * 13 // 10 + JAPANESE_TOKENS // 2


def test_a_mixture_teaches_nothing_about_either() -> None:
    factor = Factor()
    for _ in range(100):
        assert factor.learn(500, (*PROSE, *JAPANESE), of(500))
    assert factor.scaled(PROSE, of(PROSE_TOKENS)) == PROSE_TOKENS * START // 1000


def test_no_tenants_texts_move_anothers_factor_and_no_models() -> None:
    known = Factors()
    for _ in range(5_000):
        known.learning("a", "m").learn(PROSE_TOKENS // 2, PROSE, of(PROSE_TOKENS))
    assert known.of("a", "m").scaled(PROSE, of(PROSE_TOKENS)) < PROSE_TOKENS
    assert known.of("b", "m").scaled(PROSE, of(PROSE_TOKENS)) == PROSE_TOKENS * START // 1000
    assert known.of("a", "n").scaled(PROSE, of(PROSE_TOKENS)) == PROSE_TOKENS * START // 1000


def test_memory_is_bounded() -> None:
    known = Factors(entries=100)
    for number in range(1_000):
        known.learning("t", f"model-{number}").learn(PROSE_TOKENS, PROSE, of(PROSE_TOKENS))
    assert len(known._known) <= 100


def test_of_samples_alike_at_most_one_in_a_thousand_passes_the_estimate() -> None:
    draw = random.Random(5)
    factor, under = Factor(), 0
    text = (Part("user", ("x" * 4_000,)),)
    samples = 20_000
    for _ in range(samples):
        # A wide spread with a long tail: half of it within 8 %, one in a hundred above 1.5 times the usual.
        tokens = round(1_000 * draw.lognormvariate(0.1, 0.12))
        under += factor.scaled(text, of(1_000)) < tokens
        factor.learn(tokens, text, of(1_000))
    assert under <= samples // 1_000


@pytest.mark.parametrize(
    ("text", "tokens", "kind"),
    [
        ("plain English text, as it is written", 8, Kind(0, 3)),
        ("0123456789abcdef" * 8, 120, Kind(0, 0)),
        ("größer", 2, Kind(1, 2)),
        ("東京は夜の七時", 7, Kind(2, 0)),
        (" " * 200, 2, Kind(0, 4)),
        ("", 0, Kind(0, 0)),
    ],
)
def test_kinds_are_told_apart_by_script_and_density(text: str, tokens: int, kind: Kind) -> None:
    assert Kind.of((Part("user", (text,)),), tokens) == kind
