"""What is kept at once, over all calls."""

import pytest

from gateway.buffers import Buffers


def test_what_was_given_back_can_be_taken_again_and_no_more_than_that() -> None:
    buffers = Buffers(100)
    assert buffers.take(60)
    assert not buffers.take(41)
    assert buffers.held == 60, "what was refused was not taken"
    assert buffers.take(40)
    buffers.give(60)
    assert buffers.take(60)
    assert not buffers.take(1)


def test_to_give_back_what_was_not_taken_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Buffers(100).give(1)
