"""Which provider made an answer is remembered, for so many answers."""

from gateway.origins import Origins


def test_the_latest_answers_are_known() -> None:
    origins = Origins()
    origins.learn("resp_0", "a")
    for number in range(1, 10_000):
        origins.learn(f"resp_{number}", "b")
    origins.learn("resp_0", "c")  # the latest, again
    origins.learn("resp_10000", "b")
    assert (origins.find("resp_0"), origins.find("resp_1"), origins.find("resp_2")) == ("c", None, "b")
    assert origins.find(None) is None
