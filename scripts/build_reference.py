"""Writes docs/config.md, docs/policy.md and docs/schema/*.json from the schemas, so that no key is documented wrongly or not at all.

`python -m scripts.build_reference` writes them; a test fails while they are out of date.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config_file import config_schema
from gateway.policy_file import policy_schema

ROOT = Path(__file__).resolve().parent.parent
Schema = Mapping[str, Any]

_GENERATED = "<!-- Written by `make docs` from the schema. Edit the descriptions in {source}, not this page. -->"

_MISTAKES = """
## Mistakes

`penstock check` reads both files and tells every mistake at once, one line each: file, line, key, what was found, what was expected.

```
{example}
```

`penstock serve` does not start with a mistake in either file.{reload} Beside values that are not of their kind, unknown keys, keys that
stand twice, missing required keys and text that is not YAML, these are mistakes:

{rules}

And these are allowed but seldom meant; they are warnings:

{warnings}
"""


@dataclass(frozen=True)
class Page:
    """One reference page: what stands around the generated tables."""

    path: str
    source: str
    title: str
    intro: str
    example: str
    reload: str
    rules: tuple[str, ...]
    warnings: tuple[str, ...]
    schema: Schema
    first: str  # the heading of the file's own keys


POLICY = Page(
    path="docs/policy.md",
    source="gateway/policy_file.py",
    title="The policy file",
    intro="""The policy says what may be spent. It is a YAML file; `policies/` has five to start from. A running gateway reads it again when it
changes and on SIGHUP.

The smallest useful policy:

```yaml
version: 1
budgets:
  - {name: run-ceiling, scope: run, limit: $5.00}
```

A budget counts in accounts: one for each value of its scope in each window. A call must fit every account it counts in. A budget's name,
scope, window, timezone and unit are its accounts' identity: change one of them and its balances start at zero, which the gateway says when
it reloads (`penstock check --against-running` says it before). Change its limit or mode and the balances stay; `renamed_from` keeps them
under another name.

A run that names its parent (`X-Parent-Run-Id`) spends for its ancestors too: whatever counts over `run` counts its calls once more for each
ancestor, with that run's value and everything else the call's own; overrides that match on `run` are matched for the ancestor. What a call
must fit is then its own budgets, in the file's order, and its ancestors', the nearest first.

A share (`limit: 50% of tenant-month`) is taken of what is left in the other budget when an account's first call is held, and stays what it was
then, whatever happens to the other. It is in the other's unit. An override may give some callers an amount instead.

Of a limit, the last plan of a call's ladder may use what `keep_for_wrap_up` leaves, and plans with a cheaper one behind them what
`downgrade_below` leaves if that is less. A call with `X-Budget-Wrap-Up: true` may use the whole.

With `reservation: {basis: sliced}` parallel streams do not starve one another with worst cases that few of them reach: see
[Slices](guarantees.md#slices) for what that promises and what it costs. Budgets with `worst_case` that the same call meets still hold all
of it. An override does not change it.

For editors that know JSON Schema (`penstock check --schema` prints it), put this on the file's first line:
`# yaml-language-server: $schema=../docs/schema/policy.json`""",
    example="""policies/default.yaml:7: budgets[0].limit: found "five", expected an amount such as "$5.00", "200k tokens", "60 calls", "500 credits" or "100 risk points\"""",
    reload=" A running gateway keeps the policy it has and says so in its log and in `/readyz`.",
    rules=(
        "two budgets with one name",
        "`soft_gate` without a margin, a margin without `soft_gate`, or a margin in another unit than the limit's",
        "a percentage as the margin of a share: an amount is needed there",
        "a time to wait for a raise where nothing pauses",
        "a rolling window shorter than a second or longer than 31 days",
        "an override that changes nothing or matches on nothing, model or provider; whose limit is a share or in another unit than the budget's",
        "a limit above $50,000,000 (or 10¹⁵ of anything else)",
        "a dimension, an alert or a run id source that is listed twice",
        "a downgrade to a model that neither the bundled catalog nor the config knows",
        "a share of a budget that is not in the file, is itself a share, has `missing: skip`, or has model or provider in its scope",
        "`renamed_from` with the name of a budget in the file, or one that two budgets name",
        "a `repeat_limit` that could never refuse a call; `forget_after` below `idle_ttl`",
        "an identity source for run, key, tenant, model or provider; a source, of a run's id too, that reads a header with a secret",
    ),
    warnings=(
        "no budget at all",
        "a scope's dimension that no `identity` source provides: only keys can bind it",
        "`downgrade_below` where `models.downgrade` names nothing; `on_exhausted: pause` of a mode that never blocks",
        "`reservation: {basis: sliced}` of a mode that what is held does not matter to",
        "a downgrade to a model without a price or outside `models.allow`",
    ),
    schema=policy_schema(),
    first="All keys",
)

