"""The policy file: YAML → `Policy`. Every mistake is named with file, line, key, what was found and what was expected, all at once.

What is planned but not built yet is read, checked and refused as "not supported yet": a rule that silently does nothing is
worse than none.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from gateway.core.catalog import Catalog
from gateway.core.ceilings import RUN_LIMIT
from gateway.core.money import MAX_LIMIT_USD, parse_usd
from gateway.core.policy import (
    DEFAULT_IDENTITY,
    Budget,
    Limit,
    Margin,
    Missing,
    ModelPolicy,
    OutputPolicy,
    Override,
    Policy,
    RunsPolicy,
    Source,
    Terms,
    Untagged,
)
from gateway.core.scopes import Unit
from gateway.core.values import Mode
from gateway.core.windows import WindowKind
from gateway.yaml_fields import (
    OWN_DIMENSIONS,
    BoundDimension,
    Dimension,
    Glob,
    ModelName,
    Switch,
    Word,
    duration,
    exactly,
    listed,
    one_of,
    parse_duration,
    parse_share,
    preset,
    share,
    text_of,
    whole,
)
from gateway.yaml_source import (
    Mistakes,
    Place,
    Reader,
    Reads,
    Section,
    Unexpected,
    did_you_mean,
    read_document,
)

NOT_YET: Final = "not supported yet"
MAX_COUNT: Final = 1_000_000_000_000_000  # tokens or calls: stays exact in 2^53, as money does


# -- kinds of values that only a policy has -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShareOf:
    """`"50% of tenant-month"`."""

    ppm: int
    budget: str


@dataclass(frozen=True, slots=True)
class Rolling:
    """`rolling 10m`."""

    length_ms: int


@dataclass(frozen=True, slots=True)
class Ladders:
    """`downgrade: auto`, or lists of cheaper models by model."""

    auto: bool = False
    by_glob: tuple[tuple[str, tuple[str, ...]], ...] = ()


class OnExhausted(StrEnum):
    BLOCK = "block"
    PAUSE = "pause"


class OnOutage(StrEnum):
    BLOCK = "block"
    ALLOW = "allow"


_COUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([kKmM]?) (token|call)s?", re.ASCII)
_SHARE_OF = re.compile(r"([^ ]+%) of ([A-Za-z0-9._-]{1,64})", re.ASCII)
_THOUSANDS: Final = {"": 0, "k": 3, "m": 6}


def parse_amount(text: str) -> Limit:
    """`"$5.00"`, `"200k tokens"` or `"60 calls"`; Unexpected where it is none."""
    if text.startswith("$"):
        return Limit(Unit.USD, _parse_dollars(text))
    match = _COUNT.fullmatch(text)
    if match is None:
        raise Unexpected
    zeros, decimals = _THOUSANDS[match[3].lower()], (match[2] or "").rstrip("0")
    if len(decimals) > zeros:
        raise Unexpected(f"a whole number of {match[4]}s")
    amount = int(match[1]) * 10**zeros + int(decimals.ljust(zeros, "0") or "0")
    if amount > MAX_COUNT:
        raise Unexpected(f"at most {MAX_COUNT:,} {match[4]}s")
    return Limit(Unit(f"{match[4]}s"), amount)


def _parse_dollars(text: str) -> int:
    """Money above the bound has its own words: "an amount such as $5.00" would not help."""
    if re.fullmatch(r"\$[0-9]+(\.[0-9]{1,8})?", text, re.ASCII) is None:
        raise Unexpected
    try:
        return parse_usd(text)
    except ValueError:
        raise Unexpected(f"at most ${MAX_LIMIT_USD:,}") from None


def _parse_limit(value: object) -> Limit | ShareOf:
    text = text_of(value)
    if (match := _SHARE_OF.fullmatch(text)) is None:
        return parse_amount(text)
    ppm = parse_share(match[1])
    if ppm is None or not 0 < ppm <= 1_000_000:
        raise Unexpected('a share such as "50% of tenant-month", up to 100%')
    return ShareOf(ppm, match[2])


def _parse_margin(value: object) -> int | Limit:
    """A share in ppm, or an amount."""
    text = text_of(value)
    if not text.endswith("%"):
        return parse_amount(text)
    ppm = parse_share(text)
    if ppm is None or not 0 < ppm <= 1_000_000:
        raise Unexpected
    return ppm


def _parse_window(value: object) -> WindowKind | Rolling:
    text = text_of(value)
    if text.startswith("rolling"):
        length_ms = parse_duration(text.removeprefix("rolling").strip())
        if length_ms is None or length_ms == 0:
            raise Unexpected('a length such as "rolling 10m"')
        return Rolling(length_ms)
    known = [kind.value for kind in WindowKind]
    if text not in known:
        raise Unexpected(f"one of {', '.join(known)}{did_you_mean(text, known)}")
    return WindowKind(text)


def _parse_timezone(value: object) -> ZoneInfo:
    text = text_of(value)
    try:
        return ZoneInfo(text)
    except (KeyError, OSError, ValueError):  # unknown; a folder of the database; not a name at all
        raise Unexpected(f"a timezone such as Europe/Berlin{did_you_mean(text, available_timezones())}") from None


# A dimension's value is stored and shown: what proves who someone is must not become one.
_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_BODY_FIELD = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def _parse_source(value: object) -> Source:
    kind, _, name = text_of(value).partition(":")
    if kind == "body" and _BODY_FIELD.fullmatch(name):
        return Source("body", name)
    if kind != "header" or not _HEADER_NAME.fullmatch(name):
        raise Unexpected
    if name.lower() in _SECRET_HEADERS:
        raise Unexpected("a header that holds no secret: its values are stored and shown")
    return Source("header", name.lower())


def _parse_id_source(value: object) -> str:
    """`"path"`, or a header's name in lower case."""
    if value == "path":
        return "path"
    source = _parse_source(value)
    if source.kind != "header":
        raise Unexpected
    return f"header:{source.name}"


