"""Money is exact: text to microcents and back, and every price rounded up."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.money import MAX_AMOUNT, MAX_LIMIT_USD, format_usd, parse_usd, price_of


@pytest.mark.parametrize(
    ("text", "microcents"),
    [
        ("$5", 500_000_000),
        ("$5.00", 500_000_000),
        ("0.31", 31_000_000),
        (" $0.00000001 ", 1),
        ("$0", 0),
        ("007.5", 750_000_000),
        (f"${MAX_LIMIT_USD}", MAX_AMOUNT),
    ],
)
def test_an_amount_in_usd_is_read_exactly(text: str, microcents: int) -> None:
    assert parse_usd(text) == microcents


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$",
        "5$",
        "-1",
        "$-1",
        "+5",
        "1e3",
        "1,000",
        "1_000",
        "0.000000001",
        ".5",
        "5.",
        "$$5",
        "NaN",
        "inf",
        "٥",
        "$5 00",
        "5\n6",
    ],
)
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r'expected an amount in USD such as "\$5\.00"'):
        parse_usd(text)


def test_an_amount_above_what_stays_exact_everywhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most \$50,000,000"):
        parse_usd("50000000.00000001")


@pytest.mark.parametrize(
    ("microcents", "text"),
    [(0, "0.00"), (1, "0.00000001"), (500_000_000, "5.00"), (491_500_000, "4.915"), (-31_000_000, "-0.31"), (-1, "-0.00000001")],
)
def test_an_amount_is_written_with_two_decimals_or_as_many_as_it_needs(microcents: int, text: str) -> None:
    assert format_usd(microcents) == text


@given(st.integers(0, MAX_AMOUNT))
def test_what_is_written_is_read_back_unchanged(amount: int) -> None:
    assert parse_usd(format_usd(amount)) == amount


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_a_price_is_the_exact_one_rounded_up(tokens: int, rate: int) -> None:
    exact = Fraction(tokens * rate, 1_000_000)
    assert exact <= price_of(tokens, rate) < exact + 1


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**11))
def test_splitting_tokens_never_makes_them_cheaper(first: int, second: int, rate: int) -> None:
    assert price_of(first, rate) + price_of(second, rate) >= price_of(first + second, rate)
