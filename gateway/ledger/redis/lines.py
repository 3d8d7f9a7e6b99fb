"""A plan's charges as the scripts read them, and calls as the scripts keep them: the order of the fields stands here and in
`lua/lines.lua`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Mode, Outcome, Usage
from gateway.ledger.packed import Closing, Record, account_of, inputs_of, packable_usage, usage_of
from gateway.ledger.states import STATES

_UNITS: Final = {Unit.USD: 1, Unit.TOKENS: 2, Unit.CALLS: 3}
_SLICED: Final = 3  # on top of a unit's number, where a slice is held
_BASES: Final = {Basis.RESERVED_AND_COMMITTED: 0, Basis.COMMITTED: 1, Basis.NONE: 2}
_BASIS: Final = {number: basis for basis, number in _BASES.items()}
# Behind ordinal, unit, limit and basis, in order: alerts, own, share, margin, twin, bucket, pause, pinned, pinned_to. What has its default
# at the end is left off.
_DEFAULT: Final = False
_ALL: Final = 1_000_000  # a share, in ppm
NUMBERS: Final = {state: number for number, state in STATES.items()}

# The fields of a call's hash.
CALL_FIELDS: Final = ("s", "l", "t", "h", "f", "p", "w", "a", "g", "n", "m", "d", "x", "e", "z")


class Lines:
    """The charges of a plan, ready to be sent. `text`: what every step looks at; `names`: what few do, [key, end, mode] per line."""

    __slots__ = ("charges", "keys", "names", "text", "unique")

    def __init__(self, charges: tuple[Charge, ...], texts: tuple[str, str] | None = None) -> None:
        """`texts`: as they were sent once."""
        self.charges = charges
        ordinals: dict[str, int] = {}
        places: dict[str, int] = {}
        lines = []
        self.unique: list[tuple[Account, Mode]] = []  # the accounts, in the order of the balances
        for place, charge in enumerate(charges, 1):
            ceiling = charge.ceiling
            account = ceiling.account
            twin = account.key in ordinals
            if not twin:
                ordinals[account.key] = len(ordinals) + 1
                places[account.key] = place
                self.unique.append((account, ceiling.mode))
            lines.append((charge, ordinals[account.key], twin))
        self.keys = tuple(ordinals)
        if texts is None:
            written = [_line(*each, places.get(each[0].ceiling.pinned_to, 0)) for each in lines]
            accounts = [charge.ceiling.account for charge in charges]
            names = [
                (account.key, account.window.end_ms, charge.ceiling.mode)
                for account, charge in zip(accounts, charges, strict=True)
            ]
            texts = (orjson.dumps(written).decode(), orjson.dumps(names).decode())
        self.text, self.names = texts

    def balances(self, told: Sequence[Any]) -> tuple[Balance, ...]:
        """`told`: limit, committed, reserved, unconfirmed per account."""
        found = []
        at = 0
        for account, mode in self.unique:
            found.append(Balance(account, told[at], told[at + 1], told[at + 2], told[at + 3], mode))
            at += 4
        return tuple(found)


def _line(charge: Charge, ordinal: int, twin: bool, pinned_to: int) -> list[Any]:
    ceiling = charge.ceiling
    window = ceiling.account.window
    line = [
        ordinal,
        _UNITS[ceiling.account.unit] + (_SLICED if charge.sliced else 0),
        -1 if ceiling.limit is None else ceiling.limit,
        _BASES[ceiling.basis],
        ceiling.alerts or _DEFAULT,
        ceiling.own_run or _DEFAULT,
        _DEFAULT if charge.share_ppm == _ALL else charge.share_ppm,
        ceiling.margin or _DEFAULT,
        twin,
        window.bucket_ms or _DEFAULT,
        ceiling.pause,
        ceiling.pinned_ppm or _DEFAULT,
        pinned_to or _DEFAULT,
    ]
    while line[-1] is _DEFAULT:
        line.pop()
    return line


def read_lines(tenant: str, text: bytes, names: bytes) -> Lines:
    """As they were sent once. What only a reserve needs is not restored: a share's pin, a pause."""
    charges = []
    for line, (key, end_ms, mode) in zip(orjson.loads(text), orjson.loads(names), strict=True):
        rule: list[Any] = [*line, _DEFAULT, _DEFAULT, _DEFAULT, _DEFAULT]
        _, unit, limit, basis, alerts, own, share_ppm, margin, *_ = rule
        ceiling = Ceiling(
            account_of(tenant, key, end_ms),
            None if limit < 0 else limit,
            Mode(mode),
            _BASIS[basis],
            margin or 0,
            bool(own),
            tuple(alerts or ()),
        )
        charges.append(Charge(ceiling, _ALL if share_ppm is _DEFAULT else share_ppm, unit > _SLICED))
    return Lines(tuple(charges), (text.decode(), names.decode()))