class _ReadLadders:
    """`auto` or a mapping: a union whose errors keep the place they are at."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        by_glob = handler.generate_schema(dict[Glob, Annotated[list[ModelName], BeforeValidator(listed)]])

        def read(value: object, inner: core_schema.ValidatorFunctionWrapHandler) -> Ladders:
            if value == "auto":
                return Ladders(auto=True)
            return Ladders(by_glob=tuple((glob, tuple(models)) for glob, models in inner(value).items()))

        words = core_schema.literal_schema(["auto"])
        return core_schema.no_info_wrap_validator_function(
            read, by_glob, json_schema_input_schema=core_schema.union_schema([words, by_glob])
        )


def _off_as_none(value: object) -> object:
    return None if value is False or value == "off" else value


def _as_map(value: object) -> object:
    return value if isinstance(value, dict) else {"*": value}


_AMOUNT: Final = r"\$[0-9]+(\.[0-9]{1,8})?|[0-9]+(\.[0-9]+)? ?[kKmM]? (tokens?|calls?)"
LimitField = Annotated[
    Limit | ShareOf,
    Reads(
        _parse_limit,
        'an amount such as "$5.00", "200k tokens" or "60 calls"',
        {
            "type": "string",
            "pattern": rf"^({_AMOUNT}|[0-9.]+% of [A-Za-z0-9._-]+)$",
            "examples": ["$5.00", "200k tokens", "60 calls"],
        },
    ),
]
MarginField = Annotated[
    int | Limit,
    Reads(
        _parse_margin,
        'a share of the limit such as "10%" or an amount such as "$0.50"',
        {"type": "string", "pattern": rf"^({_AMOUNT}|[0-9]{{1,4}}(\.[0-9]{{1,4}})? ?%)$", "examples": ["10%", "$0.50"]},
    ),
]
WindowField = Annotated[
    WindowKind | Rolling,
    Reads(
        _parse_window,
        f"one of {', '.join(WindowKind)}",
        {
            "type": "string",
            "anyOf": [{"enum": list(WindowKind)}, {"pattern": r"^rolling [0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"}],
        },
    ),
]
TimezoneField = Annotated[
    ZoneInfo, Reads(_parse_timezone, "a timezone such as Europe/Berlin", {"type": "string", "examples": ["Europe/Berlin"]})
]
SourceField = Annotated[
    Source,
    Reads(
        _parse_source,
        "header:NAME or body:FIELD",
        {"type": "string", "pattern": "^(header|body):.+$", "examples": ["header:X-Agent-Id", "body:user"]},
    ),
]
IdSourceField = Annotated[
    str,
    Reads(_parse_id_source, "path or header:NAME", {"type": "string", "pattern": "^(path|header:.+)$", "examples": ["path"]}),
]
Tokens = Annotated[int, whole(1, 100_000_000)]
ModeField = Annotated[Mode, one_of(Mode)]


# -- the file's shape -----------------------------------------------------------------------------------------------------------


class OverrideFile(Section):
    match: dict[Dimension, Glob] = Field(
        description="Dimensions and the value or pattern each must have. All must match; a call without the dimension does not."
    )
    limit: LimitField | None = preset(None, description="Another limit, in the same unit as the budget's.")
    mode: ModeField | None = preset(None, description="Another mode.")
    margin: MarginField | None = preset(None, description="Another margin for `soft_gate`.")
    downgrade_below: Annotated[int, share(0, 1_000_000)] | None = preset(None, description='Another share; "0%" turns it off.')
    on_exhausted: Annotated[OnExhausted, one_of(OnExhausted)] | None = preset(None, description="Not supported yet.")
    stand_in: ClassVar = {"match": {}}


class BudgetFile(Section):
    name: Word = Field(
        description="The budget's name, in headers, answers and alerts. Part of its accounts' identity: a new name starts at $0."
    )
    scope: Annotated[list[Dimension], BeforeValidator(listed, json_schema_input_type=Dimension | list[Dimension])] = Field(
        description="What gets its own balance: a dimension (run, user, team, agent, feature, key, model, provider, or one of "
        "`identity`), a list of them, or `tenant` (also `[]`) for everything together."
    )
    limit: LimitField = Field(
        description="The ceiling: US dollars, tokens (input and output together) or calls. At most $50,000,000. "
        "`N% of OTHER-BUDGET` is not supported yet."
    )
    window: WindowField | None = preset(
        None,
        description="When the balance starts again: `lifetime` is never, the others are calendar windows in `timezone` (weeks "
        "start on Monday). Default: `lifetime` for the scope `run`, else `month`. `rolling 10m` is not supported yet.",
    )
    timezone: TimezoneField = preset("UTC", description="Where the calendar window's midnight is.")
    mode: ModeField = preset(
        "hard_gate",
        description="`hard_gate`: no call is forwarded unless its worst case fits. `soft_gate`: it may pass the limit by `margin`. "
        "`actuals_only`: blocks once what was really spent reached the limit. `advisory_estimate`: never blocks, warns.",
    )
    margin: MarginField | None = preset(
        None, description="How far `soft_gate` lets a call pass the limit. Required there, refused elsewhere."
    )
    downgrade_below: Annotated[int, share(0, 1_000_000)] | None = preset(
        None,
        description="When less than this share of the limit is left, calls are served by a cheaper model of `models.downgrade`, "
        "so that the rest lasts longer.",
    )
    keep_for_wrap_up: Annotated[int, share(0, 1_000_000)] | None = preset(
        None, description="A share that only calls with `X-Budget-Wrap-Up: true` may use. Not supported yet."
    )
    alerts: list[Annotated[int, share(10_000, 10_000_000)]] = preset(
        ["50%", "80%", "100%"], description="Shares of the limit at which an alert is sent, once per account."
    )
    on_exhausted: Annotated[OnExhausted, one_of(OnExhausted)] = preset(
        "block", description="What happens to a call that does not fit. `pause` is not supported yet."
    )
    on_outage: Annotated[OnOutage, one_of(OnOutage)] | None = preset(
        None,
        description="What happens while the ledger can't be reached. Default: `block` for `hard_gate` and `soft_gate`, `allow` for the "
        "other modes. Another value than the mode's default is not supported yet.",
    )
    missing: Annotated[Missing, one_of(Missing)] = preset(
        "share",
        description="A call without this dimension counts under the value `-` (`share`: nobody escapes by leaving a header out), is "
        "refused (`refuse`), or does not count here (`skip`).",
    )
    overrides: list[OverrideFile] = preset([], description="Other terms for some callers; the first that matches wins.")
    renamed_from: Word | None = preset(
        None, description="The budget's former name, to carry its balances over. Not supported yet."
    )
    stand_in: ClassVar = {"name": "-", "scope": [], "limit": "$0"}


class OutputFile(Section):
    default_max_tokens: Annotated[
        dict[Glob, Tokens], BeforeValidator(_as_map, json_schema_input_type=Tokens | dict[Glob, Tokens])
    ] = preset(
        dict(OutputPolicy().default_by_model),
        description="The output cap of calls that name none: a number, or a map by model in which the longest matching pattern wins.",
    )
    max_tokens: Tokens = preset(OutputPolicy().max_tokens, description="The largest output cap that any call gets.")
    clamp_to_budget: Switch = preset(
        False, description="Lower a call's output cap to what its budgets allow, shown by `X-Budget-Output-Clamped`."
    )


class ModelsFile(Section):
    allow: Annotated[list[Glob], BeforeValidator(listed, json_schema_input_type=Glob | list[Glob])] = preset(
        ["*"], description="Models that may be called; others are refused."
    )
    downgrade: Annotated[Ladders, _ReadLadders()] = preset(
        {},
        description="For a model or a pattern, the cheaper models to try, in order; the first key that matches counts. `auto`: cheaper "
        "models of the same provider that can serve the call, dearest first.",
    )


class RepeatLimitFile(Section):
    same_request: Annotated[int, whole(2, 1000)] = Field(description="How many equal requests are too many.")
    within_calls: Annotated[int, whole(2, 10_000)] = Field(description="Among how many of the run's latest calls.")


class RunsFile(Section):
    id_from: Annotated[
        list[IdSourceField], BeforeValidator(listed, json_schema_input_type=IdSourceField | list[IdSourceField])
    ] = preset(
        ["path", "header:X-Run-Id"], description="Where a run's id comes from; the first that is present. At most one header."
    )
    untagged: Annotated[Untagged, one_of(Untagged)] = preset(
        "shared",
        description="A call without a run id draws on one account per key and UTC day (`shared`), on one of its own (`per_call`), "
        "or is refused (`refuse`).",
    )
    max_active_per_key: Annotated[int, whole(1, 1_000_000)] = preset(
        200, description="How many runs a key may have active. Another value than the default is not supported yet."
    )
    idle_ttl: Annotated[int, duration("1m", "365d")] = preset(
        "24h", description="When an idle run stops counting as active. Another value than the default is not supported yet."
    )
    forget_after: Annotated[int, duration("1h", "3650d")] = preset(
        "30d", description="When an idle run is forgotten. Another value than the default is not supported yet."
    )
    repeat_limit: Annotated[
        RepeatLimitFile | None,
        BeforeValidator(_off_as_none, json_schema_input_type=Literal["off", False] | RepeatLimitFile),
    ] = preset(
        "off",
        description="`off`, or refuse a run that repeats one request: `{same_request: 5, within_calls: 20}`. Not supported yet.",
    )


class PolicyFile(Section):
    version: Annotated[int, exactly(1)] = Field(description="The format of this file.")
    budgets: list[BudgetFile] = Field(description="The ceilings. A call must fit every one that applies to it.")
    output: OutputFile = preset({}, description="How much output a call may ask for.")
    models: ModelsFile = preset({}, description="Which models may be called, and what they are downgraded to.")
    identity: dict[
        BoundDimension,
        Annotated[list[SourceField], BeforeValidator(listed, json_schema_input_type=SourceField | list[SourceField])],
    ] = preset(
        {},
        description="Where each dimension comes from, the first source that is present. Adds to the defaults (agent: "
        "header:X-Agent-Id; user: header:X-User-Id, then body:user; team: header:X-Team-Id; feature: header:X-Feature); `[]` turns one off.",
    )
    runs: RunsFile = preset({}, description="What a run is.")
    stand_in: ClassVar = {"version": 1, "budgets": []}


def policy_schema() -> dict[str, object]:
    """The JSON Schema of the policy file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PolicyFile.model_json_schema(),
        "title": "Penstock policy",
        "description": "Budgets, and the rules around them. See docs/policy.md.",
    }


