"""What an operator's request holds, read as strictly as the specification writes it: types, lengths, words, and no member that it does not
name. Pure. Every mistake is a Fault INVALID_REQUEST that names the member."""

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar
from urllib.parse import parse_qsl

import orjson

from gateway.core.grants import NoScope, Scope, scope_of
from gateway.core.money import MAX_AMOUNT
from gateway.core.scopes import Unit
from gateway.cycles.faults import Fault, invalid
from gateway.cycles.reading import UNITS, object_in
from gateway.policy_file import MAX_COUNT

MAX_METADATA_BYTES: Final = 16_384  # the specification has no bound: documents are read by every gateway
MAX_SEARCH: Final = 128
PAGE, LARGEST_PAGE = 50, 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Members:
    """The members of one JSON object; None where one is missing."""

    of: Mapping[str, object]
    where: str = ""

    @classmethod
    def read(cls, data: bytes, known: Collection[str], *, may_be_empty: bool = False) -> "Members":
        if may_be_empty and not data.strip():
            return cls({})
        return cls(object_in(data))._of_these(known)

    def _of_these(self, known: Collection[str]) -> "Members":
        unknown = next((name for name in self.of if name not in known), None)
        if unknown is not None:
            raise invalid(f"{self.where}{unknown[:80]}", f"no such member: there are {', '.join(sorted(known))}")
        return self

    def __contains__(self, name: str) -> bool:
        return name in self.of

    def text(self, name: str, most: int, least: int = 0) -> str | None:
        if name not in self.of:
            return None
        value = self.of[name]
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise invalid(self.where + name, f"a text of {least} to {most} characters")
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        if name not in self.of:
            return None
        value = self.of[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise invalid(self.where + name, f"a whole number from {least:,} to {most:,}")
        return value

    def word(self, name: str, words: Collection[str]) -> str | None:
        if name not in self.of:
            return None
        value = self.of[name]
        if not isinstance(value, str) or value not in words:
            raise invalid(self.where + name, f"one of {', '.join(words)}")
        return value

    def texts(self, name: str, most: int) -> list[str] | None:
        """`most`: characters of each."""
        if name not in self.of:
            return None
        values = self.of[name]
        if not isinstance(values, list) or not all(isinstance(each, str) and len(each) <= most for each in values):
            raise invalid(self.where + name, f"a list of texts of at most {most} characters")
        return values

    def object(self, name: str) -> Mapping[str, object] | None:
        """Anything goes in it."""
        if name not in self.of:
            return None
        value = self.of[name]
        if not isinstance(value, dict):
            raise invalid(self.where + name, "an object")
        if len(orjson.dumps(value)) > MAX_METADATA_BYTES:
            raise invalid(self.where + name, f"at most {MAX_METADATA_BYTES:,} bytes of JSON")
        return value

    def part(self, name: str, known: Collection[str]) -> "Members | None":
        """An object whose members are read in their turn."""
        value = self.object(name)
        return None if value is None else Members(value, f"{self.where}{name}.")._of_these(known)

    def amount(self, name: str, unit: Unit) -> int | None:
        """In the budget's unit: UNIT_MISMATCH where it is in another."""
        part = self.part(name, ("unit", "amount"))
        if part is None:
            return None
        given = UNITS[needed(part.word("unit", UNITS), part.where + "unit")]
        amount = needed(part.whole("amount", 0, most_of(given)), part.where + "amount")
        if given is not unit:
            wanted = next(word for word, each in UNITS.items() if each is unit)
            raise Fault("UNIT_MISMATCH", f"{self.where}{name}: this budget counts {wanted}", {"expected_units": [wanted]})
        return amount

    def instant(self, name: str) -> int | None:
        """A date-time of RFC 3339, in ms."""
        value = self.text(name, 64)
        if value is None:
            return None
        at_ms = instant_of(value)
        if at_ms is None:
            raise invalid(self.where + name, "a date-time with an offset, such as 2026-11-30T12:00:00Z")
        return at_ms


def needed(value: T | None, name: str) -> T:
    if value is None:
        raise invalid(name, "it to be there")
    return value


def most_of(unit: Unit) -> int:
    """The most that a budget of this unit may have."""
    return MAX_AMOUNT if unit is Unit.USD else MAX_COUNT


def instant_of(text: str) -> int | None:
    try:
        instant = datetime.fromisoformat(text)
        return int(instant.timestamp() * 1000) if instant.tzinfo is not None and "T" in text.upper() else None
    except (ValueError, OverflowError):
        return None


def date_time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def scope_named(text: str, name: str = "scope") -> Scope:
    try:
        return scope_of(text)
    except NoScope as error:
        raise Fault("INVALID_REQUEST", f"{name}: {error}", {"field": name}) from None


# -- queries ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters that were sent. One that the specification does not name is passed over, as it wants; a blank one was not sent."""

    of: Mapping[str, str]

    @classmethod
    def read(cls, query: str) -> "Query":
        told: dict[str, str] = {}
        for name, value in parse_qsl(query):
            if name in told:
                raise invalid(name[:80], "to be sent once")
            if value.strip():
                told[name] = value
        return cls(told)

    def text(self, name: str, most: int = 512) -> str | None:
        value = self.of.get(name)
        if value is not None and len(value) > most:
            raise invalid(name, f"a text of at most {most} characters")
        return value

    def word(self, name: str, words: Collection[str]) -> str | None:
        value = self.of.get(name)
        if value is not None and value not in words:
            raise invalid(name, f"one of {', '.join(words)}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.word(name, ("true", "false"))
        return None if value is None else value == "true"

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self.of.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) <= 9 and least <= int(value) <= most):
            raise invalid(name, f"a whole number from {least:,} to {most:,}")
        return int(value)

    def fraction(self, name: str) -> float | None:
        value = self.of.get(name)
        if value is None:
            return None
        if _FRACTION.fullmatch(value) is None or not 0 <= float(value) <= 1:
            raise invalid(name, "a number from 0 to 1")
        return float(value)

    def words(self, name: str) -> list[str] | None:
        """A list with commas between."""
        value = self.of.get(name)
        if value is None:
            return None
        words = [word.strip() for word in value.split(",") if word.strip()]
        if len(words) > _WORDS_AT_MOST:
            raise invalid(name, f"at most {_WORDS_AT_MOST} of them")
        return words

    def instant(self, name: str) -> int | None:
        value = self.of.get(name)
        if value is None:
            return None
        at_ms = instant_of(value.strip().replace(" ", "+"))  # in a query, "+" means a space
        if at_ms is None:
            raise invalid(name, "a date-time with an offset, such as 2026-11-30T12:00:00Z")
        return at_ms

    def search(self) -> str | None:
        """In lower case."""
        text = self.text("search", MAX_SEARCH)
        return None if text is None else text.lower()


