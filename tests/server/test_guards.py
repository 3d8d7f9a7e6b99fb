"""A loopback listener lets no web page in."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.server.guards import Guards
from gateway.wire.problem import Refused


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "LocalHost:1", "127.0.0.1:8080", "[::1]", "[::1]:8080"])
def test_a_loopback_name_is_let_in(host: str) -> None:
    Guards().check(headers(("Host", host)))


@pytest.mark.parametrize(
    "pairs",
    [
        [("Host", "evil.example")],
        [("Host", "localhost.evil.example:8080")],
        [("Host", "127.0.0.1.evil.example")],
        [("Host", "evil.example@localhost")],
        [("Host", "")],
        [("Host", "localhost"), ("Host", "evil.example")],
        [("Host", "localhost"), ("Host", "localhost")],
        [],
    ],
)
def test_any_other_name_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as refused:
        Guards().check(headers(*pairs))
    assert (refused.value.problem.status, refused.value.problem.code) == (403, "host_not_allowed")


def test_names_can_be_added_and_the_guard_taken_off() -> None:
    Guards(allowed_hosts=frozenset({"gateway.internal"})).check(headers(("Host", "gateway.internal:8080")))
    Guards(allowed_hosts=None).check(headers())


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://localhost:3000"])
def test_a_web_page_is_refused_unless_its_origin_is_named(origin: str) -> None:
    with pytest.raises(Refused) as refused:
        Guards().check(headers(("Host", "localhost"), ("Origin", origin)))
    assert (refused.value.problem.status, refused.value.problem.code) == (403, "origin_not_allowed")
    Guards(allowed_origins=frozenset({origin})).check(headers(("Host", "localhost"), ("Origin", origin)))


def test_the_guard_against_pages_stays_when_any_host_is_allowed() -> None:
    with pytest.raises(Refused):
        Guards(allowed_hosts=None).check(headers(("Host", "x"), ("Origin", "https://evil.example")))