# -- checks between keys --------------------------------------------------------------------------------------------------------


def _window_of(budget: BudgetFile) -> WindowKind | Rolling:
    if budget.window is not None:
        return budget.window
    return WindowKind.LIFETIME if _scope_of(budget) == ("run",) else WindowKind.MONTH


def _scope_of(budget: BudgetFile) -> tuple[str, ...]:
    return tuple(dimension for dimension in budget.scope if dimension != "tenant")


def _check_budget(reader: Reader, place: Place, budget: BudgetFile, names: Sequence[object], provided: Sequence[str]) -> None:
    if isinstance(budget.limit, ShareOf):
        _check_share(reader, (*place, "limit"), budget.limit, names)
    if isinstance(budget.window, Rolling):
        reader.refuse((*place, "window"), f"one of {', '.join(WindowKind)}: rolling windows are {NOT_YET}")
    if budget.keep_for_wrap_up is not None:
        reader.refuse((*place, "keep_for_wrap_up"), f"no such key: a wrap-up share is {NOT_YET}")
    if budget.renamed_from is not None:
        reader.refuse((*place, "renamed_from"), f"no such key: carrying balances over is {NOT_YET}")
    if budget.on_exhausted is not OnExhausted.BLOCK:
        reader.refuse((*place, "on_exhausted"), f"block: pausing is {NOT_YET}")
    gates = budget.mode in (Mode.HARD_GATE, Mode.SOFT_GATE)
    default = OnOutage.BLOCK if gates else OnOutage.ALLOW
    if budget.on_outage not in (None, default):
        reader.refuse((*place, "on_outage"), f"{default} (the default of {budget.mode}): another choice is {NOT_YET}")
    for i, dimension in enumerate(budget.scope):
        if dimension in budget.scope[:i]:
            reader.refuse((*place, "scope", i), "each dimension once")
        elif dimension not in provided:
            reader.warn((*place, "scope"), f"{dimension} is in no `identity` source: only keys that bind it give it a value")
    for i, ppm in enumerate(budget.alerts):
        if ppm in budget.alerts[:i]:
            reader.refuse((*place, "alerts", i), "each share once")
    _check_margin(reader, place, budget.mode, budget.margin, budget.limit)
    for index in reader.indexes(*place, "overrides"):
        spot = (*place, "overrides", index)
        _check_override(reader, spot, reader.part(OverrideFile, *spot), place, budget)


