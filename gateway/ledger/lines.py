"""A plan's charges as the scripts read them, and calls as the scripts keep them: the order of the fields stands here and in
`lua/lines.lua`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Mode, Outcome, Usage, UsageSource
from gateway.ledger.contract import HoldState
from gateway.ledger.packed import Closing, Record, account_of, inputs_of

_UNITS: Final = {Unit.USD: 1, Unit.TOKENS: 2, Unit.CALLS: 3}
_BASES: Final = {Basis.RESERVED_AND_COMMITTED: 0, Basis.COMMITTED: 1, Basis.NONE: 2}
_BASIS: Final = {number: basis for basis, number in _BASES.items()}
# Behind the key, the end and the mode, in order; what has its default at the end is left off.
_DEFAULTS: Final = (1_000_000, 0, False, [], False, False, False, 0, 0)
STATES: Final = {1: HoldState.LIVE, 2: HoldState.EXPIRED, 3: HoldState.COMMITTED, 4: HoldState.RELEASED}
NUMBERS: Final = {state: number for number, state in STATES.items()}

# The fields of a call's hash.
CALL_FIELDS: Final = ("s", "l", "t", "h", "f", "p", "w", "r", "a", "o", "g", "n", "d", "x", "e", "z")


class Lines:
    """The charges of a plan, ready to be sent."""

    __slots__ = ("charges", "from_ms", "keys", "own", "text", "unique", "until_ms")

    def __init__(self, charges: tuple[Charge, ...], text: str | None = None) -> None:
        """`text`: as it was sent once."""
        self.charges = charges
        ordinals: dict[str, int] = {}
        first: dict[str, int] = {}
        lines = []
        self.unique: list[tuple[Account, Mode]] = []  # the accounts, in the order of the balances
        for place, charge in enumerate(charges, 1):
            ceiling = charge.ceiling
            account = ceiling.account
            twin = account.key in ordinals
            if not twin:
                ordinals[account.key] = len(ordinals) + 1
                first[account.key] = place
                self.unique.append((account, ceiling.mode))
            if text is None:
                lines.append(_line(charge, ordinals[account.key], twin))
        self.keys = tuple(ordinals)
        self.from_ms = max((charge.ceiling.account.window.start_ms for charge in charges), default=0)
        self.until_ms = min((charge.ceiling.account.window.end_ms for charge in charges), default=2**53)
        if text is None:
            for line, charge in zip(lines, charges, strict=True):
                line[-1] = first.get(charge.ceiling.pinned_to, 0)
            text = orjson.dumps([_trimmed(line) for line in lines]).decode()
        self.text = text

    def balances(self, told: Sequence[Any]) -> tuple[Balance, ...]:
        """`told`: limit, committed, reserved, unconfirmed per account."""
        found = []
        at = 0
        for account, mode in self.unique:
            found.append(Balance(account, told[at], told[at + 1], told[at + 2], told[at + 3], mode))
            at += 4
        return tuple(found)


def _line(charge: Charge, ordinal: int, twin: bool) -> list[Any]:
    ceiling = charge.ceiling
    account = ceiling.account
    return [
        ordinal,
        _UNITS[account.unit],
        -1 if ceiling.limit is None else ceiling.limit,
        _BASES[ceiling.basis],
        account.key,
        account.window.end_ms,
        ceiling.mode.value,
        charge.share_ppm,
        ceiling.margin,
        ceiling.own_run or False,
        list(ceiling.alerts),
        twin,
        ceiling.pause,
        (account.window.span_ms and account.window.bucket_ms) or False,
        ceiling.pinned_ppm,
        0,
    ]


def _trimmed(line: list[Any]) -> list[Any]:
    for default in reversed(_DEFAULTS):
        if line[-1] != default:
            break
        line.pop()
    return line


def read_lines(tenant: str, text: bytes) -> Lines:
    """As they were sent once. What only a reserve needs is not restored: a share's pin, a pause."""
    charges = []
    for line in orjson.loads(text):
        _, _, limit, basis, key, end_ms, mode, *rest = line
        share_ppm, margin, own, alerts, *_ = [*rest, *_DEFAULTS[len(rest) :]]
        account = account_of(tenant, key, end_ms)
        ceiling = Ceiling(
            account, None if limit < 0 else limit, Mode(mode), _BASIS[basis], margin, own is not False, tuple(alerts)
        )
        charges.append(Charge(ceiling, share_ppm))
    return Lines(tuple(charges), text.decode())


def amounts_of(text: bytes) -> Amounts:
    """The "usd tokens calls" of the scripts."""
    usd, tokens, calls = text.split(b" ")
    return Amounts(int(usd), int(tokens), int(calls))


def text_of(amounts: Amounts) -> str:
    return f"{amounts.usd} {amounts.tokens} {amounts.calls}"


def rest_of(decision: Decision) -> bytes:
    """What no script looks at: [model asked for, inputs, input tokens per plan]."""
    return orjson.dumps((decision.call.model, inputs_of(decision, None), [plan.input_tokens for plan in decision.ladder]))


def group_start(owner: str, run: str, dimensions: Sequence[tuple[str, str]]) -> str:
    """A group of spend is JSON: [owner, run, {dimension: value}, model, provider]. All but the last two, which a plan adds."""
    return orjson.dumps((owner, run, dict(dimensions))).decode()[:-1] + ","


def group_end(model: str, provider: str) -> str:
    return orjson.dumps((model, provider)).decode()[1:]


def record_of(tenant: str, call: Mapping[str, bytes]) -> Record:
    """From the fields of a call's hash."""
    owner, run, dimensions, model, provider = orjson.loads(call["g"])
    requested, inputs, input_tokens = orjson.loads(call["d"])
    plan = int(call["p"])
    held = amounts_of(call["h"])
    charges = read_lines(tenant, call["n"]).charges
    rung = inputs["ladder"][plan]
    inputs["effective_max_output_tokens"] = rung[2]
    inputs["input_tokens"] = input_tokens[plan]
    outcome = Outcome.ADVISORY_WARN if call["w"] == b"1" else Outcome.ALLOW
    if model != inputs["ladder"][0][0]:
        outcome = Outcome.DOWNGRADE
    pairs = tuple(sorted(dimensions.items()))
    return Record(run, owner, int(call["t"]), outcome, requested, model, provider, held, charges, pairs, plan, inputs)


def closing_text(usage: Usage | None, ending: str | None) -> bytes:
    used = None
    if usage is not None:
        used = (usage.source, usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.output_tokens)
    return orjson.dumps((used, ending))


def closing_of(call: Mapping[str, bytes]) -> Closing | None:
    if "x" not in call:
        return None
    used, ending = orjson.loads(call["e"])
    usage = None if used is None else Usage(UsageSource(used[0]), *used[1:])
    return Closing(amounts_of(call["x"]), usage, ending, int(call["z"]))


def refusal_of(text: bytes) -> Record:
    """As reserve.lua keeps it. The first plan stands for the call."""
    _, at_ms, why, held, (owner, run, dimensions, model, provider), (requested, inputs, _), blocking, accounts = orjson.loads(
        text
    )
    inputs["why"] = why
    inputs["blocking"] = [_balance_input(each) for each in blocking]
    inputs["accounts"] = [_balance_input(each) for each in accounts]
    pairs = tuple(sorted(dimensions.items()))
    return Record(run, owner, at_ms, Outcome.BLOCK, requested, model, provider, Amounts(*held), (), pairs, 0, inputs)


def _balance_input(fields: Sequence[Any]) -> dict[str, object]:
    return dict(zip(("account", "limit", "committed", "reserved", "mode"), fields, strict=True))
