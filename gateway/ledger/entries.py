"""What a journal keeps of a step that the ledger has not taken yet: one line of JSON an entry, with a checksum. Pure.

An entry says all that the step needs, and nothing of what the call said: no prompt is in a line.
"""

import zlib
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.money import Microcents
from gateway.core.record import record
from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.values import (
    Basis,
    Call,
    Ceiling,
    Charge,
    Decision,
    Directives,
    Ending,
    Mode,
    Plan,
)
from gateway.core.windows import Window, WindowKind
from gateway.ledger.contract import Settlement
from gateway.ledger.packed import packable_amounts, packable_usage, usage_of


@record
class Commit:
    tenant: str
    hold_id: str
    settlement: Settlement


@record
class Release:
    tenant: str
    hold_id: str
    ending: Ending
    note: str = ""


@record
class Debit:
    """Of a call that went out while the ledger was away: `decision` has one plan, the one that was served."""

    decision: Decision
    settlement: Settlement

    @property
    def tenant(self) -> str:
        return self.decision.call.caller.tenant

    @property
    def hold_id(self) -> str:
        return self.decision.hold_id


Entry: TypeAlias = Commit | Release | Debit


@record
class Done:
    """Not an entry: the ledger has these."""

    numbers: tuple[int, ...]


class Unreadable(Exception):
    """The line is not what was written, or a version wrote it whose entries are not known here."""


def line_of(number: int, entry: Entry) -> bytes:
    """One line, its end included. `number` is the entry's in its file."""
    return _sealed([number, _KINDS[type(entry)], _fields(entry)])


def done_line(done: Done) -> bytes:
    return _sealed([0, "done", done.numbers])


def read_line(line: bytes) -> tuple[int, Entry | Done]:
    """What the line says and its number, 0 for `Done`. `line` without its end. Unreadable."""
    seal, _, text = line.partition(b" ")
    if seal != b"%08x" % zlib.crc32(text):
        raise Unreadable("its checksum is wrong")
    try:
        number, kind, fields = orjson.loads(text)
        return int(number), Done(tuple(fields)) if kind == "done" else _entry(kind, fields)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise Unreadable(f"it is no entry that is known here ({type(error).__name__})") from error


def number_of(line: bytes) -> int | None:
    """As `read_line`, only the number; None where the line is damaged."""
    seal, _, text = line.partition(b" ")
    if seal != b"%08x" % zlib.crc32(text):
        return None
    return int(orjson.loads(text)[0])


def _sealed(content: list[Any]) -> bytes:
    text = orjson.dumps(content)
    return b"%08x %s\n" % (zlib.crc32(text), text)


_KINDS: Final[Mapping[type, str]] = {Commit: "commit", Release: "release", Debit: "debit"}


def _fields(entry: Entry) -> list[Any]:
    if isinstance(entry, Release):
        return [entry.tenant, entry.hold_id, entry.ending, *_noted(entry.note)]
    settled = _settlement(entry.settlement)
    if isinstance(entry, Commit):
        return [entry.tenant, entry.hold_id, settled]
    return [_decision(entry.decision), settled]


def _entry(kind: str, fields: list[Any]) -> Entry:
    if kind == "release":
        tenant, hold_id, ending, *note = fields
        return Release(tenant, hold_id, Ending(ending), *note)
    if kind == "commit":
        tenant, hold_id, settled = fields
        return Commit(tenant, hold_id, _read_settlement(settled))
    if kind == "debit":
        decision, settled = fields
        return Debit(_read_decision(decision), _read_settlement(settled))
    raise KeyError(kind)


def _settlement(settlement: Settlement) -> list[Any]:
    return [packable_amounts(settlement.cost), packable_usage(settlement.usage), settlement.ending, *_noted(settlement.note)]


def _noted(note: str) -> list[str]:
    """Most have none, and end before it."""
    return [note] if note else []


def _read_settlement(fields: list[Any]) -> Settlement:
    cost, used, ending, *note = fields
    usage = usage_of(used)
    if usage is None:
        raise KeyError("usage")
    return Settlement(Amounts(*cost), usage, Ending(ending), *note)


def _decision(decision: Decision) -> dict[str, Any]:
    """All but the input's texts, and the rules for runs, which no longer matter."""
    call, [plan] = decision.call, decision.ladder
    caller = call.caller
    return {
        "id": decision.id,
        "at_ms": decision.at_ms,
        "prices": decision.price_table_version,
        "caller": [
            *(caller.tenant, caller.key, caller.run, caller.run_scope, caller.run_issued),
            *(caller.dimensions, caller.parent, caller.ancestry, caller.owned_by),
        ],
        "call": [call.dialect, call.model, call.stream, call.choices, call.client_cap, call.service_tier, call.fingerprint],
        "directives": [call.directives.run_limit, call.directives.wrap_up, call.directives.downgrade],
        "plan": [plan.model, plan.provider, plan.output_cap, plan.input_tokens, packable_amounts(plan.cost_max)],
        "charges": [_charge(charge) for charge in plan.charges],
        **({"note": decision.note} if decision.note else {}),
    }


def _read_decision(fields: dict[str, Any]) -> Decision:
    tenant, key, run, run_scope, issued, dimensions, parent, ancestry, *owned_by = fields["caller"]
    caller = Caller(
        *(tenant, key, run, run_scope, issued),
        dimensions=tuple((name, value) for name, value in dimensions),
        parent=parent,
        ancestry=tuple(ancestry),
        owned_by=owned_by[0] if owned_by else "",  # entries of older gateways end before
    )
    dialect, asked, stream, choices, client_cap, service_tier, fingerprint = fields["call"]
    run_limit, wrap_up, downgrade = fields["directives"]
    directives = Directives(None if run_limit is None else Microcents(run_limit), wrap_up, downgrade)
    call = Call(
        *(caller, dialect, asked, stream, choices, client_cap),
        parts=(),
        service_tier=service_tier,
        directives=directives,
        fingerprint=fingerprint,
    )
    model, provider, cap, input_tokens, cost = fields["plan"]
    charges = tuple(_read_charge(tenant, charge) for charge in fields["charges"])
    plan = Plan(model, provider, cap, input_tokens, Amounts(*cost), charges)
    return Decision(fields["id"], call, (plan,), fields["at_ms"], fields["prices"], note=fields.get("note", ""))


def _charge(charge: Charge) -> list[Any]:
    ceiling = charge.ceiling
    account, window = ceiling.account, ceiling.account.window
    return [
        [account.budget, account.scope, account.unit, account.shown],
        [window.kind, window.timezone, window.start_ms, window.end_ms, window.span_ms],
        [ceiling.limit, ceiling.mode, ceiling.basis, ceiling.margin, ceiling.own, ceiling.alerts],
        [ceiling.pinned_ppm, ceiling.pinned_to, ceiling.pause, ceiling.wait_for_raise_ms, ceiling.outage_allow],
        charge.share_ppm,
    ]


def _read_charge(tenant: str, fields: list[Any]) -> Charge:
    (budget, scope, unit, shown), (kind, timezone, start_ms, end_ms, span_ms), rule, rest, share_ppm = fields
    window = Window(WindowKind(kind), timezone, start_ms, end_ms, span_ms)
    account = Account(tenant, budget, tuple((name, value) for name, value in scope), window, Unit(unit), shown)
    limit, mode, basis, margin, own, alerts = rule
    ceiling = Ceiling(account, limit, Mode(mode), Basis(basis), margin, own, tuple(alerts), *rest)
    return Charge(ceiling, share_ppm)