def _check_override(reader: Reader, spot: Place, override: OverrideFile, place: Place, budget: BudgetFile) -> None:
    if reader.sound(*spot, "match") and not override.match:
        reader.refuse((*spot, "match"), "at least one dimension and its value")
    for dimension in ("model", "provider"):
        if dimension in override.match:
            reader.refuse(
                (*spot, "match", dimension), "a dimension of the caller: model and provider belong to the plan", "this key"
            )
    if override.on_exhausted is not None:
        reader.refuse((*spot, "on_exhausted"), f"no such key: another way for some callers is {NOT_YET}")
    if not any(reader.has(*spot, key) for key in OverrideFile.model_fields if key != "match"):
        reader.refuse(spot, "something that it changes: limit, mode, margin or downgrade_below")
    unit = _unit_of(budget.limit)
    if isinstance(override.limit, ShareOf):
        reader.refuse((*spot, "limit"), f"an amount: a share of another budget is {NOT_YET}")
    elif override.limit is not None and unit is not None and reader.sound(*place, "limit") and override.limit.unit is not unit:
        reader.refuse((*spot, "limit"), f"an amount in {_in_words(unit)}, the budget's unit")
    mode = override.mode or budget.mode
    margin = override.margin
    if margin is None and mode is Mode.SOFT_GATE and budget.mode is Mode.SOFT_GATE:
        return  # the budget's own margin applies, and is checked there
    if margin is None and mode is Mode.SOFT_GATE and budget.margin is not None:
        return  # refused at the budget, whose own mode has no margin
    _check_margin(reader, spot, mode, margin, budget.limit)


