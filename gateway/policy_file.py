"""The policy file: YAML → `Policy`. Every mistake is named with file, line, key, what was found and what was expected, all at once.

A rule that silently does nothing is worse than none: what can have no effect is refused, or a warning where it may be meant.
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

from gateway.core import slices
from gateway.core.catalog import Catalog
from gateway.core.ceilings import PLAN_DIMENSIONS, RUN_LIMIT
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
    RunOwner,
    RunsPolicy,
    Share,
    Source,
    Terms,
    Untagged,
)
from gateway.core.scopes import Unit
from gateway.core.values import Mode, RunTerms
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

MAX_COUNT: Final = 1_000_000_000_000_000  # of whatever is no money: stays exact in 2^53, as money does


# -- kinds of values that only a policy has -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShareOf:
    """`"50% of tenant-month"`."""

    ppm: int
    budget: str


@dataclass(frozen=True, slots=True)
class Rolling:
    """`rolling 10m`."""

    span_ms: int


@dataclass(frozen=True, slots=True)
class Ladders:
    """`downgrade: auto`, or lists of cheaper models by model."""

    auto: bool = False
    by_glob: tuple[tuple[str, tuple[str, ...]], ...] = ()


class OnExhausted(StrEnum):
    BLOCK = "block"
    PAUSE = "pause"


class HoldBasis(StrEnum):
    WORST_CASE = "worst_case"
    SLICED = "sliced"


class OnOutage(StrEnum):
    BLOCK = "block"
    ALLOW = "allow"


MIN_SPAN_MS: Final = 1_000
MAX_SPAN_MS: Final = 31 * 86_400_000
_CALENDAR: Final = tuple(kind.value for kind in WindowKind if kind is not WindowKind.ROLLING)
_WINDOWS: Final = f'one of {", ".join(_CALENDAR)}, or a length such as "rolling 10m"'
_COUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([kKmM]?) (token|call|credit|risk point)s?", re.ASCII)
_SHARE_OF = re.compile(r"([^ ]+%) of ([A-Za-z0-9._-]{1,64})", re.ASCII)
_THOUSANDS: Final = {"": 0, "k": 3, "m": 6}
_BY_WORDS: Final = {unit.words: unit for unit in Unit}


def parse_amount(text: str) -> Limit:
    """`"$5.00"`, `"200k tokens"`, `"60 calls"`, `"500 credits"` or `"100 risk points"`; Unexpected where it is none."""
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
    return Limit(_BY_WORDS[f"{match[4]}s"], amount)


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
    if text.startswith(WindowKind.ROLLING):
        length = text.removeprefix("rolling ")
        span_ms = None if length.endswith("ms") else parse_duration(length)
        if span_ms is None or not MIN_SPAN_MS <= span_ms <= MAX_SPAN_MS:
            raise Unexpected('a length from 1s to 31d, such as "rolling 10m"')
        return Rolling(span_ms)
    if text not in _CALENDAR:
        raise Unexpected(f"{_WINDOWS}{did_you_mean(text, _CALENDAR)}")
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


_RUN_SOURCES: Final = ("path", "claude-code", "traceparent", "conversation")


def _parse_id_source(value: object) -> Source:
    return Source(str(value)) if value in _RUN_SOURCES else _parse_source(value)


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


_AMOUNT: Final = r"\$[0-9]+(\.[0-9]{1,8})?|[0-9]+(\.[0-9]+)? ?[kKmM]? (tokens?|calls?|credits?|risk points?)"
LimitField = Annotated[
    Limit | ShareOf,
    Reads(
        _parse_limit,
        'an amount such as "$5.00", "200k tokens", "60 calls", "500 credits" or "100 risk points"',
        {
            "type": "string",
            "pattern": rf"^({_AMOUNT}|[0-9.]+% of [A-Za-z0-9._-]+)$",
            "examples": ["$5.00", "200k tokens", "60 calls", "500 credits", "100 risk points", "50% of tenant-month"],
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
        _WINDOWS,
        {
            "type": "string",
            "anyOf": [{"enum": list(_CALENDAR)}, {"pattern": r"^rolling [0-9]+(\.[0-9]+)? ?(s|m|h|d)$"}],
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
    Source,
    Reads(
        _parse_id_source,
        "path, header:NAME, body:FIELD, claude-code, traceparent or conversation",
        {
            "type": "string",
            "pattern": f"^({'|'.join(_RUN_SOURCES)}|(header|body):.+)$",
            "examples": [*_RUN_SOURCES, "header:X-Run-Id", "body:prompt_cache_key"],
        },
    ),
]
Tokens = Annotated[int, whole(1, 100_000_000)]
ModeField = Annotated[Mode, one_of(Mode)]
WaitField = Annotated[int, duration("0s", "10m")]


# -- the file's shape -----------------------------------------------------------------------------------------------------------


class OverrideFile(Section):
    match: dict[Dimension, Glob] = Field(
        description="Dimensions and the value or pattern each must have. All must match; a call without the dimension does not."
    )
    limit: LimitField | None = preset(None, description="Another limit, in the same unit as the budget's.")
    mode: ModeField | None = preset(None, description="Another mode.")
    margin: MarginField | None = preset(None, description="Another margin for `soft_gate`.")
    downgrade_below: Annotated[int, share(0, 1_000_000)] | None = preset(None, description='Another share; "0%" turns it off.')
    on_exhausted: Annotated[OnExhausted, one_of(OnExhausted)] | None = preset(None, description="Another way for such callers.")
    wait_for_raise: WaitField | None = preset(None, description="Another time to wait; only with `pause`.")
    stand_in: ClassVar = {"match": {}}


class ReservationFile(Section):
    basis: Annotated[HoldBasis, one_of(HoldBasis)] = preset(
        "worst_case",
        description="`worst_case`: a call's input and all the output it may write. `sliced`: of a stream, the input and the first "
        f"{slices.FIRST:,} tokens of output, and more as they come; where no more fits, the stream ends early with `length` and an error. "
        "What can't be metered as it comes (JSON answers, models that reason unseen) is held whole.",
    )


class BudgetFile(Section):
    name: Word = Field(
        description="The budget's name, in answers and alerts. Part of its accounts' identity: a new name starts at $0, unless "
        "`renamed_from` says the old one."
    )
    scope: Annotated[list[Dimension], BeforeValidator(listed, json_schema_input_type=Dimension | list[Dimension])] = Field(
        description="What gets its own balance: a dimension (run, user, team, agent, feature, key, model, provider, or one of "
        "`identity`), a list of them, or `tenant` (also `[]`) for everything together."
    )
    limit: LimitField = Field(
        description="The ceiling: US dollars, tokens (input and output together), calls, credits or risk points. At most $50,000,000. "
        "Calls of models take no credits and no risk points: those are reserved and debited for what else an agent does, and nothing but "
        "that is refused by such a ceiling. `50% of OTHER-BUDGET`: "
        "that part of what is left in the other budget when an account's first call is held; from then on the account keeps that limit. "
        "The other budget has an amount for its limit, applies to every call (not `missing: skip`) and has no model or provider in "
        "its scope."
    )
    window: WindowField | None = preset(
        None,
        description="When the balance starts again: `lifetime` is never; `minute` to `month` are calendar windows in `timezone` (weeks "
        "start on Monday); `rolling 10m` always counts the last ten minutes (1s to 31d, in s, m, h or d), whatever the timezone. Of a "
        "rolling window, what was spent is forgotten in 59 steps, never early. Default: `lifetime` for the scope `run`, else `month`.",
    )
    timezone: TimezoneField = preset("UTC", description="Where a calendar window's midnight is.")
    mode: ModeField = preset(
        "hard_gate",
        description="`hard_gate`: no call is forwarded unless its worst case fits. `soft_gate`: it may pass the limit by `margin`. "
        "`actuals_only`: blocks once what was really spent reached the limit. `advisory_estimate`: never blocks, warns.",
    )
    margin: MarginField | None = preset(
        None,
        description="How far `soft_gate` lets a call pass the limit. Required there, refused elsewhere. An amount where the limit is a "
        "share of another budget.",
    )
    downgrade_below: Annotated[int, share(0, 1_000_000)] | None = preset(
        None,
        description="When less than this share of the limit is left, calls are served by a cheaper model of `models.downgrade`, "
        "so that the rest lasts longer.",
    )
    keep_for_wrap_up: Annotated[int, share(0, 1_000_000)] | None = preset(
        None,
        description="A share of the limit that only calls with `X-Budget-Wrap-Up: true` may use, so that a run which was refused can "
        "still save its work.",
    )
    alerts: list[Annotated[int, share(10_000, 10_000_000)]] = preset(
        ["50%", "80%", "100%"], description="Shares of the limit at which an alert is sent, once per account."
    )
    reservation: ReservationFile = preset({}, description="What a call holds in this budget's accounts while it runs.")
    on_exhausted: Annotated[OnExhausted, one_of(OnExhausted)] = preset(
        "block",
        description="What happens when a call does not fit. `block`: it is refused. `pause`: it is refused, and its run takes no calls "
        "until somebody raises a limit or resumes it.",
    )
    wait_for_raise: WaitField | None = preset(
        None,
        description="With `pause`: how long such a call itself waits for the raise before it is answered.",
    )
    on_outage: Annotated[OnOutage, one_of(OnOutage)] | None = preset(
        None,
        description="What happens while the ledger can't be reached. `allow`: this budget then stands in no call's way; what such calls "
        "cost is recorded once the ledger is back. Default: `block` for `hard_gate` and `soft_gate`, `allow` for the other modes.",
    )
    missing: Annotated[Missing, one_of(Missing)] = preset(
        "share",
        description="A call without this dimension counts under the value `-` (`share`: nobody escapes by leaving a header out), is "
        "refused (`refuse`), or does not count here (`skip`).",
    )
    overrides: list[OverrideFile] = preset([], description="Other terms for some callers; the first that matches wins.")
    renamed_from: Word | None = preset(
        None,
        description="The name that the budget's balances are kept under: they stay what they are while the budget goes by its new name. "
        "After a second change of name it is still the first one.",
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
    same_request: Annotated[int, whole(1, 999)] = Field(
        description="How often a run may make the same request; the next one is refused as a loop."
    )
    within_calls: Annotated[int, whole(2, 1000)] = Field(
        description="Among how many of its latest calls, the new one included. More than `same_request`."
    )


class RunsFile(Section):
    id_from: Annotated[
        list[IdSourceField], BeforeValidator(listed, json_schema_input_type=IdSourceField | list[IdSourceField])
    ] = preset(
        ["path", "header:X-Run-Id"],
        description="Where a run's id comes from, in this order; the first that is present counts. Those for clients that can't be "
        "changed are told in docs/clients.md.",
    )
    untagged: Annotated[Untagged, one_of(Untagged)] = preset(
        "shared",
        description="A call without a run id draws on one account per key and UTC day (`shared`), on one of its own (`per_call`), "
        "or is refused (`refuse`).",
    )
    owner: Annotated[RunOwner, one_of(RunOwner)] = preset(
        "key",
        description="Whose a run is: the key's that opened it, and a call of another key is refused (`key`), or every key's of its tenant "
        "(`tenant`): several doors and providers, each with a key of its own, then spend from one run's ceiling.",
    )
    max_active_per_key: Annotated[int, whole(1, 1_000_000)] = preset(
        200,
        description="How many runs a key may have active; a call of one more is refused. Stopped runs do not count, nor do calls without "
        "a run id. A run counts for the key that opened it, or the run that it comes from.",
    )
    idle_ttl: Annotated[int, duration("1m", "365d")] = preset(
        "24h",
        description="When a run without calls stops counting as active. Its balance, owner and stop stay.",
    )
    forget_after: Annotated[int, duration("1h", "3650d")] = preset(
        "30d",
        description="When a run without calls is forgotten, with its balance, owner and stop. At least `idle_ttl`.",
    )
    repeat_limit: Annotated[
        RepeatLimitFile | None,
        BeforeValidator(_off_as_none, json_schema_input_type=Literal["off", False] | RepeatLimitFile),
    ] = preset(
        "off",
        description="`off`, or refuse a request that the run makes over and over: `{same_request: 5, within_calls: 20}`. Calls that were "
        "not billed do not count.",
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


@dataclass(frozen=True, slots=True)
class _LimitIn:
    """A limit and its unit. None: of a share whose budget is wrong itself."""

    limit: Limit | ShareOf
    unit: Unit | None


def _check_budget(reader: Reader, place: Place, budget: BudgetFile, limit: _LimitIn, provided: Sequence[str]) -> None:
    for i, dimension in enumerate(budget.scope):
        if dimension in budget.scope[:i]:
            reader.refuse((*place, "scope", i), "each dimension once")
        elif dimension not in provided:
            reader.warn((*place, "scope"), f"{dimension} is in no `identity` source: only keys that bind it give it a value")
    for i, ppm in enumerate(budget.alerts):
        if ppm in budget.alerts[:i]:
            reader.refuse((*place, "alerts", i), "each share once")
    _check_margin(reader, place, budget.mode, budget.margin, limit)
    _check_pause(reader, place, budget.mode, budget.on_exhausted, budget.wait_for_raise)
    for index in reader.indexes(*place, "overrides"):
        spot = (*place, "overrides", index)
        _check_override(reader, spot, reader.part(OverrideFile, *spot), place, budget, limit)


def _check_override(
    reader: Reader, spot: Place, override: OverrideFile, place: Place, budget: BudgetFile, limit: _LimitIn
) -> None:
    if reader.sound(*spot, "match") and not override.match:
        reader.refuse((*spot, "match"), "at least one dimension and its value")
    for dimension in ("model", "provider"):
        if dimension in override.match:
            reader.refuse(
                (*spot, "match", dimension), "a dimension of the caller: model and provider belong to the plan", "this key"
            )
    changes = [key for key in OverrideFile.model_fields if key != "match"]
    if not any(reader.has(*spot, key) for key in changes):
        reader.refuse(spot, f"something that it changes: {', '.join(changes[:-1])} or {changes[-1]}")
    if isinstance(override.limit, ShareOf):
        reader.refuse((*spot, "limit"), "an amount: only a budget's own limit can be a share of another budget")
    elif override.limit is not None:
        if limit.unit is not None and reader.sound(*place, "limit") and override.limit.unit is not limit.unit:
            reader.refuse((*spot, "limit"), f"an amount in {_in_words(limit.unit)}, the budget's unit")
        limit = _LimitIn(override.limit, limit.unit)
    mode = override.mode or budget.mode
    if reader.sound(*place, "on_exhausted"):
        _check_pause(reader, spot, mode, override.on_exhausted or budget.on_exhausted, override.wait_for_raise)
    margin = override.margin
    if margin is None and mode is Mode.SOFT_GATE and budget.mode is Mode.SOFT_GATE:
        return  # the budget's own margin applies, and is checked there
    if margin is None and mode is Mode.SOFT_GATE and budget.margin is not None:
        return  # refused at the budget, whose own mode has no margin
    _check_margin(reader, spot, mode, margin, limit)


def _check_margin(reader: Reader, place: Place, mode: Mode, margin: int | Limit | None, limit: _LimitIn) -> None:
    """`place` is the budget's or the override's; so is the limit that the margin goes with."""
    if not reader.sound(*place, "mode"):
        return
    spot = (*place, "margin")
    if mode is Mode.SOFT_GATE and margin is None:
        reader.refuse(spot, 'a margin such as "10%" or "$0.50": soft_gate needs one')
    elif mode is not Mode.SOFT_GATE and margin is not None:
        reader.refuse(spot, f"no margin: only soft_gate has one, and the mode is {mode}")
    budget = place if place[-2] == "budgets" else place[:2]
    if limit.unit is None or not reader.sound(*budget, "limit"):
        return
    unit = _in_words(limit.unit)
    if isinstance(margin, int) and isinstance(limit.limit, ShareOf):
        reader.refuse(spot, f"an amount in {unit}: what a share of another budget comes to is not known before its first call")
    elif isinstance(margin, Limit) and margin.unit is not limit.unit:
        what = "an amount" if isinstance(limit.limit, ShareOf) else "a percentage, or an amount"
        reader.refuse(spot, f"{what} in {unit}, the budget's unit")


def _check_pause(reader: Reader, place: Place, mode: Mode, on_exhausted: OnExhausted, wait_ms: int | None) -> None:
    if not reader.sound(*place, "on_exhausted"):
        return
    if on_exhausted is OnExhausted.BLOCK and wait_ms:
        reader.refuse((*place, "wait_for_raise"), "no time to wait: only `on_exhausted: pause` waits for a raise")
    if on_exhausted is OnExhausted.PAUSE and mode is Mode.ADVISORY_ESTIMATE and reader.has(*place, "on_exhausted"):
        reader.warn((*place, "on_exhausted"), f"{mode} never blocks a call, so this does nothing")


def _check_share(reader: Reader, place: Place, limit: ShareOf, others: Mapping[str, BudgetFile]) -> None:
    other = others.get(limit.budget)
    if other is None:
        known = did_you_mean(limit.budget, others)
        reader.refuse(place, f"a share of a budget in this file; none is named {limit.budget}{known}")
    elif isinstance(other.limit, ShareOf):
        reader.refuse(place, f"a share of a budget whose limit is an amount; {limit.budget} is itself a share")
    elif other.missing is Missing.SKIP:
        reader.refuse(place, f"a share of a budget that applies to every call; {limit.budget} has `missing: skip`")
    elif not PLAN_DIMENSIONS.isdisjoint(other.scope):
        reader.refuse(
            place, f"a share of a budget without model and provider in its scope; of {limit.budget}, each model would pin another"
        )


def _unit_of(limit: Limit | ShareOf, units: Mapping[str, Unit]) -> Unit | None:
    """`units` by budget; a share is in that of the other."""
    return limit.unit if isinstance(limit, Limit) else units.get(limit.budget)


def _in_words(unit: Unit) -> str:
    return "US dollars" if unit is Unit.USD else unit.words


def _check_names(reader: Reader) -> None:
    names = [reader.plain("budgets", i, "name") for i in reader.indexes("budgets")]
    for i, name in enumerate(names):
        if isinstance(name, str) and name in names[:i]:
            _, first = reader.document.find(("budgets", names.index(name)))
            assert first is not None
            reader.refuse(("budgets", i, "name"), f"a name of its own: the budget on line {first.line} has this one")
        elif name == RUN_LIMIT:
            reader.refuse(("budgets", i, "name"), "another name: this one is taken by the limits that runs set themselves")
    formers = [reader.plain("budgets", i, "renamed_from") for i in reader.indexes("budgets")]
    for i, former in enumerate(formers):
        if former is None:
            continue
        place = ("budgets", i, "renamed_from")
        if former in names:
            reader.refuse(place, "a name that no budget in this file has any more: its balances are that budget's")
        elif former in formers[:i]:
            reader.refuse(place, "a name that no other budget was renamed from")
        elif former == RUN_LIMIT:
            reader.refuse(place, "another name: this one is taken by the limits that runs set themselves")


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
    repeat = runs.repeat_limit
    if repeat is not None and repeat.same_request >= repeat.within_calls:
        place = ("runs", "repeat_limit", "same_request")
        reader.refuse(place, f"fewer than within_calls ({repeat.within_calls}): else it would never refuse a call")
    if runs.forget_after < runs.idle_ttl:
        reader.refuse(("runs", "forget_after"), "at least idle_ttl: a run that is forgotten can't count as active")
    for i, source in enumerate(runs.id_from):
        if source in runs.id_from[:i]:
            reader.refuse(("runs", "id_from", i), "each source once")


# -- building -------------------------------------------------------------------------------------------------------------------


def load(path: Path, catalog: Catalog | None) -> Policy:
    """Reads a policy file, or raises Mistakes. Without a catalog, models are not looked up: for a config that is itself wrong."""
    reader = Reader(read_document(path), PolicyFile)
    _check_names(reader)
    whole_file = reader.part(PolicyFile)
    identity = _identity_of(whole_file)
    provided = ("tenant", *OWN_DIMENSIONS, *(dimension for dimension, _ in identity))
    places: list[Place] = [("budgets", i) for i in reader.indexes("budgets")]
    budgets = {place: reader.part(BudgetFile, *place) for place in places if not reader.refused(*place)}
    by_name = {budget.name: budget for budget in budgets.values()}
    units = {
        budget.name: budget.limit.unit
        for place, budget in budgets.items()
        if isinstance(budget.limit, Limit) and reader.sound(*place, "limit")
    }
    for place, budget in budgets.items():
        if isinstance(budget.limit, ShareOf):
            _check_share(reader, (*place, "limit"), budget.limit, by_name)
        _check_budget(reader, place, budget, _LimitIn(budget.limit, _unit_of(budget.limit, units)), provided)
    models = reader.part(ModelsFile, "models")
    if catalog is not None:
        _check_models(reader, models, catalog)
    _check_runs(reader, reader.part(RunsFile, "runs"))
    reader.finish()
    if not whole_file.budgets:
        reader.warn(("budgets",), "no budget, so nothing is limited but by those that the Cycles admin plane makes")
    downgrades = models.downgrade.auto or models.downgrade.by_glob
    for i, budget in enumerate(whole_file.budgets):
        if budget.downgrade_below and not downgrades:
            reader.warn(("budgets", i, "downgrade_below"), "`models.downgrade` names no cheaper model, so this does nothing")
        modes = {budget.mode, *(override.mode for override in budget.overrides)}
        if budget.reservation.basis is HoldBasis.SLICED and modes.isdisjoint((Mode.HARD_GATE, Mode.SOFT_GATE)):
            reader.warn(
                ("budgets", i, "reservation"), f"what is held stands in no call's way in {budget.mode}, so this does nothing"
            )
    return Policy(
        version=reader.document.digest[:12],
        budgets=tuple(_budget_of(budget, units) for budget in whole_file.budgets),
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
    return RunsPolicy(
        id_from=tuple(runs.id_from),
        untagged=runs.untagged,
        owner=runs.owner,
        terms=RunTerms(
            max_active=runs.max_active_per_key,
            idle_ms=runs.idle_ttl,
            same_request=runs.repeat_limit.same_request if runs.repeat_limit else 0,
            within_calls=runs.repeat_limit.within_calls if runs.repeat_limit else 0,
        ),
        forget_after_ms=runs.forget_after,
    )


def _budget_of(budget: BudgetFile, units: Mapping[str, Unit]) -> Budget:
    window, limit = _window_of(budget), budget.limit
    terms = Terms(
        limit=Share(units[limit.budget], limit.ppm, limit.budget) if isinstance(limit, ShareOf) else limit,
        mode=budget.mode,
        margin=_margin_of(budget.margin),
        downgrade_below_ppm=budget.downgrade_below or 0,
        pause=budget.on_exhausted is OnExhausted.PAUSE,
        wait_for_raise_ms=budget.wait_for_raise or 0,
        outage_allow=_allows(budget.on_outage, budget.mode),
    )
    return Budget(
        name=budget.name,
        scope=_scope_of(budget),
        window=WindowKind.ROLLING if isinstance(window, Rolling) else window,
        timezone=budget.timezone,
        terms=terms,
        alerts_ppm=tuple(sorted(budget.alerts)),
        missing=budget.missing,
        overrides=tuple(
            Override(tuple(override.match.items()), _overridden(terms, override, budget.on_outage))
            for override in budget.overrides
        ),
        span_ms=window.span_ms if isinstance(window, Rolling) else 0,
        keep_for_wrap_up_ppm=budget.keep_for_wrap_up or 0,
        renamed_from=budget.renamed_from,
        sliced=budget.reservation.basis is HoldBasis.SLICED,
    )


def _overridden(terms: Terms, override: OverrideFile, on_outage: OnOutage | None) -> Terms:
    mode = override.mode or terms.mode
    margin = terms.margin if override.margin is None else _margin_of(override.margin)
    below = terms.downgrade_below_ppm if override.downgrade_below is None else override.downgrade_below
    pause = terms.pause if override.on_exhausted is None else override.on_exhausted is OnExhausted.PAUSE
    wait_ms = terms.wait_for_raise_ms if override.wait_for_raise is None else override.wait_for_raise
    assert not isinstance(override.limit, ShareOf)
    return Terms(
        limit=terms.limit if override.limit is None else override.limit,
        mode=mode,
        margin=margin if mode is Mode.SOFT_GATE else Margin(),
        downgrade_below_ppm=below,
        pause=pause,
        wait_for_raise_ms=wait_ms if pause else 0,
        outage_allow=_allows(on_outage, mode),
    )


def _allows(on_outage: OnOutage | None, mode: Mode) -> bool:
    """Whether calls may pass while the ledger is away: what enforces no reservation gives nothing up by that."""
    if on_outage is None:
        return mode not in (Mode.HARD_GATE, Mode.SOFT_GATE)
    return on_outage is OnOutage.ALLOW


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
    """What makes a budget's accounts the same accounts, in words. `kept` is the name that they are kept under."""

    name: str
    kept: str
    scope: str
    window: str
    timezone: str
    unit: str

    def changes_from(self, old: "_Identity") -> list[str]:
        def change(what: str, before: str, after: str) -> list[str]:
            return [f"its {what} changed from {before} to {after}"] if before != after else []

        calendar = old.window in _IN_A_TIMEZONE and self.window in _IN_A_TIMEZONE
        return [
            *change("scope", old.scope, self.scope),
            *change("window", old.window, self.window),
            *(change("timezone", old.timezone, self.timezone) if calendar else []),
            *change("unit", old.unit, self.unit),
        ]


