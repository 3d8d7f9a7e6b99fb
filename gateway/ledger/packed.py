"""The packed record of one call: one JSON array for the hold, one for what it became. The order of the fields stands here only."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import orjson

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Mode, Outcome, Pieces, Plan, Usage, UsageSource
from gateway.core.windows import LIFETIME, Window, WindowKind, rolling
from gateway.ledger.contract import CallRecord, HoldState
from gateway.ledger.layout import DEFAULTS, RULES, layout_of, places

NOTHING: Final = Amounts(0, 0, 0)


class Line(NamedTuple):
    """One charge of the held plan, as the rule was then, and what is held there.

    A `twin` is a further rule on an account that an earlier line counts already.
    """

    charge: Charge
    held: int
    twin: bool


class Record(NamedTuple):
    """What is known of a call from its reserve on. `charges`: of the held plan, as the rules were then. `held`: the most that it holds
    in any account; `slices`: what it holds where a charge is sliced, if any is. `lapses`: see `core.values.Decision`."""

    run: str
    owner: str
    at_ms: int
    outcome: str
    requested_model: str
    selected_model: str
    provider: str
    held: Amounts
    charges: tuple[Charge, ...]
    dimensions: tuple[tuple[str, str], ...]
    plan: int  # its place in the ladder
    inputs: Mapping[str, object]
    slices: Amounts | None = None
    lapses: bool = False

    @property
    def provisional(self) -> tuple[int, ...]:
        """What its expiry charges in the accounts, as `layout.places` counts."""
        return places(NOTHING, None) if self.lapses else places(self.held, self.slices)

    @property
    def lines(self) -> tuple[Line, ...]:
        held = places(self.held, self.slices)
        return tuple([Line(spot.charge, held[spot.unit], spot.twin) for spot in layout_of(self.charges).spots])


class Closing(NamedTuple):
    """What a hold became."""

    charged: Amounts
    usage: Usage | None
    ending: str | None
    at_ms: int
    note: str = ""


def inputs_of(decision: Decision, plan: Plan | None) -> dict[str, object]:
    """What the decision was made from, for whoever asks later why. `plan` is the one held; None: none was."""
    call = decision.call
    inputs: dict[str, object] = {
        "price_table_version": decision.price_table_version,
        "stream": call.stream,
        "choices": call.choices,
        "client_requested_max_output_tokens": call.client_cap,
        "ladder": [_rung(each) for each in decision.ladder],
    }
    if decision.passed_over:
        inputs["passed_over"] = [(each.model, each.reason) for each in decision.passed_over]
    if call.directives.wrap_up:
        inputs["wrap_up"] = True
    if call.directives.run_limit is not None:
        inputs["run_limit"] = call.directives.run_limit
    if call.fingerprint:
        inputs["fingerprint"] = call.fingerprint
    if call.caller.ancestry:
        inputs["ancestry"] = call.caller.ancestry
    if decision.note:
        inputs["note"] = decision.note
    if plan is not None:
        inputs["effective_max_output_tokens"] = plan.output_cap
        inputs["input_tokens"] = plan.input_tokens
    return inputs


def _rung(plan: Plan) -> tuple[object, ...]:
    cost = plan.cost_max
    if cost.credits or cost.risk_points:
        return plan.model, plan.provider, plan.output_cap, cost.usd, cost.tokens, cost.credits, cost.risk_points
    return plan.model, plan.provider, plan.output_cap, cost.usd, cost.tokens


def ancestry_in(record: "Record") -> tuple[str, ...]:
    ancestry: Any = record.inputs.get("ancestry")
    return tuple(ancestry) if ancestry else ()


# Most rungs end before the last two.
_RUNG: Final = ("model", "provider", "output_cap", "cost_max_usd", "cost_max_tokens", "cost_max_credits", "cost_max_risk_points")


# In the packed record, these are named by a letter.
_LETTERS: Final = {
    "price_table_version": "v",
    "stream": "s",
    "choices": "n",
    "client_requested_max_output_tokens": "c",
    "ladder": "l",
    "effective_max_output_tokens": "m",
    "input_tokens": "i",
    "fingerprint": "f",
    "ancestry": "a",
    "note": "o",
}
_NAMES: Final = {letter: name for name, letter in _LETTERS.items()}


def pack_record(record: Record) -> bytes:
    run, owner, at_ms, outcome, requested, selected, provider, held, charges, dimensions, plan, inputs, slices, lapses = record
    more: tuple[object, ...] = ()  # most records end here
    if slices is not None or lapses:
        sliced = None if slices is None else (slices.usd, slices.tokens, slices.calls)
        more = (sliced, True) if lapses else (sliced,)
    return orjson.dumps(
        (
            run,
            owner,
            at_ms,
            outcome,
            requested,
            selected,
            provider,
            packable_amounts(held),
            layout_of(charges).packed,
            dimensions,
            plan,
            {_LETTERS.get(name, name): value for name, value in inputs.items()},
            *more,
        )
    )


def packable_amounts(amounts: Amounts) -> tuple[int, ...]:
    """As JSON takes them: three numbers, and two more where there are credits or risk points."""
    if amounts.credits or amounts.risk_points:
        return amounts.usd, amounts.tokens, amounts.calls, amounts.credits, amounts.risk_points
    return amounts.usd, amounts.tokens, amounts.calls


def unpack_record(tenant: str, packed: bytes) -> Record:
    run, owner, at_ms, outcome, requested, selected, provider, held, charges, dimensions, plan, inputs, *rest = orjson.loads(
        packed
    )
    return Record(
        run,
        owner,
        at_ms,
        outcome,
        requested,
        selected,
        provider,
        Amounts(*held),
        tuple([_charge(tenant, *(each if len(each) <= _FIELDS else _of_version_1(*each))) for each in charges]),
        tuple([(name, value) for name, value in dimensions]),
        plan,
        {_NAMES.get(name, name): value for name, value in inputs.items()},
        Amounts(*rest[0]) if rest and rest[0] is not None else None,
        len(rest) > 1,
    )


_LAPSES: Final = 13  # the place of what only a record of a hold that lapses has


def lapses_in(packed: Sequence[Any]) -> bool:
    """Of a packed record, as an array."""
    return len(packed) > _LAPSES


_FIELDS: Final = 2 + len(DEFAULTS)  # of a charge


def _charge(tenant: str, key: str, limit: int | None, *rest: Any) -> Charge:
    rule, own, alerts, end_ms, share_ppm, margin, sliced = (*rest, *DEFAULTS[len(rest) :])
    mode, basis = RULES[rule]
    return Charge(Ceiling(account_of(tenant, key, end_ms), limit, mode, basis, margin, own, tuple(alerts)), share_ppm, sliced)


def _of_version_1(
    key: str,
    end_ms: int,
    _held: int,
    _twin: bool,
    limit: int | None,
    mode: str,
    basis: str,
    margin: int,
    own: bool,
    alerts: Any,
    share: int,
) -> tuple[Any, ...]:
    """Files of version 1 hold records with all of it spelled out."""
    return key, limit, RULES.index((Mode(mode), Basis(basis))), own, alerts, end_ms, share, margin


def pack_closing(closing: Closing) -> bytes:
    charged, usage, ending, at_ms, note = closing
    told = (packable_amounts(charged), packable_usage(usage), ending, at_ms)
    return orjson.dumps((*told, note) if note else told)


def unpack_closing(packed: bytes | None) -> Closing | None:
    if packed is None:
        return None
    charged, used, ending, at_ms, *note = orjson.loads(packed)
    return Closing(Amounts(*charged), usage_of(used), ending, at_ms, *note)


def packable_usage(usage: Usage | None) -> tuple[object, ...] | None:
    """As JSON takes it: five fields, and a sixth where there is more to tell."""
    if usage is None:
        return None
    used = (usage.source, usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.output_tokens)
    return (*used, usage.others) if usage.others else used


def usage_of(used: Sequence[Any] | None) -> Usage | None:
    """The other way round. Older records have five fields only."""
    if used is None:
        return None
    source, fresh, cached, written, output, *others = used
    return Usage(UsageSource(source), fresh, cached, written, output, pieces_of(others[0]) if others else ())


def pieces_of(stored: Iterable[tuple[str, int]]) -> Pieces:
    return tuple([(measure, number) for measure, number in stored])


@lru_cache(maxsize=8192)
def account_of(tenant: str, key: str, end_ms: int) -> Account:
    """The account that a key names. The key says everything but the tenant and the end of a calendar window."""
    budget, scope, window_key, unit = key.rsplit("|", 3)
    pairs = []
    for pair in scope.split(",") if scope else ():
        name, _, value = pair.partition("=")
        pairs.append((name, unquote(value, errors="surrogatepass")))
    kind, _, rest = window_key.partition("@")
    if kind == WindowKind.LIFETIME:
        window = LIFETIME
    elif kind == WindowKind.ROLLING:
        window = rolling(int(rest))
    else:
        timezone, _, start_ms = rest.rpartition(":")
        window = Window(WindowKind(kind), timezone, int(start_ms), end_ms)
    account = Account(tenant, budget, tuple(pairs), window, Unit(unit))
    assert account.key == key, (account.key, key)
    return account


def run_in(scope: Sequence[tuple[str, str]]) -> str:
    """The run that an account's scope names; '' where it names none."""
    return next((value for name, value in scope if name == "run"), "")