def _check_margin(reader: Reader, place: Place, mode: Mode, margin: int | Limit | None, limit: Limit | ShareOf) -> None:
    """`place` is the budget's or the override's; the limit is the budget's."""
    if not reader.sound(*place, "mode"):
        return
    spot = (*place, "margin")
    if mode is Mode.SOFT_GATE and margin is None:
        reader.refuse(spot, 'a margin such as "10%" or "$0.50": soft_gate needs one')
    elif mode is not Mode.SOFT_GATE and margin is not None:
        reader.refuse(spot, f"no margin: only soft_gate has one, and the mode is {mode}")
    unit = _unit_of(limit)
    budget = place if place[-2] == "budgets" else place[:2]
    if isinstance(margin, Limit) and unit is not None and reader.sound(*budget, "limit") and margin.unit is not unit:
        reader.refuse(spot, f"a percentage, or an amount in {_in_words(unit)}, the budget's unit")


def _check_share(reader: Reader, place: Place, limit: ShareOf, names: Sequence[object]) -> None:
    if limit.budget not in names:
        known = [name for name in names if isinstance(name, str)]
        reader.refuse(place, f"a share of a budget in this file; none is named {limit.budget}{did_you_mean(limit.budget, known)}")
    else:
        reader.refuse(place, f'an amount such as "$5.00": a share of another budget is {NOT_YET}')


