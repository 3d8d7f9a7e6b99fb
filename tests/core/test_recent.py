"""A bounded memory keeps what is used."""

from gateway.core.recent import Recent


def test_what_is_used_stays_and_the_rest_goes() -> None:
    memory: Recent[int, int] = Recent(20)
    memory.put(-1, 7)
    for number in range(1_000):
        memory.put(number, number)
        assert memory.get(-1) == 7
        assert len(memory) <= 20
    assert memory.get(0) is None
    assert memory.get(999) == 999


def test_a_new_value_takes_the_place_of_the_old_one() -> None:
    memory: Recent[str, int] = Recent(2)
    memory.put("a", 1)
    memory.put("a", 2)
    assert (memory.get("a"), len(memory)) == (2, 1)
