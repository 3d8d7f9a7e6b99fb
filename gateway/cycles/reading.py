"""What a Cycles client sent, read as strictly as the specification writes it: types, lengths, bounds, and no member that it does not name.
Pure. Every mistake is a Fault INVALID_REQUEST that names the member."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from multidict import CIMultiDictProxy

from gateway.core.grants import LEVELS
from gateway.core.record import record
from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Usage, UsageSource
from gateway.cycles.faults import Fault, invalid

MOST: Final = 2**53 - 1  # that a ledger counts exactly, and that a client in JavaScript can read
MAX_METADATA_BYTES: Final = 65_536  # the specification has no bound: it is kept with the record
MAX_BODY_BYTES: Final = 262_144
MAX_DEPTH: Final = 64  # of what is in something: what is kept and listed has to be written out again, some levels deeper
UNITS: Final[Mapping[str, Unit]] = {
    "USD_MICROCENTS": Unit.USD,
    "TOKENS": Unit.TOKENS,
    "CREDITS": Unit.CREDITS,
    "RISK_POINTS": Unit.RISK_POINTS,
}
REJECT, IF_AVAILABLE, OVERDRAFT = OVERAGES = ("REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT")
STATUSES: Final = ("ACTIVE", "COMMITTED", "RELEASED", "EXPIRED")
SORTS: Final = ("reservation_id", "tenant", "scope_path", "status", "reserved", "created_at_ms", "expires_at_ms")
WINDOWS: Final = ("from", "to", "expires_from", "expires_to", "finalized_from", "finalized_to")
KEY_HEADER: Final = "X-Idempotency-Key"
MAX_KEY_CHARS: Final = 256
LIMIT: Final = 200

_VALUE: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_A_VALUE: Final = "1 to 128 of the characters A-Z a-z 0-9 _ . -"
_SUBJECT: Final = frozenset({*LEVELS, "dimensions"})
_CREATE: Final = frozenset(
    {"idempotency_key", "subject", "action", "estimate", "ttl_ms", "grace_period_ms", "overage_policy", "dry_run", "metadata"}
)
_DECIDE: Final = frozenset({"idempotency_key", "subject", "action", "estimate", "metadata"})
_EVENT: Final = frozenset(
    {"idempotency_key", "subject", "action", "actual", "overage_policy", "metrics", "client_time_ms", "metadata"}
)
_COMMIT: Final = frozenset({"idempotency_key", "actual", "metrics", "metadata"})
_RELEASE: Final = frozenset({"idempotency_key", "reason"})
_EXTEND: Final = frozenset({"idempotency_key", "extend_by_ms", "metadata"})
_ACTION: Final = frozenset({"kind", "name", "tags"})
_AMOUNT: Final = frozenset({"unit", "amount"})
_METRICS: Final = frozenset({"tokens_input", "tokens_output", "latency_ms", "model_version", "custom"})


@record
class Amount:
    """The wire's amount: one unit of a lifecycle, and how many of it."""

    unit: str  # the wire's word
    amount: int

    @property
    def json(self) -> dict[str, object]:
        return {"unit": self.unit, "amount": self.amount}

    @property
    def held(self) -> Amounts:
        """As the ledger counts it: one action is one call."""
        return amounts(self.unit, self.amount)


def amounts(unit: str, amount: int) -> Amounts:
    if unit == "USD_MICROCENTS":
        return Amounts(amount, 0)
    if unit == "TOKENS":
        return Amounts(0, amount)
    return Amounts(0, 0, credits=amount) if unit == "CREDITS" else Amounts(0, 0, risk_points=amount)


@record
class Subject:
    """Who acts, as it came. `levels`: those of the scope that were named, the widest first."""

    levels: tuple[tuple[str, str], ...]
    dimensions: Mapping[str, str]
    json: Mapping[str, object]

    @property
    def tenant(self) -> str | None:
        return self.levels[0][1] if self.levels[0][0] == "tenant" else None


@record
class Action:
    """What is done, as it came."""

    kind: str
    name: str
    json: Mapping[str, object]