def _unit_of(limit: Limit | ShareOf) -> Unit | None:
    return limit.unit if isinstance(limit, Limit) else None


def _in_words(unit: Unit) -> str:
    return "US dollars" if unit is Unit.USD else unit.value


def _check_names(reader: Reader) -> list[object]:
    names = [reader.plain("budgets", i, "name") for i in reader.indexes("budgets")]
    for i, name in enumerate(names):
        if isinstance(name, str) and name in names[:i]:
            _, first = reader.document.find(("budgets", names.index(name)))
            assert first is not None
            reader.refuse(("budgets", i, "name"), f"a name of its own: the budget on line {first.line} has this one")
        elif name == RUN_LIMIT:
            reader.refuse(("budgets", i, "name"), "another name: this one is taken by the limits that runs set themselves")
    return names


def _check_models(reader: Reader, models: ModelsFile, catalog: Catalog) -> None:
    for glob in reader.names("models", "downgrade"):
        for place in _ladder_places(reader, ("models", "downgrade", glob)):
            name = reader.plain(*place)
            if not isinstance(name, str) or not reader.sound(*place):
                continue
            model = catalog.find(name)
            if model is None:
                known = did_you_mean(name, catalog.models)
                reader.refuse(place, f"a model of the bundled catalog or of the config's `models`{known}")
            elif not model.priced:
                reader.warn(place, f"{name} has no price, so nothing is downgraded to it")
            elif not any(fnmatchcase(name, allowed) for allowed in models.allow):
                reader.warn(place, f"{name} is not in `models.allow`, so nothing is downgraded to it")


def _ladder_places(reader: Reader, place: Place) -> list[Place]:
    """A ladder is a list, or short for one."""
    return [(*place, i) for i in reader.indexes(*place)] or [place]


