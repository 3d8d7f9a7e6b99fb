"""Budgets that operators make while the gateway runs (grants), and which of them a caller's calls count in. Pure.

A grant's limit is the one that is stored with its account, and nothing else: here stands only what it is for. A grant whose account
stores no limit lets nothing through.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from itertools import pairwise
from typing import Final, TypeAlias

from gateway.core.record import record
from gateway.core.scopes import Account, Caller, Unit
from gateway.core.values import Basis, Ceiling, Charge, Mode
from gateway.core.windows import LIFETIME

LEVELS: Final = ("tenant", "workspace", "app", "workflow", "agent", "toolset")  # of a scope, the widest first
BUDGET: Final = "cycles"  # the budget that the accounts of grants are kept under
ANY: Final = "*"

Scope: TypeAlias = tuple[tuple[str, str], ...]  # (level, value), the widest first; values in lower case

_VALUE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


class GrantStatus(StrEnum):
    ACTIVE = "active"
    FROZEN = "frozen"
    CLOSED = "closed"  # for good


class NoScope(ValueError):
    """The text is no scope; the message says why."""


def scope_of(text: str) -> Scope:
    """`tenant:acme/workspace:eng`: any of the levels in their order, the tenant first. NoScope."""
    scope: list[tuple[str, str]] = []
    for segment in text.split("/"):
        level, value = _segment(segment)
        if _VALUE.fullmatch(value) is None:
            raise NoScope(f"the value in {segment[:160]!a} has to be 1 to 128 letters, digits, dots, dashes or underscores")
        scope.append((level, value.lower()))
    _check_order([level for level, _ in scope])
    if scope[0][0] != LEVELS[0]:
        raise NoScope("a scope begins with its tenant, as in tenant:acme/workspace:eng")
    return tuple(scope)


def text_of(scope: Scope) -> str:
    return "/".join(f"{level}:{value}" for level, value in scope)


def granted(account: Account) -> str | None:
    """The scope of the grant that the account is of; None where it is a budget's of the policy, whose scopes name no tenant."""
    return text_of(account.scope) if account.name == BUDGET and account.scope[:1] and account.scope[0][0] == LEVELS[0] else None


def levels_of(caller: Caller) -> Mapping[str, str]:
    """The caller's values as scopes have them. A run is the workflow of whoever names none."""
    values = {name: value.lower() for name, value in caller.dimensions if name in LEVELS}
    if "workflow" not in values and not caller.run_issued:
        values["workflow"] = caller.run.lower()
    return values | {"tenant": caller.tenant.lower()}


def scope_for(caller: Caller) -> Scope:
    """The narrowest scope that the caller is in."""
    values = levels_of(caller)
    return tuple((level, values[level]) for level in LEVELS if level in values)


@record
class Pattern:
    """Which callers something is for: `tenant:acme`, `tenant:acme/*`, `agent:*`, `*/agent:summarizer`.

    It takes callers that have all its values (`*`: any value); `/*` at its end: and some level below these.
    """

    values: Scope
    below: bool = False

    def takes(self, values: Mapping[str, str]) -> bool:
        for level, value in self.values:
            found = values.get(level)
            if found is None or value not in (found, ANY):
                return False
        if not self.below:
            return True
        least = LEVELS.index(self.values[-1][0]) if self.values else -1
        return any(level in values for level in LEVELS[least + 1 :])


def pattern_of(text: str) -> Pattern:
    """NoScope."""
    segments = text.split("/")
    below = len(segments) > 1 and segments[-1] == ANY
    if below:
        del segments[-1]
    if segments[0] == ANY:
        del segments[0]
        if not segments:
            raise NoScope("a pattern names a level, as in tenant:acme/* or agent:*")
    values: list[tuple[str, str]] = []
    for segment in segments:
        level, value = _segment(segment)
        if value != ANY and _VALUE.fullmatch(value) is None:
            raise NoScope(f"the value in {segment[:160]!a} has to be *, or 1 to 128 letters, digits, dots, dashes or underscores")
        values.append((level, value.lower()))
    _check_order([level for level, _ in values])
    return Pattern(tuple(values), below)


