"""The provider's bill: exact, and by an arithmetic of its own."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.money import price_of
from gateway.demo.bill import Bill, Price


def test_each_class_of_tokens_is_rounded_up_on_its_own() -> None:
    price = Price(Decimal("0.01"), Decimal("0.01"), Decimal("0.01"))  # one microcent per token
    assert price.microcents(3, 1, 1) == 4
    assert Price(Decimal("0.015"), Decimal("0.015")).microcents(1, 0, 1) == 4  # 1.5 → 2, twice


def test_cached_tokens_are_part_of_the_prompt() -> None:
    assert Price.parse("10:0:1").microcents(1000, 400, 0) == 600 * 1000 + 400 * 100


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_two_arithmetics_agree(prompt: int, completion: int) -> None:
    assert Price.parse("0.15:0.6").microcents(prompt, 0, completion) == price_of(prompt, 15_000_000) + price_of(
        completion, 60_000_000
    )


@pytest.mark.parametrize("text", ["", "1", "1:2:3:4", "-1:2", "NaN:1", "Infinity:1"])
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        Price.parse(text)


def test_the_bill_is_the_sum_of_its_lines() -> None:
    bill = Bill({"big": Price.parse("15:75"), "small": Price.parse("1:5")})
    bill.add("big", 100, 0, 10, "whole")
    bill.add("small", 100, 0, 10, "cut")
    assert bill.microcents == 100 * 1500 + 10 * 7500 + 100 * 100 + 10 * 500
    assert bill.as_object()["usd"] == "0.00240000"
    assert bill.as_object()["by_model_microcents"] == {"big": 225_000, "small": 15_000}
