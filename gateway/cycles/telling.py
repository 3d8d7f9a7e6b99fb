"""Ledger records in the protocol's words: scopes, balances, the rows of a list, every body of an answer. Pure.

What a budget's account says is derived, never kept beside it. With its limit L, what is committed C and reserved R, and the overdraft that
it allows O:

    remaining       L - C - R, below 0 where more was spent than there was
    debt            what is committed above the limit, where the budget allows an overdraft: max(0, C - L); else there is none
    spent           C - debt
    is_over_limit   debt > O; of a budget without overdraft C + R > L: an overrun, which only the ledger's truth shows
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from gateway.core.grants import Grant
from gateway.core.record import record
from gateway.core.scopes import Unit
from gateway.cycles.kept import Closed, Held
from gateway.cycles.reading import UNITS
from gateway.ledger.contract import CallRecord, HoldState

Json: TypeAlias = dict[str, object]

WORDS: Final[Mapping[Unit, str]] = {unit: word for word, unit in UNITS.items()}
STATUS: Final[Mapping[HoldState, str]] = {
    HoldState.LIVE: "ACTIVE",
    HoldState.COMMITTED: "COMMITTED",
    HoldState.RELEASED: "RELEASED",
    HoldState.EXPIRED: "EXPIRED",
}


@record
class Standing:
    """A grant's account: see above. Amounts in its unit."""

    grant: Grant
    limit: int
    committed: int
    reserved: int

    @property
    def remaining(self) -> int:
        return self.limit - self.committed - self.reserved

    @property
    def debt(self) -> int:
        return max(0, self.committed - self.limit) if self.grant.overdraft else 0

    @property
    def over_limit(self) -> bool:
        return self.debt > self.grant.overdraft if self.grant.overdraft else self.remaining < 0

    @property
    def json(self) -> Json:
        """The wire's Balance."""
        grant, unit = self.grant, WORDS[self.grant.unit]

        def told(amount: int) -> Json:
            return {"unit": unit, "amount": amount}

        balance: Json = {
            "scope": grant.text,
            "scope_path": grant.text,
            "remaining": told(self.remaining),
            "reserved": told(self.reserved),
            "spent": told(self.committed - self.debt),
            "allocated": told(self.limit),
        }
        if grant.overdraft:
            balance |= {"debt": told(self.debt), "overdraft_limit": told(grant.overdraft)}
        balance["is_over_limit"] = self.over_limit
        return balance


def scopes_of(levels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The scopes of a subject, the widest first; the last is its path. Levels that it does not name are left out."""
    path, scopes = "", []
    for level, value in levels:
        path = f"{path}/{level}:{value.lower()}" if path else f"{level}:{value.lower()}"
        scopes.append(path)
    return tuple(scopes)


def amount(unit: str, number: int) -> Json:
    return {"unit": unit, "amount": number}


def created(reservation_id: str, held: Held, scopes: Sequence[str], expires_at_ms: int, remaining_ms: int) -> Json:
    """The answer to a reservation that is held."""
    told: Json = {
        "decision": "ALLOW" if held.caps is None else "ALLOW_WITH_CAPS",
        "reservation_id": reservation_id,
        "reserved": amount(held.unit, held.amount),
        "expires_at_ms": expires_at_ms,
        "remaining_ttl_ms": remaining_ms,
        "scope_path": scopes[-1],
        "affected_scopes": scopes,
    }
    if held.caps is not None:
        told["caps"] = held.caps
    return told


def evaluated(reason: str | None, caps: Mapping[str, object] | None, scopes: Sequence[str]) -> Json:
    """The answer where nothing was held. `reason`: why it would be denied."""
    told: Json = {"affected_scopes": scopes}
    if reason is not None:
        return {"decision": "DENY", "reason_code": reason, **told}
    return {"decision": "ALLOW", **told} if caps is None else {"decision": "ALLOW_WITH_CAPS", "caps": caps, **told}


def committed(unit: str, closed: Closed) -> Json:
    return {"status": "COMMITTED", "charged": amount(unit, closed.charged), "released": amount(unit, closed.released)}


def released(unit: str, number: int) -> Json:
    return {"status": "RELEASED", "released": amount(unit, number)}


def extended(expires_at_ms: int, remaining_ms: int) -> Json:
    return {"status": "ACTIVE", "expires_at_ms": expires_at_ms, "remaining_ttl_ms": remaining_ms}


def applied(event_id: str, unit: str, charged: int | None) -> Json:
    """`charged`: where it is less than what was asked for."""
    told: Json = {"status": "APPLIED", "event_id": event_id}
    return told if charged is None else {**told, "charged": amount(unit, charged)}


@record
class Row:
    """A reservation as it is listed. `status`: the wire's word, by the clock, not by whether the reaper was there already."""

    record: CallRecord
    held: Held
    closed: Closed | None
    status: str
    expires_at_ms: int
    scopes: tuple[str, ...]

    @property
    def reservation_id(self) -> str:
        return self.record.hold_id

    @property
    def finalized_at_ms(self) -> int | None:
        return self.record.ended_ms if self.status in ("COMMITTED", "RELEASED") else None

    def json(self, *, newer: bool, metadata: bool, committed_metadata: bool) -> Json:
        """`newer`: with the members that the Python client's models do not know."""
        held, closed = self.held, self.closed
        told: Json = {
            "reservation_id": self.reservation_id,
            "status": self.status,
            "idempotency_key": held.key,
            "subject": held.subject,
            "action": held.action,
            "reserved": amount(held.unit, held.amount),
            "created_at_ms": self.record.at_ms,
            "expires_at_ms": self.expires_at_ms,
            "scope_path": self.scopes[-1],
            "affected_scopes": self.scopes,
        }
        if newer and self.finalized_at_ms is not None:
            told["finalized_at_ms"] = self.finalized_at_ms
        if newer and self.status == "COMMITTED":
            charged = closed.charged if closed is not None else self._charged
            told["committed"] = amount(held.unit, charged)
        if metadata and held.metadata is not None:
            told["metadata"] = held.metadata
        if committed_metadata and closed is not None and closed.commit and closed.metadata is not None:
            told["committed_metadata"] = closed.metadata
        return told

    @property
    def _charged(self) -> int:
        """Of one that an operator settled."""
        charged = self.record.charged
        return 0 if charged is None else charged.of(UNITS[self.held.unit])
