"""The kinds of values in the files that users write: durations, sizes, percentages, names … each with its words and its schema."""

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field

from gateway.yaml_source import Reads, Unexpected, did_you_mean

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)", re.ASCII)
_MS_PER_UNIT: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"([0-9]{1,12}) ?(B|KB|MB|GB)", re.ASCII)
_BYTES_PER_UNIT: Final = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_SHARE = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,4}))? ?%", re.ASCII)
_SWITCH: Final = {"on": True, "yes": True, "off": False, "no": False}
_DIMENSION = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)

# Dimensions that the gateway itself gives a value: no header and no key may bind them.
OWN_DIMENSIONS: Final = ("run", "key", "tenant", "model", "provider")

EnumT = TypeVar("EnumT", bound=StrEnum)


def text_of(value: object) -> str:
    """The value if it is text; else Unexpected."""
    if not isinstance(value, str):
        raise Unexpected
    return value


def matching(pattern: str, expected: str, *examples: str, hidden: bool = False) -> Reads:
    """Text that a regular expression matches in full. `hidden`: what was found may be a secret and is not shown."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(value: object) -> str:
        if not isinstance(value, str) or compiled.fullmatch(value) is None:
            raise Unexpected(found="something else (not shown: it may be a secret)" if hidden and value is not None else None)
        return value

    schema: dict[str, object] = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return Reads(parse, expected, {**schema, "examples": list(examples)} if examples else schema)


def one_of(words: type[EnumT]) -> Reads:
    """One word of an enumeration."""
    known = [word.value for word in words]
    listed = f"one of {', '.join(known)}"

    def parse(value: object) -> EnumT:
        if value not in known:
            raise Unexpected(listed + (did_you_mean(value, known) if isinstance(value, str) else ""))
        return words(value)

    return Reads(parse, listed, {"type": "string", "enum": known})


def parse_duration(text: str) -> int | None:
    """`"10m"`, `"1.5h"`, `"250ms"` → ms, rounded up."""
    match = _DURATION.fullmatch(text)
    return math.ceil(float(match[1]) * _MS_PER_UNIT[match[2]]) if match else None


def duration(at_least: str, at_most: str) -> Reads:
    """A duration → ms."""
    low, high = parse_duration(at_least), parse_duration(at_most)
    assert low is not None
    assert high is not None
    expected = f'a duration from {at_least} to {at_most}, such as "10s", "5m" or "1.5h"'

    def parse(value: object) -> int:
        ms = parse_duration(text_of(value))
        if ms is None or not low <= ms <= high:
            raise Unexpected
        return ms

    return Reads(parse, expected, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"})


def parse_share(text: str) -> int | None:
    """`"25%"`, `"12.5%"` → parts per million."""
    match = _SHARE.fullmatch(text)
    return int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0")) if match else None


def share(at_least_ppm: int, at_most_ppm: int) -> Reads:
    """A percentage → parts per million."""
    bounds = f"{at_least_ppm / 10_000:g}% to {at_most_ppm / 10_000:g}%"

    def parse(value: object) -> int:
        ppm = parse_share(text_of(value))
        if ppm is None or not at_least_ppm <= ppm <= at_most_ppm:
            raise Unexpected
        return ppm

    schema = {"type": "string", "pattern": r"^[0-9]{1,4}(\.[0-9]{1,4})? ?%$", "examples": ["25%"]}
    return Reads(parse, f'a percentage such as "25%" ({bounds})', schema)


def whole(at_least: int, at_most: int) -> Reads:
    """A whole number."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise Unexpected
        return value

    schema = {"type": "integer", "minimum": at_least, "maximum": at_most}
    return Reads(parse, f"a whole number from {at_least:,} to {at_most:,}", schema)


def exactly(only: int) -> Reads:
    """One number and no other: a file's version."""

    def parse(value: object) -> int:
        if value != only or isinstance(value, bool | float):
            raise Unexpected
        return only

    return Reads(parse, str(only), {"const": only})


def size(at_least: str, at_most: str) -> Reads:
    """A number of bytes: `"20 MB"` is 20 × 1,048,576."""
    low, high = _bytes(at_least), _bytes(at_most)
    assert low is not None
    assert high is not None

    def parse(value: object) -> int:
        number = _bytes(text_of(value))
        if number is None or not low <= number <= high:
            raise Unexpected
        return number

    schema = {"type": "string", "pattern": "^[0-9]+ ?(B|KB|MB|GB)$"}
    return Reads(parse, f'a size from {at_least} to {at_most}, such as "20 MB" (1 MB is 1,048,576 bytes)', schema)


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _BYTES_PER_UNIT[match[2]] if match else None


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _SWITCH:
        return _SWITCH[value]
    raise Unexpected


def named(own_allowed: bool) -> Callable[[object], str]:
    """Reads a dimension's name; with `own_allowed`, also those that the gateway fills itself."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or _DIMENSION.fullmatch(value) is None:
            raise Unexpected
        if not own_allowed and value in OWN_DIMENSIONS:
            raise Unexpected(f"another name: {', '.join(OWN_DIMENSIONS)} are filled by the gateway itself")
        return value

    return parse


_A_DIMENSION: Final = "a dimension: a lower-case name such as run, agent, team, model or one of your own"
_DIMENSION_SCHEMA: Final[Mapping[str, object]] = {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$"}

Switch = Annotated[bool, Reads(_switch, "true or false", {"type": "boolean"})]
Dimension = Annotated[str, Reads(named(own_allowed=True), _A_DIMENSION, _DIMENSION_SCHEMA)]
BoundDimension = Annotated[str, Reads(named(own_allowed=False), _A_DIMENSION, _DIMENSION_SCHEMA)]
Glob = Annotated[str, matching(r"[^\s\x00-\x1f]{1,200}", 'a name or a pattern such as "gpt-5*"', "gpt-5*")]
ModelName = Annotated[str, matching(r"[^\s\x00-\x1f*?]{1,200}", "a model's name, without * and ?", "gpt-5-mini")]
WORD: Final = r"[A-Za-z0-9._-]{1,64}"
A_WORD: Final = "1 to 64 letters, digits, dots, dashes or underscores"
Word = Annotated[str, matching(WORD, A_WORD)]
EnvironmentName = Annotated[
    str, matching("[A-Za-z_][A-Za-z0-9_]{0,127}", "the name of an environment variable (not its value)", hidden=True)
]


def listed(value: object) -> object:
    """`x` is short for `[x]`."""
    return [value] if isinstance(value, str) else value


def preset(default: object, description: str) -> Any:
    """A key's default, as a user would write it, and what the key does."""
    return Field(default, validate_default=True, description=description)