_IN_A_TIMEZONE: Final = frozenset(_CALENDAR) - {WindowKind.LIFETIME.value}


def changed_identities(old: Policy, new: Policy) -> list[str]:
    """Budgets whose accounts start at zero because their identity changed, one sentence each, in the new file's order."""
    return _changes([_identity(budget) for budget in old.budgets], [_identity(budget) for budget in new.budgets])


def changes_against(gates: Sequence[Mapping[str, str]], new: Policy) -> list[str]:
    """The same, against the `gates` that a running gateway's /readyz lists."""
    limits = {gate["name"]: gate["limit"] for gate in gates}
    running = [
        _Identity(
            gate["name"],
            gate.get("renamed_from") or gate["name"],
            gate["scope"],
            gate["window"],
            gate["timezone"],
            _unit_in(gate["limit"], limits),
        )
        for gate in gates
    ]
    return _changes(running, [_identity(budget) for budget in new.budgets])


def _changes(old: Sequence[_Identity], new: Sequence[_Identity]) -> list[str]:
    before = {budget.kept: budget for budget in old}
    kept = {budget.kept for budget in new}
    sentences: list[str] = []
    for budget in new:
        start = f"{budget.name} starts at {'$0' if budget.unit == _in_words(Unit.USD) else f'0 {budget.unit}'} from now"
        if (known := before.get(budget.kept)) is not None:
            if changes := budget.changes_from(known):
                sentences.append(f"{start}: {' and '.join(changes)}")
            continue
        # A new budget that differs from a lost one in nothing but its name was probably renamed; one that goes by a known name, or
        # says that it did, has forgotten under which its balances are kept.
        gone = [known for known in old if known.kept not in kept and not budget.changes_from(known)]
        named = [known for known in gone if known.name in (budget.name, budget.kept)]
        if named:
            sentences.append(f"{start}: its balances are kept under {named[0].kept} (`renamed_from: {named[0].kept}` keeps them)")
        elif gone:
            sentences.append(
                f"{start}: its name is new ({gone[0].name}, with the same scope, window and unit, is gone; `renamed_from: {gone[0].kept}` "
                "would keep its balances)"
            )
    return sentences


def _identity(budget: Budget) -> _Identity:
    scope = "+".join(budget.scope) or "tenant"
    unit = _in_words(budget.terms.limit.unit)
    return _Identity(budget.name, budget.identity, scope, budget.window_name, budget.timezone.key, unit)


def _unit_in(limit: str, limits: Mapping[str, str]) -> str:
    """The unit of a limit in words: `$5.00`, `60 calls`, `1 call`; `50% of tenant-month`, whose own limit is another of them."""
    if limit.startswith("$"):
        return _in_words(Unit.USD)
    _, is_share, other = limit.partition("% of ")
    return _unit_in(limits[other], {}) if is_share else limit.partition(" ")[2].removesuffix("s") + "s"
