"""Says where two answers differ, field by field: a hold printed whole is two pages."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def agree(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError("; ".join(_differences(found, expected, type(expected).__name__)) or f"{found} != {expected}")


def _differences(found: Any, expected: Any, path: str) -> Iterator[str]:
    if found == expected:
        return
    if type(found) is not type(expected):
        yield f"{path}: found {str(found)[:500]}, expected {str(expected)[:500]}"
    elif is_dataclass(found):
        for each in fields(found):
            if each.compare:
                yield from _differences(getattr(found, each.name), getattr(expected, each.name), f"{path}.{each.name}")
    elif isinstance(found, list | tuple) and len(found) == len(expected):
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(one, other, f"{path}[{place}]")
    else:
        yield f"{path}: found {found!r}, expected {expected!r}"
