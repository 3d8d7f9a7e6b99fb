"""An account's key is its identity: the same for the same account, different for every other."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.windows import LIFETIME, Window, WindowKind

DAY = Window(WindowKind.DAY, "UTC", 1_767_225_600_000, 1_767_312_000_000)


def account(*scope: tuple[str, str], budget: str = "b", window: Window = LIFETIME, unit: Unit = Unit.USD) -> Account:
    return Account("default", budget, scope, window, unit)


def test_the_key_says_budget_scope_window_and_unit() -> None:
    assert account(("run", "r42"), budget="run-ceiling").key == "run-ceiling|run=r42|lifetime|usd"
    assert account(("agent", "a1"), budget="agent-day", window=DAY).key == "agent-day|agent=a1|day@UTC:1767225600000|usd"
    assert account(budget="tenant", unit=Unit.CALLS).key == "tenant||lifetime|calls"


def test_unit_and_window_make_different_accounts() -> None:
    keys = {account(window=window, unit=unit).key for window in (LIFETIME, DAY) for unit in Unit}
    assert len(keys) == 2 * len(Unit)


def test_a_value_cannot_pretend_to_be_another_scope() -> None:
    keys = {
        account(("team", "a"), ("agent", "b")).key,
        account(("team", "a,agent=b")).key,
        account(("team", "a|lifetime|usd")).key,
        account(("team", "a%2Cagent%3Db")).key,
        account(("team", "")).key,
        account().key,
    }
    assert len(keys) == 6


def test_a_value_of_bytes_that_are_not_utf8_has_a_key() -> None:
    header = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert account(("agent", header)).key != account(("agent", "café")).key


@given(st.text(), st.text())
def test_different_values_have_different_keys_of_plain_ascii(first: str, second: str) -> None:
    keys = account(("user", first)).key, account(("user", second)).key
    assert (keys[0] == keys[1]) is (first == second)
    assert all(key.isascii() and key.isprintable() and key.count("|") == 3 for key in keys)


def test_equal_accounts_are_equal_whatever_made_them() -> None:
    assert account(("run", "r")) == account(("run", "r"))
    assert len({account(("run", "r")), account(("run", "r"))}) == 1


def test_an_account_of_a_renamed_budget_is_the_same_account_under_the_name_that_readers_know() -> None:
    before = account(("run", "r"), budget="old")
    after = Account("default", "old", (("run", "r"),), LIFETIME, Unit.USD, shown="new")
    assert (after, after.key, hash(after)) == (before, before.key, hash(before))
    assert (before.name, after.name) == ("old", "new")


def test_the_scope_name_is_the_word_of_headers_and_codes() -> None:
    assert account(("run", "r")).scope_name == "run"
    assert account(("team", "t"), ("agent", "a")).scope_name == "team+agent"
    assert account().scope_name == "tenant"


def test_a_callers_values_are_found_by_dimension() -> None:
    caller = Caller("acme", "key_1", "r1", "shared-2026-11-01", dimensions=(("agent", "a"), ("team", "t")))
    assert caller.value("run") == "shared-2026-11-01"  # what the run's budgets count under, not the run's own id
    assert caller.value("key") == "key_1"
    assert caller.value("tenant") == "acme"
    assert caller.value("team") == "t"
    assert caller.value("user") is None


def test_amounts_are_read_by_unit() -> None:
    amounts = Amounts(usd=3, tokens=200)
    assert [amounts.of(unit) for unit in (Unit.USD, Unit.TOKENS, Unit.CALLS)] == [3, 200, 1]
