"""Which answers of a provider prove that nothing was billed."""

import pytest

from gateway.wire.status import may_be_sent_again, released_by


@pytest.mark.parametrize("status", [301, 400, 401, 402, 404, 408, 409, 413, 422, 429, 500, 503, 529])
def test_the_providers_own_refusals_release_the_hold(status: int) -> None:
    assert released_by(status)


@pytest.mark.parametrize("status", [502, 504, *range(520, 529), 530, 501, 599])
def test_an_answer_from_something_in_between_proves_nothing(status: int) -> None:
    assert not released_by(status)
    assert not may_be_sent_again(status)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_success_is_settled_and_not_released(status: int) -> None:
    assert not released_by(status)


def test_only_what_released_may_be_sent_again() -> None:
    again = {status for status in range(100, 600) if may_be_sent_again(status)}
    assert again == {429, 500, 503, 529}
    assert all(released_by(status) for status in again)
