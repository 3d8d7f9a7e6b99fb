"""A plan's charges, looked through once: what every step would find out about them again. Calls of one caller share theirs."""

from typing import Any, Final, NamedTuple

import orjson

from gateway.core.scopes import Account, Unit
from gateway.core.values import Basis, Ceiling, Charge, Mode
from gateway.core.windows import END_OF_TIME_MS

_UNITS: Final = {Unit.USD: 0, Unit.TOKENS: 1, Unit.CALLS: 2}
_KNOWN_AT_MOST: Final = 4_096

# How a charge is packed: [key, limit, rule, own, alerts, the window's end, share in ppm, margin]. Defaults at the end are left off:
# most charges are four fields.
RULES: Final = tuple((mode, basis) for mode in Mode for basis in Basis)
_NUMBERS: Final = {rule: number for number, rule in enumerate(RULES)}
DEFAULTS: Final[tuple[Any, ...]] = (0, False, (500_000, 800_000, 1_000_000), END_OF_TIME_MS, 1_000_000, 0)


class Spot(NamedTuple):
    """Where one charge meets its account. `unit`: the place of the account's unit in (usd, tokens, calls).

    A `twin` is a further rule on an account that an earlier charge counts already.
    """

    charge: Charge
    ceiling: Ceiling
    account: Account
    where: tuple[str, str]
    unit: int
    twin: bool


class Layout:
    """What the charges of a plan are together."""

    __slots__ = ("advisory", "charges", "from_ms", "own", "packed", "pinned", "spots", "until_ms")

    def __init__(self, charges: tuple[Charge, ...]) -> None:
        self.charges = charges
        spots: list[Spot] = []
        named: set[str] = set()
        for charge in charges:
            account = charge.ceiling.account
            where = (account.tenant, account.key)
            spots.append(Spot(charge, charge.ceiling, account, where, _UNITS[account.unit], account.key in named))
            named.add(account.key)
        ceilings = [charge.ceiling for charge in charges]
        self.spots = tuple(spots)
        self.advisory = any(each.basis is Basis.NONE for each in ceilings)
        self.own = any(each.own for each in ceilings)
        self.pinned = any(each.pinned_ppm for each in ceilings)
        # The instants that all windows hold: [from_ms, until_ms).
        self.from_ms = max((each.account.window.start_ms for each in ceilings), default=0)
        self.until_ms = min((each.account.window.end_ms for each in ceilings), default=END_OF_TIME_MS)
        self.packed = orjson.Fragment(orjson.dumps([_packed(charge) for charge in charges]))


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
    )
    used = max(
        (place for place, (value, default) in enumerate(zip(rest, DEFAULTS, strict=True), 1) if value != default), default=0
    )
    return [ceiling.account.key, ceiling.limit, *rest[:used]]