@record
class Asked:
    """What reservations, decisions and events have in common. `body` is all of it, as it came: equal requests have equal ones."""

    key: str
    subject: Subject
    action: Action
    amount: Amount
    metadata: Mapping[str, object] | None
    body: Mapping[str, object]


@record
class Create:
    asked: Asked
    ttl_ms: int | None
    grace_ms: int
    overage: str | None
    dry_run: bool


@record
class Event:
    asked: Asked
    overage: str | None
    usage: Usage


@record
class Commit:
    key: str
    actual: Amount
    usage: Usage
    metadata: Mapping[str, object] | None
    body: Mapping[str, object]


@record
class Release:
    key: str
    reason: str
    body: Mapping[str, object]


@record
class Extend:
    key: str
    by_ms: int
    body: Mapping[str, object]


@record
class Query:
    """What a list asks for. `filters`: the levels that rows must have. Windows: (from, to), each bound may be missing."""

    filters: tuple[tuple[str, str], ...]
    limit: int
    cursor: str | None
    key: str | None = None
    status: str | None = None
    created: tuple[int | None, int | None] = (None, None)
    expires: tuple[int | None, int | None] = (None, None)
    finalized: tuple[int | None, int | None] = (None, None)
    sort_by: str | None = None
    ascending: bool = False
    include: frozenset[str] = frozenset()
    children: bool = True


# -- bodies -----------------------------------------------------------------------------------------------------------------------


def create(data: bytes, headers: CIMultiDictProxy[str]) -> Create:
    body = _body(data, _CREATE)
    asked = _asked(body, headers, "estimate")
    return Create(
        asked,
        _whole(body, "ttl_ms", 1_000, 86_400_000) if "ttl_ms" in body else None,
        _whole(body, "grace_period_ms", 0, 60_000) if "grace_period_ms" in body else 5_000,
        _word(body, "overage_policy", OVERAGES),
        _flag(body, "dry_run"),
    )


def decide(data: bytes, headers: CIMultiDictProxy[str]) -> Asked:
    return _asked(_body(data, _DECIDE), headers, "estimate")


def event(data: bytes, headers: CIMultiDictProxy[str]) -> Event:
    body = _body(data, _EVENT)
    asked = _asked(body, headers, "actual")
    if "client_time_ms" in body:
        _whole(body, "client_time_ms", 0, MOST)
    return Event(asked, _word(body, "overage_policy", OVERAGES), _usage(body))


def commit(data: bytes, headers: CIMultiDictProxy[str]) -> Commit:
    body = _body(data, _COMMIT)
    return Commit(_key(body, headers), _amount(body, "actual"), _usage(body), _metadata(body), body)


def release(data: bytes, headers: CIMultiDictProxy[str]) -> Release:
    body = _body(data, _RELEASE)
    reason = _text(body, "reason", 256) if "reason" in body else ""
    return Release(_key(body, headers), reason, body)


def extend(data: bytes, headers: CIMultiDictProxy[str]) -> Extend:
    body = _body(data, _EXTEND)
    key = _key(body, headers)
    _metadata(body)
    return Extend(key, _whole(body, "extend_by_ms", 1, 86_400_000), body)


def _body(data: bytes, known: frozenset[str]) -> Mapping[str, Any]:
    if len(data) > MAX_BODY_BYTES:  # read on the event loop: nothing that is valid is as large
        raise Fault("INVALID_REQUEST", f"the body has more than {MAX_BODY_BYTES:,} bytes", status=413)
    body = object_in(data)
    _check_known(body, known, "")
    return body


