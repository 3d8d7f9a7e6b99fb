"""The admin specification as a judge of answers: each has to be one that the operation may give, with no member that it does not name and no
null. Members that a schema does not name are refused also where it says nothing of them, unless it says that anything goes."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match

_CHECKS: Final = FormatChecker(formats=())
# Any operation may answer so, whatever it lists: a store that is away, and what the cascade's guard refuses (CASCADE SEMANTICS, rule 2).
_ANY_TIME: Final = {"503": "ErrorResponse", "409": "ErrorResponse", "404": "ErrorResponse"}


@_CHECKS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)


def check(method: str, path: str, status: int, body: object, headers: Mapping[str, str]) -> None:
    """`path` without the plane's prefix and query, `headers` by lower-case names. AssertionError, where it must not answer so."""
    answers = _ANY_TIME | _answers(method, path)
    name = answers.get(str(status))
    assert name is not None, f"{method} {path} may answer {', '.join(answers)}, not {status}: {body}"
    mistake = best_match(_validator(name).iter_errors(body))
    assert mistake is None, f"{method} {path} {status}: {mistake.json_path}: {mistake.message}"
    _check_no_nulls(body, f"{method} {path} {status}")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-cycles-trace-id"])


@cache
def _cut() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "cycles-governance-admin-v0.json").read_text())
    return {**found, "schemas": _strict(found["schemas"])}


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = {"components": {"schemas": _cut()["schemas"]}, "$ref": f"#/components/schemas/{name}"}
    return Draft202012Validator(schema, format_checker=_CHECKS)


def _answers(method: str, path: str) -> dict[str, str]:
    # What has no parameters goes first: `lookup` is no budget's id.
    for operation, answers in sorted(_cut()["answers"].items(), key=lambda pair: pair[0].count("{")):
        known, _, pattern = operation.partition(" ")
        if known == method and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", pattern), path):
            found: dict[str, str] = answers
            return found
    raise AssertionError(f"the specification has no {method} {path}")


def _strict(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    read = {name: _strict(each) for name, each in value.items()}
    if read.get("type") == "object" and isinstance(read.get("properties"), dict):
        read.setdefault("additionalProperties", False)
    return read


def _check_no_nulls(value: object, where: str) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            assert each is not None, f"{where}: {name} is null"
            _check_no_nulls(each, f"{where}.{name}")
    elif isinstance(value, list):
        for each in value:
            _check_no_nulls(each, where)
