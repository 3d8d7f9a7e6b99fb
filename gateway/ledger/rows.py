"""What a ledger holds, as rows that any ledger can dump and load: plain mappings, one JSON object a line in an export.

The order is part of the format, so that whoever reads needs memory per account, never per call:

    head                                 once, first
      tenant                             then, for each tenant:
      account … run … call … refusal … spend … act … frozen … document … memo …       each kind together, any number of each
    end                                  once, last: an export that was cut off is noticed

Amounts are integers in the account's unit (runs: microcents), times ms since the epoch. What a row says beyond its names:

    account  `limit`: the one stored with it. A rolling account's amounts stand in `buckets`: [index, committed, unconfirmed,
             carried], those that still count at the tenant's `at_ms`; its `committed` and `unconfirmed` are their sums, its own
             `carried` is 0, and what a reset took away is taken from the buckets' `carried`, which may thus be below zero
    run      `paused_no`: of a pause that a refusal set, the tenant's `raises` at that moment: more raises since, and the run is
             active again. null: an operator's pause (`paused_by`), or none. `recent`: [tail, fingerprint] of its last holds, the
             oldest first
    call     `record` and `closing`: the arrays of `ledger.packed`. A tombstone has no record. `lease_ms`: of a live hold; else 0
    refusal  `number`: its place in the ring, growing
    spend    `credits` and `risk_points` are left out where they are 0
    act      in the order they were done
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.record import record
from gateway.ledger.contract import HoldState, RunState

FORMAT: Final = 1


class Damaged(Exception):
    """A row is not what it should be: which line, what was found and what was expected."""


@record
class Head:
    format: int
    at_ms: int


@record
class Tenant:
    tenant: str
    at_ms: int  # the instant of which everything that follows is told
    raises: int  # how often something was raised here: see `Run.paused_no`


@record
class AccountRow:
    tenant: str
    key: str
    end_ms: int
    committed: int
    reserved: int
    unconfirmed: int
    carried: int
    adjusted: int
    alerted: int  # ppm
    limit: int | None
    buckets: tuple[tuple[int, int, int, int], ...] = ()


@record
class Run:
    tenant: str
    run: str
    owner: str
    first_ms: int
    last_ms: int
    state: str
    paused_no: int | None
    paused_by: str
    limit: int | None
    raised: bool
    asked: int | None
    committed: int
    reserved: int
    unconfirmed: int
    calls: int
    latest: str | None
    issued: bool
    placed: bool
    ancestry: tuple[str, ...] = ()
    recent: tuple[tuple[str, str], ...] = ()


@record
class CallRow:
    tenant: str
    tail: str
    state: str
    lease_ms: int
    record: list[Any] | None
    closing: list[Any] | None


@record
class Refused:
    tenant: str
    ring: str
    number: int
    tail: str
    record: list[Any]


@record
class Spend:
    tenant: str
    day: int
    owner: str
    run: str
    model: str
    provider: str
    dimensions: dict[str, str]
    usd: int
    tokens: int
    calls: int
    credits: int = 0
    risk_points: int = 0


@record
class ActRow:
    tenant: str
    id: str
    at_ms: int
    who: str
    act: str
    what: str
    why: str


@record
class FrozenRow:
    tenant: str
    scope: tuple[tuple[str, str], ...]
    at_ms: int
    who: str
    why: str


@record
class DocumentRow:
    tenant: str
    name: str
    text: str


@record
class MemoRow:
    tenant: str
    name: str
    text: str
    until_ms: int


@record
class End:
    rows: int  # all before this one


Row: TypeAlias = Head | Tenant | AccountRow | Run | CallRow | Refused | Spend | ActRow | FrozenRow | DocumentRow | MemoRow | End

# -- fields -----------------------------------------------------------------------------------------------------------------------
# Each takes what was read and returns the field, or raises ValueError with what was expected.

_Field: TypeAlias = Callable[[Any], Any]


def _text(value: Any) -> Any:
    if type(value) is str:
        return value
    raise ValueError("a text")


def _key(value: Any) -> Any:
    if type(value) is str and value.count("|") >= 3:
        return value
    raise ValueError("an account's key: budget|scope|window|unit")


def _integer(value: Any) -> Any:
    if type(value) is int:
        return value
    raise ValueError("an integer")


def _amount(value: Any) -> Any:
    if type(value) is int and value >= 0:
        return value
    raise ValueError("an integer, not below 0")


def _yes_or_no(value: Any) -> Any:
    if type(value) is bool:
        return value
    raise ValueError("true or false")


def _array(value: Any) -> Any:
    if type(value) is list:
        return value
    raise ValueError("an array")


def _maybe(field: _Field) -> _Field:
    def read(value: Any) -> Any:
        if value is None:
            return None
        try:
            return field(value)
        except ValueError as error:
            raise ValueError(f"{error} or null") from None

    return read


def _one_of(*words: str) -> _Field:
    def read(value: Any) -> Any:
        if value in words:
            return value
        raise ValueError(f"one of {', '.join(words)}")

    return read


def _texts(value: Any) -> Any:
    if type(value) is list and all(type(each) is str for each in value):
        return tuple(value)
    raise ValueError("an array of texts")


def _pairs(value: Any) -> Any:
    if type(value) is list and all(type(each) is list and [type(part) for part in each] == [str, str] for each in value):
        return tuple([(name, given) for name, given in value])
    raise ValueError("an array of pairs of texts")


def _buckets(value: Any) -> Any:
    if type(value) is list and all(type(each) is list and [type(part) for part in each] == [int] * 4 for each in value):
        return tuple([tuple(each) for each in value])
    raise ValueError("an array of [index, committed, unconfirmed, carried]")


def _dimensions(value: Any) -> Any:
    if type(value) is dict and all(type(each) is str for each in value.values()):
        return value
    raise ValueError("an object of texts")


def _format(value: Any) -> Any:
    if value == FORMAT:
        return value
    raise ValueError(f"{FORMAT}, the only format that is read here")


# kind → (class, its fields in the class's order). The order of kinds is the order in a file. Balances may be below zero as far as
# reading goes: it is for `ledger.verify` to say so, together with all else that is wrong.
_KINDS: Final[Mapping[str, tuple[Callable[..., Row], Mapping[str, _Field]]]] = {
    "head": (Head, {"format": _format, "at_ms": _amount}),
    "tenant": (Tenant, {"tenant": _text, "at_ms": _amount, "raises": _amount}),
    "account": (
        AccountRow,
        {
            "tenant": _text,
            "key": _key,
            "end_ms": _amount,
            "committed": _integer,
            "reserved": _integer,
            "unconfirmed": _integer,
            "carried": _integer,
            "adjusted": _integer,
            "alerted": _amount,
            "limit": _maybe(_amount),
            "buckets": _buckets,
        },
    ),
    "run": (
        Run,
        {
            "tenant": _text,
            "run": _text,
            "owner": _text,
            "first_ms": _amount,
            "last_ms": _amount,
            "state": _one_of(*RunState),
            "paused_no": _maybe(_amount),
            "paused_by": _text,
            "limit": _maybe(_amount),
            "raised": _yes_or_no,
            "asked": _maybe(_amount),
            "committed": _integer,
            "reserved": _integer,
            "unconfirmed": _integer,
            "calls": _integer,
            "latest": _maybe(_text),
            "issued": _yes_or_no,
            "placed": _yes_or_no,
            "ancestry": _texts,
            "recent": _pairs,
        },
    ),
    "call": (
        CallRow,
        {
            "tenant": _text,
            "tail": _text,
            "state": _one_of(*HoldState),
            "lease_ms": _amount,
            "record": _maybe(_array),
            "closing": _maybe(_array),
        },
    ),
    "refusal": (Refused, {"tenant": _text, "ring": _text, "number": _amount, "tail": _text, "record": _array}),
    "spend": (
        Spend,
        {
            "tenant": _text,
            "day": _amount,
            "owner": _text,
            "run": _text,
            "model": _text,
            "provider": _text,
            "dimensions": _dimensions,
            "usd": _amount,
            "tokens": _amount,
            "calls": _amount,
            "credits": _amount,
            "risk_points": _amount,
        },
    ),
    "act": (
        ActRow,
        {"tenant": _text, "id": _text, "at_ms": _amount, "who": _text, "act": _text, "what": _text, "why": _text},
    ),
    "frozen": (FrozenRow, {"tenant": _text, "scope": _pairs, "at_ms": _amount, "who": _text, "why": _text}),
    "document": (DocumentRow, {"tenant": _text, "name": _text, "text": _text}),
    "memo": (MemoRow, {"tenant": _text, "name": _text, "text": _text, "until_ms": _amount}),
    "end": (End, {"rows": _amount}),
}
_OFTEN_ZERO: Final = frozenset({"credits", "risk_points"})  # left out then
_PLACE: Final = {kind: place for place, kind in enumerate(_KINDS)}
_KIND_OF: Final[Mapping[Callable[..., Row], str]] = {made: kind for kind, (made, _) in _KINDS.items()}


def to_mapping(row: Row) -> dict[str, object]:
    """What `dump` yields. orjson writes tuples as arrays."""
    kind = _KIND_OF[type(row)]
    told: dict[str, object] = {"kind": kind}
    for name in _KINDS[kind][1]:
        value = getattr(row, name)
        if value or name not in _OFTEN_ZERO:
            told[name] = value
    return told


class Reader:
    """Rows as they come, checked: each by itself and in its place. `line` is the number of the latest."""

    def __init__(self) -> None:
        self.line = 0
        self._kind = ""
        self._tenant = ""
        self._tenants: set[str] = set()

    def read(self, given: Mapping[str, object]) -> Row:
        self.line += 1
        kind = given.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise self.damaged("kind", kind, f"one of {', '.join(_KINDS)}")
        made, fields = _KINDS[kind]
        values = []
        for name, field in fields.items():
            if name not in given and name not in _OFTEN_ZERO:
                raise Damaged(f"line {self.line}: a row of kind {kind} without {name!r}")
            value = given.get(name, 0)
            try:
                # A mapping that never was JSON has tuples where JSON has arrays.
                values.append(field(_listed(value) if type(value) is tuple else value))
            except ValueError as error:
                raise self.damaged(f"{kind}.{name}", value, str(error)) from None
        unknown = next((name for name in given if name != "kind" and name not in fields), None)
        if unknown is not None:
            raise Damaged(f"line {self.line}: found {unknown!r}, which a row of kind {kind} does not have")
        row = made(*values)
        self._check_place(kind, row)
        return row

    def finish(self) -> None:
        """After the last row."""
        if self._kind != "end":
            raise Damaged(f"line {self.line}: the last row is no `end`: the export was cut off")

    def damaged(self, where: str, found: object, expected: str) -> Damaged:
        return Damaged(f"line {self.line}: {where}: found {_shown(found)}, expected {expected}")

    def _check_place(self, kind: str, row: Row) -> None:
        before = self._kind
        self._kind = kind
        if (kind == "head") != (self.line == 1) or before == "end":
            raise Damaged(f"line {self.line}: a row of kind {kind}, expected one head first and one end last")
        if isinstance(row, Head):
            return
        if isinstance(row, End):
            if row.rows != self.line - 1:
                raise self.damaged("end.rows", row.rows, f"{self.line - 1}, the rows before it")
            return
        if isinstance(row, Tenant):
            if row.tenant in self._tenants:
                raise Damaged(f"line {self.line}: tenant {row.tenant!r} for a second time")
            self._tenants.add(row.tenant)
            self._tenant = row.tenant
            return
        if before == "head" or row.tenant != self._tenant:
            raise self.damaged(f"{kind}.tenant", row.tenant, "the tenant whose row stands before")
        if _PLACE[kind] < _PLACE[before]:
            raise Damaged(f"line {self.line}: a row of kind {kind} after one of kind {before}")


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if type(value) in (tuple, list) else value


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


async def read_all(given: AsyncIterator[Mapping[str, object]]) -> AsyncIterator[Row]:
    """For `load`: every row checked and in its place, to the `end`."""
    reader = Reader()
    async for each in given:
        yield reader.read(each)
    reader.finish()


# -- files ------------------------------------------------------------------------------------------------------------------------


def to_line(row: Mapping[str, object]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def from_lines(lines: Iterator[bytes]) -> Iterator[Mapping[str, object]]:
    """The lines of an export as mappings."""
    for number, line in enumerate(lines, 1):
        try:
            given = orjson.loads(line)
        except ValueError as error:
            raise Damaged(f"line {number}: not JSON ({error})") from None
        if not isinstance(given, dict):
            raise Damaged(f"line {number}: found {_shown(given)}, expected a JSON object")
        yield given
