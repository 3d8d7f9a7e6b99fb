"""Input that is one text or many, or tokens: read in one way, or refused."""

from typing import Any

import pytest

from gateway.core.values import Part
from gateway.wire.inputs import MAX_INPUTS, Inputs, inputs
from gateway.wire.problem import Refused


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one text", Inputs(Part("input", ("one text",), 2), (8,))),
        ("", Inputs(Part("input", ("",), 2), (0,))),
        (["a", "bc"], Inputs(Part("input", ("a", "bc"), 4), (1, 2))),
        ([1, 2, 300_000], Inputs(Part("input", (), 5), (None,))),
        ([[1, 2], [3], []], Inputs(Part("input", (), 9), (None, None, None))),
        ([0] * (MAX_INPUTS + 1), Inputs(Part("input", (), MAX_INPUTS + 3), (None,))),
    ],
)
def test_each_form_is_counted(value: Any, expected: Inputs) -> None:
    assert inputs({"input": value}, "input", 2) == expected


@pytest.mark.parametrize(
    "value",
    [
        None, [], 5, 1.5, True, {}, ["a", 1], [1, "a"], [1, 2.0], [True], [None], [["a"]], [[1], "a"], [[1, [2]]], [[True]], [{"text": "a"}],
        ["a"] * (MAX_INPUTS + 1), [[1]] * (MAX_INPUTS + 1),
    ],
)  # fmt: skip
def test_any_other_form_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        inputs({"input": value}, "input")
    assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", "input")
