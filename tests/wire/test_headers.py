"""What crosses the gateway in headers, and what callers may say in them."""

import pytest
from multidict import CIMultiDict

from gateway.core.values import Directives
from gateway.wire.headers import directives, forwardable, identity, parent_run, returnable, run_id, single
from gateway.wire.problem import Refused


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


OWN = [("content-type", "application/json"), ("accept-encoding", "identity")]


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"),
        *("Host", "Content-Length", "Content-Encoding", "Accept-Encoding", "Expect", "Content-MD5", "Content-Type"),
        *("Authorization", "x-api-key", "api-key", "x-goog-api-key", "X-Cycles-API-Key", "X-Admin-API-Key", "Cookie", "Origin"),
        *("X-Run-Id", "X-Run-Limit", "X-Parent-Run-Id", "x-budget-wrap-up", "X-Budget-Anything", "X-Agent-Id"),
    ],
)
def test_what_is_the_callers_or_the_connections_never_goes_upstream(name: str) -> None:
    assert forwardable(headers((name, "x"), ("Accept", "*/*")), drop=frozenset({"x-agent-id"})) == [("accept", "*/*"), *OWN]


def test_other_request_headers_go_upstream_repeated_ones_too() -> None:
    sent = headers(("User-Agent", "a"), ("Idempotency-Key", "k"), ("OpenAI-Organization", "o"), ("X-Tag", "1"), ("x-tag", "2"))
    assert forwardable(sent) == [
        ("user-agent", "a"),
        ("idempotency-key", "k"),
        ("openai-organization", "o"),
        ("x-tag", "1"),
        ("x-tag", "2"),
        *OWN,
    ]


def test_headers_named_in_connection_are_stripped_both_ways() -> None:
    sent = headers(
        ("Connection", "keep-alive, X-Secret"), ("connection", " x-other "), ("X-Secret", "1"), ("X-Other", "2"), ("A", "3")
    )
    assert forwardable(sent) == [("a", "3"), *OWN]
    assert returnable(sent) == [("A", "3")]


@pytest.mark.parametrize(
    "name",
    [
        "X-Budget-Decision",
        "x-budget-remaining-usd",
        "X-Run-Id",
        "Set-Cookie",
        "Alt-Svc",
        "Content-Length",
        "Content-Encoding",
        "Upgrade",
    ],
)
def test_what_a_provider_must_not_say_to_the_client_is_not_returned(name: str) -> None:
    answer = headers(
        (name, "x"), ("X-Request-Id", "req_1"), ("x-ratelimit-remaining-tokens", "9"), ("Content-Type", "text/event-stream")
    )
    assert returnable(answer) == [
        ("X-Request-Id", "req_1"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("Content-Type", "text/event-stream"),
    ]


def test_a_header_that_may_come_once_is_refused_twice_even_with_the_same_value() -> None:
    assert single(headers(("X-Run-Id", "r1")), "X-Run-Id") == "r1"
    assert single(headers(), "X-Run-Id") is None
    for name in ("X-Run-Id", "x-run-id"):
        with pytest.raises(Refused) as refused:
            single(headers(("X-Run-Id", "r1"), (name, "r1")), "X-Run-Id")
        assert (refused.value.problem.code, refused.value.problem.param) == ("ambiguous_request", "X-Run-Id")


@pytest.mark.parametrize("raw", ["r", "a" * 128, "Run-1_2.3:4"])
def test_a_run_id_of_safe_characters_passes(raw: str) -> None:
    assert run_id(raw) == raw


@pytest.mark.parametrize("raw", ["", "a" * 129, "a b", "a/b", "a%2Fb", "é", "r\n", "r,1", "٣"])
def test_any_other_run_id_is_refused(raw: str) -> None:
    with pytest.raises(Refused) as refused:
        run_id(raw)
    assert (refused.value.problem.status, refused.value.problem.code) == (400, "run_id_invalid")


def test_an_identity_is_trimmed_and_empty_counts_as_missing() -> None:
    assert identity(headers(("X-Agent-Id", " büro 7 ")), "X-Agent-Id") == "büro 7"
    assert identity(headers(("X-Agent-Id", " ")), "X-Agent-Id") is None
    assert identity(headers(), "X-Agent-Id") is None


@pytest.mark.parametrize("value", ["a\x00b", "\udcff", "a\u2028b", "x" * 513])
def test_an_identity_that_cannot_be_shown_or_is_endless_is_refused(value: str) -> None:
    with pytest.raises(Refused) as refused:
        identity(headers(("X-Agent-Id", value)), "X-Agent-Id")
    assert refused.value.problem.status == 400


def test_directives_are_read() -> None:
    assert directives(headers()) == Directives()
    sent = headers(("X-Run-Limit", "$2"), ("X-Budget-Wrap-Up", "True"), ("X-Budget-Downgrade", "never"))
    assert directives(sent) == Directives(run_limit=200_000_000, wrap_up=True, downgrade=False)  # type: ignore[arg-type]
    assert directives(headers(("X-Budget-Wrap-Up", "false"))) == Directives()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("X-Run-Limit", ["-1"]),
        ("X-Run-Limit", [""]),
        ("X-Run-Limit", ["60 calls"]),
        ("X-Run-Limit", ["1e3"]),
        ("X-Run-Limit", ["$99999999999"]),
        ("X-Run-Limit", ["$2", "$2"]),
        ("X-Budget-Wrap-Up", ["yes"]),
        ("X-Budget-Wrap-Up", ["true", "true"]),
        ("X-Budget-Downgrade", ["always"]),
    ],
)
def test_a_directive_that_cannot_be_obeyed_is_refused_not_ignored(name: str, values: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        directives(headers(*((name, value) for value in values)))
    assert (refused.value.problem.status, refused.value.problem.param) == (400, name)


def test_a_parent_is_a_run_id_said_once() -> None:
    assert parent_run(headers()) is None
    assert parent_run(headers(("X-Parent-Run-Id", "r0"))) == "r0"
    for values in (["no run"], [""], ["r0", "r0"]):
        with pytest.raises(Refused) as refused:
            parent_run(headers(*(("X-Parent-Run-Id", value) for value in values)))
        assert (refused.value.problem.status, refused.value.problem.param) == (400, "X-Parent-Run-Id")
