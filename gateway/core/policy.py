"""The policy as frozen objects, and which of its budgets apply to a caller. Reading and checking the YAML is `policy_file`'s."""

from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from gateway.core.scopes import Caller, Unit
from gateway.core.values import Mode, RunTerms
from gateway.core.windows import WindowKind, window_name


class Missing(StrEnum):
    """What happens to a call that lacks a dimension of the budget's scope."""

    SHARE = "share"  # counts under "-", so nobody escapes by leaving a header out
    REFUSE = "refuse"
    SKIP = "skip"


class Untagged(StrEnum):
    """What happens to a call without a run id."""

    SHARED = "shared"
    PER_CALL = "per_call"
    REFUSE = "refuse"


class RunOwner(StrEnum):
    """Whose a run is."""

    KEY = "key"  # the key's that opened it
    TENANT = "tenant"  # every key's of the tenant


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount in its unit: `"$5.00"` is microcents, `"200k tokens"`, `"60 calls"`."""

    unit: Unit
    amount: int


@dataclass(frozen=True, slots=True)
class Share:
    """`50% of tenant-month`: an account's limit is that part of what is left in the other budget's, pinned by its first hold."""

    unit: Unit  # the other budget's
    ppm: int
    budget: str  # its name


@dataclass(frozen=True, slots=True)
class Margin:
    """A soft gate's margin: a share of the limit, or an amount in its unit."""

    ppm: int = 0
    amount: int = 0

    def above(self, limit: int) -> int:
        return self.amount + limit * self.ppm // 1_000_000  # rounds down: a narrower margin protects more


@dataclass(frozen=True, slots=True)
class Terms:
    """The part of a budget that an override may replace, and what follows from it."""

    limit: Limit | Share  # a share's margin is an amount
    mode: Mode
    margin: Margin = Margin()
    downgrade_below_ppm: int = 0
    pause: bool = False  # on_exhausted: pause
    wait_for_raise_ms: int = 0
    outage_allow: bool = False  # on_outage, whose default is the mode's


@dataclass(frozen=True, slots=True)
class Override:
    """`match` holds (dimension, glob) pairs, all of which must match. A call without the dimension does not match."""

    match: tuple[tuple[str, str], ...]
    terms: Terms

    def matches(self, caller: Caller) -> bool:
        return all((value := caller.value(dimension)) is not None and fnmatchcase(value, glob) for dimension, glob in self.match)


@dataclass(frozen=True, slots=True)
class Budget:
    """A rule: scope + window + limit + mode. `scope` may name `model` and `provider`, which belong to the plan. The timezone is a
    calendar window's."""

    name: str
    scope: tuple[str, ...]  # () is the whole tenant
    window: WindowKind
    timezone: ZoneInfo
    terms: Terms
    alerts_ppm: tuple[int, ...] = ()
    missing: Missing = Missing.SHARE
    overrides: tuple[Override, ...] = ()  # the first that matches wins
    span_ms: int = 0  # of a rolling window
    keep_for_wrap_up_ppm: int = 0  # a share that only calls may use which wrap up
    renamed_from: str | None = None
    sliced: bool = False  # reservation: {basis: sliced}

    @property
    def identity(self) -> str:
        """The name that its accounts are kept under."""
        return self.renamed_from or self.name

    @property
    def window_name(self) -> str:
        return window_name(self.window, self.span_ms)

    def terms_for(self, caller: Caller) -> Terms:
        for override in self.overrides:
            if override.matches(caller):
                return override.terms
        return self.terms


@dataclass(frozen=True, slots=True)
class OutputPolicy:
    """How much output a call may ask for. `default_by_model` holds (glob, tokens): the longest matching glob wins."""

    default_by_model: tuple[tuple[str, int], ...] = (("*", 8192), ("o*", 32768), ("gpt-5*", 32768))
    max_tokens: int = 32768
    clamp_to_budget: bool = False

    def default_for(self, model: str) -> int | None:
        return _longest_match(self.default_by_model, model)


@lru_cache(maxsize=1024)
def _longest_match(by_glob: tuple[tuple[str, int], ...], model: str) -> int | None:
    matching = [(len(glob), tokens) for glob, tokens in by_glob if fnmatchcase(model, glob)]
    return max(matching)[1] if matching else None


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """Which models a call may use, and what it may be downgraded to."""

    allow: tuple[str, ...] = ("*",)  # globs
    downgrade: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (model glob, cheaper models in order)
    auto: bool = False  # `downgrade: auto`: cheaper valid models of the same provider, dearest first

    def allows(self, model: str) -> bool:
        return any(fnmatchcase(model, glob) for glob in self.allow)

    def ladder_for(self, model: str) -> tuple[str, ...]:
        for glob, ladder in self.downgrade:
            if fnmatchcase(model, glob):
                return ladder
        return ()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a dimension or a run's id comes from: `header:X-Agent-Id`, `body:user`; for runs also `path` and other words."""

    kind: str  # "header" | "body"; of a run's id also "path" | "claude-code" | "traceparent" | "conversation"
    name: str = ""  # a header's name in lower case, or a top-level body field


RUN_HEADER: Final = "x-run-id"
RUN_TERMS: Final = RunTerms(max_active=200)


@dataclass(frozen=True, slots=True)
class RunsPolicy:
    id_from: tuple[Source, ...] = (Source("path"), Source("header", RUN_HEADER))  # the first that is present counts
    untagged: Untagged = Untagged.SHARED
    owner: RunOwner = RunOwner.KEY
    terms: RunTerms = RUN_TERMS
    forget_after_ms: int = 30 * 86_400_000


DEFAULT_IDENTITY: tuple[tuple[str, tuple[Source, ...]], ...] = (
    ("agent", (Source("header", "x-agent-id"),)),
    ("feature", (Source("header", "x-feature"),)),
    ("team", (Source("header", "x-team-id"),)),
    ("user", (Source("header", "x-user-id"), Source("body", "user"))),
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file, read and checked. `version` is its content's hash, shown in /readyz and in each decision."""

    version: str
    budgets: tuple[Budget, ...]
    output: OutputPolicy = OutputPolicy()
    models: ModelPolicy = ModelPolicy()
    identity: tuple[tuple[str, tuple[Source, ...]], ...] = DEFAULT_IDENTITY
    runs: RunsPolicy = RunsPolicy()
    warnings: tuple[str, ...] = field(default=(), compare=False)  # allowed, but seldom meant: one line each, with file and line
    identity_headers: frozenset[str] = field(init=False, compare=False, repr=False)  # by their names in lower case

    def __post_init__(self) -> None:
        headers = frozenset(source.name for _, sources in self.identity for source in sources if source.kind == "header")
        object.__setattr__(self, "identity_headers", headers)