def call_record(
    tenant: str, tail: str, state: HoldState | None, record: Record, closing: Closing | None, due_ms: int = 0
) -> CallRecord:
    """The record as the contract shows it. `state` None: a refusal."""
    inputs = dict(record.inputs)
    note = inputs.pop("note", "")
    assert isinstance(note, str)
    ladder = inputs["ladder"]
    assert isinstance(ladder, list)
    inputs["ladder"] = [dict(zip(_RUNG, rung, strict=False)) for rung in ladder]
    if record.charges:
        inputs["accounts"] = [_line_input(line) for line in record.lines]
    return CallRecord(
        decision_id=f"bdg_{tail}",
        tenant=tenant,
        run=record.run,
        owner=record.owner,
        at_ms=record.at_ms,
        outcome=record.outcome,
        state=state,
        requested_model=record.requested_model,
        selected_model=record.selected_model,
        provider=record.provider,
        held=record.held,
        charged=closing.charged if closing else None,
        usage=closing.usage if closing else None,
        ending=closing.ending if closing else None,
        dimensions=record.dimensions,
        lines=tuple((line.charge.ceiling.account.key, line.held) for line in record.lines if not line.twin),
        inputs=inputs,
        lease_until_ms=due_ms if state is HoldState.LIVE else 0,
        lapses=record.lapses,
        ended_ms=closing.at_ms if closing else 0,
        note=note,
        end_note=closing.note if closing else "",
    )


