"""Who is asking, and the accounts that their calls count in. Pure values; an account's key is its identity everywhere."""

from collections.abc import Sequence
from dataclasses import field
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from gateway.core.record import record
from gateway.core.windows import Window

BOOKKEEPING: Final = "-cycles-"  # the tenant of documents that are no tenant's own: no key can be of it
NO_VALUE: Final = "-"  # the value of a dimension that the call does not have (`missing: share`)


class Unit(StrEnum):
    """What an account counts. USD amounts are integer microcents."""

    USD = "usd"
    TOKENS = "tokens"
    CALLS = "calls"
    CREDITS = "credits"  # whoever reserves or debits says how many
    RISK_POINTS = "risk_points"  # as credits

    @property
    def words(self) -> str:
        """As people write it: `200 tokens`, `100 risk points`."""
        return self.value.replace("_", " ")


OF_CALLS: Final = (Unit.USD, Unit.TOKENS, Unit.CALLS)  # what calls of models take; never any of the others


@record
class Amounts:
    """The same thing in every unit: a worst case, or what a call really cost."""

    usd: int
    tokens: int
    calls: int = 1
    credits: int = 0
    risk_points: int = 0

    def of(self, unit: Unit) -> int:
        if unit is Unit.USD:
            return self.usd
        if unit is Unit.TOKENS:
            return self.tokens
        if unit is Unit.CALLS:
            return self.calls
        return self.credits if unit is Unit.CREDITS else self.risk_points

    def within(self, other: "Amounts") -> bool:
        """Whether it is no more in any unit."""
        return (
            self.usd <= other.usd
            and self.tokens <= other.tokens
            and self.calls <= other.calls
            and self.credits <= other.credits
            and self.risk_points <= other.risk_points
        )


@record
class Caller:
    """Who is asking. `key` is a key's id, never the key. `run_scope` is the value the run's budgets count under: the run's
    own id, or a shared account for calls that came without one."""

    tenant: str
    key: str
    run: str
    run_scope: str
    run_issued: bool = False  # the gateway made the id up: the call came without one
    dimensions: tuple[tuple[str, str], ...] = ()  # user, team, agent, feature …; sorted, only those present
    run_ignored: str | None = None  # a second run id that disagreed: for the log only
    parent: str | None = None  # X-Parent-Run-Id, if this call named one
    ancestry: tuple[str, ...] = ()  # the run's ancestors as far as is known here, its parent first: the ledger says if it is so
    shares: bool = False  # it may use the runs of its tenant's other keys (`runs.owner: tenant`) …
    owned_by: str = ""  # … and this is the key whose run it uses, as far as is known here

    @property
    def owner(self) -> str:
        """Whose run it is. What a call costs is its own key's all the same."""
        return self.owned_by or self.key

    def value(self, dimension: str) -> str | None:
        """The caller's value in a dimension, or None where the call has none."""
        if dimension == "run":
            return self.run_scope
        if dimension == "key":
            return self.key
        if dimension == "tenant":
            return self.tenant
        for name, value in self.dimensions:
            if name == dimension:
                return value
        return None

    def has(self, values: Sequence[tuple[str, str]]) -> bool:
        """Whether the caller has each of these (dimension, value); () is everybody."""
        return all(self.value(name) == value for name, value in values)


@record
class Account:
    """One budget made concrete. Limit and mode are not identity: change them and the balance stays.

    `key` is unique within the tenant: `run-ceiling|run=r42|lifetime|usd`, `agent-day|agent=a1|day@UTC:1767225600000|usd`.
    `budget` is the name that the account is kept under; `shown` is the budget's present one, where it was renamed since.
    """

    tenant: str
    budget: str
    scope: tuple[tuple[str, str], ...]  # (dimension, value) in the policy's order; () is the whole tenant
    window: Window
    unit: Unit
    shown: str = field(default="", compare=False)
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # `surrogatepass`: bytes of a header that are not UTF-8 arrive as lone surrogates, and are a value like any other.
        scope = ",".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in self.scope)
        object.__setattr__(self, "key", f"{self.budget}|{scope}|{self.window.key}|{self.unit.value}")

    @property
    def name(self) -> str:
        """The budget's name for whoever reads: the word in answers, alerts and logs."""
        return self.shown or self.budget

    @property
    def scope_name(self) -> str:
        """`run`, `team+agent`, or `tenant` for the whole tenant: the word in headers, codes and bodies."""
        return "+".join(name for name, _ in self.scope) or "tenant"
