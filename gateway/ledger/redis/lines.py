"""A plan's charges as the scripts read them, and calls as the scripts keep them: the order of the fields stands here and in
`lua/lines.lua`."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Mode, Outcome, Usage
from gateway.ledger.packed import Closing, Record, account_of, inputs_of, packable_usage, usage_of
from gateway.ledger.redis.kept import KeptCall

_UNITS: Final = {Unit.USD: 1, Unit.TOKENS: 2, Unit.CALLS: 3, Unit.CREDITS: 7, Unit.RISK_POINTS: 8}
_SLICED: Final = 3  # on top of a unit's number, where a slice is held; of the first three
_BASES: Final = {Basis.RESERVED_AND_COMMITTED: 0, Basis.COMMITTED: 1, Basis.NONE: 2}
_BASIS: Final = {number: basis for basis, number in _BASES.items()}
# Behind ordinal, unit, limit and basis, in order: alerts, own, share, margin, twin, bucket, pause, pinned, pinned_to. What has its default
# at the end is left off.
_DEFAULT: Final = False
_ALL: Final = 1_000_000  # a share, in ppm


class Lines:
    """The charges of a plan, ready to be sent. `text`: what every step looks at; `names`: what few do, [key, end, mode] per line."""

    __slots__ = ("charges", "keys", "names", "text", "unique", "usual")

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
        # The short scripts know one rule an account, and no rolling windows.
        self.usual = len(ordinals) == len(charges) and not any(each.ceiling.account.window.bucket_ms for each in charges)
        if texts is None:
            written = [_line(*each, places.get(each[0].ceiling.pinned_to, 0)) for each in lines]
            accounts = [charge.ceiling.account for charge in charges]
            names = [
                (account.key, account.window.end_ms, charge.ceiling.mode)
                for account, charge in zip(accounts, charges, strict=True)
            ]
            texts = (orjson.dumps(written).decode(), orjson.dumps(names).decode())
        self.text, self.names = texts

    def to_hold(self, runs: Sequence[str]) -> Iterator[int]:
        """As hold.lua reads them, flat. `runs`: the call's run, and its ancestors."""
        for charge in self.charges:
            ceiling = charge.ceiling
            limit = -2 if ceiling.pinned_ppm else -1 if ceiling.limit is None else ceiling.limit
            yield from (_unit(charge), limit, _BASES[ceiling.basis], charge.share_ppm, ceiling.margin, _place(ceiling, runs))

    def to_commit(self, runs: Sequence[str]) -> Iterator[int]:
        """As commit.lua reads them, flat."""
        for charge in self.charges:
            ceiling = charge.ceiling
            limit = -1 if ceiling.limit is None else ceiling.limit
            yield from (_unit(charge), limit, _place(ceiling, runs), len(ceiling.alerts), *ceiling.alerts)

    def balances(self, told: Sequence[Any]) -> tuple[Balance, ...]:
        """`told`: limit (None or -1: none), committed, reserved, unconfirmed per account."""
        rows = zip(self.unique, told[::4], told[1::4], told[2::4], told[3::4], strict=True)
        return tuple([Balance(each[0], None if limit == -1 else limit, c, r, u, each[1]) for each, limit, c, r, u in rows])


def _unit(charge: Charge) -> int:
    unit = _UNITS[charge.ceiling.account.unit]
    return unit + _SLICED if charge.sliced and unit <= _SLICED else unit


def _place(ceiling: Ceiling, runs: Sequence[str]) -> int:
    """Of the run whose own limit replaces the ceiling's, from 1; 0: there is none. One that is not named counts as the call's own."""
    if ceiling.own_run is None:
        return 0
    return runs.index(ceiling.own_run) + 1 if ceiling.own_run in runs else 1


def _line(charge: Charge, ordinal: int, twin: bool, pinned_to: int) -> list[Any]:
    ceiling = charge.ceiling
    window = ceiling.account.window
    line = [
        ordinal,
        _unit(charge),
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
        charges.append(Charge(ceiling, _ALL if share_ppm is _DEFAULT else share_ppm, _SLICED < unit <= 2 * _SLICED))
    return Lines(tuple(charges), (text.decode(), names.decode()))


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


def record_of(tenant: str, call: KeptCall) -> Record:
    owner, run, dimensions, model, provider = orjson.loads(call.group)
    requested, inputs, input_tokens = orjson.loads(call.rest)
    charges = read_lines(tenant, call.lines, call.names).charges
    rung = inputs["ladder"][call.plan]
    inputs["effective_max_output_tokens"] = rung[2]
    inputs["input_tokens"] = input_tokens[call.plan]
    outcome = Outcome.ADVISORY_WARN if call.warned else Outcome.ALLOW
    if model != inputs["ladder"][0][0]:
        outcome = Outcome.DOWNGRADE
    pairs = tuple(sorted(dimensions.items()))
    return Record(
        *(run, owner, call.at_ms, outcome, requested, model, provider, call.held, charges, pairs, call.plan, inputs, call.slices),
        call.lapses,
    )


def closing_text(usage: Usage | None, ending: str | None, note: str = "") -> bytes:
    told = (packable_usage(usage), ending)
    return orjson.dumps((*told, note) if note else told)


def closing_of(call: KeptCall) -> Closing | None:
    if not call.ended_ms:
        return None
    used, ending, *note = orjson.loads(call.closing)
    return Closing(call.charged, usage_of(used), ending, call.ended_ms, *note)


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
