"""Strict reading, shared by the dialects: what decides what a call costs is read in one way only, or refused 400 `ambiguous_request`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.core.meter import Meter
from gateway.wire.body import too_deep
from gateway.wire.problem import Refused, bad_request

MAX_MODEL_CHARS: Final = 256
MAX_TOKENS_REPORTED: Final = 10**9  # a report above this is no report

# Fields of any request by which OpenRouter and LiteLLM choose another model, or more work, than was named.
ROUTED: Final = frozenset({"models", "route", "provider", "plugins", "transforms", "preset", "fallbacks"})

Kinds = Mapping[str, tuple[type, str]]  # field → (its type, the words for it)

A_COUNT: Final = (int, "an integer of at least 1")
A_SWITCH: Final = (bool, "true or false")
A_TEXT: Final = (str, "a string")
A_LIST: Final = (list, "a list")
AN_OBJECT: Final = (dict, "an object")


@dataclass(slots=True)
class Facts:
    """What turns up while a request is read."""

    needs: set[str] = field(default_factory=set)
    unpriced: list[str] = field(default_factory=list)
    long_cache: bool = False  # something is to be kept for longer than usual


# -- a request ----------------------------------------------------------------------------------------------------------------


def refuse_variants(fields: Mapping[str, Any], names: frozenset[str], where: str = "") -> None:
    """Some servers match field names regardless of case, by Unicode folding: to them `MAX_TOKENS` and `ſtream` are ours."""
    for name in fields:
        if name not in names and (folded := name.casefold()) in names:
            raise bad_request("ambiguous_request", f"{where}{name[:80]!r} differs from {folded!r} only in case.", where + folded)


def refuse_other_kinds(body: Mapping[str, Any], kinds: Kinds) -> None:
    """Null is as good as absent. Integers are counts: at least 1."""
    for name, value in body.items():
        if name in kinds and value is not None:
            kind, expected = kinds[name]
            if type(value) is not kind or (kind is int and body[name] < 1):
                raise not_a(name, expected)


def not_a(name: str, expected: str) -> Refused:
    """To be raised."""
    return bad_request("ambiguous_request", f"{name}: expected {expected}.", name)


def typed(fields: Mapping[str, Any], name: str, kind: type, expected: str, where: str = "") -> Any:
    """The field's value, or None where it is absent or null."""
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        raise not_a(where + name, expected)
    return value


def objects(body: Mapping[str, Any], name: str, *, required: bool = False) -> list[dict[str, Any]]:
    values = body.get(name)
    if values is None and not required:
        return []
    if type(values) is not list or not all(type(value) is dict for value in values):
        raise not_a(name, "a list of objects")
    return values


def model_name(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_CHARS or not model.isprintable():
        raise bad_request("ambiguous_request", f"model: expected a name of 1 to {MAX_MODEL_CHARS} printable characters.", "model")
    return model


def encoded(body: Mapping[str, Any]) -> dict[str, bytes]:
    """The lists and objects of the body as JSON: counted from here, and forwarded as they are."""
    try:
        return {name: orjson.dumps(value) for name, value in body.items() if type(value) is dict or type(value) is list}
    except orjson.JSONEncodeError:  # it writes fewer levels than it reads
        raise too_deep() from None


def text_of(value: Any) -> str:
    """What a model may be shown of a value: a string as it is, anything else as JSON."""
    if type(value) is str:
        return value
    return "" if value is None else orjson.dumps(value).decode()


def other_texts(body: Mapping[str, Any], encoded: Mapping[str, bytes], not_input: Collection[str]) -> tuple[str, ...]:
    """What stands in fields that are not known here, as if the model read it: this over-counts those that none reads."""
    return tuple(
        encoded[name].decode() if name in encoded else value
        for name, value in body.items()
        if name not in not_input and (name in encoded or type(value) is str)
    )


# -- an answer ----------------------------------------------------------------------------------------------------------------


def tokens(fields: Mapping[str, Any], name: str) -> int | None:
    """A reported count; None where it is none that can be true."""
    value = fields.get(name)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS_REPORTED else None


def note_unknown(meter: Meter, reported: Mapping[str, Any], known: frozenset[str], where: str = "usage.") -> None:
    """Tells of counts in a report that nobody here knows: the provider may bill them. Known fields cost one comparison of sets."""
    if reported.keys() <= known:
        return
    for name in reported.keys() - known:
        value = reported[name]
        counts = value.values() if type(value) is dict else (value,)
        if any(type(each) is int and each > 0 for each in counts):
            meter.unknown.add(where + name)


def fields_of(value: Any) -> Mapping[str, Any]:
    return value if type(value) is dict else {}


def dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if type(value) is dict] if type(values) is list else []