CONFIG = Page(
    path="docs/config.md",
    source="gateway/settings.py",
    title="The config file",
    intro="""The config says where the gateway listens, which providers it calls with which keys, and what their models cost. It is read once, at start:
`penstock serve --config config.yaml`. `config.example.yaml` works as it is.

Paths in it are relative to the folder it is in. Durations are written `250ms`, `10s`, `5m`, `24h`; sizes `20 MB`, where 1 MB is 1,048,576
bytes. Keys and tokens never stand in the file: it names the environment variables that hold them.

The smallest useful config:

```yaml
providers:
  openai: {base_url: https://api.openai.com/v1, accepts_caller_keys: true}
```

For editors that know JSON Schema (`penstock check --schema` prints it), put this on the file's first line:
`# yaml-language-server: $schema=docs/schema/config.json`""",
    example='config.yaml:4: providers.openai.base_url: found "api.openai.com", expected an http or https URL such as https://api.openai.com/v1',
    reload="",
    rules=(
        "no provider",
        "a listener beyond loopback without `auth: keys`",
        "two providers that accept callers' keys in one scheme",
        "a profile that does not exist, a model whose provider is not in `providers`",
        "a new model without a provider, or without `context` and `max_output` where its tokens are billed",
        "a price together with `free: true`; a price that is zero, negative, not a number or above $100,000 per million tokens",
        "price tiers that do not ascend; a price of tokens without `input`, or without `output` for a model that writes any",
        "two keys with one name or one SHA-256",
        "an environment variable whose value can't be a key (it is not shown)",
        "a ledger's key that is not for its kind of store, an unknown option in its URL, a file for TLS that does not exist",
    ),
    warnings=(
        "a model without a price: its calls are refused",
        "an `api_key_env` that is not set, where callers' own keys are not forwarded either",
        "keys that go over plain http to another machine, a ledger's password without TLS",
        "a ledger's password in the file, or in a variable that is not set",
        "`auth: keys` without keys, keys without `auth: keys`, a short admin token",
    ),
    schema=config_schema(),
    first="All keys",
)


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    built = {Path(page.path): render(page) for page in (CONFIG, POLICY)}
    for name, page in (("config", CONFIG), ("policy", POLICY)):
        built[Path(f"docs/schema/{name}.json")] = json.dumps(page.schema, indent=2, ensure_ascii=False) + "\n"
    return built


def render(page: Page) -> str:
    """One page as Markdown."""
    mistakes = _MISTAKES.format(
        example=page.example, reload=page.reload, rules=_bullets(page.rules), warnings=_bullets(page.warnings)
    )
    parts = [_GENERATED.format(source=page.source), f"# {page.title}", page.intro]
    for place, schema in _sections(page.schema, page.schema, ""):
        parts.append(f"## {f'`{place}`' if place else page.first}\n\n{_table(schema, page.schema, place)}")
    return "\n\n".join(parts) + "\n" + mistakes


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _sections(schema: Schema, root: Schema, place: str) -> Iterator[tuple[str, Schema]]:
    """The file's own keys, then those of each section in it, depth first."""
    yield place, schema
    for key, value in schema["properties"].items():
        found = _section_in(value, root)
        if found is not None:
            suffix, inner = found
            yield from _sections(inner, root, f"{place}.{key}{suffix}".lstrip("."))


def _section_in(value: Schema, root: Schema) -> tuple[str, Schema] | None:
    """The section that a key holds, and how its place is written: `providers.NAME`, `budgets[]`."""
    for branch in _branches(value, root):
        if "properties" in branch:
            return "", branch
        for inner, suffix in ((branch.get("items"), "[]"), (_values(branch), ".NAME")):
            if isinstance(inner, Mapping) and (found := _section_in(inner, root)) is not None:
                return suffix + found[0], found[1]
    return None


def _values(branch: Schema) -> Schema | None:
    """What the values of a mapping with free keys are; keys with a pattern have their own form in JSON Schema."""
    values = next(iter(branch.get("patternProperties", {}).values()), None) or branch.get("additionalProperties")
    return values if isinstance(values, Mapping) else None


def _branches(value: Schema, root: Schema) -> list[Schema]:
    """What a key may hold, references followed, without null."""
    if "$ref" in value:
        resolved: Schema = root["$defs"][value["$ref"].rsplit("/", 1)[1]]
        return _branches(resolved, root)
    if "x-expected" in value or "anyOf" not in value:
        return [] if value.get("type") == "null" else [value]
    return [branch for option in value["anyOf"] for branch in _branches(option, root)]


def _table(schema: Schema, root: Schema, place: str) -> str:
    rows = ["| key | value | default | what it does |", "|---|---|---|---|"]
    required = schema.get("required", ())
    for key, value in schema["properties"].items():
        accepted = _any_of(value, root, f"{place}.{key}".lstrip("."))
        default = "required" if key in required else _default(value.get("default"))
        rows.append(f"| `{key}` | {_cell(accepted)} | {default} | {_cell(value['description'])} |")
    return "\n".join(rows)


def _any_of(value: Schema, root: Schema, place: str) -> str:
    single, *others = [_accepts(branch, root, place) for branch in _branches(value, root)]
    if others == [f"a list, each {single}"]:
        return f"{single}, or a list of such"
    return " or ".join((single, *others))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _accepts(branch: Schema, root: Schema, place: str) -> str:
    if "x-expected" in branch:
        return str(branch["x-expected"])
    if "properties" in branch:
        return f"[a section](#{_anchor(place)})"
    if "enum" in branch or "const" in branch:
        return ", ".join(f"`{_word(word)}`" for word in branch.get("enum", [branch.get("const")]))
    if branch["type"] == "array":
        inner = branch["items"]
        if _section_in(inner, root) is not None:
            return f"[a list of sections](#{_anchor(place + '[]')})"
        return f"a list, each {_any_of(inner, root, place)}"
    if branch["type"] == "object":
        inner = _values(branch) or {}
        if _section_in(inner, root) is not None:
            return f"[a section for each name](#{_anchor(place + '.NAME')})"
        return f"a mapping, each value {_any_of(inner, root, place)}"
    return str(branch["type"])


def _anchor(place: str) -> str:
    """As GitHub makes it from the heading."""
    return re.sub(r"[^a-z0-9_-]", "", place.lower())


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping) and not value:
        return "–"
    return f"`{_word(value)}`"


def _word(value: object) -> str:
    """A value as YAML writes it."""
    if value is False or value is True:
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main() -> None:
    for path, content in pages().items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
