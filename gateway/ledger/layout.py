"""A plan's charges, looked through once: what every step would find out about them again. Calls of one caller share theirs."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Basis, Ceiling, Charge, Mode
from gateway.core.windows import END_OF_TIME_MS

_UNITS: Final = {Unit.USD: 0, Unit.TOKENS: 1, Unit.CALLS: 2, Unit.CREDITS: 6, Unit.RISK_POINTS: 7}
_SLICED: Final = 3  # further on, the slice of what has one
_KNOWN_AT_MOST: Final = 4_096

# How a charge is packed: [key, limit, rule, own, alerts, the window's end, share in ppm, margin, sliced]. Defaults at the end are left
# off: most charges are four fields.
RULES: Final = tuple((mode, basis) for mode in Mode for basis in Basis)
_NUMBERS: Final = {rule: number for number, rule in enumerate(RULES)}
DEFAULTS: Final[tuple[Any, ...]] = (0, False, (500_000, 800_000, 1_000_000), END_OF_TIME_MS, 1_000_000, 0, False)


class Spot(NamedTuple):
    """Where one charge meets its account. `unit`: the place of what is held there in `places`: 0 to 2 is the worst case in USD, tokens
    or calls, 3 to 5 the slice, 6 and 7 are credits and risk points, which have none.

    A `twin` is a further rule on an account that an earlier charge counts already.
    """

    charge: Charge
    ceiling: Ceiling
    account: Account
    where: tuple[str, str]
    unit: int
    twin: bool


def windows_of(charges: Sequence[Charge]) -> tuple[int, int]:
    """The instants that all their windows hold: [from_ms, until_ms)."""
    windows = [charge.ceiling.account.window for charge in charges]
    from_ms = max((window.start_ms for window in windows), default=0)
    return from_ms, min((window.end_ms for window in windows), default=END_OF_TIME_MS)


class Layout:
    """What the charges of a plan are together."""

    __slots__ = ("advisory", "charges", "from_ms", "own", "packed", "pinned", "rolling", "spots", "until_ms")

    def __init__(self, charges: tuple[Charge, ...]) -> None:
        self.charges = charges
        spots: list[Spot] = []
        named: set[str] = set()
        for charge in charges:
            account = charge.ceiling.account
            where, unit = (account.tenant, account.key), _UNITS[account.unit]
            if charge.sliced and unit < _SLICED:
                unit += _SLICED
            spots.append(Spot(charge, charge.ceiling, account, where, unit, account.key in named))
            named.add(account.key)
        ceilings = [charge.ceiling for charge in charges]
        self.spots = tuple(spots)
        self.advisory = any(each.basis is Basis.NONE for each in ceilings)
        self.own = any(each.own for each in ceilings)
        self.pinned = any(each.pinned_ppm for each in ceilings)
        self.rolling = any(each.account.window.bucket_ms for each in ceilings)
        self.from_ms, self.until_ms = windows_of(charges)
        self.packed = orjson.Fragment(orjson.dumps([_packed(charge) for charge in charges]))


def places(held: Amounts, slices: Amounts | None) -> tuple[int, ...]:
    """What is held where: see `Spot.unit`. Without slices, all of it is the same."""
    usd, tokens, calls = held.usd, held.tokens, held.calls
    if slices is None:
        return usd, tokens, calls, usd, tokens, calls, held.credits, held.risk_points
    return usd, tokens, calls, slices.usd, slices.tokens, slices.calls, held.credits, held.risk_points


def held_in(held: Sequence[int]) -> Amounts:
    """The other way round: the worst case."""
    return Amounts(*held[:3], *held[6:])


def sliced_in(held: Sequence[int]) -> Amounts:
    return Amounts(*held[3:6])


_known: dict[int, Layout] = {}


def layout_of(charges: tuple[Charge, ...]) -> Layout:
    """Found by identity: to compare charges would cost more than to look through them. A known layout keeps its charges alive, so
    nothing else can have their id."""
    layout = _known.get(id(charges))
    if layout is None:
        if len(_known) >= _KNOWN_AT_MOST:
            _known.clear()
        layout = _known[id(charges)] = Layout(charges)
    return layout


def _packed(charge: Charge) -> list[Any]:
    ceiling = charge.ceiling
    rest = (
        _NUMBERS[ceiling.mode, ceiling.basis],
        ceiling.own,
        ceiling.alerts,
        ceiling.account.window.end_ms,
        charge.share_ppm,
        ceiling.margin,
        charge.sliced,
    )
    used = max(
        (place for place, (value, default) in enumerate(zip(rest, DEFAULTS, strict=True), 1) if value != default), default=0
    )
    return [ceiling.account.key, ceiling.limit, *rest[:used]]
