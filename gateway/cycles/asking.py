"""A Cycles subject as a caller of this gateway, and what it asks for as a call that the ledger can be asked about.

Both meet in the same accounts: the run is `dimensions.run_id`, else `workflow`, so that a tool's reservation and the proxy's calls of that
run draw on one ceiling.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.core.ceilings import RUN_LIMIT
from gateway.core.decide import Rulebook
from gateway.core.grants import LEVELS
from gateway.core.policy import RunsPolicy, Untagged
from gateway.core.record import record
from gateway.core.scopes import NO_VALUE, Account, Caller
from gateway.core.values import Call, Charge
from gateway.cycles.faults import Fault
from gateway.cycles.kept import digest, tenant_mark
from gateway.cycles.reading import Asked, Subject
from gateway.cycles.telling import WORDS, scopes_of
from gateway.identity import Identity, Principal
from gateway.wire.sessions import as_run_id

RUN_DIMENSION: Final = "run_id"
NAME: Final = "external"  # of an action that has an empty one
RESERVATION, EVENT = "cyc", "cye"  # what the ids of their decisions begin with: no id of a proxied call can

_KNOWN_AT_MOST: Final = 4_096
_DIMENSION: Final = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)
# What the gateway itself calls a dimension, or the subject has a level for: a free dimension must not stand in for it.
_TAKEN: Final = frozenset({*LEVELS, RUN_DIMENSION, "run", "key", "model", "provider"})


@record
class Person:
    """A subject as this key may act for it. `run` None: it names none, so each request has one of its own."""

    caller: Caller  # its run is ""  where there is none
    run: str | None
    scopes: tuple[str, ...]


@record
class Order:
    """One request as the ledger is asked about it. Equal requests of one tenant have one id and one digest."""

    call: Call
    decision_id: str
    digest: str
    scopes: tuple[str, ...]
    at_ms: int

    @property
    def hold_id(self) -> str:
        return "rsv_" + self.decision_id.removeprefix("bdg_")

    def again(self, attempt: int) -> "Order":
        """The same under an id of its own, where what the ones before had reserved was given back before anybody heard of it."""
        return replace(self, decision_id=f"{self.decision_id}_{attempt}") if attempt else self


def decision_id(kind: str, tenant: str, key: str) -> str:
    return f"bdg_{kind}_{tenant_mark(tenant)}_{digest([tenant, kind, key])}"


@dataclass(frozen=True, slots=True)
class Asking:
    """What it keeps between requests is only a hint."""

    identity: Identity
    _persons: dict[tuple[object, ...], Person] = field(default_factory=dict)
    _places: dict[tuple[str, str, str], Caller] = field(default_factory=dict)  # (tenant, key, run) → as the ledger took it

    def order(self, principal: Principal, asked: Asked, kind: str, rulebook: Rulebook, at_ms: int) -> Order:
        """Fault FORBIDDEN: another tenant's subject, or one that the key may not act for. Refused as a call would be, where the policy
        wants a run."""
        person = self.person(principal, asked.subject, rulebook)
        made_id = decision_id(kind, principal.tenant, asked.key)
        caller = person.caller
        if person.run is None:
            caller = self._issued(caller, f"run_{made_id.removeprefix('bdg_')}", rulebook, at_ms)
        elif (place := self._places.get((caller.tenant, caller.key, caller.run))) is not None:
            owned_by = place.owned_by if caller.shares else ""  # the policy may have changed since
            caller = replace(caller, owned_by=owned_by, ancestry=place.ancestry)
        told = digest(asked.body)
        call = Call(
            caller=caller,
            dialect=kind,
            model=asked.action.name or NAME,
            stream=False,
            choices=1,
            client_cap=None,
            parts=(),
            # Another key of the tenant may repeat the request: the ledger takes it for another's, and whoever asks it looks closer.
            fingerprint=f"{told}{caller.key}/{'' if person.run is None else person.run}",
        )
        return Order(call, made_id, told, person.scopes, at_ms)

    def placed(self, order: Order, caller: Caller) -> None:
        """The ledger took it as this caller: its run is another key's, or has ancestors. The next one begins with that."""
        if caller != order.call.caller:
            if len(self._places) >= _KNOWN_AT_MOST:
                self._places.clear()
            self._places[caller.tenant, caller.key, caller.run] = caller

    def person(self, principal: Principal, subject: Subject, rulebook: Rulebook) -> Person:
        runs = rulebook.policy.runs
        who = (principal.tenant, principal.key, principal.bound, runs.owner)
        known_by = (*who, subject.levels, tuple(subject.dimensions.items()))
        person = self._persons.get(known_by)
        if person is None:
            person = self._person(principal, subject, runs)
            if any(value == NO_VALUE for _, value in person.caller.dimensions):
                return person  # not kept: a grant that comes may be for the value that is not told
            if len(self._persons) >= _KNOWN_AT_MOST:
                self._persons.clear()
            self._persons[known_by] = person
        return person

    def _person(self, principal: Principal, subject: Subject, runs: RunsPolicy) -> Person:
        tenant = subject.tenant
        if tenant is not None and tenant != principal.tenant:
            raise Fault("FORBIDDEN", f"subject.tenant: this key is of another tenant than {tenant}", {"field": "subject.tenant"})
        levels = {level: value for level, value in subject.levels if level != "tenant"}
        run = as_run_id(subject.dimensions.get(RUN_DIMENSION, "")) or levels.get("workflow")
        values = levels | {name: value for name, value in subject.dimensions.items() if _counts(name, value)}
        caller = self.identity.acting(principal, run or "", values, runs)
        return Person(caller, run, scopes_of(subject.levels))

    def _issued(self, caller: Caller, run: str, rulebook: Rulebook, at_ms: int) -> Caller:
        """The same request gets the same one when it is sent again."""
        runs = rulebook.policy.runs
        if runs.untagged is Untagged.REFUSE:
            raise Fault(
                "INVALID_REQUEST",
                "every request needs a run here: name subject.workflow or subject.dimensions.run_id",
                {"field": "subject.workflow"},
            )
        return self.identity.issued(caller, run, runs, at_ms)


def _counts(name: str, value: str) -> bool:
    """Whether budgets can be set over it. What can't be told here is kept with the record all the same."""
    return name not in _TAKEN and _DIMENSION.fullmatch(name) is not None and bool(value) and value.isprintable()


def units_of(charges: Sequence[Charge]) -> frozenset[str]:
    """The wire's units in which some budget applies; a run's own limit that nobody set is none."""
    accounts: Sequence[Account] = [charge.ceiling.account for charge in charges if charge.ceiling.account.budget != RUN_LIMIT]
    return frozenset(WORDS[account.unit] for account in accounts if account.unit in WORDS)