def object_in(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Fault("INVALID_REQUEST", f"the body is no JSON: {error}") from None
    if type(body) is not dict:
        raise Fault("INVALID_REQUEST", "the body has to be a JSON object")
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:  # most have less in all
        _check_depth(body)
    return body


def _check_depth(body: object) -> None:
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise Fault("INVALID_REQUEST", f"the body is more than {MAX_DEPTH} levels deep")


def _inside(of: object) -> Iterable[object]:
    if type(of) is dict:
        return of.values()
    return of if type(of) is list else ()


def _asked(body: Mapping[str, Any], headers: CIMultiDictProxy[str], amount: str) -> Asked:
    key = _key(body, headers)
    return Asked(key, _subject(body), _action(body), _amount(body, amount), _metadata(body), body)


def _key(body: Mapping[str, Any], headers: CIMultiDictProxy[str]) -> str:
    key = _text(body, "idempotency_key", MAX_KEY_CHARS, least=1)
    told = headers.getall(KEY_HEADER, ())
    if told and any(each != key for each in told):
        raise invalid(KEY_HEADER, "the same as the body's idempotency_key")
    return key


def _subject(body: Mapping[str, Any]) -> Subject:
    subject = _object(body, "subject")
    _check_known(subject, _SUBJECT, "subject.")
    levels = []
    for level in LEVELS:
        if level in subject:
            value = subject[level]
            if type(value) is not str or _VALUE.fullmatch(value) is None:
                raise invalid(f"subject.{level}", _A_VALUE)
            levels.append((level, value))
    if not levels:
        raise invalid("subject", f"one at least of {', '.join(LEVELS)}")
    dimensions: Mapping[str, Any] = {}
    if "dimensions" in subject:
        dimensions = _object(subject, "dimensions", "subject.")
        if len(dimensions) > 16:
            raise invalid("subject.dimensions", "at most 16 of them")
        for name in dimensions:
            _text(dimensions, name, 256, "subject.dimensions.")
    return Subject(tuple(levels), dimensions, subject)


def _action(body: Mapping[str, Any]) -> Action:
    action = _object(body, "action")
    _check_known(action, _ACTION, "action.")
    kind, name = _text(action, "kind", 64, "action."), _text(action, "name", 256, "action.")
    if "tags" in action:
        tags = action["tags"]
        if type(tags) is not list or len(tags) > 10 or not all(type(tag) is str and len(tag) <= 64 for tag in tags):
            raise invalid("action.tags", "a list of at most 10 texts of at most 64 characters")
    return Action(kind, name, action)


def _amount(body: Mapping[str, Any], name: str) -> Amount:
    amount = _object(body, name)
    _check_known(amount, _AMOUNT, f"{name}.")
    unit = amount.get("unit")
    if type(unit) is not str or unit not in UNITS:
        raise invalid(f"{name}.unit", f"one of {', '.join(UNITS)}")
    return Amount(unit, _whole(amount, "amount", 0, MOST, f"{name}."))


def _usage(body: Mapping[str, Any]) -> Usage:
    """What the client says that its work took: shown with the receipt, and charged nowhere."""
    if "metrics" not in body:
        return _NO_USAGE
    metrics = _object(body, "metrics")
    _check_known(metrics, _METRICS, "metrics.")
    read = {name: _whole(metrics, name, 0, MOST, "metrics.") for name in _COUNTED if name in metrics}
    if "model_version" in metrics:
        _text(metrics, "model_version", 128, "metrics.")
    if "custom" in metrics:
        _object(metrics, "custom", "metrics.")
    if not read:
        return _NO_USAGE
    used = read.get("tokens_input", 0), read.get("tokens_output", 0)
    return Usage(UsageSource.COUNTED, input_tokens=used[0], output_tokens=used[1])


_NO_USAGE: Final = Usage(UsageSource.COUNTED)
_COUNTED: Final = ("tokens_input", "tokens_output", "latency_ms")


def _metadata(body: Mapping[str, Any]) -> Mapping[str, object] | None:
    if "metadata" not in body:
        return None
    metadata = _object(body, "metadata")
    if len(metadata) and len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise invalid("metadata", f"at most {MAX_METADATA_BYTES:,} bytes of JSON")
    return metadata


def _check_known(of: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    if not of.keys() <= known:
        unknown = next(name for name in of if name not in known)
        raise invalid(f"{where}{unknown[:80]}", f"no such member: there are {', '.join(sorted(known))}")


def _object(of: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    value = of.get(name)
    if type(value) is not dict:
        raise invalid(f"{where}{name}", "an object")
    return value


def _text(of: Mapping[str, Any], name: str, most: int, where: str = "", least: int = 0) -> str:
    value = of.get(name)
    if type(value) is not str or not least <= len(value) <= most:
        raise invalid(f"{where}{name[:80]}", f"a text of {least} to {most} characters")
    return value


def _whole(of: Mapping[str, Any], name: str, least: int, most: int, where: str = "") -> int:
    value = of.get(name)
    if type(value) is not int or not least <= value <= most:
        raise invalid(f"{where}{name}", f"a whole number from {least:,} to {most:,}")
    return value


def _word(of: Mapping[str, Any], name: str, words: tuple[str, ...]) -> str | None:
    if name not in of:
        return None
    value = of[name]
    if type(value) is not str or value not in words:
        raise invalid(name, f"one of {', '.join(words)}")
    return value


def _flag(of: Mapping[str, Any], name: str) -> bool:
    value = of.get(name, False)
    if type(value) is not bool:
        raise invalid(name, "true or false")
    return value


# -- queries ----------------------------------------------------------------------------------------------------------------------


def listing(query: str) -> Query:
    """Of the reservations. What the specification does not name is ignored, as it says; a blank value is one that was not sent."""
    told = _parameters(query)
    ascending = _choice(told, "sort_dir", ("asc", "desc")) == "asc"
    tokens = {each.strip() for each in told.get("include", "").split(",")}
    windows = {name: _instant(told, name) for name in WINDOWS}
    pairs = [(windows[first], windows[last]) for first, last in zip(WINDOWS[::2], WINDOWS[1::2], strict=True)]
    for place, (first, last) in enumerate(pairs):
        if first is not None and last is not None and first > last:
            raise invalid(WINDOWS[2 * place], f"not after {WINDOWS[2 * place + 1]}")
    key = told.get("idempotency_key")
    if key is not None and len(key) > MAX_KEY_CHARS:
        raise invalid("idempotency_key", f"a text of 1 to {MAX_KEY_CHARS} characters")
    return Query(
        _filters(told),
        _limit(told),
        told.get("cursor"),
        key,
        _choice(told, "status", STATUSES),
        pairs[0],
        pairs[1],
        pairs[2],
        sort_by=_choice(told, "sort_by", SORTS),
        ascending=ascending,
        include=frozenset(tokens & {"metadata", "committed_metadata"}),
    )


def balances(query: str) -> Query:
    told = _parameters(query)
    filters = _filters(told)
    if not filters:
        raise Fault("INVALID_REQUEST", f"name one at least of {', '.join(LEVELS)}: whose balances are asked for?")
    children = _choice(told, "include_children", ("true", "false")) != "false"
    return Query(filters, _limit(told), told.get("cursor"), children=children)


def _parameters(query: str) -> dict[str, str]:
    """Those that are not blank."""
    told: dict[str, str] = {}
    for name, value in parse_qsl(query):
        if name in told:
            raise invalid(name[:80], "to be sent once")
        if value.strip():
            told[name] = value
    return told


def _filters(told: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((level, told[level]) for level in LEVELS if level in told)


def _limit(told: Mapping[str, str]) -> int:
    text = told.get("limit", "50")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= LIMIT):
        raise invalid("limit", f"a whole number from 1 to {LIMIT}")
    return int(text)


def _choice(told: Mapping[str, str], name: str, words: tuple[str, ...]) -> str | None:
    value = told.get(name)
    if value is not None and value not in words:
        raise invalid(name, f"one of {', '.join(words)}")
    return value


def _instant(told: Mapping[str, str], name: str) -> int | None:
    """ISO 8601, in ms. One without an offset is in UTC."""
    text = told.get(name)
    if text is None:
        return None
    try:
        # In a query, "+" means a space: `…T00:00:00+02:00` arrives without it.
        instant = datetime.fromisoformat(text.strip().replace(" ", "+"))
        return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise invalid(name, "an ISO 8601 date-time, such as 2026-11-30T12:00:00Z") from None