def filters(allowed: Sequence[str], scope: Scope) -> bool:
    """Whether a key that is restricted to these (`workspace:eng`, `agent:*`) may act on the scope: one of them has to be in it. A path
    of several (`tenant:acme/workspace:eng`) is in it where all of its parts are. None at all: no restriction."""
    if not allowed:
        return True
    values = dict(scope)
    return any(_read(text).takes(values) for text in allowed)


def _read(text: str) -> Pattern:
    try:
        return pattern_of(text)
    except NoScope:  # of a newer gateway's making: it allows nothing here
        return Pattern((("", ""),))


def _segment(text: str) -> tuple[str, str]:
    level, colon, value = text.partition(":")
    if not colon or level not in LEVELS:
        raise NoScope(f"{text[:160]!a} is no part of a scope: expected LEVEL:VALUE, of the levels {', '.join(LEVELS)}")
    return level, value


def _check_order(levels: Sequence[str]) -> None:
    places = [LEVELS.index(level) for level in levels]
    if any(place <= before for before, place in pairwise(places)):
        raise NoScope(f"each level comes once, in the order {', '.join(LEVELS)}")


@record
class Grant:
    """A budget over everybody in its tenant who has the values of its scope. `overdraft`: by how much what is committed may go above its
    limit where a lifecycle is allowed to."""

    tenant: str
    scope: Scope
    unit: Unit
    overdraft: int = 0
    status: GrantStatus = GrantStatus.ACTIVE
    # What happens to a cost above its hold, where neither the request nor a policy says; the wire's word.
    overage: str | None = None
    account: Account = field(init=False, compare=False, repr=False)
    charge: Charge = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        account = Account(self.tenant, BUDGET, self.scope, LIFETIME, self.unit)
        object.__setattr__(self, "account", account)
        # A limit of 0, not None: what no account says it has, it does not have.
        ceiling = Ceiling(account, 0, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED)
        object.__setattr__(self, "charge", Charge(ceiling))

    @property
    def text(self) -> str:
        return text_of(self.scope)


@record
class Unread:
    """Why nobody here can say which grants there are: `ledger_unavailable` or `ledger_lost`, and what is wrong."""

    code: str
    why: str


class Grants:
    """All grants that there are, found by who calls. `halted`: tenants that take no calls at all, and how each is said to be. `unread`: they
    were not read yet, so nobody can say whom which grant would stop. `overages`: some of them say what a commit above its hold may do."""

    def __init__(
        self, grants: Iterable[Grant] = (), halted: Mapping[str, str] | None = None, unread: Unread | None = None
    ) -> None:
        self.halted = halted or {}
        self.unread = unread
        self.overages = False
        self.counts = {status.value: 0 for status in GrantStatus}
        # tenant → the levels of a scope → their values → the grants of that scope: a tenant may have a grant for each of many runs.
        self._shapes: dict[str, dict[tuple[str, ...], dict[tuple[str, ...], list[Grant]]]] = {}
        self._named: set[tuple[str, str, str]] = set()  # (tenant, level, value) of any scope
        for grant in grants:
            self.overages |= grant.overage is not None
            self.counts[grant.status.value] += 1
            self._named.update((grant.tenant, level, value) for level, value in grant.scope)
            shape, values = zip(*grant.scope, strict=True)
            self._shapes.setdefault(grant.tenant, {}).setdefault(shape, {}).setdefault(values, []).append(grant)

    @property
    def known(self) -> bool:
        return self.unread is None

    def name(self, tenant: str, level: str, value: str) -> bool:
        """Whether some grant is only for callers with this value."""
        return (tenant, level, value.lower()) in self._named

    def of(self, callers: Collection[Caller]) -> tuple[Grant, ...]:
        """Those that calls count in which are these callers' at once: a run's, and its ancestors'."""
        found: list[Grant] = []
        for caller in callers:
            shapes = self._shapes.get(caller.tenant)
            if shapes is None:
                return ()
            values = levels_of(caller)
            for shape, by_values in shapes.items():
                wanted = tuple([values.get(level, "") for level in shape])
                found += by_values.get(wanted, ())
        return tuple(found) if len(callers) == 1 else tuple(dict.fromkeys(found))


NO_GRANTS: Final = Grants()
