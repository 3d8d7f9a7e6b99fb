"""What clients send is read as strictly as the specification writes it; every mistake names its member."""

from typing import Any

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.cycles import reading
from gateway.cycles.faults import Fault
from tests.cycles.world import reservation

NO_HEADERS = CIMultiDictProxy(CIMultiDict[str]())
LONG = "x" * 257


def mistake(body: object, read: Any = reading.create, **headers: str) -> str:
    """The member that is named."""
    told = CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}))
    with pytest.raises(Fault) as refused:
        read(body if isinstance(body, bytes) else orjson.dumps(body), told)
    assert refused.value.code == "INVALID_REQUEST"
    return "" if refused.value.details is None else str(refused.value.details["field"])


def nested(levels: int) -> bytes:
    body = orjson.dumps(reservation(metadata={"deep": 0}))
    return body.replace(b'"deep":0', b'"deep":' + b"[" * levels + b"]" * levels)


@pytest.mark.parametrize("levels", [100, 253, 300, 1_000])
@pytest.mark.parametrize("read", [reading.create, reading.decide])
def test_what_is_too_deep_to_be_written_out_again_is_a_mistake(levels: int, read: Any) -> None:
    assert mistake(nested(levels), read) == ""


def test_what_is_wide_or_somewhat_deep_is_none() -> None:
    assert reading.create(nested(50), NO_HEADERS).asked.metadata is not None
    wide = {"metadata": {"rows": [{"n": n} for n in range(500)]}}
    assert reading.create(orjson.dumps(reservation(**wide)), NO_HEADERS).asked.metadata == wide["metadata"]


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("extra", {"extra": 1}),
    ("idempotency_key", {"idempotency_key": ""}),
    ("idempotency_key", {"idempotency_key": LONG}),
    ("idempotency_key", {"idempotency_key": 1}),
    ("subject", {"subject": None}),
    ("subject", {"subject": {}}),
    ("subject", {"subject": {"dimensions": {"a": "b"}}}),
    ("subject.team", {"subject": {"tenant": "acme", "team": "x"}}),
    ("subject.agent", {"subject": {"agent": "a/b"}}),
    ("subject.agent", {"subject": {"agent": ""}}),
    ("subject.agent", {"subject": {"agent": None}}),
    ("subject.agent", {"subject": {"agent": "x" * 129}}),
    ("subject.dimensions", {"subject": {"agent": "a", "dimensions": []}}),
    ("subject.dimensions", {"subject": {"agent": "a", "dimensions": {str(n): "" for n in range(17)}}}),
    ("subject.dimensions.a", {"subject": {"agent": "a", "dimensions": {"a": 1}}}),
    ("subject.dimensions.a", {"subject": {"agent": "a", "dimensions": {"a": LONG}}}),
    ("action", {"action": "a"}),
    ("action.kind", {"action": {"name": "n"}}),
    ("action.kind", {"action": {"name": "n", "kind": "x" * 65}}),
    ("action.name", {"action": {"kind": "k", "name": LONG}}),
    ("action.tags", {"action": {"kind": "k", "name": "n", "tags": "t"}}),
    ("action.tags", {"action": {"kind": "k", "name": "n", "tags": ["t"] * 11}}),
    ("action.tags", {"action": {"kind": "k", "name": "n", "tags": ["x" * 65]}}),
    ("action.more", {"action": {"kind": "k", "name": "n", "more": 1}}),
    ("estimate", {"estimate": 5}),
    ("estimate.unit", {"estimate": {"unit": "EUR", "amount": 5}}),
    ("estimate.unit", {"estimate": {"amount": 5}}),
    ("estimate.amount", {"estimate": {"unit": "TOKENS", "amount": -1}}),
    ("estimate.amount", {"estimate": {"unit": "TOKENS", "amount": 1.5}}),
    ("estimate.amount", {"estimate": {"unit": "TOKENS", "amount": True}}),
    ("estimate.amount", {"estimate": {"unit": "TOKENS", "amount": "5"}}),
    ("estimate.amount", {"estimate": {"unit": "TOKENS", "amount": 2**53}}),
    ("estimate.more", {"estimate": {"unit": "TOKENS", "amount": 1, "more": 1}}),
    ("ttl_ms", {"ttl_ms": 999}),
    ("ttl_ms", {"ttl_ms": 86_400_001}),
    ("ttl_ms", {"ttl_ms": None}),
    ("grace_period_ms", {"grace_period_ms": 60_001}),
    ("grace_period_ms", {"grace_period_ms": -1}),
    ("overage_policy", {"overage_policy": "NEVER"}),
    ("dry_run", {"dry_run": "true"}),
    ("metadata", {"metadata": []}),
    ("metadata", {"metadata": {"a": "x" * 65_536}}),
]