def _check_runs(reader: Reader, runs: RunsFile) -> None:
    default = RunsFile()
    if runs.repeat_limit is not None:
        reader.refuse(("runs", "repeat_limit"), f"off: a limit on repeated requests is {NOT_YET}")
    if runs.max_active_per_key != default.max_active_per_key:
        reader.refuse(("runs", "max_active_per_key"), f"200 (the default): another number is {NOT_YET}")
    if runs.idle_ttl != default.idle_ttl:
        reader.refuse(("runs", "idle_ttl"), f"24h (the default): another time is {NOT_YET}")
    if runs.forget_after != default.forget_after:
        reader.refuse(("runs", "forget_after"), f"30d (the default): another time is {NOT_YET}")
    headers = 0
    for i, source in enumerate(runs.id_from):
        headers += source != "path"
        if source in runs.id_from[:i]:
            reader.refuse(("runs", "id_from", i), "each source once")
        elif headers > 1:
            reader.refuse(("runs", "id_from", i), "at most one header")


# -- building -------------------------------------------------------------------------------------------------------------------


def load(path: Path, catalog: Catalog | None) -> Policy:
    """Reads a policy file, or raises Mistakes. Without a catalog, models are not looked up: for a config that is itself wrong."""
    reader = Reader(read_document(path), PolicyFile)
    names = _check_names(reader)
    whole_file = reader.part(PolicyFile)
    identity = _identity_of(whole_file)
    provided = ("tenant", *OWN_DIMENSIONS, *(dimension for dimension, _ in identity))
    for i in reader.indexes("budgets"):
        place: Place = ("budgets", i)
        if reader.refused(*place):
            continue
        _check_budget(reader, place, reader.part(BudgetFile, *place), names, provided)
    models = reader.part(ModelsFile, "models")
    if catalog is not None:
        _check_models(reader, models, catalog)
    _check_runs(reader, reader.part(RunsFile, "runs"))
    reader.finish()
    if not whole_file.budgets:
        reader.warn(("budgets",), "no budget, so nothing is limited")
    downgrades = models.downgrade.auto or models.downgrade.by_glob
    for i, budget in enumerate(whole_file.budgets):
        if budget.downgrade_below and not downgrades:
            reader.warn(("budgets", i, "downgrade_below"), "`models.downgrade` names no cheaper model, so this does nothing")
    return Policy(
        version=reader.document.digest[:12],
        budgets=tuple(_budget_of(budget) for budget in whole_file.budgets),
        output=OutputPolicy(
            default_by_model=tuple(whole_file.output.default_max_tokens.items()),
            max_tokens=whole_file.output.max_tokens,
            clamp_to_budget=whole_file.output.clamp_to_budget,
        ),
        models=ModelPolicy(allow=tuple(models.allow), downgrade=models.downgrade.by_glob, auto=models.downgrade.auto),
        identity=identity,
        runs=_runs_of(whole_file.runs),
        warnings=tuple(reader.warnings),
    )


def _identity_of(file: PolicyFile) -> tuple[tuple[str, tuple[Source, ...]], ...]:
    sources = dict(DEFAULT_IDENTITY)
    sources.update((dimension, tuple(listed_sources)) for dimension, listed_sources in file.identity.items())
    return tuple(sorted((dimension, found) for dimension, found in sources.items() if found))


def _runs_of(runs: RunsFile) -> RunsPolicy:
    headers = [source.removeprefix("header:") for source in runs.id_from if source != "path"]
    return RunsPolicy(
        id_header=headers[0] if headers else None,
        id_from_path="path" in runs.id_from,
        path_first=runs.id_from[:1] == ["path"],
        untagged=runs.untagged,
    )


def _budget_of(budget: BudgetFile) -> Budget:
    window = _window_of(budget)
    assert isinstance(window, WindowKind)
    terms = Terms(
        limit=_amount(budget.limit),
        mode=budget.mode,
        margin=_margin_of(budget.margin),
        downgrade_below_ppm=budget.downgrade_below or 0,
    )
    return Budget(
        name=budget.name,
        scope=_scope_of(budget),
        window=window,
        timezone=budget.timezone,
        terms=terms,
        alerts_ppm=tuple(sorted(budget.alerts)),
        missing=budget.missing,
        overrides=tuple(Override(tuple(override.match.items()), _overridden(terms, override)) for override in budget.overrides),
    )