def amounts_of(text: bytes) -> Amounts:
    """The "usd tokens calls" of the scripts."""
    usd, tokens, calls = text.split(b" ")
    return Amounts(int(usd), int(tokens), int(calls))


def text_of(amounts: Amounts) -> str:
    return f"{amounts.usd} {amounts.tokens} {amounts.calls}"


def held_text(held: Amounts, slices: Amounts | None) -> str:
    """What a call holds, as the scripts keep it: see `six` in common.lua."""
    return text_of(held) if slices is None else f"{text_of(held)} {text_of(slices)}"


def read_held(text: bytes) -> tuple[Amounts, Amounts | None]:
    numbers = [int(number) for number in text.split(b" ")]
    return Amounts(*numbers[:3]), Amounts(*numbers[3:]) if len(numbers) > 3 else None


def rest_of(decision: Decision) -> bytes:
    """What no script looks at: [model asked for, inputs, input tokens per plan]."""
    return orjson.dumps((decision.call.model, inputs_of(decision, None), [plan.input_tokens for plan in decision.ladder]))


def group_start(owner: str, run: str, dimensions: Sequence[tuple[str, str]]) -> str:
    """A group of spend is JSON: [owner, run, {dimension: value}, model, provider]. All but the last two, which a plan adds."""
    return orjson.dumps((owner, run, dict(dimensions))).decode()[:-1] + ","


def group_end(model: str, provider: str) -> str:
    return orjson.dumps((model, provider)).decode()[1:]


def run_of(group: bytes) -> str:
    return str(orjson.loads(group)[1])


def record_of(tenant: str, call: Mapping[str, bytes]) -> Record:
    """From the fields of a call's hash."""
    owner, run, dimensions, model, provider = orjson.loads(call["g"])
    requested, inputs, input_tokens = orjson.loads(call["d"])
    plan = int(call.get("p", 0))
    held, slices = read_held(call["h"])
    charges = read_lines(tenant, call["n"], call["m"]).charges
    rung = inputs["ladder"][plan]
    inputs["effective_max_output_tokens"] = rung[2]
    inputs["input_tokens"] = input_tokens[plan]
    outcome = Outcome.ADVISORY_WARN if "w" in call else Outcome.ALLOW
    if model != inputs["ladder"][0][0]:
        outcome = Outcome.DOWNGRADE
    pairs = tuple(sorted(dimensions.items()))
    return Record(run, owner, int(call["t"]), outcome, requested, model, provider, held, charges, pairs, plan, inputs, slices)


def closing_text(usage: Usage | None, ending: str | None) -> bytes:
    return orjson.dumps((packable_usage(usage), ending))


def closing_of(call: Mapping[str, bytes]) -> Closing | None:
    if "x" not in call:
        return None
    used, ending = orjson.loads(call["e"])
    return Closing(amounts_of(call["x"]), usage_of(used), ending, int(call["z"]))


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