@pytest.mark.parametrize(("member", "change"), WRONG, ids=lambda it: it if isinstance(it, str) else "")
def test_what_the_specification_does_not_allow_is_refused_by_name(member: str, change: dict[str, Any]) -> None:
    assert mistake({**reservation(), **change}) == member


@pytest.mark.parametrize("missing", ["idempotency_key", "subject", "action", "estimate"])
def test_what_is_required_is_missed(missing: str) -> None:
    body = reservation()
    del body[missing]
    assert mistake(body) == missing


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert mistake(body) == ""


def test_the_key_in_the_header_has_to_be_the_bodys() -> None:
    assert mistake(reservation(key="a"), X_Idempotency_Key="b") == "X-Idempotency-Key"
    same = CIMultiDictProxy(CIMultiDict({"x-idempotency-key": "a"}))
    assert reading.create(orjson.dumps(reservation(key="a")), same).asked.key == "a"


def test_what_is_left_out_has_the_specifications_defaults() -> None:
    read = reading.create(orjson.dumps(reservation()), NO_HEADERS)
    assert (read.ttl_ms, read.grace_ms, read.overage, read.dry_run) == (None, 5_000, None, False)


@pytest.mark.parametrize(
    ("read", "body", "member"),
    [
        (reading.decide, {**reservation(), "ttl_ms": 1_000}, "ttl_ms"),
        (reading.commit, {"idempotency_key": "k"}, "actual"),
        (reading.commit, {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 1}, "metrics": {"a": 1}}, "metrics.a"),
        (
            reading.commit,
            {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 1}, "metrics": {"tokens_input": -1}},
            "metrics.tokens_input",
        ),
        (
            reading.commit,
            {"idempotency_key": "k", "actual": {"unit": "TOKENS", "amount": 1}, "metrics": {"model_version": "x" * 129}},
            "metrics.model_version",
        ),
        (reading.release, {"idempotency_key": "k", "reason": LONG}, "reason"),
        (reading.release, {}, "idempotency_key"),
        (reading.extend, {"idempotency_key": "k"}, "extend_by_ms"),
        (reading.extend, {"idempotency_key": "k", "extend_by_ms": 0}, "extend_by_ms"),
        (reading.event, {**reservation(), "client_time_ms": -1}, "estimate"),
    ],
)
def test_each_endpoint_has_members_of_its_own(read: Any, body: object, member: str) -> None:
    assert mistake(body, read) == member


# -- queries ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "member"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("status=LIVE", "status"),
        ("sort_by=amount", "sort_by"),
        ("sort_dir=up", "sort_dir"),
        ("from=yesterday", "from"),
        ("from=2026-11-30T12:00:01Z&to=2026-11-30T12:00:00Z", "from"),
        ("expires_from=2026-12-30T12:00:01Z&expires_to=2026-11-30T12:00:00Z", "expires_from"),
        ("agent=a&agent=b", "agent"),
    ],
)
def test_a_list_that_can_not_be_meant_is_refused(query: str, member: str) -> None:
    with pytest.raises(Fault) as refused:
        reading.listing(query)
    assert refused.value.details == {"field": member}


def test_what_is_blank_or_unknown_was_not_asked_for() -> None:
    assert reading.listing("from=&finalized_to=%20&agent=&include=,metadata,%20x,&later=1") == reading.Query(
        (), 50, None, include=frozenset({"metadata"})
    )


def test_a_time_may_say_its_offset() -> None:
    read = reading.listing("from=2026-11-30T14:00:00%2B02:00&to=2026-11-30T12:00:00Z")
    assert read.created[0] == read.created[1] == 1_796_040_000_000


def test_balances_need_to_be_asked_of_somebody() -> None:
    with pytest.raises(Fault, match="whose balances"):
        reading.balances("limit=5")
