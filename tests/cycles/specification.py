"""The specification's word on every answer: its schema for that endpoint and status, with no member that it does not name."""

import json
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

_CUT: Final = json.loads((Path(__file__).parent / "cycles-protocol-v0.json").read_text())
ERROR_CODES: Final = tuple(_CUT["schemas"]["ErrorCode"]["enum"])
# Of an overloaded server, and of one whose store is away: any endpoint may answer so, whatever it lists.
_ANY_TIME: Final = {"429": "ErrorResponse", "503": "ErrorResponse"}


def check(method: str, path: str, status: int, body: Any) -> None:
    """`path` below the plane's prefix. AssertionError where the specification knows no such answer."""
    assert '"null"' not in json.dumps(body), "there are no nulls"
    answers = _answers(method, path)
    name = {**_ANY_TIME, **answers}.get(str(status))
    assert name is not None, f"{method} {path}: the specification knows no answer {status}: {body}"
    problems = [f"{each.json_path}: {each.message}" for each in _validator(name).iter_errors(body)]
    assert not problems, f"{method} {path} {status}: {problems} in {body}"


def _answers(method: str, path: str) -> dict[str, str]:
    for operation, answers in _CUT["answers"].items():
        known_method, _, pattern = operation.partition(" ")
        if known_method == method and _matches(pattern, path):
            found: dict[str, str] = answers
            return found
    raise AssertionError(f"the specification knows no {method} {path}")


def _matches(pattern: str, path: str) -> bool:
    parts, segments = pattern.split("/"), path.split("/")
    return len(parts) == len(segments) and all(
        part.startswith("{") or part == segment for part, segment in zip(parts, segments, strict=True)
    )


def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"components": {"schemas": _CUT["schemas"]}, "$ref": f"#/components/schemas/{name}"})
