"""When a provider rests, for how long, and how it comes back."""

from gateway.breaker import FAILURES, FIRST_REST_S, LONGEST_REST_S, PROBE_S, Breakers


class Told:
    """A clock that a test turns, and the rests that were told of."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.rests: list[tuple[str, float]] = []
        self.breakers = Breakers(lambda: self.now_s, lambda provider, seconds: self.rests.append((provider, seconds)))

    def fail(self, times: int = FAILURES) -> None:
        for _ in range(times):
            self.breakers.failed("a")


def test_a_provider_rests_after_failures_in_a_row_only() -> None:
    here = Told()
    here.fail(FAILURES - 1)
    here.breakers.answered("a")
    here.fail(FAILURES - 1)
    assert here.breakers.resting() == set()
    here.fail(1)
    assert here.breakers.resting() == {"a"}
    assert here.rests == [("a", FIRST_REST_S)]


def test_after_a_rest_one_call_tries_while_the_others_keep_away() -> None:
    here = Told()
    here.fail()
    here.now_s += FIRST_REST_S
    assert here.breakers.resting() == set()
    here.breakers.asked("a")
    assert here.breakers.resting() == {"a"}
    here.breakers.answered("a")
    assert here.breakers.resting() == set()


def test_a_try_that_nobody_hears_of_again_does_not_keep_it_away_for_ever() -> None:
    here = Told()
    here.fail()
    here.now_s += FIRST_REST_S
    here.breakers.asked("a")
    here.now_s += PROBE_S
    assert here.breakers.resting() == set()


def test_each_rest_is_longer_up_to_a_minute() -> None:
    here = Told()
    here.fail()
    for _ in range(5):
        here.now_s += LONGEST_REST_S
        here.fail(1)
    assert [seconds for _, seconds in here.rests] == [5, 10, 20, 40, 60, 60]


def test_a_provider_that_says_when_to_come_again_is_taken_at_its_word_within_bounds() -> None:
    here = Told()
    here.breakers.failed("a", retry_after_s=7)
    here.now_s += 6.9
    assert here.breakers.resting() == {"a"}
    here.now_s += 0.2
    assert here.breakers.resting() == set()
    here.breakers.failed("a", retry_after_s=86_400)
    assert here.rests[-1] == ("a", LONGEST_REST_S)


def test_one_providers_trouble_is_not_anothers() -> None:
    here = Told()
    here.fail()
    here.breakers.answered("b")
    assert here.breakers.resting() == {"a"}