def _overridden(terms: Terms, override: OverrideFile) -> Terms:
    mode = override.mode or terms.mode
    margin = terms.margin if override.margin is None else _margin_of(override.margin)
    below = terms.downgrade_below_ppm if override.downgrade_below is None else override.downgrade_below
    return Terms(
        limit=terms.limit if override.limit is None else _amount(override.limit),
        mode=mode,
        margin=margin if mode is Mode.SOFT_GATE else Margin(),
        downgrade_below_ppm=below,
    )


def _amount(limit: Limit | ShareOf) -> Limit:
    assert isinstance(limit, Limit)
    return limit


def _margin_of(margin: int | Limit | None) -> Margin:
    if isinstance(margin, Limit):
        return Margin(amount=margin.amount)
    return Margin(ppm=margin or 0)


# -- hot reload -----------------------------------------------------------------------------------------------------------------


def reload(current: Policy, path: Path, catalog: Catalog) -> Policy | Mistakes:
    """The file's policy, `current` itself where the file says the same, or what is wrong with it (keep `current` then)."""
    try:
        loaded = load(path, catalog)
    except Mistakes as mistakes:
        return mistakes
    return current if loaded.version == current.version else loaded


@dataclass(frozen=True, slots=True)
class _Identity:
    """What makes a budget's accounts the same accounts, in words."""

    name: str
    scope: str
    window: str
    timezone: str
    unit: str

    def changes_from(self, old: "_Identity") -> list[str]:
        def change(what: str, before: str, after: str) -> list[str]:
            return [f"its {what} changed from {before} to {after}"] if before != after else []

        calendar = WindowKind.LIFETIME not in (old.window, self.window)  # a lifetime is the same in every timezone
        return [
            *change("scope", old.scope, self.scope),
            *change("window", old.window, self.window),
            *(change("timezone", old.timezone, self.timezone) if calendar else []),
            *change("unit", old.unit, self.unit),
        ]


def changed_identities(old: Policy, new: Policy) -> list[str]:
    """Budgets whose accounts start at zero because their identity changed, one sentence each, in the new file's order."""
    return _changes([_identity(budget) for budget in old.budgets], [_identity(budget) for budget in new.budgets])


def changes_against(gates: Sequence[Mapping[str, str]], new: Policy) -> list[str]:
    """The same, against the `gates` that a running gateway's /readyz lists."""
    running = [
        _Identity(gate["name"], gate["scope"], gate["window"], gate["timezone"], _unit_in(gate["limit"])) for gate in gates
    ]
    return _changes(running, [_identity(budget) for budget in new.budgets])


def _changes(old: Sequence[_Identity], new: Sequence[_Identity]) -> list[str]:
    before = {budget.name: budget for budget in old}
    kept = {budget.name for budget in new}
    sentences: list[str] = []
    for budget in new:
        start = f"{budget.name} starts at {'$0' if budget.unit == _in_words(Unit.USD) else f'0 {budget.unit}'} from now"
        if (known := before.get(budget.name)) is not None:
            if changes := budget.changes_from(known):
                sentences.append(f"{start}: {' and '.join(changes)}")
            continue
        # A new budget that differs from a lost one in nothing but its name was probably renamed.
        gone = [known for known in old if known.name not in kept and not budget.changes_from(known)]
        if gone:
            sentences.append(f"{start}: its name is new ({gone[0].name}, with the same scope, window and unit, is gone)")
    return sentences


def _identity(budget: Budget) -> _Identity:
    scope = "+".join(budget.scope) or "tenant"
    return _Identity(budget.name, scope, budget.window, budget.timezone.key, _in_words(budget.terms.limit.unit))


def _unit_in(amount: str) -> str:
    """The unit of an amount in words: `$5.00`, `60 calls`, `1 call`."""
    return _in_words(Unit.USD) if amount.startswith("$") else amount.rpartition(" ")[2].removesuffix("s") + "s"