_FRACTION: Final = re.compile(r"[0-9]*\.?[0-9]+", re.ASCII)
_WORDS_AT_MOST: Final = 25


def page_of(
    query: Query,
    rows: Sequence[T],
    sorts: Mapping[str, Callable[[T], str | int | float]],
    by: str,
    id_of: Callable[[T], str],
    most: int = LARGEST_PAGE,
) -> tuple[list[T], dict[str, object]]:
    """One page of the rows, and what the answer says of the next one. Sorted by the query's word (`by`, where it has none), downwards unless
    it says otherwise; a cursor says after which row to go on, so rows that come and go meanwhile neither repeat nor hide others."""
    sort_by = query.word("sort_by", sorts) or by
    down = query.word("sort_dir", ("asc", "desc")) != "asc"
    limit = query.whole("limit", 1, 1_000_000) or PAGE
    value_of = sorts[sort_by]

    def place(row: T) -> tuple[str | int | float, str]:
        return value_of(row), id_of(row)

    ordered = sorted(rows, key=place, reverse=down)
    after = _cursor_in(query, sort_by, down)
    if after is not None:
        try:
            ordered = [row for row in ordered if (place(row) < after if down else place(row) > after)]
        except TypeError:
            raise _no_cursor() from None
    shown = ordered[: min(limit, most)]
    more = len(ordered) > len(shown)
    told: dict[str, object] = {"has_more": more}
    if more:
        told["next_cursor"] = base64.urlsafe_b64encode(orjson.dumps([sort_by, down, *place(shown[-1])])).decode()
    return shown, told


def _cursor_in(query: Query, sort_by: str, down: bool) -> tuple[str | int | float, str] | None:
    text = query.text("cursor", 2_048)
    if text is None:
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(text))
        of_sort, of_down, value, last = found
    except (ValueError, TypeError, binascii.Error):
        raise _no_cursor() from None
    if (of_sort, of_down) != (sort_by, down) or not isinstance(last, str) or not isinstance(value, str | int | float):
        raise _no_cursor()
    return value, last


def _no_cursor() -> Fault:
    return invalid("cursor", "the next_cursor of a page with the same sort_by and sort_dir")