def _line_input(line: Line) -> dict[str, object]:
    ceiling = line.charge.ceiling
    told: dict[str, object] = {
        "account": ceiling.account.key,
        "held": line.held,
        "limit": ceiling.limit,
        "mode": ceiling.mode.value,
        "basis": ceiling.basis.value,
        "margin": ceiling.margin,
        "share_ppm": line.charge.share_ppm,
        "own": ceiling.own,
    }
    if line.charge.sliced:
        told["sliced"] = True
    return told


def refusal_record(
    decision: Decision, at_ms: int, blocking: tuple[Balance, ...], balances: tuple[Balance, ...], why: str
) -> Record:
    """What the ring keeps of a call that was refused. The first plan stands for it."""
    call = decision.call
    first = decision.ladder[0]
    inputs = inputs_of(decision, None)
    inputs["why"] = why
    inputs["blocking"] = [_balance_input(balance) for balance in blocking]
    inputs["accounts"] = [_balance_input(balance) for balance in balances]
    return Record(
        call.caller.run,
        call.caller.key,
        at_ms,
        Outcome.BLOCK,
        call.model,
        first.model,
        first.provider,
        first.held,
        (),
        call.caller.dimensions,
        0,
        inputs,
    )


def _balance_input(balance: Balance) -> dict[str, object]:
    return {
        "account": balance.account.key,
        "limit": balance.limit,
        "committed": balance.committed,
        "reserved": balance.reserved,
        "mode": balance.mode,
    }
