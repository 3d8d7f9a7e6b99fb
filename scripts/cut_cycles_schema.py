"""Cuts what the tests need out of the Cycles specification: which schema each answer of an endpoint has, and the schemas themselves.

    python -m scripts.cut_cycles_schema cycles-protocol-v0.yaml > tests/cycles/cycles-protocol-v0.json
    python -m scripts.cut_cycles_schema cycles-governance-admin-v0.1.25.yaml webhook /events bulk-action /v1/balances \
        > tests/cycles/governance/cycles-governance-admin-v0.json

Operations whose path has one of the words after the file are left out, and the schemas that then no answer needs.

The specification is at https://github.com/runcycles/cycles-protocol, under the Apache License 2.0; see tests/cycles/NOTICE. Descriptions and
examples are left out.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

_SAID_ELSEWHERE = frozenset({"description", "example", "examples", "default"})


def main() -> None:
    spec = yaml.safe_load(Path(sys.argv[1]).read_text())
    answers = {
        f"{method.upper()} {path}": {
            status: _schema(spec, answer) for status, answer in operation["responses"].items() if _has_schema(answer)
        }
        for path, operations in spec["paths"].items()
        for method, operation in operations.items()
        if not any(word in path for word in sys.argv[2:])
    }
    schemas = {name: _bare(schema) for name, schema in spec["components"]["schemas"].items()}
    if sys.argv[2:]:
        schemas = {name: schemas[name] for name in _needed(answers, schemas)}
    cut = {
        "version": spec["info"]["version"],
        "answers": answers,
        "schemas": schemas,
    }
    print(json.dumps(cut, indent=1, sort_keys=True))


def _needed(answers: Any, schemas: Any) -> set[str]:
    """The schemas of these answers, and whatever they refer to."""
    waiting = {name for each in answers.values() for name in each.values()}
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schemas[name]))) - found
    return found


def _has_schema(answer: Any) -> bool:
    """Not those without a body, or with one that is described on the spot: of what is not served here."""
    return "$ref" in answer or "$ref" in answer.get("content", {}).get("application/json", {}).get("schema", {})


def _schema(spec: Any, answer: Any) -> str:
    """The name of an answer's schema."""
    if "$ref" in answer:
        answer = spec["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    return str(answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])


def _bare(value: Any, *, names: bool = False) -> Any:
    """`names`: its keys are members' names, not words of JSON Schema."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _bare(each, names=key == "properties") for key, each in value.items() if names or key not in _SAID_ELSEWHERE}


if __name__ == "__main__":
    main()
